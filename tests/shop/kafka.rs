//! The log in Kafka, and views from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tidemark_events::RecordedEvent;
use tidemark_events::log::{Filter, Head, Log};
use tidemark_events::partition::{PARTITIONS, partition_of};
use tidemark_kafka::record::{self, Record};
use uuid::Uuid;

use crate::broker::Broker;
use crate::harness::{Answer, Postgres, Shop, audit, until};
use crate::servers::Redis;

pub(crate) const TOPIC: &str = "tidemark";

fn signal(shop: &Shop, signal: Signal) {
    kill_process(Pid::from_raw(shop.pid()).unwrap(), signal).unwrap();
}

async fn commands(log: &str, broker: &Broker) -> Shop {
    Shop::part("command", log, &[("TIDEMARK_KAFKA_BROKERS", &broker.address())]).await
}

async fn metric(shop: &Shop, name: &str) -> f64 {
    let text = shop.get("/metrics", None, &[]).await.text;
    let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

async fn events(pool: &PgPool) -> Vec<RecordedEvent> {
    let log = Log::new(pool.clone());
    let head = log.head().await.unwrap();
    let (mut all, mut at) = (Vec::new(), 0);
    while at < head.position {
        let page = log.read(at, head.position, &Filter::default(), 5_000).await.unwrap();
        at = page.read_to;
        all.extend(page.events);
    }
    all
}

/// Waits until every partition has a watermark at the log's head, then compares: each event once, in the order of the
/// log, byte for byte, in the partition of its key.
async fn topic_is_the_log(broker: &Broker, pool: &PgPool) {
    let events = events(pool).await;
    let head = events.last().unwrap().position;
    let content = until("the topic holds the log", async || {
        let content = tokio::task::block_in_place(|| broker.content(TOPIC, PARTITIONS.into()));
        content
            .iter()
            .all(|records| records.last().is_some_and(|record| record.at.position >= head))
            .then_some(content)
    })
    .await;
    for (partition, records) in content.iter().enumerate() {
        let here = |event: &&RecordedEvent| {
            usize::from(partition_of(event.partition_key).unsigned_abs()) == partition
        };
        let expected: Vec<&RecordedEvent> = events.iter().filter(here).collect();
        let found: Vec<&RecordedEvent> = records.iter().filter_map(|record| record.event.as_ref()).collect();
        assert_eq!(found, expected, "partition {partition}");
        assert!(records.is_sorted_by_key(|record| record.at.position), "places go up");
    }
}

/// The topic's partitions, once each of them has come to the log's head.
async fn content_with(broker: &Broker, head: Head) -> Vec<Vec<Record>> {
    until("the epoch is published", async || {
        let content = tokio::task::block_in_place(|| broker.content(TOPIC, PARTITIONS.into()));
        let reached = |records: &Vec<Record>| {
            records.last().is_some_and(|last| last.at.epoch == head.epoch && last.at >= head)
        };
        content.iter().all(reached).then_some(content)
    })
    .await
}

/// The rows of all live views, as text.
pub(crate) async fn rows(pool: &PgPool) -> BTreeMap<String, Vec<String>> {
    let live: Vec<(String, i32)> =
        sqlx::query_as("SELECT name, instance FROM views.projections WHERE state = 'live'")
            .fetch_all(pool)
            .await
            .unwrap();
    let mut all = BTreeMap::new();
    let with_audit = live.iter().filter(|(name, _)| name == "audit").map(|(_, instance)| *instance);
    let with_audit: Vec<_> = with_audit
        .flat_map(|instance| ["security_events", "accounts"].map(|table| (table.to_owned(), instance)))
        .collect();
    for (name, instance) in live.into_iter().chain(with_audit) {
        let rows = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT t::text FROM views.{name}_{instance} t ORDER BY 1"
        )))
        .fetch_all(pool)
        .await
        .unwrap();
        all.insert(name, rows);
    }
    all
}

pub(crate) async fn stands_at(pool: &PgPool, position: i64) {
    until("the views catch up", async || {
        let at: Option<i64> = sqlx::query_scalar(
            "SELECT min(position) FROM views.checkpoints JOIN views.projections USING (name, instance) \
             WHERE state = 'live' HAVING count(DISTINCT name) = 4",
        )
        .fetch_optional(pool)
        .await
        .ok()?;
        (at? >= position).then_some(())
    })
    .await;
}

/// Both stand there, and hold the same.
pub(crate) async fn same_at(position: i64, one: &PgPool, other: &PgPool) {
    stands_at(one, position).await;
    stands_at(other, position).await;
    assert_eq!(rows(one).await, rows(other).await);
}

/// From the topic as from the log.
async fn views_that_begin_now_are_the_same(
    broker: &Broker,
    elsewhere: &Postgres,
    log: &str,
    service: &Shop,
    product: &str,
) {
    let (from_topic, from_log, address) =
        (elsewhere.database().await, elsewhere.database().await, broker.address());
    let settings = [
        ("TIDEMARK_VIEWS_URL", from_topic.as_str()),
        ("TIDEMARK_KAFKA_BROKERS", address.as_str()),
        ("TIDEMARK_KAFKA_GROUP", "late"),
    ];
    let _late = Shop::part("projector", log, &settings).await;
    let _other = Shop::part("projector", log, &[("TIDEMARK_VIEWS_URL", &from_log)]).await;
    let pool_from_topic = PgPool::connect(&from_topic).await.unwrap();
    let pool_from_log = PgPool::connect(&from_log).await.unwrap();
    same_at(one_more(service, product, "the last").await, &pool_from_topic, &pool_from_log).await;
    let read: i64 =
        sqlx::query_scalar("SELECT count(*) FROM views.checkpoints WHERE source_offset IS NOT NULL")
            .fetch_one(&pool_from_topic)
            .await
            .unwrap();
    assert!(read > 0, "they did come from the topic");
}

