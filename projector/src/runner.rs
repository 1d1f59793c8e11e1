//! Follows the log for one instance: one reader, several workers with bounded channels between.

use std::sync::Arc;
use std::time::Duration;

use tidemark_events::log::{Filter, Head, Log, LogError, Page};
use tidemark_events::{Position, RecordedEvent};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ProjectorError;
use crate::supervisor::Feed;
use crate::topic;
use crate::worker::{Chunk, ReadTo, Target, Worker, connect, partitions_of, try_own};

/// How long after a failure a runner begins anew, from the stored checkpoints.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How often a runner that stands by looks whether the one at work has gone.
const STAND_BY: Duration = Duration::from_millis(500);

/// How often a worker without work looks whether its session is still there. A server that crashed may have lost its
/// last commits, which did not wait for the disk: they are then to be done again, whether or not more events come.
pub(crate) const LOOK_AFTER: Duration = Duration::from_millis(500);

/// Chunks that wait for a worker.
const CHANNEL: usize = 2;

/// From one batch of a projection that takes little of the log to the next, unless the log has gone on so far
/// meanwhile. After a quiet time it does not wait either.
const SPARSE_PAUSE: Duration = Duration::from_millis(500);
const SPARSE_BATCH: usize = 100_000;

/// Feeds an instance until `stop`; begins anew from the stored checkpoints whenever something fails.
pub async fn run(feed: Feed, target: Target, stop: CancellationToken) {
    let mut from_the_beginning = true;
    while !stop.is_cancelled() {
        let followed = match &feed.kafka {
            // The log gives just the few events that a sparse projection wants; the topic would bring all of them.
            Some(kafka) if !target.projection.is_sparse() => {
                topic::follow(&feed, kafka, target, &stop, &mut from_the_beginning).await
            }
            _ => follow(&feed, target, &stop).await,
        };
        match followed {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(?target, %error, "a projection begins anew from its checkpoint");
                tokio::time::timeout(AGAIN_AFTER, stop.cancelled()).await.ok();
            }
        }
    }
}

async fn follow(feed: &Feed, target: Target, stop: &CancellationToken) -> Result<(), ProjectorError> {
    let Feed { log, views: options, config, .. } = feed;
    let count = config.workers.clamp(1, tidemark_views::PARTITIONS);
    let mut owner = connect(options).await?;
    while !try_own(&mut owner, target, 0).await? {
        tokio::time::timeout(STAND_BY, stop.cancelled()).await.ok();
        if stop.is_cancelled() {
            return Ok(());
        }
    }
    let mut workers = Vec::new();
    let mut owner = Some(owner);
    for worker in 0..count {
        // The first worker's session holds the lock: if it ends, the lock goes, and the worker with it.
        let connection = match owner.take() {
            Some(connection) => connection,
            None => connect(options).await?,
        };
        let mut worker = Worker::open(connection, log, target, &partitions_of(worker, count), true).await?;
        worker.refuse_another_history(&ReadTo::Log(log.head().await?)).await?;
        worker.retry_parked().await?;
        workers.push(worker);
    }
    // Where views and log share a server, both may have lost the same end. What this process remembers of it would be put
    // back into the views alone.
    log.learn_head().await?;
    if let Some(first) = workers.first_mut() {
        // Only now: until its task looks after it, what the others do first may take longer than it may be silent.
        first.end_when_silent().await?;
    }
    let mut position = workers.iter().map(Worker::position).min().unwrap_or(0);
    tracing::info!(?target, position, workers = count, "a projection follows the log");

    let mut tasks = JoinSet::new();
    let mut channels = Vec::new();
    for worker in workers {
        let (sender, receiver) = mpsc::channel(CHANNEL);
        channels.push(sender);
        tasks.spawn(work(worker, receiver, log.clone(), target));
    }
    let filter = target.projection.filter();
    let is_sparse = target.projection.is_sparse();
    let most_behind = if is_sparse { SPARSE_BATCH } else { config.batch_events };
    let mut wake = log.wake();
    let mut next = Instant::now();
    let mut last = (next, position);
    let mut epoch = wake.borrow().epoch;
    loop {
        let head = *wake.borrow_and_update();
        let known = epoch > 0 && head.epoch > 0;
        let at = Head { epoch, position };
        if known && (head.position < position || !log.continues(at, head.epoch).await?) {
            return Err(ProjectorError::LostEnd { epoch: head.epoch, head: head.position, position });
        }
        epoch = head.epoch;
        if head.position > position {
            let behind = usize::try_from(head.position - position).unwrap_or(usize::MAX);
            if behind < most_behind && Instant::now() < next {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep_until(next) => {}
                }
                continue;
            }
            let now = Instant::now();
            next = now
                + if is_sparse { SPARSE_PAUSE } else { config.pause(head.position - last.1, now - last.0) };
            last = (now, head.position);
            let page = tokio::select! {
                () = stop.cancelled() => break,
                page = read(feed, position, head.position, &filter) => page?,
            };
            if page.read_to == position {
                // What was known of the head is not true of this log: it has lost its end. Its listener will say.
                tokio::select! {
                    () = stop.cancelled() => break,
                    changed = wake.changed() => if changed.is_err() { break },
                    () = tokio::time::sleep(AGAIN_AFTER) => {}
                }
                continue;
            }
            // Nothing else that is of this history is read behind what is not, not even together with it.
            let at = Head { epoch, position };
            if epoch > 0 && page.epoch != epoch && !log.continues(at, page.epoch).await? {
                return Err(ProjectorError::LostEnd { epoch: page.epoch, head: page.read_to, position });
            }
            (epoch, position) = (page.epoch, page.read_to);
            let mut shares: Vec<Vec<_>> = (0..channels.len()).map(|_| Vec::new()).collect();
            if let [only] = shares.as_mut_slice() {
                *only = page.events;
            } else {
                for event in page.events {
                    let partition = tidemark_views::partition_of(event.partition_key);
                    shares[usize::from((partition % count).unsigned_abs())].push(event);
                }
            }
            for (channel, events) in channels.iter().zip(shares) {
                let chunk = Chunk { events, read_to: ReadTo::Log(Head { epoch: page.epoch, position }) };
                if channel.send(chunk).await.is_err() {
                    return ended(tasks.join_next().await, tasks).await;
                }
            }
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = wake.changed() => if changed.is_err() { break },
            // Only a worker that failed ends before its channel is closed.
            first = tasks.join_next() => return ended(first, tasks).await,
        }
    }
    drop(channels);
    while let Some(task) = tasks.join_next().await {
        outcome(task)?;
    }
    Ok(())
}

