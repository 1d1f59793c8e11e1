//! Which history the log is of: epochs, when one begins, and where two histories part.
//!
//! A database can go back to what it was: restored from a backup, promoted from a replica that had not had the end, or
//! its files put back as a volume's snapshot has them. A writer therefore compares, on each new connection and under the
//! lock, which server this is, which of its timelines, which of its runs and which table, with what the log says of its
//! last writer. Where anything differs, a new epoch begins before anything is appended. No server comes to other files
//! without a new run, and no dump is restored into the same table, so nothing is appended to a former state under the
//! epoch of what was lost. Most runs have lost nothing: then the former epoch ends where the log stands, and whoever knows
//! of it goes on.

use std::sync::{Arc, PoisonError};

use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::{Head, Log, LogError};
use crate::{Epoch, Position};

/// Begins the next epoch behind the head, on this server ($1), timeline ($2) and place ($3).
///
/// Its number is the seconds since the beginning of 2026, or, where the clock is behind the number before it, some more
/// than that. The same state may come back again after work was done on it: what it knows of epochs does not tell which
/// numbers were given meanwhile.
const BEGIN_EPOCH: &str = "WITH begun AS ( \
       UPDATE log.head SET system_identifier = $1, timeline = $2, written_at = $3, \
         epoch = GREATEST(epoch + 1 + floor(random() * 1000)::int, extract(epoch FROM clock_timestamp() - timestamptz '2026-01-01 00:00:00Z')::int) \
       RETURNING epoch, position) \
     INSERT INTO log.epochs (epoch, from_position, system_identifier, timeline) \
     SELECT epoch, position + 1, $1, $2 FROM begun RETURNING epoch";

/// Begins a new epoch, in a commit of its own, if this is not where the last writer wrote.
///
/// # Errors
/// The database's.
pub(super) async fn check(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let row = sqlx::query(
        "SELECT position, epoch, system_identifier, timeline, written_at FROM log.head FOR UPDATE",
    )
    .fetch_one(&mut *transaction)
    .await?;
    let (position, epoch): (Position, Epoch) = (row.try_get(0)?, row.try_get(1)?);
    let (server, timeline): (Option<i64>, Option<i32>) = (row.try_get(2)?, row.try_get(3)?);
    let written_at: Option<String> = row.try_get(4)?;
    let row = sqlx::query(
        "SELECT system_identifier, \
         ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int, \
         concat_ws(' ', extract(epoch FROM pg_postmaster_start_time()), d.oid, 'log.head'::regclass::oid) \
         FROM pg_control_system(), pg_database d WHERE d.datname = current_database()",
    )
    .fetch_one(&mut *transaction)
    .await?;
    let found: (i64, i32, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let nobody_yet = server.is_none() || timeline.is_none();
    let same_server = server == Some(found.0) && timeline == Some(found.1);
    if nobody_yet {
        sqlx::query("UPDATE log.head SET system_identifier = $1, timeline = $2, written_at = $3")
            .bind(found.0)
            .bind(found.1)
            .bind(&found.2)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE log.epochs SET system_identifier = $1, timeline = $2 WHERE epoch = $3")
            .bind(found.0)
            .bind(found.1)
            .bind(epoch)
            .execute(&mut *transaction)
            .await?;
    } else if !same_server || written_at.as_ref() != Some(&found.2) {
        let row = sqlx::query(BEGIN_EPOCH)
            .bind(found.0)
            .bind(found.1)
            .bind(&found.2)
            .fetch_one(&mut *transaction)
            .await?;
        let (begun, from): (Epoch, Position) = (row.try_get(0)?, position + 1);
        if same_server {
            tracing::info!(
                epoch = begun,
                after = epoch,
                from,
                "the log's server was started, or the log copied: a new epoch begins"
            );
        } else {
            tracing::warn!(
                epoch = begun,
                after = epoch,
                from,
                "the log's database was restored or promoted: a new epoch begins"
            );
        }
    }
    transaction.commit().await
}

/// Whether everything up to `known` is part of the history of a log that stands at `head`.
///
/// # Errors
/// The database's.
pub(super) async fn continues(
    connection: &mut PgConnection,
    head: Head,
    known: Head,
) -> Result<bool, sqlx::Error> {
    if known.epoch == head.epoch {
        return Ok(known.position <= head.position);
    }
    let end = end_of(&read(connection).await?, known.epoch);
    Ok(end.is_some_and(|end| known.position <= end))
}

/// The epochs, oldest first, each with the position behind which it begins.
async fn read(connection: &mut PgConnection) -> Result<Vec<Head>, sqlx::Error> {
    let rows = sqlx::query("SELECT epoch, from_position - 1 FROM log.epochs ORDER BY epoch")
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| Ok(Head { epoch: row.try_get(0)?, position: row.try_get(1)? })).collect()
}

/// The last position of an epoch, see [`Log::epoch_end`].
fn end_of(epochs: &[Head], epoch: Epoch) -> Option<Position> {
    let first_behind = epochs.iter().filter(|begin| begin.epoch > epoch).map(|begin| begin.position).min()?;
    let known = epochs.iter().any(|begin| begin.epoch == epoch);
    Some(if known { first_behind } else { 0 })
}

