//! Rate limits: how often one address or one account may ask.
//!
//! GCRA (the virtual-scheduling form of the leaky bucket): a key has `burst` requests at once and gets `count` back
//! in each `window`. Every process counts by itself; classes that guard secrets are counted in Redis, too, where there
//! is one, so that a limit holds over all processes. Redis never decides alone and never fails a request: while it is
//! away each process's own count holds.
//!
//! A handler charges what it knows better than the layer does:
//! ```text
//! async fn log_in(client: Client, Json(body): Json<LogIn>) -> Result<Response, Problem> {
//!     client.check_address(Class::LogIn).await?;
//!     client.check(Class::LogIn, &body.email).await?;
//!     …
//! }
//! ```
//! Whatever its answer is, the layer adds to it what is left.

use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use axum::http::{HeaderName, HeaderValue, Method};
use governor::clock::{Clock, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use metrics::{Counter, Gauge};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Script};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::problem::{self, Problem};

/// What is limited apart from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Reads of one address; charged by the layer.
    Reads,
    /// Commands of one address; charged by the layer.
    Commands,
    /// Commands of one account, whatever addresses they come from.
    Account,
    /// Attempts to log in: of one address, and for one account or e-mail address.
    LogIn,
    /// Requests that send a mail or take a mailed secret: registration, verification, password reset.
    Recovery,
}

/// A class's limit unless an operator says otherwise.
struct Row {
    name: &'static str,
    count: u32,
    window: Duration,
    burst: u32,
    /// Whether it is counted over all processes.
    shared: bool,
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// All limits. Their order is that of [`Class`].
const TABLE: [Row; 5] = [
    Row { name: "reads", count: 2_000, window: SECOND, burst: 10_000, shared: false },
    Row { name: "commands", count: 500, window: SECOND, burst: 5_000, shared: false },
    // Counted by each process: it is charged with every command, and a round trip to Redis would cost more than it saves.
    Row { name: "account", count: 100, window: SECOND, burst: 1_000, shared: false },
    Row { name: "log-in", count: 5, window: MINUTE, burst: 5, shared: true },
    Row { name: "recovery", count: 5, window: MINUTE, burst: 5, shared: true },
];

/// Requests that cost more than one. All others cost one.
const COSTS: [(&str, NonZeroU32); 3] = [
    ("/v1/events", NonZeroU32::new(100).expect("not zero")),
    ("/v1/audit", NonZeroU32::new(20).expect("not zero")),
    ("/v1/products/batch", NonZeroU32::new(50).expect("not zero")),
];

/// What is asked about the process itself: it must be answered when all else is too much.
const EXEMPT: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// The most keys of a class before others share [`FOLDED`] of them.
const MAX_KEYS: usize = 200_000;

/// The keys that those beyond [`MAX_KEYS`] share.
const FOLDED: u64 = 65_536;

/// How often keys that are back at their full burst are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// How long Redis may take for one answer.
const WITHIN: Duration = Duration::from_millis(100);

/// How long the opening of a connection may take.
const OPEN_WITHIN: Duration = Duration::from_millis(250);

/// How long Redis is left alone after a failure.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// The header that says what is left (draft-ietf-httpapi-ratelimit-headers-10).
static RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The header that says what there is.
static RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

impl Class {
    /// The class of a request that the layer charges, `None` where nothing is charged.
    #[must_use]
    pub(crate) fn of(method: &Method, path: &str) -> Option<Self> {
        if EXEMPT.contains(&path) {
            return None;
        }
        let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        Some(if reads { Self::Reads } else { Self::Commands })
    }

    /// Its name in settings, headers and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE[self as usize].name
    }
}

/// What a request of a route costs.
pub(crate) fn cost(path: &str) -> NonZeroU32 {
    COSTS.iter().find(|(route, _)| *route == path).map_or(NonZeroU32::MIN, |(_, cost)| *cost)
}

/// How much of one class is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    count: NonZeroU32,
    window: Duration,
    burst: NonZeroU32,
}

impl Rate {
    /// From one request to the next at the steady rate.
    fn interval(&self) -> Duration {
        (self.window / self.count.get()).max(Duration::from_nanos(1))
    }
}

/// The limits of all classes, `None` where a class has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates([Option<Rate>; TABLE.len()]);

impl Default for Rates {
    fn default() -> Self {
        Self(TABLE.map(|row| {
            let (count, burst) = (NonZeroU32::new(row.count)?, NonZeroU32::new(row.burst)?);
            Some(Rate { count, window: row.window, burst })
        }))
    }
}

impl std::str::FromStr for Rates {
    type Err = String;

