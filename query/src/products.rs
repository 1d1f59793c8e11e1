//! Products: one by id, and lists with search, filters and sort orders.

use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::postgres::PgRow;
use tidemark_http::{PathId, Problem, problem};
use tidemark_views::body::{Kind, Tables, product_of};
use tidemark_views::resource::ProductResource;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::cache::{Key, Ready};
use crate::feed::View;
use crate::page::{Parameters, invalid};
use crate::position::After;
use crate::reads::Planned;
use crate::reply::{self, IfNoneMatch, Kept};
use crate::{QueryState, arguments, too_late, unavailable};

pub(crate) fn routes() -> OpenApiRouter<QueryState> {
    OpenApiRouter::new().routes(routes!(one)).routes(routes!(list))
}

/// A product with what is available of it.
#[utoipa::path(
    get, path = "/v1/products/{id}", tag = "catalog",
    params(
        ("id" = Uuid, Path), ("fields" = Option<String>, Query, description = "Only these fields, by comma"),
        ("If-None-Match" = Option<String>, Header),
        ("Tidemark-After" = Option<String>, Header, description = "Wait until the views stand there"),
    ),
    responses(
        (status = 200, body = ProductResource, headers(("ETag" = String))), (status = 304),
        (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 503, body = Problem),
    )
)]
async fn one(
    State(state): State<QueryState>,
    PathId(id): PathId,
    after: After,
    RawQuery(query): RawQuery,
    has: IfNoneMatch,
) -> Result<Response, Problem> {
    state.wait(after, &[View::Products, View::Stock]).await?;
    let trusted = state.0.standing.is_fresh();
    let found = state
        .0
        .cache
        .get(Key::Product(id), trusted, too_late, async || state.load(Kind::Product, id).await)
        .await?;
    let ready =
        found.ok_or_else(|| Problem::new(&problem::NOT_FOUND, format!("there is no product {id}")))?;
    if let Some(query) = query {
        let parameters = Parameters::read(Some(&query), &["fields"])?;
        if let Some(fields) = parameters.get("fields") {
            return reply::some_of(&has, &ready, fields, Kept::Publicly, after);
        }
    }
    reply::ready(&has, &ready, Kept::Publicly, after)
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("texts and numbers can be written as JSON").into()
}

/// A page of products.
#[derive(Debug, Serialize, ToSchema)]
struct ProductPage {
    items: Vec<ProductResource>,
    /// For the page behind this one, `null` on the last.
    next_cursor: Option<String>,
}

const PARAMETERS: &[&str] =
    &["q", "department", "min_price", "max_price", "sort", "limit", "cursor", "fields"];

/// The words that are searched for, read once for a statement and not for each row.
const WORDS: &str = "(SELECT to_tsquery('simple', $2))";

/// The most words of a search that count.
const MAX_WORDS: usize = 10;

/// Published products: searched, filtered, sorted, a page at a time.
#[utoipa::path(
    get, path = "/v1/products", tag = "catalog",
    params(
        ("q" = Option<String>, Query, description = "Words that must all occur in name, SKU or description; words of three letters or more also match as beginnings"),
        ("department" = Option<String>, Query, description = "Of this department"),
        ("min_price" = Option<i64>, Query, description = "Minor units"),
        ("max_price" = Option<i64>, Query, description = "Minor units"),
        ("sort" = Option<String>, Query, description = "name, -name, price, -price or newest; left out: by name, and with q by relevance, which then has that name, too"),
        ("limit" = Option<u32>, Query, description = "1 to 100, 20 if left out"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
        ("fields" = Option<String>, Query, description = "Only these fields of each item, by comma"),
        ("If-None-Match" = Option<String>, Header), ("Tidemark-After" = Option<String>, Header),
    ),
    responses(
        (status = 200, body = ProductPage, headers(("ETag" = String), ("Link" = String))), (status = 304),
        (status = 400, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem),
    )
)]
async fn list(
    State(state): State<QueryState>,
    after: After,
    RawQuery(query): RawQuery,
    has: IfNoneMatch,
) -> Result<Response, Problem> {
    state.wait(after, &[View::Products, View::Stock]).await?;
    let trusted = state.0.standing.is_fresh();
    let query = query.unwrap_or_default();
    // A query that was answered before is known to be a good one: only a new one is parsed.
    let key = Key::Products(query.as_str().into());
    let found =
        state.0.cache.get(key, trusted, too_late, async || page(&state, &query).await.map(Some)).await?;
    let ready = found.ok_or_else(|| Problem::new(&problem::INTERNAL, "a page without a body"))?;
    reply::ready(&has, &ready, Kept::Publicly, after)
}

