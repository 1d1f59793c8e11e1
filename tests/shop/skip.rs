//! No reader that follows the log misses an event, whatever its writers do: a million events by fifty writers, some
//! slow between insert and commit, some rolled back, some cut off, and readers of every kind at their heels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tidemark_events::log::{
    Batch, Filter, Head, Log, LogError, NewEvent, Outcome, Swift, WriterConnection, connect_options,
    partitions,
};
use tidemark_events::stock::{StockAdjusted, StockReceived};
use tidemark_events::stream::stock_of;
use tidemark_events::{Fact, Metadata, Position};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::Postgres;

const EVENTS: usize = 1_000_000;
const WRITERS: u64 = 50;
/// Each with a log, pools and a listener of its own, as processes have them.
const PROCESSES: usize = 2;
/// Small enough that partitions are made all the while.
const PARTITION: i64 = 100_000;
/// The most events of one batch.
const BATCH: u64 = 1_000;
/// What a writer may fail in a row, at waiting for the lock above all.
const TRIES: u32 = 50;
/// The type that one of the readers asks for.
const ADJUSTED: &str = "StockAdjusted";

/// The end of the log, as a position.
fn end() -> Position {
    EVENTS.try_into().unwrap()
}

/// Evenly spread and the same in every run (SplitMix64).
fn draw(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What an event at a position says, in 128 bits.
fn content(position: Position, stream_id: Uuid, version: i64, event_id: Uuid, payload: &[u8]) -> u128 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&position.to_be_bytes());
    context.update(stream_id.as_bytes());
    context.update(&version.to_be_bytes());
    context.update(event_id.as_bytes());
    context.update(payload);
    u128::from_be_bytes(context.finish().as_ref()[..16].try_into().unwrap())
}

/// A batch that is in the log: its first position, the content of its events, and which are [`ADJUSTED`].
type Written = BTreeMap<Position, Vec<(u128, bool)>>;

/// How often what happened.
#[derive(Debug, Default)]
struct Counts {
    attempts: AtomicU64,
    committed: AtomicU64,
    rolled_back: AtomicU64,
    cut_off: AtomicU64,
    slow: AtomicU64,
    moved: AtomicU64,
    lock_not_had: AtomicU64,
}

impl Counts {
    fn add(count: &AtomicU64) -> u64 {
        count.fetch_add(1, Ordering::Relaxed)
    }
}

/// One of the fifty: appends to a stream of its own until the log is long enough.
struct Writer {
    log: Log,
    options: PgConnectOptions,
    counts: Arc<Counts>,
    product_id: Uuid,
    /// The version of its stream, and where its newest event stands.
    version: i64,
    last: Position,
    partitions: partitions::Partitions,
    metadata: Metadata,
}

impl Writer {
    async fn run(mut self) -> Written {
        let (mut written, mut failed) = (Written::new(), 0);
        let mut connection = None;
        loop {
            let attempt = Counts::add(&self.counts.attempts);
            let mut writer = match connection.take() {
                Some(writer) => writer,
                None => WriterConnection::open(&self.options).await.unwrap(),
            };
            let known = *self.log.wake().borrow();
            // Now and then the short way, from a head that others have mostly moved by then.
            if attempt.is_multiple_of(16) && known.position < end() && known.epoch > 0 {
                let (batch, contents) = self.batch(known, attempt).await;
                match writer.append_at(&batch).await {
                    Swift::Committed(head, _) => self.committed(head, contents, &mut written),
                    Swift::Moved => drop(Counts::add(&self.counts.moved)),
                    // Fifty wait for one row: some for longer than a statement may take.
                    Swift::Unknown(_) | Swift::Refused(_) => {
                        Counts::add(&self.counts.lock_not_had);
                        if self.is_in_the_log(&batch).await {
                            self.committed(batch.head(), contents, &mut written);
                        }
                        continue;
                    }
                }
                connection = Some(writer);
                continue;
            }
            let mut locked = match writer.lock().await {
                Ok(locked) => locked,
                Err(error) => {
                    Counts::add(&self.counts.lock_not_had);
                    failed += 1;
                    assert!(failed < TRIES, "{error}");
                    continue;
                }
            };
            failed = 0;
            let head = locked.head();
            if head.position == end() {
                locked.release().await.unwrap();
                return written;
            }
            let (batch, contents) = self.batch(head, attempt).await;
            locked.append(&batch).await.unwrap();
            self.wait_a_little(attempt).await;
            match attempt % 20 {
                3 => {
                    Counts::add(&self.counts.rolled_back);
                    locked.release().await.unwrap();
                }
                13 => {
                    Counts::add(&self.counts.cut_off);
                    drop(writer);
                    continue;
                }
                _ => match locked.commit().await {
                    Outcome::Committed(head) => self.committed(head, contents, &mut written),
                    Outcome::Refused(error) | Outcome::Unknown(error) => panic!("{error}"),
                },
            }
            connection = Some(writer);
        }
    }

