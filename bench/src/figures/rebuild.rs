//! The orders view built anew from the log, beside the live one.

use std::time::Instant;

use serde_json::json;
use uuid::Uuid;

use super::{Settings, replay};
use crate::client::{Call, Connection, POSITION};
use crate::error::BenchError;
use crate::position::number;
use crate::process;
use crate::report::{Bound, Row};
use crate::shop::Shop;

/// The figure of rebuilding: the whole command, its start, its indexes and the switch included.
pub(super) async fn rebuild(settings: &Settings, shop: &Shop, staff: &str) -> Result<Vec<Row>, BenchError> {
    eprintln!("rebuild");
    let head = head(shop, staff).await?;
    let analyst = shop.token("analyst", Uuid::now_v7()).await?;
    let mut of_orders = 0_u64;
    replay::lines(shop, &Call::get("/v1/events?category=order").token(&analyst), |_| {
        of_orders += 1;
        Ok(())
    })
    .await?;
    let mut rates = Vec::new();
    for _ in 0..settings.rounds {
        let begin = Instant::now();
        process::output(shop.command(["rebuild", "orders"])).await?;
        rates.push(head as f64 / begin.elapsed().as_secs_f64());
    }
    let row = Row::new("rebuild", "rebuild of the orders view", "events/s", rates)
        .bound(Bound::Above(150_000.0))
        .note(format!(
            "from a log of {head} events, {of_orders} of them of orders; the whole command, from its start to the \
             switch"
        ));
    Ok(vec![row])
}

/// Where the log stands: the position of an event that is written to find out.
pub(super) async fn head(shop: &Shop, staff: &str) -> Result<i64, BenchError> {
    number(&mark(shop, staff).await?)
}

/// Writes an event and returns its `Tidemark-Position`.
pub(super) async fn mark(shop: &Shop, staff: &str) -> Result<String, BenchError> {
    let key = Uuid::now_v7();
    let product = json!({
        "sku": format!("MARK-{key}"), "name": "Mark", "price": { "amount": 1, "currency": "EUR" }
    });
    let call = Call::post("/v1/products", product.to_string()).token(staff).key(key.to_string());
    Connection::open(shop.address).await?.send(&call).await?.header(POSITION)
}
