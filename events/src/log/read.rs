//! Batches of the log from a position.

use std::borrow::Cow;
use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{Row, ValueRef};
use uuid::Uuid;

use super::{Head, Log, LogError};
use crate::envelope::{Metadata, RecordedEvent};
use crate::{Epoch, Origin, Position, audit, fact};

/// The most positions one statement looks through, so that a narrow filter over a long log stays a short statement.
const WINDOW: i64 = 200_000;

/// The most payload bytes one page gathers before it ends early.
const PAGE_BYTES: usize = 16 * 1024 * 1024;

/// The events of a stream that are held at once when the whole of it is read.
const STREAM_PAGE: i64 = 1_000;

/// The columns of an event, in the order of [`event_from_row`].
macro_rules! event_columns {
    () => {
        "position, stream_id, category, version, event_id, event_type, schema_version, payload, \
         correlation_id, causation_id, actor, traceparent, recorded_at, partition_key, origin"
    };
}
pub(crate) use event_columns;

/// Joins the rows `s` of `log.streams` with their events `e` that meet a condition, in those partitions alone that have
/// any. What comes behind the condition keeps the planner from taking the subquery apart.
macro_rules! events_of_streams {
    ($condition:literal, $behind:literal) => {
        concat!(
            "log.streams s JOIN log.partitions p ON p.from_position = s.partition \
             CROSS JOIN LATERAL (SELECT ",
            event_columns!(),
            " FROM log.events WHERE stream_id = s.stream_id \
             AND position >= p.from_position AND position < p.to_position AND ",
            $condition,
            " ",
            $behind,
            ") e"
        )
    };
}

/// Which events to read; what is empty does not restrict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of these categories.
    pub categories: Vec<Cow<'static, str>>,
    /// Of these types.
    pub event_types: Vec<String>,
    /// Of this stream.
    pub stream_id: Option<Uuid>,
    /// Only what belongs into the audit ([`audit::is_audited`]).
    pub audited: bool,
}

impl Filter {
    /// Whether it lets an event through, as [`Log::read`] does.
    #[must_use]
    pub fn lets_through(&self, event: &RecordedEvent) -> bool {
        self.takes(&event.category)
            && (self.event_types.is_empty() || self.event_types.iter().any(|name| *name == event.event_type))
            && self.stream_id.is_none_or(|stream_id| stream_id == event.stream_id)
            && (!self.audited || audit::is_audited(event))
    }

    /// Whether it may let events of a category through.
    #[must_use]
    pub fn takes(&self, category: &str) -> bool {
        self.categories.is_empty() || self.categories.iter().any(|taken| taken == category)
    }

    fn is_open(&self) -> bool {
        *self == Self::default()
    }
}

/// What one read brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<E = RecordedEvent> {
    /// The events that the filter lets through, in the order of positions.
    pub events: Vec<E>,
    /// Everything up to here has been looked at; the next read goes on after it.
    pub read_to: Position,
    /// The epoch of the log that was read.
    pub epoch: Epoch,
}

impl Page {
    /// For several readers.
    #[must_use]
    pub fn shared(self) -> Page<Arc<RecordedEvent>> {
        let Self { events, read_to, epoch } = self;
        Page { events: events.into_iter().map(Arc::new).collect(), read_to, epoch }
    }
}

