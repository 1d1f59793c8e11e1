//! Requests, parsed at the rim: what gets past here has the right form.

use std::net::IpAddr;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use uuid::Uuid;

use crate::client::Client;
use crate::pace::Interrupted;
use crate::problem::{self, Problem};
use crate::strict::Strict;

/// The largest body, in bytes.
pub const MAX_BODY: usize = 1024 * 1024;

/// A JSON body. Anything but well-formed JSON of exactly this form is a problem that says where.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

/// A JSON body that may be left out.
#[derive(Debug, Clone, Copy)]
pub struct OptionalJson<T>(pub Option<T>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        check_type(&parts.headers)?;
        parse(&read(&parts.headers, body).await?).map(Self)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body).await?;
        if bytes.is_empty() {
            return Ok(Self(None));
        }
        check_type(&parts.headers)?;
        parse(&bytes).map(Some).map(Self)
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |detail: &str| Err(Problem::new(&problem::UNSUPPORTED_MEDIA_TYPE, detail));
    if headers.contains_key(header::CONTENT_ENCODING) {
        return refused("a body with Content-Encoding is not taken");
    }
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return refused("the header Content-Type: application/json is missing");
    };
    let mut parts = value.split(';').map(str::trim);
    let is_json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    let is_utf8 = parts.all(|parameter| match parameter.split_once('=') {
        Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
            value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    });
    if is_json && is_utf8 { Ok(()) } else { refused("the body must be application/json in UTF-8") }
}

/// How much of a body that is too large is still taken, and thrown away: a client that is refused while it sends
/// would see a broken connection and never the answer.
const MAX_DRAINED: usize = 8 * MAX_BODY;

async fn drain(mut body: axum::body::Body) {
    let mut drained = 0;
    while drained < MAX_DRAINED
        && let Some(Ok(frame)) = body.frame().await
    {
        drained += frame.data_ref().map_or(0, Bytes::len);
    }
}

async fn read(headers: &HeaderMap, body: axum::body::Body) -> Result<Bytes, Problem> {
    let too_large =
        || Problem::new(&problem::BODY_TOO_LARGE, format!("the body has more than {MAX_BODY} bytes"));
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_BODY as u64) {
        drain(body).await;
        return Err(too_large());
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(match Interrupted::find(error.as_ref()) {
            Some(slow @ Interrupted::TooSlow) => Problem::new(&problem::TOO_SLOW, slow.to_string()),
            Some(many @ Interrupted::TooMany) => {
                Problem::new(&problem::OVERLOADED, many.to_string()).with_retry_after(1)
            }
            None => Problem::new(&problem::MALFORMED_REQUEST, "the body broke off"),
        }),
    }
}

/// Parses once on the usual way, and a second time, for the place, only when that has failed.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read = T::deserialize(Strict(&mut deserializer));
    let error = match read.and_then(|value| deserializer.end().map(|()| value)) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    if matches!(error.classify(), Category::Syntax | Category::Eof | Category::Io) {
        return Err(Problem::new(&problem::MALFORMED_JSON, error.to_string()));
    }
    // A value may be wrong before the text is; what is no JSON at all is said to be none.
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        return Err(Problem::new(&problem::MALFORMED_JSON, error.to_string()));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let pointer = match serde_path_to_error::deserialize::<_, T>(Strict(&mut deserializer)) {
        Ok(_) => String::new(),
        Err(error) => pointer(error.path()),
    };
    let text = error.to_string();
    // The place is the pointer's to say; line and column of a parsed value only confuse.
    let detail = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message).to_owned();
    let kind =
        if detail.starts_with("unknown field") { &problem::UNKNOWN_FIELD } else { &problem::INVALID_VALUE };
    Err(Problem::new(kind, detail.clone()).with_error(pointer, detail))
}

/// A path as a JSON pointer (RFC 6901).
fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    use std::fmt::Write;

    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => write!(pointer, "/{index}").unwrap_or_default(),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                pointer.push('/');
                pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
            }
            Segment::Unknown => {}
        }
    }
    pointer
}

