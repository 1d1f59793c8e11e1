//! An event as a Kafka record: CloudEvents 1.0, Kafka protocol binding, binary mode.
//!
//! The value is the payload as the log keeps it, the key is the partition key, and the rest stands in headers:
//!
//! | header | what |
//! |---|---|
//! | `ce_specversion` | `1.0` |
//! | `ce_id` | the event's id |
//! | `ce_source` | `/tidemark/` and the category |
//! | `ce_type` | the event type, or [`WATERMARK`] |
//! | `ce_time` | when the log took it (RFC 3339, microseconds) |
//! | `ce_subject` | the stream's id |
//! | `ce_partitionkey` | what it stays in order with (extension "Partitioning") |
//! | `ce_traceparent` | W3C Trace Context (extension "Distributed Tracing"), if there is one |
//! | `ce_epoch`, `ce_position` | where it stands in the log |
//! | `ce_streamversion` | its place in the stream |
//! | `ce_schemaversion` | the version of the payload's schema |
//! | `ce_correlationid`, `ce_causationid`, `ce_actor` | who, and in which flow |
//! | `ce_origin` | from where, if it was a request: the network |
//!
//! A watermark says that its partition holds everything up to its position. It has no key and an empty object as
//! value.

use std::borrow::Cow;
use std::fmt::{Display, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use rdkafka::Message;
use rdkafka::message::{Header, Headers, OwnedHeaders};
use tidemark_events::log::Head;
use tidemark_events::{Epoch, Metadata, RecordedEvent, fact};
use uuid::Uuid;

/// The type of a watermark.
pub const WATERMARK: &str = "tidemark.watermark";

/// The value of a watermark.
pub const NOTHING: &str = "{}";

/// What values are written as.
pub(crate) const CONTENT_TYPE: &str = "application/json";

/// What an event's category stands behind in `ce_source`.
pub(crate) const SOURCE: &str = "/tidemark/";

/// `ce_source` of a watermark.
pub(crate) const LOG_SOURCE: &str = "/tidemark/log";

/// The version of CloudEvents.
pub(crate) const SPECVERSION: &str = "1.0";

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the log: the partition holds everything of its own up to here.
    pub at: Head,
    /// The event; a watermark has none, and neither has one that is not wanted.
    pub event: Option<RecordedEvent>,
}

