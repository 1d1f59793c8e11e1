//! What keeps a process up under clients that mean no good: slow ones, many of them, and odd requests.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Postgres, Shop, until};

async fn shop(settings: &[(&str, &str)]) -> (Shop, std::sync::Arc<Postgres>) {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let settings = [&[("DATABASE_URL", url.as_str())], settings].concat();
    (Shop::part("up", &url, &settings).await, postgres)
}

/// Connects from an address of the loopback network.
async fn connect(shop: &Shop, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(shop.base.strip_prefix("http://").unwrap().parse().unwrap()).await.unwrap()
}

/// What is said until the connection ends, or a minute has passed.
async fn rest(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    // A connection that is cut off ends in an error; what was said before counts.
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "it goes on: {}", String::from_utf8_lossy(&said));
    String::from_utf8(said).unwrap()
}

/// What is said to one who sends so much twice a second, until the connection ends.
async fn said_to_drops(stream: TcpStream, drop: &'static [u8]) -> String {
    let (mut read, mut write) = stream.into_split();
    let dripping = tokio::spawn(async move {
        while write.write_all(drop).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let mut said = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut said)).await.unwrap().ok();
    dripping.abort();
    String::from_utf8(said).unwrap()
}

async fn is_open(stream: &TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(50), stream.readable()).await;
    read.is_err() || !matches!(stream.try_read(&mut [0; 1]), Ok(0) | Err(_))
}

#[tokio::test]
async fn a_body_that_drips_is_cut_off_and_one_that_flows_is_not() {
    let (shop, _postgres) = shop(&[]).await;
    let head = |length: usize| {
        format!(
            "POST /v1/products HTTP/1.1\r\nhost: shop\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n",
            shop.staff
        )
    };
    let begun = Instant::now();
    let mut slow = connect(&shop, "127.0.0.1").await;
    slow.write_all(head(1_000).as_bytes()).await.unwrap();
    let said = said_to_drops(slow, b" ").await;
    assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("/problems/too-slow"), "{said}");
    assert!(said.contains("connection: close"), "{said}");
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());

    // In two parts with a pause within the grace, and long enough to come in many parts.
    let product = serde_json::json!({
        "sku": "LAMP", "name": "Lamp", "description": "x".repeat(500), "price": { "amount": 1, "currency": "EUR" }
    })
    .to_string();
    let mut pausing = connect(&shop, "127.0.0.1").await;
    pausing.write_all(head(product.len()).as_bytes()).await.unwrap();
    let (one, other) = product.split_at(100);
    pausing.write_all(one.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    pausing.write_all(other.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    pausing.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
}

#[tokio::test]
async fn bodies_that_are_waited_for_leave_room_for_others() {
    // Four requests at once: one of them may be waited for.
    let (shop, _postgres) = shop(&[("TIDEMARK_MAX_REQUESTS", "4")]).await;
    let head =
        "POST /v1/products HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\ncontent-length: 9\r\n";
    let head = format!("{head}authorization: Bearer {}\r\n\r\n", shop.staff);
    let mut first = connect(&shop, "127.0.0.1").await;
    first.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut second = connect(&shop, "127.0.0.1").await;
    second.write_all(head.as_bytes()).await.unwrap();
    let said = rest(&mut second).await;
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("/problems/overloaded"), "{said}");
    assert!(said.contains("retry-after: 1"), "{said}");
    assert_eq!(shop.get("/v1/products", None, &[]).await.status, 200);
    assert_eq!(shop.post("/v1/products", serde_json::json!({})).await.status, 422);
    assert!(rest(&mut first).await.starts_with("HTTP/1.1 408 "));
    let metrics = shop.get("/metrics", None, &[]).await.text;
    assert!(metrics.contains("tidemark_http_connections "), "{metrics}");
}