/// How a list is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Name { descending: bool },
    Price { descending: bool },
    Newest,
    Relevance,
}

impl Sort {
    fn read(parameters: &Parameters, searching: bool) -> Result<Self, Problem> {
        match parameters.get("sort") {
            None if searching => Ok(Self::Relevance),
            None | Some("name") => Ok(Self::Name { descending: false }),
            Some("-name") => Ok(Self::Name { descending: true }),
            Some("price") => Ok(Self::Price { descending: false }),
            Some("-price") => Ok(Self::Price { descending: true }),
            Some("newest") => Ok(Self::Newest),
            Some("relevance") if searching => Ok(Self::Relevance),
            Some(_) => {
                Err(invalid("sort", "must be name, -name, price, -price, newest or, with q, relevance"))
            }
        }
    }

    /// The column sorted by, its type, and whether downwards. The id decides among equals.
    fn order(self) -> (&'static str, &'static str, bool) {
        match self {
            Self::Name { descending } => ("name", "text", descending),
            Self::Price { descending } => ("price_amount", "bigint", descending),
            Self::Newest => ("created_position", "bigint", true),
            Self::Relevance => ("relevance", "real", true),
        }
    }
}

/// The sort key of an item: the column's value as text, and the id.
#[derive(Debug, Serialize, Deserialize)]
struct SortKey(String, Uuid);

impl SortKey {
    /// Whether the server can read the value as what is sorted by. A client may have changed it, and a statement that
    /// fails because of it must not look like views that are away.
    fn is_of(&self, sort: Sort) -> bool {
        let Self(value, _) = self;
        match sort {
            Sort::Name { .. } => !value.contains('\0'),
            Sort::Price { .. } | Sort::Newest => value.parse::<i64>().is_ok(),
            // What is too small becomes zero here, and an error there.
            Sort::Relevance => value == "0" || value.parse().is_ok_and(f32::is_normal),
        }
    }
}

async fn page(state: &QueryState, query: &str) -> Result<Ready, Problem> {
    let parameters = Parameters::read(Some(query), PARAMETERS)?;
    let limit = parameters.limit()?;
    let search = parameters.get("q").map(search_of);
    let sort = Sort::read(&parameters, search.is_some())?;
    let min_price: Option<i64> = parameters.parse("min_price", "minor units")?;
    let max_price: Option<i64> = parameters.parse("max_price", "minor units")?;
    let turn = state.0.reads.turn_to_search().await?;
    // Before the tables are chosen: when readers are led to others, what was read of these is not kept.
    let (read_at, needed) = (Instant::now(), state.0.cache.needed_of_views(&[View::Products, View::Stock]));
    let cursor = parameters.cursor_that(|key: &SortKey| key.is_of(sort))?;
    let sql = statement(
        state.tables(&[View::Products, View::Stock])?,
        &parameters,
        search.is_some(),
        sort,
        cursor.is_some(),
        min_price,
        max_price,
    );
    let (after_value, after_id) = cursor.map_or((None, None), |SortKey(value, id)| (Some(value), Some(id)));
    let arguments = arguments!(
        i64::try_from(limit).unwrap_or(0) + 1,
        search,
        parameters.get("department"),
        min_price,
        max_price,
        after_value,
        after_id,
    )?;
    // Without words, the best way depends on how many products have such a price.
    let planned = if parameters.get("q").is_some() { Planned::Once } else { Planned::ForItsValues };
    let (number, rows) = state.0.reads.rows(&state.0.standing, needed, &sql, planned, arguments).await?;
    drop(turn);
    compose(&parameters, &rows, limit, number, read_at).map_err(|error| unavailable(&error))?
}

