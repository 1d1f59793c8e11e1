//! Given events, then rows; and the same rows however the log is cut into batches and whoever applies them.

use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use tidemark_command::decision::Happened;
use tidemark_command::testing::{
    CUSTOMER, World, cancel, deliver, euros, order, place, product, ship, stock,
};
use tidemark_events::account::{
    AccountDeactivated, AccountErased, AccountRegistered, AccountRole, EmailClaimed, EmailVerified,
    LoginFailed, RoleGranted, SessionEnd, SessionEnded, SessionStarted,
};
use tidemark_events::listener::Listener;
use tidemark_events::log::{Appended, Head, Log, connect_options};
use tidemark_events::{Metadata, Origin, Personal, RecordedEvent};
use tidemark_projector::supervisor::{Feed, INSTANCES, ProjectorConfig, Supervisor, ensure_live};
use tidemark_projector::worker::{Chunk, ReadTo, Target, Worker, connect, partitions_of};
use tidemark_projector::{ProjectorError, Retention, all, find};
use tidemark_views::feed;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Postgres, until};

const LAMP: Uuid = Uuid::from_u128(0x0190_b6a2_8c5e_7c11_b0de_1f0e_9a7b_0ca1);
const BULB: Uuid = Uuid::from_u128(0x0190_b6a2_8c5e_7c11_b0de_1f0e_9a7b_0ca2);
const ORDER: Uuid = Uuid::from_u128(0x0190_b6a2_8c5e_7c11_b0de_1f0e_9a7b_0cb1);

/// What happened, as the log would have recorded it.
fn recorded(history: &[Happened]) -> Vec<RecordedEvent> {
    let mut versions = std::collections::HashMap::new();
    let mut record = |(n, happened): (usize, &Happened)| {
        let version = versions.entry(happened.stream_id).or_insert(0);
        *version += 1;
        let mut payload = Vec::new();
        happened.fact.write_payload(&mut payload).unwrap();
        let kind = happened.fact.event_type();
        RecordedEvent {
            position: i64::try_from(n).unwrap() + 1,
            stream_id: happened.stream_id,
            category: kind.category.into(),
            version: *version,
            event_id: Uuid::now_v7(),
            event_type: kind.name.into(),
            schema_version: kind.version,
            payload: String::from_utf8(payload).unwrap().into(),
            metadata: Metadata {
                correlation_id: CUSTOMER,
                causation_id: None,
                actor: "test".to_owned(),
                traceparent: None,
                origin: None,
            },
            recorded_at: tidemark_command::testing::now(),
            partition_key: happened.partition_key,
        }
    };
    history.iter().enumerate().map(&mut record).collect()
}

/// Views on a database of their own.
struct Views {
    url: String,
    pool: PgPool,
    _postgres: std::sync::Arc<Postgres>,
}

impl Views {
    async fn new() -> Self {
        let postgres = Postgres::shared().await;
        let url = postgres.database().await;
        let pool = PgPool::connect(&url).await.unwrap();
        Log::migrate_with(&pool, 1_000).await.unwrap();
        tidemark_views::migrate(&pool).await.unwrap();
        for projection in all() {
            ensure_live(&mut pool.acquire().await.unwrap(), *projection).await.unwrap();
        }
        Self { url, pool, _postgres: postgres }
    }

    async fn worker(&self, name: &str, worker: i16, workers: i16) -> Worker {
        let connection = connect(&connect_options(&self.url).unwrap()).await.unwrap();
        let log = Log::new(self.pool.clone());
        let target = Target { projection: find(name).unwrap(), instance: 1, retention: Retention::default() };
        Worker::open(connection, &log, target, &partitions_of(worker, workers), true).await.unwrap()
    }

