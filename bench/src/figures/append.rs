//! Batches of three events at the log's own interface, against inserts of 200 rows a statement.
//!
//! As 64 connections that place orders would have it: a group commit gathers 64 batches, each an order of two lines,
//! that is an event in a new stream and one in the streams of two stocks.

use std::time::{Duration, Instant};

use chrono::Utc;
use sqlx::postgres::PgPoolOptions;
use tidemark_events::log::{Log, NewEvent, Outcome, WriterConnection};
use tidemark_events::order::{OrderLine, OrderPlaced};
use tidemark_events::stock::StockReserved;
use tidemark_events::{Currency, Fact, Metadata, Money, stream};
use uuid::Uuid;

use super::orders::{TABLE, VALUES, pgbench};
use super::{BASELINE_DATABASE, Stage};
use crate::error::BenchError;
use crate::random::Random;
use crate::report::{Bound, Row};

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
pub(super) async fn append(stage: &Stage<'_>) -> Result<Vec<Row>, BenchError> {
    eprintln!("append");
    let cluster = stage.cluster;
    cluster.create(BASELINE_DATABASE).await?;
    cluster.execute(&cluster.database(BASELINE_DATABASE), TABLE).await?;
    let script = stage.scratch.file(
        "rows.sql",
        &format!(
            "INSERT INTO facts (stream_id, event_type, payload) SELECT {VALUES} FROM generate_series(1, {ROWS})\n"
        ),
    )?;
    let (clients, tried) = best_clients(stage, &script).await?;

    let mut appender = Appender::open(stage).await?;
    let brief = Duration::from_secs(stage.settings.seconds.div_ceil(3));
    appender.run(GROUP, brief).await?;
    let (mut appended, mut inserted) = (Vec::new(), Vec::new());
    for _ in 0..stage.settings.rounds {
        inserted.push(pgbench(stage, &script, clients, stage.settings.seconds).await? * ROWS as f64);
        appended.push(appender.run(GROUP, Duration::from_secs(stage.settings.seconds)).await?);
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
        appended,
    )
    .against(format!("pgbench, {ROWS}-row inserts, {clients} clients, rows/s"), inserted)
    .bound(Bound::Ratio(0.5))
    .note(format!("other batches a commit: {}", others.join(", ")))
    .note(format!("rows/s of pgbench by clients: {tried}"))
    .note(format!("{events} events, positions without a gap, versions as written"));
    Ok(vec![row])
}

/// The number of clients with the most rows a second, and what each reached.
async fn best_clients(stage: &Stage<'_>, script: &std::path::Path) -> Result<(usize, String), BenchError> {
    let (mut best, mut tried) = ((1, 0.0), Vec::new());
    for clients in CLIENTS {
        let rows = pgbench(stage, script, clients, stage.settings.seconds.div_ceil(3)).await? * ROWS as f64;
        tried.push(format!("{clients}: {rows:.0}"));
        if rows > best.1 {
            best = (clients, rows);
        }
    }
    Ok((best.0, tried.join(", ")))
}

/// A writer of orders that nobody asked for, into a log of its own.
struct Appender {
    log: Log,
    connection: WriterConnection,
    random: Random,
    /// Each product with the version of its stock's stream.
    stocks: Vec<(Uuid, i64)>,
    events: i64,
}

impl Appender {
    async fn open(stage: &Stage<'_>) -> Result<Self, BenchError> {
        let options = stage.cluster.log_options(BASELINE_DATABASE)?;
        let pool = PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await?;
        Log::migrate(&pool).await?;
        Ok(Self {
            log: Log::new(pool),
            connection: WriterConnection::open(&options).await?,
            random: Random::new(5),
            stocks: (0..PRODUCTS).map(|_| (Uuid::now_v7(), 0)).collect(),
            events: 0,
        })
    }

    /// Appends for so long; events a second.
    async fn run(&mut self, group: usize, length: Duration) -> Result<f64, BenchError> {
        tidemark_events::log::partitions::ensure(self.log.pool(), tidemark_events::log::PARTITION_SIZE)
            .await?;
        let (begin, before) = (Instant::now(), self.events);
        while begin.elapsed() < length {
            self.commit(group).await?;
        }
        Ok((self.events - before) as f64 / begin.elapsed().as_secs_f64())
    }

    async fn commit(&mut self, group: usize) -> Result<(), BenchError> {
        let mut locked = self.connection.lock().await?;
        let mut batch = locked.batch();
        for _ in 0..group {
            let order_id = Uuid::now_v7();
            let metadata = Metadata {
                correlation_id: Uuid::now_v7(),
                causation_id: None,
                actor: format!("customer:{order_id}"),
                traceparent: None,
            };
            let first = self.random.below(PRODUCTS);
            let second = (first + 1 + self.random.below(PRODUCTS - 1)) % PRODUCTS;
            let mut push = |stream_id, version, fact: &Fact, partition_key| {
                let event_id = Uuid::now_v7();
                batch.push(&NewEvent {
                    stream_id,
                    version,
                    event_id,
                    fact,
                    metadata: &metadata,
                    partition_key,
                })
            };
            push(order_id, 1, &placed(order_id, [self.stocks[first].0, self.stocks[second].0])?, order_id)?;
            for stock in [first, second] {
                let (product_id, version) = &mut self.stocks[stock];
                *version += 1;
                let reserved = StockReserved { product_id: *product_id, order_id, quantity: 1 };
                push(stream::stock_of(*product_id), *version, &reserved.into(), *product_id)?;
            }
        }
        self.events = batch.position();
        locked.append(batch).await?;
        match locked.commit().await {
            Outcome::Committed(_) => Ok(()),
            Outcome::Refused(error) | Outcome::Unknown(error) => Err(error.into()),
        }
    }

    /// Whether the log holds what was written; the number of its events.
    async fn close(self) -> Result<i64, BenchError> {
        let head = self.log.head().await?;
        let pool = self.log.pool().clone();
        let row: (i64, i64, i64) =
            sqlx::query_as("SELECT count(*), min(position), max(position) FROM log.events")
                .fetch_one(&pool)
                .await?;
        let stocks: (Option<i64>,) =
            sqlx::query_as("SELECT sum(version)::bigint FROM log.streams WHERE stream_id = ANY($1)")
                .bind(self.stocks.iter().map(|(product, _)| stream::stock_of(*product)).collect::<Vec<_>>())
                .fetch_one(&pool)
                .await?;
        pool.close().await;
        let written: i64 = self.stocks.iter().map(|(_, version)| version).sum();
        if row == (self.events, 1, self.events) && head.position == self.events && stocks.0 == Some(written) {
            Ok(self.events)
        } else {
            Err(BenchError::Wrong(format!(
                "{} events were written, {written} of them to stocks; the log has {row:?}, its head is {}, its \
                 stocks stand at {stocks:?}",
                self.events, head.position
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
