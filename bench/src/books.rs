//! Whether what was fast was also right: the orders that were acknowledged, those in the log, the units they took
//! and the units that are missing from stock must agree.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::client::{Call, POSITION};
use crate::error::BenchError;
use crate::load;
use crate::position::number;
use crate::seed::Seeded;
use crate::shop::Shop;
use crate::wrk::CONNECTIONS;

/// One order of so many is read back from its view.
const READ_BACK_EVERY: u64 = 1_000;

/// The books at the beginning of an order run.
#[derive(Debug)]
pub(crate) struct Books {
    products: Vec<Uuid>,
    available: Vec<i64>,
    position: i64,
    acknowledged: u64,
    unanswered: u64,
}

#[derive(Debug, Deserialize)]
struct Available {
    available: i64,
}

#[derive(Debug, Deserialize)]
struct OrderView {
    id: Uuid,
    status: String,
}

/// What is looked at of a line of the log.
#[derive(Debug, Deserialize)]
struct Event<'a> {
    stream_id: Uuid,
    event_type: &'a str,
    payload: Placed,
}

#[derive(Debug, Deserialize)]
struct Placed {
    lines: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    product_id: Uuid,
    quantity: i64,
}

impl Books {
    /// Notes what is available of the products that will be ordered, and where the log stands.
    pub(crate) async fn open(shop: &Shop, seeded: &Seeded, products: Vec<Uuid>) -> Result<Self, BenchError> {
        // An order of its own tells where the log stands. It comes before what is noted.
        let position = order(shop, seeded, products[0]).await?;
        let available = available(shop, &products, &position).await?;
        Ok(Self { products, available, position: number(&position)?, acknowledged: 0, unanswered: 0 })
    }

    /// Orders that were answered with success, and how many more may have been placed without their answers having
    /// been read: wrk closes its connections when its time is over.
    pub(crate) fn add(&mut self, acknowledged: u64, unanswered: u64) {
        self.acknowledged += acknowledged;
        self.unanswered += unanswered;
    }

    /// Compares; returns what agrees as a text.
    pub(crate) async fn close(mut self, shop: &Shop, seeded: &Seeded) -> Result<String, BenchError> {
        let position = order(shop, seeded, self.products[0]).await?;
        self.add(1, 0);
        let orders = Call::get("/v1/orders?limit=1").token(&seeded.customer);
        let behind = shop.caught_up(orders, &position).await?;

        let (mut placed, mut units, mut sample) = (0, HashMap::<Uuid, i64>::new(), Vec::new());
        let from = self.position + 1;
        let log = Call::get(format!("/v1/events?from={from}&type=OrderPlaced")).token(&seeded.analyst);
        crate::figures::replay::lines(shop, &log, |line| {
            let event: Event<'_> =
                serde_json::from_slice(line).map_err(BenchError::json("a line of the log"))?;
            if event.event_type != "OrderPlaced" {
                return Err(BenchError::Wrong(format!("asked for OrderPlaced, got {}", event.event_type)));
            }
            if placed % READ_BACK_EVERY == 0 {
                sample.push(event.stream_id);
            }
            placed += 1;
            for line in event.payload.lines {
                *units.entry(line.product_id).or_default() += line.quantity;
            }
            Ok(())
        })
        .await?;

        let most = self.acknowledged + self.unanswered;
        if !(self.acknowledged..=most).contains(&placed) {
            return Err(BenchError::Wrong(format!(
                "{} orders were acknowledged (and up to {} more unread), the log has {placed}",
                self.acknowledged, self.unanswered
            )));
        }
        let now = available(shop, &self.products, &position).await?;
        for ((product, before), now) in self.products.iter().zip(&self.available).zip(now) {
            let ordered = units.remove(product).unwrap_or(0);
            if before - now != ordered {
                return Err(BenchError::Wrong(format!(
                    "{ordered} units of {product} were ordered, its stock went from {before} to {now}"
                )));
            }
        }
        if let Some(product) = units.keys().next() {
            return Err(BenchError::Wrong(format!("{product} was ordered, and nobody asked for it")));
        }
        load::closed(shop.address, CONNECTIONS, sample.len(), async |connection, number| {
            let id = sample[number];
            let call = Call::get(format!("/v1/orders/{id}")).token(&seeded.customer).after(&position);
            let view: OrderView = connection.send(&call).await?.json()?;
            if view.id == id && view.status == "placed" {
                Ok(())
            } else {
                Err(BenchError::Wrong(format!("order {id} is shown as {view:?}")))
            }
        })
        .await?;
        Ok(format!(
            "the books agree: {} orders acknowledged, {placed} in the log, their units are what {} stocks lost, \
             {} read back from the view; views caught up {:.1} s after the last order",
            self.acknowledged,
            self.products.len(),
            sample.len(),
            behind.as_secs_f64()
        ))
    }
}

/// Places an order and returns its `Tidemark-Position`.
async fn order(shop: &Shop, seeded: &Seeded, product: Uuid) -> Result<String, BenchError> {
    let body = json!({ "lines": [{ "product_id": product, "quantity": 1 }] }).to_string();
    let call = Call::post("/v1/orders", body).token(&seeded.customer).key(Uuid::now_v7().to_string());
    let mut positions = load::closed(shop.address, 1, 1, async |connection, _| {
        connection.send(&call).await?.header(POSITION)
    })
    .await?;
    positions.pop().ok_or_else(|| BenchError::Wrong("no order was placed".to_owned()))
}

/// What is available of each product, from views that stand at `position`.
async fn available(shop: &Shop, products: &[Uuid], position: &str) -> Result<Vec<i64>, BenchError> {
    shop.caught_up(Call::get("/v1/products?limit=1"), position).await?;
    load::closed(shop.address, CONNECTIONS, products.len(), async |connection, number| {
        let call = Call::get(format!("/v1/products/{}", products[number])).after(position);
        let view: Available = connection.send(&call).await?.json()?;
        Ok(view.available)
    })
    .await
}
