//! Which database a subcommand works on: one from outside, or the private one under the data directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};
use tidemark_events::log::{self, Log};
use tidemark_events::migrations::Schema;

use crate::Failure;
use crate::cluster::{self, Cluster};
use crate::config::DataOptions;

/// How long a database from outside may be away at the start before each try is logged again.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How often it may refuse what a URL says: users and databases may be made while this process starts.
const REFUSED_TIMES: u32 = 10;

/// What a URL of a database is to be.
const NO_URL: &str = "a URL of a PostgreSQL, like postgres://user:password@host/database";

/// An open database.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) options: PgConnectOptions,
    pub(crate) data_dir: PathBuf,
    cluster: Option<Cluster>,
}

/// The data directory, made if need be.
pub(crate) fn data_dir(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let made = |path: &Path| {
        fs::create_dir_all(path).and_then(|()| path.canonicalize()).map_err(|error| unwritable(path, &error))
    };
    match given {
        Some(path) => made(path),
        None => made(&default_dir()?),
    }
}

/// Where it is unless told otherwise. PostgreSQL refuses root, so as root its files belong to another user, who must be able
/// to reach them.
pub(crate) fn default_dir() -> Result<PathBuf, Failure> {
    let current = std::env::current_dir().map_err(Failure::io("cannot find the current directory"))?;
    let reached = cluster::others_can_reach(&current);
    Ok(PathBuf::from(if reached { "data" } else { "/var/lib/tidemark" }))
}

/// The data directory, or something in it, cannot be made or written.
pub(crate) fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    let path = path.display();
    Failure::Configuration(format!(
        "TIDEMARK_DATA_DIR (--data-dir): cannot write {path}: {error}; a directory that this user can write is expected"
    ))
}

impl Database {
    /// Opens one that is there, for tools: a shop is not made by looking at it.
    pub(crate) async fn existing(options: &DataOptions) -> Result<Self, Failure> {
        if options.database_url.is_none() {
            let data_dir = match &options.data_dir {
                Some(given) => given.clone(),
                None => default_dir()?,
            };
            if !Cluster::is_in(&data_dir) {
                return Err(Failure::Configuration(format!(
                    "TIDEMARK_DATA_DIR (--data-dir): there is no shop in {}; the directory of `tidemark up` is expected, or \
                     DATABASE_URL",
                    data_dir.display()
                )));
            }
        }
        Self::open(options, false).await
    }

    /// Opens it: for `up` (`exclusive`), a private one must not be in use by another `up`.
    pub(crate) async fn open(options: &DataOptions, exclusive: bool) -> Result<Self, Failure> {
        let data_dir = data_dir(options.data_dir.as_deref())?;
        match &options.database_url {
            Some(options) => {
                wait_for("DATABASE_URL", options).await?;
                Ok(Self { options: options.clone(), data_dir, cluster: None })
            }
            None => {
                let cluster = Cluster::start(&data_dir, exclusive).await?;
                let options = log::with_settings(cluster.options());
                Ok(Self { options, data_dir, cluster: Some(cluster) })
            }
        }
    }

    /// A pool for the log.
    pub(crate) fn pool(&self, connections: u32) -> PgPool {
        pool(&self.options, connections)
    }

    /// Brings both schemas up to date and opens the log.
    pub(crate) async fn log(&self, connections: u32) -> Result<Log, Failure> {
        let pool = self.pool(connections);
        Log::migrate(&pool).await?;
        tidemark_views::migrate(&pool).await?;
        let log = Log::new(pool);
        log.committed(log.head().await?);
        Ok(log)
    }

    /// Stops the private one, if this process started it.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        match self.cluster {
            Some(cluster) => Ok(cluster.stop().await?),
            None => Ok(()),
        }
    }
}

/// A pool for reading the log. Its streams are found by their own index alone: while a partition has no statistics yet,
/// the planner would combine it with the whole index of positions, and a bitmap is the only way to do so.
pub(crate) fn pool(options: &PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(5))
        .test_before_acquire(false)
        .connect_lazy_with(
            options.clone().application_name("tidemark log").options([("enable_bitmapscan", "off")]),
        )
}

