//! Secrets stand in no log, whatever happens and however much is logged.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::accounts::{code, mailed};
use crate::harness::{Answer, Postgres, Shop, folder, free_port, tidemark, until};
use crate::run;
use crate::servers::Redis;

/// Everything that there is to be told.
const TALKATIVE: (&str, &str) = ("TIDEMARK_LOG", "trace");

const PASSWORD: &str = "a passphrase that no log repeats 7";
const EMAIL: &str = "discreet@example.org";
const VERIFY: &str = "Please verify your e-mail address";
const RESET: &str = "Set a new password";

/// A server's URL with a password in it, which is written down as a secret.
fn with_password(url: &str, name: &str) -> String {
    let password = format!("pw-{name}-{}", uuid::Uuid::now_v7().simple());
    run::secret(&password);
    url.replacen("tidemark@", &format!("tidemark:{password}@"), 1)
}

async fn send(shop: &Shop, method: Method, path: &str, token: Option<&str>, body: Option<Value>) -> Answer {
    let key = format!("key-{}", uuid::Uuid::now_v7());
    shop.send(method, path, token, &[("Idempotency-Key", &key)], body).await.unwrap()
}

/// Everything that an account can do, and much that it may not, through one service of commands and one of queries.
async fn a_whole_life(command: &Shop, query: &Shop, product: &str) {
    let post = async |path: &str, token: Option<&str>, body: Value| {
        send(command, Method::POST, path, token, Some(body)).await
    };
    let token = mailed(command, EMAIL, VERIFY, 1).await;
    for (wrong, status) in [(format!("{}x", &token[..85]), 410), (token.clone(), 204), (token.clone(), 410)] {
        let answer = post("/v1/accounts/email-verifications", None, json!({ "token": wrong })).await;
        assert_eq!(answer.status, status, "{}", answer.text);
    }
    let wrong = json!({ "email": EMAIL, "password": "a wrong passphrase, tried by hand" });
    assert_eq!(post("/v1/sessions", None, wrong).await.status, 401);
    // Bodies that cannot be read have secrets in them, too.
    for body in [
        json!({ "email": EMAIL, "password": PASSWORD, "unknown": 1 }),
        json!({ "email": EMAIL, "password": [PASSWORD] }),
        json!({ "email": 1, "password": PASSWORD }),
    ] {
        assert!((400..500).contains(&post("/v1/sessions", None, body).await.status));
    }
    let session = post("/v1/sessions", None, json!({ "email": EMAIL, "password": PASSWORD })).await;
    assert_eq!(session.status, 201, "{}", session.text);
    let text = |name: &str| session.body[name].as_str().unwrap().to_owned();
    let (id, access, refresh) = (text("account_id"), text("access_token"), text("refresh_token"));
    let path = |end: &str| format!("/v1/accounts/{id}{end}");
    let changed = format!("{}AAAA", &access[..access.len() - 4]);
    for token in [&access, &changed] {
        let lines = json!({ "lines": [{ "product_id": product, "quantity": 1 }] });
        post("/v1/orders", Some(token), lines).await;
        for path in [path(""), path("/export"), path("/sessions"), "/v1/orders".to_owned()] {
            query.get(&path, Some(token), &[]).await;
        }
        // Where it does not belong.
        query.get(&format!("/v1/orders?access_token={token}"), None, &[]).await;
        query.get("/v1/orders", None, &[("Authorization", &format!("Basic {token}"))]).await;
        query.get("/v1/orders", None, &[("Cookie", &format!("token={token}"))]).await;
    }
    let factor = post(&path("/second-factor"), Some(&access), json!({ "password": PASSWORD })).await;
    assert_eq!(factor.status, 201, "{}", factor.text);
    let now = chrono::Utc::now().timestamp();
    let one_time = code(factor.body["secret"].as_str().unwrap(), now);
    let confirmation = json!({ "factor_id": factor.body["factor_id"], "one_time_code": one_time });
    let confirm = path("/second-factor/confirmation");
    let confirmed = send(command, Method::PUT, &confirm, Some(&access), Some(confirmation)).await;
    assert_eq!(confirmed.status, 204, "{}", confirmed.text);
    for recovery in [&factor.body["recovery_codes"][0], &json!("not one of the codes")] {
        let body = json!({ "email": EMAIL, "password": PASSWORD, "recovery_code": recovery });
        post("/v1/sessions", None, body).await;
    }
    let removed = post(&path("/second-factor/removal"), Some(&access), json!({ "password": PASSWORD })).await;
    assert_eq!(removed.status, 204, "{}", removed.text);
    let next = post("/v1/sessions/refresh", None, json!({ "refresh_token": refresh })).await;
    assert_eq!(next.status, 200, "{}", next.text);
    let third =
        post("/v1/sessions/refresh", None, json!({ "refresh_token": next.body["refresh_token"] })).await;
    assert_eq!(third.status, 200, "{}", third.text);
    // Used twice: the session is ended, and it is said in the log.
    assert_eq!(post("/v1/sessions/refresh", None, json!({ "refresh_token": refresh })).await.status, 401);
    assert_eq!(post("/v1/password-resets", None, json!({ "email": EMAIL })).await.status, 202);
    let token = mailed(command, EMAIL, RESET, 1).await;
    let another = "another passphrase that no log repeats 8";
    let body = json!({ "token": token, "password": another });
    assert_eq!(post("/v1/password-resets/completion", None, body).await.status, 204);
    let session = post("/v1/sessions", None, json!({ "email": EMAIL, "password": another })).await;
    let access = session.body["access_token"].as_str().unwrap();
    let change =
        json!({ "current_password": another, "password": "a third passphrase that no log repeats 9" });
    let changed = send(command, Method::PUT, &path("/password"), Some(access), Some(change)).await;
    assert_eq!(changed.status, 204, "{}", changed.text);
    let body = json!({ "password": "a third passphrase that no log repeats 9" });
    assert_eq!(post(&path("/erasure"), Some(access), body).await.status, 204);
}

