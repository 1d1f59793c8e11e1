//! Databases that are older or newer than the program: refused with the migration's name, or brought up to date by
//! who may.

use std::path::Path;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgPoolOptions;

use crate::harness::{Postgres, Shop, folder, tidemark};

async fn pool(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(2).connect(url).await.unwrap()
}

/// A schema as the version of the program had it that knew no more than `target`.
async fn made_by_an_older_program(url: &str, schema: &'static str, target: i64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations").join(schema);
    let mut migrator = Migrator::new(folder).await.unwrap();
    migrator.create_schema(schema);
    migrator.dangerous_set_table_name(format!("{schema}.migrations"));
    migrator.run_to(target, &pool(url).await).await.unwrap();
}

/// Pretends that a newer program was there.
async fn migrated_by_a_newer_program(url: &str, schema: &str) {
    let statement = format!(
        "INSERT INTO {schema}.migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'tomorrow', true, '', 0)"
    );
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&pool(url).await).await.unwrap();
}

async fn newest(url: &str, schema: &str) -> i64 {
    let statement = format!("SELECT max(version) FROM {schema}.migrations");
    sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(&pool(url).await).await.unwrap()
}

/// What a process says that ends with code 2 before it serves anything.
async fn refusal(arguments: &[&str], log: &str, views: &str) -> String {
    let data = folder();
    let mut command = tidemark();
    command
        .args(arguments)
        .env("TIDEMARK_LISTEN", "127.0.0.1:0")
        .env("TIDEMARK_LOG_URL", log)
        .env("TIDEMARK_VIEWS_URL", views)
        .env("DATABASE_URL", log)
        .env("TIDEMARK_DATA_DIR", data.path());
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    text
}

#[tokio::test]
async fn an_older_database_is_refused_by_who_reads_and_brought_up_to_date_by_who_writes() {
    let postgres = Postgres::shared().await;
    let (log, views) = (postgres.database().await, postgres.database().await);
    let with_views = [("TIDEMARK_VIEWS_URL", views.as_str())];

    made_by_an_older_program(&log, "log", 1).await;
    let told = refusal(&["query"], &log, &views).await;
    assert!(told.contains("the schema log lacks migration 2 (leases)"), "{told}");
    assert!(told.contains("`tidemark command`"), "{told}");
    assert_eq!(newest(&log, "log").await, 1, "nothing was changed");
    let command = Shop::part("command", &log, &[]).await;
    assert!(newest(&log, "log").await > 1);

    made_by_an_older_program(&views, "views", 1).await;
    let told = refusal(&["query"], &log, &views).await;
    assert!(told.contains("the schema views lacks migration 2 (topic)"), "{told}");
    assert!(told.contains("`tidemark projector`"), "{told}");
    assert_eq!(newest(&views, "views").await, 1, "nothing was changed");
    let projector = Shop::part("projector", &log, &with_views).await;
    assert!(newest(&views, "views").await > 1);

    let query = Shop::part("query", &log, &with_views).await;
    assert_eq!(query.get("/v1/products", None, &[]).await.status, 200);
    drop((command, projector));
}

/// A database that was named by mistake stays as it was, and nobody takes it for the right one.
#[tokio::test]
async fn tools_make_nothing_in_a_database_that_has_nothing() {
    let postgres = Postgres::shared().await;
    let empty = postgres.database().await;
    for (tool, variable, missing) in [
        (&["replay"][..], "TIDEMARK_LOG_URL", "there is no log in that database"),
        (&["replay"], "DATABASE_URL", "there is no log in that database"),
        (&["keys", "rewrap"], "TIDEMARK_LOG_URL", "there are no keys of personal data in that database"),
        (&["keys", "rewrap"], "TIDEMARK_VAULT_URL", "there are no keys of personal data in that database"),
        (&["keys", "rewrap"], "DATABASE_URL", "there are no keys of personal data in that database"),
    ] {
        let told = tidemark().args(tool).env(variable, &empty).output().await.unwrap();
        let words = String::from_utf8_lossy(&told.stderr);
        assert_eq!(told.status.code(), Some(2), "{tool:?} {variable}: {words}");
        assert!(words.contains(&format!("{variable}: {missing}")), "{tool:?} {variable}: {words}");
        assert!(told.stdout.is_empty());
    }
    let made: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_namespace WHERE nspname IN ('log', 'views', 'vault', 'accounts')",
    )
    .fetch_one(&pool(&empty).await)
    .await
    .unwrap();
    assert_eq!(made, 0);
}

