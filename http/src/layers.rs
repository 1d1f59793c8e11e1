//! What every request passes on its way in and out: a bound on how many there are, a time-out, security headers,
//! figures, compression, and an answer even when a handler panics.

use std::convert::Infallible;
use std::num::NonZeroU32;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use metrics::{Counter, Histogram};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tower::{Layer, Service};

use crate::client::{Charged, Client};
use crate::front::Front;
use crate::limits::{Class, Standing};
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

impl Gate {
    /// Takes a place for a request, if there is room for one of its worth.
    fn take_place(&self, worth: Worth) -> bool {
        let room = worth.room(self.requests);
        let taken = self.at_work.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at_work| {
            (at_work < room).then_some(at_work + 1)
        });
        taken.is_ok()
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
    // Handlers without a state are made into services once, and not for each request.
    router.with_state(()).layer(Around(gate))
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

/// The layer.
#[derive(Clone)]
struct Around(Arc<Gate>);

impl<S> Layer<S> for Around {
    type Service = Passage<S>;

    fn layer(&self, inner: S) -> Passage<S> {
        Passage { way: Arc::new(Way { gate: Arc::clone(&self.0), known: OnceLock::new() }), inner }
    }
}

/// A handler with the layer around it. A service of our own, and no middleware of axum's: that would clone the handler
/// and box the request's way through it twice more, a fifth of what all of this costs a read.
#[derive(Clone)]
struct Passage<S> {
    way: Arc<Way>,
    inner: S,
}

/// What is in front of one handler.
struct Way {
    gate: Arc<Gate>,
    known: OnceLock<Known>,
}

/// What is known of a handler since its first request.
struct Known {
    /// The route, like `/v1/products/{id}`.
    route: Box<str>,
    cost: NonZeroU32,
    figures: [OnceLock<Figures>; METHODS.len()],
}

impl Way {
    fn known(&self, extensions: &Extensions) -> &Known {
        self.known.get_or_init(|| {
            let route = extensions.get::<MatchedPath>().map_or(UNMATCHED, MatchedPath::as_str);
            Known { route: route.into(), cost: limits::cost(route), figures: Default::default() }
        })
    }
}

impl<S> Service<Request> for Passage<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + Unpin,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Passing<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Passing<S::Future> {
        let started = Instant::now();
        let gate = &self.way.gate;
        let known = self.way.known(request.extensions());
        let address = gate.front.proxies.client(client::peer(request.extensions()), request.headers());
        let class = Class::of(request.method(), &known.route);
        let worth = Worth::of(class, request.headers());
        let mut passing = Passing {
            way: Arc::clone(&self.way),
            started,
            method: method_index(request.method()),
            origin: request.headers().get(header::ORIGIN).cloned(),
            standing: None,
            more: None,
            has_place: false,
            answer: Answer::Gone,
            timer: None,
        };
        let charged = class.map_or(Ok(None), |class| gate.front.rates.charge(class, address, known.cost));
        if let Some(problem) = misdirected(&gate.front, worth, &request) {
            return passing.refused(problem.into_response());
        }
        match charged {
            Ok(standing) => passing.standing = standing,
            Err(refusal) => return passing.refused(refusal.refused().into_response()),
        }
        // Reads are charged here alone, and are what there is most of.
        if class != Some(Class::Reads) {
            let more = Charged::default();
            let client = Client::new(address, gate.front.rates.clone(), more.clone());
            request.extensions_mut().insert(client);
            passing.more = Some(more);
        }
        passing.has_place = gate.take_place(worth);
        if !passing.has_place && worth != Worth::Health {
            return passing.refused(shed(worth));
        }
        if !request.body().is_end_stream() {
            request = request.map(|body| Body::new(Paced::new(body, gate.pace, Arc::clone(&gate.bodies))));
        }
        passing.answer = if compression::is_asked_for(request.headers()) {
            Answer::Encoded(Box::pin(compression::encoded(self.inner.clone(), request)))
        } else {
            Answer::Plain(self.inner.call(request))
        };
        passing
    }
}

/// A request on its way to its answer, within the bounds of how many there are and how long it takes.
struct Passing<F> {
    way: Arc<Way>,
    started: Instant,
    method: usize,
    origin: Option<HeaderValue>,
    /// Where the client stands, if the answer has to tell.
    standing: Option<Standing>,
    more: Option<Charged>,
    has_place: bool,
    answer: Answer<F>,
    /// Set when the answer is not there at once, as it is when a cache has it.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Where an answer comes from.
enum Answer<F> {
    /// Nobody had to be asked.
    There(Response),
    /// The handler, for a client that takes it as it is.
    Plain(F),
    /// The handler, through the layer that compresses.
    Encoded(BoxFuture<'static, Response>),
    /// It has been given.
    Gone,
}

impl<F: Future<Output = Result<Response, Infallible>> + Unpin> Answer<F> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Response> {
        match self {
            Self::Plain(answer) => {
                let Ok(response) = ready!(Pin::new(answer).poll(context));
                Poll::Ready(compression::plain(response))
            }
            Self::Encoded(answer) => answer.as_mut().poll(context),
            Self::There(_) | Self::Gone => match std::mem::replace(self, Self::Gone) {
                Self::There(response) => Poll::Ready(response),
                _ => Poll::Pending,
            },
        }
    }
}

impl<F> Passing<F> {
    fn refused(mut self, response: Response) -> Self {
        self.answer = Answer::There(response);
        self
    }

