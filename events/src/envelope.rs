//! What every event carries beside its payload.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::fact::{DecodeError, Fact};
use crate::{Origin, Position};

/// Who caused an event, from where, and in which flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The flow it belongs to: everything that followed from one request carries the same.
    pub correlation_id: Uuid,
    /// The event or command that caused it, if it was not a request from outside.
    pub causation_id: Option<Uuid>,
    /// Who did it, as `role:uuid` or the name of a part of the system.
    pub actor: String,
    /// W3C Trace Context of the request, if it came with one.
    pub traceparent: Option<String>,
    /// Where the request came from. Events of the shop's own work have none, nor have those from before it was kept.
    pub origin: Option<Origin>,
}

/// An event as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedEvent {
    /// Its place in the log.
    pub position: Position,
    /// The stream it stands in.
    pub stream_id: Uuid,
    /// What kind of stream: `product`, `stock`, `order`, `sku`.
    pub category: Cow<'static, str>,
    /// Its place in the stream, 1 for the first, without gaps.
    pub version: i64,
    /// Its own id (UUIDv7).
    pub event_id: Uuid,
    /// What happened, in the past tense.
    pub event_type: Cow<'static, str>,
    /// Which version of that type's schema the payload has.
    pub schema_version: i16,
    /// The payload, JSON as stored.
    pub payload: Box<str>,
    /// Who and in which flow.
    pub metadata: Metadata,
    /// When the log took it, by the database's clock; never goes back along positions.
    pub recorded_at: DateTime<Utc>,
    /// What belongs together stays in order: a product and its stock, an order and its payments.
    pub partition_key: Uuid,
}

impl RecordedEvent {
    /// The event as today's type, through the upcasters if it is an old version.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(&self) -> Result<Fact, DecodeError> {
        Fact::decode(&self.event_type, self.schema_version, &self.payload)
    }
}
