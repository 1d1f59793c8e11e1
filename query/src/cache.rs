//! Ready bodies in the process's memory, made invalid by the events and not by timers.
//!
//! Every body carries the number of the newest change that its read could see ([`tidemark_views::feed`]), taken in the
//! same snapshot. A change writes its number into the slots of its keys. A body is valid while its number is not
//! below its slot's, so it does not matter whether the change is learnt before, during or after the read: a body that
//! was read before a change is never served after the change is known. Slots are shared by hash, which costs a read
//! too many now and then and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::HeaderValue;
use quick_cache::Weighter;
use tidemark_events::planted;
use uuid::Uuid;

use crate::feed::View;

/// Slots for keys; a power of two.
const SLOTS: usize = 1 << 16;

/// A body is read anew after this, whatever the changes say: a safety net only.
const AT_MOST: Duration = Duration::from_secs(600);

/// What a body is found under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A product's body.
    Product(Uuid),
    /// An order's body.
    Order(Uuid),
    /// A page of products, by its query string.
    Products(Box<str>),
}

/// A body, ready to be sent.
#[derive(Debug)]
pub(crate) struct Ready {
    /// The bytes.
    pub(crate) body: Bytes,
    /// Its strong entity tag.
    pub(crate) etag: HeaderValue,
    /// Whose order it is.
    pub(crate) owner: Option<Uuid>,
    /// The link to the next page.
    pub(crate) link: Option<HeaderValue>,
    /// Whether events of its key are parked: it is not all there is.
    pub(crate) parked: bool,
    /// The number of the newest change that its read could see.
    pub(crate) number: i64,
    /// When its read began.
    pub(crate) read_at: Instant,
}

#[derive(Debug, Clone, Default)]
struct Bytewise;

impl Weighter<Key, Arc<Ready>> for Bytewise {
    fn weight(&self, key: &Key, ready: &Arc<Ready>) -> u64 {
        const FIXED: u64 = 256;
        let key_bytes = match key {
            Key::Product(_) | Key::Order(_) => 0,
            Key::Products(query) => query.len() as u64,
        };
        FIXED + key_bytes + ready.body.len() as u64
    }
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    bodies: quick_cache::sync::Cache<Key, Arc<Ready>, Bytewise>,
    slots: Vec<AtomicI64>,
    /// How long to wait for somebody else's read.
    patience: Duration,
    /// The newest change of each view, for pages.
    views: [AtomicI64; View::COUNT],
    /// Bodies below it are invalid, whatever they are.
    floor: AtomicI64,
    made_at: Instant,
    /// Microseconds from then to when numbers began anew, or readers went to other tables: what a read that began before
    /// brings is of another history.
    anew: AtomicU64,
}

impl Cache {
    /// So many bytes of bodies; `patience` is how long whoever asks waits for reads of others before theirs fails.
    pub(crate) fn new(bytes: u64, patience: Duration) -> Self {
        const ABOUT_A_BODY: u64 = 512;
        let items = usize::try_from(bytes / ABOUT_A_BODY).unwrap_or(usize::MAX);
        Self {
            bodies: quick_cache::sync::Cache::with_weighter(items, bytes, Bytewise),
            slots: (0..SLOTS).map(|_| AtomicI64::new(0)).collect(),
            patience,
            views: Default::default(),
            floor: AtomicI64::new(0),
            made_at: Instant::now(),
            anew: AtomicU64::new(0),
        }
    }

    /// The server that numbered the changes so far is gone, and its successor may not have had all of them: nothing
    /// that was read counts, and no number that was seen. The newest change is now `number`.
    pub(crate) fn begin_anew(&self, number: i64) {
        self.drop_what_is_being_read();
        for last in self.slots.iter().chain(&self.views) {
            last.store(0, Ordering::Release);
        }
        self.floor.store(number, Ordering::Release);
    }

