//! How many units of each product there are: a narrow table that changes with every order.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, PgConnection};
use tidemark_events::fact::StockEvent;
use tidemark_events::log::Filter;
use tidemark_events::{Fact, stream};
use uuid::Uuid;

use crate::projection::{Applied, ApplyError, Event, Projection, Retention};

/// The projection `stock`.
#[derive(Debug, Clone, Copy)]
pub struct Stock;

#[derive(Default)]
struct Change {
    /// Whether the stock has only begun.
    is_new: bool,
    received: i64,
    adjusted: i64,
    reserved: i64,
    shipped: i64,
    version: i64,
}

impl Projection for Stock {
    fn name(&self) -> &'static str {
        tidemark_views::STOCK
    }

    fn fold_version(&self) -> i32 {
        1
    }

    fn filter(&self) -> Filter {
        Filter { categories: vec![stream::STOCK_CATEGORY.into()], ..Filter::default() }
    }

    fn create(&self, instance: i32) -> Vec<String> {
        // No index but the key and room on each page: updates stay within their page (HOT).
        vec![format!(
            "CREATE TABLE views.stock_{instance} (product_id uuid PRIMARY KEY, received bigint NOT NULL, \
             adjusted bigint NOT NULL, reserved bigint NOT NULL, shipped bigint NOT NULL, \
             available bigint NOT NULL, version bigint NOT NULL) \
             WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1)"
        )]
    }

    fn index(&self, _: i32) -> Vec<String> {
        Vec::new()
    }

    fn remove(&self, instance: i32) -> Vec<String> {
        vec![format!("DROP TABLE IF EXISTS views.stock_{instance}")]
    }

    fn apply<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        instance: i32,
        _: Retention,
        events: &'a [Event<'a>],
    ) -> Applied<'a> {
        Box::pin(apply(connection, instance, events))
    }
}

async fn apply(
    connection: &mut PgConnection,
    instance: i32,
    events: &[Event<'_>],
) -> Result<Vec<Uuid>, ApplyError> {
    let mut changes: HashMap<Uuid, Change> = HashMap::new();
    for event in events {
        let Fact::Stock(fact) = &event.fact else { continue };
        let change = changes.entry(fact.product_id()).or_default();
        change.is_new |= event.version == 1;
        change.version = event.version;
        match fact {
            StockEvent::StockReceived(received) => change.received += received.quantity,
            StockEvent::StockAdjusted(adjusted) => change.adjusted += adjusted.delta,
            StockEvent::StockReserved(reserved) => change.reserved += reserved.quantity,
            StockEvent::StockReleased(released) => change.reserved -= released.quantity,
            StockEvent::StockShipped(shipped) => {
                change.reserved -= shipped.quantity;
                change.shipped += shipped.quantity;
            }
        }
    }
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    // In the order of keys, so that neighbours on a page are written together.
    let mut changes: Vec<(Uuid, Change)> = changes.into_iter().collect();
    changes.sort_unstable_by_key(|(product, _)| *product);
    let keys: Vec<Uuid> = changes.iter().map(|(product, _)| *product).collect();
    let (new, known): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(_, change)| change.is_new);
    insert(connection, instance, &new).await?;
    update(connection, instance, &known).await?;
    Ok(keys)
}

async fn insert(
    connection: &mut PgConnection,
    instance: i32,
    new: &[(Uuid, Change)],
) -> Result<(), ApplyError> {
    let statement = format!(
        "INSERT INTO views.stock_{instance} \
           (product_id, received, adjusted, reserved, shipped, available, version) \
         SELECT product_id, received, adjusted, reserved, shipped, received + adjusted - reserved - shipped, version \
         FROM {CHANGES}"
    );
    write(connection, statement, new).await
}

/// Apart from [`insert`]: a conflict that is to be expected costs a lock of its row, and a record of that in the
/// write-ahead log, before the update itself.
async fn update(
    connection: &mut PgConnection,
    instance: i32,
    known: &[(Uuid, Change)],
) -> Result<(), ApplyError> {
    let statement = format!(
        "UPDATE views.stock_{instance} s SET received = s.received + u.received, \
           adjusted = s.adjusted + u.adjusted, reserved = s.reserved + u.reserved, shipped = s.shipped + u.shipped, \
           available = s.available + u.received + u.adjusted - u.reserved - u.shipped, version = u.version \
         FROM {CHANGES} WHERE s.product_id = u.product_id"
    );
    write(connection, statement, known).await
}

const CHANGES: &str = "unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) \
    AS u (product_id, received, adjusted, reserved, shipped, version)";

async fn write(
    connection: &mut PgConnection,
    statement: String,
    changes: &[(Uuid, Change)],
) -> Result<(), ApplyError> {
    if changes.is_empty() {
        return Ok(());
    }
    let column =
        |value: fn(&Change) -> i64| changes.iter().map(|(_, change)| value(change)).collect::<Vec<_>>();
    let written = sqlx::query(AssertSqlSafe(statement))
        .bind(changes.iter().map(|(product, _)| *product).collect::<Vec<_>>())
        .bind(column(|change| change.received))
        .bind(column(|change| change.adjusted))
        .bind(column(|change| change.reserved))
        .bind(column(|change| change.shipped))
        .bind(column(|change| change.version))
        .execute(connection)
        .await?
        .rows_affected();
    if written != changes.len() as u64 {
        let text = format!("{} stocks have changed, {written} of them are in the view", changes.len());
        return Err(ApplyError::Misfit(text));
    }
    Ok(())
}
