//! Catalog: what is offered, and at which price.

mod decider;
pub(crate) mod http;

pub use decider::{
    CreateProduct, Product, ProductStatus, PublishProduct, RetireProduct, ReviseProduct, SetPrice, create,
    publish, retire, revise, set_price,
};