impl Log {
    /// Reads events with `after < position <= up_to`, at most `limit` of them.
    ///
    /// It never looks beyond the log's head, which it reads in the same snapshot: positions up to a head are all
    /// visible, so none can be skipped, not even by a reader whose `up_to` comes from a log that has since lost its
    /// end. One statement, bounded in rows, bytes and in how far it looks; go on from [`Page::read_to`].
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn read(
        &self,
        after: Position,
        up_to: Position,
        filter: &Filter,
        limit: usize,
    ) -> Result<Page, LogError> {
        use futures_util::TryStreamExt;

        let window_end = up_to.min(after.saturating_add(WINDOW));
        if after >= window_end || limit == 0 {
            let head = self.head().await?;
            return Ok(Page { events: Vec::new(), read_to: after, epoch: head.epoch });
        }
        // The head is one row, so the events keep their order.
        let sql = if filter.is_open() {
            concat!(
                "SELECT e.*, h.epoch, h.position AS head FROM log.head h LEFT JOIN LATERAL (SELECT ",
                event_columns!(),
                " FROM log.events \
                 WHERE position > $1 AND position <= LEAST($2, h.position) ORDER BY position LIMIT $3) e ON true"
            )
        } else {
            concat!(
                "SELECT e.*, h.epoch, h.position AS head FROM log.head h LEFT JOIN LATERAL (SELECT ",
                event_columns!(),
                " FROM log.events \
                 WHERE position > $1 AND position <= LEAST($2, h.position) \
                 AND ($4::text[] IS NULL OR category = ANY($4)) \
                 AND ($5::text[] IS NULL OR event_type = ANY($5)) \
                 AND ($6::uuid IS NULL OR stream_id = $6) AND (NOT $7 OR ",
                audit::is_audited_sql!(),
                ") ORDER BY position LIMIT $3) e ON true"
            )
        };
        let limit_rows = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut query = sqlx::query(sql).bind(after).bind(window_end).bind(limit_rows);
        if !filter.is_open() {
            let categories: Vec<&str> = filter.categories.iter().map(AsRef::as_ref).collect();
            query = query
                .bind((!categories.is_empty()).then_some(categories))
                .bind((!filter.event_types.is_empty()).then_some(&filter.event_types))
                .bind(filter.stream_id)
                .bind(filter.audited);
        }
        let mut rows = query.fetch(&self.pool);
        let (mut events, mut bytes, mut head) = (Vec::<RecordedEvent>::new(), 0, None);
        while let Some(row) = rows.try_next().await? {
            if head.is_none() {
                head = Some(Head { epoch: row.try_get(15)?, position: row.try_get(16)? });
            }
            if row.try_get_raw(0)?.is_null() {
                break;
            }
            let event = event_from_row(&row)?;
            if events.last().is_some_and(|last| last.position >= event.position) {
                return Err(sqlx::Error::Protocol("events came out of order".to_owned()).into());
            }
            bytes += event.payload.len();
            events.push(event);
            if bytes > PAGE_BYTES {
                break;
            }
        }
        let head = head.ok_or(sqlx::Error::RowNotFound)?;
        let read_to = match events.last() {
            Some(last) if events.len() == limit || bytes > PAGE_BYTES => last.position,
            _ => window_end.min(head.position).max(after),
        };
        Ok(Page { events, read_to, epoch: head.epoch })
    }

