//! Who did what from where, for admins: acts, and security events.

use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::Response;
use chrono::{DateTime, Datelike, Utc};
use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tidemark_events::audit::SECURITY_KINDS;
use tidemark_events::{Personal, RecordedEvent, stream};
use tidemark_http::{Actor, Problem, Role};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::accounts::private;
use crate::feed::View;
use crate::page::{Parameters, invalid};
use crate::position::After;
use crate::reads::Planned;
use crate::{QueryState, arguments, log_away, unavailable};

/// Events of a stream that are looked at for one page, where not all of them belong on it.
const LOOKED_AT: usize = 2_000;

/// Before every version of a stream.
const NEWEST: i64 = i64::MAX;

/// What the name of somebody without a token begins with in events, before the id of the account.
const BY_PASSWORD_OR_MAIL: &str = "account";

pub(crate) fn routes() -> OpenApiRouter<QueryState> {
    OpenApiRouter::new().routes(routes!(acts)).routes(routes!(security_events))
}

/// Something that somebody did.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct Act {
    /// Its place in the log: `GET /v1/events?from=…&to=…` shows what it says.
    position: i64,
    recorded_at: DateTime<Utc>,
    /// What was done.
    #[serde(rename = "type")]
    #[schema(example = "ProductPublished")]
    event_type: String,
    /// `product`, `stock`, `order`, `account` …
    category: String,
    /// The product, order or account that it is about.
    resource: Uuid,
    stream_id: Uuid,
    /// The version that the stream came to.
    version: i64,
    /// Who did it, `role:id`; `account:id` whoever had no token, but a password or a mail; `anonymous`.
    #[schema(example = "staff:0190b6a2-8c5e-7c11-b0de-1f0e9a7b0c0f")]
    actor: String,
    /// The network that the request came from: of an IPv4 address the /24, of an IPv6 address the /40.
    #[schema(example = "192.0.2.0/24")]
    origin: Option<String>,
    /// The request, or its trace: what belongs together has the same.
    correlation_id: Uuid,
}

/// A page of acts.
#[derive(Debug, Serialize, ToSchema)]
struct ActPage {
    items: Vec<Act>,
    /// For the page behind this one, `null` on the last.
    next_cursor: Option<String>,
}

