//! Appending: take the lock, assign positions, write, commit; and find out when a commit's outcome is unknown.
//!
//! ```text
//! let mut locked = connection.lock().await?;          // head row locked, its position and time known
//! let mut batch = locked.batch();                     // decide here, pushing events and answers
//! batch.push(&event)?;
//! locked.append(batch).await?;                        // COPY events, move streams and head, notify
//! match locked.commit().await { … }                   // Outcome::Committed, Refused or Unknown
//! ```

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Row};
use uuid::Uuid;

use super::copy::Rows;
use super::load::{TAIL_LIMIT, tail};
use super::{Head, LogError, MAX_PAYLOAD_BYTES, NewAnswer, StoredAnswer, answers, wake};
use crate::envelope::{Metadata, RecordedEvent};
use crate::{Fact, Position};

/// What a writer's sessions tell the database: whoever stops while holding the lock is cut off within seconds.
const SESSION: [(&str, &str); 7] = [
    ("application_name", "tidemark writer"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("statement_timeout", "5s"),
    ("lock_timeout", "3s"),
    ("tcp_user_timeout", "5s"),
    ("tcp_keepalives_idle", "2"),
    ("tcp_keepalives_interval", "1"),
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
}

#[derive(Debug)]
struct StreamMove {
    base: i64,
    version: i64,
    first: Position,
    last: Position,
}

/// Events and answers of one commit, with their positions.
#[derive(Debug)]
pub struct Batch {
    head: Head,
    recorded_at: DateTime<Utc>,
    start: Position,
    first_event: Option<Uuid>,
    rows: Rows,
    streams: HashMap<Uuid, StreamMove>,
    answers: Vec<NewAnswer>,
}

impl Batch {
    /// The position of the newest event in it, or of the log before it.
    #[must_use]
    pub fn position(&self) -> Position {
        self.head.position
    }

    /// The time that its events are recorded at.
    #[must_use]
    pub fn recorded_at(&self) -> DateTime<Utc> {
        self.recorded_at
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first_event.is_none() && self.answers.is_empty()
    }

    /// How many bytes its events take on the wire.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.rows.len()
    }

    /// Adds an event behind the others; returns its position.
    ///
    /// # Errors
    /// [`LogError::Unstorable`]; the batch is broken then and must not be appended. Callers that check payload sizes
    /// before ([`Fact::write_payload`]) never see it.
    pub fn push(&mut self, event: &NewEvent<'_>) -> Result<Position, LogError> {
        let position = self.head.position + 1;
        let kind = event.fact.event_type();
        let unstorable = |reason: String| LogError::Unstorable { event_type: kind.name, reason };
        let rows = &mut self.rows;
        rows.row(14);
        rows.i64(position);
        rows.uuid(event.stream_id);
        rows.text(kind.category);
        rows.i64(event.version);
        rows.uuid(event.event_id);
        rows.text(kind.name);
        rows.i16(kind.version);
        let bytes = rows.json(|out| event.fact.write_payload(out)).map_err(|error| unstorable(error.to_string()))?;
        if bytes > MAX_PAYLOAD_BYTES {
            return Err(unstorable(format!("{bytes} bytes, the limit is {MAX_PAYLOAD_BYTES}")));
        }
        rows.uuid(event.metadata.correlation_id);
        match event.metadata.causation_id {
            Some(id) => rows.uuid(id),
            None => rows.null(),
        }
        rows.text(&event.metadata.actor);
        match &event.metadata.traceparent {
            Some(text) => rows.text(text),
            None => rows.null(),
        }
        rows.time(self.recorded_at);
        rows.uuid(event.partition_key);
        self.streams
            .entry(event.stream_id)
            .and_modify(|stream| {
                stream.version = event.version;
                stream.last = position;
            })
            .or_insert(StreamMove {
                base: event.version - 1,
                version: event.version,
                first: position,
                last: position,
            });
        self.first_event.get_or_insert(event.event_id);
        self.head.position = position;
        Ok(position)
    }

    /// Adds an answer to be found again under its key.
    pub fn store(&mut self, answer: NewAnswer) {
        self.answers.push(answer);
    }

    /// What to ask for if the commit's outcome is unknown, `None` if the batch has no events.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.first_event.map(|event_id| Mark { position: self.start + 1, event_id })
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

/// A connection of its own for a writer: direct, since it holds a lock over several statements.
#[derive(Debug)]
pub struct WriterConnection {
    pub(super) connection: PgConnection,
    /// Whether this server and timeline have been compared with the log's.
    checked: bool,
}

impl WriterConnection {
    /// Connects, with the time-outs that keep a stopped writer from stopping the others.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn open(options: &PgConnectOptions) -> Result<Self, LogError> {
        let connection = options.clone().options(SESSION).connect().await?;
        Ok(Self { connection, checked: false })
    }

    /// Takes the log's lock.
    ///
    /// The first time on a connection it compares the database's system identifier and timeline with the log's: a
    /// restored or promoted database gets a new epoch first, in a commit of its own.
    ///
    /// # Errors
    /// [`LogError::Database`], also when the lock was not to be had in time; a writer that has held it for far too
    /// long is then ended, so the next try can succeed.
    pub async fn lock(&mut self) -> Result<Locked<'_>, LogError> {
        if !self.checked {
            self.check_history().await?;
            self.checked = true;
        }
        let locked = sqlx::raw_sql(
            "BEGIN; SELECT epoch, position, GREATEST(recorded_at, clock_timestamp()) FROM log.head FOR UPDATE",
        )
        .fetch_one(&mut self.connection)
        .await;
        let row = match locked {
            Ok(row) => row,
            Err(error) => {
                self.end_stuck_holder(&error).await;
                return Err(error.into());
            }
        };
        let head = Head { epoch: row.try_get(0)?, position: row.try_get(1)? };
        let recorded_at = row.try_get(2)?;
        Ok(Locked { writer: self, head, recorded_at, mark: None })
    }

    /// Waiting for the lock ran out of time: behind the time-outs stands this watchdog. A writer's transactions take
    /// milliseconds, so one of [`STUCK_SECONDS`] belongs to a process that stopped in a way they did not see (the
    /// server blocked on sending to it, for one).
    async fn end_stuck_holder(&mut self, error: &sqlx::Error) {
        let timed_out =
            error.as_database_error().is_some_and(|e| e.code().as_deref() == Some(LOCK_NOT_AVAILABLE));
        if !timed_out || self.connection.execute("ROLLBACK").await.is_err() {
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

    async fn check_history(&mut self) -> Result<(), LogError> {
        let mut transaction = self.connection.begin().await?;
        let row = sqlx::query(
            "SELECT position, epoch, system_identifier, timeline FROM log.head FOR UPDATE",
        )
        .fetch_one(&mut *transaction)
        .await?;
        let (position, epoch): (Position, i32) = (row.try_get(0)?, row.try_get(1)?);
        let known: (Option<i64>, Option<i32>) = (row.try_get(2)?, row.try_get(3)?);
        let row = sqlx::query(
            "SELECT system_identifier, \
             ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int \
             FROM pg_control_system()",
        )
        .fetch_one(&mut *transaction)
        .await?;
        let found: (i64, i32) = (row.try_get(0)?, row.try_get(1)?);
        match known {
            (Some(system), Some(timeline)) if (system, timeline) == found => {}
            (None, _) | (_, None) => {
                sqlx::query("UPDATE log.head SET system_identifier = $1, timeline = $2")
                    .bind(found.0)
                    .bind(found.1)
                    .execute(&mut *transaction)
                    .await?;
                sqlx::query("UPDATE log.epochs SET system_identifier = $1, timeline = $2 WHERE epoch = $3")
                    .bind(found.0)
                    .bind(found.1)
                    .bind(epoch)
                    .execute(&mut *transaction)
                    .await?;
            }
            _ => {
                tracing::warn!(
                    epoch = epoch + 1,
                    from = position + 1,
                    "the log's database was restored or promoted: a new epoch begins"
                );
                sqlx::query("UPDATE log.head SET epoch = $1, system_identifier = $2, timeline = $3")
                    .bind(epoch + 1)
                    .bind(found.0)
                    .bind(found.1)
                    .execute(&mut *transaction)
                    .await?;
                sqlx::query(
                    "INSERT INTO log.epochs (epoch, from_position, system_identifier, timeline) \
                     VALUES ($1, $2, $3, $4)",
                )
                .bind(epoch + 1)
                .bind(position + 1)
                .bind(found.0)
                .bind(found.1)
                .execute(&mut *transaction)
                .await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    }
}

/// The log's lock, held. Dropping it without [`Locked::commit`] or [`Locked::release`] leaves the connection in an
/// open transaction: drop the connection too.
#[derive(Debug)]
pub struct Locked<'a> {
    writer: &'a mut WriterConnection,
    head: Head,
    recorded_at: DateTime<Utc>,
    mark: Option<Head>,
}

impl Locked<'_> {
    /// Where the log stands; nobody can move it but the holder.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
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

    /// Begins a batch at the head.
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch {
            head: self.head,
            recorded_at: self.recorded_at,
            start: self.head.position,
            first_event: None,
            rows: Rows::default(),
            streams: HashMap::new(),
            answers: Vec::new(),
        }
    }

    /// Writes a batch; [`Locked::commit`] makes it durable.
    ///
    /// # Errors
    /// [`LogError::Versions`] when a stream does not stand where the batch says; [`LogError::NoPartition`];
    /// [`LogError::Database`]. In every case: [`Locked::release`], nothing is written.
    pub async fn append(&mut self, batch: Batch) -> Result<(), LogError> {
        let Batch { head, recorded_at, first_event, rows, streams, answers, .. } = batch;
        let connection = &mut self.writer.connection;
        if first_event.is_some() {
            let mut copy = connection
                .copy_in_raw(
                    "COPY log.events (position, stream_id, category, version, event_id, event_type, \
                     schema_version, payload, correlation_id, causation_id, actor, traceparent, recorded_at, \
                     partition_key) FROM STDIN (FORMAT binary)",
                )
                .await?;
            copy.send(rows.finish()).await?;
            copy.finish().await.map_err(|error| no_partition(error, head.position))?;
        }
        let streams = Streams::new(streams);
        let row = sqlx::query(
            "WITH created AS (INSERT INTO log.streams (stream_id, version, first_position, last_position) \
               SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[])), \
             moved AS (UPDATE log.streams s SET version = u.version, last_position = u.last \
               FROM unnest($5::uuid[], $6::bigint[], $7::bigint[], $8::bigint[]) \
                 AS u (stream_id, base, version, last) \
               WHERE s.stream_id = u.stream_id AND s.version = u.base RETURNING 1), \
             answered AS (INSERT INTO log.answers (key, fingerprint, status, version, position, epoch, location, \
                 body, created_at) \
               SELECT a.key, a.fingerprint, a.status, a.version, a.position, $9, a.location, a.body, $10 \
               FROM unnest($11::uuid[], $12::uuid[], $13::smallint[], $14::bigint[], $15::bigint[], $16::text[], \
                 $17::bytea[]) AS a (key, fingerprint, status, version, position, location, body) \
               ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, status = excluded.status, \
                 version = excluded.version, position = excluded.position, epoch = excluded.epoch, \
                 location = excluded.location, body = excluded.body, created_at = excluded.created_at), \
             head AS (UPDATE log.head SET position = $18, recorded_at = $10) \
             SELECT (SELECT count(*) FROM moved), pg_notify($19, $20)",
        )
        .bind(streams.created)
        .bind(streams.created_version)
        .bind(streams.created_first)
        .bind(streams.created_last)
        .bind(&streams.moved)
        .bind(streams.moved_base)
        .bind(streams.moved_version)
        .bind(streams.moved_last)
        .bind(head.epoch)
        .bind(recorded_at)
        .bind(answers.iter().map(|a| a.key).collect::<Vec<_>>())
        .bind(answers.iter().map(|a| a.fingerprint).collect::<Vec<_>>())
        .bind(answers.iter().map(|a| a.status).collect::<Vec<_>>())
        .bind(answers.iter().map(|a| a.version).collect::<Vec<_>>())
        .bind(answers.iter().map(|a| a.position).collect::<Vec<_>>())
        .bind(answers.iter().map(|a| a.location.as_deref()).collect::<Vec<_>>())
        .bind(answers.iter().map(|a| a.body.as_slice()).collect::<Vec<_>>())
        .bind(head.position)
        .bind(wake::CHANNEL)
        .bind(format!("{}-{}", head.epoch, head.position))
        .fetch_one(&mut *connection)
        .await?;
        let moved: i64 = row.try_get(0)?;
        let expected = i64::try_from(streams.moved.len()).unwrap_or(i64::MAX);
        if moved != expected {
            return Err(LogError::Versions { expected, moved });
        }
        self.mark = Some(head);
        Ok(())
    }

    /// Whether an earlier batch of an unknown outcome is in the log. The old attempt has ended either way, since
    /// the lock is held now. Commit afterwards: only a commit of its own shows that this database is still the one
    /// that takes writes.
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
        sqlx::query("UPDATE log.head SET settled = settled + 1").execute(&mut self.writer.connection).await?;
        Ok(committed)
    }

    /// Makes what was appended durable and gives the lock back.
    pub async fn commit(self) -> Outcome {
        let head = self.mark.unwrap_or(self.head);
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

/// Errors after which a transaction has certainly not been committed: integrity, transaction state, serialisation.
/// Anything else, a shutdown among it, may have come after the commit was durable.
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| ["23", "25", "40"].iter().any(|class| code.starts_with(class)))
}

