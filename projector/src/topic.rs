//! Follows the topic for one instance: a member of a consumer group, which gives it some of the partitions.
//!
//! Kafka says which partitions are whose; from where they are read stands with the rows. Whoever gets a partition looks
//! up its checkpoint and reads on behind the record that made it. Where there is none (the view came from the log, or
//! the topic is another one), or the topic no longer holds it, the log fills the gap first. A member that was paused
//! and has lost its partitions cannot do harm: its checkpoints have moved, and its batch is refused.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use tidemark_events::log::{Head, Log};
use tidemark_kafka::source::{self, Portion, Records, Start};
use tidemark_kafka::{KafkaConfig, topic};
use tokio_util::sync::CancellationToken;

use crate::ProjectorError;
use crate::runner::LOOK_AFTER;
use crate::supervisor::{Feed, ProjectorConfig};
use crate::worker::{Checkpoint, Chunk, ReadTo, Target, Worker, connect};

/// Follows until `stop`. `from_the_beginning`: whether a view that has nothing yet may read the topic from its first
/// record, which says whether anything came before it; it is cleared when that is so.
pub(crate) async fn follow(
    feed: &Feed,
    kafka: &KafkaConfig,
    target: Target,
    stop: &CancellationToken,
    from_the_beginning: &mut bool,
) -> Result<(), ProjectorError> {
    let Feed { log, views: options, config, .. } = feed;
    topic::ensure(kafka).await?;
    let name = target.projection.name();
    let group = format!("{}-{name}-{}", kafka.group, target.instance);
    let mut portions = source::spawn(kafka.clone(), group, target.projection.filter(), stop.child_token());
    let mut workers: Vec<Worker> = Vec::new();
    loop {
        let portion = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            portion = portions.recv() => portion,
            // What a crash took away is done again by workers that are opened anew.
            () = tokio::time::sleep(LOOK_AFTER) => {
                try_join_all(workers.iter_mut().map(Worker::is_there)).await?;
                continue;
            }
        };
        match portion {
            None => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(Portion::Assigned { ends, starts })) => {
                // The former workers' sessions end first: nothing of theirs is under way any more.
                workers.clear();
                workers = open(feed, target, &ends).await?;
                let mut all = BTreeMap::new();
                for worker in &mut workers {
                    all.extend(begin(log, worker, config, target, &ends, *from_the_beginning).await?);
                }
                tracing::info!(?target, partitions = ?ends.keys(), "a projection follows the topic");
                starts.send(all).ok();
            }
            Some(Ok(Portion::Unknown(partition))) => {
                *from_the_beginning = false;
                forget_offset(connect(options).await?, target, partition).await?;
                return Err(ProjectorError::OtherTopic {
                    name: name.to_owned(),
                    instance: target.instance,
                    partition,
                });
            }
            Some(Ok(Portion::Records(records))) => take(log, &mut workers, target, records).await?,
        }
    }
}

async fn open(
    Feed { log, views: options, config, .. }: &Feed,
    target: Target,
    ends: &BTreeMap<i16, i64>,
) -> Result<Vec<Worker>, ProjectorError> {
    let count = config.workers.clamp(1, tidemark_views::PARTITIONS);
    let mut workers = Vec::new();
    for worker in 0..count {
        let partitions: Vec<i16> =
            ends.keys().copied().filter(|partition| partition % count == worker).collect();
        if !partitions.is_empty() {
            workers.push(Worker::open(connect(options).await?, log, target, &partitions, true).await?);
        }
    }
    Ok(workers)
}

/// From where a worker's partitions are read in the topic; what the topic does not have is taken from the log first.
async fn begin(
    log: &Log,
    worker: &mut Worker,
    config: &ProjectorConfig,
    target: Target,
    ends: &BTreeMap<i16, i64>,
    from_the_beginning: bool,
) -> Result<BTreeMap<i16, Start>, ProjectorError> {
    // Everything before `ends` had been committed to the log before this is asked.
    let head = log.head().await?;
    worker.refuse_another_history(&ReadTo::Log(head)).await?;
    worker.retry_parked().await?;
    let known = |(&partition, at): (&i16, &Checkpoint)| {
        let said = Head { epoch: at.epoch, position: at.position };
        // A topic that holds everything begins with a record that says so.
        let holds_any = ends.get(&partition).is_some_and(|&end| end > 0);
        let first = (from_the_beginning && at.position == 0 && holds_any).then_some(0);
        Some((partition, Start::At { offset: at.offset.or(first)?, said }))
    };
    if let Some(starts) = worker.checkpoints().iter().map(known).collect() {
        return Ok(starts);
    }
    let filter = target.projection.filter();
    while worker.position() < head.position {
        let page = log.read(worker.position(), head.position, &filter, config.batch_events).await?;
        if page.read_to <= worker.position() {
            let (epoch, position) = (page.epoch, worker.position());
            return Err(ProjectorError::LostEnd { epoch, head: page.read_to, position });
        }
        let chunk = Chunk {
            events: page.events,
            read_to: ReadTo::Log(Head { epoch: page.epoch, position: page.read_to }),
        };
        worker.take(chunk).await?;
    }
    let behind = |partition: &i16| Some((*partition, Start::Behind(*ends.get(partition)?)));
    Ok(worker.checkpoints().keys().filter_map(behind).collect())
}