/// Who did what from where, the newest first: what people of the shop did to products, stock and orders, and what
/// happened to accounts, whoever did it. For admins.
///
/// What customers did with their own orders is not among it, nor log-ins: those are security events. With `resource` the
/// list is read from the log itself, and holds everything that happened to that product (its stock included), order,
/// account or stream, by whomever; then a page may have fewer items than `limit` although there are more.
#[utoipa::path(
    get, path = "/v1/audit", tag = "audit", security(("token" = [])),
    params(
        ("actor" = Option<String>, Query, description = "By this one: `role:id` as events name it, or an id in any role"),
        ("resource" = Option<Uuid>, Query, description = "All that happened to this product, order, account or stream"),
        ("type" = Option<String>, Query, description = "Only events of this type"),
        ("since" = Option<DateTime<Utc>>, Query, description = "Not before this time (RFC 3339)"),
        ("until" = Option<DateTime<Utc>>, Query, description = "Before this time (RFC 3339)"),
        ("limit" = Option<u32>, Query, description = "1 to 100, 20 if left out"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
        ("Tidemark-After" = Option<String>, Header, description = "Wait until the view stands there"),
    ),
    responses(
        (status = 200, body = ActPage, headers(("Link" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem),
        (status = 503, body = Problem),
    )
)]
async fn acts(
    State(state): State<QueryState>,
    actor: Actor,
    after: After,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    actor.require(&[])?;
    let known = ["actor", "resource", "type", "since", "until", "limit", "cursor"];
    let parameters = Parameters::read(query.as_deref(), &known)?;
    let wanted = Wanted::read(&parameters)?;
    let (items, next_cursor) = match parameters.parse("resource", "a UUID")? {
        Some(resource) => state.acts_on(resource, &wanted, &parameters).await?,
        None => {
            state.wait(after, &[View::Audit]).await?;
            state.acts_in_view(&wanted, &parameters).await?
        }
    };
    Ok(page("/v1/audit", &parameters, next_cursor, |next_cursor| ActPage { items, next_cursor }))
}

/// An answer with the link to the next page.
pub(crate) fn page<P: Serialize>(
    path: &str,
    parameters: &Parameters,
    next_cursor: Option<String>,
    body: impl FnOnce(Option<String>) -> P,
) -> Response {
    let link = next_cursor.as_deref().and_then(|cursor| parameters.link(path, cursor));
    let mut response = private(&body(next_cursor));
    if let Some(link) = link {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

/// Which acts are asked for.
struct Wanted {
    /// By one of these.
    actors: Option<Vec<String>>,
    event_type: Option<String>,
    times: Times,
    limit: usize,
}

impl Wanted {
    fn read(parameters: &Parameters) -> Result<Self, Problem> {
        let named = |name: &str| match name.parse::<Uuid>() {
            Ok(id) => {
                let begin = Role::names().into_iter().chain([BY_PASSWORD_OR_MAIL]);
                begin.map(|begin| format!("{begin}:{id}")).collect()
            }
            Err(_) => vec![name.to_owned()],
        };
        Ok(Self {
            actors: parameters.get("actor").map(named),
            event_type: parameters.get("type").map(ToOwned::to_owned),
            times: Times::read(parameters)?,
            limit: parameters.limit()?,
        })
    }

    fn is_everything(&self) -> bool {
        self.actors.is_none() && self.event_type.is_none() && self.times == Times::default()
    }

    fn takes(&self, event: &RecordedEvent) -> bool {
        let is_one = |actors: &Vec<String>| actors.contains(&event.metadata.actor);
        self.actors.as_ref().is_none_or(is_one)
            && self.event_type.as_ref().is_none_or(|wanted| *wanted == event.event_type)
            && self.times.since.is_none_or(|since| event.recorded_at >= since)
            && self.times.until.is_none_or(|until| event.recorded_at < until)
    }
}

/// From one time on and before another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Times {
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
}

impl Times {
    fn read(parameters: &Parameters) -> Result<Self, Problem> {
        let time = |name| {
            let time: Option<DateTime<Utc>> = parameters.parse(name, "a time like 2026-01-02T03:04:05Z")?;
            match time.filter(|time| !(-1..=10_000).contains(&time.year())) {
                Some(_) => Err(invalid(name, "must be a time of this calendar")),
                None => Ok(time),
            }
        };
        Ok(Self { since: time("since")?, until: time("until")? })
    }
}

impl QueryState {
    /// The live instance of the audit.
    pub(crate) fn audit(&self) -> Result<i32, Problem> {
        self.tables(&[View::Audit])?;
        Ok(self.0.standing.of(View::Audit).instance)
    }

    /// The rows of a statement on the audit. No keys are told of what changes there, so a read must have seen the newest
    /// change that is known.
    pub(crate) async fn audit_rows(
        &self,
        sql: &str,
        arguments: sqlx::postgres::PgArguments,
    ) -> Result<Vec<PgRow>, Problem> {
        let needed = self.0.standing.newest();
        let (_, rows) =
            self.0.reads.rows(&self.0.standing, needed, sql, Planned::ForItsValues, arguments).await?;
        Ok(rows)
    }

    async fn acts_in_view(
        &self,
        wanted: &Wanted,
        parameters: &Parameters,
    ) -> Result<(Vec<Act>, Option<String>), Problem> {
        let before: Option<i64> = parameters.cursor()?;
        let table = format!("views.audit_{}", self.audit()?);
        let sql = format!(
            "SELECT h.number, a.position, a.recorded_at, a.event_type, a.category, a.resource, a.stream_id, a.version, \
               a.actor, a.origin::text, a.correlation_id FROM views.head h LEFT JOIN LATERAL (SELECT * FROM {table} \
             WHERE ($2::bigint IS NULL OR position < $2) \
               AND ($3::text IS NULL OR actor = $3) AND ($4::text[] IS NULL OR actor = ANY($4)) \
               AND ($5::text IS NULL OR event_type = $5) AND {within} \
             ORDER BY position DESC LIMIT $1) a ON true ORDER BY a.position DESC",
            within = within(&table, 6, 7),
        );
        let (one, several) = match wanted.actors.as_deref() {
            Some([one]) => (Some(one.as_str()), None),
            several => (None, several),
        };
        let arguments = arguments!(
            one_more(wanted.limit),
            before,
            one,
            several,
            wanted.event_type.as_deref(),
            wanted.times.since,
            wanted.times.until,
        )?;
        let rows = self.audit_rows(&sql, arguments).await?;
        let act = |row: &PgRow| {
            Ok(Act {
                position: row.try_get(1)?,
                recorded_at: row.try_get(2)?,
                event_type: row.try_get(3)?,
                category: row.try_get(4)?,
                resource: row.try_get(5)?,
                stream_id: row.try_get(6)?,
                version: row.try_get(7)?,
                actor: row.try_get(8)?,
                origin: row.try_get(9)?,
                correlation_id: row.try_get(10)?,
            })
        };
        let items = items_of(&rows, wanted.limit, act)?;
        let is_last = rows.len() <= wanted.limit;
        let next = items.last().filter(|_| !is_last).map(|act| parameters.cursor_after(act.position));
        Ok((items, next))
    }

    /// What happened to a product and its stock, to an order, an account or any stream, from the log itself. Two
    /// streams, each read back from its newest event, are put together by positions.
    async fn acts_on(
        &self,
        resource: Uuid,
        wanted: &Wanted,
        parameters: &Parameters,
    ) -> Result<(Vec<Act>, Option<String>), Problem> {
        let (own, stock) = parameters.cursor()?.unwrap_or((NEWEST, NEWEST));
        // One more than are shown says whether there are more.
        let most = if wanted.is_everything() { wanted.limit + 1 } else { LOOKED_AT };
        let mut own = Back::read(self, resource, own, most).await?;
        let mut stock = Back::read(self, stream::stock_of(resource), stock, most).await?;
        let mut items = Vec::new();
        let mut is_last = false;
        while items.len() < wanted.limit {
            let newer = match (own.position(), stock.position()) {
                (Some(one), Some(other)) if one < other => &mut stock,
                // What is older may only be shown when it is known that nothing newer comes from the other.
                (Some(_), None) if stock.has_more => break,
                (None, Some(_)) if own.has_more => break,
                (Some(_), _) => &mut own,
                (None, Some(_)) => &mut stock,
                (None, None) => {
                    is_last = !own.has_more && !stock.has_more;
                    break;
                }
            };
            let Some(event) = newer.take() else { break };
            if wanted.times.since.is_some_and(|since| event.recorded_at < since) {
                is_last = true;
                break;
            }
            if wanted.takes(&event) {
                items.push(Act::of(event));
            }
        }
        is_last |= own.is_done() && stock.is_done();
        let next = (!is_last).then(|| parameters.cursor_after((own.before, stock.before)));
        Ok((items, next))
    }
}

/// A stream, read from its newest event back.
struct Back {
    events: std::iter::Peekable<std::vec::IntoIter<RecordedEvent>>,
    /// The version of the last event that was taken.
    before: i64,
    /// Whether there may be events behind those that were read.
    has_more: bool,
}

impl Back {
    async fn read(state: &QueryState, stream_id: Uuid, before: i64, most: usize) -> Result<Self, Problem> {
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let events = state.0.log.read_stream_back(stream_id, before, limit).await;
        let events = events.map_err(|error| log_away(&error))?;
        Ok(Self { has_more: events.len() == most, events: events.into_iter().peekable(), before })
    }

    /// Of the next event.
    fn position(&mut self) -> Option<i64> {
        self.events.peek().map(|event| event.position)
    }

    fn take(&mut self) -> Option<RecordedEvent> {
        let event = self.events.next()?;
        self.before = event.version;
        Some(event)
    }

    fn is_done(&mut self) -> bool {
        self.position().is_none() && !self.has_more
    }
}

impl Act {
    fn of(event: RecordedEvent) -> Self {
        Self {
            position: event.position,
            recorded_at: event.recorded_at,
            event_type: event.event_type.into_owned(),
            category: event.category.into_owned(),
            resource: event.partition_key,
            stream_id: event.stream_id,
            version: event.version,
            actor: event.metadata.actor,
            origin: event.metadata.origin.map(|origin| origin.to_string()),
            correlation_id: event.metadata.correlation_id,
        }
    }
}

/// The rows of a page; a list without items is one row with nothing but the number.
pub(crate) fn items_of<T>(
    rows: &[PgRow],
    limit: usize,
    read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
) -> Result<Vec<T>, Problem> {
    let is_one = |row: &&PgRow| !matches!(row.try_get_raw(1), Ok(value) if sqlx::ValueRef::is_null(&value));
    let items: Result<Vec<T>, _> = rows.iter().take(limit).filter(is_one).map(read).collect();
    items.map_err(|error| unavailable(&error))
}

/// How many rows are read for a page: one more says whether there are more.
pub(crate) fn one_more(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(0) + 1
}

/// Rows between two times, each a parameter. Times never go back along positions, so both become bounds of positions,
/// which every index has.
fn within(table: &str, since: usize, until: usize) -> String {
    let first = |time| {
        format!(
            "(SELECT t.position FROM {table} t WHERE t.recorded_at >= ${time} ORDER BY t.recorded_at, t.position LIMIT 1)"
        )
    };
    format!(
        "(${since}::timestamptz IS NULL OR position >= {}) \
         AND (${until}::timestamptz IS NULL OR position < COALESCE({}, 9223372036854775807))",
        first(since),
        first(until),
    )
}

/// Something that happened to the security of an account.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct SecurityEventResource {
    position: i64,
    recorded_at: DateTime<Utc>,
    /// `log_in`, `log_in_failed`, `refresh_token_reused`, `role_granted` …
    #[schema(example = "log_in_failed")]
    kind: String,
    /// A role that was granted or logged in with; what was wrong: `password` or `second_factor`.
    detail: Option<String>,
    account_id: Uuid,
    session_id: Option<Uuid>,
    /// Who did it, as in the audit.
    actor: String,
    /// The network that the request came from: of an IPv4 address the /24, of an IPv6 address the /40.
    origin: Option<String>,
    /// The address that it came from, of log-ins and what ends them; `null` once the account is erased.
    #[schema(example = "192.0.2.77")]
    source: Option<String>,
}

/// A page of security events.
#[derive(Debug, Serialize, ToSchema)]
struct SecurityEventPage {
    items: Vec<SecurityEventResource>,
    /// For the page behind this one, `null` on the last.
    next_cursor: Option<String>,
}

/// Log-ins and those that failed, reused refresh tokens, passwords, second factors, roles and whatever else is about the
/// security of accounts, the newest first, as long as they are kept (180 days, unless the operator says otherwise). For
/// admins. A log-in that failed for an address that no account has is not among them, and of several at one account
/// within a minute there is one.
#[utoipa::path(
    get, path = "/v1/security-events", tag = "audit", security(("token" = [])),
    params(
        ("account_id" = Option<Uuid>, Query, description = "Of this account"),
        ("kind" = Option<String>, Query, description = "Only of this kind"),
        ("since" = Option<DateTime<Utc>>, Query, description = "Not before this time (RFC 3339)"),
        ("until" = Option<DateTime<Utc>>, Query, description = "Before this time (RFC 3339)"),
        ("limit" = Option<u32>, Query, description = "1 to 100, 20 if left out"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
        ("Tidemark-After" = Option<String>, Header, description = "Wait until the view stands there"),
    ),
    responses(
        (status = 200, body = SecurityEventPage, headers(("Link" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem),
        (status = 503, body = Problem),
    )
)]
async fn security_events(
    State(state): State<QueryState>,
    actor: Actor,
    after: After,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    actor.require(&[])?;
    let known = ["account_id", "kind", "since", "until", "limit", "cursor"];
    let parameters = Parameters::read(query.as_deref(), &known)?;
    let (times, limit) = (Times::read(&parameters)?, parameters.limit()?);
    let account_id: Option<Uuid> = parameters.parse("account_id", "a UUID")?;
    let kind = parameters.one_of("kind", SECURITY_KINDS)?;
    let before: Option<i64> = parameters.cursor()?;
    state.wait(after, &[View::Audit]).await?;
    let instance = state.audit()?;
    let table = format!("views.security_events_{instance}");
    // Once an account is erased nothing of it is opened, though its key may be there for a moment yet.
    let sql = format!(
        "SELECT h.number, s.position, s.recorded_at, s.kind, s.detail, s.account_id, s.session_id, s.actor, \
           s.origin::text, CASE WHEN a.status <> 'erased' THEN s.source END \
         FROM views.head h LEFT JOIN LATERAL (SELECT * FROM {table} \
         WHERE ($2::bigint IS NULL OR position < $2) AND ($3::uuid IS NULL OR account_id = $3) \
           AND ($4::text IS NULL OR kind = $4) AND {within} \
         ORDER BY position DESC LIMIT $1) s ON true \
         LEFT JOIN views.accounts_{instance} a ON a.id = s.account_id ORDER BY s.position DESC",
        within = within(&table, 5, 6),
    );
    let arguments = arguments!(one_more(limit), before, account_id, kind, times.since, times.until)?;
    let rows = state.audit_rows(&sql, arguments).await?;
    let event = |row: &PgRow| {
        let event = SecurityEventResource {
            position: row.try_get(1)?,
            recorded_at: row.try_get(2)?,
            kind: row.try_get(3)?,
            detail: row.try_get(4)?,
            account_id: row.try_get(5)?,
            session_id: row.try_get(6)?,
            actor: row.try_get(7)?,
            origin: row.try_get(8)?,
            source: None,
        };
        Ok((event, row.try_get::<Option<String>, _>(9)?.map(Personal::sealed)))
    };
    let (mut items, mut sources): (Vec<_>, Vec<_>) = items_of(&rows, limit, event)?.into_iter().unzip();
    let sealed = items.iter().zip(&mut sources);
    let mut texts: Vec<_> =
        sealed.filter_map(|(event, source)| Some((event.account_id, "source", source.as_mut()?))).collect();
    state.unseal_page(&mut texts).await?;
    for (event, source) in items.iter_mut().zip(&sources) {
        event.source = source.as_ref().and_then(Personal::text).map(ToOwned::to_owned);
    }
    let next = items.last().filter(|_| rows.len() > limit);
    let next = next.map(|event| parameters.cursor_after(event.position));
    Ok(page("/v1/security-events", &parameters, next, |next_cursor| SecurityEventPage { items, next_cursor }))
}
