//! The log as its tables have it, read without any of the shop's code.

use aws_lc_rs::digest;
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{ConnectOptions, PgConnection, Row};
use uuid::Uuid;

use crate::error::ChaosError;

/// Events that are read at once.
pub(crate) const PAGE: i64 = 5_000;

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) position: i64,
    pub(crate) stream: Uuid,
    pub(crate) category: String,
    pub(crate) version: i64,
    pub(crate) id: Uuid,
    pub(crate) kind: String,
    pub(crate) schema_version: i16,
    /// JSON, byte for byte.
    pub(crate) payload: String,
    pub(crate) correlation: Uuid,
    pub(crate) causation: Option<Uuid>,
    pub(crate) actor: String,
    pub(crate) traceparent: Option<String>,
    pub(crate) origin: Option<String>,
    pub(crate) recorded_at: DateTime<Utc>,
    pub(crate) partition_key: Uuid,
}

impl Event {
    fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            position: row.try_get(0)?,
            stream: row.try_get(1)?,
            category: row.try_get(2)?,
            version: row.try_get(3)?,
            id: row.try_get(4)?,
            kind: row.try_get(5)?,
            schema_version: row.try_get(6)?,
            payload: row.try_get(7)?,
            correlation: row.try_get(8)?,
            causation: row.try_get(9)?,
            actor: row.try_get(10)?,
            traceparent: row.try_get(11)?,
            recorded_at: row.try_get(12)?,
            partition_key: row.try_get(13)?,
            origin: row.try_get(14)?,
        })
    }
}

/// Connects to a database of the cluster, past everything that stands before it.
///
/// # Errors
/// The database's.
pub(crate) async fn connect(port: u16, database: &str) -> Result<PgConnection, sqlx::Error> {
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username("tidemark")
        .database(database)
        .disable_statement_logging()
        .connect()
        .await
}

/// The next events behind a position, as a reader would ask for them who knows nothing of the log but its order.
///
/// # Errors
/// The database's.
pub(crate) async fn read(connection: &mut PgConnection, after: i64) -> Result<Vec<Event>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT position, stream_id, category, version, event_id, event_type, schema_version, payload::text, \
         correlation_id, causation_id, actor, traceparent, recorded_at, partition_key, origin::text \
         FROM log.events WHERE position > $1 ORDER BY position LIMIT $2",
    )
    .bind(after)
    .bind(PAGE)
    .fetch_all(connection)
    .await?;
    rows.iter().map(Event::of).collect()
}

/// The whole log, and where its head says that it stands.
///
/// # Errors
/// [`ChaosError::Database`].
pub(crate) async fn read_all(connection: &mut PgConnection) -> Result<(Vec<Event>, i64), ChaosError> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let after = events.last().map_or(0, |event| event.position);
        let page = read(connection, after).await.map_err(ChaosError::database("reading the log"))?;
        if page.is_empty() {
            break;
        }
        events.extend(page);
    }
    let head = sqlx::query("SELECT position FROM log.head")
        .fetch_one(connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(ChaosError::database("reading the log's head"))?;
    Ok((events, head))
}

/// A hash over events in order, which tells two logs apart that differ in anything.
#[derive(Clone)]
pub(crate) struct Chain(digest::Context);

impl Default for Chain {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Chain {
    /// Takes the next event in.
    pub(crate) fn add(&mut self, event: &Event) {
        let mut part = |bytes: &[u8]| {
            self.0.update(&bytes.len().to_be_bytes());
            self.0.update(bytes);
        };
        part(&event.position.to_be_bytes());
        part(event.stream.as_bytes());
        part(&event.version.to_be_bytes());
        part(event.id.as_bytes());
        part(event.kind.as_bytes());
        part(&event.schema_version.to_be_bytes());
        part(event.payload.as_bytes());
        part(event.correlation.as_bytes());
        part(event.actor.as_bytes());
        part(event.origin.as_deref().unwrap_or_default().as_bytes());
        part(&event.recorded_at.timestamp_micros().to_be_bytes());
        part(event.partition_key.as_bytes());
    }

    /// The hash of all events so far.
    pub(crate) fn hash(&self) -> Vec<u8> {
        self.0.clone().finish().as_ref().to_vec()
    }
}

/// An event that looks right, for tests.
#[cfg(test)]
pub(crate) fn event(
    position: i64,
    stream: u128,
    version: i64,
    kind: &str,
    payload: serde_json::Value,
) -> Event {
    let category = match kind {
        "SkuClaimed" => "sku",
        kind if kind.starts_with("Stock") => "stock",
        kind if kind.starts_with("Order") => "order",
        _ => "product",
    };
    Event {
        position,
        stream: Uuid::from_u128(stream),
        category: category.to_owned(),
        version,
        id: Uuid::from_u128(0xe000 + u128::from(position.unsigned_abs())),
        kind: kind.to_owned(),
        schema_version: 1,
        payload: payload.to_string(),
        correlation: Uuid::from_u128(0xc000 + u128::from(position.unsigned_abs())),
        causation: None,
        actor: format!("staff:{}", Uuid::from_u128(1)),
        traceparent: None,
        origin: None,
        recorded_at: DateTime::UNIX_EPOCH,
        partition_key: Uuid::from_u128(stream),
    }
}

/// Units that came into a product's stock, for tests.
#[cfg(test)]
pub(crate) fn received(position: i64, version: i64, product: Uuid, quantity: i64) -> Event {
    let payload = serde_json::json!({ "product_id": product, "quantity": quantity });
    event(position, 70, version, "StockReceived", payload)
}
