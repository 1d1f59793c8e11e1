//! What may happen to a product's stock: available units never fall below zero.

use serde::{Deserialize, Serialize};
use tidemark_events::fact::StockEvent;
use tidemark_events::stock::{StockAdjusted, StockReceived};
use tidemark_events::{Money, stream};
use uuid::Uuid;

use crate::decision::{Decision, Happened, Rejection};
use crate::shop::{Shop, States};
use crate::value::{Delta, Quantity, Reason};

/// The most units that are counted: what every JSON reader holds exactly.
const MOST: i64 = Money::MAX_AMOUNT;

/// Units of one product.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock {
    /// Ever received.
    pub received: i64,
    /// Sum of all corrections.
    pub adjusted: i64,
    /// Kept for orders that are neither cancelled nor shipped.
    pub reserved: i64,
    /// Ever shipped.
    pub shipped: i64,
}

impl Stock {
    /// Units that can be promised.
    #[must_use]
    pub fn available(&self) -> i64 {
        self.received + self.adjusted - self.reserved - self.shipped
    }

    /// Folds an event in.
    pub fn evolve(&mut self, event: &StockEvent) {
        match event {
            StockEvent::StockReceived(received) => self.received += received.quantity,
            StockEvent::StockAdjusted(adjusted) => self.adjusted += adjusted.delta,
            StockEvent::StockReserved(reserved) => self.reserved += reserved.quantity,
            StockEvent::StockReleased(released) => self.reserved -= released.quantity,
            StockEvent::StockShipped(shipped) => {
                self.reserved -= shipped.quantity;
                self.shipped += shipped.quantity;
            }
        }
    }
}

/// Takes units in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveStock {
    /// Of which product.
    pub product_id: Uuid,
    /// How many.
    pub quantity: Quantity,
}

/// Corrects the count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdjustStock {
    /// Of which product.
    pub product_id: Uuid,
    /// By how many.
    pub delta: Delta,
    /// Why.
    pub reason: Reason,
}

/// Takes units in.
///
/// # Errors
/// `NotFound` when there is no such product, `StockOverflow`.
pub fn receive<S: States>(command: &ReceiveStock, shop: &Shop<'_, S>) -> Result<Decision, Rejection> {
    let id = command.product_id;
    // The stock is asked for first, so that it is known to be needed even while the product is not there yet.
    let stock = shop.stock(id);
    let status = status_of(id, shop)?;
    let quantity = command.quantity.get();
    if stock.received > MOST - quantity {
        return Err(Rejection::StockOverflow { most: MOST });
    }
    Ok(decision(id, status, Happened::to_stock(id, StockReceived { product_id: id, quantity })))
}

/// Corrects the count, but never below what is promised.
///
/// # Errors
/// `NotFound` when there is no such product, `StockBelowZero`, `StockOverflow`.
pub fn adjust<S: States>(command: &AdjustStock, shop: &Shop<'_, S>) -> Result<Decision, Rejection> {
    let id = command.product_id;
    let stock = shop.stock(id);
    let status = status_of(id, shop)?;
    let delta = command.delta.get();
    let available = stock.available();
    if available + delta < 0 {
        return Err(Rejection::StockBelowZero { delta, available });
    }
    if stock.adjusted > MOST - delta {
        return Err(Rejection::StockOverflow { most: MOST });
    }
    let adjusted = StockAdjusted { product_id: id, delta, reason: command.reason.to_string() };
    Ok(decision(id, status, Happened::to_stock(id, adjusted)))
}

fn status_of<S: States>(id: Uuid, shop: &Shop<'_, S>) -> Result<&'static str, Rejection> {
    let product = shop.product(id).ok_or(Rejection::NotFound { kind: "product", id })?;
    Ok(product.status.as_str())
}

fn decision(id: Uuid, status: &'static str, event: Happened) -> Decision {
    Decision { subject: id, stream_id: stream::stock_of(id), status, total: None, events: vec![event] }
}
