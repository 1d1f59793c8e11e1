//! What every request passes on its way in and out: a bound on how many there are, a time-out, security headers,
//! figures, compression, and an answer even when a handler panics.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, poll};
use metrics::{Counter, Histogram};
use tokio::sync::Semaphore;

use crate::client::{Charged, Client};
use crate::front::Front;
use crate::limits::Class;
use crate::pace::{Pace, Paced};
use crate::problem::{self, Problem};
use crate::{client, compression, limits};

/// Bounds of the web side.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests that are worked on at once; one more gets 503.
    pub requests: usize,
    /// Connections that are open at once; for one more, another that waits has to end.
    pub connections: usize,
    /// Connections of one address, trusted proxies apart; one more is closed at once.
    pub connections_of_address: usize,
    /// From the end of a request's head to the beginning of its answer.
    pub answer_within: Duration,
    /// From the first byte of a connection, or the end of the answer before, to the end of a request's head.
    pub head_within: Duration,
    /// How long a request's body may come as slowly as it likes.
    pub body_grace: Duration,
    /// Bytes a second of a body from then on.
    pub body_rate: u32,
    /// From a body's first to its last byte.
    pub body_within: Duration,
    /// How long a client may take nothing of an answer.
    pub taken_within: Duration,
    /// How long requests in hand may take to end when the server stops.
    pub drain_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 4_096,
            connections: 10_000,
            connections_of_address: 1_000,
            answer_within: Duration::from_secs(30),
            head_within: Duration::from_secs(15),
            body_grace: Duration::from_secs(5),
            body_rate: 1_024,
            body_within: Duration::from_secs(20),
            taken_within: Duration::from_secs(30),
            drain_within: Duration::from_secs(20),
        }
    }
}

struct Gate {
    /// Requests at work.
    at_work: AtomicUsize,
    requests: usize,
    answer_within: Duration,
    pace: Pace,
    /// For requests whose bodies are still to come.
    bodies: Arc<Semaphore>,
    front: Front,
}

/// A request at work, until it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    /// A place for a request, if there is room for one of its worth.
    fn place(&self, worth: Worth) -> Option<Place<'_>> {
        let room = worth.room(self.requests);
        let taken = self.at_work.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at_work| {
            (at_work < room).then_some(at_work + 1)
        });
        taken.is_ok().then(|| Place(&self.at_work))
    }
}

/// Puts all layers around a router, and problems in the place of its bare 404 and 405.
pub fn finish(router: Router, limits: &Limits, front: Front) -> Router {
    let origins = front.origins.layer();
    let gate = Arc::new(Gate {
        at_work: AtomicUsize::new(0),
        requests: limits.requests,
        answer_within: limits.answer_within,
        pace: Pace { grace: limits.body_grace, rate: limits.body_rate, within: limits.body_within },
        bodies: Arc::new(Semaphore::new((limits.requests / BODIES).max(1))),
        front,
    });
    let router = router
        .fallback(async || Problem::new(&problem::NOT_FOUND, "there is nothing under this path"))
        .method_not_allowed_fallback(async || {
            Problem::new(&problem::METHOD_NOT_ALLOWED, "the header Allow lists what this path takes")
        });
    let router = match origins {
        Some(origins) => router.layer(origins),
        None => router,
    };
    router.layer(middleware::from_fn_with_state(gate, pass))
}

/// The part of all requests at work whose bodies may still be on their way.
const BODIES: usize = 4;

/// What is given up first when there is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// Reads of nobody in particular: may fill half of the room.
    Anonymous,
    /// Reads of somebody: three quarters.
    Known,
    /// Commands: all of it.
    Command,
    /// What is asked about the process itself: is always answered.
    Health,
}

impl Worth {
    fn of(class: Option<Class>, headers: &HeaderMap) -> Self {
        match class {
            None => Self::Health,
            Some(Class::Reads) if headers.contains_key(header::AUTHORIZATION) => Self::Known,
            Some(Class::Reads) => Self::Anonymous,
            Some(_) => Self::Command,
        }
    }

    /// How many requests may be at work for one of these to be taken on.
    fn room(self, requests: usize) -> usize {
        match self {
            Self::Anonymous => requests.div_ceil(2),
            Self::Known => (requests - requests / 4).max(1),
            Self::Command | Self::Health => requests,
        }
    }
}

