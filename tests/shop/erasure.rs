//! Personal data is searched for in all that the shop writes: tables, topics, Redis, logs and files, before an account
//! is erased and after.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tempfile::TempDir;

use crate::broker::Broker;
use crate::harness::{Answer, Postgres, Shop, folder, free_port, tidemark, until};
use crate::kafka::{rows, same_at, stands_at};
use crate::run;
use crate::servers::{Redis, Replica};

const EMAIL: &str = "Forget.Me.Canary@quokka-mail.example";
const NAME: &str = "Grace Quokkaname Canary";
const PHONE: &str = "+15550001999";
const STREET: &str = "Quokkastreet 99";
const CITY: &str = "Canaryville-on-Quokka";
const CLIENT: &str = "QuokkaBrowser/7.3 (canary)";
const ADDRESS: &str = "203.0.113.217";
const PASSWORD: &str = "an unlikely passphrase of quokkas 42";

/// What is not personal, and must be found: else nothing was searched.
const LANTERN: &str = "LANTERN-MARK-71";

/// A shop of many processes, and everything that any of it writes.
struct House {
    log: Postgres,
    views: Postgres,
    replica: Replica,
    broker: Broker,
    redis: Redis,
    log_url: String,
    vault_url: String,
    views_url: String,
    command: Shop,
    projector: Shop,
    query: Shop,
    smtp: tokio::process::Child,
    mails: TempDir,
}

impl House {
    async fn open() -> Self {
        let (log, views, broker, redis) =
            tokio::join!(Postgres::start(), Postgres::start(), Broker::start(), Redis::start());
        let replica = Replica::of(&views).await;
        let (log_url, vault_url, views_url) =
            (log.database().await, log.database().await, views.database().await);
        let views_name = views_url.rsplit('/').next().unwrap();
        let (replica_url, tier, brokers) = (replica.url(views_name), redis.url(), broker.address());
        let (mails, port) = (folder(), free_port());
        let smtp =
            tokio::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/smtp-server"))
                .args([&port.to_string(), mails.path().join("mails").to_str().unwrap()])
                .kill_on_drop(true)
                .spawn()
                .unwrap();
        let mail_url = format!("smtp://127.0.0.1:{port}");
        let talkative = ("TIDEMARK_LOG", "debug");
        let vault = ("TIDEMARK_VAULT_URL", vault_url.as_str());
        let kafka = ("TIDEMARK_KAFKA_BROKERS", brokers.as_str());
        let place = ("TIDEMARK_VIEWS_URL", views_url.as_str());
        let tier = ("TIDEMARK_REDIS_URL", tier.as_str());
        let proxies = ("TIDEMARK_TRUSTED_PROXIES", "127.0.0.1");
        let smtp_url = ("TIDEMARK_SMTP_URL", mail_url.as_str());
        let command = Shop::part("command", &log_url, &[talkative, vault, kafka, proxies, smtp_url]).await;
        let projector = Shop::part("projector", &log_url, &[talkative, place, kafka, tier]).await;
        let replicas = ("TIDEMARK_REPLICA_URLS", replica_url.as_str());
        let query = [talkative, vault, place, replicas, tier, proxies, ("TIDEMARK_CACHE_MIB", "0")];
        let query = Shop::part("query", &log_url, &query).await;
        Self {
            log,
            views,
            replica,
            broker,
            redis,
            log_url,
            vault_url,
            views_url,
            command,
            projector,
            query,
            smtp,
            mails,
        }
    }

    async fn post(&self, path: &str, token: Option<&str>, body: Value) -> Answer {
        let from = [("User-Agent", CLIENT), ("X-Forwarded-For", ADDRESS)];
        self.command.send(Method::POST, path, token, &from, Some(body)).await.unwrap()
    }

    /// The token of the only mail so far.
    async fn mailed(&self) -> String {
        let folder = self.mails.path().join("mails/new");
        until("the mail is delivered", async || {
            let mail = std::fs::read_dir(&folder).ok()?.next()?.unwrap().path();
            let text = std::fs::read_to_string(mail).unwrap().replace("=\n", "").replace("=3D", "=");
            text.lines().map(str::trim).find(|line| line.len() == 86).map(str::to_owned)
        })
        .await
    }

