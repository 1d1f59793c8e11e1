//! Partitions of `log.events`, made apart and attached ahead of need, so that no append waits for one and none
//! waits behind a long reader.

use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row};

use super::LogError;
use crate::Position;

/// How many whole partitions stand ready beyond the one the head is in.
const AHEAD: i64 = 2;

/// Serialises the making of partitions between processes.
const ADVISORY_LOCK: i64 = 0x7469_6465_0001;

/// The partitions there are, as the writer needs to know them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Partitions {
    /// The first position of each, in order.
    starts: Vec<Position>,
    /// The last position that has one.
    end: Position,
}

impl Partitions {
    /// The last position that has a partition; 0 when none is known.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// The first position of `position`'s partition, if `before` does not lie in the same one. Position 0, before
    /// everything, lies in none.
    #[must_use]
    pub fn begun(&self, before: Position, position: Position) -> Option<Position> {
        let place = |position| self.starts.partition_point(|&start| start <= position);
        let place_now = place(position);
        if place(before) == place_now { None } else { self.starts.get(place_now.checked_sub(1)?).copied() }
    }
}

/// Makes what partitions are missing; returns all there are.
///
/// # Errors
/// [`LogError::Database`], also when a lock was not to be had within two seconds.
pub async fn ensure(pool: &PgPool, size: i64) -> Result<Partitions, LogError> {
    let mut connection = pool.acquire().await?;
    loop {
        let mut transaction = connection.begin().await?;
        sqlx::query("SET LOCAL lock_timeout = '2s'").execute(&mut *transaction).await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(ADVISORY_LOCK)
            .execute(&mut *transaction)
            .await?;
        let row = sqlx::query(
            "SELECT position, COALESCE((SELECT max(to_position) FROM log.partitions), 1), \
             ARRAY(SELECT from_position FROM log.partitions ORDER BY from_position) FROM log.head",
        )
        .fetch_one(&mut *transaction)
        .await?;
        let (head, end): (Position, Position) = (row.try_get(0)?, row.try_get(1)?);
        if end > head + AHEAD * size {
            return Ok(Partitions { starts: row.try_get(2)?, end: end - 1 });
        }
        create(&mut transaction, end, end + size).await?;
        transaction.commit().await?;
        tracing::info!(from = end, to = end + size, "made a partition of the log");
    }
}

async fn create(connection: &mut PgConnection, from: Position, to: Position) -> Result<(), LogError> {
    let table = format!("log.events_{from}");
    for statement in [
        // Nothing is ever removed from it: a vacuum or an analysis each time it has doubled is enough.
        format!(
            "CREATE TABLE {table} (LIKE log.events INCLUDING ALL) WITH (\
             autovacuum_vacuum_insert_scale_factor = 1, autovacuum_analyze_scale_factor = 1)"
        ),
        format!("CREATE UNIQUE INDEX ON {table} (stream_id, version)"),
        format!(
            "CREATE TRIGGER events_are_facts BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} \
             FOR EACH STATEMENT EXECUTE FUNCTION log.refuse_change()"
        ),
        format!("ALTER TABLE log.events ATTACH PARTITION {table} FOR VALUES FROM ({from}) TO ({to})"),
        format!("INSERT INTO log.partitions VALUES ({from}, {to})"),
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *connection).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_lie_in_partitions() {
        let partitions = Partitions { starts: vec![1, 11, 31], end: 40 };
        assert_eq!(partitions.begun(1, 10), None);
        assert_eq!(partitions.begun(10, 11), Some(11));
        assert_eq!(partitions.begun(11, 30), None);
        assert_eq!(partitions.begun(10, 31), Some(31));
        assert_eq!(partitions.begun(0, 1), Some(1), "a stream without events");
        assert_eq!(Partitions::default().begun(0, 1), None, "none is known");
    }
}