#[tokio::test]
async fn no_secret_is_logged_however_much_is() {
    let (postgres, redis) = tokio::join!(Postgres::start(), Redis::start());
    let (log, vault, views) =
        (postgres.database().await, postgres.database().await, postgres.database().await);
    let (log, vault, views) =
        (with_password(&log, "log"), with_password(&vault, "vault"), with_password(&views, "views"));
    let plain = redis.url().replacen("redis://", "redis://default:pw-redis-0123456789abcdef@", 1);
    run::secret("pw-redis-0123456789abcdef");
    let data = folder();
    let dir = data.path().to_str().unwrap().to_owned();
    let keys = [("TIDEMARK_VAULT_URL", vault.as_str()), TALKATIVE];

    // Mails that do not leave, by a server that takes no password.
    let mail_server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let smtp = format!(
        "smtp://shop:pw-smtp-0123456789abcdef@127.0.0.1:{}",
        mail_server.local_addr().unwrap().port()
    );
    drop(mail_server);
    run::secret("pw-smtp-0123456789abcdef");
    let limits = ("TIDEMARK_LIMITS_REDIS_URL", plain.as_str());
    let mut first =
        Shop::part("command", &log, &[&keys[..], &[limits, ("TIDEMARK_SMTP_URL", &smtp)]].concat()).await;
    let body = json!({ "email": EMAIL, "password": PASSWORD });
    assert_eq!(send(&first, Method::POST, "/v1/accounts", None, Some(body)).await.status, 202);
    let mut connection = PgConnection::connect(&log).await.unwrap();
    until("the mail is tried", async || {
        let tried: Option<i32> = sqlx::query_scalar("SELECT max(attempts) FROM accounts.mails")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        tried.filter(|attempts| *attempts > 0).map(drop)
    })
    .await;
    first.process.kill().await.unwrap();

    let limits = ("TIDEMARK_LIMITS", "log-in=1000/s,recovery=1000/s");
    let command =
        [&keys[..], &[limits, ("TIDEMARK_LIMITS_REDIS_URL", &plain), ("TIDEMARK_DATA_DIR", &dir)]].concat();
    let command = Shop::part("command", &log, &command).await;
    let place = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_REDIS_URL", &plain), TALKATIVE];
    let projector = Shop::part("projector", &log, &place).await;
    let query = Shop::part("query", &log, &[&keys[..], &place[..2]].concat()).await;
    let product = command.product("DISCREET", 5).await;
    // Its mails are where its data is.
    let command = command.with_data(data);
    a_whole_life(&command, &query, &product).await;

    // Servers that go away, and what is said then.
    postgres.kill();
    for shop in [&command, &query] {
        shop.get("/readyz", None, &[]).await;
    }
    let lines = json!({ "lines": [{ "product_id": product, "quantity": 1 }] });
    send(&command, Method::POST, "/v1/orders", Some(&command.customer), Some(lines)).await;
    postgres.launch().await;
    command.ready().await;

    // The commands of the program, with what they need and with what is wrong.
    let tool = async |arguments: &[&str], settings: &[(&str, &str)]| {
        let mut program = tidemark();
        program.args(arguments).envs(settings.iter().copied()).env(TALKATIVE.0, TALKATIVE.1);
        // Some wait for a database that does not come.
        program.run_for(Duration::from_secs(10)).await
    };
    let newer = STRONG_MASTER_KEY;
    run::secret(newer);
    let both = format!("{newer},{}", crate::harness::MASTER_KEY);
    let at = [("DATABASE_URL", log.as_str()), ("TIDEMARK_VAULT_URL", &vault), ("TIDEMARK_DATA_DIR", &dir)];
    let nowhere = format!("postgres://shop:pw-nowhere-0123456789abcdef@127.0.0.1:{}/x", free_port());
    run::secret("pw-nowhere-0123456789abcdef");
    let mut told = Vec::new();
    for (arguments, settings) in [
        (&["keys", "rotate"][..], &[("TIDEMARK_DATA_DIR", dir.as_str())][..]),
        (&["keys", "rewrap"], &[&at[..], &[("TIDEMARK_MASTER_KEY", &both)]].concat()),
        (&["replay"], &at),
        (
            &["doctor", "--deploy"],
            &[&at[..], &place[..2], &[("TIDEMARK_LOG_URL", &log), ("TIDEMARK_SMTP_URL", &smtp)]].concat(),
        ),
        (&["doctor", "--deploy"], &[("TIDEMARK_LOG_URL", &nowhere), ("TIDEMARK_REDIS_URL", &plain)]),
        (&["replay"], &[("DATABASE_URL", &nowhere)]),
        (&["rebuild", "stock"], &[("TIDEMARK_LOG_URL", &log), ("TIDEMARK_VIEWS_URL", &views)]),
        (
            &["up"],
            &[("TIDEMARK_MASTER_KEY", "bm90IHRoaXJ0eS10d28gYnl0ZXMgYXQgYWxs"), ("TIDEMARK_DATA_DIR", &dir)],
        ),
        (&["up"], &[("TIDEMARK_TOKEN_SECRET", "too short a secret"), ("TIDEMARK_DATA_DIR", &dir)]),
        (&["up"], &[("DATABASE_URL", "postgre://shop:pw-nowhere-0123456789abcdef@db/x")]),
        (
            &["up"],
            &[
                ("TIDEMARK_SMTP_URL", "smtpx://shop:pw-smtp-0123456789abcdef@mail"),
                ("TIDEMARK_DATA_DIR", &dir),
            ],
        ),
        (
            &["query"],
            &[
                ("TIDEMARK_LOG_URL", &log),
                ("TIDEMARK_VIEWS_URL", &views),
                ("TIDEMARK_REDIS_URL", "http://:pw-redis-0123456789abcdef@x"),
            ],
        ),
    ] {
        told.extend(tool(arguments, settings).await);
    }
    for wrong in ["bm90IHRoaXJ0eS10d28gYnl0ZXMgYXQgYWxs", "too short a secret"] {
        run::secret(wrong);
    }
    told.extend([&first, &command, &projector, &query].map(|shop| shop.words.clone()));
    // It was said what happened, just not with what.
    for shop in [&command, &query] {
        let words = std::fs::read_to_string(&shop.words).unwrap();
        assert!(words.lines().count() > 50 && words.contains("DEBUG"), "{}", shop.words.display());
    }
    let words = std::fs::read_to_string(&command.words).unwrap();
    assert!(words.contains("a refresh token was used twice"), "{}", command.words.display());
    assert_eq!(run::found(&run::patterns(), &told).await, Vec::<String>::new());
}

