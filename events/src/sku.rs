//! Claims: which product owns a SKU. A claim's stream is named by the value, so two claims meet in one stream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A product took a SKU that was free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SkuClaimed {
    /// The value claimed.
    pub sku: String,
    /// Its owner.
    pub product_id: Uuid,
}

/// Its owner gave it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SkuReleased {
    /// The value released.
    pub sku: String,
    /// Its owner until now.
    pub product_id: Uuid,
}