fn compose(
    parameters: &Parameters,
    rows: &[PgRow],
    limit: usize,
    number: i64,
    read_at: Instant,
) -> Result<Result<Ready, Problem>, sqlx::Error> {
    let mut items = Vec::with_capacity(limit);
    let mut last = None;
    for row in rows {
        // A list without items is one row with nothing but the number.
        if row.try_get::<Option<Uuid>, _>(0)?.is_none() || items.len() == limit {
            continue;
        }
        last = Some(SortKey(row.try_get(11)?, row.try_get(0)?));
        items.push(product_of(row)?);
    }
    let more = rows.len() > limit;
    let next_cursor = last.filter(|_| more).map(|key| parameters.cursor_after(key));
    let link = next_cursor.as_ref().and_then(|cursor| parameters.link("/v1/products", cursor));
    let mut body = json(&ProductPage { items, next_cursor });
    if let Some(fields) = parameters.get("fields") {
        match reply::only_fields(&body, fields) {
            Ok(chosen) => body = chosen.into(),
            Err(problem) => return Ok(Err(problem)),
        }
    }
    let etag = reply::etag_of(&body);
    Ok(Ok(Ready { body, etag, owner: None, link, parked: false, number, read_at }))
}

/// One statement for one page. With words to search for, the matches are found first and sorted then; without, they come
/// in order from the index of the sort column. Every parameter is bound.
///
/// With words, no index but theirs can be used, whatever the values are: the other filters and the order are of
/// expressions. Else a plan for all values takes the index of prices, and looks for the words in tens of thousands of rows.
fn statement(
    Tables { products, stock, .. }: Tables,
    parameters: &Parameters,
    searching: bool,
    sort: Sort,
    continued: bool,
    min_price: Option<i64>,
    max_price: Option<i64>,
) -> String {
    let (column, kind, descending) = sort.order();
    let (direction, compare) = if descending { ("DESC", "<") } else { ("ASC", ">") };
    let term = |column: &str| match column {
        "relevance" => format!("ts_rank(search, {WORDS})"),
        _ if !searching => column.to_owned(),
        "name" | "department" => format!("({column} || '')"),
        number => format!("({number} + 0)"),
    };
    let sorted_by = term(column);
    let mut filters = String::from("status = 'published'");
    let mut filter = |wanted: bool, condition: String| {
        if wanted {
            filters.push_str(" AND ");
            filters.push_str(&condition);
        }
    };
    filter(searching, format!("search @@ {WORDS}"));
    filter(parameters.get("department").is_some(), format!("{} = $3", term("department")));
    filter(min_price.is_some(), format!("{} >= $4", term("price_amount")));
    filter(max_price.is_some(), format!("{} <= $5", term("price_amount")));
    filter(continued, format!("({sorted_by}, id) {compare} ($6::{kind}, $7::uuid)"));
    // What is not used must still have a type.
    let types = "$2::text IS NULL, $3::text IS NULL, $4::bigint IS NULL, $5::bigint IS NULL, $6::text IS NULL, \
                 $7::uuid IS NULL";
    format!(
        "WITH chosen AS MATERIALIZED (SELECT id, {sorted_by} AS sorted_by FROM views.products_{products} \
         WHERE {filters} ORDER BY {sorted_by} {direction}, id {direction} LIMIT $1) \
         SELECT p.id, p.sku, p.name, p.description, p.department, p.price_amount, p.price_currency, \
         COALESCE(s.available, 0), p.status, p.version, h.number, c.sorted_by::text, {types} \
         FROM views.head h LEFT JOIN (chosen c JOIN views.products_{products} p ON p.id = c.id \
         LEFT JOIN views.stock_{stock} s ON s.product_id = p.id) ON true \
         ORDER BY c.sorted_by {direction}, c.id {direction}"
    )
}

