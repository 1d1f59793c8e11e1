//! Bad input by the thousand, class by class, on the running shop: no answer is a fault of the service, every refusal
//! is a problem, nothing refused is written, and memory stays bounded. The cases are the same in every run.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::harness::{Shop, audit, token};
use crate::inputs::{MALFORMED, NAUGHTY, Random, UNDECIDED, WELL_FORMED, leaves, with};

/// How many requests are on their way at once.
const AT_ONCE: usize = 8;

/// How much more memory the shop may have after all of it than in the middle, when all the large bodies have passed,
/// in KiB.
const GROWTH_KIB: u64 = 48 * 1024;

/// And how much it may have at all.
const MOST_KIB: u64 = 512 * 1024;

/// What must be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// This status and no other.
    Status(u16),
    /// A refusal: 4xx.
    Refused,
    /// Anything but a fault of the service.
    Anything,
    /// A refusal, or the connection is closed without an answer.
    RefusedOrClosed,
}

/// One request.
struct Case {
    class: &'static str,
    told: String,
    expected: Expected,
    sent: Sent,
}

enum Sent {
    /// By a client that speaks HTTP.
    Request(Box<reqwest::Request>),
    /// Whatever these bytes are.
    Bytes(Vec<u8>),
}

struct Cases<'a> {
    shop: &'a Shop,
    product: String,
    order: String,
    analyst: String,
    random: Random,
    all: Vec<Case>,
}

/// A route with a body, and one that it takes.
fn routes(product: &str) -> Vec<(Method, String, Value)> {
    let price = json!({ "amount": 5, "currency": "EUR" });
    let thing = json!({ "sku": "S", "name": "N", "description": "D", "department": "P", "price": price });
    let of = |part: &str| format!("/v1/products/{product}{part}");
    vec![
        (Method::POST, "/v1/products".to_owned(), thing.clone()),
        (Method::POST, "/v1/products/batch".to_owned(), json!({ "items": [thing] })),
        (Method::PUT, of(""), json!({ "name": "N", "description": "D", "department": "P" })),
        (Method::PUT, of("/price"), json!({ "price": price })),
        (Method::POST, of("/stock-receipts"), json!({ "quantity": 1 })),
        (Method::POST, of("/stock-adjustments"), json!({ "delta": 1, "reason": "R" })),
        (
            Method::POST,
            "/v1/orders".to_owned(),
            json!({ "lines": [{ "product_id": product, "quantity": 1 }] }),
        ),
        (Method::POST, format!("/v1/orders/{}/cancellation", Uuid::from_u128(7)), json!({ "reason": "R" })),
    ]
}

