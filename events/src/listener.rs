//! One session that listens in a database, for all of a process.
//!
//! PostgreSQL wakes every session that listens in a database at every notification in it, whatever its channel. Each
//! part of a process that listened by itself would cost the server a process that wakes at every commit, to find that
//! nothing of it is for it.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::silence::in_time;

/// After this a connection that says nothing is given up: the server, or what is between, may be gone without a word.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// How long nothing may be heard before the server is asked whether it is there.
const ASK_AFTER: Duration = Duration::from_secs(5);

/// The time from a lost session to the next; it doubles as long as the server refuses one, as a standby does.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
const AGAIN_AFTER_AT_MOST: Duration = Duration::from_secs(5);

/// What was heard last on a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Which session heard it, from 1 on. Between two of them anything may have been missed.
    pub session: u64,
    /// The payload; empty, as long as a session has heard nothing.
    pub payload: String,
}

/// Listens on some channels. It says what was heard last on each, not all that was.
#[derive(Debug, Default)]
pub struct Listener {
    channels: Vec<(&'static str, watch::Sender<Heard>)>,
}

/// What is heard on one channel.
#[derive(Debug, Clone)]
pub struct Subscription(watch::Receiver<Heard>);

impl Subscription {
    /// Waits for something that was not heard before, for so long. A new session counts, too: something may have been
    /// missed before it.
    pub async fn next(&mut self, within: Duration) -> Option<Heard> {
        let next = async {
            if self.0.changed().await.is_err() {
                // Nobody listens any more.
                std::future::pending::<()>().await;
            }
            self.0.borrow_and_update().clone()
        };
        tokio::time::timeout(within, next).await.ok()
    }
}

impl Listener {
    /// Listens on a channel, too.
    pub fn on(&mut self, channel: &'static str) -> Subscription {
        if let Some((_, sender)) = self.channels.iter().find(|(name, _)| *name == channel) {
            return Subscription(sender.subscribe());
        }
        let (sender, receiver) = watch::channel(Heard::default());
        self.channels.push((channel, sender));
        Subscription(receiver)
    }

    /// Listens until `stop`, over lost sessions. `direct` leads to the database without a pooler in transaction mode
    /// between. Whoever subscribes looks by itself now and then: a notification may get lost.
    #[must_use]
    pub fn spawn(self, direct: PgConnectOptions, stop: CancellationToken) -> JoinHandle<()> {
        let direct = direct.application_name("tidemark listener");
        tokio::spawn(async move {
            let (mut session, mut pause) = (0, AGAIN_AFTER);
            while !stop.is_cancelled() {
                // A new one each time: a connection of the one before may wait for a server that will not say a word.
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .acquire_timeout(ANSWERS_WITHIN)
                    .connect_lazy_with(direct.clone());
                session += 1;
                tokio::select! {
                    () = stop.cancelled() => {
                        tokio::time::timeout(ANSWERS_WITHIN, pool.close()).await.ok();
                    }
                    Err(error) = self.listen(&pool, session) => {
                        let is_refused = error.as_database_error().is_some();
                        pause = if is_refused { (pause * 2).min(AGAIN_AFTER_AT_MOST) } else { AGAIN_AFTER };
                        tracing::warn!(%error, ?pause, "cannot listen for notifications, trying again");
                        tokio::time::timeout(pause, stop.cancelled()).await.ok();
                    }
                }
            }
        })
    }

    async fn listen(
        &self,
        pool: &sqlx::PgPool,
        session: u64,
    ) -> Result<std::convert::Infallible, sqlx::Error> {
        let mut listener = in_time(ANSWERS_WITHIN, PgListener::connect_with(pool)).await?;
        // Else it would connect anew by itself, without a word of what was missed meanwhile.
        listener.eager_reconnect(false);
        in_time(ANSWERS_WITHIN, listener.listen_all(self.channels.iter().map(|(name, _)| *name))).await?;
        for (_, heard) in &self.channels {
            heard.send_replace(Heard { session, payload: String::new() });
        }
        loop {
            match tokio::time::timeout(ASK_AFTER, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => {
                    let on = self.channels.iter().find(|(name, _)| *name == notification.channel());
                    if let Some((_, heard)) = on {
                        heard.send_replace(Heard { session, payload: notification.payload().to_owned() });
                    }
                }
                Ok(Ok(None)) => return Err(sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into())),
                Ok(Err(error)) => return Err(error),
                Err(_elapsed) => {
                    in_time(ANSWERS_WITHIN, sqlx::raw_sql("SELECT 1").execute(&mut listener)).await?;
                }
            }
        }
    }
}