    /// Applies events as `workers` workers, cut after these positions.
    async fn apply(&self, name: &str, events: &[RecordedEvent], cuts: &[i64], workers: i16) {
        let filter = find(name).unwrap().filter();
        let last = events.last().map_or(0, |event| event.position);
        for number in 0..workers {
            let mut worker = self.worker(name, number, workers).await;
            let mut ends: Vec<i64> =
                cuts.iter().copied().filter(|cut| (1..last).contains(cut)).chain([last]).collect();
            ends.sort_unstable();
            let mut from = 0;
            for read_to in ends {
                let batch = events.iter().filter(|event| {
                    event.position > from && event.position <= read_to && filter.lets_through(event)
                });
                worker
                    .take(Chunk {
                        events: batch.cloned().collect(),
                        read_to: ReadTo::Log(Head { epoch: 1, position: read_to }),
                    })
                    .await
                    .unwrap();
                from = read_to;
            }
        }
    }

    async fn rows(&self, name: &str) -> Vec<Value> {
        sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT to_jsonb(v) - 'search' FROM views.{name}_1 v ORDER BY 1"
        )))
        .fetch_all(&self.pool)
        .await
        .unwrap()
    }
}

/// Given events …
struct Given(Vec<RecordedEvent>);

fn given<const N: usize>(history: [Vec<Happened>; N]) -> Given {
    Given(recorded(&history.concat()))
}

impl Given {
    /// … then these rows, of which each must hold at least these columns.
    async fn then_rows<const N: usize>(self, view: &str, expected: [Value; N]) {
        let views = Views::new().await;
        views.apply(view, &self.0, &[], 1).await;
        let rows = views.rows(view).await;
        assert_eq!(rows.len(), N, "{rows:?}");
        for (row, expected) in rows.iter().zip(&expected) {
            for (column, value) in expected.as_object().unwrap() {
                assert_eq!(&row[column], value, "{column} of {row}");
            }
        }
    }
}

#[tokio::test]
async fn stock_adds_up() {
    given([stock(LAMP).received(10), stock(LAMP).reserved(ORDER, 4), stock(LAMP).shipped(ORDER, 3), stock(LAMP).adjusted(-1, "broken")])
        .then_rows("stock", [json!({ "received": 10, "reserved": 1, "shipped": 3, "adjusted": -1, "available": 5, "version": 4 })])
        .await;
}

#[tokio::test]
async fn an_order_is_stored_as_it_is_sent() {
    given([order(ORDER).placed([(LAMP, 2, 1_999)]), order(ORDER).shipped(), order(ORDER).delivered()])
        .then_rows(
            "orders",
            [json!({ "id": ORDER, "customer_id": CUSTOMER, "status": "delivered", "version": 3 })],
        )
        .await;
}

#[tokio::test]
async fn a_product_is_what_was_said_last() {
    given([
        product(LAMP).created("LAMP-1", 1_999),
        product(LAMP).repriced(euros(5)),
        product(LAMP).published(),
    ])
    .then_rows(
        "products",
        [json!({ "sku": "LAMP-1", "price_amount": 5, "status": "published", "version": 3 })],
    )
    .await;
}

