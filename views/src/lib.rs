//! The contract between the projector, which writes the views, and the query service, which reads them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`resource`] | bodies as they are sent |
//! | [`instance`] | which tables are live, and where they stand |
//! | [`body`] | how they are read from the tables |
//! | [`feed`] | the numbered stream of changes |
//! | [`tier`] | ready bodies and changes in Redis |

pub mod body;
pub mod feed;
pub mod instance;
pub mod resource;
pub mod tier;

pub use tidemark_events::partition::{PARTITIONS, partition_of};

use sqlx::PgPool;
use sqlx::migrate::Migrator;
use tidemark_events::migrations::{Schema, SchemaError};

/// The projection of the catalog.
pub const PRODUCTS: &str = "products";
/// The projection of the inventory.
pub const STOCK: &str = "stock";
/// The projection of the orders.
pub const ORDERS: &str = "orders";
/// The projection of who did what: acts, security events, accounts.
pub const AUDIT: &str = "audit";

/// What can go wrong with the views.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The database did not answer, or refused.
    #[error("the views' database: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema is not as this program needs it, or could not be brought up to date.
    #[error("the views' database: {0}")]
    Schema(#[from] SchemaError),
}

static MIGRATOR: Migrator = sqlx::migrate!("../migrations/views");

/// The schema `views`.
pub const SCHEMA: Schema = Schema { name: "views", migrator: &MIGRATOR, brought_by: "`tidemark projector`" };

/// Brings the schema `views` up to date.
///
/// # Errors
/// [`ViewError::Schema`] when the schema is newer than this code or a step fails.
pub async fn migrate(pool: &PgPool) -> Result<(), ViewError> {
    SCHEMA.migrate(pool).await?;
    Ok(())
}
