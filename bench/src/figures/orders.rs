//! Orders at 64 connections, each durable before it is answered, against single-row inserts at 64 connections.

use std::path::{Path, PathBuf};

use serde_json::json;
use uuid::Uuid;

use super::{BASELINE_DATABASE, Stage};
use crate::books::Books;
use crate::cluster::Cluster;
use crate::error::BenchError;
use crate::random::Random;
use crate::report::{Bound, Row};
use crate::seed::receipt;
use crate::stats::median;
use crate::wrk::{CONNECTIONS, Run, Script};
use crate::{client, load};

/// Bodies that are sent in turn.
const BODIES: usize = 4_096;

/// More orders than a second can bring, for the stock of the one SKU.
const MOST_A_SECOND: i64 = 40_000;

/// The table that baselines insert into: what makes an event, and no index but its key.
pub(super) const TABLE: &str = "CREATE TABLE facts (position bigserial PRIMARY KEY, stream_id uuid NOT NULL, \
    event jsonb NOT NULL, recorded_at timestamptz NOT NULL DEFAULT clock_timestamp())";

/// The beginning of a statement that inserts into it.
pub(super) const INSERT: &str = "INSERT INTO facts (stream_id, event)";

/// The values of a row, 336 bytes as stored: as many as the log needs for the most frequent event, a
/// `StockReserved`.
pub(super) const VALUES: &str = "gen_random_uuid(), '{\"type\":\"StockReserved\",\
    \"product_id\":\"019a0000-0000-7000-8000-000000000001\",\
    \"order_id\":\"019a0000-0000-7000-8000-000000000002\",\"quantity\":1,\
    \"correlation_id\":\"019a0000-0000-7000-8000-000000000003\",\
    \"actor\":\"customer:019a0000-0000-7000-8000-000000000004\"}'";

/// One kind of order.
struct Kind {
    bodies: PathBuf,
    runs: Vec<Run>,
}

impl Kind {
    async fn run(&mut self, stage: &Stage<'_>, books: &mut Books) -> Result<(), BenchError> {
        let token = Some(stage.seeded.customer.as_str());
        let run = stage
            .wrk
            .run(Script::Orders, stage.shop.address, &self.bodies, token, stage.settings.seconds)
            .await?;
        books.add(run.requests, CONNECTIONS as u64);
        self.runs.push(run);
        Ok(())
    }

    fn rates(&self) -> Vec<f64> {
        self.runs.iter().map(Run::rate).collect()
    }

    fn latencies(&self) -> String {
        let each: Vec<String> = self.runs.iter().map(Run::describe).collect();
        each.join("; ")
    }
}

/// The figures of ordering, and the peak rate.
pub(super) async fn orders(stage: &Stage<'_>) -> Result<(Vec<Row>, f64), BenchError> {
    eprintln!("orders");
    let products: Vec<Uuid> = stage.seeded.products.iter().map(|(id, _)| *id).collect();
    let hot = products[0];
    let most = MOST_A_SECOND * (stage.settings.seconds * stage.settings.rounds) as i64 * 4;
    let receipts = (most / crate::seed::MOST_UNITS + 1) as usize;
    load::closed(stage.shop.address, 1, receipts, async |connection, _| {
        connection.send(&receipt(hot, &stage.seeded.staff)).await
    })
    .await?;

    let mut random = Random::new(4);
    let mut any = || *random.of(&products[1..]);
    let two: Vec<[Uuid; 2]> = (0..BODIES).map(|_| [any(), any()]).collect();
    let one: Vec<[Uuid; 2]> = (0..BODIES).map(|_| [hot, any()]).collect();
    let mut ordered: Vec<Uuid> = two.iter().chain(&one).flatten().copied().collect();
    ordered.sort_unstable();
    ordered.dedup();

    let kind = |name: &str, orders: &[[Uuid; 2]]| -> Result<Kind, BenchError> {
        Ok(Kind { bodies: stage.scratch.file(name, &bodies(orders))?, runs: Vec::new() })
    };
    let mut two_lines = kind("two.orders", &two)?;
    let mut one_sku = kind("one.orders", &one)?;
    let mut only_one = kind("only.orders", &[[hot, hot]])?;
    let inserts = single_row(stage).await?;
    let mut baseline = Vec::new();
    let mut books = Books::open(stage.shop, stage.seeded, ordered).await?;
    for _ in 0..stage.settings.rounds {
        baseline.push(pgbench(stage.cluster, &inserts, CONNECTIONS, stage.settings.seconds).await?);
        two_lines.run(stage, &mut books).await?;
        one_sku.run(stage, &mut books).await?;
        only_one.run(stage, &mut books).await?;
    }
    let agreed = books.close(stage.shop, stage.seeded).await?;
    stage.cluster.drop_database(BASELINE_DATABASE).await?;

    let p99s = two_lines.runs.iter().map(Run::p99).collect();
    let peak = median(&two_lines.rates());
    let rows = vec![
        Row::new(
            "orders",
            "POST /v1/orders, two lines, token, Idempotency-Key, 64 connections",
            "/s",
            two_lines.rates(),
        )
        .against("pgbench, single-row inserts, 64 clients", baseline)
        .bound(Bound::Ratio(0.7))
        .note(agreed),
        Row::new("orders-p99", "the same, p99 at that rate (closed loop, wrk)", "ms", p99s)
            .bound(Bound::Below(15.0))
            .note(two_lines.latencies()),
        Row::new("one-sku", "the same, one line of every order for one SKU", "/s", one_sku.rates())
            .against("two lines of any products", two_lines.rates())
            .bound(Bound::Ratio(0.9))
            .note(one_sku.latencies()),
        Row::new("only-one-sku", "the same, both lines of every order for one SKU", "/s", only_one.rates())
            .against("two lines of any products", two_lines.rates())
            .bound(Bound::Ratio(0.9))
            .note(format!("the two lines are merged into one; {}", only_one.latencies())),
    ];
    Ok((rows, peak))
}

