//! Lists, search, replay, documents.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::io::{AsyncBufReadExt, BufReader};
use uuid::Uuid;

use crate::harness::{Postgres, Shop, tidemark, token, until};
use crate::run;

#[tokio::test]
async fn products_are_found_filtered_sorted_and_paged() {
    let shop = Shop::open().await;
    let item = |sku: &str, name: &str, department: &str, amount: i64| json!({ "sku": sku, "name": name, "department": department, "price": { "amount": amount, "currency": "EUR" } });
    let items = json!({ "items": [
        item("A", "CRUSHED/CUBED ICE 22 LB", "FROZEN", 349), item("B", "Ice cream, vanilla", "FROZEN", 599),
        item("C", "Candle", "HOME", 150), item("D", "Candles, 12", "HOME", 999), item("E", "Hidden draft", "HOME", 1),
    ] });
    let made = shop.post("/v1/products/batch", items).await;
    let ids: Vec<String> =
        made.body["items"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect();
    let mut position = String::new();
    for id in &ids[..4] {
        position = shop
            .put(&format!("/v1/products/{id}/publication"), None)
            .await
            .header("tidemark-position")
            .to_owned();
    }
    let names = async |query: &str| -> Vec<String> {
        let page = shop.get(&format!("/v1/products?{query}"), None, &[("Tidemark-After", &position)]).await;
        assert_eq!(page.status, 200, "{query}: {}", page.text);
        page.body["items"].as_array().unwrap().iter().map(|i| i["sku"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("").await, ["A", "C", "D", "B"], "by name, drafts left out");
    assert_eq!(names("q=cubed").await, ["A"], "a slash separates words");
    assert_eq!(names("q=ICE&sort=price").await, ["A", "B"]);
    assert_eq!(names("q=candle&sort=-price").await, ["D", "C"], "beginnings of words count");
    assert_eq!(names("q=ice+vanilla").await, ["B"], "all words must occur");
    assert_eq!(names("q=nothing").await, [""; 0]);
    assert_eq!(names("q=%27%29%3B--").await, [""; 0]);
    assert_eq!(names(&format!("q={}", "a".repeat(3_000))).await, [""; 0], "longer than words can be");
    assert_eq!(names("department=HOME&max_price=200").await, ["C"]);
    assert_eq!(names("min_price=300&sort=price").await, ["A", "B", "D"]);
    assert_eq!(names("sort=newest&limit=2").await, ["D", "C"]);
    for (sort, expected) in
        [("name", ["A", "C", "D", "B"]), ("-price", ["D", "B", "A", "C"]), ("newest", ["D", "C", "B", "A"])]
    {
        let (mut seen, mut path) = (Vec::new(), format!("/v1/products?limit=1&sort={sort}"));
        loop {
            let page = shop.get(&path, None, &[]).await;
            seen.extend(
                page.body["items"].as_array().unwrap().iter().map(|i| i["sku"].as_str().unwrap().to_owned()),
            );
            match page.body["next_cursor"].as_str() {
                None => break,
                Some(_) => {
                    let link = page.header("link").to_owned();
                    path = link.trim_start_matches('<').split('>').next().unwrap().to_owned();
                }
            }
        }
        assert_eq!(seen, expected, "page by page, by {sort}");
    }
    let first = shop.get("/v1/products?q=ice&limit=1&sort=price", None, &[]).await;
    let cursor = first.body["next_cursor"].as_str().unwrap();
    let foreign =
        shop.get(&format!("/v1/products?q=candle&limit=1&sort=price&cursor={cursor}"), None, &[]).await;
    assert_eq!((foreign.status, foreign.problem()), (400, "invalid-cursor"));
    let fields = shop.get("/v1/products?q=vanilla&fields=sku,price", None, &[]).await;
    assert_eq!(fields.body["items"][0], json!({ "sku": "B", "price": { "amount": 599, "currency": "EUR" } }));
    // By id a draft can be seen, and says that it is one.
    assert_eq!(shop.get(&format!("/v1/products/{}", ids[4]), None, &[]).await.body["status"], "draft");
    // A page in memory follows what happens.
    shop.put(&format!("/v1/products/{}/retirement", ids[0]), None).await;
    let gone = shop.put(&format!("/v1/products/{}/retirement", ids[1]), None).await;
    let page =
        shop.get("/v1/products?q=ice", None, &[("Tidemark-After", gone.header("tidemark-position"))]).await;
    assert_eq!(page.body["items"], json!([]));
}

#[tokio::test]
async fn a_cursor_that_its_client_has_changed_is_refused_and_no_fault_of_the_service() {
    let shop = Shop::open().await;
    for sku in ["A", "B"] {
        shop.product(sku, 0).await;
    }
    shop.caught_up().await;
    for (query, wrong) in [
        ("sort=price", &["abc", "", "1.5", "9223372036854775808"][..]),
        ("sort=-price", &["abc", "\0"]),
        ("sort=newest", &["abc", "-9223372036854775809"]),
        ("sort=name", &["\0"]),
        ("sort=-name", &["Thing\0"]),
        ("q=thing", &["abc", "1e999", "1e-60", "NaN", "-Infinity"]),
    ] {
        let path = format!("/v1/products?{query}&limit=1");
        let first = shop.get(&path, None, &[]).await;
        let cursor = first.body["next_cursor"].as_str().unwrap();
        let second = shop.get(&format!("{path}&cursor={cursor}"), None, &[]).await;
        assert_eq!(second.body["items"].as_array().map(Vec::len), Some(1), "{query}: {}", second.text);
        assert_ne!(second.body["items"], first.body["items"], "{query}");
        let key: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(cursor).unwrap()).unwrap();
        for value in wrong {
            let mut changed = key.clone();
            changed["k"][0] = json!(value);
            let changed = URL_SAFE_NO_PAD.encode(changed.to_string());
            let refused = shop.get(&format!("{path}&cursor={changed}"), None, &[]).await;
            assert_eq!(
                (refused.status, refused.problem()),
                (400, "invalid-cursor"),
                "{query} {value:?}: {}",
                refused.text
            );
        }
    }
}

/// A plan may be kept for as long as a connection lives: one that reads a small table whole would do so when it has
/// grown.
#[tokio::test]
async fn no_read_goes_through_a_whole_table_not_even_a_small_one() {
    const PRODUCTS: usize = 30;
    let shop = Shop::open().await;
    let pool = shop.pool().await;
    // Past the projector, whose own statements would be counted too.
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar(
        "INSERT INTO views.products_1 (id, sku, name, department, price_amount, price_currency, status, version, \
           created_position) \
         SELECT gen_random_uuid(), 'S' || n, 'Thing ' || n, 'D', n, 'EUR', 'published', 1, n \
         FROM generate_series(1, $1) AS n RETURNING id",
    )
    .bind(PRODUCTS as i64)
    .fetch_all(&pool)
    .await
    .unwrap();
    for (n, id) in ids.iter().enumerate() {
        for path in [
            format!("/v1/products/{id}"),
            format!("/v1/products?q=thing&max_price={n}"),
            format!("/v1/products?department=D&min_price={n}"),
            format!("/v1/products?sort=newest&limit={}", n + 1),
        ] {
            assert_eq!(shop.get(&path, None, &[]).await.status, 200, "{path}");
        }
    }
    // The server tells of them a second later, with what is read then.
    let rows: i64 = until("the server's figures of these reads", async || {
        shop.get(
            &format!("/v1/products?q=thing&max_price={}", uuid::Uuid::now_v7().as_u128() % 100_000),
            None,
            &[],
        )
        .await;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        sqlx::query_scalar(
            "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'products_1' AND idx_scan + seq_scan >= $1",
        )
        .bind(PRODUCTS as i64)
        .fetch_optional(&pool)
        .await
        .unwrap()
    })
    .await;
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn the_log_is_streamed_and_the_documents_are_there() {
    let shop = Shop::open().await;
    let lamp = shop.product("LAMP-1", 5).await;
    shop.order(&lamp, 1, "one").await.unwrap();
    let analyst = token("analyst", "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c0a").await;
    let all = shop.get("/v1/events", Some(&analyst), &[]).await;
    assert_eq!(all.header("content-type"), "application/x-ndjson");
    let lines: Vec<serde_json::Value> =
        all.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let positions: Vec<i64> = lines.iter().map(|line| line["position"].as_i64().unwrap()).collect();
    assert_eq!(positions, (1..=6).collect::<Vec<_>>());
    assert_eq!(lines[4]["event_type"], "OrderPlaced");
    assert_eq!(lines[4]["metadata"]["actor"], format!("customer:{}", crate::harness::CUSTOMER));
    let packed = shop
        .client
        .get(format!("{}/v1/events", shop.base))
        .bearer_auth(&analyst)
        .header("Accept-Encoding", "gzip")
        .send()
        .await
        .unwrap();
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    let packed = packed.bytes().await.expect("the whole of it");
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked, all.text, "and compressed for who asks for it");
    let some = shop.get("/v1/events?from=2&to=5&category=stock,order", Some(&analyst), &[]).await;
    assert_eq!(some.text.lines().count(), 2);
    assert_eq!(shop.get("/v1/events", Some(&shop.customer), &[]).await.status, 403);
    let printed = crate::harness::tidemark()
        .args(["replay", "--from", "1", "--data-dir"])
        .arg(shop.data.path())
        .env("DATABASE_URL", &shop.url)
        .output()
        .await
        .unwrap();
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), all.text, "the command prints the same");

    let api = shop.get("/openapi.json", None, &[]).await;
    for path in [
        "/v1/products",
        "/v1/products/{id}",
        "/v1/products/batch",
        "/v1/orders",
        "/v1/orders/{id}/cancellation",
        "/v1/events",
    ] {
        assert!(api.body["paths"][path].is_object(), "{path}");
    }
    assert!(shop.get("/docs/", None, &[]).await.text.contains("swagger"));
    assert_eq!(shop.get("/livez", None, &[]).await.status, 200);
    assert_eq!(shop.get("/problems/out-of-stock", None, &[]).await.body["status"], 409);
    let metrics = shop.get("/metrics", None, &[]).await.text;
    for name in ["tidemark_commands_total", "tidemark_projection_position", "tidemark_http_requests_total"] {
        assert!(metrics.contains(name), "{name}");
    }
    let traced = shop
        .send(
            reqwest::Method::PUT,
            &format!("/v1/products/{lamp}/retirement"),
            Some(&shop.staff),
            &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
            None,
        )
        .await
        .unwrap();
    let from = traced.body["position"].as_i64().unwrap() - 1;
    let event = shop.get(&format!("/v1/events?from={from}"), Some(&analyst), &[]).await.text;
    let event: serde_json::Value = serde_json::from_str(event.lines().next().unwrap()).unwrap();
    assert_eq!(event["metadata"]["correlation_id"], "4bf92f35-77b3-4da6-a3ce-929d0e0e4736");
}