/// The header `Idempotency-Key` (IETF draft): 1 to 255 visible ASCII characters, quoted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(pub Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let refused = || {
            let detail = "an Idempotency-Key is 1 to 255 visible ASCII characters, in one header";
            Problem::new(&problem::INVALID_IDEMPOTENCY_KEY, detail)
        };
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        if values.next().is_some() {
            return Err(refused());
        }
        let text = value.to_str().map_err(|_| refused())?.trim();
        let key = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        if key.is_empty()
            || key.len() > 255
            || !key.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
        {
            return Err(refused());
        }
        Ok(Self(Some(key.to_owned())))
    }
}

/// The header `If-Match` with one version; `*` and none are the same: any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IfMatch(pub Option<i64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else { return Ok(Self(None)) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self(None));
        }
        // A product's entity tag is `"<version>-<version of its stock>-<digest>"`; commands go by the first.
        let tag = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let version = tag.and_then(|tag| tag.split('-').next()?.parse().ok());
        match version {
            Some(version) => Ok(Self(Some(version))),
            None => Err(Problem::new(
                &problem::MALFORMED_REQUEST,
                "If-Match is one version in quotes, like \"3\"",
            )),
        }
    }
}

/// The id in the path. What is no UUID names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathId(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<Uuid>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(Problem::new(&problem::NOT_FOUND, "nothing has this id")),
        }
    }
}

/// The flow that a request belongs to: its trace (W3C Trace Context), if it has one, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The trace's id, or a new one (UUIDv7).
    pub correlation_id: Uuid,
    /// The header, if it is well-formed.
    pub traceparent: Option<String>,
    /// The client's address, behind trusted proxies; none where the request did not come over the network.
    pub address: Option<IpAddr>,
}

impl<S: Send + Sync> FromRequestParts<S> for Flow {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let header = parts.headers.get("traceparent").and_then(|value| value.to_str().ok());
        let (correlation_id, traceparent) = match header.and_then(|text| Some((text, trace_id(text)?))) {
            Some((text, trace)) => (trace, Some(text.to_owned())),
            None => (Uuid::now_v7(), None),
        };
        let address = parts.extensions.get::<Client>().map(Client::address);
        Ok(Self { correlation_id, traceparent, address })
    }
}

