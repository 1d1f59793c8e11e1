//! What each client asked and was answered: all that the checker believes of the run.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::access::Actor;

/// Something a client wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A product, as a draft.
    Create { sku: String, name: String, price: i64 },
    /// A draft, to be sold.
    Publish { product: Uuid },
    /// Another price.
    Price { product: Uuid, price: i64 },
    /// Units that came in.
    Receive { product: Uuid, quantity: i64 },
    /// An order, of products that differ.
    Place { lines: Vec<(Uuid, i64)> },
    /// An order, called off.
    Cancel { order: Uuid },
    /// An order that left.
    Ship { order: Uuid },
    /// An order that arrived.
    Deliver { order: Uuid },
}

/// The currency of everything here.
pub(crate) const CURRENCY: &str = "EUR";

impl Ask {
    /// Its method and path.
    pub(crate) fn route(&self) -> (reqwest::Method, String) {
        use reqwest::Method;
        match self {
            Self::Create { .. } => (Method::POST, "/v1/products".to_owned()),
            Self::Publish { product } => (Method::PUT, format!("/v1/products/{product}/publication")),
            Self::Price { product, .. } => (Method::PUT, format!("/v1/products/{product}/price")),
            Self::Receive { product, .. } => (Method::POST, format!("/v1/products/{product}/stock-receipts")),
            Self::Place { .. } => (Method::POST, "/v1/orders".to_owned()),
            Self::Cancel { order } => (Method::POST, format!("/v1/orders/{order}/cancellation")),
            Self::Ship { order } => (Method::POST, format!("/v1/orders/{order}/shipment")),
            Self::Deliver { order } => (Method::POST, format!("/v1/orders/{order}/delivery")),
        }
    }

    /// Its body, if it has one.
    pub(crate) fn body(&self) -> Option<Value> {
        let price = |price: &i64| json!({ "amount": price, "currency": CURRENCY });
        match self {
            Self::Create { sku, name, price: amount } => {
                Some(json!({ "sku": sku, "name": name, "price": price(amount) }))
            }
            Self::Price { price: amount, .. } => Some(json!({ "price": price(amount) })),
            Self::Receive { quantity, .. } => Some(json!({ "quantity": quantity })),
            Self::Place { lines } => {
                let line = |(product, quantity): &(Uuid, i64)| json!({ "product_id": product, "quantity": quantity });
                Some(json!({ "lines": lines.iter().map(line).collect::<Vec<_>>() }))
            }
            Self::Publish { .. } | Self::Cancel { .. } | Self::Ship { .. } | Self::Deliver { .. } => None,
        }
    }

    /// For tables.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Publish { .. } => "publish",
            Self::Price { .. } => "price",
            Self::Receive { .. } => "receive",
            Self::Place { .. } => "place",
            Self::Cancel { .. } => "cancel",
            Self::Ship { .. } => "ship",
            Self::Deliver { .. } => "deliver",
        }
    }
}

/// One wish of a client, with all its attempts.
#[derive(Debug, Clone)]
pub(crate) struct Intent {
    /// Its trace, which the log keeps with each of its events; also its idempotency key.
    pub(crate) trace: Uuid,
    /// Who asked.
    pub(crate) actor: Actor,
    /// What was asked.
    pub(crate) ask: Ask,
    /// When it was sent first, since the run began.
    pub(crate) sent: Duration,
    /// When the answer was there, or it was given up.
    pub(crate) done: Duration,
    /// How often it was sent.
    pub(crate) attempts: u32,
    /// How it ended.
    pub(crate) end: End,
}

/// How a wish ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Done, says the shop.
    Accepted(Accepted),
    /// Refused, says the shop; the problem's kind and detail.
    Refused { status: u16, kind: String, detail: String },
    /// No definite answer: either may be true.
    Unknown { last: String },
}

/// What the shop said of what it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// The product or order.
    pub(crate) id: Uuid,
    /// How it stands now.
    pub(crate) status: String,
    /// The version of its stream.
    pub(crate) version: i64,
    /// Which history of the log.
    pub(crate) epoch: i32,
    /// Its last event.
    pub(crate) position: i64,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A product by id.
    Product(Uuid),
    /// A product's stock by id.
    Stock(Uuid),
    /// An order by id.
    Order(Uuid),
    /// A customer's newest orders.
    Orders(Uuid),
    /// The newest products.
    Products,
}

impl Target {
    /// For tables.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Product(_) => "read product",
            Self::Stock(_) => "read stock",
            Self::Order(_) => "read order",
            Self::Orders(_) => "list orders",
            Self::Products => "list products",
        }
    }
}

/// One answered read.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    /// What was asked for.
    pub(crate) target: Target,
    /// The position that the views had to have reached.
    pub(crate) after: Option<i64>,
    /// 200 or 404.
    pub(crate) status: u16,
    /// The entity tag.
    pub(crate) etag: Option<String>,
    /// The body.
    pub(crate) body: Bytes,
}

/// How long somebody who asks all the time waited for one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait {
    /// When it was asked for first.
    pub(crate) from: Duration,
    /// When the answer was there.
    pub(crate) to: Duration,
    /// How many attempts failed before.
    pub(crate) errors: u32,
}

/// What one client, or all together, did and saw.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Commands.
    pub(crate) intents: Vec<Intent>,
    /// Reads that are checked.
    pub(crate) reads: Vec<Read>,
    /// Waits of those who write all the time.
    pub(crate) write_waits: Vec<Wait>,
    /// Waits of those who read all the time.
    pub(crate) read_waits: Vec<Wait>,
    /// How many requests were answered how: by what was asked and the status (or what happened to the connection).
    pub(crate) answers: BTreeMap<(&'static str, String), u64>,
    /// Requests sent again.
    pub(crate) retries: u64,
    /// Acknowledged commands that were asked for again, with the same key.
    pub(crate) repeated: u64,
    /// Answers that must not be, in words.
    pub(crate) wrong: Vec<String>,
}

impl History {
    /// Adds another client's.
    pub(crate) fn join(&mut self, other: Self) {
        self.intents.extend(other.intents);
        self.reads.extend(other.reads);
        self.write_waits.extend(other.write_waits);
        self.read_waits.extend(other.read_waits);
        for (what, count) in other.answers {
            *self.answers.entry(what).or_default() += count;
        }
        self.retries += other.retries;
        self.repeated += other.repeated;
        self.wrong.extend(other.wrong);
    }

    /// Commands that were acknowledged.
    pub(crate) fn accepted(&self) -> impl Iterator<Item = (&Intent, &Accepted)> {
        self.intents.iter().filter_map(|intent| match &intent.end {
            End::Accepted(accepted) => Some((intent, accepted)),
            _ => None,
        })
    }
}