impl Cases<'_> {
    fn push(&mut self, class: &'static str, told: impl Into<String>, expected: Expected, sent: Sent) {
        self.all.push(Case { class, told: told.into(), expected, sent });
    }

    /// A request by the staff, with these headers in the place of the usual ones.
    fn request(
        &mut self,
        class: &'static str,
        expected: Expected,
        (method, path): (Method, &str),
        headers: &[(&str, &[u8])],
        body: impl Into<Vec<u8>>,
    ) {
        let body = body.into();
        let told: String = String::from_utf8_lossy(&body).chars().take(80).collect();
        let mut request = self.shop.client.request(method.clone(), format!("{}{path}", self.shop.base));
        let named = |name: &str| headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        if !named("Authorization") {
            request = request.bearer_auth(&self.shop.staff);
        }
        if !named("Idempotency-Key") {
            request = request.header("Idempotency-Key", Uuid::now_v7().to_string());
        }
        if !named("Content-Type") && method != Method::GET {
            request = request.header("Content-Type", "application/json");
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        if !body.is_empty() {
            request = request.body(body);
        }
        let headers: String = headers
            .iter()
            .map(|(name, value)| format!(" {name}: {}", String::from_utf8_lossy(value)))
            .collect();
        let request = Sent::Request(Box::new(request.build().unwrap()));
        let told = format!("{method} {path}{} {told}", headers.chars().take(120).collect::<String>());
        self.push(class, told, expected, request);
    }

    fn get(&mut self, class: &'static str, expected: Expected, path: &str, headers: &[(&str, &[u8])]) {
        self.request(class, expected, (Method::GET, path), headers, "");
    }

    /// Bytes that are no good request, with the shop's token in the place of `TOKEN`.
    fn bytes(&mut self, class: &'static str, expected: Expected, bytes: impl AsRef<[u8]>) {
        let told = String::from_utf8_lossy(bytes.as_ref()).chars().take(100).collect::<String>();
        self.push(class, told, expected, Sent::Bytes(bytes.as_ref().to_vec()));
    }

    fn syntax(&mut self) {
        for (method, path, good) in routes(&self.product.clone()) {
            let to = || (method.clone(), path.as_str());
            let text = good.to_string();
            for malformed in MALFORMED {
                self.request("JSON that is none", Expected::Status(400), to(), &[], *malformed);
            }
            for cut in (1..text.len()).step_by(3) {
                self.request("JSON cut off", Expected::Status(400), to(), &[], &text.as_bytes()[..cut]);
            }
            for undecided in UNDECIDED {
                self.request("JSON that parsers differ about", Expected::Refused, to(), &[], *undecided);
            }
            for other in WELL_FORMED {
                self.request("JSON of another form", Expected::Refused, to(), &[], *other);
            }
            for depth in [127, 128, 129, 1_000, 100_000] {
                for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
                    let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                    self.request("nested deep", Expected::Refused, to(), &[], deep);
                    self.request(
                        "nested deep and not closed",
                        Expected::Status(400),
                        to(),
                        &[],
                        open.repeat(depth),
                    );
                }
            }
            for (kind, text) in [
                ("UTF-16, little end first", utf16(&text, u16::to_le_bytes)),
                ("UTF-16, big end first", utf16(&text, u16::to_be_bytes)),
                ("with a byte order mark", [b"\xef\xbb\xbf", text.as_bytes()].concat()),
                ("with a NUL behind", [text.as_bytes(), b"\0"].concat()),
                ("twice", text.repeat(2).into_bytes()),
                ("with a comma behind", format!("{text},").into_bytes()),
                ("compressed", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]),
            ] {
                let _ = kind;
                self.request("JSON in another encoding", Expected::Status(400), to(), &[], text);
            }
            self.request(
                "nothing but white space",
                Expected::Status(400),
                to(),
                &[],
                " \n\t\r".repeat(1_000),
            );
            if !path.ends_with("cancellation") {
                self.request("an empty body", Expected::Status(400), to(), &[], "");
            }
        }
    }

    fn members(&mut self) {
        let product = self.product.clone();
        for (method, path, good) in routes(&product) {
            let to = || (method.clone(), path.as_str());
            let paths = leaves(&good);
            for pointer in &paths {
                let found = good.pointer(pointer).unwrap();
                for (class, values) in wrong_values(found) {
                    for value in values {
                        let body = with(&good, pointer, Some(value)).to_string();
                        self.request(class, Expected::Refused, to(), &[], body);
                    }
                }
                for (class, text) in wrong_texts(found) {
                    let body = with(&good, pointer, Some(json!("\u{1}PLACE")));
                    let body = body.to_string().replace("\"\\u0001PLACE\"", &text);
                    self.request(class, Expected::Refused, to(), &[], body);
                }
                // What may be left out may be left out; nothing else may.
                let without = with(&good, pointer, None).to_string();
                self.request("a member left out", Expected::Anything, to(), &[], without);
            }
            let mut objects: Vec<String> =
                paths.iter().filter_map(|path| Some(path.rsplit_once('/')?.0.to_owned())).collect();
            objects.push(String::new());
            objects.sort();
            objects.dedup();
            for pointer in objects {
                let Some(object) = good.pointer(&pointer).filter(|value| value.is_object()) else { continue };
                for name in OWNED {
                    let mut more = object.clone();
                    if more.get(*name).is_none() {
                        more[*name] = json!(1);
                        let body = with(&good, &pointer, Some(more)).to_string();
                        self.request(
                            "a field that is the shop's own",
                            Expected::Status(400),
                            to(),
                            &[],
                            body,
                        );
                    }
                }
                let listed = Value::Array(object.as_object().unwrap().values().cloned().collect());
                for values in
                    [listed.clone(), Value::Array(listed.as_array().unwrap().iter().rev().cloned().collect())]
                {
                    let body = with(&good, &pointer, Some(values)).to_string();
                    self.request("a list in the place of an object", Expected::Refused, to(), &[], body);
                }
                for (name, value) in object.as_object().unwrap() {
                    let doubled = object.to_string().replacen('{', &format!("{{\"{name}\":{value},"), 1);
                    let body = with(&good, &pointer, Some(json!("\u{1}PLACE"))).to_string();
                    let body = body.replace("\"\\u0001PLACE\"", &doubled);
                    self.request("a field twice", Expected::Refused, to(), &[], body);
                }
                let many: String = (0..20_000).map(|n| format!("\"f{n}\":{n},")).collect();
                let body = with(&good, &pointer, Some(json!("\u{1}PLACE"))).to_string();
                let body = body
                    .replace("\"\\u0001PLACE\"", &object.to_string().replacen('{', &format!("{{{many}"), 1));
                self.request("20,000 fields", Expected::Refused, to(), &[], body);
            }
        }
        self.commerce(&product);
    }

    fn commerce(&mut self, product: &str) {
        let to = (Method::POST, "/v1/orders");
        let line = |id: &str, quantity: i64| json!({ "product_id": id, "quantity": quantity });
        for count in [0, 201, 1_000, 10_000] {
            let body = json!({ "lines": vec![line(product, 1); count] }).to_string();
            self.request("too many lines, or none", Expected::Status(422), to.clone(), &[], body);
        }
        for n in 0..100_u128 {
            let body = json!({ "lines": [line(&Uuid::from_u128(n).to_string(), 1)] }).to_string();
            self.request("products that do not exist", Expected::Status(422), to.clone(), &[], body);
        }
        for quantity in [1_001, 10_000, 1_000_000] {
            let body = json!({ "lines": [line(product, quantity), line(product, quantity)] }).to_string();
            self.request("more than there is", Expected::Refused, to.clone(), &[], body);
        }
        let thing = |n: usize| json!({ "sku": format!("B-{n}"), "name": "N", "price": { "amount": 1, "currency": "EUR" } });
        for count in [0, 1_001, 5_000] {
            let body = json!({ "items": (0..count).map(thing).collect::<Vec<_>>() }).to_string();
            self.request(
                "a batch too large, or empty",
                Expected::Refused,
                (Method::POST, "/v1/products/batch"),
                &[],
                body,
            );
        }
        let order = self.order.clone();
        for step in ["shipment", "delivery", "cancellation"] {
            // It has been called off.
            let path = format!("/v1/orders/{order}/{step}");
            for _ in 0..5 {
                let expected =
                    if step == "cancellation" { Expected::Anything } else { Expected::Status(409) };
                self.request("a step that is not the next", expected, (Method::POST, &path), &[], "");
            }
            for n in 0..20_u128 {
                let path = format!("/v1/orders/{}/{step}", Uuid::from_u128(n));
                self.request("a step of no order", Expected::Status(404), (Method::POST, &path), &[], "");
            }
        }
    }

    fn texts(&mut self) {
        for (n, text) in NAUGHTY.iter().enumerate() {
            let thing =
                json!({ "sku": format!("N-{n}"), "name": text, "price": { "amount": 1, "currency": "EUR" } });
            let to = (Method::POST, "/v1/products");
            self.request("a naughty name", Expected::Anything, to.clone(), &[], thing.to_string());
            let sku = json!({ "sku": text, "name": "N", "price": { "amount": 1, "currency": "EUR" } });
            self.request("a naughty SKU", Expected::Anything, to, &[], sku.to_string());
            let revised = json!({ "name": "N", "description": text, "department": text }).to_string();
            let path = format!("/v1/products/{}", self.product);
            self.request("a naughty description", Expected::Anything, (Method::PUT, &path), &[], revised);
            let encoded: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
            for name in ["q", "department", "sort", "fields", "limit", "min_price", "cursor"] {
                let path = format!("/v1/products?{name}={encoded}");
                self.get("a naughty parameter", Expected::Anything, &path, &[]);
            }
            for name in ["status", "customer_id", "cursor", "fields"] {
                let path = format!("/v1/orders?{name}={encoded}");
                self.get("a naughty parameter", Expected::Anything, &path, &[]);
            }
            self.get(
                "a naughty parameter's name",
                Expected::Anything,
                &format!("/v1/products?{encoded}=1"),
                &[],
            );
            self.get("a naughty path", Expected::Anything, &format!("/v1/products/{encoded}"), &[]);
            if reqwest::header::HeaderValue::from_bytes(text.as_bytes()).is_ok() && !text.is_empty() {
                for name in [
                    "If-Match",
                    "If-None-Match",
                    "Tidemark-After",
                    "traceparent",
                    "Idempotency-Key",
                    "Accept-Encoding",
                    "Accept",
                    "Origin",
                    "Forwarded",
                ] {
                    let to = (Method::GET, "/v1/products?limit=1");
                    let expected =
                        if name == "Tidemark-After" { Expected::Refused } else { Expected::Anything };
                    if !(name == "Tidemark-After" && text.trim().bytes().all(|byte| byte.is_ascii_digit())) {
                        self.request("a naughty header", expected, to, &[(name, text.as_bytes())], "");
                    }
                }
            }
        }
    }

    fn parameters(&mut self) {
        for (class, queries) in [
            (
                "a page of no size",
                [
                    "limit=0",
                    "limit=-1",
                    "limit=101",
                    "limit=1000000000",
                    "limit=1e2",
                    "limit=0x10",
                    "limit=%2B",
                    "limit=9999999999999999999999",
                    "limit=1.0",
                    "limit=true",
                    "limit=one",
                    "limit=%D9%A1",
                ]
                .as_slice(),
            ),
            ("a parameter twice", &["limit=1&limit=2", "q=a&q=b", "cursor=&cursor=", "sort=name&sort=name"]),
            (
                "a parameter that is none",
                &[
                    "colour=red",
                    "Limit=1",
                    "limit%00=1",
                    "q[]=1",
                    "$where=1",
                    "__proto__=1",
                    "page=2",
                    "offset=10",
                ],
            ),
            (
                "a sort order that is none",
                &[
                    "sort=id",
                    "sort=--name",
                    "sort=name,price",
                    "sort=name%20DESC",
                    "sort=1",
                    "sort=relevance",
                    "sort=(SELECT%201)",
                ],
            ),
            (
                "a cursor that was made up",
                &[
                    "cursor=AAAA",
                    "cursor=e30",
                    "cursor=null",
                    "cursor=%20",
                    "cursor=W10",
                    "cursor=eyJxIjoiIiwiayI6WzEsMl19",
                    "cursor=..",
                    "cursor=AA%3D%3D",
                ],
            ),
            (
                "a price that is none",
                &[
                    "min_price=1e9",
                    "min_price=1.5",
                    "max_price=one",
                    "min_price=9223372036854775808",
                    "max_price=-9223372036854775809",
                    "min_price=NaN",
                ],
            ),
            (
                "control characters",
                &["q=%00", "q=a%00b", "department=%0A", "q=%1B%5B31m", "q=%7F", "fields=%0D%0A"],
            ),
        ] {
            for query in queries {
                for path in ["/v1/products", "/v1/orders"] {
                    self.get(class, Expected::Status(400), &format!("{path}?{query}"), &[]);
                }
            }
        }
        for query in
            ["q=%ff%fe", "q=%zz", "q=%", "q=%c3%28", "&&&", "=", "q", "q=%u0041", "limit", "q==", "?"]
        {
            self.get("odd percent signs", Expected::Anything, &format!("/v1/products?{query}"), &[]);
        }
        for letters in [4_096, 5_000, 20_000, 60_000] {
            let path = format!("/v1/products?q={}", "a".repeat(letters));
            self.get("a query too long", Expected::Refused, &path, &[]);
        }
        let words: String = (0..800).map(|n| format!("a{n}+")).collect();
        self.get(
            "a search of 800 words",
            Expected::Anything,
            &format!("/v1/products?q={}", &words[..3_800]),
            &[],
        );
        for query in [
            "from=0",
            "from=-1",
            "to=-1",
            "from=x",
            "follow=maybe",
            "follow=1",
            "stream=x",
            "from=9223372036854775808",
            "to=1&to=2",
        ] {
            let path = format!("/v1/events?{query}");
            let analyst = format!("Bearer {}", self.analyst);
            self.get(
                "bounds of a replay",
                Expected::Status(400),
                &path,
                &[("Authorization", analyst.as_bytes())],
            );
        }
        // Cursors that were good: a byte of them is another, or they belong to another list.
        let cursors: Vec<String> = (0..400)
            .map(|_| {
                let mut bytes = b"eyJxIjoiNDdERVFwajgiLCJrIjpbIkxhbXAiLCIwMTkwYjZhMi04YzVlLTdjMTEtYjBkZS0xZjBlOWE3YjBjMDEiXX0".to_vec();
                for _ in 0..=self.random.below(3) {
                    let at = self.random.below(bytes.len());
                    bytes[at] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[self.random.below(64)];
                }
                String::from_utf8(bytes).unwrap()
            })
            .collect();
        for cursor in cursors {
            self.get(
                "a cursor with wrong letters",
                Expected::Anything,
                &format!("/v1/products?cursor={cursor}"),
                &[],
            );
            self.get(
                "a cursor of another list",
                Expected::Refused,
                &format!("/v1/orders?cursor={cursor}"),
                &[],
            );
        }
    }

    fn ids(&mut self) {
        let id = Uuid::from_u128(0x0190_b6a2_8c5e_7c11_b0de_1f0e_9a7b_0cff).to_string();
        let odd = [
            "x".to_owned(),
            "0".to_owned(),
            "-1".to_owned(),
            "null".to_owned(),
            "undefined".to_owned(),
            "%20".to_owned(),
            "*".to_owned(),
            "1%20OR%201=1".to_owned(),
            "%27".to_owned(),
            format!("{id}x"),
            id[1..].to_owned(),
            id.replace('-', "--"),
            format!("%7B{id}%7D"),
            format!("urn:uuid:{id}"),
            id.replace('-', ""),
            id.to_uppercase(),
            format!("{id}%00"),
            format!("{id}%2F"),
            format!("{id};a=b"),
            format!("{id}.json"),
            format!("{id}%0d%0aX:y"),
            Uuid::nil().to_string(),
            Uuid::max().to_string(),
            "%F0%9F%92%A9".to_owned(),
            "a".repeat(5_000),
            format!("%2e%2e%2f{id}"),
            "$(id)".to_owned(),
            id.clone(),
        ];
        for id in odd {
            for (method, path, body) in [
                (Method::GET, format!("/v1/products/{id}"), None),
                (Method::GET, format!("/v1/products/{id}/stock"), None),
                (Method::GET, format!("/v1/orders/{id}"), None),
                (Method::PUT, format!("/v1/products/{id}"), Some(json!({ "name": "N" }))),
                (
                    Method::PUT,
                    format!("/v1/products/{id}/price"),
                    Some(json!({ "price": { "amount": 1, "currency": "EUR" } })),
                ),
                (Method::PUT, format!("/v1/products/{id}/publication"), None),
                (Method::PUT, format!("/v1/products/{id}/retirement"), None),
                (Method::POST, format!("/v1/products/{id}/stock-receipts"), Some(json!({ "quantity": 1 }))),
                (
                    Method::POST,
                    format!("/v1/products/{id}/stock-adjustments"),
                    Some(json!({ "delta": 1, "reason": "R" })),
                ),
                (Method::POST, format!("/v1/orders/{id}/cancellation"), None),
                (Method::POST, format!("/v1/orders/{id}/shipment"), None),
                (Method::POST, format!("/v1/orders/{id}/delivery"), None),
            ] {
                let body = body.map_or_else(String::new, |body| body.to_string());
                self.request("an id that nothing has", Expected::Status(404), (method, &path), &[], body);
            }
        }
    }

    fn headers(&mut self) {
        let product = self.product.clone();
        for (method, path, good) in routes(&product) {
            let to = || (method.clone(), path.as_str());
            for kind in [
                "",
                "text/plain",
                "text/html",
                "application/xml",
                "application/x-www-form-urlencoded",
                "multipart/form-data; boundary=x",
                "application/json5",
                "application/jsonp",
                "application/json; charset=latin1",
                "application/json; charset=utf-16",
                "application",
                "json",
                "*/*",
                "application/json, text/plain",
                "text/json",
                "application/problem+json",
                "application/cbor",
                "image/png",
                "application/x-ndjson",
            ] {
                self.request(
                    "a body of another type",
                    Expected::Status(415),
                    to(),
                    &[("Content-Type", kind.as_bytes())],
                    good.to_string(),
                );
            }
            for encoding in ["gzip", "br", "zstd", "deflate", "identity", "x", "gzip, gzip", "compress"] {
                self.request(
                    "a body with an encoding",
                    Expected::Status(415),
                    to(),
                    &[("Content-Encoding", encoding.as_bytes())],
                    vec![0x1f, 0x8b, 8, 0],
                );
            }
            let long = "k".repeat(256);
            for key in [long.as_bytes(), b"\"\"", "ü".as_bytes(), b"a\tb", b"\xff"] {
                self.request(
                    "a key that is none",
                    Expected::Status(400),
                    to(),
                    &[("Idempotency-Key", key)],
                    good.to_string(),
                );
            }
            // A batch has no version.
            let versions = if path.ends_with("batch") { &[][..] } else { VERSIONS };
            for version in versions {
                self.request(
                    "a version that is none",
                    Expected::Status(400),
                    to(),
                    &[("If-Match", version.as_bytes())],
                    good.to_string(),
                );
            }
            self.request("a body too large", Expected::Status(413), to(), &[], " ".repeat(1024 * 1024 + 1));
            self.request("a body too large", Expected::Status(413), to(), &[], " ".repeat(2 * 1024 * 1024));
        }
        for (method, path, good) in routes(&product)
            .into_iter()
            .filter(|(_, path, _)| path.contains("stock-") || path.contains("orders"))
        {
            self.request(
                "no key",
                Expected::Status(400),
                (method, &path),
                &[("Idempotency-Key", b"")],
                good.to_string(),
            );
        }
        for after in [
            "x",
            "1-",
            "-1",
            "1-x",
            "1-2-3",
            "+1",
            "1.0",
            "0x1",
            "99999999999999999999",
            "1-99999999999999999999",
            "9999999999-1",
            "\u{661}",
        ] {
            for path in [
                "/v1/products",
                "/v1/orders",
                &format!("/v1/products/{product}"),
                &format!("/v1/products/{product}/stock"),
            ] {
                self.get(
                    "a position that is none",
                    Expected::Status(400),
                    path,
                    &[("Tidemark-After", after.as_bytes())],
                );
            }
        }
        for (name, value) in [
            ("Range", "bytes=0-1"),
            ("Range", "bytes=99999-"),
            ("Expect", "100-continue"),
            ("Accept", "text/html"),
            ("Accept", "application/xml;q=0"),
            ("Accept-Encoding", "gzip;q=9, *;q=0"),
            ("Accept-Encoding", "identity;q=0, *;q=0"),
            ("Accept-Language", "xx"),
            ("Upgrade", "h2c"),
            ("Upgrade", "websocket"),
            ("Connection", "upgrade"),
            ("If-Modified-Since", "yesterday"),
            ("Cookie", "a=b; a=c"),
            ("X-Forwarded-For", "::1, 127.0.0.1"),
            ("Forwarded", "for=\"[::1"),
            ("Origin", "null"),
            ("Te", "trailers"),
            ("Via", "1.1 x"),
            ("Max-Forwards", "0"),
            ("Prefer", "wait=99999"),
            ("X-HTTP-Method-Override", "DELETE"),
        ] {
            for path in ["/v1/products", "/v1/orders", "/readyz", "/openapi.json", "/nothing"] {
                self.get(
                    "a header that asks for more",
                    Expected::Anything,
                    path,
                    &[(name, value.as_bytes())],
                );
            }
        }
        for method in ["DELETE", "PATCH", "PROPFIND", "TRACE", "MKCOL", "FOO", "LOCK", "get", "PURGE"] {
            for path in [
                "/v1/products",
                "/v1/orders",
                "/v1/events",
                "/readyz",
                "/metrics",
                "/openapi.json",
                &format!("/v1/products/{product}"),
            ] {
                let method: Method = method.parse().unwrap();
                self.request("a method that is not taken", Expected::Status(405), (method, path), &[], "");
            }
        }
    }

    /// Requests that are no HTTP, or not quite.
    fn transport(&mut self) {
        const CLOSE: &str = "Connection: close\r\n\r\n";
        for path in [
            "/v1/../etc/passwd",
            "/../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/v1/%252e%252e/x",
            "//v1/products",
            "/v1//products",
            "/v1/products/",
            "/V1/products",
            "/v1/products%00",
            "/v1/products%2f",
            "/.env",
            "/.git/config",
            "/server-status",
            "/admin",
            "/actuator",
            "/debug/pprof",
            "/wp-login.php",
            "/v1/products;x=y",
            "/\\..\\..",
            "/docs/../metrics",
            "/docs/%2e%2e/%2e%2e/etc/passwd",
            "/problems/../metrics",
            "/problems/%00",
        ] {
            self.bytes(
                "a path to somewhere else",
                Expected::Refused,
                format!("GET {path} HTTP/1.1\r\nHost: x\r\n{CLOSE}"),
            );
        }
        let long = "a".repeat(70_000);
        self.bytes(
            "a path too long",
            Expected::RefusedOrClosed,
            format!("GET /{long} HTTP/1.1\r\nHost: x\r\n{CLOSE}"),
        );
        self.bytes(
            "a head too large",
            Expected::RefusedOrClosed,
            format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\n{CLOSE}"),
        );
        let many: String = (0..2_000).map(|n| format!("X-{n}: {n}\r\n")).collect();
        self.bytes(
            "too many headers",
            Expected::RefusedOrClosed,
            format!("GET / HTTP/1.1\r\nHost: x\r\n{many}{CLOSE}"),
        );
        for head in [
            "GET /v1/products",
            "GET  /v1/products HTTP/1.1",
            "GET /v1/products HTTP/9.9",
            "GET /v1/products HTTP/1.1x",
            "GET /v1/products HTTPS/1.1",
            "GET",
            "",
            " ",
            "\0",
            "GET /v1 products HTTP/1.1",
            "GE\0T / HTTP/1.1",
            "G(T / HTTP/1.1",
            "GET\t/ HTTP/1.1",
            "GET /\0 HTTP/1.1",
            "GET /\x01 HTTP/1.1",
            "PRI * HTTP/2.0",
            "GET http:// HTTP/1.1",
            "HTTP/1.1 200 OK",
            "SSH-2.0-x",
            "\x16\x03\x01\x02\x00",
            "{\"a\":1}",
            "<xml/>",
            "EHLO x",
        ] {
            self.bytes(
                "a first line that is none",
                Expected::RefusedOrClosed,
                format!("{head}\r\nHost: x\r\n{CLOSE}"),
            );
        }
        for header in [
            "Host : x",
            " Host: x",
            "Host: x\r\n folded",
            "Ho st: x",
            ": x",
            "X",
            "X\0: y",
            "X: \0",
            "X: a\rb",
            "\u{fc}: x",
            "(X): y",
            "X[]: y",
            "X: \x7f",
        ] {
            self.bytes(
                "a header that is none",
                Expected::RefusedOrClosed,
                format!("GET /nothing HTTP/1.1\r\nHost: x\r\n{header}\r\n{CLOSE}"),
            );
        }
        let post = "POST /v1/products HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer TOKEN\r\nContent-Type: application/json\r\n";
        for length in [
            "-1",
            "x",
            "1 1",
            "0x10",
            "+2",
            "1e1",
            "99999999999999999999999",
            "2, 3",
            "",
            "2\r\nContent-Length: 3",
            "1.0",
            "18446744073709551616",
        ] {
            self.bytes(
                "a length that is none",
                Expected::RefusedOrClosed,
                format!("{post}Content-Length: {length}\r\n{CLOSE}{{}}"),
            );
        }
        for encoding in [
            "chunked, identity",
            "identity",
            "xchunked",
            "chunked, chunked",
            " chunked\r\nTransfer-Encoding: identity",
            "\u{b}chunked",
            "chunked\r\nContent-Length: 2",
            "x, chunked\r\nContent-Length: 100",
            "gzip, chunked",
            "CHUNKED, x",
            "\"chunked\"",
            "chunked;x=y",
        ] {
            let request = format!(
                "{post}Transfer-Encoding: {encoding}\r\n{CLOSE}0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
            );
            self.bytes("a body with two ends", Expected::RefusedOrClosed, request);
        }
        for chunk in [
            "x\r\n{}\r\n",
            "-1\r\n",
            "ffffffffffffffffff\r\n",
            "2\n{}\n0\n\n",
            "2\r\n{}x\r\n",
            "2;\0=a\r\n{}\r\n",
            "0x2\r\n{}\r\n0\r\n\r\n",
            " 2\r\n{}\r\n0\r\n\r\n",
            "2 \r\n{}\r\n0\r\n\r\n",
            "\r\n",
        ] {
            self.bytes(
                "a chunk that is none",
                Expected::RefusedOrClosed,
                format!("{post}Transfer-Encoding: chunked\r\n{CLOSE}{chunk}"),
            );
        }
        self.bytes(
            "a body that breaks off",
            Expected::RefusedOrClosed,
            format!("{post}Content-Length: 100\r\n{CLOSE}{{\"sku\":"),
        );
        let endless = format!(
            "{post}Transfer-Encoding: chunked\r\n{CLOSE}{}0\r\n\r\n",
            format!("10000\r\n{}\r\n", " ".repeat(0x10000)).repeat(40)
        );
        self.bytes("a body in chunks, too large", Expected::RefusedOrClosed, endless);
        for hosts in [
            "",
            "Host: a\r\nHost: b\r\n",
            "Host: a b\r\n",
            "Host: \r\n",
            "Host: a/b\r\n",
            "Host: [::1\r\n",
            "Host: a:99999999\r\n",
        ] {
            self.bytes(
                "a host that is none",
                Expected::Anything,
                format!("GET /v1/products HTTP/1.1\r\n{hosts}{CLOSE}"),
            );
        }
        // Bytes of good requests that are others.
        let good = format!(
            "POST /v1/products HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\nContent-Type: application/json\r\nTidemark-After: 1\r\n{CLOSE}{{\"sku\":\"a\"}}"
        );
        for _ in 0..600 {
            let mut bytes = good.clone().into_bytes();
            for _ in 0..=self.random.below(4) {
                let at = self.random.below(bytes.len());
                bytes[at] = u8::try_from(self.random.below(256)).unwrap();
            }
            self.bytes("requests with wrong bytes", Expected::RefusedOrClosed, bytes);
        }
        for _ in 0..200 {
            let length = self.random.below(300) + 1;
            let mut bytes: Vec<u8> =
                (0..length).map(|_| u8::try_from(self.random.below(256)).unwrap()).collect();
            bytes.extend_from_slice(b"\r\n\r\n");
            self.bytes("noise", Expected::RefusedOrClosed, bytes);
        }
    }

    /// Good bodies with some of their bytes changed, left out, doubled.
    fn mutations(&mut self) {
        let product = self.product.clone();
        for (method, path, good) in routes(&product) {
            for _ in 0..250 {
                let mut bytes = good.to_string().into_bytes();
                for _ in 0..=self.random.below(4) {
                    let at = self.random.below(bytes.len());
                    match self.random.below(4) {
                        0 => bytes[at] ^= 1 << self.random.below(8),
                        1 => bytes[at] = b"{}[],:\"\\0-1eEn\x00\xff"[self.random.below(16)],
                        2 => {
                            bytes.remove(at);
                        }
                        _ => bytes.insert(at, bytes[self.random.below(bytes.len())]),
                    }
                    if bytes.is_empty() {
                        bytes.push(b' ');
                    }
                }
                self.request(
                    "bodies with wrong bytes",
                    Expected::Anything,
                    (method.clone(), &path),
                    &[],
                    bytes,
                );
            }
        }
    }
}

fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(bytes).collect()
}

/// What `If-Match` does not take.
const VERSIONS: &[&str] = &[
    "3",
    "\"",
    "\"x\"",
    "\"3",
    "3\"",
    "W/\"3\"",
    "\"-1\"",
    "\"9223372036854775808\"",
    "\"1\", \"2\"",
    "\"\"",
    "'3'",
];

/// Fields that are the shop's to say.
const OWNED: &[&str] = &[
    "id",
    "product_id ",
    "order_id",
    "customer_id",
    "owner",
    "role",
    "status",
    "version",
    "position",
    "total",
    "amount_due",
    "unit_price",
    "discount",
    "tax",
    "paid",
    "created_at",
    "placed_at",
    "available",
    "stock",
    "is_admin",
    "admin",
    "currency_rate",
    "$ref",
    "__proto__",
    "constructor",
    "@type",
    "SKU",
    "Name",
    "prototype",
    "quantity2",
    "",
];

/// Values of another type, or out of bounds, by what a good one is.
fn wrong_values(good: &Value) -> Vec<(&'static str, Vec<Value>)> {
    let others = match good {
        Value::String(_) => {
            vec![json!(1), json!(1.5), json!(true), json!([]), json!({}), json!(["a"]), json!({ "a": 1 })]
        }
        _ => vec![
            json!("1"),
            json!(""),
            json!(true),
            json!(null),
            json!([]),
            json!({}),
            json!([1]),
            json!(1.5),
            json!(1.0),
        ],
    };
    let bounds = match good {
        Value::String(_) => vec![
            json!(""),
            json!(" "),
            json!("\u{0}"),
            json!("a\u{0}b"),
            json!("a\u{7}b"),
            json!("a\r\nb"),
            json!("a\u{1b}[31mb"),
            json!("a\u{7f}b"),
            json!("a\u{85}b"),
            json!("x".repeat(5_001)),
            json!("é".repeat(5_001)),
            json!("x".repeat(900_000)),
            json!("\u{200a}"),
        ],
        _ => vec![
            json!(-1_000_001),
            json!(i64::MIN),
            json!(i64::MAX),
            json!(u64::MAX),
            json!(9_007_199_254_740_992_i64),
            json!(1e300),
            json!(-0.0),
            json!(0.1),
        ],
    };
    vec![("a value of another type", others), ("a value out of bounds", bounds)]
}

