//! Clients that keep the shop busy: customers who order, cancel and look at what they ordered, and the staff beside
//! them who make products, take units in, change prices, ship and deliver.
//!
//! Nobody else touches a shopper's orders and products, so it knows how they must stand.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::access::Actor;
use crate::drive::Stage;
use crate::drive::client::Client;
use crate::error::ChaosError;
use crate::history::{Accepted, Ask, History, Target};

/// Customers of one shopper.
const CUSTOMERS: usize = 6;

/// Orders and products that a shopper remembers.
const REMEMBERED: usize = 50;

/// How long a shopper asks for one read: the views may be away for longer, and commands go on then.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads that wait for a shopper's companion; when the views are away, more are left out.
const WAITING_READS: usize = 4;

/// Something to be read: by whom, what, and behind which position.
pub(super) type Wish = (Option<Actor>, Target, Option<(i32, i64)>);

struct Shopper {
    client: Client,
    /// To the companion who reads, so that nobody's orders wait for views.
    reads: mpsc::Sender<Wish>,
    stage: Arc<Stage>,
    number: usize,
    staff: Actor,
    customers: Vec<Actor>,
    /// Orders that are placed, and such that are shipped.
    placed: VecDeque<(Uuid, Actor)>,
    shipped: VecDeque<(Uuid, Actor)>,
    /// Products of its own, the newest last, and how many it has made.
    products: VecDeque<Uuid>,
    made: usize,
    /// How many prices it has changed.
    priced: i64,
    /// What it was told last.
    told: Option<(i32, i64)>,
}

/// Reads what somebody who writes wants to see, until that one ends.
pub(super) async fn companion(
    mut client: Client,
    mut wishes: mpsc::Receiver<Wish>,
) -> Result<History, ChaosError> {
    while let Some((actor, target, after)) = wishes.recv().await {
        client.read(actor, target, after, PATIENCE).await?;
    }
    Ok(client.history)
}

/// A channel for what is to be read.
pub(super) fn wishes() -> (mpsc::Sender<Wish>, mpsc::Receiver<Wish>) {
    mpsc::channel(WAITING_READS)
}

/// Runs until the load is over.
pub(super) async fn run(
    mut client: Client,
    reads: mpsc::Sender<Wish>,
    stage: Arc<Stage>,
    number: usize,
    pace: Duration,
    over: CancellationToken,
) -> Result<History, ChaosError> {
    let staff = Actor::staff(client.id());
    let customers = (0..CUSTOMERS).map(|_| Actor::customer(client.id())).collect();
    let mut shopper = Shopper {
        client,
        reads,
        stage,
        number,
        staff,
        customers,
        placed: VecDeque::new(),
        shipped: VecDeque::new(),
        products: VecDeque::new(),
        made: 0,
        priced: 0,
        told: None,
    };
    while !over.is_cancelled() {
        let next = tokio::time::Instant::now() + pace;
        shopper.step().await?;
        tokio::time::sleep_until(next).await;
    }
    Ok(shopper.client.history)
}

impl Shopper {
    async fn step(&mut self) -> Result<(), ChaosError> {
        match self.client.random().u32(..100) {
            0..64 => self.order().await,
            64..73 => self.cancel().await,
            73..80 => self.ship().await,
            80..84 => self.deliver().await,
            84..93 => self.receive().await,
            93..97 => self.price().await,
            _ => self.create().await,
        }?;
        if self.client.random().u32(..100) < 8 {
            self.look();
        }
        Ok(())
    }

    async fn command(&mut self, actor: Actor, ask: Ask) -> Result<Option<Accepted>, ChaosError> {
        let accepted = self.client.command(actor, ask).await?;
        if let Some(accepted) = &accepted {
            self.told = Some((accepted.epoch, accepted.position));
            self.stage.told((accepted.epoch, accepted.position));
        }
        Ok(accepted)
    }

