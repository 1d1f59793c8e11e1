//! Orders: who bought what at which price, and how far it has come.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Money;

/// One product of an order, at the price of the moment it was placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderLine {
    /// The product.
    pub product_id: Uuid,
    /// Units, at least 1.
    pub quantity: i64,
    /// Minor units of the order's currency for one unit.
    pub unit_price: i64,
    /// `unit_price × quantity`.
    pub amount: i64,
}

/// A customer ordered; every line's units are reserved in the same commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderPlaced {
    /// Who ordered.
    pub customer_id: Uuid,
    /// 1 to 200 lines, one for each product.
    pub lines: Vec<OrderLine>,
    /// The sum of the lines.
    pub total: Money,
    /// When, by the clock of the command.
    pub placed_at: DateTime<Utc>,
}

/// It was called off before it was shipped; its units are released in the same commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderCancelled {
    /// Why, if somebody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When, by the clock of the command.
    pub cancelled_at: DateTime<Utc>,
}

/// All of it left the house.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderShipped {
    /// When, by the clock of the command.
    pub shipped_at: DateTime<Utc>,
}

/// It reached its customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrderDelivered {
    /// When, by the clock of the command.
    pub delivered_at: DateTime<Utc>,
}
