//! Who may do what to whose: every route of the API's document, for seven actors, on their own objects, on those of
//! others and on none.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{Operation, operations};
use crate::harness::{Answer, CUSTOMER, Shop, token, until};

/// Who asks, in the order of the table's columns.
const ACTORS: [&str; 7] = ["anonymous", "owner", "other customer", "staff", "analyst", "operator", "admin"];
const OWNER: usize = 1;
const OTHER: usize = 2;

/// What a route is about, and has to be there before it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    /// Nothing that has an id.
    Nothing,
    /// A product that is not on sale yet.
    Draft,
    /// A product on sale, with stock. It is nobody's.
    Product,
    /// The owner's order, placed.
    Placed,
    /// The owner's order, on its way.
    Shipped,
    /// The owner's account.
    Account,
}

impl Object {
    fn is_somebodys(self) -> bool {
        matches!(self, Self::Placed | Self::Shipped | Self::Account)
    }
}

/// A route, the query that is sent with it, its object, and what each actor is answered when the object is the
/// owner's: anonymous, owner, other customer, staff, analyst, operator, admin.
struct Row(&'static str, &'static str, Object, [u16; 7]);

/// The whole API. A route that is not here fails the test, as does a line without a route.
const TABLE: &[Row] = &[
    Row("GET /v1/products", "", Object::Nothing, [200; 7]),
    Row("GET /v1/products/{id}", "", Object::Product, [200; 7]),
    Row("POST /v1/products", "", Object::Nothing, [401, 403, 403, 201, 403, 403, 201]),
    Row("POST /v1/products/batch", "", Object::Nothing, [401, 403, 403, 200, 403, 403, 200]),
    Row("PUT /v1/products/{id}", "", Object::Product, [401, 403, 403, 200, 403, 403, 200]),
    Row("PUT /v1/products/{id}/price", "", Object::Product, [401, 403, 403, 200, 403, 403, 200]),
    Row("PUT /v1/products/{id}/publication", "", Object::Draft, [401, 403, 403, 200, 403, 403, 200]),
    Row("PUT /v1/products/{id}/retirement", "", Object::Product, [401, 403, 403, 200, 403, 403, 200]),
    Row("GET /v1/products/{id}/stock", "", Object::Product, [401, 403, 403, 200, 200, 403, 200]),
    Row("POST /v1/products/{id}/stock-receipts", "", Object::Product, [401, 403, 403, 201, 403, 403, 201]),
    Row("POST /v1/products/{id}/stock-adjustments", "", Object::Product, [401, 403, 403, 200, 403, 403, 200]),
    Row("GET /v1/orders", "", Object::Nothing, [401, 200, 200, 200, 403, 403, 200]),
    Row("GET /v1/orders", "?customer_id={owner}", Object::Nothing, [401, 200, 403, 200, 403, 403, 200]),
    Row("POST /v1/orders", "", Object::Nothing, [401, 201, 201, 201, 403, 403, 201]),
    Row("GET /v1/orders/{id}", "", Object::Placed, [401, 200, 404, 200, 403, 403, 200]),
    Row("GET /v1/orders/{id}", "?fields=id,status", Object::Placed, [401, 200, 404, 200, 403, 403, 200]),
    Row("POST /v1/orders/{id}/cancellation", "", Object::Placed, [401, 200, 404, 200, 403, 403, 200]),
    Row("POST /v1/orders/{id}/shipment", "", Object::Placed, [401, 403, 403, 200, 403, 403, 200]),
    Row("POST /v1/orders/{id}/delivery", "", Object::Shipped, [401, 403, 403, 200, 403, 403, 200]),
    Row("GET /v1/events", "?to=1", Object::Nothing, [401, 403, 403, 403, 200, 403, 200]),
    Row("GET /v1/audit", "", Object::Nothing, [401, 403, 403, 403, 403, 403, 200]),
    Row("GET /v1/audit", "?resource={owner}", Object::Nothing, [401, 403, 403, 403, 403, 403, 200]),
    Row("GET /v1/security-events", "", Object::Nothing, [401, 403, 403, 403, 403, 403, 200]),
    Row("GET /v1/accounts", "", Object::Nothing, [401, 403, 403, 403, 403, 403, 200]),
    Row("GET /.well-known/jwks.json", "", Object::Nothing, [200; 7]),
    Row("POST /v1/accounts", "", Object::Nothing, [202; 7]),
    Row("POST /v1/accounts/email-verifications", "", Object::Nothing, [410; 7]),
    Row("POST /v1/accounts/email-verifications/requests", "", Object::Nothing, [202; 7]),
    Row("POST /v1/password-resets", "", Object::Nothing, [202; 7]),
    Row("POST /v1/password-resets/completion", "", Object::Nothing, [410; 7]),
    Row("POST /v1/sessions", "", Object::Nothing, [201; 7]),
    Row("POST /v1/sessions/refresh", "", Object::Nothing, [422; 7]),
    // The tokens of the actors are of no session.
    Row("DELETE /v1/sessions/current", "", Object::Nothing, [401, 409, 409, 409, 409, 409, 409]),
    Row("DELETE /v1/sessions", "", Object::Nothing, [401, 204, 204, 204, 204, 204, 204]),
    Row("GET /v1/accounts/{id}", "", Object::Account, [401, 200, 404, 200, 404, 404, 200]),
    Row("GET /v1/accounts/{id}/sessions", "", Object::Account, [401, 200, 404, 200, 404, 404, 200]),
    Row("GET /v1/accounts/{id}/export", "", Object::Account, [401, 200, 404, 404, 404, 404, 200]),
    Row("PUT /v1/accounts/{id}/profile", "", Object::Account, [401, 204, 404, 404, 404, 404, 204]),
    Row("PUT /v1/accounts/{id}/password", "", Object::Account, [401, 204, 404, 404, 404, 404, 404]),
    Row("POST /v1/accounts/{id}/addresses", "", Object::Account, [401, 201, 404, 404, 404, 404, 201]),
    // No account has this address.
    Row(
        "PUT /v1/accounts/{id}/addresses/{address_id}",
        "",
        Object::Account,
        [401, 404, 404, 404, 404, 404, 404],
    ),
    Row(
        "DELETE /v1/accounts/{id}/addresses/{address_id}",
        "",
        Object::Account,
        [401, 404, 404, 404, 404, 404, 404],
    ),
    Row("POST /v1/accounts/{id}/second-factor", "", Object::Account, [401, 201, 404, 404, 404, 404, 404]),
    Row(
        "PUT /v1/accounts/{id}/second-factor/confirmation",
        "",
        Object::Account,
        [401, 422, 404, 404, 404, 404, 404],
    ),
    Row(
        "POST /v1/accounts/{id}/second-factor/removal",
        "",
        Object::Account,
        [401, 204, 404, 404, 404, 404, 404],
    ),
    Row("PUT /v1/accounts/{id}/role", "", Object::Account, [401, 403, 403, 403, 403, 403, 204]),
    Row("POST /v1/accounts/{id}/deactivation", "", Object::Account, [401, 204, 404, 204, 404, 404, 204]),
    Row("DELETE /v1/accounts/{id}/deactivation", "", Object::Account, [401, 403, 403, 204, 403, 403, 204]),
    // Owners show their password; without one they are told so. The last line: the admin erases.
    Row("POST /v1/accounts/{id}/erasure", "", Object::Account, [401, 422, 404, 404, 404, 404, 204]),
];

