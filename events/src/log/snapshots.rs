//! Folded states that make long streams quick to load. Losing them costs time, never truth.

use sqlx::{Executor, PgExecutor, Row};
use uuid::Uuid;

use super::{Log, LogError};
use crate::{Epoch, Position};

/// A state as it was after one event of its stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Whose state.
    pub stream_id: Uuid,
    /// The version of the last event folded into it.
    pub version: i64,
    /// The position of that event.
    pub position: Position,
    /// The version of the fold that made it; another fold must not use it.
    pub fold_version: i16,
    /// The state.
    pub state: serde_json::Value,
}

/// The snapshots of streams. One that is beyond the head is of an end that the log has lost: it is left out.
pub(super) async fn find(
    connection: impl PgExecutor<'_>,
    streams: &[Uuid],
) -> Result<Vec<Snapshot>, LogError> {
    let rows = sqlx::query(
        "SELECT s.stream_id, s.version, s.position, s.fold_version, s.state FROM log.snapshots s, log.head h \
         WHERE s.stream_id = ANY($1) AND s.position <= h.position",
    )
    .bind(streams)
    .fetch_all(connection)
    .await?;
    let snapshot = |row: &sqlx::postgres::PgRow| {
        Ok(Snapshot {
            stream_id: row.try_get(0)?,
            version: row.try_get(1)?,
            position: row.try_get(2)?,
            fold_version: row.try_get(3)?,
            state: row.try_get(4)?,
        })
    };
    rows.iter().map(snapshot).collect::<Result<_, sqlx::Error>>().map_err(LogError::from)
}

impl Log {
    /// The snapshot of a stream, if there is one. Its reader looks whether its fold made it.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn snapshot(&self, stream_id: Uuid) -> Result<Option<Snapshot>, LogError> {
        Ok(find(self.pool(), &[stream_id]).await?.pop())
    }

    /// Stores snapshots of committed states, each with the epoch that it is of and only if it is newer than what is there.
    /// What the log has lost since, with its end, is left out.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn store_snapshots(&self, snapshots: &[(Epoch, Snapshot)]) -> Result<(), LogError> {
        let mut transaction = self.pool().begin().await?;
        // Any of them may be missing, so they need not take the disk's time from the commits that must not be.
        transaction.execute("SET LOCAL synchronous_commit = off").await?;
        sqlx::query(
            "INSERT INTO log.snapshots AS s (stream_id, version, position, fold_version, state) \
             SELECT u.stream_id, u.version, u.position, u.fold_version, u.state \
             FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::smallint[], $5::jsonb[], $6::int[]) \
               AS u (stream_id, version, position, fold_version, state, epoch) \
             JOIN log.head h ON h.epoch = u.epoch AND h.position >= u.position \
             ON CONFLICT (stream_id) DO UPDATE SET version = excluded.version, position = excluded.position, \
             fold_version = excluded.fold_version, state = excluded.state, taken_at = clock_timestamp() \
             WHERE (s.fold_version, s.version) < (excluded.fold_version, excluded.version)",
        )
        .bind(snapshots.iter().map(|(_, s)| s.stream_id).collect::<Vec<_>>())
        .bind(snapshots.iter().map(|(_, s)| s.version).collect::<Vec<_>>())
        .bind(snapshots.iter().map(|(_, s)| s.position).collect::<Vec<_>>())
        .bind(snapshots.iter().map(|(_, s)| s.fold_version).collect::<Vec<_>>())
        .bind(snapshots.iter().map(|(_, s)| &s.state).collect::<Vec<_>>())
        .bind(snapshots.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }
}
