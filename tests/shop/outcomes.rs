//! Commits whose outcome is unknown, and logs that lose their end: what clients are told is what is so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tidemark_events::log::{Batch, NewEvent, Outcome, Swift, WriterConnection, connect_options};
use tidemark_events::stock::StockReceived;
use tidemark_events::{Fact, Metadata, stream};
use uuid::Uuid;

use crate::harness::{Answer, CUSTOMER, Postgres, Shop, audit, token, until};
use crate::proxy::{Cut, Proxy};

/// What a read answers once its views stand where they should: until then it says that they do not.
async fn read(shop: &Shop, path: &str, after: &str) -> Answer {
    until("the views catch up", async || {
        let answer = shop.get(path, Some(&shop.customer), &[("Tidemark-After", after)]).await;
        if answer.status == 503 { None } else { Some(answer) }
    })
    .await
}

/// A shop whose connections can be cut, with a product; what a test looks up itself goes to the database directly.
async fn behind_a_proxy() -> (Arc<Postgres>, Proxy, Shop, String) {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let proxy = Proxy::before(&postgres);
    let mut shop = Shop::on(&proxy.through(&url)).await;
    shop.url = url;
    let product = shop.product("P", 1_000).await;
    (postgres, proxy, shop, product)
}

/// The second event of a product's stock.
fn received<'a>(product_id: Uuid, fact: &'a Fact, metadata: &'a Metadata) -> NewEvent<'a> {
    NewEvent {
        stream_id: stream::stock_of(product_id),
        version: 2,
        event_id: Uuid::now_v7(),
        fact,
        metadata,
        partition_key: product_id,
        begins: None,
    }
}

