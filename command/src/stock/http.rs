//! Routes that change stock. All of them are the staff's, and need an idempotency key.

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tidemark_http::{Actor, Flow, IdempotencyKey, IfMatch, Json, PathId, Problem, Role};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{AdjustStock, ReceiveStock};
use crate::Command;
use crate::http::{Call, CommandAnswer, CommandState, created_at, done};
use crate::value::{Delta, Quantity, Reason};

const STAFF: &[Role] = &[Role::Staff];

pub(crate) fn routes() -> OpenApiRouter<CommandState> {
    OpenApiRouter::new().routes(routes!(receive)).routes(routes!(adjust))
}

/// Units that came in.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Receipt {
    quantity: Quantity,
}

/// Takes units of a product in.
#[utoipa::path(
    post, path = "/v1/products/{id}/stock-receipts", tag = "inventory", request_body = Receipt,
    security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("Idempotency-Key" = String, Header, description = "Makes retries safe"),
        ("If-Match" = Option<String>, Header, description = "The stock's version"),
    ),
    responses(
        (status = 201, body = CommandAnswer), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 404, body = Problem), (status = 412, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem),
        (status = 503, body = Problem),
    )
)]
async fn receive(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    PathId(id): PathId,
    Json(body): Json<Receipt>,
) -> Result<Response, Problem> {
    actor.require(STAFF)?;
    let call =
        Call { actor: &actor, flow, route: format!("POST /v1/products/{id}/stock-receipts"), key, if_match };
    call.require_key()?;
    let command = Command::ReceiveStock(ReceiveStock { product_id: id, quantity: body.quantity });
    let render: crate::writer::Render = |outcomes| {
        let mut rendered = created_at("/v1/products", outcomes)?;
        rendered.location = rendered.location.map(|product| product + "/stock");
        Some(rendered)
    };
    call.submit(&state.writer, vec![command], &body, render).await
}

/// A correction of the count.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Adjustment {
    delta: Delta,
    reason: Reason,
}

/// Corrects the count of a product's units.
#[utoipa::path(
    post, path = "/v1/products/{id}/stock-adjustments", tag = "inventory", request_body = Adjustment,
    security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("Idempotency-Key" = String, Header, description = "Makes retries safe"),
        ("If-Match" = Option<String>, Header, description = "The stock's version"),
    ),
    responses(
        (status = 200, body = CommandAnswer), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "out-of-stock: fewer units than that are available"),
        (status = 412, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
        (status = 422, body = Problem), (status = 503, body = Problem),
    )
)]
async fn adjust(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    PathId(id): PathId,
    Json(body): Json<Adjustment>,
) -> Result<Response, Problem> {
    actor.require(STAFF)?;
    let route = format!("POST /v1/products/{id}/stock-adjustments");
    let call = Call { actor: &actor, flow, route, key, if_match };
    call.require_key()?;
    let command =
        Command::AdjustStock(AdjustStock { product_id: id, delta: body.delta, reason: body.reason.clone() });
    call.submit(&state.writer, vec![command], &body, done).await
}
