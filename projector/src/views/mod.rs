//! One projection each.

mod orders;
mod products;
mod stock;

pub use orders::Orders;
pub use products::Products;
pub use stock::Stock;
