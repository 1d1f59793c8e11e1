//! Rate limits: by the client's address behind trusted proxies, in one process and over several.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tidemark_http::{Class, RateLimits};

use crate::harness::{Answer, Postgres, Shop, until};
use crate::servers::Redis;

async fn shop(settings: &[(&str, &str)]) -> (Shop, std::sync::Arc<Postgres>) {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let settings = [&[("DATABASE_URL", url.as_str())], settings].concat();
    (Shop::part("up", &url, &settings).await, postgres)
}

async fn read(shop: &Shop, from: &str) -> Answer {
    shop.get("/v1/products", None, &[("X-Forwarded-For", from)]).await
}

#[tokio::test]
async fn who_asks_too_often_waits_and_nobody_else_does() {
    let settings =
        [("TIDEMARK_LIMITS", "reads=4/h,commands=3/h"), ("TIDEMARK_TRUSTED_PROXIES", "127.0.0.0/8,::1")];
    let (shop, _postgres) = shop(&settings).await;
    let answers =
        [read(&shop, "192.0.2.1").await, read(&shop, "192.0.2.1").await, read(&shop, "192.0.2.1").await];
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(answers[0].header("ratelimit"), "", "not told while there is plenty");
    assert_eq!(answers[2].header("ratelimit"), "\"reads\";r=1;t=2700");
    assert_eq!(answers[2].header("ratelimit-policy"), "\"reads\";q=4;w=3600");
    assert_eq!(read(&shop, "192.0.2.1").await.header("ratelimit"), "\"reads\";r=0;t=3600");
    // What a client wrote itself stands to the left of what its proxy says.
    for from in ["192.0.2.1", "203.0.113.5, 192.0.2.1", "192.0.2.1, 127.0.0.9", "192.0.2.1:4711"] {
        let refused = read(&shop, from).await;
        assert_eq!((refused.status, refused.problem()), (429, "rate-limited"), "{from}: {}", refused.text);
        let wait: u32 = refused.header("retry-after").parse().unwrap();
        assert!((890..=900).contains(&wait), "{wait}");
        assert_eq!(refused.header("ratelimit-policy"), "\"reads\";q=4;w=3600");
        assert!(
            refused.header("ratelimit").starts_with("\"reads\";r=0;t="),
            "{}",
            refused.header("ratelimit")
        );
        assert_eq!(refused.header("content-type"), "application/problem+json");
        assert_eq!(refused.header("x-content-type-options"), "nosniff");
    }
    assert_eq!(read(&shop, "192.0.2.2").await.status, 200);
    for _ in 0..20 {
        assert_eq!(shop.get("/livez", None, &[("X-Forwarded-For", "192.0.2.1")]).await.status, 200);
        assert_eq!(shop.get("/readyz", None, &[("X-Forwarded-For", "192.0.2.1")]).await.status, 200);
    }

    // Commands have their own count, and one that is refused writes nothing.
    let make = async |number: u32| {
        let body =
            json!({ "sku": format!("S-{number}"), "name": "N", "price": { "amount": 1, "currency": "EUR" } });
        let from = [("X-Forwarded-For", "192.0.2.1")];
        shop.send(Method::POST, "/v1/products", Some(&shop.staff), &from, Some(body)).await.unwrap()
    };
    for number in 0..3 {
        let made = make(number).await;
        assert_eq!(made.status, 201, "{}", made.text);
        assert!(made.header("ratelimit").starts_with(&format!("\"commands\";r={};", 2 - number)));
    }
    assert_eq!(make(3).await.status, 429);
    let events: i64 =
        sqlx::query_scalar("SELECT position FROM log.head").fetch_one(&shop.pool().await).await.unwrap();
    assert_eq!(events, 6, "two of each product");
    let metrics = shop.get("/metrics", None, &[]).await.text;
    assert!(metrics.contains("tidemark_rate_limited_total{class=\"reads\"} 4"), "{metrics}");
    assert!(metrics.contains("tidemark_rate_limited_total{class=\"commands\"} 1"), "{metrics}");
}

#[tokio::test]
async fn nobody_is_believed_who_is_not_trusted() {
    let (shop, _postgres) = shop(&[("TIDEMARK_LIMITS", "reads=4/h,commands=off")]).await;
    for number in 0..4 {
        assert_eq!(read(&shop, &format!("192.0.2.{number}")).await.status, 200);
    }
    assert_eq!(read(&shop, "192.0.2.200").await.status, 429, "they all came from one address");
    let many = (0..50).map(|n| shop.post("/v1/products", json!({ "nothing": n })));
    for answer in futures_util::future::join_all(many).await {
        assert_ne!(answer.status, 429, "the class is switched off");
    }
}

