//! Every command there is, and who decides it.

use chrono::{DateTime, Utc};
use tidemark_events::stream;
use uuid::Uuid;

use crate::decision::{Decision, Rejection};
use crate::shop::{Shop, States};
use crate::{account, order, product, stock};

/// The id of something to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewId {
    /// Made at random just now: nothing can have it, so nothing is looked up.
    Fresh(Uuid),
    /// Derived from something outside (an import's source id): it may have been made before.
    Derived(Uuid),
}

impl NewId {
    /// The id.
    #[must_use]
    pub fn get(self) -> Uuid {
        match self {
            Self::Fresh(id) | Self::Derived(id) => id,
        }
    }
}

/// Something to be decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// See [`product::CreateProduct`].
    CreateProduct(product::CreateProduct),
    /// See [`product::ReviseProduct`].
    ReviseProduct(product::ReviseProduct),
    /// See [`product::SetPrice`].
    SetPrice(product::SetPrice),
    /// See [`product::PublishProduct`].
    PublishProduct(product::PublishProduct),
    /// See [`product::RetireProduct`].
    RetireProduct(product::RetireProduct),
    /// See [`stock::ReceiveStock`].
    ReceiveStock(stock::ReceiveStock),
    /// See [`stock::AdjustStock`].
    AdjustStock(stock::AdjustStock),
    /// See [`order::PlaceOrder`].
    PlaceOrder(order::PlaceOrder),
    /// See [`order::CancelOrder`].
    CancelOrder(order::CancelOrder),
    /// See [`order::ShipOrder`].
    ShipOrder(order::ShipOrder),
    /// See [`order::DeliverOrder`].
    DeliverOrder(order::DeliverOrder),
    /// See [`account::AccountCommand`].
    Account(account::AccountCommand),
}

impl Command {
    /// The stream that `If-Match` is about, and whose version the answer tells.
    #[must_use]
    pub fn stream(&self) -> Uuid {
        match self {
            Self::CreateProduct(command) => command.product_id.get(),
            Self::ReviseProduct(command) => command.product_id,
            Self::SetPrice(command) => command.product_id,
            Self::PublishProduct(command) => command.product_id,
            Self::RetireProduct(command) => command.product_id,
            Self::ReceiveStock(command) => stream::stock_of(command.product_id),
            Self::AdjustStock(command) => stream::stock_of(command.product_id),
            Self::PlaceOrder(command) => command.order_id.get(),
            Self::CancelOrder(command) => command.order_id,
            Self::ShipOrder(command) => command.order_id,
            Self::DeliverOrder(command) => command.order_id,
            Self::Account(command) => command.stream(),
        }
    }

    /// Decides, from the states of this moment and the time that the command brought. Pure.
    ///
    /// # Errors
    /// See [`Rejection`].
    pub fn decide<S: States>(&self, shop: &Shop<'_, S>, now: DateTime<Utc>) -> Result<Decision, Rejection> {
        match self {
            Self::CreateProduct(command) => product::create(command, shop),
            Self::ReviseProduct(command) => product::revise(command, shop),
            Self::SetPrice(command) => product::set_price(command, shop),
            Self::PublishProduct(command) => product::publish(command, shop),
            Self::RetireProduct(command) => product::retire(command, shop),
            Self::ReceiveStock(command) => stock::receive(command, shop),
            Self::AdjustStock(command) => stock::adjust(command, shop),
            Self::PlaceOrder(command) => order::place(command, shop, now),
            Self::CancelOrder(command) => order::cancel(command, shop, now),
            Self::ShipOrder(command) => order::ship(command, shop, now),
            Self::DeliverOrder(command) => order::deliver(command, shop, now),
            Self::Account(command) => command.decide(shop, now),
        }
    }
}
