//! What may happen to an order: placed → shipped → delivered; cancelled only before it is shipped. Placing reserves
//! every line or none, in one commit.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tidemark_events::fact::OrderEvent;
use tidemark_events::order::{OrderCancelled, OrderDelivered, OrderLine, OrderPlaced, OrderShipped};
use tidemark_events::stock::{StockReleased, StockReserved, StockShipped};
use tidemark_events::{Money, planted, stream};
use uuid::Uuid;

use crate::command::NewId;
use crate::decision::{Decision, Happened, Rejection};
use crate::product::ProductStatus;
use crate::shop::{Shop, States};
use crate::value::{Quantity, Reason};

/// How an order stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderStatus {
    /// Its units are reserved.
    #[default]
    Placed,
    /// Called off.
    Cancelled,
    /// Left the house.
    Shipped,
    /// With its customer.
    Delivered,
}

impl OrderStatus {
    /// Its name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Cancelled => "cancelled",
            Self::Shipped => "shipped",
            Self::Delivered => "delivered",
        }
    }
}

/// What decisions need to know of an order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Who ordered.
    pub customer_id: Uuid,
    /// How it stands.
    pub status: OrderStatus,
    /// Product and units of each line.
    pub lines: Vec<(Uuid, i64)>,
}

impl Order {
    /// Folds an event in.
    pub fn evolve(&mut self, event: &OrderEvent) {
        match event {
            OrderEvent::OrderPlaced(placed) => {
                self.customer_id = placed.customer_id;
                self.lines = placed.lines.iter().map(|line| (line.product_id, line.quantity)).collect();
            }
            OrderEvent::OrderCancelled(_) => self.status = OrderStatus::Cancelled,
            OrderEvent::OrderShipped(_) => self.status = OrderStatus::Shipped,
            OrderEvent::OrderDelivered(_) => self.status = OrderStatus::Delivered,
        }
    }
}

/// One line of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// The product.
    pub product_id: Uuid,
    /// Units.
    pub quantity: Quantity,
}

/// Orders products at the prices of this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceOrder {
    /// The id it gets.
    pub order_id: NewId,
    /// Who orders.
    pub customer_id: Uuid,
    /// 1 to 200 lines; lines of one product are merged.
    pub lines: Vec<Line>,
}

/// Whose wish it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requester {
    /// A customer, who can see own orders only.
    Customer(Uuid),
    /// Somebody who works here.
    Staff,
}

/// Calls an order off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelOrder {
    /// Which order.
    pub order_id: Uuid,
    /// Whose wish it is.
    pub requester: Requester,
    /// Why, if somebody said.
    pub reason: Option<Reason>,
}

/// Says that an order has left the house.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShipOrder {
    /// Which order.
    pub order_id: Uuid,
}

/// Says that an order has reached its customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliverOrder {
    /// Which order.
    pub order_id: Uuid,
}

/// Places an order at the prices of this moment, reserving every line or none.
///
/// # Errors
/// `AlreadyExists`, `UnknownProduct`, `NotForSale`, `MixedCurrencies`, `QuantityOverflow`, `AmountOverflow`,
/// `OutOfStock`.
pub fn place<S: States>(
    command: &PlaceOrder,
    shop: &Shop<'_, S>,
    now: DateTime<Utc>,
) -> Result<Decision, Rejection> {
    let id = command.order_id.get();
    if matches!(command.order_id, NewId::Derived(_)) && shop.order(id).is_some() {
        return Err(Rejection::AlreadyExists { id });
    }
    let wanted = merge(&command.lines)?;
    let (lines, total) = price(&wanted, shop)?;
    let reserved = reserve(id, &wanted, shop)?;
    let mut events = Vec::with_capacity(1 + reserved.len());
    let placed = OrderPlaced { customer_id: command.customer_id, lines, total, placed_at: now };
    events.push(Happened::to_order(id, placed));
    events.extend(reserved);
    Ok(Decision {
        subject: id,
        stream_id: id,
        status: OrderStatus::Placed.as_str(),
        total: Some(total),
        events,
    })
}

