//! Inventory: how many units of a product there are, and for whom they are kept.

mod decider;
pub(crate) mod http;

pub use decider::{AdjustStock, ReceiveStock, Stock, adjust, receive};
