//! The shop as many processes, as `make cluster` starts it, beside the one process: nothing else runs meanwhile but
//! the other, which idles.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use futures_util::future::try_join_all;
use serde::Deserialize;
use tidemark_views::body::Kind;
use tidemark_views::tier::{Tier, TierError};
use uuid::Uuid;

use super::reads::{WARM_UP_SECONDS, hot_products, typical};
use super::{Stage, orders};
use crate::bare::{self, Bare};
use crate::catalog::sku_of;
use crate::client::{Call, Connection};
use crate::error::BenchError;
use crate::load;
use crate::random::Random;
use crate::report::{Bound, Row};
use crate::seed::{self, Seeded, receipt};
use crate::stats::Latencies;
use crate::whole::Whole;
use crate::wrk::{CONNECTIONS, Run, Script};

/// Orders a second while it is measured how soon they are in Redis, and how many of them are looked for.
const STEADY: f64 = 2_000.0;
const PROBES: f64 = 50.0;

/// Seconds of orders that are not counted.
const WARM_UP_ORDERS_SECONDS: u64 = 10;

/// How often it is looked for: what looks costs the same two cores, and this much is the figure too high at most.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long an order may take to be in Redis before the figure counts as broken.
const IN_REDIS_WITHIN: Duration = Duration::from_secs(10);

/// Tiers of bodies, as metrics name them.
const REDIS: &str = "tier=\"redis\"";
const MEMORY: &str = "tier=\"process\"";

/// The cluster, filled.
struct Parts<'a> {
    stage: &'a Stage<'a>,
    whole: Whole,
    seeded: Seeded,
}

/// The figures of many processes.
pub(super) async fn processes(stage: &Stage<'_>) -> Result<Vec<Row>, BenchError> {
    eprintln!("the shop as many processes");
    let folder = stage.scratch.folder("whole")?;
    let whole = Whole::start(stage.shop.program(), &folder).await?;
    let token = async |role| whole.token(role).await;
    let seeded = seed::fill(
        whole.address("command-1")?,
        whole.address("query-1")?,
        token,
        stage.settings.data.as_deref(),
    )
    .await?;
    let parts = Parts { stage, whole, seeded };
    let mut rows = Vec::new();
    if let Some(data) = &stage.settings.data {
        rows.push(parts.baskets(data).await?);
    }
    rows.extend(parts.reads().await?);
    rows.extend(parts.orders().await?);
    rows.push(parts.in_redis().await?);
    Ok(rows)
}

