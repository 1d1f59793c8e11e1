//! Given-when-then for deciders: the history as events, one command, and what must come of it.
//!
//! ```
//! use tidemark_command::testing::{given, order, place, product, stock};
//! use tidemark_command::Rejection::OutOfStock;
//! # use uuid::Uuid;
//! # const LAMP: Uuid = Uuid::from_u128(1);
//! # const ORDER_A: Uuid = Uuid::from_u128(2);
//! # const ORDER_B: Uuid = Uuid::from_u128(3);
//! given([
//!     product(LAMP).created("LAMP-1", 1_999),
//!     product(LAMP).published(),
//!     stock(LAMP).received(1),
//!     stock(LAMP).reserved(ORDER_A, 1),
//! ])
//! .when(place(ORDER_B, [(LAMP, 1)]))
//! .then_refused(OutOfStock { line: 0, product: LAMP, wanted: 1, available: 0 });
//! ```

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use tidemark_events::account::{
    AccountDeactivated, AccountRegistered, AccountReinstated, EmailClaimed, EmailVerified, PasswordChanged,
    PasswordResetRequested,
};
use tidemark_events::order::{OrderCancelled, OrderDelivered, OrderLine, OrderPlaced, OrderShipped};
use tidemark_events::product::{PriceChanged, ProductCreated, ProductPublished, ProductRetired};
use tidemark_events::sku::{SkuClaimed, SkuReleased};
use tidemark_events::stock::{StockAdjusted, StockReceived, StockReleased, StockReserved, StockShipped};
use tidemark_events::{Currency, Fact, Money, Personal};
use uuid::Uuid;

use crate::Command;
use crate::account::Mailed;
use crate::command::NewId;
use crate::decision::{Decision, Happened, Rejection};
use crate::order::{CancelOrder, DeliverOrder, Line, PlaceOrder, Requester, ShipOrder};
use crate::shop::{Aggregate, Entry, Shop, States};
use crate::value::Quantity;

/// The customer of every order that a test does not say more about.
pub const CUSTOMER: Uuid = Uuid::from_u128(0xC0);

/// The time of every command in a test.
#[must_use]
pub fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_767_225_600, 0).unwrap_or_default()
}

/// Euros and cents.
///
/// # Panics
/// Never: EUR is a currency in use.
#[must_use]
pub fn euros(cents: i64) -> Money {
    Money { amount: cents, currency: Currency::parse("EUR").expect("EUR is in use") }
}

/// All states, in memory: every stream is loaded, most of them empty.
#[derive(Debug, Clone, Default)]
pub struct World {
    entries: HashMap<Uuid, Entry>,
}

static EMPTY: Entry = Entry { version: 0, position: 0, state: None };

impl States for World {
    fn entry(&self, stream_id: Uuid) -> Option<&Entry> {
        Some(self.entries.get(&stream_id).unwrap_or(&EMPTY))
    }
}

impl World {
    /// Folds what happened.
    pub fn evolve(&mut self, happened: &Happened) {
        let entry = self.entries.entry(happened.stream_id).or_insert_with(|| EMPTY.clone());
        entry.version += 1;
        let state = entry.state.take().or_else(|| Aggregate::initial(happened.fact.event_type().category));
        entry.state = state.map(|mut state| {
            state.evolve(&happened.fact);
            state
        });
    }

    /// Decides a command on the states as they are; changes nothing.
    ///
    /// # Errors
    /// The command's rejection.
    pub fn decide(&self, command: &Command) -> Result<Decision, Rejection> {
        command.decide(&Shop::new(self), now())
    }

    /// A product's stock.
    #[must_use]
    pub fn stock(&self, product_id: Uuid) -> crate::stock::Stock {
        Shop::new(self).stock(product_id)
    }

    /// How an order stands, if it exists.
    #[must_use]
    pub fn order(&self, order_id: Uuid) -> Option<crate::order::OrderStatus> {
        Shop::new(self).order(order_id).map(|order| order.status)
    }
}

/// What happened before.
#[must_use]
pub fn given<const N: usize>(history: [Vec<Happened>; N]) -> Given {
    let mut world = World::default();
    for happened in history.iter().flatten() {
        world.evolve(happened);
    }
    Given { world }
}

/// A history.
#[derive(Debug)]
pub struct Given {
    world: World,
}

impl Given {
    /// The command that is put to the test.
    #[must_use]
    pub fn when(self, command: impl Into<Command>) -> When {
        When { outcome: self.world.decide(&command.into()) }
    }
}

/// What a command came to.
#[derive(Debug)]
pub struct When {
    outcome: Result<Decision, Rejection>,
}

impl When {
    /// It was accepted, and the answer says that it stands so.
    ///
    /// # Panics
    /// When it was not so.
    #[track_caller]
    #[must_use]
    pub fn answers(self, status: &str) -> Self {
        match &self.outcome {
            Ok(decision) => assert_eq!(decision.status, status),
            Err(rejection) => panic!("refused: {rejection}"),
        }
        self
    }