/// Of both accounts.
const PASSWORD: &str = "correct horse battery staple";
const EMAILS: [&str; 2] = ["owner@example.org", "other@example.org"];

/// A second factor that no account has.
const FACTOR_ID: &str = "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0cff";

/// A body that the route takes: a refusal is never about the body.
fn body(route: &str, lamp: &str) -> Option<Value> {
    let product = || {
        let sku = Uuid::now_v7().simple().to_string();
        json!({ "sku": sku, "name": "A thing", "price": { "amount": 5, "currency": "EUR" } })
    };
    match route {
        "POST /v1/products" => Some(product()),
        "POST /v1/products/batch" => Some(json!({ "items": [product()] })),
        "PUT /v1/products/{id}" => Some(json!({ "name": "Another thing" })),
        "PUT /v1/products/{id}/price" => Some(json!({ "price": { "amount": 7, "currency": "EUR" } })),
        "POST /v1/products/{id}/stock-receipts" => Some(json!({ "quantity": 3 })),
        "POST /v1/products/{id}/stock-adjustments" => Some(json!({ "delta": 1, "reason": "counted" })),
        "POST /v1/orders" => Some(json!({ "lines": [{ "product_id": lamp, "quantity": 1 }] })),
        "POST /v1/orders/{id}/cancellation" => Some(json!({ "reason": "too late" })),
        "POST /v1/accounts" => {
            let email = format!("{}@example.org", Uuid::now_v7().simple());
            Some(json!({ "email": email, "password": PASSWORD }))
        }
        "POST /v1/accounts/email-verifications" => Some(json!({ "token": "of no mail" })),
        "POST /v1/accounts/email-verifications/requests" | "POST /v1/password-resets" => {
            Some(json!({ "email": "nobody@example.org" }))
        }
        "POST /v1/password-resets/completion" => Some(json!({ "token": "of no mail", "password": PASSWORD })),
        "POST /v1/sessions" => Some(json!({ "email": EMAILS[0], "password": PASSWORD })),
        "POST /v1/sessions/refresh" => Some(json!({ "refresh_token": 7 })),
        "PUT /v1/accounts/{id}/profile" => Some(json!({ "name": "Ada" })),
        "PUT /v1/accounts/{id}/password" => {
            Some(json!({ "current_password": PASSWORD, "password": PASSWORD }))
        }
        "POST /v1/accounts/{id}/addresses" | "PUT /v1/accounts/{id}/addresses/{address_id}" => {
            Some(json!({ "name": "Ada", "line1": "Lane 1", "city": "London", "country": "GB" }))
        }
        "POST /v1/accounts/{id}/second-factor" | "POST /v1/accounts/{id}/second-factor/removal" => {
            Some(json!({ "password": PASSWORD }))
        }
        "PUT /v1/accounts/{id}/second-factor/confirmation" => {
            Some(json!({ "factor_id": FACTOR_ID, "one_time_code": "123456" }))
        }
        "PUT /v1/accounts/{id}/role" => Some(json!({ "role": "staff" })),
        "POST /v1/accounts/{id}/deactivation" => Some(json!({ "reason": "asked for" })),
        _ => None,
    }
}

