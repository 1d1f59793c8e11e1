//! Answers with strong entity tags, and 304 for whoever has the body already (RFC 9110).

use std::convert::Infallible;

use aws_lc_rs::digest;
use axum::body::Bytes;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tidemark_http::HEADERS;
use tidemark_http::compression::plain_tag;
use tidemark_http::problem::{self, Problem};

use crate::cache::Ready;
use crate::position::After;

/// The header `If-None-Match`: the tags of what the client has.
#[derive(Debug, Clone, Default)]
pub(crate) struct IfNoneMatch(Option<HeaderValue>);

impl<S: Send + Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.headers.get(header::IF_NONE_MATCH).cloned()))
    }
}

/// Who may keep an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Anybody, if they ask whether it still holds.
    Publicly,
    /// Only who asked, likewise.
    Privately,
}

/// The answer of a ready body.
pub(crate) fn ready(
    asked: &IfNoneMatch,
    ready: &Ready,
    kept: Kept,
    after: After,
) -> Result<Response, Problem> {
    let mut response =
        whole(ready.parked, after, || Ok(bytes(asked, ready.body.clone(), ready.etag.clone(), kept)))?;
    if let Some(link) = &ready.link {
        response.headers_mut().insert(header::LINK, link.clone());
    }
    Ok(response)
}

/// The answer of only some fields of a ready body.
pub(crate) fn some_of(
    asked: &IfNoneMatch,
    ready: &Ready,
    fields: &str,
    kept: Kept,
    after: After,
) -> Result<Response, Problem> {
    whole(ready.parked, after, || {
        let body = only_fields(&ready.body, fields)?;
        let etag = etag_of(&body);
        Ok(bytes(asked, body.into(), etag, kept))
    })
}

/// An answer about a key of which events may be parked: who reads it is told so, and who insists on all that was
/// written gets none.
pub(crate) fn whole(
    parked: bool,
    after: After,
    answer: impl FnOnce() -> Result<Response, Problem>,
) -> Result<Response, Problem> {
    if parked && after.0.is_some() {
        let detail = "events of this are parked: the view does not hold all that was written";
        return Err(Problem::new(&problem::VIEW_BEHIND, detail).with_retry_after(30));
    }
    let mut response = answer()?;
    if parked {
        response.headers_mut().insert("tidemark-parked", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The answer of any JSON body with its entity tag.
pub(crate) fn bytes(asked: &IfNoneMatch, body: Bytes, etag: HeaderValue, kept: Kept) -> Response {
    let (mut response, etag) = match matching(asked, &etag) {
        Some(had) => (StatusCode::NOT_MODIFIED.into_response(), had),
        None => {
            let mut response = Response::new(axum::body::Body::from(body));
            *response.headers_mut() = HeaderMap::with_capacity(HEADERS);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            (response, etag)
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag);
    match kept {
        Kept::Publicly => {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, no-cache"));
        }
        Kept::Privately => {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
            headers.insert(header::VARY, HeaderValue::from_static("authorization"));
        }
    }
    response
}

/// The tag of what the client has, if that is the body of `etag` in any encoding.
fn matching(asked: &IfNoneMatch, etag: &HeaderValue) -> Option<HeaderValue> {
    let asked = asked.0.as_ref()?.to_str().ok()?;
    let tag = etag.to_str().ok()?.trim_matches('"');
    asked.split(',').map(str::trim).find_map(|one| {
        if one == "*" {
            return Some(etag.clone());
        }
        let strong = one.trim_start_matches("W/");
        let opaque = strong.strip_prefix('"')?.strip_suffix('"')?;
        if plain_tag(opaque) == tag { HeaderValue::from_str(strong).ok() } else { None }
    })
}

/// A strong entity tag of the bytes themselves.
pub(crate) fn etag_of(body: &[u8]) -> HeaderValue {
    HeaderValue::try_from(format!("\"{}\"", digest_of(body))).expect("digits in quotes are a header value")
}

/// A strong entity tag of versions, for commands that depend on them, and of the bytes: a version that the log has lost
/// is given again, to another change.
pub(crate) fn etag_of_versions(versions: std::fmt::Arguments<'_>, body: &[u8]) -> HeaderValue {
    let text = format!("\"{versions}-{}\"", digest_of(body));
    HeaderValue::try_from(text).expect("digits in quotes are a header value")
}

/// 128 bits of SHA-256 in hexadecimal digits, which look like no encoding's name.
fn digest_of(body: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, body);
    let first = digest.as_ref().first_chunk().copied().unwrap_or_default();
    format!("{:032x}", u128::from_be_bytes(first))
}

/// Keeps only some top-level fields of a JSON object, or of each object in its `items`.
pub(crate) fn only_fields(body: &[u8], fields: &str) -> Result<Vec<u8>, Problem> {
    let wanted: Vec<&str> = fields.split(',').map(str::trim).filter(|field| !field.is_empty()).collect();
    let keep = |value: &mut serde_json::Value| {
        if let Some(object) = value.as_object_mut() {
            object.retain(|name, _| wanted.contains(&name.as_str()));
        }
    };
    let broken = |error: serde_json::Error| {
        tracing::error!(%error, "a stored body is not JSON");
        Problem::new(&problem::INTERNAL, "the stored body cannot be read")
    };
    let mut value: serde_json::Value = serde_json::from_slice(body).map_err(broken)?;
    match value.get_mut("items").and_then(serde_json::Value::as_array_mut) {
        Some(items) => items.iter_mut().for_each(keep),
        None => keep(&mut value),
    }
    serde_json::to_vec(&value).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_the_body_is_told_so() {
        let etag = HeaderValue::from_static("\"3-4\"");
        for (asked, status, tag) in [
            ("\"3-4\"", 304, "\"3-4\""),
            ("W/\"3-4\"", 304, "\"3-4\""),
            ("\"1\", \"3-4\"", 304, "\"3-4\""),
            ("*", 304, "\"3-4\""),
            ("\"3-4-gzip\"", 304, "\"3-4-gzip\""),
            ("\"3\"", 200, "\"3-4\""),
            ("3-4", 200, "\"3-4\""),
            ("\"3-4-", 200, "\"3-4\""),
        ] {
            let has = IfNoneMatch(Some(HeaderValue::from_str(asked).unwrap()));
            let response = bytes(&has, Bytes::from_static(b"{}"), etag.clone(), Kept::Publicly);
            assert_eq!(response.status().as_u16(), status, "{asked}");
            assert_eq!(response.headers()[header::ETAG], tag, "{asked}");
        }
    }

    #[test]
    fn a_version_that_is_given_again_to_other_bytes_has_another_tag() {
        let tag = |body: &[u8]| etag_of_versions(format_args!("{}-{}", 3, 4), body);
        let (first, second) = (tag(br#"{"price":1}"#), tag(br#"{"price":2}"#));
        assert_eq!(first, tag(br#"{"price":1}"#));
        assert_ne!(first, second);
        assert!(first.to_str().unwrap().starts_with("\"3-4-"), "{first:?}");
        let has = IfNoneMatch(Some(first));
        let response = bytes(&has, Bytes::from_static(br#"{"price":2}"#), second, Kept::Publicly);
        assert_eq!(response.status(), StatusCode::OK);
    }

    #[test]
    fn fields_can_be_chosen() {
        let body = br#"{"items":[{"id":1,"name":"a","sku":"s"}],"next_cursor":null}"#;
        let text = String::from_utf8(only_fields(body, "id, sku,unknown").unwrap()).unwrap();
        assert_eq!(text, r#"{"items":[{"id":1,"sku":"s"}],"next_cursor":null}"#);
    }
}
