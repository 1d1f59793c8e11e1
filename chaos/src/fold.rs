//! What the log adds up to, written down a second time: every state that each product, stock and order ever had.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::log::Event;

/// All states of the shop.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    /// By product.
    pub(crate) products: BTreeMap<Uuid, Product>,
    /// By product.
    pub(crate) stocks: BTreeMap<Uuid, Vec<Stock>>,
    /// By order.
    pub(crate) orders: BTreeMap<Uuid, Order>,
    /// What the staff did, by position: what of it follows from something else is left out.
    pub(crate) acts: BTreeMap<i64, String>,
    /// Events that do not fit what was before them.
    pub(crate) wrong: Vec<String>,
}

/// A product's states.
#[derive(Debug)]
pub(crate) struct Product {
    pub(crate) created_position: i64,
    pub(crate) states: Vec<ProductState>,
}

/// A product from one event to the next.
#[derive(Debug, Clone)]
pub(crate) struct ProductState {
    pub(crate) position: i64,
    pub(crate) version: i64,
    pub(crate) sku: String,
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) department: Option<String>,
    pub(crate) amount: i64,
    pub(crate) currency: String,
    pub(crate) status: &'static str,
}

/// A stock from one event to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stock {
    pub(crate) position: i64,
    pub(crate) version: i64,
    pub(crate) received: i64,
    pub(crate) adjusted: i64,
    pub(crate) reserved: i64,
    pub(crate) shipped: i64,
}

/// An order's states.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) customer: Uuid,
    lines: Value,
    total: Value,
    placed_at: Value,
    pub(crate) states: Vec<OrderState>,
}

/// An order from one event to the next.
#[derive(Debug, Clone, Default)]
pub(crate) struct OrderState {
    pub(crate) position: i64,
    pub(crate) version: i64,
    pub(crate) status: &'static str,
    /// Members of the body that came with it or before it.
    more: Vec<(&'static str, Value)>,
}

/// The newest of some states that stood at a position.
pub(crate) fn at<T>(states: &[T], position: i64, of: impl Fn(&T) -> i64) -> Option<&T> {
    let behind = states.partition_point(|state| of(state) <= position);
    states.get(behind.checked_sub(1)?)
}

impl Stock {
    /// Units that can be promised.
    pub(crate) fn available(&self) -> i64 {
        self.received + self.adjusted - self.reserved - self.shipped
    }

    /// The body of a product's stock.
    pub(crate) fn body(&self, product: Uuid) -> Value {
        json!({
            "product_id": product, "received": self.received, "adjusted": self.adjusted, "reserved": self.reserved,
            "shipped": self.shipped, "available": self.available(), "version": self.version,
        })
    }
}

impl ProductState {
    /// The body of a product with this much of it available.
    pub(crate) fn body(&self, id: Uuid, available: i64) -> Value {
        json!({
            "id": id, "sku": self.sku, "name": self.name, "description": self.description,
            "department": self.department, "price": { "amount": self.amount, "currency": self.currency },
            "available": available, "status": self.status, "version": self.version,
        })
    }
}

impl Order {
    /// The body of the order in one of its states.
    pub(crate) fn body(&self, id: Uuid, state: &OrderState) -> Value {
        let mut body = json!({
            "id": id, "customer_id": self.customer, "status": state.status, "lines": self.lines,
            "total": self.total, "placed_at": self.placed_at, "version": state.version,
        });
        for (name, value) in &state.more {
            body[*name] = value.clone();
        }
        body
    }
}

/// Whether somebody of the shop did it, and meant it.
fn is_act(event: &Event) -> bool {
    let follows = ["StockReserved", "StockReleased", "StockShipped"].contains(&event.kind.as_str());
    event.category != "sku" && !follows && !event.actor.starts_with("customer:")
}

/// An act as the audit has it, written out.
fn act(event: &Event) -> String {
    let Event { kind, stream, version, partition_key, actor, correlation, recorded_at, .. } = event;
    let origin = event.origin.as_deref().unwrap_or_default();
    format!("{kind} {partition_key} {stream} {version} {actor} {origin} {correlation} {recorded_at:?}")
}

impl Fold {
    /// Folds the log, in the order of its positions.
    pub(crate) fn of(events: &[Event]) -> Self {
        let mut fold = Self::default();
        for event in events {
            if is_act(event) {
                fold.acts.insert(event.position, act(event));
            }
            if let Err(why) = fold.take(event) {
                fold.wrong.push(format!("{} at {}: {why}", event.kind, event.position));
            }
        }
        fold
    }

    fn take(&mut self, event: &Event) -> Result<(), String> {
        let payload: Value = serde_json::from_str(&event.payload).map_err(|error| error.to_string())?;
        match event.category.as_str() {
            "product" => self.product(event, &payload),
            "stock" => self.stock(event, &payload),
            "order" => self.order(event, payload),
            "sku" => Ok(()),
            other => Err(format!("no category {other}")),
        }
    }