    /// It was accepted, with exactly these events in this order.
    ///
    /// # Panics
    /// When it was not so.
    #[track_caller]
    pub fn then<const N: usize>(self, events: [Vec<Happened>; N]) {
        let expected: Vec<Happened> = events.into_iter().flatten().collect();
        match self.outcome {
            Ok(decision) => assert_eq!(decision.events, expected),
            Err(rejection) => panic!("refused: {rejection}"),
        }
    }

    /// It was accepted, and there was nothing to do.
    ///
    /// # Panics
    /// When it was not so.
    #[track_caller]
    pub fn then_nothing(self) {
        self.then([]);
    }

    /// It was refused for this reason.
    ///
    /// # Panics
    /// When it was not so.
    #[track_caller]
    pub fn then_refused(self, expected: Rejection) {
        match self.outcome {
            Ok(decision) => panic!("accepted with {:?}", decision.events),
            Err(rejection) => assert_eq!(rejection, expected),
        }
    }
}

/// What happens to a product.
#[must_use]
pub fn product(id: Uuid) -> ProductHistory {
    ProductHistory(id)
}

/// See [`product`].
#[derive(Debug, Clone, Copy)]
pub struct ProductHistory(Uuid);

impl ProductHistory {
    fn one(self, fact: impl Into<Fact>) -> Vec<Happened> {
        vec![Happened::to_product(self.0, fact)]
    }

    /// It was created for so many euro cents, and its SKU claimed.
    #[must_use]
    pub fn created(self, sku: &str, cents: i64) -> Vec<Happened> {
        let created = ProductCreated {
            sku: sku.to_owned(),
            name: sku.to_owned(),
            description: None,
            department: None,
            price: euros(cents),
        };
        let claimed = SkuClaimed { sku: sku.to_owned(), product_id: self.0 };
        vec![Happened::to_product(self.0, created), Happened::to_sku(sku, self.0, claimed)]
    }

    /// It was put on sale.
    #[must_use]
    pub fn published(self) -> Vec<Happened> {
        self.one(ProductPublished {})
    }

    /// Its price was changed.
    #[must_use]
    pub fn repriced(self, price: Money) -> Vec<Happened> {
        self.one(PriceChanged { price })
    }

    /// It was taken off sale, and its SKU freed.
    #[must_use]
    pub fn retired(self, sku: &str) -> Vec<Happened> {
        let released = SkuReleased { sku: sku.to_owned(), product_id: self.0 };
        vec![Happened::to_product(self.0, ProductRetired {}), Happened::to_sku(sku, self.0, released)]
    }
}

/// What happens to a product's stock.
#[must_use]
pub fn stock(product_id: Uuid) -> StockHistory {
    StockHistory(product_id)
}

/// See [`stock`].
#[derive(Debug, Clone, Copy)]
pub struct StockHistory(Uuid);

impl StockHistory {
    fn one(self, fact: impl Into<Fact>) -> Vec<Happened> {
        vec![Happened::to_stock(self.0, fact)]
    }

    /// Units came in.
    #[must_use]
    pub fn received(self, quantity: i64) -> Vec<Happened> {
        self.one(StockReceived { product_id: self.0, quantity })
    }

    /// The count was corrected.
    #[must_use]
    pub fn adjusted(self, delta: i64, reason: &str) -> Vec<Happened> {
        self.one(StockAdjusted { product_id: self.0, delta, reason: reason.to_owned() })
    }

    /// Units were kept for an order.
    #[must_use]
    pub fn reserved(self, order_id: Uuid, quantity: i64) -> Vec<Happened> {
        self.one(StockReserved { product_id: self.0, order_id, quantity })
    }

    /// An order gave its units back.
    #[must_use]
    pub fn released(self, order_id: Uuid, quantity: i64) -> Vec<Happened> {
        self.one(StockReleased { product_id: self.0, order_id, quantity })
    }

    /// An order's units left.
    #[must_use]
    pub fn shipped(self, order_id: Uuid, quantity: i64) -> Vec<Happened> {
        self.one(StockShipped { product_id: self.0, order_id, quantity })
    }
}

/// What happens to an order.
#[must_use]
pub fn order(id: Uuid) -> OrderHistory {
    OrderHistory(id)
}

/// See [`order`].
#[derive(Debug, Clone, Copy)]
pub struct OrderHistory(Uuid);

impl OrderHistory {
    fn one(self, fact: impl Into<Fact>) -> Vec<Happened> {
        vec![Happened::to_order(self.0, fact)]
    }

