//! Appending: assign positions, write, commit; and find out when a commit's outcome is unknown.
//!
//! There are two ways to the same commit. [`WriterConnection::append_at`] is one statement that locks the head,
//! compares it with the position that the batch was decided at, writes, and commits: as long as nobody else appends,
//! that is all there is, one round trip. Where somebody else has appended, nothing is written, and the writer goes the
//! long way:
//!
//! ```text
//! let mut locked = connection.lock().await?;          // head row locked, its position known
//! locked.tail(position)                               // what others appended: fold it, then decide
//! locked.append(batch).await?;                        // the same statement
//! match locked.commit().await { … }                   // Outcome::Committed, Refused or Unknown
//! ```

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{ConnectOptions, Executor, PgConnection, Row};
use uuid::Uuid;

use super::load::{TAIL_LIMIT, tail};
use super::wire::{RowType, Rows};
use super::{Appended, Head, LogError, MAX_PAYLOAD_BYTES, NewAnswer, StoredAnswer, answers, history, wake};
use crate::envelope::{Metadata, RecordedEvent};
use crate::{Fact, Position, planted};

/// What a writer's sessions tell the database: whoever stops while holding the lock is cut off within seconds.
const SESSION: [(&str, &str); 8] = [
    ("application_name", "tidemark writer"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("statement_timeout", "5s"),
    ("lock_timeout", "3s"),
    ("tcp_user_timeout", "5s"),
    ("tcp_keepalives_idle", "2"),
    ("tcp_keepalives_interval", "1"),
    // The append's plan does not depend on its values; statements whose plan does set their own mode.
    ("plan_cache_mode", "force_generic_plan"),
];

/// A writer's transaction that is older than this is stuck: the time-outs above have failed to end it.
const STUCK_SECONDS: f64 = 10.0;

/// `lock_not_available`: the wait for a lock was longer than `lock_timeout`.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// An event to be appended.
#[derive(Debug, Clone, Copy)]
pub struct NewEvent<'a> {
    /// The stream it goes to.
    pub stream_id: Uuid,
    /// Its place in that stream; the writer knows the stream's version.
    pub version: i64,
    /// Its id (UUIDv7).
    pub event_id: Uuid,
    /// What happened.
    pub fact: &'a Fact,
    /// Who and in which flow.
    pub metadata: &'a Metadata,
    /// What it must stay in order with.
    pub partition_key: Uuid,
    /// If it is the first event of its stream in its partition of the log (the stream is new, or its event before
    /// stands in another one): that partition, see [`super::partitions::Partitions::begun`].
    pub begins: Option<Position>,
}

/// Events and answers of one commit, with their positions, as they will be sent.
#[derive(Debug)]
pub struct Batch {
    start: Head,
    position: Position,
    bytes: usize,
    /// The id of the first event.
    first: Option<Uuid>,
    /// The events themselves, if somebody is to be told of them; without their time.
    told: Option<Vec<RecordedEvent>>,
    /// Of `log.event_to_append`.
    events: Rows,
    /// Of `log.new_stream`: first events of a stream in a partition.
    streams: Rows,
    /// Of `log.new_answer`.
    answers: Rows,
}

impl Batch {
    /// A batch behind a head.
    #[must_use]
    pub fn at(head: Head) -> Self {
        Self {
            start: head,
            position: head.position,
            bytes: 0,
            first: None,
            told: None,
            events: Rows::default(),
            streams: Rows::default(),
            answers: Rows::default(),
        }
    }

    /// Keeps the events, for [`Batch::into_appended`].
    #[must_use]
    pub fn keeping_events(mut self) -> Self {
        self.told = Some(Vec::new());
        self
    }

    /// The events that were committed at this time, if they were kept.
    #[must_use]
    pub fn into_appended(self, recorded_at: DateTime<Utc>) -> Option<Appended> {
        let head = self.head();
        let mut events = self.told?;
        for event in &mut events {
            event.recorded_at = recorded_at;
        }
        Some(Appended { events, after: self.start.position, head })
    }