    /// Writes down all that can be asked for: every column of every row of every database, every record of every topic,
    /// every key of Redis.
    async fn dump(&self, to: &Path) {
        let (log, views) = (self.log.url("postgres"), self.views.url("postgres"));
        for (name, url) in [("log", log), ("views", views), ("replica", self.replica.url("postgres"))] {
            tables(&url, &to.join(name)).await;
        }
        std::fs::write(to.join("redis"), everything_in(&self.redis).await).unwrap();
        let topics = tokio::task::block_in_place(|| all_records(&self.broker));
        std::fs::write(to.join("topics"), topics).unwrap();
    }

    /// All that the processes have written by themselves: logs, data directories, the servers' files with their
    /// write-ahead logs.
    fn files(&self) -> Vec<PathBuf> {
        let shops = [&self.command, &self.projector, &self.query];
        let mut files: Vec<PathBuf> = shops.iter().map(|shop| shop.words.clone()).collect();
        files.extend(shops.iter().map(|shop| shop.data.path().to_owned()));
        files.extend([&self.log, &self.views].iter().map(|postgres| postgres.folder.path().join("data")));
        files.push(self.replica.data());
        files.push(self.broker.folder().to_owned());
        files.push(self.redis.folder().to_owned());
        files
    }

    async fn erased(&self, id: &str) {
        let mut vault = PgConnection::connect(&self.vault_url).await.unwrap();
        until("the key is destroyed", async || {
            let erased: bool =
                sqlx::query_scalar("SELECT wrapped IS NULL FROM vault.keys WHERE subject = $1::uuid")
                    .bind(id)
                    .fetch_one(&mut vault)
                    .await
                    .unwrap();
            erased.then_some(())
        })
        .await;
    }
}

/// Every row of every table of every database of a server, as text: catalogs with their statistics, too.
async fn tables(server: &str, to: &Path) {
    use futures_util::TryStreamExt;
    let mut connection = PgConnection::connect(server).await.unwrap();
    sqlx::query("CHECKPOINT").execute(&mut connection).await.ok();
    let databases: Vec<String> = sqlx::query_scalar("SELECT datname FROM pg_database WHERE datallowconn")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let mut all = String::new();
    for database in databases {
        let url = format!("{}/{database}", server.rsplit_once('/').unwrap().0);
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'm') AND n.nspname <> 'pg_toast' \
             AND (c.relpersistence <> 'u' OR NOT pg_is_in_recovery())",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        assert!(tables.len() > 50, "{database}: {tables:?}");
        for table in tables {
            let sql = format!("SELECT t::text FROM {table} t");
            let mut rows = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(sql)).fetch(&mut connection);
            while let Some(row) = rows.try_next().await.unwrap() {
                all.push_str(&format!("{database} {table} {}\n", row.unwrap_or_default()));
            }
        }
    }
    std::fs::write(to, all).unwrap();
}

/// Every record of every topic: key, headers and value, also what was not committed.
fn all_records(broker: &Broker) -> Vec<u8> {
    let consumer: BaseConsumer = broker
        .client()
        .set("group.id", "search")
        .set("isolation.level", "read_uncommitted")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let topics = consumer.fetch_metadata(None, Duration::from_secs(20)).unwrap();
    let (mut all, mut records) = (Vec::new(), 0);
    for topic in topics.topics() {
        for partition in topic.partitions() {
            let mut assignment = TopicPartitionList::new();
            assignment.add_partition_offset(topic.name(), partition.id(), Offset::Beginning).unwrap();
            consumer.assign(&assignment).unwrap();
            let end = Instant::now() + Duration::from_secs(30);
            loop {
                assert!(Instant::now() < end, "{} {} has no end", topic.name(), partition.id());
                match consumer.poll(Duration::from_millis(100)) {
                    Some(Ok(message)) => {
                        records += 1;
                        all.extend_from_slice(format!("\n{} ", topic.name()).as_bytes());
                        all.extend_from_slice(message.key().unwrap_or_default());
                        for header in message.headers().into_iter().flat_map(Headers::iter) {
                            all.extend_from_slice(format!(" {}=", header.key).as_bytes());
                            all.extend_from_slice(header.value.unwrap_or_default());
                        }
                        all.push(b' ');
                        all.extend_from_slice(message.payload().unwrap_or_default());
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => break,
                    Some(Err(error)) => panic!("{error}"),
                    None => {}
                }
            }
        }
    }
    assert!(records > 10, "{records}");
    all
}

/// Every key of Redis with its value.
async fn everything_in(redis: &Redis) -> Vec<u8> {
    let mut connection = redis.connection().await;
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
    let mut all = Vec::new();
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut connection).await.unwrap();
        let mut read = match kind.as_str() {
            "string" => redis::cmd("GET"),
            "hash" => redis::cmd("HGETALL"),
            "set" => redis::cmd("SMEMBERS"),
            "list" => redis::cmd("LRANGE"),
            "zset" => redis::cmd("ZRANGE"),
            "stream" => redis::cmd("XRANGE"),
            // It has expired by now.
            "none" => continue,
            other => panic!("nobody knows how to read a {other}"),
        };
        read.arg(&key);
        match kind.as_str() {
            "list" | "zset" => drop(read.arg(0).arg(-1)),
            "stream" => drop(read.arg("-").arg("+")),
            _ => {}
        }
        let value: redis::Value = read.query_async(&mut connection).await.unwrap();
        all.extend_from_slice(&key);
        bytes_of(&value, &mut all);
        all.push(b'\n');
    }
    all
}