/// Bodies of orders with two lines, one a line.
pub(super) fn bodies(orders: &[[Uuid; 2]]) -> String {
    let body = |products: &[Uuid; 2]| {
        let line = |product: Uuid| json!({ "product_id": product, "quantity": 1 });
        json!({ "lines": products.map(line) }).to_string()
    };
    orders.iter().map(body).collect::<Vec<_>>().join("\n")
}

/// The baseline's table and script, in a database of its own.
async fn single_row(stage: &Stage<'_>) -> Result<PathBuf, BenchError> {
    stage.cluster.create(BASELINE_DATABASE).await?;
    stage.cluster.execute(&stage.cluster.database(BASELINE_DATABASE), TABLE).await?;
    let insert = format!("{INSERT} VALUES ({VALUES})\n");
    stage.scratch.file("single.sql", &insert)
}

/// Runs a script on an empty table; transactions a second.
pub(super) async fn pgbench(
    cluster: &Cluster,
    script: &Path,
    clients: usize,
    seconds: u64,
) -> Result<f64, BenchError> {
    pgbench_into(cluster, "facts", script, clients, seconds).await
}

/// [`pgbench`] into another table.
pub(super) async fn pgbench_into(
    cluster: &Cluster,
    table: &str,
    script: &Path,
    clients: usize,
    seconds: u64,
) -> Result<f64, BenchError> {
    cluster.execute(&cluster.database(BASELINE_DATABASE), &format!("TRUNCATE {table}")).await?;
    cluster.pgbench(BASELINE_DATABASE, script, clients, seconds).await
}

/// The peak rate, for a run that did not measure it otherwise.
pub(super) async fn peak(stage: &Stage<'_>) -> Result<f64, BenchError> {
    let mut random = Random::new(4);
    let mut any = || random.of(&stage.seeded.products).0;
    let two: Vec<[Uuid; 2]> = (0..BODIES).map(|_| [any(), any()]).collect();
    let bodies = stage.scratch.file("two.orders", &bodies(&two))?;
    let token = Some(stage.seeded.customer.as_str());
    let run =
        stage.wrk.run(Script::Orders, stage.shop.address, &bodies, token, stage.settings.seconds).await?;
    Ok(run.rate())
}

/// An order with two lines of any products.
pub(super) fn any_order(stage: &Stage<'_>, number: usize) -> client::Call {
    let mut random = Random::new(number as u64);
    let mut any = || random.of(&stage.seeded.products).0;
    let body = bodies(&[[any(), any()]]);
    client::Call::post("/v1/orders", body).token(&stage.seeded.customer).key(Uuid::now_v7().to_string())
}
