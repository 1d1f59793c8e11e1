//! How PostgreSQL and Redis say that they are set up.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

/// How long a server may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A PostgreSQL, as the role of the URL sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Postgres {
    /// Settings by name.
    pub(crate) settings: BTreeMap<String, String>,
    /// Whether the role may do everything.
    pub(crate) is_superuser: bool,
    /// Whether the role may make other roles or databases.
    pub(crate) may_make_roles: bool,
    /// What the role may do with events that are there.
    pub(crate) may_with_events: Vec<String>,
}

/// A Redis.
#[derive(Debug, Clone, Default)]
pub(crate) struct Redis {
    /// Settings by name; empty if they may not be asked for.
    pub(crate) settings: BTreeMap<String, String>,
}

/// The settings that are looked at.
const SETTINGS: [&str; 9] = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "data_checksums",
    "wal_level",
    "archive_mode",
    "password_encryption",
    "server_version_num",
    "log_statement",
];

pub(crate) async fn ask_postgres(url: &str) -> Result<Postgres, String> {
    let asked = async {
        let options: PgConnectOptions = url.parse()?;
        let mut connection = options.application_name("tidemark doctor").connect().await?;
        let read = read(&mut connection).await?;
        connection.close().await?;
        Ok::<_, sqlx::Error>(read)
    };
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())),
    }
}

async fn read(connection: &mut PgConnection) -> Result<Postgres, sqlx::Error> {
    let settings: Vec<(String, String)> =
        sqlx::query_as("SELECT name, setting FROM pg_settings WHERE name = ANY($1)")
            .bind(SETTINGS.as_slice())
            .fetch_all(&mut *connection)
            .await?;
    let (is_superuser, may_make_roles): (bool, bool) = sqlx::query_as(
        "SELECT rolsuper, rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = current_user",
    )
    .fetch_one(&mut *connection)
    .await?;
    // A log that nobody has made yet has nothing that could be changed.
    let may_with_events: Vec<String> = sqlx::query_scalar(
        "SELECT may FROM unnest(ARRAY['UPDATE', 'DELETE', 'TRUNCATE']) may \
         WHERE has_table_privilege(to_regclass('log.events'), may)",
    )
    .fetch_all(connection)
    .await?;
    Ok(Postgres { settings: settings.into_iter().collect(), is_superuser, may_make_roles, may_with_events })
}

pub(crate) async fn ask_redis(url: &str) -> Result<Redis, String> {
    let asked = async {
        let client = redis::Client::open(url)?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let _: String = redis::cmd("PING").query_async(&mut connection).await?;
        // Who may not ask for settings cannot be told about them.
        let settings = redis::cmd("CONFIG").arg("GET").arg("maxmemory*").query_async(&mut connection).await;
        Ok::<_, redis::RedisError>(Redis { settings: settings.unwrap_or_default() })
    };
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())),
    }
}
