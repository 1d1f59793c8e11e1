//! Inventory: how many units of one product there are, and for whom they are kept.
//!
//! `available = received + adjusted − reserved − shipped`, where `reserved` counts what is kept for orders that
//! are neither cancelled nor shipped.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Units came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StockReceived {
    /// Whose stock.
    pub product_id: Uuid,
    /// Units, at least 1.
    pub quantity: i64,
}

/// A count found more or fewer units than the books.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StockAdjusted {
    /// Whose stock.
    pub product_id: Uuid,
    /// Units added (positive) or taken away (negative), never 0.
    pub delta: i64,
    /// Why.
    pub reason: String,
}

/// Units are kept for an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StockReserved {
    /// Whose stock.
    pub product_id: Uuid,
    /// For which order.
    pub order_id: Uuid,
    /// Units, at least 1.
    pub quantity: i64,
}

/// An order gave its units back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StockReleased {
    /// Whose stock.
    pub product_id: Uuid,
    /// Which order.
    pub order_id: Uuid,
    /// Units, at least 1.
    pub quantity: i64,
}

/// An order's units left the house.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StockShipped {
    /// Whose stock.
    pub product_id: Uuid,
    /// Which order.
    pub order_id: Uuid,
    /// Units, at least 1.
    pub quantity: i64,
}