#[tokio::test]
async fn a_newer_database_is_refused_by_all() {
    let postgres = Postgres::shared().await;
    let (log, views) = (postgres.database().await, postgres.database().await);
    let with_views = [("TIDEMARK_VIEWS_URL", views.as_str())];
    let projector = Shop::part("projector", &log, &with_views).await;
    migrated_by_a_newer_program(&views, "views").await;
    for process in [&["projector"][..], &["query"], &["rebuild", "stock"]] {
        let told = refusal(process, &log, &views).await;
        assert!(told.contains("the schema views has migration 99 (tomorrow)"), "{process:?}: {told}");
    }
    drop(Shop::part("command", &log, &[]).await);
    migrated_by_a_newer_program(&log, "log").await;
    for process in [&["up"][..], &["command"], &["projector"], &["query"], &["replay"], &["rebuild", "stock"]]
    {
        let told = refusal(process, &log, &views).await;
        let schema = if process[0] == "rebuild" { "views" } else { "log" };
        assert!(told.contains(&format!("the schema {schema} has migration 99 (tomorrow)")), "{told}");
    }
    // Who runs goes on: the version before works with what the next one adds.
    assert_eq!(projector.get("/readyz", None, &[]).await.status, 200);

    // `up` has both in one database.
    let both = postgres.database().await;
    drop(Shop::on(&both).await);
    migrated_by_a_newer_program(&both, "views").await;
    let told = refusal(&["up"], &both, &both).await;
    assert!(told.contains("the schema views has migration 99 (tomorrow)"), "{told}");
    sqlx::raw_sql(
        "DELETE FROM views.migrations WHERE version = 99; UPDATE views.migrations SET checksum = ''",
    )
    .execute(&pool(&both).await)
    .await
    .unwrap();
    let told = refusal(&["up"], &both, &both).await;
    assert!(
        told.contains("migration 1 (views) of the schema views is not the one of this program"),
        "{told}"
    );
}

/// What the writer of the release before sends, into a log that has the newest schema.
const FORMER_APPEND: &str = "WITH head AS (UPDATE log.head SET position = position + 1 RETURNING position) \
     INSERT INTO log.events (position, stream_id, category, version, event_id, event_type, schema_version, payload, \
       correlation_id, causation_id, actor, traceparent, recorded_at, partition_key) \
     SELECT head.position, e.stream_id, e.category, e.version, e.event_id, e.event_type, e.schema_version, e.payload, \
       e.correlation_id, e.causation_id, e.actor, e.traceparent, now(), e.partition_key \
     FROM head, unnest(ARRAY[ROW(0, gen_random_uuid(), 'stock', 1, gen_random_uuid(), 'StockReceived', 1, '{}', \
       gen_random_uuid(), NULL, 'test', NULL, gen_random_uuid())::log.new_event]) e";

/// Where a request came from is a new column of the log: it is there at once however large the log is, nobody waits for
/// it for long, and writers of the release before go on.
#[tokio::test]
async fn the_log_gets_a_column_while_it_is_written_and_read() {
    let postgres = Postgres::shared().await;
    let log = postgres.database().await;
    made_by_an_older_program(&log, "log", 3).await;
    let older = pool(&log).await;
    tidemark_events::log::partitions::ensure(&older, 1_000).await.unwrap();
    sqlx::query(FORMER_APPEND).execute(&older).await.unwrap();
    let files = async || -> Vec<u32> {
        sqlx::query_scalar::<_, i64>(
            "SELECT relfilenode::bigint FROM pg_class WHERE relname ~ '^events_[0-9]+$' ORDER BY relname",
        )
        .fetch_all(&pool(&log).await)
        .await
        .unwrap()
        .into_iter()
        .map(|file| u32::try_from(file).unwrap())
        .collect()
    };
    let before = files().await;
    // A long read of the whole log holds what the column needs.
    let mut reading = older.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM log.events").execute(&mut *reading).await.unwrap();
    let newer = pool(&log).await;
    let migrating = tokio::spawn(async move { tidemark_events::log::Log::migrate_with(&newer, 1_000).await });
    for _ in 0..30 {
        let appended =
            tokio::time::timeout(Duration::from_secs(4), sqlx::query(FORMER_APPEND).execute(&older)).await;
        appended.expect("an append does not wait for the reader").unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!migrating.is_finished(), "the reader is waited for");
    reading.rollback().await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), migrating).await.unwrap().unwrap().unwrap();
    sqlx::query(FORMER_APPEND).execute(&older).await.unwrap();
    let without: (i64, i64) =
        sqlx::query_as("SELECT count(*), count(*) FILTER (WHERE origin IS NULL) FROM log.events")
            .fetch_one(&older)
            .await
            .unwrap();
    assert_eq!(without, (32, 32));
    // Another partition may have come to it.
    assert_eq!(files().await[..before.len()], before, "no table was written anew");
}

#[tokio::test]
async fn who_reads_waits_for_a_schema_that_nobody_has_made_yet() {
    let postgres = Postgres::shared().await;
    let (log, views) = (postgres.database().await, postgres.database().await);
    let with_views = [("TIDEMARK_VIEWS_URL", views.as_str())];
    let begun = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let there: bool = sqlx::query_scalar("SELECT to_regclass('log.head') IS NOT NULL")
            .fetch_one(&pool(&log).await)
            .await
            .unwrap();
        assert!(!there, "the query service makes nothing");
        (Shop::part("command", &log, &[]).await, Shop::part("projector", &log, &with_views).await)
    };
    let (query, _others) = tokio::join!(Shop::part("query", &log, &with_views), begun);
    assert_eq!(query.get("/v1/products", None, &[]).await.status, 200);
}
