//! The log to Kafka: every event once, in the order of the log, by one process at a time.
//!
//! Leadership is a lease in the log's database. Who gets it makes a producer under the one transactional id, which ends
//! whatever a predecessor had begun and fences it for good, and reads from Kafka where the last committed transaction
//! came to. From there it reads the log and writes one transaction a page: the events, a watermark in every partition,
//! and the new place. All of it becomes visible or none, so nothing is lost and nothing repeated, whenever it is
//! killed.
//!
//! Kafka's calls block, and some have been seen not to return (librdkafka #5456): the producer lives on a thread of its
//! own, and one that does not answer in time is given up, lease and all; the next producer fences it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc as thread_channel;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidemark_events::log::history::common_end;
use tidemark_events::log::{Filter, Head, Lease, Log, Pace};
use tidemark_events::partition::{PARTITIONS, partition_of};
use tidemark_events::{Position, RecordedEvent, planted};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::topic::Opened;
use crate::{KafkaConfig, Quiet, StreamError, record, topic};

/// The lease on publishing. Whoever is killed or paused is followed within this time and one [`ASK_AGAIN`].
const LEASE: &str = "publisher";
const LEASE_HOLDS: Duration = Duration::from_millis(1_200);

/// How often the lease is asked for by those who do not have it, and renewed by the one who has.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// How long after a failure publishing is tried anew.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The key of the place, so that compaction keeps the newest alone.
pub(crate) const PLACE_KEY: &str = "publisher";

/// The beginning of the keys of epochs: each is kept with the position behind which the topic has it.
pub(crate) const EPOCH_KEY: &str = "epoch ";

/// From one transaction to the next, unless it is full: each costs the broker and all who read the topic about the same,
/// however many events it has.
const PACE: Pace = Pace { longest: Duration::from_millis(100), busy: 12_000.0 };

/// Events of one transaction.
const AT_ONCE: u16 = 30_000;

/// How long a transaction may take in all. Beyond that its producer is given up.
const TRANSACTION_WITHIN: Duration = Duration::from_secs(20);

/// Starts publishing, whenever this process has the lease, until `stop`.
#[must_use]
pub fn spawn(log: Log, config: KafkaConfig, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        let lease = Lease::new(log.clone(), LEASE, LEASE_HOLDS);
        let published = Published::default();
        let mut last_error = String::new();
        while !stop.is_cancelled() {
            let pause = match lease.take().await {
                Ok(false) => {
                    published.forget();
                    ASK_AGAIN
                }
                Ok(true) => {
                    metrics::gauge!("tidemark_publisher_leads").set(1.0);
                    // Kafka may be away, and then does not say how far the topic is.
                    if let (None, Ok(Some(place))) = (published.position(), lease.place().await) {
                        published.came_to(place);
                    }
                    let ended = lead(&log, &config, &lease, &published, &stop).await;
                    metrics::gauge!("tidemark_publisher_leads").set(0.0);
                    lease.give_back().await.ok();
                    match ended {
                        Ok(()) => ASK_AGAIN,
                        Err(error) => {
                            metrics::counter!("tidemark_publisher_failures_total").increment(1);
                            // Kafka may be away for long: the same line once, not twice a second.
                            let text = error.to_string();
                            if text != last_error {
                                tracing::warn!(%error, "publishing has stopped, trying again until it goes on");
                                last_error = text;
                            }
                            AGAIN_AFTER
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot ask for the lease on publishing");
                    AGAIN_AFTER
                }
            };
            tokio::time::timeout(pause, stop.cancelled()).await.ok();
        }
    })
}

/// Publishes as long as the lease holds.
async fn lead(
    log: &Log,
    config: &KafkaConfig,
    lease: &Lease,
    published: &Published,
    stop: &CancellationToken,
) -> Result<(), StreamError> {
    let lost = CancellationToken::new();
    let (head, published) = (log.wake(), published.clone());
    let keeping = tokio::spawn(keep(lease.clone(), head, published.clone(), lost.clone(), stop.clone()));
    let ended = tokio::select! {
        ended = publish(log, config, &published, stop) => ended,
        () = lost.cancelled() => {
            tracing::warn!("the lease on publishing is lost, another process goes on");
            Ok(())
        }
    };
    keeping.abort();
    ended
}

