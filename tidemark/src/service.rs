//! What every process of the shop has: signals, an address to listen on, an end in order, metrics and health.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use tidemark_events::log::Log;
use tidemark_http::{Door, Limits, finish, problem, serve};
use tidemark_query::QueryState;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::config::ServeOptions;
use crate::{Failure, cluster, document};

pub(crate) async fn join(task: tokio::task::JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(%error, "a part ended badly");
    }
}

/// Connections that wait until they are accepted.
const BACKLOG: u32 = 1_024;

/// An address that is this process's, and where nobody is let in yet.
#[derive(Debug)]
pub(crate) struct Address {
    socket: TcpSocket,
    address: SocketAddr,
}

impl Address {
    /// Takes the address before anything else is begun. Whoever connects is refused until [`Address::open`]: a proxy then
    /// asks another service at once, and does not let a request wait for one that is being started.
    pub(crate) fn take(address: SocketAddr) -> Result<Self, Failure> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(socket)
        });
        Ok(Self { socket: socket.map_err(|error| not_free(address, &error))?, address })
    }

    fn open(self) -> Result<TcpListener, Failure> {
        let Self { socket, address } = self;
        socket.listen(BACKLOG).map_err(|error| not_free(address, &error))
    }
}

fn not_free(address: SocketAddr, error: &std::io::Error) -> Failure {
    Failure::Configuration(format!(
        "TIDEMARK_LISTEN (--listen): cannot listen on {address}: {error}; a free address of this machine is expected"
    ))
}

/// How long a process that is being started lets nobody in because it cannot answer from its views yet. They may be away
/// for long, and not all that it answers needs them.
const READY_WITHIN: Duration = Duration::from_secs(3);

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

async fn until_ready(query: &QueryState) {
    while !query.is_ready() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Lets clients in, says so, and serves until `stop`, within the limits given.
pub(crate) async fn serve_until(
    address: Address,
    routes: OpenApiRouter,
    health: Health,
    options: &ServeOptions,
    says: &str,
) -> Result<(), Failure> {
    let stop = health.stop.clone();
    if let Some(query) = &health.query {
        let ready = tokio::time::timeout(READY_WITHIN, until_ready(query));
        stop.run_until_cancelled(ready).await;
    }
    let router = router(routes, health);
    let limits = Limits {
        requests: usize::try_from(options.max_requests).unwrap_or(usize::MAX),
        connections: usize::try_from(options.max_connections).unwrap_or(usize::MAX),
        connections_of_address: usize::try_from(options.front.max_connections_of_address)
            .unwrap_or(usize::MAX),
        ..Limits::default()
    };
    let front = options.front.front();
    if front.hosts.is_none() && !options.listen.ip().is_loopback() {
        tracing::warn!("TIDEMARK_ALLOWED_HOSTS is not set: requests for any host are answered");
    }
    let sweeping = tokio::spawn(front.rates.clone().keep_small(stop.clone()));
    let door = Door { proxies: front.proxies.clone(), tls: options.front.tls()? };
    let following = door.tls.clone().map(|tls| tokio::spawn(tls.follow(stop.clone())));
    let listener = address.open()?;
    tracing::info!("{says} on http://{}", options.listen);
    let served = serve(listener, finish(router, &limits, front), limits, door, stop).await;
    join(sweeping).await;
    if let Some(following) = following {
        join(following).await;
    }
    tracing::info!("stopping: no new requests, finishing what is in hand");
    served.map_err(Failure::io("serving"))
}

/// What a process begins with; `None`: it was told to stop meanwhile.
pub(crate) async fn unless_stopped<T>(
    stop: &CancellationToken,
    begun: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    stop.run_until_cancelled(begun).await.transpose()
}

/// The first signal ends the shop in order, the second at once.
pub(crate) fn stop_on_signals(stop: &CancellationToken) -> Result<(), Failure> {
    let cannot = "cannot take signals";
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::io(cannot))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::io(cannot))?;
    let stop = stop.clone();
    tokio::spawn(async move {
        for again in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if again {
                tracing::warn!("stopping at once");
                cluster::tell_to_stop();
                std::process::exit(130);
            }
            stop.cancel();
        }
    });
    Ok(())
}

/// Says of the page's texts how their letters are encoded.
async fn in_utf8(mut response: Response) -> Response {
    if let Some(kind) = response.headers_mut().get_mut(header::CONTENT_TYPE)
        && let Some(encoded) =
            kind.to_str().ok().filter(|kind| kind.starts_with("text/") && !kind.contains("charset"))
        && let Ok(encoded) = HeaderValue::try_from(format!("{encoded}; charset=utf-8"))
    {
        *kind = encoded;
    }
    response
}

/// A process's routes with what every process answers: the API's document and page, health, metrics, problems.
fn router(routes: OpenApiRouter, health: Health) -> Router {
    let (api, _) = routes.split_for_parts();
    // The page's own scripts and styles, nothing else. The hash is of the style within its logo.
    let policy = HeaderValue::from_static(
        "default-src 'none'; script-src 'self'; \
         style-src 'self' 'sha256-RL3ie0nH+Lzz2YNqQN83mnU0J1ot4QL7b99vMdIX99w='; img-src 'self' data:; \
         connect-src 'self'; frame-ancestors 'none'",
    );
    let docs = Router::<()>::from(
        SwaggerUi::new("/docs").external_url_unchecked("/openapi.json", document::document()),
    )
    .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy))
    .layer(middleware::map_response(in_utf8));
    let operations = Router::new()
        .route("/livez", get(async || StatusCode::OK))
        .route("/readyz", get(ready))
        .route("/metrics", get(async |State(health): State<Health>| health.metrics.render()))
        .with_state(health);
    api.merge(docs).merge(operations).merge(problem::pages())
}

/// What a process must have to do its work, and its metrics.
#[derive(Clone)]
pub(crate) struct Health {
    /// The log that it reads or writes.
    pub(crate) log: Log,
    /// The views that it serves, if it does.
    pub(crate) query: Option<QueryState>,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) stop: CancellationToken,
}

/// 200 when the shop can do its work, else 503 with what is missing.
async fn ready(State(health): State<Health>) -> impl IntoResponse {
    const ASK_WITHIN: Duration = Duration::from_secs(1);
    let mut missing = Vec::new();
    if health.stop.is_cancelled() {
        missing.push("the shop is stopping");
    }
    if !tokio::time::timeout(ASK_WITHIN, health.log.head()).await.is_ok_and(|head| head.is_ok()) {
        missing.push("the log's database does not answer");
    }
    if health.query.is_some_and(|query| !query.is_ready()) {
        missing.push("the views cannot be followed");
    }
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": missing.is_empty(), "missing": missing })))
}
