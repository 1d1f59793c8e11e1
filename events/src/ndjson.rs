//! An event as one line of JSON, as `tidemark replay` and `GET /v1/events` print it.
//!
//! Written by hand, field by field: everything but the payload is digits, ids and a few checked texts, and the
//! payload is JSON already, so a line costs a few copies and no parsing.

use std::io::Write;

use chrono::{DateTime, Datelike, Timelike, Utc};
use uuid::Uuid;

use crate::RecordedEvent;

/// Appends the event and a line end.
pub fn write_line(event: &RecordedEvent, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"position\":");
    integer(event.position, out);
    out.extend_from_slice(b",\"stream_id\":");
    uuid(event.stream_id, out);
    out.extend_from_slice(b",\"category\":");
    text(&event.category, out);
    out.extend_from_slice(b",\"version\":");
    integer(event.version, out);
    out.extend_from_slice(b",\"event_id\":");
    uuid(event.event_id, out);
    out.extend_from_slice(b",\"event_type\":");
    text(&event.event_type, out);
    out.extend_from_slice(b",\"schema_version\":");
    integer(event.schema_version.into(), out);
    out.extend_from_slice(b",\"payload\":");
    out.extend_from_slice(event.payload.as_bytes());
    out.extend_from_slice(b",\"metadata\":{\"correlation_id\":");
    uuid(event.metadata.correlation_id, out);
    out.extend_from_slice(b",\"causation_id\":");
    match event.metadata.causation_id {
        Some(id) => uuid(id, out),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"actor\":");
    text(&event.metadata.actor, out);
    out.extend_from_slice(b",\"traceparent\":");
    match &event.metadata.traceparent {
        Some(value) => text(value, out),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"origin\":");
    match event.metadata.origin {
        Some(origin) => write!(out, "\"{origin}\"").expect("writing into memory cannot fail"),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b"},\"recorded_at\":");
    time(event.recorded_at, out);
    out.extend_from_slice(b",\"partition_key\":");
    uuid(event.partition_key, out);
    out.extend_from_slice(b"}\n");
}

fn uuid(id: Uuid, out: &mut Vec<u8>) {
    let mut buffer = Uuid::encode_buffer();
    out.push(b'"');
    out.extend_from_slice(id.hyphenated().encode_lower(&mut buffer).as_bytes());
    out.push(b'"');
}

fn integer(value: i64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[start..]);
}

fn text(value: &str, out: &mut Vec<u8>) {
    if value.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(out, value).expect("a text can be written as JSON into memory");
    }
}

/// RFC 3339 in UTC with microseconds.
fn time(at: DateTime<Utc>, out: &mut Vec<u8>) {
    write!(
        out,
        "\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z\"",
        at.year(),
        at.month(),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.timestamp_subsec_micros()
    )
    .expect("writing into memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metadata;

    #[test]
    fn a_line_is_json_with_every_field() {
        let event = RecordedEvent {
            position: 9_007_199_254_740_993,
            stream_id: Uuid::from_u128(1),
            category: "order".into(),
            version: 2,
            event_id: Uuid::from_u128(2),
            event_type: "Odd\"Type\n".to_owned().into(),
            schema_version: 1,
            payload: r#"{"a":1}"#.into(),
            metadata: Metadata {
                correlation_id: Uuid::from_u128(3),
                causation_id: None,
                actor: "staff:x".to_owned(),
                traceparent: None,
                origin: crate::Origin::of("192.0.2.7".parse().unwrap()),
            },
            recorded_at: "2026-02-03T04:05:06.000007Z".parse().unwrap(),
            partition_key: Uuid::from_u128(4),
        };
        let mut line = Vec::new();
        write_line(&event, &mut line);
        assert_eq!(line.last(), Some(&b'\n'));
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["position"], 9_007_199_254_740_993_i64);
        assert_eq!(value["event_type"], "Odd\"Type\n");
        assert_eq!(value["payload"]["a"], 1);
        assert_eq!(value["recorded_at"], "2026-02-03T04:05:06.000007Z");
        assert_eq!(value["metadata"]["causation_id"], serde_json::Value::Null);
        assert_eq!(value["metadata"]["origin"], "192.0.2.0/24");
    }
}
