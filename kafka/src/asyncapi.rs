//! The topics as an AsyncAPI 3.0 document, for whoever reads them: `kafka/asyncapi.json`.
//!
//! Payloads are the JSON Schemas in `events/schemas`, one for each version of each event; the headers are those of
//! [`crate::record`].

use serde_json::{Map, Value, json};
use tidemark_events::fact::{EVENT_TYPES, EventType};
use tidemark_events::partition::PARTITIONS;

use crate::publisher::{EPOCH_KEY, PLACE_KEY};
use crate::record::{CONTENT_TYPE, LOG_SOURCE, SOURCE, SPECVERSION, WATERMARK};

/// The version of AsyncAPI's Kafka bindings.
const BINDING: &str = "0.5.0";

/// The document as it is committed, with a line end.
///
/// # Panics
/// Never: it is JSON as it is made.
#[must_use]
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&document()).expect("a JSON value can be written as JSON");
    text.push('\n');
    text
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut messages = Map::new();
    for event in EVENT_TYPES {
        for version in 1..=event.version {
            messages.insert(format!("{}.v{version}", event.name), message(event, version));
        }
    }
    messages.insert("Watermark".to_owned(), watermark());
    let in_events: Map<String, Value> =
        messages.keys().map(|name| (name.clone(), of_messages(name))).collect();
    messages.insert("Place".to_owned(), place());
    messages.insert("Epoch".to_owned(), epoch());
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tidemark's log in Kafka",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Every event of the log, once and in order, as a CloudEvent (1.0, Kafka protocol binding, \
                binary mode). Records are written in transactions: read with `isolation.level=read_committed`. \
                Events of one key stand in one partition in the order of their positions.",
            "license": { "name": "Apache-2.0 OR MIT" },
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {
            "events": {
                "address": "{topic}",
                "title": "The events",
                "description": "Each event in the partition of its key (the last byte of the key, as a UUID, modulo \
                    the number of partitions), with the time of the log as the record's. After each transaction's \
                    events a watermark in every partition.",
                "parameters": { "topic": topic() },
                "messages": in_events,
                "bindings": { "kafka": { "partitions": PARTITIONS, "bindingVersion": BINDING } },
            },
            "place": {
                "address": "{topic}.place",
                "title": "The publisher's place",
                "description": "Up to where the log is published, committed in the transaction of the events. For \
                    publishers; readers have the watermarks.",
                "parameters": { "topic": topic() },
                "messages": { "Place": of_messages("Place"), "Epoch": of_messages("Epoch") },
                "bindings": { "kafka": {
                    "partitions": 1,
                    "topicConfiguration": { "cleanup.policy": ["compact"] },
                    "bindingVersion": BINDING,
                } },
            },
        },
        "operations": {
            "publishEvents": {
                "action": "send",
                "channel": { "$ref": "#/channels/events" },
                "summary": "Everything that happens, by one process at a time.",
            },
            "keepPlace": {
                "action": "send",
                "channel": { "$ref": "#/channels/place" },
                "summary": "Who publishes next goes on from here.",
            },
        },
        "components": {
            "messages": messages,
            "schemas": { "EventHeaders": event_headers(), "WatermarkHeaders": watermark_headers() },
        },
    })
}

fn of_messages(name: &str) -> Value {
    json!({ "$ref": format!("#/components/messages/{name}") })
}

fn topic() -> Value {
    json!({ "description": "TIDEMARK_KAFKA_TOPIC", "default": "tidemark" })
}

/// An event of a version of its schema.
fn message(event: &EventType, version: i16) -> Value {
    let schema = (event.schema)();
    json!({
        "name": event.name,
        "title": event.name,
        "summary": schema.get("description"),
        "contentType": CONTENT_TYPE,
        "correlationId": { "location": "$message.header#/ce_correlationid" },
        "headers": {
            "type": "object",
            "allOf": [{ "$ref": "#/components/schemas/EventHeaders" }],
            "properties": {
                "ce_type": { "const": event.name },
                "ce_source": { "const": format!("{SOURCE}{}", event.category) },
                "ce_schemaversion": { "const": version.to_string() },
            },
        },
        "payload": { "$ref": format!("../events/schemas/{}.v{version}.json", event.name) },
        "bindings": { "kafka": {
            "key": uuid("The partition key: what the event stays in order with."),
            "bindingVersion": BINDING,
        } },
    })
}