async fn orders_placed(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM log.events WHERE event_type = 'OrderPlaced'")
        .fetch_one(pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_looked_up_before_its_client_is_answered() {
    let (_postgres, proxy, shop, product) = behind_a_proxy().await;
    let pool = shop.pool().await;
    for (n, cut) in [Cut::AfterTheEffect, Cut::BeforeTheEffect, Cut::AfterTheEffect].into_iter().enumerate() {
        proxy.cut_next(cut, "OrderPlaced");
        let answer = shop.order(&product, 1, &format!("cut {n}")).await.unwrap();
        assert_eq!((answer.status, proxy.cuts()), (201, n + 1), "{cut:?}: {}", answer.text);
        assert_eq!(orders_placed(&pool).await, i64::try_from(n).unwrap() + 1, "{cut:?}: once");
        assert_eq!(answer.header("idempotency-replayed"), "", "{cut:?}: it was found out, not repeated");
        let again = shop.order(&product, 1, &format!("cut {n}")).await.unwrap();
        assert_eq!((again.status, &again.body), (201, &answer.body), "{cut:?}");
        assert_eq!(again.header("idempotency-replayed"), "true");
    }
    // Nor is a command done twice that has no key to find it under.
    let path = format!("/v1/products/{product}/price");
    for (amount, cut) in [(5, Cut::AfterTheEffect), (6, Cut::BeforeTheEffect)] {
        proxy.cut_next(cut, "PriceChanged");
        let body = json!({ "price": { "amount": amount, "currency": "EUR" } });
        let answer = shop.put(&path, Some(body)).await;
        assert_eq!(
            (answer.status, answer.body["version"].as_i64()),
            (200, Some(amount - 2)),
            "{}",
            answer.text
        );
    }
    assert_eq!(proxy.cuts(), 5);
    shop.caught_up().await;
    audit(&pool).await;
}

#[tokio::test]
async fn a_database_that_says_nothing_any_more_is_given_up_and_asked_anew() {
    let (_postgres, proxy, shop, product) = behind_a_proxy().await;
    let pool = shop.pool().await;
    proxy.cut_next(Cut::Silence, "OrderPlaced");
    let since = Instant::now();
    let answer = shop.order(&product, 1, "silence").await.unwrap();
    assert_eq!((answer.status, proxy.cuts()), (201, 1), "{}", answer.text);
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    assert_eq!(orders_placed(&pool).await, 1, "it was found out, not done again");
    assert_eq!(shop.order(&product, 1, "behind it").await.unwrap().status, 201);
}

#[tokio::test]
async fn an_append_that_arrives_when_it_has_been_given_up_writes_nothing() {
    let shop = Shop::open().await;
    let product = shop.product("P", 5).await;
    let product_id: Uuid = product.parse().unwrap();
    let options = connect_options(&shop.url).unwrap();
    let (mut late, mut settling) =
        (WriterConnection::open(&options).await.unwrap(), WriterConnection::open(&options).await.unwrap());
    let locked = late.lock().await.unwrap();
    let mut batch = Batch::at(locked.head());
    locked.release().await.unwrap();
    batch
        .push(&received(
            product_id,
            &StockReceived { product_id, quantity: 4 }.into(),
            &crate::log::metadata(),
        ))
        .unwrap();
    let mut locked = settling.lock().await.unwrap();
    assert!(!locked.settle(batch.mark().unwrap()).await.unwrap(), "it is not there");
    assert!(matches!(locked.commit().await, Outcome::Committed(_)));
    assert!(matches!(late.append_at(&batch).await, Swift::Moved), "nor will it be");
    // Who holds the lock again, or has settled, writes.
    late.lock().await.unwrap().release().await.unwrap();
    assert!(matches!(late.append_at(&batch).await, Swift::Committed(..)));
}

#[tokio::test]
async fn an_outcome_that_cannot_be_found_out_is_said_to_be_unknown_and_found_under_its_key() {
    let (_postgres, proxy, shop, product) = behind_a_proxy().await;
    let pool = shop.pool().await;
    proxy.cut_next(Cut::AfterTheEffect, "OrderPlaced");
    proxy.close(true);
    let answer = shop.order(&product, 1, "lost").await.unwrap();
    assert_eq!((answer.status, answer.problem()), (504, "outcome-unknown"), "{}", answer.text);
    assert_ne!(answer.header("retry-after"), "");
    proxy.close(false);
    let again = until("the log is within reach again", async || {
        shop.order(&product, 1, "lost").await.ok().filter(|answer| answer.status == 201)
    })
    .await;
    assert_eq!(again.header("idempotency-replayed"), "true", "it had taken effect");
    assert_eq!(orders_placed(&pool).await, 1);
}

/// Waits until a writer waits for the log's lock, which somebody holds.
async fn commit_under_way(pool: &PgPool) {
    until("a commit is under way", async || {
        let waits: bool = sqlx::query_scalar(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'tidemark writer' \
             AND datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(pool)
        .await
        .unwrap();
        waits.then_some(())
    })
    .await;
}

/// Orders the first, and the rest while its commit is held up, until `go_on` lets it go; their answers.
async fn ordered_behind_a_commit(
    shop: &Shop,
    product: &str,
    orders: &[(i64, &str)],
    go_on: impl Future<Output = ()>,
) -> Vec<Answer> {
    let pool = shop.pool().await;
    let answers = orders.iter().enumerate().map(async |(n, &(units, key))| {
        if n > 0 {
            commit_under_way(&pool).await;
        }
        shop.order(product, units, key).await.unwrap()
    });
    let go_on = async {
        commit_under_way(&pool).await;
        // Time for the rest to come to the writer.
        tokio::time::sleep(Duration::from_millis(300)).await;
        go_on.await;
    };
    tokio::join!(join_all(answers), go_on).0
}

#[tokio::test]
async fn who_comes_behind_a_commit_that_does_not_come_about_is_told_what_is_so_afterwards() {
    let shop = Shop::open().await;
    let product = shop.product("P", 5).await;
    let product_id: Uuid = product.parse().unwrap();
    // Somebody else appends while the shop's commit waits for the lock: four more units.
    let mut other = WriterConnection::open(&connect_options(&shop.url).unwrap()).await.unwrap();
    let mut locked = other.lock().await.unwrap();
    let received = async {
        let mut batch = Batch::at(locked.head());
        let (fact, metadata) = (StockReceived { product_id, quantity: 4 }.into(), crate::log::metadata());
        let event = received(product_id, &fact, &metadata);
        batch.push(&event).unwrap();
        locked.append(&batch).await.unwrap();
        assert!(matches!(locked.commit().await, Outcome::Committed(_)));
    };
    // Without the four units the first would take all there is, and the second be refused.
    let orders = [(5, "a"), (3, "b"), (5, "a"), (5, "c")];
    let answers = ordered_behind_a_commit(&shop, &product, &orders, received).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [201, 201, 201, 409], "{}", answers[1].text);
    let replayed: Vec<&str> = answers.iter().map(|answer| answer.header("idempotency-replayed")).collect();
    assert_eq!(replayed, ["", "", "true", ""], "a key that comes again while it is under way is one order");
    assert_eq!(answers[0].body, answers[2].body);
    assert_eq!(orders_placed(&shop.pool().await).await, 2);
    shop.caught_up().await;
    audit(&shop.pool().await).await;
}

#[tokio::test]
async fn who_comes_behind_a_commit_whose_answer_is_lost_waits_for_the_truth() {
    for cut in [Cut::AfterTheEffect, Cut::BeforeTheEffect] {
        let (_postgres, proxy, shop, product) = behind_a_proxy().await;
        let mut holder = PgConnection::connect(&shop.url).await.unwrap();
        holder.execute("BEGIN; SELECT FROM log.head FOR UPDATE").await.unwrap();
        proxy.cut_next(cut, "OrderPlaced");
        let release = async {
            holder.execute("ROLLBACK").await.unwrap();
        };
        let orders = [(400, "a"), (600, "b"), (601, "c")];
        let answers = ordered_behind_a_commit(&shop, &product, &orders, release).await;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [201, 201, 409], "{cut:?}: {} {}", answers[0].text, answers[1].text);
        assert_eq!(proxy.cuts(), 1, "{cut:?}");
        let pool = shop.pool().await;
        assert_eq!(orders_placed(&pool).await, 2, "{cut:?}");
        shop.caught_up().await;
        audit(&pool).await;
    }
}

/// Its client asks elsewhere meanwhile: what is refused there must not be done here afterwards.
#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_done() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let (one, two) = (Shop::part("command", &url, &[]).await, Shop::part("command", &url, &[]).await);
    let product = one.product("G", 100).await;
    let pool = one.pool().await;
    // One has decided before, and does not know what the other has appended since.
    for (shop, key) in [(&two, "first"), (&one, "second")] {
        assert_eq!(shop.order(&product, 1, key).await.unwrap().status, 201);
    }
    let mut holder = PgConnection::connect(&url).await.unwrap();
    holder.execute("BEGIN; SELECT FROM log.head FOR UPDATE").await.unwrap();
    let given_up = tokio::time::timeout(Duration::from_millis(700), two.order(&product, 1, "late")).await;
    assert!(given_up.is_err(), "it waits for the log's lock");
    tokio::time::sleep(Duration::from_millis(300)).await;
    holder.execute("ROLLBACK").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(orders_placed(&pool).await, 2);
    let asked_again = one.order(&product, 1, "late").await.unwrap();
    assert_eq!((asked_again.status, asked_again.header("idempotency-replayed")), (201, ""));
    let other = two.order(&product, 1, "another").await.unwrap();
    assert_eq!(other.status, 201, "it goes on: {}", other.text);
    assert_eq!(orders_placed(&pool).await, 4);
}