/// Whose object a cell is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Owners,
    Others,
    /// An id that nothing has.
    Nobodys,
}

/// What a cell is to be answered.
fn expected(Row(_, _, object, answers): &Row, actor: usize, whose: Whose) -> u16 {
    // The other customer is to the other's order what the owner is to the owner's.
    let actor = match (whose, actor) {
        (Whose::Others, OWNER) => OTHER,
        (Whose::Others, OTHER) => OWNER,
        _ => actor,
    };
    let answer = answers[actor];
    let is_let_in = answer < 400 || answer == 422;
    if whose == Whose::Nobodys && *object != Object::Nothing && is_let_in { 404 } else { answer }
}

struct Walk {
    shop: Shop,
    tokens: [Option<String>; 7],
    lamp: String,
    head: sqlx::PgPool,
    /// The ids of the owner's and of the other customer's account.
    accounts: [String; 2],
}

impl Walk {
    async fn begin() -> Self {
        let shop = Shop::open().await;
        let staff = "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c0f";
        let accounts = [account(&shop, EMAILS[0]).await, account(&shop, EMAILS[1]).await];
        let tokens = [
            None,
            Some(token("customer", &accounts[0]).await),
            Some(token("customer", &accounts[1]).await),
            Some(token("staff", staff).await),
            Some(token("analyst", staff).await),
            Some(token("operator", staff).await),
            Some(token("admin", staff).await),
        ];
        let lamp = shop.product("LAMP", 1_000_000).await;
        let head = shop.pool().await;
        Self { shop, tokens, lamp, head, accounts }
    }

