//! The PostgreSQL server that the shop's data is on, for baselines on the same server with the same settings.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};
use tidemark_events::log;

use crate::error::BenchError;
use crate::process;

/// Where Debian keeps what is not in the path.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Settings that decide what a commit costs.
const DURABILITY: [&str; 6] = [
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "shared_buffers",
];

/// A PostgreSQL server.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// Of a database that is there already.
    url: String,
    /// Who its files belong to, if they are on this machine and not ours.
    owner: Option<(u32, u32)>,
}

impl Cluster {
    /// The server of a URL.
    pub(crate) fn at(url: &str) -> Result<Self, BenchError> {
        if with_database(url, "postgres").is_none() {
            return Err(BenchError::Wrong("DATABASE_URL must name a database: postgres://…/NAME".to_owned()));
        }
        Ok(Self { url: url.to_owned(), owner: None })
    }

    /// The private server under a shop's data directory, through its socket.
    pub(crate) fn private(data_dir: &Path) -> Result<Self, BenchError> {
        let found = Running::of(data_dir)
            .ok_or_else(|| BenchError::Wrong(format!("no PostgreSQL runs under {}", data_dir.display())))?;
        let Running { port, socket, owner, .. } = found;
        let url = format!("postgresql://tidemark@localhost/tidemark?host={}&port={port}", socket.display());
        // The directory is the shop's, which runs as this program does.
        let shop =
            fs::metadata(data_dir).map_err(BenchError::io(format!("looking at {}", data_dir.display())))?;
        Ok(Self { url, owner: (owner.0 != shop.uid()).then_some(owner) })
    }

    /// The process id of the private server under a data directory, if one runs.
    pub(crate) fn postmaster(data_dir: &Path) -> Option<u32> {
        Running::of(data_dir).map(|running| running.process)
    }

    /// The URL of the shop's database.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The URL of a database on it.
    pub(crate) fn database(&self, name: &str) -> String {
        with_database(&self.url, name).unwrap_or_else(|| self.url.clone())
    }

    /// Options for the connections of the log on a database of it.
    pub(crate) fn log_options(&self, name: &str) -> Result<PgConnectOptions, BenchError> {
        Ok(log::connect_options(&self.database(name))?.disable_statement_logging())
    }

    /// Makes an empty database.
    pub(crate) async fn create(&self, name: &str) -> Result<(), BenchError> {
        self.drop_database(name).await?;
        self.execute(&self.url, &format!("CREATE DATABASE {name}")).await
    }

    /// Removes a database and whoever is still connected to it.
    pub(crate) async fn drop_database(&self, name: &str) -> Result<(), BenchError> {
        self.execute(&self.url, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await
    }

    /// Runs one statement, made by this program, in a database of it.
    pub(crate) async fn execute(&self, url: &str, sql: &str) -> Result<(), BenchError> {
        let mut connection = connect(url).await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }

    /// The settings that decide what a commit costs, as one line.
    pub(crate) async fn durability(&self) -> Result<String, BenchError> {
        let mut connection = connect(&self.url).await?;
        let mut settings = Vec::new();
        for name in DURABILITY {
            let row = sqlx::query("SELECT current_setting($1)").bind(name).fetch_one(&mut connection).await?;
            settings.push(format!("{name}={}", row.try_get::<String, _>(0)?));
        }
        connection.close().await?;
        Ok(format!("PostgreSQL: {}", settings.join(", ")))
    }

    /// pgbench on a database of it, as the user that may connect.
    pub(crate) async fn pgbench(
        &self,
        database: &str,
        script: &Path,
        clients: usize,
        seconds: u64,
    ) -> Result<f64, BenchError> {
        let mut command = Command::new(pgbench_program()?);
        command
            .args(["--no-vacuum", "--protocol=prepared"])
            .arg(format!("--client={clients}"))
            .arg(format!("--jobs={}", clients.min(2)))
            .arg(format!("--time={seconds}"))
            .arg("--file")
            .arg(script)
            .arg(self.database(database));
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group).current_dir("/");
        }
        let printed = process::output(command).await?;
        let line = |name: &str| printed.lines().find_map(|line| line.strip_prefix(name));
        let tps = line("tps = ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        let failed = line("number of failed transactions: ").is_some_and(|rest| !rest.starts_with("0 "));
        match tps {
            Some(tps) if !failed => Ok(tps),
            _ => Err(BenchError::Wrong(format!("pgbench did not measure:\n{printed}"))),
        }
    }
}

async fn connect(url: &str) -> Result<PgConnection, BenchError> {
    Ok(log::connect_options(url)?.disable_statement_logging().connect().await?)
}

/// `url` with another database in its path.
fn with_database(url: &str, name: &str) -> Option<String> {
    let authority = url.find("://")? + 3;
    let path = authority + url[authority..].find('/')?;
    let parameters = url[path..].find('?').map_or("", |at| &url[path + at..]);
    Some(format!("{}/{name}{parameters}", &url[..path]))
}

/// What a server tells in its `postmaster.pid`.
struct Running {
    process: u32,
    port: u16,
    socket: PathBuf,
    owner: (u32, u32),
}

impl Running {
    /// The file lies in the cluster's directory: `postgres` under the data directory, or a folder of it.
    fn of(data_dir: &Path) -> Option<Self> {
        let folder = data_dir.join("postgres");
        let below = fs::read_dir(&folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let path = std::iter::once(folder.clone())
            .chain(below)
            .map(|folder| folder.join("postmaster.pid"))
            .find(|path| path.exists())?;
        let metadata = fs::metadata(&path).ok()?;
        let text = fs::read_to_string(&path).ok()?;
        let mut lines = text.lines();
        // Its lines: process, data directory, start time, port, socket directory, listen address, …
        Some(Self {
            process: lines.next()?.trim().parse().ok()?,
            port: lines.nth(2)?.trim().parse().ok()?,
            socket: PathBuf::from(lines.next()?.trim()),
            owner: (metadata.uid(), metadata.gid()),
        })
    }
}

/// pgbench, from the path or from where Debian keeps it.
fn pgbench_program() -> Result<PathBuf, BenchError> {
    let in_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
        std::env::split_paths(&path).map(|folder| folder.join("pgbench")).collect::<Vec<_>>()
    });
    let versions = fs::read_dir(DEBIAN).into_iter().flatten();
    let installed = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin/pgbench")));
    in_path.chain(installed).find(|program| program.exists()).ok_or_else(|| {
        BenchError::Wrong("pgbench is missing; Debian: apt install postgresql-contrib".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_can_lead_to_another_database() {
        let other = |url| with_database(url, "other");
        assert_eq!(other("postgres://me:pw@host:1/a?b=c").unwrap(), "postgres://me:pw@host:1/other?b=c");
        assert_eq!(other("postgresql://me@/a?host=/run/x").unwrap(), "postgresql://me@/other?host=/run/x");
        assert_eq!(other("postgres://host"), None);
    }
}
