//! What can go wrong with a measurement.

use std::io;

use axum::http::{Method, StatusCode};
use tidemark_events::log::LogError;

/// Why a figure could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A file, a socket or a program could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program ended with a failure.
    #[error("{program} ended with {status}:\n{output}")]
    Program {
        /// Its name.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        output: String,
    },
    /// A connection broke, or what came over it was not HTTP.
    #[error("a connection to the shop: {0}")]
    Connection(#[from] hyper::Error),
    /// A body broke off.
    #[error("a body from the shop: {0}")]
    Body(#[from] axum::Error),
    /// An answer was not the expected one.
    #[error("{method} {path} was answered with {status}: {body}")]
    Answer {
        /// Of the request.
        method: Method,
        /// Of the request.
        path: String,
        /// Of the answer.
        status: StatusCode,
        /// The beginning of the answer's body.
        body: String,
    },
    /// An answer or a file could not be read.
    #[error("{what} is not the JSON that was expected: {source}")]
    Json {
        /// What was read.
        what: String,
        /// Why it does not fit.
        source: serde_json::Error,
    },
    /// A line of a table of products could not be read.
    #[error("the table of products: {0}")]
    Csv(#[from] csv::Error),
    /// The database that baselines run against.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    /// The log's interface.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It was fast, and wrong.
    #[error("{0}")]
    Wrong(String),
}

impl BenchError {
    /// For `map_err`: what was tried when the I/O error came.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }

    /// For `map_err`: what was read as JSON.
    pub(crate) fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { what: what.into(), source }
    }
}
