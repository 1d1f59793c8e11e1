//! `tidemark command`, `tidemark projector`, `tidemark query`: the parts of the shop as processes of their own, any
//! number of each.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tidemark_command::{CommandState, Writer};
use tidemark_events::log::Log;
use tidemark_projector::{Feed, Supervisor};
use tidemark_query::QueryState;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{CommandOptions, ProjectorOptions, QueryOptions};
use crate::database::{self, pool, url_options, wait_for};
use crate::service::{Health, join, listen, router, serve_until, stop_on_signals};
use crate::up::{END_WITHIN, LOG_CONNECTIONS, PROJECTOR_CONNECTIONS};
use crate::{Failure, keys};

/// What all three begin with.
struct Process {
    log: Log,
    log_options: PgConnectOptions,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
    /// Ends the parts, after the last request.
    parts_stop: CancellationToken,
    parts: Vec<JoinHandle<()>>,
}

impl Process {
    async fn begin(log_url: &str, connections: u32) -> Result<Self, Failure> {
        let parts_stop = CancellationToken::new();
        let metrics = tidemark_http::metrics::install(parts_stop.clone())
            .map_err(|error| Failure::Configuration(format!("the metrics registry: {error}")))?;
        let log_options = url_options("TIDEMARK_LOG_URL", log_url)?;
        wait_for("TIDEMARK_LOG_URL", &log_options).await;
        let pool = pool(&log_options, connections);
        Log::migrate(&pool).await?;
        let log = Log::new(pool);
        log.committed(log.head().await?);
        let parts = vec![log.spawn_listener(log_options.clone(), parts_stop.clone())];
        Ok(Self { log, log_options, metrics, parts_stop, parts })
    }

    async fn end(self) {
        let ended = async {
            self.parts_stop.cancel();
            for part in self.parts {
                join(part).await;
            }
            self.log.pool().close().await;
        };
        if tokio::time::timeout(END_WITHIN, ended).await.is_err() {
            tracing::warn!("some parts did not end in time");
        }
        tracing::info!("stopped");
    }
}

/// The views' database, with its schema as this program needs it.
pub(crate) async fn views(url: &str) -> Result<PgConnectOptions, Failure> {
    let options = url_options("TIDEMARK_VIEWS_URL", url)?;
    wait_for("TIDEMARK_VIEWS_URL", &options).await;
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
    tidemark_views::migrate(&pool).await?;
    pool.close().await;
    Ok(options)
}

pub(crate) async fn command(options: CommandOptions) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let listener = listen(options.serve.listen).await?;
    let data_dir = database::data_dir(options.key.data_dir.as_deref())?;
    let access = keys::access(&data_dir, &options.key.key)?;
    let mut process = tokio::select! {
        process = Process::begin(&options.log.log_url, LOG_CONNECTIONS) => process?,
        () = stop.cancelled() => return Ok(()),
    };
    if let Some(kafka) = options.kafka.config() {
        process.parts.push(tidemark_kafka::publisher::spawn(
            process.log.clone(),
            kafka,
            process.parts_stop.clone(),
        ));
    }
    let writer_stop = CancellationToken::new();
    let (writer, writing) = Writer::spawn(
        process.log.clone(),
        process.log_options.clone(),
        options.writer.config(),
        writer_stop.clone(),
    );
    let health = Health {
        log: process.log.clone(),
        query: None,
        metrics: process.metrics.clone(),
        stop: stop.clone(),
    };
    let routes = tidemark_command::routes(CommandState { writer, access });
    tracing::info!("taking commands on http://{}", options.serve.listen);
    let served = serve_until(listener, router(routes, health), &options.serve, stop).await;
    writer_stop.cancel();
    join(writing).await;
    process.end().await;
    served
}

pub(crate) async fn projector(options: ProjectorOptions) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let listener = listen(options.serve.listen).await?;
    let (mut process, views) = tokio::select! {
        begun = async {
            let process = Process::begin(&options.log.log_url, PROJECTOR_CONNECTIONS).await?;
            Ok::<_, Failure>((process, views(&options.views.views_url).await?))
        } => begun?,
        () = stop.cancelled() => return Ok(()),
    };
    let feed = Feed {
        log: process.log.clone(),
        kafka: options.kafka.config(),
        views,
        config: options.projector.config(),
        only: options.projections,
    };
    process.parts.push(Supervisor::spawn(feed, process.parts_stop.clone()));
    let health = Health {
        log: process.log.clone(),
        query: None,
        metrics: process.metrics.clone(),
        stop: stop.clone(),
    };
    let routes = utoipa_axum::router::OpenApiRouter::new();
    tracing::info!("projecting; health and metrics on http://{}", options.serve.listen);
    let served = serve_until(listener, router(routes, health), &options.serve, stop).await;
    process.end().await;
    served
}

pub(crate) async fn query(options: QueryOptions) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let listener = listen(options.serve.listen).await?;
    let data_dir = database::data_dir(options.key.data_dir.as_deref())?;
    let access = keys::access(&data_dir, &options.key.key)?;
    let (mut process, views) = tokio::select! {
        begun = async {
            let process = Process::begin(&options.log.log_url, LOG_CONNECTIONS).await?;
            Ok::<_, Failure>((process, views(&options.views.views_url).await?))
        } => begun?,
        () = stop.cancelled() => return Ok(()),
    };
    let (query, following) = QueryState::open(
        &views,
        process.log.clone(),
        access,
        options.cache.config(),
        process.parts_stop.clone(),
    );
    process.parts.push(following);
    let health = Health {
        log: process.log.clone(),
        query: Some(query.clone()),
        metrics: process.metrics.clone(),
        stop: stop.clone(),
    };
    tracing::info!("serving the views on http://{}", options.serve.listen);
    let routes = tidemark_query::routes(query.clone());
    let served = serve_until(listener, router(routes, health), &options.serve, stop).await;
    process.end().await;
    query.close().await;
    served
}