    /// Whether a batch of an unknown outcome was committed.
    async fn is_in_the_log(&self, batch: &Batch) -> bool {
        for _ in 0..TRIES {
            let mut writer = WriterConnection::open(&self.options).await.unwrap();
            let Ok(mut locked) = writer.lock().await else { continue };
            let committed = locked.settle(batch.mark().unwrap()).await.unwrap();
            assert!(matches!(locked.commit().await, Outcome::Committed(_)));
            return committed;
        }
        panic!("the lock is not to be had");
    }

    /// Events behind a head, and what they say.
    async fn batch(&mut self, head: Head, attempt: u64) -> (Batch, Vec<(u128, bool)>) {
        let left = u64::try_from(end() - head.position).unwrap();
        let size = (1 + draw(attempt) % BATCH).min(left);
        let last = head.position + i64::try_from(size).unwrap();
        if self.partitions.end() < last {
            self.partitions = partitions::ensure(self.log.pool(), PARTITION).await.unwrap();
        }
        let (mut batch, mut contents, mut before) = (Batch::at(head), Vec::new(), self.last);
        let stream_id = stock_of(self.product_id);
        for (version, seed) in (self.version + 1..).zip(0..size) {
            let (event_id, chance) = (Uuid::now_v7(), draw(attempt << 16 | seed));
            let (product_id, quantity) = (self.product_id, i64::try_from(chance >> 24).unwrap());
            let adjusted = chance.is_multiple_of(4);
            let fact = if adjusted {
                Fact::from(StockAdjusted { product_id, delta: quantity, reason: "counted".to_owned() })
            } else {
                Fact::from(StockReceived { product_id, quantity })
            };
            let begins = self.partitions.begun(before, batch.position() + 1);
            let event = NewEvent {
                stream_id,
                version,
                event_id,
                fact: &fact,
                metadata: &self.metadata,
                partition_key: product_id,
                begins,
            };
            before = batch.push(&event).unwrap();
            let mut payload = Vec::new();
            fact.write_payload(&mut payload).unwrap();
            contents.push((content(before, stream_id, version, event_id, &payload), adjusted));
        }
        (batch, contents)
    }

