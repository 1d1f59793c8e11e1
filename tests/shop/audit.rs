//! Who did what from where: acts, security events, accounts, for admins.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tidemark_events::log::{Filter, Log, connect_options};
use uuid::Uuid;

use crate::accounts::{PASSWORD, log_in, post, put, register, session};
use crate::harness::{CUSTOMER, Postgres, Shop, tidemark, token, until};

const STAFF: &str = "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c0f";
const ADMIN: &str = "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0cad";

/// A shop behind a proxy that it trusts.
async fn behind_a_proxy(url: &str) -> Shop {
    let settings = [("DATABASE_URL", url), ("TIDEMARK_TRUSTED_PROXIES", "127.0.0.1")];
    Shop::part("up", url, &settings).await
}

/// The items of a list, page by page, as the admin sees it when it has come to the log's end.
async fn list(shop: &Shop, path: &str) -> Vec<Value> {
    let admin = token("admin", ADMIN).await;
    let head: i64 =
        sqlx::query_scalar("SELECT position FROM log.head").fetch_one(&shop.pool().await).await.unwrap();
    let (mut items, mut path) = (Vec::new(), path.to_owned());
    loop {
        let page = shop.get(&path, Some(&admin), &[("Tidemark-After", &format!("1-{head}"))]).await;
        assert_eq!(page.status, 200, "{path}: {}", page.text);
        assert_eq!(page.header("cache-control"), "no-store");
        items.extend(page.body["items"].as_array().unwrap().iter().cloned());
        if page.body["next_cursor"].is_null() {
            return items;
        }
        path = page.header("link").trim_start_matches('<').split('>').next().unwrap().to_owned();
    }
}

fn texts<'a>(items: &'a [Value], name: &str) -> Vec<&'a str> {
    items.iter().map(|item| item[name].as_str().unwrap_or("-")).collect()
}

async fn from(
    shop: &Shop,
    address: &str,
    method: Method,
    path: &str,
    token: &str,
    body: Option<Value>,
) -> Value {
    let key = Uuid::now_v7().to_string();
    let headers = [("X-Forwarded-For", address), ("Idempotency-Key", key.as_str())];
    let answer = shop.send(method, path, Some(token), &headers, body).await.unwrap();
    assert!(answer.status < 300, "{path}: {}", answer.text);
    answer.body
}