    /// Reads that are under way are for those alone who have asked for them.
    pub(crate) fn drop_what_is_being_read(&self) {
        let elapsed = u64::try_from(self.made_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.anew.store(elapsed.saturating_add(1), Ordering::Release);
    }

    /// A change with this number touched these keys of a view.
    pub(crate) fn changed(&self, view: View, keys: &[Uuid], number: i64) {
        if keys.is_empty() || planted::is("stale-cache") {
            return;
        }
        for key in keys {
            self.slot(*key).fetch_max(number, Ordering::AcqRel);
        }
        self.views[view as usize].fetch_max(number, Ordering::AcqRel);
    }

    /// Everything read before this number is invalid: changes were missed, or readers go to other tables.
    pub(crate) fn drop_before(&self, number: i64) {
        self.floor.fetch_max(number, Ordering::AcqRel);
    }

    fn slot(&self, key: Uuid) -> &AtomicI64 {
        // Random bits of the id; a power of two of slots.
        let (high, low) = key.as_u64_pair();
        let hash = (high ^ low).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        &self.slots[usize::try_from(hash >> 48).unwrap_or(0) & (SLOTS - 1)]
    }

    /// What a body of this key must have seen at least, as far as is known.
    pub(crate) fn needed(&self, key: &Key) -> i64 {
        match key {
            Key::Product(id) | Key::Order(id) => self.needed_of(*id),
            Key::Products(_) => self.needed_of_views(&[View::Products, View::Stock]),
        }
    }

    /// What a read of this key's rows must have seen at least.
    pub(crate) fn needed_of(&self, key: Uuid) -> i64 {
        self.slot(key).load(Ordering::Acquire).max(self.floor.load(Ordering::Acquire))
    }

    /// What a read of any rows of these views must have seen at least.
    pub(crate) fn needed_of_views(&self, views: &[View]) -> i64 {
        let newest = views.iter().map(|&view| self.views[view as usize].load(Ordering::Acquire)).max();
        newest.unwrap_or(0).max(self.floor.load(Ordering::Acquire))
    }

    fn is_valid(&self, key: &Key, ready: &Ready) -> bool {
        let anew = self.made_at + Duration::from_micros(self.anew.load(Ordering::Acquire));
        ready.number >= self.needed(key) && ready.read_at >= anew && ready.read_at.elapsed() < AT_MOST
    }

    /// The body of a key: from memory if it is valid and `trusted`, else read by `load`, once for all who ask for it
    /// at the same time. A body whose read began after this call is good enough whatever has changed since.
    ///
    /// `None` (there is no such thing) and errors are not remembered: who waited for such a read reads in turn, and gets
    /// `late` if too much time is over by then.
    pub(crate) async fn get<E>(
        &self,
        key: Key,
        trusted: bool,
        late: impl FnOnce() -> E,
        load: impl AsyncFnOnce() -> Result<Option<Ready>, E>,
    ) -> Result<Option<Arc<Ready>>, E> {
        if trusted
            && let Some(ready) = self.bodies.get(&key)
            && self.is_valid(&key, &ready)
        {
            figures().hit.increment(1);
            return Ok(Some(ready));
        }
        // Apart, so that a request that finds its body here is not as large as one that reads it.
        Box::pin(self.read(key, trusted, late, load)).await
    }

    /// The body of a key that is not in memory.
    async fn read<E>(
        &self,
        key: Key,
        trusted: bool,
        late: impl FnOnce() -> E,
        load: impl AsyncFnOnce() -> Result<Option<Ready>, E>,
    ) -> Result<Option<Arc<Ready>>, E> {
        let asked_at = Instant::now();
        loop {
            match self.bodies.get_value_or_guard_async(&key).await {
                Ok(ready) if ready.read_at >= asked_at || (trusted && self.is_valid(&key, &ready)) => {
                    return Ok(Some(ready));
                }
                Ok(old) => {
                    self.bodies.remove_if(&key, |ready| Arc::ptr_eq(ready, &old));
                }
                Err(_guard) if asked_at.elapsed() > self.patience => return Err(late()),
                Err(guard) => {
                    figures().miss.increment(1);
                    let Some(ready) = load().await? else { return Ok(None) };
                    let ready = Arc::new(ready);
                    // Replaced or removed meanwhile: then it is only this request's.
                    guard.insert(Arc::clone(&ready)).ok();
                    return Ok(Some(ready));
                }
            }
        }
    }
}

struct Figures {
    hit: metrics::Counter,
    miss: metrics::Counter,
}

fn figures() -> &'static Figures {
    static FIGURES: std::sync::OnceLock<Figures> = std::sync::OnceLock::new();
    FIGURES.get_or_init(|| Figures {
        hit: metrics::counter!("tidemark_cache_requests_total", "tier" => "process", "outcome" => "hit"),
        miss: metrics::counter!("tidemark_cache_requests_total", "tier" => "process", "outcome" => "miss"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn ready(number: i64, text: &'static str) -> Ready {
        Ready {
            body: Bytes::from_static(text.as_bytes()),
            etag: HeaderValue::from_static("\"1\""),
            owner: None,
            link: None,
            parked: false,
            number,
            read_at: Instant::now(),
        }
    }

    fn cache() -> Cache {
        Cache::new(1 << 20, Duration::from_secs(10))
    }

    fn in_time() -> Infallible {
        panic!("nobody had to wait")
    }

    async fn get(cache: &Cache, key: Key, number: i64, text: &'static str) -> Bytes {
        let loaded = cache.get(key, true, in_time, async || Ok(Some(ready(number, text)))).await;
        loaded.unwrap().unwrap().body.clone()
    }

    #[tokio::test]
    async fn a_body_read_before_a_change_is_not_served_after_it() {
        let (cache, id) = (cache(), Uuid::now_v7());
        assert_eq!(get(&cache, Key::Product(id), 5, "old").await, "old");
        assert_eq!(get(&cache, Key::Product(id), 5, "unused").await, "old", "from memory");
        cache.changed(View::Stock, &[id], 6);
        assert_eq!(get(&cache, Key::Product(id), 6, "new").await, "new");
        assert_eq!(get(&cache, Key::Product(id), 6, "unused").await, "new");
    }

    #[tokio::test]
    async fn a_change_that_comes_while_a_body_is_read_is_not_lost() {
        let (cache, id) = (cache(), Uuid::now_v7());
        let read = cache
            .get(Key::Product(id), true, in_time, async || {
                // The snapshot was taken at number 5; number 6 is learnt before the body is kept.
                cache.changed(View::Products, &[id], 6);
                Ok(Some(ready(5, "old")))
            })
            .await;
        assert_eq!(read.unwrap().unwrap().body, "old", "whoever asked before may see it");
        assert_eq!(get(&cache, Key::Product(id), 6, "new").await, "new", "nobody after");
    }

    #[tokio::test]
    async fn a_late_reader_of_an_old_snapshot_cannot_bring_it_back() {
        let (cache, id) = (cache(), Uuid::now_v7());
        cache.changed(View::Products, &[id], 9);
        assert_eq!(get(&cache, Key::Product(id), 8, "from a slow replica").await, "from a slow replica");
        assert_eq!(get(&cache, Key::Product(id), 9, "new").await, "new", "it was not kept for others");
    }

    #[tokio::test]
    async fn pages_follow_their_views_and_missed_changes_drop_everything() {
        let (cache, id) = (cache(), Uuid::now_v7());
        let page = || Key::Products("q=x".into());
        get(&cache, page(), 1, "one").await;
        cache.changed(View::Orders, &[id], 2);
        assert_eq!(get(&cache, page(), 2, "two").await, "one", "orders are not on it");
        cache.changed(View::Stock, &[id], 3);
        assert_eq!(get(&cache, page(), 3, "three").await, "three");
        get(&cache, Key::Order(id), 3, "order").await;
        cache.drop_before(10);
        assert_eq!(get(&cache, page(), 10, "ten").await, "ten");
        assert_eq!(get(&cache, Key::Order(id), 10, "order ten").await, "order ten");
    }

    #[tokio::test]
    async fn numbers_that_begin_anew_bring_nothing_old_back() {
        let cache = cache();
        let id = Uuid::now_v7();
        cache.changed(View::Orders, &[id], 50);
        assert_eq!(get(&cache, Key::Order(id), 51, "of the lost end").await, "of the lost end");
        cache.begin_anew(40);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(get(&cache, Key::Order(id), 40, "forty").await, "forty");
        assert_eq!(get(&cache, Key::Order(id), 41, "kept").await, "forty", "change 50 is forgotten");
        cache.changed(View::Orders, &[id], 42);
        assert_eq!(get(&cache, Key::Order(id), 42, "forty-two").await, "forty-two");
    }

    #[tokio::test]
    async fn a_read_that_began_with_the_tables_before_is_not_kept() {
        let (cache, id) = (cache(), Uuid::now_v7());
        let read = cache
            .get(Key::Product(id), true, in_time, async || {
                let ready = ready(5, "of the tables before");
                tokio::time::sleep(Duration::from_millis(1)).await;
                // It saw the number of the switch, which is learnt only now.
                cache.drop_before(5);
                cache.drop_what_is_being_read();
                Ok(Some(ready))
            })
            .await;
        assert_eq!(read.unwrap().unwrap().body, "of the tables before");
        assert_eq!(get(&cache, Key::Product(id), 5, "new").await, "new");
    }

    /// Fifty ask for one order at once; the answers, and how often it was read.
    async fn fifty(cache: Cache, first_alone_fails: bool) -> (Vec<Result<Bytes, &'static str>>, usize) {
        use std::sync::atomic::AtomicUsize;

        let (cache, id, reads) = (Arc::new(cache), Uuid::now_v7(), Arc::new(AtomicUsize::new(0)));
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (cache, reads) = (Arc::clone(&cache), Arc::clone(&reads));
            readers.spawn(async move {
                let load = async || {
                    let first = reads.fetch_add(1, Ordering::SeqCst) == 0;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    if first || !first_alone_fails { Err("away") } else { Ok(Some(ready(1, "body"))) }
                };
                let answer = cache.get(Key::Order(id), true, || "late", load).await;
                answer.map(|ready| ready.unwrap().body.clone())
            });
        }
        let answers = readers.join_all().await;
        (answers, reads.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn many_who_miss_read_once_and_a_failed_read_stops_nobody() {
        let (answers, reads) = fifty(cache(), true).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
        assert_eq!(reads, 2, "one failed, one for all others");
    }

    #[tokio::test]
    async fn while_all_reads_fail_nobody_waits_for_those_of_all_before() {
        let (answers, reads) = fifty(Cache::new(1 << 20, Duration::from_millis(10)), false).await;
        assert_eq!(answers.iter().filter(|answer| **answer == Err("late")).count(), 49);
        assert_eq!(reads, 1, "who has waited for one that failed does not begin another");
    }
}
