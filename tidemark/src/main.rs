//! Tidemark: an event-sourced CQRS commerce backend.
//!
//! One executable; each subcommand is a module.

mod cluster;
mod config;
mod database;
mod import;
mod keys;
mod processes;
mod rebuild;
mod replay;
mod service;
mod token;
mod up;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use config::{Action, Cli};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of wrong or missing configuration.
const MISCONFIGURED: u8 = 2;

/// Why a subcommand ended badly.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The operator has to change something.
    #[error("{0}")]
    Configuration(String),
    /// The private PostgreSQL.
    #[error(transparent)]
    Cluster(#[from] cluster::ClusterError),
    /// The log.
    #[error(transparent)]
    Log(#[from] tidemark_events::log::LogError),
    /// The views.
    #[error(transparent)]
    Views(#[from] tidemark_views::ViewError),
    /// A projection.
    #[error(transparent)]
    Projector(#[from] tidemark_projector::ProjectorError),
    /// A database connection.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    /// Files, sockets, signals.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
}

impl Failure {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io(what, error)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.action {
            Action::Up(options) => up::run(options).await,
            Action::Command(options) => processes::command(options).await,
            Action::Projector(options) => processes::projector(options).await,
            Action::Query(options) => processes::query(options).await,
            Action::Token(options) => token::run(&options),
            Action::Replay(options) => replay::run(options).await,
            Action::Rebuild(options) => rebuild::run(options).await,
            Action::Import(options) => import::run(options).await,
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            ExitCode::from(if matches!(failure, Failure::Configuration(_)) { MISCONFIGURED } else { 1 })
        }
    }
}

/// Text for people, JSON for machines (`TIDEMARK_LOG_FORMAT=json`); `TIDEMARK_LOG` filters by level and module.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("TIDEMARK_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("TIDEMARK_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
    }
}