async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_index(request.method());
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or("unmatched", MatchedPath::as_str);
    let address = gate.front.proxies.client(client::peer(request.extensions()), request.headers());
    let class = Class::of(request.method(), route);
    let worth = Worth::of(class, request.headers());
    let charged =
        class.and_then(|class| Some((class, gate.front.rates.charge(class, address, limits::cost(route))?)));
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match charged {
        _ if let Some(problem) = misdirected(&gate.front, worth, &request) => problem.into_response(),
        Some((_, Err(refusal))) => refusal.refused().into_response(),
        charged => {
            // Reads are charged here alone, and are what there is most of.
            let more = (class != Some(Class::Reads)).then(Charged::default);
            if let Some(more) = &more {
                let client = Client::new(address, gate.front.rates.clone(), more.clone());
                request.extensions_mut().insert(client);
            }
            let mut response = answer(&gate, worth, request, next).await;
            if let Some((class, Ok(standing))) = charged
                // Reads are answered too often to be told each time what hardly anybody comes near to.
                && !(class == Class::Reads && standing.is_comfortable())
            {
                standing.tell(response.headers_mut());
            }
            if let Some(more) = more {
                more.tell(response.headers_mut());
            }
            response
        }
    };
    let headers = response.headers_mut();
    headers.reserve(HEADERS.saturating_sub(headers.len()));
    for (name, value) in &SECURITY {
        headers.entry(name).or_insert_with(|| value.clone());
    }
    if headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html")) {
        headers.extend(OF_PAGES.iter().cloned());
    }
    if gate.front.secure {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
    }
    if origin.is_some() && !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        gate.front.origins.tell(origin, headers);
    }
    record(route, method, response.status().as_u16(), started);
    response
}

/// The answer to a request that may come, within the bounds of how many there are and how long it takes.
async fn answer(gate: &Gate, worth: Worth, request: Request, next: Next) -> Response {
    let place = gate.place(worth);
    if place.is_none() && worth != Worth::Health {
        return shed(worth);
    }
    let request = if request.body().is_end_stream() {
        request
    } else {
        request.map(|body| Body::new(Paced::new(body, gate.pace, Arc::clone(&gate.bodies))))
    };
    let mut answer = pin!(AssertUnwindSafe(compression::answer(request, next)).catch_unwind());
    // What a cache answers is there at once, and needs no timer.
    let answered = match poll!(&mut answer) {
        Poll::Ready(answer) => Ok(answer),
        Poll::Pending => tokio::time::timeout(gate.answer_within, answer).await,
    };
    match answered {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => Problem::new(&problem::INTERNAL, "a fault of the service").into_response(),
        Err(_elapsed) => Problem::new(&problem::UNAVAILABLE, "the answer took too long")
            .with_retry_after(1)
            .into_response(),
    }
}

#[cold]
fn shed(worth: Worth) -> Response {
    let who = match worth {
        Worth::Anonymous => "anonymous",
        Worth::Known => "known",
        Worth::Command | Worth::Health => "command",
    };
    metrics::counter!("tidemark_http_shed_total", "worth" => who).increment(1);
    Problem::new(&problem::OVERLOADED, "too many requests at once").with_retry_after(1).into_response()
}

/// The problem of a request that is for somebody else, or does not say for whom. Whoever asks about the process itself
/// may know it by its address.
fn misdirected(front: &Front, worth: Worth, request: &Request) -> Option<Problem> {
    if request.headers().get_all(header::HOST).iter().nth(1).is_some() {
        return Some(Problem::new(&problem::MALFORMED_REQUEST, "the header Host is there more than once"));
    }
    let hosts = front.hosts.as_ref().filter(|_| worth != Worth::Health)?;
    let for_us = hosts.contain(request.uri(), request.headers());
    (!for_us).then(|| Problem::new(&problem::MISDIRECTED, "the header Host names none of this shop's hosts"))
}

/// Sent with every answer that does not bring its own. The API is no page: nothing may be loaded, framed or kept.
static SECURITY: [(HeaderName, HeaderValue); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Sent with pages, too: all that these are about is what a page may do, and each header costs every read its time.
static OF_PAGES: [(HeaderName, HeaderValue); 3] = [
    // For browsers that do not know `frame-ancestors`.
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(), geolocation=(), microphone=()"),
    ),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// Places for headers that an answer is given at once, so that it does not grow step by step.
const HEADERS: usize = 12;

/// Two years, for all names below, and in the lists that browsers bring along.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000; includeSubDomains; preload");

const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OTHER"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

fn method_index(method: &Method) -> usize {
    METHODS.iter().position(|name| *name == method.as_str()).unwrap_or(METHODS.len() - 1)
}

struct Figures {
    seconds: Histogram,
    answers: [Counter; CLASSES.len()],
}

thread_local! {
    /// Handles by route and method, looked up once per thread: labels are written once, not per request.
    static FIGURES: RefCell<HashMap<String, [Option<Figures>; METHODS.len()]>> = RefCell::default();
}

fn record(path: &str, method: usize, status: u16, started: Instant) {
    let elapsed = started.elapsed().as_secs_f64();
    FIGURES.with_borrow_mut(|routes| {
        let methods = match routes.get_mut(path) {
            Some(methods) => methods,
            None => routes.entry(path.to_owned()).or_default(),
        };
        let figures = methods[method].get_or_insert_with(|| Figures {
            seconds: metrics::histogram!(
                "tidemark_http_request_seconds", "route" => path.to_owned(), "method" => METHODS[method]
            ),
            answers: CLASSES.map(|class| {
                metrics::counter!(
                    "tidemark_http_requests_total",
                    "route" => path.to_owned(), "method" => METHODS[method], "status" => class
                )
            }),
        });
        figures.seconds.record(elapsed);
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        figures.answers[class].increment(1);
    });
}