/// As `openssl rand -base64 32` prints them.
const STRONG_MASTER_KEY: &str = "Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

#[tokio::test]
async fn a_secret_that_is_logged_is_found() {
    let folder = folder();
    let patterns = folder.path().join("secrets");
    let logs = folder.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    std::fs::write(&patterns, "a passphrase\nQUJD\n").unwrap();
    let check = async || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/logs-check");
        let output = tokio::process::Command::new(script).arg(folder.path()).output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check().await.0, Some(2), "no log was looked at");
    std::fs::write(logs.join("0001-up.log"), "all is well\n").unwrap();
    assert_eq!(check().await.0, Some(0));
    for leak in ["said \"A Passphrase\" again", "token=xxQUJDxx", "bytes \0\u{1}a passphrase"] {
        std::fs::write(logs.join("0002-up.log"), format!("one\n{leak}\n")).unwrap();
        let (code, told) = check().await;
        assert_eq!(code, Some(1), "{leak}");
        assert!(told.contains("0002-up.log") && !told.to_lowercase().contains("passphrase"), "{told}");
        assert!(!run::found(&patterns, std::slice::from_ref(&logs)).await.is_empty(), "{leak}");
    }
    std::fs::write(&patterns, "").unwrap();
    assert_eq!(check().await.0, Some(2), "no secret was looked for");
}