    /// It was placed by [`CUSTOMER`]: product, units, euro cents each.
    ///
    /// # Panics
    /// When the total is beyond what money can be.
    #[must_use]
    pub fn placed<const N: usize>(self, lines: [(Uuid, i64, i64); N]) -> Vec<Happened> {
        let lines: Vec<OrderLine> = lines
            .into_iter()
            .map(|(product_id, quantity, unit_price)| {
                let amount = Money::times(unit_price, quantity).expect("a test's amounts are small");
                OrderLine { product_id, quantity, unit_price, amount }
            })
            .collect();
        let total = euros(lines.iter().map(|line| line.amount).sum());
        self.one(OrderPlaced { customer_id: CUSTOMER, lines, total, placed_at: now() })
    }

    /// It was called off.
    #[must_use]
    pub fn cancelled(self) -> Vec<Happened> {
        self.one(OrderCancelled { reason: None, cancelled_at: now() })
    }

    /// It left the house.
    #[must_use]
    pub fn shipped(self) -> Vec<Happened> {
        self.one(OrderShipped { shipped_at: now() })
    }

    /// It arrived.
    #[must_use]
    pub fn delivered(self) -> Vec<Happened> {
        self.one(OrderDelivered { delivered_at: now() })
    }
}

/// What happens to an account.
#[must_use]
pub fn account(id: Uuid) -> AccountHistory {
    AccountHistory(id)
}

/// See [`account`].
#[derive(Debug, Clone, Copy)]
pub struct AccountHistory(Uuid);

impl AccountHistory {
    /// The claim on its e-mail address.
    const CLAIM: Uuid = Uuid::from_u128(0xC1);

    fn one(self, fact: impl Into<Fact>) -> Vec<Happened> {
        vec![Happened::to_account(self.0, fact)]
    }

    /// A mail to it that can be used for an hour.
    #[must_use]
    pub fn mail(self, id: Uuid) -> Mailed {
        Mailed { id, expires_at: now() + TimeDelta::hours(1) }
    }

    /// It was registered, and its address claimed; a mail can verify it.
    #[must_use]
    pub fn registered(self, verification: Uuid) -> Vec<Happened> {
        let mail = self.mail(verification);
        let registered = AccountRegistered {
            email: Personal::sealed("v1.sealed"),
            name: None,
            claim: Self::CLAIM,
            credential_id: self.0,
            verification_id: mail.id,
            verification_expires_at: mail.expires_at,
        };
        let claimed = EmailClaimed { account_id: self.0 };
        vec![Happened::to_account(self.0, registered), Happened::to_email(Self::CLAIM, self.0, claimed)]
    }

    /// Its address was verified.
    #[must_use]
    pub fn verified(self) -> Vec<Happened> {
        self.one(EmailVerified {})
    }

    /// A new password can be set with a mail.
    #[must_use]
    pub fn reset_requested(self, reset: Uuid) -> Vec<Happened> {
        let mail = self.mail(reset);
        self.one(PasswordResetRequested { reset_id: mail.id, expires_at: mail.expires_at })
    }

    /// A new password was set with a mail.
    #[must_use]
    pub fn password_reset(self, credential_id: Uuid) -> Vec<Happened> {
        self.one(PasswordChanged { credential_id, by_reset: true, kept_session: None })
    }

    /// Nobody can log in.
    #[must_use]
    pub fn deactivated(self) -> Vec<Happened> {
        self.one(AccountDeactivated { reason: None })
    }

    /// Its owner can log in again.
    #[must_use]
    pub fn reinstated(self) -> Vec<Happened> {
        self.one(AccountReinstated {})
    }
}

/// [`CUSTOMER`] orders products.
///
/// # Panics
/// When a quantity is not 1 to 1,000,000.
#[must_use]
pub fn place<const N: usize>(order_id: Uuid, lines: [(Uuid, i64); N]) -> Command {
    let line = |(product_id, quantity)| Line {
        product_id,
        quantity: Quantity::try_from(quantity).expect("a test orders 1 to 1,000,000 units"),
    };
    Command::PlaceOrder(PlaceOrder {
        order_id: NewId::Derived(order_id),
        customer_id: CUSTOMER,
        lines: lines.into_iter().map(line).collect(),
    })
}

/// [`CUSTOMER`] calls an order off.
#[must_use]
pub fn cancel(order_id: Uuid) -> Command {
    cancel_as(order_id, Requester::Customer(CUSTOMER))
}

/// Somebody calls an order off.
#[must_use]
pub fn cancel_as(order_id: Uuid, requester: Requester) -> Command {
    Command::CancelOrder(CancelOrder { order_id, requester, reason: None })
}

/// An order leaves the house.
#[must_use]
pub fn ship(order_id: Uuid) -> Command {
    Command::ShipOrder(ShipOrder { order_id })
}

/// An order arrives.
#[must_use]
pub fn deliver(order_id: Uuid) -> Command {
    Command::DeliverOrder(DeliverOrder { order_id })
}
