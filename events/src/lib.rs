//! What happened: the facts of the shop, and the log that keeps them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`product`], [`stock`], [`order`], [`sku`], [`account`] | one context's events each, pure data |
//! | [`personal`] | personal data, sealed |
//! | [`envelope`] | what every event carries beside its payload |
//! | [`origin`] | where a request came from |
//! | [`audit`] | which events belong into the audit, and which are about security |
//! | [`fact`] | all contexts' events as one type; encoding and decoding |
//! | [`schema`] | versions, upcasters, generated JSON Schemas |
//! | [`value`] | money and currency |
//! | [`stream`] | how streams are named |
//! | [`log`] | the append-only log in PostgreSQL |
//! | [`listener`] | one session that listens in a database, for all of a process |
//! | [`migrations`] | the schemas of databases: made, brought up to date, looked at |
//! | [`ndjson`] | an event as one line of JSON |
//! | [`silence`] | databases that say nothing are given up |
//! | [`planted`] | bugs for the chaos run to find, in test builds |
//!
//! Nothing here depends on another crate of the workspace.

pub mod account;
pub mod audit;
pub mod envelope;
pub mod fact;
pub mod listener;
pub mod log;
pub mod migrations;
pub mod ndjson;
pub mod order;
pub mod origin;
pub mod partition;
pub mod personal;
pub mod planted;
pub mod product;
pub mod schema;
pub mod silence;
pub mod sku;
pub mod stock;
pub mod stream;
pub mod value;

pub use envelope::{Metadata, RecordedEvent};
pub use fact::{DecodeError, Fact};
pub use origin::Origin;
pub use personal::Personal;
pub use value::{Currency, Money};

/// Place of an event in the log: 1 for the first, without gaps. 0 stands for "before everything".
pub type Position = i64;

/// Which history a position belongs to; a restored or promoted log starts a new one. The first is 1, every later one's
/// number is greater than those that were given before, and is never given again.
pub type Epoch = i32;
