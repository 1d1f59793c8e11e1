//! Follows what the projectors publish: which keys have changed, how far the views have come, which tables are live.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool};
use tidemark_events::listener::{Listener, Subscription};
use tidemark_events::silence::in_time;
use tidemark_events::{Epoch, Position};
use tidemark_http::problem::{self, Problem};
use tidemark_views::ViewError;
use tidemark_views::feed::{self, Change, End, Kind};
use tidemark_views::instance::{Instance, State};
use tidemark_views::tier::{Entry, TierError};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::tier::Session;
use crate::{QueryState, Servers};

/// How often the feed is asked without a notification.
const POLL: Duration = Duration::from_millis(500);

/// The least time from one read of the feed to the next.
const PACE: Duration = Duration::from_millis(2);

/// After this without an answer from the feed, nothing in memory is trusted.
const TRUSTED_FOR: Duration = Duration::from_secs(2);

/// After this a connection that says nothing is given up: the server, or what is between, may be gone without a word.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// A view that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The catalog.
    Products,
    /// The inventory.
    Stock,
    /// The orders.
    Orders,
    /// Who did what.
    Audit,
}

impl View {
    pub(crate) const COUNT: usize = 4;

    fn of(name: &str) -> Option<Self> {
        match name {
            tidemark_views::PRODUCTS => Some(Self::Products),
            tidemark_views::STOCK => Some(Self::Stock),
            tidemark_views::ORDERS => Some(Self::Orders),
            tidemark_views::AUDIT => Some(Self::Audit),
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

    /// The views stand where these instances do, or further: a change may have been taken in since they were read.
    fn stand(&self, instances: &[Instance]) {
        self.views.send_modify(|views| {
            for live in instances.iter().filter(|instance| instance.state == State::Live) {
                let Some(view) = View::of(&live.name) else { continue };
                let stands = &mut views[view as usize];
                let further = (live.epoch, live.position) > (stands.epoch, stands.position);
                if stands.instance != live.instance || further {
                    *stands = Stands { instance: live.instance, epoch: live.epoch, position: live.position };
                }
            }
        });
    }

    /// As [`Standing::stand`], of instances that were read before the newest changes were taken in: readers may have
    /// been led to others since, and stay there.
    fn stand_again(&self, instances: &[Instance]) {
        let stay = |instance: &&Instance| {
            View::of(&instance.name)
                .is_some_and(|view| [0, instance.instance].contains(&self.of(view).instance))
        };
        self.stand(&instances.iter().filter(stay).cloned().collect::<Vec<_>>());
    }

    /// The views stand where these changes have put them.
    fn moved(&self, changes: &[Change]) {
        self.views.send_if_modified(|views| {
            let mut moved = false;
            for change in changes {
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
    }

    /// The number of the newest change that has been taken in.
    pub(crate) fn newest(&self) -> i64 {
        self.seen.load(Ordering::Acquire)
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

/// Follows until `stop`, over lost connections: by the stream in Redis while there is one, else by that of the views'
/// primary itself.
pub(crate) async fn follow(state: &QueryState, servers: Servers, stop: &CancellationToken) {
    let Servers { primary, changes, .. } = servers;
    let options = primary
        .clone()
        .application_name("tidemark query feed")
        .options([("statement_timeout", state.0.config.statement_within.as_millis().to_string())]);
    let connections = || {
        PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ANSWERS_WITHIN)
            .connect_lazy_with(options.clone())
    };
    let mut follower = Follower { state, primary, changes, listens: None, pool: connections(), known: None };
    while !stop.is_cancelled() {
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = follower.run() => ended,
        };
        if let Err(error) = ended {
            state.0.standing.lose();
            // Those it had may be waiting for a server that will not say a word.
            follower.pool = connections();
            tracing::warn!(%error, "cannot follow the views, trying again");
        }
        tokio::time::timeout(POLL, stop.cancelled()).await.ok();
    }
    tokio::time::timeout(ANSWERS_WITHIN, follower.pool.close()).await.ok();
}

struct Follower<'a> {
    state: &'a QueryState,
    /// The primary, directly.
    primary: PgConnectOptions,
    /// What is heard there, if another part of the process listens, too.
    changes: Option<Subscription>,
    /// Else by a session of this part alone, which ends with its guard.
    listens: Option<(Subscription, DropGuard)>,
    /// Sessions there.
    pool: PgPool,
    /// All changes up to here have been taken in.
    known: Option<End>,
}

/// Why following ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Views(#[from] ViewError),
    #[error(transparent)]
    Tier(#[from] TierError),
}

impl Follower<'_> {
    async fn run(&mut self) -> Result<(), ViewError> {
        let Some(shelf) = &self.state.0.shelf else { return self.by_the_views().await };
        loop {
            let session = tokio::select! {
                ended = self.by_the_views() => return ended,
                session = shelf.open() => session,
            };
            // Bodies of another life of the server are worth nothing.
            if self.known.is_none_or(|known| known.incarnation != Some(session.incarnation)) {
                tracing::debug!("what is in Redis is of another life of the views' server");
            } else if self.standing().is_complete() {
                shelf.use_session(Some(Arc::clone(&session)));
                self.listens = None;
                let ended = self.by_redis(&session).await;
                shelf.use_session(None);
                match ended {
                    Ended::Views(error) => return Err(error),
                    Ended::Tier(error) => tracing::info!(%error, "following the views instead of Redis"),
                }
            }
            // Whatever is wrong with Redis, it is not asked in a tight loop. It says nothing of a view that is made: until
            // all are there, only their own server is followed.
            tokio::select! {
                ended = self.by_the_views() => return ended,
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// What is heard of the views' primary; a session of its own for that stays until nothing is to be heard.
    fn changes(&mut self) -> Subscription {
        let heard = self.changes.clone().or_else(|| self.listens.as_ref().map(|(heard, _)| heard.clone()));
        heard.unwrap_or_else(|| {
            let (mut listener, stop) = (Listener::default(), CancellationToken::new());
            let heard = listener.on(feed::CHANNEL);
            drop(listener.spawn(self.primary.clone(), stop.clone()));
            self.listens = Some((heard.clone(), stop.drop_guard()));
            heard
        })
    }

    /// Follows the stream in the views' primary, as it notifies.
    async fn by_the_views(&mut self) -> Result<(), ViewError> {
        let mut heard = self.changes();
        let mut connection = self.pool.acquire().await?;
        in_time(ANSWERS_WITHIN, self.begin(&mut connection)).await?;
        loop {
            let asked_at = Instant::now();
            if in_time(ANSWERS_WITHIN, self.advance(&mut connection)).await? {
                self.standing().verify(asked_at);
                tokio::time::sleep(PACE).await;
                // The next read answers all notifications that have come meanwhile.
                heard.next(self.standing().poll()).await;
            }
        }
    }

    /// Follows the stream in Redis, and compares it with the views' own end now and then: Redis may have lost its
    /// projector, and then says nothing.
    async fn by_redis(&mut self, session: &Session) -> Ended {
        match self.try_by_redis(session).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn try_by_redis(&mut self, session: &Session) -> Result<Infallible, Ended> {
        // Redis tells of changes. Where the views stand without any, after a loss, only they themselves say.
        self.catch_up().await?;
        if self.known.is_none_or(|known| known.incarnation != Some(session.incarnation)) {
            return Err(TierError::Moved.into());
        }
        let mut poll = POLL;
        let mut compared_at = Instant::now();
        loop {
            let block = poll.saturating_sub(compared_at.elapsed()).max(PACE);
            let number = self.known.map_or(0, |known| known.number);
            for entry in session.entries(number, block).await? {
                match entry {
                    Entry::End => return Err(TierError::Moved.into()),
                    Entry::Changes { from, to, changes } => {
                        self.take_entry(from, to, changes).await?;
                        session.reached(to);
                    }
                }
            }
            if session.is_broken() {
                return Err(TierError::Moved.into());
            }
            if compared_at.elapsed() >= poll {
                compared_at = Instant::now();
                let was = self.known;
                // On a connection of its own: those of requests may all be taken, and then memory is what helps.
                let pool = self.pool.clone();
                let end =
                    in_time(ANSWERS_WITHIN, async { feed::end(&mut *pool.acquire().await?).await }).await?;
                if self.known.is_none_or(|known| !is_same_life(known, end) || known.number < end.number) {
                    self.catch_up().await?;
                }
                if self.known.map(|known| known.incarnation) != was.map(|was| was.incarnation) {
                    return Err(TierError::Moved.into());
                }
                self.standing().verify(compared_at);
                // While Redis is behind the views, they are asked more often.
                let is_behind =
                    was.is_some_and(|was| self.known.is_some_and(|known| known.number > was.number));
                poll = if is_behind { POLL / 10 } else { POLL };
                if !session.is_current().await? {
                    return Err(TierError::Moved.into());
                }
            }
        }
    }

    async fn take_entry(
        &mut self,
        from: i64,
        to: i64,
        changes: Option<Vec<Change>>,
    ) -> Result<(), ViewError> {
        let Some(known) = self.known.filter(|known| known.number < to) else { return Ok(()) };
        match changes {
            Some(changes) if from <= known.number => {
                let new: Vec<_> = changes.into_iter().filter(|change| change.number > known.number).collect();
                self.take_in(&new);
                Ok(())
            }
            // Too many to be named, or some were missed.
            _ => self.catch_up().await,
        }
    }

    /// Begins where the views' own server is, and goes on elsewhere.
    async fn catch_up(&mut self) -> Result<(), ViewError> {
        let mut connection = self.pool.acquire().await?;
        in_time(ANSWERS_WITHIN, self.begin(&mut connection)).await
    }

    fn standing(&self) -> &Standing {
        &self.state.0.standing
    }

    /// Begins on a new connection: where it was left, if it is in the same life of the server, else anew.
    async fn begin(&mut self, connection: &mut PgConnection) -> Result<(), ViewError> {
        let (instances, end) = feed::standing(connection).await?;
        if self.known.is_some_and(|known| is_same_life(known, end)) {
            while !self.advance(connection).await? {}
            self.standing().stand_again(&instances);
        } else {
            self.begin_anew(&instances, end);
        }
        Ok(())
    }

    /// Begins at the newest change: everything in memory is of another history.
    fn begin_anew(&mut self, instances: &[Instance], end: End) {
        if let Some(shelf) = &self.state.0.shelf {
            shelf.use_session(None);
        }
        self.standing().lose();
        self.state.0.cache.begin_anew(end.number);
        self.standing().seen.store(end.number, Ordering::Release);
        self.known = Some(end);
        self.standing().stand(instances);
    }

    /// Takes in what has changed; `true` when nothing is left. The connection is one that has begun.
    async fn advance(&mut self, connection: &mut PgConnection) -> Result<bool, ViewError> {
        let number = self.known.map_or(0, |known| known.number);
        let changes = feed::after(connection, number).await?;
        if changes.is_empty() {
            if !self.standing().is_complete() {
                self.leap(connection).await?;
            }
            let end = feed::end(connection).await?;
            match &mut self.known {
                Some(known) if end.number >= known.number => known.incarnation = end.incarnation,
                // A number below the one known: the views were restored to an earlier state.
                _ => {
                    let (instances, end) = feed::standing(connection).await?;
                    self.begin_anew(&instances, end);
                }
            }
            return Ok(true);
        }
        let is_gapless = changes[0].number == number + 1;
        if !is_gapless || changes.iter().any(|change| change.kind == Kind::Switch) {
            self.leap(connection).await?;
            return Ok(false);
        }
        self.take_in(&changes);
        Ok(changes.len() < feed::AT_ONCE)
    }

    /// Goes on at the newest change: numbers were missed, or readers go to other tables. Nothing read before counts.
    async fn leap(&mut self, connection: &mut PgConnection) -> Result<(), ViewError> {
        let (instances, end) = feed::standing(connection).await?;
        self.state.0.cache.drop_before(end.number);
        self.standing().seen.store(end.number, Ordering::Release);
        self.known = Some(end);
        self.standing().stand(&instances);
        // A read that is under way may have begun with the tables before, and have seen the number of the switch.
        self.state.0.cache.drop_what_is_being_read();
        Ok(())
    }

    /// Takes in changes that follow the ones known, in order.
    fn take_in(&mut self, changes: &[Change]) {
        let (Some(known), Some(last)) = (&mut self.known, changes.last()) else { return };
        for change in changes {
            let Some(view) = View::of(&change.name) else { continue };
            if change.kind == Kind::Rows {
                self.state.0.cache.changed(view, &change.keys, change.number);
            }
        }
        known.number = last.number;
        self.state.0.standing.seen.store(last.number, Ordering::Release);
        // Only after the slots are written may anybody be told that the views stand there.
        self.state.0.standing.moved(changes);
    }
}

/// Whether numbers of both mean the same changes. Without an id nothing is known.
fn is_same_life(known: End, end: End) -> bool {
    known.incarnation.is_some() && known.incarnation == end.incarnation && end.number >= known.number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock(instance: i32, epoch: Epoch, position: Position) -> Instance {
        let name = tidemark_views::STOCK.to_owned();
        Instance { name, instance, fold_version: 1, state: State::Live, epoch, position }
    }

    #[test]
    fn what_was_read_before_a_change_does_not_take_it_back() {
        let standing = Standing::default();
        let at = || (standing.of(View::Stock).instance, standing.of(View::Stock).position);
        standing.stand(&[stock(1, 1, 5)]);
        let change = Change {
            number: 7,
            name: tidemark_views::STOCK.to_owned(),
            instance: 1,
            kind: Kind::Rows,
            epoch: 1,
            position: 9,
            keys: Vec::new(),
        };
        standing.moved(&[change]);
        standing.stand(&[stock(1, 1, 5)]);
        assert_eq!(at(), (1, 9));
        // Another instance is read from where it stands, whatever the one before had come to.
        standing.stand(&[stock(2, 1, 8)]);
        assert_eq!(at(), (2, 8));
        // Who comes back and has taken a switch in stays there, whatever was read before it.
        standing.stand_again(&[stock(1, 1, 20)]);
        assert_eq!(at(), (2, 8));
        // And in another history nothing of this one counts.
        standing.lose();
        standing.stand_again(&[stock(2, 1, 3)]);
        assert_eq!(at(), (2, 3));
    }
}
