//! A Redis, a PgBouncer and a streaming replica of the tests' own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::harness::{Postgres, folder, free_port, server_program, until};
use crate::run;

/// A server that is killed, paused and started again.
struct Server(Mutex<Option<Child>>);

impl Server {
    fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn spawn(&self, command: &mut Command) {
        let name = Path::new(command.get_program()).file_name().unwrap().to_string_lossy().into_owned();
        let (words, more) = (run::words(&name).1, run::words(&name).1);
        let child = command.stdin(Stdio::null()).stdout(words).stderr(more).spawn().unwrap();
        *self.0.lock().unwrap() = Some(child);
    }

    fn has_ended(&self) -> bool {
        self.0.lock().unwrap().as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    fn signal(&self, signal: Signal) {
        let id = self.0.lock().unwrap().as_ref().unwrap().id();
        kill_process(Pid::from_raw(id.try_into().unwrap()).unwrap(), signal).unwrap();
    }

    fn kill(&self) {
        if let Some(mut child) = self.0.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) struct Redis {
    folder: TempDir,
    port: u16,
    server: Server,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        let redis = Self { folder: folder(), port: free_port(), server: Server::new() };
        redis.launch().await;
        redis
    }

    /// Starts it, empty, with the settings that the cluster has.
    pub(crate) async fn launch(&self) {
        let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/redis.conf");
        let mut command = Command::new("redis-server");
        command.arg(settings).args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--dir"]);
        self.server.spawn(command.arg(self.folder.path()));
        until("Redis starts", async || self.try_connection().await).await;
    }

    async fn try_connection(&self) -> Option<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_multiplexed_async_connection().await.ok()
    }

    pub(crate) async fn connection(&self) -> redis::aio::MultiplexedConnection {
        self.try_connection().await.unwrap()
    }

    /// The name of the current generation, and the life of the views' server.
    pub(crate) async fn generation(&self) -> Option<String> {
        redis::cmd("GET").arg("tidemark:generation").query_async(&mut self.connection().await).await.unwrap()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kill(&self) {
        self.server.kill();
    }

    pub(crate) fn pause(&self) {
        self.server.signal(Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        self.server.signal(Signal::CONT);
    }
}

/// A streaming replica of a whole PostgreSQL.
pub(crate) struct Replica {
    folder: TempDir,
    server: Server,
}

impl Replica {
    pub(crate) async fn of(primary: &Postgres) -> Self {
        let replica = Self { folder: folder(), server: Server::new() };
        let data = replica.folder.path().join("data");
        let mut copy = server_program("pg_basebackup", replica.folder.path());
        copy.args([
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "-C",
            "-S",
            "replica_1",
            "-d",
            &primary.url("postgres"),
        ]);
        let copied = copy.arg("-D").arg(&data).output().unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        replica.launch().await;
        replica
    }

    pub(crate) async fn launch(&self) {
        let url = self.url("postgres");
        until("the replica starts", async || {
            if self.server.has_ended() {
                let mut command = server_program("postgres", self.folder.path());
                command.arg("-D").arg(self.folder.path().join("data")).arg("-k").arg(self.folder.path());
                self.server.spawn(command.args(["-c", "listen_addresses=", "-c", "max_connections=200"]));
            }
            PgConnection::connect(&url).await.ok()
        })
        .await;
    }

    pub(crate) fn url(&self, database: &str) -> String {
        let socket = self.folder.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://tidemark@{socket}/{database}")
    }

    /// Its files.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn kill(&self) {
        self.server.kill();
    }

    /// What comes from the primary is kept, and not applied.
    pub(crate) async fn replay(&self, goes_on: bool) {
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        let what = if goes_on { "SELECT pg_wal_replay_resume()" } else { "SELECT pg_wal_replay_pause()" };
        sqlx::query(what).execute(&mut connection).await.unwrap();
        if !goes_on {
            until("the replica stands still", async || {
                let state: String = sqlx::query_scalar("SELECT pg_get_wal_replay_pause_state()")
                    .fetch_one(&mut connection)
                    .await
                    .ok()?;
                (state == "paused").then_some(())
            })
            .await;
        }
    }
}

/// A PgBouncer in transaction mode before a primary and a replica, with few connections to each.
pub(crate) struct Bouncer {
    folder: TempDir,
    server: Server,
    port: u16,
}

impl Bouncer {
    /// `views` of both servers is the database `name`.
    pub(crate) async fn before(primary: &Postgres, replica: &Replica, name: &str) -> Self {
        let bouncer = Self { folder: folder(), server: Server::new(), port: free_port() };
        let server =
            |folder: &TempDir| format!("host={} user=tidemark dbname={name}", folder.path().display());
        let settings = format!(
            "[databases]\nviews = {}\nviews_replica = {}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n\
             max_client_conn = 500\nquery_wait_timeout = 2\nserver_login_retry = 1\n",
            server(&primary.folder),
            server(&replica.folder),
            bouncer.port
        );
        std::fs::write(bouncer.folder.path().join("pgbouncer.ini"), settings).unwrap();
        bouncer.launch().await;
        bouncer
    }

    pub(crate) async fn launch(&self) {
        let mut command = server_program("pgbouncer", self.folder.path());
        self.server.spawn(command.arg(self.folder.path().join("pgbouncer.ini")));
        until("PgBouncer starts", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok()
        })
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://tidemark@127.0.0.1:{}/{database}", self.port)
    }

    pub(crate) fn kill(&self) {
        self.server.kill();
    }
}
