//! Problems: every error a client can get, as RFC 9457 `application/problem+json`.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::limits::Standing;

/// A kind of problem: what `type`, `title` and `status` say, and a page about it.
#[derive(Debug, PartialEq, Eq)]
pub struct ProblemKind {
    /// The last part of its URI, `/problems/<slug>`.
    pub slug: &'static str,
    /// What it is, the same for every occurrence.
    pub title: &'static str,
    /// HTTP status.
    pub status: u16,
    /// What it means and what to do.
    pub about: &'static str,
}

macro_rules! problems {
    ($( $name:ident = $status:literal $slug:literal $title:literal $about:literal; )+) => {
        $(
            #[doc = $about]
            pub static $name: ProblemKind =
                ProblemKind { slug: $slug, title: $title, status: $status, about: $about };
        )+
        /// All of them.
        pub static ALL: &[&ProblemKind] = &[$( &$name, )+];
    };
}

problems! {
    MALFORMED_JSON = 400 "malformed-json" "The body is not JSON"
        "The body could not be read as JSON (RFC 8259), or is nested deeper than 128 levels. The detail says where.";
    MALFORMED_REQUEST = 400 "malformed-request" "The request cannot be read"
        "A header or the body's transfer is malformed. Nothing was done.";
    UNKNOWN_FIELD = 400 "unknown-field" "A field is not known"
        "The body has a field that this request does not have. Unknown fields are refused, so that a typing error is not a silent change of meaning.";
    IDEMPOTENCY_KEY_REQUIRED = 400 "idempotency-key-required" "An Idempotency-Key is required"
        "The request moves money or stock: send the header Idempotency-Key, new for each intent and the same for its retries.";
    INVALID_IDEMPOTENCY_KEY = 400 "invalid-idempotency-key" "The Idempotency-Key is not valid"
        "A key is 1 to 255 visible ASCII characters, in one header.";
    INVALID_CURSOR = 400 "invalid-cursor" "The cursor is not valid"
        "A cursor is what next_cursor of the page before said, for the same query. Begin again without one.";
    INVALID_PARAMETER = 400 "invalid-parameter" "A query parameter is not valid"
        "A parameter is not known, or its value cannot be read. The errors name it.";
    UNAUTHENTICATED = 401 "unauthenticated" "No valid access token"
        "Send Authorization: Bearer with a token that is signed by this shop and has not expired.";
    LOGIN_REFUSED = 401 "login-refused" "The log-in is refused"
        "The e-mail address or the password is wrong, or the account cannot be used. It is not said which.";
    SECOND_FACTOR_REQUIRED = 401 "second-factor-required" "A second factor is required"
        "The password is right. Send the same log-in again with one_time_code, from the authenticator, or recovery_code.";
    REFRESH_REFUSED = 401 "refresh-refused" "The refresh token is not valid"
        "It has expired, was used before, or its session has ended. Log in again.";
    FORBIDDEN = 403 "forbidden" "The role does not allow it"
        "The token is valid, its role may not do this.";
    EMAIL_UNVERIFIED = 403 "email-unverified" "The e-mail address is not verified"
        "Use the token of the mail that was sent when you registered, or ask for another one with POST /v1/accounts/email-verifications/requests.";
    NOT_FOUND = 404 "not-found" "There is no such thing"
        "Nothing is known under this path or id, or it is somebody else's.";
    METHOD_NOT_ALLOWED = 405 "method-not-allowed" "The method is not allowed here"
        "The header Allow lists the methods of this path.";
    OUT_OF_STOCK = 409 "out-of-stock" "Not enough stock"
        "Fewer units are available than a line wants. Nothing of the order was reserved; the errors name the line.";
    STATE_CONFLICT = 409 "state-conflict" "The state forbids it"
        "The product, order or account is in a state in which this cannot be done. The detail says which.";
    SKU_TAKEN = 409 "sku-taken" "The SKU belongs to another product"
        "A SKU names one product. It is free again when that product is retired.";
    NOT_FOR_SALE = 409 "not-for-sale" "A product is not for sale"
        "The product of a line is a draft or retired. The errors name the line.";
    POSITION_UNKNOWN = 409 "position-unknown" "The position is not part of this log's history"
        "Tidemark-After names an epoch that this log does not have, or a position that was lost when an older state was restored. Read without it, and check what was written.";
    LINK_VOID = 410 "link-void" "The link is void"
        "The token of a mail was used, has expired, or a newer mail was sent. Ask for another one.";
    VERSION_MISMATCH = 412 "version-mismatch" "Somebody changed it in between"
        "If-Match names another version than the current one. Read it again, decide again.";
    BODY_TOO_LARGE = 413 "body-too-large" "The body is too large"
        "A body may have 1 MiB (1,048,576 bytes).";
    UNSUPPORTED_MEDIA_TYPE = 415 "unsupported-media-type" "The body is not declared as JSON"
        "Send Content-Type: application/json, in UTF-8 and without Content-Encoding.";
    INVALID_VALUE = 422 "invalid-value" "A value is not valid"
        "A value has the wrong type or is out of its bounds. The errors name it with a JSON pointer (RFC 6901).";
    IDEMPOTENCY_KEY_REUSED = 422 "idempotency-key-reused" "The Idempotency-Key was used for another request"
        "The key has been used for a request with another body. Each intent needs a key of its own.";
    AMOUNT_OVERFLOW = 422 "amount-overflow" "The amount is too large"
        "A line's amount or the order's total is beyond 9,007,199,254,740,991 minor units.";
    UNKNOWN_PRODUCT = 422 "unknown-product" "A product does not exist"
        "The product of a line does not exist. The errors name the line.";
    MIXED_CURRENCIES = 422 "mixed-currencies" "The products have different currencies"
        "All products of one order are priced in one currency. The errors name the first line that is not.";
    TOO_SLOW = 408 "too-slow" "The body came too slowly"
        "A body must come at 1,024 bytes a second or more after the first five seconds, and be there after 20. Nothing was done.";
    MISDIRECTED = 421 "misdirected" "This shop has another name"
        "The header Host names a host that is not one of this shop's. Nothing was done.";
    RATE_LIMITED = 429 "rate-limited" "Too many requests"
        "An address or an account asked more often than it may. Nothing was done; ask again after Retry-After. RateLimit and RateLimit-Policy say how much is left of what.";
    WEAK_PASSWORD = 422 "weak-password" "The password is too easily guessed"
        "It is one of those that are tried first: common, a pattern, or made of the e-mail address. Any 12 to 256 characters are taken; several unrelated words are good.";
    INTERNAL = 500 "internal" "Something broke"
        "A fault of the service. It is logged under the instance of this problem.";
    OVERLOADED = 503 "overloaded" "Too much at once"
        "More requests wait than are taken. Nothing was done; ask again after Retry-After.";
    UNAVAILABLE = 503 "unavailable" "Not available now"
        "The database or a part of the service is away. Nothing was done; ask again after Retry-After.";
    VIEW_BEHIND = 503 "view-behind" "The views are behind"
        "The views have not come to the position in Tidemark-After in time. Ask again after Retry-After.";
    OUTCOME_UNKNOWN = 504 "outcome-unknown" "Whether it was done is not known yet"
        "The connection to the log broke while it was being written. Ask again with the same Idempotency-Key: the answer will be the first one's, or the command will be done now. A refresh token can be shown again within 60 seconds.";
}

