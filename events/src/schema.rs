//! Versions of events: upcasters for reading old ones, JSON Schemas for everybody else.
//!
//! A payload that changes in a way old readers or old payloads do not bear gets a new schema version and an
//! upcaster from the version before; upcasters chain. What was written once is read for ever: each version ever
//! released has a fixture in `events/fixtures`, and each has its schema in `events/schemas`.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::fact::{DecodeError, EVENT_TYPES, EventType};

/// One step from a schema version to the next.
#[derive(Debug, Clone, Copy)]
pub struct Upcaster {
    /// The event type it is for.
    pub event_type: &'static str,
    /// It turns this version into the next.
    pub from: i16,
    /// The change, JSON to JSON.
    pub up: fn(Value) -> Value,
}

/// Every step there is. All event types are at their first version.
pub const UPCASTERS: &[Upcaster] = &[];

/// Reads a payload of any version up to `current` as today's type.
pub(crate) fn decode_version<E: DeserializeOwned>(
    event_type: &'static str,
    current: i16,
    found: i16,
    payload: &str,
) -> Result<E, DecodeError> {
    let fits = |source| DecodeError::Payload { event_type: event_type.to_owned(), source };
    if found == current {
        return serde_json::from_str(payload).map_err(fits);
    }
    let old = serde_json::from_str(payload).map_err(fits)?;
    let value = upcast(UPCASTERS, event_type, found, current, old)?;
    serde_json::from_value(value).map_err(fits)
}

/// Leads a payload from version `from` to version `to` through the chain.
///
/// # Errors
/// [`DecodeError::NewerVersion`] when `from` is beyond `to`, [`DecodeError::NoUpcaster`] when a step is missing.
pub fn upcast(
    chain: &[Upcaster],
    event_type: &str,
    from: i16,
    to: i16,
    mut payload: Value,
) -> Result<Value, DecodeError> {
    if from > to {
        return Err(DecodeError::NewerVersion { event_type: event_type.to_owned(), found: from, known: to });
    }
    for version in from..to {
        let step = chain
            .iter()
            .find(|step| step.event_type == event_type && step.from == version)
            .ok_or_else(|| DecodeError::NoUpcaster { event_type: event_type.to_owned(), from: version })?;
        payload = (step.up)(payload);
    }
    Ok(payload)
}

/// A change of a schema under the same version that a reader or a stored payload would not survive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {what}")]
pub struct Incompatible {
    /// Where, as a JSON pointer into the schema.
    pub at: String,
    /// What changed.
    pub what: String,
}

/// Compares the schema that was released with the one the code generates now, under the same version.
///
/// Allowed: another description, a new property that is not required. Everything else breaks either old payloads
/// (a new required property, a narrower type) or readers that rely on what was promised (a property gone or no
/// longer required, a wider type).
#[must_use]
pub fn incompatibilities(released: &Value, current: &Value) -> Vec<Incompatible> {
    let mut found = Vec::new();
    compare(released, current, &mut String::new(), &mut found);
    found
}

fn compare(released: &Value, current: &Value, at: &mut String, found: &mut Vec<Incompatible>) {
    let (Value::Object(old), Value::Object(new)) = (released, current) else {
        if released != current {
            found.push(Incompatible { at: at.clone(), what: format!("{released} became {current}") });
        }
        return;
    };
    let names_things = at.ends_with("/properties") || at.ends_with("/$defs");
    for (key, old_value) in old {
        if !names_things && matches!(key.as_str(), "description" | "title" | "$schema" | "default") {
            continue;
        }
        let depth = at.len();
        at.push('/');
        at.push_str(key);
        match new.get(key) {
            None => found.push(Incompatible { at: at.clone(), what: "is gone".to_owned() }),
            Some(new_value) if key == "required" && !names_things => {
                if sorted(old_value) != sorted(new_value) {
                    found.push(Incompatible {
                        at: at.clone(),
                        what: format!("{old_value} became {new_value}"),
                    });
                }
            }
            Some(new_value) => compare(old_value, new_value, at, found),
        }
        at.truncate(depth);
    }
    for key in new.keys().filter(|key| !old.contains_key(*key)) {
        let harmless = names_things || matches!(key.as_str(), "description" | "title" | "default" | "$defs");
        if !harmless {
            found.push(Incompatible {
                at: format!("{at}/{key}"),
                what: "is new and narrows what is valid".to_owned(),
            });
        }
    }
}

fn sorted(list: &Value) -> Vec<String> {
    let mut names: Vec<String> =
        list.as_array().into_iter().flatten().map(std::string::ToString::to_string).collect();
    names.sort_unstable();
    names
}

/// The JSON Schema of an event type as it is committed, with a line end.
///
/// # Panics
/// Never: a generated schema is always JSON.
#[must_use]
pub fn schema_text(event_type: &EventType) -> String {
    let schema = (event_type.schema)();
    let mut text = serde_json::to_string_pretty(schema.as_value()).expect("a schema is JSON");
    text.push('\n');
    text
}

/// The file names and texts of all schemas, as they stand in `events/schemas`.
pub fn schema_files() -> impl Iterator<Item = (String, String)> {
    EVENT_TYPES.iter().map(|event| (format!("{}.v{}.json", event.name, event.version), schema_text(event)))
}
