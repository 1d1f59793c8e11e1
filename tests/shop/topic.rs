//! What a topic that others can write to does to the views; what the publisher says of itself; what a change says.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, Producer};
use serde_json::json;
use sqlx::PgPool;
use tidemark_events::RecordedEvent;
use tidemark_events::log::{Filter, Log};
use tidemark_events::partition::{PARTITIONS, partition_of};
use tidemark_projector::find;
use tidemark_projector::supervisor::ensure_live;
use tidemark_views::feed::{self, Kind};
use uuid::Uuid;

use crate::broker::Broker;
use crate::harness::{Postgres, Shop, audit, until};
use crate::kafka::{TOPIC, send, stands_at};

/// Units of each receipt.
const RECEIVED: i64 = 5;

const COUNTED: &str = "tidemark_publisher_events_total";
const FAILURES: &str = "tidemark_publisher_failures_total";
const LAG: &str = "tidemark_publisher_lag_events";
const LAG_SECONDS: &str = "tidemark_publisher_lag_seconds_sum";
const POSITION: &str = "tidemark_publisher_position";

/// Takes units in, which is one event of the product's key; its position.
async fn receive(service: &Shop, product: Uuid) -> i64 {
    let path = format!("/v1/products/{product}/stock-receipts");
    let received = service.post(&path, json!({ "quantity": RECEIVED })).await;
    assert_eq!(received.status, 201, "{}", received.text);
    received.body["position"].as_i64().unwrap()
}

async fn available(views: &PgPool, product: Uuid) -> i64 {
    sqlx::query_scalar("SELECT available FROM views.stock_1 WHERE product_id = $1")
        .bind(product)
        .fetch_one(views)
        .await
        .unwrap()
}

/// Records of somebody else's, all of them in the topic.
fn send_all(producer: &BaseProducer, epoch: i32, events: &[RecordedEvent]) {
    for event in events {
        send(producer, epoch, event);
    }
    producer.flush(Duration::from_secs(10)).unwrap();
}