/// One member of a request that is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// A JSON pointer (RFC 6901) into the body, or the name of a parameter.
    #[schema(example = "/lines/0/quantity")]
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

/// An occurrence of a problem (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// Which kind: the path of a page about it.
    #[serde(rename = "type")]
    #[schema(example = "/problems/out-of-stock")]
    kind: String,
    /// What kind of problem it is.
    title: &'static str,
    /// HTTP status.
    status: u16,
    /// What happened here.
    detail: String,
    /// This occurrence: what the log calls it.
    #[schema(example = "urn:uuid:0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c01")]
    instance: String,
    /// Which members of the request are at fault.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    #[serde(skip)]
    retry_after: Option<u32>,
    #[serde(skip)]
    standing: Option<Standing>,
}

impl Problem {
    /// An occurrence of a kind.
    #[must_use]
    pub fn new(kind: &'static ProblemKind, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/problems/{}", kind.slug),
            title: kind.title,
            status: kind.status,
            detail: detail.into(),
            instance: format!("urn:uuid:{}", Uuid::now_v7()),
            errors: Vec::new(),
            retry_after: None,
            standing: None,
        }
    }

    /// Names a member of the request that is at fault.
    #[must_use]
    pub fn with_error(mut self, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        self.errors.push(FieldError { pointer: pointer.into(), detail: detail.into() });
        self
    }

    /// Says after how many seconds it is worth asking again.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Says what is left of which limit.
    #[must_use]
    pub(crate) fn with_standing(mut self, standing: Standing) -> Self {
        self.standing = Some(standing);
        self
    }

    /// Its HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// There is no such account, or it is somebody else's: the same, to the letter.
