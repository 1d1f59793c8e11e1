//! What breaks, and what holds all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use tidemark_events::log::{Outcome, WriterConnection, connect_options};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::harness::{Postgres, Shop, audit, until};
use crate::kafka::stands_at;
use crate::proxy::{Cut, Proxy};

/// Orders from several clients until told to stop; whoever gets no answer or a 5xx asks again with the same key.
/// Returns each acknowledged order by its key.
fn buyers(shops: &[Arc<Shop>], product: &str, stop: &Arc<AtomicBool>) -> JoinSet<HashMap<String, String>> {
    let mut buyers = JoinSet::new();
    for n in 0..8 {
        let (shops, product, stop) = (shops.to_vec(), product.to_owned(), Arc::clone(stop));
        buyers.spawn(async move {
            let mut acknowledged = HashMap::new();
            for m in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let key = format!("{n}-{m}");
                for attempt in 0.. {
                    assert!(attempt < 2_000, "never answered");
                    let shop = &shops[(n + attempt) % shops.len()];
                    match shop.order(&product, 1, &key).await {
                        Ok(answer) if answer.status == 201 => {
                            acknowledged.insert(key, answer.body["id"].as_str().unwrap().to_owned());
                            break;
                        }
                        Ok(answer) => {
                            assert!(matches!(answer.status, 503 | 504), "{}", answer.text);
                            assert_ne!(answer.header("retry-after"), "");
                        }
                        Err(_) => {}
                    }
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
            }
            acknowledged
        });
    }
    buyers
}

/// Every acknowledged order is in the log, once, and there is none that nobody asked for.
async fn check(shop: &Shop, buyers: JoinSet<HashMap<String, String>>, at_least: usize) {
    let acknowledged: HashMap<String, String> = buyers.join_all().await.into_iter().flatten().collect();
    assert!(acknowledged.len() >= at_least, "only {} orders", acknowledged.len());
    let pool = shop.pool().await;
    let stored: Vec<Uuid> =
        sqlx::query_scalar("SELECT stream_id FROM log.events WHERE event_type = 'OrderPlaced'")
            .fetch_all(&pool)
            .await
            .unwrap();
    let mut ids: Vec<Uuid> = acknowledged.values().map(|id| id.parse().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), acknowledged.len(), "no two keys share an order");
    assert_eq!(ids.len(), stored.len(), "none lost, none twice");
    assert!(ids.iter().all(|id| stored.contains(id)));
    shop.caught_up().await;
    audit(&pool).await;
}

/// Behind the time-outs stands the watchdog: a session that holds the log's lock and has none of them is ended by
/// whoever waits for it.
#[tokio::test]
async fn a_writer_that_no_time_out_ends_is_ended_by_the_others() {
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    let shop = Shop::on(&url).await;
    let product = shop.product("W", 10).await;
    let mut stuck = PgConnection::connect(&url).await.unwrap();
    stuck
        .execute(
            "SET application_name = 'tidemark writer'; SET idle_in_transaction_session_timeout = 0; \
             BEGIN; SELECT position FROM log.head FOR UPDATE",
        )
        .await
        .unwrap();
    let held = Instant::now();
    let mut refused = 0;
    until("somebody ends it", async || {
        let answer = shop.order(&product, 1, "behind the stuck one").await.unwrap();
        refused += u32::from(matches!(answer.status, 503 | 504));
        (answer.status == 201).then_some(())
    })
    .await;
    assert!(held.elapsed() > Duration::from_secs(9), "it was given its time");
    assert!(held.elapsed() < Duration::from_secs(25), "took {:?}", held.elapsed());
    assert!(refused > 0, "until then clients are told at once that the log cannot be written");
    assert!(stuck.execute("SELECT 1").await.is_err(), "its session is gone");
    let pool = shop.pool().await;
    shop.caught_up().await;
    audit(&pool).await;
}

#[tokio::test]
async fn postgres_killed_under_load_loses_nothing_and_doubles_nothing() {
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    let shop = Arc::new(Shop::on(&url).await);
    let product = shop.product("P", 1_000_000).await;
    let stop = Arc::new(AtomicBool::new(false));
    let buyers = buyers(&[Arc::clone(&shop)], &product, &stop);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        postgres.kill();
        let asked = Instant::now();
        let answer = shop.order(&product, 1, "while away").await.unwrap();
        assert!(matches!(answer.status, 503 | 504), "{}", answer.text);
        assert!(asked.elapsed() < Duration::from_secs(15));
        until("readiness says so", async || {
            let ready = shop.get("/readyz", None, &[]).await;
            (ready.status == 503 && ready.text.contains("does not answer")).then_some(())
        })
        .await;
        assert_eq!(shop.get("/livez", None, &[]).await.status, 200);
        postgres.launch().await;
        let up = Instant::now();
        shop.ready().await;
        until("orders are taken again", async || {
            shop.order(&product, 1, "while away").await.ok().filter(|answer| answer.status == 201)
        })
        .await;
        assert!(up.elapsed() < Duration::from_secs(10), "recovery by itself took {:?}", up.elapsed());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let mut buyers = buyers;
    let product_key = shop.order(&product, 1, "while away").await.unwrap();
    let own = HashMap::from([("while away".to_owned(), product_key.body["id"].as_str().unwrap().to_owned())]);
    buyers.spawn(async move { own });
    check(&shop, buyers, 50).await;
}

