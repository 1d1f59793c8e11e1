//! The topic: every event of the log once, in order, as the record's form says; and nothing else.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::SecondsFormat;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::check::Check;
use crate::error::ChaosError;
use crate::log::Event;

const TOPIC: &str = "tidemark";
const WATERMARK: &str = "tidemark.watermark";

/// How long one question may take, and reading all of it.
const ASK_WITHIN: Duration = Duration::from_secs(10);
const READ_WITHIN: Duration = Duration::from_secs(90);

/// One record of the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    partition: i32,
    key: Option<String>,
    value: String,
    headers: HashMap<String, String>,
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let headers = message.headers().map(|headers| {
            let header = |header: rdkafka::message::Header<'_, &[u8]>| {
                (header.key.to_owned(), text(header.value).unwrap_or_default())
            };
            headers.iter().map(header).collect()
        });
        Self {
            partition: message.partition(),
            key: text(message.key()),
            value: text(message.payload()).unwrap_or_default(),
            headers: headers.unwrap_or_default(),
        }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn position(&self) -> i64 {
        self.header("ce_position").parse().unwrap_or(-1)
    }

    fn is_watermark(&self) -> bool {
        self.header("ce_type") == WATERMARK
    }
}

/// Errors come with the records; what librdkafka says beside them is left out.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for Quiet {}