async fn take(
    log: &Log,
    workers: &mut [Worker],
    target: Target,
    mut records: BTreeMap<i16, Records>,
) -> Result<(), ProjectorError> {
    let name = target.projection.name();
    let labels = [("name", name.to_owned()), ("instance", target.instance.to_string())];
    let newest = log.wake().borrow().epoch;
    let mut taking = Vec::with_capacity(workers.len());
    for worker in workers {
        let mut events = Vec::new();
        let (mut read_to, mut strays) = (BTreeMap::new(), Vec::new());
        let (mut repeated, mut lost) = (0, 0);
        for (&partition, at) in worker.checkpoints() {
            let Some(mut portion) = records.remove(&partition) else { continue };
            strays.extend(portion.strays.drain(..).map(|stray| (partition, stray)));
            let Some(mut to) = portion.to else { continue };
            if to.epoch < at.epoch {
                repeated += portion.events.len();
                continue;
            }
            if to.epoch < newest
                && let Some(end) = log.epoch_end(to.epoch, newest).await?
                && end < to.position
            {
                // The topic keeps what the log has lost since, with its end; who has not read it yet passes over it.
                let count = portion.events.len();
                portion.events.retain(|event| event.position <= end);
                lost += count - portion.events.len();
                if end <= at.position {
                    continue;
                }
                to.position = end;
            }
            repeated += portion.events.iter().filter(|event| event.position <= at.position).count();
            events.extend(portion.events);
            read_to.insert(partition, (to, portion.offset));
        }
        metrics::counter!("tidemark_projection_strays_total", &labels).increment(strays.len() as u64);
        // What belongs together has one key, and so one partition; this order is only what the log has, too.
        // A record of somebody else's may name the position of another key's event.
        events.sort_unstable_by_key(|event| (event.position, event.partition_key));
        let count = events.len();
        events.dedup_by_key(|event| (event.position, event.partition_key));
        repeated += count - events.len();
        metrics::counter!("tidemark_projection_repeated_total", &labels).increment(repeated as u64);
        metrics::counter!("tidemark_projection_lost_total", &labels).increment(lost as u64);
        let oldest = events.first().map(|event| event.recorded_at);
        let chunk = Chunk { events, read_to: ReadTo::Topic(read_to) };
        let labels = &labels;
        taking.push(async move {
            worker.note_strays(&strays).await?;
            let taken = worker.take(chunk).await?;
            metrics::counter!("tidemark_projection_events_total", labels).increment(taken as u64);
            if let Some(oldest) = oldest {
                metrics::histogram!("tidemark_projection_lag_seconds", labels)
                    .record((chrono::Utc::now() - oldest).as_seconds_f64());
            }
            Ok::<_, ProjectorError>(worker.position())
        });
    }
    let positions = try_join_all(taking).await?;
    if let Some(position) = positions.into_iter().min() {
        #[expect(clippy::cast_precision_loss, reason = "gauges for people; exact below 2^53")]
        {
            let head = log.wake().borrow().position;
            metrics::gauge!("tidemark_projection_position", &labels).set(position as f64);
            metrics::gauge!("tidemark_projection_lag_events", &labels).set((head - position).max(0) as f64);
        }
    }
    Ok(())
}

async fn forget_offset(
    mut connection: sqlx::PgConnection,
    target: Target,
    partition: i16,
) -> Result<(), ProjectorError> {
    sqlx::query(
        "UPDATE views.checkpoints SET source_offset = NULL WHERE name = $1 AND instance = $2 AND partition = $3",
    )
    .bind(target.projection.name())
    .bind(target.instance)
    .bind(partition)
    .execute(&mut connection)
    .await?;
    Ok(())
}
