//! A batch of events into rows and checkpoint, in one transaction; and the parking of what cannot be applied.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Row};
use tidemark_events::log::{Filter, Head, Log};
use tidemark_events::{Epoch, Position, RecordedEvent, planted};
use tidemark_kafka::source::Stray;
use tidemark_views::{PARTITIONS, feed, partition_of};
use uuid::Uuid;

use crate::ProjectorError;
use crate::projection::{ApplyError, Event, Projection, Retention};

/// How often a batch that fails is tried again as it is, with growing pauses, before its culprit is looked for.
const RETRIES: u32 = 2;
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Settings of a projector's sessions. Rows and checkpoint are one transaction: a tail of commits that a crash of
/// the database loses is done again from the log, so no commit needs to wait for the disk. Between the statements of a
/// transaction nothing is waited for: a process that stops there holds the number of the newest change, without which
/// no view goes on, and is cut off.
const SESSION: [(&str, &str); 4] = [
    ("application_name", "tidemark projector"),
    ("synchronous_commit", "off"),
    ("statement_timeout", "5min"),
    ("idle_in_transaction_session_timeout", SILENT_FOR),
];

/// How long a process that follows may be silent before it is taken for one that stopped. A worker without work asks
/// twice a second.
const SILENT_FOR: &str = "3s";

/// One instance of one projection.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is folded with.
    pub projection: &'static dyn Projection,
    /// Its number.
    pub instance: i32,
    /// How long rows stay that are not for ever.
    pub retention: Retention,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} instance {}", self.projection.name(), self.instance)
    }
}

/// Events as the log has them, or shared ones, and up to where that is everything.
#[derive(Debug)]
pub struct Chunk<E = RecordedEvent> {
    /// In the order of positions.
    pub events: Vec<E>,
    /// Up to where that is everything.
    pub read_to: ReadTo,
}

/// Up to where a chunk is everything.
#[derive(Debug)]
pub enum ReadTo {
    /// In every partition: it was read from the log.
    Log(Head),
    /// In these partitions, each with what its last record said and that record's offset: it was read from the topic.
    /// Each has an epoch of its own, since a new one comes to them at different times.
    Topic(BTreeMap<i16, (Head, i64)>),
}

/// Where a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The epoch of its last chunk.
    pub epoch: Epoch,
    /// Everything up to here has been applied.
    pub position: Position,
    /// The record in the topic that said so, if it came from there.
    pub offset: Option<i64>,
}

/// Feeds some of an instance's partitions.
#[derive(Debug)]
pub struct Worker {
    target: Target,
    /// Whose events it applies.
    log: Log,
    connection: PgConnection,
    /// Where each of its partitions stands.
    checkpoints: BTreeMap<i16, Checkpoint>,
    /// Keys with parked events: what comes later of them is parked too.
    parked: HashSet<Uuid>,
    /// Whether readers see this instance, or may go back to it: then changes are published.
    publishes: bool,
}

/// Opens a connection with a projector's settings.
///
/// # Errors
/// The database's.
pub async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    options.clone().options(SESSION).connect().await
}

/// Takes the session lock that says who works on an instance; `false` if somebody else does. It lasts as long as the
/// session; one that is also to end when its process stops says so with [`Worker::end_when_silent`].
///
/// # Errors
/// The database's.
pub async fn try_own(connection: &mut PgConnection, target: Target, part: i32) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
        .bind(format!("tidemark projector {} {} {part}", target.projection.name(), target.instance))
        .fetch_one(connection)
        .await?;
    row.try_get(0)
}

