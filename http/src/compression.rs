//! Compression for who asks for it, with entity tags that tell the encodings of a body apart (RFC 9110, 8.8.3.3).
//!
//! The tag of an encoded body is the plain one's with the encoding behind it: `"3-4"` becomes `"3-4-gzip"`. It stays
//! a strong tag, so that `If-Match` takes it.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use tower::{Layer, Service, ServiceExt};
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

/// Whether a request says anything about encodings. If not, it need not pass [`encoded`].
pub(crate) fn is_asked_for(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ACCEPT_ENCODING)
}

/// An answer to who said nothing about encodings.
pub(crate) fn plain(mut response: Response) -> Response {
    if worth_it().should_compress(&response) {
        response.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    response
}

/// Has a request answered, encoded as it accepts.
pub(crate) async fn encoded<S>(handler: S, request: Request) -> Response
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    // Where no encoding is accepted, not even none, the layer makes 406 of the status. But what a command has done is
    // done: who asks for the impossible is answered in plain.
    let answered = handler.map_response(|mut response: Response| {
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
