//! Catalog: what is offered, and at which price.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Money;

/// A product came into being as a draft, with a SKU that is its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProductCreated {
    /// Stock keeping unit, unique in the shop.
    pub sku: String,
    /// What shoppers read.
    pub name: String,
    /// A longer text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where in the shop it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub department: Option<String>,
    /// Price of one unit.
    pub price: Money,
}

/// Its texts were written anew; the fields are the whole new texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProductRevised {
    /// What shoppers read.
    pub name: String,
    /// A longer text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where in the shop it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub department: Option<String>,
}

/// One unit costs something else from here on; orders placed before keep their prices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PriceChanged {
    /// The new price of one unit.
    pub price: Money,
}

/// It can be ordered from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProductPublished {}

/// It is no longer offered, and its SKU is free again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProductRetired {}
