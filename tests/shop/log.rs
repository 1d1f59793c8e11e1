//! Two command services on one log: one order, no gaps, no conflicts, and a hot product is never oversold.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::harness::{Postgres, Shop, audit};

#[tokio::test]
async fn two_processes_share_one_log_without_conflict() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let shops = [Arc::new(Shop::on(&url).await), Arc::new(Shop::on(&url).await)];
    let hot = shops[0].product("HOT", 500).await;
    let mut others = Vec::new();
    for n in 0..5 {
        others.push(shops[n % 2].product(&format!("P-{n}"), 100_000).await);
    }
    let mut buyers = JoinSet::new();
    for n in 0..16 {
        let (shop, hot, others) = (Arc::clone(&shops[n % 2]), hot.clone(), others.clone());
        buyers.spawn(async move {
            let mut answers = Vec::new();
            for m in 0..60 {
                let product = if m % 2 == 0 { &hot } else { &others[m % 5] };
                answers.push((m % 2 == 0, shop.order(product, 1, &format!("{n}-{m}")).await.unwrap().status));
            }
            answers
        });
    }
    let answers: Vec<(bool, u16)> = buyers.join_all().await.into_iter().flatten().collect();
    let sold = answers.iter().filter(|(hot, status)| *hot && *status == 201).count();
    assert_eq!(sold, 480, "every order of the hot product was taken while there was stock");
    assert!(answers.iter().all(|(_, status)| *status == 201), "nobody saw a conflict");
    // The same key through the other process is the same order.
    let first = shops[0].order(&hot, 1, "shared").await.unwrap();
    let second = shops[1].order(&hot, 1, "shared").await.unwrap();
    assert_eq!((second.status, &second.body), (201, &first.body));
    assert_eq!(second.header("idempotency-replayed"), "true");
    shops[0].caught_up().await;
    let pool = shops[0].pool().await;
    audit(&pool).await;
    let available: i64 = sqlx::query_scalar("SELECT available FROM views.stock_1 WHERE product_id = $1")
        .bind(hot.parse::<uuid::Uuid>().unwrap())
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(available, 500 - 480 - 1);
}

#[tokio::test]
async fn events_are_neither_changed_nor_removed() {
    let shop = Shop::open().await;
    shop.product("P", 1).await;
    let pool = shop.pool().await;
    for statement in [
        "UPDATE log.events SET actor = 'x'",
        "DELETE FROM log.events",
        "DELETE FROM log.events_1",
        "TRUNCATE log.events",
    ] {
        assert!(sqlx::query(statement).execute(&pool).await.is_err(), "{statement}");
    }
}
