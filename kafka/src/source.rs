//! The topic to whoever asks: a member of a consumer group, on a thread of its own, behind a bounded channel.
//!
//! Where a partition is to be read from does not stand in Kafka but with what its records have become, in the views'
//! database ([`Start`]). A partition that comes to this member is therefore first asked for, and nothing of it is
//! handed on before the answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};
use tidemark_events::RecordedEvent;
use tidemark_events::log::{Filter, Head};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::record::parse;
use crate::{KafkaConfig, StreamError, debug_log, topic};

/// Records that are handed on at once, over all partitions.
const AT_ONCE: usize = 5_000;

/// How long the thread waits for a record before it looks whether it is to end.
const LOOK_AFTER: Duration = Duration::from_millis(100);

/// How long records wait for the rest of their transaction, whose partitions come to be read one after another: each
/// portion costs the views' database about the same, however many partitions are in it.
const GATHER: Duration = Duration::from_millis(20);

/// Portions that wait for the reader.
const CHANNEL: usize = 4;

/// From where a partition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From this record, which must say this: else the topic is not the one that it was read from before.
    At {
        /// The record that was applied last.
        offset: i64,
        /// What it said.
        said: Head,
    },
    /// From behind this offset; everything before it has been read from the log.
    Behind(i64),
}

/// What comes from the topic.
#[derive(Debug)]
pub enum Portion {
    /// This member reads these partitions from now on, and no others: say from where.
    Assigned {
        /// All of its partitions, with the offset behind the newest record of each.
        ends: BTreeMap<i16, i64>,
        /// For the answer.
        starts: oneshot::Sender<BTreeMap<i16, Start>>,
    },
    /// Records of some partitions.
    Records(BTreeMap<i16, Records>),
    /// A partition does not hold what it should at its [`Start::At`]: it must be read from the log first.
    Unknown(i16),
}

/// Records of one partition, in order.
#[derive(Debug, Default)]
pub struct Records {
    /// The events that the filter lets through.
    pub events: Vec<RecordedEvent>,
    /// The furthest that a record said: everything of the partition up to here is in this portion or before it.
    pub to: Option<Head>,
    /// The offset of that record, or of a stray behind it.
    pub offset: i64,
    /// Records that are none of ours.
    pub strays: Vec<Stray>,
}

/// A record that is no event of the log and no watermark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Where it stands in its partition.
    pub offset: i64,
    /// Why it is none.
    pub error: String,
}

/// Joins a group and reads what `filter` lets through, until `stop` or the receiver is dropped. The channel ends with
/// an error if Kafka does.
#[must_use]
pub fn spawn(
    config: KafkaConfig,
    group: String,
    filter: Filter,
    stop: CancellationToken,
) -> mpsc::Receiver<Result<Portion, StreamError>> {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let failed = sender.clone();
    let thread = std::thread::Builder::new().name("kafka source".to_owned()).spawn(move || {
        if let Err(error) = read(&config, &group, &filter, &sender, &stop) {
            sender.blocking_send(Err(error)).ok();
        }
    });
    if let Err(error) = thread {
        failed.try_send(Err(StreamError::Topic(format!("cannot start a thread: {error}")))).ok();
    }
    receiver
}

/// Notes what the group decides; the thread acts on it between two polls.
#[derive(Default)]
struct Member {
    assigned: Mutex<Option<Vec<i32>>>,
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug_log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Member {
    /// Partitions that come are taken by the thread, once it knows from where each is read. To take them here and to
    /// seek later loses records: librdkafka would begin by asking for their end, and an answer that a seek has
    /// overtaken makes it ask again half a second later, and go there.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                list.elements().iter().map(TopicPartitionListElem::partition).collect()
            }
            _ => {
                if let Err(error) = consumer.unassign() {
                    tracing::warn!(%error, "cannot give partitions of the topic back");
                }
                Vec::new()
            }
        };
        if let Ok(mut assigned) = self.assigned.lock() {
            *assigned = Some(partitions);
        }
    }
}

/// What the first record of each partition must say, and where it stands; a partition that is not in it is not read.
type Expected = HashMap<i32, Option<(i64, Head)>>;