impl Worker {
    /// A worker for `partitions`, at their stored checkpoints.
    ///
    /// # Errors
    /// The database's.
    pub async fn open(
        mut connection: PgConnection,
        log: &Log,
        target: Target,
        partitions: &[i16],
        publishes: bool,
    ) -> Result<Self, ProjectorError> {
        let name = target.projection.name();
        let rows = sqlx::query(
            "SELECT partition, epoch, position, source_offset FROM views.checkpoints \
             WHERE name = $1 AND instance = $2 AND partition = ANY($3)",
        )
        .bind(name)
        .bind(target.instance)
        .bind(partitions)
        .fetch_all(&mut connection)
        .await?;
        let checkpoints = rows
            .iter()
            .map(|row| {
                let checkpoint =
                    Checkpoint { epoch: row.try_get(1)?, position: row.try_get(2)?, offset: row.try_get(3)? };
                Ok((row.try_get(0)?, checkpoint))
            })
            .collect::<Result<_, sqlx::Error>>()?;
        let rows =
            sqlx::query("SELECT DISTINCT partition_key FROM views.parked WHERE name = $1 AND instance = $2")
                .bind(name)
                .bind(target.instance)
                .fetch_all(&mut connection)
                .await?;
        let parked = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, sqlx::Error>>()?;
        Ok(Self { target, log: log.clone(), connection, checkpoints, parked, publishes })
    }

    /// The least of its partitions' positions.
    #[must_use]
    pub fn position(&self) -> Position {
        self.checkpoints.values().map(|checkpoint| checkpoint.position).min().unwrap_or(0)
    }

    /// Its partitions, each with where it stands.
    #[must_use]
    pub fn checkpoints(&self) -> &BTreeMap<i16, Checkpoint> {
        &self.checkpoints
    }

    /// Whether an event belongs to one of its partitions and has not been applied.
    #[must_use]
    pub fn wants(&self, event: &RecordedEvent) -> bool {
        self.checkpoints
            .get(&partition_of(event.partition_key))
            .is_some_and(|at| event.position > at.position)
    }

    /// Applies a chunk and moves the checkpoints to its end, in one transaction. Returns how many events it took.
    ///
    /// # Errors
    /// [`ProjectorError::Moved`] when somebody else has moved a checkpoint: what this worker knows is old.
    /// [`ProjectorError::LostEnd`] when what was applied before is no part of this history. Else the database's. In any
    /// case nothing was done.
    pub async fn take<E: Borrow<RecordedEvent>>(&mut self, chunk: Chunk<E>) -> Result<usize, ProjectorError> {
        // Also what moves nothing: a history that forks behind a checkpoint may take long to come to it.
        self.refuse_another_history(&chunk.read_to).await?;
        let moves = self.moves(&chunk.read_to);
        if moves.is_empty() {
            return Ok(0);
        }
        let mut batch = Batch::default();
        let events = chunk.events.iter().map(Borrow::borrow);
        for recorded in events.filter(|event| self.wants(event) && !planted::sometimes("event-skipped")) {
            batch.sort_in(recorded, &self.parked);
        }
        let count = batch.good.len() + batch.bad.len();
        let mut tries = 0;
        loop {
            match self.commit(&batch, &moves, tries >= RETRIES).await {
                Ok(parked) => {
                    self.parked.extend(parked);
                    self.checkpoints.extend(moves);
                    return Ok(count);
                }
                Err(Failed::Apply(error)) if tries < RETRIES => {
                    tries += 1;
                    tracing::warn!(target = ?self.target, %error, tries, "a batch cannot be applied, trying it again");
                    tokio::time::sleep(RETRY_AFTER * tries).await;
                }
                Err(Failed::Apply(ApplyError::Database(error))) => return Err(error.into()),
                Err(Failed::Apply(ApplyError::Misfit(text))) => {
                    return Err(sqlx::Error::Protocol(text).into());
                }
                Err(Failed::Other(error)) => return Err(error),
            }
        }
    }

    /// Refuses what was read in a history that does not hold what was applied: an epoch that forks from the former one
    /// behind a checkpoint, or one older than a checkpoint's. However it was read, nothing is put on top of that.
    ///
    /// # Errors
    /// [`ProjectorError::LostEnd`], or the database's.
    pub async fn refuse_another_history(&self, read_to: &ReadTo) -> Result<(), ProjectorError> {
        for (partition, at) in &self.checkpoints {
            let Some(Head { epoch, position: head }) = (match read_to {
                ReadTo::Log(head) => Some(*head),
                ReadTo::Topic(records) => records.get(partition).map(|(head, _)| *head),
            }) else {
                continue;
            };
            let forks_before = match epoch.cmp(&at.epoch) {
                Ordering::Equal => false,
                Ordering::Less => true,
                Ordering::Greater => {
                    let end = self.log.epoch_end(at.epoch, epoch).await?;
                    end.is_some_and(|end| end < at.position)
                }
            };
            if forks_before {
                return Err(ProjectorError::LostEnd { epoch, head, position: at.position });
            }
        }
        Ok(())
    }

