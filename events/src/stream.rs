//! How streams are named.
//!
//! A product's and an order's stream carry the id of the thing itself (UUIDv7). Stock and claims follow from
//! something else, so their ids are UUIDv5 (RFC 9562) of it: whoever knows the product knows its stock's stream.

use uuid::Uuid;

const STOCK: Uuid = Uuid::from_u128(0x6f1d_4f0c_3a86_5d0b_8a55_1f0e_9a7b_0c01);
const SKU: Uuid = Uuid::from_u128(0x6f1d_4f0c_3a86_5d0b_8a55_1f0e_9a7b_0c02);

const EMAIL: Uuid = Uuid::from_u128(0x6f1d_4f0c_3a86_5d0b_8a55_1f0e_9a7b_0c03);

/// The category of product streams.
pub const PRODUCT: &str = "product";
/// The category of stock streams, one for each product.
pub const STOCK_CATEGORY: &str = "stock";
/// The category of order streams.
pub const ORDER: &str = "order";
/// The category of claims on SKUs, one stream for each SKU ever used.
pub const SKU_CATEGORY: &str = "sku";

/// The category of account streams.
pub const ACCOUNT: &str = "account";
/// The category of session streams, one for each log-in.
pub const SESSION: &str = "session";
/// The category of claims on e-mail addresses, one stream for each address ever used.
pub const EMAIL_CATEGORY: &str = "email";

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

/// The stream that holds who owns an e-mail address, by a keyed hash of the address: whoever has no key cannot tell
/// which address it is.
#[must_use]
pub fn claim_of_email(keyed_hash: &[u8]) -> Uuid {
    Uuid::new_v5(&EMAIL, keyed_hash)
}
