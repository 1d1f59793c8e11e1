//! Behaviour across services: the real executable on a real PostgreSQL, spoken to over HTTP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod abuse;
mod access;
mod accounts;
mod api;
mod authorisation;
mod bad_input;
mod broker;
mod configuration;
mod doctor;
mod faults;
mod forgeries;
mod hardening;
mod harness;
mod import;
mod inputs;
mod kafka;
mod lifecycle;
mod limits;
mod log;
mod orders;
mod outcomes;
mod processes;
mod projections;
mod proxy;
mod rebuild;
mod schemas;
mod servers;
mod skip;
mod tiers;
mod tls;
mod views;
