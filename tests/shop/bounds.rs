//! What may wait for the log is bounded in bytes, too: too much is refused at once, and room is given back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, Executor, PgConnection};
use tidemark_command::account::{Accounts, AccountsConfig};
use tidemark_command::{Answer, CommandError, CommandState, Rejection, Request, Writer, WriterConfig};
use tidemark_events::log::{Log, connect_options};
use tidemark_http::{Access, Actor, Issuer, Role};
use tidemark_vault::{MasterKeys, Vault};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{MASTER_KEY, Postgres, SECRET, until};
use crate::log::{new_product, request};

/// What may wait, in bytes: ten units of the writer's, which each request takes whole ones of.
const ROOM: usize = 10 * 1_024;

/// A request that takes all of it.
const WHOLE: usize = ROOM - 1;

/// Takes three units; three such requests fit in, and leave one unit.
const LARGE: usize = 3_000;

/// Takes one unit.
const SMALL: usize = 500;

type Reply = Result<Answer, CommandError>;

/// A request for a new product that says to take so many bytes.
fn creation(product_id: Uuid, bytes: usize) -> Request {
    Request { bytes, ..request(new_product(product_id)) }
}

/// A writer with little room, and no shop around it.
struct Bounded {
    url: String,
    log: Log,
    writer: Writer,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _postgres: Arc<Postgres>,
}

impl Bounded {
    /// One that has written, and has all of its room.
    async fn open() -> Self {
        let postgres = Postgres::shared().await;
        let url = postgres.database().await;
        let options = connect_options(&url).unwrap();
        let pool = PgPoolOptions::new().max_connections(4).connect_with(options.clone()).await.unwrap();
        Log::migrate(&pool).await.unwrap();
        let (log, stop) = (Log::new(pool), CancellationToken::new());
        // Who waits long is refused with the same error: here nobody does.
        let start_within = Duration::from_secs(60);
        let config = WriterConfig { queue_bytes: ROOM, start_within, ..WriterConfig::default() };
        let (writer, task) = Writer::spawn(log.clone(), options, config, stop.clone());
        let bounded = Self { url, log, writer, stop, task, _postgres: postgres };
        bounded.has_all_its_room().await;
        bounded
    }

    async fn submit(&self, product_id: Uuid, bytes: usize) -> Reply {
        self.writer.submit(creation(product_id, bytes)).await
    }

    /// Hands a request in until there is room for it.
    async fn answered(&self, product_id: Uuid, bytes: usize) -> Reply {
        until("there is room", async || {
            let reply = self.submit(product_id, bytes).await;
            (!matches!(reply, Err(CommandError::Overloaded))).then_some(reply)
        })
        .await
    }

    /// Waits until a request can have all of the room.
    async fn has_all_its_room(&self) {
        self.answered(Uuid::now_v7(), WHOLE).await.unwrap();
    }

    /// Hands a request in, which is taken and has to wait.
    async fn waits(&self, product_id: Uuid, bytes: usize) -> BoxFuture<'_, Reply> {
        for _ in 0..100 {
            let mut reply = self.submit(product_id, bytes).boxed();
            let refused = match reply.as_mut().now_or_never() {
                None => return reply,
                Some(answered) => answered.map(|answer| answer.version),
            };
            assert_eq!(refused, Err(CommandError::Overloaded), "{bytes} bytes");
            // The room of the last one that was answered may be free only now.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{bytes} bytes do not fit in");
    }

    /// Hands a request in, which is refused before anything else can happen.
    fn refuses(&self, product_id: Uuid, bytes: usize) {
        let reply = self.submit(product_id, bytes).now_or_never();
        let refused = reply.expect("who is refused does not wait").map(|answer| answer.version);
        assert_eq!(refused, Err(CommandError::Overloaded), "{bytes} bytes");
    }

    /// Nothing is written as long as the connection is there and no more is said on it.
    async fn held_up(&self) -> PgConnection {
        let mut holder = PgConnection::connect(&self.url).await.unwrap();
        holder.execute("BEGIN; SELECT FROM log.head FOR UPDATE").await.unwrap();
        holder
    }