/// Why a record is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It lacks something.
    #[error("there is no header {0}")]
    Missing(&'static str),
    /// Something cannot be read.
    #[error("the header {0} cannot be read")]
    Unreadable(&'static str),
    /// The value is no text.
    #[error("the value is missing or no UTF-8")]
    Value,
}

/// A time as records have it, written once for all events of a commit, which share it.
#[derive(Debug, Default)]
pub struct Time {
    at: DateTime<Utc>,
    text: String,
}

impl Time {
    fn of(&mut self, at: DateTime<Utc>) -> &str {
        if self.at != at || self.text.is_empty() {
            (self.at, self.text) = (at, at.to_rfc3339_opts(SecondsFormat::Micros, true));
        }
        &self.text
    }
}

/// The headers of an event.
#[must_use]
pub fn headers(epoch: Epoch, event: &RecordedEvent, time: &mut Time) -> OwnedHeaders {
    let metadata = &event.metadata;
    let mut writer = Writer::new(17)
        .text("content-type", CONTENT_TYPE)
        .text("ce_specversion", SPECVERSION)
        .uuid("ce_id", event.event_id)
        .shown("ce_source", format_args!("{SOURCE}{}", event.category))
        .text("ce_type", &event.event_type)
        .text("ce_time", time.of(event.recorded_at))
        .uuid("ce_subject", event.stream_id)
        .uuid("ce_partitionkey", event.partition_key)
        .shown("ce_epoch", epoch)
        .shown("ce_position", event.position)
        .shown("ce_streamversion", event.version)
        .shown("ce_schemaversion", event.schema_version)
        .uuid("ce_correlationid", metadata.correlation_id);
    if let Some(causation_id) = metadata.causation_id {
        writer = writer.uuid("ce_causationid", causation_id);
    }
    writer = writer.text("ce_actor", &metadata.actor);
    if let Some(traceparent) = &metadata.traceparent {
        writer = writer.text("ce_traceparent", traceparent);
    }
    if let Some(origin) = metadata.origin {
        writer = writer.shown("ce_origin", origin);
    }
    writer.headers
}

/// The headers of a watermark.
#[must_use]
pub fn watermark(place: Head, at: DateTime<Utc>) -> OwnedHeaders {
    Writer::new(8)
        .text("content-type", CONTENT_TYPE)
        .text("ce_specversion", SPECVERSION)
        .shown("ce_id", place)
        .text("ce_source", LOG_SOURCE)
        .text("ce_type", WATERMARK)
        .text("ce_time", &at.to_rfc3339_opts(SecondsFormat::Micros, true))
        .shown("ce_epoch", place.epoch)
        .shown("ce_position", place.position)
        .headers
}

/// Headers in the making: each is copied where it is put, so one buffer does for all that have to be written first.
struct Writer {
    headers: OwnedHeaders,
    buffer: String,
}

impl Writer {
    fn new(count: usize) -> Self {
        Self { headers: OwnedHeaders::new_with_capacity(count), buffer: String::with_capacity(48) }
    }

    fn text(self, key: &str, value: &str) -> Self {
        Self { headers: self.headers.insert(Header { key, value: Some(value) }), ..self }
    }

    fn uuid(self, key: &str, value: Uuid) -> Self {
        self.text(key, value.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
    }

    fn shown(mut self, key: &str, value: impl Display) -> Self {
        self.buffer.clear();
        // Writing to a string cannot fail.
        write!(self.buffer, "{value}").ok();
        Self { headers: self.headers.insert(Header { key, value: Some(&self.buffer) }), ..self }
    }
}

/// Reads a record; of an event in a category that is not wanted, its place alone.
///
/// # Errors
/// [`Misfit`] when it is no event of a log and no watermark.
pub fn parse<M: Message>(message: &M, is_wanted: impl Fn(&str) -> bool) -> Result<Record, Misfit> {
    let found = Found::of(message);
    let epoch = found.parsed("ce_epoch", found.epoch)?;
    let position = found.parsed("ce_position", found.position)?;
    if found.text("ce_specversion", found.specversion)? != SPECVERSION {
        return Err(Misfit::Unreadable("ce_specversion"));
    }
    let event_type = found.text("ce_type", found.event_type)?;
    if event_type == WATERMARK {
        return Ok(Record { at: Head { epoch, position }, event: None });
    }
    let source = found.text("ce_source", found.source)?;
    let category = source.strip_prefix(SOURCE).ok_or(Misfit::Unreadable("ce_source"))?;
    if !is_wanted(category) {
        return Ok(Record { at: Head { epoch, position }, event: None });
    }
    let time = found.text("ce_time", found.time)?;
    let payload = message.payload().and_then(|value| std::str::from_utf8(value).ok()).ok_or(Misfit::Value)?;
    Ok(Record {
        at: Head { epoch, position },
        event: Some(RecordedEvent {
            position,
            stream_id: found.uuid("ce_subject", found.subject)?,
            category: fact::known_category(category)
                .map_or_else(|| Cow::Owned(category.to_owned()), Cow::Borrowed),
            version: found.parsed("ce_streamversion", found.version)?,
            event_id: found.uuid("ce_id", found.id)?,
            event_type: fact::known_name(event_type)
                .map_or_else(|| Cow::Owned(event_type.to_owned()), Cow::Borrowed),
            schema_version: found.parsed("ce_schemaversion", found.schema_version)?,
            payload: payload.into(),
            metadata: Metadata {
                correlation_id: found.uuid("ce_correlationid", found.correlation_id)?,
                causation_id: match found.causation_id {
                    Some(_) => Some(found.uuid("ce_causationid", found.causation_id)?),
                    None => None,
                },
                actor: found.text("ce_actor", found.actor)?.to_owned(),
                traceparent: match found.traceparent {
                    Some(_) => Some(found.text("ce_traceparent", found.traceparent)?.to_owned()),
                    None => None,
                },
                origin: match found.origin {
                    Some(_) => Some(found.parsed("ce_origin", found.origin)?),
                    None => None,
                },
            },
            recorded_at: DateTime::parse_from_rfc3339(time)
                .map_err(|_| Misfit::Unreadable("ce_time"))?
                .with_timezone(&Utc),
            partition_key: found.uuid("ce_partitionkey", found.partition_key)?,
        }),
    })
}

/// The headers by name, looked through once. Of two with one name the last counts.
#[derive(Default)]
struct Found<'a> {
    specversion: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
    source: Option<&'a [u8]>,
    event_type: Option<&'a [u8]>,
    time: Option<&'a [u8]>,
    subject: Option<&'a [u8]>,
    partition_key: Option<&'a [u8]>,
    traceparent: Option<&'a [u8]>,
    epoch: Option<&'a [u8]>,
    position: Option<&'a [u8]>,
    version: Option<&'a [u8]>,
    schema_version: Option<&'a [u8]>,
    correlation_id: Option<&'a [u8]>,
    causation_id: Option<&'a [u8]>,
    actor: Option<&'a [u8]>,
    origin: Option<&'a [u8]>,
}

impl<'a> Found<'a> {
    fn of<M: Message>(message: &'a M) -> Self {
        let mut found = Self::default();
        let Some(headers) = message.headers() else { return found };
        for index in 0..headers.count() {
            let header = headers.get(index);
            let place = match header.key {
                "ce_specversion" => &mut found.specversion,
                "ce_id" => &mut found.id,
                "ce_source" => &mut found.source,
                "ce_type" => &mut found.event_type,
                "ce_time" => &mut found.time,
                "ce_subject" => &mut found.subject,
                "ce_partitionkey" => &mut found.partition_key,
                "ce_traceparent" => &mut found.traceparent,
                "ce_epoch" => &mut found.epoch,
                "ce_position" => &mut found.position,
                "ce_streamversion" => &mut found.version,
                "ce_schemaversion" => &mut found.schema_version,
                "ce_correlationid" => &mut found.correlation_id,
                "ce_causationid" => &mut found.causation_id,
                "ce_actor" => &mut found.actor,
                "ce_origin" => &mut found.origin,
                _ => continue,
            };
            *place = header.value;
        }
        found
    }

    fn text(&self, name: &'static str, value: Option<&'a [u8]>) -> Result<&'a str, Misfit> {
        let value = value.ok_or(Misfit::Missing(name))?;
        std::str::from_utf8(value).map_err(|_| Misfit::Unreadable(name))
    }

    fn parsed<N: std::str::FromStr>(&self, name: &'static str, value: Option<&'a [u8]>) -> Result<N, Misfit> {
        self.text(name, value)?.parse().map_err(|_| Misfit::Unreadable(name))
    }

    fn uuid(&self, name: &'static str, value: Option<&'a [u8]>) -> Result<Uuid, Misfit> {
        Uuid::try_parse_ascii(value.ok_or(Misfit::Missing(name))?).map_err(|_| Misfit::Unreadable(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rdkafka::message::{OwnedMessage, Timestamp};
    use tidemark_events::Origin;

    fn message(headers: Option<OwnedHeaders>, payload: Option<&[u8]>) -> OwnedMessage {
        OwnedMessage::new(
            payload.map(<[u8]>::to_vec),
            None,
            "tidemark".to_owned(),
            Timestamp::NotAvailable,
            0,
            0,
            headers,
        )
    }

    fn event() -> RecordedEvent {
        RecordedEvent {
            position: 7,
            stream_id: Uuid::from_u128(1),
            category: "order".into(),
            version: 3,
            event_id: Uuid::from_u128(2),
            event_type: "OrderShipped".into(),
            schema_version: 1,
            payload: r#"{"shipped_at":"2026-01-01T00:00:00Z"}"#.into(),
            metadata: Metadata {
                correlation_id: Uuid::from_u128(3),
                causation_id: Some(Uuid::from_u128(4)),
                actor: "staff:ü".to_owned(),
                traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
                origin: Some(Origin::V6([0x20, 1, 0xd, 0xb8, 7])),
            },
            recorded_at: DateTime::from_timestamp_micros(1_767_225_600_123_456).unwrap(),
            partition_key: Uuid::from_u128(5),
        }
    }

    fn read(message: OwnedMessage) -> Result<Record, Misfit> {
        parse(&message, |_| true)
    }

    #[test]
    fn an_event_comes_back_as_it_was() {
        let mut event = event();
        for _ in 0..2 {
            let read =
                read(message(Some(headers(2, &event, &mut Time::default())), Some(event.payload.as_bytes())));
            assert_eq!(read, Ok(Record { at: Head { epoch: 2, position: 7 }, event: Some(event.clone()) }));
            event.metadata.causation_id = None;
            event.metadata.traceparent = None;
            event.metadata.origin = None;
            event.event_type = "OrderTeleported".into();
            event.category = "teleport".into();
        }
    }

    #[test]
    fn a_watermark_comes_back_as_it_was() {
        let read = read(message(
            Some(watermark(Head { epoch: 2, position: 9 }, event().recorded_at)),
            Some(NOTHING.as_bytes()),
        ));
        assert_eq!(read, Ok(Record { at: Head { epoch: 2, position: 9 }, event: None }));
    }

    #[test]
    fn of_what_nobody_wants_the_place_is_read() {
        let headers = headers(2, &event(), &mut Time::default());
        let message = message(Some(headers), Some(b"{}"));
        let place = Record { at: Head { epoch: 2, position: 7 }, event: None };
        assert_eq!(parse(&message, |category| category == "stock"), Ok(place));
        assert!(parse(&message, |category| category == "order").unwrap().event.is_some());
    }

    #[test]
    fn what_is_none_of_ours_is_told_apart() {
        assert_eq!(read(message(None, Some(b"x"))), Err(Misfit::Missing("ce_epoch")));
        let whole = headers(2, &event(), &mut Time::default());
        assert_eq!(read(message(Some(whole.clone()), None)), Err(Misfit::Value));
        assert_eq!(read(message(Some(whole.clone()), Some(b"\xff"))), Err(Misfit::Value));
        for name in
            ["ce_position", "ce_subject", "ce_time", "ce_specversion", "ce_source", "ce_id", "ce_origin"]
        {
            let broken = whole.clone().insert(Header { key: name, value: Some("no such thing") });
            let read = read(message(Some(broken), Some(b"{}")));
            assert_eq!(read, Err(Misfit::Unreadable(name)));
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(
            names in proptest::collection::vec("(ce_(epoch|position|type|id|time|source|subject|specversion)|.{0,5})", 0..12),
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 12),
            payload in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..8)),
        ) {
            let headers = names.iter().zip(&values).fold(OwnedHeaders::new(), |headers, (key, value)| {
                // A C string cannot hold it, so neither can a header's name.
                let key = &key.replace('\0', "");
                headers.insert(Header { key, value: Some(value) })
            });
            prop_assert!(read(message(Some(headers), payload.as_deref())).is_err());
        }
    }
}
