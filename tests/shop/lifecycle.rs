//! `tidemark up` with its private PostgreSQL: starts, keeps its data, stops cleanly, and starts again after kill -9.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sqlx::{Connection, Executor, PgConnection};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::harness::{Postgres, Shop, folder, free_port, tidemark, until};

async fn start(data: &Path) -> (tokio::process::Child, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let base = format!("http://127.0.0.1:{port}");
    let process = tidemark()
        .args(["up", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
        .arg(data)
        .env_remove("TIDEMARK_TOKEN_SECRET")
        .spawn()
        .unwrap();
    until("the shop opens", async || {
        reqwest::get(format!("{base}/readyz")).await.ok().filter(|answer| answer.status() == 200).map(drop)
    })
    .await;
    (process, base)
}

fn server(data: &Path) -> Pid {
    let text = std::fs::read_to_string(data.join("postgres/postmaster.pid")).unwrap();
    Pid::from_raw(text.lines().next().unwrap().parse().unwrap()).unwrap()
}

fn signal(process: &tokio::process::Child, signal: Signal) {
    kill_process(Pid::from_raw(process.id().unwrap().try_into().unwrap()).unwrap(), signal).unwrap();
}

async fn products(base: &str) -> usize {
    let page: serde_json::Value =
        reqwest::get(format!("{base}/v1/products")).await.unwrap().json().await.unwrap();
    page["items"].as_array().map_or(0, Vec::len)
}

async fn token(data: &Path) -> String {
    let token = tidemark()
        .args(["token", "--role", "staff", "--data-dir"])
        .arg(data)
        .env_remove("TIDEMARK_TOKEN_SECRET")
        .output()
        .await
        .unwrap();
    String::from_utf8(token.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn data_outlives_every_kind_of_end() {
    let folder = folder();
    let data = folder.path().join("data");
    let (mut shop, base) = start(&data).await;

    // The key that `up` made signs what `token` prints.
    let token = token(&data).await;
    let client = reqwest::Client::new();
    let body = serde_json::json!({ "sku": "P", "name": "P", "price": { "amount": 1, "currency": "EUR" } });
    let made =
        client.post(format!("{base}/v1/products")).bearer_auth(&token).json(&body).send().await.unwrap();
    assert_eq!(made.status(), 201);
    let id = made.json::<serde_json::Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    let published =
        client.put(format!("{base}/v1/products/{id}/publication")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(published.status(), 200);

    // A statement that takes long is told in the server's log, but not what was bound to it.
    let socket = data.join("run").to_str().unwrap().replace('/', "%2F");
    let mut there = PgConnection::connect(&format!("postgres://tidemark@{socket}/tidemark")).await.unwrap();
    sqlx::query("SELECT pg_sleep(1.1) IS NULL, $1")
        .bind("bound-and-secret")
        .execute(&mut there)
        .await
        .unwrap();
    let told = std::fs::read_to_string(data.join("postgres.log")).unwrap();
    assert!(told.contains("pg_sleep") && !told.contains("bound-and-secret"), "{told}");

    let second =
        tidemark().args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data).output().await.unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another tidemark is running"));

    // SIGTERM: everything ends, the private PostgreSQL included.
    let postgres = server(&data);
    signal(&shop, Signal::TERM);
    let ended = tokio::time::timeout(Duration::from_secs(30), shop.wait()).await.unwrap().unwrap();
    assert!(ended.success());
    assert!(test_kill_process(postgres).is_err(), "PostgreSQL has ended, too");

    // A tool starts the private PostgreSQL for itself, and stops it.
    let replay = tidemark().args(["replay", "--data-dir"]).arg(&data).output().await.unwrap();
    assert_eq!(String::from_utf8(replay.stdout).unwrap().lines().count(), 3);

    // kill -9 of the shop alone: its PostgreSQL runs on and is taken over.
    let (mut shop, base) = start(&data).await;
    until("the product is listed", async || (products(&base).await == 1).then_some(())).await;
    let postgres = server(&data);
    shop.kill().await.unwrap();
    assert!(test_kill_process(postgres).is_ok(), "it was not told");
    let (mut shop, base) = start(&data).await;
    assert_eq!(server(&data), postgres, "taken over");
    until("the product is listed", async || (products(&base).await == 1).then_some(())).await;

    // kill -9 of both: recovery.
    shop.kill().await.unwrap();
    kill_process(postgres, Signal::KILL).unwrap();
    until("PostgreSQL is gone", async || test_kill_process(postgres).err()).await;
    let (mut shop, base) = start(&data).await;
    until("the product is listed", async || (products(&base).await == 1).then_some(())).await;
    signal(&shop, Signal::INT);
    assert!(tokio::time::timeout(Duration::from_secs(30), shop.wait()).await.unwrap().unwrap().success());
}

/// A command that waits for the log's lock, and who holds it.
async fn waiting(data: &Path, base: &str) -> (PgConnection, JoinHandle<reqwest::Result<u16>>) {
    let socket = data.join("run").to_str().unwrap().replace('/', "%2F");
    let url = format!("postgres://tidemark@{socket}/tidemark");
    let mut holder = PgConnection::connect(&url).await.unwrap();
    holder.execute("BEGIN; SELECT position FROM log.head FOR UPDATE").await.unwrap();
    let body = serde_json::json!({ "sku": "P", "name": "P", "price": { "amount": 1, "currency": "EUR" } });
    let made = reqwest::Client::new()
        .post(format!("{base}/v1/products"))
        .bearer_auth(token(data).await)
        .header("idempotency-key", "waiting")
        .json(&body);
    let made = tokio::spawn(async move { Ok(made.send().await?.status().as_u16()) });
    let mut watching = PgConnection::connect(&url).await.unwrap();
    until("it waits", async || {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidemark writer' AND \
                     wait_event_type = 'Lock'";
        let waits: i64 = sqlx::query_scalar(waits).fetch_one(&mut watching).await.unwrap();
        (waits > 0).then_some(())
    })
    .await;
    (holder, made)
}

#[tokio::test]
async fn what_is_in_hand_is_answered_before_it_ends() {
    let folder = folder();
    let data = folder.path().join("data");
    let (mut shop, base) = start(&data).await;
    let (mut holder, made) = waiting(&data, &base).await;
    signal(&shop, Signal::TERM);
    until("it takes no more", async || reqwest::get(format!("{base}/livez")).await.err()).await;
    holder.execute("ROLLBACK").await.unwrap();
    assert_eq!(made.await.unwrap().unwrap(), 201);
    let ended = tokio::time::timeout(Duration::from_secs(30), shop.wait()).await.unwrap().unwrap();
    assert!(ended.success());
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_and_leaves_nothing_running() {
    let folder = folder();
    let data = folder.path().join("data");
    let (mut shop, base) = start(&data).await;
    let postgres = server(&data);
    let (_holder, _made) = waiting(&data, &base).await;
    signal(&shop, Signal::INT);
    let ended = tokio::time::timeout(Duration::from_millis(500), shop.wait()).await;
    assert!(ended.is_err(), "what is in hand is waited for");
    signal(&shop, Signal::INT);
    tokio::time::timeout(Duration::from_secs(2), shop.wait()).await.unwrap().unwrap();
    until("PostgreSQL ends", async || test_kill_process(postgres).err()).await;
    assert!(!data.join("postgres/postmaster.pid").exists());
}

#[tokio::test]
async fn who_waits_for_a_database_lets_nobody_in_and_ends_when_told_to() {
    const AWAY: &str = "postgres://nobody@127.0.0.1:1/away";
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    // The log and the views have their schemas; the keys of personal data are away.
    let _begun = Shop::on(&url).await;
    for (name, variables) in [
        ("command", vec![("TIDEMARK_LOG_URL", AWAY)]),
        ("command", vec![("TIDEMARK_LOG_URL", &url), ("TIDEMARK_VAULT_URL", AWAY)]),
        ("projector", vec![("TIDEMARK_LOG_URL", &url), ("TIDEMARK_VIEWS_URL", AWAY)]),
        (
            "query",
            vec![("TIDEMARK_LOG_URL", &url), ("TIDEMARK_VIEWS_URL", &url), ("TIDEMARK_VAULT_URL", AWAY)],
        ),
        ("up", vec![("DATABASE_URL", &url), ("TIDEMARK_VAULT_URL", AWAY)]),
    ] {
        let (data, address) = (folder(), format!("127.0.0.1:{}", free_port()));
        let (mut process, words) = tidemark()
            .args([name, "--listen", &address])
            .env("TIDEMARK_DATA_DIR", data.path())
            .envs(variables.iter().copied())
            .spawn_with_words()
            .unwrap();
        let waits = async || {
            let words = std::fs::read_to_string(&words).unwrap();
            words.contains("does not answer, trying again").then_some(())
        };
        until("it waits", waits).await;
        // Else a proxy's requests would wait with it, where another service could do them.
        let refused = TcpStream::connect(&address).await.expect_err("nobody is let in");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        signal(&process, Signal::TERM);
        let ended = tokio::time::timeout(Duration::from_secs(5), process.wait()).await;
        assert!(ended.expect("it ends").unwrap().success(), "{name}");
    }
}
