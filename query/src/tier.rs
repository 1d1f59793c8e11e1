//! Bodies out of Redis, where there is one. What a body there is worth is told in [`tidemark_views::tier`].

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tidemark_views::body::{Body, Kind};
use tidemark_views::tier::{Connection, Entry, Generation, Numbered, Tier, TierError};
use tokio::sync::Semaphore;
use uuid::Uuid;

/// How long a read may take; a slower Redis is left alone for a while.
const WITHIN: Duration = Duration::from_millis(50);

/// The least time from one try to reach Redis to the next.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Bodies that may be on their way to Redis; more are not put.
const ON_THEIR_WAY: usize = 256;

/// Redis, as a query process knows it.
#[derive(Debug)]
pub(crate) struct Shelf {
    tier: Tier,
    session: RwLock<Option<Arc<Session>>>,
    room: Arc<Semaphore>,
    figures: Figures,
}

/// One connection to Redis, and what is known over it: when Redis was gone, nothing is known any more.
#[derive(Debug)]
pub(crate) struct Session {
    connection: Connection,
    entries: Connection,
    generation: Generation,
    pub(crate) incarnation: Uuid,
    /// The newest number that `at` was seen at: bodies read from now on know everything up to here.
    at: AtomicI64,
    is_broken: AtomicBool,
}

#[derive(Debug)]
struct Figures {
    hit: metrics::Counter,
    miss: metrics::Counter,
    stale: metrics::Counter,
    failed: metrics::Counter,
}

impl Shelf {
    pub(crate) fn new(tier: Tier) -> Self {
        let figure = |outcome: &'static str| metrics::counter!("tidemark_cache_requests_total", "tier" => "redis", "outcome" => outcome);
        Self {
            tier,
            session: RwLock::new(None),
            room: Arc::new(Semaphore::new(ON_THEIR_WAY)),
            figures: Figures {
                hit: figure("hit"),
                miss: figure("miss"),
                stale: figure("stale"),
                failed: figure("failed"),
            },
        }
    }

    /// Tries until a session is open, however long that takes.
    pub(crate) async fn open(&self) -> Arc<Session> {
        loop {
            match self.try_open().await {
                Ok(Some(session)) => return session,
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "cannot follow Redis"),
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
    }

    async fn try_open(&self) -> Result<Option<Arc<Session>>, TierError> {
        let mut connection = self.tier.connect().await?;
        let entries = self.tier.connect_for_entries(Session::BLOCK).await?;
        let Some(standing) = connection.standing().await? else { return Ok(None) };
        Ok(Some(Arc::new(Session {
            connection,
            entries,
            generation: standing.generation,
            incarnation: standing.incarnation,
            at: AtomicI64::new(standing.at),
            is_broken: AtomicBool::new(false),
        })))
    }

    /// Reads and puts go over this session, or over none.
    pub(crate) fn use_session(&self, session: Option<Arc<Session>>) {
        // A poisoned lock holds a session all the same.
        *self.session.write().unwrap_or_else(std::sync::PoisonError::into_inner) = session;
    }

    /// What a request reads and puts over, from its beginning to its end: what it reads of the views must not get to
    /// a generation that began meanwhile.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        let session = self.session.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        session.clone().filter(|session| !session.is_broken.load(Ordering::Acquire))
    }

    /// A body that knows all changes of its key up to `needed` at least; its number says up to which.
    pub(crate) async fn get(&self, session: &Session, kind: Kind, id: Uuid, needed: i64) -> Option<Numbered> {
        // Before the read: what is there then knows it.
        let at = session.at.load(Ordering::Acquire);
        let mut connection = session.connection.clone();
        let read = tokio::time::timeout(WITHIN, connection.get(&session.generation, kind, id)).await;
        match read {
            Ok(Ok(Some(mut found))) => {
                found.number = found.number.max(at);
                if found.number < needed {
                    self.figures.stale.increment(1);
                    return None;
                }
                self.figures.hit.increment(1);
                Some(found)
            }
            Ok(Ok(None)) => {
                self.figures.miss.increment(1);
                None
            }
            Ok(Err(error)) => self.leave(session, &error.to_string()),
            Err(_) => self.leave(session, "it took too long"),
        }
    }

    fn leave(&self, session: &Session, error: &str) -> Option<Numbered> {
        self.figures.failed.increment(1);
        if !session.is_broken.swap(true, Ordering::AcqRel) {
            tracing::warn!(error, "Redis does not answer, reading the views without it");
        }
        None
    }

    /// Puts a body that was read when `number` was the newest change known of its key, without waiting for it.
    pub(crate) fn put(&self, session: Arc<Session>, kind: Kind, number: i64, body: Body) {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let mut connection = session.connection.clone();
            let bodies = [body];
            let put = connection.put(&session.generation, kind, number, &bodies);
            if tokio::time::timeout(WITHIN, put).await.is_err() {
                tracing::debug!("a body was not put into Redis in time");
            }
            drop(room);
        });
    }
}

impl Session {
    /// How long to wait for an entry.
    pub(crate) const BLOCK: Duration = Duration::from_millis(500);

    /// Whether nothing can be read over it any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    /// The entries behind a number, waiting up to `block` for the first.
    pub(crate) async fn entries(&self, number: i64, block: Duration) -> Result<Vec<Entry>, TierError> {
        self.entries.clone().entries(&self.generation, number, block).await
    }

    /// The tier was seen at this number.
    pub(crate) fn reached(&self, number: i64) {
        self.at.fetch_max(number, Ordering::AcqRel);
    }

    /// Whether its generation is still the current one.
    pub(crate) async fn is_current(&self) -> Result<bool, TierError> {
        let standing = self.connection.clone().standing().await?;
        Ok(standing.is_some_and(|standing| standing.generation == self.generation))
    }
}
