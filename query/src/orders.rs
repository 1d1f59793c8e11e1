//! Orders: customers see their own, the staff sees all.

use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::Response;
use sqlx::Row;
use tidemark_http::{Actor, PathId, Problem, Role, problem};
use tidemark_views::body::Kind;
use tidemark_views::resource::OrderResource;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::cache::{Key, Ready};
use crate::feed::View;
use crate::page::Parameters;
use crate::position::After;
use crate::reads::Planned;
use crate::reply::{self, IfNoneMatch, Kept};
use crate::{QueryState, arguments, too_late, unavailable};

/// How orders stand, as they are listed by it.
pub const STATUSES: &[&str] = &["placed", "shipped", "delivered", "cancelled"];

pub(crate) fn routes() -> OpenApiRouter<QueryState> {
    OpenApiRouter::new().routes(routes!(one)).routes(routes!(list))
}

/// An order. Another customer's is as good as none.
#[utoipa::path(
    get, path = "/v1/orders/{id}", tag = "orders", security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("fields" = Option<String>, Query, description = "Only these fields, by comma"),
        ("If-None-Match" = Option<String>, Header),
        ("Tidemark-After" = Option<String>, Header, description = "Wait until the view stands there"),
    ),
    responses(
        (status = 200, body = OrderResource, headers(("ETag" = String))), (status = 304),
        (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem),
        (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem),
    )
)]
async fn one(
    State(state): State<QueryState>,
    actor: Actor,
    PathId(id): PathId,
    after: After,
    RawQuery(query): RawQuery,
    has: IfNoneMatch,
) -> Result<Response, Problem> {
    actor.require(&[Role::Customer, Role::Staff])?;
    state.wait(after, &[View::Orders]).await?;
    let trusted = state.0.standing.is_fresh();
    let found = state
        .0
        .cache
        .get(Key::Order(id), trusted, too_late, async || state.load(Kind::Order, id).await)
        .await?;
    let may_see = |ready: &Ready| actor.role != Role::Customer || ready.owner == Some(actor.subject);
    let ready = found
        .filter(|ready| may_see(ready))
        .ok_or_else(|| Problem::new(&problem::NOT_FOUND, format!("there is no order {id}")))?;
    if let Some(query) = query {
        let parameters = Parameters::read(Some(&query), &["fields"])?;
        if let Some(fields) = parameters.get("fields") {
            return reply::some_of(&has, &ready, fields, Kept::Privately, after);
        }
    }
    reply::ready(&has, &ready, Kept::Privately, after)
}

/// A page of orders.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the form of the body, which is put together from ready ones")]
struct OrderPage {
    items: Vec<OrderResource>,
    /// For the page behind this one, `null` on the last.
    next_cursor: Option<String>,
}

/// Orders, the newest first: a customer's own, or for the staff everybody's.
#[utoipa::path(
    get, path = "/v1/orders", tag = "orders", security(("token" = [])),
    params(
        ("status" = Option<String>, Query, description = "placed, shipped, delivered or cancelled"),
        ("customer_id" = Option<Uuid>, Query, description = "Of this customer; for the staff"),
        ("limit" = Option<u32>, Query, description = "1 to 100, 20 if left out"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
        ("fields" = Option<String>, Query, description = "Only these fields of each item, by comma"),
        ("If-None-Match" = Option<String>, Header), ("Tidemark-After" = Option<String>, Header),
    ),
    responses(
        (status = 200, body = OrderPage, headers(("ETag" = String), ("Link" = String))), (status = 304),
        (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem),
        (status = 409, body = Problem), (status = 503, body = Problem),
    )
)]
async fn list(
    State(state): State<QueryState>,
    actor: Actor,
    after: After,
    RawQuery(query): RawQuery,
    has: IfNoneMatch,
) -> Result<Response, Problem> {
    actor.require(&[Role::Customer, Role::Staff])?;
    let known = ["status", "customer_id", "limit", "cursor", "fields"];
    let parameters = Parameters::read(query.as_deref(), &known)?;
    let limit = parameters.limit()?;
    let status = parameters.one_of("status", STATUSES)?;
    let named: Option<Uuid> = parameters.parse("customer_id", "a UUID")?;
    let customer = match actor.role {
        Role::Customer if named.is_some_and(|named| named != actor.subject) => {
            return Err(Problem::new(&problem::FORBIDDEN, "customers list their own orders"));
        }
        Role::Customer => Some(actor.subject),
        _ => named,
    };
    let before: Option<Uuid> = parameters.cursor()?;
    state.wait(after, &[View::Orders]).await?;
    let instance = state.tables(&[View::Orders])?.orders;
    let mut filters = String::from("true");
    for (wanted, filter) in [
        (customer.is_some(), " AND customer_id = $2"),
        (status.is_some(), " AND status = $3"),
        (before.is_some(), " AND id < $4"),
    ] {
        if wanted {
            filters.push_str(filter);
        }
    }
    let needed = state.0.cache.needed_of_views(&[View::Orders]);
    let sql = format!(
        "SELECT o.id, o.body, h.number, $2::uuid IS NULL, $3::text IS NULL, $4::uuid IS NULL FROM views.head h \
         LEFT JOIN LATERAL (SELECT id, body FROM views.orders_{instance} WHERE {filters} \
           ORDER BY id DESC LIMIT $1) o ON true ORDER BY o.id DESC"
    );
    let arguments = arguments!(i64::try_from(limit).unwrap_or(0) + 1, customer, status, before)?;
    let (_, rows) =
        state.0.reads.rows(&state.0.standing, needed, &sql, Planned::ForItsValues, arguments).await?;
    let (mut body, next_cursor) = compose(&parameters, &rows, limit).map_err(|error| unavailable(&error))?;
    if let Some(fields) = parameters.get("fields") {
        body = reply::only_fields(&body, fields)?;
    }
    let etag = reply::etag_of(&body);
    let mut response = reply::bytes(&has, body.into(), etag, Kept::Privately);
    if let Some(link) = next_cursor.and_then(|cursor| parameters.link("/v1/orders", &cursor)) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// Puts ready bodies together to a page.
fn compose(
    parameters: &Parameters,
    rows: &[sqlx::postgres::PgRow],
    limit: usize,
) -> Result<(Vec<u8>, Option<String>), sqlx::Error> {
    let mut body = b"{\"items\":[".to_vec();
    let mut last: Option<Uuid> = None;
    for row in rows.iter().take(limit) {
        // A list without items is one row with nothing but the number.
        let Some(id) = row.try_get(0)? else { continue };
        if last.replace(id).is_some() {
            body.push(b',');
        }
        body.extend_from_slice(row.try_get::<&str, _>(1)?.as_bytes());
    }
    body.extend_from_slice(b"],\"next_cursor\":");
    let next_cursor = last.filter(|_| rows.len() > limit).map(|id| parameters.cursor_after(id));
    match &next_cursor {
        // Base64 needs no escapes.
        Some(cursor) => body.extend_from_slice(format!("\"{cursor}\"}}").as_bytes()),
        None => body.extend_from_slice(b"null}"),
    }
    Ok((body, next_cursor))
}
