//! The append-only log in PostgreSQL: one order of positions, without gaps, visible in order.
//!
//! | module | what it does |
//! |---|---|
//! | [`append`] | takes the lock, assigns positions, writes, commits; settles unknown outcomes |
//! | [`load`] | the streams a decision needs, from snapshots and events, at one position |
//! | [`read`] | batches of the log from a position |
//! | [`recent`] | its newest events, in memory for all who follow it in this process |
//! | [`answers`] | the answers of commands that came with an idempotency key |
//! | [`snapshots`] | folded states that make long streams quick to load |
//! | [`pace`] | how long whoever follows it waits between two batches |
//! | [`partitions`] | tables made ahead of need |
//! | [`wake`] | tells readers that the log has grown |
//! | [`lease`] | what only one process may do at a time |
//! | [`revocations`] | ended sessions, for every process that checks tokens |
//!
//! A writer holds the row `log.head` from before its decision until its commit. Positions therefore become
//! visible in order and a rollback leaves no hole: whoever asks for `position > n` can never skip an event.

pub mod answers;
pub mod append;
pub mod history;
pub mod lease;
pub mod load;
pub mod pace;
pub mod partitions;
pub mod read;
pub mod recent;
pub mod revocations;
pub mod snapshots;
pub mod wake;
mod wire;

use std::str::FromStr;
use std::sync::{Arc, Mutex};

use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{PgPool, Row};

pub use answers::{NewAnswer, StoredAnswer};
pub use append::{Batch, Locked, NewEvent, Outcome, Swift, WriterConnection};
pub use lease::Lease;
pub use load::Loaded;
pub use pace::Pace;
pub use read::{Filter, Page};
pub use recent::Appended;
pub use snapshots::Snapshot;

use crate::migrations::{Schema, SchemaError};
use crate::{Epoch, Position};

/// How many positions one partition of `log.events` holds, unless told otherwise.
pub const PARTITION_SIZE: i64 = 5_000_000;

/// The largest event payload, in bytes of JSON.
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;

/// The most events one decision may append.
pub const MAX_EVENTS_PER_DECISION: usize = 500;

/// What can go wrong with the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database did not answer, or refused.
    #[error("the log's database: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema is not as this program needs it, or could not be brought up to date.
    #[error("the log's database: {0}")]
    Schema(#[from] SchemaError),
    /// A stream or the head does not stand where the writer thought, or a key was used before: its states are not the
    /// log's, and must be loaded anew.
    #[error("a stream or the head does not stand where the batch was decided at, or a key was used before")]
    Versions,
    /// The writer has to read more than fits under the lock; it must catch up before it takes it again.
    #[error("{behind} events behind the log, too many to read under its lock")]
    TooFarBehind {
        /// Events between the writer and the head.
        behind: i64,
    },
    /// The batch reaches beyond the last partition; one must be made first.
    #[error("no partition holds position {position}")]
    NoPartition {
        /// The last position of the batch.
        position: Position,
    },
    /// An event could not be written as JSON, or is larger than [`MAX_PAYLOAD_BYTES`].
    #[error("{event_type} cannot be stored: {reason}")]
    Unstorable {
        /// Its type.
        event_type: &'static str,
        /// Why.
        reason: String,
    },
}

impl LogError {
    /// Whether the database lacks something that it may have again, such as room on its disk: nobody's command is to
    /// blame.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        // Insufficient resources, and errors of the system below (SQLSTATE).
        const CLASSES: [&str; 2] = ["53", "58"];
        let Self::Database(error) = self else { return false };
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        code.is_some_and(|code| CLASSES.iter().any(|class| code.starts_with(class)))
    }
}

/// Where the log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head {
    /// Which history.
    pub epoch: Epoch,
    /// The position of the newest event, 0 in an empty log.
    pub position: Position,
}

/// As clients, notifications and the topic have it: `epoch-position`.
impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.epoch, self.position)
    }
}

impl Head {
    /// Reads what [`Display`](std::fmt::Display) writes, `None` if it is anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, position) = text.split_once('-')?;
        Some(Self { epoch: epoch.parse().ok()?, position: position.parse().ok()? })
    }
}

/// The log, for reading and for waiting. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Log {
    pool: PgPool,
    wake: Arc<wake::Wake>,
    recent: Arc<recent::Recent>,
    /// As they were read last, see [`Log::epoch_end`].
    epochs: Arc<Mutex<Arc<Vec<Head>>>>,
}

static MIGRATOR: Migrator = sqlx::migrate!("../migrations/log");

/// The schema `log`.
pub const SCHEMA: Schema = Schema { name: "log", migrator: &MIGRATOR, brought_by: "`tidemark command`" };

impl Log {
    /// A log in the database of `pool`.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool, wake: Arc::default(), recent: Arc::default(), epochs: Arc::default() }
    }

    /// The same log, with the same knowledge of where it stands and what is newest, read through another pool.
    #[must_use]
    pub fn through(&self, pool: PgPool) -> Self {
        Self { pool, ..self.clone() }
    }

    /// Brings the schema `log` up to date and makes the first partitions. Several processes may do so at once.
    ///
    /// # Errors
    /// [`LogError::Schema`] when the schema is newer than this code or a step fails, else [`LogError::Database`].
    pub async fn migrate(pool: &PgPool) -> Result<(), LogError> {
        Self::migrate_with(pool, PARTITION_SIZE).await
    }

    /// [`Log::migrate`] with partitions of another size.
    ///
    /// # Errors
    /// As [`Log::migrate`].
    pub async fn migrate_with(pool: &PgPool, partition_size: i64) -> Result<(), LogError> {
        SCHEMA.migrate(pool).await?;
        partitions::ensure(pool, partition_size).await?;
        Ok(())
    }

    /// The pool it reads with.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Where the log stands now.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn head(&self) -> Result<Head, LogError> {
        let row = sqlx::query("SELECT epoch, position FROM log.head").fetch_one(&self.pool).await?;
        Ok(Head { epoch: row.try_get(0)?, position: row.try_get(1)? })
    }
}

/// Connection options for a URL, with the settings that the log's and the views' statements rely on.
///
/// Statements with `position > $1 … LIMIT` must be planned for their values (a generic plan on a table without
/// statistics reads it whole), and none of them gains from being compiled.
///
/// # Errors
/// [`sqlx::Error::Configuration`] when the URL is none.
pub fn connect_options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    Ok(with_settings(PgConnectOptions::from_str(url)?))
}

/// [`connect_options`] for options that exist already.
#[must_use]
pub fn with_settings(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("plan_cache_mode", "force_custom_plan"), ("jit", "off")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_are_written() {
        let head = Head { epoch: 3, position: 42 };
        assert_eq!(Head::parse(&head.to_string()), Some(head));
        for wrong in ["", "3", "3-", "-42", "a-b", "3-4-5"] {
            assert_eq!(Head::parse(wrong), None, "{wrong}");
        }
    }
}
