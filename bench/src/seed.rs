//! Fills a shop over its own API: every product created, published, and received into stock.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::catalog::{self, NewProduct};
use crate::client::{Call, POSITION};
use crate::error::BenchError;
use crate::load;
use crate::position::latest;
use crate::shop::{self, Shop};
use crate::wrk::CONNECTIONS;

/// Products of one batch; the limit is 1,000.
const BATCH: usize = 500;

/// The most units one receipt may bring.
pub(crate) const MOST_UNITS: i64 = 1_000_000;

/// A shop's products and who may do what in it.
#[derive(Debug)]
pub(crate) struct Seeded {
    /// Everything on offer, with its id.
    pub(crate) products: Vec<(Uuid, NewProduct)>,
    /// A token that may do what the staff does.
    pub(crate) staff: String,
    /// A customer's token.
    pub(crate) customer: String,
    /// A token that may read the log.
    pub(crate) analyst: String,
}

#[derive(Debug, Deserialize)]
struct BatchAnswer {
    items: Vec<ItemAnswer>,
}

#[derive(Debug, Deserialize)]
struct ItemAnswer {
    id: Option<Uuid>,
}

/// Fills the shop and waits until its views show it.
pub(crate) async fn seed(shop: &Shop, data: Option<&Path>) -> Result<Seeded, BenchError> {
    fill(shop.address, shop.address, async |role| shop.token(role, Uuid::now_v7()).await, data).await
}

/// Fills the shop that takes commands at one address, and waits until its views show it at another.
pub(crate) async fn fill(
    address: SocketAddr,
    reads: SocketAddr,
    token: impl AsyncFn(&'static str) -> Result<String, BenchError>,
    data: Option<&Path>,
) -> Result<Seeded, BenchError> {
    let new = catalog::products(data)?;
    eprintln!("filling the shop with {} products", new.len());
    let (staff, customer, analyst) =
        (token("staff").await?, token("customer").await?, token("analyst").await?);
    let batches: Vec<&[NewProduct]> = new.chunks(BATCH).collect();
    let created = load::closed(address, 4, batches.len(), async |connection, number| {
        let body =
            serde_json::to_vec(&json!({ "items": batches[number] })).map_err(BenchError::json("a batch"))?;
        let call = Call::post("/v1/products/batch", body).token(&staff).key(Uuid::now_v7().to_string());
        let answer: BatchAnswer = connection.send(&call).await?.json()?;
        Ok(answer.items)
    })
    .await?;
    let ids: Option<Vec<Uuid>> = created.into_iter().flatten().map(|item| item.id).collect();
    let ids = ids.ok_or_else(|| BenchError::Wrong("a product of a batch was refused".to_owned()))?;
    if ids.iter().collect::<HashSet<_>>().len() != new.len() {
        return Err(BenchError::Wrong(format!("{} products have {} ids", new.len(), ids.len())));
    }
    load::closed(address, CONNECTIONS, ids.len(), async |connection, number| {
        connection.send(&Call::put(format!("/v1/products/{}/publication", ids[number])).token(&staff)).await
    })
    .await?;
    let positions = load::closed(address, CONNECTIONS, ids.len(), async |connection, number| {
        connection.send(&receipt(ids[number], &staff)).await?.header(POSITION)
    })
    .await?;
    shop::caught_up(reads, Call::get("/v1/products?limit=1"), latest(&positions)?).await?;
    Ok(Seeded { products: ids.into_iter().zip(new).collect(), staff, customer, analyst })
}

/// Receives as many units of a product as one receipt may bring.
pub(crate) fn receipt(product: Uuid, staff: &str) -> Call {
    let body = json!({ "quantity": MOST_UNITS }).to_string();
    Call::post(format!("/v1/products/{product}/stock-receipts"), body)
        .token(staff)
        .key(Uuid::now_v7().to_string())
}