/// Values as no JSON library would write them.
fn wrong_texts(good: &Value) -> Vec<(&'static str, String)> {
    let numbers = [
        "9223372036854775808",
        "18446744073709551616",
        "1e400",
        "-1e400",
        "1e-400",
        "1E+2",
        "-0",
        "00",
        "01",
        "1.",
        ".5",
        "+1",
        "0x1",
        "NaN",
        "Infinity",
        "-",
        "1_000",
        "1e",
        "--1",
        "\u{661}",
    ];
    let texts = [
        "\"\\ud800\"",
        "\"\\udc00\\ud800\"",
        "\"\\u0000\"",
        "\"\\x41\"",
        "\"\\u12\"",
        "\"\t\"",
        "\"a\nb\"",
        "'a'",
        "\"a",
        "a",
        "undefined",
        "\"\\\"",
        "\"\\ud834\"",
        "`a`",
    ];
    let list: &[&str] = if good.is_string() { &texts } else { &numbers };
    let class = if good.is_string() { "a text that is none" } else { "a number that is none" };
    list.iter().map(|text| (class, (*text).to_owned())).collect()
}

/// The status, and what is wrong with the answer if something is.
async fn ask(shop: &Shop, case: &Case) -> Result<Option<u16>, String> {
    match &case.sent {
        Sent::Request(request) => {
            let response = shop
                .client
                .execute(request.try_clone().unwrap())
                .await
                .map_err(|error| format!("{error:?}"))?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let text = response.text().await.map_err(|error| error.to_string())?;
            if status >= 400 && request.method() != Method::HEAD {
                let kind =
                    headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
                check_problem(status, kind, &text)?;
                if status == 405 && !headers.contains_key("allow") {
                    return Err("405 without Allow".to_owned());
                }
            }
            Ok(Some(status))
        }
        Sent::Bytes(bytes) => {
            let address = shop.base.trim_start_matches("http://");
            let token = shop.staff.as_bytes();
            let bytes = match bytes.windows(5).position(|part| part == b"TOKEN") {
                Some(at) => [&bytes[..at], token, &bytes[at + 5..]].concat(),
                None => bytes.clone(),
            };
            let spoken = async {
                let mut stream = TcpStream::connect(address).await?;
                // A server that has refused already may close before it has read all of it.
                let _sent = stream.write_all(&bytes).await;
                let mut answer = Vec::new();
                let patience = match case.expected {
                    Expected::RefusedOrClosed => Duration::from_millis(300),
                    _ => Duration::from_secs(5),
                };
                let (reading, mut writing) = stream.split();
                let mut reading = reading.take(1 << 20);
                if tokio::time::timeout(patience, reading.read_to_end(&mut answer)).await.is_err() {
                    // It waits for what is missing: there is no more.
                    let _ended = writing.shutdown().await;
                    let _closed = reading.read_to_end(&mut answer).await;
                }
                Ok::<_, std::io::Error>(answer)
            };
            let answer = tokio::time::timeout(Duration::from_secs(40), spoken).await;
            let answer = answer.map_err(|_| "no end".to_owned())?.map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&answer);
            // A length that chance has changed may well leave a second request behind it.
            let by_chance = case.class == "requests with wrong bytes" || case.class == "noise";
            if !by_chance && text.matches("HTTP/1.1 ").count() > 1 {
                return Err(format!("two answers to one request: {text}"));
            }
            Ok(text.split(' ').nth(1).and_then(|status| status.parse().ok()))
        }
    }
}