#[tokio::test]
async fn views_that_a_crash_threw_back_catch_up_without_another_event() {
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    let shop = Shop::on(&url).await;
    let product = shop.product("P", 100).await;
    let order = shop.order(&product, 1, "last").await.unwrap();
    let (position, path) = (order.header("tidemark-position"), format!("/v1/products/{product}"));
    assert_eq!(read(&shop, &path, position).await.body["available"], 99);
    // What the views have shown is not on disk yet; the order is.
    postgres.kill();
    postgres.launch().await;
    assert_eq!(read(&shop, &path, position).await.body["available"], 99);
    let order = format!("/v1/orders/{}", order.body["id"].as_str().unwrap());
    assert_eq!(read(&shop, &order, position).await.status, 200);
}

/// Nobody can tell whether its files are what they were, so each run of a server is an epoch of its own. That costs nobody
/// anything.
#[tokio::test]
async fn a_server_that_was_started_anew_goes_on_in_a_new_epoch_and_nothing_is_read_twice() {
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    let shop = Shop::on(&url).await;
    let product = shop.product("P", 100).await;
    let before = shop.order(&product, 1, "before").await.unwrap();
    let (old, path) = (before.header("tidemark-position"), format!("/v1/products/{product}"));
    assert!(old.starts_with("1-"), "{old}");
    shop.caught_up().await;
    let mut epochs = vec![1];
    for n in 1..=3 {
        postgres.kill();
        postgres.launch().await;
        // Changes nothing, in an epoch that no view has heard of.
        let publication = format!("{path}/publication");
        let published = until("commands are taken again", async || {
            Some(shop.put(&publication, None).await).filter(|answer| answer.status == 200)
        })
        .await;
        assert_eq!(read(&shop, &path, published.header("tidemark-position")).await.status, 200);
        let after = shop.order(&product, 1, &format!("after {n}")).await.unwrap();
        assert_eq!(after.status, 201, "{}", after.text);
        let (epoch, position) = after.header("tidemark-position").split_once('-').unwrap();
        assert_eq!(
            after.body["position"],
            before.body["position"].as_i64().unwrap() + 2 * n,
            "{}",
            after.text
        );
        assert_eq!(position, after.body["position"].to_string());
        epochs.push(epoch.parse().unwrap());
        let shown = read(&shop, &path, after.header("tidemark-position")).await;
        assert_eq!((shown.status, &shown.body["available"]), (200, &(99 - n).into()), "{}", shown.text);
        assert_eq!(read(&shop, &path, old).await.status, 200, "a position from before is still one");
    }
    assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
    let again = shop.order(&product, 1, "before").await.unwrap();
    assert_eq!((again.header("idempotency-replayed"), again.header("tidemark-position")), ("true", old));
    let words = std::fs::read_to_string(&shop.words).unwrap();
    assert!(!words.contains("lost its end"), "nothing was lost: {words}");
    shop.caught_up().await;
    audit(&shop.pool().await).await;
}

