//! Follows what the projectors publish: which keys have changed, how far the views have come, which tables are live.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tidemark_events::{Epoch, Position};
use tidemark_http::problem::{self, Problem};
use tidemark_views::ViewError;
use tidemark_views::feed::{self, Kind};
use tidemark_views::instance::{self, State};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::QueryState;

/// How often the feed is asked without a notification.
const POLL: Duration = Duration::from_millis(500);

/// The least time from one read of the feed to the next.
const PACE: Duration = Duration::from_millis(2);

/// After this without an answer from the feed, nothing in memory is trusted.
const TRUSTED_FOR: Duration = Duration::from_secs(2);

/// A view that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The catalog.
    Products,
    /// The inventory.
    Stock,
    /// The orders.
    Orders,
}

impl View {
    pub(crate) const COUNT: usize = 3;

    fn of(name: &str) -> Option<Self> {
        match name {
            tidemark_views::PRODUCTS => Some(Self::Products),
            tidemark_views::STOCK => Some(Self::Stock),
            tidemark_views::ORDERS => Some(Self::Orders),
            _ => None,
        }
    }
}

/// Where one view's live instance stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stands {
    /// The live instance, 0 while there is none.
    pub(crate) instance: i32,
    /// The epoch of its position.
    pub(crate) epoch: Epoch,
    /// All of the view stands at least here.
    pub(crate) position: Position,
}

/// Where all views stand, as far as this process knows.
#[derive(Debug)]
pub(crate) struct Standing {
    views: watch::Sender<[Stands; View::COUNT]>,
    begun: Instant,
    /// Milliseconds after `begun` when the feed last answered; 0: never.
    verified: AtomicU64,
    /// The number of the newest change that has been taken in.
    seen: AtomicI64,
    /// How often the feed was lost.
    losses: AtomicU64,
}

/// The newest change that was known when a read began: what the read must have seen at least.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    number: i64,
    losses: u64,
    standing: &'a Standing,
}

impl Seen<'_> {
    /// Compares it with the number that the read found, in the snapshot of its rows. A lower one means that the views'
    /// database has crashed and lost its last commits, which did not wait for the disk, or that another one has taken
    /// its place: where the views were known to stand is not true of it. The number alone may have been passed again by
    /// other views; so it counts, too, whether the feed was lost meanwhile.
    ///
    /// # Errors
    /// 503 `view-behind`: they will be fed again.
    pub(crate) fn check(self, found: i64) -> Result<(), Problem> {
        if found >= self.number && self.losses == self.standing.losses.load(Ordering::Acquire) {
            return Ok(());
        }
        tracing::warn!(found, seen = self.number, "the views were thrown back behind what was known of them");
        Err(Problem::new(&problem::VIEW_BEHIND, "the views were thrown back, and are catching up")
            .with_retry_after(1))
    }
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            views: watch::Sender::default(),
            begun: Instant::now(),
            verified: AtomicU64::new(0),
            seen: AtomicI64::new(0),
            losses: AtomicU64::new(0),
        }
    }
}

impl Standing {
    /// Where a view stands.
    pub(crate) fn of(&self, view: View) -> Stands {
        self.views.borrow()[view as usize]
    }

    /// To be asked for before a read, and compared with what it found.
    pub(crate) fn seen(&self) -> Seen<'_> {
        Seen {
            losses: self.losses.load(Ordering::Acquire),
            number: self.seen.load(Ordering::Acquire),
            standing: self,
        }
    }

    /// The feed is lost, and with it the knowledge of how far the views are: the server may come back having lost its
    /// last commits. Who waits for a position waits until a feed says anew where they stand.
    fn lose(&self) {
        self.losses.fetch_add(1, Ordering::AcqRel);
        self.views.send_modify(|views| {
            for stands in views {
                (stands.epoch, stands.position) = (0, 0);
            }
        });
    }

    /// Follows all of them.
    pub(crate) fn follow(&self) -> watch::Receiver<[Stands; View::COUNT]> {
        self.views.subscribe()
    }

    /// Whether there is a live instance of every view.
    pub(crate) fn is_complete(&self) -> bool {
        self.views.borrow().iter().all(|stands| stands.instance > 0)
    }

    /// How long to wait for a notification: briefly while the first projector is yet to make the views.
    fn poll(&self) -> Duration {
        if self.is_complete() { POLL } else { POLL / 10 }
    }

    /// Whether the feed has answered lately: only then may what is in memory be served.
    pub(crate) fn is_fresh(&self) -> bool {
        let verified = self.verified.load(Ordering::Acquire);
        verified != 0 && self.begun.elapsed() < TRUSTED_FOR + Duration::from_millis(verified)
    }

    fn verify(&self, asked_at: Instant) {
        let at = asked_at.duration_since(self.begun).as_millis();
        self.verified.store(u64::try_from(at).unwrap_or(u64::MAX).max(1), Ordering::Release);
    }
}

