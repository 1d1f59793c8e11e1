//! Each kind of bad input gets its documented problem; nothing is written, nothing panics.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::Shop;

#[tokio::test]
async fn bad_input_is_answered_and_nothing_is_written() {
    let shop = Shop::open().await;
    let lamp = shop.product("LAMP-1", 5).await;
    let pool = shop.pool().await;
    let events = async || {
        sqlx::query_scalar::<_, i64>("SELECT position FROM log.head").fetch_one(&pool).await.unwrap()
    };
    let before = events().await;
    let product = |change: fn(&mut Value)| {
        let mut body = json!({ "sku": "S", "name": "N", "price": { "amount": 1, "currency": "EUR" } });
        change(&mut body);
        body
    };
    let cases = [
        (product(|b| b["sku"] = json!("")), 422, "invalid-value"),
        (product(|b| b["sku"] = json!("x".repeat(65))), 422, "invalid-value"),
        (product(|b| b["name"] = json!("a\u{0}b")), 422, "invalid-value"),
        (product(|b| b["name"] = json!("a\u{7}b")), 422, "invalid-value"),
        (product(|b| b["name"] = json!(7)), 422, "invalid-value"),
        (product(|b| b["price"]["amount"] = json!(-1)), 422, "invalid-value"),
        (product(|b| b["price"]["amount"] = json!(1.5)), 422, "invalid-value"),
        (product(|b| b["price"]["amount"] = json!("1")), 422, "invalid-value"),
        (product(|b| b["price"]["amount"] = json!(u64::MAX)), 422, "invalid-value"),
        (product(|b| b["price"]["amount"] = json!(9_007_199_254_740_992_i64)), 422, "invalid-value"),
        (product(|b| b["price"]["currency"] = json!("eur")), 422, "invalid-value"),
        (product(|b| b["price"]["currency"] = json!("QQQ")), 422, "invalid-value"),
        (product(|b| b["price"]["display"] = json!("1")), 400, "unknown-field"),
        (product(|b| b["id"] = json!("mine")), 400, "unknown-field"),
        (product(|b| b["version"] = json!(1)), 400, "unknown-field"),
        (json!([]), 422, "invalid-value"),
        (json!(null), 422, "invalid-value"),
    ];
    for (body, status, problem) in cases {
        let answer = shop.post("/v1/products", body.clone()).await;
        assert_eq!((answer.status, answer.problem()), (status, problem), "{body}: {}", answer.text);
    }
    let unknown = "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0cff";
    let line = |quantity: Value| json!({ "lines": [{ "product_id": lamp, "quantity": quantity }] });
    let orders = [
        (line(json!(0)), 422, "invalid-value"),
        (line(json!(-1)), 422, "invalid-value"),
        (line(json!(1_000_001)), 422, "invalid-value"),
        (line(json!(u64::MAX)), 422, "invalid-value"),
        (line(json!(1.0)), 422, "invalid-value"),
        (json!({ "lines": [] }), 422, "invalid-value"),
        (json!({ "lines": vec![json!({ "product_id": lamp, "quantity": 1 }); 201] }), 422, "invalid-value"),
        (
            json!({ "lines": vec![json!({ "product_id": lamp, "quantity": 1 }); 10_000] }),
            422,
            "invalid-value",
        ),
        (json!({ "lines": [{ "product_id": "no uuid", "quantity": 1 }] }), 422, "invalid-value"),
        (json!({ "lines": [{ "product_id": unknown, "quantity": 1 }] }), 422, "unknown-product"),
        (json!({ "lines": [{ "product_id": lamp, "quantity": 1, "price": 1 }] }), 400, "unknown-field"),
        (json!({ "lines": [{ "product_id": lamp, "quantity": 6 }] }), 409, "out-of-stock"),
    ];
    for (body, status, problem) in orders {
        let answer = shop.post("/v1/orders", body.clone()).await;
        assert_eq!((answer.status, answer.problem()), (status, problem), "{}", answer.text);
    }

    let url = format!("{}/v1/products", shop.base);
    let raw = async |content_type: &str, body: Vec<u8>| {
        let request =
            shop.client.post(&url).bearer_auth(&shop.staff).header("Content-Type", content_type).body(body);
        let response = request.send().await.unwrap();
        (
            response.status().as_u16(),
            response.json::<Value>().await.unwrap()["type"].as_str().unwrap().to_owned(),
        )
    };
    let json_type = "application/json";
    for body in ["", "{", "{\"sku\":", "nul", "\u{feff}{}", "{} {}", "{'a':1}"] {
        assert_eq!(raw(json_type, body.into()).await, (400, "/problems/malformed-json".to_owned()), "{body}");
    }
    assert_eq!(raw(json_type, b"{\"sku\":\"\xff\"}".to_vec()).await.0, 400);
    assert_eq!(raw(json_type, "[".repeat(100_000).into()).await.0, 400);
    assert_eq!(
        raw(json_type, vec![b' '; 1024 * 1024 + 1]).await,
        (413, "/problems/body-too-large".to_owned())
    );
    assert_eq!(raw("text/plain", b"{}".to_vec()).await.0, 415);
    assert_eq!(raw("application/x-www-form-urlencoded", b"a=b".to_vec()).await.0, 415);

    let staff = Some(shop.staff.as_str());
    let post = |path: String, headers: Vec<(&'static str, String)>, body: Value| {
        let shop = &shop;
        async move {
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            shop.send(Method::POST, &path, staff, &headers, Some(body)).await.unwrap()
        }
    };
    let one = json!({ "lines": [{ "product_id": lamp, "quantity": 1 }] });
    assert_eq!(post("/v1/orders".into(), vec![], one.clone()).await.problem(), "idempotency-key-required");
    for key in ["x".repeat(256), "\"\"".to_owned(), "ü".to_owned()] {
        let answer = post("/v1/orders".into(), vec![("Idempotency-Key", key)], one.clone()).await;
        assert_eq!((answer.status, answer.problem()), (400, "invalid-idempotency-key"));
    }
    for path in [format!("/v1/products/{unknown}/price"), "/v1/products/no-uuid/price".to_owned()] {
        let answer = shop.put(&path, Some(json!({ "price": { "amount": 1, "currency": "EUR" } }))).await;
        assert_eq!((answer.status, answer.problem()), (404, "not-found"), "{path}");
    }
    let malformed = shop
        .send(Method::PUT, &format!("/v1/products/{lamp}/publication"), staff, &[("If-Match", "3")], None)
        .await
        .unwrap();
    assert_eq!((malformed.status, malformed.problem()), (400, "malformed-request"));
    for (path, problem) in [
        ("/v1/products?limit=0", "invalid-parameter"),
        ("/v1/products?limit=101", "invalid-parameter"),
        ("/v1/products?limit=x", "invalid-parameter"),
        ("/v1/products?colour=red", "invalid-parameter"),
        ("/v1/products?sort=id", "invalid-parameter"),
        ("/v1/products?sort=relevance", "invalid-parameter"),
        ("/v1/products?min_price=1e9", "invalid-parameter"),
        ("/v1/products?q=%00", "invalid-parameter"),
        ("/v1/products?cursor=AAAA", "invalid-cursor"),
        ("/v1/products?cursor=%20", "invalid-cursor"),
        ("/v1/orders?status=lost", "invalid-parameter"),
        ("/v1/orders?customer_id=x", "invalid-parameter"),
    ] {
        let answer = shop.get(path, staff, &[]).await;
        assert_eq!((answer.status, answer.problem()), (400, problem), "{path}");
    }
    for after in ["x", "1-", "1-x", "-1"] {
        assert_eq!(shop.get("/v1/products", None, &[("Tidemark-After", after)]).await.status, 400, "{after}");
    }
    let ahead = shop.get("/v1/products", None, &[("Tidemark-After", "1-999999")]).await;
    assert_eq!((ahead.status, ahead.problem(), ahead.header("retry-after")), (503, "view-behind", "1"));
    assert_eq!(shop.get("/v1/nothing", None, &[]).await.problem(), "not-found");
    let method = shop.send(Method::DELETE, "/v1/products", staff, &[], None).await.unwrap();
    assert_eq!((method.status, method.problem()), (405, "method-not-allowed"));
    assert!(method.header("allow").contains("POST"));
    assert_eq!(events().await, before, "nothing was written");

    // A total that no 64-bit number holds, from products that are fine one by one.
    let rich = shop.post("/v1/products", json!({ "sku": "RICH", "name": "R", "price": { "amount": 9_007_199_254_740_991_i64, "currency": "EUR" } })).await;
    let rich = rich.body["id"].as_str().unwrap();
    shop.put(&format!("/v1/products/{rich}/publication"), None).await;
    shop.post(&format!("/v1/products/{rich}/stock-receipts"), json!({ "quantity": 1_000_000 })).await;
    let order =
        shop.post("/v1/orders", json!({ "lines": [{ "product_id": rich, "quantity": 1_000_000 }] })).await;
    assert_eq!((order.status, order.problem()), (422, "amount-overflow"));
    assert_eq!(shop.get("/livez", None, &[]).await.status, 200);
}
