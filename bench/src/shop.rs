//! The real thing: `tidemark up` as a process, from its start to its end.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::client::{Call, Connection};
use crate::cluster::Cluster;
use crate::error::BenchError;
use crate::metrics::Histograms;
use crate::process::{self, signal};

/// How long a shop may take to be ready: the first start makes a PostgreSQL cluster.
const START_WITHIN: Duration = Duration::from_secs(120);

/// How long it may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// How long views may take to stand where the log stood.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(600);

/// Rate limits that are counted and never reached: all load comes from one address.
pub(crate) const LIMITS: &str =
    "reads=10000000/s,commands=10000000/s,account=10000000/s,log-in=10000000/s,recovery=10000000/s";

/// The program under test: `given`, or the one beside this program. Under `cargo run` it is built first, so that
/// figures are never those of an older build.
pub(crate) async fn program(given: Option<PathBuf>) -> Result<PathBuf, BenchError> {
    if let Some(given) = given {
        return Ok(given);
    }
    if let Some(cargo) = std::env::var_os("CARGO") {
        eprintln!("building tidemark");
        let mut build = Command::new(cargo);
        build.args(["build", "--package", "tidemark"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        process::output(build).await?;
    }
    let this = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
    let program = this.with_file_name("tidemark");
    if program.exists() {
        Ok(program)
    } else {
        Err(BenchError::Wrong(format!(
            "{} is missing: cargo build --release -p tidemark, or name it with --tidemark",
            program.display()
        )))
    }
}

/// An address that nobody listens on.
pub(crate) async fn free_address() -> Result<SocketAddr, BenchError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    listener.and_then(|listener| listener.local_addr()).map_err(BenchError::io("looking for a free port"))
}

/// A running shop. Stopped when dropped, and its PostgreSQL with it.
#[derive(Debug)]
pub(crate) struct Shop {
    process: Child,
    program: PathBuf,
    data_dir: PathBuf,
    database_url: Option<String>,
    log: PathBuf,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Shop {
    /// Starts a shop with its data in `folder`, or in the database of `database_url`, and waits until it is ready.
    pub(crate) async fn start(
        program: &Path,
        folder: &Path,
        database_url: Option<String>,
    ) -> Result<Self, BenchError> {
        let (data_dir, log) = (folder.join("data"), folder.join("up.log"));
        let address = free_address().await?;
        let said = File::create(&log).map_err(BenchError::io(format!("making {}", log.display())))?;
        let said_too = said.try_clone().map_err(BenchError::io("a second handle of a file"))?;
        let mut command = tidemark(program, &data_dir, database_url.as_deref(), ["up"]);
        command.args(["--listen", &address.to_string()]);
        // A group of its own: Ctrl-C in the terminal reaches this program alone, which then stops the shop.
        command.stdin(Stdio::null()).stdout(said).stderr(said_too).process_group(0);
        let process = command.spawn().map_err(BenchError::io(format!("starting {}", program.display())))?;
        let mut shop = Self { process, program: program.to_owned(), data_dir, database_url, log, address };
        shop.wait_until_ready().await?;
        Ok(shop)
    }

    async fn wait_until_ready(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + START_WITHIN;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(self.ended(&status.to_string()));
            }
            if let Ok(mut connection) = Connection::open(self.address).await
                && connection.send(&Call::get("/readyz")).await.is_ok()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(self.ended(&format!("no readiness after {} s", START_WITHIN.as_secs())))
    }

    fn ended(&self, status: &str) -> BenchError {
        let output = process::end_of(&self.log);
        BenchError::Program { program: "tidemark up".to_owned(), status: status.to_owned(), output }
    }

    /// What it is an instance of.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// What it said last.
    pub(crate) fn last_words(&self) -> String {
        process::end_of(&self.log)
    }

    /// Its process id.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Another command of the program on the same data.
    pub(crate) fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        tidemark(&self.program, &self.data_dir, self.database_url.as_deref(), arguments)
    }

    /// The server that its data is on.
    pub(crate) fn cluster(&self) -> Result<Cluster, BenchError> {
        match &self.database_url {
            Some(url) => Cluster::at(url),
            None => Cluster::private(&self.data_dir),
        }
    }

    /// An access token.
    pub(crate) async fn token(&self, role: &str, subject: Uuid) -> Result<String, BenchError> {
        token(self.command([]), role, subject).await
    }

    /// Waits until `call`, a read, is answered from views that stand at `position`; returns how long that took.
    pub(crate) async fn caught_up(&self, call: Call, position: &str) -> Result<Duration, BenchError> {
        caught_up(self.address, call, position).await
    }

    /// The histograms of one of its metrics, by the label `name`.
    pub(crate) async fn histograms(&self, metric: &str) -> Result<Histograms, BenchError> {
        let answer = Connection::open(self.address).await?.send(&Call::get("/metrics")).await?;
        Ok(Histograms::read(&String::from_utf8_lossy(&answer.body), metric))
    }
}

/// An access token of a shop whose key `tidemark` knows.
pub(crate) async fn token(mut tidemark: Command, role: &str, subject: Uuid) -> Result<String, BenchError> {
    tidemark.args(["token", "--role", role, "--subject", &subject.to_string(), "--ttl", "12h"]);
    Ok(process::output(tidemark).await?.trim().to_owned())
}

/// Waits until `call`, a read, is answered from views that stand at `position`; returns how long that took.
pub(crate) async fn caught_up(
    address: SocketAddr,
    call: Call,
    position: &str,
) -> Result<Duration, BenchError> {
    let call = call.after(position);
    let mut connection = Connection::open(address).await?;
    let begin = Instant::now();
    while begin.elapsed() < CATCH_UP_WITHIN {
        let answer = connection.try_send(&call).await?;
        if answer.status.is_success() {
            return Ok(begin.elapsed());
        }
        if answer.status != StatusCode::SERVICE_UNAVAILABLE {
            connection.send(&call).await?;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(BenchError::Wrong(format!("views did not stand at {position} after {} s", CATCH_UP_WITHIN.as_secs())))
}

fn tidemark<'a>(
    program: &Path,
    data_dir: &Path,
    database_url: Option<&str>,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("TIDEMARK_DATA_DIR", data_dir).env_remove("DATABASE_URL");
    command.env("TIDEMARK_LIMITS", LIMITS).env("TIDEMARK_MAX_CONNECTIONS_OF_ADDRESS", "10000");
    if let Some(url) = database_url {
        command.env("DATABASE_URL", url);
    }
    command
}

impl Drop for Shop {
    fn drop(&mut self) {
        // Before it is told to end: it removes the file that names its PostgreSQL.
        let postmaster = Cluster::postmaster(&self.data_dir);
        signal("TERM", self.process.id());
        let ended = wait_until(STOP_WITHIN, || !matches!(self.process.try_wait(), Ok(None)));
        if !ended {
            eprintln!("the shop did not stop, killing it");
            self.process.kill().ok();
            self.process.wait().ok();
        }
        if let Some(postmaster) = postmaster
            && signal("0", postmaster)
        {
            eprintln!("its PostgreSQL is still there, stopping it");
            signal("INT", postmaster);
            if !wait_until(Duration::from_secs(20), || !signal("0", postmaster)) {
                signal("QUIT", postmaster);
                wait_until(Duration::from_secs(5), || !signal("0", postmaster));
            }
        }
    }
}

fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    done()
}