#[tokio::test]
async fn who_did_what_from_where_is_there_for_admins() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let (trusting, plain) = (behind_a_proxy(&url).await, Shop::on(&url).await);
    let product = json!({ "sku": "AUDIT-1", "name": "A thing", "price": { "amount": 5, "currency": "EUR" } });
    let (post, staff) = (Method::POST, trusting.staff.as_str());
    let made = from(&trusting, "203.0.113.77", post.clone(), "/v1/products", staff, Some(product)).await;
    let id = made["id"].as_str().unwrap();
    let of = |what: &str| format!("/v1/products/{id}/{what}");
    from(&trusting, "2001:db8:12ab:cdef::1", Method::PUT, &of("publication"), staff, None).await;
    let units = Some(json!({ "quantity": 9 }));
    // Whoever is not believed is where the connection comes from.
    from(&plain, "203.0.113.77", post.clone(), &of("stock-receipts"), &plain.staff, units).await;
    let lines = json!({ "lines": [{ "product_id": id, "quantity": 2 }] });
    let order =
        from(&trusting, "198.51.100.9", post.clone(), "/v1/orders", &trusting.customer, Some(lines)).await;
    let order = order["id"].as_str().unwrap();
    from(&trusting, "203.0.113.5", post, &format!("/v1/orders/{order}/shipment"), staff, None).await;

    let acts = list(&trusting, "/v1/audit").await;
    assert_eq!(texts(&acts, "type"), ["OrderShipped", "StockReceived", "ProductPublished", "ProductCreated"]);
    assert_eq!(
        texts(&acts, "origin"),
        ["203.0.113.0/24", "127.0.0.0/24", "2001:db8:1200::/40", "203.0.113.0/24"]
    );
    assert!(acts.iter().all(|act| act["actor"] == format!("staff:{STAFF}")), "{acts:?}");
    assert_eq!(texts(&acts, "resource"), [order, id, id, id]);
    let told = serde_json::to_string(&acts).unwrap();
    assert!(!told.contains("203.0.113.77") && !told.contains("12ab:cdef"), "{told}");
    // The same on every process, page by page, and filtered.
    assert_eq!(list(&plain, "/v1/audit?limit=1").await, acts);
    assert_eq!(list(&plain, &format!("/v1/audit?actor={STAFF}&limit=3")).await, acts);
    assert_eq!(list(&plain, &format!("/v1/audit?actor=staff:{STAFF}")).await, acts);
    assert_eq!(list(&plain, &format!("/v1/audit?actor=admin:{STAFF}")).await, [Value::Null; 0]);
    assert_eq!(list(&plain, &format!("/v1/audit?actor={CUSTOMER}")).await, [Value::Null; 0]);
    assert_eq!(list(&plain, "/v1/audit?type=ProductPublished").await, acts[2..3]);
    let time = |n: usize| acts[n]["recorded_at"].as_str().unwrap();
    let path = format!("/v1/audit?since={}&until={}&limit=1", time(2), time(0));
    assert_eq!(list(&plain, &path).await, acts[1..3]);
    assert_eq!(list(&plain, "/v1/audit?since=2999-01-01T00:00:00Z").await, [Value::Null; 0]);

    // What customers did with their own is in the streams.
    let on_order = list(&plain, &format!("/v1/audit?resource={order}")).await;
    assert_eq!(texts(&on_order, "type"), ["OrderShipped", "OrderPlaced"]);
    assert_eq!(texts(&on_order, "origin"), ["203.0.113.0/24", "198.51.100.0/24"]);
    assert_eq!(on_order[1]["actor"], format!("customer:{CUSTOMER}"));
    let on_product = list(&plain, &format!("/v1/audit?resource={id}")).await;
    assert_eq!(
        texts(&on_product, "type"),
        ["StockShipped", "StockReserved", "StockReceived", "ProductPublished", "ProductCreated"],
        "with its stock, by positions"
    );
    for limit in 1..6 {
        let path = format!("/v1/audit?resource={id}&limit={limit}");
        assert_eq!(list(&plain, &path).await, on_product, "{limit} at a time");
    }
    let path = format!("/v1/audit?resource={id}&actor={STAFF}&limit=1");
    let of_staff: Vec<Value> =
        on_product.iter().filter(|act| act["actor"] != on_product[1]["actor"]).cloned().collect();
    assert_eq!(list(&plain, &path).await, of_staff);
    let path = format!("/v1/audit?resource={id}&since={}&until={}", time(2), time(0));
    assert_eq!(
        texts(&list(&plain, &path).await, "type"),
        ["StockReserved", "StockReceived", "ProductPublished"]
    );
    assert_eq!(list(&plain, &format!("/v1/audit?resource={}", Uuid::now_v7())).await, [Value::Null; 0]);

    // The log says it itself, to analysts.
    let analyst = token("analyst", STAFF).await;
    let lines = plain.get("/v1/events?type=OrderPlaced", Some(&analyst), &[]).await.text;
    let event: Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!(event["metadata"]["origin"], "198.51.100.0/24");

    let admin = token("admin", ADMIN).await;
    for bad in [
        "actor=a&actor=b",
        "resource=x",
        "since=yesterday",
        "until=2026-13-01T00:00:00Z",
        "since=%2B262142-01-01T00:00:00Z",
        "limit=0",
        "cursor=x",
        "from=1",
    ] {
        let refused = plain.get(&format!("/v1/audit?{bad}"), Some(&admin), &[]).await;
        assert_eq!(refused.status, 400, "{bad}: {}", refused.text);
    }
}