    /// Every product that the log has.
    async fn products(&self) -> BTreeSet<Uuid> {
        let products: Vec<Uuid> =
            sqlx::query_scalar("SELECT stream_id FROM log.events WHERE event_type = 'ProductCreated'")
                .fetch_all(self.log.pool())
                .await
                .unwrap();
        products.into_iter().collect()
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn what_takes_more_bytes_than_may_wait_is_refused_at_once_and_the_rest_is_done() {
    let bounded = Bounded::open().await;
    let mut holder = bounded.held_up().await;
    let fits: [Uuid; 4] = std::array::from_fn(|_| Uuid::now_v7());
    let too_much: [Uuid; 3] = std::array::from_fn(|_| Uuid::now_v7());
    let mut waiting = Vec::new();
    for &product_id in &fits[..3] {
        waiting.push(bounded.waits(product_id, LARGE).await);
    }
    bounded.refuses(too_much[0], LARGE);
    // Bytes count, not requests: a small one fits in where a large one does not.
    waiting.push(bounded.waits(fits[3], SMALL).await);
    bounded.refuses(too_much[1], SMALL);
    bounded.refuses(too_much[2], usize::MAX);

    holder.execute("ROLLBACK").await.unwrap();
    for (reply, product_id) in join_all(waiting).await.into_iter().zip(fits) {
        assert_eq!(reply.unwrap().outcomes[0].as_ref().unwrap().id, product_id);
    }
    bounded.has_all_its_room().await;
    let written = bounded.products().await;
    assert!(fits.iter().all(|product_id| written.contains(product_id)), "{written:?}");
    assert!(!too_much.iter().any(|product_id| written.contains(product_id)), "{written:?}");
    for product_id in too_much {
        let answer = bounded.answered(product_id, SMALL).await.unwrap();
        assert_eq!(answer.version, 1, "it is done now, for the first time");
    }
    // What is larger than all of the room never fits in.
    bounded.refuses(Uuid::now_v7(), ROOM);
    bounded.end().await;
}

#[tokio::test]
async fn the_room_of_who_is_rejected_or_goes_away_is_given_back() {
    let bounded = Bounded::open().await;
    let product_id = Uuid::now_v7();
    bounded.answered(product_id, SMALL).await.unwrap();
    let rejected = bounded.answered(product_id, LARGE).await.unwrap_err();
    assert!(matches!(rejected, CommandError::Rejected(Rejection::SkuTaken { .. })), "{rejected}");
    bounded.has_all_its_room().await;

    let mut holder = bounded.held_up().await;
    let given_up = bounded.waits(Uuid::now_v7(), WHOLE).await;
    bounded.refuses(Uuid::now_v7(), SMALL);
    drop(given_up);
    holder.execute("ROLLBACK").await.unwrap();
    bounded.has_all_its_room().await;
    bounded.end().await;
}

/// The routes of commands before a writer with little room, which the program has no setting for.
#[derive(Clone)]
struct Routes {
    products: String,
    token: String,
    client: reqwest::Client,
    has_keys: bool,
}

impl Routes {
    async fn before(bounded: &Bounded, has_keys: bool) -> Self {
        let pool = bounded.log.pool().clone();
        let vault = Vault::open(pool.clone(), MasterKeys::parse(MASTER_KEY).unwrap()).await.unwrap();
        let issuer = Issuer::hs256(SECRET.as_bytes()).unwrap();
        let staff = Actor { subject: Uuid::now_v7(), role: Role::Staff, session: None };
        let token = issuer.issue(&staff, Duration::from_secs(600)).unwrap();
        let sign = Arc::new(move |actor: &Actor, ttl: Duration| issuer.issue(actor, ttl));
        let accounts =
            Accounts::new(bounded.log.clone(), pool, vault, sign, AccountsConfig::default()).unwrap();
        let access = Access::hs256(SECRET.as_bytes()).unwrap();
        let state = CommandState { writer: bounded.writer.clone(), access, accounts };
        let (router, _document) = tidemark_command::routes(state).split_for_parts();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let products = format!("http://{}/v1/products", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { products, token, client: reqwest::Client::new(), has_keys }
    }

    /// Asks for a product, under its SKU as the key or without one; that, and the answer.
    async fn create(self, sku: String, letters: usize) -> (String, reqwest::Response) {
        let price = json!({ "amount": 1, "currency": "EUR" });
        let body = json!({ "sku": sku, "name": "Thing", "description": "x".repeat(letters), "price": price });
        let request = self.client.post(&self.products).bearer_auth(&self.token).json(&body);
        let request = if self.has_keys { request.header("Idempotency-Key", &sku) } else { request };
        (sku, request.send().await.unwrap())
    }
}

#[tokio::test]
async fn a_body_that_there_is_no_room_for_is_answered_503_and_can_be_sent_again() {
    // Most commands of the staff need no key, and their bodies are the longest.
    tokio::join!(no_room(true), no_room(false));
}

async fn no_room(has_keys: bool) {
    let bounded = Bounded::open().await;
    let routes = Routes::before(&bounded, has_keys).await;
    let before = bounded.products().await.len();
    let mut holder = bounded.held_up().await;
    // Each takes four of the ten units: two fit in, whichever come first.
    let mut answers = JoinSet::new();
    for n in 0..3 {
        answers.spawn(routes.clone().create(format!("LARGE-{n}"), LARGE));
    }
    let (refused, answer) = answers.join_next().await.unwrap().unwrap();
    assert_eq!(answer.status(), 503, "{refused}");
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["type"], "/problems/overloaded", "{problem}");
    // What is small fits in: nobody else is answered as long as nothing can be written.
    answers.spawn(routes.clone().create("SMALL".to_owned(), 1));
    let next = tokio::time::timeout(Duration::from_millis(500), answers.join_next()).await;
    assert!(next.is_err(), "{next:?}");

    holder.execute("ROLLBACK").await.unwrap();
    for (sku, answer) in answers.join_all().await {
        assert_eq!(answer.status(), 201, "{sku}");
    }
    let again = until("there is room again", async || {
        let (_, answer) = routes.clone().create(refused.clone(), LARGE).await;
        (answer.status() == 201).then_some(answer)
    })
    .await;
    assert!(!again.headers().contains_key("idempotency-replayed"), "nothing had been done under its key");
    assert_eq!(bounded.products().await.len(), before + 4, "each of them once");
    bounded.end().await;
}
