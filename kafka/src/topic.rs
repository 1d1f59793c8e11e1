//! The two topics: the events, partitioned by key, and the publisher's place.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, OwnedHeaders};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Message, Offset, TopicPartitionList};
use tidemark_events::log::Head;
use tidemark_events::partition::PARTITIONS;
use uuid::Uuid;

use crate::publisher::{EPOCH_KEY, PLACE_KEY};
use crate::{KafkaConfig, Quiet, StreamError};

/// How long one question to Kafka may take.
pub const ASK_WITHIN: Duration = Duration::from_secs(5);

/// Makes the topics that are missing, with the broker's default replication, and checks those that are there.
///
/// # Errors
/// [`StreamError::Topic`] when the topic of the events has another number of partitions: keys would fall elsewhere.
/// Another number is another topic, filled from the log. Else [`StreamError::Kafka`].
pub async fn ensure(config: &KafkaConfig) -> Result<(), StreamError> {
    let admin: AdminClient<Quiet> = config.client("tidemark-topics").create_with_context(Quiet)?;
    let place = config.place_topic();
    let broker_default = || TopicReplication::Fixed(-1);
    let topics = [
        NewTopic::new(&config.topic, i32::from(PARTITIONS), broker_default()),
        NewTopic::new(&place, 1, broker_default())
            .set("cleanup.policy", "compact")
            .set("segment.ms", "600000")
            .set("min.cleanable.dirty.ratio", "0.1"),
    ];
    let options = AdminOptions::new().operation_timeout(Some(ASK_WITHIN)).request_timeout(Some(ASK_WITHIN));
    for made in admin.create_topics(&topics, &options).await? {
        match made {
            Ok(topic) => tracing::info!(topic, "made a topic"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(KafkaError::AdminOp(code).into()),
        }
    }
    // A topic that was made just now may take a moment to be known.
    let end = Instant::now() + ASK_WITHIN;
    loop {
        let found = partitions(config).await?;
        if found == usize::from(PARTITIONS.unsigned_abs()) {
            return Ok(());
        }
        if found > 0 || Instant::now() > end {
            return Err(StreamError::Topic(format!(
                "topic {} has {found} partitions, {PARTITIONS} are needed: use another topic, which is filled from the log",
                config.topic
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn partitions(config: &KafkaConfig) -> Result<usize, StreamError> {
    let (client, topic) = (config.client("tidemark-topics"), config.topic.clone());
    blocking("asking for the topic", move || {
        let consumer: BaseConsumer<Quiet> = client.create_with_context(Quiet)?;
        let metadata = consumer.fetch_metadata(Some(&topic), ASK_WITHIN)?;
        Ok(metadata.topics().first().map_or(0, |topic| topic.partitions().len()))
    })
    .await
}

/// Runs what blocks on a thread for it, for a bounded time.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, StreamError> + Send + 'static,
) -> Result<T, StreamError> {
    let longest = ASK_WITHIN * 4;
    match tokio::time::timeout(longest, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => Err(StreamError::Topic(format!("{what}: {error}"))),
        Err(_elapsed) => Err(StreamError::Stuck(what, longest)),
    }
}

/// Where the topic stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    /// The last place that was committed with its events, or the beginning.
    pub(crate) place: Head,
    /// The id of the first event of the log that is published there, if it is known.
    pub(crate) log: Option<Uuid>,
}

/// The header of a place that says of which log it is: the id of its first event.
const LOG_HEADER: &str = "log";

/// Says of which log a place is.
pub(crate) fn of_log(first_event: Uuid) -> OwnedHeaders {
    OwnedHeaders::new_with_capacity(1)
        .insert(Header { key: LOG_HEADER, value: Some(first_event.as_bytes().as_slice()) })
}

/// Where the topic stands: the last place that was committed with its events, or the beginning. To be asked by a
/// publisher that has fenced the one before it, whose last transaction has ended then.
///
/// # Errors
/// [`StreamError::Kafka`]; [`StreamError::Topic`] when the place cannot be read.
pub(crate) fn place(config: &KafkaConfig) -> Result<Opened, StreamError> {
    /// More than lies behind the last place: each is one record and the mark of its transaction's end.
    const LOOK_BACK: i64 = 1_000;
    let places = Places::open(config)?;
    for from in [places.low.max(places.high - LOOK_BACK), places.low] {
        let mut found = None;
        places.read(from, |key, place, log| {
            if key == PLACE_KEY {
                found = Some(Opened { place, log });
            }
        })?;
        if let Some(found) = found {
            return Ok(found);
        }
        if from == places.low {
            break;
        }
    }
    Ok(Opened { place: Head { epoch: 1, position: 0 }, log: None })
}

/// The epochs that the topic holds events of, each with the position behind which it begins there.
///
/// # Errors
/// As [`place`].
pub(crate) fn epochs(config: &KafkaConfig) -> Result<Vec<Head>, StreamError> {
    let places = Places::open(config)?;
    let mut found = BTreeMap::new();
    places.read(places.low, |key, head, _| {
        if key.starts_with(EPOCH_KEY) {
            found.insert(head.epoch, head);
        }
    })?;
    Ok(found.into_values().collect())
}

/// The topic of the publisher's place, open for reading.
struct Places {
    consumer: BaseConsumer<Quiet>,
    topic: String,
    low: i64,
    high: i64,
}

impl Places {
    fn open(config: &KafkaConfig) -> Result<Self, StreamError> {
        let topic = config.place_topic();
        let consumer: BaseConsumer<Quiet> = config
            .client("tidemark-place")
            .set("group.id", "tidemark-place")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create_with_context(Quiet)?;
        let (low, high) = consumer.fetch_watermarks(&topic, 0, ASK_WITHIN)?;
        Ok(Self { consumer, topic, low, high })
    }

    /// Hands over each record from an offset to the end.
    fn read(&self, from: i64, mut take: impl FnMut(&str, Head, Option<Uuid>)) -> Result<(), StreamError> {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, 0, Offset::Offset(from))?;
        self.consumer.assign(&assignment)?;
        let end = Instant::now() + ASK_WITHIN;
        while Instant::now() < end {
            match self.consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Ok(record)) => {
                    let head = text(record.payload()).and_then(Head::parse);
                    let (Some(key), Some(head)) = (text(record.key()), head) else {
                        return Err(StreamError::Topic(format!(
                            "record {} of topic {} is no place",
                            record.offset(),
                            self.topic
                        )));
                    };
                    let log = record
                        .headers()
                        .and_then(|headers| headers.iter().find(|header| header.key == LOG_HEADER));
                    take(key, head, log.and_then(|header| Uuid::from_slice(header.value?).ok()));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) => return Err(error.into()),
            }
        }
        Err(StreamError::Stuck("reading the publisher's place", ASK_WITHIN))
    }
}

fn text(bytes: Option<&[u8]>) -> Option<&str> {
    std::str::from_utf8(bytes?).ok()
}