/// The trace id of a `traceparent` of version 00, which is all there is.
fn trace_id(text: &str) -> Option<Uuid> {
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let valid =
        version == "00" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && parts.next().is_none();
    let trace = Uuid::try_parse(trace).ok().filter(|_| valid)?;
    (!trace.is_nil() && parent != "0000000000000000").then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request as HttpRequest;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Order {
        lines: Vec<Line>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Line {
        quantity: i64,
    }

    async fn status(content_type: Option<&str>, body: impl Into<Vec<u8>>) -> (u16, String) {
        let mut request = HttpRequest::builder().method("POST").uri("/");
        if let Some(value) = content_type {
            request = request.header(header::CONTENT_TYPE, value);
        }
        let request = request.body(axum::body::Body::from(body.into())).unwrap();
        match Json::<Order>::from_request(request, &()).await {
            Ok(_) => (200, String::new()),
            Err(problem) => {
                let value = serde_json::to_value(&problem).unwrap();
                let pointer = value["errors"][0]["pointer"].as_str().unwrap_or_default();
                (problem.status().as_u16(), format!("{} {pointer}", value["type"].as_str().unwrap()))
            }
        }
    }

    #[tokio::test]
    async fn bodies_are_taken_as_they_should_be_and_not_otherwise() {
        const JSON: Option<&str> = Some("application/json");
        let good = r#"{"lines":[{"quantity":1}]}"#;
        assert_eq!(status(JSON, good).await.0, 200);
        assert_eq!(status(Some("application/json; charset=UTF-8"), good).await.0, 200);
        for other in
            [None, Some("text/plain"), Some("application/xml"), Some("application/json; charset=latin1")]
        {
            assert_eq!(status(other, good).await.0, 415, "{other:?}");
        }
        for malformed in ["", "{", "nul", "[1,]", "\u{feff}{}", "{} {}"] {
            assert_eq!(
                status(JSON, malformed).await,
                (400, "/problems/malformed-json ".to_owned()),
                "{malformed}"
            );
        }
        assert_eq!(status(JSON, b"{\"lines\":\"\xff\"}".to_vec()).await.0, 400);
        assert_eq!(status(JSON, "[".repeat(100_000)).await.0, 400);
        assert_eq!(status(JSON, format!("{}{}", "{\"lines\":".repeat(200), "}".repeat(200))).await.0, 400);
        assert_eq!(status(JSON, vec![b' '; MAX_BODY + 1]).await.0, 413);
        for (invalid, answer) in [
            (
                r#"{"lines":[{"quantity":1},{"quantity":"2"}]}"#,
                (422, "/problems/invalid-value /lines/1/quantity"),
            ),
            (
                r#"{"lines":[{"quantity":9223372036854775808}]}"#,
                (422, "/problems/invalid-value /lines/0/quantity"),
            ),
            (r#"{"lines":[{"quantity":1.0}]}"#, (422, "/problems/invalid-value /lines/0/quantity")),
            (r#"{"lines":[{}]}"#, (422, "/problems/invalid-value /lines/0")),
            (r#"{"lines":null}"#, (422, "/problems/invalid-value /lines")),
            (r#"[]"#, (422, "/problems/invalid-value ")),
            (r#"[[{"quantity":1}]]"#, (422, "/problems/invalid-value ")),
            (r#"{"lines":[[1]]}"#, (422, "/problems/invalid-value /lines/0")),
            (r#"{"lines":[],"lines":[]}"#, (422, "/problems/invalid-value ")),
            (r#"{"lines":[],"price":1}"#, (400, "/problems/unknown-field /price")),
        ] {
            let (code, text) = status(JSON, invalid).await;
            assert_eq!((code, text.as_str()), answer, "{invalid}");
        }
    }

    /// Texts that are JSON, or nearly.
    fn texts() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
        use proptest::prelude::*;
        let good = || Just(br#"{"lines":[{"quantity":1},{"quantity":2}]}"#.to_vec());
        let with_a_wrong_byte =
            (good(), any::<proptest::sample::Index>(), any::<u8>()).prop_map(|(mut text, at, byte)| {
                let at = at.index(text.len());
                text[at] = byte;
                text
            });
        let members = r#"(lines|quantity|a~b|c/d|\PC{0,3})"#;
        let values = r#"(1|-1|1\.5|1e9|null|true|"\PC{0,5}"|\[\]|\{\}|\[\{"quantity":[a-z0-9"]{0,3}\}\])"#;
        let object = proptest::collection::vec((members, values), 0..4).prop_map(|members| {
            let members: Vec<String> =
                members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            format!("{{{}}}", members.join(",")).into_bytes()
        });
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            r#"[\[\]{}":,\\a-z0-9 -]{0,60}"#.prop_map(String::into_bytes),
            with_a_wrong_byte,
            object,
        ]
    }

    proptest::proptest! {
        /// Whatever comes is a value or a problem of the right kind, and its pointer leads to a place in what came.
        #[test]
        fn whatever_comes_is_read_or_becomes_a_problem(text in texts()) {
            let read = parse::<Order>(&text);
            let value = serde_json::from_slice::<serde_json::Value>(&text);
            let Err(problem) = read else {
                proptest::prop_assert!(value.is_ok());
                return Ok(());
            };
            let told = serde_json::to_vec(&problem).unwrap();
            let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
            let kind = told["type"].as_str().unwrap().strip_prefix("/problems/").unwrap();
            let known = problem::ALL.iter().find(|known| known.slug == kind).unwrap();
            proptest::prop_assert_eq!(problem.status().as_u16(), known.status);
            proptest::prop_assert_eq!(told["title"].as_str(), Some(known.title));
            proptest::prop_assert!(!told["detail"].as_str().unwrap().is_empty());
            let Ok(value) = value else {
                proptest::prop_assert_eq!(kind, "malformed-json");
                return Ok(());
            };
            proptest::prop_assert!(["unknown-field", "invalid-value"].contains(&kind), "{}", told);
            let pointer = told["errors"][0]["pointer"].as_str().unwrap();
            proptest::prop_assert!(value.pointer(pointer).is_some(), "{} {}", pointer, value);
        }
    }

    #[test]
    fn traces_are_taken_only_when_well_formed() {
        assert!(trace_id("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").is_some());
        for bad in [
            "",
            "00",
            "00-0-0-0",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert!(trace_id(bad).is_none(), "{bad}");
        }
    }
}