    /// Which of its partitions a chunk moves, and where to.
    fn moves(&self, read_to: &ReadTo) -> BTreeMap<i16, Checkpoint> {
        let to = |partition: i16, at: &Checkpoint| match read_to {
            ReadTo::Log(Head { epoch, position }) => (*position > at.position).then_some(Checkpoint {
                epoch: *epoch,
                position: *position,
                offset: None,
            }),
            // A record that says nothing new still tells from where to read on; one from before tells nothing.
            ReadTo::Topic(records) => records
                .get(&partition)
                .filter(|(head, offset)| (head.position, Some(*offset)) > (at.position, at.offset))
                .map(|&(Head { epoch, position }, offset)| Checkpoint {
                    epoch,
                    position,
                    offset: Some(offset),
                }),
        };
        self.checkpoints.iter().filter_map(|(&partition, at)| Some((partition, to(partition, at)?))).collect()
    }

    /// One try. `isolate`: look for the culprit and park it, instead of failing. Returns the keys parked now.
    async fn commit(
        &mut self,
        batch: &Batch<'_>,
        moves: &BTreeMap<i16, Checkpoint>,
        isolate: bool,
    ) -> Result<HashSet<Uuid>, Failed> {
        let Self { target, connection, checkpoints, publishes, .. } = self;
        let Target { projection, instance, retention } = *target;
        let name = projection.name();
        let mut transaction = connection.begin().await?;
        // Locks, compares and moves in one statement: a row that does not stand where this worker left it stays.
        let moved = sqlx::query(
            "UPDATE views.checkpoints c SET position = move.towards, epoch = move.epoch, source_offset = move.source_offset \
             FROM unnest($3::smallint[], $4::bigint[], $5::bigint[], $6::int[], $7::bigint[]) \
               AS move (partition, position, towards, epoch, source_offset) \
             WHERE c.name = $1 AND c.instance = $2 AND c.partition = move.partition AND c.position = move.position",
        )
        .bind(name)
        .bind(instance)
        .bind(moves.keys().copied().collect::<Vec<_>>())
        .bind(moves.keys().filter_map(|partition| Some(checkpoints.get(partition)?.position)).collect::<Vec<_>>())
        .bind(moves.values().map(|to| to.position).collect::<Vec<_>>())
        .bind(moves.values().map(|to| to.epoch).collect::<Vec<_>>())
        .bind(moves.values().map(|to| to.offset).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
        if moved.rows_affected() != moves.len() as u64 {
            return Err(Failed::Other(ProjectorError::Moved(format!("{name} instance {instance}"))));
        }
        if planted::is("checkpoint-apart") {
            transaction.commit().await?;
            tokio::time::sleep(RETRY_AFTER).await;
            transaction = connection.begin().await?;
        }
        let mut parking: Vec<Parking<'_>> = batch.bad.clone();
        let mut keys = if isolate {
            isolate_culprits(&mut transaction, *target, &batch.good, &mut parking).await?
        } else {
            projection.apply(&mut transaction, instance, retention, &batch.good).await?
        };
        park(&mut transaction, *target, &parking).await?;
        // Readers are told too: what they see of these keys is not all there is.
        keys.extend(parking.iter().map(|parking| parking.key));
        if *publishes {
            feed::write(&mut transaction, name, instance, feed::Kind::Rows, &keys)
                .await
                .map_err(|error| Failed::Other(error.into()))?;
        }
        transaction.commit().await?;
        Ok(parking.iter().map(|parking| parking.key).collect())
    }

    /// Writes down records of the topic that are no events.
    ///
    /// # Errors
    /// The database's.
    pub async fn note_strays(&mut self, strays: &[(i16, Stray)]) -> Result<(), ProjectorError> {
        if strays.is_empty() {
            return Ok(());
        }
        for (partition, Stray { offset, error }) in strays {
            tracing::error!(target = ?self.target, partition, offset, error, "a record in the topic is no event, passing over it");
        }
        sqlx::query(
            "INSERT INTO views.strays (name, instance, partition, \"offset\", error) \
             SELECT $1, $2, * FROM unnest($3::smallint[], $4::bigint[], $5::text[]) ON CONFLICT DO NOTHING",
        )
        .bind(self.target.projection.name())
        .bind(self.target.instance)
        .bind(strays.iter().map(|(partition, _)| *partition).collect::<Vec<_>>())
        .bind(strays.iter().map(|(_, stray)| stray.offset).collect::<Vec<_>>())
        .bind(strays.iter().map(|(_, stray)| stray.error.as_str()).collect::<Vec<_>>())
        .execute(&mut self.connection)
        .await?;
        Ok(())
    }

    /// Tries what is parked once more, in order: a newer program may understand it.
    ///
    /// # Errors
    /// [`ProjectorError::Moved`] when somebody else has applied it meanwhile: what this worker knows is old. Else the
    /// database's.
    pub async fn retry_parked(&mut self) -> Result<(), ProjectorError> {
        let name = self.target.projection.name();
        let mine: Vec<Uuid> = self
            .parked
            .iter()
            .copied()
            .filter(|key| self.checkpoints.contains_key(&partition_of(*key)))
            .collect();
        for key in mine {
            let rows = sqlx::query(
                "SELECT position FROM views.parked WHERE name = $1 AND instance = $2 AND partition_key = $3 \
                 ORDER BY position",
            )
            .bind(name)
            .bind(self.target.instance)
            .bind(key)
            .fetch_all(&mut self.connection)
            .await?;
            let mut left = rows.len();
            for row in rows {
                let position: Position = row.try_get(0)?;
                let page = self.log.read(position - 1, position, &Filter::default(), 1).await?;
                let Some(event) = page.events.first() else { break };
                let read_to = Head { epoch: page.epoch, position: page.read_to };
                self.refuse_another_history(&ReadTo::Log(read_to)).await?;
                if event.partition_key == key {
                    if !self.unpark(key, event).await? {
                        break;
                    }
                } else {
                    // It came from the topic, where others can write, too.
                    tracing::error!(
                        target = ?self.target, %key, position,
                        "what was parked is no event of the log: taken away, its key goes on"
                    );
                    self.take_away(key, position).await?;
                }
                left -= 1;
            }
            if left == 0 {
                tracing::info!(target = ?self.target, %key, "what was parked has been applied");
                self.parked.remove(&key);
            }
        }
        Ok(())
    }

    /// Removes what was parked and is no event of the log, and says so to those who read the key.
    async fn take_away(&mut self, key: Uuid, position: Position) -> Result<(), ProjectorError> {
        let Target { projection, instance, .. } = self.target;
        let mut transaction = self.connection.begin().await?;
        let was_there = forget_parked(&mut transaction, self.target, key, position).await?;
        if was_there && self.publishes {
            feed::write(&mut transaction, projection.name(), instance, feed::Kind::Rows, &[key]).await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn unpark(&mut self, key: Uuid, recorded: &RecordedEvent) -> Result<bool, ProjectorError> {
        let (position, Ok(fact)) = (recorded.position, recorded.decode()) else { return Ok(false) };
        let Target { projection, instance, retention } = self.target;
        let mut transaction = self.connection.begin().await?;
        // Its row goes first: who had the partition before may be at it still, and only one of the two finds it there.
        if !forget_parked(&mut transaction, self.target, key, position).await? {
            transaction.rollback().await?;
            return Err(ProjectorError::Moved(format!("{} instance {instance}", projection.name())));
        }
        let event = Event::new(recorded, fact);
        let applied =
            projection.apply(&mut transaction, instance, retention, std::slice::from_ref(&event)).await;
        let keys = match applied {
            // Whose parking is over, too, whether or not a row of it has changed.
            Ok(mut keys) => {
                if !keys.contains(&key) {
                    keys.push(key);
                }
                keys
            }
            Err(error) => {
                tracing::warn!(target = ?self.target, position, %error, "what is parked cannot be applied yet");
                transaction.rollback().await?;
                return Ok(false);
            }
        };
        if self.publishes {
            feed::write(&mut transaction, projection.name(), instance, feed::Kind::Rows, &keys).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Has the server end its session once nothing has been asked of it for three seconds: a process that is paused keeps
    /// its connections, and would keep the lock for as long.
    ///
    /// # Errors
    /// The database's.
    pub async fn end_when_silent(&mut self) -> Result<(), ProjectorError> {
        sqlx::query("SELECT set_config('idle_session_timeout', $1, false)")
            .bind(SILENT_FOR)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Whether its session, and with it what it has committed, is still there.
    ///
    /// # Errors
    /// The database's, when it is not.
    pub async fn is_there(&mut self) -> Result<(), ProjectorError> {
        Ok(self.connection.ping().await?)
    }

    /// Runs a statement outside any batch.
    ///
    /// # Errors
    /// The database's.
    pub async fn execute(&mut self, statement: String) -> Result<(), sqlx::Error> {
        self.connection.execute(sqlx::query(sqlx::AssertSqlSafe(statement))).await.map(drop)
    }
}

/// What a chunk holds for a worker.
#[derive(Default)]
struct Batch<'a> {
    good: Vec<Event<'a>>,
    bad: Vec<Parking<'a>>,
    bad_keys: HashSet<Uuid>,
}

#[derive(Clone)]
struct Parking<'a> {
    key: Uuid,
    position: Position,
    stream_id: Uuid,
    event_type: std::borrow::Cow<'a, str>,
    error: String,
}

const BEHIND_PARKED: &str = "behind a parked event of its key";

impl<'a> Batch<'a> {
    fn sort_in(&mut self, recorded: &'a RecordedEvent, parked: &HashSet<Uuid>) {
        let key = recorded.partition_key;
        let decoded = if parked.contains(&key) || self.bad_keys.contains(&key) {
            Err(BEHIND_PARKED.to_owned())
        } else {
            recorded.decode().map_err(|error| error.to_string())
        };
        match decoded {
            Ok(fact) => self.good.push(Event::new(recorded, fact)),
            Err(error) => {
                self.bad_keys.insert(key);
                self.bad.push(Parking {
                    key,
                    position: recorded.position,
                    stream_id: recorded.stream_id,
                    event_type: std::borrow::Cow::Borrowed(&recorded.event_type),
                    error,
                });
            }
        }
    }
}

enum Failed {
    /// The projection could not apply the batch; the transaction is over.
    Apply(ApplyError),
    /// Anything else.
    Other(ProjectorError),
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Other(error.into())
    }
}

impl From<ApplyError> for Failed {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Database(error) if !is_data_error(&error) => Self::Other(error.into()),
            error => Self::Apply(error),
        }
    }
}

/// Whether an error is about the data (a value, a constraint) and not about the connection or the server.
fn is_data_error(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.code())
        .is_some_and(|code| ["21", "22", "23", "54"].iter().any(|class| code.starts_with(class)))
}

