//! The one trait, and which projections there are.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tidemark_events::log::Filter;
use tidemark_events::{Fact, Metadata, Position, RecordedEvent};
use uuid::Uuid;

use crate::ProjectorError;
use crate::views::{Audit, Orders, Products, Stock};

/// An event that has been read and understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its place in the log.
    pub position: Position,
    /// Its stream.
    pub stream_id: Uuid,
    /// Its place in the stream.
    pub version: i64,
    /// When the log took it.
    pub recorded_at: DateTime<Utc>,
    /// What it stays in order with.
    pub partition_key: Uuid,
    /// Who did it, from where, in which flow.
    pub metadata: &'a Metadata,
    /// What happened.
    pub fact: Fact,
}

impl<'a> Event<'a> {
    /// An event of the log with what it says.
    #[must_use]
    pub fn new(recorded: &'a RecordedEvent, fact: Fact) -> Self {
        Self {
            position: recorded.position,
            stream_id: recorded.stream_id,
            version: recorded.version,
            recorded_at: recorded.recorded_at,
            partition_key: recorded.partition_key,
            metadata: &recorded.metadata,
            fact,
        }
    }
}

/// Why a batch could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The database did not answer, or refused.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// A stored row cannot be read, or an event does not fit what was there before it.
    #[error("{0}")]
    Misfit(String),
}

/// What [`Projection::apply`] promises: the keys whose rows have changed.
pub type Applied<'a> = Pin<Box<dyn Future<Output = Result<Vec<Uuid>, ApplyError>> + Send + 'a>>;

/// A name, a version of its fold, its tables, and one function over a batch of events.
pub trait Projection: Send + Sync + 'static {
    /// Its name, and the prefix of its tables.
    fn name(&self) -> &'static str;

    /// The version of its fold and tables; another one needs a rebuild.
    fn fold_version(&self) -> i32;

    /// Which events it folds; others are not read.
    fn filter(&self) -> Filter;

    /// Whether it takes so little of the log that it had better follow in long steps: each costs a transaction, and a
    /// change that all readers follow. It follows the log itself, also where others follow the topic.
    fn is_sparse(&self) -> bool {
        false
    }

    /// Statements that make the tables of an instance, with what `apply` needs to find rows.
    fn create(&self, instance: i32) -> Vec<String>;

    /// Statements that make the indexes that only readers need; each may have been run before.
    fn index(&self, instance: i32) -> Vec<String>;

    /// Statements that remove the tables of an instance.
    fn remove(&self, instance: i32) -> Vec<String>;

    /// Folds a batch in memory and writes it with statements over sets, in the caller's transaction.
    fn apply<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        instance: i32,
        retention: Retention,
        events: &'a [Event<'a>],
    ) -> Applied<'a>;

    /// A statement that removes some rows that are behind the retention (`$1`, in seconds), at most `$2` of them; none
    /// where rows are for ever.
    fn prune(&self, _instance: i32) -> Option<String> {
        None
    }
}

/// How long rows stay that are not for ever: security events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention(pub Duration);

impl Retention {
    /// As a statement takes it.
    #[must_use]
    pub fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl Default for Retention {
    /// 180 days.
    fn default() -> Self {
        Self(Duration::from_secs(180 * 24 * 60 * 60))
    }
}

/// Every projection that this program has.
pub static ALL: &[&dyn Projection] = &[&Products, &Stock, &Orders, &Audit];

/// Every projection that this program has.
#[must_use]
pub fn all() -> &'static [&'static dyn Projection] {
    ALL
}

/// A projection by its name.
///
/// # Errors
/// [`ProjectorError::UnknownProjection`].
pub fn find(name: &str) -> Result<&'static dyn Projection, ProjectorError> {
    ALL.iter().find(|projection| projection.name() == name).copied().ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|projection| projection.name()).collect();
        ProjectorError::UnknownProjection(name.to_owned(), names.join(", "))
    })
}
