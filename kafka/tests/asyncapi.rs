//! The topics' document says what is written, and what was promised once stays so.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::DateTime;
use rdkafka::message::{Headers, OwnedHeaders};
use serde_json::Value;
use tidemark_events::fact::EVENT_TYPES;
use tidemark_events::log::Head;
use tidemark_events::schema::incompatibilities;
use tidemark_events::{Metadata, Origin, RecordedEvent};
use tidemark_kafka::{asyncapi, record};
use uuid::Uuid;

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("asyncapi.json")
}

/// With TIDEMARK_WRITE_SCHEMAS=1 (`make schemas`) writes a change that breaks no reader, and refuses the rest.
#[test]
fn the_document_is_the_one_committed_and_no_reader_breaks() {
    let current = asyncapi::text();
    if let Ok(text) = fs::read_to_string(path()) {
        let (released, document): (Value, Value) =
            (serde_json::from_str(&text).unwrap(), serde_json::from_str(&current).unwrap());
        assert_eq!(broken(&released, &document), [] as [String; 0], "readers of the topic would break");
        if text == current {
            return;
        }
    }
    let write = std::env::var("TIDEMARK_WRITE_SCHEMAS").is_ok();
    assert!(write, "kafka/asyncapi.json has changed compatibly: run `make schemas` and commit the result");
    fs::write(path(), current).unwrap();
}

/// What a reader of the released document could no longer rely on.
fn broken(released: &Value, current: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (name, channel) in released["channels"].as_object().unwrap() {
        let now = &current["channels"][name];
        if (&channel["address"], &channel["bindings"]) != (&now["address"], &now["bindings"]) {
            found.push(format!("channel {name} is another"));
        }
        for message in channel["messages"].as_object().unwrap().keys() {
            if now["messages"].get(message).is_none() {
                found.push(format!("{name} has no {message}"));
            }
        }
    }
    for (name, message) in released["components"]["messages"].as_object().unwrap() {
        let now = &current["components"]["messages"][name];
        for part in ["name", "contentType", "headers", "payload"] {
            if message[part] != now[part] {
                found.push(format!("{part} of {name} has changed"));
            }
        }
    }
    for (name, schema) in released["components"]["schemas"].as_object().unwrap() {
        let now = &current["components"]["schemas"][name];
        found.extend(incompatibilities(schema, now).iter().map(|what| format!("{name}{what}")));
    }
    found
}

#[test]
fn changes_that_break_a_reader_are_found() {
    let with = |change: fn(&mut Value)| {
        let (released, mut current) = (asyncapi::document(), asyncapi::document());
        change(&mut current);
        broken(&released, &current).len()
    };
    fn remove(value: &mut Value, name: &str) {
        value.as_object_mut().unwrap().remove(name).unwrap();
    }
    assert_eq!(with(|_| {}), 0);
    assert_eq!(with(|document| document["info"]["title"] = "other".into()), 0);
    assert_ne!(with(|document| document["channels"]["events"]["address"] = "other".into()), 0);
    assert_ne!(with(|document| remove(&mut document["channels"]["events"]["messages"], "Watermark")), 0);
    assert_ne!(
        with(|document| remove(&mut document["components"]["messages"]["OrderPlaced.v1"], "payload")),
        0
    );
    assert_ne!(
        with(|document| remove(
            &mut document["components"]["schemas"]["EventHeaders"]["properties"],
            "ce_id"
        )),
        0
    );
}

/// What is written fits its schema: every header is described, every required one is there.
fn fits(written: &OwnedHeaders, schemas: &[&Value]) {
    let written: BTreeSet<(&str, &str)> = written
        .iter()
        .map(|header| (header.key, std::str::from_utf8(header.value.unwrap()).unwrap()))
        .collect();
    let described =
        |name: &str| schemas.iter().filter_map(|schema| schema["properties"].get(name)).collect::<Vec<_>>();
    for (name, value) in &written {
        let schemas = described(name);
        assert!(!schemas.is_empty(), "{name} is not described");
        for schema in schemas {
            assert!(schema.get("const").is_none_or(|only| only == value), "{name}: {value}");
            let number = schema.get("pattern").is_some_and(|pattern| pattern == "^[0-9]+$");
            assert!(!number || value.bytes().all(|byte| byte.is_ascii_digit()), "{name}: {value}");
            let uuid = schema.get("format").is_some_and(|format| format == "uuid");
            assert!(!uuid || value.parse::<Uuid>().is_ok(), "{name}: {value}");
        }
    }
    for name in schemas.iter().filter_map(|schema| schema["required"].as_array()).flatten() {
        assert!(written.iter().any(|(written, _)| name == written), "{name} is required and not written");
    }
}

#[test]
fn the_headers_are_those_that_are_written() {
    let document = asyncapi::document();
    let schemas = &document["components"]["schemas"];
    for event_type in EVENT_TYPES {
        let mut event = RecordedEvent {
            position: 7,
            stream_id: Uuid::from_u128(1),
            category: event_type.category.into(),
            version: 3,
            event_id: Uuid::from_u128(2),
            event_type: event_type.name.into(),
            schema_version: event_type.version,
            payload: "{}".into(),
            metadata: Metadata {
                correlation_id: Uuid::from_u128(3),
                causation_id: Some(Uuid::from_u128(4)),
                actor: "staff".to_owned(),
                traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
                origin: Some(Origin::V4([192, 0, 2])),
            },
            recorded_at: DateTime::from_timestamp_micros(1_767_225_600_123_456).unwrap(),
            partition_key: Uuid::from_u128(5),
        };
        let name = format!("{}.v{}", event_type.name, event_type.version);
        let message = &document["components"]["messages"][&name];
        let both = [&schemas["EventHeaders"], &message["headers"]];
        let whole = record::headers(1, &event, &mut record::Time::default());
        fits(&whole, &both);
        assert_eq!(whole.count(), both[0]["properties"].as_object().unwrap().len(), "each can be written");
        (event.metadata.causation_id, event.metadata.traceparent) = (None, None);
        event.metadata.origin = None;
        fits(&record::headers(1, &event, &mut record::Time::default()), &both);
        let payload = message["payload"]["$ref"].as_str().unwrap();
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(payload).is_file(), "{payload}");
    }
    let watermark = record::watermark(Head { epoch: 1, position: 9 }, DateTime::UNIX_EPOCH);
    fits(&watermark, &[&schemas["WatermarkHeaders"]]);
}
