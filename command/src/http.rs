//! What all command routes share: from a request to the writer, and from its answer to a response.

use aws_lc_rs::digest;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SubsecRound, Utc};
use serde::Serialize;
use tidemark_events::{Metadata, Money, Origin, planted};
use tidemark_http::{Access, Actor, Flow, IdempotencyKey, IfMatch, Problem, problem};
use utoipa::ToSchema;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::account::Accounts;
use crate::writer::{Accepted, Answer, CommandError, IdempotencyScope, Render, Rendered, Request, Writer};
use crate::{Command, Rejection, account, order, product, stock};

/// What the routes work with.
#[derive(Debug, Clone)]
pub struct CommandState {
    /// Takes the commands.
    pub writer: Writer,
    /// Reads the tokens.
    pub access: Access,
    /// Accounts and what proves them.
    pub accounts: Accounts,
}

impl axum::extract::FromRef<CommandState> for Access {
    fn from_ref(state: &CommandState) -> Self {
        state.access.clone()
    }
}

/// Every route that changes something.
pub fn routes(state: CommandState) -> OpenApiRouter {
    stateless().with_state(state)
}

/// What the API's document says of them, for processes that do not serve them.
#[must_use]
pub fn document() -> OpenApi {
    stateless().into_openapi()
}

fn stateless() -> OpenApiRouter<CommandState> {
    OpenApiRouter::new()
        .merge(product::http::routes())
        .merge(stock::http::routes())
        .merge(order::http::routes())
        .merge(account::http::routes())
}

/// The answer to a command.
#[derive(Debug, Serialize, ToSchema)]
pub struct CommandAnswer {
    /// The product or order.
    pub id: Uuid,
    /// How it stands now.
    #[schema(example = "placed")]
    pub status: String,
    /// An order's total.
    pub total: Option<MoneySchema>,
    /// The version of its stream: what `If-Match` is compared with.
    pub version: i64,
    /// Where the log stands with it; see also the header `Tidemark-Position`.
    pub position: i64,
}

/// An amount in minor units of a currency.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Money)]
pub struct MoneySchema {
    /// Minor units: 1999 is 19.99 EUR.
    pub amount: i64,
    /// ISO 4217 alphabetic code.
    pub currency: String,
}

impl From<Money> for MoneySchema {
    fn from(money: Money) -> Self {
        Self { amount: money.amount, currency: money.currency.to_string() }
    }
}

/// One request on its way to the writer.
pub(crate) struct Call<'a> {
    /// Who asks.
    pub(crate) actor: &'a Actor,
    /// In which flow.
    pub(crate) flow: Flow,
    /// The route's template with the ids it names: part of a key's scope.
    pub(crate) route: String,
    /// The client's key.
    pub(crate) key: IdempotencyKey,
    /// The version it expects.
    pub(crate) if_match: IfMatch,
}

impl Call<'_> {
    /// Money or stock moves: without a key, a retry could do it twice.
    pub(crate) fn require_key(&self) -> Result<(), Problem> {
        if self.key.0.is_some() {
            return Ok(());
        }
        Err(Problem::new(
            &problem::IDEMPOTENCY_KEY_REQUIRED,
            "this request moves money or stock: send a header Idempotency-Key, new for each intent and the same for \
             its retries (a UUID, or up to 255 visible ASCII characters)",
        ))
    }

    /// Hands commands to the writer; `body` is what the client sent, as parsed, for the key's fingerprint.
    pub(crate) async fn submit(
        self,
        writer: &Writer,
        commands: Vec<Command>,
        body: &(impl Serialize + Sync),
        render: Render,
    ) -> Result<Response, Problem> {
        let label = self.actor.label();
        let body = serde_json::to_vec(body).map_err(|error| {
            tracing::error!(%error, "a parsed request cannot be written as JSON");
            Problem::new(&problem::INTERNAL, "the request could not be understood")
        })?;
        let key = match &self.key.0 {
            None => None,
            Some(_) if planted::is("key-ignored") => None,
            Some(key) => Some(IdempotencyScope {
                key: short_digest(&[label.as_bytes(), self.route.as_bytes(), key.as_bytes()]),
                fingerprint: short_digest(&[&body, &self.if_match.0.unwrap_or(-1).to_be_bytes()]),
            }),
        };
        let bytes = 256 + body.len() + commands.len() * 256;
        let request = Request {
            commands,
            key,
            if_match: self.if_match.0,
            now: now(),
            metadata: metadata(self.flow, label),
            render,
            stop_at_rejection: false,
            bytes,
        };
        writer.submit(request).await.map(respond).map_err(|error| problem_of(&error))
    }
}

/// What the events of a request say of who asked, and from where.
pub(crate) fn metadata(flow: Flow, actor: String) -> Metadata {
    Metadata {
        correlation_id: flow.correlation_id,
        causation_id: None,
        actor,
        traceparent: flow.traceparent,
        origin: flow.address.and_then(Origin::of),
    }
}