/// One was thrown back by the crash, and read an event again that the others had.
#[tokio::test]
async fn views_of_different_epochs_show_what_was_told_in_the_newest() {
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    let with_views = [("TIDEMARK_VIEWS_URL", url.as_str())];
    let command = Shop::part("command", &url, &[]).await;
    let projector = Shop::part("projector", &url, &with_views).await;
    let query = Shop::part("query", &url, &with_views).await;
    let product = command.product("P", 5).await;
    let path = format!("/v1/products/{product}");
    let price = json!({ "price": { "amount": 2_999, "currency": "EUR" } });
    let dearer = command.put(&format!("{path}/price"), Some(price)).await;
    assert_eq!(dearer.status, 200, "{}", dearer.text);
    command.caught_up().await;
    drop(projector);
    postgres.kill();
    postgres.launch().await;
    let told = until("commands are taken again", async || {
        Some(command.put(&format!("{path}/publication"), None).await).filter(|answer| answer.status == 200)
    })
    .await;
    let pool = query.pool().await;
    pool.execute("UPDATE views.checkpoints SET position = position - 1 WHERE name = 'stock'").await.unwrap();
    let _projector = Shop::part("projector", &url, &with_views).await;
    let shown = read(&query, &path, told.header("tidemark-position")).await;
    assert_eq!((shown.status, &shown.body["available"]), (200, &5.into()), "{}", shown.text);
    let epochs: i64 = sqlx::query_scalar("SELECT count(DISTINCT epoch) FROM views.checkpoints")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(epochs, 2);
}