#[tokio::test]
async fn a_writer_that_is_paused_does_not_stop_the_others_and_learns_the_truth() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let shops = [Arc::new(Shop::on(&url).await), Arc::new(Shop::on(&url).await)];
    let product = shops[0].product("P", 1_000_000).await;
    let stop = Arc::new(AtomicBool::new(false));
    let buyers = buyers(&shops[..1], &product, &stop);
    let paused = Pid::from_raw(shops[0].pid()).unwrap();
    for n in 0..4 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        kill_process(paused, Signal::STOP).unwrap();
        let began = Instant::now();
        until("the other shop takes orders", async || {
            shops[1]
                .order(&product, 1, &format!("other-{n}"))
                .await
                .ok()
                .filter(|answer| answer.status == 201)
        })
        .await;
        assert!(began.elapsed() < Duration::from_secs(12), "held up for {:?}", began.elapsed());
        kill_process(paused, Signal::CONT).unwrap();
    }
    // One that stops while it holds the lock: the database ends its transaction within seconds, before the watchdog would.
    let mut stopped = WriterConnection::open(&connect_options(&url).unwrap()).await.unwrap();
    let locked = stopped.lock().await.unwrap();
    let began = Instant::now();
    until("the lock is given back", async || {
        shops[1].order(&product, 1, "behind the holder").await.ok().filter(|answer| answer.status == 201)
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    let ended = locked.commit().await;
    assert!(!matches!(ended, Outcome::Committed(_)), "it goes on as if nothing had been: {ended:?}");
    stop.store(true, Ordering::Relaxed);
    let mut buyers = buyers;
    let other = Arc::clone(&shops[1]);
    buyers.spawn(async move {
        let mut own = HashMap::new();
        for key in ["other-0", "other-1", "other-2", "other-3", "behind the holder"] {
            let again = other.order(&product, 1, key).await.unwrap();
            own.insert(key.to_owned(), again.body["id"].as_str().unwrap().to_owned());
        }
        own
    });
    check(&shops[1], buyers, 20).await;
}

#[tokio::test]
async fn a_projector_that_is_paused_does_not_keep_its_views_from_others() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let shop = Shop::part("command", &url, &[]).await;
    let pool = shop.pool().await;
    let here = [("TIDEMARK_VIEWS_URL", url.as_str())];
    let first = Shop::part("projector", &url, &here).await;
    let product = shop.product("P", 1_000).await;
    let order = async |key: &str| -> i64 {
        let placed = shop.order(&product, 1, key).await.unwrap();
        assert_eq!(placed.status, 201, "{}", placed.text);
        placed.body["position"].as_i64().unwrap()
    };
    stands_at(&pool, order("before").await).await;
    // Whoever comes later stands by, until the first is silent.
    let second = Shop::part("projector", &url, &here).await;
    for (paused, key) in [(&first, "first"), (&second, "second")] {
        let paused = Pid::from_raw(paused.pid()).unwrap();
        kill_process(paused, Signal::STOP).unwrap();
        let began = Instant::now();
        stands_at(&pool, order(key).await).await;
        assert!(began.elapsed() < Duration::from_secs(12), "the views stood for {:?}", began.elapsed());
        kill_process(paused, Signal::CONT).unwrap();
        // What it had in hand is refused, and from then on it stands by.
        stands_at(&pool, order(&format!("{key} again")).await).await;
    }
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM views.orders_1").fetch_one(&pool).await.unwrap();
    assert_eq!(seen, 5);
    audit(&pool).await;
}