/// From the memory that the projections of this process share if all of them follow the log. Else this one alone does,
/// and has the log send no more than it wants.
async fn read(
    feed: &Feed,
    after: Position,
    up_to: Position,
    filter: &Filter,
) -> Result<Page<Arc<RecordedEvent>>, LogError> {
    let Feed { log, config, .. } = feed;
    if feed.kafka.is_none() {
        return log.read_recent(after, filter, config.batch_events).await;
    }
    Ok(log.read(after, up_to, filter, config.batch_events).await?.shared())
}

type Ended = Result<Result<(), ProjectorError>, JoinError>;

fn outcome(ended: Ended) -> Result<(), ProjectorError> {
    ended.unwrap_or_else(|error| Err(sqlx::Error::Protocol(error.to_string()).into()))
}

/// Why the first worker ended, once the others have ended with it.
async fn ended(
    first: Option<Ended>,
    mut others: JoinSet<Result<(), ProjectorError>>,
) -> Result<(), ProjectorError> {
    others.shutdown().await;
    first.map_or(Ok(()), outcome)
}

/// One worker: takes what waits, as one batch if several chunks do.
async fn work(
    mut worker: Worker,
    mut chunks: mpsc::Receiver<Chunk<Arc<RecordedEvent>>>,
    log: Log,
    target: Target,
) -> Result<(), ProjectorError> {
    let name = target.projection.name();
    let instance = target.instance.to_string();
    let labels = [("name", name.to_owned()), ("instance", instance)];
    let applied = metrics::counter!("tidemark_projection_events_total", &labels);
    let stands_at = metrics::gauge!("tidemark_projection_position", &labels);
    let behind = metrics::gauge!("tidemark_projection_lag_events", &labels);
    let lag = metrics::histogram!("tidemark_projection_lag_seconds", &labels);
    let head = log.wake();
    loop {
        let mut chunk = match tokio::time::timeout(LOOK_AFTER, chunks.recv()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(()),
            Err(_quiet) => {
                worker.is_there().await?;
                continue;
            }
        };
        while let Ok(more) = chunks.try_recv() {
            chunk.events.extend(more.events);
            chunk.read_to = more.read_to;
        }
        let oldest = chunk.events.first().map(|event| event.recorded_at);
        let taken = worker.take(chunk).await?;
        applied.increment(taken as u64);
        #[expect(clippy::cast_precision_loss, reason = "a gauge for people; exact below 2^53")]
        {
            stands_at.set(worker.position() as f64);
            behind.set((head.borrow().position - worker.position()).max(0) as f64);
        }
        if let Some(oldest) = oldest {
            lag.record((chrono::Utc::now() - oldest).as_seconds_f64());
        }
    }
}
