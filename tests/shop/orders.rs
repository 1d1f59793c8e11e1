//! The whole way of an order, as a client sees it.

use serde_json::json;

use crate::harness::{Shop, audit, token};

#[tokio::test]
async fn an_order_is_placed_read_back_and_called_off() {
    let shop = Shop::open().await;
    let lamp = shop.product("LAMP-1", 5).await;
    let placed = shop.order(&lamp, 2, "first").await.unwrap();
    assert_eq!(placed.status, 201, "{}", placed.text);
    assert_eq!(placed.body["status"], "placed");
    assert_eq!(placed.body["total"], json!({ "amount": 3_998, "currency": "EUR" }));
    assert_eq!(placed.body["version"], 1);
    let id = placed.body["id"].as_str().unwrap();
    assert_eq!(placed.header("location"), format!("/v1/orders/{id}"));
    let position = placed.header("tidemark-position").to_owned();
    assert_eq!(position, format!("1-{}", placed.body["position"]));

    // Read your own writes, in the order, in the list, and in the product.
    let after = [("Tidemark-After", position.as_str())];
    let read = shop.get(&format!("/v1/orders/{id}"), Some(&shop.customer), &after).await;
    assert_eq!(read.status, 200, "{}", read.text);
    assert_eq!(read.body["lines"][0]["amount"], 3_998);
    let list = shop.get("/v1/orders?status=placed", Some(&shop.customer), &after).await;
    assert_eq!(list.body["items"][0]["id"], id);
    let product = shop.get(&format!("/v1/products/{lamp}"), None, &after).await;
    assert_eq!(product.body["available"], 3);
    assert_eq!(product.body["version"], 2);

    // The same intent again is the same order; another under its key is a mistake.
    let again = shop.order(&lamp, 2, "first").await.unwrap();
    assert_eq!((again.status, &again.body), (201, &placed.body));
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.header("tidemark-position"), position);
    assert_eq!(shop.order(&lamp, 1, "first").await.unwrap().problem(), "idempotency-key-reused");

    let short = shop.order(&lamp, 4, "second").await.unwrap();
    assert_eq!((short.status, short.problem()), (409, "out-of-stock"));
    assert_eq!(short.body["errors"][0]["pointer"], "/lines/0");
    // A refusal had no effect and is decided anew.
    shop.post(&format!("/v1/products/{lamp}/stock-receipts"), json!({ "quantity": 1 })).await;
    assert_eq!(shop.order(&lamp, 4, "second").await.unwrap().status, 201);

    // Another customer's order is as good as none.
    let other = token("customer", "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c99").await;
    assert_eq!(shop.get(&format!("/v1/orders/{id}"), Some(&other), &after).await.status, 404);
    let path = format!("/v1/orders/{id}/cancellation");
    let key = [("Idempotency-Key", "cancel")];
    let foreign = shop.send(reqwest::Method::POST, &path, Some(&other), &key, None).await.unwrap();
    assert_eq!(foreign.status, 404);

    let cancelled = shop
        .send(reqwest::Method::POST, &path, Some(&shop.customer), &key, Some(json!({ "reason": "twice" })))
        .await
        .unwrap();
    assert_eq!((cancelled.status, &cancelled.body["status"]), (200, &json!("cancelled")));
    let after = [("Tidemark-After", cancelled.header("tidemark-position"))];
    let read = shop.get(&format!("/v1/orders/{id}"), Some(&shop.customer), &after).await;
    assert_eq!(
        (&read.body["status"], &read.body["cancellation_reason"]),
        (&json!("cancelled"), &json!("twice"))
    );
    assert_eq!(shop.get(&format!("/v1/products/{lamp}"), None, &after).await.body["available"], 2);
    let shipped = shop.post(&format!("/v1/orders/{id}/shipment"), json!(null)).await;
    assert_eq!((shipped.status, shipped.problem()), (409, "state-conflict"));
    shop.caught_up().await;
    audit(&shop.pool().await).await;
}

#[tokio::test]
async fn versions_guard_changes_and_batches_answer_item_by_item() {
    let shop = Shop::open().await;
    let lamp = shop.product("LAMP-1", 0).await;
    let path = format!("/v1/products/{lamp}/price");
    let price = |amount: i64| Some(json!({ "price": { "amount": amount, "currency": "EUR" } }));
    let put = |version: &'static str, amount| {
        let (shop, path) = (&shop, &path);
        async move {
            shop.send(reqwest::Method::PUT, path, Some(&shop.staff), &[("If-Match", version)], price(amount))
                .await
                .unwrap()
        }
    };
    let stale = put("\"1\"", 5).await;
    assert_eq!((stale.status, stale.problem()), (412, "version-mismatch"));
    assert_eq!(put("\"7\"", 5).await.status, 412);
    let changed = put("\"2\"", 5).await;
    assert_eq!((changed.status, &changed.body["version"]), (200, &json!(3)));
    // The entity tag of the product is good for If-Match, too.
    let after = [("Tidemark-After", changed.header("tidemark-position"))];
    let read = shop.get(&format!("/v1/products/{lamp}"), None, &after).await;
    let tag = read.header("etag").to_owned();
    let same = shop.get(&format!("/v1/products/{lamp}"), None, &[("If-None-Match", &tag)]).await;
    assert_eq!((same.status, same.text.as_str()), (304, ""));
    let with_tag = shop
        .send(reqwest::Method::PUT, &path, Some(&shop.staff), &[("If-Match", &tag)], price(6))
        .await
        .unwrap();
    assert_eq!(with_tag.status, 200, "{}", with_tag.text);

    let item = |sku: &str| json!({ "sku": sku, "name": "x", "price": { "amount": 1, "currency": "EUR" } });
    let items = json!({ "items": [item("B-1"), item("LAMP-1"), item("B-2"), item("B-1")] });
    let key = [("Idempotency-Key", "batch")];
    let send = || {
        shop.send(reqwest::Method::POST, "/v1/products/batch", Some(&shop.staff), &key, Some(items.clone()))
    };
    let batch = send().await.unwrap();
    let statuses: Vec<i64> =
        batch.body["items"].as_array().unwrap().iter().map(|i| i["status"].as_i64().unwrap()).collect();
    assert_eq!((batch.status, statuses), (200, vec![201, 409, 201, 409]));
    assert_eq!(batch.body["items"][1]["problem"]["type"], "/problems/sku-taken");
    let again = send().await.unwrap();
    assert_eq!(again.body, batch.body, "mixed answers are kept, too");
    let many = json!({ "items": (0..1_001).map(|n| item(&n.to_string())).collect::<Vec<_>>() });
    assert_eq!(shop.post("/v1/products/batch", many).await.problem(), "invalid-value");
}

#[tokio::test]
async fn ten_buyers_of_one_unit_and_a_thousand_orders_of_a_hot_product() {
    let shop = std::sync::Arc::new(Shop::open().await);
    let lamp = shop.product("HOT", 300).await;
    let mut buyers = tokio::task::JoinSet::new();
    for n in 0..400 {
        let (shop, lamp) = (std::sync::Arc::clone(&shop), lamp.clone());
        buyers.spawn(async move { shop.order(&lamp, 1, &format!("buyer-{n}")).await.unwrap().status });
    }
    let statuses = buyers.join_all().await;
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 300, "every unit is sold once");
    assert_eq!(
        statuses.iter().filter(|status| **status == 409).count(),
        100,
        "and nobody is told anything else"
    );
    shop.caught_up().await;
    audit(&shop.pool().await).await;
}