#[tokio::test]
async fn a_repetition_that_another_shop_would_refuse_gets_the_first_answer() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let proxy = Proxy::before(&postgres);
    let (first, second) = (Shop::on(&url).await, Arc::new(Shop::on(&proxy.through(&url)).await));
    let product = first.product("P", 1_000_000).await;
    let product_of =
        |n| json!({ "sku": format!("S-{n}"), "name": "Lamp", "price": { "amount": 1, "currency": "EUR" } });
    for n in 0..20 {
        let key = format!("create {n}");
        let create = async |shop: &Shop| {
            let headers = [("Idempotency-Key", key.as_str())];
            let body = Some(product_of(n));
            shop.send(Method::POST, "/v1/products", Some(&shop.staff), &headers, body).await.unwrap()
        };
        assert_eq!(create(&first).await.status, 201);
        // The other shop learns of it, and stands alone again: then it takes the short way.
        for m in 0..70 {
            second.order(&product, 1, &format!("before {n} {m}")).await.unwrap();
        }
        // Refusals alone take the long way. In the company of what is accepted they take the short one, also when that
        // commit's answer is lost.
        if n % 2 == 1 {
            proxy.cut_next(Cut::AfterTheEffect, "OrderPlaced");
        }
        let mut company = JoinSet::new();
        for m in 0..8 {
            let (second, product) = (Arc::clone(&second), product.clone());
            company.spawn(async move { second.order(&product, 1, &format!("with {n} {m}")).await.unwrap() });
        }
        let again = create(&second).await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, "true"), "{:?}", again.body);
        assert!(company.join_all().await.iter().all(|answer| answer.status == 201));
    }
}

#[tokio::test]
async fn an_event_that_no_code_understands_parks_its_key_and_nothing_else() {
    let shop = Shop::open().await;
    let (odd, other) = (shop.product("ODD", 5).await, shop.product("OTHER", 5).await);
    shop.caught_up().await;
    let pool = shop.pool().await;
    // As a newer version would have written it.
    let mut newer = pool.begin().await.unwrap();
    let id: Uuid = odd.parse().unwrap();
    sqlx::query(
        "WITH head AS (UPDATE log.head SET position = position + 1 RETURNING position) \
         INSERT INTO log.events SELECT head.position, $1, 'product', 3, $2, 'ProductTeleported', 1, '{}', $2, NULL, 'x', \
         NULL, clock_timestamp(), $1 FROM head",
    )
    .bind(id)
    .bind(Uuid::now_v7())
    .execute(&mut *newer)
    .await
    .unwrap();
    newer.commit().await.unwrap();
    // And of the stock of another.
    let lost = shop.product("LOST", 5).await;
    shop.caught_up().await;
    let mut newer = pool.begin().await.unwrap();
    sqlx::query(
        "WITH head AS (UPDATE log.head SET position = position + 1 RETURNING position) \
         INSERT INTO log.events SELECT head.position, $1, 'stock', 2, $2, 'StockTeleported', 1, '{}', $2, NULL, 'x', \
         NULL, clock_timestamp(), $3 FROM head",
    )
    .bind(tidemark_events::stream::stock_of(lost.parse().unwrap()))
    .bind(Uuid::now_v7())
    .bind(lost.parse::<Uuid>().unwrap())
    .execute(&mut *newer)
    .await
    .unwrap();
    newer.commit().await.unwrap();
    let path = format!("/v1/products/{odd}/price");
    let price = serde_json::json!({ "price": { "amount": 5, "currency": "EUR" } });
    let refused = shop.put(&path, Some(price.clone())).await;
    assert_eq!(
        (refused.status, refused.problem()),
        (503, "unavailable"),
        "its stream is not written by who cannot read it"
    );
    let changed = shop.put(&format!("/v1/products/{other}/price"), Some(price)).await;
    assert_eq!(changed.status, 200, "others are");
    let after = [("Tidemark-After", changed.header("tidemark-position"))];
    assert_eq!(shop.get(&format!("/v1/products/{other}"), None, &after).await.body["price"]["amount"], 5);
    // Who reads the key is told, and who insists on reading all of it is refused.
    for path in [
        format!("/v1/products/{odd}"),
        format!("/v1/products/{odd}?fields=price"),
        format!("/v1/products/{lost}"),
        format!("/v1/products/{lost}/stock"),
    ] {
        let seen = shop.get(&path, Some(&shop.staff), &[]).await;
        assert_eq!((seen.status, seen.header("tidemark-parked")), (200, "true"), "{path}");
        let refused = shop.get(&path, Some(&shop.staff), &after).await;
        assert_eq!((refused.status, refused.problem()), (503, "view-behind"), "{path}");
    }
    let stock = shop.get(&format!("/v1/products/{other}/stock"), Some(&shop.staff), &after).await;
    assert_eq!((stock.status, stock.header("tidemark-parked")), (200, ""), "others are whole");
    let parked: (String, String) =
        sqlx::query_as("SELECT event_type, error FROM views.parked WHERE partition_key = $1")
            .bind(id)
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(parked.0, "ProductTeleported");
    assert!(parked.1.contains("unknown to this version"));
}

