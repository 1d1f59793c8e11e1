//! The group-commit loop: takes commands, decides under the log's lock, commits, answers.
//!
//! One task owns the states and the connection. It takes every command that waits, loads what they need before the
//! lock, takes the lock, folds what others appended, decides each command on exact states, and commits all of it as
//! one transaction. Commands therefore never conflict: ten thousand buyers of one product are ten thousand
//! decisions in memory. Answers, refusals too, go out after the commit, since an earlier command of the same commit
//! may be what they rest on.

mod group;
mod states;

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;
use tidemark_events::log::{Head, Log, PARTITION_SIZE};
use tidemark_events::{Metadata, Money};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Command, Rejection};

/// Bounds of a writer.
#[derive(Debug, Clone)]
pub struct WriterConfig {
    /// Commands that may wait; one more is refused at once.
    pub queue_commands: usize,
    /// Bytes of request bodies that may wait.
    pub queue_bytes: usize,
    /// Commands of one commit.
    pub batch_commands: usize,
    /// Bytes of states kept in memory.
    pub state_bytes: usize,
    /// A stream gets a snapshot each time it has grown by so many events.
    pub snapshot_interval: i64,
    /// A command that has not been begun after this is refused.
    pub start_within: Duration,
    /// How long an unknown outcome is asked after before its clients are told that it is unknown.
    pub settle_within: Duration,
    /// Positions of one partition of the log.
    pub partition_size: i64,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self {
            queue_commands: 4_096,
            queue_bytes: 64 * 1024 * 1024,
            batch_commands: 512,
            state_bytes: 128 * 1024 * 1024,
            snapshot_interval: 32,
            start_within: Duration::from_secs(5),
            settle_within: Duration::from_secs(10),
            partition_size: PARTITION_SIZE,
        }
    }
}

/// An idempotency key with its scope, and what it was first used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyScope {
    /// Digest of actor, route and key.
    pub key: Uuid,
    /// Digest of the request.
    pub fingerprint: Uuid,
}

/// A success, before it is written as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// The product or order.
    pub id: Uuid,
    /// How it stands.
    pub status: &'static str,
    /// An order's total.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Money>,
    /// The version of its stream.
    pub version: i64,
    /// The position of the last event of the command, or of the log when it needed none.
    pub position: i64,
}

/// The answer to a whole request, as it is sent and stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// HTTP status.
    pub status: u16,
    /// Where what was made can be found.
    pub location: Option<String>,
    /// JSON.
    pub body: Vec<u8>,
}

/// Writes the outcomes of a request's commands, in their order, as its answer. `None`: it is a refusal of its single
/// command, which is answered as such and not stored.
pub type Render = fn(&[Result<Accepted, Rejection>]) -> Option<Rendered>;

/// Commands that come together: committed together, each accepted or refused by itself.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked for. Usually one.
    pub commands: Vec<Command>,
    /// Under which key, if any.
    pub key: Option<IdempotencyScope>,
    /// The version that the (first) command's stream must have.
    pub if_match: Option<i64>,
    /// The time of the decision.
    pub now: DateTime<Utc>,
    /// Who asks, in which flow.
    pub metadata: Metadata,
    /// How the answer is written.
    pub render: Render,
    /// Whether what comes after a refused command is left out.
    pub stop_at_rejection: bool,
    /// About how many bytes the request takes.
    pub bytes: usize,
}

/// What came of a request that was committed.
#[derive(Debug, Clone)]
pub struct Answer {
    /// As sent, the first time and each time again.
    pub rendered: Rendered,
    /// The version of the (first) subject's stream.
    pub version: i64,
    /// Up to where a view must stand to show it.
    pub head: Head,
    /// Whether it was found under its key and nothing was done now.
    pub replayed: bool,
    /// Each command's outcome; empty for a replayed answer.
    pub outcomes: Vec<Result<Accepted, Rejection>>,
}

/// Why a request has no answer of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The state of things forbids it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// `If-Match` names another version.
    #[error("version {expected} was expected, it is {current}")]
    VersionMismatch {
        /// What `If-Match` says.
        expected: i64,
        /// How it is.
        current: i64,
    },
    /// The key was used for another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// The queue is full, or the command waited too long in it. Nothing was done.
    #[error("too many commands wait; nothing was done")]
    Overloaded,
    /// The database is away. Nothing was done.
    #[error("the log cannot be written now; nothing was done")]
    Unavailable,
    /// A stream holds an event that this version cannot read. Nothing was done.
    #[error("stream {0} holds an event of a newer version; nothing was done")]
    Unreadable(Uuid),
    /// The database refuses what was decided. Nothing was done.
    #[error("the log refused the command; nothing was done")]
    Refused,
    /// Whether it was done is not known yet.
    #[error("whether the command was done is not known yet")]
    OutcomeUnknown,
}

struct Job {
    request: Request,
    reply: oneshot::Sender<Result<Answer, CommandError>>,
    begin_before: Instant,
    space: OwnedSemaphorePermit,
}

/// Where commands are handed in. Cheap to clone; the writer ends when `stop` is cancelled and the queue is empty.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Job>,
    space: Arc<Semaphore>,
    config: Arc<WriterConfig>,
}

const SPACE_UNIT: usize = 1024;

impl Writer {
    /// Starts a writer, on a thread of its own: what it does between two commits is what everybody waits for, so it
    /// never queues behind other tasks. `direct` leads to the log's database without a pooler in transaction mode between.
    #[must_use]
    pub fn spawn(
        log: Log,
        direct: PgConnectOptions,
        config: WriterConfig,
        stop: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let (queue, jobs) = mpsc::channel(config.queue_commands);
        let config = Arc::new(config);
        let space = Arc::new(Semaphore::new(config.queue_bytes / SPACE_UNIT));
        let shared = tokio::runtime::Handle::current();
        let bounds = Arc::clone(&config);
        let task = tokio::task::spawn_blocking(move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(own) => own.block_on(group::run(log, direct, bounds, jobs, stop, shared)),
                Err(error) => tracing::error!(%error, "the writer's thread cannot be started"),
            }
        });
        (Self { queue, space, config }, task)
    }

    /// Hands a request in and waits for its answer. A full queue refuses at once.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn submit(&self, request: Request) -> Result<Answer, CommandError> {
        let units = u32::try_from(request.bytes / SPACE_UNIT + 1).unwrap_or(u32::MAX);
        let overloaded = || {
            metrics::counter!("tidemark_commands_total", "outcome" => "overloaded").increment(1);
            CommandError::Overloaded
        };
        let space = Arc::clone(&self.space).try_acquire_many_owned(units).map_err(|_| overloaded())?;
        let (reply, answer) = oneshot::channel();
        let begin_before = Instant::now() + self.config.start_within;
        let job = Job { request, reply, begin_before, space };
        self.queue.try_send(job).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => overloaded(),
            mpsc::error::TrySendError::Closed(_) => CommandError::Unavailable,
        })?;
        let longest = self.config.start_within + self.config.settle_within + Duration::from_secs(5);
        match tokio::time::timeout(longest, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_ended)) => Err(CommandError::OutcomeUnknown),
            Err(_elapsed) => Err(CommandError::OutcomeUnknown),
        }
    }

    /// Commands that wait now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }
}