    /// Where the log stands with it.
    #[must_use]
    pub fn head(&self) -> Head {
        Head { position: self.position, ..self.start }
    }

    /// The position of the newest event in it, or of the log before it.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.answers.is_empty()
    }

    /// How many bytes of payload it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an event behind the others; returns its position.
    ///
    /// # Errors
    /// [`LogError::Unstorable`]; nothing was added.
    pub fn push(&mut self, event: &NewEvent<'_>) -> Result<Position, LogError> {
        let kind = event.fact.event_type();
        let position = self.position + 1 + i64::from(planted::sometimes("position-skipped"));
        let mut payload = 0..0;
        self.events.try_push(14, |row| {
            row.bigint(position)
                .uuid(event.stream_id)
                .text(kind.category)
                .bigint(event.version)
                .uuid(event.event_id)
                .text(kind.name)
                .smallint(kind.version);
            payload = row
                .json(|buffer| event.fact.write_payload(buffer))
                .map_err(|error| unstorable(kind.name, error.to_string()))?;
            if payload.len() > MAX_PAYLOAD_BYTES {
                let reason = format!("{} bytes, the limit is {MAX_PAYLOAD_BYTES}", payload.len());
                return Err(unstorable(kind.name, reason));
            }
            row.uuid(event.metadata.correlation_id)
                .optional_uuid(event.metadata.causation_id)
                .text(&event.metadata.actor)
                .optional_text(event.metadata.traceparent.as_deref())
                .uuid(event.partition_key)
                .optional_origin(event.metadata.origin);
            Ok(())
        })?;
        if let Some(partition) = event.begins {
            self.streams.push(3, |row| {
                row.uuid(event.stream_id).bigint(partition).bigint(event.version);
            });
        }
        self.position = position;
        self.bytes += payload.len();
        if let Some(told) = &mut self.told {
            let text = String::from_utf8_lossy(&self.events.bytes()[payload]);
            told.push(RecordedEvent {
                position,
                stream_id: event.stream_id,
                category: kind.category.into(),
                version: event.version,
                event_id: event.event_id,
                event_type: kind.name.into(),
                schema_version: kind.version,
                payload: text.into(),
                metadata: event.metadata.clone(),
                recorded_at: DateTime::UNIX_EPOCH,
                partition_key: event.partition_key,
            });
        }
        self.first.get_or_insert(event.event_id);
        Ok(position)
    }

    /// Adds an answer to be found again under its key.
    pub fn store(&mut self, answer: &NewAnswer) {
        self.answers.push(7, |row| {
            row.uuid(answer.key)
                .uuid(answer.fingerprint)
                .smallint(answer.status)
                .bigint(answer.version)
                .bigint(answer.position)
                .optional_text(answer.location.as_deref())
                .bytea(&answer.body);
        });
    }

    /// What to ask for if the commit's outcome is unknown, `None` if the batch has no events.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        Some(Mark { position: self.start.position + 1, event_id: self.first? })
    }
}

/// Tells whether a batch was committed: its first event stands at its first position, or it was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    position: Position,
    event_id: Uuid,
}

/// How a commit ended.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// It is durable.
    Committed(Head),
    /// The database refused it: nothing was written.
    Refused(LogError),
    /// The connection ended before the answer came: ask with [`Locked::settle`].
    Unknown(LogError),
}

/// How [`WriterConnection::append_at`] ended.
#[derive(Debug)]
#[must_use]
pub enum Swift {
    /// It is durable, and was recorded at this time.
    Committed(Head, DateTime<Utc>),
    /// Somebody else has appended: nothing was written, go the long way.
    Moved,
    /// The database refused it (a key that was used before, for one): nothing was written.
    Refused(LogError),
    /// The connection ended before the answer came: ask with [`Locked::settle`].
    Unknown(LogError),
}