/// A product's lines as one, with the index of the first of them.
struct Wanted {
    line: usize,
    product: Uuid,
    quantity: i64,
}

fn merge(lines: &[Line]) -> Result<Vec<Wanted>, Rejection> {
    let mut merged: Vec<Wanted> = Vec::with_capacity(lines.len());
    let mut places: HashMap<Uuid, usize> = HashMap::with_capacity(lines.len());
    for (line, wish) in lines.iter().enumerate() {
        let product = wish.product_id;
        let place = *places.entry(product).or_insert(merged.len());
        if place == merged.len() {
            merged.push(Wanted { line, product, quantity: 0 });
        }
        let wanted = &mut merged[place];
        wanted.quantity += wish.quantity.get();
        if wanted.quantity > Quantity::MAX {
            return Err(Rejection::QuantityOverflow { line, product, most: Quantity::MAX });
        }
    }
    Ok(merged)
}

fn price<S: States>(wanted: &[Wanted], shop: &Shop<'_, S>) -> Result<(Vec<OrderLine>, Money), Rejection> {
    let mut lines = Vec::with_capacity(wanted.len());
    let mut total: Option<Money> = None;
    // Every line is looked at before the first complaint counts, so that all missing streams are known at once.
    let mut complaint = None;
    for &Wanted { line, product, quantity } in wanted {
        match price_line(line, product, quantity, total, shop) {
            Ok((priced, sum)) => {
                total = Some(sum);
                lines.push(priced);
            }
            Err(rejection) => complaint = complaint.or(Some(rejection)),
        }
    }
    match (complaint, total) {
        (None, Some(total)) => Ok((lines, total)),
        (Some(rejection), _) => Err(rejection),
        (None, None) => Err(Rejection::AmountOverflow { line: 0 }),
    }
}

fn price_line<S: States>(
    line: usize,
    product_id: Uuid,
    quantity: i64,
    total: Option<Money>,
    shop: &Shop<'_, S>,
) -> Result<(OrderLine, Money), Rejection> {
    let product = shop.product(product_id).ok_or(Rejection::UnknownProduct { line, product: product_id })?;
    let (ProductStatus::Published, Some(price)) = (product.status, product.price) else {
        return Err(Rejection::NotForSale { line, product: product_id, status: product.status.as_str() });
    };
    let sum = total.unwrap_or(Money { amount: 0, currency: price.currency });
    if sum.currency != price.currency {
        return Err(Rejection::MixedCurrencies { line, product: product_id });
    }
    let overflow = Rejection::AmountOverflow { line };
    let amount = Money::times(price.amount, quantity).ok_or_else(|| overflow.clone())?;
    let sum = Money { amount: Money::plus(sum.amount, amount).ok_or(overflow)?, ..sum };
    Ok((OrderLine { product_id, quantity, unit_price: price.amount, amount }, sum))
}

fn reserve<S: States>(
    order: Uuid,
    wanted: &[Wanted],
    shop: &Shop<'_, S>,
) -> Result<Vec<Happened>, Rejection> {
    let mut reserved = Vec::with_capacity(wanted.len());
    let mut complaint = None;
    for &Wanted { line, product, quantity } in wanted {
        let available = shop.stock(product).available();
        let is_short = available < quantity && !planted::is("stock-unchecked");
        if is_short || planted::sometimes("refusal-invented") {
            complaint =
                complaint.or(Some(Rejection::OutOfStock { line, product, wanted: quantity, available }));
        }
        let event = StockReserved { product_id: product, order_id: order, quantity };
        reserved.push(Happened::to_stock(product, event));
    }
    complaint.map_or(Ok(reserved), Err)
}

