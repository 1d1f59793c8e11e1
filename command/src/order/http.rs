//! Routes that change orders. Customers place and cancel their own; the staff ships and delivers.

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tidemark_http::{
    Actor, Flow, IdempotencyKey, IfMatch, Json, OptionalJson, PathId, Problem, Role, problem,
};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{CancelOrder, DeliverOrder, Line, MAX_LINES, PlaceOrder, Requester, ShipOrder};
use crate::Command;
use crate::command::NewId;
use crate::http::{Call, CommandAnswer, CommandState, created_at, done};
use crate::value::{Quantity, Reason};

pub(crate) fn routes() -> OpenApiRouter<CommandState> {
    OpenApiRouter::new()
        .routes(routes!(place))
        .routes(routes!(cancel))
        .routes(routes!(ship))
        .routes(routes!(deliver))
}

/// An order to be.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewOrder {
    /// 1 to 200; lines of one product are merged.
    #[schema(min_items = 1, max_items = 200)]
    lines: Vec<NewLine>,
}

/// One product of an order.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewLine {
    product_id: Uuid,
    quantity: Quantity,
}

/// Places an order at the prices of this moment. Every line's units are reserved, or nothing is done.
#[utoipa::path(
    post, path = "/v1/orders", tag = "orders", request_body = NewOrder, security(("token" = [])),
    params(("Idempotency-Key" = String, Header, description = "Makes retries safe")),
    responses(
        (status = 201, body = CommandAnswer, headers(("Location" = String), ("Tidemark-Position" = String))),
        (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem),
        (status = 409, body = Problem, description = "out-of-stock, not-for-sale"), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem),
        (status = 504, body = Problem, description = "outcome-unknown"),
    )
)]
async fn place(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    Json(body): Json<NewOrder>,
) -> Result<Response, Problem> {
    actor.require(&[Role::Customer, Role::Staff])?;
    let call = Call { actor: &actor, flow, route: "POST /v1/orders".to_owned(), key, if_match };
    call.require_key()?;
    if body.lines.is_empty() || body.lines.len() > MAX_LINES {
        let detail = format!("must have 1 to {MAX_LINES} lines, has {}", body.lines.len());
        return Err(Problem::new(&problem::INVALID_VALUE, detail.clone()).with_error("/lines", detail));
    }
    let lines =
        body.lines.iter().map(|line| Line { product_id: line.product_id, quantity: line.quantity }).collect();
    let command = Command::PlaceOrder(PlaceOrder {
        order_id: NewId::Fresh(Uuid::now_v7()),
        customer_id: actor.subject,
        lines,
    });
    call.submit(&state.writer, vec![command], &body, |outcomes| created_at("/v1/orders", outcomes)).await
}

/// Why an order is called off.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Cancellation {
    #[serde(default)]
    reason: Option<Reason>,
}

/// Calls an order off before it is shipped, and releases its units. The body may be left out.
#[utoipa::path(
    post, path = "/v1/orders/{id}/cancellation", tag = "orders", request_body = Option<Cancellation>,
    security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("Idempotency-Key" = String, Header, description = "Makes retries safe"),
        ("If-Match" = Option<String>, Header, description = "The order's version"),
    ),
    responses(
        (status = 200, body = CommandAnswer), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "state-conflict: it has been shipped"),
        (status = 412, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
        (status = 422, body = Problem), (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn cancel(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    PathId(id): PathId,
    OptionalJson(body): OptionalJson<Cancellation>,
) -> Result<Response, Problem> {
    actor.require(&[Role::Customer, Role::Staff])?;
    let requester = match actor.role {
        Role::Customer => Requester::Customer(actor.subject),
        _ => Requester::Staff,
    };
    let call =
        Call { actor: &actor, flow, route: format!("POST /v1/orders/{id}/cancellation"), key, if_match };
    call.require_key()?;
    let body = body.unwrap_or_default();
    let command = Command::CancelOrder(CancelOrder { order_id: id, requester, reason: body.reason.clone() });
    call.submit(&state.writer, vec![command], &body, done).await
}

/// Says that an order has left the house.
#[utoipa::path(
    post, path = "/v1/orders/{id}/shipment", tag = "orders", security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("Idempotency-Key" = String, Header, description = "Makes retries safe"),
        ("If-Match" = Option<String>, Header, description = "The order's version"),
    ),
    responses(
        (status = 200, body = CommandAnswer), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 412, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem),
        (status = 504, body = Problem),
    )
)]
async fn ship(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    actor.require(&[Role::Staff])?;
    let call = Call { actor: &actor, flow, route: format!("POST /v1/orders/{id}/shipment"), key, if_match };
    call.require_key()?;
    call.submit(&state.writer, vec![Command::ShipOrder(ShipOrder { order_id: id })], &(), done).await
}

/// Says that an order has reached its customer.
#[utoipa::path(
    post, path = "/v1/orders/{id}/delivery", tag = "orders", security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("Idempotency-Key" = Option<String>, Header, description = "Makes retries safe"),
        ("If-Match" = Option<String>, Header, description = "The order's version"),
    ),
    responses(
        (status = 200, body = CommandAnswer), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 412, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem),
        (status = 504, body = Problem),
    )
)]
async fn deliver(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    actor.require(&[Role::Staff])?;
    let call = Call { actor: &actor, flow, route: format!("POST /v1/orders/{id}/delivery"), key, if_match };
    call.submit(&state.writer, vec![Command::DeliverOrder(DeliverOrder { order_id: id })], &(), done).await
}
