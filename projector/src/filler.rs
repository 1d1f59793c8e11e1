//! Keeps ready bodies in Redis: follows the views' changes, reads what they touched and puts it there, with the
//! changes themselves for the query services' memories ([`tidemark_views::tier`]).
//!
//! One process at a time does it, under a lease; one that slept past its end is stopped by the tier's own `at`. Redis
//! is never waited for by anything else: without it, the query services ask the views.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tidemark_events::listener::Subscription;
use tidemark_events::log::{Lease, Log};
use tidemark_events::planted;
use tidemark_views::body::{self, Kind, Tables};
use tidemark_views::feed::{self, Change, End};
use tidemark_views::instance::State;
use tidemark_views::tier::{Connection, Generation, Tier, TierError};
use tidemark_views::{ORDERS, PRODUCTS, STOCK, ViewError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long the lease holds without being renewed.
const HELD_FOR: Duration = Duration::from_secs(2);

/// How often the changes are asked for without a notification, and whether the server still lives the same life.
const POLL: Duration = Duration::from_millis(500);

/// The time from one reading of the changes to the next: more of them cost less together, so the more there are, the
/// longer.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The most bodies that are read and put at once. So many make the longest pause.
const AT_ONCE: usize = 1_000;

/// With more keys than these to do at once, Redis is behind, and begins anew.
const BEHIND: usize = 10_000;

/// What it works on.
#[derive(Debug, Clone)]
pub struct Filler {
    /// The log, for the lease.
    pub log: Log,
    /// The views' primary, directly.
    pub views: PgConnectOptions,
    /// What is heard there on [`feed::CHANNEL`].
    pub changes: Subscription,
    /// Redis.
    pub tier: Tier,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Views(#[from] ViewError),
    #[error(transparent)]
    Tier(#[from] TierError),
    #[error(transparent)]
    Log(#[from] tidemark_events::log::LogError),
}

impl From<sqlx::Error> for Ended {
    fn from(error: sqlx::Error) -> Self {
        Self::Views(error.into())
    }
}

impl Filler {
    /// Fills until `stop`, whenever it is this process's turn.
    #[must_use]
    pub fn spawn(self, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(async move {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .connect_lazy_with(self.views.clone().application_name("tidemark filler"));
            let lease = Lease::new(self.log.clone(), "redis", HELD_FOR);
            while !stop.is_cancelled() {
                let ended = tokio::select! {
                    () = stop.cancelled() => break,
                    ended = self.take_turn(&pool, &lease) => ended,
                };
                if let Err(error) = ended {
                    tracing::warn!(%error, "Redis is not being filled, trying again");
                }
                tokio::time::timeout(POLL, stop.cancelled()).await.ok();
            }
            lease.give_back().await.ok();
            pool.close().await;
        })
    }

    async fn take_turn(&self, pool: &PgPool, lease: &Lease) -> Result<(), Ended> {
        if !lease.take().await? {
            return Ok(());
        }
        let mut taken_at = Instant::now();
        let mut heard = self.changes.clone();
        let mut views = pool.acquire().await?;
        feed::ensure_incarnation(&mut views).await?;
        let mut turn = Turn::begin(self.tier.connect().await?, &mut views).await?;
        tracing::info!(number = turn.at, "filling Redis");
        loop {
            if taken_at.elapsed() > HELD_FOR / 4 {
                let asked_at = Instant::now();
                if !lease.take().await? {
                    return Ok(());
                }
                taken_at = asked_at;
            }
            if let Some(keys) = turn.go_on(&mut views).await? {
                let part = u32::try_from(keys.min(AT_ONCE)).unwrap_or(0);
                let pause = LONGEST_PAUSE * part / u32::try_from(AT_ONCE).unwrap_or(1);
                tokio::time::sleep(pause.max(SHORTEST_PAUSE)).await;
                continue;
            }
            heard.next(HELD_FOR / 8).await;
        }
    }
}

/// One connection to Redis and one to the views, in one life of both.
struct Turn {
    redis: Connection,
    generation: Generation,
    incarnation: Uuid,
    /// Up to here the tier knows everything.
    at: i64,
    tables: Tables,
    checked_at: Instant,
}

impl Turn {
    /// Goes on where the tier stands, if that is of this life of the server, else begins another generation.
    async fn begin(mut redis: Connection, views: &mut PgConnection) -> Result<Self, Ended> {
        let (tables, end) = live(views).await?;
        let incarnation = end.incarnation.ok_or(TierError::Moved)?;
        let (generation, at) = match redis.standing().await? {
            Some(standing) if standing.incarnation == incarnation && standing.at <= end.number => {
                (standing.generation, standing.at)
            }
            _ => (redis.begin(incarnation, end.number).await?, end.number),
        };
        Ok(Self { redis, generation, incarnation, at, tables, checked_at: Instant::now() })
    }

    /// Begins another generation at the newest change.
    async fn begin_anew(&mut self, views: &mut PgConnection) -> Result<(), Ended> {
        let (tables, end) = live(views).await?;
        self.tables = tables;
        self.incarnation = end.incarnation.ok_or(TierError::Moved)?;
        self.generation = self.redis.begin(self.incarnation, end.number).await?;
        self.at = end.number;
        Ok(())
    }

    /// Brings the next changes to Redis: how many keys they touched; `None` when there are none.
    async fn go_on(&mut self, views: &mut PgConnection) -> Result<Option<usize>, Ended> {
        let changes = feed::after(views, self.at).await?;
        let Some(first) = changes.first() else {
            if self.checked_at.elapsed() >= POLL {
                self.checked_at = Instant::now();
                let (end, standing) = (feed::end(views).await?, self.redis.standing().await?);
                let is_here =
                    standing.is_some_and(|there| there.generation == self.generation && there.at == self.at);
                if !is_here || end.incarnation != Some(self.incarnation) || end.number < self.at {
                    return Err(TierError::Moved.into());
                }
            }
            return Ok(None);
        };
        let is_gapless = first.number == self.at + 1;
        // The first instances come without a switch.
        let is_first = !self.tables.are_there() && live(views).await?.0 != self.tables;
        if !is_gapless || is_first || changes.iter().any(|change| change.kind == feed::Kind::Switch) {
            // Changes were missed, or readers go to other tables: no body is known to be good.
            self.begin_anew(views).await?;
            return Ok(Some(0));
        }
        let begun_at = Instant::now();
        let (products, orders) = self.touched(&changes);
        let count = products.len() + orders.len();
        if count > BEHIND {
            tracing::info!(keys = count, "too much has changed at once, Redis begins anew");
            self.begin_anew(views).await?;
            return Ok(Some(count));
        }
        // Of products there are those that somebody has asked for; an order is asked for by who has placed it.
        for keys in products.chunks(AT_ONCE) {
            let present = self.redis.present(&self.generation, Kind::Product, keys).await?;
            self.put(views, Kind::Product, &present).await?;
        }
        for keys in orders.chunks(AT_ONCE) {
            self.put(views, Kind::Order, keys).await?;
        }
        let touched = products.iter().map(|id| (Kind::Product, *id));
        let touched = touched.chain(orders.iter().map(|id| (Kind::Order, *id)));
        self.at = self.redis.advance(&self.generation, self.at, changes, touched).await?;
        metrics::histogram!("tidemark_redis_fill_seconds").record(begun_at.elapsed());
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("tidemark_redis_number").set(self.at as f64);
        Ok(Some(count))
    }

    /// The keys of products and of orders whose bodies have changed.
    fn touched(&self, changes: &[Change]) -> (Vec<Uuid>, Vec<Uuid>) {
        let mut products = BTreeSet::new();
        let mut orders = BTreeSet::new();
        for change in changes {
            let (live, keys) = match change.name.as_str() {
                PRODUCTS => (self.tables.products, &mut products),
                STOCK => (self.tables.stock, &mut products),
                ORDERS => (self.tables.orders, &mut orders),
                _ => continue,
            };
            if change.instance == live {
                keys.extend(change.keys.iter().copied().filter(|_| !planted::sometimes("stale-redis")));
            }
        }
        (products.into_iter().collect(), orders.into_iter().collect())
    }

    async fn put(&mut self, views: &mut PgConnection, kind: Kind, keys: &[Uuid]) -> Result<(), Ended> {
        if keys.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query(AssertSqlSafe(body::statement(kind, self.tables)))
            .bind(keys)
            .fetch_all(views)
            .await?;
        let (number, bodies) = (body::number_of(&rows)?, body::read(kind, &rows)?);
        let put = self.redis.put(&self.generation, kind, number, &bodies).await?;
        metrics::counter!("tidemark_redis_bodies_total").increment(put as u64);
        Ok(())
    }
}

/// The live tables, 0 where there is none yet, and the newest change that could have made them so: a later switch is
/// among the changes behind it.
async fn live(views: &mut PgConnection) -> Result<(Tables, End), ViewError> {
    let (instances, end) = feed::standing(views).await?;
    let of = |name: &str| {
        let live = instances.iter().find(|each| each.name == name && each.state == State::Live);
        live.map_or(0, |live| live.instance)
    };
    Ok((Tables { products: of(PRODUCTS), stock: of(STOCK), orders: of(ORDERS) }, end))
}