/// Somebody else's records name positions that the log gives to other keys, or to the same one, a moment later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_parked_is_tried_again_only_with_its_own_keys_event_and_taken_away_where_the_log_has_another()
{
    let (postgres, broker) = tokio::join!(Postgres::shared(), Broker::start());
    let (url, address) = (postgres.database().await, broker.address());
    let service = Shop::part("command", &url, &[("TIDEMARK_KAFKA_BROKERS", address.as_str())]).await;
    // Log and views are in one database, where they can be compared.
    let settings = [("TIDEMARK_VIEWS_URL", url.as_str()), ("TIDEMARK_KAFKA_BROKERS", address.as_str())];
    let mut stopped = Shop::part("projector", &url, &settings).await;
    let pool = service.pool().await;

    // All keys have partitions of their own: a record moves its partition alone, past what the log has there.
    let mut taken = Vec::new();
    let mut products: Vec<Uuid> = Vec::new();
    let mut made = 0;
    while products.len() < 2 {
        made += 1;
        let id: Uuid = service.product(&format!("T{made}"), 10).await.parse().unwrap();
        if !taken.contains(&partition_of(id)) {
            taken.push(partition_of(id));
            products.push(id);
        }
    }
    let mut strangers: Vec<Uuid> = Vec::new();
    while strangers.len() < 2 {
        let key = Uuid::now_v7();
        if !taken.contains(&partition_of(key)) {
            taken.push(partition_of(key));
            strangers.push(key);
        }
    }
    let (others, own) = (products[0], products[1]);
    let (first, second) = (strangers[0], strangers[1]);
    until("the views read the topic", async || {
        let position = receive(&service, others).await;
        stands_at(&pool, position).await;
        let all: bool = sqlx::query_scalar(
            "SELECT bool_and(source_offset IS NOT NULL) FROM views.checkpoints WHERE name <> 'audit'",
        )
        .fetch_one(&pool)
        .await
        .unwrap();
        all.then_some(())
    })
    .await;

    let log = Log::new(pool.clone());
    let head = log.head().await.unwrap();
    let last = log.read(head.position - 1, head.position, &Filter::default(), 1).await.unwrap();
    let genuine = last.events.into_iter().next().unwrap();
    assert_eq!((&*genuine.event_type, genuine.partition_key), ("StockReceived", others));
    let forged = |key: Uuid, position: i64| RecordedEvent {
        position,
        stream_id: key,
        event_id: Uuid::now_v7(),
        event_type: "StockTeleported".into(),
        partition_key: key,
        ..genuine.clone()
    };
    let parked = async || -> Vec<(i64, Uuid, i64, String)> {
        sqlx::query_as(
            "SELECT id, partition_key, position, event_type FROM views.parked ORDER BY position, id",
        )
        .fetch_all(&pool)
        .await
        .unwrap()
    };
    let (of_others, of_own) = (head.position + 1, head.position + 2);
    let producer: BaseProducer = broker.client().create().unwrap();
    send_all(&producer, head.epoch, &[forged(first, of_others), forged(own, of_own)]);
    until("both are parked", async || (parked().await.len() == 2).then_some(())).await;

    // In what is read later, so that it is not taken for a repetition.
    send_all(&producer, head.epoch, &[forged(second, of_others)]);
    until("the view goes on behind the second of that position", async || {
        let at: i64 = sqlx::query_scalar(
            "SELECT position FROM views.checkpoints WHERE name = 'stock' AND instance = 1 AND partition = $1",
        )
        .bind(partition_of(second))
        .fetch_one(&pool)
        .await
        .unwrap();
        (at == of_others).then_some(())
    })
    .await;

    let (others_had, own_had) = (available(&pool, others).await, available(&pool, own).await);
    let given = [receive(&service, others).await, receive(&service, own).await];
    assert_eq!(given, [of_others, of_own], "the log has given their positions to the products");
    stands_at(&pool, receive(&service, own).await).await;
    assert_eq!(available(&pool, others).await, others_had + RECEIVED, "later events are applied");
    assert_eq!(available(&pool, own).await, own_had, "what comes behind a parked event of its key waits");
    let waiting: Vec<(Uuid, i64)> =
        parked().await.into_iter().map(|(_, key, position, _)| (key, position)).collect();
    let behind = waiting.last().unwrap().1;
    assert_eq!(waiting, [(first, of_others), (second, of_others), (own, of_own), (own, behind)]);

    // Who begins anew tries what is parked once more, with what the log has at its position.
    stopped.process.kill().await.unwrap();
    let _again = Shop::part("projector", &url, &settings).await;
    let position = receive(&service, others).await;
    stands_at(&pool, position).await;
    assert_eq!(parked().await, [], "what the log has not got under its key is no event");
    let told: i64 =
        sqlx::query_scalar("SELECT count(*) FROM views.changes WHERE name = 'stock' AND $1 = ANY(keys)")
            .bind(first)
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(told, 2, "who reads that key was told when it was parked and when that was over");
    assert_eq!(
        available(&pool, others).await,
        others_had + 2 * RECEIVED,
        "the other key's event counts once, in its own turn"
    );
    assert_eq!(available(&pool, own).await, own_had + 2 * RECEIVED, "its own key's event is applied");
    stands_at(&pool, receive(&service, own).await).await;
    assert_eq!(available(&pool, own).await, own_had + 3 * RECEIVED, "and nothing waits behind it any more");
    audit(&pool).await;
}

/// A figure of both services together, once one of them has it: a gauge is the publisher's, counters add up.
async fn figure(services: &[Shop; 2], name: &str) -> Option<f64> {
    let mut figures = Vec::new();
    for service in services {
        let text = service.get("/metrics", None, &[]).await.text;
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        figures.extend::<Option<f64>>(found);
    }
    let together = if [LAG, POSITION].contains(&name) { f64::max } else { |a: f64, b: f64| a + b };
    figures.into_iter().reduce(together)
}