/// Everything an account goes through, with what the shop's people do beside it.
fn of_an_account() -> Vec<RecordedEvent> {
    let (account, session, claim) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    let at = chrono::Utc::now();
    let sealed = || Personal::sealed("v1.sealed");
    let registered = AccountRegistered {
        email: sealed(),
        name: None,
        claim,
        credential_id: Uuid::now_v7(),
        verification_id: Uuid::now_v7(),
        verification_expires_at: at,
    };
    let started = SessionStarted {
        account_id: account,
        role: AccountRole::Staff,
        second_factor: false,
        source: Some(sealed()),
        client: None,
    };
    let reused =
        SessionEnded { account_id: account, reason: SessionEnd::TokenReused, source: Some(sealed()) };
    let failed = LoginFailed { reason: "password".to_owned(), source: None, failed_at: at };
    let history = [
        vec![Happened::to_account(account, registered)],
        vec![Happened::to_email(claim, account, EmailClaimed { account_id: account })],
        vec![Happened::to_account(account, EmailVerified {})],
        vec![Happened::to_account(account, failed)],
        vec![Happened::to_account(account, RoleGranted { role: AccountRole::Staff })],
        vec![Happened::to_session(session, account, started)],
        vec![Happened::to_session(session, account, reused)],
        product(LAMP).created("L", 5),
        order(ORDER).placed([(LAMP, 1, 5)]),
        stock(LAMP).reserved(ORDER, 1),
        vec![Happened::to_account(account, AccountDeactivated { reason: None })],
        vec![Happened::to_account(account, AccountErased {})],
    ];
    let mut events = recorded(&history.concat());
    for event in &mut events {
        event.recorded_at = at - chrono::TimeDelta::days(1);
        event.metadata.origin = Origin::of("192.0.2.9".parse().unwrap());
        event.metadata.actor = match event.category.as_ref() {
            "order" | "stock" => format!("customer:{CUSTOMER}"),
            "product" => format!("staff:{CUSTOMER}"),
            _ => "anonymous".to_owned(),
        };
    }
    // The registration was longer ago than security events are kept.
    for event in &mut events[..3] {
        event.recorded_at = at - chrono::TimeDelta::days(181);
    }
    events
}

#[tokio::test]
async fn the_audit_is_acts_accounts_and_what_is_new_of_security() {
    let events = of_an_account();
    let (account, session) = (events[0].stream_id, events[6].stream_id);
    for (cuts, workers) in [(&[][..], 1), (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 1), (&[4, 9], 3)] {
        let views = Views::new().await;
        views.apply("audit", &events, cuts, workers).await;
        let column = async |table: &str, name: &str| -> Vec<Value> {
            let mut rows = views.rows(table).await;
            rows.sort_by_key(|row| row["position"].as_i64());
            rows.into_iter().map(|row| row[name].clone()).collect()
        };
        let kinds: Vec<Value> = [
            "AccountRegistered",
            "EmailVerified",
            "RoleGranted",
            "ProductCreated",
            "AccountDeactivated",
            "AccountErased",
        ]
        .map(Value::from)
        .into();
        assert_eq!(column("audit", "event_type").await, kinds, "{cuts:?}");
        assert_eq!(column("audit", "resource").await[3], json!(LAMP));
        assert_eq!(column("audit", "origin").await, vec![json!("192.0.2.0/24"); 6]);
        let kinds: Vec<Value> = [
            "log_in_failed",
            "role_granted",
            "log_in",
            "refresh_token_reused",
            "account_deactivated",
            "account_erased",
        ]
        .map(Value::from)
        .into();
        assert_eq!(column("security_events", "kind").await, kinds, "{cuts:?}");
        let none = Value::Null;
        let sealed = json!("v1.sealed");
        assert_eq!(
            column("security_events", "source").await,
            [&none, &none, &sealed, &sealed, &none, &none].map(Value::clone)
        );
        assert_eq!(column("security_events", "session_id").await[2..4], [json!(session), json!(session)]);
        assert_eq!(column("security_events", "account_id").await, vec![json!(account); 6]);
        let rows = views.rows("accounts").await;
        assert_eq!(rows.len(), 1);
        for (name, value) in [
            ("id", json!(account)),
            ("status", json!("erased")),
            ("role", json!("customer")),
            ("verified", json!(true)),
            ("version", json!(6)),
        ] {
            assert_eq!(rows[0][name], value, "{name}");
        }
    }
}

