//! Accounts: registered, verified by mail, logged in, refreshed, ended, erased.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Answer, Postgres, Shop, audit, token, until};
use crate::proxy::{Cut, Proxy};

pub(crate) const PASSWORD: &str = "correct horse battery staple";
const ADMIN: &str = "0190b6a2-8c5e-7c11-b0de-1f0e9a7b0cad";

pub(crate) async fn post(shop: &Shop, path: &str, token: Option<&str>, body: Value) -> Answer {
    shop.send(Method::POST, path, token, &[], Some(body)).await.unwrap()
}

pub(crate) async fn put(shop: &Shop, path: &str, token: &str, body: Value) -> Answer {
    shop.send(Method::PUT, path, Some(token), &[], Some(body)).await.unwrap()
}

pub(crate) async fn delete(shop: &Shop, path: &str, token: &str) -> Answer {
    shop.send(Method::DELETE, path, Some(token), &[], None).await.unwrap()
}

/// Whether the shop takes a token.
async fn is_taken(shop: &Shop, token: &str) -> bool {
    shop.get("/v1/orders", Some(token), &[]).await.status == 200
}

/// The mails to an address so far, each its subject and body, as files.
fn mails(shop: &Shop, to: &str) -> Vec<(String, String)> {
    let folder = shop.data.path().join("mails");
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut mails: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "eml"))
        .map(|path| {
            // Soft line breaks of quoted-printable.
            let text = std::fs::read_to_string(&path).unwrap().replace("=\r\n", "").replace("=3D", "=");
            (path, text)
        })
        .filter(|(_, text)| text.contains(&format!("To: {to}\r\n")))
        .collect();
    mails.sort();
    mails
        .into_iter()
        .map(|(_, text)| {
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let subject = head.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap();
            (subject.to_owned(), body.to_owned())
        })
        .collect()
}

/// The token of the newest mail to an address with a subject.
pub(crate) async fn mailed(shop: &Shop, to: &str, subject: &str, count: usize) -> String {
    until("the mail comes", async || {
        let mails: Vec<_> = mails(shop, to).into_iter().filter(|(is, _)| is == subject).collect();
        let (_, body) = mails.get(count - 1)?;
        body.lines().find(|line| line.trim().len() == 86).map(|line| line.trim().to_owned())
    })
    .await
}

const VERIFY: &str = "Please verify your e-mail address";
const RESET: &str = "Set a new password";

pub(crate) async fn register(shop: &Shop, email: &str) {
    let body = json!({ "email": email, "password": PASSWORD, "name": "Ada Lovelace" });
    let told = post(shop, "/v1/accounts", None, body).await;
    assert_eq!(told.status, 202, "{}", told.text);
    verify(shop, email).await;
}

/// Shows the token of the mail that verifies an address.
pub(crate) async fn verify(shop: &Shop, email: &str) {
    let token = mailed(shop, email, VERIFY, 1).await;
    let verified = post(shop, "/v1/accounts/email-verifications", None, json!({ "token": token })).await;
    assert_eq!(verified.status, 204, "{}", verified.text);
}

pub(crate) async fn log_in(shop: &Shop, email: &str, password: &str) -> Answer {
    post(shop, "/v1/sessions", None, json!({ "email": email, "password": password })).await
}

/// Logs in and says the account's id and its tokens.
pub(crate) async fn session(shop: &Shop, email: &str) -> (String, String, String) {
    let answer = log_in(shop, email, PASSWORD).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let text = |name: &str| answer.body[name].as_str().unwrap().to_owned();
    (text("account_id"), text("access_token"), text("refresh_token"))
}

