//! Read your own writes: `Tidemark-After: <epoch>-<position>` makes a read wait until its views stand there.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tidemark_events::{Epoch, Position, planted};
use tidemark_http::problem::{self, Problem};

use crate::QueryState;
use crate::feed::View;

/// The header `Tidemark-After`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct After(pub(crate) Option<Mark>);

/// Up to where a view must stand. Without an epoch, of whatever epoch the view is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    epoch: Option<Epoch>,
    position: Position,
}

impl<S: Send + Sync> FromRequestParts<S> for After {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get("tidemark-after") else { return Ok(Self(None)) };
        match value.to_str().ok().and_then(parse) {
            Some(mark) => Ok(Self(Some(mark))),
            None => {
                let detail = "Tidemark-After is what Tidemark-Position of an answer said";
                Err(Problem::new(&problem::INVALID_PARAMETER, detail).with_error("Tidemark-After", detail))
            }
        }
    }
}

fn parse(text: &str) -> Option<Mark> {
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
        let Some(mark) = mark.filter(|_| !planted::is("wait-left-out")) else { return Ok(()) };
        let mut standing = self.0.standing.follow();
        let newest = |stands: &[crate::feed::Stands; View::COUNT]| {
            views.iter().map(|&view| stands[view as usize].epoch).max()
        };
        // A position that was lost with an epoch will never be reached: no use to wait for it.
        let now = newest(&standing.borrow());
        if let (Some(asked), Some(now)) = (mark.epoch, now)
            && asked < now
        {
            self.check_history(asked, mark.position).await?;
        }
        let reached = |stands: &[crate::feed::Stands; View::COUNT]| {
            views.iter().all(|&view| {
                let at = stands[view as usize];
                at.position >= mark.position && mark.epoch.is_none_or(|epoch| at.epoch >= epoch)
            })
        };
        let waited = tokio::time::timeout(self.0.config.wait_within, standing.wait_for(reached)).await;
        let stands = waited.ok().and_then(|reached| reached.ok().map(|stands| *stands)).ok_or_else(|| {
            Problem::new(&problem::VIEW_BEHIND, "the views have not come to that position yet")
                .with_retry_after(1)
        })?;
        match (mark.epoch, newest(&stands)) {
            (Some(asked), Some(epoch)) if asked < epoch && Some(epoch) != now => {
                self.check_history(asked, mark.position).await
            }
            _ => Ok(()),
        }
    }

    /// A position of an earlier epoch counts if it lies before the fork.
    async fn check_history(&self, epoch: Epoch, position: Position) -> Result<(), Problem> {
        match self.0.log.epoch_end(epoch).await {
            Ok(Some(end)) if position <= end => Ok(()),
            Ok(_) => Err(Problem::new(
                &problem::POSITION_UNKNOWN,
                "that position is not part of this log's history",
            )),
            Err(error) => {
                tracing::warn!(%error, "cannot look up an epoch");
                Err(Problem::new(&problem::UNAVAILABLE, "the log cannot be read now").with_retry_after(1))
            }
        }
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