    fn product(&mut self, event: &Event, payload: &Value) -> Result<(), String> {
        let text = |name: &str| payload[name].as_str().map(str::to_owned);
        let price = || {
            let amount = payload["price"]["amount"].as_i64().ok_or("no amount")?;
            let currency = payload["price"]["currency"].as_str().ok_or("no currency")?;
            Ok::<_, String>((amount, currency.to_owned()))
        };
        let (position, version) = (event.position, event.version);
        if event.kind == "ProductCreated" {
            let (amount, currency) = price()?;
            let state = ProductState {
                position,
                version,
                sku: text("sku").ok_or("no sku")?,
                name: text("name").ok_or("no name")?,
                description: text("description"),
                department: text("department"),
                amount,
                currency,
                status: "draft",
            };
            let product = Product { created_position: position, states: vec![state] };
            return match self.products.insert(event.stream, product) {
                None => Ok(()),
                Some(_) => Err("there is such a product".to_owned()),
            };
        }
        let states = &mut self.products.get_mut(&event.stream).ok_or("there is no such product")?.states;
        let before = states.last().ok_or("there is no such product")?;
        let mut state = ProductState { position, version, ..before.clone() };
        match event.kind.as_str() {
            "ProductRevised" => {
                state.name = text("name").ok_or("no name")?;
                (state.description, state.department) = (text("description"), text("department"));
            }
            "PriceChanged" => (state.amount, state.currency) = price()?,
            "ProductPublished" => state.status = "published",
            "ProductRetired" => state.status = "retired",
            other => return Err(format!("no type {other}")),
        }
        states.push(state);
        Ok(())
    }

    fn stock(&mut self, event: &Event, payload: &Value) -> Result<(), String> {
        let product: Uuid =
            payload["product_id"].as_str().and_then(|text| text.parse().ok()).ok_or("no product")?;
        let number = |name: &str| payload[name].as_i64().ok_or_else(|| format!("no {name}"));
        let states = self.stocks.entry(product).or_default();
        let before = states.last().copied().unwrap_or_default();
        let mut state = Stock { position: event.position, version: event.version, ..before };
        match event.kind.as_str() {
            "StockReceived" => state.received += number("quantity")?,
            "StockAdjusted" => state.adjusted += number("delta")?,
            "StockReserved" => state.reserved += number("quantity")?,
            "StockReleased" => state.reserved -= number("quantity")?,
            "StockShipped" => {
                state.reserved -= number("quantity")?;
                state.shipped += number("quantity")?;
            }
            other => return Err(format!("no type {other}")),
        }
        states.push(state);
        Ok(())
    }

    fn order(&mut self, event: &Event, mut payload: Value) -> Result<(), String> {
        let (position, version) = (event.position, event.version);
        if event.kind == "OrderPlaced" {
            let order = Order {
                customer: payload["customer_id"]
                    .as_str()
                    .and_then(|text| text.parse().ok())
                    .ok_or("no customer")?,
                lines: payload["lines"].take(),
                total: payload["total"].take(),
                placed_at: payload["placed_at"].take(),
                states: vec![OrderState { position, version, status: "placed", more: Vec::new() }],
            };
            return match self.orders.insert(event.stream, order) {
                None => Ok(()),
                Some(_) => Err("there is such an order".to_owned()),
            };
        }
        let states = &mut self.orders.get_mut(&event.stream).ok_or("there is no such order")?.states;
        let before = states.last().ok_or("there is no such order")?;
        let mut state = OrderState { position, version, ..before.clone() };
        let mut more = |from: &str, name| {
            if !payload[from].is_null() {
                state.more.push((name, payload[from].take()));
            }
        };
        let (expected, status) = match event.kind.as_str() {
            "OrderCancelled" => {
                more("cancelled_at", "cancelled_at");
                more("reason", "cancellation_reason");
                ("placed", "cancelled")
            }
            "OrderShipped" => {
                more("shipped_at", "shipped_at");
                ("placed", "shipped")
            }
            "OrderDelivered" => {
                more("delivered_at", "delivered_at");
                ("shipped", "delivered")
            }
            other => return Err(format!("no type {other}")),
        };
        if state.status != expected {
            return Err(format!("the order is {}", state.status));
        }
        state.status = status;
        states.push(state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{event, received};

    #[test]
    fn states_are_found_as_they_were_at_a_position() {
        let product = Uuid::from_u128(7);
        let fold = Fold::of(&[received(3, 1, product, 5), received(9, 2, product, 4)]);
        let stock =
            |position| at(&fold.stocks[&product], position, |stock| stock.position).map(Stock::available);
        assert_eq!([2, 3, 8, 9, 100].map(stock), [None, Some(5), Some(5), Some(9), Some(9)]);
    }

    #[test]
    fn acts_are_what_the_staff_did_and_meant() {
        let created = event(1, 7, 1, "PriceChanged", json!({}));
        let mut placed = event(2, 8, 1, "OrderPlaced", json!({}));
        placed.actor = "customer:somebody".to_owned();
        let follows = event(4, 9, 1, "StockShipped", json!({}));
        let events = [created, placed, event(3, 8, 2, "OrderShipped", json!({})), follows];
        let fold = Fold::of(&events);
        assert_eq!(fold.acts.keys().copied().collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn an_order_that_is_shipped_cannot_be_cancelled() {
        let placed = json!({
            "customer_id": Uuid::from_u128(5), "lines": [], "total": { "amount": 1, "currency": "EUR" },
            "placed_at": "2026-01-01T00:00:00Z",
        });
        let shipped = event(2, 8, 2, "OrderShipped", json!({ "shipped_at": "2026-01-02T00:00:00Z" }));
        let cancelled = event(3, 8, 3, "OrderCancelled", json!({ "cancelled_at": "2026-01-03T00:00:00Z" }));
        let fold = Fold::of(&[event(1, 8, 1, "OrderPlaced", placed), shipped, cancelled]);
        assert_eq!(fold.wrong, ["OrderCancelled at 3: the order is shipped"]);
        let order = &fold.orders[&Uuid::from_u128(8)];
        assert_eq!(order.body(Uuid::from_u128(8), &order.states[1])["shipped_at"], "2026-01-02T00:00:00Z");
    }
}