#[tokio::test]
async fn a_page_on_a_busy_stream_looks_no_further_than_it_may() {
    let shop = Shop::open().await;
    let product = shop.product("BUSY", 10_000).await;
    // As many as a page looks at, twice over, and none of them the staff's.
    let pool = shop.pool().await;
    let statement = "INSERT INTO log.events (position, stream_id, category, version, event_id, event_type, \
           schema_version, payload, correlation_id, actor, recorded_at, partition_key) \
         SELECT h.position + n, s.stream_id, 'stock', s.version + n, gen_random_uuid(), 'StockReserved', 1, \
           json_build_object('product_id', s.partition_key, 'order_id', gen_random_uuid(), 'quantity', 1), \
           gen_random_uuid(), 'customer:somebody', h.recorded_at, s.partition_key \
         FROM log.head h, log.events s, generate_series(1, 4100) n WHERE s.event_type = 'StockReceived'";
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query(statement).execute(&mut *transaction).await.unwrap();
    sqlx::query("UPDATE log.head SET position = position + 4100").execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    let admin = token("admin", ADMIN).await;
    let path = format!("/v1/audit?resource={product}&actor={STAFF}");
    let first = shop.get(&path, Some(&admin), &[]).await;
    assert_eq!(first.body["items"], json!([]), "{}", first.text);
    assert!(first.body["next_cursor"].is_string(), "there is more to look at");
    let all = list(&shop, &path).await;
    assert_eq!(texts(&all, "type"), ["StockReceived", "ProductPublished", "ProductCreated"]);
}

/// What is known of an account, as the list of accounts has it.
async fn listed(shop: &Shop, query: &str) -> Vec<Value> {
    list(shop, &format!("/v1/accounts?{query}")).await
}