    /// Where the log stands.
    async fn head(&self) -> i64 {
        sqlx::query_scalar("SELECT position FROM log.head").fetch_one(&self.head).await.unwrap()
    }

    /// The same request with a key of its own, and reading what was written before it.
    async fn ask(&self, actor: usize, method: Method, path: &str, body: Option<Value>) -> Answer {
        let (key, after) = (Uuid::now_v7().to_string(), format!("1-{}", self.head().await));
        let headers = [("Idempotency-Key", key.as_str()), ("Tidemark-After", after.as_str())];
        self.shop.send(method, path, self.tokens[actor].as_deref(), &headers, body).await.unwrap()
    }

    /// Makes what a cell is about.
    async fn object(&self, object: Object, customer: usize) -> String {
        let made = |answer: Answer| {
            assert!(answer.status < 300, "{}", answer.text);
            answer.body["id"].as_str().unwrap().to_owned()
        };
        let staff = 3;
        match object {
            Object::Nothing => String::new(),
            Object::Account => self.accounts[customer - OWNER].clone(),
            Object::Draft => {
                let body = body("POST /v1/products", "");
                made(self.ask(staff, Method::POST, "/v1/products", body).await)
            }
            Object::Product => self.shop.product(&Uuid::now_v7().simple().to_string(), 5).await,
            Object::Placed | Object::Shipped => {
                let body = body("POST /v1/orders", &self.lamp);
                let id = made(self.ask(customer, Method::POST, "/v1/orders", body).await);
                if object == Object::Shipped {
                    let path = format!("/v1/orders/{id}/shipment");
                    made(self.ask(staff, Method::POST, &path, None).await);
                }
                id
            }
        }
    }

    /// One cell: the answer is the expected one, and who is refused has changed nothing.
    async fn cell(&self, operation: &Operation, row: &Row, actor: usize, whose: Whose) -> Answer {
        let Row(route, query, object, _) = row;
        let id = match whose {
            Whose::Owners => self.object(*object, OWNER).await,
            Whose::Others => self.object(*object, OTHER).await,
            Whose::Nobodys => Uuid::now_v7().to_string(),
        };
        let path = operation.path_with(&id) + &query.replace("{owner}", &self.accounts[0]);
        let before = self.head().await;
        let mut answer = self.ask(actor, operation.method(), &path, body(route, &self.lamp)).await;
        let expected = expected(row, actor, whose);
        let cell = format!("{route}{query} as {} on {whose:?}", ACTORS[actor]);
        assert_eq!(answer.status, expected, "{cell}: {}", answer.text);
        let problem = match expected {
            401 => Some("unauthenticated"),
            403 => Some("forbidden"),
            404 => Some("not-found"),
            _ => None,
        };
        if let Some(problem) = problem {
            assert_eq!(answer.problem(), problem, "{cell}");
            assert_eq!(self.head().await, before, "{cell} changed something");
        }
        assert_eq!(answer.header("www-authenticate"), if expected == 401 { "Bearer" } else { "" }, "{cell}");
        // For comparing: what must differ from one answer to another.
        let instance = answer.body["instance"].as_str().unwrap_or_default().to_owned();
        answer.text = answer.text.replace(&instance, "INSTANCE").replace(&id, "ID");
        answer
    }
}

/// Registers an account and verifies its address.
async fn account(shop: &Shop, email: &str) -> String {
    let body = json!({ "email": email, "password": PASSWORD });
    let told = shop.send(Method::POST, "/v1/accounts", None, &[], Some(body.clone())).await.unwrap();
    assert_eq!(told.status, 202, "{}", told.text);
    crate::accounts::verify(shop, email).await;
    let answer = shop.send(Method::POST, "/v1/sessions", None, &[], Some(body)).await.unwrap();
    answer.body["account_id"].as_str().unwrap().to_owned()
}

/// Names and values, in order, without what tells one moment from another.
fn comparable(headers: &HeaderMap) -> Vec<(String, String)> {
    let told = headers.iter().filter(|(name, _)| *name != "date");
    let mut told: Vec<_> =
        told.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    told.sort();
    told
}