/// Words as a query of the full-text search (`to_tsquery`): all of them must occur, longer ones also as beginnings.
/// Words hold letters and digits only, so nothing in them has a meaning to the parser. No word matches nothing.
fn search_of(text: &str) -> String {
    const BEGINNING_FROM: usize = 3;
    let mut query = String::new();
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    for word in words.take(MAX_WORDS) {
        if !query.is_empty() {
            query.push_str(" & ");
        }
        query.push_str(&word.to_lowercase());
        if word.chars().count() >= BEGINNING_FROM {
            query.push_str(":*");
        }
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_uses_no_index_but_that_of_its_words() {
        let all = "department=D&min_price=1&max_price=2";
        let of = |query: &str, searching: bool, sort: Sort| {
            let parameters = Parameters::read(Some(query), PARAMETERS).unwrap();
            let tables = Tables { products: 1, stock: 1, orders: 1 };
            statement(tables, &parameters, searching, sort, true, Some(1), Some(2))
        };
        for (sort, column, plain) in [
            (Sort::Newest, "created_position", "(created_position + 0)"),
            (Sort::Price { descending: false }, "price_amount", "(price_amount + 0)"),
            (Sort::Name { descending: true }, "name", "(name || '')"),
        ] {
            let (searching, listing) = (of(&format!("q=word&{all}"), true, sort), of(all, false, sort));
            let order = |by: &str| [format!("ORDER BY {by} "), format!("AND ({by}, id)")];
            let filters = ["AND department = $3", "AND price_amount >= $4", "AND price_amount <= $5"];
            for condition in filters.map(str::to_owned).iter().chain(&order(column)) {
                assert!(!searching.contains(condition), "{searching}");
                assert!(listing.contains(condition), "{listing}");
            }
            let filters = ["(department || '') = $3", "(price_amount + 0) >= $4", "(price_amount + 0) <= $5"];
            for condition in filters.map(str::to_owned).iter().chain(&order(plain)) {
                assert!(searching.contains(condition), "{searching}");
            }
        }
    }

    #[test]
    fn a_key_is_taken_only_if_the_server_can_read_it() {
        let (price, newest) = (Sort::Price { descending: true }, Sort::Newest);
        let name = Sort::Name { descending: false };
        for (sort, value, is_taken) in [
            (price, "1999", true),
            (price, "-1", true),
            (newest, "9223372036854775807", true),
            (newest, "9223372036854775808", false),
            (price, "abc", false),
            (price, "", false),
            (price, " 1", false),
            (price, "1e3", false),
            (name, "", true),
            (name, "Lamp, 'large'", true),
            (name, "La\0mp", false),
            (Sort::Relevance, "0.06079271", true),
            (Sort::Relevance, "1e-20", true),
            (Sort::Relevance, "0", true),
            (Sort::Relevance, "1e999", false),
            (Sort::Relevance, "1e-60", false),
            (Sort::Relevance, "NaN", false),
            (Sort::Relevance, "-inf", false),
            (Sort::Relevance, "abc", false),
        ] {
            assert_eq!(SortKey(value.to_owned(), Uuid::nil()).is_of(sort), is_taken, "{sort:?} {value:?}");
        }
    }

    #[test]
    fn searches_hold_words_and_nothing_else() {
        assert_eq!(search_of("Ice  cubes 2"), "ice:* & cubes:* & 2");
        assert_eq!(search_of("a'); DROP TABLE x; --"), "a & drop:* & table:* & x");
        assert_eq!(search_of("!!! & | ( ) <-> :*"), "");
        assert_eq!(search_of("Käse-Brötchen"), "käse:* & brötchen:*");
        assert_eq!(search_of(&"w ".repeat(100)).matches('&').count(), MAX_WORDS - 1);
    }
}
