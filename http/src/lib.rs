//! What the command and the query service share on the web.
//!
//! | module | what it does |
//! |---|---|
//! | [`problem`] | every error a client can get, as RFC 9457 problems, documented one by one |
//! | [`access`] | signed access tokens: issuing, verifying, roles |
//! | [`revocations`] | sessions that ended before their tokens expired |
//! | [`extract`] | requests parsed at the rim: strict JSON, keys, versions, ids |
//! | [`email`] | e-mail addresses, as accounts are found by them |
//! | [`client`] | who is at the other end, through trusted proxies |
//! | [`front`] | what a process is told: its names, pages that may ask, whom it believes |
//! | [`limits`] | how often an address or an account may ask |
//! | [`layers`] | what every request passes: limits, headers, metrics, panics |
//! | [`metrics`] | the Prometheus registry |
//! | [`server`], `connections`, `pace` | connections: time-outs, bounds, a graceful end |
//! | [`tls`] | TLS, with a certificate that may change |

pub mod access;
pub mod client;
pub mod compression;
mod connections;
pub mod email;
pub mod extract;
mod first_head;
pub mod front;
mod head;
pub mod layers;
pub mod limits;
pub mod metrics;
mod pace;
pub mod problem;
pub mod revocations;
pub mod server;
mod strict;
pub mod tls;

pub use access::{Access, Actor, Issuer, Role};
pub use client::{Client, Proxies};
pub use email::Email;
pub use extract::{Flow, IdempotencyKey, IfMatch, Json, OptionalJson, PathId};
pub use front::{Front, Hosts, Origins};
pub use layers::{HEADERS, Limits, finish};
pub use limits::{Class, RateLimits, Rates, Standing};
pub use problem::{Problem, ProblemKind};
pub use server::{Door, serve};
pub use tls::{Tls, TlsError};