/// Calls an order off and releases its units, unless that was done before.
///
/// # Errors
/// `NotFound` (also for another customer's order), `State` once it is shipped.
pub fn cancel<S: States>(
    command: &CancelOrder,
    shop: &Shop<'_, S>,
    now: DateTime<Utc>,
) -> Result<Decision, Rejection> {
    let id = command.order_id;
    let order = shop.order(id).ok_or(Rejection::NotFound { kind: "order", id })?;
    if let Requester::Customer(customer) = command.requester
        && customer != order.customer_id
    {
        return Err(Rejection::NotFound { kind: "order", id });
    }
    let events = match order.status {
        OrderStatus::Cancelled => Vec::new(),
        OrderStatus::Placed => {
            let reason = command.reason.as_ref().map(ToString::to_string);
            let released = order.lines.iter().map(|&(product_id, quantity)| {
                on_stock(shop, product_id, StockReleased { product_id, order_id: id, quantity })
            });
            std::iter::once(Happened::to_order(id, OrderCancelled { reason, cancelled_at: now }))
                .chain(released)
                .collect()
        }
        status @ (OrderStatus::Shipped | OrderStatus::Delivered) => {
            return Err(state(status, "an order is cancelled before it is shipped, or not at all"));
        }
    };
    Ok(decision(id, OrderStatus::Cancelled, events))
}

/// Ships an order, unless that was done before: its units leave the stock.
///
/// # Errors
/// `NotFound`, `State` when it was cancelled or delivered.
pub fn ship<S: States>(
    command: &ShipOrder,
    shop: &Shop<'_, S>,
    now: DateTime<Utc>,
) -> Result<Decision, Rejection> {
    let id = command.order_id;
    let order = shop.order(id).ok_or(Rejection::NotFound { kind: "order", id })?;
    let events = match order.status {
        OrderStatus::Shipped => Vec::new(),
        OrderStatus::Placed => {
            let shipped = order.lines.iter().map(|&(product_id, quantity)| {
                on_stock(shop, product_id, StockShipped { product_id, order_id: id, quantity })
            });
            std::iter::once(Happened::to_order(id, OrderShipped { shipped_at: now })).chain(shipped).collect()
        }
        status @ (OrderStatus::Cancelled | OrderStatus::Delivered) => {
            return Err(state(status, "only a placed order is shipped"));
        }
    };
    Ok(decision(id, OrderStatus::Shipped, events))
}

/// Notes that an order has arrived, unless that was done before.
///
/// # Errors
/// `NotFound`, `State` when it is not on its way.
pub fn deliver<S: States>(
    command: &DeliverOrder,
    shop: &Shop<'_, S>,
    now: DateTime<Utc>,
) -> Result<Decision, Rejection> {
    let id = command.order_id;
    let order = shop.order(id).ok_or(Rejection::NotFound { kind: "order", id })?;
    let events = match order.status {
        OrderStatus::Delivered => Vec::new(),
        OrderStatus::Shipped => vec![Happened::to_order(id, OrderDelivered { delivered_at: now })],
        status @ (OrderStatus::Placed | OrderStatus::Cancelled) => {
            return Err(state(status, "only a shipped order is delivered"));
        }
    };
    Ok(decision(id, OrderStatus::Delivered, events))
}

/// An event for a stock whose stream must be loaded to be written, though its state decides nothing.
fn on_stock<S: States>(
    shop: &Shop<'_, S>,
    product_id: Uuid,
    event: impl Into<tidemark_events::Fact>,
) -> Happened {
    shop.touch(stream::stock_of(product_id));
    Happened::to_stock(product_id, event)
}

fn state(status: OrderStatus, reason: &'static str) -> Rejection {
    Rejection::State { kind: "order", status: status.as_str(), reason }
}

fn decision(id: Uuid, status: OrderStatus, events: Vec<Happened>) -> Decision {
    Decision { subject: id, stream_id: id, status: status.as_str(), total: None, events }
}