#[tokio::test]
async fn every_answer_of_a_guarded_class_tells_what_is_left() {
    let settings = [
        ("TIDEMARK_LIMITS", "log-in=5/h,recovery=4/h,commands=off"),
        ("TIDEMARK_TRUSTED_PROXIES", "127.0.0.1"),
    ];
    let (shop, _postgres) = shop(&settings).await;
    let post = async |path: &str, from: &str, body: serde_json::Value| {
        let from = [("X-Forwarded-For", from)];
        shop.send(Method::POST, path, None, &from, Some(body)).await.unwrap()
    };
    let told = |answer: &Answer, name: &str| {
        let all = answer.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned());
        all.collect::<Vec<_>>()
    };
    const POLICY: &str = "\"log-in\";q=5;w=3600";
    let (email, password) = ("told@example.org", "correct horse battery staple");
    let registration = json!({ "email": email, "password": password });
    let registered = post("/v1/accounts", "192.0.2.1", registration).await;
    assert_eq!(
        (registered.status, told(&registered, "ratelimit")),
        (202, vec!["\"recovery\";r=3;t=900".to_owned()])
    );
    assert_eq!(told(&registered, "ratelimit-policy"), ["\"recovery\";q=4;w=3600"]);
    let weak = post("/v1/accounts", "192.0.2.1", json!({ "email": email, "password": "password1234" })).await;
    assert_eq!((weak.status, told(&weak, "ratelimit")), (422, vec!["\"recovery\";r=2;t=1800".to_owned()]));
    // Not verified, wrong, verified and right, each of an address of its own: at the account one less each time.
    let log_in = async |from: &str, password: &str| {
        post("/v1/sessions", from, json!({ "email": email, "password": password })).await
    };
    let left = |answer: &Answer| {
        assert_eq!(told(answer, "ratelimit-policy"), [POLICY], "{}", answer.text);
        let all = told(answer, "ratelimit");
        assert_eq!(all.len(), 1, "{all:?}");
        let rest = all[0].strip_prefix("\"log-in\";r=").unwrap().to_owned();
        rest.split_once(';').unwrap().0.parse::<u32>().unwrap()
    };
    let unverified = log_in("192.0.2.2", password).await;
    assert_eq!((unverified.status, left(&unverified)), (403, 4));
    let token = crate::accounts::mailed(&shop, email, "Please verify your e-mail address", 1).await;
    let verified = post("/v1/accounts/email-verifications", "192.0.2.3", json!({ "token": token })).await;
    assert_eq!((verified.status, told(&verified, "ratelimit").len()), (204, 1));
    let wrong = log_in("192.0.2.4", "not the right password").await;
    assert_eq!((wrong.status, left(&wrong)), (401, 3));
    let right = log_in("192.0.2.5", password).await;
    assert_eq!((right.status, left(&right)), (201, 2));
    // What has least left counts: at one address, here.
    for (n, expected) in [4, 3, 2, 1, 0].into_iter().enumerate() {
        let body =
            json!({ "email": format!("nobody-{n}@example.org"), "password": "not the right password" });
        let answer = post("/v1/sessions", "192.0.2.6", body).await;
        assert_eq!((answer.status, left(&answer)), (401, expected));
    }
    let refused = log_in("192.0.2.6", password).await;
    assert_eq!((refused.status, left(&refused)), (429, 0));
    // And at the account, though the address has some.
    for expected in [1, 0] {
        assert_eq!(left(&log_in("192.0.2.7", "not the right password").await), expected);
    }
    let refused = log_in("192.0.2.8", password).await;
    assert_eq!((refused.status, left(&refused)), (429, 0));
    // A command of an account says nothing of a limit that is far away.
    assert_eq!(told(&shop.post("/v1/products", json!({})).await, "ratelimit"), Vec::<String>::new());
}

