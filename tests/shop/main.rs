//! Behaviour across services: the real executable on a real PostgreSQL, spoken to over HTTP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod abuse;
mod access;
mod accounts;
mod api;
mod audit;
mod authorisation;
mod bad_input;
mod bounds;
mod broker;
mod browser;
mod configuration;
mod doctor;
mod erasure;
mod faults;
mod forgeries;
mod hardening;
mod harness;
mod import;
mod inputs;
mod kafka;
mod lifecycle;
mod limits;
mod listener;
mod log;
mod orders;
mod outcomes;
mod processes;
mod projections;
mod proxy;
mod rebuild;
mod run;
mod schemas;
mod secrets;
mod servers;
mod skip;
mod tiers;
mod tls;
mod topic;
mod views;
