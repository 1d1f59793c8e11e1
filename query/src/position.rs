//! Read your own writes: `Tidemark-After: <epoch>-<position>` makes a read wait until its views stand there.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::HeaderName;
use axum::http::request::Parts;
use tidemark_events::log::Head;
use tidemark_events::{Epoch, Position, planted};
use tidemark_http::problem::{self, Problem};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::QueryState;
use crate::feed::{Stands, View};

/// How soon a log that did not answer is asked for its epochs again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Its name, so that it need not be made of the text for each request.
static TIDEMARK_AFTER: HeaderName = HeaderName::from_static("tidemark-after");

/// The header `Tidemark-After`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct After(pub(crate) Option<Mark>);

/// Up to where a view must stand. Without an epoch, of whatever epoch the view is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) epoch: Option<Epoch>,
    pub(crate) position: Position,
}

/// 409 `position-unknown`: what somebody knows of was lost.
pub(crate) fn lost() -> Problem {
    Problem::new(&problem::POSITION_UNKNOWN, "that position is not part of this log's history")
}

impl<S: Send + Sync> FromRequestParts<S> for After {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get(&TIDEMARK_AFTER) else { return Ok(Self(None)) };
        match value.to_str().ok().and_then(parse) {
            Some(mark) => Ok(Self(Some(mark))),
            None => {
                let detail = "Tidemark-After is what Tidemark-Position of an answer said";
                Err(Problem::new(&problem::INVALID_PARAMETER, detail).with_error("Tidemark-After", detail))
            }
        }
    }
}

pub(crate) fn parse(text: &str) -> Option<Mark> {
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let (epoch, position) = match text.trim().split_once('-') {
        Some((epoch, position)) if digits(epoch) => (Some(epoch.parse().ok()?), position),
        Some(_) => return None,
        None => (None, text.trim()),
    };
    digits(position).then(|| position.parse().ok().map(|position| Mark { epoch, position }))?
}

impl QueryState {
    /// Waits until all of `views` stand at the mark, if there is one.
    ///
    /// # Errors
    /// 503 `view-behind` when that takes too long, 409 `position-unknown` when the mark belongs to no history of
    /// this log.
    pub(crate) async fn wait(&self, After(mark): After, views: &[View]) -> Result<(), Problem> {
        match mark.filter(|_| !planted::is("wait-left-out")) {
            None => Ok(()),
            // Apart, so that a request that waits for nothing is not as large as one that does.
            Some(mark) => Box::pin(self.wait_for(mark, views)).await,
        }
    }

    async fn wait_for(&self, mark: Mark, views: &[View]) -> Result<(), Problem> {
        let mut standing = self.0.standing.follow();
        let deadline = Instant::now() + self.0.config.wait_within;
        let newest = |stands: &[Stands; View::COUNT]| {
            views.iter().map(|&view| stands[view as usize].epoch).max().unwrap_or(0)
        };
        // Views come to an epoch with the first event that each reads in it, some of them perhaps long before others.
        let (oldest, now) = {
            let stands = standing.borrow();
            (views.iter().map(|&view| stands[view as usize].epoch).min().unwrap_or(0), newest(&stands))
        };
        // A position that was lost with an epoch will never be reached: no use to wait for it.
        if let Some(asked) = mark.epoch {
            self.check_history(asked, mark.position, now).await?;
        }
        let told = mark.epoch.unwrap_or(0);
        let written = if told > oldest { self.as_written(told, mark.position, deadline).await } else { told };
        let reached = |stands: &[Stands; View::COUNT]| {
            views.iter().all(|&view| {
                let at = stands[view as usize];
                // One that stands beyond where the epoch begins has read an end that was lost.
                let is_there = at.position == mark.position && at.epoch >= written;
                is_there || (at.position >= mark.position && at.epoch >= told)
            })
        };
        let waited = tokio::time::timeout_at(deadline, standing.wait_for(reached)).await;
        let stands = waited.ok().and_then(|reached| reached.ok().map(|stands| *stands)).ok_or_else(|| {
            Problem::new(&problem::VIEW_BEHIND, "the views have not come to that position yet")
                .with_retry_after(1)
        })?;
        match mark.epoch {
            Some(asked) if newest(&stands) != now => {
                self.check_history(asked, mark.position, newest(&stands)).await
            }
            _ => Ok(()),
        }
    }

    /// Asks the log for its epochs whenever it or a view comes to a new one, until `stop`: positions of the former ones are
    /// then known here also while the log is away.
    pub(crate) async fn learn_epochs(&self, stop: &CancellationToken) {
        let (mut standing, mut log) = (self.0.standing.follow(), self.0.log.wake());
        let mut known = 0;
        while !stop.is_cancelled() {
            let of_views = standing.borrow_and_update().iter().map(|stands| stands.epoch).max().unwrap_or(0);
            let newest = of_views.max(log.borrow_and_update().epoch);
            if newest > known && self.0.log.epochs().await.is_ok() {
                known = newest;
            }
            let pause = async {
                if newest > known {
                    tokio::time::sleep(ASK_AGAIN).await;
                } else {
                    tokio::select! {
                        Ok(()) = standing.changed() => {}
                        Ok(()) = log.changed() => {}
                        else => stop.cancelled().await,
                    }
                }
            };
            stop.run_until_cancelled(pause).await;
        }
    }

    /// The epoch that a position was written in, of which somebody was told in an epoch that not every view has come to. If
    /// the log is away, what was told is waited for. One at a time asks: an epoch that there never was is not known
    /// afterwards either.
    async fn as_written(&self, epoch: Epoch, position: Position, deadline: Instant) -> Epoch {
        let asked = tokio::time::timeout_at(deadline, async {
            let _alone = self.0.asking.lock().await;
            self.0.log.as_written(Head { epoch, position }).await
        });
        asked.await.ok().and_then(Result::ok).map_or(epoch, |head| head.epoch)
    }

    /// A position of an earlier epoch counts if it lies before the fork. Of the newest epochs, that of the views must be
    /// known; that of the log, which may be newer, is asked after as long as the log is there.
    async fn check_history(&self, epoch: Epoch, position: Position, of_views: Epoch) -> Result<(), Problem> {
        let of_log = self.0.log.wake().borrow().epoch;
        for (newest, is_needed) in [(of_log, false), (of_views, true)] {
            if epoch >= newest {
                continue;
            }
            match self.0.log.epoch_end(epoch, newest).await {
                Ok(Some(end)) if position <= end => {}
                Ok(_) => return Err(lost()),
                Err(_) if !is_needed => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot look up an epoch");
                    let detail = "the log cannot be read now";
                    return Err(Problem::new(&problem::UNAVAILABLE, detail).with_retry_after(1));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_with_and_without_epoch() {
        assert_eq!(parse("2-17"), Some(Mark { epoch: Some(2), position: 17 }));
        assert_eq!(parse("17"), Some(Mark { epoch: None, position: 17 }));
        for bad in ["", "-", "1-", "-1", "a", "1-b", "1-2-3", "+1", "99999999999999999999", "1 2"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
