//! The next instance of a projection, built beside the live one and switched in by one transaction.
//!
//! Safe to kill and to run again: what is built stays, with its checkpoints, and is gone on with. The live instance
//! of before is fed on as the previous one, for a way back, until the next rebuild.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection, Row};
use tidemark_events::Position;
use tidemark_events::log::{Head, Log};
use tidemark_views::feed;
use tidemark_views::instance::{self, Instance, State};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ProjectorError;
use crate::projection::{Projection, Retention, find};
use crate::supervisor::{INSTANCES, create, target_of};
use crate::worker::{Chunk, ReadTo, Target, Worker, connect, partitions_of, try_own};

/// The most events of one batch of a rebuild.
const BATCH: usize = 10_000;

/// How near the head the indexes are made, and how near the switch is tried.
const NEAR: i64 = 5_000;

/// How long the other instance may take to come to where readers stand.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(30);

/// How long the live instance is held at a time for one that somebody else feeds.
const HOLD_WITHIN: Duration = Duration::from_secs(1);

/// How far a rebuild has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Folding the log.
    Folding {
        /// Where it stands.
        position: Position,
        /// Where the log stands.
        head: Position,
    },
    /// Making the indexes that readers need.
    Indexing,
    /// Readers are on the instance.
    Switched {
        /// Its number.
        instance: i32,
    },
}

/// Builds the next instance of a projection and switches readers to it.
///
/// # Errors
/// See [`ProjectorError`]; whatever it is, readers stay where they are, and running it again goes on.
pub async fn rebuild(
    log: &Log,
    options: &PgConnectOptions,
    name: &str,
    retention: Retention,
    stop: &CancellationToken,
    mut report: impl FnMut(Progress),
) -> Result<i32, ProjectorError> {
    let projection = find(name)?;
    let mut control = connect(options).await?;
    let target = prepare(log, options, &mut control, projection, retention).await?;
    let mut connection = connect(options).await?;
    if !try_own(&mut connection, target, 0).await? {
        return Err(ProjectorError::Busy { name: name.to_owned(), instance: target.instance });
    }
    let mut worker = Worker::open(connection, log, target, &partitions_of(0, 1), false).await?;
    worker.retry_parked().await?;
    unless(stop, catch_up(log, &mut worker, target, &mut report)).await?;
    report(Progress::Indexing);
    for statement in projection.index(target.instance) {
        unless(stop, async { Ok(worker.execute(statement).await?) }).await?;
    }
    loop {
        unless(stop, catch_up(log, &mut worker, target, &mut report)).await?;
        if switch(log, &mut control, &mut worker, target, stop).await? {
            break;
        }
    }
    report(Progress::Switched { instance: target.instance });
    Ok(target.instance)
}

/// Goes on with something until it is done or told to stop.
async fn unless<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, ProjectorError>>,
) -> Result<T, ProjectorError> {
    stop.run_until_cancelled(work).await.unwrap_or(Err(ProjectorError::Stopped))
}

/// The instance that is being built, or a new one; then whatever was previous goes.
async fn prepare(
    log: &Log,
    options: &PgConnectOptions,
    control: &mut PgConnection,
    projection: &'static dyn Projection,
    retention: Retention,
) -> Result<Target, ProjectorError> {
    let instances = instance::all(control).await?;
    let mine: Vec<&Instance> = instances.iter().filter(|i| i.name == projection.name()).collect();
    if let Some(building) = mine.iter().find(|i| i.state == State::Building) {
        if building.fold_version == projection.fold_version() {
            let target = target_of(building, retention)?;
            let connection = connect(options).await?;
            let worker = Worker::open(connection, log, target, &partitions_of(0, 1), false).await?;
            match refuse_lost_end(&worker, log.head().await?).await {
                Err(ProjectorError::LostEnd { .. }) => {}
                known => return known.map(|()| target),
            }
        }
        // Begun by another version of the program, or before the log lost its end: of no use any more.
        remove(control, projection, building.instance).await?;
    }
    for previous in mine.iter().filter(|i| i.state == State::Previous) {
        remove(control, projection, previous.instance).await?;
    }
    let next = mine.iter().map(|i| i.instance).max().unwrap_or(0) + 1;
    let mut transaction = control.begin().await?;
    create(&mut transaction, projection, next, State::Building).await?;
    transaction.commit().await?;
    Ok(Target { projection, instance: next, retention })
}

