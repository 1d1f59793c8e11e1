//! Two command services on one log: one order, no gaps, no conflicts, and a hot product is never oversold.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tidemark_command::command::NewId;
use tidemark_command::product::CreateProduct;
use tidemark_command::stock::ReceiveStock;
use tidemark_command::testing::euros;
use tidemark_command::value::{Name, Price, Quantity, Sku};
use tidemark_command::writer::Rendered;
use tidemark_command::{Command, Request, Writer, WriterConfig};
use tidemark_events::log::{Filter, Log, WriterConnection, connect_options};
use tidemark_events::{Metadata, stream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Postgres, Shop, audit};

/// A command for a product of this id, which is its SKU, too.
pub(crate) fn new_product(product_id: Uuid) -> Command {
    Command::CreateProduct(CreateProduct {
        product_id: NewId::Fresh(product_id),
        sku: Sku::try_from(product_id.to_string()).unwrap(),
        name: Name::try_from("Thing".to_owned()).unwrap(),
        description: None,
        department: None,
        price: Price::try_from(euros(100)).unwrap(),
    })
}

/// Of events that come from no request.
pub(crate) fn metadata() -> Metadata {
    Metadata {
        correlation_id: Uuid::now_v7(),
        causation_id: None,
        actor: "test".to_owned(),
        traceparent: None,
        origin: None,
    }
}

/// A request of one command, for a writer with no shop around it.
pub(crate) fn request(command: Command) -> Request {
    Request {
        commands: vec![command],
        key: None,
        if_match: None,
        now: Utc::now(),
        metadata: metadata(),
        render: |outcomes| {
            outcomes[0].is_ok().then(|| Rendered { status: 201, location: None, body: Vec::new() })
        },
        stop_at_rejection: false,
        bytes: 100,
    }
}

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
async fn three_services_sell_what_there_is_and_no_more() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let mut shops = Vec::new();
    for _ in 0..3 {
        shops.push(Arc::new(Shop::on(&url).await));
    }
    let hot = shops[0].product("HOT", 200).await;
    let mut buyers = JoinSet::new();
    for n in 0..400 {
        let (shop, hot) = (Arc::clone(&shops[n % 3]), hot.clone());
        buyers.spawn(async move { shop.order(&hot, 1, &n.to_string()).await.unwrap().status });
    }
    let answers = buyers.join_all().await;
    let count = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(201), count(409)), (200, 200), "{answers:?}");
    shops[0].caught_up().await;
    audit(&shops[0].pool().await).await;
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