    fn leave_place(&mut self) {
        if std::mem::take(&mut self.has_place) {
            self.way.gate.at_work.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What every answer gets.
    fn finish(&mut self, response: &mut Response) {
        let status = response.status().as_u16();
        let (front, headers) = (&self.way.gate.front, response.headers_mut());
        if let Some(standing) = &self.standing {
            standing.tell(headers);
        }
        if let Some(more) = &self.more {
            more.tell(headers);
        }
        headers.reserve(HEADERS.saturating_sub(headers.len()));
        for (name, value) in &SECURITY {
            headers.entry(name).or_insert_with(|| value.clone());
        }
        if headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html")) {
            headers.extend(OF_PAGES.iter().cloned());
        }
        if front.secure {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
        }
        if self.origin.is_some() && !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            front.origins.tell(self.origin.take(), headers);
        }
        if let Some(known) = self.way.known.get() {
            known.record(self.method, status, self.started);
        }
    }
}

impl<F: Future<Output = Result<Response, Infallible>> + Unpin> Future for Passing<F> {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let polled = panic::catch_unwind(AssertUnwindSafe(|| this.answer.poll(context)));
        let mut response = match polled {
            Ok(Poll::Ready(response)) => response,
            Ok(Poll::Pending) => {
                let within = this.way.gate.answer_within;
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
                ready!(timer.as_mut().poll(context));
                let problem = Problem::new(&problem::UNAVAILABLE, "the answer took too long");
                problem.with_retry_after(1).into_response()
            }
            Err(_panic) => Problem::new(&problem::INTERNAL, "a fault of the service").into_response(),
        };
        this.leave_place();
        this.finish(&mut response);
        Poll::Ready(Ok(response))
    }
}

impl<F> Drop for Passing<F> {
    fn drop(&mut self) {
        self.leave_place();
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

/// Places for headers that an answer is made with, those of the layer included, so that it does not grow step by step.
pub const HEADERS: usize = 8;

/// Two years, for all names below, and in the lists that browsers bring along.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=63072000; includeSubDomains; preload");

const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OTHER"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The route of requests that no handler is for.
const UNMATCHED: &str = "unmatched";

fn method_index(method: &Method) -> usize {
    METHODS.iter().position(|name| *name == method.as_str()).unwrap_or(METHODS.len() - 1)
}

struct Figures {
    seconds: Histogram,
    answers: [Counter; CLASSES.len()],
}

impl Known {
    fn record(&self, method: usize, status: u16, started: Instant) {
        let figures = self.figures[method].get_or_init(|| {
            let (route, method) = (self.route.to_string(), METHODS[method]);
            let answers = CLASSES.map(|class| {
                metrics::counter!(
                    "tidemark_http_requests_total",
                    "route" => route.clone(), "method" => method, "status" => class
                )
            });
            let seconds =
                metrics::histogram!("tidemark_http_request_seconds", "route" => route, "method" => method);
            Figures { seconds, answers }
        });
        figures.seconds.record(started.elapsed().as_secs_f64());
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        figures.answers[class].increment(1);
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::routing::get;
    use futures_util::poll;
    use tower::ServiceExt;

    use super::*;
    use crate::limits::{RateLimits, Rates};

    /// Answers, panics, and never answers; one read at once.
    fn router() -> Router {
        let router = Router::new()
            .route("/answer", get(async || "an answer".repeat(500)))
            .route("/panic", get(async || -> String { panic!("on purpose") }))
            .route("/never", get(async || std::future::pending::<String>().await));
        let limits = Limits { requests: 1, answer_within: Duration::from_millis(50), ..Limits::default() };
        let front = Front {
            rates: RateLimits::new(Rates::default(), None),
            proxies: crate::Proxies::default(),
            hosts: None,
            origins: crate::Origins::default(),
            secure: false,
        };
        finish(router, &limits, front)
    }

    async fn ask(router: &Router, path: &str, encodings: Option<&str>) -> Response {
        let mut request = Request::builder().uri(path);
        if let Some(encodings) = encodings {
            request = request.header(header::ACCEPT_ENCODING, encodings);
        }
        router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn status(router: &Router, path: &str, encodings: Option<&str>) -> StatusCode {
        let response = ask(router, path, encodings).await;
        assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff", "{path}");
        response.status()
    }

    #[tokio::test]
    async fn whatever_a_handler_does_there_is_an_answer_and_room_for_the_next() {
        let router = router();
        for encodings in [None, Some("gzip")] {
            for (path, expected) in [
                ("/answer", StatusCode::OK),
                ("/panic", StatusCode::INTERNAL_SERVER_ERROR),
                ("/never", StatusCode::SERVICE_UNAVAILABLE),
                ("/none", StatusCode::NOT_FOUND),
            ] {
                assert_eq!(status(&router, path, encodings).await, expected, "{path} {encodings:?}");
                assert_eq!(status(&router, "/answer", encodings).await, StatusCode::OK, "after {path}");
            }
        }
    }

    #[tokio::test]
    async fn a_request_keeps_its_place_until_it_is_given_up() {
        let router = router();
        let mut waiting = Box::pin(ask(&router, "/never", None));
        assert!(poll!(&mut waiting).is_pending());
        let refused = ask(&router, "/answer", None).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
        drop(waiting);
        assert_eq!(status(&router, "/answer", None).await, StatusCode::OK);
    }

    #[tokio::test]
    async fn who_asks_for_an_encoding_gets_it_and_others_are_told_that_it_matters() {
        let router = router();
        let encoded = ask(&router, "/answer", Some("gzip")).await;
        assert_eq!(encoded.headers()[header::CONTENT_ENCODING], "gzip");
        let plain = ask(&router, "/answer", None).await;
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        assert_eq!(plain.headers()[header::VARY], "accept-encoding");
    }
}
