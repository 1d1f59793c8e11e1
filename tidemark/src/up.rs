//! `tidemark up`: the whole shop in one process.

use std::sync::Arc;
use std::time::Duration;

use tidemark_command::{CommandState, Writer};
use tidemark_events::listener::Listener;
use tidemark_events::log::{revocations, wake};
use tidemark_projector::{Feed, INSTANCES, Supervisor};
use tidemark_query::{QueryState, Servers};
use tidemark_views::feed;
use tokio_util::sync::CancellationToken;

use crate::config::UpOptions;
use crate::database::{Database, data_dir};
use crate::keys::TokenKeys;
use crate::service::{Address, Health, join, serve_until, stop_on_signals, unless_stopped};
use crate::{Failure, accounts};

/// Connections for reading the log.
pub(crate) const LOG_CONNECTIONS: u32 = 12;

/// Connections for reading it that the projectors have for themselves: one for each view that is fed, and its former.
pub(crate) const PROJECTOR_CONNECTIONS: u32 = 6;

/// How long the state of the parts may take to end after the last request.
pub(crate) const END_WITHIN: Duration = Duration::from_secs(20);

pub(crate) async fn run(options: UpOptions) -> Result<(), Failure> {
    // Before anything else: a signal during the start must end it cleanly, too.
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    data_dir(options.data.data_dir.as_deref())?;
    let address = Address::take(options.serve.listen)?;
    let opened = Database::open(&options.data, true);
    let Some(database) = unless_stopped(&stop, opened).await? else { return Ok(()) };
    let served = shop(&options, address, &database, stop).await;
    database.close().await?;
    tracing::info!("stopped");
    served
}

async fn shop(
    options: &UpOptions,
    address: Address,
    database: &Database,
    stop: CancellationToken,
) -> Result<(), Failure> {
    // Parts end in the order in which they need each other: requests, then the writer, then the rest.
    let (writer_stop, parts_stop) = (CancellationToken::new(), CancellationToken::new());
    let metrics = tidemark_http::metrics::install(parts_stop.clone())
        .map_err(|error| Failure::Configuration(format!("the metrics registry: {error}")))?;
    let data_dir = || Ok(database.data_dir.clone());
    let keys = TokenKeys::open(data_dir, &options.key)?;
    let access = keys.access.clone();
    let log = database.log(LOG_CONNECTIONS).await?;
    let vault = accounts::vault(&options.vault, &database.options, data_dir);
    let Some(vault) = unless_stopped(&stop, vault).await? else { return Ok(()) };
    let public_url = options.serve.front.public_url(options.serve.listen);
    let sign = Arc::clone(&keys.sign);
    let accounts::Opened { accounts, steward } = accounts::open(
        &options.accounts,
        &log,
        &database.options,
        vault.clone(),
        sign,
        data_dir,
        &public_url,
    )?;

    let mut heard = Listener::default();
    let revoked = heard.on(revocations::CHANNEL);
    let ended_sessions =
        accounts::follow_revocations(&access, database.options.clone(), revoked, parts_stop.clone());
    let Some(ended_sessions) = unless_stopped(&stop, ended_sessions).await? else { return Ok(()) };
    let mut parts = vec![ended_sessions, log.follow(heard.on(wake::CHANNEL), parts_stop.clone())];
    parts.extend(keys.watch(parts_stop.clone()));
    let (instances, changes) = (heard.on(INSTANCES), heard.on(feed::CHANNEL));
    parts.push(heard.spawn(database.options.clone(), parts_stop.clone()));
    parts.push(steward.spawn(parts_stop.clone()));
    let (writer, writing) =
        Writer::spawn(log.clone(), database.options.clone(), options.writer.config(), writer_stop.clone());
    // On a runtime of their own: what folds thousands of events at a time must not make a request wait.
    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("projector")
        .enable_all()
        .build()
        .map_err(Failure::io("cannot start the projectors' runtime"))?;
    let (projected, projecting) = {
        let _context = background.enter();
        let feed = Feed {
            log: log.through(database.pool(PROJECTOR_CONNECTIONS)),
            kafka: None,
            views: database.options.clone(),
            instances,
            config: options.projector.config(),
            only: Vec::new(),
        };
        (feed.log.clone(), Supervisor::spawn(feed, parts_stop.clone()))
    };
    let servers = Servers {
        primary: database.options.clone(),
        changes: Some(changes),
        pooled: None,
        replicas: Vec::new(),
    };
    let (query, following) = QueryState::open(
        &servers,
        None,
        log.clone(),
        access.clone(),
        vault,
        options.cache.config(),
        parts_stop.clone(),
    );
    parts.extend([projecting, following]);

    let health = Health { log: log.clone(), query: Some(query.clone()), metrics, stop };
    let routes = tidemark_command::routes(CommandState { writer, access, accounts })
        .merge(tidemark_query::routes(query.clone()));
    let served = serve_until(address, routes, health, &options.serve, "the shop is open").await;

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
    served
}
