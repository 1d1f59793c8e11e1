//! Batches of three events at the log's own interface, against inserts of 200 rows a statement.
//!
//! As 64 connections that place orders would have it: a group commit gathers 64 batches, each an order of two lines,
//! that is an event in a new stream and one in the streams of two stocks.

use std::path::Path;
use std::time::{Duration, Instant};

use chrono::Utc;
use sqlx::postgres::PgPoolOptions;
use tidemark_events::log::partitions::{self, Partitions};
use tidemark_events::log::{Batch, Head, Log, NewEvent, PARTITION_SIZE, Swift, WriterConnection};
use tidemark_events::order::{OrderLine, OrderPlaced};
use tidemark_events::stock::StockReserved;
use tidemark_events::{Currency, Fact, Metadata, Money, Origin, Position, stream};
use uuid::Uuid;

use super::orders::{INSERT, TABLE, VALUES, pgbench, pgbench_into};
use super::{BASELINE_DATABASE, Settings};
use crate::cluster::Cluster;
use crate::error::BenchError;
use crate::random::Random;
use crate::report::{Bound, Row};
use crate::scratch::Scratch;

/// A table of events as the log has them, with its keys and indexes, for rows that pgbench makes up.
const EVENTS_TABLE: &str = "CREATE TABLE events (LIKE log.events INCLUDING CONSTRAINTS); \
    ALTER TABLE events ADD PRIMARY KEY (position), ADD UNIQUE (stream_id, version); \
    CREATE SEQUENCE positions CACHE 200";

/// A row of it: the most frequent event, with one random id for all.
const EVENT: &str = "nextval('positions'), id, 'stock', 1, id, 'StockReserved', 1, \
    '{\"product_id\":\"019a0000-0000-7000-8000-000000000001\",\
    \"order_id\":\"019a0000-0000-7000-8000-000000000002\",\"quantity\":1}', \
    id, NULL, 'customer:019a0000-0000-7000-8000-000000000004', NULL, clock_timestamp(), id";

/// Its columns.
const EVENT_COLUMNS: &str = "position, stream_id, category, version, event_id, event_type, schema_version, payload, \
    correlation_id, causation_id, actor, traceparent, recorded_at, partition_key";

/// Rows of one of pgbench's statements.
const ROWS: usize = 200;

/// Clients that are tried for the best baseline.
const CLIENTS: [usize; 3] = [1, 2, 8];

/// Events of one batch.
const EVENTS: usize = 3;

/// Batches of one commit in the figure that counts.
const GROUP: usize = 64;

/// Others that are told beside it.
const OTHER_GROUPS: [usize; 4] = [1, 8, 256, 512];

/// Products whose stock is written to.
const PRODUCTS: usize = 2_000;

/// The figure of appending.
pub(super) async fn append(
    settings: &Settings,
    scratch: &Scratch,
    cluster: &Cluster,
) -> Result<Vec<Row>, BenchError> {
    eprintln!("append");
    cluster.create(BASELINE_DATABASE).await?;
    cluster.execute(&cluster.database(BASELINE_DATABASE), TABLE).await?;
    let script =
        scratch.file("rows.sql", &format!("{INSERT} SELECT {VALUES} FROM generate_series(1, {ROWS})\n"))?;
    let (clients, tried) = best_clients(cluster, &script, settings.seconds.div_ceil(3)).await?;

    let mut appender = Appender::open(cluster).await?;
    // The log is there now, and its table can be taken for a pattern.
    cluster.execute(&cluster.database(BASELINE_DATABASE), EVENTS_TABLE).await?;
    let statement = format!(
        "INSERT INTO events ({EVENT_COLUMNS}) SELECT {EVENT} \
         FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, {ROWS})) AS made\n"
    );
    let events_script = scratch.file("events.sql", &statement)?;
    let brief = Duration::from_secs(settings.seconds.div_ceil(3));
    appender.run(GROUP, brief).await?;
    let (mut appended, mut inserted, mut alike) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        inserted.push(pgbench(cluster, &script, clients, settings.seconds).await? * ROWS as f64);
        appended.push(appender.run(GROUP, Duration::from_secs(settings.seconds)).await?);
        let rows = pgbench_into(cluster, "events", &events_script, 1, settings.seconds).await?;
        alike.push(rows * ROWS as f64);
    }
    let mut others = Vec::new();
    for group in OTHER_GROUPS {
        others.push(format!("{group}: {:.0}/s", appender.run(group, brief).await?));
    }
    let events = appender.close().await?;
    cluster.drop_database(BASELINE_DATABASE).await?;
    let row = Row::new(
        "append",
        format!("append of {EVENTS}-event batches, {GROUP} a commit"),
        "events/s",
        appended.clone(),
    )
    .against(format!("pgbench, {ROWS}-row inserts, {clients} clients, rows/s"), inserted)
    .bound(Bound::Ratio(0.5))
    .note(format!("other batches a commit: {}", others.join(", ")))
    .note(format!("rows/s of pgbench by clients: {tried}"))
    .note(format!("{events} events, positions without a gap, versions as written"));
    let like = Row::new(
        "append-alike",
        "the same against rows, keys and indexes of its own kind",
        "events/s",
        appended,
    )
    .against(format!("pgbench, {ROWS}-row inserts of events, 1 client, rows/s"), alike)
    .note("a log has one writer at a time, and so has this baseline".to_owned());
    Ok(vec![row, like])
}

