//! Compression for who asks for it, with entity tags that tell the encodings of a body apart (RFC 9110, 8.8.3.3).
//!
//! The tag of an encoded body is the plain one's with the encoding behind it: `"3-4"` becomes `"3-4-gzip"`. It stays
//! a strong tag, so that `If-Match` takes it.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use tower::{Layer, ServiceExt};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};

/// Bodies smaller than this are not compressed: they fit one packet.
const COMPRESS_ABOVE: u64 = 1_024;

/// What encodings are named in entity tags.
const ENCODINGS: [&str; 3] = ["br", "gzip", "zstd"];

fn worth_it() -> impl Predicate {
    SizeAbove::new(COMPRESS_ABOVE)
        .and(NotForContentType::IMAGES)
        .and(NotForContentType::SSE)
        .and(NotForContentType::const_new("application/problem+json"))
}

/// Answers a request, encoded as it accepts. A request that says nothing about it does not pass the layer at all.
pub(crate) async fn answer(request: Request, next: Next) -> Response {
    if !request.headers().contains_key(header::ACCEPT_ENCODING) {
        let mut response = next.run(request).await;
        if worth_it().should_compress(&response) {
            response.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
        }
        return response;
    }
    // Where no encoding is accepted, not even none, the layer makes 406 of the status. But what a command has done is
    // done: who asks for the impossible is answered in plain.
    let answered = next.map_response(|mut response: Response| {
        let status = response.status();
        response.extensions_mut().insert(status);
        response
    });
    let Ok(response) =
        CompressionLayer::new().compress_when(worth_it()).layer(answered).oneshot(request).await;
    let mut response = response.map(Body::new);
    if let Some(status) = response.extensions_mut().remove::<StatusCode>() {
        *response.status_mut() = status;
    }
    if let Some(tag) = encoded_tag(&response) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn encoded_tag(response: &Response) -> Option<HeaderValue> {
    let encoding = response.headers().get(header::CONTENT_ENCODING)?.to_str().ok()?;
    let tag = response.headers().get(header::ETAG)?.to_str().ok()?.strip_suffix('"')?;
    HeaderValue::try_from(format!("{tag}-{encoding}\"")).ok()
}

/// The tag of the plain body, for one of the plain or an encoded one.
#[must_use]
pub fn plain_tag(tag: &str) -> &str {
    let without = |encoding: &&str| tag.strip_suffix(*encoding)?.strip_suffix('-');
    ENCODINGS.iter().find_map(without).unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_lose_their_encoding() {
        for (tag, plain) in [
            ("3-4-gzip", "3-4"),
            ("3-br", "3"),
            ("x-zstd", "x"),
            ("3-4", "3-4"),
            ("gzip", "gzip"),
            ("", ""),
            ("3-4-deflate", "3-4-deflate"),
        ] {
            assert_eq!(plain_tag(tag), plain, "{tag}");
        }
    }
}
