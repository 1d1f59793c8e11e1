//! Views: every row is what the log adds up to, and there is no row more.

use std::collections::BTreeMap;
use std::fmt::Display;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Decode, PgConnection, Postgres, Row, Type};
use uuid::Uuid;

use crate::check::Check;
use crate::error::ChaosError;
use crate::fold::{Fold, ProductState};

const READING: &str = "reading the views";

/// The live instance of each view, and where the last of its partitions stands.
pub(crate) async fn standing(
    connection: &mut PgConnection,
) -> Result<BTreeMap<String, (i32, i64)>, ChaosError> {
    let rows = sqlx::query(
        "SELECT p.name, p.instance, min(c.position) FROM views.projections p JOIN views.checkpoints c \
         ON c.name = p.name AND c.instance = p.instance WHERE p.state = 'live' GROUP BY 1, 2",
    )
    .fetch_all(connection)
    .await
    .map_err(ChaosError::database(READING))?;
    let read = |row: &PgRow| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?)));
    rows.iter().map(read).collect::<Result<_, sqlx::Error>>().map_err(ChaosError::database(READING))
}

/// Compares the rows of all live instances in one database, which may be a replica.
pub(crate) async fn equal_fold(
    connection: &mut PgConnection,
    fold: &Fold,
    names: [&'static str; 4],
) -> Result<Vec<Check>, ChaosError> {
    let standing = standing(connection).await?;
    let instance = |name: &str| {
        let found = standing.get(name).map(|(instance, _)| *instance);
        found.ok_or_else(|| ChaosError::Wrong(format!("there is no live instance of the view {name}")))
    };
    let mut checks = names.map(Check::new);
    let [products, stock, orders, audit] = &mut checks;
    let rows = select(connection, "id, sku, name, description, department, price_amount, price_currency, status, version, created_position", &format!("products_{}", instance("products")?)).await?;
    compare(
        products,
        "product",
        &rows,
        fold.products.iter().map(|(id, product)| {
            let state = product.states.last();
            let expected = state.map(|state| {
                let ProductState {
                    sku,
                    name,
                    description,
                    department,
                    amount,
                    currency,
                    status,
                    version,
                    ..
                } = state;
                format!(
                    "{:?}",
                    (
                        sku,
                        name,
                        description,
                        department,
                        amount,
                        currency,
                        status,
                        version,
                        product.created_position
                    )
                )
            });
            (*id, expected.unwrap_or_default())
        }),
        |row| {
            let texts: (String, String, Option<String>, Option<String>) =
                (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
            let rest: (i64, String, String, i64, i64) =
                (row.try_get(5)?, row.try_get(6)?, row.try_get(7)?, row.try_get(8)?, row.try_get(9)?);
            Ok(format!("{:?}", (texts.0, texts.1, texts.2, texts.3, rest.0, rest.1, rest.2, rest.3, rest.4)))
        },
    )?;
    let rows = select(
        connection,
        "product_id, received, adjusted, reserved, shipped, available, version",
        &format!("stock_{}", instance("stock")?),
    )
    .await?;
    compare(
        stock,
        "stock of product",
        &rows,
        fold.stocks.iter().filter_map(|(id, states)| {
            let it = states.last()?;
            Some((
                *id,
                format!(
                    "{:?}",
                    [it.received, it.adjusted, it.reserved, it.shipped, it.available(), it.version]
                ),
            ))
        }),
        |row| {
            let numbers: [i64; 6] = [
                row.try_get(1)?,
                row.try_get(2)?,
                row.try_get(3)?,
                row.try_get(4)?,
                row.try_get(5)?,
                row.try_get(6)?,
            ];
            Ok(format!("{numbers:?}"))
        },
    )?;
    let rows = select(
        connection,
        "id, customer_id, status, version, body",
        &format!("orders_{}", instance("orders")?),
    )
    .await?;
    compare(
        orders,
        "order",
        &rows,
        fold.orders.iter().filter_map(|(id, order)| {
            let state = order.states.last()?;
            Some((
                *id,
                format!("{} {} {} {}", order.customer, state.status, state.version, order.body(*id, state)),
            ))
        }),
        |row| {
            let body: Value = serde_json::from_str(row.try_get(4)?).unwrap_or_default();
            let (customer, status, version): (Uuid, String, i64) =
                (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            Ok(format!("{customer} {status} {version} {body}"))
        },
    )?;
    let rows = select(
        connection,
        "position, event_type, resource, stream_id, version, actor, COALESCE(origin::text, ''), correlation_id, \
         recorded_at",
        &format!("audit_{}", instance("audit")?),
    )
    .await?;
    compare(
        audit,
        "act at",
        &rows,
        fold.acts.iter().map(|(position, act)| (*position, act.clone())),
        |row| {
            let (kind, resource, stream): (String, Uuid, Uuid) =
                (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            let (version, actor, origin): (i64, String, String) =
                (row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
            let (correlation, recorded_at): (Uuid, DateTime<Utc>) = (row.try_get(7)?, row.try_get(8)?);
            Ok(format!("{kind} {resource} {stream} {version} {actor} {origin} {correlation} {recorded_at:?}"))
        },
    )?;
    Ok(checks.into())
}

async fn select(connection: &mut PgConnection, columns: &str, table: &str) -> Result<Vec<PgRow>, ChaosError> {
    sqlx::query(AssertSqlSafe(format!("SELECT {columns} FROM views.{table}")))
        .fetch_all(connection)
        .await
        .map_err(ChaosError::database(READING))
}

/// Compares rows with what is expected, key by key, both written out in one way.
fn compare<K>(
    check: &mut Check,
    what: &str,
    rows: &[PgRow],
    expected: impl Iterator<Item = (K, String)>,
    read: impl Fn(&PgRow) -> Result<String, sqlx::Error>,
) -> Result<(), ChaosError>
where
    K: Ord + Display + for<'row> Decode<'row, Postgres> + Type<Postgres>,
{
    let mut found = BTreeMap::new();
    for row in rows {
        let key: K = row.try_get(0).map_err(ChaosError::database(READING))?;
        found.insert(key, read(row).map_err(ChaosError::database(READING))?);
    }
    for (key, expected) in expected {
        let row = found.remove(&key);
        check.expect(row.as_ref() == Some(&expected), || {
            format!("{what} {key} is {row:?}, the log says {expected}")
        });
    }
    let strange =
        found.into_iter().map(|(key, row)| format!("{what} {key} is {row}, the log does not know it"));
    check.expect_none(0, strange);
    Ok(())
}

/// Nothing was parked, and nothing strange was found in the topic.
pub(crate) async fn nothing_parked(connection: &mut PgConnection) -> Result<Check, ChaosError> {
    let rows = sqlx::query(
        "SELECT name || ' ' || position || ': ' || error FROM views.parked \
         UNION ALL SELECT name || ' ' || partition || '/' || \"offset\" || ': ' || error FROM views.strays",
    )
    .fetch_all(connection)
    .await
    .map_err(ChaosError::database(READING))?;
    let wrong = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>();
    let mut check = Check::new("no event is parked, no record of the topic is strange");
    check.expect_none(1, wrong.map_err(ChaosError::database(READING))?);
    Ok(check)
}
