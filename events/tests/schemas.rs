//! What has been released stays readable: every version of every event has a schema and a fixture, for ever.

use std::fs;
use std::path::Path;

use serde_json::json;
use tidemark_events::Fact;
use tidemark_events::fact::{DecodeError, EVENT_TYPES};
use tidemark_events::schema::{Upcaster, incompatibilities, schema_files, upcast};

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// With TIDEMARK_WRITE_SCHEMAS=1 (`make schemas`) writes what is compatible with what was released, and refuses the
/// rest: that needs a new schema version and an upcaster.
#[test]
fn the_schemas_are_those_committed_and_no_reader_breaks() {
    let write = std::env::var("TIDEMARK_WRITE_SCHEMAS").is_ok();
    for (name, current) in schema_files() {
        let path = folder("schemas").join(&name);
        if let Ok(released) = fs::read_to_string(&path) {
            let broken = incompatibilities(
                &serde_json::from_str(&released).unwrap(),
                &serde_json::from_str(&current).unwrap(),
            );
            assert!(
                broken.is_empty(),
                "{name} would break readers: {broken:?}. Give it a new schema version."
            );
            if released == current {
                continue;
            }
        }
        assert!(write, "{name} has changed compatibly: run `make schemas` and commit the result");
        fs::write(&path, current).unwrap();
    }
}

#[test]
fn every_version_ever_released_decodes() {
    let mut seen = Vec::new();
    for entry in fs::read_dir(folder("fixtures")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (event_type, version) = name.rsplit_once(".v").unwrap();
        let payload = fs::read_to_string(&path).unwrap();
        let fact = Fact::decode(event_type, version.parse().unwrap(), &payload).unwrap();
        assert_eq!(fact.event_type().name, event_type);
        seen.push(name);
    }
    for event in EVENT_TYPES {
        for version in 1..=event.version {
            let name = format!("{}.v{version}", event.name);
            assert!(seen.contains(&name), "there is no fixture {name}.json");
        }
    }
}

#[test]
fn what_is_written_today_reads_back_the_same() {
    for entry in fs::read_dir(folder("fixtures")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (event_type, version) = name.rsplit_once(".v").unwrap();
        let fact =
            Fact::decode(event_type, version.parse().unwrap(), &fs::read_to_string(&path).unwrap()).unwrap();
        let mut payload = Vec::new();
        fact.write_payload(&mut payload).unwrap();
        let kind = fact.event_type();
        let again = Fact::decode(kind.name, kind.version, std::str::from_utf8(&payload).unwrap()).unwrap();
        assert_eq!(again, fact);
    }
}

#[test]
fn unknown_and_newer_events_are_told_apart_from_broken_ones() {
    let unknown = Fact::decode("ProductTeleported", 1, "{}").unwrap_err();
    assert!(unknown.is_unknown(), "{unknown}");
    let newer = Fact::decode("ProductPublished", 99, "{}").unwrap_err();
    assert!(newer.is_unknown(), "{newer}");
    let broken = Fact::decode("StockReceived", 1, r#"{"quantity":"many"}"#).unwrap_err();
    assert!(!broken.is_unknown() && matches!(broken, DecodeError::Payload { .. }), "{broken}");
}

#[test]
fn upcasters_chain_and_gaps_are_errors() {
    let chain = [
        Upcaster { event_type: "Renamed", from: 1, up: |old| json!({ "name": old["title"] }) },
        Upcaster {
            event_type: "Renamed",
            from: 2,
            up: |mut old| {
                old["language"] = json!("en");
                old
            },
        },
    ];
    let led = upcast(&chain, "Renamed", 1, 3, json!({ "title": "Lamp" })).unwrap();
    assert_eq!(led, json!({ "name": "Lamp", "language": "en" }));
    assert_eq!(upcast(&chain, "Renamed", 3, 3, json!(1)).unwrap(), json!(1));
    assert!(matches!(
        upcast(&chain, "Renamed", 1, 4, json!({})),
        Err(DecodeError::NoUpcaster { from: 3, .. })
    ));
    assert!(matches!(upcast(&chain, "Other", 1, 2, json!({})), Err(DecodeError::NoUpcaster { from: 1, .. })));
    assert!(matches!(upcast(&chain, "Renamed", 4, 3, json!({})), Err(DecodeError::NewerVersion { .. })));
}

#[test]
fn changes_that_break_somebody_are_found() {
    let released = json!({ "type": "object", "required": ["a"],
        "properties": { "a": { "type": "string", "description": "x" }, "b": { "type": "integer" } } });
    let with = |change: fn(&mut serde_json::Value)| {
        let mut current = released.clone();
        change(&mut current);
        incompatibilities(&released, &current)
    };
    assert_eq!(with(|s| s["properties"]["c"] = json!({ "type": "string" })), []);
    assert_eq!(with(|s| s["properties"]["a"]["description"] = json!("y")), []);
    assert_ne!(with(|s| s["required"] = json!(["a", "b"])), [], "old payloads lack it");
    assert_ne!(with(|s| s["required"] = json!([])), [], "readers rely on it");
    assert_ne!(with(|s| s["properties"]["b"]["type"] = json!("string")), []);
    assert_ne!(with(|s| s["properties"] = json!({ "a": { "type": "string" } })), []);
    assert_ne!(with(|s| s["properties"]["a"]["maxLength"] = json!(3)), []);
}

proptest::proptest! {
    /// Whatever stands in a record, reading it does no harm: it is an event or an error.
    #[test]
    fn any_payload_is_an_event_or_an_error(payload in ".{0,200}", kind in 0_usize..64, version in -3_i16..5) {
        let name = EVENT_TYPES[kind % EVENT_TYPES.len()].name;
        let decoded = Fact::decode(name, version, &payload);
        proptest::prop_assert!(decoded.is_err() || version == 1);
    }
}
