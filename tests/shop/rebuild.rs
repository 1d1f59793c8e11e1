//! A view is built anew beside the live one, under load, killed half-way, switched, and switched back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::harness::{Shop, audit, tidemark, until};

async fn content(shop: &Shop, name: &str) -> (i32, Vec<String>) {
    let pool = shop.pool().await;
    let instance: i32 =
        sqlx::query_scalar("SELECT instance FROM views.projections WHERE name = $1 AND state = 'live'")
            .bind(name)
            .fetch_one(&pool)
            .await
            .unwrap();
    let rows = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT to_jsonb(v)::text FROM views.{name}_{instance} v ORDER BY 1"
    )))
    .fetch_all(&pool)
    .await
    .unwrap();
    (instance, rows)
}

#[tokio::test]
async fn a_view_that_stands_far_beyond_the_head_of_the_log_can_be_built_anew() {
    let shop = Shop::open().await;
    shop.product("BEYOND", 1).await;
    shop.caught_up().await;
    let pool = shop.pool().await;
    let (before, rows) = content(&shop, "products").await;
    // As after the log has lost as many events.
    sqlx::query(
        "UPDATE views.checkpoints SET position = h.position + 6000 FROM log.head h WHERE name = 'products'",
    )
    .execute(&pool)
    .await
    .unwrap();
    let mut command = tidemark();
    command
        .args(["rebuild", "products"])
        .arg("--data-dir")
        .arg(shop.data.path())
        .env("DATABASE_URL", &shop.url);
    let output = tokio::time::timeout(std::time::Duration::from_secs(20), command.output()).await;
    let output = output.expect("it ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (now, same) = content(&shop, "products").await;
    assert!(now > before);
    assert_eq!(same, rows);
    // It is fed on.
    shop.product("MORE", 1).await;
    shop.caught_up().await;
    assert_eq!(content(&shop, "products").await.1.len(), 2);
}

#[tokio::test]
async fn readers_do_not_notice_a_rebuild() {
    let shop = Arc::new(Shop::open().await);
    let mut products = Vec::new();
    for n in 0..3 {
        products.push(shop.product(&format!("P-{n}"), 1_000_000).await);
    }
    for n in 0..40 {
        shop.order(&products[n % 3], 1, &format!("before-{n}")).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (shop, stop, products) = (Arc::clone(&shop), Arc::clone(&stop), products.clone());
        async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let placed = shop.order(&products[n % 3], 1, &format!("during-{n}")).await.unwrap();
                assert_eq!(placed.status, 201, "{}", placed.text);
                let id = placed.body["id"].as_str().unwrap();
                let after = [("Tidemark-After", placed.header("tidemark-position"))];
                let read = shop.get(&format!("/v1/orders/{id}"), Some(&shop.customer), &after).await;
                assert_eq!(read.status, 200, "a reader noticed: {}", read.text);
            }
            n
        }
    });
    let run = |name: &'static str, back: bool| {
        let mut command = tidemark();
        command
            .args(["rebuild", name])
            .arg("--data-dir")
            .arg(shop.data.path())
            .env("DATABASE_URL", &shop.url);
        if back {
            command.arg("--back");
        }
        async move {
            let output = command.output().await.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    };
    // Killed before it switches, it leaves an instance that the next run goes on with.
    let mut holder = PgConnection::connect(&shop.url).await.unwrap();
    holder
        .execute("BEGIN; SELECT FROM views.projections WHERE name = 'orders' AND state = 'live' FOR UPDATE")
        .await
        .unwrap();
    let mut killed = tidemark();
    killed.args(["rebuild", "orders"]).arg("--data-dir").arg(shop.data.path()).env("DATABASE_URL", &shop.url);
    let mut killed = killed.spawn().unwrap();
    let pool = shop.pool().await;
    let left = until("it has built", async || {
        let built = "SELECT min(instance) FROM views.projections JOIN views.checkpoints USING (name, instance) \
                     WHERE name = 'orders' AND state = 'building' AND position > 0";
        sqlx::query_scalar::<_, Option<i32>>(built).fetch_one(&pool).await.unwrap()
    })
    .await;
    killed.kill().await.unwrap();
    drop(holder);
    for name in ["orders", "stock", "products", "audit"] {
        run(name, false).await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 3);
    shop.caught_up().await;
    audit(&shop.pool().await).await;
    for name in ["orders", "stock", "products", "audit"] {
        let (rebuilt, rows) = content(&shop, name).await;
        assert!(rebuilt > 1, "{name}");
        assert!(name != "orders" || rebuilt == left, "it went on with {left}, not with {rebuilt}");
        run(name, true).await;
        shop.caught_up().await;
        let (former, same) = content(&shop, name).await;
        assert!(former < rebuilt, "{name} is back");
        assert_eq!(rows, same, "{name}: both say the same, row by row");
    }
    let unknown = tidemark().args(["rebuild", "carts"]).output().await.unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}