    /// One stream's events after a version, in order, at most `limit`.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn read_stream(
        &self,
        stream_id: Uuid,
        after_version: i64,
        limit: i64,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        let rows = sqlx::query(concat!(
            "SELECT e.* FROM ",
            events_of_streams!("version > $2", "ORDER BY version LIMIT $3"),
            " WHERE s.stream_id = $1 ORDER BY e.version LIMIT $3"
        ))
        .bind(stream_id)
        .bind(after_version)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.iter().map(event_from_row).collect::<Result<_, _>>()?)
    }

    /// A stream after a version (0: all of it) to its end, however long, a page at a time.
    #[must_use]
    pub fn stream_pages(&self, stream_id: Uuid, after_version: i64) -> StreamPages<'_> {
        StreamPages { log: self, stream_id, after: Some(after_version) }
    }

    /// One stream's events before a version, the newest first, at most `limit`.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn read_stream_back(
        &self,
        stream_id: Uuid,
        before_version: i64,
        limit: i64,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        let rows = sqlx::query(concat!(
            "SELECT e.* FROM ",
            events_of_streams!("version < $2", "ORDER BY version DESC LIMIT $3"),
            " WHERE s.stream_id = $1 AND s.from_version < $2 ORDER BY e.version DESC LIMIT $3"
        ))
        .bind(stream_id)
        .bind(before_version)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.iter().map(event_from_row).collect::<Result<_, _>>()?)
    }

    /// The newest event of each of these types in each of these streams, in no particular order.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn read_newest(
        &self,
        stream_ids: &[Uuid],
        event_types: &[&str],
    ) -> Result<Vec<RecordedEvent>, LogError> {
        let rows = sqlx::query(concat!(
            "SELECT DISTINCT ON (e.stream_id, e.event_type) e.* FROM ",
            events_of_streams!("event_type = ANY($2)", "OFFSET 0"),
            " WHERE s.stream_id = ANY($1) ORDER BY e.stream_id, e.event_type, e.version DESC"
        ))
        .bind(stream_ids)
        .bind(event_types)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.iter().map(event_from_row).collect::<Result<_, _>>()?)
    }

    /// The first event of each of these streams that exists, in no particular order.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn read_firsts(&self, stream_ids: &[Uuid]) -> Result<Vec<RecordedEvent>, LogError> {
        let rows = sqlx::query(concat!(
            "SELECT e.* FROM ",
            events_of_streams!("version = 1", "OFFSET 0"),
            " WHERE s.stream_id = ANY($1) AND s.from_version = 1"
        ))
        .bind(stream_ids)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.iter().map(event_from_row).collect::<Result<_, _>>()?)
    }
}

/// The pages of one stream, in order.
#[derive(Debug)]
pub struct StreamPages<'a> {
    log: &'a Log,
    stream_id: Uuid,
    /// The version that the next page begins behind; nothing behind the last.
    after: Option<i64>,
}

impl StreamPages<'_> {
    /// The next page; `None` behind the last.
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn next(&mut self) -> Result<Option<Vec<RecordedEvent>>, LogError> {
        let Some(after) = self.after else { return Ok(None) };
        let events = self.log.read_stream(self.stream_id, after, STREAM_PAGE).await?;
        let is_full = i64::try_from(events.len()).is_ok_and(|count| count == STREAM_PAGE);
        self.after = events.last().filter(|_| is_full).map(|event| event.version);
        Ok(Some(events))
    }
}

/// Reads a row of [`event_columns`].
pub(crate) fn event_from_row(row: &PgRow) -> Result<RecordedEvent, sqlx::Error> {
    let category: &str = row.try_get(2)?;
    let event_type: &str = row.try_get(5)?;
    Ok(RecordedEvent {
        position: row.try_get(0)?,
        stream_id: row.try_get(1)?,
        category: fact::known_category(category).map_or_else(|| category.to_owned().into(), Cow::Borrowed),
        version: row.try_get(3)?,
        event_id: row.try_get(4)?,
        event_type: fact::known_name(event_type).map_or_else(|| event_type.to_owned().into(), Cow::Borrowed),
        schema_version: row.try_get(6)?,
        payload: json_text(row, 7)?,
        metadata: Metadata {
            correlation_id: row.try_get(8)?,
            causation_id: row.try_get(9)?,
            actor: row.try_get(10)?,
            traceparent: row.try_get(11)?,
            origin: origin(row, 14)?,
        },
        recorded_at: row.try_get(12)?,
        partition_key: row.try_get(13)?,
    })
}

/// The network in a `cidr` column.
fn origin(row: &PgRow, column: usize) -> Result<Option<Origin>, sqlx::Error> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Ok(None);
    }
    let origin = Origin::from_cidr(value.as_bytes().map_err(sqlx::Error::Decode)?);
    origin.map(Some).ok_or_else(|| sqlx::Error::Decode("an origin that is none".into()))
}

/// The text of a `json` column, without parsing it.
fn json_text(row: &PgRow, column: usize) -> Result<Box<str>, sqlx::Error> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Err(sqlx::Error::Decode("an event without payload".into()));
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    Ok(std::str::from_utf8(bytes).map_err(|error| sqlx::Error::Decode(error.into()))?.into())
}