impl Log {
    /// The last position of an epoch that is over; `None` if it is the newest one, or newer than all that are known.
    /// `begun` is an epoch that is known to have begun: as long as that is one of those that were read before, the log is
    /// not asked again.
    ///
    /// 0 for one that this log never had, though newer ones: it began on a state from before this one was restored, too,
    /// and nothing here tells where the two part.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn epoch_end(&self, epoch: Epoch, begun: Epoch) -> Result<Option<Position>, LogError> {
        Ok(end_of(&self.epochs_with(begun).await?, epoch))
    }

    /// The epochs as they were read last, if this one is among them, else as they are now.
    async fn epochs_with(&self, begun: Epoch) -> Result<Arc<Vec<Head>>, LogError> {
        let kept = Arc::clone(&self.epochs.lock().unwrap_or_else(PoisonError::into_inner));
        if kept.iter().any(|known| known.epoch == begun) { Ok(kept) } else { self.epochs().await }
    }

    /// The log's epochs, oldest first, each with the position behind which it begins.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn epochs(&self) -> Result<Arc<Vec<Head>>, LogError> {
        let mut connection = self.pool().acquire().await?;
        let epochs = Arc::new(read(&mut connection).await?);
        *self.epochs.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&epochs);
        Ok(epochs)
    }

    /// Whether what was read up to `known` is part of the history that something was read of in `epoch` since.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn continues(&self, known: Head, epoch: Epoch) -> Result<bool, LogError> {
        let end = if known.epoch == epoch { None } else { self.epoch_end(known.epoch, epoch).await? };
        Ok(end.is_none_or(|end| known.position <= end))
    }

    /// A head as one who knows only the epochs before it has it: where its epoch begins behind its position, that is one
    /// of the epoch before. A command that changes nothing is answered with such a one after each start of the server.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn as_written(&self, head: Head) -> Result<Head, LogError> {
        Ok(as_written(&self.epochs_with(head.epoch).await?, head))
    }

    /// The id of the first event: no two logs have the same.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn first_event(&self) -> Result<Option<Uuid>, LogError> {
        let found = sqlx::query_scalar("SELECT event_id FROM log.events WHERE position = 1");
        Ok(found.fetch_optional(self.pool()).await?)
    }

    /// Begins a new epoch if this is not where the last writer wrote. A writer does so before it appends; this is for
    /// whoever must know before that. Needs the rights of a writer.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn check_history(&self) -> Result<(), LogError> {
        let mut connection = self.pool().acquire().await?;
        Ok(check(&mut connection).await?)
    }
}

fn as_written(epochs: &[Head], head: Head) -> Head {
    let known = epochs.iter().any(|begin| begin.epoch == head.epoch);
    let before = epochs.iter().filter(|begin| begin.epoch <= head.epoch && begin.position < head.position);
    match before.map(|begin| begin.epoch).max() {
        Some(epoch) if known => Head { epoch, ..head },
        _ => head,
    }
}

/// Up to where two histories are the same, each told by its epochs, with the position behind which each begins there.
///
/// An epoch's number is given once. Where both know one, they were the same when it began, and as long as both were
/// in it; an epoch ends where the first of those after it begins, also one that went back further than the one before it.
#[must_use]
pub fn common_end(one: &[Head], other: &[Head]) -> Position {
    let end = |epochs: &[Head], epoch: Epoch| end_of(epochs, epoch).unwrap_or(Position::MAX);
    one.iter()
        .filter(|begin| other.iter().any(|known| known.epoch == begin.epoch))
        .map(|&Head { epoch, .. }| end(one, epoch).min(end(other, epoch)))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(begins: &[(Epoch, Position)]) -> Vec<Head> {
        begins.iter().map(|&(epoch, position)| Head { epoch, position }).collect()
    }

    #[test]
    fn an_epoch_ends_where_the_first_behind_it_begins() {
        let known = epochs(&[(1, 0), (5, 100), (9, 80)]);
        assert_eq!(end_of(&known, 9), None);
        assert_eq!(end_of(&known, 10), None);
        assert_eq!(end_of(&known, 5), Some(80));
        assert_eq!(end_of(&known, 1), Some(80));
        assert_eq!(end_of(&known[..2], 1), Some(100));
        assert_eq!(end_of(&known, 7), Some(0), "nobody knows where it parts");
    }

    #[test]
    fn a_position_is_of_the_epoch_that_it_was_written_in() {
        let known = epochs(&[(1, 0), (5, 100), (9, 100)]);
        let written = |epoch, position| as_written(&known, Head { epoch, position }).epoch;
        assert_eq!([written(9, 100), written(5, 100), written(1, 100), written(9, 101)], [1, 1, 1, 9]);
        assert_eq!([written(5, 101), written(9, 0), written(7, 100)], [5, 9, 7]);
    }

    #[test]
    fn histories_are_the_same_as_long_as_both_are_in_an_epoch_that_both_know() {
        let common = |one: &[(Epoch, Position)], other: &[(Epoch, Position)]| {
            let (one, other) = (epochs(one), epochs(other));
            assert_eq!(common_end(&one, &other), common_end(&other, &one));
            common_end(&one, &other)
        };
        assert_eq!(common(&[(1, 0)], &[(1, 0)]), Position::MAX);
        assert_eq!(common(&[(1, 0), (5, 100)], &[(1, 0)]), 100);
        // Restored to 80, before 5 began; the other went on in 5.
        assert_eq!(common(&[(1, 0), (9, 80)], &[(1, 0), (5, 100)]), 80);
        assert_eq!(common(&[(1, 0), (5, 100), (9, 120)], &[(1, 0), (5, 100), (7, 150)]), 120);
        // Both know 5, and where 7 began behind less, nothing of 5 is left there.
        assert_eq!(common(&[(1, 0), (5, 100), (9, 120)], &[(1, 0), (5, 100), (7, 40)]), 40);
        // All of it was published anew under 7.
        assert_eq!(common(&[(1, 0), (5, 100), (9, 120)], &[(1, 0), (5, 100), (7, 0)]), 0);
        assert_eq!(common(&[(2, 0)], &[(1, 0)]), 0);
        assert_eq!(common(&[], &[(1, 0)]), 0);
    }
}
