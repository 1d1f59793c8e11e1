//! Leases: what only one process may do at a time, and another takes over when that one is gone.
//!
//! A lease alone stops nobody who was paused and wakes up behind its end: whoever works under one needs a fence where
//! the work takes effect (Kleppmann, "How to do distributed locking"). The publisher's is Kafka's, which refuses the
//! older of two producers with one transactional id.

use std::time::Duration;

use uuid::Uuid;

use super::{Log, LogError};
use crate::Position;

/// A lease that this process asks for under its own name.
#[derive(Debug, Clone)]
pub struct Lease {
    log: Log,
    name: &'static str,
    holder: Uuid,
    holds_for: Duration,
}

impl Lease {
    /// A lease on `name`; nothing is asked for yet.
    #[must_use]
    pub fn new(log: Log, name: &'static str, holds_for: Duration) -> Self {
        Self { log, name, holder: Uuid::now_v7(), holds_for }
    }

    /// How long it holds without being renewed.
    #[must_use]
    pub fn holds_for(&self) -> Duration {
        self.holds_for
    }

    /// Takes or renews it; `false` when somebody else has it.
    ///
    /// # Errors
    /// [`LogError::Database`]: then it is not known whether it was taken.
    pub async fn take(&self) -> Result<bool, LogError> {
        let taken = sqlx::query(
            "INSERT INTO log.leases AS l (name, holder, until) \
             VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3)) \
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until \
             WHERE l.holder = excluded.holder OR l.until < clock_timestamp() RETURNING 1",
        )
        .bind(self.name)
        .bind(self.holder)
        .bind(self.holds_for.as_secs_f64())
        .fetch_optional(self.log.pool())
        .await?;
        Ok(taken.is_some())
    }

    /// How far the work under it has come, as whoever had it last has noted.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn place(&self) -> Result<Option<Position>, LogError> {
        let place = sqlx::query_scalar("SELECT place FROM log.leases WHERE name = $1")
            .bind(self.name)
            .fetch_optional(self.log.pool())
            .await?;
        Ok(place.flatten())
    }

    /// Notes how far the work under it has come, if it is this process's.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn note(&self, place: Position) -> Result<(), LogError> {
        sqlx::query("UPDATE log.leases SET place = $3 WHERE name = $1 AND holder = $2")
            .bind(self.name)
            .bind(self.holder)
            .bind(place)
            .execute(self.log.pool())
            .await?;
        Ok(())
    }

    /// Gives it back, if it is this process's.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn give_back(&self) -> Result<(), LogError> {
        sqlx::query("UPDATE log.leases SET until = '-infinity' WHERE name = $1 AND holder = $2")
            .bind(self.name)
            .bind(self.holder)
            .execute(self.log.pool())
            .await?;
        Ok(())
    }
}
