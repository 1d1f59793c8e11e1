//! One client: sends a request again with the same key until it has a definite answer, and notes what it was told.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::access::{Actor, Signer};
use crate::error::ChaosError;
use crate::history::{Accepted, Ask, End, History, Intent, Read, Target, Wait};

/// How long one attempt may take before the client hangs up and asks again.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(3);

/// The first pause before asking again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// The most findings that one client writes down.
const MOST_WRONG: usize = 20;

/// How many orders or products a list shows.
pub(crate) const PAGE: usize = 10;

/// What all clients of a run share.
#[derive(Clone)]
pub(crate) struct Shop {
    /// Where they send to.
    pub(crate) front: String,
    /// Signs their tokens.
    pub(crate) signer: Signer,
    /// When the run began.
    pub(crate) began: Instant,
    /// No answer is waited for beyond this.
    pub(crate) give_up: CancellationToken,
}

/// A client.
pub(crate) struct Client {
    shop: Shop,
    http: reqwest::Client,
    tokens: HashMap<Actor, String>,
    random: fastrand::Rng,
    /// When the newest attempt was sent.
    last_sent: Duration,
    /// What it did and saw.
    pub(crate) history: History,
}

/// What came back of one attempt.
struct Reply {
    status: u16,
    position: Option<String>,
    etag: Option<String>,
    retry_after: bool,
    body: Bytes,
}

impl Reply {
    /// What must be the same each time a command is asked for with one key.
    fn essence(&self) -> (u16, &Option<String>, &Option<String>, &Bytes) {
        (self.status, &self.position, &self.etag, &self.body)
    }
}

#[derive(Deserialize)]
struct CommandAnswer {
    id: Uuid,
    status: String,
    version: i64,
    position: i64,
}

#[derive(Debug, Default, Deserialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    detail: String,
}

impl Problem {
    /// What a refusal says (RFC 9457): nothing, where it is no problem.
    fn read(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }
}

impl Client {
    /// A client with choices of its own.
    ///
    /// # Errors
    /// [`ChaosError::Wrong`] when the HTTP client cannot be made.
    pub(crate) fn new(shop: &Shop, seed: u64) -> Result<Self, ChaosError> {
        let http = reqwest::Client::builder()
            .timeout(ATTEMPT_WITHIN)
            .pool_max_idle_per_host(1)
            .build()
            .map_err(|error| ChaosError::Wrong(format!("the HTTP client: {error}")))?;
        Ok(Self {
            shop: shop.clone(),
            http,
            tokens: HashMap::new(),
            random: fastrand::Rng::with_seed(seed),
            last_sent: Duration::ZERO,
            history: History::default(),
        })
    }

    /// Its choices.
    pub(crate) fn random(&mut self) -> &mut fastrand::Rng {
        &mut self.random
    }