/// Those with this e-mail address.
async fn of(shop: &Shop, email: &str, query: &str) -> Vec<Value> {
    let admin = token("admin", ADMIN).await;
    let answer = shop.get(&format!("/v1/accounts?{query}"), Some(&admin), &[("Tidemark-Email", email)]).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.body["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn security_events_tell_the_address_until_the_account_is_erased() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let shop = behind_a_proxy(&url).await;
    let email = "guarded@example.org";
    register(&shop, email).await;
    register(&shop, "beside@example.org").await;
    let address = "198.51.100.177";
    let via = [("X-Forwarded-For", address)];
    let ask = async |path: &str, token: Option<&str>, body: Value| {
        shop.send(Method::POST, path, token, &via, Some(body)).await.unwrap()
    };
    let wrong = json!({ "email": email, "password": "not the right password" });
    assert_eq!(ask("/v1/sessions", None, wrong).await.status, 401);
    until("the failure is in the log", async || {
        let failed: i64 =
            sqlx::query_scalar("SELECT count(*) FROM log.events WHERE event_type = 'LoginFailed'")
                .fetch_one(&shop.pool().await)
                .await
                .unwrap();
        (failed == 1).then_some(())
    })
    .await;
    let right = json!({ "email": email, "password": PASSWORD });
    let logged_in = ask("/v1/sessions", None, right).await;
    assert_eq!(logged_in.status, 201, "{}", logged_in.text);
    let text = |name: &str| logged_in.body[name].as_str().unwrap().to_owned();
    let (id, session_id) = (text("account_id"), text("session_id"));
    // The first successor was lost and is shown by somebody else.
    let refresh =
        async |token: &str| ask("/v1/sessions/refresh", None, json!({ "refresh_token": token })).await;
    let next = refresh(&text("refresh_token")).await;
    assert_eq!(refresh(&text("refresh_token")).await.status, 200);
    assert_eq!(refresh(next.body["refresh_token"].as_str().unwrap()).await.status, 401);
    let admin = token("admin", ADMIN).await;
    let role = json!({ "role": "staff" });
    let path = format!("/v1/accounts/{id}/role");
    assert_eq!(shop.send(Method::PUT, &path, Some(&admin), &via, Some(role)).await.unwrap().status, 204);
    let (_, access, _) = session(&shop, email).await;
    let change = json!({ "current_password": PASSWORD, "password": "a new long passphrase 5" });
    assert_eq!(put(&shop, &format!("/v1/accounts/{id}/password"), &access, change).await.status, 204);
    let out = shop.send(Method::DELETE, "/v1/sessions/current", Some(&access), &via, None).await.unwrap();
    assert_eq!(out.status, 204);
    let path = format!("/v1/accounts/{id}/deactivation");
    assert_eq!(post(&shop, &path, Some(&admin), json!({ "reason": "asked for" })).await.status, 204);

    let events = list(&shop, &format!("/v1/security-events?account_id={id}&limit=4")).await;
    assert_eq!(
        texts(&events, "kind"),
        [
            "account_deactivated",
            "log_out",
            "password_changed",
            "log_in",
            "role_granted",
            "refresh_token_reused",
            "log_in",
            "log_in_failed",
            "email_verified",
            "account_registered"
        ]
    );
    let none = "-";
    assert_eq!(
        texts(&events, "source"),
        [none, address, none, "127.0.0.1", none, address, address, address, none, none]
    );
    assert_eq!(texts(&events, "detail")[3..8], ["staff", "staff", none, "customer", "password"]);
    assert_eq!(texts(&events, "session_id")[5..7], [session_id.as_str(), session_id.as_str()]);
    assert_eq!(events[4]["actor"], format!("admin:{ADMIN}"));
    assert_eq!(events[4]["origin"], "198.51.100.0/24");
    assert_eq!(events[7]["actor"], "anonymous");
    assert_eq!(list(&shop, &format!("/v1/security-events?account_id={id}&kind=log_in")).await.len(), 2);
    let everybodys = list(&shop, "/v1/security-events").await;
    assert_eq!(everybodys.len(), events.len() + 2, "and the other's registration");
    let since = events[4]["recorded_at"].as_str().unwrap();
    assert_eq!(list(&shop, &format!("/v1/security-events?since={since}")).await, everybodys[..5]);
    let unknown = shop.get("/v1/security-events?kind=burglary", Some(&admin), &[]).await;
    assert_eq!(unknown.status, 400, "{}", unknown.text);
    // Log-ins are not acts; the rest of it is.
    let acts = list(&shop, &format!("/v1/audit?actor={ADMIN}")).await;
    assert_eq!(texts(&acts, "type"), ["AccountDeactivated", "RoleGranted"]);
    let kinds: BTreeSet<String> =
        list(&shop, "/v1/audit").await.iter().map(|act| act["type"].as_str().unwrap().to_owned()).collect();
    assert!(
        kinds.contains("PasswordChanged") && !kinds.iter().any(|kind| kind.contains("Session")),
        "{kinds:?}"
    );

    let known = of(&shop, &email.to_uppercase(), "").await;
    assert_eq!(known.len(), 1);
    assert_eq!((&known[0]["id"], &known[0]["status"]), (&json!(id), &json!("deactivated")));
    assert_eq!((&known[0]["email"], &known[0]["role"]), (&json!(email), &json!("staff")));

    let erased = post(&shop, &format!("/v1/accounts/{id}/erasure"), Some(&admin), json!({})).await;
    assert_eq!(erased.status, 204, "{}", erased.text);
    let after = list(&shop, &format!("/v1/security-events?account_id={id}")).await;
    assert_eq!(after.len(), events.len() + 1);
    assert!(after.iter().all(|event| event["source"].is_null()), "{after:?}");
    assert_eq!(after[5]["origin"], "198.51.100.0/24", "the network stays");
    assert_eq!(of(&shop, email, "").await, [Value::Null; 0]);
    let forgotten = listed(&shop, "status=erased").await;
    assert_eq!(forgotten.len(), 1);
    assert_eq!((&forgotten[0]["id"], &forgotten[0]["email"]), (&json!(id), &Value::Null));
    assert_eq!((&forgotten[0]["name"], &forgotten[0]["role"]), (&Value::Null, &json!("customer")));
    for table in ["audit_1", "security_events_1", "accounts_1"] {
        let rows: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT t::text FROM views.{table} t")))
                .fetch_all(&shop.pool().await)
                .await
                .unwrap();
        assert!(!rows.is_empty(), "{table}");
        assert!(
            !rows.iter().any(|row| row.contains(address) || row.contains("guarded")),
            "{table}: {rows:?}"
        );
    }
}

#[tokio::test]
async fn accounts_are_listed_with_names_that_are_opened_for_the_page() {
    let shop = Shop::open().await;
    let mut ids = Vec::new();
    for n in 0..4 {
        let email = format!("listed-{n}@example.org");
        register(&shop, &email).await;
        let (id, access, _) = session(&shop, &email).await;
        if n == 1 {
            let profile = json!({ "name": "Another Name" });
            assert_eq!(put(&shop, &format!("/v1/accounts/{id}/profile"), &access, profile).await.status, 204);
        }
        ids.insert(0, id);
    }
    let unverified = json!({ "email": "waiting@example.org", "password": PASSWORD });
    assert_eq!(post(&shop, "/v1/accounts", None, unverified).await.status, 202);
    let admin = token("admin", ADMIN).await;
    let role = json!({ "role": "analyst" });
    assert_eq!(put(&shop, &format!("/v1/accounts/{}/role", ids[0]), &admin, role).await.status, 204);

    let all = listed(&shop, "limit=2").await;
    assert_eq!(texts(&all, "id")[1..], ids, "the newest first");
    assert_eq!(
        texts(&all, "email"),
        [
            "waiting@example.org",
            "listed-3@example.org",
            "listed-2@example.org",
            "listed-1@example.org",
            "listed-0@example.org"
        ]
    );
    let ada = "Ada Lovelace";
    assert_eq!(texts(&all, "name"), ["-", ada, ada, "Another Name", ada]);
    assert_eq!(texts(&all, "status"), ["pending", "active", "active", "active", "active"]);
    assert_eq!((&all[0]["verified"], &all[1]["verified"]), (&json!(false), &json!(true)));
    assert_eq!(listed(&shop, "role=analyst").await, all[1..2]);
    assert_eq!(listed(&shop, "status=pending").await, all[..1]);
    assert_eq!(listed(&shop, "status=active&role=customer&limit=1").await, all[2..]);
    assert_eq!(of(&shop, "listed-2@Example.ORG", "").await, all[2..3]);
    for (nobody, query) in
        [("nobody@example.org", ""), ("no address", ""), ("", ""), ("listed-2@example.org", "role=admin")]
    {
        assert_eq!(of(&shop, nobody, query).await, [Value::Null; 0], "{nobody}");
    }
    for bad in ["role=root", "status=erased,active", "cursor=x", "q=ada", "email=ada@example.org"] {
        let refused = shop.get(&format!("/v1/accounts?{bad}"), Some(&admin), &[]).await;
        assert_eq!(refused.status, 400, "{bad}: {}", refused.text);
    }
    // A key that was lost takes the rest of the page with it no more than it must.
    sqlx::query("DELETE FROM vault.keys WHERE subject = $1::uuid")
        .bind(&ids[1])
        .execute(&shop.pool().await)
        .await
        .unwrap();
    let other = Shop::on(&shop.url).await;
    let left = listed(&other, "").await;
    assert_eq!(left.len(), all.len());
    assert_eq!((&left[2]["id"], &left[2]["email"]), (&json!(ids[1]), &Value::Null));
    assert_eq!(left[1], all[1]);
    assert_eq!(log_in(&shop, "listed-3@example.org", PASSWORD).await.status, 201);
}

#[tokio::test]
async fn security_events_are_kept_as_long_as_the_operator_says() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let settings = [("DATABASE_URL", url.as_str()), ("TIDEMARK_SECURITY_EVENTS_RETENTION", "1h")];
    let shop = Shop::part("up", &url, &settings).await;
    register(&shop, "kept@example.org").await;
    for _ in 0..2 {
        session(&shop, "kept@example.org").await;
    }
    shop.caught_up().await;
    let pool = shop.pool().await;
    let kinds = async |instance: i32| -> Vec<String> {
        let sql = format!("SELECT kind FROM views.security_events_{instance} ORDER BY position");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&pool).await.unwrap()
    };
    assert_eq!(kinds(1).await, ["account_registered", "email_verified", "log_in", "log_in"]);
    // As if the registration and the first log-in had been two hours ago, in the log and in its view.
    sqlx::raw_sql(
        "SET session_replication_role = replica; \
         UPDATE log.events SET recorded_at = recorded_at - interval '2 hours' \
           WHERE position <= (SELECT min(position) FROM log.events WHERE event_type = 'SessionStarted'); \
         SET session_replication_role = origin; \
         UPDATE views.security_events_1 v SET recorded_at = e.recorded_at FROM log.events e \
           WHERE e.position = v.position",
    )
    .execute(&pool)
    .await
    .unwrap();
    until("what is too old is removed", async || (kinds(1).await == ["log_in"]).then_some(())).await;
    let rebuilt = tidemark()
        .args(["rebuild", "audit"])
        .envs(settings)
        .env("TIDEMARK_DATA_DIR", shop.data.path())
        .output()
        .await
        .unwrap();
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    assert_eq!(kinds(2).await, ["log_in"], "what is too old is not written again");
    assert_eq!(list(&shop, "/v1/security-events").await.len(), 1);
    let acts = list(&shop, "/v1/audit").await;
    assert_eq!(texts(&acts, "type"), ["EmailVerified", "AccountRegistered"], "acts are for good");
    assert_eq!(listed(&shop, "").await.len(), 1);
    let metrics = shop.get("/metrics", None, &[]).await.text;
    let removed = metrics.lines().find(|line| line.starts_with("tidemark_projection_pruned_total"));
    assert!(removed.is_some_and(|line| line.ends_with(" 3")), "{removed:?}");
}

