//! Starts what the tests speak to: one PostgreSQL for all of them, a database for each, and shops.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tempfile::TempDir;
use tokio::process::Child;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::run::{self, Program};

/// A directory that the user who runs PostgreSQL can reach, too.
pub(crate) fn folder() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Waits until something holds.
pub(crate) async fn until<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        if let Some(value) = holds().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} did not happen within a minute");
}

/// A PostgreSQL server of the tests' own.
pub(crate) struct Postgres {
    pub(crate) folder: TempDir,
    server: std::sync::Mutex<Option<std::process::Child>>,
    /// Settings beside those that all have.
    settings: std::sync::Mutex<Vec<String>>,
}

static SHARED: Mutex<Weak<Postgres>> = Mutex::const_new(Weak::new());

impl Postgres {
    /// The one that tests share as long as any of them needs it.
    pub(crate) async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let own = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&own);
        own
    }

    /// One for a test that stops it.
    pub(crate) async fn start() -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        let mut init = server_program("initdb", folder.path());
        init.args(["-U", "tidemark", "-A", "trust", "-E", "UTF8", "--locale=C", "-D"]).arg(&data);
        assert!(init.output().unwrap().status.success(), "initdb");
        let postgres =
            Self { folder, server: std::sync::Mutex::new(None), settings: std::sync::Mutex::default() };
        postgres.launch().await;
        postgres
    }

    /// Starts the server, waiting out recovery.
    pub(crate) async fn launch(&self) {
        let url = self.url("postgres");
        until("PostgreSQL starts", async || {
            let ended = match self.server.lock().unwrap().as_mut() {
                Some(server) => server.try_wait().unwrap().is_some(),
                None => true,
            };
            if ended {
                // Also when it did not start because processes of the killed one were not quite gone.
                *self.server.lock().unwrap() = Some(self.spawn());
            }
            PgConnection::connect(&url).await.ok()
        })
        .await;
    }

    fn spawn(&self) -> std::process::Child {
        use std::os::unix::process::CommandExt;
        let mut command = server_program("postgres", self.folder.path());
        command.arg("-D").arg(self.folder.path().join("data")).arg("-k").arg(self.folder.path());
        for setting in ["listen_addresses=", "max_connections=200", "shared_buffers=64MB", "fsync=on"] {
            command.args(["-c", setting]);
        }
        for setting in self.settings.lock().unwrap().iter() {
            command.args(["-c", setting]);
        }
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(run::words("postgres").1)
            .spawn()
            .unwrap()
    }

    /// kill -9 of the server and all its processes.
    pub(crate) fn kill(&self) {
        if let Some(mut server) = self.server.lock().unwrap().take() {
            // A backend is the leader of a group of its own, and would otherwise end what it has in hand.
            let found =
                std::process::Command::new("pgrep").args(["-P", &server.id().to_string()]).output().unwrap();
            let group = rustix::process::Pid::from_raw(server.id().try_into().unwrap()).unwrap();
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
            for backend in String::from_utf8(found.stdout).unwrap().lines() {
                let backend = rustix::process::Pid::from_raw(backend.parse().unwrap()).unwrap();
                rustix::process::kill_process(backend, rustix::process::Signal::KILL).ok();
            }
            server.wait().unwrap();
        }
    }

    /// Ends the server in order, without waiting for its clients.
    pub(crate) fn stop(&self) {
        if let Some(mut server) = self.server.lock().unwrap().take() {
            let pid = rustix::process::Pid::from_child(&server);
            rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
            server.wait().unwrap();
        }
    }

    /// Speaks TLS from here on, and nothing else, at a port of localhost.
    pub(crate) async fn speak_tls(&self, certificate: &Path, key: &Path) -> u16 {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let (data, port) = (self.folder.path().join("data"), free_port());
        let owner = std::fs::metadata(&data).unwrap();
        for (from, name) in [(certificate, "server.crt"), (key, "server.key")] {
            let to = data.join(name);
            std::fs::copy(from, &to).unwrap();
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        std::fs::write(data.join("pg_hba.conf"), "local all all trust\nhostssl all all 127.0.0.1/32 trust\n")
            .unwrap();
        let settings = ["listen_addresses=127.0.0.1".to_owned(), format!("port={port}"), "ssl=on".to_owned()];
        self.settings.lock().unwrap().extend(settings);
        self.stop();
        *self.server.lock().unwrap() = Some(self.spawn());
        port
    }

    /// Copies the files of the stopped server: a replica that stands where it stood.
    pub(crate) fn copy_as_replica(&self) {
        let (data, replica) = (self.folder.path().join("data"), self.folder.path().join("replica"));
        let copied = std::process::Command::new("cp").arg("-a").arg(data).arg(&replica).status().unwrap();
        assert!(copied.success());
        // The mode alone tells a server that it is one; its owner is the folder's.
        std::fs::copy(replica.join("PG_VERSION"), replica.join("standby.signal")).unwrap();
        let owner = std::fs::metadata(self.folder.path()).unwrap();
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::chown(replica.join("standby.signal"), Some(owner.uid()), Some(owner.gid()))
            .unwrap();
    }

    /// Puts the replica, or a copy of it, in the place of the stopped server.
    pub(crate) fn put_replica_in_place(&self) {
        let (data, replica) = (self.folder.path().join("data"), self.folder.path().join("replica"));
        std::fs::remove_dir_all(&data).unwrap();
        let copied = std::process::Command::new("cp").arg("-a").arg(replica).arg(&data).status().unwrap();
        assert!(copied.success());
    }

    /// Puts the files back as they were when they were copied: nothing tells the server that time has passed.
    pub(crate) fn put_files_back(&self) {
        self.put_replica_in_place();
        std::fs::remove_file(self.folder.path().join("data").join("standby.signal")).unwrap();
    }

    pub(crate) fn url(&self, database: &str) -> String {
        let socket = self.folder.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://tidemark@{socket}/{database}")
    }

    /// A new database.
    pub(crate) async fn database(&self) -> String {
        let name = format!("test_{}", Uuid::now_v7().simple());
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        self.url(&name)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program of PostgreSQL's or PgBouncer, run by somebody who is not root.
pub(crate) fn server_program(name: &str, folder: &Path) -> std::process::Command {
    use std::os::unix::process::CommandExt;
    let mut places: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path().join("bin"))
        .collect();
    places.sort();
    places.extend([
        "/opt/homebrew/bin".into(),
        "/usr/local/bin".into(),
        "/usr/sbin".into(),
        "/usr/bin".into(),
    ]);
    let program = places.into_iter().rev().map(|place| place.join(name)).find(|path| path.exists()).unwrap();
    let mut command = std::process::Command::new(program);
    command.current_dir("/").env("LC_ALL", "C");
    let is_root =
        std::fs::read_to_string("/proc/self/status").is_ok_and(|text| text.contains("\nUid:\t0\t0"));
    if is_root {
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let line = users.lines().find(|line| line.starts_with("postgres:")).unwrap();
        let ids: Vec<u32> = line.split(':').skip(2).take(2).map(|id| id.parse().unwrap()).collect();
        std::os::unix::fs::chown(folder, Some(ids[0]), Some(ids[1])).unwrap();
        command.uid(ids[0]).gid(ids[1]);
    }
    command
}

/// A running `tidemark up`.
pub(crate) struct Shop {
    pub(crate) base: String,
    pub(crate) url: String,
    pub(crate) data: Arc<TempDir>,
    pub(crate) process: Child,
    pub(crate) client: reqwest::Client,
    pub(crate) staff: String,
    pub(crate) customer: String,
    /// What it says.
    pub(crate) words: PathBuf,
    _postgres: Option<Arc<Postgres>>,
}

impl Drop for Shop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let words = std::fs::read_to_string(&self.words).unwrap_or_default();
            let last = words.lines().rev().take(40).collect::<Vec<_>>();
            eprintln!("{}:", self.words.display());
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

pub(crate) const CUSTOMER: &str = "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c01";
pub(crate) const SECRET: &str = "a secret of the tests, 32 bytes or more";
/// So that shops on one database can open what the others seal.
pub(crate) const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// `tidemark` with the tests' secret.
pub(crate) fn tidemark() -> Program {
    run::secret(SECRET);
    run::secret(MASTER_KEY);
    let mut program = Program::new(env!("CARGO_BIN_EXE_tidemark"));
    program
        .env_remove("DATABASE_URL")
        .env("TIDEMARK_TOKEN_SECRET", SECRET)
        .env("TIDEMARK_MASTER_KEY", MASTER_KEY)
        // All tests come from one address; those that are about limits set their own.
        .env("TIDEMARK_LIMITS", "reads=off,commands=off,account=off,log-in=off,recovery=off")
        .env("TIDEMARK_LOG", "warn");
    program
}

/// `tidemark` with the EdDSA key under its data directory.
pub(crate) fn tidemark_with_key() -> Program {
    let mut program = tidemark();
    program.env_remove("TIDEMARK_TOKEN_SECRET");
    program
}

/// A token of a role, for a subject.
pub(crate) async fn token(role: &str, subject: &str) -> String {
    issued(tidemark(), &std::env::temp_dir(), role, subject).await
}

/// The same, by the key that the program is told of.
pub(crate) async fn issued(mut program: Program, data: &Path, role: &str, subject: &str) -> String {
    program.args(["token", "--role", role, "--subject", subject, "--data-dir"]).arg(data);
    let output = program.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    run::secret(&token);
    token
}

impl Shop {
    /// On a database of its own in the shared server.
    pub(crate) async fn open() -> Self {
        let postgres = Postgres::shared().await;
        let url = postgres.database().await;
        let mut shop = Self::on(&url).await;
        shop._postgres = Some(postgres);
        shop
    }

    /// On a database that is there.
    pub(crate) async fn on(url: &str) -> Self {
        let data = Arc::new(folder());
        let dir = data.path().to_str().unwrap().to_owned();
        Self::launch("up", url, data, &[("DATABASE_URL", url), ("TIDEMARK_DATA_DIR", &dir)]).await
    }

    /// On a database of its own, with the key that it makes under its data directory.
    pub(crate) async fn with_its_own_key() -> Self {
        let postgres = Postgres::shared().await;
        let url = postgres.database().await;
        let data = Arc::new(folder());
        let dir = data.path().to_str().unwrap().to_owned();
        let settings = [("DATABASE_URL", url.as_str()), ("TIDEMARK_DATA_DIR", &dir)];
        let mut shop = Self::launch_by(tidemark_with_key, "up", &url, data, &settings).await;
        shop._postgres = Some(postgres);
        shop
    }

    /// One part of it as a process of its own.
    pub(crate) async fn part(name: &str, log: &str, settings: &[(&str, &str)]) -> Self {
        let data = Arc::new(folder());
        let dir = data.path().to_str().unwrap().to_owned();
        let settings = [&[("TIDEMARK_LOG_URL", log), ("TIDEMARK_DATA_DIR", dir.as_str())], settings].concat();
        Self::launch(name, log, data, &settings).await
    }

    async fn launch(name: &str, url: &str, data: Arc<TempDir>, settings: &[(&str, &str)]) -> Self {
        Self::launch_by(tidemark, name, url, data, settings).await
    }

    async fn launch_by(
        program: fn() -> Program,
        name: &str,
        url: &str,
        data: Arc<TempDir>,
        settings: &[(&str, &str)],
    ) -> Self {
        let port = free_port();
        let (process, words) = program()
            .args([name, "--listen", &format!("127.0.0.1:{port}")])
            .envs(settings.iter().copied())
            .spawn_with_words()
            .unwrap();
        let mut shop = Self {
            base: format!("http://127.0.0.1:{port}"),
            url: url.to_owned(),
            data,
            process,
            client: reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap(),
            staff: String::new(),
            customer: String::new(),
            words,
            _postgres: None,
        };
        shop.ready().await;
        // The key is there once the shop is open.
        let data = shop.data.path();
        shop.staff = issued(program(), data, "staff", "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c0f").await;
        shop.customer = issued(program(), data, "customer", CUSTOMER).await;
        shop
    }

    pub(crate) async fn ready(&self) {
        until("the shop opens", async || {
            let answer = self.client.get(format!("{}/readyz", self.base)).send().await.ok()?;
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
    }

    pub(crate) async fn pool(&self) -> PgPool {
        PgPoolOptions::new().max_connections(3).connect(&self.url).await.unwrap()
    }

    /// The same, its data in another directory that it was told of.
    pub(crate) fn with_data(mut self, data: TempDir) -> Self {
        self.data = Arc::new(data);
        self
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.id().unwrap().try_into().unwrap()
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> reqwest::Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = token {
            run::secret(token);
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            run::secrets_in(&body);
            request = request.json(&body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        // Whole replays hold no secrets, and would take long.
        if path.starts_with("/v1/accounts") || path.starts_with("/v1/sessions") {
            run::secrets_in(&body);
        }
        Ok(Answer { status, headers, body, text })
    }

    pub(crate) async fn get(&self, path: &str, token: Option<&str>, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::GET, path, token, headers, None).await.unwrap()
    }

    /// POST by the staff, with a key of its own.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        let key = Uuid::now_v7().to_string();
        self.send(Method::POST, path, Some(&self.staff), &[("Idempotency-Key", &key)], Some(body))
            .await
            .unwrap()
    }

    pub(crate) async fn put(&self, path: &str, body: Option<Value>) -> Answer {
        self.send(Method::PUT, path, Some(&self.staff), &[], body).await.unwrap()
    }

    /// A published product with stock.
    pub(crate) async fn product(&self, sku: &str, units: i64) -> String {
        let price = json!({ "amount": 1_999, "currency": "EUR" });
        let made = self
            .post("/v1/products", json!({ "sku": sku, "name": format!("Thing {sku}"), "price": price }))
            .await;
        assert_eq!(made.status, 201, "{}", made.text);
        let id = made.body["id"].as_str().unwrap().to_owned();
        assert_eq!(self.put(&format!("/v1/products/{id}/publication"), None).await.status, 200);
        if units > 0 {
            let received =
                self.post(&format!("/v1/products/{id}/stock-receipts"), json!({ "quantity": units })).await;
            assert_eq!(received.status, 201, "{}", received.text);
        }
        id
    }

    /// The customer's order of some units of a product, under a key.
    pub(crate) async fn order(&self, product: &str, units: i64, key: &str) -> reqwest::Result<Answer> {
        let body = json!({ "lines": [{ "product_id": product, "quantity": units }] });
        self.send(Method::POST, "/v1/orders", Some(&self.customer), &[("Idempotency-Key", key)], Some(body))
            .await
    }

    /// Where every view stands no lower than the log.
    pub(crate) async fn caught_up(&self) {
        let pool = self.pool().await;
        until("the views catch up", async || {
            let behind: Option<bool> = sqlx::query_scalar(
                "SELECT bool_or(c.position < h.position) FROM views.checkpoints c \
                 JOIN views.projections p USING (name, instance), log.head h WHERE p.state = 'live'",
            )
            .fetch_one(&pool)
            .await
            .ok()?;
            (behind == Some(false)).then_some(())
        })
        .await;
    }
}

/// What the shop answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The last part of the problem's type.
    pub(crate) fn problem(&self) -> &str {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        self.body["type"].as_str().unwrap().rsplit('/').next().unwrap()
    }
}

/// Everything that must hold of any log: positions without gaps, versions without gaps, no stock below zero at any
/// point, and the views equal to what the log adds up to.
pub(crate) async fn audit(pool: &PgPool) {
    let (count, head): (i64, i64) =
        sqlx::query_as("SELECT count(*), (SELECT position FROM log.head) FROM log.events")
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!(count, head, "positions have no gap");
    let none = |sql: &'static str| async move {
        let found: i64 = sqlx::query_scalar(sql).fetch_one(pool).await.unwrap();
        assert_eq!(found, 0, "{sql}");
    };
    none("SELECT count(*) FROM (SELECT version, row_number() OVER (PARTITION BY stream_id ORDER BY position) AS n FROM log.events) v WHERE version <> n").await;
    none("SELECT count(*) FROM (SELECT recorded_at < lag(recorded_at) OVER (ORDER BY position) AS back FROM log.events) t WHERE back").await;
    none("SELECT count(*) FROM (SELECT sum(CASE event_type WHEN 'StockReceived' THEN (payload->>'quantity')::bigint \
          WHEN 'StockReleased' THEN (payload->>'quantity')::bigint WHEN 'StockAdjusted' THEN (payload->>'delta')::bigint \
          WHEN 'StockReserved' THEN -(payload->>'quantity')::bigint ELSE 0 END) \
          OVER (PARTITION BY stream_id ORDER BY position) AS available FROM log.events WHERE category = 'stock') s WHERE available < 0").await;
    let instance = |name: &'static str| async move {
        sqlx::query_scalar::<_, i32>(
            "SELECT instance FROM views.projections WHERE name = $1 AND state = 'live'",
        )
        .bind(name)
        .fetch_one(pool)
        .await
        .unwrap()
    };
    let (stock, orders) = (instance("stock").await, instance("orders").await);
    let wrong: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT count(*) FROM (SELECT partition_key, sum(CASE event_type WHEN 'StockReceived' THEN (payload->>'quantity')::bigint \
          WHEN 'StockReleased' THEN (payload->>'quantity')::bigint WHEN 'StockAdjusted' THEN (payload->>'delta')::bigint \
          WHEN 'StockReserved' THEN -(payload->>'quantity')::bigint ELSE 0 END) AS available FROM log.events \
          WHERE category = 'stock' GROUP BY 1) l FULL JOIN views.stock_{stock} v ON v.product_id = l.partition_key \
          WHERE v.available IS DISTINCT FROM l.available"
    )))
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(wrong, 0, "the stock view is what the log adds up to");
    let wrong: i64 = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT count(*) FROM (SELECT stream_id, max(version) AS version FROM log.events WHERE category = 'order' \
          GROUP BY 1) l FULL JOIN views.orders_{orders} v ON v.id = l.stream_id \
          WHERE v.version IS DISTINCT FROM l.version"
    )))
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(wrong, 0, "the orders view is what the log adds up to");
}