#[tokio::test]
async fn what_is_worth_least_is_given_up_first() {
    let (shop, _postgres) = shop(&[("TIDEMARK_MAX_REQUESTS", "8")]).await;
    let lamp = shop.product("LAMP", 1).await;
    let orders = format!("/v1/orders/{}", uuid::Uuid::now_v7());
    // Reads that wait for a position that does not come hold their places for two seconds.
    let after = [("Tidemark-After", "1-999999")];
    let holding = |count: usize| {
        let waiting = (0..count).map(|_| shop.get("/v1/orders", Some(&shop.staff), &after));
        futures_util::future::join_all(waiting)
    };
    let settle = || tokio::time::sleep(Duration::from_millis(500));
    let four = async {
        settle().await;
        let anonymous = shop.get("/v1/products", None, &[]).await;
        assert_eq!(
            (anonymous.status, anonymous.problem(), anonymous.header("retry-after")),
            (503, "overloaded", "1")
        );
        assert_eq!(shop.get(&orders, Some(&shop.staff), &[]).await.status, 404);
        assert_eq!(shop.order(&lamp, 1, "k").await.unwrap().status, 201);
    };
    tokio::join!(holding(4), four);
    let six = async {
        settle().await;
        assert_eq!(shop.get(&orders, Some(&shop.staff), &[]).await.status, 503);
        assert_eq!(shop.order(&lamp, 1, "k").await.unwrap().status, 201, "commands go on");
        // Two commands whose bodies do not come take what is left.
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let mut stream = connect(&shop, "127.0.0.1").await;
            let head = "POST /v1/products HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n";
            let head = format!("{head}authorization: Bearer {}\r\ncontent-length: 9\r\n\r\n", shop.staff);
            stream.write_all(head.as_bytes()).await.unwrap();
            waiting.push(stream);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(shop.order(&lamp, 1, "k").await.unwrap().status, 503);
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(shop.get(path, None, &[]).await.status, 200, "{path}");
        }
    };
    tokio::join!(holding(6), six);
    assert_eq!(shop.get("/v1/products", None, &[]).await.status, 200);
    let metrics = shop.get("/metrics", None, &[]).await.text;
    assert!(metrics.contains("tidemark_http_shed_total{worth=\"anonymous\"} 1"), "{metrics}");
    assert!(metrics.contains("tidemark_http_shed_total{worth=\"known\"} 1"), "{metrics}");
    assert!(metrics.contains("tidemark_http_shed_total{worth=\"command\"} 1"), "{metrics}");
}

