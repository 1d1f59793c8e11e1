//! Reads from Redis and from replicas, through PgBouncer: always what the views' primary would say.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tidemark_views::body::{Body, Kind};
use tidemark_views::feed::{self, Change};
use tidemark_views::tier::{Entry, Tier, TierError};
use uuid::Uuid;

use crate::harness::{Answer, CUSTOMER, Postgres, Shop, token, until};
use crate::servers::{Bouncer, Redis, Replica};

/// The sum of a metric's lines that hold all of `labels`.
async fn metric(shop: &Shop, name: &str, labels: &[&str]) -> f64 {
    let text = shop.get("/metrics", None, &[]).await.text;
    let lines = text.lines().filter(|line| line.starts_with(name) && labels.iter().all(|l| line.contains(l)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

async fn hits(shop: &Shop) -> f64 {
    metric(shop, "tidemark_cache_requests_total", &["tier=\"redis\"", "outcome=\"hit\""]).await
}

async fn read_from(shop: &Shop, server: &str, outcome: &str) -> f64 {
    let labels = [format!("server=\"{server}\""), format!("outcome=\"{outcome}\"")];
    metric(shop, "tidemark_view_reads_total", &[&labels[0], &labels[1]]).await
}

/// Log, views, Redis, and a service of each kind but queries.
struct Parts {
    postgres: Postgres,
    log: String,
    views: String,
    redis: Redis,
    command: Shop,
    /// Feeds orders only, and fills Redis.
    filler: Shop,
    /// Feeds the others.
    _projector: Shop,
}

impl Parts {
    async fn open() -> Self {
        let (postgres, redis) = tokio::join!(Postgres::start(), Redis::start());
        let (log, views) = (postgres.database().await, postgres.database().await);
        let command = Shop::part("command", &log, &[]).await;
        let (url, at) = (redis.url(), [("TIDEMARK_VIEWS_URL", views.as_str())]);
        let own = [("TIDEMARK_PROJECTIONS", "orders"), ("TIDEMARK_REDIS_URL", url.as_str())];
        let filler = Shop::part("projector", &log, &[&at[..], &own].concat()).await;
        let own = [("TIDEMARK_PROJECTIONS", "products,stock,audit")];
        let projector = Shop::part("projector", &log, &[&at[..], &own].concat()).await;
        Self { postgres, log, views, redis, command, filler, _projector: projector }
    }

    /// A query service that keeps nothing in its own memory.
    async fn query(&self, settings: &[(&str, &str)]) -> Shop {
        let own = [("TIDEMARK_VIEWS_URL", self.views.as_str()), ("TIDEMARK_CACHE_MIB", "0")];
        Shop::part("query", &self.log, &[&own, settings].concat()).await
    }

    /// Receives one more unit, and says where.
    async fn receive(&self, product: &str) -> String {
        let receipts = format!("/v1/products/{product}/stock-receipts");
        let answer = until("a receipt is taken", async || {
            let answer = self.command.post(&receipts, json!({ "quantity": 1 })).await;
            (answer.status == 201).then_some(answer)
        })
        .await;
        answer.header("tidemark-position").to_owned()
    }

    async fn views(&self) -> PgPool {
        PgPoolOptions::new().max_connections(2).connect(&self.views).await.unwrap()
    }
}

/// A product as it is behind a position; asked again while the views are behind or away.
async fn after(query: &Shop, product: &str, position: &str) -> Answer {
    until("the product can be read behind its position", async || {
        let answer =
            query.get(&format!("/v1/products/{product}"), None, &[("Tidemark-After", position)]).await;
        assert!([200, 503].contains(&answer.status), "{}", answer.text);
        (answer.status == 200).then_some(answer)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_from_redis_are_never_old_whatever_happens_to_redis() {
    let parts = Parts::open().await;
    let url = parts.redis.url();
    let redis = [("TIDEMARK_REDIS_URL", url.as_str())];
    let queries = [parts.query(&redis).await, parts.query(&redis).await];
    let product = parts.command.product("R", 10).await;
    let mut units = 10;
    let mut go_round = async |rounds: usize| {
        for _ in 0..rounds {
            let position = parts.receive(&product).await;
            units += 1;
            for query in &queries {
                let answer = after(query, &product, &position).await;
                assert_eq!(answer.body["available"], units, "{}", answer.text);
            }
        }
    };
    go_round(30).await;
    // It does come from Redis: read again and again without a change.
    until("Redis answers", async || {
        queries[0].get(&format!("/v1/products/{product}"), None, &[]).await;
        (hits(&queries[0]).await >= 5.0).then_some(())
    })
    .await;
    // An order and whose it is come from there, too.
    let order = parts.command.order(&product, 2, "r-1").await.unwrap();
    units -= 2;
    let (path, position) =
        (format!("/v1/orders/{}", order.body["id"].as_str().unwrap()), order.header("tidemark-position"));
    let other = crate::harness::token("customer", "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c99").await;
    let before = hits(&queries[0]).await;
    for _ in 0..20 {
        let own = queries[0].get(&path, Some(&queries[0].customer), &[("Tidemark-After", position)]).await;
        assert_eq!((own.status, &own.body["status"]), (200, &json!("placed")), "{}", own.text);
        let foreign = queries[0].get(&path, Some(&other), &[("Tidemark-After", position)]).await;
        assert_eq!(foreign.status, 404);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(hits(&queries[0]).await > before);

    let mut go_round = async |rounds: usize| {
        for _ in 0..rounds {
            let position = parts.receive(&product).await;
            units += 1;
            for query in &queries {
                let asked_at = Instant::now();
                let answer = after(query, &product, &position).await;
                assert_eq!(answer.body["available"], units, "{}", answer.text);
                // At the worst a process that was paused holds the views until it is cut off, after three seconds.
                assert!(asked_at.elapsed() < Duration::from_secs(10), "{:?}", asked_at.elapsed());
            }
        }
    };
    // Nobody fills it any more: what is there is old, and known to be.
    let filler = Pid::from_raw(parts.filler.pid()).unwrap();
    kill_process(filler, Signal::STOP).unwrap();
    go_round(5).await;
    kill_process(filler, Signal::CONT).unwrap();
    go_round(5).await;
    // Gone.
    parts.redis.kill();
    go_round(5).await;
    // Back, and empty.
    parts.redis.launch().await;
    go_round(5).await;
    let first = until("bodies are in Redis again", async || parts.redis.generation().await).await;
    // Emptied while it runs.
    let () = redis::cmd("FLUSHALL").query_async(&mut parts.redis.connection().await).await.unwrap();
    go_round(5).await;
    until("bodies begin anew", async || parts.redis.generation().await.filter(|name| *name != first)).await;
    // Slow as can be.
    parts.redis.pause();
    go_round(3).await;
    parts.redis.go_on();
    go_round(3).await;
    let before = hits(&queries[1]).await;
    until("Redis answers again", async || {
        queries[1].get(&format!("/v1/products/{product}"), None, &[]).await;
        (hits(&queries[1]).await > before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_begin_anew_when_the_views_crash_and_when_a_rebuild_is_switched_in() {
    let parts = Parts::open().await;
    let url = parts.redis.url();
    let query = parts.query(&[("TIDEMARK_REDIS_URL", &url)]).await;
    let product = parts.command.product("C", 5).await;
    let position = parts.receive(&product).await;
    assert_eq!(after(&query, &product, &position).await.body["available"], 6);
    let first = until("Redis is filled", async || parts.redis.generation().await).await;
    parts.postgres.kill();
    parts.postgres.launch().await;
    let second =
        until("bodies begin anew", async || parts.redis.generation().await.filter(|name| *name != first))
            .await;
    // The life of the server is another one, too.
    assert_ne!(first.split(' ').next_back(), second.split(' ').next_back());
    let position = parts.receive(&product).await;
    assert_eq!(after(&query, &product, &position).await.body["available"], 7);

    let rebuilt = crate::harness::tidemark()
        .args(["rebuild", "stock"])
        .envs([("TIDEMARK_LOG_URL", &parts.log), ("TIDEMARK_VIEWS_URL", &parts.views)])
        .output()
        .await
        .unwrap();
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    let third =
        until("bodies begin anew", async || parts.redis.generation().await.filter(|name| *name != second))
            .await;
    assert_eq!(second.split(' ').next_back(), third.split(' ').next_back());
    for units in 8..12 {
        let position = parts.receive(&product).await;
        assert_eq!(after(&query, &product, &position).await.body["available"], units);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_in_redis_is_only_replaced_by_a_newer_one_and_old_hands_are_refused() {
    let redis = Redis::start().await;
    let tier = Tier::new(&redis.url()).unwrap();
    let mut one = tier.connect().await.unwrap();
    let mut other = tier.connect_for_entries(Duration::from_millis(100)).await.unwrap();
    assert_eq!(one.standing().await.unwrap(), None);
    let life = Uuid::now_v7();
    let generation = one.begin(life, 10).await.unwrap();
    let id = Uuid::now_v7();
    let body = |text: &str| Body { id, owner: None, tag: "1-1".into(), parked: false, json: text.into() };
    let there = async || {
        let mut connection = tier.connect().await.unwrap();
        let found = connection.get(&generation, Kind::Product, id).await.unwrap();
        found.map(|found| (found.number, String::from_utf8(found.body.json).unwrap()))
    };
    // Below `at` nothing is put: a change between may have been passed already.
    assert_eq!(one.put(&generation, Kind::Product, 9, &[body("old")]).await.unwrap(), 0);
    assert_eq!(there().await, None);
    assert_eq!(one.put(&generation, Kind::Product, 12, &[body("new")]).await.unwrap(), 1);
    assert_eq!(one.put(&generation, Kind::Product, 11, &[body("older")]).await.unwrap(), 0);
    assert_eq!(there().await, Some((12, "new".to_owned())));
    let change = |number| Change {
        number,
        name: "stock".into(),
        instance: 1,
        kind: feed::Kind::Rows,
        epoch: 1,
        position: number * 2,
        keys: vec![id],
    };
    let touched = || [(Kind::Product, id)].into_iter();
    let two = vec![change(11), change(12)];
    assert_eq!(one.advance(&generation, 10, two.clone(), touched()).await.unwrap(), 12);
    assert_eq!(there().await, Some((12, "new".to_owned())), "it knows both");
    assert_eq!(one.present(&generation, Kind::Product, &[Uuid::now_v7(), id]).await.unwrap(), [id]);
    // Who still believes that it stands at 10 has slept.
    let slept = one.advance(&generation, 10, vec![change(11)], touched()).await;
    assert!(matches!(slept, Err(TierError::Moved)), "{slept:?}");
    let entries = other.entries(&generation, 10, Duration::from_millis(50)).await.unwrap();
    let expected = Entry::Changes { from: 10, to: 12, changes: Some(two) };
    assert_eq!(entries, [expected]);
    assert_eq!(other.entries(&generation, 12, Duration::from_millis(50)).await.unwrap(), []);
    // A change that the body does not know takes it away, in the moment in which `at` moves over it.
    one.advance(&generation, 12, vec![change(13)], touched()).await.unwrap();
    assert_eq!(there().await, None);
    // A portion with too many keys names none of them.
    let many = Change { keys: (0..6_000).map(|_| Uuid::now_v7()).collect(), ..change(14) };
    one.advance(&generation, 13, vec![many], touched()).await.unwrap();
    let entries = other.entries(&generation, 13, Duration::from_millis(50)).await.unwrap();
    assert_eq!(entries, [Entry::Changes { from: 13, to: 14, changes: None }]);
    // Another generation: the old one is told, and nothing is put there any more.
    let next = one.begin(life, 20).await.unwrap();
    assert_eq!(other.entries(&generation, 14, Duration::from_millis(50)).await.unwrap(), [Entry::End]);
    assert_eq!(one.put(&generation, Kind::Product, 30, &[body("late")]).await.unwrap(), 0);
    let slept = one.advance(&generation, 14, vec![change(15)], touched()).await;
    assert!(matches!(slept, Err(TierError::Moved)), "{slept:?}");
    let standing = one.standing().await.unwrap().unwrap();
    assert_eq!((standing.generation, standing.incarnation, standing.at), (next, life, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_on_a_replica_see_what_was_written_however_far_it_lags() {
    let parts = Parts::open().await;
    let replica = Replica::of(&parts.postgres).await;
    let name = parts.views.rsplit('/').next().unwrap().to_owned();
    let bouncer = Bouncer::before(&parts.postgres, &replica, &name).await;
    let (pool, replicas) = (bouncer.url("views"), bouncer.url("views_replica"));
    let query =
        parts.query(&[("TIDEMARK_VIEWS_POOL_URL", &pool), ("TIDEMARK_REPLICA_URLS", &replicas)]).await;
    let (product, quiet) = (parts.command.product("L", 10).await, parts.command.product("Q", 3).await);
    let mut units = 10;
    for _ in 0..20 {
        let position = parts.receive(&product).await;
        units += 1;
        assert_eq!(after(&query, &product, &position).await.body["available"], units);
    }
    until("the replica is read from", async || {
        query.get(&format!("/v1/products/{quiet}"), None, &[]).await;
        (read_from(&query, "replica-1", "answered").await > 0.0).then_some(())
    })
    .await;

    // It stands still: what has changed since comes from the primary, what has not may still come from it.
    replica.replay(false).await;
    for _ in 0..5 {
        let position = parts.receive(&product).await;
        units += 1;
        assert_eq!(after(&query, &product, &position).await.body["available"], units);
    }
    let order = parts.command.order(&product, 1, "l-1").await.unwrap();
    units -= 1;
    let position = order.header("tidemark-position").to_owned();
    let list = query.get("/v1/orders", Some(&query.customer), &[("Tidemark-After", &position)]).await;
    assert_eq!(list.body["items"][0]["id"], order.body["id"], "{}", list.text);
    let found = query.get("/v1/products?q=thing", None, &[("Tidemark-After", &position)]).await;
    let items = found.body["items"].as_array().unwrap();
    assert!(items.iter().any(|item| item["available"] == units), "{}", found.text);
    // What changes in the audit is told without keys: it is read from where all that is known is there.
    let admin = token("admin", CUSTOMER).await;
    for path in ["/v1/audit?limit=1", "/v1/audit?actor=staff:0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c0f&limit=1"] {
        let position = parts.receive(&product).await;
        units += 1;
        let acts = query.get(path, Some(&admin), &[("Tidemark-After", &position)]).await;
        assert_eq!(format!("1-{}", acts.body["items"][0]["position"]), position, "{}", acts.text);
    }
    assert!(read_from(&query, "replica-1", "behind").await > 0.0);
    let before = read_from(&query, "replica-1", "answered").await;
    assert_eq!(query.get(&format!("/v1/products/{quiet}"), None, &[]).await.body["available"], 3);
    assert_eq!(read_from(&query, "replica-1", "answered").await, before + 1.0);
    replica.replay(true).await;

    // Many at once over two connections: no statement is parsed on one and run on another.
    let paths =
        [format!("/v1/products/{product}"), format!("/v1/products/{quiet}"), "/v1/products?q=thing".into()];
    let reads = (0..300).map(|n| query.get(&paths[n % 3], None, &[]));
    for answer in futures_util::future::join_all(reads).await {
        assert_eq!(answer.status, 200, "{}", answer.text);
    }

    // Gone: the primary answers. Back: it is read from again.
    replica.kill();
    for _ in 0..5 {
        let position = parts.receive(&product).await;
        units += 1;
        assert_eq!(after(&query, &product, &position).await.body["available"], units);
    }
    replica.launch().await;
    let before = read_from(&query, "replica-1", "answered").await;
    until("the replica is read from again", async || {
        query.get(&format!("/v1/products/{quiet}"), None, &[]).await;
        (read_from(&query, "replica-1", "answered").await > before).then_some(())
    })
    .await;

    // PgBouncer gone and back.
    bouncer.kill();
    let refused = query.get(&format!("/v1/products/{quiet}"), None, &[]).await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    bouncer.launch().await;
    let position = parts.receive(&product).await;
    units += 1;
    assert_eq!(after(&query, &product, &position).await.body["available"], units);
    parts.views().await.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_takes_too_long_is_not_asked_of_one_server_after_another() {
    let parts = Parts::open().await;
    let replica = Replica::of(&parts.postgres).await;
    let at = replica.url(parts.views.rsplit('/').next().unwrap());
    let query = parts.query(&[("TIDEMARK_REPLICA_URLS", &at)]).await;
    let product = parts.command.product("S", 3).await;
    let path = format!("/v1/products/{product}");
    until("the replica is read from", async || {
        query.get(&path, None, &[]).await;
        (read_from(&query, "replica-1", "answered").await > 0.0).then_some(())
    })
    .await;
    let failed = async |server: &'static str| read_from(&query, server, "failed").await;
    let before = (failed("replica-1").await, failed("primary").await);
    // The lock holds reads up on the replica, too.
    let pool = parts.views().await;
    let mut held = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE views.products_1 IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.unwrap();
    // What is not committed is sent with what is.
    sqlx::query("SELECT pg_logical_emit_message(true, '', '')").execute(&pool).await.unwrap();
    let there = PgPoolOptions::new().connect(&at).await.unwrap();
    until("the replica has the lock", async || {
        sqlx::query("SELECT FROM pg_locks WHERE relation = 'views.products_1'::regclass AND granted")
            .fetch_optional(&there)
            .await
            .unwrap()
    })
    .await;
    let answered = read_from(&query, "replica-1", "answered").await;
    until("what is not locked is read there", async || {
        let stock = query.get(&format!("{path}/stock"), Some(&query.staff), &[]).await;
        assert_eq!(stock.status, 200, "{}", stock.text);
        (read_from(&query, "replica-1", "answered").await > answered).then_some(())
    })
    .await;
    let answer = query.get("/v1/products?q=thing", None, &[]).await;
    assert_eq!((answer.status, answer.problem()), (503, "unavailable"), "{}", answer.text);
    held.rollback().await.unwrap();
    assert_eq!((failed("replica-1").await, failed("primary").await), (before.0 + 1.0, before.1));
    // The end of what is not committed comes to the replica when something else does.
    until("it is read again", async || {
        (query.get(&path, None, &[]).await.body["available"] == 3).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_primary_of_the_views_is_away_a_replica_answers() {
    let (logs, parts_log) = {
        let server = Postgres::start().await;
        let url = server.database().await;
        (server, url)
    };
    let postgres = Postgres::start().await;
    let views = postgres.database().await;
    let command = Shop::part("command", &parts_log, &[]).await;
    let _projector = Shop::part("projector", &parts_log, &[("TIDEMARK_VIEWS_URL", &views)]).await;
    let product = command.product("P", 4).await;
    until("the views stand there", async || {
        let pool = PgPoolOptions::new().connect(&views).await.ok()?;
        let units: i64 =
            sqlx::query_scalar("SELECT available FROM views.stock_1").fetch_one(&pool).await.ok()?;
        (units == 4).then_some(())
    })
    .await;
    let replica = Replica::of(&postgres).await;
    let at = replica.url(views.rsplit('/').next().unwrap());
    let settings =
        [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_REPLICA_URLS", &at), ("TIDEMARK_CACHE_MIB", "0")];
    let query = Shop::part("query", &parts_log, &settings).await;
    let path = format!("/v1/products/{product}");
    assert_eq!(query.get(&path, None, &[]).await.body["available"], 4);
    // One that had not heard of the last change would be right not to answer.
    let (primary, there) = (PgPool::connect(&views).await.unwrap(), PgPool::connect(&at).await.unwrap());
    until("the replica has all that there is", async || {
        let number = "SELECT number FROM views.head";
        let known: i64 = sqlx::query_scalar(number).fetch_one(&primary).await.unwrap();
        let has: i64 = sqlx::query_scalar(number).fetch_one(&there).await.unwrap();
        (has == known).then_some(())
    })
    .await;
    postgres.kill();
    for _ in 0..20 {
        let answer = query.get(&path, None, &[]).await;
        assert_eq!((answer.status, &answer.body["available"]), (200, &json!(4)), "{}", answer.text);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    // But nobody is told that it stands where it does not.
    let receipts = format!("/v1/products/{product}/stock-receipts");
    let received = command.post(&receipts, json!({ "quantity": 1 })).await;
    let position = received.header("tidemark-position").to_owned();
    let behind = query.get(&path, None, &[("Tidemark-After", &position)]).await;
    assert_eq!(behind.problem(), "view-behind");
    postgres.launch().await;
    assert_eq!(after(&query, &product, &position).await.body["available"], 5);
    drop(logs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_before_all_views_are_made_sees_the_last_of_them_come_though_redis_says_nothing_of_it() {
    let (postgres, redis) = tokio::join!(Postgres::shared(), Redis::start());
    let (log, views) = (postgres.database().await, postgres.database().await);
    let url = redis.url();
    let settings = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_REDIS_URL", url.as_str())];
    let _command = Shop::part("command", &log, &[]).await;
    // One view cannot be made yet. Nothing is ever appended, so no change says that it is there at last.
    let pool = PgPool::connect(&views).await.unwrap();
    let mut held = pool.begin().await.unwrap();
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended($1, 1))";
    sqlx::query(lock).bind(tidemark_views::ORDERS).execute(&mut *held).await.unwrap();
    let _projector = Shop::part("projector", &log, &settings).await;
    until("Redis is filled", async || redis.generation().await).await;
    let let_go = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        held.commit().await.unwrap();
        Instant::now()
    };
    let (_query, since) = tokio::join!(Shop::part("query", &log, &settings), let_go);
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_quiet_shop_who_follows_redis_knows_again_where_the_views_stand_after_a_restart_of_their_server()
{
    let parts = Parts::open().await;
    let url = parts.redis.url();
    let query = parts.query(&[("TIDEMARK_REDIS_URL", &url)]).await;
    let product = parts.command.product("Q", 1).await;
    let position = parts.receive(&product).await;
    assert_eq!(after(&query, &product, &position).await.body["available"], 2);
    until("Redis answers", async || {
        query.get(&format!("/v1/products/{product}"), None, &[]).await;
        (hits(&query).await >= 5.0).then_some(())
    })
    .await;
    parts.postgres.stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    parts.postgres.launch().await;
    // Nothing is appended: no change says it.
    let since = Instant::now();
    assert_eq!(after(&query, &product, &position).await.body["available"], 2);
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_memory_is_served_while_reads_hold_every_connection() {
    let parts = Parts::open().await;
    let url = parts.redis.url();
    let query = parts.query(&[("TIDEMARK_REDIS_URL", &url), ("TIDEMARK_CACHE_MIB", "16")]).await;
    let product = parts.command.product("M", 5).await;
    let order = parts.command.order(&product, 1, "m-1").await.unwrap();
    let path = format!("/v1/orders/{}", order.body["id"].as_str().unwrap());
    let position = order.header("tidemark-position").to_owned();
    until("the order is in memory", async || {
        let read = query.get(&path, Some(&query.customer), &[("Tidemark-After", &position)]).await;
        (read.status == 200).then_some(())
    })
    .await;
    let pool = parts.views().await;
    let mut held = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE views.products_1 IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.unwrap();
    let end = Instant::now() + Duration::from_secs(8);
    let others = futures_util::future::join_all((0..200).map(|_| async {
        while Instant::now() < end {
            query.get(&format!("/v1/products/{}", uuid::Uuid::now_v7()), None, &[]).await;
        }
    }));
    let reads = async {
        // Long enough for every connection to be taken, and for what was known before to be too old.
        tokio::time::sleep(Duration::from_secs(3)).await;
        while Instant::now() < end - Duration::from_millis(500) {
            let read = query.get(&path, Some(&query.customer), &[]).await;
            assert_eq!(read.status, 200, "{}", read.text);
            let ready = query.get("/readyz", None, &[]).await;
            assert_eq!(ready.status, 200, "{}", ready.text);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::join!(others, reads);
    held.rollback().await.unwrap();
}

/// Who searches takes no connection from who reads what he has ordered, and is told when it takes too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_that_hang_leave_connections_to_others() {
    let parts = Parts::open().await;
    let query = parts.query(&[("TIDEMARK_CACHE_MIB", "0")]).await;
    let product = parts.command.product("M", 5).await;
    let order = parts.command.order(&product, 1, "m-1").await.unwrap();
    let path = format!("/v1/orders/{}", order.body["id"].as_str().unwrap());
    let position = [("Tidemark-After", order.header("tidemark-position"))];
    assert_eq!(query.get(&path, Some(&query.customer), &position).await.status, 200);
    let pool = parts.views().await;
    let mut held = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE views.products_1 IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    let searches = futures_util::future::join_all((0..100).map(|client| {
        let query = &query;
        async move {
            let mut number = 0;
            while Instant::now() < end {
                number += 1;
                let begun = Instant::now();
                let found = query.get(&format!("/v1/products?q=word{client}x{number}"), None, &[]).await;
                assert_eq!((found.status, found.problem()), (503, "unavailable"), "{}", found.text);
                assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
            }
        }
    }));
    let reads = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        while Instant::now() < end {
            let begun = Instant::now();
            let read = query.get(&path, Some(&query.customer), &[]).await;
            assert_eq!(read.status, 200, "{}", read.text);
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::join!(searches, reads);
    held.rollback().await.unwrap();
    until("searches are answered again", async || {
        (query.get("/v1/products?q=thing", None, &[]).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_worker_that_has_lost_its_session_is_opened_anew_though_nothing_more_happens() {
    let postgres = Postgres::shared().await;
    let (log, views) = (postgres.database().await, postgres.database().await);
    let settings = [
        ("TIDEMARK_VIEWS_URL", views.as_str()),
        ("TIDEMARK_PROJECTIONS", "stock"),
        ("TIDEMARK_PROJECTOR_WORKERS", "3"),
    ];
    let _projector = Shop::part("projector", &log, &settings).await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&views).await.unwrap();
    let sessions = async || -> Vec<(i32, bool)> {
        sqlx::query_as(
            "SELECT pid, EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND locktype = 'advisory') \
             FROM pg_stat_activity a WHERE application_name = 'tidemark projector' AND datname = current_database()",
        )
        .fetch_all(&pool)
        .await
        .unwrap()
    };
    let three = async || Some(sessions().await).filter(|found| found.len() == 3);
    let before = until("all are there", three).await;
    // Not the first: with its session the lock would go.
    let (lost, _) = *before.iter().find(|(_, is_owner)| !is_owner).unwrap();
    sqlx::query("SELECT pg_terminate_backend($1)").bind(lost).execute(&pool).await.unwrap();
    let is_another = |found: &Vec<(i32, bool)>| found.iter().all(|(pid, _)| *pid != lost);
    until("all are there again", async || three().await.filter(is_another)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_that_stops_in_the_middle_of_a_transaction_holds_nobody_up_for_long() {
    let postgres = Postgres::shared().await;
    let (log, views) = (postgres.database().await, postgres.database().await);
    let command = Shop::part("command", &log, &[]).await;
    let settings = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_PROJECTIONS", "stock")];
    let first = Shop::part("projector", &log, &settings).await;
    let product = command.product("S", 1).await;
    let pool = PgPoolOptions::new().max_connections(2).connect(&views).await.unwrap();
    let units = async || {
        let units: Option<i64> =
            sqlx::query_scalar("SELECT available FROM views.stock_1").fetch_optional(&pool).await.ok()?;
        units
    };
    until("the view shows one unit", async || (units().await? == 1).then_some(())).await;
    // Its transaction waits for the number of the newest change; then it stops, and then it gets the number.
    let mut holding = pool.begin().await.unwrap();
    sqlx::query("SELECT number FROM views.head FOR UPDATE").fetch_one(&mut *holding).await.unwrap();
    let receipts = format!("/v1/products/{product}/stock-receipts");
    assert_eq!(command.post(&receipts, json!({ "quantity": 1 })).await.status, 201);
    until("the projector waits", async || {
        let waits: bool = sqlx::query_scalar(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'tidemark projector' \
             AND datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&pool)
        .await
        .unwrap();
        waits.then_some(())
    })
    .await;
    kill_process(Pid::from_raw(first.pid()).unwrap(), Signal::STOP).unwrap();
    holding.commit().await.unwrap();
    let _second = Shop::part("projector", &log, &settings).await;
    let since = Instant::now();
    until("another goes on", async || (units().await? == 2).then_some(())).await;
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    kill_process(Pid::from_raw(first.pid()).unwrap(), Signal::CONT).unwrap();
}