fn bytes_of(value: &redis::Value, all: &mut Vec<u8>) {
    all.push(b' ');
    match value {
        redis::Value::BulkString(bytes) => all.extend_from_slice(bytes),
        redis::Value::Array(values) | redis::Value::Set(values) => {
            values.iter().for_each(|value| bytes_of(value, all));
        }
        redis::Value::Map(members) => members.iter().for_each(|(name, value)| {
            bytes_of(name, all);
            bytes_of(value, all);
        }),
        other => all.extend_from_slice(format!("{other:?}").as_bytes()),
    }
}

/// A text as it may stand somewhere: plain, in hexadecimal, and within base64 at each of three places.
fn forms(text: &[u8]) -> Vec<String> {
    let mut forms = vec![run::hex(text)];
    forms.extend(std::str::from_utf8(text).map(str::to_owned));
    for before in 0..3 {
        let shifted = [&vec![b'x'; before], text].concat();
        let encoded = STANDARD_NO_PAD.encode(&shifted);
        // Letters at both ends depend on what stands beside.
        let (from, to) = ([0, 2, 3][before], encoded.len() - usize::from(shifted.len() % 3 != 0));
        forms.push(encoded[from..to].to_owned());
        forms.push(encoded[from..to].replace('+', "-").replace('/', "_"));
    }
    assert!(forms.iter().all(|form| form.len() >= 8), "too short to be searched for: {forms:?}");
    forms
}

/// What to search for, as a file.
fn searched<'a>(folder: &Path, name: &str, texts: impl IntoIterator<Item = &'a [u8]>) -> PathBuf {
    let path = folder.join(name);
    let lines: Vec<String> = texts.into_iter().flat_map(forms).collect();
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    path
}

