//! `tidemark command`, `tidemark projector`, `tidemark query`: the parts of the shop as processes of their own, any
//! number of each.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tidemark_command::{CommandState, Writer};
use tidemark_events::listener::{Listener, Subscription};
use tidemark_events::log::{self, Log, revocations, wake};
use tidemark_http::Access;
use tidemark_projector::{Feed, Filler, INSTANCES, Supervisor};
use tidemark_query::{QueryConfig, QueryState};
use tidemark_views::feed;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use crate::config::{CommandOptions, ProjectorOptions, QueryOptions, ServeOptions};
use crate::database::{begin_on, pool, wait_for_schema};
use crate::service::{Address, Health, join, serve_until, stop_on_signals, unless_stopped};
use crate::up::{END_WITHIN, LOG_CONNECTIONS, PROJECTOR_CONNECTIONS};
use crate::{Failure, accounts};

/// What all three begin and end with.
struct Process {
    address: Address,
    stop: CancellationToken,
    log: Log,
    /// Ended sessions, as the log's database announces them.
    revoked: Subscription,
    metrics: PrometheusHandle,
    /// Ends the parts, after the last request.
    parts_stop: CancellationToken,
    parts: Vec<JoinHandle<()>>,
}

/// What a process does about schemas that are missing or older than its code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Schemas {
    /// Brings them up to date.
    Bring,
    /// Changes nothing: they have to be so already.
    Need,
}

impl Process {
    /// Takes signals and the address first, then waits for the log's database and, if need be, for the views'. `None`:
    /// it was stopped meanwhile.
    async fn begin(
        serve: &ServeOptions,
        log_options: &PgConnectOptions,
        connections: u32,
        views_options: Option<&PgConnectOptions>,
        schemas: Schemas,
    ) -> Result<Option<Self>, Failure> {
        let stop = CancellationToken::new();
        stop_on_signals(&stop)?;
        let address = Address::take(serve.listen)?;
        let databases = async {
            let pool = pool(log_options, connections);
            let log = begin_on("TIDEMARK_LOG_URL", log_options, async || {
                match schemas {
                    Schemas::Bring => Log::migrate(&pool).await?,
                    Schemas::Need => {
                        wait_for_schema("TIDEMARK_LOG_URL", log_options, &log::SCHEMA).await?;
                    }
                }
                let log = Log::new(pool.clone());
                log.committed(log.head().await?);
                Ok(log)
            })
            .await?;
            match (views_options, schemas) {
                (None, _) => {}
                (Some(options), Schemas::Bring) => views(options).await?,
                (Some(options), Schemas::Need) => {
                    wait_for_schema("TIDEMARK_VIEWS_URL", options, &tidemark_views::SCHEMA).await?;
                }
            }
            Ok::<_, Failure>(log)
        };
        let Some(log) = unless_stopped(&stop, databases).await? else { return Ok(None) };
        let parts_stop = CancellationToken::new();
        let metrics = tidemark_http::metrics::install(parts_stop.clone())
            .map_err(|error| Failure::Configuration(format!("the metrics registry: {error}")))?;
        let mut heard = Listener::default();
        let revoked = heard.on(revocations::CHANNEL);
        let parts = vec![
            log.follow(heard.on(wake::CHANNEL), parts_stop.clone()),
            heard.spawn(log_options.clone(), parts_stop.clone()),
        ];
        Ok(Some(Self { address, stop, log, revoked, metrics, parts_stop, parts }))
    }

    /// Returns whether it goes on: it may be stopped meanwhile.
    async fn follow_revocations(
        &mut self,
        access: &Access,
        database: &PgConnectOptions,
    ) -> Result<bool, Failure> {
        let (revoked, stop) = (self.revoked.clone(), self.parts_stop.clone());
        let following = accounts::follow_revocations(access, database.clone(), revoked, stop);
        let following = unless_stopped(&self.stop, following).await?;
        let goes_on = following.is_some();
        self.parts.extend(following);
        Ok(goes_on)
    }

    /// Serves until it is told to stop, lets `first` end, then the parts.
    async fn serve(
        self,
        serve: &ServeOptions,
        says: &str,
        routes: OpenApiRouter,
        query: Option<QueryState>,
        first: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        let health =
            Health { log: self.log.clone(), query: query.clone(), metrics: self.metrics, stop: self.stop };
        let served = serve_until(self.address, routes, health, serve, says).await;
        let ended = async {
            first.await;
            self.parts_stop.cancel();
            for part in self.parts {
                join(part).await;
            }
            if let Some(query) = query {
                query.close().await;
            }
            self.log.pool().close().await;
        };
        if tokio::time::timeout(END_WITHIN, ended).await.is_err() {
            tracing::warn!("some parts did not end in time");
        }
        tracing::info!("stopped");
        served
    }
}

