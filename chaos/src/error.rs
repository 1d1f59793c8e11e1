//! What can keep a run from being made at all. What is found wrong with the shop is no error but a finding.

/// Why a run could not be made, or not be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChaosError {
    /// The cluster's script failed.
    #[error("scripts/cluster {command} failed:\n{said}")]
    Script {
        /// What was asked of it.
        command: String,
        /// What it said.
        said: String,
    },
    /// Something took longer than it may.
    #[error("{0}")]
    TooLong(String),
    /// A database did not answer.
    #[error("{0}: {1}")]
    Database(&'static str, sqlx::Error),
    /// Kafka did not answer.
    #[error("reading the topic: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// A disk cannot be made, mounted or copied.
    #[error("a disk of its own: {0}")]
    Disk(String),
    /// Redis did not answer.
    #[error("reading Redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// Files, sockets, processes.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    /// Something was not as it must be to begin.
    #[error("{0}")]
    Wrong(String),
}

impl ChaosError {
    /// Names what was done to a file, a socket or a process.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io(what, error)
    }

    /// Names what was asked of a database.
    pub(crate) fn database(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| Self::Database(what, error)
    }
}