/// A connection of its own for a writer: direct, since it holds a lock over several statements.
#[derive(Debug)]
pub struct WriterConnection {
    pub(super) connection: PgConnection,
    /// Known once this server and its run have been compared with those of the log's last writer.
    row_types: Option<RowTypes>,
    /// How often commits of unknown outcome had been settled when the lock was last held here.
    settled: i64,
}

impl WriterConnection {
    /// Connects, with the time-outs that keep a stopped writer from stopping the others.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn open(options: &PgConnectOptions) -> Result<Self, LogError> {
        let connection = options.clone().options(SESSION).connect().await?;
        Ok(Self { connection, row_types: None, settled: 0 })
    }

    /// Takes the log's lock.
    ///
    /// The first time on a connection it compares the server, its timeline and its run with those of the log's last
    /// writer: where they differ, a new epoch begins first, in a commit of its own.
    ///
    /// # Errors
    /// [`LogError::Database`], also when the lock was not to be had in time; a writer that has held it for far too
    /// long is then ended, so the next try can succeed.
    pub async fn lock(&mut self) -> Result<Locked<'_>, LogError> {
        let row_types = match self.row_types {
            Some(known) => known,
            None => {
                if let Err(error) = history::check(&mut self.connection).await {
                    self.end_stuck_holder(&error).await;
                    return Err(error.into());
                }
                *self.row_types.insert(RowTypes::of(&mut self.connection).await?)
            }
        };
        let locked = sqlx::raw_sql(
            "BEGIN; SET LOCAL plan_cache_mode = force_custom_plan; \
             SELECT epoch, position, settled FROM log.head FOR UPDATE",
        )
        .fetch_one(&mut self.connection)
        .await;
        let row = match locked {
            Ok(row) => row,
            Err(error) => {
                if self.connection.execute("ROLLBACK").await.is_ok() {
                    self.end_stuck_holder(&error).await;
                }
                return Err(error.into());
            }
        };
        let head = Head { epoch: row.try_get(0)?, position: row.try_get(1)? };
        self.settled = row.try_get(2)?;
        Ok(Locked { writer: self, row_types, head, appended: head })
    }

    /// Appends and commits in one statement, if the log still stands where the batch begins.
    ///
    /// Must have been [`WriterConnection::lock`]ed once before: that is where the database's history is compared.
    pub async fn append_at(&mut self, batch: &Batch) -> Swift {
        let Some(row_types) = self.row_types else { return Swift::Moved };
        match write(&mut self.connection, row_types, self.settled, batch).await {
            Ok(Some(recorded_at)) => Swift::Committed(batch.head(), recorded_at),
            Ok(None) => Swift::Moved,
            Err(error) if is_refusal(&error) => Swift::Refused(name_refusal(error, batch.position())),
            Err(error) => Swift::Unknown(error.into()),
        }
    }

    /// The stored answers of keys, as of now.
    ///
    /// # Errors
    /// [`LogError::Database`]: drop the connection then.
    pub async fn answers(&mut self, keys: &[Uuid]) -> Result<Vec<StoredAnswer>, LogError> {
        answers::find(&mut self.connection, keys).await
    }

    /// Waiting for the lock ran out of time: behind the time-outs stands this watchdog. A writer's transactions take
    /// milliseconds, so one of [`STUCK_SECONDS`] belongs to a process that stopped in a way they did not see (the
    /// server blocked on sending to it, for one).
    async fn end_stuck_holder(&mut self, error: &sqlx::Error) {
        let timed_out =
            error.as_database_error().is_some_and(|e| e.code().as_deref() == Some(LOCK_NOT_AVAILABLE));
        if !timed_out {
            return;
        }
        let ended = sqlx::query(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE application_name = 'tidemark writer' AND datname = current_database() \
             AND pid <> pg_backend_pid() AND xact_start < clock_timestamp() - make_interval(secs => $1)",
        )
        .bind(STUCK_SECONDS)
        .fetch_all(&mut self.connection)
        .await;
        match ended {
            Ok(rows) => {
                for row in rows {
                    let pid: Option<i32> = row.try_get(0).ok();
                    tracing::warn!(pid, "ended the session of a writer that held the log's lock too long");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look for the holder of the log's lock"),
        }
    }
}

/// The log's lock, held. Dropping it without [`Locked::commit`] or [`Locked::release`] leaves the connection in an
/// open transaction: drop the connection too.
#[derive(Debug)]
pub struct Locked<'a> {
    writer: &'a mut WriterConnection,
    row_types: RowTypes,
    head: Head,
    appended: Head,
}