    /// `class=COUNT/UNIT`, `class=COUNT/UNIT:BURST` or `class=off`, with commas between; a unit is `s`, `m` or `h`.
    /// What is not named keeps its limit.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            let names = TABLE.map(|row| row.name).join(", ");
            format!(
                "a list like log-in=5/m:5,reads=2000/s:10000,commands=off: class=COUNT/UNIT:BURST, where a class is \
                 one of {names}, a unit s, m or h, and counts are whole numbers from 1 to 4294967295"
            )
        };
        let mut rates = Self::default();
        let mut seen = [false; TABLE.len()];
        for part in text.split(',') {
            let (name, value) = part.trim().split_once('=').ok_or_else(expected)?;
            let index = TABLE.iter().position(|row| row.name == name).ok_or_else(expected)?;
            if std::mem::replace(&mut seen[index], true) {
                return Err(expected());
            }
            rates.0[index] = if value == "off" { None } else { Some(rate(value).ok_or_else(expected)?) };
        }
        Ok(rates)
    }
}

fn rate(text: &str) -> Option<Rate> {
    let (rate, burst) = match text.split_once(':') {
        Some((rate, burst)) => (rate, Some(burst)),
        None => (text, None),
    };
    let (count, unit) = rate.split_once('/')?;
    let window = match unit {
        "s" => SECOND,
        "m" => MINUTE,
        "h" => Duration::from_secs(3_600),
        _ => return None,
    };
    let count: NonZeroU32 = count.parse().ok()?;
    Some(Rate { count, window, burst: burst.map_or(Some(count), |burst| burst.parse().ok())? })
}

type Counts = RateLimiter<u128, DashMapStateStore<u128>, MonotonicClock, StateInformationMiddleware>;

/// A class that is limited.
struct Limit {
    name: &'static str,
    rate: Rate,
    shared: bool,
    counts: Counts,
    crowded: AtomicBool,
    fold: RandomState,
    policy: HeaderValue,
    refused: Counter,
    keys: Gauge,
}

impl Limit {
    fn new(row: &Row, rate: Rate) -> Arc<Self> {
        // A period of no time at all is the only one that there is no quota of.
        let quota = Quota::with_period(rate.interval()).unwrap_or(Quota::per_second(rate.count));
        let policy = format!("\"{}\";q={};w={}", row.name, rate.count, rate.window.as_secs());
        Arc::new(Self {
            name: row.name,
            rate,
            shared: row.shared,
            counts: RateLimiter::dashmap_with_clock(quota.allow_burst(rate.burst), MonotonicClock)
                .with_middleware(),
            crowded: AtomicBool::new(false),
            fold: RandomState::new(),
            policy: HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("")),
            refused: metrics::counter!("tidemark_rate_limited_total", "class" => row.name),
            keys: metrics::gauge!("tidemark_rate_limit_keys", "class" => row.name),
        })
    }

    /// Takes `cost` from a key's count in this process. Answers what is left, or the time to wait.
    fn take(&self, key: u128, cost: NonZeroU32) -> Result<u32, Duration> {
        let crowded = self.crowded.load(Ordering::Relaxed);
        let key = if crowded { u128::from(self.fold.hash_one(key) % FOLDED) } else { key };
        // What costs more than the whole burst takes all of it.
        let cost = cost.min(self.rate.burst);
        match self.counts.check_key_n(&key, cost) {
            Ok(Ok(state)) => Ok(state.remaining_burst_capacity()),
            Ok(Err(not_until)) => Err(not_until.wait_time_from(MonotonicClock.now())),
            Err(_) => Err(self.rate.window),
        }
    }

    /// Whether more than half of the burst is left.
    fn is_comfortable(&self, remaining: u32) -> bool {
        remaining > self.rate.burst.get() / 2
    }

    fn standing(self: &Arc<Self>, remaining: u32, wait: Duration) -> Standing {
        Standing { limit: Arc::clone(self), remaining, wait_seconds: seconds(wait) }
    }

    fn refusal(self: &Arc<Self>, wait: Duration) -> Standing {
        self.refused.increment(1);
        self.standing(0, wait.max(Duration::from_nanos(1)))
    }

    /// Forgets keys that stand where a new one would, and notes whether there are too many.
    fn sweep(&self) {
        self.counts.retain_recent();
        let keys = self.counts.len();
        if self.crowded.swap(keys > MAX_KEYS, Ordering::Relaxed) != (keys > MAX_KEYS) {
            tracing::warn!(
                class = self.name,
                keys,
                "the number of clients passed the bound of what is counted apart"
            );
        }
        self.counts.shrink_to_fit();
        self.keys.set(keys as f64);
    }
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
}

