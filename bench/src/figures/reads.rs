//! Reads at 64 connections, against a handler that does nothing but return the same bytes.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Stage, orders};
use crate::bare::{self, Bare};
use crate::client::{Answer, Call, POSITION};
use crate::error::BenchError;
use crate::load;
use crate::position::latest;
use crate::report::{Bound, Row};
use crate::seed::Seeded;
use crate::wrk::{CONNECTIONS, Run, Script};

/// Products and orders that are read again and again.
pub(super) const HOT: usize = 2_000;

/// Seconds before what counts, in which every hot id is read.
pub(super) const WARM_UP_SECONDS: u64 = 2;

/// One thing that is read.
struct Read {
    name: &'static str,
    what: String,
    paths: PathBuf,
    token: Option<String>,
    /// An answer of the median length, which the bare handler returns to every request.
    typical: Answer,
    /// The part of the bare handler's rate to reach.
    least: f64,
}

/// The figures of reading.
pub(super) async fn reads(stage: &Stage<'_>) -> Result<Vec<Row>, BenchError> {
    eprintln!("reads");
    let reads = [product(stage).await?, order(stage).await?, list(stage).await?];
    let answers = stage.scratch.folder("answers")?;
    for read in &reads {
        bare::keep(&answers, read.name, &read.typical)?;
    }
    let bare = Bare::start(answers).await?;
    let mut rows = Vec::new();
    for read in reads {
        let run = async |address, seconds| {
            stage.wrk.run(Script::Get, address, &read.paths, read.token.as_deref(), seconds).await
        };
        run(bare.address, WARM_UP_SECONDS).await?;
        run(stage.shop.address, WARM_UP_SECONDS).await?;
        let (mut bare_runs, mut runs) = (Vec::new(), Vec::new());
        for _ in 0..stage.settings.rounds {
            bare_runs.push(run(bare.address, stage.settings.seconds).await?);
            runs.push(run(stage.shop.address, stage.settings.seconds).await?);
        }
        let latencies: Vec<String> = runs.iter().map(Run::describe).collect();
        let bytes = read.typical.body.len();
        let row = Row::new(read.name, read.what, "/s", runs.iter().map(Run::rate).collect())
            .against("bare handler", bare_runs.iter().map(Run::rate).collect())
            .bound(Bound::Ratio(read.least))
            .note(format!("{bytes} bytes; {}", latencies.join("; ")));
        rows.push(row);
    }
    Ok(rows)
}

/// Products that are read again and again, spread over all of them.
pub(super) fn hot_products(seeded: &Seeded) -> Vec<String> {
    let products = &seeded.products;
    let spread = products.iter().step_by((products.len() / HOT).max(1)).take(HOT);
    spread.map(|(id, _)| format!("/v1/products/{id}")).collect()
}

async fn product(stage: &Stage<'_>) -> Result<Read, BenchError> {
    let hot = hot_products(stage.seeded);
    Ok(Read {
        name: "product",
        what: format!("GET /v1/products/{{id}}, {CONNECTIONS} connections, {HOT} hot ids"),
        paths: stage.scratch.file("product.paths", &hot.join("\n"))?,
        token: None,
        typical: typical(stage.shop.address, &hot, None).await?,
        least: 0.75,
    })
}

async fn order(stage: &Stage<'_>) -> Result<Read, BenchError> {
    let token = &stage.seeded.customer;
    let placed = load::closed(stage.shop.address, CONNECTIONS, HOT, async |connection, number| {
        let answer = connection.send(&orders::any_order(stage, number)).await?;
        Ok((answer.header("location")?, answer.header(POSITION)?))
    })
    .await?;
    let (hot, positions): (Vec<_>, Vec<_>) = placed.into_iter().unzip();
    stage.shop.caught_up(Call::get("/v1/orders?limit=1").token(token), latest(&positions)?).await?;
    Ok(Read {
        name: "order",
        what: format!("GET /v1/orders/{{id}} with a token, {CONNECTIONS} connections, {HOT} hot ids"),
        paths: stage.scratch.file("order.paths", &hot.join("\n"))?,
        typical: typical(stage.shop.address, &hot, Some(token)).await?,
        token: Some(token.clone()),
        least: 0.6,
    })
}

async fn list(stage: &Stage<'_>) -> Result<Read, BenchError> {
    let first = vec!["/v1/products?limit=20".to_owned()];
    let typical = typical(stage.shop.address, &first, None).await?;
    let page: serde_json::Value = typical.json()?;
    if page["items"].as_array().is_none_or(|items| items.len() != 20) || page["next_cursor"].is_null() {
        return Err(BenchError::Wrong(format!("the first page of products is {page}")));
    }
    Ok(Read {
        name: "list",
        what: format!("first page of GET /v1/products (20 of {})", stage.seeded.products.len()),
        paths: stage.scratch.file("list.paths", &first.join("\n"))?,
        token: None,
        typical,
        least: 0.5,
    })
}

/// The answer of the median length.
pub(super) async fn typical(
    address: SocketAddr,
    paths: &[String],
    token: Option<&str>,
) -> Result<Answer, BenchError> {
    let mut answers = load::closed(address, 8, paths.len(), async |connection, number| {
        let call = Call::get(paths[number].as_str());
        connection
            .send(&match token {
                Some(token) => call.token(token),
                None => call,
            })
            .await
    })
    .await?;
    answers.sort_by_key(|answer| answer.body.len());
    Ok(answers.swap_remove(answers.len() / 2))
}
