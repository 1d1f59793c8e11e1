//! Routes that change products. All of them are the staff's.

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tidemark_http::{Actor, Flow, IdempotencyKey, IfMatch, Json, PathId, Problem, Role, problem};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{CreateProduct, PublishProduct, RetireProduct, ReviseProduct, SetPrice};
use crate::command::NewId;
use crate::http::{Call, CommandAnswer, CommandState, created_at, done, json, rejection_problem};
use crate::value::{Department, Description, Name, Price, Sku};
use crate::writer::{Accepted, Rendered};
use crate::{Command, Rejection};

const STAFF: &[Role] = &[Role::Staff];

/// The most products one batch may bring.
const MAX_BATCH: usize = 1_000;

pub(crate) fn routes() -> OpenApiRouter<CommandState> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(create_batch))
        .routes(routes!(revise))
        .routes(routes!(set_price))
        .routes(routes!(publish))
        .routes(routes!(retire))
}

/// A product to be.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewProduct {
    sku: Sku,
    name: Name,
    #[serde(default)]
    description: Option<Description>,
    #[serde(default)]
    department: Option<Department>,
    price: Price,
}

impl NewProduct {
    fn command(&self) -> Command {
        Command::CreateProduct(CreateProduct {
            product_id: NewId::Fresh(Uuid::now_v7()),
            sku: self.sku.clone(),
            name: self.name.clone(),
            description: self.description.clone(),
            department: self.department.clone(),
            price: self.price,
        })
    }
}

/// Creates a product as a draft.
#[utoipa::path(
    post, path = "/v1/products", tag = "catalog", request_body = NewProduct, security(("token" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes retries safe")),
    responses(
        (status = 201, body = CommandAnswer, headers(("Location" = String), ("Tidemark-Position" = String))),
        (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem),
        (status = 409, body = Problem, description = "sku-taken"), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem),
    )
)]
async fn create(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    Json(body): Json<NewProduct>,
) -> Result<Response, Problem> {
    actor.require(STAFF)?;
    let call = Call { actor: &actor, flow, route: "POST /v1/products".to_owned(), key, if_match };
    call.submit(&state.writer, vec![body.command()], &body, |outcomes| created_at("/v1/products", outcomes))
        .await
}

/// Products to be, each taken or refused by itself.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewProducts {
    /// 1 to 1,000.
    #[schema(min_items = 1, max_items = 1000)]
    items: Vec<NewProduct>,
}

/// What came of a batch, item by item.
#[derive(Debug, Serialize, ToSchema)]
struct BatchAnswer {
    items: Vec<ItemAnswer>,
}

/// What came of one item.
#[derive(Debug, Serialize, ToSchema)]
struct ItemAnswer {
    /// As the single request would have been answered.
    status: u16,
    /// Of an item that was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<i64>,
    /// Of an item that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

/// Creates up to 1,000 products in one commit, each answered by itself.
#[utoipa::path(
    post, path = "/v1/products/batch", tag = "catalog", request_body = NewProducts, security(("token" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes retries safe")),
    responses(
        (status = 200, body = BatchAnswer), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
        (status = 422, body = Problem), (status = 503, body = Problem),
    )
)]
async fn create_batch(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    Json(body): Json<NewProducts>,
) -> Result<Response, Problem> {
    actor.require(STAFF)?;
    if body.items.is_empty() || body.items.len() > MAX_BATCH {
        let detail = format!("must have 1 to {MAX_BATCH} items, has {}", body.items.len());
        return Err(Problem::new(&problem::INVALID_VALUE, detail.clone()).with_error("/items", detail));
    }
    let commands = body.items.iter().map(NewProduct::command).collect();
    let route = "POST /v1/products/batch".to_owned();
    let call = Call { actor: &actor, flow, route, key, if_match: IfMatch(None) };
    call.submit(&state.writer, commands, &body, render_batch).await
}

#[expect(clippy::unnecessary_wraps, reason = "a batch is always answered; single commands need not be")]
fn render_batch(outcomes: &[Result<Accepted, Rejection>]) -> Option<Rendered> {
    let items = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(accepted) => ItemAnswer {
                status: 201,
                id: Some(accepted.id),
                version: Some(accepted.version),
                position: Some(accepted.position),
                problem: None,
            },
            Err(rejection) => {
                let problem = rejection_problem(rejection);
                let status = problem.status().as_u16();
                ItemAnswer { status, id: None, version: None, position: None, problem: Some(problem) }
            }
        })
        .collect();
    Some(Rendered { status: 200, location: None, body: json(&BatchAnswer { items }) })
}

