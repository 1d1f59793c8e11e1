//! Real baskets, through the same decisions; a second run changes nothing.

use std::path::Path;

use crate::harness::{Shop, audit, tidemark};

#[tokio::test]
async fn an_import_takes_what_it_can_reports_the_rest_and_is_idempotent() {
    let shop = Shop::open().await;
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/sample/complete-journey");
    let report = shop.data.path().join("report.csv");
    let run = async || {
        let output = tidemark()
            .args(["import", "complete-journey"])
            .arg(&sample)
            .arg("--report")
            .arg(&report)
            .arg("--data-dir")
            .arg(shop.data.path())
            .env("DATABASE_URL", &shop.url)
            .output()
            .await
            .unwrap();
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
