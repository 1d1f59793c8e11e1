//! The units of a product, for the staff.

use axum::extract::State;
use axum::response::Response;
use sqlx::Row;
use tidemark_http::{Actor, PathId, Problem, Role, problem};
use tidemark_views::body;
use tidemark_views::resource::StockResource;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::feed::View;
use crate::position::After;
use crate::reads::Planned;
use crate::reply::{self, IfNoneMatch, Kept};
use crate::{QueryState, arguments, unavailable};

pub(crate) fn routes() -> OpenApiRouter<QueryState> {
    OpenApiRouter::new().routes(routes!(one))
}

/// The units of a product: received, adjusted, reserved, shipped, available.
#[utoipa::path(
    get, path = "/v1/products/{id}/stock", tag = "inventory", security(("token" = [])),
    params(
        ("id" = Uuid, Path), ("If-None-Match" = Option<String>, Header),
        ("Tidemark-After" = Option<String>, Header, description = "Wait until the view stands there"),
    ),
    responses(
        (status = 200, body = StockResource, headers(("ETag" = String))), (status = 304),
        (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem),
        (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem),
    )
)]
async fn one(
    State(state): State<QueryState>,
    actor: Actor,
    PathId(id): PathId,
    after: After,
    has: IfNoneMatch,
) -> Result<Response, Problem> {
    actor.require(&[Role::Staff, Role::Analyst])?;
    state.wait(after, &[View::Stock]).await?;
    let instance = state.tables(&[View::Stock])?.stock;
    let sql = format!(
        "SELECT s.received, s.adjusted, s.reserved, s.shipped, s.available, s.version, {}, h.number \
         FROM views.head h LEFT JOIN views.stock_{instance} s ON s.product_id = $1",
        body::is_parked("$1", &[("stock", instance)])
    );
    let needed = state.0.cache.needed_of(id);
    let (_, rows) =
        state.0.reads.rows(&state.0.standing, needed, &sql, Planned::Once, arguments!(id)?).await?;
    let row = &rows[0];
    let read = || {
        let version: Option<i64> = row.try_get(5)?;
        let stock = version.map(|version| {
            Ok::<_, sqlx::Error>(StockResource {
                product_id: id,
                received: row.try_get(0)?,
                adjusted: row.try_get(1)?,
                reserved: row.try_get(2)?,
                shipped: row.try_get(3)?,
                available: row.try_get(4)?,
                version,
            })
        });
        Ok((stock.transpose()?, row.try_get(6)?))
    };
    let (stock, parked) = read().map_err(|error| unavailable(&error))?;
    reply::whole(parked, after, || {
        let stock =
            stock.ok_or_else(|| Problem::new(&problem::NOT_FOUND, format!("product {id} has no stock")))?;
        let json = serde_json::to_vec(&stock).expect("numbers can be written as JSON");
        let etag = reply::etag_of_versions(format_args!("{}", stock.version), &json);
        Ok(reply::bytes(&has, json.into(), etag, Kept::Privately))
    })
}