fn read(
    config: &KafkaConfig,
    group: &str,
    filter: &Filter,
    sender: &mpsc::Sender<Result<Portion, StreamError>>,
    stop: &CancellationToken,
) -> Result<(), StreamError> {
    let consumer: BaseConsumer<Member> = config
        .client("tidemark-projector")
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        // An offset that the topic does not have is an error: where to go on is found out from the checkpoint.
        .set("auto.offset.reset", "error")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1500")
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", "65536")
        // A full queue is looked at again after this, by default after a second: that would be the rate of catching up.
        .set("fetch.queue.backoff.ms", "10")
        // A fetch is answered as soon as anything has come; a topic that rests is asked this seldom. Whatever else is asked
        // of a broker waits behind the fetch, so it is not longer.
        .set("fetch.min.bytes", "1")
        .set("fetch.wait.max.ms", "100")
        .create_with_context(Member::default())?;
    consumer.subscribe(&[&config.topic])?;
    // What the first record of a partition must say; a partition that is not in it is not read yet.
    let mut expected = Expected::new();
    let mut portion: BTreeMap<i16, Records> = BTreeMap::new();
    let (mut count, mut begun_at) = (0, Instant::now());
    while !stop.is_cancelled() && !sender.is_closed() {
        let polled = match consumer.poll(if count == 0 { LOOK_AFTER } else { Duration::ZERO }) {
            None if count > 0 && !is_whole(&portion, expected.len()) => {
                consumer.poll(GATHER.saturating_sub(begun_at.elapsed()))
            }
            polled => polled,
        };
        let none_waits = polled.is_none();
        let assigned = consumer.context().assigned.lock().ok().and_then(|mut assigned| assigned.take());
        if let Some(partitions) = assigned {
            // What was read before belongs to another assignment; it will be read again by whoever has it now.
            (portion, count) = (BTreeMap::new(), 0);
            expected = assign(&consumer, config, sender, &partitions)?;
            continue;
        }
        match polled {
            Some(Ok(message)) => {
                let Some(expectation) = expected.get_mut(&message.partition()) else { continue };
                let number = partition(message.partition());
                let read = parse(&message, |category| filter.takes(category));
                if let Some((offset, said)) = expectation.take() {
                    // The beginning is the beginning, whichever epoch it was published in.
                    let is_that = |at: Head| at == said || (at.position, said.position) == (0, 0);
                    if message.offset() != offset || read.is_ok_and(|record| !is_that(record.at)) {
                        expected.remove(&message.partition());
                        sender.blocking_send(Ok(Portion::Unknown(number))).ok();
                    }
                    continue;
                }
                let (before, now) = (portion.get(&number), read.as_ref().ok());
                if let (Some(to), Some(record)) = (before.and_then(|records| records.to), now)
                    && to.epoch != record.at.epoch
                {
                    hand_on(sender, &mut portion, &mut count);
                }
                let records = portion.entry(number).or_default();
                match read {
                    Ok(record) => {
                        // One from the past, which is none of the publisher's, takes nothing back.
                        if records.to <= Some(record.at) {
                            (records.to, records.offset) = (Some(record.at), message.offset());
                        }
                        records.events.extend(record.event.filter(|event| filter.lets_through(event)));
                    }
                    Err(misfit) => {
                        records.offset = message.offset();
                        records.strays.push(Stray { offset: message.offset(), error: misfit.to_string() });
                    }
                }
                if count == 0 {
                    begun_at = Instant::now();
                }
                count += 1;
            }
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
        if count >= AT_ONCE || (count > 0 && none_waits) {
            hand_on(sender, &mut portion, &mut count);
        }
    }
    Ok(())
}

/// Whether all of `partitions` are there up to the same position: each transaction ends with a record in each of them.
fn is_whole(portion: &BTreeMap<i16, Records>, partitions: usize) -> bool {
    let mut ends = portion.values().map(|records| records.to);
    let first = ends.next().flatten();
    portion.len() == partitions && first.is_some() && ends.all(|end| end == first)
}

/// Waits while the reader is busy: then nothing more is fetched than Kafka's own bound.
fn hand_on(
    sender: &mpsc::Sender<Result<Portion, StreamError>>,
    portion: &mut BTreeMap<i16, Records>,
    count: &mut usize,
) {
    sender.blocking_send(Ok(Portion::Records(std::mem::take(portion)))).ok();
    *count = 0;
}

/// Asks from where to read the partitions that are this member's now, and begins there.
fn assign(
    consumer: &BaseConsumer<Member>,
    config: &KafkaConfig,
    sender: &mpsc::Sender<Result<Portion, StreamError>>,
    partitions: &[i32],
) -> Result<Expected, StreamError> {
    match starts(consumer, config, sender, partitions) {
        Ok((list, expected)) => {
            consumer.assign(&list)?;
            Ok(expected)
        }
        Err(error) => {
            // The group waits for an answer, whichever.
            consumer.unassign().ok();
            Err(error)
        }
    }
}

fn starts(
    consumer: &BaseConsumer<Member>,
    config: &KafkaConfig,
    sender: &mpsc::Sender<Result<Portion, StreamError>>,
    partitions: &[i32],
) -> Result<(TopicPartitionList, Expected), StreamError> {
    let (mut list, mut expected) = (TopicPartitionList::new(), Expected::new());
    let mut bounds = HashMap::new();
    for &number in partitions {
        bounds.insert(number, consumer.fetch_watermarks(&config.topic, number, topic::ASK_WITHIN)?);
    }
    let ends = bounds.iter().map(|(&number, &(_, end))| (partition(number), end)).collect();
    let (starts, answer) = oneshot::channel();
    if sender.blocking_send(Ok(Portion::Assigned { ends, starts })).is_err() {
        return Ok((list, expected));
    }
    let Ok(starts) = answer.blocking_recv() else { return Ok((list, expected)) };
    for (&number, &(begin, end)) in &bounds {
        let start = starts.get(&partition(number));
        // A member that was paused since it asked for the end may be answered with what others have read meanwhile.
        let end = match start {
            Some(&Start::At { offset, .. }) if offset >= end => {
                consumer.fetch_watermarks(&config.topic, number, topic::ASK_WITHIN)?.1
            }
            _ => end,
        };
        let (offset, expectation) = match start {
            Some(&Start::At { offset, said }) if (begin..end).contains(&offset) => {
                (offset, Some((offset, said)))
            }
            Some(&Start::Behind(offset)) => (offset, None),
            Some(Start::At { .. }) | None => {
                sender.blocking_send(Ok(Portion::Unknown(partition(number)))).ok();
                continue;
            }
        };
        list.add_partition_offset(&config.topic, number, Offset::Offset(offset))?;
        expected.insert(number, expectation);
    }
    Ok((list, expected))
}

/// A partition of the topic as the views count them. The topic has been checked to have no more.
fn partition(number: i32) -> i16 {
    i16::try_from(number).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portion_is_whole_when_all_partitions_stand_where_one_transaction_ended() {
        let portion = |ends: &[(i16, Option<(i32, i64)>)]| {
            let records = |to: Option<(i32, i64)>| Records {
                to: to.map(|(epoch, position)| Head { epoch, position }),
                ..Records::default()
            };
            ends.iter().map(|&(partition, to)| (partition, records(to))).collect::<BTreeMap<_, _>>()
        };
        let both = portion(&[(0, Some((1, 7))), (4, Some((1, 7)))]);
        assert!(is_whole(&both, 2));
        assert!(!is_whole(&both, 3), "one has not come");
        assert!(!is_whole(&portion(&[(0, Some((1, 7))), (4, Some((1, 9)))]), 2), "one has come further");
        assert!(!is_whole(&portion(&[(0, Some((1, 7))), (4, Some((2, 7)))]), 2), "one is of another epoch");
        assert!(!is_whole(&portion(&[(0, Some((1, 7))), (4, None)]), 2), "one has strays alone");
        assert!(!is_whole(&portion(&[(0, None), (4, None)]), 2), "there are strays alone");
        assert!(!is_whole(&portion(&[]), 0), "there is nothing");
    }
}