impl Locked<'_> {
    /// Where the log stands; nobody can move it but the holder.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Whether what is `known` is part of this log's history.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn continues(&mut self, known: Head) -> Result<bool, LogError> {
        Ok(history::continues(&mut self.writer.connection, self.head, known).await?)
    }

    /// The log after `after`, all of it.
    ///
    /// # Errors
    /// [`LogError::TooFarBehind`] when that is more than should be read under the lock.
    pub async fn tail(&mut self, after: Position) -> Result<Vec<RecordedEvent>, LogError> {
        let behind = self.head.position - after;
        if behind > TAIL_LIMIT {
            return Err(LogError::TooFarBehind { behind });
        }
        tail(&mut self.writer.connection, after, self.head.position).await
    }

    /// The stored answers of keys.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn answers(&mut self, keys: &[Uuid]) -> Result<Vec<StoredAnswer>, LogError> {
        answers::find(&mut self.writer.connection, keys).await
    }

    /// Writes a batch; [`Locked::commit`] makes it durable.
    ///
    /// # Errors
    /// [`LogError::Versions`] when the batch does not begin at the head or a stream does not stand where it says;
    /// [`LogError::NoPartition`]; [`LogError::Database`]. In every case: [`Locked::release`], nothing is written.
    pub async fn append(&mut self, batch: &Batch) -> Result<(), LogError> {
        match write(&mut self.writer.connection, self.row_types, self.writer.settled, batch).await {
            Ok(Some(_)) => {
                self.appended = batch.head();
                Ok(())
            }
            Ok(None) => Err(LogError::Versions),
            Err(error) => Err(name_refusal(error, batch.position())),
        }
    }

    /// Whether an earlier batch of an unknown outcome is in the log. What is not there now will not come any more: an
    /// attempt that held the lock has ended, since it is held now, and one that is still on its way finds that commits
    /// were settled since it was sent, and writes nothing. Commit afterwards: only a commit of its own shows that this
    /// database is still the one that takes writes.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn settle(&mut self, mark: Mark) -> Result<bool, LogError> {
        let found = sqlx::query("SELECT event_id FROM log.events WHERE position = $1")
            .bind(mark.position)
            .fetch_optional(&mut self.writer.connection)
            .await?;
        let committed = match found {
            Some(row) => row.try_get::<Uuid, _>(0)? == mark.event_id,
            None => false,
        };
        self.writer.settled =
            sqlx::query_scalar("UPDATE log.head SET settled = settled + 1 RETURNING settled")
                .fetch_one(&mut self.writer.connection)
                .await?;
        Ok(committed)
    }

    /// Makes what was appended durable and gives the lock back.
    pub async fn commit(self) -> Outcome {
        let head = self.appended;
        match self.writer.connection.execute("COMMIT").await {
            Ok(_) => Outcome::Committed(head),
            Err(error) if is_refusal(&error) => Outcome::Refused(error.into()),
            Err(error) => Outcome::Unknown(error.into()),
        }
    }

    /// Gives the lock back, having written nothing.
    ///
    /// # Errors
    /// [`LogError::Database`]: drop the connection then.
    pub async fn release(self) -> Result<(), LogError> {
        self.writer.connection.execute("ROLLBACK").await?;
        Ok(())
    }
}

/// Errors after which a transaction has certainly not been committed: integrity, transaction state, serialisation, a
/// lock that was not to be had. Anything else, a shutdown among it, may have come after the commit was durable.
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| {
        code == LOCK_NOT_AVAILABLE || ["23", "25", "40"].iter().any(|class| code.starts_with(class))
    })
}