/// What the topic has of an epoch, in the order of the log.
fn published_in(epoch: i32, content: Vec<Vec<Record>>) -> Vec<RecordedEvent> {
    let of_epoch = content.into_iter().flatten().filter(|record| record.at.epoch == epoch);
    let mut events: Vec<RecordedEvent> = of_epoch.filter_map(|record| record.event).collect();
    events.sort_unstable_by_key(|event| event.position);
    events
}

/// Of the position that a command was answered with.
fn epoch_of(answer: &Answer) -> i32 {
    answer.header("tidemark-position").split_once('-').unwrap().0.parse().unwrap()
}

/// Orders one unit; the position that views must come to.
async fn one_more(service: &Shop, product: &str, key: &str) -> i64 {
    let answer = service.order(product, 1, key).await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.body["position"].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topic_is_the_log_whoever_publishes_and_whatever_is_killed() {
    let (postgres, broker) = tokio::join!(Postgres::start(), Broker::start());
    let url = postgres.database().await;
    let mut services = vec![commands(&url, &broker).await, commands(&url, &broker).await];
    let product = services[0].product("K", 1_000_000).await;
    let pool = services[0].pool().await;
    let mut acknowledged = 0;
    for round in 0..3 {
        for n in 0..40 {
            let answer = services[n % 2].order(&product, 1, &format!("{round}-{n}")).await.unwrap();
            assert_eq!(answer.status, 201, "{}", answer.text);
            acknowledged += 1;
        }
        // The one that publishes is killed, once while it is paused; the other goes on within two seconds.
        let mut leader = 0;
        until("one of them publishes", async || {
            for (n, service) in services.iter().enumerate() {
                if metric(service, "tidemark_publisher_leads").await > 0.0 {
                    leader = n;
                    return Some(());
                }
            }
            None
        })
        .await;
        let killed = services.remove(leader);
        signal(&killed, if round == 1 { Signal::STOP } else { Signal::KILL });
        let since = Instant::now();
        until("the other takes over", async || {
            (metric(&services[0], "tidemark_publisher_leads").await > 0.0).then_some(())
        })
        .await;
        assert!(since.elapsed() < Duration::from_secs(2), "handed over after {:?}", since.elapsed());
        services.push(commands(&url, &broker).await);
        topic_is_the_log(&broker, &pool).await;
        if round == 1 {
            // It wakes up, still thinking that it leads, and is fenced.
            signal(&killed, Signal::CONT);
            let answer = services[0].order(&product, 1, "after it woke").await.unwrap();
            assert_eq!(answer.status, 201);
            acknowledged += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
            topic_is_the_log(&broker, &pool).await;
        }
    }

    // Kafka away: commands go on, and what they did is published when it is back.
    broker.kill();
    let since = Instant::now();
    for n in 0..50 {
        assert_eq!(services[0].order(&product, 1, &format!("away-{n}")).await.unwrap().status, 201);
        acknowledged += 1;
    }
    assert!(since.elapsed() < Duration::from_secs(5), "commands do not wait for Kafka");
    broker.launch().await;
    topic_is_the_log(&broker, &pool).await;
    let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM log.events WHERE event_type = 'OrderPlaced'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(orders, acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_its_end_is_published_anew_from_the_fork_and_views_beyond_it_mix_nothing() {
    let (postgres, elsewhere, broker, redis) =
        tokio::join!(Postgres::start(), Postgres::start(), Broker::start(), Redis::start());
    let (url, views) = (postgres.database().await, elsewhere.database().await);
    let (address, tier) = (broker.address(), redis.url());
    let service = commands(&url, &broker).await;
    let settings = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_REDIS_URL", tier.as_str())];
    let from_kafka = [&settings[..], &[("TIDEMARK_KAFKA_BROKERS", address.as_str())]].concat();
    let projector = Shop::part("projector", &url, &from_kafka).await;
    // Another one reads the log alone.
    let views_of_log = elsewhere.database().await;
    let _follower = Shop::part("projector", &url, &[("TIDEMARK_VIEWS_URL", &views_of_log)]).await;
    let query = Shop::part("query", &url, &[&settings[..], &[("TIDEMARK_CACHE_MIB", "0")]].concat()).await;
    let pool_views = sqlx::PgPool::connect(&views).await.unwrap();
    let pool_of_log = sqlx::PgPool::connect(&views_of_log).await.unwrap();
    let product = service.product("E", 100).await;
    let kept = service.order(&product, 1, "kept").await.unwrap();
    let fork = kept.body["position"].as_i64().unwrap();
    same_at(fork, &pool_views, &pool_of_log).await;
    topic_is_the_log(&broker, &service.pool().await).await;
    postgres.kill();
    postgres.copy_as_replica();
    postgres.launch().await;
    let (mut beyond, mut gone) = (0, String::new());
    for n in 0..3 {
        let lost = until("orders are taken again", async || {
            service.order(&product, 5, &format!("lost {n}")).await.ok().filter(|answer| answer.status == 201)
        })
        .await;
        beyond = lost.body["position"].as_i64().unwrap();
        gone = lost.body["id"].as_str().unwrap().to_owned();
    }
    same_at(beyond, &pool_views, &pool_of_log).await;
    let own = query.customer.clone();
    assert_eq!(query.get(&format!("/v1/orders/{gone}"), Some(&own), &[]).await.status, 200);
    let shown = rows(&pool_views).await;

    postgres.kill();
    postgres.put_replica_in_place();
    postgres.launch().await;
    sqlx::query("SELECT pg_promote()").execute(&sqlx::PgPool::connect(&url).await.unwrap()).await.unwrap();
    let new = until("orders are taken by the promoted server", async || {
        service.order(&product, 1, "new").await.ok().filter(|answer| answer.status == 201)
    })
    .await;
    let epoch = epoch_of(&new);
    assert!(epoch > 1);
    let pool = service.pool().await;
    let log: Vec<RecordedEvent> = events(&pool).await;
    let head = log.last().unwrap().position;
    assert!(head < beyond, "the log is shorter than what was published");
    let content = content_with(&broker, Head { epoch, position: head }).await;
    for records in &content {
        assert!(
            records.is_sorted_by_key(|record| record.at),
            "within a partition, the new epoch follows the old one"
        );
    }
    let expected: Vec<RecordedEvent> = log.into_iter().filter(|event| event.position > fork).collect();
    assert_eq!(
        published_in(epoch, content),
        expected,
        "of the new epoch the topic holds what the log holds behind the fork"
    );
    until("who reads the topic says so", async || {
        let words = std::fs::read_to_string(&projector.words).unwrap();
        let of_orders =
            |line: &str| line.contains("orders instance 1") && line.contains("it has lost its end");
        words.lines().any(of_orders).then_some(())
    })
    .await;
    // The views hold what was lost: nothing of the new epoch is put on top of that, also when it is past their place.
    let mut last = String::new();
    for n in 0..6 {
        let more = service.order(&product, 1, &format!("more {n}")).await.unwrap();
        assert_eq!(more.status, 201, "{}", more.text);
        assert!(n < 5 || more.body["position"].as_i64().unwrap() > beyond);
        last = more.header("tidemark-position").to_owned();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for pool in [&pool_views, &pool_of_log] {
        assert_eq!(rows(pool).await, shown);
        let newest: i32 =
            sqlx::query_scalar("SELECT max(epoch) FROM views.checkpoints").fetch_one(pool).await.unwrap();
        assert!(newest < epoch, "{newest}");
    }
    let path = format!("/v1/products/{product}");
    assert_eq!(query.get(&path, None, &[("Tidemark-After", &last)]).await.problem(), "view-behind");

    // Built anew, they hold the new epoch alone, and so does what comes from Redis; also where somebody had begun before
    // the end was lost.
    let orders = tidemark_projector::find("orders").unwrap();
    let mut begun = pool_views.begin().await.unwrap();
    sqlx::query("INSERT INTO views.projections (name, instance, fold_version, state) VALUES ('orders', 2, $1, 'building')")
        .bind(orders.fold_version())
        .execute(&mut *begun)
        .await
        .unwrap();
    for statement in orders.create(2) {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *begun).await.unwrap();
    }
    sqlx::query(
        "INSERT INTO views.checkpoints (name, instance, partition, epoch, position) \
         SELECT name, 2, partition, epoch, position FROM views.checkpoints WHERE name = 'orders'",
    )
    .execute(&mut *begun)
    .await
    .unwrap();
    begun.commit().await.unwrap();
    let before = redis.generation().await;
    for name in ["products", "stock", "orders", "audit"] {
        let rebuilt = crate::harness::tidemark()
            .args(["rebuild", name])
            .envs([("TIDEMARK_LOG_URL", &url), ("TIDEMARK_VIEWS_URL", &views)])
            .output()
            .await
            .unwrap();
        assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    }
    for _ in 0..20 {
        let answer = query.get(&path, None, &[("Tidemark-After", &last)]).await;
        assert_eq!(answer.body["available"], 100 - 1 - 1 - 6, "{}", answer.text);
        assert_eq!(query.get(&format!("/v1/orders/{gone}"), Some(&own), &[]).await.status, 404);
    }
    assert_ne!(redis.generation().await, before);
    let back = crate::harness::tidemark()
        .args(["rebuild", "orders", "--back"])
        .envs([("TIDEMARK_LOG_URL", &url), ("TIDEMARK_VIEWS_URL", &views)])
        .output()
        .await
        .unwrap();
    let words = String::from_utf8_lossy(&back.stderr);
    assert!(
        !back.status.success() && words.contains("lost its end"),
        "no way back to what was lost: {words}"
    );

    // Views that begin now pass over what the topic still has of the lost end.
    let late = elsewhere.database().await;
    let settings = [
        ("TIDEMARK_VIEWS_URL", late.as_str()),
        ("TIDEMARK_KAFKA_BROKERS", address.as_str()),
        ("TIDEMARK_KAFKA_GROUP", "late"),
    ];
    let _late = Shop::part("projector", &url, &settings).await;
    let pool_late = sqlx::PgPool::connect(&late).await.unwrap();
    same_at(one_more(&service, &product, "last").await, &pool_late, &pool_views).await;
}

/// The same backup twice, with work in between: it knows nothing of the epoch that was begun after it was restored first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_restored_again_begins_an_epoch_that_there_never_was() {
    let (postgres, elsewhere, broker) = tokio::join!(Postgres::start(), Postgres::start(), Broker::start());
    let (url, views) = (postgres.database().await, elsewhere.database().await);
    let views_of_log = elsewhere.database().await;
    let (service, address) = (commands(&url, &broker).await, broker.address());
    let settings = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_KAFKA_BROKERS", address.as_str())];
    let projector = Shop::part("projector", &url, &settings).await;
    let follower = Shop::part("projector", &url, &[("TIDEMARK_VIEWS_URL", &views_of_log)]).await;
    let pool_views = PgPool::connect(&views).await.unwrap();
    let pool_of_log = PgPool::connect(&views_of_log).await.unwrap();
    let product = service.product("R", 100).await;
    topic_is_the_log(&broker, &service.pool().await).await;
    let kept = events(&service.pool().await).await.len();
    postgres.kill();
    postgres.copy_as_replica();
    let restored = async |name: &str| {
        postgres.kill();
        postgres.put_replica_in_place();
        postgres.launch().await;
        sqlx::query("SELECT pg_promote()").execute(&PgPool::connect(&url).await.unwrap()).await.unwrap();
        until("orders are taken again", async || {
            service.order(&product, 5, name).await.ok().filter(|answer| answer.status == 201)
        })
        .await
    };
    let first = restored("first").await;
    let beyond = one_more(&service, &product, "first, one more").await;
    same_at(beyond, &pool_views, &pool_of_log).await;
    let shown = rows(&pool_views).await;

    let second = restored("second").await;
    assert!(epoch_of(&second) > epoch_of(&first), "{} {}", epoch_of(&first), epoch_of(&second));
    assert!(second.body["position"].as_i64().unwrap() < beyond);
    // Also past where they stand, nothing is put on top of what was lost.
    let mut position = 0;
    for n in 0..3 {
        position = one_more(&service, &product, &format!("second, {n}")).await;
    }
    assert!(position > beyond);
    for shop in [&projector, &follower] {
        until("it says so", async || {
            let words = std::fs::read_to_string(&shop.words).unwrap();
            words.lines().any(|line| line.contains("orders") && line.contains("lost its end")).then_some(())
        })
        .await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for pool in [&pool_views, &pool_of_log] {
        assert_eq!(rows(pool).await, shown);
    }
    // The log has never heard of the epoch that the topic stands in; the topic tells where that began.
    let log = events(&service.pool().await).await;
    let content =
        content_with(&broker, Head { epoch: epoch_of(&second), position: log.last().unwrap().position })
            .await;
    assert_eq!(published_in(epoch_of(&second), content), log[kept..]);
    // Views that begin now pass over the epoch that the log never had.
    views_that_begin_now_are_the_same(&broker, &elsewhere, &url, &service, &product).await;
}

/// Files that were copied and put back, as from a volume's snapshot: the server is the same, and so is its timeline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_files_were_put_back_begins_an_epoch_before_anything_is_appended() {
    let (postgres, elsewhere, broker) = tokio::join!(Postgres::start(), Postgres::start(), Broker::start());
    let (url, views) = (postgres.database().await, elsewhere.database().await);
    let (service, address) = (commands(&url, &broker).await, broker.address());
    let settings = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_KAFKA_BROKERS", address.as_str())];
    let projector = Shop::part("projector", &url, &settings).await;
    let product = service.product("F", 10_000).await;
    let published = usize::try_from(one_more(&service, &product, "published").await).unwrap();
    topic_is_the_log(&broker, &service.pool().await).await;
    drop(service);
    // What is in the log when its files are copied, and not in the topic yet, gets there in the next epoch.
    let alone = Shop::part("command", &url, &[]).await;
    one_more(&alone, &product, "not published").await;
    drop(alone);
    postgres.kill();
    postgres.copy_as_replica();
    let put_back = async || {
        postgres.kill();
        postgres.put_files_back();
        postgres.launch().await;
    };
    postgres.launch().await;
    let service = commands(&url, &broker).await;
    until("orders are taken again", async || {
        service.order(&product, 1, "lost").await.ok().filter(|answer| answer.status == 201)
    })
    .await;
    for n in 0..5 {
        one_more(&service, &product, &format!("lost {n}")).await;
    }
    topic_is_the_log(&broker, &service.pool().await).await;
    let lost: i32 = {
        let mut connection = PgConnection::connect(&url).await.unwrap();
        sqlx::query_scalar("SELECT epoch FROM log.head").fetch_one(&mut connection).await.unwrap()
    };
    let pool_views = PgPool::connect(&views).await.unwrap();
    stands_at(&pool_views, events(&service.pool().await).await.len() as i64).await;
    let shown = rows(&pool_views).await;

    // Nobody writes: who publishes finds out.
    put_back().await;
    let first = until("an epoch begins", async || {
        let mut connection = PgConnection::connect(&url).await.ok()?;
        let epoch: i32 =
            sqlx::query_scalar("SELECT epoch FROM log.head").fetch_one(&mut connection).await.ok()?;
        (epoch > 1 && epoch != lost).then_some(epoch)
    })
    .await;
    until("who reads the topic says so", async || {
        one_more(&service, &product, &Uuid::now_v7().to_string()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let words = std::fs::read_to_string(&projector.words).unwrap();
        words.lines().any(|line| line.contains("orders") && line.contains("lost its end")).then_some(())
    })
    .await;
    let log = events(&service.pool().await).await;
    let content = content_with(&broker, Head { epoch: first, position: log.last().unwrap().position }).await;
    assert_eq!(published_in(first, content), log[published..]);

    // Nobody publishes: the log is further than the topic when somebody does, and there is no event of both.
    drop(service);
    put_back().await;
    let alone = Shop::part("command", &url, &[]).await;
    for n in 0..log.len() {
        one_more(&alone, &product, &format!("more {n}")).await;
    }
    drop(alone);
    let service = commands(&url, &broker).await;
    let last = service.order(&product, 1, "last").await.unwrap();
    assert!(epoch_of(&last) > first, "{}", last.text);
    let log = events(&service.pool().await).await;
    let content =
        content_with(&broker, Head { epoch: epoch_of(&last), position: log.last().unwrap().position }).await;
    assert_eq!(published_in(epoch_of(&last), content), log[published..]);
    assert_eq!(rows(&pool_views).await, shown, "nothing is put on top of what was lost");
    // A view that begins now has everything.
    views_that_begin_now_are_the_same(&broker, &elsewhere, &url, &service, &product).await;
}

/// Whichever epochs it has: another log is another log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_log_is_not_published_to_the_topic_of_one() {
    let (postgres, broker) = tokio::join!(Postgres::start(), Broker::start());
    let url = postgres.database().await;
    let service = commands(&url, &broker).await;
    service.product("A", 100).await;
    let log = events(&service.pool().await).await;
    let head = Head { epoch: 1, position: log.last().unwrap().position };
    content_with(&broker, head).await;
    drop(service);
    // A later epoch and a further position do not make it the same.
    let other = postgres.database().await;
    let alone = Shop::part("command", &other, &[]).await;
    alone.product("B", 100).await;
    drop(alone);
    postgres.kill();
    postgres.launch().await;
    let service = commands(&other, &broker).await;
    service.product("C", 100).await;
    assert!(events(&service.pool().await).await.len() > log.len());
    until("it says so", async || {
        let words = std::fs::read_to_string(&service.words).unwrap();
        words.lines().any(|line| line.contains("it is not the log that was published there")).then_some(())
    })
    .await;
    let content = content_with(&broker, head).await;
    assert_eq!(published_in(1, content), log);
}

/// Their commits do not wait for the disk. Who has applied the last event must find out by itself that it is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_from_the_topic_that_a_crash_throws_back_go_on_by_themselves() {
    let (postgres, elsewhere, broker) = tokio::join!(Postgres::shared(), Postgres::start(), Broker::start());
    let (url, views) = (postgres.database().await, elsewhere.database().await);
    let pool = PgPool::connect(&views).await.unwrap();
    sqlx::query("ALTER SYSTEM SET wal_writer_delay = '10s'").execute(&pool).await.unwrap();
    sqlx::query("SELECT pg_reload_conf()").execute(&pool).await.unwrap();
    let service = commands(&url, &broker).await;
    let settings = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_KAFKA_BROKERS", &broker.address())];
    let projector = Shop::part("projector", &url, &settings).await;
    let product = service.product("C", 100).await;
    let mut position = one_more(&service, &product, "before").await;
    stands_at(&pool, position).await;
    let mut round = 0;
    until("a crash throws the views back", async || {
        round += 1;
        position = one_more(&service, &product, &format!("round {round}")).await;
        stands_at(&pool, position).await;
        // It must not go on before it has been seen where the crash left it.
        signal(&projector, Signal::STOP);
        elsewhere.kill();
        elsewhere.launch().await;
        let left: i64 =
            sqlx::query_scalar("SELECT min(position) FROM views.checkpoints WHERE name <> 'audit'")
                .fetch_one(&pool)
                .await
                .unwrap();
        signal(&projector, Signal::CONT);
        (left < position).then_some(())
    })
    .await;
    stands_at(&pool, position).await;
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM views.orders_1").fetch_one(&pool).await.unwrap();
    assert_eq!(seen, 1 + round);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_from_the_topic_are_those_from_the_log() {
    let (postgres, broker) = tokio::join!(Postgres::start(), Broker::start());
    let (url, other) = (postgres.database().await, postgres.database().await);
    let address = broker.address();
    let settings = [
        ("TIDEMARK_VIEWS_URL", url.as_str()),
        ("TIDEMARK_KAFKA_BROKERS", address.as_str()),
        // Who had which partition from when on.
        ("TIDEMARK_LOG", "info"),
    ];
    let service = commands(&url, &broker).await;
    let mut projectors =
        [Shop::part("projector", &url, &settings).await, Shop::part("projector", &url, &settings).await];
    // The same views from the log, in a database of their own.
    let _from_log = Shop::part("projector", &url, &[("TIDEMARK_VIEWS_URL", &other)]).await;
    let query = Shop::part("query", &url, &[("TIDEMARK_VIEWS_URL", &url)]).await;

    let mut products = Vec::new();
    for n in 0..12 {
        products.push(service.product(&format!("V{n}"), 10_000).await);
    }
    let service = Arc::new(service);
    let mut last = String::new();
    for round in 0..3 {
        let mut orders = tokio::task::JoinSet::new();
        for n in 0..60 {
            let (service, product) = (Arc::clone(&service), products[n % products.len()].clone());
            orders.spawn(async move { service.order(&product, 2, &format!("{round}-{n}")).await.unwrap() });
        }
        if round > 0 {
            // One projector is killed in the middle of it, or wakes up when its partitions are another's.
            tokio::time::sleep(Duration::from_millis(100)).await;
            signal(&projectors[0], if round == 1 { Signal::KILL } else { Signal::STOP });
        }
        for (n, answer) in orders.join_all().await.into_iter().enumerate() {
            assert_eq!(answer.status, 201, "{}", answer.text);
            if n % 3 == 0 {
                let id = answer.body["id"].as_str().unwrap();
                let path = format!("/v1/orders/{id}/cancellation");
                let cancelled = service
                    .send(
                        reqwest::Method::POST,
                        &path,
                        Some(&service.customer),
                        &[("Idempotency-Key", id)],
                        None,
                    )
                    .await
                    .unwrap();
                assert_eq!(cancelled.status, 200, "{}", cancelled.text);
                last = format!("{id} {}", cancelled.header("tidemark-position"));
            }
        }
        if round == 1 {
            projectors[0] = Shop::part("projector", &url, &settings).await;
        }
    }
    // Accounts and what happens to them are in views, too.
    let mut body = serde_json::json!({ "email": "topic@example.org", "password": "a long passphrase 88" });
    let told = service.send(reqwest::Method::POST, "/v1/accounts", None, &[], Some(body.clone())).await;
    assert_eq!(told.unwrap().status, 202);
    body["password"] = "a wrong passphrase 99".into();
    let refused = service.send(reqwest::Method::POST, "/v1/sessions", None, &[], Some(body)).await;
    assert_eq!(refused.unwrap().status, 401);
    until("the failure is in the log", async || {
        let failed = events(&service.pool().await).await;
        failed.iter().any(|event| event.event_type == "LoginFailed").then_some(())
    })
    .await;

    // What was written is read, through other processes.
    let (id, position) = last.split_once(' ').unwrap();
    let read = until("the order is read as it was left", async || {
        let after = [("Tidemark-After", position)];
        let answer = query.get(&format!("/v1/orders/{id}"), Some(&query.customer), &after).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(read.body["status"], "cancelled");

    let pool = service.pool().await;
    let pool_other = sqlx::PgPool::connect(&other).await.unwrap();
    let head: i64 = sqlx::query_scalar("SELECT position FROM log.head").fetch_one(&pool).await.unwrap();
    same_at(head, &pool, &pool_other).await;
    let filled = rows(&pool).await;
    for table in ["audit", "security_events", "accounts"] {
        assert!(!filled[table].is_empty(), "{table}");
    }
    audit(&pool).await;
    signal(&projectors[0], Signal::CONT);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(rows(&pool).await, rows(&pool_other).await, "who wakes up late does no harm");
    // Records that are none of ours, and one from the past, change nothing and stop nobody.
    let producer: BaseProducer = broker.client().create().unwrap();
    let past = events(&pool).await.into_iter().find(|event| event.category == "order").unwrap();
    for partition in 0..i32::from(PARTITIONS) {
        let stray = BaseRecord::<str, [u8]>::to(TOPIC).partition(partition).payload(b"\xff\x00 no event");
        producer.send(stray).unwrap();
        let half = OwnedHeaders::new().insert(Header { key: "ce_epoch", value: Some("1") });
        producer.send(BaseRecord::<str, str>::to(TOPIC).partition(partition).headers(half)).unwrap();
    }
    send(&producer, 1, &past);
    producer.flush(Duration::from_secs(10)).unwrap();
    let position = one_more(&service, &products[0], "after the strays").await;
    same_at(position, &pool, &pool_other).await;
    let from_topic: i64 =
        sqlx::query_scalar("SELECT count(*) FROM views.checkpoints WHERE source_offset IS NOT NULL")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert!(from_topic > 0, "they did come from the topic");
    let strays: BTreeMap<i16, i64> = sqlx::query_as(
        "SELECT partition, count(*) FROM views.strays WHERE name = 'orders' GROUP BY partition",
    )
    .fetch_all(&pool)
    .await
    .unwrap()
    .into_iter()
    .collect();
    assert_eq!(strays, (0..PARTITIONS).map(|partition| (partition, 2)).collect(), "each is written down");

    // A view that begins now takes all of it from the topic, the strays between included.
    let late = postgres.database().await;
    let settings = [
        ("TIDEMARK_VIEWS_URL", late.as_str()),
        ("TIDEMARK_KAFKA_BROKERS", address.as_str()),
        ("TIDEMARK_KAFKA_GROUP", "late"),
    ];
    let _late = Shop::part("projector", &url, &settings).await;
    let pool_late = sqlx::PgPool::connect(&late).await.unwrap();
    same_at(position, &pool_late, &pool_other).await;
    let from_log: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM views.checkpoints WHERE (source_offset IS NULL) <> (name = 'audit')",
    )
    .fetch_one(&pool_late)
    .await
    .unwrap();
    assert_eq!(
        from_log, 0,
        "every partition of every view came from the topic, and only the audit from the log"
    );

    // Built anew from the log, it goes on with the topic.
    let rebuilt = crate::harness::tidemark()
        .args(["rebuild", "orders"])
        .env("TIDEMARK_LOG_URL", &url)
        .env("TIDEMARK_VIEWS_URL", &late)
        .output()
        .await
        .unwrap();
    assert!(rebuilt.status.success());
    let position = one_more(&service, &products[0], "after the rebuild").await;
    same_at(position, &pool_late, &pool_other).await;

    // Back, and forth again, while orders are placed: both are fed from the topic.
    let switched = AtomicBool::new(false);
    let placing = futures_util::future::join_all((0..16).map(async |buyer| {
        let mut n = 0;
        while !switched.load(Ordering::Relaxed) {
            n += 1;
            let key = format!("while it is switched, {buyer} {n}");
            one_more(&service, &products[n % products.len()], &key).await;
        }
    }));
    let switching = async {
        for _ in 0..8 {
            let back = crate::harness::tidemark()
                .args(["rebuild", "orders", "--back"])
                .env("TIDEMARK_LOG_URL", &url)
                .env("TIDEMARK_VIEWS_URL", &late)
                .output()
                .await
                .unwrap();
            assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
        }
        switched.store(true, Ordering::Relaxed);
    };
    tokio::join!(placing, switching);
    let position = one_more(&service, &products[0], "after the way back").await;
    same_at(position, &pool_late, &pool_other).await;
}

/// Orders until every partition of every view stands at a record of the topic. The audit takes its events from the log.
async fn read_the_topic(views: &PgPool, service: &Shop, product: &str) {
    until("the views read the topic", async || {
        let position = one_more(service, product, &Uuid::now_v7().to_string()).await;
        stands_at(views, position).await;
        let all: bool = sqlx::query_scalar(
            "SELECT bool_and(source_offset IS NOT NULL) FROM views.checkpoints WHERE name <> 'audit'",
        )
        .fetch_one(views)
        .await
        .unwrap();
        all.then_some(())
    })
    .await;
}

/// What somebody else than the publisher writes to the topic, in its form.
pub(crate) fn send(producer: &BaseProducer, epoch: i32, event: &RecordedEvent) {
    let (key, mut time) = (event.partition_key.to_string(), record::Time::default());
    let record = BaseRecord::<str, str>::to(TOPIC)
        .key(&key)
        .partition(partition_of(event.partition_key).into())
        .payload(&*event.payload)
        .headers(record::headers(epoch, event, &mut time));
    producer.send(record).unwrap();
}

/// The offset behind the newest record of each partition.
fn ends(broker: &Broker) -> Vec<i64> {
    let consumer: BaseConsumer = broker.client().set("group.id", "tests").create().unwrap();
    let bounds =
        |partition: i16| consumer.fetch_watermarks(TOPIC, partition.into(), Duration::from_secs(10)).unwrap();
    (0..PARTITIONS).map(|partition| bounds(partition).1).collect()
}

/// Kafka deletes what is older than its retention; the log keeps everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_topic_no_longer_has_is_taken_from_the_log() {
    let (postgres, broker) = tokio::join!(Postgres::start(), Broker::start());
    let (url, views) = (postgres.database().await, postgres.database().await);
    let (views_late, views_of_log) = (postgres.database().await, postgres.database().await);
    let (service, address) = (commands(&url, &broker).await, broker.address());
    let settings = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_KAFKA_BROKERS", address.as_str())];
    let mut stopped = Shop::part("projector", &url, &settings).await;
    let pool = PgPool::connect(&views).await.unwrap();
    let product = service.product("D", 10_000).await;
    let early = service.order(&product, 1, "early").await.unwrap();
    assert_eq!(early.status, 201, "{}", early.text);
    read_the_topic(&pool, &service, &product).await;
    stopped.process.kill().await.unwrap();
    let stands: i64 = sqlx::query_scalar("SELECT max(position) FROM views.checkpoints WHERE name <> 'audit'")
        .fetch_one(&pool)
        .await
        .unwrap();
    let offsets: Vec<(i16, i64)> = sqlx::query_as(
        "SELECT partition, max(source_offset) FROM views.checkpoints GROUP BY partition ORDER BY partition",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(offsets.len(), usize::from(PARTITIONS.unsigned_abs()));
    for n in 0..40 {
        one_more(&service, &product, &format!("away {n}")).await;
    }
    let id = early.body["id"].as_str().unwrap();
    let (path, key) = (format!("/v1/orders/{id}/cancellation"), [("Idempotency-Key", id)]);
    let cancelled =
        service.send(reqwest::Method::POST, &path, Some(&service.customer), &key, None).await.unwrap();
    assert_eq!(cancelled.status, 200, "{}", cancelled.text);
    let head = Log::new(service.pool().await).head().await.unwrap();
    let published = content_with(&broker, head).await;

    // The record where the views stand goes, and half of what came behind it.
    let mut deleted = TopicPartitionList::new();
    for ((partition, offset), end) in offsets.into_iter().zip(tokio::task::block_in_place(|| ends(&broker))) {
        let before = Offset::Offset((offset + 1 + end) / 2);
        deleted.add_partition_offset(TOPIC, partition.into(), before).unwrap();
    }
    let admin: AdminClient<DefaultClientContext> = broker.client().create().unwrap();
    for partition in admin.delete_records(&deleted, &AdminOptions::new()).await.unwrap().elements() {
        partition.error().unwrap();
    }
    let left = tokio::task::block_in_place(|| broker.content(TOPIC, PARTITIONS.into()));
    let orders_since = |content: &[Vec<Record>]| {
        let events = content.iter().flatten().filter_map(|record| record.event.as_ref());
        events.filter(|event| event.category == "order" && event.position > stands).count()
    };
    let (before, now) = (orders_since(&published), orders_since(&left));
    assert!(now < before, "orders that the views have not seen are gone: {now} of {before} are left");

    let again = Shop::part("projector", &url, &settings).await;
    let from_the_beginning = [
        ("TIDEMARK_VIEWS_URL", views_late.as_str()),
        ("TIDEMARK_KAFKA_BROKERS", address.as_str()),
        ("TIDEMARK_KAFKA_GROUP", "late"),
    ];
    let late = Shop::part("projector", &url, &from_the_beginning).await;
    let _of_log = Shop::part("projector", &url, &[("TIDEMARK_VIEWS_URL", &views_of_log)]).await;
    let pool_late = PgPool::connect(&views_late).await.unwrap();
    let pool_of_log = PgPool::connect(&views_of_log).await.unwrap();
    let position = one_more(&service, &product, "after the deletion").await;
    for (projector, pool) in [(&again, &pool), (&late, &pool_late)] {
        same_at(position, pool, &pool_of_log).await;
        let words = std::fs::read_to_string(&projector.words).unwrap();
        assert!(words.contains("the log fills the gap"), "it was the topic that was asked first: {words}");
    }
    // From there both go on with the topic.
    read_the_topic(&pool, &service, &product).await;
    read_the_topic(&pool_late, &service, &product).await;
    let position = one_more(&service, &product, "the last").await;
    same_at(position, &pool, &pool_of_log).await;
    same_at(position, &pool_late, &pool_of_log).await;
}

/// Somebody else writes to the topic, too: what no view can take in is written down, and holds up nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_no_view_can_take_in_are_parked_and_counted_and_the_others_go_on() {
    let (postgres, broker) = tokio::join!(Postgres::start(), Broker::start());
    let (url, views, views_of_log) =
        (postgres.database().await, postgres.database().await, postgres.database().await);
    let (service, address) = (commands(&url, &broker).await, broker.address());
    let settings = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_KAFKA_BROKERS", address.as_str())];
    let projector = Shop::part("projector", &url, &settings).await;
    let _of_log = Shop::part("projector", &url, &[("TIDEMARK_VIEWS_URL", &views_of_log)]).await;
    let pool_views = PgPool::connect(&views).await.unwrap();
    let pool_of_log = PgPool::connect(&views_of_log).await.unwrap();
    let product = service.product("W", 10_000).await;
    read_the_topic(&pool_views, &service, &product).await;
    let pool = service.pool().await;
    let head = Log::new(pool.clone()).head().await.unwrap();
    stands_at(&pool_views, head.position).await;
    let counted = async |name: &str| -> f64 { metric(&projector, &format!("{name}{{name=\"orders\"")).await };
    let (strays, repeated) = ("tidemark_projection_strays_total", "tidemark_projection_repeated_total");
    let (strays_before, repeated_before) = (counted(strays).await, counted(repeated).await);

    // A view takes a record for new if its position is beyond the view's, and passes over what the log has up to there.
    // So these have positions that the log is yet to give to events of the product, whose partition is another one.
    let past = events(&pool).await.into_iter().find(|event| event.category == "order").unwrap();
    let taken = [partition_of(product.parse().unwrap()), partition_of(past.partition_key)];
    let keys: Vec<Uuid> = std::iter::repeat_with(Uuid::now_v7)
        .filter(|key| !taken.contains(&partition_of(*key)))
        .take(2)
        .collect();
    let teleported = RecordedEvent {
        position: head.position + 1,
        stream_id: keys[0],
        event_id: Uuid::now_v7(),
        event_type: "OrderTeleported".into(),
        partition_key: keys[0],
        ..past.clone()
    };
    let broken = RecordedEvent {
        position: head.position + 2,
        stream_id: keys[1],
        event_id: Uuid::now_v7(),
        payload: r#"{"lines":"#.into(),
        partition_key: keys[1],
        ..past.clone()
    };
    assert_eq!((&*broken.event_type, broken.version), ("OrderPlaced", 1));
    let producer: BaseProducer = broker.client().create().unwrap();
    for partition in 0..i32::from(PARTITIONS) {
        let stray = BaseRecord::<str, [u8]>::to(TOPIC).partition(partition).payload(b"\xff\x00 no event");
        producer.send(stray).unwrap();
    }
    for event in [&teleported, &broken, &past] {
        send(&producer, head.epoch, event);
    }
    producer.flush(Duration::from_secs(10)).unwrap();
    let parked = until("both are parked", async || {
        let parked: Vec<(Uuid, i64, String)> =
            sqlx::query_as("SELECT partition_key, position, event_type FROM views.parked ORDER BY position")
                .fetch_all(&pool_views)
                .await
                .unwrap();
        (parked.len() >= 2).then_some(parked)
    })
    .await;
    assert_eq!(
        parked,
        [
            (keys[0], teleported.position, "OrderTeleported".to_owned()),
            (keys[1], broken.position, "OrderPlaced".to_owned())
        ]
    );
    let of_orders: i64 = sqlx::query_scalar("SELECT count(*) FROM views.parked WHERE name = 'orders'")
        .fetch_one(&pool_views)
        .await
        .unwrap();
    assert_eq!(of_orders, 2);
    until("the others are counted", async || {
        let (strays, repeated) = (counted(strays).await, counted(repeated).await);
        (strays >= strays_before + f64::from(PARTITIONS) && repeated > repeated_before).then_some(())
    })
    .await;

    for _ in 0..2 {
        let path = format!("/v1/products/{product}/stock-receipts");
        let received = service.post(&path, serde_json::json!({ "quantity": 1 })).await;
        assert_eq!(received.status, 201, "{}", received.text);
    }
    let since = Log::new(pool.clone()).head().await.unwrap();
    assert_eq!(since.position, broken.position, "the log has given their positions to the product");
    for key in &keys {
        until("an order in the same partition", async || {
            let placed = service.order(&product, 1, &Uuid::now_v7().to_string()).await.unwrap();
            assert_eq!(placed.status, 201, "{}", placed.text);
            let id: Uuid = placed.body["id"].as_str().unwrap().parse().unwrap();
            (partition_of(id) == partition_of(*key)).then_some(())
        })
        .await;
    }
    same_at(one_more(&service, &product, "others go on").await, &pool_views, &pool_of_log).await;

    // What is new comes twice, and something old behind it, in what is read at once.
    let paused = Pid::from_raw(projector.pid()).unwrap();
    kill_process(paused, Signal::STOP).unwrap();
    let before = tokio::task::block_in_place(|| ends(&broker));
    let placed = one_more(&service, &product, "twice").await;
    until("it is published", async || {
        let now = tokio::task::block_in_place(|| ends(&broker));
        now.iter().zip(&before).all(|(now, before)| now > before).then_some(())
    })
    .await;
    let events = events(&pool).await;
    let of_product = |event: &&RecordedEvent| event.partition_key.to_string() == product;
    let (old, new) = (events.iter().find(of_product).unwrap(), events.iter().rfind(of_product).unwrap());
    assert_eq!((&*new.event_type, new.position), ("StockReserved", placed));
    for event in [new, old] {
        send(&producer, head.epoch, event);
    }
    producer.flush(Duration::from_secs(10)).unwrap();
    kill_process(paused, Signal::CONT).unwrap();
    same_at(one_more(&service, &product, "the last").await, &pool_views, &pool_of_log).await;
}
