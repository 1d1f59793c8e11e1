//! The load: clients that make, order, cancel, ship and read, others that ask the same thing all the time and measure
//! how long they wait, and one that reads the log as it grows.

pub(crate) mod client;
mod probe;
mod shopper;
pub(crate) mod tail;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::access::{Actor, Signer};
use crate::error::ChaosError;
use crate::history::{Accepted, Ask, History};
use client::{Client, Shop};

/// Products with as many units as anybody could want.
const PLENTY: usize = 40;
const PLENTY_UNITS: i64 = 1_000_000;

/// Products that many want and few get.
const SCARCE: usize = 4;
const SCARCE_UNITS: i64 = 40;

/// Clients that send small commands all the time, and such that read.
const WRITE_PROBES: usize = 3;
const READ_PROBES: usize = 2;

/// Products that there are from the beginning.
const PRODUCTS: usize = PLENTY + SCARCE + WRITE_PROBES;

/// How long the first products may take to be made.
const SET_UP_WITHIN: Duration = Duration::from_secs(60);

/// How the load is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Every choice follows from it.
    pub(crate) seed: u64,
    /// Clients that order.
    pub(crate) shoppers: usize,
    /// Commands a second of all of them together, while nothing is broken.
    pub(crate) rate: f64,
}

/// What all clients know.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Products with many units.
    plenty: Vec<Uuid>,
    /// Products with few.
    scarce: Vec<Uuid>,
    /// The newest position that anybody was told, and its epoch before it.
    newest: Mutex<Option<(i32, i64)>>,
    /// Commands acknowledged so far.
    accepted: AtomicU64,
    /// Microseconds from the beginning of the run to when the newest command was sent that was acknowledged to
    /// somebody who writes all the time.
    wrote: AtomicU64,
}

impl Stage {
    fn newest(&self) -> Option<(i32, i64)> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, place: (i32, i64)) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = newest.max(Some(place));
        drop(newest);
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    fn note_write(&self, sent: Duration) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.wrote.fetch_max(u64::try_from(sent.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When the newest command was sent, since the run began, that has been done for somebody who writes all the time.
    pub(crate) fn wrote(&self) -> Duration {
        Duration::from_micros(self.wrote.load(Ordering::Relaxed))
    }

    /// Commands acknowledged so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// Clients at work.
pub(crate) struct Drive {
    clients: JoinSet<Result<History, ChaosError>>,
    before: History,
    over: CancellationToken,
    give_up: CancellationToken,
    /// What they know.
    pub(crate) stage: Arc<Stage>,
}

impl Drive {
    /// Makes the first products and sends all clients off.
    ///
    /// # Errors
    /// [`ChaosError::TooLong`] when the first products cannot be made.
    pub(crate) async fn begin(
        front: String,
        signer: Signer,
        load: Load,
        began: Instant,
    ) -> Result<Self, ChaosError> {
        let (over, give_up) = (CancellationToken::new(), CancellationToken::new());
        let shop = Shop { front, signer, began, give_up: give_up.clone() };
        let mut seeds = fastrand::Rng::with_seed(load.seed);
        let mut first = Client::new(&shop, seeds.u64(..))?;
        let set_up = async {
            let mut made = Vec::new();
            let mut attempts = 0..4 * PRODUCTS;
            while made.len() < PRODUCTS {
                let number = attempts.next().ok_or_else(|| {
                    ChaosError::Wrong("the shop does not let its first products be made".to_owned())
                })?;
                let units =
                    if (PLENTY..PLENTY + SCARCE).contains(&made.len()) { SCARCE_UNITS } else { PLENTY_UNITS };
                made.extend(product(&mut first, &format!("FIRST-{number}"), units).await?);
            }
            Ok::<_, ChaosError>(made)
        };
        let made = tokio::time::timeout(SET_UP_WITHIN, set_up)
            .await
            .map_err(|_| ChaosError::TooLong("the first products could not be made".to_owned()))??;
        let stage = Arc::new(Stage {
            plenty: made[..PLENTY].to_vec(),
            scarce: made[PLENTY..PLENTY + SCARCE].to_vec(),
            newest: Mutex::default(),
            accepted: AtomicU64::new(0),
            wrote: AtomicU64::new(0),
        });
        let mut clients = JoinSet::new();
        #[expect(clippy::cast_precision_loss, reason = "a few dozen clients")]
        let pace = Duration::from_secs_f64(load.shoppers as f64 / load.rate);
        for number in 0..load.shoppers {
            let (reads, wishes) = shopper::wishes();
            let client = Client::new(&shop, seeds.u64(..))?;
            clients.spawn(shopper::run(client, reads, Arc::clone(&stage), number, pace, over.clone()));
            clients.spawn(shopper::companion(Client::new(&shop, seeds.u64(..))?, wishes));
        }
        for product in &made[PLENTY + SCARCE..] {
            let (reads, wishes) = shopper::wishes();
            let client = Client::new(&shop, seeds.u64(..))?;
            clients.spawn(probe::write(client, reads, Arc::clone(&stage), *product, over.clone()));
            clients.spawn(shopper::companion(Client::new(&shop, seeds.u64(..))?, wishes));
        }
        for product in made.iter().take(READ_PROBES) {
            clients.spawn(probe::read(Client::new(&shop, seeds.u64(..))?, *product, over.clone()));
        }
        Ok(Self { clients, before: first.history, over, give_up, stage })
    }

    /// Lets no client begin anything new, waits for the answers of what they have begun, for a bounded time, and
    /// returns what all of them did and saw.
    ///
    /// # Errors
    /// A client's.
    pub(crate) async fn end(mut self, within: Duration) -> Result<History, ChaosError> {
        self.over.cancel();
        let give_up = self.give_up.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(within).await;
            give_up.cancel();
        });
        let mut all = self.before;
        while let Some(ended) = self.clients.join_next().await {
            let history =
                ended.map_err(|error| ChaosError::Wrong(format!("a client ended badly: {error}")))??;
            all.join(history);
        }
        timer.abort();
        Ok(all)
    }
}

/// Makes a product, publishes it and takes units in. `None`: the shop refused one of it.
async fn product(client: &mut Client, sku: &str, units: i64) -> Result<Option<Uuid>, ChaosError> {
    let staff = Actor::staff(Uuid::from_u128(1));
    let price = client.random().i64(100..10_000);
    let create = Ask::Create { sku: sku.to_owned(), name: format!("Product {sku}"), price };
    let Some(Accepted { id, .. }) = client.command(staff, create).await? else { return Ok(None) };
    if client.command(staff, Ask::Publish { product: id }).await?.is_none() {
        return Ok(None);
    }
    let received = client.command(staff, Ask::Receive { product: id, quantity: units }).await?;
    Ok(received.map(|_| id))
}