    /// An id that follows from its choices.
    pub(crate) fn id(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.random.u128(..).to_be_bytes()).into_uuid()
    }

    /// Time since the run began.
    pub(crate) fn now(&self) -> Duration {
        self.shop.began.elapsed()
    }

    fn token(&mut self, actor: Actor) -> Result<String, ChaosError> {
        if let Some(token) = self.tokens.get(&actor) {
            return Ok(token.clone());
        }
        let token = self.shop.signer.bearer(actor)?;
        self.tokens.insert(actor, token.clone());
        Ok(token)
    }

    /// Has something done; now and then it asks for it twice.
    pub(crate) async fn command(&mut self, actor: Actor, ask: Ask) -> Result<Option<Accepted>, ChaosError> {
        let (intent, reply) = self.submit(actor, ask).await?;
        let accepted = match &intent.end {
            End::Accepted(accepted) => Some(accepted.clone()),
            _ => None,
        };
        if let (Some(first), true) = (reply, accepted.is_some() && self.random.u8(..) < 8) {
            self.repeat(&intent, &first).await?;
        }
        self.history.intents.push(intent);
        Ok(accepted)
    }

    /// Has something done, and notes how long that took. Returns when its last attempt was sent and the answer, if it was
    /// done.
    pub(crate) async fn timed_command(
        &mut self,
        actor: Actor,
        ask: Ask,
    ) -> Result<Option<(Duration, Accepted)>, ChaosError> {
        let (intent, _) = self.submit(actor, ask).await?;
        let wait = Wait { from: intent.sent, to: intent.done, errors: intent.attempts - 1 };
        let accepted = match &intent.end {
            End::Accepted(accepted) => Some((self.last_sent, accepted.clone())),
            _ => None,
        };
        self.history.write_waits.push(wait);
        self.history.intents.push(intent);
        Ok(accepted)
    }

    async fn submit(&mut self, actor: Actor, ask: Ask) -> Result<(Intent, Option<Reply>), ChaosError> {
        let trace = self.id();
        let token = self.token(actor)?;
        let sent = self.now();
        let (mut attempts, mut pause) = (0, FIRST_PAUSE);
        let mut answered = None;
        let end = loop {
            attempts += 1;
            let last = match self.attempt(&ask, &token, trace).await {
                Ok(reply) => match self.definite(&ask, &reply) {
                    Some(end) => {
                        answered = Some(reply);
                        break end;
                    }
                    None => format!("status {}", reply.status),
                },
                Err(text) => text,
            };
            if self.shop.give_up.is_cancelled() {
                break End::Unknown { last };
            }
            self.history.retries += 1;
            tokio::time::sleep(pause.mul_f64(0.5 + self.random.f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        let done = self.now();
        Ok((Intent { trace, actor, ask, sent, done, attempts, end }, answered))
    }

    async fn attempt(&mut self, ask: &Ask, token: &str, trace: Uuid) -> Result<Reply, String> {
        let (method, path) = ask.route();
        let headers = [
            ("authorization", token.to_owned()),
            ("idempotency-key", trace.to_string()),
            ("traceparent", format!("00-{}-00000000000000c5-01", trace.simple())),
        ];
        let body = ask.body().map(|body| body.to_string());
        self.send(ask.name(), method, &path, &headers, body).await
    }

    /// A repetition of what was acknowledged must be told the same.
    async fn repeat(&mut self, intent: &Intent, first: &Reply) -> Result<(), ChaosError> {
        let token = self.token(intent.actor)?;
        if let Ok(again) = self.attempt(&intent.ask, &token, intent.trace).await
            && !(502..=504).contains(&again.status)
        {
            self.history.repeated += 1;
            if again.essence() != first.essence() {
                let said = |reply: &Reply| {
                    let (position, body) = (reply.position.as_deref(), String::from_utf8_lossy(&reply.body));
                    format!("{} at {position:?}: {body}", reply.status)
                };
                let (name, key) = (intent.ask.name(), intent.trace);
                let text = format!("key {key} of {name}: first {}, then {}", said(first), said(&again));
                self.wrong(text);
            }
        }
        Ok(())
    }

    /// An answer that says what was done, if it is one.
    fn definite(&mut self, ask: &Ask, reply: &Reply) -> Option<End> {
        match reply.status {
            200 | 201 => {
                let told = serde_json::from_slice::<CommandAnswer>(&reply.body).ok();
                let place = reply.position.as_deref().and_then(parse_position);
                let (Some(told), Some((epoch, position))) = (told, place) else {
                    let body = String::from_utf8_lossy(&reply.body).into_owned();
                    self.wrong(format!("{} was answered {} with {body}", ask.name(), reply.status));
                    return None;
                };
                if told.position != position {
                    self.wrong(format!(
                        "{}: body says position {}, header {position}",
                        ask.name(),
                        told.position
                    ));
                }
                let CommandAnswer { id, status, version, .. } = told;
                Some(End::Accepted(Accepted { id, status, version, epoch, position }))
            }
            400..=499 => {
                let Problem { kind, detail } = Problem::read(&reply.body);
                Some(End::Refused { status: reply.status, kind, detail })
            }
            _ => None,
        }
    }

    /// Reads something, again and again until it is answered. `None`: given up after `within`.
    pub(crate) async fn read(
        &mut self,
        actor: Option<Actor>,
        target: Target,
        after: Option<(i32, i64)>,
        within: Duration,
    ) -> Result<Option<Wait>, ChaosError> {
        let path = match &target {
            Target::Product(id) => format!("/v1/products/{id}"),
            Target::Stock(id) => format!("/v1/products/{id}/stock"),
            Target::Order(id) => format!("/v1/orders/{id}"),
            Target::Orders(_) => format!("/v1/orders?limit={PAGE}"),
            Target::Products => format!("/v1/products?sort=newest&limit={PAGE}"),
        };
        let mut headers = Vec::new();
        if let Some(actor) = actor {
            headers.push(("authorization", self.token(actor)?));
        }
        if let Some((epoch, position)) = after {
            headers.push(("tidemark-after", format!("{epoch}-{position}")));
        }
        let from = self.now();
        let (mut errors, mut pause) = (0, FIRST_PAUSE);
        loop {
            match self.send(target.name(), Method::GET, &path, &headers, None).await {
                Ok(Reply { status: status @ (200 | 404), etag, body, .. }) => {
                    let after = after.map(|(_, position)| position);
                    self.history.reads.push(Read { target, after, status, etag, body });
                    return Ok(Some(Wait { from, to: self.now(), errors }));
                }
                Ok(Reply { status: status @ 400..=499, body, .. }) => {
                    let body = String::from_utf8_lossy(&body).into_owned();
                    self.wrong(format!("{} was answered {status}: {body}", target.name()));
                    return Ok(None);
                }
                Ok(_) | Err(_) => {}
            }
            errors += 1;
            if self.shop.give_up.is_cancelled() || self.now() - from > within {
                return Ok(None);
            }
            self.history.retries += 1;
            tokio::time::sleep(pause.mul_f64(0.5 + self.random.f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Reads something, and notes how long that took.
    pub(crate) async fn timed_read(&mut self, target: Target) -> Result<(), ChaosError> {
        if let Some(wait) = self.read(None, target, None, Duration::MAX).await? {
            self.history.read_waits.push(wait);
        }
        Ok(())
    }

    async fn send(
        &mut self,
        name: &'static str,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Option<String>,
    ) -> Result<Reply, String> {
        self.last_sent = self.now();
        let mut request = self.http.request(method, format!("{}{path}", self.shop.front));
        for (header, value) in headers {
            request = request.header(*header, value);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let answered = async {
            let response = request.send().await?;
            let text = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
            let (position, etag) = (text("tidemark-position"), text("etag"));
            let (status, retry_after) = (response.status().as_u16(), text("retry-after").is_some());
            Ok::<_, reqwest::Error>(Reply {
                status,
                position,
                etag,
                retry_after,
                body: response.bytes().await?,
            })
        };
        let replied = answered.await.map_err(|error| {
            if error.is_timeout() {
                "timed out".to_owned()
            } else if error.is_connect() {
                "not connected".to_owned()
            } else {
                "connection lost".to_owned()
            }
        });
        let outcome = match &replied {
            Ok(reply) => reply.status.to_string(),
            Err(text) => text.clone(),
        };
        *self.history.answers.entry((name, outcome)).or_default() += 1;
        if let Ok(reply) = &replied {
            let body = || String::from_utf8_lossy(&reply.body).into_owned();
            match reply.status {
                503 if !reply.retry_after => {
                    self.wrong(format!("{name}: 503 without Retry-After: {}", body()))
                }
                // 502 and 504 may be nginx's own.
                200 | 201 | 400..=499 | 502..=504 => {}
                status => self.wrong(format!("{name}: status {status}, which is not documented: {}", body())),
            }
        }
        replied
    }

    fn wrong(&mut self, text: String) {
        if self.history.wrong.len() < MOST_WRONG {
            self.history.wrong.push(text);
        }
    }
}

/// `epoch-position`, as `Tidemark-Position` has it.
fn parse_position(text: &str) -> Option<(i32, i64)> {
    let (epoch, position) = text.split_once('-')?;
    Some((epoch.parse().ok()?, position.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever an answer holds, reading it does no harm, and what is a problem is read as it was written.
        #[test]
        fn problems_are_read_and_nothing_else_is_taken_for_one(
            kind in ".{0,40}",
            detail in ".{0,80}",
            more in ".{0,20}",
            cut in any::<prop::sample::Index>(),
            bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            Problem::read(&bytes);
            let written = serde_json::json!({ "type": kind, "title": "t", "status": 409, "detail": detail, "x": more });
            let written = serde_json::to_vec(&written).unwrap();
            let read = Problem::read(&written);
            prop_assert_eq!((read.kind, read.detail), (kind, detail));
            let broken_off = Problem::read(&written[..cut.index(written.len())]);
            prop_assert_eq!((broken_off.kind, broken_off.detail), (String::new(), String::new()));
        }
    }
}