/// The lines of an answer that is still being sent.
struct Lines {
    response: reqwest::Response,
    /// What has come of those that are not told yet.
    begun: Vec<u8>,
}

impl Lines {
    /// The next one, which must come within seconds; nothing behind the last.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.begun.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let chunk = tokio::time::timeout(Duration::from_secs(5), self.response.chunk()).await;
            let chunk = chunk.expect("a line within five seconds").unwrap()?;
            self.begun.extend_from_slice(&chunk);
        }
    }
}

/// Whose line it is, and what it tells.
fn told(line: &Value) -> (&str, &str) {
    (line["stream_id"].as_str().unwrap(), line["event_type"].as_str().unwrap())
}

async fn head(shop: &Shop) -> i64 {
    sqlx::query_scalar("SELECT position FROM log.head").fetch_one(&shop.pool().await).await.unwrap()
}

async fn cancel(shop: &Shop, order: &str) {
    let (path, key) = (format!("/v1/orders/{order}/cancellation"), [("Idempotency-Key", order)]);
    let cancelled = shop.send(reqwest::Method::POST, &path, Some(&shop.customer), &key, None).await.unwrap();
    assert_eq!(cancelled.status, 200, "{}", cancelled.text);
}

#[tokio::test]
async fn who_follows_a_stream_is_sent_its_lines_as_they_come_and_no_others() {
    let shop = Shop::open().await;
    let lamp = shop.product("LAMP-1", 5).await;
    let placed = shop.order(&lamp, 1, "followed").await.unwrap();
    let another = shop.order(&lamp, 1, "another").await.unwrap();
    let (id, other) = (placed.body["id"].as_str().unwrap(), another.body["id"].as_str().unwrap());
    let analyst = token("analyst", "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c0a").await;
    let of_stream = async |stream: &str| -> Vec<Value> {
        let lines = shop.get(&format!("/v1/events?stream={stream}"), Some(&analyst), &[]).await;
        assert_eq!(lines.status, 200, "{}", lines.text);
        lines.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let follow = async |query: String| -> Lines {
        let url = format!("{}/v1/events?{query}", shop.base);
        let response = shop.client.get(url).bearer_auth(&analyst).send().await.unwrap();
        assert_eq!(response.status(), 200);
        Lines { response, begun: Vec::new() }
    };
    let first = of_stream(id).await;
    assert_eq!(first.iter().map(told).collect::<Vec<_>>(), [(id, "OrderPlaced")]);
    assert!(of_stream(&Uuid::now_v7().to_string()).await.is_empty());
    assert_eq!(shop.get("/v1/events?stream=LAMP-1", Some(&analyst), &[]).await.status, 400);

    let mut followed = follow(format!("follow=true&stream={id}")).await;
    assert_eq!(followed.next().await.as_ref(), first.first(), "what there is comes at once");
    let next = head(&shop).await + 1;
    let mut bounded = follow(format!("follow=true&from={next}&to={next}")).await;
    cancel(&shop, other).await;
    cancel(&shop, id).await;
    let line = followed.next().await.expect("it goes on");
    assert_eq!(told(&line), (id, "OrderCancelled"), "{line}");
    let more = tokio::time::timeout(Duration::from_millis(500), followed.response.chunk()).await;
    assert!(followed.begun.is_empty() && more.is_err(), "it stays open, and has no more to say: {more:?}");
    assert_eq!(of_stream(id).await, [first, vec![line]].concat());
    // Who goes on where it was says what it has; where it is to begin can be said, too.
    let resumed =
        async |query: &str| shop.get(&format!("/v1/events?after={query}"), Some(&analyst), &[]).await;
    let positions = |lines: &str| -> Vec<i64> {
        let of = |line: &str| serde_json::from_str::<Value>(line).unwrap()["position"].as_i64().unwrap();
        lines.lines().map(of).collect()
    };
    let all = resumed("0").await;
    let (epoch, last) = (all.header("tidemark-epoch"), head(&shop).await);
    assert_eq!(positions(&all.text), (1..=last).collect::<Vec<_>>());
    assert_eq!(positions(&resumed(&format!("{epoch}-3&to=5")).await.text), [4, 5]);
    assert_eq!(positions(&resumed(&format!("{epoch}-3&from=2&to=3")).await.text), [2, 3]);
    assert!(resumed(&format!("{epoch}-{last}")).await.text.is_empty());
    for unknown in [format!("{epoch}-{}", last + 1), format!("{}-1", epoch.parse::<i32>().unwrap() + 1)] {
        assert_eq!(resumed(&unknown).await.problem(), "position-unknown", "{unknown}");
    }
    assert_eq!(resumed("1-2-3").await.status, 400);
    // Who says where it is to end is sent no more than that.
    let line = bounded.next().await.expect("the only line");
    assert_eq!((told(&line), &line["position"]), ((other, "OrderCancelled"), &json!(next)));
    assert_eq!(bounded.next().await, None);
}

/// Whether a line is one that was asked for.
type Wanted<'a> = &'a dyn Fn(&Value) -> bool;

#[tokio::test]
async fn a_replay_prints_what_it_is_asked_for_and_nothing_else() {
    let shop = Shop::open().await;
    let lamp = shop.product("LAMP-1", 5).await;
    let placed = shop.order(&lamp, 1, "one").await.unwrap();
    shop.order(&lamp, 1, "two").await.unwrap();
    let id = placed.body["id"].as_str().unwrap();
    cancel(&shop, id).await;
    let replayed = async |arguments: &[&str]| -> Vec<Value> {
        let output = tidemark()
            .arg("replay")
            .args(arguments)
            .env("TIDEMARK_LOG_URL", &shop.url)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = replayed(&[]).await;
    assert_eq!(all.len() as i64, head(&shop).await);
    let position = |line: &Value| line["position"].as_i64().unwrap();
    let is = |line: &Value, member: &str, values: &[&str]| values.contains(&line[member].as_str().unwrap());
    let cases: [(&[&str], Wanted<'_>); 8] = [
        (&["--to", "5"], &|line: &Value| position(line) <= 5),
        (&["--from", "3", "--to", "6"], &|line: &Value| (3..=6).contains(&position(line))),
        (&["--type", "OrderPlaced"], &|line: &Value| is(line, "event_type", &["OrderPlaced"])),
        (&["--type", "OrderCancelled", "--type", "StockReserved"], &|line: &Value| {
            is(line, "event_type", &["OrderCancelled", "StockReserved"])
        }),
        (&["--category", "stock"], &|line: &Value| is(line, "category", &["stock"])),
        (&["--category", "product", "--category", "order"], &|line: &Value| {
            is(line, "category", &["product", "order"])
        }),
        (&["--stream", id], &|line: &Value| is(line, "stream_id", &[id])),
        (&["--stream", id, "--type", "OrderCancelled", "--category", "order"], &|line: &Value| {
            told(line) == (id, "OrderCancelled")
        }),
    ];
    for (arguments, lets_through) in cases {
        let expected: Vec<Value> = all.iter().filter(|line| lets_through(line)).cloned().collect();
        assert!(!expected.is_empty() && expected.len() < all.len(), "{arguments:?}");
        assert_eq!(replayed(arguments).await, expected, "{arguments:?}");
    }
}

#[tokio::test]
async fn a_replay_that_follows_goes_on_to_where_it_is_to_end() {
    let shop = Shop::open().await;
    let lamp = shop.product("LAMP-1", 5).await;
    let so_far = head(&shop).await;
    let last = so_far + 2;
    let mut replay = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidemark"))
        .args(["replay", "--follow", "--to", &last.to_string()])
        .env("TIDEMARK_LOG_URL", &shop.url)
        .env("TIDEMARK_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(run::words("replay").1)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(replay.stdout.take().unwrap()).lines();
    let mut position = async || -> Option<i64> {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await;
        let line = line.expect("a line, or the end").unwrap()?;
        serde_json::from_str::<Value>(&line).unwrap()["position"].as_i64()
    };
    for expected in 1..=so_far {
        assert_eq!(position().await, Some(expected));
    }
    let received = shop.post(&format!("/v1/products/{lamp}/stock-receipts"), json!({ "quantity": 1 })).await;
    assert_eq!(received.status, 201, "{}", received.text);
    assert_eq!(position().await, Some(last - 1));
    assert!(replay.try_wait().unwrap().is_none(), "it waits for the last one");
    // The two events of one commit: the second is behind the end.
    let placed = shop.order(&lamp, 1, "the last").await.unwrap();
    assert_eq!(placed.status, 201, "{}", placed.text);
    assert!(head(&shop).await > last);
    assert_eq!(position().await, Some(last));
    assert_eq!(position().await, None);
    let ended = tokio::time::timeout(Duration::from_secs(10), replay.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
}

#[tokio::test]
async fn encoded_bodies_have_tags_of_their_own_that_everything_understands() {
    let shop = Shop::open().await;
    let mut id = String::new();
    for n in 0..8 {
        id = shop.product(&format!("P-{n}"), 1).await;
    }
    shop.caught_up().await;
    let plain = shop.get("/v1/products", None, &[]).await;
    assert_eq!((plain.status, plain.header("vary")), (200, "accept-encoding"));
    let tag = plain.header("etag").trim_matches('"').to_owned();
    for encoding in ["gzip", "br", "zstd"] {
        let asked = [("Accept-Encoding", encoding)];
        let encoded = shop.get("/v1/products", None, &asked).await;
        assert_eq!(encoded.header("content-encoding"), encoding);
        assert_eq!(encoded.header("etag"), format!("\"{tag}-{encoding}\""));
        assert_eq!(encoded.header("vary"), "accept-encoding");
        let had = [("Accept-Encoding", encoding), ("If-None-Match", encoded.header("etag"))];
        let again = shop.get("/v1/products", None, &had).await;
        assert_eq!((again.status, again.header("etag")), (304, encoded.header("etag")));
    }
    // What a client got with an encoded body, it can send with a command.
    let path = format!("/v1/products/{id}/price");
    let body = serde_json::json!({ "price": { "amount": 5, "currency": "EUR" } });
    for (tag, status) in [("\"1-1-gzip\"", 412), ("\"2-1-gzip\"", 200)] {
        let headers = [("If-Match", tag)];
        let answer = shop
            .send(reqwest::Method::PUT, &path, Some(&shop.staff), &headers, Some(body.clone()))
            .await
            .unwrap();
        assert_eq!(answer.status, status, "{tag}: {}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_late_gets_all_of_what_is_too_large_to_be_kept_in_memory() {
    const PRODUCTS: usize = 1_650;
    const BATCH: usize = 150;

    let postgres = Postgres::shared().await;
    let (log, views) = (postgres.database().await, postgres.database().await);
    let command = Shop::part("command", &log, &[]).await;
    // Events of more than ten megabytes, but few enough to count as near.
    let description = "né ".repeat(1_666).trim_end().to_owned();
    let mut position: i64 = 0;
    for batch in 0..PRODUCTS / BATCH {
        let item = |n: usize| {
            json!({ "sku": format!("L-{batch}-{n}"), "name": "Long", "description": description,
                    "price": { "amount": 100, "currency": "EUR" } })
        };
        let items = json!({ "items": (0..BATCH).map(item).collect::<Vec<_>>() });
        let made = command.post("/v1/products/batch", items).await;
        assert_eq!(made.status, 200, "{}", made.text);
        position = made.header("tidemark-position").rsplit('-').next().unwrap().parse().unwrap();
    }
    // Alone: of several, the first to ask reads for all, and would be the one that misses some.
    let settings = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_PROJECTIONS", "products")];
    let _projector = Shop::part("projector", &log, &settings).await;
    let pool = PgPool::connect(&views).await.unwrap();
    until("the products are all taken in", async || {
        let least = "SELECT min(position) FROM views.checkpoints WHERE name = 'products'";
        let stands: i64 = sqlx::query_scalar(least).fetch_one(&pool).await.ok()?;
        (stands >= position).then_some(())
    })
    .await;
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM views.products_1").fetch_one(&pool).await.unwrap();
    assert_eq!(count, PRODUCTS as i64);
}