/// A writer without a shop around it, on partitions of a few positions.
struct Bare {
    log: Log,
    writer: Writer,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Bare {
    const PARTITION: i64 = 10;

    async fn on(url: &str, snapshot_interval: i64) -> Self {
        let options = connect_options(url).unwrap();
        let pool = PgPoolOptions::new().max_connections(4).connect_with(options.clone()).await.unwrap();
        Log::migrate_with(&pool, Self::PARTITION).await.unwrap();
        let (log, stop) = (Log::new(pool), CancellationToken::new());
        let config =
            WriterConfig { partition_size: Self::PARTITION, snapshot_interval, ..WriterConfig::default() };
        let (writer, task) = Writer::spawn(log.clone(), options, config, stop.clone());
        Self { log, writer, stop, task }
    }

    /// Receives one unit; returns the version of the stock.
    async fn receive(&self, product_id: Uuid) -> i64 {
        let quantity = Quantity::try_from(1).unwrap();
        self.submit(Command::ReceiveStock(ReceiveStock { product_id, quantity })).await
    }

    async fn product(&self, product_id: Uuid) {
        self.submit(new_product(product_id)).await;
    }

    async fn submit(&self, command: Command) -> i64 {
        let answered =
            tokio::time::timeout(Duration::from_secs(2), self.writer.submit(request(command))).await;
        answered.expect("no append waits for anything but the log").unwrap().version
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn partitions_are_made_while_a_reader_reads_and_streams_go_on_across_them() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let bare = Bare::on(&url, 1_000).await;
    let product_id = Uuid::now_v7();
    bare.product(product_id).await;
    let mut reader = PgConnection::connect(&url).await.unwrap();
    let mut reading = reader.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let seen: i64 =
        sqlx::query_scalar("SELECT count(*) FROM log.events").fetch_one(&mut *reading).await.unwrap();
    for version in 1..=65 {
        assert_eq!(bare.receive(product_id).await, version, "while a reader holds its locks");
    }
    let partitions: i64 =
        sqlx::query_scalar("SELECT count(*) FROM log.partitions").fetch_one(bare.log.pool()).await.unwrap();
    assert!(partitions >= 7, "{partitions} partitions of 10 positions");
    let still: i64 =
        sqlx::query_scalar("SELECT count(*) FROM log.events").fetch_one(&mut *reading).await.unwrap();
    assert_eq!(still, seen, "the reader sees what it saw");
    reading.commit().await.unwrap();
    let events = bare.log.read_stream(stream::stock_of(product_id), 0, 100).await.unwrap();
    assert_eq!(events.iter().map(|event| event.version).collect::<Vec<_>>(), (1..=65).collect::<Vec<_>>());
    // Whoever asks for more than there is does not pass over what comes next.
    let head = bare.log.head().await.unwrap();
    let page = bare.log.read(60, head.position + 100, &Filter::default(), 1_000).await.unwrap();
    assert_eq!((page.read_to, page.epoch), (head.position, head.epoch));
    let page = bare.log.read(head.position, head.position + 100, &Filter::default(), 1_000).await.unwrap();
    assert_eq!((page.events.len(), page.read_to), (0, head.position));
    let pool = bare.log.pool().clone();
    bare.end().await;
    // Another writer knows nothing but what stands in all the partitions.
    let other = Bare::on(&url, 1_000).await;
    assert_eq!(other.receive(product_id).await, 66);
    other.end().await;
    let head: (i64, i64) =
        sqlx::query_as("SELECT count(*), max(position) FROM log.events").fetch_one(&pool).await.unwrap();
    assert_eq!(head.0, head.1, "no gap");
}

/// Rows of events that have been fetched by way of an index, once all sessions but this one have reported.
async fn fetched(pool: &PgPool) -> i64 {
    let mut connection = pool.acquire().await.unwrap();
    connection.execute("SELECT pg_stat_force_next_flush()").await.unwrap();
    sqlx::query_scalar("SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_user_tables WHERE schemaname = 'log' AND relname LIKE 'events%'")
        .fetch_one(&mut *connection)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_long_stream_is_read_from_its_snapshot_and_from_the_beginning_when_that_is_of_no_use() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let bare = Bare::on(&url, 50).await;
    let product_id = Uuid::now_v7();
    let stock = stream::stock_of(product_id);
    bare.product(product_id).await;
    for version in 1..=105 {
        assert_eq!(bare.receive(product_id).await, version);
    }
    bare.end().await;
    let options = connect_options(&url).unwrap();
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await.unwrap();
    let snapshot: i64 = sqlx::query_scalar("SELECT version FROM log.snapshots WHERE stream_id = $1")
        .bind(stock)
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(snapshot, 100);
    for (usable, events) in [(true, 5), (false, 105)] {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let before = fetched(&pool).await;
        let mut connection = WriterConnection::open(&options).await.unwrap();
        let loaded = connection.load(None, &[stock], |_| usable).await.unwrap();
        drop(connection);
        assert_eq!((loaded.events.len(), loaded.snapshots.len()), (events, usize::from(usable)));
        let read = crate::harness::until("the session reports what it read", async || {
            let read = fetched(&pool).await - before;
            (read > 0).then_some(read)
        })
        .await;
        assert_eq!(read, i64::try_from(events).unwrap(), "no event is fetched only to be thrown away");
    }
    // A state that another fold has written is not used.
    pool.execute("UPDATE log.snapshots SET fold_version = 99, state = '{}'").await.unwrap();
    let other = Bare::on(&url, 50).await;
    assert_eq!(other.receive(product_id).await, 106);
    other.end().await;
}

/// A dump knows the server, its timeline and its start, and may be put back into the same run of it.
#[tokio::test]
async fn a_copy_on_the_same_server_is_another_epoch() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let bare = Bare::on(&url, 100).await;
    let product_id = Uuid::now_v7();
    bare.product(product_id).await;
    assert_eq!(bare.receive(product_id).await, 1);
    bare.end().await;
    let name = url.rsplit_once('/').unwrap().1;
    let mut connection = PgConnection::connect(&postgres.url("postgres")).await.unwrap();
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}_copy TEMPLATE {name}")))
        .execute(&mut connection)
        .await
        .unwrap();
    for (url, same) in [(url.clone(), true), (postgres.url(&format!("{name}_copy")), false)] {
        let bare = Bare::on(&url, 100).await;
        assert_eq!(bare.receive(product_id).await, 2);
        assert_eq!(bare.log.head().await.unwrap().epoch == 1, same);
        bare.end().await;
    }
}

/// Entries of indexes of the log's events that have been read, once all sessions but this one have reported.
async fn entries_read(pool: &PgPool) -> i64 {
    let mut connection = pool.acquire().await.unwrap();
    connection.execute("SELECT pg_stat_force_next_flush()").await.unwrap();
    sqlx::query_scalar(
        "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE schemaname = 'log' AND relname LIKE 'events%'",
    )
    .fetch_one(&mut *connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_stream_is_read_by_its_own_index_also_where_nothing_is_known_of_the_events_yet() {
    const STREAMS: i64 = 20_000;
    const LOADED: usize = 50;
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let options = connect_options(&url).unwrap();
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await.unwrap();
    Log::migrate_with(&pool, 1_000_000).await.unwrap();
    // A partition that has filled faster than anybody analysed it.
    pool.execute("ALTER TABLE log.events_1 SET (autovacuum_enabled = false)").await.unwrap();
    let streams: Vec<Uuid> = (0..STREAMS).map(|_| Uuid::now_v7()).collect();
    sqlx::query(
        "INSERT INTO log.events SELECT n, stream_id, 'stock', 1, stream_id, 'StockReceived', 1, \
           json_build_object('quantity', 1), stream_id, NULL, 'test', NULL, now(), stream_id \
         FROM unnest($1::uuid[]) WITH ORDINALITY AS made (stream_id, n)",
    )
    .bind(&streams)
    .execute(&pool)
    .await
    .unwrap();
    sqlx::query("INSERT INTO log.streams SELECT stream_id, 1, 1 FROM unnest($1::uuid[]) AS made (stream_id)")
        .bind(&streams)
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("UPDATE log.head SET position = $1").bind(STREAMS).execute(&pool).await.unwrap();
    let analysed: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_stats WHERE tablename = 'events_1'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(analysed, 0, "there are statistics");
    let before = entries_read(&pool).await;
    let mut connection = WriterConnection::open(&options).await.unwrap();
    let loaded = connection.load(None, &streams[..LOADED], |_| true).await.unwrap();
    assert_eq!(loaded.events.len(), LOADED);
    drop(connection);
    let read = crate::harness::until("the session reports what it read", async || {
        let read = entries_read(&pool).await - before;
        (read > 0).then_some(read)
    })
    .await;
    assert_eq!(read, i64::try_from(LOADED).unwrap(), "of each stream its one event, and of positions none");
}
