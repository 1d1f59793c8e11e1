//! `tidemark up`: the whole shop in one process.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use tidemark_command::{CommandState, Writer, WriterConfig};
use tidemark_events::log::Log;
use tidemark_http::{Limits, finish, problem, serve};
use tidemark_projector::{ProjectorConfig, Supervisor};
use tidemark_query::{QueryConfig, QueryState};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::config::UpOptions;
use crate::database::Database;
use crate::{Failure, cluster, keys};

/// Connections for reading the log.
const LOG_CONNECTIONS: u32 = 12;

/// Connections for reading it that the projectors have for themselves: one for each view that is fed, and its former.
const PROJECTOR_CONNECTIONS: u32 = 6;

/// How long the state of the parts may take to end after the last request.
const END_WITHIN: Duration = Duration::from_secs(20);

pub(crate) async fn run(options: UpOptions) -> Result<(), Failure> {
    // Before anything else: a signal during the start must end it cleanly, too.
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| Failure::Configuration(format!("cannot listen on {}: {error}", options.listen)))?;
    let database = tokio::select! {
        database = Database::open(&options.data, true) => database?,
        () = stop.cancelled() => return Ok(()),
    };
    let served = shop(&options, listener, &database, stop).await;
    database.close().await?;
    tracing::info!("stopped");
    served
}

async fn shop(
    options: &UpOptions,
    listener: TcpListener,
    database: &Database,
    stop: CancellationToken,
) -> Result<(), Failure> {
    // Parts end in the order in which they need each other: requests, then the writer, then the rest.
    let (writer_stop, parts_stop) = (CancellationToken::new(), CancellationToken::new());
    let metrics = tidemark_http::metrics::install(parts_stop.clone())
        .map_err(|error| Failure::Configuration(format!("the metrics registry: {error}")))?;
    let access = keys::access(&database.data_dir, &options.key)?;
    let log = database.log(LOG_CONNECTIONS).await?;
    let mib = |mib: u32| usize::try_from(mib).unwrap_or(usize::MAX).saturating_mul(1024 * 1024);

    let mut parts = vec![log.spawn_listener(database.options.clone(), parts_stop.clone())];
    let writer_config = WriterConfig {
        queue_commands: usize::try_from(options.queue_commands).unwrap_or(usize::MAX),
        state_bytes: mib(options.state_mib),
        ..WriterConfig::default()
    };
    let (writer, writing) =
        Writer::spawn(log.clone(), database.options.clone(), writer_config, writer_stop.clone());
    let projector_config =
        ProjectorConfig { workers: options.projector_workers, ..ProjectorConfig::default() };
    // On a runtime of their own: what folds thousands of events at a time must not make a request wait.
    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("projector")
        .enable_all()
        .build()
        .map_err(Failure::io("cannot start the projectors' runtime"))?;
    let (projected, projecting) = {
        let _context = background.enter();
        let log = log.through(database.pool(PROJECTOR_CONNECTIONS));
        let options = database.options.clone();
        (log.clone(), Supervisor::spawn(log, options, projector_config, parts_stop.clone()))
    };
    let query_config = QueryConfig { cache_bytes: mib(options.cache_mib) as u64, ..QueryConfig::default() };
    let (query, following) =
        QueryState::open(&database.options, log.clone(), access.clone(), query_config, parts_stop.clone());
    parts.extend([projecting, following]);

    let health = Health { log: log.clone(), query: query.clone(), metrics, stop: stop.clone() };
    let router = router(CommandState { writer, access }, query.clone(), health);
    let limits = Limits {
        requests: usize::try_from(options.max_requests).unwrap_or(usize::MAX),
        connections: usize::try_from(options.max_connections).unwrap_or(usize::MAX),
        ..Limits::default()
    };
    tracing::info!("the shop is open on http://{}", options.listen);
    let served = serve(listener, finish(router, &limits), limits, stop).await;

    tracing::info!("stopping: no new requests, finishing what is in hand");
    let ended = async {
        writer_stop.cancel();
        join(writing).await;
        parts_stop.cancel();
        for part in parts {
            join(part).await;
        }
        query.close().await;
        projected.pool().close().await;
        log.pool().close().await;
    };
    if tokio::time::timeout(END_WITHIN, ended).await.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    background.shutdown_background();
    served.map_err(Failure::io("serving"))
}

async fn join(task: tokio::task::JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(%error, "a part ended badly");
    }
}

/// The first signal ends the shop in order, the second at once.
fn stop_on_signals(stop: &CancellationToken) -> Result<(), Failure> {
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

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tidemark",
        description = "An event-sourced commerce backend. Commands answer with `Tidemark-Position`; a read that sends it back as `Tidemark-After` sees what the command wrote."
    ),
    tags(
        (name = "catalog", description = "What is offered, and at which price"),
        (name = "inventory", description = "How many units there are"),
        (name = "orders", description = "Who bought what, and how far it has come"),
        (name = "log", description = "Everything that happened"),
    )
)]
struct Api;

fn router(command: CommandState, query: QueryState, health: Health) -> Router {
    let (api, mut document) = OpenApiRouter::with_openapi(Api::openapi())
        .merge(tidemark_command::routes(command))
        .merge(tidemark_query::routes(query))
        .split_for_parts();
    let mut token = Http::new(HttpAuthScheme::Bearer);
    token.bearer_format = Some("JWT".to_owned());
    document.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(token));
    // The page's own scripts and styles, nothing else.
    let policy = HeaderValue::from_static(
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
         connect-src 'self'; frame-ancestors 'none'",
    );
    let docs = Router::<()>::from(SwaggerUi::new("/docs").url("/openapi.json", document))
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy));
    let operations = Router::new()
        .route("/livez", get(async || StatusCode::OK))
        .route("/readyz", get(ready))
        .route("/metrics", get(async |State(health): State<Health>| health.metrics.render()))
        .with_state(health);
    api.merge(docs).merge(operations).merge(problem::pages())
}

#[derive(Clone)]
struct Health {
    log: Log,
    query: QueryState,
    metrics: PrometheusHandle,
    stop: CancellationToken,
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
    if !health.query.is_ready() {
        missing.push("the views cannot be followed");
    }
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": missing.is_empty(), "missing": missing })))
}