/// Follows until `stop`, over lost connections.
pub(crate) async fn follow(state: QueryState, options: PgConnectOptions, stop: CancellationToken) {
    let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(options);
    while !stop.is_cancelled() {
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = listen(&state, &pool) => ended,
        };
        if let Err(error) = ended {
            state.0.standing.lose();
            tracing::warn!(%error, "cannot follow the views, trying again");
        }
        tokio::time::timeout(POLL, stop.cancelled()).await.ok();
    }
    pool.close().await;
}

/// On a new connection everything begins anew: the server behind it may be another one, with another end.
async fn listen(state: &QueryState, pool: &sqlx::PgPool) -> Result<(), ViewError> {
    let mut at = None;
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(feed::CHANNEL).await?;
    let mut connection = pool.acquire().await?;
    loop {
        let asked_at = Instant::now();
        let caught_up = match at {
            None => {
                at = Some(begin(state, &mut connection).await?);
                true
            }
            Some(number) => advance(state, &mut connection, number, &mut at).await?,
        };
        if caught_up {
            state.0.standing.verify(asked_at);
            tokio::time::sleep(PACE).await;
            // One read answers all notifications that have come meanwhile.
            if listener.next_buffered().is_some() {
                while listener.next_buffered().is_some() {}
            } else if let Ok(received) =
                tokio::time::timeout(state.0.standing.poll(), listener.try_recv()).await
            {
                received?;
            }
        }
    }
}

/// Begins at the newest change: everything in memory is older, or of another history.
async fn begin(state: &QueryState, connection: &mut sqlx::PgConnection) -> Result<i64, ViewError> {
    let number = feed::newest(connection).await?;
    state.0.standing.seen.store(number, Ordering::Release);
    state.0.cache.begin_anew(number);
    look(state, connection).await?;
    Ok(number)
}

/// Reads which instances are live and where they stand.
async fn look(state: &QueryState, connection: &mut sqlx::PgConnection) -> Result<(), ViewError> {
    let instances = instance::all(connection).await?;
    state.0.standing.views.send_modify(|views| {
        for live in instances.iter().filter(|instance| instance.state == State::Live) {
            if let Some(view) = View::of(&live.name) {
                views[view as usize] =
                    Stands { instance: live.instance, epoch: live.epoch, position: live.position };
            }
        }
    });
    Ok(())
}

/// Takes in what has changed after a number; `true` when nothing is left.
async fn advance(
    state: &QueryState,
    connection: &mut sqlx::PgConnection,
    number: i64,
    at: &mut Option<i64>,
) -> Result<bool, ViewError> {
    let changes = feed::after(connection, number).await?;
    let Some(last) = changes.last().map(|change| change.number) else {
        if !state.0.standing.is_complete() {
            look(state, connection).await?;
        }
        // A number below the one known: the views were restored to an earlier state.
        if feed::newest(connection).await? < number {
            *at = None;
            return Ok(false);
        }
        return Ok(true);
    };
    if changes[0].number != number + 1 || changes.iter().any(|change| change.kind == Kind::Switch) {
        // Numbers were missed, or readers go to other tables: nothing read before counts.
        look(state, connection).await?;
        state.0.cache.drop_before(last);
    }
    for change in &changes {
        let Some(view) = View::of(&change.name) else { continue };
        if change.kind == Kind::Rows {
            state.0.cache.changed(view, &change.keys, change.number);
        }
    }
    state.0.standing.seen.store(last, Ordering::Release);
    // Only after the slots are written may anybody be told that the views stand there.
    state.0.standing.views.send_if_modified(|views| {
        let mut moved = false;
        for change in &changes {
            let Some(view) = View::of(&change.name) else { continue };
            let stands = &mut views[view as usize];
            let further = (change.epoch, change.position) > (stands.epoch, stands.position);
            if stands.instance == change.instance && further {
                (stands.epoch, stands.position) = (change.epoch, change.position);
                moved = true;
            }
        }
        moved
    });
    *at = Some(last);
    Ok(changes.len() < feed::AT_ONCE)
}