#[tokio::test]
async fn every_route_lets_in_whom_the_table_says_and_nobody_else() {
    let walk = Walk::begin().await;
    let documented: BTreeMap<String, Operation> =
        operations(&walk.shop).await.into_iter().map(|operation| (operation.name(), operation)).collect();
    let listed: BTreeSet<&str> = TABLE.iter().map(|row| row.0).collect();
    let routes: BTreeSet<&str> = documented.keys().map(String::as_str).collect();
    assert_eq!(routes, listed, "each route of the document has a line in the table, and each line a route");

    let mut cells = 0;
    for row in TABLE {
        let operation = &documented[row.0];
        assert_eq!(operation.is_protected, row.3[0] == 401, "what the document says of {}", row.0);
        let whose: &[Whose] = match row.2 {
            Object::Nothing => &[Whose::Owners],
            object if object.is_somebodys() => &[Whose::Owners, Whose::Others, Whose::Nobodys],
            _ => &[Whose::Owners, Whose::Nobodys],
        };
        for (actor, name) in ACTORS.iter().enumerate() {
            let mut answers = Vec::new();
            for &whose in whose {
                let answer = walk.cell(operation, row, actor, whose).await;
                cells += 1;
                // Who is let in may be told more.
                if answer.status >= 400 && answer.status != 422 {
                    answers.push((whose, answer.text, comparable(&answer.headers)));
                }
            }
            // Somebody else's object and none at all are one answer, to the letter.
            for (whose, text, headers) in answers.iter().skip(1) {
                let about = format!("{} as {name}: {whose:?}, {:?}", row.0, answers[0].0);
                assert_eq!((text, headers), (&answers[0].1, &answers[0].2), "{about}");
            }
        }
    }
    assert!(cells >= 7 * TABLE.len());
}