/// A command service, a projector and a query service, with the views on another server than the log's.
async fn parts(postgres: &Postgres, elsewhere: &Postgres) -> [Shop; 3] {
    let (url, views) = (postgres.database().await, elsewhere.database().await);
    let with_views = [("TIDEMARK_VIEWS_URL", views.as_str())];
    [
        Shop::part("command", &url, &[]).await,
        Shop::part("projector", &url, &with_views).await,
        Shop::part("query", &url, &with_views).await,
    ]
}

/// The log is asked for its epochs once, not by each read.
#[tokio::test]
async fn a_position_from_before_a_start_is_known_while_the_log_is_away() {
    let postgres = Postgres::start().await;
    let elsewhere = Postgres::shared().await;
    let [command, _projector, query] = parts(&postgres, &elsewhere).await;
    let product = command.product("P", 5).await;
    let before = command.order(&product, 1, "before").await.unwrap();
    postgres.kill();
    postgres.launch().await;
    let after = until("orders are taken again", async || {
        command.order(&product, 1, "after").await.ok().filter(|answer| answer.status == 201)
    })
    .await;
    let path = format!("/v1/products/{product}");
    assert_eq!(read(&query, &path, after.header("tidemark-position")).await.body["available"], 3);
    tokio::time::sleep(Duration::from_secs(1)).await;
    postgres.kill();
    let old = [("Tidemark-After", before.header("tidemark-position"))];
    let shown = query.get(&path, None, &old).await;
    assert_eq!((shown.status, &shown.body["available"]), (200, &3.into()), "{}", shown.text);
}