/// Where a key stands after a request: what answers tell with the headers `RateLimit` and `RateLimit-Policy`, beside
/// those of other classes.
#[derive(Clone)]
pub struct Standing {
    limit: Arc<Limit>,
    remaining: u32,
    wait_seconds: u32,
}

impl std::fmt::Debug for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Standing")
            .field("class", &self.limit.name)
            .field("remaining", &self.remaining)
            .field("wait_seconds", &self.wait_seconds)
            .finish()
    }
}

impl Standing {
    /// Requests of cost one that would pass now.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// Whether more than half of the burst is left: then an answer that is made often need not tell.
    pub(crate) fn is_comfortable(&self) -> bool {
        self.limit.is_comfortable(self.remaining)
    }

    /// Adds the headers that tell.
    pub(crate) fn tell(&self, headers: &mut axum::http::HeaderMap) {
        let used = self.limit.rate.burst.get().saturating_sub(self.remaining);
        let reset = seconds(self.limit.rate.interval().saturating_mul(used)).max(self.wait_seconds);
        let mut text = String::with_capacity(48);
        write!(text, "\"{}\";r={};t={reset}", self.limit.name, self.remaining).unwrap_or_default();
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(RATE_LIMIT.clone(), value);
            headers.append(RATE_LIMIT_POLICY.clone(), self.limit.policy.clone());
        }
    }

    /// The problem of a request that was too many.
    pub(crate) fn refused(self) -> Problem {
        let rate = &self.limit.rate;
        let detail = format!(
            "{} of the class {} may come in {} s, {} at once",
            rate.count,
            self.limit.name,
            rate.window.as_secs(),
            rate.burst
        );
        Problem::new(&problem::RATE_LIMITED, detail)
            .with_retry_after(self.wait_seconds.max(1))
            .with_standing(self)
    }
}

/// The limits of a process. Cheap to clone.
#[derive(Clone)]
pub struct RateLimits(Arc<Inner>);

struct Inner {
    limits: [Option<Arc<Limit>>; TABLE.len()],
    shared: Option<Shared>,
}

impl std::fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.0.limits.iter().flatten().map(|limit| limit.name).collect();
        f.debug_struct("RateLimits").field("classes", &names).finish_non_exhaustive()
    }
}

impl RateLimits {
    /// Counts by these rates, in Redis, too, where there is one. Says in the log which classes have no limit.
    #[must_use]
    pub fn new(rates: Rates, redis: Option<redis::Client>) -> Self {
        for (row, rate) in TABLE.iter().zip(rates.0) {
            if rate.is_none() {
                tracing::warn!(class = row.name, "this class of requests has no rate limit");
            }
        }
        let limits = std::array::from_fn(|index| Some(Limit::new(&TABLE[index], rates.0[index]?)));
        Self(Arc::new(Inner { limits, shared: redis.map(Shared::new) }))
    }

    /// Forgets keys that need no memory any more, until `stop`.
    pub async fn keep_small(self, stop: CancellationToken) {
        while tokio::time::timeout(SWEEP, stop.cancelled()).await.is_err() {
            for limit in self.0.limits.iter().flatten() {
                limit.sweep();
            }
        }
    }

    /// Charges an address in this process alone; `None` where the class has no limit, and for reads where more than half
    /// of the burst is left: they are answered too often to be told each time what hardly anybody comes near to.
    ///
    /// # Errors
    /// Where the address stands, if this was too much.
    pub(crate) fn charge(
        &self,
        class: Class,
        address: IpAddr,
        cost: NonZeroU32,
    ) -> Result<Option<Standing>, Standing> {
        let Some(limit) = &self.0.limits[class as usize] else { return Ok(None) };
        let left = limit.take(of_address(address), cost).map_err(|wait| limit.refusal(wait))?;
        let is_told = class != Class::Reads || !limit.is_comfortable(left);
        Ok(is_told.then(|| limit.standing(left, Duration::ZERO)))
    }

    /// Charges an account; `None` where the class has no limit.
    ///
    /// # Errors
    /// 429, with the time to wait.
    pub async fn check_id(&self, class: Class, id: Uuid) -> Result<Option<Standing>, Problem> {
        self.check_hashed(class, id.as_u128()).await
    }

    /// Charges a key of a class that is a text, like a normalised e-mail address; `None` where the class has no
    /// limit. The key itself is kept nowhere, only a hash.
    ///
    /// # Errors
    /// 429, with the time to wait.
    pub async fn check(&self, class: Class, key: &str) -> Result<Option<Standing>, Problem> {
        self.check_hashed(class, of_text(class, key)).await
    }

