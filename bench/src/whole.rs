//! The shop as many processes, as `make cluster` starts it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use uuid::Uuid;

use crate::background::{Background, wait_for};
use crate::error::BenchError;
use crate::{process, shop};

/// Ports that it takes, one after another.
const PORTS: u16 = 15;

/// The cluster. Stopped when dropped.
#[derive(Debug)]
pub(crate) struct Whole {
    program: PathBuf,
    folder: PathBuf,
    first_port: u16,
}

impl Whole {
    /// Starts it with everything under `folder`, and waits until all of it answers.
    pub(crate) async fn start(program: &Path, folder: &Path) -> Result<Self, BenchError> {
        let first_port = free_ports()?;
        let whole = Self { program: program.to_owned(), folder: folder.to_owned(), first_port };
        let mut start = whole.script();
        start.arg("start").arg(program);
        process::output(start).await?;
        Ok(whole)
    }

    fn script(&self) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/cluster"));
        command
            .env("TIDEMARK_CLUSTER_DIR", &self.folder)
            .env("TIDEMARK_CLUSTER_PORT", self.first_port.to_string())
            .env("TIDEMARK_LIMITS", shop::LIMITS);
        command
    }

    /// Where a member listens.
    pub(crate) fn address(&self, member: &str) -> Result<SocketAddr, BenchError> {
        let path = self.folder.join(format!("{member}.port"));
        let text =
            std::fs::read_to_string(&path).map_err(BenchError::io(format!("reading {}", path.display())))?;
        let port = text.trim().parse();
        let port: u16 = port.map_err(|_| BenchError::Wrong(format!("{text:?} is no port")))?;
        Ok((Ipv4Addr::LOCALHOST, port).into())
    }

    /// `tidemark` with the cluster's keys.
    fn tidemark(&self) -> Result<Command, BenchError> {
        let kept = |name: &str| {
            let path = self.folder.join(name);
            std::fs::read_to_string(&path).map_err(BenchError::io(format!("reading {}", path.display())))
        };
        let mut command = Command::new(&self.program);
        command
            .env_remove("DATABASE_URL")
            .env("TIDEMARK_TOKEN_SECRET", kept("secret")?.trim())
            .env("TIDEMARK_MASTER_KEY", kept("master.key")?.trim())
            .env("TIDEMARK_DATA_DIR", self.folder.join("keys"));
        Ok(command)
    }

    /// An access token.
    pub(crate) async fn token(&self, role: &str) -> Result<String, BenchError> {
        shop::token(self.tidemark()?, role, Uuid::now_v7()).await
    }

    /// One more query service, which keeps nothing in its own memory.
    pub(crate) async fn query_without_memory(&self) -> Result<(SocketAddr, Background), BenchError> {
        let mut query = self.tidemark()?;
        query
            .arg("query")
            .env("TIDEMARK_CACHE_MIB", "0")
            .env("TIDEMARK_VIEWS_URL", self.database("postgres-views", "views")?)
            .env("TIDEMARK_VIEWS_POOL_URL", self.database("pgbouncer", "views")?)
            .env("TIDEMARK_REDIS_URL", self.redis_url()?);
        self.one_more(query, "query-without-memory.log").await
    }

    /// One more command service.
    pub(crate) async fn command(&self) -> Result<(SocketAddr, Background), BenchError> {
        let mut command = self.tidemark()?;
        command.arg("command").env("TIDEMARK_KAFKA_BROKERS", self.address("kafka")?.to_string());
        self.one_more(command, "command-3.log").await
    }

    async fn one_more(&self, mut member: Command, log: &str) -> Result<(SocketAddr, Background), BenchError> {
        let address = shop::free_address().await?;
        member
            .args(["--listen", &address.to_string()])
            .env("TIDEMARK_LIMITS", shop::LIMITS)
            .env("TIDEMARK_LOG_URL", self.database("postgres-log", "log")?);
        let running = Background::start(member, &self.folder.join(log))?;
        wait_for(address, std::time::Duration::from_secs(30)).await?;
        Ok((address, running))
    }

    fn database(&self, member: &str, name: &str) -> Result<String, BenchError> {
        Ok(format!("postgres://tidemark@{}/{name}", self.address(member)?))
    }

    /// Redis.
    pub(crate) fn redis_url(&self) -> Result<String, BenchError> {
        Ok(format!("redis://{}", self.address("redis")?))
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        let stopped = self.script().arg("stop").output();
        if !stopped.is_ok_and(|output| output.status.success()) {
            eprintln!("the cluster in {} did not stop", self.folder.display());
        }
    }
}

/// The first of so many ports that nobody listens on.
fn free_ports() -> Result<u16, BenchError> {
    let is_free = |port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let first = (20_000..30_000).step_by(usize::from(PORTS));
    first
        .map(|first: u16| first..first + PORTS)
        .find(|ports| ports.clone().all(is_free))
        .map(|ports| ports.start)
        .ok_or_else(|| BenchError::Wrong(format!("there are no {PORTS} free ports in a row")))
}