/// Renews the lease; says so when it cannot be renewed before it ends. Meanwhile it reports how far publishing is, which
/// may itself wait for a Kafka that is away.
async fn keep(
    lease: Lease,
    head: watch::Receiver<Head>,
    published: Published,
    lost: CancellationToken,
    stop: CancellationToken,
) {
    let mut until = Instant::now() + lease.holds_for();
    let mut noted = None;
    while !stop.is_cancelled() {
        published.report(*head.borrow());
        if let Some(position) = published.position().filter(|_| published.position() != noted)
            && tokio::time::timeout_at(until.into(), lease.note(position))
                .await
                .is_ok_and(|noted| noted.is_ok())
        {
            noted = Some(position);
        }
        tokio::time::sleep(ASK_AGAIN).await;
        let asked = Instant::now();
        match tokio::time::timeout_at(until.into(), lease.take()).await {
            Ok(Ok(true)) => until = asked + lease.holds_for(),
            Ok(Ok(false)) => break,
            _ if Instant::now() >= until => break,
            _ => {}
        }
    }
    lost.cancel();
}

async fn publish(
    log: &Log,
    config: &KafkaConfig,
    published: &Published,
    stop: &CancellationToken,
) -> Result<(), StreamError> {
    topic::ensure(config).await?;
    let (transactions, opened) = start_producer(config.clone())?;
    let Opened { place, log: published_log } = answer("beginning to publish", opened).await?;
    refuse_another_log(log, place).await?;
    let mut first_event = log.first_event().await?;
    if place.position > 0 && published_log.is_some_and(|published| first_event != Some(published)) {
        return Err(StreamError::AnotherLog { place, head: log.head().await? });
    }
    let Head { mut epoch, mut position } = place;
    if planted::is("publisher-repeats") {
        position = (position - 5).max(0);
    }
    tracing::info!(topic = config.topic, position, "publishing the log");
    published.came_to(position);
    let mut wake = log.wake();
    let mut under_way: Option<(oneshot::Receiver<Result<(), StreamError>>, Written)> = None;
    let mut begun_at: Option<Instant> = None;
    let mut begins = (position == 0).then_some(place);
    loop {
        let head = *wake.borrow_and_update();
        if head < (Head { epoch, position }) {
            refuse_another_log(log, Head { epoch, position }).await?;
        }
        if head.epoch > epoch {
            // What the topic has is asked of the topic.
            if let Some((before, what)) = under_way.take() {
                answer("a transaction", before).await?;
                published.count(&what);
            }
            if position > 0 {
                position = fork(log, config, Head { epoch, position }).await?;
            }
            epoch = head.epoch;
            begins = Some(Head { epoch, position });
        }
        if head.position > position {
            let behind = head.position - position;
            let pause = begun_at
                .map_or(Duration::ZERO, |at| PACE.step(behind, at.elapsed()).saturating_sub(at.elapsed()));
            if !pause.is_zero() && behind < Position::from(AT_ONCE) {
                tokio::time::sleep(pause).await;
                continue;
            }
            begun_at = Some(Instant::now());
            // The next page is read while the one before is being written.
            let mut page = log.read_recent(position, &Filter::default(), usize::from(AT_ONCE)).await?;
            if planted::is("order-swapped") {
                page.events.reverse();
            }
            if planted::is("publisher-skips") {
                page.events.pop();
            }
            if page.epoch < epoch {
                // Read from a log that has gone back and has not been written to since.
                refuse_another_log(log, Head { epoch, position }).await?;
                continue;
            }
            if page.epoch > epoch {
                log.committed(Head { epoch: page.epoch, position: page.read_to });
                continue;
            }
            if page.read_to > position {
                let first = position == 0 && place.position == 0;
                position = page.read_to;
                let written = Written {
                    to: position,
                    count: page.events.len() as u64,
                    oldest: page.events.first().map(|event| event.recorded_at),
                };
                let to = Head { epoch: page.epoch, position };
                let (reply, done) = oneshot::channel();
                if let Some((before, what)) = under_way.take() {
                    answer("a transaction", before).await?;
                    published.count(&what);
                }
                if first_event.is_none() {
                    first_event = log.first_event().await?;
                }
                let begins = begins.take();
                let transaction =
                    Transaction { events: page.events, to, first, begins, log: first_event, reply };
                if transactions.send(transaction).is_err() {
                    return Err(StreamError::Topic("the producer's thread has ended".to_owned()));
                }
                under_way = Some((done, written));
                continue;
            }
        }
        if let Some((before, what)) = under_way.take() {
            answer("a transaction", before).await?;
            published.count(&what);
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = wake.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// A transaction that is under way.
struct Written {
    to: Position,
    count: u64,
    oldest: Option<chrono::DateTime<chrono::Utc>>,
}

/// How far the topic has come, as far as this process knows: what Kafka has answered for.
#[derive(Clone)]
struct Published(Arc<AtomicI64>);

impl Default for Published {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(Self::UNKNOWN)))
    }
}

impl Published {
    const UNKNOWN: Position = -1;