fn no_partition(error: sqlx::Error, position: Position) -> LogError {
    const CHECK_VIOLATION: &str = "23514";
    let lacks = error.as_database_error().is_some_and(|e| {
        e.code().as_deref() == Some(CHECK_VIOLATION) && e.message().contains("no partition")
    });
    if lacks { LogError::NoPartition { position } } else { error.into() }
}

/// The streams of a batch as columns: those that are new, and those that move on.
#[derive(Default)]
struct Streams {
    created: Vec<Uuid>,
    created_version: Vec<i64>,
    created_first: Vec<i64>,
    created_last: Vec<i64>,
    moved: Vec<Uuid>,
    moved_base: Vec<i64>,
    moved_version: Vec<i64>,
    moved_last: Vec<i64>,
}

impl Streams {
    fn new(moves: HashMap<Uuid, StreamMove>) -> Self {
        let mut columns = Self::default();
        for (stream_id, stream) in moves {
            if stream.base == 0 {
                columns.created.push(stream_id);
                columns.created_version.push(stream.version);
                columns.created_first.push(stream.first);
                columns.created_last.push(stream.last);
            } else {
                columns.moved.push(stream_id);
                columns.moved_base.push(stream.base);
                columns.moved_version.push(stream.version);
                columns.moved_last.push(stream.last);
            }
        }
        columns
    }
}