/// The rule of what belongs into the audit stands in the program and in a statement: both say the same.
#[tokio::test]
async fn the_log_sends_what_belongs_into_the_audit_and_no_more() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let pool = PgPool::connect(&url).await.unwrap();
    Log::migrate_with(&pool, 1_000).await.unwrap();
    let written = sqlx::raw_sql(
        "INSERT INTO log.events (position, stream_id, category, version, event_id, event_type, schema_version, \
           payload, correlation_id, actor, recorded_at, partition_key, origin) \
         SELECT row_number() OVER (), gen_random_uuid(), c, 1, gen_random_uuid(), t, 1, '{}', gen_random_uuid(), a, \
           now(), gen_random_uuid(), CASE WHEN a LIKE 's%' THEN '192.0.2.0/24'::cidr WHEN a LIKE 'o%' THEN '2001:d00::/40' END \
         FROM unnest(ARRAY['product', 'stock', 'order', 'sku', 'account', 'session', 'email', 'planet']) c, \
           unnest(ARRAY['ProductCreated', 'StockReserved', 'StockReleased', 'StockShipped', 'StockReceived', \
             'OrderPlaced', 'OrderShipped', 'LoginFailed', 'Unheard']) t, \
           unnest(ARRAY['customer:1', 'staff:1', 'operator:1', 'import:x', 'anonymous', 'account:1', 'customers', '']) a; \
         UPDATE log.head SET position = (SELECT max(position) FROM log.events)",
    )
    .execute(&pool)
    .await
    .unwrap();
    assert!(written.rows_affected() > 500);
    let options = connect_options(&url).unwrap();
    let log = Log::new(PgPool::connect_with(options).await.unwrap());
    let all = log.read(0, 10_000, &Filter::default(), 10_000).await.unwrap().events;
    assert_eq!(all.len(), 8 * 9 * 8);
    for filter in [
        Filter { audited: true, ..Filter::default() },
        Filter { audited: true, categories: vec!["order".into(), "account".into()], ..Filter::default() },
        Filter { categories: vec!["order".into()], ..Filter::default() },
        Filter { event_types: vec!["OrderPlaced".to_owned()], ..Filter::default() },
        Filter { stream_id: Some(all[77].stream_id), ..Filter::default() },
    ] {
        let sent = log.read(0, 10_000, &filter, 10_000).await.unwrap().events;
        let differs =
            |event: &&tidemark_events::RecordedEvent| filter.lets_through(event) != sent.contains(event);
        let differing = all.iter().find(differs);
        assert!(!sent.is_empty() && sent.len() < all.len());
        assert_eq!(differing, None, "{filter:?}");
    }
    let audited = Filter { audited: true, ..Filter::default() };
    let is_audited = |category: &str, kind: &str, actor: &str| {
        let is_it = |event: &&tidemark_events::RecordedEvent| {
            event.category == category && event.event_type == kind && event.metadata.actor == actor
        };
        audited.lets_through(all.iter().find(is_it).unwrap())
    };
    assert!(is_audited("order", "OrderPlaced", "staff:1"));
    assert!(!is_audited("order", "OrderPlaced", "customer:1"));
    assert!(
        !is_audited("order", "OrderPlaced", "import:x"),
        "the orders of an import are those of customers"
    );
    assert!(is_audited("product", "ProductCreated", "import:x"));
    assert!(!is_audited("stock", "StockShipped", "staff:1"), "it follows from the order's event");
    assert!(is_audited("account", "Unheard", "customer:1"));
    assert!(!is_audited("sku", "Unheard", "staff:1"));
}