/// Where the log stands, once its publisher says that everything is published, each event once.
async fn all_is_published(services: &[Shop; 2], log: &Log) -> f64 {
    let head = log.head().await.unwrap().position as f64;
    until("all is published", async || {
        let (counted, lag) = (figure(services, COUNTED).await?, figure(services, LAG).await?);
        (counted >= head && lag == 0.0).then_some(())
    })
    .await;
    assert_eq!(figure(services, COUNTED).await, Some(head), "each event is counted once");
    assert_eq!(figure(services, POSITION).await, Some(head));
    head
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_kafka_is_away_the_publishers_lag_grows_and_each_event_is_counted_once_when_it_is_back() {
    let (postgres, broker) = tokio::join!(Postgres::shared(), Broker::start());
    let (url, address) = (postgres.database().await, broker.address());
    let settings = [("TIDEMARK_KAFKA_BROKERS", address.as_str())];
    // Two, which take the lease from each other while Kafka is away.
    let services =
        [Shop::part("command", &url, &settings).await, Shop::part("command", &url, &settings).await];
    let log = Log::new(services[0].pool().await);
    let product = services[0].product("P", 1_000).await;
    let order = async |key: &str| {
        let answer = services[0].order(&product, 1, key).await.unwrap();
        assert_eq!(answer.status, 201, "{}", answer.text);
    };
    order("before").await;
    let published = all_is_published(&services, &log).await;
    let late = figure(&services, LAG_SECONDS).await.unwrap();
    let failed = figure(&services, FAILURES).await.unwrap_or(0.0);

    broker.kill();
    order("the first that waits").await;
    let since = Instant::now();
    // At first a transaction is under way that cannot end. Then there is none: Kafka is asked for in vain, by one service
    // after the other, of which the second has never published.
    for round in 0..3 {
        for n in 0..10 {
            order(&format!("away {round}-{n}")).await;
        }
        let unpublished = log.head().await.unwrap().position as f64 - published;
        assert!(unpublished > 10.0);
        until("the lag is what is not published", async || {
            (figure(&services, LAG).await? == unpublished).then_some(())
        })
        .await;
        assert_eq!(figure(&services, COUNTED).await, Some(published));
        until("publishing is tried anew", async || {
            (figure(&services, FAILURES).await? > failed + f64::from(round)).then_some(())
        })
        .await;
    }
    let away = since.elapsed().as_secs_f64();
    broker.launch().await;

    let all = all_is_published(&services, &log).await;
    let content = tokio::task::block_in_place(|| broker.content(TOPIC, PARTITIONS.into()));
    let events = content.iter().flatten().filter(|record| record.event.is_some()).count();
    assert_eq!(events as f64, all, "what is counted is what the topic has");
    let waited = figure(&services, LAG_SECONDS).await.unwrap() - late;
    assert!(waited >= away, "its first event waited for {away} s and more, not for {waited} s");
}

/// Partitions come to a new epoch, and to a position, at different times.
#[tokio::test]
async fn a_change_says_the_least_epoch_and_the_least_position_of_its_instances_partitions() {
    let postgres = Postgres::shared().await;
    let pool = PgPool::connect(&postgres.database().await).await.unwrap();
    tidemark_views::migrate(&pool).await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    // Another projection, and another instance of the same, are further behind: they are none of its business.
    for name in ["stock", "orders"] {
        ensure_live(&mut connection, find(name).unwrap()).await.unwrap();
    }
    for statement in [
        "INSERT INTO views.projections (name, instance, fold_version, state) VALUES ('stock', 2, 1, 'previous')",
        "INSERT INTO views.checkpoints (name, instance, partition, epoch, position) \
         SELECT name, 2, partition, epoch, position FROM views.checkpoints WHERE name = 'stock'",
        "UPDATE views.checkpoints SET epoch = 4, position = 90 WHERE name = 'stock' AND instance = 1",
    ] {
        sqlx::query(statement).execute(&mut *connection).await.unwrap();
    }
    let mut before = 0;
    for (partition, (epoch, position), least) in [
        // It has not come to the new epoch, and may stand beyond where that begins.
        (3_i16, (3_i32, 95_i64), (3_i32, 90_i64)),
        (5, (4, 70), (3, 70)),
        (3, (4, 95), (4, 70)),
        (5, (4, 92), (4, 90)),
    ] {
        sqlx::query(
            "UPDATE views.checkpoints SET epoch = $2, position = $3 \
             WHERE name = 'stock' AND instance = 1 AND partition = $1",
        )
        .bind(partition)
        .bind(epoch)
        .bind(position)
        .execute(&mut *connection)
        .await
        .unwrap();
        let keys = vec![Uuid::now_v7(), Uuid::now_v7()];
        let number = feed::write(&mut connection, "stock", 1, Kind::Rows, &keys).await.unwrap();
        assert_eq!(number, before + 1, "numbers have no gap");
        let written: (String, i32, String, i32, i64, Vec<Uuid>) = sqlx::query_as(
            "SELECT name, instance, kind, epoch, position, keys FROM views.changes WHERE number = $1",
        )
        .bind(number)
        .fetch_one(&mut *connection)
        .await
        .unwrap();
        assert_eq!(written, ("stock".to_owned(), 1, "rows".to_owned(), least.0, least.1, keys));
        before = number;
    }
}
