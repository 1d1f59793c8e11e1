//! What a decision yields: events for one or several streams, or a rejection.

use tidemark_events::{Fact, Money, stream};
use uuid::Uuid;

/// An event for a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// The stream it goes to.
    pub stream_id: Uuid,
    /// What it must stay in order with.
    pub partition_key: Uuid,
    /// What happened.
    pub fact: Fact,
}

impl Happened {
    /// Something happened to a product.
    pub fn to_product(product_id: Uuid, fact: impl Into<Fact>) -> Self {
        Self { stream_id: product_id, partition_key: product_id, fact: fact.into() }
    }

    /// Something happened to a product's stock.
    pub fn to_stock(product_id: Uuid, fact: impl Into<Fact>) -> Self {
        Self { stream_id: stream::stock_of(product_id), partition_key: product_id, fact: fact.into() }
    }

    /// Something happened to an order.
    pub fn to_order(order_id: Uuid, fact: impl Into<Fact>) -> Self {
        Self { stream_id: order_id, partition_key: order_id, fact: fact.into() }
    }

    /// Something happened to the claim on a SKU, about a product.
    pub fn to_sku(sku: &str, product_id: Uuid, fact: impl Into<Fact>) -> Self {
        Self { stream_id: stream::claim_of_sku(sku), partition_key: product_id, fact: fact.into() }
    }

    /// Something happened to an account.
    pub fn to_account(account_id: Uuid, fact: impl Into<Fact>) -> Self {
        Self { stream_id: account_id, partition_key: account_id, fact: fact.into() }
    }

    /// Something happened to a session of an account.
    pub fn to_session(session_id: Uuid, account_id: Uuid, fact: impl Into<Fact>) -> Self {
        Self { stream_id: session_id, partition_key: account_id, fact: fact.into() }
    }

    /// Something happened to the claim on an e-mail address, about an account.
    pub fn to_email(claim: Uuid, account_id: Uuid, fact: impl Into<Fact>) -> Self {
        Self { stream_id: claim, partition_key: account_id, fact: fact.into() }
    }
}

/// What is to be written, and what its answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What the client named or made: a product or an order.
    pub subject: Uuid,
    /// Its stream, whose version the answer tells and `If-Match` is compared with.
    pub stream_id: Uuid,
    /// How it stands now.
    pub status: &'static str,
    /// An order's total.
    pub total: Option<Money>,
    /// All or nothing. Empty when the command asks for what is so already.
    pub events: Vec<Happened>,
}

/// Why a command cannot be. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The subject does not exist, or is not the asker's.
    #[error("there is no {kind} {id}")]
    NotFound {
        /// `product`, `order`, `account` …
        kind: &'static str,
        /// The id asked for.
        id: Uuid,
    },
    /// The subject's id is taken: it was made before.
    #[error("{id} exists already")]
    AlreadyExists {
        /// The id.
        id: Uuid,
    },
    /// Another product owns the SKU.
    #[error("SKU {sku} belongs to product {owner}")]
    SkuTaken {
        /// The SKU.
        sku: String,
        /// Its owner.
        owner: Uuid,
    },
    /// The subject's state forbids it.
    #[error("the {kind} is {status}: {reason}")]
    State {
        /// `product`, `order`, `account` …
        kind: &'static str,
        /// How it stands.
        status: &'static str,
        /// What it would have to be.
        reason: &'static str,
    },
    /// A line names a product that does not exist.
    #[error("there is no product {product}")]
    UnknownProduct {
        /// Index of the line.
        line: usize,
        /// The id it names.
        product: Uuid,
    },
    /// A line names a product that is not published.
    #[error("product {product} is {status}, not for sale")]
    NotForSale {
        /// Index of the line.
        line: usize,
        /// The product.
        product: Uuid,
        /// How it stands.
        status: &'static str,
    },
    /// A line's product is priced in another currency than the first line's.
    #[error("product {product} is priced in another currency than the first line")]
    MixedCurrencies {
        /// Index of the line.
        line: usize,
        /// The product.
        product: Uuid,
    },
    /// A line's amount, or the total with it, is beyond 2^53 − 1.
    #[error("the amount of line {line} or the total with it is too large")]
    AmountOverflow {
        /// Index of the line.
        line: usize,
    },
    /// The lines of one product add up to more than 1,000,000 units.
    #[error("the lines of product {product} add up to more than {most} units")]
    QuantityOverflow {
        /// Index of the line that is too much.
        line: usize,
        /// The product.
        product: Uuid,
        /// The most there may be.
        most: i64,
    },
    /// There are fewer units than a line wants.
    #[error("product {product}: {wanted} wanted, {available} available")]
    OutOfStock {
        /// Index of the (first) line of that product.
        line: usize,
        /// The product.
        product: Uuid,
        /// Units wanted.
        wanted: i64,
        /// Units there are.
        available: i64,
    },
    /// What was mailed cannot be used any more.
    #[error("the link is void: it was used, it has expired, or a newer one was sent")]
    LinkVoid,
    /// What was shown at log-in is not, or no longer, what the account asks for.
    #[error("the e-mail address or the password is wrong")]
    LoginRefused,
    /// The address book is full.
    #[error("an account has at most {most} addresses")]
    TooManyAddresses {
        /// The most there may be.
        most: usize,
    },
    /// A correction would leave fewer units than are reserved.
    #[error("only {available} units are available, {delta} cannot be taken")]
    StockBelowZero {
        /// The correction.
        delta: i64,
        /// Units there are.
        available: i64,
    },
    /// A stock would be beyond what can be counted.
    #[error("the stock would be larger than {most} units")]
    StockOverflow {
        /// The most there may be.
        most: i64,
    },
}
