//! Tells readers that the log has grown, without polling delay where a notification comes through, and within a
//! second where none does.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Head, Log, LogError};
use crate::listener::{Listener, Subscription};
use crate::silence::in_time;

/// The channel that appends notify, with `epoch-position` as payload.
pub const CHANNEL: &str = "tidemark_log";

/// How long a reader may sleep through a lost notification.
const POLL: Duration = Duration::from_secs(1);

/// After this a connection that says nothing is given up: the server, or what is between, may be gone without a word.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// The newest head that is known to be committed.
#[derive(Debug)]
pub(super) struct Wake {
    head: watch::Sender<Head>,
}

impl Default for Wake {
    fn default() -> Self {
        Self { head: watch::Sender::new(Head { epoch: 0, position: 0 }) }
    }
}

impl Wake {
    /// Epoch 0 says that none is known yet.
    pub(super) fn known(&self) -> Head {
        *self.head.borrow()
    }
}

impl Log {
    /// Follows the newest head that is known to be committed. Epoch 0 says that none is known yet.
    #[must_use]
    pub fn wake(&self) -> watch::Receiver<Head> {
        self.wake.head.subscribe()
    }

    /// Says that everything up to `head` is committed.
    pub fn committed(&self, head: Head) {
        self.wake.head.send_if_modified(|known| {
            let newer = head > *known;
            if newer {
                *known = head;
            }
            newer
        });
    }

    /// Asks the log where it stands and takes its word, even if that is less than what was known: it may have lost its
    /// end with the server that was there before, and what is remembered of that end is forgotten. Whoever has a new
    /// connection does so before anything that is only known here is taken for true.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn learn_head(&self) -> Result<Head, LogError> {
        let before = self.wake.known();
        let head = self.head().await?;
        self.wake.head.send_if_modified(|known| {
            // Unless somebody has committed meanwhile, who knows better.
            let replaced = head > *known || (*known == before && head != before);
            if replaced {
                *known = head;
            }
            replaced
        });
        if head < before {
            self.forget().await;
        }
        Ok(head)
    }

    /// Keeps [`Log::wake`] up to date by what is heard on [`CHANNEL`], and asks every second, so that a lost notification
    /// delays readers but never stops them. Ends when `stop` is cancelled.
    pub fn follow(&self, mut heard: Subscription, stop: CancellationToken) -> JoinHandle<()> {
        let log = self.clone();
        tokio::spawn(async move {
            let (mut session, mut is_due) = (0, false);
            while !stop.is_cancelled() {
                let within = if is_due { Duration::ZERO } else { POLL };
                let Some(next) = stop.run_until_cancelled(heard.next(within)).await else { break };
                let head = next.as_ref().and_then(|heard| Head::parse(&heard.payload));
                if let Some(head) = head {
                    log.committed(head);
                }
                if head.is_some() && !is_due && next.as_ref().is_some_and(|heard| heard.session == session) {
                    continue;
                }
                // Nothing was heard for long, or another session hears now, and anything may have happened before it.
                let asked = in_time(ANSWERS_WITHIN, log.learn_head());
                let Some(asked) = stop.run_until_cancelled(asked).await else { break };
                is_due = asked.is_err();
                match asked {
                    Ok(_) => session = next.map_or(session, |heard| heard.session),
                    Err(error) => {
                        tracing::warn!(%error, "cannot ask where the log stands, asking again in a second");
                        tokio::time::timeout(POLL, stop.cancelled()).await.ok();
                    }
                }
            }
        })
    }

    /// [`Log::follow`] with a [`Listener`] of its own, for who listens for nothing else. `direct`: not through a pooler
    /// in transaction mode.
    pub fn spawn_listener(&self, direct: PgConnectOptions, stop: CancellationToken) -> JoinHandle<()> {
        let mut listener = Listener::default();
        let following = self.follow(listener.on(CHANNEL), stop.clone());
        let listening = listener.spawn(direct, stop);
        tokio::spawn(async move {
            for task in [following, listening] {
                if let Err(error) = task.await {
                    tracing::error!(%error, "listening ended badly");
                }
            }
        })
    }
}