#[tokio::test]
async fn somebody_registers_verifies_logs_in_orders_and_reads_it_all_back() {
    let shop = Shop::open().await;
    let product = shop.product("ACC", 5).await;
    let email = "ada@example.org";
    let body = json!({ "email": email, "password": PASSWORD, "name": "Ada Lovelace" });
    assert_eq!(post(&shop, "/v1/accounts", None, body).await.status, 202);
    let early = log_in(&shop, email, PASSWORD).await;
    assert_eq!((early.status, early.problem()), (403, "email-unverified"));
    let token = mailed(&shop, email, VERIFY, 1).await;
    let another = if token.ends_with('A') { "Q" } else { "A" };
    for wrong in ["", "nonsense", &token[1..], &format!("{}{another}", &token[..85])] {
        let void = post(&shop, "/v1/accounts/email-verifications", None, json!({ "token": wrong })).await;
        assert!(void.status == 410 || (wrong.is_empty() && void.status == 422), "{wrong}: {}", void.text);
    }
    let verify = json!({ "token": token });
    assert_eq!(post(&shop, "/v1/accounts/email-verifications", None, verify.clone()).await.status, 204);
    let again = post(&shop, "/v1/accounts/email-verifications", None, verify).await;
    assert_eq!((again.status, again.problem()), (410, "link-void"), "once");

    let (id, access, _) = session(&shop, "ADA@Example.org").await;
    let key = Uuid::now_v7().to_string();
    let order = json!({ "lines": [{ "product_id": product, "quantity": 2 }] });
    let placed = shop
        .send(Method::POST, "/v1/orders", Some(&access), &[("Idempotency-Key", &key)], Some(order))
        .await
        .unwrap();
    assert_eq!(placed.status, 201, "{}", placed.text);
    let profile = json!({ "name": "Ada King", "phone": "+44 20 7946 0000" });
    assert_eq!(put(&shop, &format!("/v1/accounts/{id}/profile"), &access, profile).await.status, 204);
    let address =
        json!({ "name": "Ada King", "line1": "12 St James's Square", "city": "London", "country": "GB" });
    let added = post(&shop, &format!("/v1/accounts/{id}/addresses"), Some(&access), address.clone()).await;
    assert_eq!(added.status, 201, "{}", added.text);

    let account = shop.get(&format!("/v1/accounts/{id}"), Some(&access), &[]).await;
    assert_eq!(account.status, 200, "{}", account.text);
    let field = |name: &str| account.body[name].clone();
    assert_eq!((field("email"), field("name")), (json!(email), json!("Ada King")));
    assert_eq!((field("phone"), field("role")), (json!("+442079460000"), json!("customer")));
    assert_eq!(field("addresses")[0]["address"], address);
    assert_eq!(account.header("cache-control"), "no-store");

    let after = placed.header("tidemark-position").to_owned();
    let path = format!("/v1/accounts/{id}/export");
    let export = shop.get(&path, Some(&access), &[("Tidemark-After", &after)]).await;
    assert_eq!(export.body["orders"][0]["id"], placed.body["id"], "{}", export.text);
    assert_eq!(export.body["account"]["email"], email);
    assert_eq!(export.body["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(export.body["sessions"][0]["source"], "127.0.0.1");
    assert_eq!(export.body["history"][0]["event_type"], "AccountRegistered");

    // Others are told what they would be told of nobody.
    let random = Uuid::now_v7();
    let (foreign, nobody) = (format!("/v1/accounts/{id}"), format!("/v1/accounts/{random}"));
    for path in ["", "/sessions", "/export"] {
        let foreign = shop.get(&format!("{foreign}{path}"), Some(&shop.customer), &[]).await;
        let nobody = shop.get(&format!("{nobody}{path}"), Some(&shop.customer), &[]).await;
        assert_eq!((foreign.status, nobody.status), (404, 404));
        let without = |answer: &Answer, id: &str| answer.body["detail"].as_str().unwrap().replace(id, "");
        assert_eq!(without(&foreign, &id), without(&nobody, &random.to_string()));
    }
    assert_eq!(put(&shop, &format!("{foreign}/profile"), &shop.customer, json!({})).await.status, 404);
    let own = shop.get(&foreign, Some(&shop.staff), &[]).await;
    assert_eq!(own.status, 200, "the staff sees accounts");
}

#[tokio::test]
async fn a_new_shop_has_no_account_and_no_password_that_anybody_knows() {
    let shop = Shop::open().await;
    let pool = shop.pool().await;
    let there: (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM log.events), (SELECT count(*) FROM accounts.credentials), \
         (SELECT count(*) FROM accounts.sessions)",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(there, (0, 0, 0));
    for name in ["admin", "root", "staff", "tidemark"] {
        for password in [name, "admin", "password", "changeme"] {
            let answer = log_in(&shop, &format!("{name}@localhost.localdomain"), password).await;
            assert_eq!(answer.status, 401, "{name}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn an_address_belongs_to_one_account_and_nobody_else_learns_of_it() {
    let shop = Shop::open().await;
    register(&shop, "first@example.org").await;
    let body = |email: &str| json!({ "email": email, "password": "another long passphrase 77" });
    let repeated = post(&shop, "/v1/accounts", None, body("First@example.org")).await;
    let fresh = post(&shop, "/v1/accounts", None, body("second@example.org")).await;
    assert_eq!((repeated.status, &repeated.body), (fresh.status, &fresh.body));
    until("the owner is told", async || {
        mails(&shop, "first@example.org")
            .iter()
            .any(|(is, _)| is == "You have an account already")
            .then_some(())
    })
    .await;
    assert_eq!(log_in(&shop, "first@example.org", "another long passphrase 77").await.status, 401);
    assert_eq!(log_in(&shop, "first@example.org", PASSWORD).await.status, 201);
    // Eight at once: one account.
    let tries = (0..8).map(|n| {
        let shop = &shop;
        async move {
            let password = format!("racing for an address {n}");
            post(shop, "/v1/accounts", None, json!({ "email": "race@example.org", "password": password }))
                .await
                .status
        }
    });
    assert_eq!(futures_util::future::join_all(tries).await, [202; 8]);
    let pool = shop.pool().await;
    let claims: i64 = sqlx::query_scalar("SELECT count(*) FROM log.events WHERE event_type = 'EmailClaimed'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(claims, 3);
    until("what nobody needs is removed", async || {
        let left: (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM accounts.credentials), (SELECT count(*) FROM vault.keys)",
        )
        .fetch_one(&pool)
        .await
        .unwrap();
        (left == (3, 4)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_address_have_one_answer() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(list.path(), "Seventeen Stolen Umbrellas\n").unwrap();
    let list = list.path().to_str().unwrap();
    let settings = [("DATABASE_URL", url.as_str()), ("TIDEMARK_REFUSED_PASSWORDS", list)];
    let shop = Shop::part("up", &url, &settings).await;
    register(&shop, "known@example.org").await;
    let wrong = log_in(&shop, "known@example.org", "not the right password").await;
    let unknown = log_in(&shop, "unknown@example.org", "not the right password").await;
    assert_eq!((wrong.status, wrong.problem()), (401, "login-refused"));
    // An account that may not be used has the same answer, to the right password, too.
    register(&shop, "left@example.org").await;
    let (id, ..) = session(&shop, "left@example.org").await;
    let path = format!("/v1/accounts/{id}/deactivation");
    assert_eq!(post(&shop, &path, Some(&shop.staff), json!({ "reason": "left" })).await.status, 204);
    let deactivated = log_in(&shop, "left@example.org", PASSWORD).await;
    let same = |answer: &Answer| {
        let mut body = answer.body.clone();
        body["instance"] = Value::Null;
        let told = answer.headers.iter().filter(|(name, _)| *name != "date");
        let headers: Vec<_> =
            told.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        (answer.status, body, headers, answer.text.len())
    };
    assert_eq!(same(&wrong), same(&unknown));
    assert_eq!(same(&wrong), same(&deactivated));
    for weak in ["password1234", "aaaaaaaaaaaaaa", "known@example.org", "seventeen stolen umbrellas"] {
        let refused =
            post(&shop, "/v1/accounts", None, json!({ "email": "known@example.org", "password": weak }))
                .await;
        assert_eq!((refused.status, refused.problem()), (422, "weak-password"), "{weak}");
    }
    let short =
        post(&shop, "/v1/accounts", None, json!({ "email": "a@example.org", "password": "short" })).await;
    assert_eq!(short.status, 422);
    until("the failure is in the log", async || {
        let pool = shop.pool().await;
        let failed: i64 =
            sqlx::query_scalar("SELECT count(*) FROM log.events WHERE event_type = 'LoginFailed'")
                .fetch_one(&pool)
                .await
                .unwrap();
        (failed == 1).then_some(())
    })
    .await;
}

/// Anybody who knows an address can make its stream long.
#[tokio::test]
async fn what_comes_behind_thousands_of_failed_log_ins_counts() {
    const FAILED: i64 = 10_100;
    const NEW: &str = "eleven borrowed lanterns";
    let shop = Shop::open().await;
    register(&shop, "long@example.org").await;
    let (id, access, _) = session(&shop, "long@example.org").await;
    let before = shop.get(&format!("/v1/accounts/{id}"), Some(&access), &[]).await.body["version"].as_i64();
    sqlx::query(
        "WITH head AS (UPDATE log.head SET position = position + $2 RETURNING position - $2 AS position) \
         INSERT INTO log.events SELECT head.position + n, $1, 'account', $3 + n, gen_random_uuid(), 'LoginFailed', 1, \
         json_build_object('reason', 'password', 'failed_at', now()), gen_random_uuid(), NULL, 'anonymous', NULL, \
         clock_timestamp(), $1 FROM head, generate_series(1, $2) AS n",
    )
    .bind(id.parse::<Uuid>().unwrap())
    .bind(FAILED)
    .bind(before)
    .execute(&shop.pool().await)
    .await
    .unwrap();
    let path = format!("/v1/accounts/{id}");
    let profile = put(&shop, &format!("{path}/profile"), &access, json!({ "name": "Ada King" })).await;
    assert_eq!(profile.status, 204, "{}", profile.text);
    let account = shop.get(&path, Some(&access), &[]).await;
    assert_eq!(account.body["name"], "Ada King", "{}", account.text);
    assert_eq!(account.body["version"].as_i64(), before.map(|before| before + FAILED + 1));
    let export = shop.get(&format!("{path}/export"), Some(&access), &[]).await;
    let history = export.body["history"].as_array().unwrap();
    let types: Vec<&str> = history.iter().map(|entry| entry["event_type"].as_str().unwrap()).collect();
    assert_eq!((types[0], types[types.len() - 1]), ("AccountRegistered", "ProfileUpdated"));
    assert_eq!(types.iter().filter(|name| **name == "LoginFailed").count(), 10_000, "as many as it may hold");
    // Whoever logs in is known as they are now, too.
    let password = json!({ "current_password": PASSWORD, "password": NEW });
    assert_eq!(put(&shop, &format!("{path}/password"), &access, password).await.status, 204);
    assert_eq!(log_in(&shop, "long@example.org", NEW).await.status, 201);
    // With a snapshot of the account, log-ins do not read what is before it, and mails still find their address.
    let pool = shop.pool().await;
    for n in 0..32 {
        let profile =
            put(&shop, &format!("{path}/profile"), &access, json!({ "name": format!("Ada {n}") })).await;
        assert_eq!(profile.status, 204, "{}", profile.text);
    }
    until("the account has a snapshot", async || {
        let found = sqlx::query("SELECT FROM log.snapshots WHERE stream_id = $1")
            .bind(id.parse::<Uuid>().unwrap())
            .fetch_optional(&pool)
            .await;
        found.unwrap()
    })
    .await;
    let read = async || {
        // A session that is idle tells what it has read within ten seconds.
        tokio::time::sleep(Duration::from_secs(11)).await;
        sqlx::query_scalar::<_, i64>(
            "SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_user_tables WHERE schemaname = 'log' AND relname LIKE 'events%'",
        )
        .fetch_one(&pool)
        .await
        .unwrap()
    };
    let rows = read().await;
    assert_eq!(log_in(&shop, "long@example.org", NEW).await.status, 201);
    let rows = read().await - rows;
    assert!(rows < 1_000, "{rows} events were read for a log-in");
    let reset = post(&shop, "/v1/password-resets", None, json!({ "email": "long@example.org" })).await;
    assert_eq!(reset.status, 202, "{}", reset.text);
    mailed(&shop, "long@example.org", RESET, 1).await;
    let erased = post(&shop, &format!("{path}/erasure"), Some(&access), json!({ "password": NEW })).await;
    assert_eq!(erased.status, 204, "{}", erased.text);
    let admin = token("admin", ADMIN).await;
    assert_eq!(shop.get(&path, Some(&admin), &[]).await.status, 404);
    audit(&shop.pool().await).await;
}

/// How long log-ins of one kind took, in the middle of them all.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_address_take_one_time() {
    /// Log-ins of each kind in a round, and rounds, of which one must pass: the machine has other work, too.
    const EACH: usize = 150;
    const ROUNDS: usize = 3;
    /// How far the medians may lie apart.
    const APART: f64 = 0.1;
    let shop = Shop::open().await;
    register(&shop, "known@example.org").await;
    let mut random = crate::inputs::Random(11);
    let mut measured = Vec::new();
    for round in 0..ROUNDS {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        while known.len() < EACH || unknown.len() < EACH {
            // In no order: what one leaves to do is not always done in the time of the other.
            let is_known = unknown.len() == EACH || (known.len() < EACH && random.below(2) == 0);
            let nobody = format!("nobody-{round}-{}@example.org", unknown.len());
            let email = if is_known { "known@example.org" } else { &nobody };
            let begun = Instant::now();
            let answer = log_in(&shop, email, "not the right password").await;
            let took = begun.elapsed();
            assert_eq!(answer.status, 401);
            if is_known {
                known.push(took)
            } else {
                unknown.push(took)
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (known, unknown) = (median(known), median(unknown));
        measured.push((known, unknown));
        if (known - unknown).abs() < APART * known.min(unknown) {
            eprintln!("log-ins: known {:.2} ms, unknown {:.2} ms", known * 1e3, unknown * 1e3);
            return;
        }
    }
    panic!("known and unknown addresses can be told apart by their time, in seconds: {measured:?}");
}

/// Argon2id of [`PASSWORD`] at less than half of today's cost.
const CHEAP: &str =
    "$argon2id$v=19$m=8192,t=1,p=1$AAECAwQFBgcICQoLDA0ODw$mu73UxPlhfSSwzxeEtgumtJTt914Yy1Tfomc1O3deJw";

#[tokio::test]
async fn a_hash_that_was_made_at_a_lower_cost_is_made_anew_at_log_in() {
    let shop = Shop::open().await;
    let email = "early@example.org";
    register(&shop, email).await;
    let (id, ..) = session(&shop, email).await;
    let account = id.parse::<Uuid>().unwrap();
    let pool = shop.pool().await;
    // The only one of the account.
    let stored = async || -> String {
        sqlx::query_scalar("SELECT string_agg(hash, ' ') FROM accounts.credentials WHERE account_id = $1")
            .bind(account)
            .fetch_one(&pool)
            .await
            .unwrap()
    };
    const COST: &str = "$argon2id$v=19$m=19456,t=2,p=1$";
    let today = stored().await;
    assert!(today.starts_with(COST), "{today}");
    let years_ago = sqlx::query("UPDATE accounts.credentials SET hash = $2 WHERE account_id = $1")
        .bind(account)
        .bind(CHEAP)
        .execute(&pool)
        .await
        .unwrap();
    assert_eq!(years_ago.rows_affected(), 1);
    assert_eq!(log_in(&shop, email, "not the right password").await.status, 401);
    assert_eq!(stored().await, CHEAP, "who does not know the password changes nothing");
    assert_eq!(log_in(&shop, email, PASSWORD).await.status, 201);
    let anew = stored().await;
    assert!(anew.starts_with(COST), "{anew}");
    assert_eq!(log_in(&shop, email, PASSWORD).await.status, 201);
    assert_eq!(log_in(&shop, email, "not the right password").await.status, 401);
    assert_eq!(stored().await, anew, "once");
}

#[tokio::test]
async fn a_refresh_token_is_used_once_and_a_second_use_ends_the_session() {
    let shop = Shop::open().await;
    register(&shop, "fresh@example.org").await;
    let (_, access, first) = session(&shop, "fresh@example.org").await;
    let (_, other, _) = session(&shop, "fresh@example.org").await;
    let refresh = async |token: &str| {
        post(&shop, "/v1/sessions/refresh", None, json!({ "refresh_token": token })).await
    };
    let next = refresh(&first).await;
    assert_eq!(next.status, 200, "{}", next.text);
    let second = next.body["refresh_token"].as_str().unwrap().to_owned();
    assert!(is_taken(&shop, next.body["access_token"].as_str().unwrap()).await);
    // The answer was lost: the client asks again, and only its newer answer counts.
    let again = refresh(&first).await;
    assert_eq!(again.status, 200, "{}", again.text);
    let third = again.body["refresh_token"].as_str().unwrap().to_owned();
    assert!(is_taken(&shop, &access).await);
    // Whoever has the lost one is not the one who has the newer one.
    let stolen = refresh(&second).await;
    assert_eq!((stolen.status, stolen.problem()), (401, "refresh-refused"));
    assert_eq!(refresh(&third).await.status, 401, "the whole family is void");
    until("its access tokens are refused", async || (!is_taken(&shop, &access).await).then_some(())).await;
    assert!(is_taken(&shop, &other).await, "another session goes on");
    until("its owner is told", async || {
        let told = mails(&shop, "fresh@example.org");
        told.iter().any(|(is, _)| is == "A session was ended for your safety").then_some(())
    })
    .await;
    for wrong in ["nonsense", &first[1..]] {
        assert_eq!(refresh(wrong).await.status, 401);
    }
    // Two at once: never two that can be used.
    let (_, _, token) = session(&shop, "fresh@example.org").await;
    let both = futures_util::future::join(refresh(&token), refresh(&token)).await;
    let mut left = HashSet::new();
    for answer in [both.0, both.1] {
        if answer.status == 200 {
            left.insert(answer.body["refresh_token"].as_str().unwrap().to_owned());
        }
    }
    let pool = shop.pool().await;
    let usable: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM accounts.refresh_tokens t JOIN accounts.sessions s USING (session_id) \
         WHERE t.used_at IS NULL AND s.ended_at IS NULL AND s.session_id = (SELECT max(session_id::text)::uuid \
         FROM accounts.sessions)",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert!(usable <= 1 && !left.is_empty(), "{usable} usable of {left:?}");
}

/// A refresh is done and its answer is lost with the database, which is back half a minute later.
#[tokio::test]
async fn a_refresh_whose_outcome_is_unknown_can_be_repeated_when_everything_is_back() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let proxy = Proxy::before(&postgres);
    let mut shop = Shop::part("command", &proxy.through(&url), &[]).await;
    shop.url = url;
    let email = "patient@example.org";
    register(&shop, email).await;
    let (.., mut shown) = session(&shop, email).await;
    let pool = shop.pool().await;
    let refresh = async |token: &str| {
        post(&shop, "/v1/sessions/refresh", None, json!({ "refresh_token": token })).await
    };
    let lost = until("the commit of a refresh is cut off", async || {
        proxy.cut_next(Cut::AfterTheEffect, "COMMIT");
        let answer = refresh(&shown).await;
        if answer.status == 200 {
            // Another's commit was.
            answer.body["refresh_token"].as_str().unwrap().clone_into(&mut shown);
        }
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!((lost.status, lost.problem()), (504, "outcome-unknown"), "{}", lost.text);
    assert_ne!(lost.header("retry-after"), "");
    let later = async |seconds: i32| {
        let later = "UPDATE accounts.refresh_tokens SET used_at = used_at - make_interval(secs => $1)";
        sqlx::query(later).bind(f64::from(seconds)).execute(&pool).await.unwrap();
    };
    later(45).await;
    let again = refresh(&shown).await;
    assert_eq!(again.status, 200, "{}", again.text);
    // Not for ever: somebody else may have it by then.
    later(16).await;
    assert_eq!(refresh(&shown).await.status, 401);
    assert_eq!(refresh(again.body["refresh_token"].as_str().unwrap()).await.status, 401);
}

#[tokio::test]
async fn sessions_end_within_a_second_on_every_process() {
    let shop = Shop::open().await;
    let other = Shop::on(&shop.url).await;
    register(&shop, "leaving@example.org").await;
    let (id, one, refresh_token) = session(&shop, "leaving@example.org").await;
    let (_, two, _) = session(&shop, "leaving@example.org").await;
    let (_, three, _) = session(&shop, "leaving@example.org").await;
    for shop in [&shop, &other] {
        for token in [&one, &two, &three] {
            assert!(is_taken(shop, token).await);
        }
    }
    let refused_within = async |token: &str| {
        let since = Instant::now();
        until("the token is refused", async || {
            (!is_taken(&shop, token).await && !is_taken(&other, token).await).then_some(())
        })
        .await;
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    };
    assert_eq!(delete(&shop, "/v1/sessions/current", &one).await.status, 204);
    refused_within(&one).await;
    assert!(is_taken(&other, &two).await);
    let late = post(&shop, "/v1/sessions/refresh", None, json!({ "refresh_token": refresh_token })).await;
    assert_eq!(late.status, 401);
    // Another password ends all but the session it was set in.
    let path = format!("/v1/accounts/{id}/password");
    let wrong = json!({ "current_password": "not the right one", "password": "a new long passphrase 5" });
    assert_eq!(put(&other, &path, &two, wrong).await.status, 401);
    // As if it had been set some time ago.
    let (pool, account) = (shop.pool().await, id.parse::<Uuid>().unwrap());
    let aged =
        "UPDATE accounts.credentials SET made_at = made_at - interval '2 minutes' WHERE account_id = $1";
    sqlx::query(aged).bind(account).execute(&pool).await.unwrap();
    // Of several at once one counts, and the others leave nothing.
    let changes = (0..4).map(|n| {
        let change =
            json!({ "current_password": PASSWORD, "password": format!("a new long passphrase {n}") });
        put(&other, &path, &two, change)
    });
    let mut answers: Vec<u16> =
        futures_util::future::join_all(changes).await.iter().map(|answer| answer.status).collect();
    let set = answers.iter().position(|status| *status == 204).unwrap();
    answers.remove(set);
    assert!(!answers.contains(&204), "{answers:?}");
    let now = format!("a new long passphrase {set}");
    until("the password before is forgotten", async || {
        let hashes: i64 =
            sqlx::query_scalar("SELECT count(*) FROM accounts.credentials WHERE account_id = $1")
                .bind(account)
                .fetch_one(&pool)
                .await
                .unwrap();
        (hashes == 1).then_some(())
    })
    .await;
    refused_within(&three).await;
    assert!(is_taken(&shop, &two).await, "the session in which it was changed goes on");
    assert_eq!(log_in(&shop, "leaving@example.org", PASSWORD).await.status, 401);
    assert_eq!(log_in(&shop, "leaving@example.org", &now).await.status, 201);
    assert_eq!(delete(&shop, "/v1/sessions", &two).await.status, 204);
    refused_within(&two).await;
    // Tokens that operators make are of no session.
    let none = delete(&shop, "/v1/sessions/current", &shop.staff).await;
    assert_eq!((none.status, none.problem()), (409, "state-conflict"));
}

#[tokio::test]
async fn sessions_end_within_a_second_at_processes_that_only_read() {
    let postgres = Postgres::shared().await;
    let (log, views) = (postgres.database().await, postgres.database().await);
    let with_views = [("TIDEMARK_VIEWS_URL", views.as_str())];
    let command = Shop::part("command", &log, &[]).await;
    let _projector = Shop::part("projector", &log, &with_views).await;
    let query = Shop::part("query", &log, &with_views).await;
    let email = "reading@example.org";
    register(&command, email).await;
    let (id, one, _) = session(&command, email).await;
    let (_, two, _) = session(&command, email).await;
    let (_, three, _) = session(&command, email).await;
    for token in [&one, &two, &three] {
        assert!(is_taken(&query, token).await);
    }
    let refused_within = async |process: &Shop, token: &str| {
        let since = Instant::now();
        let answer = until("the token is refused", async || {
            let answer = process.get("/v1/orders", Some(token), &[]).await;
            (answer.status != 200).then_some(answer)
        })
        .await;
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
        assert_eq!((answer.status, answer.problem()), (401, "unauthenticated"));
    };
    assert_eq!(delete(&command, "/v1/sessions/current", &one).await.status, 204);
    refused_within(&query, &one).await;
    assert!(is_taken(&query, &two).await, "another session goes on");
    let path = format!("/v1/accounts/{id}/deactivation");
    assert_eq!(post(&command, &path, Some(&command.staff), json!({})).await.status, 204);
    refused_within(&query, &two).await;
    refused_within(&query, &three).await;
    // Also at one that was not there when they ended.
    let later = Shop::part("query", &log, &with_views).await;
    for token in [&one, &two, &three] {
        refused_within(&later, token).await;
    }
}

#[tokio::test]
async fn a_forgotten_password_is_set_anew_by_mail() {
    let shop = Shop::open().await;
    let email = "forgetful@example.org";
    register(&shop, email).await;
    let (_, access, _) = session(&shop, email).await;
    let ask = async |email: &str| post(&shop, "/v1/password-resets", None, json!({ "email": email })).await;
    let (known, unknown) = (ask(email).await, ask("nobody@example.org").await);
    assert_eq!((known.status, &known.body), (202, &unknown.body));
    let token = mailed(&shop, email, RESET, 1).await;
    let finish = async |token: &str| {
        let body = json!({ "token": token, "password": "remembered from now on 8" });
        post(&shop, "/v1/password-resets/completion", None, body).await
    };
    let verify = post(&shop, "/v1/accounts/email-verifications", None, json!({ "token": token })).await;
    assert_eq!(verify.status, 410, "a token is for its purpose alone");
    assert_eq!(finish(&token).await.status, 204);
    assert_eq!(finish(&token).await.status, 410, "once");
    until("sessions end", async || (!is_taken(&shop, &access).await).then_some(())).await;
    assert_eq!(log_in(&shop, email, PASSWORD).await.status, 401);
    assert_eq!(log_in(&shop, email, "remembered from now on 8").await.status, 201);
    assert!(mails(&shop, "nobody@example.org").is_empty());
    let pool = shop.pool().await;
    let credentials: i64 =
        sqlx::query_scalar("SELECT count(*) FROM accounts.credentials").fetch_one(&pool).await.unwrap();
    assert!(credentials <= 2, "{credentials}: what was refused leaves no hash");
}

#[tokio::test]
async fn an_account_that_was_deactivated_while_pending_is_not_made_active_by_its_mail() {
    let shop = Shop::open().await;
    let email = "hasty@example.org";
    let body = json!({ "email": email, "password": PASSWORD });
    assert_eq!(post(&shop, "/v1/accounts", None, body).await.status, 202);
    let mail = mailed(&shop, email, VERIFY, 1).await;
    let pool = shop.pool().await;
    let id: Uuid =
        sqlx::query_scalar("SELECT account_id FROM accounts.mails").fetch_one(&pool).await.unwrap();
    let admin = token("admin", ADMIN).await;
    // As it is told by itself and in the list, which are folded apart.
    let stands = async |status: &str, verified: bool| {
        let one = shop.get(&format!("/v1/accounts/{id}"), Some(&shop.staff), &[]).await;
        assert_eq!(one.body["status"], status, "{}", one.text);
        shop.caught_up().await;
        let list = shop.get("/v1/accounts", Some(&admin), &[]).await;
        let item = &list.body["items"][0];
        assert_eq!((&item["status"], &item["verified"]), (&json!(status), &json!(verified)), "{}", list.text);
    };
    let verify =
        async || post(&shop, "/v1/accounts/email-verifications", None, json!({ "token": mail })).await.status;
    let path = format!("/v1/accounts/{id}/deactivation");
    assert_eq!(post(&shop, &path, Some(&shop.staff), json!({ "reason": "a bot" })).await.status, 204);
    assert_eq!(verify().await, 410);
    stands("deactivated", false).await;
    assert_eq!(delete(&shop, &path, &shop.staff).await.status, 204);
    stands("pending", false).await;
    assert_eq!(log_in(&shop, email, PASSWORD).await.problem(), "email-unverified");
    assert_eq!(verify().await, 204);
    stands("active", true).await;
    // Whose address is verified is active again.
    assert_eq!(post(&shop, &path, Some(&shop.staff), json!({})).await.status, 204);
    assert_eq!(delete(&shop, &path, &shop.staff).await.status, 204);
    stands("active", true).await;
    assert_eq!(log_in(&shop, email, PASSWORD).await.status, 201);
}

#[tokio::test]
async fn roles_are_given_by_admins_and_bring_new_tokens() {
    let shop = Shop::open().await;
    let admin = token("admin", ADMIN).await;
    register(&shop, "clerk@example.org").await;
    let (id, access, _) = session(&shop, "clerk@example.org").await;
    let path = format!("/v1/accounts/{id}/role");
    for (asker, status) in [(&access, 403), (&shop.staff, 403), (&shop.customer, 403)] {
        assert_eq!(put(&shop, &path, asker, json!({ "role": "admin" })).await.status, status);
    }
    assert_eq!(put(&shop, &path, &admin, json!({ "role": "root" })).await.status, 422);
    assert_eq!(put(&shop, &path, &admin, json!({ "role": "staff" })).await.status, 204);
    until("old tokens are refused", async || (!is_taken(&shop, &access).await).then_some(())).await;
    let answer = log_in(&shop, "clerk@example.org", PASSWORD).await;
    assert_eq!(answer.body["role"], "staff");
    let staff = answer.body["access_token"].as_str().unwrap();
    let price = json!({ "amount": 1, "currency": "EUR" });
    let made =
        post(&shop, "/v1/products", Some(staff), json!({ "sku": "R", "name": "R", "price": price })).await;
    assert_eq!(made.status, 201);
    // Deactivated by the staff, and back.
    let path = format!("/v1/accounts/{id}/deactivation");
    assert_eq!(shop.send(Method::POST, &path, Some(&shop.customer), &[], None).await.unwrap().status, 404);
    assert_eq!(post(&shop, &path, Some(&shop.staff), json!({ "reason": "left" })).await.status, 204);
    until("its tokens are refused", async || (!is_taken(&shop, staff).await).then_some(())).await;
    let refused = log_in(&shop, "clerk@example.org", PASSWORD).await;
    assert_eq!((refused.status, refused.problem()), (401, "login-refused"));
    assert_eq!(delete(&shop, &path, &shop.staff).await.status, 204);
    assert_eq!(log_in(&shop, "clerk@example.org", PASSWORD).await.status, 201);
}

/// Six digits of RFC 6238, made here.
pub(crate) fn code(secret: &str, at: i64) -> String {
    use aws_lc_rs::hmac;
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut bits = 0_u64;
    let mut count = 0;
    let mut key = Vec::new();
    for letter in secret.trim_end_matches('=').bytes() {
        bits = bits << 5 | LETTERS.iter().position(|l| *l == letter).unwrap() as u64;
        count += 5;
        if count >= 8 {
            count -= 8;
            key.push((bits >> count) as u8);
        }
    }
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key);
    let digest = hmac::sign(&key, &(at / 30).to_be_bytes());
    let digest = digest.as_ref();
    let offset = usize::from(digest[19] & 15);
    let number = u32::from_be_bytes(digest[offset..offset + 4].try_into().unwrap()) & 0x7fff_ffff;
    format!("{:06}", number % 1_000_000)
}

#[tokio::test]
async fn a_second_factor_is_asked_for_and_no_code_is_taken_twice() {
    let shop = Shop::open().await;
    let email = "careful@example.org";
    register(&shop, email).await;
    let (id, access, _) = session(&shop, email).await;
    let path = format!("/v1/accounts/{id}/second-factor");
    assert_eq!(
        post(&shop, &path, Some(&access), json!({ "password": "not the right one" })).await.status,
        401
    );
    let factor = post(&shop, &path, Some(&access), json!({ "password": PASSWORD })).await;
    assert_eq!(factor.status, 201, "{}", factor.text);
    let secret = factor.body["secret"].as_str().unwrap();
    assert!(
        factor.body["url"]
            .as_str()
            .unwrap()
            .starts_with("otpauth://totp/Tidemark:careful%40example.org?secret=")
    );
    assert_eq!(log_in(&shop, email, PASSWORD).await.status, 201, "not before it is confirmed");
    let confirm = async |code: &str| {
        let body = json!({ "factor_id": factor.body["factor_id"], "one_time_code": code });
        put(&shop, &format!("{path}/confirmation"), &access, body).await
    };
    assert_eq!(confirm("000000").await.status, 422);
    let now = chrono::Utc::now().timestamp();
    assert_eq!(confirm(&code(secret, now)).await.status, 204);
    let with = async |name: &str, value: &str| {
        let mut body = json!({ "email": email, "password": PASSWORD });
        body[name] = json!(value);
        post(&shop, "/v1/sessions", None, body).await
    };
    let without = log_in(&shop, email, PASSWORD).await;
    assert_eq!((without.status, without.problem()), (401, "second-factor-required"));
    assert_eq!(
        with("one_time_code", &code(secret, now)).await.status,
        401,
        "it was taken for the confirmation"
    );
    let next = code(secret, now + 30);
    assert_eq!(with("one_time_code", &next).await.status, 201);
    assert_eq!(with("one_time_code", &next).await.status, 401, "once");
    let recovery = factor.body["recovery_codes"][3].as_str().unwrap();
    assert_eq!(with("recovery_code", recovery).await.status, 201);
    assert_eq!(with("recovery_code", recovery).await.status, 401, "once");
    assert_eq!(with("recovery_code", "nonsense").await.status, 401);
    let removal = format!("{path}/removal");
    assert_eq!(post(&shop, &removal, Some(&access), json!({ "password": PASSWORD })).await.status, 204);
    assert_eq!(log_in(&shop, email, PASSWORD).await.status, 201);
    // The secret stands nowhere in clear.
    let pool = shop.pool().await;
    let stored: String =
        sqlx::query_scalar("SELECT secret FROM accounts.factors LIMIT 1").fetch_one(&pool).await.unwrap();
    assert!(stored.starts_with("v1.") && !stored.contains(secret));
}

#[tokio::test]
async fn a_role_that_needs_a_second_factor_is_a_customers_until_there_is_one() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let settings = [("DATABASE_URL", url.as_str()), ("TIDEMARK_SECOND_FACTOR_FOR", "staff")];
    let shop = Shop::part("up", &url, &settings).await;
    let admin = token("admin", ADMIN).await;
    let email = "guarded@example.org";
    register(&shop, email).await;
    let (id, ..) = session(&shop, email).await;
    let role = format!("/v1/accounts/{id}/role");
    assert_eq!(put(&shop, &role, &admin, json!({ "role": "staff" })).await.status, 204);
    let make = async |session: &Answer, sku: &str| {
        let access = session.body["access_token"].as_str().unwrap();
        let price = json!({ "amount": 1, "currency": "EUR" });
        let body = json!({ "sku": sku, "name": sku, "price": price });
        post(&shop, "/v1/products", Some(access), body).await
    };
    let without = log_in(&shop, email, PASSWORD).await;
    assert_eq!((without.status, &without.body["role"]), (201, &json!("customer")), "{}", without.text);
    let refused = make(&without, "WITHOUT").await;
    assert_eq!((refused.status, refused.problem()), (403, "forbidden"));

    let path = format!("/v1/accounts/{id}/second-factor");
    let access = without.body["access_token"].as_str().unwrap();
    let factor = post(&shop, &path, Some(access), json!({ "password": PASSWORD })).await;
    assert_eq!(factor.status, 201, "{}", factor.text);
    let begun = log_in(&shop, email, PASSWORD).await;
    assert_eq!((begun.status, &begun.body["role"]), (201, &json!("customer")), "it is not confirmed");
    let secret = factor.body["secret"].as_str().unwrap();
    let now = chrono::Utc::now().timestamp();
    let body = json!({ "factor_id": factor.body["factor_id"], "one_time_code": code(secret, now) });
    assert_eq!(put(&shop, &format!("{path}/confirmation"), access, body).await.status, 204);
    let body = json!({ "email": email, "password": PASSWORD, "one_time_code": code(secret, now + 30) });
    let with = post(&shop, "/v1/sessions", None, body).await;
    assert_eq!((with.status, &with.body["role"]), (201, &json!("staff")), "{}", with.text);
    let made = make(&with, "WITH").await;
    assert_eq!(made.status, 201, "{}", made.text);
    // A session that began without it stays what it was.
    let body = json!({ "refresh_token": without.body["refresh_token"] });
    let refreshed = post(&shop, "/v1/sessions/refresh", None, body).await;
    assert_eq!((refreshed.status, &refreshed.body["role"]), (200, &json!("customer")), "{}", refreshed.text);
    assert_eq!(make(&refreshed, "REFRESHED").await.status, 403);

    let removal = format!("{path}/removal");
    assert_eq!(post(&shop, &removal, Some(access), json!({ "password": PASSWORD })).await.status, 204);
    let removed = log_in(&shop, email, PASSWORD).await;
    assert_eq!((removed.status, &removed.body["role"]), (201, &json!("customer")), "{}", removed.text);
    assert_eq!(make(&removed, "REMOVED").await.status, 403);
    // Other roles need none.
    assert_eq!(put(&shop, &role, &admin, json!({ "role": "analyst" })).await.status, 204);
    let analyst = log_in(&shop, email, PASSWORD).await;
    assert_eq!((analyst.status, &analyst.body["role"]), (201, &json!("analyst")), "{}", analyst.text);
}

/// Every table of the database that has a text in it.
async fn tables_with(shop: &Shop, text: &str) -> Vec<String> {
    let pool = shop.pool().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables \
         WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let mut found = Vec::new();
    for table in tables {
        let sql = format!("SELECT count(*) FROM {table} t WHERE position(lower($1) IN lower(t::text)) > 0");
        let count: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(text).fetch_one(&pool).await.unwrap();
        if count > 0 {
            found.push(table);
        }
    }
    found
}

#[tokio::test]
async fn an_erased_person_is_nowhere_and_the_log_stays_valid() {
    let shop = Shop::open().await;
    let product = shop.product("ERASE", 5).await;
    let email = "forgetme@example.org";
    register(&shop, email).await;
    let (id, access, refresh_token) = session(&shop, email).await;
    let address =
        json!({ "name": "Grace Canary", "line1": "Canary Lane 99", "city": "Canaryville", "country": "US" });
    assert_eq!(
        post(&shop, &format!("/v1/accounts/{id}/addresses"), Some(&access), address).await.status,
        201
    );
    let profile = json!({ "name": "Grace Canary", "phone": "+15550001999" });
    assert_eq!(put(&shop, &format!("/v1/accounts/{id}/profile"), &access, profile).await.status, 204);
    let key = Uuid::now_v7().to_string();
    let order = json!({ "lines": [{ "product_id": product, "quantity": 1 }] });
    let placed = shop
        .send(Method::POST, "/v1/orders", Some(&access), &[("Idempotency-Key", &key)], Some(order))
        .await
        .unwrap();
    assert_eq!(placed.status, 201);
    let canaries =
        ["forgetme", "Grace Canary", "Canary Lane", "Canaryville", "5550001999", PASSWORD, &refresh_token];
    // Not even before: nothing personal rests in clear text.
    for canary in canaries {
        assert_eq!(tables_with(&shop, canary).await, Vec::<String>::new(), "{canary}");
    }
    let pool = shop.pool().await;
    let before: (i64, Option<String>) = sqlx::query_as(
        "SELECT count(*), md5(string_agg(position || payload::text, ',' ORDER BY position)) FROM log.events",
    )
    .fetch_one(&pool)
    .await
    .unwrap();

    let path = format!("/v1/accounts/{id}/erasure");
    assert_eq!(post(&shop, &path, Some(&shop.customer), json!({ "password": PASSWORD })).await.status, 404);
    assert_eq!(post(&shop, &path, Some(&access), json!({})).await.status, 422);
    assert_eq!(
        post(&shop, &path, Some(&access), json!({ "password": "not the right one" })).await.status,
        401
    );
    assert_eq!(post(&shop, &path, Some(&access), json!({ "password": PASSWORD })).await.status, 204);

    until("the key is destroyed", async || {
        let erased: bool =
            sqlx::query_scalar("SELECT wrapped IS NULL FROM vault.keys WHERE subject = $1::uuid")
                .bind(&id)
                .fetch_one(&pool)
                .await
                .unwrap();
        erased.then_some(())
    })
    .await;
    until("its tokens are refused", async || (!is_taken(&shop, &access).await).then_some(())).await;
    for statement in [
        "SELECT count(*) FROM accounts.credentials WHERE account_id = $1::uuid",
        "SELECT count(*) FROM accounts.factors WHERE account_id = $1::uuid",
        "SELECT count(*) FROM accounts.sessions WHERE account_id = $1::uuid AND ended_at IS NULL",
    ] {
        let left: i64 = sqlx::query_scalar(statement).bind(&id).fetch_one(&pool).await.unwrap();
        assert_eq!(left, 0, "{statement}");
    }
    assert_eq!(log_in(&shop, email, PASSWORD).await.status, 401);
    assert_eq!(shop.get(&format!("/v1/accounts/{id}"), Some(&shop.staff), &[]).await.status, 404);
    let order_id = placed.body["id"].as_str().unwrap();
    let kept = shop.get(&format!("/v1/orders/{order_id}"), Some(&shop.staff), &[]).await;
    assert_eq!(kept.status, 200, "what was bought stays, without its person");
    // The log is as it was, and reads on.
    let after: Option<String> = sqlx::query_scalar(
        "SELECT md5(string_agg(position || payload::text, ',' ORDER BY position)) FROM log.events WHERE position <= $1",
    )
    .bind(before.0)
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(before.1, after);
    let analyst = token("analyst", ADMIN).await;
    let replay = shop.get("/v1/events", Some(&analyst), &[]).await;
    assert!(replay.text.contains("AccountErased"));
    for canary in canaries {
        assert_eq!(tables_with(&shop, canary).await, Vec::<String>::new(), "{canary}");
        assert!(!replay.text.contains(canary), "{canary}");
    }
    shop.caught_up().await;
    crate::harness::audit(&pool).await;
    // The address is free again, for another person.
    let body = json!({ "email": email, "password": PASSWORD });
    assert_eq!(post(&shop, "/v1/accounts", None, body).await.status, 202);
    let token = mailed(&shop, email, VERIFY, 2).await;
    assert_eq!(
        post(&shop, "/v1/accounts/email-verifications", None, json!({ "token": token })).await.status,
        204
    );
    let (another, ..) = session(&shop, email).await;
    assert_ne!(another, id);
}

#[tokio::test]
async fn guessing_is_slow_from_one_address_and_at_one_account() {
    let first = Shop::open().await;
    register(&first, "target@example.org").await;
    let settings = [
        ("DATABASE_URL", first.url.as_str()),
        ("TIDEMARK_LIMITS", "reads=1000/s"),
        ("TIDEMARK_TRUSTED_PROXIES", "127.0.0.1"),
    ];
    let limited = Shop::part("up", &first.url, &settings).await;
    let guess = async |from: &str, email: &str| {
        let body = json!({ "email": email, "password": "a guess at a password" });
        limited
            .send(Method::POST, "/v1/sessions", None, &[("X-Forwarded-For", from)], Some(body))
            .await
            .unwrap()
    };
    for _ in 0..5 {
        assert_eq!(guess("192.0.2.1", "somebody@example.org").await.status, 401);
    }
    let sixth = guess("192.0.2.1", "another@example.org").await;
    assert_eq!((sixth.status, sixth.problem()), (429, "rate-limited"), "one address");
    assert!(sixth.header("retry-after").parse::<u32>().unwrap() <= 12);
    for n in 0..5 {
        assert_eq!(guess(&format!("192.0.2.{}", 10 + n), "Target@example.org").await.status, 401);
    }
    assert_eq!(guess("192.0.2.20", "target@example.org").await.status, 429, "one account, many addresses");
    assert_eq!(guess("192.0.2.21", "elsewhere@example.org").await.status, 401);
}

/// What a mail server of its own was sent, by recipient.
fn delivered(maildir: &std::path::Path, to: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(maildir.join("new")) else { return Vec::new() };
    let texts = entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    texts.filter(|text| text.contains(&format!("To: {to}"))).collect()
}

#[tokio::test]
async fn mails_go_out_over_smtp_and_wait_while_the_server_is_away() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let (folder, port) = (crate::harness::folder(), crate::harness::free_port());
    let maildir = folder.path().join("mails");
    let smtp = format!("smtp://127.0.0.1:{port}");
    let settings = [("DATABASE_URL", url.as_str()), ("TIDEMARK_SMTP_URL", &smtp)];
    let shop = Shop::part("up", &url, &settings).await;
    let email = "posted@example.org";
    let body = json!({ "email": email, "password": PASSWORD });
    assert_eq!(post(&shop, "/v1/accounts", None, body).await.status, 202, "with nobody to take the mail");
    let pool = shop.pool().await;
    let state = async || -> Option<(String, i32, Option<String>)> {
        sqlx::query_as("SELECT state, attempts, error FROM accounts.mails")
            .fetch_optional(&pool)
            .await
            .unwrap()
    };
    until("it is tried", async || state().await.filter(|(_, attempts, _)| *attempts > 0).map(drop)).await;
    let (waiting, _, error) = state().await.unwrap();
    assert_eq!(waiting, "waiting");
    assert!(!error.unwrap().contains("posted"), "an error says nothing of the address");

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/smtp-server");
    let mut server = tokio::process::Command::new(script)
        .args([&port.to_string(), maildir.to_str().unwrap()])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mail = until("the mail is delivered", async || delivered(&maildir, email).pop()).await;
    until("it is done", async || state().await.filter(|(state, ..)| state == "sent").map(drop)).await;
    assert!(
        mail.contains("Subject: Please verify your e-mail address") && mail.contains("Message-ID: <"),
        "{mail}"
    );
    let text = mail.replace("=\n", "").replace("=\r\n", "").replace("=3D", "=");
    let token = text.lines().map(str::trim).find(|line| line.len() == 86).unwrap();
    let verified = post(&shop, "/v1/accounts/email-verifications", None, json!({ "token": token })).await;
    assert_eq!(verified.status, 204, "{}", verified.text);
    assert_eq!(delivered(&maildir, email).len(), 1, "once");
    server.kill().await.unwrap();
}

#[tokio::test]
async fn a_mail_that_cannot_be_opened_keeps_no_other_waiting() {
    let mut shop = Shop::open().await;
    let (lost, other) = ("lost@example.org", "other@example.org");
    register(&shop, lost).await;
    register(&shop, other).await;
    let (id, ..) = session(&shop, lost).await;
    // Keys are remembered for a while.
    shop.process.kill().await.unwrap();
    let pool = shop.pool().await;
    let deleted =
        sqlx::query("DELETE FROM vault.keys WHERE subject = $1::uuid").bind(&id).execute(&pool).await;
    assert_eq!(deleted.unwrap().rows_affected(), 1);
    let next = Shop::on(&shop.url).await;
    let body = json!({ "email": lost, "password": PASSWORD });
    assert_eq!(post(&next, "/v1/accounts", None, body).await.status, 202);
    until("the mail is tried", async || {
        let tried: bool = sqlx::query_scalar(
            "SELECT count(*) = 1 FROM accounts.mails WHERE kind = 'repeated' AND account_id = $1::uuid \
             AND state = 'waiting' AND attempts > 0 AND error LIKE '%is missing%'",
        )
        .bind(&id)
        .fetch_one(&pool)
        .await
        .unwrap();
        tried.then_some(())
    })
    .await;
    assert_eq!(post(&next, "/v1/password-resets", None, json!({ "email": other })).await.status, 202);
    mailed(&next, other, RESET, 1).await;
}

#[tokio::test]
async fn a_mail_server_that_hangs_keeps_no_key_from_being_destroyed() {
    let mut shop = Shop::open().await;
    let pool = shop.pool().await;
    for n in 0..6 {
        let body = json!({ "email": format!("patient-{n}@example.org"), "password": PASSWORD });
        assert_eq!(post(&shop, "/v1/accounts", None, body).await.status, 202);
    }
    until("the mails are sent", async || {
        let sent: i64 = sqlx::query_scalar("SELECT count(*) FROM accounts.mails WHERE state = 'sent'")
            .fetch_one(&pool)
            .await
            .unwrap();
        (sent == 6).then_some(())
    })
    .await;
    shop.process.kill().await.unwrap();
    sqlx::query("UPDATE accounts.mails SET state = 'waiting', attempts = 0, try_at = clock_timestamp()")
        .execute(&pool)
        .await
        .unwrap();
    // It takes connections and says nothing: each mail waits for 20 seconds.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let smtp = format!("smtp://{}", silent.local_addr().unwrap());
    let settings = [("DATABASE_URL", shop.url.as_str()), ("TIDEMARK_SMTP_URL", &smtp)];
    let next = Shop::part("up", &shop.url, &settings).await;
    let id: Uuid =
        sqlx::query_scalar("SELECT account_id FROM accounts.mails LIMIT 1").fetch_one(&pool).await.unwrap();
    let admin = token("admin", ADMIN).await;
    let _first = silent.accept().await.unwrap();
    let path = format!("/v1/accounts/{id}/erasure");
    assert_eq!(post(&next, &path, Some(&admin), json!({})).await.status, 204);
    until("the key is destroyed", async || {
        let erased: bool = sqlx::query_scalar("SELECT wrapped IS NULL FROM vault.keys WHERE subject = $1")
            .bind(id)
            .fetch_one(&pool)
            .await
            .unwrap();
        erased.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_steward_that_cannot_read_an_event_leaves_its_turn_to_others() {
    let shop = Shop::open().await;
    let _other = Shop::on(&shop.url).await;
    let pool = shop.pool().await;
    until("somebody has the turn", async || {
        let taken: i64 = sqlx::query_scalar("SELECT count(*) FROM log.leases WHERE name = 'accounts'")
            .fetch_one(&pool)
            .await
            .unwrap();
        (taken == 1).then_some(())
    })
    .await;
    // A turn is too short to be seen.
    sqlx::raw_sql(
        "CREATE TABLE turns (at timestamptz DEFAULT clock_timestamp(), holder uuid); \
         CREATE FUNCTION note_turn() RETURNS trigger LANGUAGE plpgsql AS \
           $$ BEGIN INSERT INTO turns (holder) VALUES (NEW.holder); RETURN NULL; END $$; \
         CREATE TRIGGER note_turn AFTER INSERT OR UPDATE ON log.leases FOR EACH ROW \
           WHEN (NEW.name = 'accounts') EXECUTE FUNCTION note_turn();",
    )
    .execute(&pool)
    .await
    .unwrap();
    // As a newer version would have written it.
    let mut newer = pool.begin().await.unwrap();
    let position: i64 = sqlx::query_scalar(
        "WITH head AS (UPDATE log.head SET position = position + 1 RETURNING position) \
         INSERT INTO log.events SELECT head.position, $1, 'account', 1, $2, 'AccountTeleported', 1, '{}', $2, NULL, \
           'x', NULL, clock_timestamp(), $1 FROM head RETURNING position",
    )
    .bind(Uuid::now_v7())
    .bind(Uuid::now_v7())
    .fetch_one(&mut *newer)
    .await
    .unwrap();
    newer.commit().await.unwrap();
    until("the turn goes round", async || {
        let turns: Vec<Uuid> =
            sqlx::query_scalar("SELECT holder FROM turns ORDER BY at").fetch_all(&pool).await.unwrap();
        let passed_on = turns.windows(2).filter(|turns| turns[0] != turns[1]).count();
        (passed_on >= 2).then_some(())
    })
    .await;
    let stands: i64 =
        sqlx::query_scalar("SELECT position FROM accounts.checkpoint").fetch_one(&pool).await.unwrap();
    assert!(stands < position, "nobody passes over it");
}

/// A mail server that takes no sender for so many mails, repeating who it is about, and then takes every mail. It counts
/// those that it took.
fn refusing_server(mut refusals: usize) -> (String, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&taken);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            stream.write_all(b"220 refusing\r\n").unwrap();
            let mut is_in_mail = false;
            for line in lines {
                let Ok(line) = line else { break };
                let word = line.split([' ', ':']).next().unwrap();
                let answer = match word {
                    "." => {
                        is_in_mail = false;
                        counted.fetch_add(1, Ordering::SeqCst);
                        "250 taken"
                    }
                    _ if is_in_mail => continue,
                    "MAIL" if refusals > 0 => {
                        refusals -= 1;
                        "550 no mails about refused@example.org"
                    }
                    "DATA" => {
                        is_in_mail = true;
                        "354 go on"
                    }
                    "QUIT" => break,
                    _ => "250 so be it",
                };
                if stream.write_all(format!("{answer}\r\n").as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    (format!("smtp://{address}"), taken)
}

#[tokio::test]
async fn a_mail_that_the_server_refuses_is_tried_again_for_an_hour() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let (smtp, taken) = refusing_server(2);
    let settings = [("DATABASE_URL", url.as_str()), ("TIDEMARK_SMTP_URL", &smtp)];
    let mut shop = Shop::part("up", &url, &settings).await;
    let body = json!({ "email": "refused@example.org", "password": PASSWORD });
    assert_eq!(post(&shop, "/v1/accounts", None, body).await.status, 202);
    let pool = shop.pool().await;
    let stands = async || -> (String, i32, Option<String>) {
        until("the mail is there", async || {
            sqlx::query_as("SELECT state, attempts, error FROM accounts.mails")
                .fetch_optional(&pool)
                .await
                .unwrap()
        })
        .await
    };
    until("the mail is taken", async || (stands().await.0 == "sent").then_some(())).await;
    assert_eq!((taken.load(Ordering::SeqCst), stands().await), (1, ("sent".to_owned(), 3, None)));
    shop.process.kill().await.unwrap();

    // A server that goes on refusing: after the tries of an hour it is believed, once it has said so twice.
    let (smtp, taken) = refusing_server(usize::MAX);
    let settings = [("DATABASE_URL", url.as_str()), ("TIDEMARK_SMTP_URL", &smtp)];
    sqlx::query(
        "UPDATE accounts.mails SET state = 'waiting', attempts = 12, error = 'away', try_at = clock_timestamp()",
    )
    .execute(&pool)
    .await
    .unwrap();
    let _shop = Shop::part("up", &url, &settings).await;
    let refused = |state: &str, attempts| {
        (state.to_owned(), attempts, Some("the mail server refuses it (550)".to_owned()))
    };
    until("it is tried", async || (stands().await.1 == 13).then_some(())).await;
    assert_eq!(stands().await, refused("waiting", 13));
    sqlx::query("UPDATE accounts.mails SET try_at = clock_timestamp()").execute(&pool).await.unwrap();
    until("it is tried", async || (stands().await.1 == 14).then_some(())).await;
    assert_eq!(stands().await, refused("failed", 14));
    assert_eq!(taken.load(Ordering::SeqCst), 0);
}

/// kill -9 between a decision and what it asks for: whoever comes next does it.
#[tokio::test]
async fn what_an_event_asks_for_is_done_though_its_process_was_killed() {
    let mut shop = Shop::open().await;
    let email = "unlucky@example.org";
    register(&shop, email).await;
    let (id, access, _) = session(&shop, email).await;
    let pool = shop.pool().await;
    // As if everything but the event had not happened: the sessions' end and the key's are still to come.
    sqlx::raw_sql(
        "CREATE TABLE held AS SELECT * FROM vault.keys; \
         CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'held'; END $$; \
         CREATE TRIGGER hold BEFORE UPDATE ON accounts.sessions FOR EACH ROW EXECUTE FUNCTION hold(); \
         CREATE TRIGGER hold BEFORE UPDATE ON vault.keys FOR EACH ROW EXECUTE FUNCTION hold();",
    )
    .execute(&pool)
    .await
    .unwrap();
    let path = format!("/v1/accounts/{id}/erasure");
    let answer = post(&shop, &path, Some(&access), json!({ "password": PASSWORD })).await;
    assert_eq!(answer.status, 503, "it is decided, and what it asks for cannot be done: {}", answer.text);
    shop.process.start_kill().unwrap();
    shop.process.wait().await.unwrap();
    sqlx::raw_sql("DROP TRIGGER hold ON accounts.sessions; DROP TRIGGER hold ON vault.keys;")
        .execute(&pool)
        .await
        .unwrap();
    let next = Shop::on(&shop.url).await;
    until("its tokens are refused", async || (!is_taken(&next, &access).await).then_some(())).await;
    until("the key is destroyed", async || {
        let erased: bool =
            sqlx::query_scalar("SELECT wrapped IS NULL FROM vault.keys WHERE subject = $1::uuid")
                .bind(&id)
                .fetch_one(&pool)
                .await
                .unwrap();
        erased.then_some(())
    })
    .await;
    assert_eq!(log_in(&next, email, PASSWORD).await.status, 401);
}

#[tokio::test]
async fn keys_are_rotated_and_nobody_is_logged_out() {
    let shop = Shop::with_its_own_key().await;
    let email = "rotating@example.org";
    register(&shop, email).await;
    let (_, access, _) = session(&shop, email).await;
    let published = async || {
        let keys = shop.get("/.well-known/jwks.json", None, &[]).await;
        assert_eq!(keys.header("content-type"), "application/jwk-set+json");
        let ids =
            keys.body["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned());
        assert!(!keys.text.contains("\"d\""), "no private part");
        ids.collect::<Vec<_>>()
    };
    let before = published().await;
    assert_eq!(before.len(), 1);
    let mut rotate = crate::harness::tidemark_with_key();
    let rotated =
        rotate.args(["keys", "rotate"]).env("TIDEMARK_DATA_DIR", shop.data.path()).output().await.unwrap();
    assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
    let both = until("the new key is published", async || {
        let keys = published().await;
        (keys.len() == 2).then_some(keys)
    })
    .await;
    assert!(both.contains(&before[0]));
    assert!(is_taken(&shop, &access).await, "tokens of the former key stay good");
    assert_eq!(log_in(&shop, email, PASSWORD).await.status, 201);
}

#[tokio::test]
async fn keys_of_personal_data_are_wrapped_anew_by_another_master_key() {
    let shop = Shop::open().await;
    let email = "wrapped@example.org";
    register(&shop, email).await;
    let (id, access, _) = session(&shop, email).await;
    let pool = shop.pool().await;
    let masters = async || -> i64 {
        sqlx::query_scalar("SELECT count(DISTINCT master) FROM vault.keys").fetch_one(&pool).await.unwrap()
    };
    let wrapped = async || -> Vec<Vec<u8>> {
        sqlx::query_scalar("SELECT wrapped FROM vault.keys ORDER BY subject").fetch_all(&pool).await.unwrap()
    };
    let before = wrapped().await;
    let newer = "Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";
    let both = format!("{newer},{}", crate::harness::MASTER_KEY);
    let rewrap = async |keys: &str| {
        let mut command = crate::harness::tidemark();
        command.args(["keys", "rewrap"]).env("DATABASE_URL", &shop.url).env("TIDEMARK_MASTER_KEY", keys);
        command.env("TIDEMARK_DATA_DIR", shop.data.path()).output().await.unwrap()
    };
    let alone = rewrap(newer).await;
    assert_eq!(
        alone.status.code(),
        Some(2),
        "the former one is needed: {}",
        String::from_utf8_lossy(&alone.stderr)
    );
    assert_eq!(wrapped().await, before, "nothing was changed");
    assert!(rewrap(&both).await.status.success());
    assert_eq!(masters().await, 1);
    assert!(wrapped().await.iter().zip(&before).all(|(now, before)| now != before));
    let settings = [("DATABASE_URL", shop.url.as_str()), ("TIDEMARK_MASTER_KEY", newer)];
    let next = Shop::part("up", &shop.url, &settings).await;
    let account = next.get(&format!("/v1/accounts/{id}"), Some(&access), &[]).await;
    assert_eq!(account.body["email"], email, "{}", account.text);
}