#[tokio::test]
async fn a_command_that_the_log_refuses_fails_alone() {
    let shop = Arc::new(Shop::open().await);
    let (good, bad) = (shop.product("GOOD", 1_000).await, shop.product("BAD", 1_000).await);
    let pool = shop.pool().await;
    // Something the database minds and no decision knows of.
    pool.execute(sqlx::AssertSqlSafe(format!(
        "ALTER TABLE log.events_1 ADD CHECK (event_type <> 'StockReserved' OR partition_key <> '{bad}') NOT VALID"
    )))
    .await
    .unwrap();
    let mut buyers = JoinSet::new();
    for n in 0..60 {
        let (shop, product) = (Arc::clone(&shop), if n == 31 { bad.clone() } else { good.clone() });
        buyers.spawn(async move { (n, shop.order(&product, 1, &format!("k{n}")).await.unwrap().status) });
    }
    for (n, status) in buyers.join_all().await {
        assert_eq!(status, if n == 31 { 500 } else { 201 }, "order {n}");
    }
    shop.caught_up().await;
    audit(&pool).await;
}

/// As a full disk does.
#[tokio::test]
async fn a_log_without_room_blames_nobody_and_takes_commands_when_it_has_some() {
    let shop = Shop::open().await;
    let other = Shop::on(&shop.url).await;
    let product = shop.product("FULL", 10).await;
    // So that the first one finds the log further than it left it, and takes the lock.
    other.product("ELSE", 1).await;
    let pool = shop.pool().await;
    pool.execute(
        "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full'; END $$",
    )
    .await
    .unwrap();
    pool.execute(
        "CREATE TRIGGER no_room BEFORE INSERT ON log.events FOR EACH ROW EXECUTE FUNCTION no_room()",
    )
    .await
    .unwrap();
    let orders = (0..8).map(|n| {
        let (shop, product) = (&shop, &product);
        async move { shop.order(product, 1, &format!("full-{n}")).await.unwrap() }
    });
    for answer in futures_util::future::join_all(orders).await {
        assert_eq!((answer.status, answer.problem()), (503, "unavailable"), "{}", answer.text);
        assert!(!answer.header("retry-after").is_empty());
    }
    pool.execute("DROP TRIGGER no_room ON log.events").await.unwrap();
    for n in 0..8 {
        assert_eq!(shop.order(&product, 1, &format!("full-{n}")).await.unwrap().status, 201);
    }
    shop.caught_up().await;
    audit(&pool).await;
}

#[tokio::test]
async fn what_waits_is_bounded_and_the_rest_is_told_at_once() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("TIDEMARK_QUEUE_COMMANDS", "64"),
        ("TIDEMARK_MAX_CONNECTIONS_OF_ADDRESS", "5000"),
    ];
    let shop = Arc::new(Shop::part("up", &url, &settings).await);
    let product = shop.product("P", 1_000_000).await;
    let mut holder = PgConnection::connect(&url).await.unwrap();
    holder.execute("BEGIN; SELECT position FROM log.head FOR UPDATE").await.unwrap();
    // More than two groups and what waits behind them.
    let mut buyers = JoinSet::new();
    for n in 0..2_000 {
        let (shop, product) = (Arc::clone(&shop), product.clone());
        buyers.spawn(async move { shop.order(&product, 1, &format!("k{n}")).await });
    }
    let mut statuses = Vec::new();
    while !statuses.contains(&503) {
        let answer = buyers.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!((answer.status, answer.problem()), (503, "overloaded"), "{}", answer.text);
        statuses.push(answer.status);
    }
    // By itself, when nothing but the queue can hold it up.
    while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(1), buyers.join_next()).await {
        statuses.push(answer.unwrap().unwrap().status);
    }
    until("the next one is told at once", async || {
        let next = shop.order(&product, 1, "next");
        let answer = tokio::time::timeout(Duration::from_secs(1), next).await.ok()?.unwrap();
        Some(()).filter(|()| answer.status == 503 && answer.problem() == "overloaded")
    })
    .await;
    holder.execute("ROLLBACK").await.unwrap();
    while let Some(answer) = buyers.join_next().await {
        statuses.push(answer.unwrap().unwrap().status);
    }
    assert!(statuses.iter().all(|status| matches!(status, 201 | 503 | 504)), "{statuses:?}");
    shop.ready().await;
    assert_eq!(shop.order(&product, 1, "afterwards").await.unwrap().status, 201);
    shop.caught_up().await;
    audit(&shop.pool().await).await;
}