async fn remove(
    control: &mut PgConnection,
    projection: &dyn Projection,
    instance: i32,
) -> Result<(), ProjectorError> {
    let mut transaction = control.begin().await?;
    sqlx::query("DELETE FROM views.projections WHERE name = $1 AND instance = $2")
        .bind(projection.name())
        .bind(instance)
        .execute(&mut *transaction)
        .await?;
    for statement in projection.remove(instance) {
        transaction.execute(sqlx::query(sqlx::AssertSqlSafe(statement))).await?;
    }
    sqlx::query("SELECT pg_notify($1, '')").bind(INSTANCES).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}

/// Refuses to go on with what was folded from an end that the log has lost since. `head`: as the log told it after that.
async fn refuse_lost_end(worker: &Worker, head: Head) -> Result<(), ProjectorError> {
    worker.refuse_another_history(&ReadTo::Log(head)).await?;
    let furthest = worker.checkpoints().values().map(|at| at.position).max().unwrap_or(0);
    if furthest > head.position {
        return Err(ProjectorError::LostEnd { epoch: head.epoch, head: head.position, position: furthest });
    }
    Ok(())
}

/// Folds the log until the worker is near its head. One batch is read while the one before is written.
async fn catch_up(
    log: &Log,
    worker: &mut Worker,
    target: Target,
    report: &mut impl FnMut(Progress),
) -> Result<(), ProjectorError> {
    let mut reported = Instant::now();
    loop {
        let head = log.head().await?;
        refuse_lost_end(worker, head).await?;
        log.committed(head);
        if head.position - worker.position() <= NEAR {
            fold_to(log, worker, target, head.position).await?;
            report(Progress::Folding { position: worker.position(), head: head.position });
            return Ok(());
        }
        let (sender, mut chunks) = mpsc::channel(2);
        let (reader, after) = (log.clone(), worker.position());
        let filter = target.projection.filter();
        let reading = tokio::spawn(async move {
            let mut position = after;
            while position < head.position {
                let page = reader.read(position, head.position, &filter, BATCH).await?;
                if page.read_to == position {
                    break;
                }
                position = page.read_to;
                let chunk =
                    Chunk { events: page.events, read_to: ReadTo::Log(Head { epoch: page.epoch, position }) };
                if sender.send(chunk).await.is_err() {
                    break;
                }
            }
            Ok::<_, tidemark_events::log::LogError>(())
        });
        while let Some(chunk) = chunks.recv().await {
            worker.take(chunk).await?;
            if reported.elapsed() > Duration::from_millis(100) {
                reported = Instant::now();
                report(Progress::Folding { position: worker.position(), head: head.position });
            }
        }
        reading.await.map_err(|error| sqlx::Error::Protocol(error.to_string()))??;
    }
}

/// Folds the log up to a position.
async fn fold_to(log: &Log, worker: &mut Worker, target: Target, to: Position) -> Result<(), ProjectorError> {
    let filter = target.projection.filter();
    while worker.position() < to {
        let page = log.read(worker.position(), to, &filter, BATCH).await?;
        if page.read_to == worker.position() {
            break;
        }
        worker
            .take(Chunk {
                events: page.events,
                read_to: ReadTo::Log(Head { epoch: page.epoch, position: page.read_to }),
            })
            .await?;
    }
    Ok(())
}

