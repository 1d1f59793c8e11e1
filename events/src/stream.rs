//! How streams are named.
//!
//! A product's and an order's stream carry the id of the thing itself (UUIDv7). Stock and claims follow from
//! something else, so their ids are UUIDv5 (RFC 9562) of it: whoever knows the product knows its stock's stream.

use uuid::Uuid;

const STOCK: Uuid = Uuid::from_u128(0x6f1d_4f0c_3a86_5d0b_8a55_1f0e_9a7b_0c01);
const SKU: Uuid = Uuid::from_u128(0x6f1d_4f0c_3a86_5d0b_8a55_1f0e_9a7b_0c02);

/// The category of product streams.
pub const PRODUCT: &str = "product";
/// The category of stock streams, one for each product.
pub const STOCK_CATEGORY: &str = "stock";
/// The category of order streams.
pub const ORDER: &str = "order";
/// The category of claims on SKUs, one stream for each SKU ever used.
pub const SKU_CATEGORY: &str = "sku";

/// The stream of a product's stock.
#[must_use]
pub fn stock_of(product_id: Uuid) -> Uuid {
    Uuid::new_v5(&STOCK, product_id.as_bytes())
}

/// The stream that holds who owns a SKU. SKUs differ by every letter and by case.
#[must_use]
pub fn claim_of_sku(sku: &str) -> Uuid {
    Uuid::new_v5(&SKU, sku.as_bytes())
}
