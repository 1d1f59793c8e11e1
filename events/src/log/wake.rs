//! Tells readers that the log has grown, without polling delay where a notification comes through, and within a
//! second where none does.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Head, Log, LogError};
use crate::silence::in_time;

/// The channel that appends notify, with `epoch-position` as payload.
pub(crate) const CHANNEL: &str = "tidemark_log";

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

    /// Keeps [`Log::wake`] up to date: listens on a connection of its own (`direct`: not through a pooler in
    /// transaction mode), and asks every second, so that a lost connection or notification delays readers but never
    /// stops them. Ends when `stop` is cancelled.
    pub fn spawn_listener(&self, direct: PgConnectOptions, stop: CancellationToken) -> JoinHandle<()> {
        let log = self.clone();
        tokio::spawn(async move {
            let connection = || {
                PgPoolOptions::new()
                    .max_connections(1)
                    .acquire_timeout(ANSWERS_WITHIN)
                    .connect_lazy_with(direct.clone())
            };
            let mut pool = connection();
            while !stop.is_cancelled() {
                let listening = tokio::select! {
                    () = stop.cancelled() => break,
                    ended = log.listen(&pool) => ended,
                };
                if let Err(error) = listening {
                    tracing::warn!(%error, "cannot listen for appends, asking again in a second");
                    // The one it had may be waiting for a server that will not say a word.
                    pool = connection();
                }
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(POLL) => {}
                }
            }
            tokio::time::timeout(ANSWERS_WITHIN, pool.close()).await.ok();
        })
    }

    async fn listen(&self, pool: &sqlx::PgPool) -> Result<(), LogError> {
        let mut listener = in_time(ANSWERS_WITHIN, PgListener::connect_with(pool)).await?;
        in_time(ANSWERS_WITHIN, listener.listen(CHANNEL)).await?;
        in_time(ANSWERS_WITHIN, self.learn_head()).await?;
        loop {
            match tokio::time::timeout(POLL, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => {
                    if let Some(head) = Head::parse(notification.payload()) {
                        self.committed(head);
                    }
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error.into()),
                // The listener connects anew by itself, and may have been cut short while it did, without a word.
                Err(_elapsed) => {
                    in_time(ANSWERS_WITHIN, self.learn_head()).await?;
                }
            }
        }
    }
}