#[tokio::test]
async fn lists_show_customers_their_own_orders_and_nothing_of_others() {
    let walk = Walk::begin().await;
    let (own, others) = (walk.object(Object::Placed, OWNER).await, walk.object(Object::Placed, OTHER).await);
    let seen = async |actor, query: &str| {
        let answer = walk.ask(actor, Method::GET, &format!("/v1/orders{query}"), None).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let items = answer.body["items"].as_array().unwrap().clone();
        items.iter().map(|order| order["id"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    for query in ["", "?status=placed", "?limit=100&fields=id"] {
        assert_eq!(seen(OWNER, query).await, BTreeSet::from([own.clone()]), "{query}");
        assert_eq!(seen(OTHER, query).await, BTreeSet::from([others.clone()]), "{query}");
        assert_eq!(seen(3, query).await, BTreeSet::from([own.clone(), others.clone()]), "{query}");
    }
    // A cursor of the staff's list, which goes over everybody's orders, gives a customer no more than without it.
    let page = walk.ask(3, Method::GET, "/v1/orders?limit=1", None).await;
    let cursor = page.body["next_cursor"].as_str().unwrap();
    let foreign = seen(OTHER, &format!("?limit=1&cursor={cursor}")).await;
    assert!(!foreign.contains(&own), "{foreign:?}");
}

#[tokio::test]
async fn a_kept_body_is_not_shown_to_whom_it_does_not_belong() {
    let walk = Walk::begin().await;
    let path = format!("/v1/orders/{}", walk.object(Object::Placed, OWNER).await);
    let first = walk.ask(OWNER, Method::GET, &path, None).await;
    assert_eq!(first.status, 200);
    assert!(first.header("cache-control").contains("private") || first.header("cache-control") == "no-store");
    let tag = first.header("etag").to_owned();
    for _ in 0..3 {
        // From the process's memory now, and asked for as one who has seen it before.
        let headers = [("If-None-Match", tag.as_str())];
        let send = |token| walk.shop.get(&path, token, &headers);
        assert_eq!(send(walk.tokens[OWNER].as_deref()).await.status, 304);
        assert_eq!(send(walk.tokens[OTHER].as_deref()).await.status, 404);
        assert_eq!(send(None).await.status, 401);
    }
}

#[tokio::test]
async fn nobody_gets_in_by_another_method_or_by_saying_who_they_are() {
    let walk = Walk::begin().await;
    let id = walk.object(Object::Placed, OWNER).await;
    let before = walk.head().await;
    for operation in operations(&walk.shop).await.iter().filter(|operation| operation.is_protected) {
        let path = operation.path_with(&id);
        if operation.method == "GET" {
            let head = walk.shop.client.head(format!("{}{path}", walk.shop.base)).send().await.unwrap();
            assert_eq!(head.status(), StatusCode::UNAUTHORIZED, "HEAD {path}");
        }
        for (name, value) in [
            ("X-Forwarded-User", CUSTOMER),
            ("X-User-Id", CUSTOMER),
            ("X-Role", "admin"),
            ("X-Forwarded-For", "127.0.0.1"),
            ("X-Original-URL", "/v1/products"),
            ("X-Rewrite-URL", "/v1/products"),
            ("X-HTTP-Method-Override", "GET"),
            ("X-HTTP-Method", "GET"),
            ("X-Method-Override", "GET"),
            ("Cookie", "access_token=admin; role=admin"),
        ] {
            let answer = walk.shop.send(operation.method(), &path, None, &[(name, value)], None).await;
            assert_eq!(answer.unwrap().status, 401, "{} with {name}", operation.name());
        }
    }
    // What another method would do is not done because a header asks for it.
    let cancel = [("X-HTTP-Method-Override", "PUT"), ("Idempotency-Key", "k")];
    let answer = walk
        .shop
        .send(Method::GET, &format!("/v1/orders/{id}/cancellation"), Some(&walk.shop.staff), &cancel, None)
        .await
        .unwrap();
    assert_eq!((answer.status, answer.problem()), (405, "method-not-allowed"));
    assert_eq!(walk.head().await, before, "nothing was done");
}

#[tokio::test]
async fn reading_writes_nothing() {
    let walk = Walk::begin().await;
    let id = walk.object(Object::Placed, OWNER).await;
    let counts = async || {
        let sql = "SELECT (SELECT position FROM log.head), (SELECT count(*) FROM accounts.sessions), \
                   (SELECT count(*) FROM accounts.refresh_tokens), (SELECT count(*) FROM accounts.mails), \
                   (SELECT count(*) FROM vault.keys), (SELECT count(*) FROM log.answers)";
        let row: (i64, i64, i64, i64, i64, i64) = sqlx::query_as(sql).fetch_one(&walk.head).await.unwrap();
        row
    };
    // What mails are still to be written is asked for by now.
    until("the accounts' mails are written", async || (counts().await.3 >= 2).then_some(())).await;
    let before = counts().await;
    let mut tried = 0;
    for operation in operations(&walk.shop).await.iter().filter(|operation| operation.method == "GET") {
        for id in [&id, &walk.accounts[0], &walk.lamp] {
            let path = operation.path_with(id).replace("follow=true", "follow=false");
            for actor in 0..ACTORS.len() {
                for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
                    walk.ask(actor, method, &path, None).await;
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 200, "{tried}");
    assert_eq!(counts().await, before);
}

#[tokio::test]
async fn no_address_holds_a_secret() {
    let shop = Shop::open().await;
    let document = shop.get("/openapi.json", None, &[]).await.body;
    let mut parameters = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                if parameter["in"] == "header" {
                    continue;
                }
                let name = parameter["name"].as_str().unwrap().to_lowercase();
                for secret in
                    ["token", "password", "secret", "email", "phone", "name", "code", "session", "key"]
                {
                    assert!(!name.contains(secret), "{method} {path}: {name}");
                }
                parameters += 1;
            }
        }
    }
    assert!(parameters > 20, "{parameters}");
    // And a token that is put there all the same is none.
    for name in ["access_token", "token", "authorization"] {
        let answer = shop.get(&format!("/v1/orders?{name}={}", shop.staff), None, &[]).await;
        assert!([400, 401].contains(&answer.status), "{name}: {}", answer.text);
    }
}