/// Until something is appended nobody but the log knows what was lost.
#[tokio::test]
async fn what_was_lost_is_told_before_anything_is_appended() {
    let postgres = Postgres::start().await;
    let elsewhere = Postgres::shared().await;
    let [command, _projector, query] = parts(&postgres, &elsewhere).await;
    let product = command.product("P", 100).await;
    let path = format!("/v1/products/{product}");
    let kept = command.order(&product, 1, "kept").await.unwrap();
    assert_eq!(read(&query, &path, kept.header("tidemark-position")).await.body["available"], 99);
    postgres.kill();
    postgres.copy_as_replica();
    postgres.launch().await;
    let lost = until("orders are taken again", async || {
        command.order(&product, 5, "lost").await.ok().filter(|answer| answer.status == 201)
    })
    .await;
    let beyond = lost.header("tidemark-position");
    assert_eq!(read(&query, &path, beyond).await.body["available"], 94);
    let mut follower = reqwest::Client::new()
        .get(format!("{}/v1/events?follow=true", query.base))
        .bearer_auth(token("analyst", CUSTOMER).await)
        .send()
        .await
        .unwrap();
    let mut told = String::new();
    while !told.contains(lost.body["id"].as_str().unwrap()) {
        let chunk = tokio::time::timeout(Duration::from_secs(30), follower.chunk()).await.unwrap();
        told += std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap();
    }

    postgres.kill();
    postgres.put_replica_in_place();
    postgres.launch().await;
    let mut connection = PgConnection::connect(&postgres.url("postgres")).await.unwrap();
    connection.execute("SELECT pg_promote()").await.unwrap();
    // Changes nothing, and begins the epoch.
    let unchanged = until("commands are taken by the promoted server", async || {
        Some(command.put(&format!("{path}/publication"), None).await).filter(|answer| answer.status == 200)
    })
    .await;
    let position = unchanged.header("tidemark-position");
    let at = |position: &str| position.split_once('-').unwrap().1.to_owned();
    assert_eq!(at(position), at(kept.header("tidemark-position")));
    let shown = query.get(&path, None, &[("Tidemark-After", position)]).await;
    assert_eq!(shown.problem(), "view-behind", "a view beyond the fork has not come to it: {}", shown.text);
    until("what was lost is known to be", async || {
        let gone = query.get(&path, None, &[("Tidemark-After", beyond)]).await;
        (gone.status == 409 && gone.problem() == "position-unknown").then_some(())
    })
    .await;
    let ended = async {
        loop {
            match follower.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("what it has is taken for whole"),
                Err(_) => return,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("who follows is told");
    // Who comes back with what was lost is told so, and who has nothing of it goes on.
    let analyst = token("analyst", CUSTOMER).await;
    let resumed =
        async |position: &str| query.get(&format!("/v1/events?after={position}"), Some(&analyst), &[]).await;
    let again = resumed(beyond).await;
    assert_eq!((again.status, again.problem()), (409, "position-unknown"), "{}", again.text);
    let kept = kept.header("tidemark-position");
    assert_eq!(resumed(kept).await.text, "", "nothing was appended behind it");
    let order = command.order(&product, 1, "anew").await.unwrap();
    let anew = resumed(kept).await;
    assert!(anew.text.contains(order.body["id"].as_str().unwrap()), "{}", anew.text);
    let (epoch, _) = order.header("tidemark-position").split_once('-').unwrap();
    assert_eq!(anew.header("tidemark-epoch"), epoch);
}

#[tokio::test]
async fn a_log_that_lost_its_end_begins_a_new_epoch_and_nothing_of_the_lost_end_is_shown() {
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    let shop = Shop::on(&url).await;
    let product = shop.product("P", 100).await;
    let kept = shop.order(&product, 1, "kept").await.unwrap();
    shop.caught_up().await;
    // A replica that stands here …
    postgres.kill();
    postgres.copy_as_replica();
    postgres.launch().await;
    shop.ready().await;
    let mut lost = Vec::new();
    for n in 0..3 {
        let key = format!("lost {n}");
        lost.push(
            until("orders are taken again", async || {
                shop.order(&product, 5, &key).await.ok().filter(|answer| answer.status == 201)
            })
            .await,
        );
    }
    let beyond = lost[2].header("tidemark-position").to_owned();
    let order = format!("/v1/orders/{}", lost[2].body["id"].as_str().unwrap());
    assert_eq!(read(&shop, &order, &beyond).await.status, 200);
    let path = format!("/v1/products/{product}");
    assert_eq!(read(&shop, &path, &beyond).await.body["available"], 84);

    // … is promoted, without the end of the log.
    postgres.kill();
    postgres.put_replica_in_place();
    postgres.launch().await;
    let mut connection = PgConnection::connect(&postgres.url("postgres")).await.unwrap();
    connection.execute("SELECT pg_promote()").await.unwrap();
    let begun = Instant::now();
    let new = until("orders are taken by the promoted server", async || {
        shop.order(&product, 1, "new").await.ok().filter(|answer| answer.status == 201)
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let position = new.header("tidemark-position").to_owned();
    assert!(kept.header("tidemark-position").starts_with("1-"));
    let epoch: i32 = position.split_once('-').unwrap().0.parse().unwrap();
    assert!(epoch > 1, "{position}");
    let shown = read(&shop, &path, &position).await;
    assert_eq!(shown.body["available"], 98, "the lost orders count no more: {}", shown.text);
    assert_eq!(read(&shop, &order, &position).await.status, 404, "nor are they shown");
    let gone = read(&shop, &path, &beyond).await;
    assert_eq!((gone.status, gone.problem()), (409, "position-unknown"), "{}", gone.text);
    let before = kept.header("tidemark-position");
    assert_eq!(read(&shop, &path, before).await.status, 200, "before the fork");
    let again = shop.order(&product, 5, "lost 0").await.unwrap();
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, ""), "what was lost is done anew");
    shop.caught_up().await;
    let pool = shop.pool().await;
    audit(&pool).await;
    let epochs: Vec<(i32, i64)> =
        sqlx::query_as("SELECT epoch, from_position FROM log.epochs ORDER BY epoch")
            .fetch_all(&pool)
            .await
            .unwrap();
    let fork: i64 = kept.header("tidemark-position")[2..].parse().unwrap();
    assert_eq!(epochs, [(1, 1), (epoch, fork + 1)]);
}