    /// Between insert and commit; sometimes longer than a reader's statement may take and than a listener sleeps.
    async fn wait_a_little(&self, attempt: u64) {
        let millis = match attempt {
            n if n % 499 == 11 => 1_100,
            n if n % 23 == 7 => 5 + draw(n) % 50,
            _ => return,
        };
        Counts::add(&self.counts.slow);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    fn committed(&mut self, head: Head, contents: Vec<(u128, bool)>, written: &mut Written) {
        Counts::add(&self.counts.committed);
        let count = i64::try_from(contents.len()).unwrap();
        self.version += count;
        self.last = head.position;
        self.log.committed(head);
        written.insert(head.position - count + 1, contents);
    }
}

/// How a reader learns that there is more.
#[derive(Debug, Clone, Copy)]
enum Follow {
    /// By notification, no further than the head that it named.
    Wake,
    /// By asking again and again, for as much as there is.
    Poll,
}

/// A reader at the writers' heels.
struct Reader {
    name: &'static str,
    log: Log,
    follow: Follow,
    /// Events of one page.
    page: usize,
    filter: Filter,
    /// It begins when the log has come so far: as a rebuild does.
    begins_at: Position,
}

/// What a reader saw.
struct Seen {
    name: &'static str,
    contents: Vec<u128>,
    pages: usize,
    timed_out: usize,
}

impl Reader {
    async fn run(self) -> Seen {
        let mut seen = Seen { name: self.name, contents: Vec::new(), pages: 0, timed_out: 0 };
        let whole = self.filter == Filter::default();
        let mut wake = self.log.wake();
        while self.log.head().await.unwrap().position < self.begins_at {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (mut at, mut limit, mut failed, mut last) = (0, self.page, 0, 0);
        while at < end() {
            let up_to = match self.follow {
                Follow::Wake => wake.borrow_and_update().position,
                Follow::Poll => Position::MAX,
            };
            let page = match self.log.read(at, up_to, &self.filter, limit).await {
                Ok(page) => page,
                Err(LogError::Database(error)) if cancelled(&error) => {
                    seen.timed_out += 1;
                    failed += 1;
                    assert!(failed < TRIES, "{} is never done in time: {error}", self.name);
                    limit = (limit / 2).max(1);
                    continue;
                }
                Err(error) => panic!("{}: {error}", self.name),
            };
            (failed, limit) = (0, (limit + limit.div_ceil(4)).min(self.page));
            seen.pages += 1;
            for event in &page.events {
                let position = event.position;
                assert!(
                    position > last && position <= page.read_to,
                    "{}: {position} after {last}",
                    self.name
                );
                assert!(!whole || position == last + 1, "{} skipped from {last} to {position}", self.name);
                last = position;
                let payload = event.payload.as_bytes();
                seen.contents.push(content(
                    position,
                    event.stream_id,
                    event.version,
                    event.event_id,
                    payload,
                ));
            }
            assert!(
                !whole || page.read_to == last,
                "{} was told of {} and has {last}",
                self.name,
                page.read_to
            );
            let still = page.read_to == at;
            at = page.read_to;
            match self.follow {
                Follow::Wake if at >= up_to && at < end() => wake.changed().await.unwrap(),
                Follow::Poll if still => tokio::time::sleep(Duration::from_millis(5)).await,
                _ => {}
            }
        }
        seen
    }
}

/// `query_canceled`: the statement took longer than it may.
fn cancelled(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("57014"))
}

/// A log as a process has it, with the pool's statements bounded in time.
async fn log(options: &PgConnectOptions, connections: u32, statement_timeout: &str) -> Log {
    let options = options.clone().options([("statement_timeout", statement_timeout)]);
    Log::new(PgPoolOptions::new().max_connections(connections).connect_with(options).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_skips_an_event() {
    let postgres = Postgres::start().await;
    let options = connect_options(&postgres.database().await).unwrap();
    let stop = CancellationToken::new();
    let mut processes = Vec::new();
    for _ in 0..PROCESSES {
        let log = log(&options, 6, "60s").await;
        Log::migrate_with(log.pool(), PARTITION).await.unwrap();
        log.spawn_listener(options.clone(), stop.clone());
        processes.push(log);
    }
    let started = Instant::now();
    let counts = Arc::<Counts>::default();
    let mut writers = JoinSet::new();
    for n in 0..WRITERS {
        let writer = Writer {
            log: processes[usize::try_from(n).unwrap() % PROCESSES].clone(),
            options: options.clone(),
            counts: Arc::clone(&counts),
            product_id: Uuid::now_v7(),
            version: 0,
            last: 0,
            partitions: partitions::Partitions::default(),
            metadata: crate::log::metadata(),
        };
        writers.spawn(writer.run());
    }
    let adjusted = Filter { event_types: vec![ADJUSTED.to_owned()], ..Filter::default() };
    let reader = |name, log: &Log, follow, page| Reader {
        name,
        log: log.clone(),
        follow,
        page,
        filter: Filter::default(),
        begins_at: 0,
    };
    let hasty = log(&options, 1, "25ms").await;
    let mut readers = JoinSet::new();
    for reader in [
        reader("by notification", &processes[0], Follow::Wake, 5_000),
        reader("by notification, short pages", &processes[1], Follow::Wake, 127),
        reader("by polling", &processes[0], Follow::Poll, 1_000),
        Reader {
            begins_at: end() / 4,
            ..reader("by polling, hardly any time", &hasty, Follow::Poll, 20_000)
        },
        Reader {
            filter: adjusted.clone(),
            ..reader("of one type, by polling", &processes[1], Follow::Poll, 1_000)
        },
        Reader { begins_at: end() / 2, ..reader("from half the way on", &processes[1], Follow::Wake, 5_000) },
    ] {
        readers.spawn(reader.run());
    }
    let all = async { tokio::join!(writers.join_all(), readers.join_all()) };
    let (written, seen) = tokio::time::timeout(Duration::from_secs(600), all).await.unwrap();
    stop.cancel();

    let written: Written = written.into_iter().flatten().collect();
    let contents: Vec<(u128, bool)> = written.values().flatten().copied().collect();
    let mut next = 1;
    for (first, batch) in &written {
        assert_eq!(*first, next, "what was committed has no gap and no double");
        next += i64::try_from(batch.len()).unwrap();
    }
    assert_eq!(contents.len(), EVENTS);
    eprintln!("{EVENTS} events by {WRITERS} writers in {:.1?}: {counts:?}", started.elapsed());
    for seen in &seen {
        let only_adjusted = seen.name.starts_with("of one type");
        let expected: Vec<u128> =
            contents.iter().filter(|(_, is)| *is || !only_adjusted).map(|(content, _)| *content).collect();
        let skipped = expected.len() - seen.contents.len();
        eprintln!(
            "{}: {} seen, {skipped} skipped, {} pages, {} timed out",
            seen.name,
            seen.contents.len(),
            seen.pages,
            seen.timed_out
        );
        assert!(seen.contents == expected, "{} saw what was written", seen.name);
    }
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let undone = of(&counts.rolled_back) + of(&counts.cut_off);
    assert!(undone * 15 > of(&counts.committed), "about a tenth is rolled back after its inserts");
    assert!(of(&counts.slow) > 50 && of(&counts.moved) > 0);
    assert!(seen.iter().any(|seen| seen.timed_out > 3), "statements ran out of time");
    let in_the_log: (i64, i64) = sqlx::query_as("SELECT count(*), max(position) FROM log.events")
        .fetch_one(processes[0].pool())
        .await
        .unwrap();
    assert_eq!(in_the_log, (end(), end()));
}
