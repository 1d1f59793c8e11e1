//! The streams a decision needs, from snapshots and events, all at one position.

use std::collections::HashMap;

use sqlx::{Connection, Executor, PgConnection, Row};
use uuid::Uuid;

use super::append::WriterConnection;
use super::read::{event_columns, event_from_row};
use super::{Head, LogError, Snapshot, history, snapshots};
use crate::Position;
use crate::envelope::RecordedEvent;

/// The most events that are caught up with in one step.
pub(super) const TAIL_LIMIT: i64 = 5_000;

/// How streams are looked up. The bounds of a stream's partition are there to leave the others out. While a partition
/// has no statistics yet, the planner would also combine them with the stream's own index, and read the whole index of
/// positions for each stream; a bitmap is the only way to combine them.
const PLANS: &str = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_bitmapscan = off";

/// Streams and the tail of the log, read in one snapshot of the database.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// Whether what the reader knew is part of this log's history. If not, all of it is to be forgotten.
    pub continues: bool,
    /// Where the log stood for this read, `None` if the tail was longer than one step and is not all here.
    pub head: Option<Head>,
    /// The log after what the reader knew.
    pub tail: Vec<RecordedEvent>,
    /// Snapshots that the reader accepted.
    pub snapshots: Vec<Snapshot>,
    /// Each stream's events after its snapshot, in the order of stream and version.
    pub events: Vec<RecordedEvent>,
}

impl WriterConnection {
    /// Reads the log after what is `known`, if anything is, and `streams` from their newest snapshot that `usable`
    /// accepts, before the lock is taken. If the tail is longer than one step, only the tail's first part comes back:
    /// fold it and call again.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn load(
        &mut self,
        known: Option<Head>,
        streams: &[Uuid],
        usable: impl Fn(&Snapshot) -> bool,
    ) -> Result<Loaded, LogError> {
        let mut transaction =
            self.connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
        transaction.execute(PLANS).await?;
        let row = sqlx::query("SELECT epoch, position FROM log.head").fetch_one(&mut *transaction).await?;
        let head = Head { epoch: row.try_get(0)?, position: row.try_get(1)? };
        let mut loaded = Loaded { continues: true, ..Loaded::default() };
        let mut after = head.position;
        if let Some(known) = known {
            loaded.continues = history::continues(&mut transaction, head, known).await?;
            if loaded.continues {
                after = known.position;
            }
        }
        if head.position > after {
            loaded.tail = tail(&mut transaction, after, head.position).await?;
        }
        if head.position - after <= TAIL_LIMIT {
            loaded.head = Some(head);
            if !streams.is_empty() {
                loaded.snapshots = snapshots::find(&mut *transaction, streams).await?;
                loaded.snapshots.retain(&usable);
                loaded.events = stream_events(&mut transaction, streams, &loaded.snapshots).await?;
            }
        }
        transaction.commit().await?;
        Ok(loaded)
    }
}

/// The log between two positions, at most [`TAIL_LIMIT`] events of it.
pub(super) async fn tail(
    connection: &mut PgConnection,
    after: Position,
    up_to: Position,
) -> Result<Vec<RecordedEvent>, LogError> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        event_columns!(),
        " FROM log.events WHERE position > $1 AND position <= $2 \
         ORDER BY position LIMIT $3"
    ))
    .bind(after)
    .bind(up_to)
    .bind(TAIL_LIMIT)
    .fetch_all(connection)
    .await?;
    Ok(rows.iter().map(event_from_row).collect::<Result<_, _>>()?)
}

async fn stream_events(
    connection: &mut PgConnection,
    streams: &[Uuid],
    snapshots: &[Snapshot],
) -> Result<Vec<RecordedEvent>, LogError> {
    let known: HashMap<Uuid, i64> = snapshots.iter().map(|s| (s.stream_id, s.version)).collect();
    let after_versions: Vec<i64> =
        streams.iter().map(|stream| known.get(stream).copied().unwrap_or(0)).collect();
    let rows = sqlx::query(concat!(
        "SELECT e.* FROM unnest($1::uuid[], $2::bigint[]) AS wanted (stream_id, after_version) \
         JOIN log.streams s ON s.stream_id = wanted.stream_id \
         JOIN log.partitions p ON p.from_position = s.partition \
         CROSS JOIN LATERAL (SELECT ",
        event_columns!(),
        " FROM log.events \
         WHERE stream_id = s.stream_id AND version > wanted.after_version \
         AND position >= p.from_position AND position < p.to_position OFFSET 0) e ORDER BY e.stream_id, e.version"
    ))
    .bind(streams)
    .bind(after_versions)
    .fetch_all(connection)
    .await?;
    Ok(rows.iter().map(event_from_row).collect::<Result<_, _>>()?)
}