/// One try: holds the live instance where it stands, brings the new one there, and flips. `false` if the new one is
/// too far behind to hold the live one for it.
async fn switch(
    log: &Log,
    control: &mut PgConnection,
    worker: &mut Worker,
    target: Target,
    stop: &CancellationToken,
) -> Result<bool, ProjectorError> {
    let name = target.projection.name();
    let mut transaction = control.begin().await?;
    let stands = hold(&mut transaction, name, State::Live).await?;
    // Where the log has lost its end, the live one may stand behind its head: nobody can be brought there.
    let head = log.head().await?;
    refuse_lost_end(worker, head).await?;
    let stands = stands.min(head.position);
    if stands - worker.position() > NEAR {
        transaction.rollback().await?;
        return Ok(false);
    }
    // Its own transactions: the instance is not live, and the live one is held, so readers lose nothing meanwhile.
    unless(stop, fold_to(log, worker, target, stands)).await?;
    flip(&mut transaction, target).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Locks the checkpoints of the instance in a state and says where its foremost partition stands.
async fn hold(transaction: &mut PgConnection, name: &str, state: State) -> Result<Position, ProjectorError> {
    let rows = sqlx::query(
        "SELECT c.position FROM views.checkpoints c JOIN views.projections p USING (name, instance) \
         WHERE c.name = $1 AND p.state = $2 ORDER BY c.partition FOR UPDATE OF c",
    )
    .bind(name)
    .bind(state.as_str())
    .fetch_all(transaction)
    .await?;
    let mut furthest = 0;
    for row in &rows {
        furthest = furthest.max(row.try_get(0)?);
    }
    Ok(furthest)
}

/// Makes an instance the live one, and the live one the previous.
async fn flip(transaction: &mut PgConnection, target: Target) -> Result<(), ProjectorError> {
    let name = target.projection.name();
    sqlx::query("UPDATE views.projections SET state = 'previous' WHERE name = $1 AND state = 'live'")
        .bind(name)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "UPDATE views.projections SET state = 'live', switched_at = clock_timestamp() \
         WHERE name = $1 AND instance = $2",
    )
    .bind(name)
    .bind(target.instance)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("SELECT pg_notify($1, '')").bind(INSTANCES).execute(&mut *transaction).await?;
    feed::write(transaction, name, target.instance, feed::Kind::Switch, &[]).await?;
    Ok(())
}

/// Switches readers back to the previous instance; the live one becomes the previous.
///
/// # Errors
/// [`ProjectorError::NoWayBack`], [`ProjectorError::NotCaughtUp`], [`ProjectorError::LostEnd`] when the previous one holds
/// what the log has lost, or the database's; readers then stay.
pub async fn switch_back(
    log: &Log,
    options: &PgConnectOptions,
    name: &str,
    retention: Retention,
) -> Result<i32, ProjectorError> {
    find(name)?;
    let mut control = connect(options).await?;
    let instances = instance::all(&mut control).await?;
    let previous = instances
        .iter()
        .find(|i| i.name == name && i.state == State::Previous)
        .ok_or_else(|| ProjectorError::NoWayBack(name.to_owned()))?;
    let target = target_of(previous, retention)?;
    let mut connection = connect(options).await?;
    // Where nobody feeds it, this does.
    let mut feeds = try_own(&mut connection, target, 0).await?;
    let mut worker = Worker::open(connection, log, target, &partitions_of(0, 1), false).await?;
    refuse_lost_end(&worker, log.head().await?).await?;
    let until = Instant::now() + CATCH_UP_WITHIN;
    while Instant::now() < until {
        let mut transaction = control.begin().await?;
        let stands = hold(&mut transaction, name, State::Live).await?;
        if feeds {
            match fold_to(log, &mut worker, target, stands).await {
                // Who feeds it from the topic takes no lock.
                Err(ProjectorError::Moved(_)) => feeds = false,
                folded => folded?,
            }
        }
        // The live one is held meanwhile: readers see it as it is, and somebody who feeds this one can come to it.
        let held = Instant::now();
        while !feeds && least(&mut transaction, target).await? < stands && held.elapsed() < HOLD_WITHIN {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if least(&mut transaction, target).await? >= stands {
            flip(&mut transaction, target).await?;
            transaction.commit().await?;
            return Ok(target.instance);
        }
        transaction.rollback().await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(ProjectorError::NotCaughtUp { name: name.to_owned(), instance: target.instance })
}

async fn least(connection: &mut PgConnection, target: Target) -> Result<Position, ProjectorError> {
    let row = sqlx::query(
        "SELECT COALESCE(min(position), 0) FROM views.checkpoints WHERE name = $1 AND instance = $2",
    )
    .bind(target.projection.name())
    .bind(target.instance)
    .fetch_one(connection)
    .await?;
    Ok(row.try_get(0)?)
}