#[must_use]
pub fn no_account(id: Uuid) -> Problem {
    Problem::new(&NOT_FOUND, format!("there is no account {id}"))
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        if self.status == 500 {
            tracing::error!(
                instance = self.instance,
                kind = self.kind,
                detail = self.detail,
                "answered with a problem"
            );
        }
        let body = serde_json::to_vec(&self).expect("texts and numbers can be written as JSON");
        let mut response = (self.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(standing) = &self.standing {
            standing.tell(headers);
        }
        if self.status == 408 {
            // What is still to come of the body belongs to no request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[derive(Serialize)]
struct Page {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    about: &'static str,
}

impl From<&ProblemKind> for Page {
    fn from(kind: &ProblemKind) -> Self {
        Self {
            kind: format!("/problems/{}", kind.slug),
            title: kind.title,
            status: kind.status,
            about: kind.about,
        }
    }
}

/// `GET /problems` and `GET /problems/{slug}`: what each kind means.
pub fn pages<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route(
            "/problems",
            get(async || axum::Json(ALL.iter().map(|&kind| Page::from(kind)).collect::<Vec<_>>())),
        )
        .route(
            "/problems/{slug}",
            get(async |Path(slug): Path<String>| match ALL.iter().find(|kind| kind.slug == slug) {
                Some(&kind) => axum::Json(Page::from(kind)).into_response(),
                None => Problem::new(&NOT_FOUND, "there is no such kind of problem").into_response(),
            }),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Whatever a problem is made of, its answer is JSON that says just that.
        #[test]
        fn a_problem_says_what_it_was_made_of(
            kind in 0..ALL.len(),
            detail in proptest::arbitrary::any::<String>(),
            pointers in proptest::collection::vec(proptest::arbitrary::any::<String>(), 0..3),
        ) {
            let kind = ALL[kind];
            let problem = Problem::new(kind, detail.clone());
            let problem =
                pointers.iter().fold(problem, |problem, pointer| problem.with_error(pointer, detail.clone()));
            let answer = problem.into_response();
            proptest::prop_assert_eq!(answer.status().as_u16(), kind.status);
            proptest::prop_assert_eq!(&answer.headers()[header::CONTENT_TYPE], "application/problem+json");
            let body = axum::body::to_bytes(answer.into_body(), usize::MAX);
            let body = futures_util::FutureExt::now_or_never(body).unwrap().unwrap();
            let told: serde_json::Value = serde_json::from_slice(&body).unwrap();
            proptest::prop_assert_eq!(told["type"].as_str().unwrap(), format!("/problems/{}", kind.slug));
            proptest::prop_assert_eq!(told["status"].as_u64().unwrap(), u64::from(kind.status));
            proptest::prop_assert_eq!(told["detail"].as_str().unwrap(), detail);
            let named = told["errors"].as_array().map_or(0, Vec::len);
            proptest::prop_assert_eq!(named, pointers.len());
            for (n, pointer) in pointers.iter().enumerate() {
                proptest::prop_assert_eq!(told["errors"][n]["pointer"].as_str().unwrap(), pointer);
            }
        }
    }
}