fn check_problem(status: u16, kind: &str, text: &str) -> Result<(), String> {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    let told = |name: &str| body[name].as_str().is_some_and(|value| !value.is_empty());
    let whole = kind == "application/problem+json"
        && body["status"] == status
        && body["type"].as_str().is_some_and(|kind| kind.starts_with("/problems/"))
        && ["title", "detail", "instance"].into_iter().all(told);
    let leaks = ["panicked", "src/", "sqlx", "SELECT ", "postgres:", "RUST_BACKTRACE"]
        .iter()
        .any(|word| text.contains(word));
    if whole && !leaks { Ok(()) } else { Err(format!("no problem as it should be ({kind}): {text:.300}")) }
}

fn memory_kib(shop: &Shop) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", shop.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn thousands_of_bad_requests_do_no_harm() {
    let shop = Shop::open().await;
    let product = shop.product("LAMP-1", 1_000).await;
    let order = shop.order(&product, 1, "first").await.unwrap().body["id"].as_str().unwrap().to_owned();
    let cancelled = shop.post(&format!("/v1/orders/{order}/cancellation"), json!({})).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.text);

    let analyst = token("analyst", crate::harness::CUSTOMER).await;
    let mut cases = Cases { shop: &shop, product, order, analyst, random: Random(5), all: Vec::new() };
    cases.syntax();
    cases.members();
    cases.texts();
    cases.parameters();
    cases.ids();
    cases.headers();
    cases.transport();
    cases.mutations();
    let all = cases.all;

    let (mut classes, mut wrong, mut before) = (BTreeMap::<&str, usize>::new(), Vec::new(), 0);
    let mut answers = std::pin::pin!(
        futures_util::stream::iter(&all)
            .map(async |case| (case, ask(&shop, case).await))
            .buffer_unordered(AT_ONCE)
    );
    let mut asked = 0;
    while let Some((case, answer)) = answers.next().await {
        let good = match (&answer, case.expected) {
            (Ok(Some(status)), Expected::Status(expected)) => *status == expected,
            (Ok(Some(status)), Expected::Refused | Expected::RefusedOrClosed) => (400..500).contains(status),
            (Ok(Some(status)), Expected::Anything) => *status < 500,
            (Ok(None), expected) => expected == Expected::RefusedOrClosed,
            (Err(_), _) => false,
        };
        if !good {
            wrong.push(format!("{}: {:?} expected, {answer:?} for {}", case.class, case.expected, case.told));
        }
        *classes.entry(case.class).or_default() += 1;
        asked += 1;
        if asked == all.len() / 2 {
            before = memory_kib(&shop);
        }
    }
    let shown: Vec<&String> = wrong.iter().take(40).collect();
    assert!(wrong.is_empty(), "{} of {asked} were answered wrongly: {shown:#?}", wrong.len());
    assert!(classes.len() >= 54 && asked >= 10_000, "{} classes, {asked} cases", classes.len());
    let after = memory_kib(&shop);
    assert!(after < MOST_KIB && after < before + GROWTH_KIB, "{before} KiB before, {after} KiB after");
    assert_eq!(shop.get("/readyz", None, &[]).await.status, 200);
    shop.caught_up().await;
    audit(&shop.pool().await).await;
}

#[tokio::test]
async fn naughty_texts_come_back_as_they_were_sent() {
    let shop = Shop::open().await;
    let (mut kept, mut refused) = (0, 0);
    for (n, text) in NAUGHTY.iter().enumerate() {
        let body =
            json!({ "sku": format!("N-{n}"), "name": text, "price": { "amount": 1, "currency": "EUR" } });
        let made = shop.post("/v1/products", body).await;
        if made.status == 422 {
            refused += 1;
            continue;
        }
        assert_eq!(made.status, 201, "{text:?}: {}", made.text);
        let path = format!("/v1/products/{}", made.body["id"].as_str().unwrap());
        let read = shop.get(&path, None, &[("Tidemark-After", made.header("tidemark-position"))]).await;
        use unicode_normalization::UnicodeNormalization;
        let expected: String = text.trim().nfc().collect();
        assert_eq!(read.body["name"], expected, "{text:?}");
        kept += 1;
    }
    assert!(kept > 100 && refused > 5, "{kept} kept, {refused} refused");
}
