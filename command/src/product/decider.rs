//! What may happen to a product: draft → published → retired, each with a SKU of its own.

use serde::{Deserialize, Serialize};
use tidemark_events::Money;
use tidemark_events::fact::ProductEvent;
use tidemark_events::product::{
    PriceChanged, ProductCreated, ProductPublished, ProductRetired, ProductRevised,
};
use tidemark_events::sku::{SkuClaimed, SkuReleased};
use uuid::Uuid;

use crate::command::NewId;
use crate::decision::{Decision, Happened, Rejection};
use crate::shop::{Shop, States};
use crate::value::{Department, Description, Name, Price, Sku};

/// How a product stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProductStatus {
    /// Created, not yet for sale.
    #[default]
    Draft,
    /// For sale.
    Published,
    /// No longer for sale, for good.
    Retired,
}

impl ProductStatus {
    /// Its name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Published => "published",
            Self::Retired => "retired",
        }
    }
}

/// What decisions need to know of a product.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    /// Its SKU.
    pub sku: Box<str>,
    /// Its price now; there is one from the beginning.
    pub price: Option<Money>,
    /// How it stands.
    pub status: ProductStatus,
}

impl Product {
    /// Folds an event in.
    pub fn evolve(&mut self, event: &ProductEvent) {
        match event {
            ProductEvent::ProductCreated(created) => {
                self.sku = created.sku.as_str().into();
                self.price = Some(created.price);
            }
            ProductEvent::ProductRevised(_) => {}
            ProductEvent::PriceChanged(changed) => self.price = Some(changed.price),
            ProductEvent::ProductPublished(_) => self.status = ProductStatus::Published,
            ProductEvent::ProductRetired(_) => self.status = ProductStatus::Retired,
        }
    }
}

/// Puts a new product into the catalog, as a draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateProduct {
    /// The id it gets.
    pub product_id: NewId,
    /// Must be nobody's.
    pub sku: Sku,
    /// What shoppers read.
    pub name: Name,
    /// A longer text.
    pub description: Option<Description>,
    /// Where in the shop it stands.
    pub department: Option<Department>,
    /// Price of one unit.
    pub price: Price,
}

/// Writes its texts anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviseProduct {
    /// Which product.
    pub product_id: Uuid,
    /// What shoppers read.
    pub name: Name,
    /// A longer text, or none.
    pub description: Option<Description>,
    /// Where in the shop it stands, or nowhere.
    pub department: Option<Department>,
}

/// Gives it another price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetPrice {
    /// Which product.
    pub product_id: Uuid,
    /// The new price of one unit.
    pub price: Price,
}

/// Puts it on sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishProduct {
    /// Which product.
    pub product_id: Uuid,
}

/// Takes it off sale for good and frees its SKU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetireProduct {
    /// Which product.
    pub product_id: Uuid,
}

/// Creates a product and claims its SKU.
///
/// # Errors
/// `AlreadyExists`, `SkuTaken`.
pub fn create<S: States>(command: &CreateProduct, shop: &Shop<'_, S>) -> Result<Decision, Rejection> {
    let id = command.product_id.get();
    if matches!(command.product_id, NewId::Derived(_)) && shop.product(id).is_some() {
        return Err(Rejection::AlreadyExists { id });
    }
    if let Some(owner) = shop.owner_of(command.sku.as_str()) {
        return Err(Rejection::SkuTaken { sku: command.sku.to_string(), owner });
    }
    let created = ProductCreated {
        sku: command.sku.to_string(),
        name: command.name.to_string(),
        description: command.description.as_ref().map(ToString::to_string),
        department: command.department.as_ref().map(ToString::to_string),
        price: command.price.money(),
    };
    let claimed = SkuClaimed { sku: command.sku.to_string(), product_id: id };
    let claim = Happened::to_sku(command.sku.as_str(), id, claimed);
    Ok(decision(id, ProductStatus::Draft, vec![Happened::to_product(id, created), claim]))
}

/// Replaces name, description and department.
///
/// # Errors
/// `NotFound`, `State` when it is retired.
pub fn revise<S: States>(command: &ReviseProduct, shop: &Shop<'_, S>) -> Result<Decision, Rejection> {
    let product = offered(command.product_id, shop)?;
    let revised = ProductRevised {
        name: command.name.to_string(),
        description: command.description.as_ref().map(ToString::to_string),
        department: command.department.as_ref().map(ToString::to_string),
    };
    Ok(decision(command.product_id, product.status, vec![Happened::to_product(command.product_id, revised)]))
}

/// Changes the price, unless it is that already.
///
/// # Errors
/// `NotFound`, `State` when it is retired.
pub fn set_price<S: States>(command: &SetPrice, shop: &Shop<'_, S>) -> Result<Decision, Rejection> {
    let product = offered(command.product_id, shop)?;
    let price = command.price.money();
    let mut events = Vec::new();
    if product.price != Some(price) {
        events.push(Happened::to_product(command.product_id, PriceChanged { price }));
    }
    Ok(decision(command.product_id, product.status, events))
}

/// Puts it on sale, unless it is already. A product has a name and a price from its creation.
///
/// # Errors
/// `NotFound`, `State` when it is retired.
pub fn publish<S: States>(command: &PublishProduct, shop: &Shop<'_, S>) -> Result<Decision, Rejection> {
    let product = offered(command.product_id, shop)?;
    let mut events = Vec::new();
    if product.status == ProductStatus::Draft {
        events.push(Happened::to_product(command.product_id, ProductPublished {}));
    }
    Ok(decision(command.product_id, ProductStatus::Published, events))
}

/// Takes it off sale and gives its SKU back, unless that was done before. Orders placed before stay as they are.
///
/// # Errors
/// `NotFound`.
pub fn retire<S: States>(command: &RetireProduct, shop: &Shop<'_, S>) -> Result<Decision, Rejection> {
    let id = command.product_id;
    let product = shop.product(id).ok_or(Rejection::NotFound { kind: "product", id })?;
    let mut events = Vec::new();
    if product.status != ProductStatus::Retired {
        let owner = shop.owner_of(&product.sku);
        events.push(Happened::to_product(id, ProductRetired {}));
        if owner == Some(id) {
            let released = SkuReleased { sku: product.sku.to_string(), product_id: id };
            events.push(Happened::to_sku(&product.sku, id, released));
        }
    }
    Ok(decision(id, ProductStatus::Retired, events))
}

fn offered<'a, S: States>(id: Uuid, shop: &Shop<'a, S>) -> Result<&'a Product, Rejection> {
    let product = shop.product(id).ok_or(Rejection::NotFound { kind: "product", id })?;
    if product.status == ProductStatus::Retired {
        return Err(Rejection::State {
            kind: "product",
            status: product.status.as_str(),
            reason: "a retired product is not changed any more",
        });
    }
    Ok(product)
}

fn decision(id: Uuid, status: ProductStatus, events: Vec<Happened>) -> Decision {
    Decision { subject: id, stream_id: id, status: status.as_str(), total: None, events }
}
