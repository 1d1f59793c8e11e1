//! Who may do what, and whose idempotency key it is.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Shop, token, until};

#[tokio::test]
async fn each_role_does_its_own_and_nothing_else() {
    let shop = Shop::open().await;
    let subject = "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c77";
    let id = "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c78";
    let routes = [
        (Method::POST, "/v1/products".to_owned(), "staff"),
        (Method::POST, "/v1/products/batch".to_owned(), "staff"),
        (Method::PUT, format!("/v1/products/{id}"), "staff"),
        (Method::PUT, format!("/v1/products/{id}/price"), "staff"),
        (Method::PUT, format!("/v1/products/{id}/publication"), "staff"),
        (Method::PUT, format!("/v1/products/{id}/retirement"), "staff"),
        (Method::POST, format!("/v1/products/{id}/stock-receipts"), "staff"),
        (Method::POST, format!("/v1/products/{id}/stock-adjustments"), "staff"),
        (Method::GET, format!("/v1/products/{id}/stock"), "staff analyst"),
        (Method::POST, "/v1/orders".to_owned(), "customer staff"),
        (Method::GET, "/v1/orders".to_owned(), "customer staff"),
        (Method::GET, format!("/v1/orders/{id}"), "customer staff"),
        (Method::POST, format!("/v1/orders/{id}/cancellation"), "customer staff"),
        (Method::POST, format!("/v1/orders/{id}/shipment"), "staff"),
        (Method::POST, format!("/v1/orders/{id}/delivery"), "staff"),
        (Method::GET, "/v1/events?to=1".to_owned(), "analyst"),
    ];
    let forged = format!("{}x", token("admin", subject).await);
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJpc3MiOiJ0aWRlbWFyayIsInN1YiI6IjAxOTBiNmEyLThjNWUtN2MxMS1iMGRlLTFmMGU5YTdiMGM3NyIsInJvbGUiOiJhZG1pbiIsImlhdCI6MSwiZXhwIjo5OTk5OTk5OTk5OX0.";
    for (method, path, allowed) in &routes {
        let ask = |token: Option<String>| {
            let (shop, method, path) = (&shop, method.clone(), path.clone());
            let body = (method != Method::GET).then(|| json!({ "made": "up" }));
            async move {
                shop.send(method, &path, token.as_deref(), &[("Idempotency-Key", "k")], body).await.unwrap()
            }
        };
        for token in [None, Some(forged.clone()), Some(none.to_owned()), Some("x".to_owned())] {
            let answer = ask(token).await;
            assert_eq!((answer.status, answer.problem()), (401, "unauthenticated"), "{method} {path}");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
        for role in ["customer", "staff", "analyst", "operator", "admin"] {
            let answer = ask(Some(token(role, subject).await)).await;
            let may = role == "admin" || allowed.split(' ').any(|name| name == role);
            let refused = answer.status == 403 || answer.status == 401;
            // The body is read before the role is looked at, on some routes: then it is what is complained of.
            let by_body = answer.status == 400 && !may;
            assert!(
                refused != may || by_body,
                "{method} {path} as {role}: {} {}",
                answer.status,
                answer.text
            );
        }
    }
    let expired = crate::harness::tidemark()
        .args(["token", "--role", "admin", "--ttl", "0s", "--data-dir"])
        .arg(shop.data.path())
        .output()
        .await
        .unwrap();
    let expired = String::from_utf8(expired.stdout).unwrap();
    assert_eq!(shop.get("/v1/orders", Some(expired.trim()), &[]).await.status, 401);
}

#[tokio::test]
async fn an_idempotency_key_is_of_one_actor_at_one_route() {
    const KEY: [(&str, &str); 1] = [("Idempotency-Key", "everybodys")];
    let shop = Shop::open().await;
    let (one, other) = (shop.product("ONE", 10).await, shop.product("OTHER", 10).await);
    let post = async |path: &str, by: &str, body: &Value| {
        shop.send(Method::POST, path, Some(by), &KEY, Some(body.clone())).await.unwrap()
    };
    let somebody_else = token("customer", "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c99").await;
    let customers = [&shop.customer, &somebody_else];
    let order = json!({ "lines": [{ "product_id": one, "quantity": 1 }] });
    let mut placed = Vec::new();
    for customer in customers {
        let answer = post("/v1/orders", customer, &order).await;
        assert_eq!((answer.status, answer.header("idempotency-replayed")), (201, ""), "{}", answer.text);
        placed.push(answer);
    }
    assert_ne!(placed[0].body["id"], placed[1].body["id"]);
    for (customer, first) in customers.into_iter().zip(&placed) {
        let again = post("/v1/orders", customer, &order).await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, "true"), "{}", again.text);
        assert_eq!(again.body, first.body, "to each their own");
    }

    // Of one actor: at routes that differ, and at one route for what differs.
    let new = json!({ "sku": "NEW", "name": "New", "price": { "amount": 1, "currency": "EUR" } });
    let units = json!({ "quantity": 3 });
    let (to_one, to_other) =
        (format!("/v1/products/{one}/stock-receipts"), format!("/v1/products/{other}/stock-receipts"));
    let staff = shop.staff.as_str();
    let mut after = String::new();
    for (path, body) in [("/v1/products", &new), (to_one.as_str(), &units), (to_other.as_str(), &units)] {
        let answer = post(path, staff, body).await;
        assert_eq!(
            (answer.status, answer.header("idempotency-replayed")),
            (201, ""),
            "{path}: {}",
            answer.text
        );
        answer.header("tidemark-position").clone_into(&mut after);
    }
    let again = post(&to_one, staff, &units).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, "true"), "{}", again.text);
    for (product, available) in [(one, 10 - 2 + 3), (other, 10 + 3)] {
        let read = shop.get(&format!("/v1/products/{product}"), None, &[("Tidemark-After", &after)]).await;
        assert_eq!(read.body["available"], available, "{}", read.text);
    }
}

#[tokio::test]
async fn an_idempotency_key_is_free_again_after_a_day() {
    let shop = Shop::open().await;
    let product = shop.product("DAILY", 10).await;
    let pool = shop.pool().await;
    // As if it were later.
    let later = async |hours: i32| {
        sqlx::query("UPDATE log.answers SET created_at = created_at - make_interval(hours => $1)")
            .bind(hours)
            .execute(&pool)
            .await
            .unwrap();
    };
    let order = async |shop: &Shop, units: i64, replayed: &str| {
        let answer = shop.order(&product, units, "daily").await.unwrap();
        assert_eq!(
            (answer.status, answer.header("idempotency-replayed")),
            (201, replayed),
            "{}",
            answer.text
        );
        answer.body["id"].as_str().unwrap().to_owned()
    };
    let first = order(&shop, 1, "").await;
    later(23).await;
    assert_eq!(order(&shop, 1, "true").await, first);
    later(2).await;
    let second = order(&shop, 1, "").await;
    assert_ne!(second, first);
    assert_eq!(order(&shop, 1, "true").await, second, "kept for another day");
    // For another request, too, and by a process that has not seen the key.
    let other = Shop::on(&shop.url).await;
    later(25).await;
    let third = order(&other, 2, "").await;
    assert_eq!(order(&shop, 2, "true").await, third);
    let placed: i64 = sqlx::query_scalar("SELECT count(*) FROM log.events WHERE event_type = 'OrderPlaced'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(placed, 3);
    // Nobody asks for it again.
    later(25).await;
    until("the answers are forgotten", async || {
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM log.answers").fetch_one(&pool).await.unwrap();
        (left == 0).then_some(())
    })
    .await;
}
