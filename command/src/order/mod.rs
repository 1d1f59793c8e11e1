//! Orders: who bought what at which price, and how far it has come.

mod decider;
pub(crate) mod http;

pub use decider::{
    CancelOrder, DeliverOrder, Line, Order, OrderStatus, PlaceOrder, Requester, ShipOrder, cancel, deliver,
    place, ship,
};

/// The most lines an order may have.
pub const MAX_LINES: usize = 200;