/// The views' database, with its schema as this program needs it.
pub(crate) async fn views(options: &PgConnectOptions) -> Result<(), Failure> {
    begin_on("TIDEMARK_VIEWS_URL", options, async || {
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
        let migrated = tidemark_views::migrate(&pool).await;
        pool.close().await;
        Ok(migrated?)
    })
    .await
}

pub(crate) async fn command(options: CommandOptions) -> Result<(), Failure> {
    let keys = options.key.open()?;
    let access = keys.access.clone();
    let begun =
        Process::begin(&options.serve, &options.log.log_url, LOG_CONNECTIONS, None, Schemas::Bring).await?;
    let Some(mut process) = begun else { return Ok(()) };
    let database = &options.log.log_url;
    let data_dir = || options.key.data_dir();
    let vault = accounts::vault(&options.vault, database, data_dir);
    let Some(vault) = unless_stopped(&process.stop, vault).await? else { return Ok(()) };
    let public_url = options.serve.front.public_url(options.serve.listen);
    let sign = Arc::clone(&keys.sign);
    let accounts::Opened { accounts, steward } =
        accounts::open(&options.accounts, &process.log, database, vault, sign, data_dir, &public_url)?;
    process.parts.extend(keys.watch(process.parts_stop.clone()));
    if !process.follow_revocations(&access, database).await? {
        return Ok(());
    }
    process.parts.push(steward.spawn(process.parts_stop.clone()));
    if let Some(kafka) = options.kafka.config() {
        let publishing =
            tidemark_kafka::publisher::spawn(process.log.clone(), kafka, process.parts_stop.clone());
        process.parts.push(publishing);
    }
    let writer_stop = CancellationToken::new();
    let (writer, writing) = Writer::spawn(
        process.log.clone(),
        options.log.log_url.clone(),
        options.writer.config(),
        writer_stop.clone(),
    );
    let routes = tidemark_command::routes(CommandState { writer, access, accounts });
    let written = async {
        writer_stop.cancel();
        join(writing).await;
    };
    process.serve(&options.serve, "taking commands", routes, None, written).await
}

pub(crate) async fn projector(options: ProjectorOptions) -> Result<(), Failure> {
    let views = &options.views.views_url;
    let begun = Process::begin(
        &options.serve,
        &options.log.log_url,
        PROJECTOR_CONNECTIONS,
        Some(views),
        Schemas::Bring,
    )
    .await?;
    let Some(mut process) = begun else { return Ok(()) };
    let mut heard = Listener::default();
    if let Some(tier) = options.redis.tier {
        let changes = heard.on(feed::CHANNEL);
        let filler = Filler { log: process.log.clone(), views: views.clone(), changes, tier };
        process.parts.push(filler.spawn(process.parts_stop.clone()));
    }
    let feed = Feed {
        log: process.log.clone(),
        kafka: options.kafka.config(),
        views: views.clone(),
        instances: heard.on(INSTANCES),
        config: options.projector.config(),
        only: options.projections,
    };
    process.parts.push(Supervisor::spawn(feed, process.parts_stop.clone()));
    process.parts.push(heard.spawn(views.clone(), process.parts_stop.clone()));
    let says = "projecting; health and metrics";
    process.serve(&options.serve, says, OpenApiRouter::new(), None, std::future::ready(())).await
}

pub(crate) async fn query(options: QueryOptions) -> Result<(), Failure> {
    let keys = options.key.open()?;
    let access = keys.access.clone();
    let views = &options.views.views_url;
    let begun =
        Process::begin(&options.serve, &options.log.log_url, LOG_CONNECTIONS, Some(views), Schemas::Need)
            .await?;
    let Some(mut process) = begun else { return Ok(()) };
    let vault = accounts::vault_to_read(&options.vault, &options.log.log_url, || options.key.data_dir());
    let Some(vault) = unless_stopped(&process.stop, vault).await? else { return Ok(()) };
    process.parts.extend(keys.watch(process.parts_stop.clone()));
    if !process.follow_revocations(&access, &options.log.log_url).await? {
        return Ok(());
    }
    let config = QueryConfig {
        replica_lag_bytes: i64::from(options.reads.replica_lag_mib) * 1024 * 1024,
        ..options.cache.config()
    };
    let (query, following) = QueryState::open(
        &options.reads.servers(views.clone()),
        options.redis.tier,
        process.log.clone(),
        access,
        vault,
        config,
        process.parts_stop.clone(),
    );
    process.parts.push(following);
    let routes = tidemark_query::routes(query.clone());
    process.serve(&options.serve, "serving the views", routes, Some(query), std::future::ready(())).await
}