/// Applies what can be applied: halves the keys until the culprit's stand alone, applies those event by event, and
/// parks from the first that fails.
async fn isolate_culprits(
    transaction: &mut PgConnection,
    target: Target,
    events: &[Event<'_>],
    parking: &mut Vec<Parking<'_>>,
) -> Result<Vec<Uuid>, Failed> {
    let mut by_key: HashMap<Uuid, Vec<Event<'_>>> = HashMap::new();
    for event in events {
        by_key.entry(event.partition_key).or_default().push(event.clone());
    }
    let mut changed = Vec::new();
    let mut groups: Vec<Vec<Vec<Event<'_>>>> = vec![by_key.into_values().collect()];
    while let Some(mut group) = groups.pop() {
        let mut together: Vec<Event<'_>> = group.iter().flatten().cloned().collect();
        together.sort_unstable_by_key(|event| event.position);
        match try_apply(transaction, target, &together).await? {
            Ok(keys) => changed.extend(keys),
            Err(_) if group.len() > 1 => {
                let rest = group.split_off(group.len() / 2);
                groups.push(rest);
                groups.push(group);
            }
            Err(_) => {
                let mut failed = None;
                for event in &together {
                    let outcome = match &failed {
                        None => try_apply(transaction, target, std::slice::from_ref(event)).await?,
                        Some(()) => Err(ApplyError::Misfit(BEHIND_PARKED.to_owned())),
                    };
                    match outcome {
                        Ok(keys) => changed.extend(keys),
                        Err(error) => {
                            failed = Some(());
                            parking.push(Parking {
                                key: event.partition_key,
                                position: event.position,
                                stream_id: event.stream_id,
                                event_type: event.fact.event_type().name.into(),
                                error: error.to_string(),
                            });
                        }
                    }
                }
            }
        }
    }
    Ok(changed)
}

async fn try_apply(
    transaction: &mut PgConnection,
    target: Target,
    events: &[Event<'_>],
) -> Result<Result<Vec<Uuid>, ApplyError>, Failed> {
    transaction.execute("SAVEPOINT culprit").await?;
    let Target { projection, instance, retention } = target;
    match projection.apply(transaction, instance, retention, events).await {
        Ok(keys) => {
            transaction.execute("RELEASE SAVEPOINT culprit").await?;
            Ok(Ok(keys))
        }
        Err(error) => match Failed::from(error) {
            Failed::Apply(error) => {
                transaction.execute("ROLLBACK TO SAVEPOINT culprit").await?;
                Ok(Err(error))
            }
            failed @ Failed::Other(_) => Err(failed),
        },
    }
}

async fn park(
    connection: &mut PgConnection,
    target: Target,
    parking: &[Parking<'_>],
) -> Result<(), sqlx::Error> {
    if parking.is_empty() {
        return Ok(());
    }
    for parked in parking.iter().filter(|parked| parked.error != BEHIND_PARKED) {
        tracing::error!(
            target = ?target, position = parked.position, stream_id = %parked.stream_id,
            event_type = %parked.event_type, error = parked.error,
            "parked an event that cannot be applied; later ones of its key wait behind it"
        );
    }
    metrics::counter!("tidemark_projection_parked_total", "name" => target.projection.name())
        .increment(parking.len() as u64);
    sqlx::query(
        "INSERT INTO views.parked (name, instance, partition_key, position, stream_id, event_type, error) \
         SELECT $1, $2, * FROM unnest($3::uuid[], $4::bigint[], $5::uuid[], $6::text[], $7::text[]) \
         ON CONFLICT DO NOTHING",
    )
    .bind(target.projection.name())
    .bind(target.instance)
    .bind(parking.iter().map(|p| p.key).collect::<Vec<_>>())
    .bind(parking.iter().map(|p| p.position).collect::<Vec<_>>())
    .bind(parking.iter().map(|p| p.stream_id).collect::<Vec<_>>())
    .bind(parking.iter().map(|p| p.event_type.as_ref()).collect::<Vec<_>>())
    .bind(parking.iter().map(|p| p.error.as_str()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether it was there.
async fn forget_parked(
    connection: &mut PgConnection,
    target: Target,
    key: Uuid,
    position: Position,
) -> Result<bool, sqlx::Error> {
    let removed = sqlx::query(
        "DELETE FROM views.parked WHERE name = $1 AND instance = $2 AND partition_key = $3 AND position = $4",
    )
    .bind(target.projection.name())
    .bind(target.instance)
    .bind(key)
    .bind(position)
    .execute(connection)
    .await?;
    Ok(removed.rows_affected() == 1)
}

/// The partitions of one of `workers` workers.
#[must_use]
pub fn partitions_of(worker: i16, workers: i16) -> Vec<i16> {
    (0..PARTITIONS).filter(|partition| partition % workers == worker).collect()
}