/// The time of a decision, to the microsecond, as the log keeps it.
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

/// The first 128 bits of SHA-256 over the parts, each with its length before it.
fn short_digest(parts: &[&[u8]]) -> Uuid {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    let digest = context.finish();
    let mut short = [0; 16];
    short.copy_from_slice(&digest.as_ref()[..16]);
    Uuid::from_bytes(short)
}

/// 201 with the place of what was made.
pub(crate) fn created_at(prefix: &str, outcomes: &[Result<Accepted, Rejection>]) -> Option<Rendered> {
    let accepted = only(outcomes)?;
    Some(Rendered { status: 201, location: Some(format!("{prefix}/{}", accepted.id)), body: json(accepted) })
}

/// 200 with what it came to.
pub(crate) fn done(outcomes: &[Result<Accepted, Rejection>]) -> Option<Rendered> {
    only(outcomes).map(|accepted| Rendered { status: 200, location: None, body: json(accepted) })
}

fn only(outcomes: &[Result<Accepted, Rejection>]) -> Option<&Accepted> {
    outcomes.first()?.as_ref().ok()
}

/// JSON of something that can always be written as JSON.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("ids, texts and numbers can be written as JSON")
}

fn respond(answer: Answer) -> Response {
    let Answer { rendered, version, head, replayed, .. } = answer;
    let status = StatusCode::from_u16(rendered.status).unwrap_or(StatusCode::OK);
    let mut response = (status, rendered.body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut insert = |name: &'static str, text: String| {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    };
    insert("tidemark-position", head.to_string());
    if version > 0 {
        insert("etag", format!("\"{version}\""));
    }
    if let Some(location) = rendered.location {
        insert("location", location);
    }
    if replayed {
        insert("idempotency-replayed", "true".to_owned());
    }
    response
}

/// The one place that turns what the writer says into a problem.
pub(crate) fn problem_of(error: &CommandError) -> Problem {
    let detail = error.to_string();
    match error {
        CommandError::Rejected(rejection) => rejection_problem(rejection),
        CommandError::VersionMismatch { .. } => Problem::new(&problem::VERSION_MISMATCH, detail),
        CommandError::KeyReused => Problem::new(&problem::IDEMPOTENCY_KEY_REUSED, detail),
        CommandError::Overloaded => Problem::new(&problem::OVERLOADED, detail).with_retry_after(1),
        CommandError::Unavailable | CommandError::Unreadable(_) => {
            Problem::new(&problem::UNAVAILABLE, detail).with_retry_after(1)
        }
        CommandError::Refused => Problem::new(&problem::INTERNAL, detail),
        CommandError::OutcomeUnknown => Problem::new(
            &problem::OUTCOME_UNKNOWN,
            "whether the command was done is not known yet: ask again with the same Idempotency-Key",
        )
        .with_retry_after(1),
    }
}

/// A rejection as a problem, with the member of the request that it is about.
pub(crate) fn rejection_problem(rejection: &Rejection) -> Problem {
    let detail = rejection.to_string();
    let about =
        |kind, pointer: String| Problem::new(kind, detail.clone()).with_error(pointer, detail.clone());
    match rejection {
        Rejection::NotFound { .. } => Problem::new(&problem::NOT_FOUND, detail),
        Rejection::AlreadyExists { .. } | Rejection::State { .. } => {
            Problem::new(&problem::STATE_CONFLICT, detail)
        }
        Rejection::LinkVoid => Problem::new(&problem::LINK_VOID, detail),
        Rejection::LoginRefused => Problem::new(&problem::LOGIN_REFUSED, detail),
        Rejection::TooManyAddresses { .. } => Problem::new(&problem::STATE_CONFLICT, detail),
        Rejection::SkuTaken { .. } => about(&problem::SKU_TAKEN, "/sku".to_owned()),
        Rejection::UnknownProduct { line, .. } => {
            about(&problem::UNKNOWN_PRODUCT, format!("/lines/{line}/product_id"))
        }
        Rejection::NotForSale { line, .. } => {
            about(&problem::NOT_FOR_SALE, format!("/lines/{line}/product_id"))
        }
        Rejection::MixedCurrencies { line, .. } => {
            about(&problem::MIXED_CURRENCIES, format!("/lines/{line}/product_id"))
        }
        Rejection::AmountOverflow { line } => {
            about(&problem::AMOUNT_OVERFLOW, format!("/lines/{line}/quantity"))
        }
        Rejection::QuantityOverflow { line, .. } => {
            about(&problem::INVALID_VALUE, format!("/lines/{line}/quantity"))
        }
        Rejection::OutOfStock { line, .. } => about(&problem::OUT_OF_STOCK, format!("/lines/{line}")),
        Rejection::StockBelowZero { .. } => about(&problem::OUT_OF_STOCK, "/delta".to_owned()),
        Rejection::StockOverflow { .. } => about(&problem::INVALID_VALUE, "/quantity".to_owned()),
    }
}