    /// Charges an address; `None` where the class has no limit.
    ///
    /// # Errors
    /// 429, with the time to wait.
    pub async fn check_address(&self, class: Class, address: IpAddr) -> Result<Option<Standing>, Problem> {
        self.check_hashed(class, of_address(address)).await
    }

    async fn check_hashed(&self, class: Class, key: u128) -> Result<Option<Standing>, Problem> {
        let Some(limit) = &self.0.limits[class as usize] else { return Ok(None) };
        let here = match limit.take(key, NonZeroU32::MIN) {
            Ok(left) => limit.standing(left, Duration::ZERO),
            Err(wait) => return Err(limit.refusal(wait).refused()),
        };
        let Some(shared) = self.0.shared.as_ref().filter(|_| limit.shared) else { return Ok(Some(here)) };
        match shared.take(limit, key).await {
            Some(Ok(everywhere)) if everywhere.remaining < here.remaining => Ok(Some(everywhere)),
            Some(Err(refusal)) => Err(refusal.refused()),
            Some(Ok(_)) | None => Ok(Some(here)),
        }
    }
}

/// An address as a key. Of IPv6 the first 64 bits: one client has all addresses of such a network.
fn of_address(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

fn of_text(class: Class, key: &str) -> u128 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(class.name().as_bytes());
    context.update(&[0]);
    context.update(key.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&context.finish().as_ref()[..16]);
    u128::from_be_bytes(bytes)
}

/// Takes one from a key's count: the time at which the whole burst is back, in microseconds of the server's clock.
/// Answers whether it passes, what is left, and the microseconds to wait.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local time = redis.call('TIME') \
         local now = time[1] * 1000000 + time[2] \
         local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2]) \
         local full = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) \
         local after = full + interval \
         local wait = after - interval * burst - now \
         if wait > 0 then return {0, 0, math.ceil(wait)} end \
         redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000) + 1) \
         return {1, math.floor((now + interval * burst - after) / interval), 0}",
    )
});

/// The counts that all processes have in common.
struct Shared {
    client: redis::Client,
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Milliseconds since `begun` before which Redis is not asked.
    not_before: AtomicU64,
    begun: Instant,
    failures: Counter,
}