    fn came_to(&self, position: Position) {
        self.0.store(position, Ordering::Relaxed);
    }

    fn count(&self, written: &Written) {
        self.came_to(written.to);
        metrics::counter!("tidemark_publisher_events_total").increment(written.count);
        if let Some(oldest) = written.oldest {
            metrics::histogram!("tidemark_publisher_lag_seconds")
                .record((chrono::Utc::now() - oldest).as_seconds_f64());
        }
    }

    fn position(&self) -> Option<Position> {
        Some(self.0.load(Ordering::Relaxed)).filter(|position| *position != Self::UNKNOWN)
    }

    /// Somebody else publishes now.
    fn forget(&self) {
        if self.0.swap(Self::UNKNOWN, Ordering::Relaxed) != Self::UNKNOWN {
            metrics::gauge!("tidemark_publisher_position").set(0.0);
            metrics::gauge!("tidemark_publisher_lag_events").set(0.0);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges for people; exact below 2^53")]
    fn report(&self, head: Head) {
        if let Some(position) = self.position() {
            metrics::gauge!("tidemark_publisher_position").set(position as f64);
            metrics::gauge!("tidemark_publisher_lag_events").set((head.position - position).max(0) as f64);
        }
    }
}

/// Refuses to go on behind what the log does not have. What is known of its head may be old; this asks it. A log that went
/// back while nobody wrote gets its new epoch here.
async fn refuse_another_log(log: &Log, place: Head) -> Result<(), StreamError> {
    if log.learn_head().await? >= place {
        return Ok(());
    }
    log.check_history().await?;
    let head = log.learn_head().await?;
    if head < place {
        return Err(StreamError::AnotherLog { place, head });
    }
    Ok(())
}

/// From where to publish a newer epoch, when the topic stands at `place`: there, or, if the log has lost its end since,
/// from where its history and the topic's part.
async fn fork(log: &Log, config: &KafkaConfig, place: Head) -> Result<Position, StreamError> {
    let epochs = log.epochs().await?;
    let mut published = vec![Head { position: 0, ..place }];
    if !epochs.iter().any(|begin| begin.epoch == place.epoch) {
        // The log has never heard of what the topic has, so the topic has to say what it has.
        let config = config.clone();
        published = topic::blocking("reading the topic's epochs", move || topic::epochs(&config)).await?;
    }
    let end = common_end(&epochs, &published).min(place.position);
    if end < place.position {
        tracing::warn!(
            at = place.position,
            from = end + 1,
            epoch = place.epoch,
            "the log has lost its end since it was published: publishing the new epoch from its fork"
        );
    }
    Ok(end)
}

async fn answer<T>(
    what: &'static str,
    done: oneshot::Receiver<Result<T, StreamError>>,
) -> Result<T, StreamError> {
    match tokio::time::timeout(TRANSACTION_WITHIN, done).await {
        Ok(Ok(done)) => done,
        Ok(Err(_ended)) => Err(StreamError::Topic(format!("{what}: the producer's thread has ended"))),
        Err(_elapsed) => Err(StreamError::Stuck(what, TRANSACTION_WITHIN)),
    }
}

/// A page of the log to be written.
struct Transaction {
    events: Vec<Arc<RecordedEvent>>,
    /// Everything up to here is in it or before it.
    to: Head,
    /// Whether it is the first of the topic: then each partition begins with a watermark at 0, which tells readers that
    /// nothing is missing before it.
    first: bool,
    /// Its epoch, if it is the first of one, with the position behind which the topic has it; kept with the place.
    begins: Option<Head>,
    /// The id of the log's first event, kept with the place.
    log: Option<Uuid>,
    reply: oneshot::Sender<Result<(), StreamError>>,
}

type Opening = oneshot::Receiver<Result<Opened, StreamError>>;

/// The producer on its thread, which ends when nothing more can come, or with the first error.
fn start_producer(
    config: KafkaConfig,
) -> Result<(thread_channel::SyncSender<Transaction>, Opening), StreamError> {
    let (sender, transactions) = thread_channel::sync_channel::<Transaction>(1);
    let (opened, opening) = oneshot::channel();
    let run = move || {
        let producer = match open(&config) {
            Ok((producer, place)) => {
                opened.send(Ok(place)).ok();
                producer
            }
            Err(error) => {
                opened.send(Err(error)).ok();
                return;
            }
        };
        while let Ok(transaction) = transactions.recv() {
            let written = write(&producer, &config, &transaction);
            let failed = written.is_err();
            transaction.reply.send(written).ok();
            if failed {
                // What was begun is ended by the next producer: there is nothing to wait for here.
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("publisher".to_owned())
        .spawn(run)
        .map_err(|error| StreamError::Topic(format!("cannot start the producer's thread: {error}")))?;
    Ok((sender, opening))
}

fn open(config: &KafkaConfig) -> Result<(BaseProducer<Quiet>, Opened), StreamError> {
    let mut client: ClientConfig = config.client("tidemark-publisher");
    let producer: BaseProducer<Quiet> = client
        .set("transactional.id", format!("tidemark-publisher-{}", config.topic))
        // Short, so that readers of what is committed do not wait long behind one that was killed.
        .set("transaction.timeout.ms", "10000")
        .set("message.timeout.ms", "5000")
        .set("linger.ms", "2")
        // How soon a partition is asked to join a transaction again, while the one before is still being ended there.
        .set("retry.backoff.ms", "5")
        .set("batch.num.messages", "10000")
        .set("batch.size", "1000000")
        .set("queue.buffering.max.messages", "100000")
        .set("queue.buffering.max.kbytes", "65536")
        .set("compression.type", "lz4")
        .create_with_context(Quiet)?;
    producer.init_transactions(topic::ASK_WITHIN * 2).map_err(named)?;
    let place = topic::place(config)?;
    Ok((producer, place))
}

fn write(
    producer: &BaseProducer<Quiet>,
    config: &KafkaConfig,
    transaction: &Transaction,
) -> Result<(), StreamError> {
    let Transaction { events, to, first, begins, log, .. } = transaction;
    producer.begin_transaction().map_err(named)?;
    let now = chrono::Utc::now();
    if *first {
        watermarks(producer, config, Head { position: 0, ..*to }, now)?;
    }
    let mut time = record::Time::default();
    for event in events {
        let key = event.partition_key.hyphenated().to_string();
        let made = BaseRecord::to(&config.topic)
            .key(key.as_str())
            .payload(&*event.payload)
            .partition(i32::from(partition_of(event.partition_key)))
            .timestamp(event.recorded_at.timestamp_millis())
            .headers(record::headers(to.epoch, event, &mut time));
        send(producer, made)?;
    }
    watermarks(producer, config, *to, now)?;
    let place_topic = config.place_topic();
    let keep = |key: &str, head: &Head| {
        let place = head.to_string();
        let record = BaseRecord::to(&place_topic).key(key).payload(place.as_str()).partition(0);
        send(
            producer,
            match log {
                Some(log) => record.headers(topic::of_log(*log)),
                None => record,
            },
        )
    };
    if let Some(begin) = begins {
        keep(&format!("{EPOCH_KEY}{}", begin.epoch), begin)?;
    }
    keep(PLACE_KEY, to)?;
    // The library's own `flush` looks every tenth of a second; this is what it does, at once.
    let end = Instant::now() + TRANSACTION_WITHIN / 2;
    while producer.in_flight_count() > 0 {
        if Instant::now() > end {
            return Err(StreamError::Stuck("the delivery of a transaction", TRANSACTION_WITHIN / 2));
        }
        rest(producer);
    }
    producer.commit_transaction(TRANSACTION_WITHIN / 4).map_err(named)
}

/// Takes in what has been delivered, and rests if that was nothing. The library's own waiting counts whole
/// milliseconds and spends the last of them, which here is the only one, asking over and over.
fn rest(producer: &BaseProducer<Quiet>) {
    let before = producer.in_flight_count();
    producer.poll(Duration::ZERO);
    if producer.in_flight_count() == before {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One in each partition.
fn watermarks(
    producer: &BaseProducer<Quiet>,
    config: &KafkaConfig,
    at: Head,
    now: chrono::DateTime<chrono::Utc>,
) -> Result<(), StreamError> {
    for partition in 0..PARTITIONS {
        let made = BaseRecord::<str, str>::to(&config.topic)
            .payload(record::NOTHING)
            .partition(i32::from(partition))
            .headers(record::watermark(at, now));
        send(producer, made)?;
    }
    Ok(())
}

/// Hands a record over; a full queue is waited for.
fn send(producer: &BaseProducer<Quiet>, record: BaseRecord<'_, str, str>) -> Result<(), StreamError> {
    let end = Instant::now() + TRANSACTION_WITHIN / 2;
    let mut record = record;
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                if Instant::now() < end =>
            {
                rest(producer);
                record = back;
            }
            Err((error, _)) => return Err(named(error)),
        }
    }
}

/// Kafka's word for "there is a newer one under this transactional id".
fn named(error: KafkaError) -> StreamError {
    let code = match &error {
        KafkaError::Transaction(error) => Some(error.code()),
        other => other.rdkafka_error_code(),
    };
    match code {
        Some(
            RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch,
        ) => StreamError::Fenced,
        _ => error.into(),
    }
}
