//! Orders, stored as the bytes that are sent; by customer and by status.

use std::collections::{HashMap, HashSet};

use sqlx::{AssertSqlSafe, PgConnection, Row};
use tidemark_events::fact::OrderEvent;
use tidemark_events::log::Filter;
use tidemark_events::{Fact, stream};
use tidemark_views::resource::{OrderLineResource, OrderResource};
use uuid::Uuid;

use crate::projection::{Applied, ApplyError, Event, Projection, Retention};

/// The projection `orders`.
#[derive(Debug, Clone, Copy)]
pub struct Orders;

impl Projection for Orders {
    fn name(&self) -> &'static str {
        tidemark_views::ORDERS
    }

    fn fold_version(&self) -> i32 {
        1
    }

    fn filter(&self) -> Filter {
        Filter { categories: vec![stream::ORDER.into()], ..Filter::default() }
    }

    fn create(&self, instance: i32) -> Vec<String> {
        // A body is kept within its row up to a page: compressing and moving it out costs more than it saves.
        vec![format!(
            "CREATE TABLE views.orders_{instance} (id uuid PRIMARY KEY, customer_id uuid NOT NULL, \
             status text NOT NULL, placed_at timestamptz NOT NULL, version bigint NOT NULL, body text NOT NULL) \
             WITH (fillfactor = 90, toast_tuple_target = 8160)"
        )]
    }

    fn index(&self, instance: i32) -> Vec<String> {
        let table = format!("orders_{instance}");
        vec![
            format!("CREATE INDEX IF NOT EXISTS {table}_customer ON views.{table} (customer_id, id)"),
            format!("CREATE INDEX IF NOT EXISTS {table}_status ON views.{table} (status, id)"),
            format!("ANALYZE views.{table}"),
        ]
    }

    fn remove(&self, instance: i32) -> Vec<String> {
        vec![format!("DROP TABLE IF EXISTS views.orders_{instance}")]
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
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let placed: HashSet<Uuid> =
        events.iter().filter(|event| event.version == 1).map(|event| event.stream_id).collect();
    let known: HashSet<Uuid> =
        events.iter().map(|event| event.stream_id).filter(|stream| !placed.contains(stream)).collect();
    let mut orders = load(connection, instance, known.into_iter().collect()).await?;
    for event in events {
        let Fact::Order(fact) = &event.fact else { continue };
        fold(&mut orders, event, fact)?;
    }
    let (mut new, mut changed): (Vec<OrderResource>, Vec<OrderResource>) =
        orders.into_values().partition(|order| placed.contains(&order.id));
    new.sort_unstable_by_key(|order| order.id);
    changed.sort_unstable_by_key(|order| order.id);
    insert(connection, instance, &new).await?;
    update(connection, instance, &changed).await?;
    Ok(new.iter().chain(&changed).map(|order| order.id).collect())
}

fn fold(
    orders: &mut HashMap<Uuid, OrderResource>,
    event: &Event<'_>,
    fact: &OrderEvent,
) -> Result<(), ApplyError> {
    let id = event.stream_id;
    if let OrderEvent::OrderPlaced(placed) = fact {
        let line = |line: &tidemark_events::order::OrderLine| OrderLineResource {
            product_id: line.product_id,
            quantity: line.quantity,
            unit_price: line.unit_price,
            amount: line.amount,
        };
        orders.insert(
            id,
            OrderResource {
                id,
                customer_id: placed.customer_id,
                status: "placed".to_owned(),
                lines: placed.lines.iter().map(line).collect(),
                total: placed.total.into(),
                placed_at: placed.placed_at,
                cancelled_at: None,
                cancellation_reason: None,
                shipped_at: None,
                delivered_at: None,
                version: event.version,
            },
        );
        return Ok(());
    }
    let order =
        orders.get_mut(&id).ok_or_else(|| ApplyError::Misfit(format!("order {id} is not in the view")))?;
    order.version = event.version;
    match fact {
        OrderEvent::OrderPlaced(_) => {}
        OrderEvent::OrderCancelled(cancelled) => {
            "cancelled".clone_into(&mut order.status);
            order.cancelled_at = Some(cancelled.cancelled_at);
            order.cancellation_reason.clone_from(&cancelled.reason);
        }
        OrderEvent::OrderShipped(shipped) => {
            "shipped".clone_into(&mut order.status);
            order.shipped_at = Some(shipped.shipped_at);
        }
        OrderEvent::OrderDelivered(delivered) => {
            "delivered".clone_into(&mut order.status);
            order.delivered_at = Some(delivered.delivered_at);
        }
    }
    Ok(())
}

async fn load(
    connection: &mut PgConnection,
    instance: i32,
    ids: Vec<Uuid>,
) -> Result<HashMap<Uuid, OrderResource>, ApplyError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT id, body FROM views.orders_{instance} WHERE id = ANY($1)"
    )))
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let mut orders = HashMap::with_capacity(rows.len());
    for row in rows {
        let id: Uuid = row.try_get(0)?;
        let order = serde_json::from_str(row.try_get(1)?).map_err(|error| {
            ApplyError::Misfit(format!("the stored body of order {id} cannot be read: {error}"))
        })?;
        orders.insert(id, order);
    }
    Ok(orders)
}

fn body(order: &OrderResource) -> Result<String, ApplyError> {
    serde_json::to_string(order).map_err(|error| ApplyError::Misfit(format!("order {}: {error}", order.id)))
}

async fn insert(
    connection: &mut PgConnection,
    instance: i32,
    orders: &[OrderResource],
) -> Result<(), ApplyError> {
    if orders.is_empty() {
        return Ok(());
    }
    let bodies = orders.iter().map(body).collect::<Result<Vec<_>, _>>()?;
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO views.orders_{instance} (id, customer_id, status, placed_at, version, body) \
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[], $5::bigint[], $6::text[])"
    )))
    .bind(orders.iter().map(|order| order.id).collect::<Vec<_>>())
    .bind(orders.iter().map(|order| order.customer_id).collect::<Vec<_>>())
    .bind(orders.iter().map(|order| order.status.as_str()).collect::<Vec<_>>())
    .bind(orders.iter().map(|order| order.placed_at).collect::<Vec<_>>())
    .bind(orders.iter().map(|order| order.version).collect::<Vec<_>>())
    .bind(bodies)
    .execute(connection)
    .await?;
    Ok(())
}

async fn update(
    connection: &mut PgConnection,
    instance: i32,
    orders: &[OrderResource],
) -> Result<(), ApplyError> {
    if orders.is_empty() {
        return Ok(());
    }
    let bodies = orders.iter().map(body).collect::<Result<Vec<_>, _>>()?;
    sqlx::query(AssertSqlSafe(format!(
        "UPDATE views.orders_{instance} o SET status = u.status, version = u.version, body = u.body \
         FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[]) AS u (id, status, version, body) \
         WHERE o.id = u.id"
    )))
    .bind(orders.iter().map(|order| order.id).collect::<Vec<_>>())
    .bind(orders.iter().map(|order| order.status.as_str()).collect::<Vec<_>>())
    .bind(orders.iter().map(|order| order.version).collect::<Vec<_>>())
    .bind(bodies)
    .execute(connection)
    .await?;
    Ok(())
}
