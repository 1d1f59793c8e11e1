//! What may happen: decisions, and how they are asked for.
//!
//! | module | what it does |
//! |---|---|
//! | [`product`], [`stock`], [`order`], [`sku`] | one context each: `decider` (pure) and `http` (routes) |
//! | [`account`] | accounts and sessions, with their secrets and mails |
//! | [`value`] | values that cannot be bad: SKU, name, quantity, price |
//! | [`command`] | every command there is, and who decides it |
//! | [`decision`] | what a decision yields: events, or a rejection |
//! | [`shop`] | the folded states that decisions read |
//! | [`writer`] | the group-commit loop: takes commands, decides under the log's lock, commits, answers |
//! | [`http`] | what all routes share |
//!
//! Deciders know no clock, no randomness and no I/O: time and new ids come with the command.

pub mod account;
pub mod command;
pub mod decision;
pub mod http;
pub mod order;
pub mod product;
pub mod shop;
pub mod sku;
pub mod stock;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod value;
pub mod writer;

pub use command::Command;
pub use decision::{Decision, Rejection};
pub use http::{CommandState, document, routes};
pub use writer::{Answer, CommandError, Request, Writer, WriterConfig};
