//! One session listens for a whole process, is replaced when it is lost, and nobody depends on it.

use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use tidemark_events::listener::{Heard, Listener};
use tidemark_events::log::connect_options;
use tokio_util::sync::CancellationToken;

use crate::harness::{Postgres, Shop, until};

const LISTENERS: &str = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
     AND (application_name = 'tidemark listener' OR query ILIKE 'listen %')";

/// Long enough for whatever comes at all.
const LONG: Duration = Duration::from_secs(10);

async fn listeners(connection: &mut PgConnection) -> i64 {
    let count = format!("SELECT count(*) {LISTENERS}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(count)).fetch_one(connection).await.unwrap()
}

async fn end_listeners(connection: &mut PgConnection) {
    let end = format!("SELECT pg_terminate_backend(pid) {LISTENERS}");
    connection.execute(sqlx::AssertSqlSafe(end)).await.unwrap();
}

#[tokio::test]
async fn a_lost_session_is_replaced_and_says_so() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let stop = CancellationToken::new();
    let mut listener = Listener::default();
    let (mut one, mut other) = (listener.on("one"), listener.on("other"));
    let mut again = listener.on("one");
    let task = listener.spawn(connect_options(&url).unwrap(), stop.clone());
    let heard = |session, payload: &str| Some(Heard { session, payload: payload.to_owned() });
    assert_eq!(one.next(LONG).await, heard(1, ""), "anything may have been missed before");
    assert_eq!(other.next(LONG).await, heard(1, ""));
    connection.execute("SELECT pg_notify('one', 'first')").await.unwrap();
    assert_eq!(one.next(LONG).await, heard(1, "first"));
    assert_eq!(again.next(LONG).await, heard(1, "first"), "the newest, whoever subscribes");
    assert_eq!(other.next(Duration::from_millis(200)).await, None, "each its own channel");
    end_listeners(&mut connection).await;
    assert_eq!(other.next(LONG).await, heard(2, ""));
    assert_eq!(one.next(LONG).await, heard(2, ""));
    connection.execute("SELECT pg_notify('other', 'second')").await.unwrap();
    assert_eq!(other.next(LONG).await, heard(2, "second"));
    assert_eq!(listeners(&mut connection).await, 1);
    stop.cancel();
    task.await.unwrap();
    until("the session has ended", async || (listeners(&mut connection).await == 0).then_some(())).await;
    assert_eq!(one.next(Duration::from_millis(100)).await, None, "who listens no more says nothing");
}

/// Every session that listens is woken by every commit in the database.
#[tokio::test]
async fn a_shop_listens_once_and_goes_on_without() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let shop = Shop::on(&url).await;
    let product = shop.product("LAMP", 100).await;
    shop.caught_up().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    assert_eq!(listeners(&mut connection).await, 1);
    // Nothing is heard from here on, and everything is seen all the same.
    for n in 0..5 {
        end_listeners(&mut connection).await;
        assert_eq!(shop.order(&product, 1, &format!("deaf-{n}")).await.unwrap().status, 201);
        shop.caught_up().await;
    }
    until("somebody listens again", async || (listeners(&mut connection).await == 1).then_some(())).await;
}