/// The one statement that appends: locks the head if it is where the batch begins and no commit has been settled since
/// the lock was last held here, moves it, writes events, streams and answers, and tells whoever listens. Returns the
/// events' time; `None`: the head is elsewhere, nothing was written.
async fn write(
    connection: &mut PgConnection,
    row_types: RowTypes,
    settled: i64,
    batch: &Batch,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let Batch { start, position, events, streams, answers, .. } = batch;
    let row: Option<PgRow> = sqlx::query(
        "WITH head AS (UPDATE log.head SET position = $1, recorded_at = GREATEST(recorded_at, clock_timestamp()) \
           WHERE position = $2 AND epoch = $3 AND settled = $9 RETURNING recorded_at), \
         written AS (INSERT INTO log.events (position, stream_id, category, version, event_id, event_type, \
             schema_version, payload, correlation_id, causation_id, actor, traceparent, recorded_at, partition_key, \
             origin) \
           SELECT e.position, e.stream_id, e.category, e.version, e.event_id, e.event_type, e.schema_version, \
             e.payload, e.correlation_id, e.causation_id, e.actor, e.traceparent, head.recorded_at, e.partition_key, \
             e.origin \
           FROM head, unnest($4::log.event_to_append[]) e), \
         begun AS (INSERT INTO log.streams (stream_id, partition, from_version) \
           SELECT s.stream_id, s.partition, s.from_version FROM head, unnest($5::log.new_stream[]) s), \
         answered AS (INSERT INTO log.answers (key, fingerprint, status, version, position, epoch, location, body, \
             created_at) \
           SELECT a.key, a.fingerprint, a.status, a.version, a.position, $3, a.location, a.body, head.recorded_at \
           FROM head, unnest($6::log.new_answer[]) a) \
         SELECT recorded_at, pg_notify($7, $8) FROM head",
    )
    .bind(position)
    .bind(start.position)
    .bind(start.epoch)
    .bind(events.of(row_types.event))
    .bind(streams.of(row_types.stream))
    .bind(answers.of(row_types.answer))
    .bind(wake::CHANNEL)
    .bind(batch.head().to_string())
    .bind(settled)
    .fetch_optional(connection)
    .await?;
    row.map(|row| row.try_get(0)).transpose()
}

/// The types that rows are sent as, as this database numbers them.
#[derive(Debug, Clone, Copy)]
struct RowTypes {
    event: RowType,
    stream: RowType,
    answer: RowType,
}

impl RowTypes {
    async fn of(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let row = sqlx::query(
            "SELECT 'log.event_to_append'::regtype::oid, 'log.event_to_append[]'::regtype::oid, \
             'log.new_stream'::regtype::oid, 'log.new_stream[]'::regtype::oid, \
             'log.new_answer'::regtype::oid, 'log.new_answer[]'::regtype::oid",
        )
        .fetch_one(connection)
        .await?;
        let row_type = |column| {
            Ok::<_, sqlx::Error>(RowType { row: row.try_get(column)?, array: row.try_get(column + 1)? })
        };
        Ok(Self { event: row_type(0)?, stream: row_type(2)?, answer: row_type(4)? })
    }
}

fn unstorable(event_type: &'static str, reason: String) -> LogError {
    LogError::Unstorable { event_type, reason }
}

/// The log's own errors among the database's.
fn name_refusal(error: sqlx::Error, position: Position) -> LogError {
    const CHECK_VIOLATION: &str = "23514";
    const UNIQUE_VIOLATION: &str = "23505";
    let Some(refused) = error.as_database_error() else { return error.into() };
    match refused.code().as_deref() {
        Some(CHECK_VIOLATION) if refused.message().contains("no partition") => {
            LogError::NoPartition { position }
        }
        Some(UNIQUE_VIOLATION) => LogError::Versions,
        _ => error.into(),
    }
}
