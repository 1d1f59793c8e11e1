//! One projection each.

mod audit;
mod orders;
mod products;
mod stock;

pub use audit::Audit;
pub use orders::Orders;
pub use products::Products;
pub use stock::Stock;