#[tokio::test]
async fn one_address_has_its_share_of_connections_and_a_proxy_has_no_bound() {
    let settings =
        [("TIDEMARK_MAX_CONNECTIONS_OF_ADDRESS", "5"), ("TIDEMARK_TRUSTED_PROXIES", "127.0.0.1,127.0.0.3")];
    let (shop, _postgres) = shop(&settings).await;
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(connect(&shop, "127.0.0.2").await);
    }
    let mut sixth = connect(&shop, "127.0.0.2").await;
    let mut byte = [0; 1];
    let closed = tokio::time::timeout(Duration::from_secs(10), sixth.read(&mut byte)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)));
    for stream in &open {
        assert!(is_open(stream).await);
    }
    for _ in 0..20 {
        open.push(connect(&shop, "127.0.0.3").await);
    }
    for stream in &open {
        assert!(is_open(stream).await);
    }
    let metrics = shop.get("/metrics", None, &[]).await.text;
    assert!(metrics.contains("tidemark_http_connections_refused_total 1\n"), "{metrics}");
    open.clear();
    until("its places are free again", async || {
        let stream = connect(&shop, "127.0.0.2").await;
        is_open(&stream).await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn when_all_connections_are_taken_those_that_say_nothing_make_room() {
    let (shop, _postgres) = shop(&[("TIDEMARK_MAX_CONNECTIONS", "40")]).await;
    let mut silent = Vec::new();
    for number in 0..60 {
        let mut stream = connect(&shop, &format!("127.0.1.{}", number % 5 + 1)).await;
        stream.write_all(b"GET /v1/products HTTP/1.1\r\nhost: ").await.ok();
        silent.push(stream);
    }
    let begun = Instant::now();
    for _ in 0..10 {
        let fresh = reqwest::Client::new();
        let answer = fresh.get(format!("{}/v1/products", shop.base)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    // Without room made by others they would wait for the 15 seconds that a head may take.
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    let metrics = reqwest::get(format!("{}/metrics", shop.base)).await.unwrap().text().await.unwrap();
    assert!(!metrics.contains("tidemark_http_connections_cut_total 0"), "{metrics}");
}

#[tokio::test]
async fn a_head_that_drips_is_cut_off() {
    const REQUEST: &[u8] = b"GET /v1/products HTTP/1.1\r\nhost: shop\r\n";
    let (shop, _postgres) = shop(&[]).await;
    let begun = Instant::now();
    // The first of its connection, and one behind a request that was answered.
    let (answers, cuts): (Vec<_>, Vec<_>) = futures_util::future::join_all(
        [REQUEST.to_vec(), [REQUEST, b"\r\n", REQUEST].concat()].map(async |said| {
            let mut slow = connect(&shop, "127.0.0.1").await;
            slow.write_all(&said).await.unwrap();
            let answers = said_to_drops(slow, b"x: y\r\n").await.matches("HTTP/1.1 200").count();
            (answers, begun.elapsed().as_secs())
        }),
    )
    .await
    .into_iter()
    .unzip();
    assert_eq!(answers, [0, 1]);
    assert!(cuts.iter().all(|seconds| (14..30).contains(seconds)), "{cuts:?}");
}

#[tokio::test]
async fn a_head_in_parts_is_answered_as_soon_as_it_is_whole() {
    let (shop, _postgres) = shop(&[]).await;
    let mut pausing = connect(&shop, "127.0.0.1").await;
    for part in [&b"GET /v1/prod"[..], b"ucts HTTP/1.1\r\nhost: sh", b"op\r\nconnection: close\r\n\r", b"\n"]
    {
        pausing.write_all(part).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let said = rest(&mut pausing).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    // Many requests at once, in order.
    let mut pipelining = connect(&shop, "127.0.0.1").await;
    let request = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: shop\r\n{more}\r\n");
    let all = [
        request("/v1/products", ""),
        request("/nothing", ""),
        request("/v1/products", "connection: close\r\n"),
    ];
    pipelining.write_all(all.concat().as_bytes()).await.unwrap();
    let said = rest(&mut pipelining).await;
    let statuses: Vec<_> = said.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "404", "200"], "{said}");
    // What no request comes of is refused without waiting for more.
    let begun = Instant::now();
    for nonsense in [&b"\x16\x03\x01\x02\x00"[..], b"HELO shop\r\n"] {
        let mut other = connect(&shop, "127.0.0.1").await;
        other.write_all(nonsense).await.unwrap();
        let said = rest(&mut other).await;
        assert!(said.starts_with("HTTP/1.1 400"), "{said}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_answer_that_nobody_takes_is_not_kept() {
    let (shop, _postgres) = shop(&[]).await;
    let mut stream = connect(&shop, "127.0.0.1").await;
    // Requests for megabytes, and none of them is read.
    let request = b"GET /openapi.json HTTP/1.1\r\nhost: shop\r\n\r\n".repeat(500);
    stream.write_all(&request).await.unwrap();
    let open = async |count: &str| {
        let metrics = shop.get("/metrics", None, &[]).await.text;
        let open = metrics.lines().find_map(|line| line.strip_prefix("tidemark_http_connections "));
        (open == Some(count)).then_some(())
    };
    until("it is open beside the tests' own", async || open("2").await).await;
    let begun = Instant::now();
    until("it is cut off", async || open("1").await).await;
    assert!(
        begun.elapsed() >= Duration::from_secs(20),
        "not because it took too long: {:?}",
        begun.elapsed()
    );
}

/// What every answer brings.
const HEADERS: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", ""),
];

/// What every page brings, too.
const OF_PAGES: [(&str, &str); 3] = [
    ("x-frame-options", "DENY"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ("cross-origin-opener-policy", "same-origin"),
];

#[tokio::test]
async fn every_answer_tells_browsers_to_be_careful() {
    let (shop, _postgres) = shop(&[("TIDEMARK_PUBLIC_URL", "https://shop.example")]).await;
    let lamp = shop.product("LAMP", 1).await;
    let (mut seen, mut pages) = (std::collections::BTreeSet::new(), 0);
    for (method, path) in [
        ("GET", "/v1/products"),
        ("GET", &format!("/v1/products/{lamp}")),
        ("GET", "/v1/orders"),
        ("GET", "/v1/nothing"),
        ("GET", "/v1/products?limit=0"),
        ("POST", "/v1/products"),
        ("DELETE", "/v1/products"),
        ("OPTIONS", "/v1/products"),
        ("HEAD", "/v1/products"),
        ("GET", "/docs/"),
        ("GET", "/docs/swagger-ui.css"),
        ("GET", "/docs/swagger-ui-bundle.js"),
        ("GET", "/docs/swagger-initializer.js"),
        ("GET", "/openapi.json"),
        ("GET", "/metrics"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/problems"),
    ] {
        let answer = shop
            .send(method.parse().unwrap(), path, None, &[("X-Forwarded-Proto", "http")], None)
            .await
            .unwrap();
        seen.insert(answer.status);
        assert!(!(300..400).contains(&answer.status), "{method} {path} redirects");
        let is_page = answer.header("content-type").starts_with("text/html");
        pages += usize::from(is_page);
        for (name, value) in HEADERS.into_iter().chain(OF_PAGES.into_iter().filter(|_| is_page)) {
            let told = answer.header(name);
            assert!(
                !told.is_empty() && (value.is_empty() || told == value),
                "{method} {path}: {name}: {told}"
            );
        }
        assert_eq!(answer.header("set-cookie"), "", "{method} {path}: nothing is kept in a browser");
        let kind = answer.header("content-type");
        assert!(answer.text.is_empty() || !kind.is_empty(), "{method} {path} does not say what it is");
        assert!(!kind.starts_with("text/") || kind.contains("charset=utf-8"), "{method} {path}: {kind}");
        let policy = answer.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}");
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(
            answer.header("strict-transport-security"),
            "max-age=63072000; includeSubDomains; preload",
            "{method} {path}"
        );
    }
    assert!(seen.is_superset(&[200, 400, 401, 404, 405].into()), "{seen:?}");
    assert!(pages > 0, "no page among them");
    // What stands before the routes is documented at each of them.
    let document = shop.get("/openapi.json", None, &[]).await.body;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for status in ["421", "429", "503"] {
                let schema = &operation["responses"][status]["content"]["application/problem+json"]["schema"];
                assert_eq!(schema["$ref"], "#/components/schemas/Problem", "{method} {path}: {status}");
            }
        }
    }
    // The page of the documentation needs nothing inline.
    let page = shop.get("/docs/", None, &[]).await.text;
    assert!(page.contains("swagger-ui"), "{page}");
    for inline in ["<style", " style=", " onload=", " onclick=", "<script>", "javascript:"] {
        assert!(!page.contains(inline), "{inline} in {page}");
    }
}

/// Says something over a connection of its own, and returns the answer.
async fn say(shop: &Shop, text: &str) -> String {
    let mut stream = connect(shop, "127.0.0.1").await;
    stream.write_all(text.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

#[tokio::test]
async fn methods_that_nobody_has_are_refused_and_nothing_is_echoed() {
    let (shop, _postgres) = shop(&[]).await;
    assert_eq!(shop.get("/livez", None, &[]).await.header("strict-transport-security"), "", "plain HTTP");
    for method in ["TRACE", "TRACK", "CONNECT", "PROPFIND", "PATCH", "BREW"] {
        let said = say(
            &shop,
            &format!(
                "{method} /v1/products HTTP/1.1\r\nhost: shop\r\nsecret: s3cr3t\r\nconnection: close\r\n\r\n"
            ),
        )
        .await;
        // CONNECT wants a host and a port, and has a path.
        let refused =
            said.starts_with("HTTP/1.1 405 ") || (method == "CONNECT" && said.starts_with("HTTP/1.1 4"));
        assert!(refused && !said.contains("s3cr3t"), "{method}: {said}");
        assert!(method == "CONNECT" || said.to_lowercase().contains("\r\nallow: "), "{method}: {said}");
    }
    let overridden = shop
        .send(reqwest::Method::POST, "/v1/products", None, &[("X-HTTP-Method-Override", "GET")], None)
        .await
        .unwrap();
    assert_eq!(overridden.status, 401, "it is a POST");
}

#[tokio::test]
async fn a_request_for_another_host_is_not_answered() {
    let (shop, _postgres) = shop(&[("TIDEMARK_ALLOWED_HOSTS", "shop.example,127.0.0.1")]).await;
    let asked = async |target: &str, hosts: &str| {
        say(&shop, &format!("GET {target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n")).await
    };
    for (target, hosts, status) in [
        ("/v1/products", "host: shop.example\r\n", "200"),
        ("/v1/products", "host: SHOP.example:8080\r\n", "200"),
        ("/v1/products", "host: evil.example\r\n", "421"),
        ("/v1/products", "host: shop.example.evil.example\r\n", "421"),
        ("/v1/products", "host: \r\n", "421"),
        ("/v1/products", "", "421"),
        ("http://evil.example/v1/products", "host: shop.example\r\n", "421"),
        ("http://shop.example/v1/products", "host: evil.example\r\n", "200"),
        ("/v1/products", "host: shop.example\r\nhost: evil.example\r\n", "400"),
        ("/livez", "host: 10.0.0.7:8080\r\n", "200"),
    ] {
        let said = asked(target, hosts).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{target} {hosts}: {said}");
    }
    assert!(asked("/v1/products", "host: evil.example\r\n").await.contains("/problems/misdirected"));
}

#[tokio::test]
async fn pages_of_listed_origins_may_ask_and_no_others() {
    let settings = [
        ("TIDEMARK_CORS_ORIGINS", "https://shop.example,http://localhost:3000"),
        ("TIDEMARK_LIMITS", "commands=1/h"),
    ];
    let (shop, _postgres) = shop(&settings).await;
    let preflight = async |origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization,content-type,idempotency-key"),
        ];
        shop.send(reqwest::Method::OPTIONS, "/v1/orders", None, &headers, None).await.unwrap()
    };
    let allowed = preflight("https://shop.example").await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), "https://shop.example");
    assert_eq!(allowed.header("access-control-max-age"), "3600");
    assert!(allowed.header("access-control-allow-methods").contains("POST"));
    assert!(allowed.header("access-control-allow-headers").contains("idempotency-key"));
    assert_eq!(allowed.header("access-control-allow-credentials"), "");
    for origin in [
        "https://evil.example",
        "null",
        "http://shop.example",
        "https://shop.example:444",
        "https://shop.example.evil.example",
    ] {
        assert_eq!(preflight(origin).await.header("access-control-allow-origin"), "", "{origin}");
        let read = shop.get("/v1/products", None, &[("Origin", origin)]).await;
        assert_eq!((read.status, read.header("access-control-allow-origin")), (200, ""), "{origin}");
    }
    let read = shop.get("/v1/products", None, &[("Origin", "http://localhost:3000")]).await;
    assert_eq!(read.header("access-control-allow-origin"), "http://localhost:3000");
    assert!(read.header("access-control-expose-headers").contains("tidemark-position"));
    assert!(read.headers.get_all("vary").iter().any(|vary| vary.to_str().unwrap().contains("origin")));
    // A refusal can be read, too.
    let order = async || {
        let origin = [("Origin", "https://shop.example"), ("Idempotency-Key", "k")];
        shop.send(reqwest::Method::POST, "/v1/orders", None, &origin, None).await.unwrap()
    };
    assert_eq!(order().await.status, 401);
    let refused = order().await;
    assert_eq!(
        (refused.status, refused.header("access-control-allow-origin")),
        (429, "https://shop.example")
    );
}
