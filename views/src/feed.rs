//! The numbered stream of changes: what caches follow.

use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection, Row};
use tidemark_events::{Epoch, Position};
use uuid::Uuid;

use crate::ViewError;
use crate::instance::{self, Instance};

/// The channel that changes notify, with the number as payload.
pub const CHANNEL: &str = "tidemark_views";

/// How many numbers are kept for readers that come late; later ones begin anew.
pub const KEPT: i64 = 20_000;

/// The most changes that are read at once.
pub const AT_ONCE: usize = 500;

/// What kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// These keys' rows have changed.
    Rows,
    /// Readers go to this instance from here on.
    Switch,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its number, without gaps.
    pub number: i64,
    /// The projection.
    pub name: String,
    /// The instance.
    pub instance: i32,
    /// What kind.
    pub kind: Kind,
    /// The epoch of the position.
    pub epoch: Epoch,
    /// Where the whole instance stands at least, with this change.
    pub position: Position,
    /// Whose rows have changed.
    pub keys: Vec<Uuid>,
}

/// Where a server's stream of changes ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The number of the newest change.
    pub number: i64,
    /// Which life of the server it is: under another one numbers may have been given again. `None` after a crash,
    /// until a projector has written a new one.
    pub incarnation: Option<Uuid>,
}

/// The end of the primary's stream, in one simple query, so that it can go through a pooler.
///
/// # Errors
/// [`ViewError::Database`].
pub async fn end(connection: &mut PgConnection) -> Result<End, ViewError> {
    let row = sqlx::raw_sql("SELECT number, (SELECT id FROM views.incarnation) FROM views.head")
        .fetch_one(connection)
        .await?;
    Ok(End { number: row.try_get(0)?, incarnation: row.try_get(1)? })
}

/// Where all instances stand and where the stream ends, both in one snapshot: a change moves an instance and takes its
/// number in one transaction, so neither is ahead of the other.
///
/// # Errors
/// [`ViewError::Database`].
pub async fn standing(connection: &mut PgConnection) -> Result<(Vec<Instance>, End), ViewError> {
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let instances = instance::all(&mut transaction).await?;
    let end = end(&mut transaction).await?;
    transaction.commit().await?;
    Ok((instances, end))
}

/// Sees to it that this life of the server has an id.
///
/// # Errors
/// [`ViewError::Database`].
pub async fn ensure_incarnation(connection: &mut PgConnection) -> Result<(), ViewError> {
    sqlx::query("INSERT INTO views.incarnation DEFAULT VALUES ON CONFLICT DO NOTHING")
        .execute(connection)
        .await?;
    Ok(())
}

/// The changes after a number, in order, a few hundred at most.
///
/// # Errors
/// [`ViewError::Database`].
pub async fn after(connection: &mut PgConnection, number: i64) -> Result<Vec<Change>, ViewError> {
    let rows = sqlx::query(
        "SELECT number, name, instance, kind, epoch, position, keys FROM views.changes WHERE number > $1 \
         ORDER BY number LIMIT $2",
    )
    .bind(number)
    .bind(i64::try_from(AT_ONCE).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    let change = |row: &sqlx::postgres::PgRow| {
        let kind: &str = row.try_get(3)?;
        Ok(Change {
            number: row.try_get(0)?,
            name: row.try_get(1)?,
            instance: row.try_get(2)?,
            kind: if kind == "switch" { Kind::Switch } else { Kind::Rows },
            epoch: row.try_get(4)?,
            position: row.try_get(5)?,
            keys: row.try_get(6)?,
        })
    };
    rows.iter().map(change).collect::<Result<_, sqlx::Error>>().map_err(ViewError::from)
}

/// Takes the next number and writes a change under it, in the transaction of its rows and as its last statement but
/// the commit: the number's row is locked from here on. Where the instance stands is read from its checkpoints.
///
/// # Errors
/// [`ViewError::Database`].
pub async fn write(
    connection: &mut PgConnection,
    name: &str,
    instance: i32,
    kind: Kind,
    keys: &[Uuid],
) -> Result<i64, ViewError> {
    let number: i64 = sqlx::query_scalar("UPDATE views.head SET number = number + 1 RETURNING number")
        .fetch_one(&mut *connection)
        .await?;
    // A statement of its own, which sees what was committed while the number was waited for: of two projectors that
    // each move some partitions at the same time, the second one says that all of them have moved. It stands in the epoch
    // that all have come to: who has not may have read a lost end, beyond where the others are.
    sqlx::query(
        "WITH change AS (INSERT INTO views.changes (number, name, instance, kind, keys, epoch, position) \
           SELECT $6, $1, $2, $3, $4, min(epoch), min(position) \
           FROM views.checkpoints WHERE name = $1 AND instance = $2) \
         SELECT pg_notify($5, $6::text)",
    )
    .bind(name)
    .bind(instance)
    .bind(match kind {
        Kind::Rows => "rows",
        Kind::Switch => "switch",
    })
    .bind(keys)
    .bind(CHANNEL)
    .bind(number)
    .execute(connection)
    .await?;
    Ok(number)
}

/// Deletes changes that are older than [`KEPT`] numbers.
///
/// # Errors
/// [`ViewError::Database`].
pub async fn prune(connection: &mut PgConnection) -> Result<(), ViewError> {
    sqlx::query("DELETE FROM views.changes WHERE number <= (SELECT number FROM views.head) - $1")
        .bind(KEPT)
        .execute(connection)
        .await?;
    Ok(())
}
