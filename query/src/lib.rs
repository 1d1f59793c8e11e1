//! How it is read: views served as ready bytes, from the process's cache or the views' database.
//!
//! | module | what it does |
//! |---|---|
//! | [`products`], [`stock`], [`orders`], [`events`] | routes |
//! | [`cache`] | ready bodies, made invalid by the events |
//! | [`feed`] | follows what the projectors publish |
//! | [`position`] | read your own writes |
//! | [`page`] | cursors and parameters of lists |
//! | [`reply`] | ETags and 304 |
//!
//! The service writes nothing.

pub mod cache;
pub mod events;
pub mod feed;
pub mod orders;
pub mod page;
pub mod position;
pub mod products;
pub mod reply;
pub mod stock;

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tidemark_events::log::Log;
use tidemark_http::Access;
use tidemark_http::problem::{self, Problem};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use cache::Cache;
use feed::Standing;

/// Bounds of the query side.
#[derive(Debug, Clone, Copy)]
pub struct QueryConfig {
    /// Bytes of ready bodies kept in memory.
    pub cache_bytes: u64,
    /// Connections to the views' database.
    pub connections: u32,
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
    pool: PgPool,
    cache: Cache,
    standing: Standing,
    access: Access,
    log: Log,
    config: QueryConfig,
}

impl QueryState {
    /// Opens the views for reading and follows their changes until `stop`. `views` leads to their database directly,
    /// since the feed listens.
    #[must_use]
    pub fn open(
        views: &PgConnectOptions,
        log: Log,
        access: Access,
        config: QueryConfig,
        stop: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let limit = config.statement_within.as_millis().to_string();
        let options = views.clone().options([
            ("application_name", "tidemark query"),
            ("statement_timeout", limit.as_str()),
            ("default_transaction_read_only", "on"),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(config.connections)
            .acquire_timeout(config.statement_within)
            .test_before_acquire(false)
            .connect_lazy_with(options.clone());
        let state = Self(Arc::new(Inner {
            pool,
            cache: Cache::new(config.cache_bytes),
            standing: Standing::default(),
            access,
            log,
            config,
        }));
        let task = tokio::spawn(feed::follow(state.clone(), options, stop));
        (state, task)
    }

    /// Whether the views can be read now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.standing.is_fresh() && self.0.standing.is_complete()
    }

    /// Closes the pool.
    pub async fn close(&self) {
        self.0.pool.close().await;
    }
}

impl axum::extract::FromRef<QueryState> for Access {
    fn from_ref(state: &QueryState) -> Self {
        state.0.access.clone()
    }
}

/// Every route that reads.
pub fn routes(state: QueryState) -> OpenApiRouter {
    OpenApiRouter::new()
        .merge(products::routes())
        .merge(stock::routes())
        .merge(orders::routes())
        .merge(events::routes())
        .with_state(state)
}

/// The database's errors, as clients see them.
pub(crate) fn unavailable(error: &sqlx::Error) -> Problem {
    tracing::warn!(%error, "cannot read the views");
    Problem::new(&problem::UNAVAILABLE, "the views cannot be read now").with_retry_after(1)
}
