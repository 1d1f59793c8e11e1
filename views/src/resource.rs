//! Bodies as they are sent.

use serde::{Deserialize, Serialize};
use tidemark_events::Money;
use utoipa::ToSchema;
use uuid::Uuid;

/// An amount in minor units of a currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Money)]
pub struct Price {
    /// Minor units: 1999 is 19.99 EUR.
    pub amount: i64,
    /// ISO 4217 alphabetic code.
    #[schema(value_type = String)]
    pub currency: tidemark_events::Currency,
}

impl From<Money> for Price {
    fn from(money: Money) -> Self {
        Self { amount: money.amount, currency: money.currency }
    }
}

/// A product with what is available of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProductResource {
    /// Its id.
    pub id: Uuid,
    /// Its SKU.
    pub sku: String,
    /// What shoppers read.
    pub name: String,
    /// A longer text.
    pub description: Option<String>,
    /// Where in the shop it stands.
    pub department: Option<String>,
    /// Price of one unit.
    pub price: Price,
    /// Units that can be promised now.
    pub available: i64,
    /// `draft`, `published` or `retired`.
    pub status: String,
    /// The version of its stream: what `If-Match` is compared with.
    pub version: i64,
}

/// The units of a product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StockResource {
    /// The product.
    pub product_id: Uuid,
    /// Ever received.
    pub received: i64,
    /// Sum of all corrections.
    pub adjusted: i64,
    /// Kept for orders that are neither cancelled nor shipped.
    pub reserved: i64,
    /// Ever shipped.
    pub shipped: i64,
    /// `received + adjusted − reserved − shipped`.
    pub available: i64,
    /// The version of the stock's stream.
    pub version: i64,
}

/// One product of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OrderLineResource {
    /// The product.
    pub product_id: Uuid,
    /// Units.
    pub quantity: i64,
    /// Minor units of the order's currency for one unit, when it was placed.
    pub unit_price: i64,
    /// `unit_price × quantity`.
    pub amount: i64,
}

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OrderResource {
    /// Its id.
    pub id: Uuid,
    /// Who ordered.
    pub customer_id: Uuid,
    /// `placed`, `shipped`, `delivered` or `cancelled`.
    pub status: String,
    /// What was ordered.
    pub lines: Vec<OrderLineResource>,
    /// The sum of the lines.
    pub total: Price,
    /// RFC 3339.
    pub placed_at: chrono::DateTime<chrono::Utc>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_at: Option<chrono::DateTime<chrono::Utc>>,
    /// Why it was called off, if somebody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancellation_reason: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shipped_at: Option<chrono::DateTime<chrono::Utc>>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<chrono::DateTime<chrono::Utc>>,
    /// The version of its stream: what `If-Match` is compared with.
    pub version: i64,
}