#[test]
fn a_form_is_found_wherever_it_stands_in_base64() {
    let forms = forms(b"Quokkastreet");
    for before in 0..5 {
        for after in 0..5 {
            let text =
                STANDARD.encode([&vec![b'?'; before], &b"Quokkastreet"[..], &vec![b'?'; after]].concat());
            assert!(forms.iter().any(|form| text.contains(form)), "{before} {after} {text} {forms:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_personal_stands_nowhere_in_clear_and_an_erased_account_can_be_opened_by_nobody() {
    let mut house = House::open().await;
    let search = folder();
    let product = house.command.product(LANTERN, 5).await;
    let body = json!({ "email": EMAIL, "password": PASSWORD, "name": NAME });
    assert_eq!(house.post("/v1/accounts", None, body).await.status, 202);
    let mailed = house.mailed().await;
    let verified = house.post("/v1/accounts/email-verifications", None, json!({ "token": mailed })).await;
    assert_eq!(verified.status, 204, "{}", verified.text);
    let wrong = json!({ "email": EMAIL, "password": "something else of quokkas" });
    assert_eq!(house.post("/v1/sessions", None, wrong).await.status, 401);
    let session = house.post("/v1/sessions", None, json!({ "email": EMAIL, "password": PASSWORD })).await;
    assert_eq!(session.status, 201, "{}", session.text);
    let text = |name: &str| session.body[name].as_str().unwrap().to_owned();
    let (id, access, refresh) = (text("account_id"), text("access_token"), text("refresh_token"));
    let path = |end: &str| format!("/v1/accounts/{id}{end}");
    let address = json!({ "name": NAME, "line1": STREET, "city": CITY, "country": "US" });
    assert_eq!(house.post(&path("/addresses"), Some(&access), address).await.status, 201);
    let profile = json!({ "name": NAME, "phone": PHONE });
    let profile = house.command.send(Method::PUT, &path("/profile"), Some(&access), &[], Some(profile)).await;
    assert_eq!(profile.unwrap().status, 204);
    let factor = house.post(&path("/second-factor"), Some(&access), json!({ "password": PASSWORD })).await;
    assert_eq!(factor.status, 201, "{}", factor.text);
    let (factor_secret, recovery) =
        (factor.body["secret"].as_str().unwrap(), factor.body["recovery_codes"][0].as_str().unwrap());
    let lines = json!({ "lines": [{ "product_id": product, "quantity": 1 }] });
    let from = [("Idempotency-Key", "o-1"), ("User-Agent", CLIENT), ("X-Forwarded-For", ADDRESS)];
    let placed =
        house.command.send(Method::POST, "/v1/orders", Some(&access), &from, Some(lines)).await.unwrap();
    assert_eq!(placed.status, 201, "{}", placed.text);
    let after = placed.header("tidemark-position").to_owned();
    let position = placed.body["position"].as_i64().unwrap();
    let order = format!("/v1/orders/{}", placed.body["id"].as_str().unwrap());

    // A broker that has just begun makes its consumers' groups one by one, which may take longer than a read waits.
    until("every view follows the topic", async || {
        let mut statuses = Vec::new();
        for (path, token) in [(&order, Some(access.as_str())), (&format!("/v1/products/{product}"), None)] {
            statuses.push(house.query.get(path, token, &[("Tidemark-After", &after)]).await.status);
        }
        (statuses == [200, 200]).then_some(())
    })
    .await;

    // All of it can be read, and comes by every way there is.
    let export = house.query.get(&path("/export"), Some(&access), &[("Tidemark-After", &after)]).await;
    let known = [EMAIL, NAME, PHONE, STREET, CITY, CLIENT, ADDRESS];
    for canary in known {
        assert!(export.text.contains(canary), "{canary}: {}", export.text);
    }
    for _ in 0..5 {
        assert_eq!(house.query.get(&order, Some(&access), &[("Tidemark-After", &after)]).await.status, 200);
        let shown =
            house.query.get(&format!("/v1/products/{product}"), None, &[("Tidemark-After", &after)]).await;
        assert_eq!(shown.status, 200, "{}", shown.text);
        // A machine that is busy with other tests may be told to ask again.
        let own = until("the account is read", async || {
            let own = house.query.get(&path(""), Some(&access), &[("User-Agent", CLIENT)]).await;
            (own.status != 503).then_some(own)
        })
        .await;
        assert_eq!(own.body["email"], EMAIL, "{} {}", own.status, own.text);
    }
    until("Redis is filled", async || {
        // What was asked for before anybody filled it is put there when it is asked for again.
        house.query.get(&format!("/v1/products/{product}"), None, &[]).await;
        let all = everything_in(&house.redis).await;
        String::from_utf8_lossy(&all).contains(LANTERN).then_some(())
    })
    .await;
    let views = PgPool::connect(&house.views_url).await.unwrap();
    stands_at(&views, position).await;
    until("the replica has come so far", async || {
        let name = house.views_url.rsplit('/').next().unwrap();
        let replica = PgPool::connect(&house.replica.url(name)).await.unwrap();
        (rows(&replica).await == rows(&views).await).then_some(())
    })
    .await;

    let secrets = [PASSWORD, &refresh, &mailed, factor_secret, recovery];
    let folded = EMAIL.to_lowercase();
    let canaries = [&known[..], &secrets, &[folded.as_str()]].concat();
    let canaries = searched(search.path(), "canaries", canaries.iter().map(|text| text.as_bytes()));
    let lantern = searched(search.path(), "lantern", [LANTERN.as_bytes()]);
    let before = search.path().join("before");
    std::fs::create_dir(&before).unwrap();
    house.dump(&before).await;
    let none = Vec::<String>::new();
    assert_eq!(run::found(&canaries, std::slice::from_ref(&before)).await, none, "before it is erased");
    assert_eq!(run::found(&canaries, &house.files()).await, none, "in files, before it is erased");
    // The search finds what is there: in all places.
    for place in ["log", "views", "replica", "redis", "topics"] {
        assert_ne!(run::found(&lantern, &[before.join(place)]).await, none, "{place} was not searched");
    }
    for postgres in
        [house.log.folder.path().join("data"), house.views.folder.path().join("data"), house.replica.data()]
    {
        for part in ["base", "pg_wal"] {
            assert_ne!(run::found(&lantern, &[postgres.join(part)]).await, none, "{}", postgres.display());
        }
    }
    let mut vault = PgConnection::connect(&house.vault_url).await.unwrap();
    let wrapped: Vec<u8> = sqlx::query_scalar("SELECT wrapped FROM vault.keys WHERE subject = $1::uuid")
        .bind(&id)
        .fetch_one(&mut vault)
        .await
        .unwrap();
    let key = searched(search.path(), "key", [wrapped.as_slice()]);
    assert_ne!(run::found(&key, &[before.join("log")]).await, none, "the key is found where it is");
    for place in ["views", "replica", "redis", "topics"] {
        assert_eq!(run::found(&key, &[before.join(place)]).await, none, "{place}");
    }

    let erased = house.post(&path("/erasure"), Some(&access), json!({ "password": PASSWORD })).await;
    assert_eq!(erased.status, 204, "{}", erased.text);
    house.erased(&id).await;
    let position = erased.header("tidemark-position").rsplit('-').next().unwrap().parse().unwrap();
    stands_at(&views, position).await;
    let token = house.query.staff.clone();
    let gone = house.query.get(&path(""), Some(&token), &[]).await;
    assert_eq!(gone.status, 404, "{}", gone.text);
    assert_eq!(house.query.get(&order, Some(&token), &[]).await.status, 200, "what was bought stays");
    let after = search.path().join("after");
    std::fs::create_dir(&after).unwrap();
    house.dump(&after).await;
    assert_eq!(run::found(&canaries, std::slice::from_ref(&after)).await, none, "erased");
    assert_eq!(run::found(&canaries, &house.files()).await, none, "in files, erased");
    assert_eq!(run::found(&key, std::slice::from_ref(&after)).await, none, "the key is in no table");
    assert_ne!(run::found(&lantern, std::slice::from_ref(&after)).await, none);

    // The log is valid: views built anew are what they were, and so are those of a projector that begins at its start.
    let shown = rows(&views).await;
    for name in ["products", "stock", "orders"] {
        let rebuilt = tidemark()
            .args(["rebuild", name])
            .envs([("TIDEMARK_LOG_URL", &house.log_url), ("TIDEMARK_VIEWS_URL", &house.views_url)])
            .output()
            .await
            .unwrap();
        assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    }
    assert_eq!(rows(&views).await, shown);
    let anew = house.views.database().await;
    let (brokers, group) = (house.broker.address(), "anew");
    let settings = [
        ("TIDEMARK_VIEWS_URL", anew.as_str()),
        ("TIDEMARK_KAFKA_BROKERS", &brokers),
        ("TIDEMARK_KAFKA_GROUP", group),
    ];
    let _projector = Shop::part("projector", &house.log_url, &settings).await;
    same_at(position, &views, &PgPool::connect(&anew).await.unwrap()).await;
    let replay =
        tidemark().args(["replay", "--from", "1"]).env("DATABASE_URL", &house.log_url).output().await;
    let replay = replay.unwrap();
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    let lines = replay.stdout.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(i64::try_from(lines).unwrap(), position, "every event");
    let replayed = search.path().join("replay");
    std::fs::write(&replayed, &replay.stdout).unwrap();
    assert_eq!(run::found(&canaries, std::slice::from_ref(&replayed)).await, none);

    // A backup of the keys from before brings the key back; the log, gone through once more, destroys it again.
    sqlx::query("UPDATE vault.keys SET wrapped = $2, erased_at = NULL WHERE subject = $1::uuid")
        .bind(&id)
        .bind(&wrapped)
        .execute(&mut vault)
        .await
        .unwrap();
    let mut log = PgConnection::connect(&house.log_url).await.unwrap();
    sqlx::query("UPDATE accounts.checkpoint SET position = 0").execute(&mut log).await.unwrap();
    house.erased(&id).await;
    house.smtp.kill().await.unwrap();
}