/// Texts that replace a product's.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Revision {
    name: Name,
    #[serde(default)]
    description: Option<Description>,
    #[serde(default)]
    department: Option<Department>,
}

/// Replaces name, description and department.
#[utoipa::path(
    put, path = "/v1/products/{id}", tag = "catalog", request_body = Revision, security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("If-Match" = Option<String>, Header, description = "The version to change"),
        ("Idempotency-Key" = Option<String>, Header),
    ),
    responses(
        (status = 200, body = CommandAnswer), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 412, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
        (status = 422, body = Problem), (status = 503, body = Problem),
    )
)]
async fn revise(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    PathId(id): PathId,
    Json(body): Json<Revision>,
) -> Result<Response, Problem> {
    actor.require(STAFF)?;
    let command = Command::ReviseProduct(ReviseProduct {
        product_id: id,
        name: body.name.clone(),
        description: body.description.clone(),
        department: body.department.clone(),
    });
    let call = Call { actor: &actor, flow, route: format!("PUT /v1/products/{id}"), key, if_match };
    call.submit(&state.writer, vec![command], &body, done).await
}

/// A price to be.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewPrice {
    price: Price,
}

/// Changes the price; orders placed before keep theirs.
#[utoipa::path(
    put, path = "/v1/products/{id}/price", tag = "catalog", request_body = NewPrice, security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("If-Match" = Option<String>, Header, description = "The version to change"),
        ("Idempotency-Key" = Option<String>, Header),
    ),
    responses(
        (status = 200, body = CommandAnswer), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 412, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
        (status = 422, body = Problem), (status = 503, body = Problem),
    )
)]
async fn set_price(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    PathId(id): PathId,
    Json(body): Json<NewPrice>,
) -> Result<Response, Problem> {
    actor.require(STAFF)?;
    let command = Command::SetPrice(SetPrice { product_id: id, price: body.price });
    let call = Call { actor: &actor, flow, route: format!("PUT /v1/products/{id}/price"), key, if_match };
    call.submit(&state.writer, vec![command], &body, done).await
}

/// Puts a product on sale.
#[utoipa::path(
    put, path = "/v1/products/{id}/publication", tag = "catalog", security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("If-Match" = Option<String>, Header, description = "The version to publish"),
        ("Idempotency-Key" = Option<String>, Header),
    ),
    responses(
        (status = 200, body = CommandAnswer), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 412, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem),
    )
)]
async fn publish(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    actor.require(STAFF)?;
    let command = Command::PublishProduct(PublishProduct { product_id: id });
    let call =
        Call { actor: &actor, flow, route: format!("PUT /v1/products/{id}/publication"), key, if_match };
    call.submit(&state.writer, vec![command], &(), done).await
}

/// Takes a product off sale for good; its SKU is free again.
#[utoipa::path(
    put, path = "/v1/products/{id}/retirement", tag = "catalog", security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("If-Match" = Option<String>, Header, description = "The version to retire"),
        ("Idempotency-Key" = Option<String>, Header),
    ),
    responses(
        (status = 200, body = CommandAnswer), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 404, body = Problem), (status = 412, body = Problem),
        (status = 422, body = Problem), (status = 503, body = Problem),
    )
)]
async fn retire(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    key: IdempotencyKey,
    if_match: IfMatch,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    actor.require(STAFF)?;
    let command = Command::RetireProduct(RetireProduct { product_id: id });
    let call =
        Call { actor: &actor, flow, route: format!("PUT /v1/products/{id}/retirement"), key, if_match };
    call.submit(&state.writer, vec![command], &(), done).await
}