/// The options of a URL, or what is expected instead. It may carry a password: the message does not repeat it.
pub(crate) fn url_options(url: &str) -> Result<PgConnectOptions, String> {
    ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
        .then(|| log::connect_options(url).ok())
        .flatten()
        .ok_or_else(|| NO_URL.to_owned())
}

/// The options of a URL of a pooler or a replica. A pooler takes no settings of a session at its beginning.
pub(crate) fn pooled_options(url: &str) -> Result<PgConnectOptions, String> {
    url_options(url)?;
    let parsed: Result<PgConnectOptions, _> = url.parse();
    parsed.map(|options| options.extra_float_digits(None)).map_err(|_| NO_URL.to_owned())
}

/// A database from outside may come up later than this process.
///
/// # Errors
/// [`Failure::Configuration`] where it is there and refuses again and again what the URL says.
pub(crate) async fn wait_for(variable: &str, options: &PgConnectOptions) -> Result<(), Failure> {
    let mut refused = 0;
    while let Err(error) = options.connect().await {
        refused = if is_refused(&error) { refused + 1 } else { 0 };
        if refused == REFUSED_TIMES {
            return Err(Failure::Configuration(format!(
                "{variable}: the database refuses it: {error}; a URL with a user, password, database and sslmode that it \
                 takes is expected"
            )));
        }
        tracing::warn!(%error, "the database of {variable} does not answer, trying again");
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
    }
    Ok(())
}

/// Whether a server that is there does not take what a URL says: its user, its password, its database, its kind of TLS.
fn is_refused(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => true,
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| code.starts_with("28") || code.starts_with("3D"))
        }
        _ => false,
    }
}

/// Waits for a schema that others make, and refuses one that is not as this program needs it: who only reads changes
/// nothing.
pub(crate) async fn wait_for_schema(
    variable: &str,
    options: &PgConnectOptions,
    schema: &Schema,
) -> Result<(), Failure> {
    loop {
        wait_for(variable, options).await?;
        match schema.check(options).await {
            Ok(true) => return Ok(()),
            Ok(false) => tracing::warn!(
                "the database of {variable} has no schema {} yet, which {} makes; trying again",
                schema.name,
                schema.brought_by
            ),
            Err(error) if error.is_misfit() => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "the database of {variable} does not answer, trying again"),
        }
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
    }
}

/// Does what a process begins with on a database from outside, which may come up later than it and go away again at
/// any moment: then it is done anew.
pub(crate) async fn begin_on<T>(
    variable: &str,
    options: &PgConnectOptions,
    work: impl AsyncFn() -> Result<T, Failure>,
) -> Result<T, Failure> {
    loop {
        wait_for(variable, options).await?;
        match work().await {
            Err(error) if is_away(&error) => {
                tracing::warn!(%error, "the database of {variable} went away, beginning anew");
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
            }
            done => return done,
        }
    }
}

/// Whether an error says that the database is not there, and nothing of what was asked of it.
fn is_away(error: &(dyn std::error::Error + 'static)) -> bool {
    // Operator intervention (a shutdown, a crash, a start that is not done yet) and connection exceptions.
    const CLASSES: [&str; 2] = ["57", "08"];
    std::iter::successors(Some(error), |error| error.source()).any(|error| match error.downcast_ref() {
        Some(sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) => true,
        Some(sqlx::Error::Database(error)) => {
            error.code().is_some_and(|code| CLASSES.iter().any(|class| code.starts_with(class)))
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::migrate::MigrateError;
    use tidemark_events::log::LogError;
    use tidemark_events::migrations::SchemaError;

    #[test]
    fn a_database_that_went_away_is_told_from_one_that_refuses() {
        let lost = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(is_away(&Failure::Database(lost())));
        assert!(is_away(&Failure::Log(LogError::Database(lost()))));
        let failed = |error| Failure::Schema(SchemaError::Failed { schema: "log", error });
        assert!(is_away(&failed(MigrateError::Execute(lost()))));
        assert!(!is_away(&failed(MigrateError::VersionMissing(7))));
        assert!(!is_away(&Failure::Configuration("wrong".to_owned())));
    }
}
