//! What the command and the query service share on the web.
//!
//! | module | what it does |
//! |---|---|
//! | [`problem`] | every error a client can get, as RFC 9457 problems, documented one by one |
//! | [`access`] | signed access tokens: issuing, verifying, roles |
//! | [`extract`] | requests parsed at the rim: strict JSON, keys, versions, ids |
//! | [`layers`] | what every request passes: limits, headers, metrics, panics |
//! | [`metrics`] | the Prometheus registry |
//! | [`server`] | connections: time-outs, bounds, a graceful end |

pub mod access;
pub mod compression;
pub mod extract;
pub mod layers;
pub mod metrics;
pub mod problem;
pub mod server;
mod strict;

pub use access::{Access, Actor, Issuer, Role};
pub use extract::{Flow, IdempotencyKey, IfMatch, Json, OptionalJson, PathId};
pub use layers::{Limits, finish};
pub use problem::{Problem, ProblemKind};
pub use server::serve;
