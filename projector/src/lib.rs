//! What it all adds up to: projections fold the log into views.
//!
//! | module | what it does |
//! |---|---|
//! | [`projection`] | the one trait, and which projections there are |
//! | [`views`] | one projection each |
//! | [`worker`] | a batch of events into rows and checkpoint, in one transaction; parking what cannot be applied |
//! | [`runner`] | follows the log for one instance |
//! | [`topic`] | follows the topic in Kafka for one instance |
//! | [`supervisor`] | keeps a runner for every instance that is to be fed |
//! | [`filler`] | ready bodies in Redis, as they change |
//! | [`mod@rebuild`] | the next instance beside the live one, and the switch |
//!
//! A projection's checkpoint is written in the transaction of its rows: every event counts exactly once, whatever
//! is killed. Every partition of keys has a checkpoint of its own, and what is not beyond it is skipped, so the
//! number of workers may change between runs.

pub mod filler;
pub mod projection;
pub mod rebuild;
pub mod runner;
pub mod supervisor;
pub mod topic;
pub mod views;
pub mod worker;

pub use filler::Filler;
pub use projection::{Projection, Retention, all, find};
pub use rebuild::{Progress, rebuild, switch_back};
pub use supervisor::{Feed, INSTANCES, ProjectorConfig, Supervisor};

/// What can go wrong with a projection.
#[derive(Debug, thiserror::Error)]
pub enum ProjectorError {
    /// The views' database did not answer, or refused.
    #[error("the views' database: {0}")]
    Database(#[from] sqlx::Error),
    /// The views cannot be read or migrated.
    #[error(transparent)]
    Views(#[from] tidemark_views::ViewError),
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] tidemark_events::log::LogError),
    /// The topic cannot be read.
    #[error(transparent)]
    Topic(#[from] tidemark_kafka::StreamError),
    /// The topic is another one than was read before, or no longer holds what comes next. The log does.
    #[error(
        "the topic does not go on where partition {partition} of {name} instance {instance} was read to; the log fills the gap"
    )]
    OtherTopic {
        /// The projection.
        name: String,
        /// The instance.
        instance: i32,
        /// Of the topic.
        partition: i16,
    },
    /// Somebody else has moved the checkpoint: what this worker knows is old.
    #[error("the checkpoint of {0} was moved by another process")]
    Moved(String),
    /// The log is not the one that was read: it was restored or promoted, and ends earlier or has a new epoch.
    #[error(
        "the log stands at {head} of epoch {epoch}, and was read to {position} before: it has lost its end"
    )]
    LostEnd {
        /// Its epoch now.
        epoch: tidemark_events::Epoch,
        /// Its head now.
        head: tidemark_events::Position,
        /// How far it had been read.
        position: tidemark_events::Position,
    },
    /// There is no such projection.
    #[error("there is no projection {0}; there are {1}")]
    UnknownProjection(String, String),
    /// The instance was made by a fold that this program does not have.
    #[error(
        "{name} instance {instance} was made by fold version {fold_version}, which this program does not have"
    )]
    UnknownFold {
        /// The projection.
        name: String,
        /// The instance.
        instance: i32,
        /// The version of its fold.
        fold_version: i32,
    },
    /// Somebody else is at it.
    #[error("{name} instance {instance} is being worked on by another process")]
    Busy {
        /// The projection.
        name: String,
        /// The instance.
        instance: i32,
    },
    /// There is no former instance to go back to.
    #[error("{0} has no former instance to go back to")]
    NoWayBack(String),
    /// The instance did not come to where readers stand in time.
    #[error("{name} instance {instance} did not catch up in time")]
    NotCaughtUp {
        /// The projection.
        name: String,
        /// The instance.
        instance: i32,
    },
    /// It was told to stop.
    #[error("stopped before it was done; run it again to go on")]
    Stopped,
}
