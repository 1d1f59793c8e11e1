//! Tidemark: an event-sourced CQRS commerce backend.
//!
//! One executable; each subcommand is a module.

mod accounts;
mod cluster;
mod config;
mod database;
mod doctor;
mod document;
mod import;
mod keys;
mod processes;
mod rebuild;
mod replay;
mod service;
mod token;
mod up;

use std::io::{ErrorKind, IsTerminal, Write as _};
use std::process::ExitCode;

use config::{Action, Cli, KeysAction, RewrapOptions};
use database::{Database, wait_for};
use sqlx::postgres::PgConnectOptions;
use tidemark_events::log::LogError;
use tidemark_events::migrations::SchemaError;
use tidemark_vault::VaultError;
use tidemark_views::ViewError;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of wrong or missing configuration.
const MISCONFIGURED: u8 = 2;

/// What is logged unless told otherwise.
const DEFAULT_LOG: &str = "info,sqlx=warn";

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
    Log(#[from] LogError),
    /// The views.
    #[error(transparent)]
    Views(#[from] ViewError),
    /// A schema that this program only reads.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A projection.
    #[error(transparent)]
    Projector(#[from] tidemark_projector::ProjectorError),
    /// The keys of personal data.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A database connection.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    /// What `doctor` found, and has printed.
    #[error("{0} findings")]
    Findings(usize),
    /// The log lost its end while it was read.
    #[error("the log has lost its end, and a new epoch began: what was read ends at position {0}")]
    LostEnd(i64),
    /// Something did not come about that may the next time.
    #[error("{0}")]
    NotYet(String),
    /// Files, sockets, signals.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
}

impl Failure {
    /// The exit code: 2 where the operator has to change something before trying again helps, else 1.
    fn code(&self) -> ExitCode {
        let misconfigured = match self {
            Self::Configuration(_) => true,
            Self::Cluster(error) => error.is_configuration(),
            Self::Log(LogError::Schema(error))
            | Self::Views(ViewError::Schema(error))
            | Self::Schema(error) => error.is_misfit(),
            Self::Vault(error) => error.is_configuration(),
            _ => false,
        };
        ExitCode::from(if misconfigured { MISCONFIGURED } else { 1 })
    }

    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io(what, error)
    }
}

fn main() -> ExitCode {
    let read = log_to_stderr().and_then(|()| Cli::read());
    let cli = match read {
        Ok(cli) => cli,
        Err(failure) => {
            tracing::error!("{failure}");
            return failure.code();
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.action {
            Action::Up(options) => up::run(*options).await,
            Action::Command(options) => processes::command(*options).await,
            Action::Projector(options) => processes::projector(*options).await,
            Action::Query(options) => processes::query(*options).await,
            Action::Token(options) => token::run(&options),
            Action::Replay(options) => replay::run(*options).await,
            Action::Rebuild(options) => rebuild::run(*options).await,
            Action::Keys(options) => run_keys(options.action).await,
            Action::Import(options) => import::run(*options).await,
            Action::Doctor(_) => doctor::run().await,
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.code()
        }
    }
}

/// Prints a line that was asked for. Whoever does not read on has enough.
fn tell(line: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Io("cannot write to standard output".to_owned(), error))
        }
        _ => Ok(()),
    }
}

async fn run_keys(action: KeysAction) -> Result<(), Failure> {
    match action {
        KeysAction::Rotate(options) => {
            let (path, id) = keys::rotate(&database::data_dir(options.data_dir.as_deref())?)?;
            tracing::info!(file = %path.display(), kid = id, "a new key: it is known within seconds, and signs after half a minute");
        }
        KeysAction::Rewrap(options) => rewrap(&options).await?,
    }
    Ok(())
}

/// Wraps all keys of personal data anew, where the processes have them: a database that has none is not the one.
async fn rewrap(options: &RewrapOptions) -> Result<(), Failure> {
    let RewrapOptions { log_url, data, vault } = options;
    let named = match (&vault.vault_url, log_url, &data.database_url) {
        (Some(url), ..) => Some(("TIDEMARK_VAULT_URL", url)),
        (None, Some(url), _) => Some(("TIDEMARK_LOG_URL", url)),
        (None, None, Some(url)) => Some(("DATABASE_URL", url)),
        (None, None, None) => None,
    };
    let Some((variable, url)) = named else {
        let database = Database::existing(data).await?;
        let rewrapped = rewrap_in("the shop's own database", &database.options, options).await;
        database.close().await?;
        return rewrapped;
    };
    wait_for(variable, url).await?;
    rewrap_in(variable, url, options).await
}

async fn rewrap_in(name: &str, database: &PgConnectOptions, options: &RewrapOptions) -> Result<(), Failure> {
    if !tidemark_vault::SCHEMA.check(database).await? {
        return Err(Failure::Configuration(format!(
            "{name}: there are no keys of personal data in that database; the one that `tidemark command` or `up` has is expected"
        )));
    }
    let data_dir = || database::data_dir(options.data.data_dir.as_deref());
    let vault = accounts::vault(&options.vault, database, data_dir).await?;
    let rewrapped = vault.rewrap().await?;
    tracing::info!(rewrapped, "keys of personal data are wrapped by the newest master key");
    Ok(())
}

/// Text for people, JSON for machines (`TIDEMARK_LOG_FORMAT=json`); `TIDEMARK_LOG` filters by level and module.
fn log_to_stderr() -> Result<(), Failure> {
    const FORMATS: [&str; 2] = ["text", "json"];
    let (wanted, format) = (std::env::var("TIDEMARK_LOG"), std::env::var("TIDEMARK_LOG_FORMAT"));
    let (wanted, format) =
        (wanted.as_deref().unwrap_or(DEFAULT_LOG), format.as_deref().unwrap_or(FORMATS[0]));
    let filter = EnvFilter::try_new(wanted);
    let wrong = if filter.is_err() {
        Err(format!(
            "TIDEMARK_LOG: {wanted:?} is not a level, or module=level with commas between, like {DEFAULT_LOG}"
        ))
    } else if !FORMATS.contains(&format) {
        Err(format!("TIDEMARK_LOG_FORMAT: {format:?} is not text or json"))
    } else {
        Ok(())
    };
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if format == "json" {
        builder.json().init();
    } else {
        builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init();
    }
    wrong.map_err(Failure::Configuration)
}