impl Shared {
    fn new(client: redis::Client) -> Self {
        Self {
            client,
            connection: Mutex::new(None),
            not_before: AtomicU64::new(0),
            begun: Instant::now(),
            failures: metrics::counter!("tidemark_rate_limit_redis_failures_total"),
        }
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// `None` when Redis does not say.
    async fn take(&self, limit: &Arc<Limit>, key: u128) -> Option<Result<Standing, Standing>> {
        if self.milliseconds() < self.not_before.load(Ordering::Relaxed) {
            return None;
        }
        match tokio::time::timeout(OPEN_WITHIN + WITHIN, self.ask(limit, key)).await {
            Ok(Ok((passes, remaining, wait))) => {
                let wait = Duration::from_micros(wait);
                Some(if passes == 1 {
                    Ok(limit.standing(remaining, Duration::ZERO))
                } else {
                    Err(limit.refusal(wait))
                })
            }
            failed => {
                self.failures.increment(1);
                let next = self.milliseconds() + LEFT_ALONE.as_millis() as u64;
                self.not_before.store(next, Ordering::Relaxed);
                self.connection.lock().await.take();
                let why = failed.map_or_else(
                    |elapsed| elapsed.to_string(),
                    |asked| asked.map_or_else(|error| error.to_string(), |_| String::new()),
                );
                tracing::warn!(
                    why,
                    "Redis does not count for the rate limits; each process counts by itself"
                );
                None
            }
        }
    }

    async fn ask(&self, limit: &Limit, key: u128) -> redis::RedisResult<(u8, u32, u64)> {
        let mut connection = {
            let mut kept = self.connection.lock().await;
            match kept.as_ref() {
                Some(connection) => connection.clone(),
                None => {
                    let config = AsyncConnectionConfig::new()
                        .set_connection_timeout(Some(OPEN_WITHIN))
                        .set_response_timeout(Some(WITHIN));
                    let opened = self.client.get_multiplexed_async_connection_with_config(&config).await?;
                    kept.insert(opened).clone()
                }
            }
        };
        TAKE.key(format!("tidemark:limit:{}:{key:032x}", limit.name))
            .arg(u64::try_from(limit.rate.interval().as_micros()).unwrap_or(u64::MAX).max(1))
            .arg(limit.rate.burst.get())
            .invoke_async(&mut connection)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> RateLimits {
        RateLimits::new(text.parse().unwrap(), None)
    }

    #[test]
    fn the_table_is_in_the_order_of_the_classes() {
        let classes = [Class::Reads, Class::Commands, Class::Account, Class::LogIn, Class::Recovery];
        assert_eq!(classes.map(Class::name), ["reads", "commands", "account", "log-in", "recovery"]);
        assert!(Rates::default().0.iter().all(Option::is_some));
    }

    #[test]
    fn settings_are_read_or_refused() {
        let rates: Rates = "log-in=10/m, reads=off,commands=7/h:9".parse().unwrap();
        let of = |class: Class| rates.0[class as usize];
        let ten = NonZeroU32::new(10).unwrap();
        assert_eq!(of(Class::LogIn), Some(Rate { count: ten, window: MINUTE, burst: ten }));
        assert_eq!(of(Class::Reads), None);
        assert_eq!(of(Class::Commands).unwrap().burst.get(), 9);
        assert_eq!(of(Class::Recovery), Rates::default().0[Class::Recovery as usize]);
        for bad in [
            "",
            "reads",
            "reads=",
            "reads=5",
            "reads=5/d",
            "reads=0/s",
            "reads=5/s:0",
            "reads=-1/s",
            "reads=1.5/s",
            "reads=5/s:",
            "reads=5/s:x",
            "books=5/s",
            "reads=5/s,",
            "reads=5/s,reads=6/s",
            "reads=OFF",
            "reads=4294967296/s",
            "reads=5/s:1:2",
        ] {
            assert!(bad.parse::<Rates>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_burst_passes_and_one_more_waits() {
        let limits = limits("log-in=5/m");
        for left in (0..5).rev() {
            assert_eq!(limits.check(Class::LogIn, "a@example.com").await.unwrap().unwrap().remaining(), left);
        }
        let problem = limits.check(Class::LogIn, "a@example.com").await.unwrap_err();
        assert_eq!(problem.status(), 429);
        assert!(limits.check(Class::LogIn, "b@example.com").await.is_ok(), "each key has its own");
        assert!(limits.check(Class::Recovery, "a@example.com").await.is_ok(), "each class has its own");
    }

    #[test]
    fn a_network_of_ipv6_is_one_client_and_a_mapped_address_is_the_plain_one() {
        let key = |text: &str| of_address(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }

    #[test]
    fn costs_count_and_what_costs_too_much_takes_all() {
        let limits = limits("reads=1/m:150");
        let address = "192.0.2.1".parse().unwrap();
        let charge = |path| limits.charge(Class::Reads, address, cost(path));
        assert!(charge("/v1/products").unwrap().is_none(), "not told while there is much left");
        assert_eq!(charge("/v1/events").unwrap().unwrap().remaining(), 49);
        assert_eq!(charge("/v1/products").unwrap().unwrap().remaining(), 48);
        assert!(charge("/v1/events").is_err());
        let few = self::limits("reads=1/m:3");
        assert_eq!(few.charge(Class::Reads, address, cost("/v1/events")).unwrap().unwrap().remaining(), 0);
    }

    #[test]
    fn keys_that_are_back_at_their_burst_are_forgotten_and_too_many_share() {
        let limits = limits("reads=1000/s:1,commands=1/h:1");
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        let of = |class: Class| limits.0.limits[class as usize].clone().unwrap();
        for n in 0..1_000 {
            limits.charge(Class::Reads, address(n), NonZeroU32::MIN).ok();
        }
        std::thread::sleep(Duration::from_millis(50));
        of(Class::Reads).sweep();
        assert_eq!(of(Class::Reads).counts.len(), 0);

        let most = u32::try_from(MAX_KEYS).unwrap();
        for n in 0..=most {
            limits.charge(Class::Commands, address(n), NonZeroU32::MIN).ok();
        }
        of(Class::Commands).sweep();
        for n in 0..300_000 {
            limits.charge(Class::Commands, address(most + 1 + n), NonZeroU32::MIN).ok();
        }
        assert!(of(Class::Commands).counts.len() <= MAX_KEYS + 1 + FOLDED as usize);
    }

    #[test]
    fn what_must_always_be_answered_is_not_charged() {
        assert_eq!(Class::of(&Method::GET, "/livez"), None);
        assert_eq!(Class::of(&Method::GET, "/v1/products"), Some(Class::Reads));
        assert_eq!(Class::of(&Method::DELETE, "unmatched"), Some(Class::Commands));
    }
}
