//! The answers of commands that came with an idempotency key, stored with their events.

use std::time::Duration;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{Log, LogError};
use crate::{Epoch, Position};

/// How long an answer is kept.
pub const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// An answer to be stored. Holds ids and positions, never personal data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAnswer {
    /// Digest of actor, route and key.
    pub key: Uuid,
    /// Digest of the request.
    pub fingerprint: Uuid,
    /// HTTP status.
    pub status: i16,
    /// The version that the stream of the answer stands at.
    pub version: i64,
    /// The `Location` of what was made.
    pub location: Option<String>,
    /// The body, as sent.
    pub body: Vec<u8>,
    /// The last position of the command's events, or the head it was decided at.
    pub position: Position,
}

/// An answer found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// As stored.
    pub answer: NewAnswer,
    /// The epoch of its position.
    pub epoch: Epoch,
}

/// Looks keys up, in the transaction of `connection`. Answers whose time is over make room for new ones.
pub(super) async fn find(
    connection: &mut PgConnection,
    keys: &[Uuid],
) -> Result<Vec<StoredAnswer>, LogError> {
    sqlx::query(
        "DELETE FROM log.answers WHERE key = ANY($1) AND created_at <= clock_timestamp() - make_interval(secs => $2)",
    )
    .bind(keys)
    .bind(KEPT.as_secs_f64())
    .execute(&mut *connection)
    .await?;
    let rows = sqlx::query(
        "SELECT key, fingerprint, status, version, location, body, position, epoch FROM log.answers \
         WHERE key = ANY($1)",
    )
    .bind(keys)
    .fetch_all(connection)
    .await?;
    let answer = |row: &sqlx::postgres::PgRow| {
        Ok(StoredAnswer {
            answer: NewAnswer {
                key: row.try_get(0)?,
                fingerprint: row.try_get(1)?,
                status: row.try_get(2)?,
                version: row.try_get(3)?,
                location: row.try_get(4)?,
                body: row.try_get(5)?,
                position: row.try_get(6)?,
            },
            epoch: row.try_get(7)?,
        })
    };
    rows.iter().map(answer).collect::<Result<_, sqlx::Error>>().map_err(LogError::from)
}

impl Log {
    /// Deletes up to `limit` answers whose time is over; returns how many went.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn forget_expired_answers(&self, limit: i64) -> Result<u64, LogError> {
        let deleted = sqlx::query(
            "DELETE FROM log.answers WHERE ctid = ANY(ARRAY(SELECT ctid FROM log.answers \
             WHERE created_at <= clock_timestamp() - make_interval(secs => $1) ORDER BY created_at LIMIT $2))",
        )
        .bind(KEPT.as_secs_f64())
        .bind(limit)
        .execute(self.pool())
        .await?;
        Ok(deleted.rows_affected())
    }
}