    async fn order(&mut self) -> Result<(), ChaosError> {
        let customer = self.customers[self.client.random().usize(..CUSTOMERS)];
        let count = self.client.random().usize(1..=3);
        let mut lines: Vec<(Uuid, i64)> = Vec::with_capacity(count);
        while lines.len() < count {
            let stage = Arc::clone(&self.stage);
            let random = self.client.random();
            // A third of all lines want what is scarce.
            let product = if random.u8(..3) == 0 {
                stage.scarce[random.usize(..stage.scarce.len())]
            } else {
                stage.plenty[random.usize(..stage.plenty.len())]
            };
            let quantity = random.i64(1..=3);
            if lines.iter().all(|(known, _)| *known != product) {
                lines.push((product, quantity));
            }
        }
        if let Some(accepted) = self.command(customer, Ask::Place { lines }).await? {
            self.placed.push_back((accepted.id, customer));
            if self.placed.len() > REMEMBERED {
                self.placed.pop_front();
            }
            if self.client.random().u8(..) < 40 {
                self.read(customer, Target::Order(accepted.id));
            }
            if self.client.random().u8(..) < 10 {
                self.read(customer, Target::Orders(customer.subject));
            }
        }
        Ok(())
    }

    async fn cancel(&mut self) -> Result<(), ChaosError> {
        let Some((order, customer)) = self.take_placed() else { return Ok(()) };
        self.command(customer, Ask::Cancel { order }).await?;
        if self.client.random().u8(..) < 40 {
            self.read(customer, Target::Order(order));
        }
        Ok(())
    }

    async fn ship(&mut self) -> Result<(), ChaosError> {
        let Some((order, customer)) = self.take_placed() else { return Ok(()) };
        if self.command(self.staff, Ask::Ship { order }).await?.is_some() {
            self.shipped.push_back((order, customer));
            if self.shipped.len() > REMEMBERED {
                self.shipped.pop_front();
            }
        }
        Ok(())
    }

    async fn deliver(&mut self) -> Result<(), ChaosError> {
        let Some((order, customer)) = self.shipped.pop_front() else { return Ok(()) };
        self.command(self.staff, Ask::Deliver { order }).await?;
        if self.client.random().u8(..) < 80 {
            self.read(customer, Target::Order(order));
        }
        Ok(())
    }

    fn take_placed(&mut self) -> Option<(Uuid, Actor)> {
        let count = self.placed.len();
        if count == 0 {
            return None;
        }
        let choice = self.client.random().usize(..count);
        self.placed.swap_remove_back(choice)
    }

    async fn receive(&mut self) -> Result<(), ChaosError> {
        let stage = Arc::clone(&self.stage);
        let random = self.client.random();
        let product = stage.scarce[random.usize(..stage.scarce.len())];
        let quantity = random.i64(1..=8);
        self.command(self.staff, Ask::Receive { product, quantity }).await?;
        if self.client.random().u8(..) < 40 {
            self.read(self.staff, Target::Stock(product));
        }
        Ok(())
    }

    async fn price(&mut self) -> Result<(), ChaosError> {
        let Some(&product) = self.products.back() else { return Ok(()) };
        // Another one than before, always: to ask for the price that there is changes nothing, and leaves no event.
        self.priced += 1;
        let price = 10_000 + self.priced % 10_000;
        self.command(self.staff, Ask::Price { product, price }).await?;
        self.read(self.staff, Target::Product(product));
        Ok(())
    }

    async fn create(&mut self) -> Result<(), ChaosError> {
        self.made += 1;
        let sku = format!("SKU-{}-{}", self.number, self.made);
        let price = self.client.random().i64(100..10_000);
        let create = Ask::Create { name: format!("Product {sku}"), sku, price };
        let Some(made) = self.command(self.staff, create).await? else { return Ok(()) };
        self.command(self.staff, Ask::Publish { product: made.id }).await?;
        self.products.push_back(made.id);
        if self.products.len() > REMEMBERED {
            self.products.pop_front();
        }
        self.read(self.staff, Target::Product(made.id));
        Ok(())
    }

    /// Reads what others have changed, as new as anybody knows or as it comes.
    fn look(&mut self) {
        let stage = Arc::clone(&self.stage);
        let random = self.client.random();
        let target = match random.u8(..3) {
            0 => Target::Products,
            1 => Target::Product(stage.scarce[random.usize(..stage.scarce.len())]),
            _ => Target::Product(stage.plenty[random.usize(..stage.plenty.len())]),
        };
        let after = if random.bool() { stage.newest() } else { None };
        self.reads.try_send((None, target, after)).ok();
    }

    /// Reads at least as new as what this shopper was told last.
    fn read(&mut self, actor: Actor, target: Target) {
        self.reads.try_send((Some(actor), target, self.told)).ok();
    }
}
