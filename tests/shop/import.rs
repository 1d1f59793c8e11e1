//! Real baskets, through the same decisions; a second run changes nothing.

use std::path::Path;

use sqlx::{Connection, Executor, PgConnection, PgPool};

use crate::harness::{Shop, audit, tidemark, until};
use crate::run::Program;

fn import(shop: &Shop) -> Program {
    let mut command = tidemark();
    command
        .args(["import", "complete-journey"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/sample/complete-journey"))
        .arg("--data-dir")
        .arg(shop.data.path())
        .env("DATABASE_URL", &shop.url);
    command
}

#[tokio::test]
async fn an_import_that_is_killed_goes_on() {
    let (whole, broken) = (Shop::open().await, Shop::open().await);
    assert!(import(&whole).output().await.unwrap().status.success());
    let pool = broken.pool().await;
    let mut killed = import(&broken).spawn().unwrap();
    // Held up in the middle: nothing is appended between the look and the end.
    let mut holder = until("some of it is there", async || {
        let mut holder = PgConnection::connect(&broken.url).await.unwrap();
        holder.execute("BEGIN").await.unwrap();
        let head = "SELECT position FROM log.head FOR UPDATE";
        let head: i64 = sqlx::query_scalar(head).fetch_one(&mut holder).await.unwrap();
        (head > 500).then_some(holder)
    })
    .await;
    killed.kill().await.unwrap();
    holder.execute("ROLLBACK").await.unwrap();
    let said = async |pool: &PgPool| {
        sqlx::query_as::<_, (i64, i64, i64)>(
            "SELECT (SELECT position FROM log.head), (SELECT count(*) FROM log.events WHERE category = 'order'), \
             (SELECT COALESCE(sum((payload->>'quantity')::bigint), 0)::bigint FROM log.events WHERE event_type = 'StockReserved')",
        )
        .fetch_one(pool)
        .await
        .unwrap()
    };
    let unbroken = said(&whole.pool().await).await;
    assert!(said(&pool).await.0 < unbroken.0, "it was not killed in the middle");
    let output = import(&broken).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said(&pool).await, unbroken);
    broken.caught_up().await;
    audit(&pool).await;
}

#[tokio::test]
async fn an_import_takes_what_it_can_reports_the_rest_and_is_idempotent() {
    let shop = Shop::open().await;
    let report = shop.data.path().join("report.csv");
    let run = async || {
        let output = import(&shop).arg("--report").arg(&report).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = run().await;
    let pool = shop.pool().await;
    let head = async || {
        sqlx::query_scalar::<_, i64>("SELECT position FROM log.head").fetch_one(&pool).await.unwrap()
    };
    let before = head().await;
    assert!(before > 2_000, "{first}");
    audit(&pool).await;
    let refused = std::fs::read_to_string(&report).unwrap();
    for reason in ["the product is not in the shop", "the product has no name"] {
        assert!(refused.contains(reason) && first.contains(reason), "{reason}: {first}");
    }
    let (orders, early): (i64, i64) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE placed_at < '2017-02-01') FROM views.orders_1",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert!(orders > 200 && orders == early, "every basket at its own time: {orders}, {early}");
    let left: i64 = sqlx::query_scalar("SELECT sum(available)::bigint FROM views.stock_1")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(left, 0, "the opening stock is what was sold");
    let second = run().await;
    assert_eq!(head().await, before, "a second run changes nothing: {second}");
    let absent = tidemark()
        .args(["import", "complete-journey", "/nowhere", "--data-dir"])
        .arg(shop.data.path())
        .env("DATABASE_URL", &shop.url)
        .output()
        .await
        .unwrap();
    assert_eq!(absent.status.code(), Some(2));
}
