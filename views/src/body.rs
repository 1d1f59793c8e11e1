//! Ready bodies, as they are read from the views: by the query service for one key, by the projectors for what has
//! changed.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::resource::{Price, ProductResource};

/// What a body is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A product with what is available of it.
    Product,
    /// An order.
    Order,
}

/// The live tables of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tables {
    /// The instance of products.
    pub products: i32,
    /// The instance of stock.
    pub stock: i32,
    /// The instance of orders.
    pub orders: i32,
}

impl Tables {
    /// Whether every view has a live instance; its number is 0 while there is none.
    #[must_use]
    pub fn are_there(self) -> bool {
        self.products > 0 && self.stock > 0 && self.orders > 0
    }
}

/// A body, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// Whose it is.
    pub id: Uuid,
    /// Whose order it is.
    pub owner: Option<Uuid>,
    /// The versions that its entity tag begins with: digits and hyphens.
    pub tag: String,
    /// Whether events of its key are parked: it is not all there is.
    pub parked: bool,
    /// JSON.
    pub json: Vec<u8>,
}

/// The statement that reads the bodies of the ids in `$1` (`uuid[]`). Its rows go to [`read`]; there is always one,
/// which has the column `number` at least.
#[must_use]
pub fn statement(kind: Kind, tables: Tables) -> String {
    let Tables { products, stock, orders } = tables;
    match kind {
        Kind::Product => format!(
            "SELECT p.id, p.sku, p.name, p.description, p.department, p.price_amount, p.price_currency, \
             COALESCE(s.available, 0), p.status, p.version, COALESCE(s.version, 0), {}, h.number \
             FROM views.head h LEFT JOIN (views.products_{products} p \
               LEFT JOIN views.stock_{stock} s ON s.product_id = p.id) ON p.id = ANY($1)",
            is_parked("p.id", &[("products", products), ("stock", stock)])
        ),
        Kind::Order => format!(
            "SELECT o.id, o.customer_id, o.version, o.body, {}, h.number \
             FROM views.head h LEFT JOIN views.orders_{orders} o ON o.id = ANY($1)",
            is_parked("o.id", &[("orders", orders)])
        ),
    }
}

/// The expression that says whether events of a key are parked in any of these instances of views.
#[must_use]
pub fn is_parked(key: &str, instances: &[(&str, i32)]) -> String {
    let instances: Vec<String> =
        instances.iter().map(|(name, instance)| format!("('{name}', {instance})")).collect();
    format!(
        "EXISTS (SELECT 1 FROM views.parked k WHERE k.partition_key = {key} AND (k.name, k.instance) IN ({}))",
        instances.join(", ")
    )
}

/// The bodies in the rows of [`statement`].
///
/// # Errors
/// A column is not what it must be.
pub fn read(kind: Kind, rows: &[PgRow]) -> Result<Vec<Body>, sqlx::Error> {
    let found = rows.iter().filter(|row| !matches!(row.try_get::<Option<Uuid>, _>(0), Ok(None)));
    found
        .map(|row| match kind {
            Kind::Product => {
                let product = product_of(row)?;
                let stock_version: i64 = row.try_get(10)?;
                Ok(Body {
                    id: product.id,
                    owner: None,
                    tag: format!("{}-{stock_version}", product.version),
                    parked: row.try_get(11)?,
                    json: serde_json::to_vec(&product).map_err(|error| sqlx::Error::Decode(error.into()))?,
                })
            }
            Kind::Order => Ok(Body {
                id: row.try_get(0)?,
                owner: Some(row.try_get(1)?),
                tag: row.try_get::<i64, _>(2)?.to_string(),
                json: row.try_get::<String, _>(3)?.into_bytes(),
                parked: row.try_get(4)?,
            }),
        })
        .collect()
}

/// The number of the newest change that the statement of these rows could see.
///
/// # Errors
/// There is no row, or it has no number.
pub fn number_of(rows: &[PgRow]) -> Result<i64, sqlx::Error> {
    rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("number")
}

/// The first ten columns of a row as a product: `id, sku, name, description, department, price_amount,
/// price_currency, available, status, version`.
///
/// # Errors
/// A column is not what it must be.
pub fn product_of(row: &PgRow) -> Result<ProductResource, sqlx::Error> {
    let currency: &str = row.try_get(6)?;
    Ok(ProductResource {
        id: row.try_get(0)?,
        sku: row.try_get(1)?,
        name: row.try_get(2)?,
        description: row.try_get(3)?,
        department: row.try_get(4)?,
        price: Price {
            amount: row.try_get(5)?,
            currency: tidemark_events::Currency::parse(currency)
                .ok_or_else(|| sqlx::Error::Decode(format!("no currency {currency}").into()))?,
        },
        available: row.try_get(7)?,
        status: row.try_get(8)?,
        version: row.try_get(9)?,
    })
}
