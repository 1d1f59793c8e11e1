//! The folded states that decisions read, one for each stream.

use std::cell::RefCell;

use serde::{Deserialize, Serialize};
use tidemark_events::{Fact, stream};
use uuid::Uuid;

use crate::account::{Account, EmailClaim, Session};
use crate::order::Order;
use crate::product::Product;
use crate::sku::Claim;
use crate::stock::Stock;

/// The state of any stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregate {
    /// A product.
    Product(Product),
    /// A product's stock.
    Stock(Stock),
    /// An order.
    Order(Order),
    /// The claim on a SKU.
    Claim(Claim),
    /// An account.
    Account(Account),
    /// A session.
    Session(Session),
    /// The claim on an e-mail address.
    Email(EmailClaim),
}

impl Aggregate {
    /// The state before the first event of a category's streams, `None` if this code does not know the category.
    #[must_use]
    pub fn initial(category: &str) -> Option<Self> {
        match category {
            stream::PRODUCT => Some(Self::Product(Product::default())),
            stream::STOCK_CATEGORY => Some(Self::Stock(Stock::default())),
            stream::ORDER => Some(Self::Order(Order::default())),
            stream::SKU_CATEGORY => Some(Self::Claim(Claim::default())),
            stream::ACCOUNT => Some(Self::Account(Account::default())),
            stream::SESSION => Some(Self::Session(Session::default())),
            stream::EMAIL_CATEGORY => Some(Self::Email(EmailClaim::default())),
            _ => None,
        }
    }

    /// The state that a snapshot holds; `None` if another fold made it, or if it cannot be read.
    #[must_use]
    pub fn from_snapshot(fold_version: i16, state: &serde_json::Value) -> Option<Self> {
        let state = Self::deserialize(state).ok()?;
        (fold_version == state.fold_version()).then_some(state)
    }

    /// Folds one event in. An event of another category changes nothing: streams hold one category.
    pub fn evolve(&mut self, fact: &Fact) {
        match (self, fact) {
            (Self::Product(state), Fact::Product(event)) => state.evolve(event),
            (Self::Stock(state), Fact::Stock(event)) => state.evolve(event),
            (Self::Order(state), Fact::Order(event)) => state.evolve(event),
            (Self::Claim(state), Fact::Sku(event)) => state.evolve(event),
            (Self::Account(state), Fact::Account(event)) => state.evolve(event),
            (Self::Session(state), Fact::Session(event)) => state.evolve(event),
            (Self::Email(state), Fact::Email(event)) => state.evolve(event),
            _ => {}
        }
    }

    /// The version of the fold: a snapshot of another one is not used. Each kind has its own, so that a change of one
    /// leaves the others' snapshots good: without them the streams of much sold products take long to load.
    #[must_use]
    pub fn fold_version(&self) -> i16 {
        match self {
            // 2: who is reinstated with an address that was never verified is pending.
            Self::Account(_) => 2,
            Self::Product(_)
            | Self::Stock(_)
            | Self::Order(_)
            | Self::Claim(_)
            | Self::Session(_)
            | Self::Email(_) => 1,
        }
    }

    /// Whether the commands on many other streams read it, too: then it is worth keeping even if it was asked for
    /// only once.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Product(_) | Self::Stock(_))
    }

    /// About how many bytes it takes beyond itself.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Product(state) => state.sku.len(),
            Self::Order(state) => std::mem::size_of_val(state.lines.as_slice()),
            Self::Account(state) => std::mem::size_of_val(state.addresses.as_slice()),
            Self::Stock(_) | Self::Claim(_) | Self::Session(_) | Self::Email(_) => 0,
        }
    }
}

/// A stream's state and version. The default is a stream that does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The version of the last event folded in; 0: the stream does not exist.
    pub version: i64,
    /// The position of that event.
    pub position: i64,
    /// The state, `None` when the stream holds an event that this code cannot read.
    pub state: Option<Aggregate>,
}

/// Where states are found.
pub trait States {
    /// The stream's entry, `None` when it is not loaded.
    fn entry(&self, stream_id: Uuid) -> Option<&Entry>;
}

/// The states as a decision sees them. What is asked for and not loaded is noted, and the decision then does not
/// count: it is made again once those streams are there.
pub struct Shop<'a, S> {
    states: &'a S,
    unmet: RefCell<Unmet>,
}

/// Why a decision does not count.
#[derive(Debug, Default)]
pub struct Unmet {
    /// Streams that are not loaded.
    pub missing: Vec<Uuid>,
    /// A stream that this code cannot read.
    pub unreadable: Option<Uuid>,
}

impl<'a, S: States> Shop<'a, S> {
    /// A view of `states`.
    pub fn new(states: &'a S) -> Self {
        Self { states, unmet: RefCell::default() }
    }

    /// What was asked for in vain.
    pub fn into_unmet(self) -> Unmet {
        self.unmet.into_inner()
    }

    fn state(&self, stream_id: Uuid) -> Option<&'a Aggregate> {
        match self.states.entry(stream_id) {
            Some(Entry { version: 0, .. }) => None,
            Some(Entry { state: Some(state), .. }) => Some(state),
            Some(Entry { state: None, .. }) => {
                self.unmet.borrow_mut().unreadable = Some(stream_id);
                None
            }
            None => {
                self.unmet.borrow_mut().missing.push(stream_id);
                None
            }
        }
    }

    /// Asks for a stream that will be written, though its state decides nothing.
    pub fn touch(&self, stream_id: Uuid) {
        self.state(stream_id);
    }

    /// A product, if it exists.
    pub fn product(&self, id: Uuid) -> Option<&'a Product> {
        match self.state(id)? {
            Aggregate::Product(product) => Some(product),
            _ => None,
        }
    }

    /// A product's stock; one that nothing ever happened to is empty.
    pub fn stock(&self, product_id: Uuid) -> Stock {
        match self.state(stream::stock_of(product_id)) {
            Some(Aggregate::Stock(stock)) => stock.clone(),
            _ => Stock::default(),
        }
    }

    /// An order, if it exists.
    pub fn order(&self, id: Uuid) -> Option<&'a Order> {
        match self.state(id)? {
            Aggregate::Order(order) => Some(order),
            _ => None,
        }
    }

    /// Who owns a SKU.
    pub fn owner_of(&self, sku: &str) -> Option<Uuid> {
        match self.state(stream::claim_of_sku(sku))? {
            Aggregate::Claim(claim) => claim.owner,
            _ => None,
        }
    }

    /// An account, if it exists.
    pub fn account(&self, id: Uuid) -> Option<&'a Account> {
        match self.state(id)? {
            Aggregate::Account(account) => Some(account),
            _ => None,
        }
    }

    /// A session, if it exists.
    pub fn session(&self, id: Uuid) -> Option<&'a Session> {
        match self.state(id)? {
            Aggregate::Session(session) => Some(session),
            _ => None,
        }
    }

    /// Who owns an e-mail address, by the stream of the claim on it.
    pub fn owner_of_email(&self, claim: Uuid) -> Option<Uuid> {
        match self.state(claim)? {
            Aggregate::Email(claim) => claim.owner,
            _ => None,
        }
    }
}