#[tokio::test]
async fn what_guards_secrets_is_counted_over_all_processes() {
    let redis = Redis::start().await;
    let process = || {
        let client = redis::Client::open(redis.url()).unwrap();
        RateLimits::new("log-in=5/h,recovery=600/m:1".parse().unwrap(), Some(client))
    };
    let (one, other) = (process(), process());
    let attempt = async |process: &RateLimits| process.check(Class::LogIn, "somebody@example.com").await;
    for left in [4, 3, 2, 1, 0] {
        let process = if left % 2 == 0 { &one } else { &other };
        assert_eq!(attempt(process).await.unwrap().unwrap().remaining(), left);
    }
    for process in [&one, &other, &self::RateLimits::clone(&one)] {
        assert_eq!(attempt(process).await.unwrap_err().status(), 429);
    }
    assert!(one.check(Class::LogIn, "another@example.com").await.is_ok());
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("*").query_async(&mut redis.connection().await).await.unwrap();
    assert_eq!(keys.len(), 2, "{keys:?}");
    assert!(keys.iter().all(|key| !key.contains("example")), "no address is kept: {keys:?}");

    // A second process gets back what the first one took, when its time has passed.
    assert!(one.check(Class::Recovery, "k").await.is_ok());
    assert!(other.check(Class::Recovery, "k").await.is_err());
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(other.check(Class::Recovery, "k").await.is_ok());

    // Without Redis each process has its own bound, and nobody gets an error or waits long.
    redis.kill();
    for process in [process(), process()] {
        let begun = std::time::Instant::now();
        for _ in 0..5 {
            assert!(attempt(&process).await.is_ok());
        }
        assert!(attempt(&process).await.is_err());
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    redis.launch().await;
    let (one, other) = (process(), process());
    until("they count together again", async || {
        let key = uuid::Uuid::now_v7().to_string();
        one.check(Class::LogIn, &key).await.ok()?;
        let after = other.check(Class::LogIn, &key).await.ok()??;
        (after.remaining() == 3).then_some(())
    })
    .await;
}

/// Six log-ins at two processes in turn: of one address at accounts that differ, or the other way round.
async fn six_in_turn(processes: &[Shop; 2], of_one_address: bool, round: u16) -> Vec<Answer> {
    let mut answers = Vec::new();
    for n in 0..6_u16 {
        let (address, account) = if of_one_address { (0, n) } else { (n, 0) };
        let from = format!("2001:db8:{round:x}:{address:x}::1");
        let email = format!("somebody-{round}-{account}@example.org");
        let body = json!({ "email": email, "password": "not the right password" });
        let process = &processes[usize::from(n % 2)];
        let from = [("X-Forwarded-For", from.as_str())];
        answers.push(process.send(Method::POST, "/v1/sessions", None, &from, Some(body)).await.unwrap());
    }
    answers
}

#[tokio::test]
async fn log_ins_at_two_processes_are_counted_together() {
    let redis = Redis::start().await;
    let postgres = Postgres::shared().await;
    let log = postgres.database().await;
    let url = redis.url();
    let apart = [("TIDEMARK_LIMITS", "log-in=4/h"), ("TIDEMARK_TRUSTED_PROXIES", "127.0.0.1")];
    let together = [&apart[..], &[("TIDEMARK_LIMITS_REDIS_URL", url.as_str())]].concat();
    let apart = [Shop::part("command", &log, &apart).await, Shop::part("command", &log, &apart).await];
    let together =
        [Shop::part("command", &log, &together).await, Shop::part("command", &log, &together).await];
    let mut round = 0;
    for of_one_address in [true, false] {
        // Another round for a Redis that did not answer in time: then a process counts by itself, as it should.
        let answers = until("both count together", async || {
            round += 1;
            let answers = six_in_turn(&together, of_one_address, round).await;
            let statuses = answers.iter().map(|answer| answer.status);
            statuses.eq([401, 401, 401, 401, 429, 429]).then_some(answers)
        })
        .await;
        for refused in &answers[4..] {
            assert_eq!(refused.problem(), "rate-limited");
            let wait: u32 = refused.header("retry-after").parse().unwrap();
            assert!((1..=900).contains(&wait), "{wait}");
        }
        // Three are not too many for either of them alone.
        round += 1;
        for answer in six_in_turn(&apart, of_one_address, round).await {
            assert_eq!(answer.status, 401, "{}", answer.text);
        }
    }
}

#[tokio::test]
async fn a_redis_that_hangs_holds_nobody_up() {
    let redis = Redis::start().await;
    let limits =
        RateLimits::new("log-in=50/h".parse().unwrap(), Some(redis::Client::open(redis.url()).unwrap()));
    assert!(limits.check(Class::LogIn, "a").await.is_ok());
    redis.pause();
    let begun = std::time::Instant::now();
    for _ in 0..49 {
        assert!(limits.check(Class::LogIn, "a").await.is_ok());
    }
    assert!(limits.check(Class::LogIn, "a").await.is_err());
    // It is asked once a second at most, and not for long; each time would be five seconds or more.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    redis.go_on();
}