/// Reads all that is committed.
///
/// # Errors
/// [`ChaosError::Kafka`]; [`ChaosError::TooLong`].
pub(crate) fn read(port: u16) -> Result<Vec<Record>, ChaosError> {
    let consumer: BaseConsumer<Quiet> = ClientConfig::new()
        .set("bootstrap.servers", format!("127.0.0.1:{port}"))
        .set("group.id", "tidemark-chaos")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create_with_context(Quiet)?;
    let metadata = consumer.fetch_metadata(Some(TOPIC), ASK_WITHIN)?;
    let partitions: Vec<i32> = metadata
        .topics()
        .iter()
        .flat_map(|topic| topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id))
        .collect();
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        assignment.add_partition_offset(TOPIC, *partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let (mut records, mut ended) = (Vec::new(), std::collections::HashSet::new());
    let end = Instant::now() + READ_WITHIN;
    while ended.len() < partitions.len() {
        if Instant::now() > end {
            return Err(ChaosError::TooLong("the topic was not read to its end in time".to_owned()));
        }
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => records.push(Record::of(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
    Ok(records)
}

/// Up to where each partition holds everything, at least.
pub(crate) fn reaches(records: &[Record]) -> i64 {
    let mut newest: HashMap<i32, i64> = HashMap::new();
    for record in records {
        let reached = newest.entry(record.partition).or_default();
        *reached = (*reached).max(record.position());
    }
    newest.values().copied().min().unwrap_or(0)
}

/// Compares the topic with the log.
pub(crate) fn equal_log(records: &[Record], events: &[Event]) -> Vec<Check> {
    let mut once = Check::new("every event is in the topic, once, and nothing else");
    let mut order = Check::new("each partition of the topic is in the log's order");
    let mut form = Check::new("records are the events, byte for byte");
    let mut newest: HashMap<i32, i64> = HashMap::new();
    let mut found: HashMap<i64, &Record> = HashMap::with_capacity(events.len());
    for record in records {
        let position = record.position();
        let before = newest.entry(record.partition).or_insert(-1);
        // A watermark says the position of the last event before it, or more.
        let forward = if record.is_watermark() { position >= *before } else { position > *before };
        order
            .expect(forward, || format!("partition {}: {position} stands behind {before}", record.partition));
        *before = position.max(*before);
        if !record.is_watermark()
            && let Some(double) = found.insert(position, record)
        {
            once.expect(false, || {
                format!("{position} twice: {} and {}", double.header("ce_id"), record.header("ce_id"))
            });
        }
    }
    for event in events {
        let record = found.remove(&event.position);
        once.expect(record.is_some(), || format!("{} at {} is missing", event.kind, event.position));
        if let Some(record) = record {
            let why = differs(record, event);
            form.expect(why.is_none(), || {
                format!("{} at {}: {}", event.kind, event.position, why.unwrap_or_default())
            });
        }
    }
    once.expect_none(0, found.into_keys().map(|position| format!("position {position} is not in the log")));
    vec![once, order, form]
}

fn differs(record: &Record, event: &Event) -> Option<String> {
    let key = event.partition_key.to_string();
    let partition = i32::from(event.partition_key.as_bytes()[15] % 8);
    if record.partition != partition || record.key.as_ref() != Some(&key) {
        return Some(format!("key {:?} in partition {}", record.key, record.partition));
    }
    if record.value != event.payload {
        return Some(format!("{} in the topic, {} in the log", record.value, event.payload));
    }
    let time = event.recorded_at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let expected = [
        ("content-type", "application/json".to_owned()),
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", event.id.to_string()),
        ("ce_source", format!("/tidemark/{}", event.category)),
        ("ce_type", event.kind.clone()),
        ("ce_time", time),
        ("ce_subject", event.stream.to_string()),
        ("ce_partitionkey", key),
        ("ce_streamversion", event.version.to_string()),
        ("ce_schemaversion", event.schema_version.to_string()),
        ("ce_correlationid", event.correlation.to_string()),
        ("ce_actor", event.actor.clone()),
    ];
    let optional = [
        ("ce_causationid", event.causation.map(|id| id.to_string())),
        ("ce_traceparent", event.traceparent.clone()),
        ("ce_origin", event.origin.clone()),
    ];
    let wrong = expected.iter().find(|(name, value)| record.header(name) != value);
    let wrong_optional = optional.iter().find(|(name, value)| record.headers.get(*name) != value.as_ref());
    let name = wrong.map(|(name, _)| *name).or(wrong_optional.map(|(name, _)| *name))?;
    Some(format!("{name} is {:?}", record.headers.get(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::event;
    use serde_json::json;

    fn record(event: &Event) -> Record {
        let mut headers: HashMap<String, String> = HashMap::new();
        let mut put = |name: &str, value: &dyn ToString| headers.insert(name.to_owned(), value.to_string());
        put("content-type", &"application/json");
        put("ce_specversion", &"1.0");
        put("ce_id", &event.id);
        put("ce_source", &format!("/tidemark/{}", event.category));
        put("ce_type", &event.kind);
        put("ce_time", &event.recorded_at.to_rfc3339_opts(SecondsFormat::Micros, true));
        put("ce_subject", &event.stream);
        put("ce_partitionkey", &event.partition_key);
        put("ce_position", &event.position);
        put("ce_streamversion", &event.version);
        put("ce_schemaversion", &event.schema_version);
        put("ce_correlationid", &event.correlation);
        put("ce_actor", &event.actor);
        let key = Some(event.partition_key.to_string());
        let partition = i32::from(event.partition_key.as_bytes()[15] % 8);
        Record { partition, key, value: event.payload.clone(), headers }
    }

    fn failed(records: &[Record], events: &[Event]) -> Vec<&'static str> {
        let checks = equal_log(records, events);
        checks.iter().filter(|check| check.mismatched > 0).map(|check| check.name).collect()
    }

    #[test]
    fn a_topic_that_is_not_the_log_is_seen() {
        let events: Vec<Event> =
            (1..=3).map(|n| event(n, 9, n, "PriceChanged", json!({ "price": n }))).collect();
        let records: Vec<Record> = events.iter().map(record).collect();
        assert!(failed(&records, &events).is_empty());
        assert_eq!(failed(&records[1..], &events), ["every event is in the topic, once, and nothing else"]);
        assert_eq!(failed(&records, &events[..2]), ["every event is in the topic, once, and nothing else"]);
        let mut again = records.clone();
        again.push(records[1].clone());
        assert_eq!(failed(&again, &events).len(), 2, "twice, and out of order");
        let mut swapped = records.clone();
        swapped.swap(0, 1);
        assert_eq!(failed(&swapped, &events), ["each partition of the topic is in the log's order"]);
        let mut changed = records;
        changed[2].value = "{}".to_owned();
        assert_eq!(failed(&changed, &events), ["records are the events, byte for byte"]);
    }
}
