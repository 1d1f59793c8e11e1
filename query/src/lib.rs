//! How it is read: views served as ready bytes, from the process's cache, Redis, a replica of the views or the primary.
//!
//! | module | what it does |
//! |---|---|
//! | [`products`], [`stock`], [`orders`], [`events`], [`accounts`], [`audit`] | routes |
//! | [`cache`] | ready bodies, made invalid by the events |
//! | [`bodies`] | one body, from wherever it is nearest |
//! | [`tier`] | Redis |
//! | [`reads`] | the views' servers: replicas by their lag, the primary |
//! | [`feed`] | follows what the projectors publish |
//! | [`position`] | read your own writes |
//! | [`page`] | cursors and parameters of lists |
//! | [`reply`] | ETags and 304 |
//!
//! The service writes nothing but what it has read, into Redis.

pub mod accounts;
pub mod audit;
pub mod bodies;
pub mod cache;
pub mod events;
pub mod feed;
pub mod orders;
pub mod page;
pub mod position;
pub mod products;
pub mod reads;
pub mod reply;
pub mod stock;
pub mod tier;

use std::sync::Arc;
use std::time::Duration;

use tidemark_events::log::{Log, LogError};
use tidemark_http::Access;
use tidemark_http::problem::{self, Problem};
use tidemark_vault::Vault;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use cache::Cache;
use feed::Standing;
use reads::Reads;
use tier::Shelf;

pub use reads::Servers;
pub use tidemark_views::tier::Tier;

/// Bounds of the query side.
#[derive(Debug, Clone, Copy)]
pub struct QueryConfig {
    /// Bytes of ready bodies kept in memory; 0: none.
    pub cache_bytes: u64,
    /// Connections to each of the views' servers.
    pub connections: u32,
    /// How many of them may search and list products at once, for each server; the next one waits for its turn.
    pub searches: u32,
    /// Bytes of the write-ahead log that a replica may be behind and still be read from.
    pub replica_lag_bytes: i64,
    /// How long a read may wait for the position in `Tidemark-After`.
    pub wait_within: Duration,
    /// How long a statement may take.
    pub statement_within: Duration,
}

impl Default for QueryConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 64 * 1024 * 1024,
            connections: 16,
            searches: 4,
            replica_lag_bytes: 16 * 1024 * 1024,
            wait_within: Duration::from_secs(2),
            statement_within: Duration::from_secs(2),
        }
    }
}

/// What the routes work with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct QueryState(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reads: Reads,
    shelf: Option<Shelf>,
    cache: Cache,
    standing: Standing,
    access: Access,
    vault: Vault,
    log: Log,
    /// Held by whoever asks the log for an epoch that a client has named.
    asking: tokio::sync::Mutex<()>,
    config: QueryConfig,
}

impl QueryState {
    /// Opens the views for reading and follows their changes until `stop`.
    #[must_use]
    pub fn open(
        servers: &Servers,
        tier: Option<Tier>,
        log: Log,
        access: Access,
        vault: Vault,
        config: QueryConfig,
        stop: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let state = Self(Arc::new(Inner {
            reads: Reads::new(servers, config),
            shelf: tier.map(Shelf::new),
            cache: Cache::new(config.cache_bytes, config.statement_within),
            standing: Standing::default(),
            access,
            vault,
            log,
            asking: tokio::sync::Mutex::new(()),
            config,
        }));
        let (following, servers) = (state.clone(), servers.clone());
        let task = tokio::spawn(async move {
            tokio::join!(
                feed::follow(&following, servers, &stop),
                following.0.reads.compare(&stop),
                following.learn_epochs(&stop)
            );
        });
        (state, task)
    }

    /// Whether the views can be read now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.standing.is_fresh() && self.0.standing.is_complete()
    }

    /// Closes the pools.
    pub async fn close(&self) {
        self.0.reads.close().await;
    }
}

impl axum::extract::FromRef<QueryState> for Access {
    fn from_ref(state: &QueryState) -> Self {
        state.0.access.clone()
    }
}

/// Every route that reads.
pub fn routes(state: QueryState) -> OpenApiRouter {
    stateless().with_state(state)
}

/// What the API's document says of them, for processes that do not serve them.
#[must_use]
pub fn document() -> OpenApi {
    stateless().into_openapi()
}

fn stateless() -> OpenApiRouter<QueryState> {
    OpenApiRouter::new()
        .merge(products::routes())
        .merge(stock::routes())
        .merge(orders::routes())
        .merge(events::routes())
        .merge(accounts::routes())
        .merge(audit::routes())
}

/// The values of a statement's parameters, in their order; they can be sent more than once.
macro_rules! arguments {
    ($($value:expr),+ $(,)?) => {{
        let mut arguments = sqlx::postgres::PgArguments::default();
        let added: Result<(), sqlx::error::BoxDynError> = (|| {
            $(sqlx::Arguments::add(&mut arguments, $value)?;)+
            Ok(())
        })();
        added.map(|()| arguments).map_err(|error| $crate::unavailable(&sqlx::Error::Encode(error)))
    }};
}
pub(crate) use arguments;

/// The log's errors, as clients see them.
pub(crate) fn log_away(error: &LogError) -> Problem {
    tracing::warn!(%error, "cannot read the log");
    Problem::new(&problem::UNAVAILABLE, "the log cannot be read now").with_retry_after(1)
}

/// For those who waited for reads that came to nothing.
pub(crate) fn too_late() -> Problem {
    Problem::new(&problem::UNAVAILABLE, "the views take too long to answer").with_retry_after(1)
}

/// The database's errors, as clients see them.
pub(crate) fn unavailable(error: &sqlx::Error) -> Problem {
    tracing::warn!(%error, "cannot read the views");
    Problem::new(&problem::UNAVAILABLE, "the views cannot be read now").with_retry_after(1)
}