impl Parts<'_> {
    /// Products from a query service's memory, against the one process; from Redis, against a bare handler.
    async fn reads(&self) -> Result<Vec<Row>, BenchError> {
        let stage = self.stage;
        let (query, embedded) = (self.whole.address("query-1")?, stage.shop.address);
        let (from_redis, _running) = self.whole.query_without_memory().await?;
        let (hot, hot_there) = (hot_products(&self.seeded), hot_products(stage.seeded));
        let answers = stage.scratch.folder("answers-of-parts")?;
        bare::keep(&answers, "product", &typical(query, &hot, None).await?)?;
        let bare = Bare::start(answers).await?;
        let paths = stage.scratch.file("parts.paths", &hot.join("\n"))?;
        let paths_there = stage.scratch.file("parts.there.paths", &hot_there.join("\n"))?;
        let places =
            [(bare.address, &paths), (embedded, &paths_there), (query, &paths), (from_redis, &paths)];
        let run = async |(address, paths): (SocketAddr, &PathBuf), seconds| {
            stage.wrk.run(Script::Get, address, paths, None, seconds).await
        };
        for place in places {
            run(place, WARM_UP_SECONDS).await?;
        }
        let mut rates = [const { Vec::new() }; 4];
        let before = counted(from_redis, REDIS).await?;
        for _ in 0..stage.settings.rounds {
            for (place, rates) in places.into_iter().zip(&mut rates) {
                rates.push(run(place, stage.settings.seconds).await?.rate());
            }
        }
        let after = counted(from_redis, REDIS).await?;
        let [bare, embedded, query, from_redis] = rates;
        let what = "GET /v1/products/{id} through `query`, from its memory, no nginx";
        Ok(vec![
            Row::new("query", what, "/s", query).against("one process", embedded).bound(Bound::Ratio(0.9)),
            Row::new("from-redis", "the same without its memory, from Redis", "/s", from_redis)
                .against("bare handler", bare)
                .bound(Bound::Ratio(0.35))
                .note(format!("of {} reads {} came from Redis", after.1 - before.1, after.0 - before.0)),
        ])
    }

    /// Orders through one command service, two, and three, with everything behind them, against the one process.
    async fn orders(&self) -> Result<Vec<Row>, BenchError> {
        let stage = self.stage;
        let hot = self.seeded.products[0].0;
        let one = self.whole.address("command-1")?;
        let (third, _running) = self.whole.command().await?;
        let all = [one, self.whole.address("command-2")?, third];
        load::closed(one, 1, 20, async |connection, _| {
            connection.send(&receipt(hot, &self.seeded.staff)).await
        })
        .await?;
        let bodies = |name: &str, seeded: &Seeded| {
            let mut random = Random::new(4);
            let mut any = || random.of(&seeded.products[1..]).0;
            let two: Vec<[Uuid; 2]> = (0..4_096).map(|_| [any(), any()]).collect();
            stage.scratch.file(name, &orders::bodies(&two))
        };
        let (here, there) = (bodies("parts.orders", &self.seeded)?, bodies("there.orders", stage.seeded)?);
        let only = stage.scratch.file("parts.only.orders", &orders::bodies(&[[hot, hot]]))?;
        let run = async |address, bodies: &Path, seeded: &Seeded| {
            let token = Some(seeded.customer.as_str());
            stage.wrk.run(Script::Orders, address, bodies, token, stage.settings.seconds).await
        };
        let together = async |count: usize, bodies: &Path| {
            let runs = all[..count].iter().map(|&address| run(address, bodies, &self.seeded));
            let runs: Vec<Run> = try_join_all(runs).await?;
            Ok::<_, BenchError>(runs.iter().map(Run::rate).sum::<f64>())
        };
        // The broker's machine compiles its code while it runs: what it does in the first seconds is no measure.
        stage
            .wrk
            .run(Script::Orders, one, &here, Some(&self.seeded.customer), WARM_UP_ORDERS_SECONDS)
            .await?;
        let mut rates = [const { Vec::new() }; 6];
        let mut latencies = Vec::new();
        for _ in 0..stage.settings.rounds {
            let alone = run(one, &here, &self.seeded).await?;
            latencies.push(alone.describe());
            let round = [
                run(stage.shop.address, &there, stage.seeded).await?.rate(),
                alone.rate(),
                together(2, &here).await?,
                together(3, &here).await?,
                run(one, &only, &self.seeded).await?.rate(),
                together(2, &only).await?,
            ];
            for (rates, rate) in rates.iter_mut().zip(round) {
                rates.push(rate);
            }
        }
        let [embedded, alone, two, three, alone_only, two_only] = rates;
        Ok(vec![
            Row::new(
                "cluster-orders",
                "orders in the cluster, publishing to Kafka, views and Redis fed",
                "/s",
                alone.clone(),
            )
            .against("one process", embedded)
            .bound(Bound::Ratio(0.5))
            .note(latencies.join("; ")),
            Row::new("two-services", "the same through two command services at once", "/s", two)
                .against("through one", alone.clone())
                .bound(Bound::Ratio(0.55))
                .note("no error of any kind: one would break the figure off"),
            Row::new("three-services", "the same through three", "/s", three).against("through one", alone),
            Row::new("two-services-one-sku", "through two, every order for one SKU", "/s", two_only)
                .against("through one", alone_only)
                .bound(Bound::Ratio(0.55)),
        ])
    }

    /// How soon an order is in Redis, at a steady rate.
    async fn in_redis(&self) -> Result<Row, BenchError> {
        let stage = self.stage;
        let address = self.whole.address("command-1")?;
        let redis = |error: TierError| BenchError::Wrong(error.to_string());
        let tier = Tier::new(&self.whole.redis_url()?).map_err(redis)?;
        let connection = tier.connect().await.map_err(redis)?;
        let seconds = stage.settings.seconds as f64;
        let order = |number: usize| {
            let mut random = Random::new(number as u64);
            let mut any = || random.of(&self.seeded.products).0;
            Call::post("/v1/orders", orders::bodies(&[[any(), any()]]))
                .token(&self.seeded.customer)
                .key(Uuid::now_v7().to_string())
        };
        let (mut p99s, mut notes) = (Vec::new(), Vec::new());
        for _ in 0..stage.settings.rounds {
            let place = async |connection: &mut Connection, number: usize| {
                connection.send(&order(number)).await.map(drop)
            };
            let look = async |placing: &mut Connection, number: usize| {
                let placed: Placed = placing.send(&order(number)).await?.json()?;
                let (answered, mut connection) = (Instant::now(), connection.clone());
                while answered.elapsed() < IN_REDIS_WITHIN {
                    let standing = connection.standing().await.map_err(redis)?;
                    if let Some(standing) = standing {
                        let found = connection.get(&standing.generation, Kind::Order, placed.id).await;
                        if found.map_err(redis)?.is_some() {
                            return Ok(answered.elapsed());
                        }
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(BenchError::Wrong(format!("order {} did not come to Redis", placed.id)))
            };
            let (rate, total) = (STEADY - PROBES, ((STEADY - PROBES) * seconds) as usize);
            let (_, seen) = tokio::try_join!(
                load::open(address, CONNECTIONS, rate, total, place),
                load::open(address, 16, PROBES, (PROBES * seconds) as usize, look),
            )?;
            let seen = Latencies::new(seen.into_iter().map(|(_, seen)| seen).collect());
            p99s.push(seen.percentile(99.0));
            notes.push(seen.describe());
        }
        let what = format!("an order's answer until it is in Redis, at {STEADY:.0} orders/s, p99");
        let mut row = Row::new("in-redis", what, "ms", p99s).bound(Bound::Below(250.0));
        row.notes = notes;
        Ok(row)
    }

    /// Products in the order of real baskets, from a service that knows none of them yet.
    async fn baskets(&self, data: &Path) -> Result<Row, BenchError> {
        let ids: std::collections::HashMap<&str, Uuid> =
            self.seeded.products.iter().map(|(id, product)| (product.sku.as_str(), *id)).collect();
        let path = data.join("basket_lines.csv.gz");
        let file = File::open(&path).map_err(BenchError::io(format!("opening {}", path.display())))?;
        let lines = csv::Reader::from_reader(GzDecoder::new(file)).into_deserialize::<Line>();
        let read: Vec<String> = lines
            .filter_map(|line| {
                Some(format!("/v1/products/{}", ids.get(sku_of(&line.ok()?.product_id).as_str())?))
            })
            .collect();
        let query = self.whole.address("query-1")?;
        let before = counted(query, MEMORY).await?;
        load::closed(query, CONNECTIONS, read.len(), async |connection, number| {
            connection.send(&Call::get(read[number].as_str())).await.map(drop)
        })
        .await?;
        let after = counted(query, MEMORY).await?;
        let (hits, all) = (after.0 - before.0, after.1 - before.1);
        Ok(Row::new(
            "basket-hits",
            "of products in the order of real baskets, from memory",
            "%",
            vec![hits / all * 100.0],
        )
        .bound(Bound::Above(90.0))
        .note(format!("all {} lines of the year, from an empty memory of 64 MiB", read.len())))
    }
}

#[derive(Debug, Deserialize)]
struct Placed {
    id: Uuid,
}

#[derive(Debug, Deserialize)]
struct Line {
    product_id: String,
}

/// The hits of a tier, and all requests to it.
async fn counted(address: SocketAddr, tier: &str) -> Result<(f64, f64), BenchError> {
    let page = Connection::open(address).await?.send(&Call::get("/metrics")).await?;
    let text = String::from_utf8_lossy(&page.body);
    let (mut hits, mut all) = (0.0, 0.0);
    for line in
        text.lines().filter(|line| line.starts_with("tidemark_cache_requests_total{") && line.contains(tier))
    {
        let count: f64 = line.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0.0);
        all += count;
        if line.contains("outcome=\"hit\"") {
            hits += count;
        }
    }
    Ok((hits, all))
}