/// The number of clients with the most rows a second, and what each reached.
async fn best_clients(cluster: &Cluster, script: &Path, seconds: u64) -> Result<(usize, String), BenchError> {
    let (mut best, mut tried) = ((1, 0.0), Vec::new());
    for clients in CLIENTS {
        let rows = pgbench(cluster, script, clients, seconds).await? * ROWS as f64;
        tried.push(format!("{clients}: {rows:.0}"));
        if rows > best.1 {
            best = (clients, rows);
        }
    }
    Ok((best.0, tried.join(", ")))
}

/// A writer of orders that nobody asked for, into a log of its own. It appends as the shop's writer does when no
/// other writer is there.
struct Appender {
    log: Log,
    connection: WriterConnection,
    partitions: Partitions,
    random: Random,
    stocks: Vec<Stock>,
    head: Head,
}

/// The stream of a product's stock.
struct Stock {
    product_id: Uuid,
    stream_id: Uuid,
    version: i64,
    /// Of its last event.
    position: Position,
}

impl Appender {
    async fn open(cluster: &Cluster) -> Result<Self, BenchError> {
        let options = cluster.log_options(BASELINE_DATABASE)?;
        let pool = PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await?;
        Log::migrate(&pool).await?;
        let log = Log::new(pool);
        let mut connection = WriterConnection::open(&options).await?;
        // The first lock of a connection compares the log's history with the database's.
        let locked = connection.lock().await?;
        let head = locked.head();
        locked.release().await?;
        let stock = |product_id| Stock {
            product_id,
            stream_id: stream::stock_of(product_id),
            version: 0,
            position: 0,
        };
        let stocks = (0..PRODUCTS).map(|_| stock(Uuid::now_v7())).collect();
        Ok(Self { log, connection, partitions: Partitions::default(), random: Random::new(5), stocks, head })
    }

    /// Appends for so long; events a second.
    async fn run(&mut self, group: usize, length: Duration) -> Result<f64, BenchError> {
        self.partitions = partitions::ensure(self.log.pool(), PARTITION_SIZE).await?;
        let (begin, before) = (Instant::now(), self.head.position);
        while begin.elapsed() < length {
            self.commit(group).await?;
        }
        Ok((self.head.position - before) as f64 / begin.elapsed().as_secs_f64())
    }

    async fn commit(&mut self, group: usize) -> Result<(), BenchError> {
        let mut batch = Batch::at(self.head);
        for _ in 0..group {
            let order_id = Uuid::now_v7();
            let metadata = Metadata {
                correlation_id: Uuid::now_v7(),
                causation_id: None,
                actor: format!("customer:{order_id}"),
                traceparent: None,
                origin: Some(Origin::V4([127, 0, 0])),
            };
            let first = self.random.below(PRODUCTS);
            let second = (first + 1 + self.random.below(PRODUCTS - 1)) % PRODUCTS;
            let products = [first, second].map(|stock| self.stocks[stock].product_id);
            batch.push(&NewEvent {
                stream_id: order_id,
                version: 1,
                event_id: Uuid::now_v7(),
                fact: &placed(order_id, products)?,
                metadata: &metadata,
                partition_key: order_id,
                begins: self.partitions.begun(0, batch.position() + 1),
            })?;
            for stock in [first, second] {
                let stock = &mut self.stocks[stock];
                let begins = self.partitions.begun(stock.position, batch.position() + 1);
                stock.version += 1;
                stock.position = batch.push(&NewEvent {
                    stream_id: stock.stream_id,
                    version: stock.version,
                    event_id: Uuid::now_v7(),
                    fact: &StockReserved { product_id: stock.product_id, order_id, quantity: 1 }.into(),
                    metadata: &metadata,
                    partition_key: stock.product_id,
                    begins,
                })?;
            }
        }
        match self.connection.append_at(&batch).await {
            Swift::Committed(head, _) => {
                self.head = head;
                Ok(())
            }
            Swift::Moved => Err(BenchError::Wrong("somebody else appends to the benchmark's log".to_owned())),
            Swift::Refused(error) | Swift::Unknown(error) => Err(error.into()),
        }
    }

    /// Whether the log holds what was written; the number of its events.
    async fn close(self) -> Result<i64, BenchError> {
        let Self { log, stocks, head, .. } = self;
        let found: (i64, i64, i64, i64, i64) = sqlx::query_as(
            "SELECT count(*), min(position), max(position), count(*) FILTER (WHERE category = 'stock'), \
             (SELECT sum(last)::bigint FROM (SELECT max(version) AS last FROM log.events \
               WHERE category = 'stock' GROUP BY stream_id) AS stocks) FROM log.events",
        )
        .fetch_one(log.pool())
        .await?;
        let told = log.head().await?;
        log.pool().close().await;
        let (events, reserved) = (head.position, stocks.iter().map(|stock| stock.version).sum());
        if found == (events, 1, events, reserved, reserved) && told == head {
            Ok(events)
        } else {
            Err(BenchError::Wrong(format!(
                "{events} events were written, {reserved} of them to stocks; the log's head is {told:?}, and it has \
                 (events, first, last, of stocks, sum of the stocks' versions) {found:?}"
            )))
        }
    }
}

fn placed(customer_id: Uuid, products: [Uuid; 2]) -> Result<Fact, BenchError> {
    let currency =
        Currency::parse("EUR").ok_or_else(|| BenchError::Wrong("EUR is no currency any more".to_owned()))?;
    let line = |product_id| OrderLine { product_id, quantity: 1, unit_price: 1_999, amount: 1_999 };
    let total = Money { amount: 3_998, currency };
    Ok(OrderPlaced { customer_id, lines: products.map(line).to_vec(), total, placed_at: Utc::now() }.into())
}