fn watermark() -> Value {
    json!({
        "name": WATERMARK,
        "title": "Watermark",
        "summary": "The partition holds everything of its own up to this position. It has no key.",
        "contentType": CONTENT_TYPE,
        "headers": { "$ref": "#/components/schemas/WatermarkHeaders" },
        "payload": { "type": "object", "maxProperties": 0 },
        "bindings": { "kafka": { "bindingVersion": BINDING } },
    })
}

fn place() -> Value {
    json!({
        "name": "place",
        "title": "Place",
        "summary": "Epoch and position of the newest event that is published.",
        "contentType": "text/plain",
        "payload": { "type": "string", "pattern": "^[0-9]+-[0-9]+$", "examples": ["1-42"] },
        "bindings": { "kafka": {
            "key": { "type": "string", "const": PLACE_KEY },
            "bindingVersion": BINDING,
        } },
    })
}

fn epoch() -> Value {
    json!({
        "name": "epoch",
        "title": "Epoch",
        "summary": "An epoch of the log, and the position behind which the topic has it.",
        "contentType": "text/plain",
        "payload": { "type": "string", "pattern": "^[0-9]+-[0-9]+$", "examples": ["28160640-41"] },
        "bindings": { "kafka": {
            "key": { "type": "string", "pattern": format!("^{EPOCH_KEY}[0-9]+$") },
            "bindingVersion": BINDING,
        } },
    })
}

/// What an event's headers have in common.
fn event_headers() -> Value {
    let mut properties = common();
    for (name, schema) in [
        ("ce_id", uuid("The event's id (UUIDv7).")),
        ("ce_type", json!({ "type": "string", "description": "The event type." })),
        (
            "ce_source",
            json!({ "type": "string", "description": "`/tidemark/` and the category of the stream." }),
        ),
        ("ce_subject", uuid("The stream's id.")),
        ("ce_partitionkey", uuid("What it stays in order with (extension Partitioning); the record's key.")),
        ("ce_streamversion", number("Its place in the stream, from 1 and without gaps.")),
        ("ce_schemaversion", number("The version of the payload's schema.")),
        ("ce_correlationid", uuid("The flow that it belongs to.")),
        ("ce_causationid", uuid("The event that caused it, if one did.")),
        ("ce_actor", json!({ "type": "string", "description": "Who asked for it: role and account." })),
        (
            "ce_traceparent",
            json!({
                "type": "string",
                "description": "W3C Trace Context (extension Distributed Tracing), if the request had one.",
            }),
        ),
        (
            "ce_origin",
            json!({
                "type": "string",
                "description": "The network that the request came from, if there was one: of an IPv4 address the /24, \
                    of an IPv6 address the /40.",
                "examples": ["192.0.2.0/24"],
            }),
        ),
    ] {
        properties.insert(name.to_owned(), schema);
    }
    headers(properties, &["ce_causationid", "ce_traceparent", "ce_origin"])
}

fn watermark_headers() -> Value {
    let mut properties = common();
    for (name, schema) in [
        (
            "ce_id",
            json!({ "type": "string", "pattern": "^[0-9]+-[0-9]+$", "description": "Epoch and position." }),
        ),
        ("ce_type", json!({ "type": "string", "const": WATERMARK })),
        ("ce_source", json!({ "type": "string", "const": LOG_SOURCE })),
    ] {
        properties.insert(name.to_owned(), schema);
    }
    headers(properties, &[])
}

/// What every record of the topic carries.
fn common() -> Map<String, Value> {
    let properties = [
        ("content-type", json!({ "type": "string", "const": CONTENT_TYPE })),
        ("ce_specversion", json!({ "type": "string", "const": SPECVERSION })),
        (
            "ce_time",
            json!({
                "type": "string",
                "format": "date-time",
                "description": "When the log took it, or when the watermark was written (RFC 3339, microseconds).",
            }),
        ),
        ("ce_epoch", number("Which history of the log the position belongs to.")),
        ("ce_position", number("Its place in the log, without gaps; in a partition positions go up.")),
    ];
    properties.map(|(name, schema)| (name.to_owned(), schema)).into_iter().collect()
}

fn headers(properties: Map<String, Value>, optional: &[&str]) -> Value {
    let required: Vec<&String> =
        properties.keys().filter(|name| !optional.contains(&name.as_str())).collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

/// Headers are text.
fn number(description: &str) -> Value {
    json!({ "type": "string", "pattern": "^[0-9]+$", "description": description })
}

fn uuid(description: &str) -> Value {
    json!({ "type": "string", "format": "uuid", "description": description })
}