#[tokio::test]
async fn an_account_that_is_not_in_the_view_is_parked_and_others_go_on() {
    let views = Views::new().await;
    let (mut events, other) = (of_an_account(), of_an_account());
    events.remove(0);
    let mut both = events.clone();
    both.extend(other.iter().filter(|event| event.category == "account").cloned().map(|mut event| {
        event.position += 100;
        event
    }));
    views.apply("audit", &both, &[], 1).await;
    let rows = views.rows("accounts").await;
    assert_eq!((rows.len(), &rows[0]["id"]), (1, &json!(other[0].stream_id)), "the other goes on");
    let parked: Vec<Uuid> = sqlx::query_scalar("SELECT DISTINCT partition_key FROM views.parked")
        .fetch_all(&views.pool)
        .await
        .unwrap();
    assert_eq!(parked, [events[0].partition_key], "and nothing else");
}

#[tokio::test]
async fn any_split_of_the_log_gives_the_same_views() {
    let step = (0..6_usize, 0..4_u128, 1..4_i64);
    let mut runner = TestRunner::deterministic();
    for _ in 0..6 {
        let steps = prop::collection::vec(step.clone(), 60..120).new_tree(&mut runner).unwrap().current();
        let mut world = World::default();
        let mut history = [
            product(LAMP).created("L", 5),
            product(LAMP).published(),
            product(BULB).created("B", 7),
            product(BULB).published(),
            stock(LAMP).received(40),
            stock(BULB).received(40),
        ]
        .concat();
        for happened in &history {
            world.evolve(happened);
        }
        for (n, (kind, which, units)) in steps.into_iter().enumerate() {
            let id = |n: u128| Uuid::from_u128(ORDER.as_u128() + 16 * (n + 1));
            let command = match kind {
                0..=2 => place(id(100 + n as u128), [(LAMP, units), (BULB, 1)]),
                3 => cancel(id(100 + which)),
                4 => ship(id(100 + which)),
                _ => deliver(id(100 + which)),
            };
            for happened in world.decide(&command).map(|decision| decision.events).unwrap_or_default() {
                world.evolve(&happened);
                history.push(happened);
            }
        }
        let events = recorded(&history);
        let (whole, split) = (Views::new().await, Views::new().await);
        let last = i64::try_from(events.len()).unwrap();
        for name in ["products", "stock", "orders", "audit"] {
            let cuts = prop::collection::vec(1..last, 0..25).new_tree(&mut runner).unwrap().current();
            whole.apply(name, &events, &[], 1).await;
            // Three workers for the first part, two for the rest: what one has done no other does again.
            let part: Vec<RecordedEvent> =
                events.iter().filter(|event| event.position <= last / 2).cloned().collect();
            split.apply(name, &part, &cuts, 3).await;
            split.apply(name, &events, &cuts, 2).await;
            assert_eq!(whole.rows(name).await, split.rows(name).await, "{name} cut after {cuts:?}");
        }
        let numbers: Vec<i64> = sqlx::query_scalar("SELECT number FROM views.changes ORDER BY number")
            .fetch_all(&split.pool)
            .await
            .unwrap();
        assert_eq!(
            numbers,
            (1..=i64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>(),
            "no number is missing"
        );
    }
}

#[tokio::test]
async fn a_worker_that_slept_finds_its_checkpoint_moved_and_stops() {
    let views = Views::new().await;
    let events = recorded(&[stock(LAMP).received(10), stock(LAMP).received(5)].concat());
    let mut asleep = views.worker("stock", 0, 1).await;
    views.apply("stock", &events, &[], 1).await;
    let late = asleep
        .take(Chunk { events: events.clone(), read_to: ReadTo::Log(Head { epoch: 1, position: 2 }) })
        .await;
    assert!(matches!(late, Err(ProjectorError::Moved(_))), "{late:?}");
    assert_eq!(views.rows("stock").await[0]["available"], 15, "and nothing counts twice");
    // Begun anew from where it stands, it skips what is done.
    views.apply("stock", &events, &[1], 2).await;
    assert_eq!(views.rows("stock").await[0]["available"], 15);
}

/// A new epoch comes to the topic's partitions at different times: one that has not seen it keeps its own, or nobody
/// would compare it with the fork any more.
#[tokio::test]
async fn what_is_only_remembered_is_not_applied_by_who_begins_anew() {
    let views = Views::new().await;
    let log = Log::new(views.pool.clone());
    // This process has seen it committed; the server that is there now has not.
    let events = recorded(&[product(LAMP).created("lamp", 100), stock(LAMP).received(5)].concat());
    let head = Head { epoch: 1, position: events.last().unwrap().position };
    log.remember(Appended { events, after: 0, head });
    assert_eq!(*log.wake().borrow(), head);
    let stop = CancellationToken::new();
    let feed = Feed {
        log: log.clone(),
        kafka: None,
        views: connect_options(&views.url).unwrap(),
        instances: Listener::default().on(INSTANCES),
        config: ProjectorConfig::default(),
        only: Vec::new(),
    };
    let supervisor = Supervisor::spawn(feed, stop.clone());
    until("the log is asked", async || (log.wake().borrow().position == 0).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let applied: i64 = sqlx::query_scalar("SELECT max(position) FROM views.checkpoints")
        .fetch_one(&views.pool)
        .await
        .unwrap();
    assert_eq!((applied, views.rows("products").await), (0, Vec::new()));
    stop.cancel();
    supervisor.await.unwrap();
}

#[tokio::test]
async fn each_partition_stands_in_the_epoch_of_its_own_last_record() {
    let views = Views::new().await;
    let mut worker = views.worker("stock", 0, 1).await;
    let to = |epoch, position, offset| (Head { epoch, position }, offset);
    let read_to = ReadTo::Topic([(0, to(2, 9, 4)), (1, to(1, 7, 3))].into());
    worker.take(Chunk::<RecordedEvent> { events: Vec::new(), read_to }).await.unwrap();
    // The same place again says only from where to read on; one from before says nothing.
    let read_to = ReadTo::Topic([(0, to(2, 9, 6)), (1, to(1, 5, 8))].into());
    worker.take(Chunk::<RecordedEvent> { events: Vec::new(), read_to }).await.unwrap();
    let stored: Vec<(i32, i64, Option<i64>)> = sqlx::query_as(
        "SELECT epoch, position, source_offset FROM views.checkpoints WHERE name = 'stock' ORDER BY partition LIMIT 3",
    )
    .fetch_all(&views.pool)
    .await
    .unwrap();
    assert_eq!(stored, [(2, 9, Some(6)), (1, 7, Some(3)), (1, 0, None)]);
}

#[tokio::test]
async fn what_cannot_be_applied_is_parked_with_its_key_and_the_rest_goes_on() {
    let views = Views::new().await;
    let other = Uuid::from_u128(ORDER.as_u128() + 8);
    // An order that was never placed is shipped; then things happen to it and to another.
    let mut events = recorded(
        &[
            order(other).placed([(LAMP, 1, 1)]),
            order(ORDER).placed([(LAMP, 1, 1)]),
            order(ORDER).shipped(),
            order(other).shipped(),
            order(ORDER).delivered(),
        ]
        .concat(),
    );
    let missing = events.remove(1);
    views.apply("orders", &events, &[], 1).await;
    let rows = views.rows("orders").await;
    assert_eq!((rows.len(), &rows[0]["status"]), (1, &json!("shipped")), "the other goes on");
    let parked: Vec<(i64, Uuid)> =
        sqlx::query_as("SELECT position, partition_key FROM views.parked ORDER BY position")
            .fetch_all(&views.pool)
            .await
            .unwrap();
    assert_eq!(parked, [(3, ORDER), (5, ORDER)], "in order, and nothing else");
    let changed: Vec<Vec<Uuid>> = sqlx::query_scalar("SELECT keys FROM views.changes WHERE name = 'orders'")
        .fetch_all(&views.pool)
        .await
        .unwrap();
    assert!(changed.concat().contains(&ORDER), "readers are told");
    assert_eq!(missing.position, 2);
}

/// As at a hand-over, when the former member of the group does not know yet that it is none.
#[tokio::test]
async fn what_is_parked_is_applied_once_by_two_who_try_it_at_once() {
    let views = Views::new().await;
    let events = recorded(&[stock(LAMP).received(10), stock(LAMP).received(5)].concat());
    for event in &events {
        sqlx::query(
            "INSERT INTO log.events SELECT $1, $2, $3, $4, $5, $6, $7, $8::json, $9, NULL, 'test', NULL, now(), $10",
        )
        .bind(event.position)
        .bind(event.stream_id)
        .bind(event.category.as_ref())
        .bind(event.version)
        .bind(event.event_id)
        .bind(event.event_type.as_ref())
        .bind(event.schema_version)
        .bind(event.payload.as_ref())
        .bind(CUSTOMER)
        .bind(event.partition_key)
        .execute(&views.pool)
        .await
        .unwrap();
    }
    sqlx::query("UPDATE log.head SET position = 2").execute(&views.pool).await.unwrap();
    views.apply("stock", &events[..1], &[], 1).await;
    sqlx::query(
        "INSERT INTO views.parked (name, instance, partition_key, position, stream_id, event_type, error) \
         VALUES ('stock', 1, $1, 2, $1, 'StockReceived', 'unknown to this version')",
    )
    .bind(LAMP)
    .execute(&views.pool)
    .await
    .unwrap();
    sqlx::query("UPDATE views.checkpoints SET position = 2 WHERE name = 'stock'")
        .execute(&views.pool)
        .await
        .unwrap();
    let mut workers = [views.worker("stock", 0, 1).await, views.worker("stock", 0, 1).await];
    let mut held = views.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM views.stock_1 FOR UPDATE").execute(&mut *held).await.unwrap();
    let let_go = async {
        until("both wait", async || {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidemark projector' \
                 AND datname = current_database() AND wait_event_type = 'Lock'",
            )
            .fetch_one(&views.pool)
            .await
            .unwrap();
            (waiting == 2).then_some(())
        })
        .await;
        held.commit().await.unwrap();
    };
    let [one, other] = &mut workers;
    let (one, other, ()) = tokio::join!(one.retry_parked(), other.retry_parked(), let_go);
    assert_eq!(views.rows("stock").await[0]["available"], 15);
    let outcomes = [one, other];
    assert!(outcomes.iter().any(Result::is_ok), "{outcomes:?}");
    assert!(outcomes.iter().any(|each| matches!(each, Err(ProjectorError::Moved(_)))), "{outcomes:?}");
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM views.parked").fetch_one(&views.pool).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn two_who_move_their_partitions_at_once_tell_that_all_have_moved() {
    let views = Views::new().await;
    let moved = async |partitions: std::ops::Range<i16>| {
        let mut transaction = views.pool.begin().await.unwrap();
        sqlx::query(
            "UPDATE views.checkpoints SET position = 9 WHERE name = 'stock' AND partition >= $1 AND partition < $2",
        )
        .bind(partitions.start)
        .bind(partitions.end)
        .execute(&mut *transaction)
        .await
        .unwrap();
        transaction
    };
    let (mut one, mut other) = (moved(0..4).await, moved(4..8).await);
    feed::write(&mut one, "stock", 1, feed::Kind::Rows, &[]).await.unwrap();
    let waiting = tokio::spawn(async move {
        let number = feed::write(&mut other, "stock", 1, feed::Kind::Rows, &[]).await.unwrap();
        other.commit().await.unwrap();
        number
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "it waits for its number");
    one.commit().await.unwrap();
    let number = waiting.await.unwrap();
    let position: i64 = sqlx::query_scalar("SELECT position FROM views.changes WHERE number = $1")
        .bind(number)
        .fetch_one(&views.pool)
        .await
        .unwrap();
    assert_eq!(position, 9);
}
