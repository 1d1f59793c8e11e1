//! Accounts, read from the log itself: they are few and private, their streams are short, and so nothing personal rests
//! anywhere in clear text, not in a view, not in a cache, not in Redis. Erasing one empties nothing, and what was
//! written is read at once.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::Row;
use tidemark_events::account::AccountRole;
use tidemark_events::fact::{AccountEvent, SessionEvent};
use tidemark_events::log::LogError;
use tidemark_events::{Fact, Personal, RecordedEvent};
use tidemark_http::{Access, Actor, PathId, Problem, Role, problem};
use tidemark_vault::VaultError;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::feed::View;
use crate::position::After;
use crate::{QueryState, arguments, unavailable};

/// Events of an account that are read at once; it has far fewer.
const STREAM_PAGE: i64 = 5_000;

/// The most orders of an export; the rest is in the list of orders.
const EXPORTED_ORDERS: i64 = 10_000;

pub(crate) fn routes() -> OpenApiRouter<QueryState> {
    OpenApiRouter::new()
        .routes(routes!(one))
        .routes(routes!(sessions))
        .routes(routes!(export))
        .routes(routes!(keys))
}

/// An address of an address book.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct AddressResource {
    id: Uuid,
    /// As it was written.
    #[schema(value_type = Object)]
    address: Box<RawValue>,
}

/// An account.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
struct AccountResource {
    id: Uuid,
    /// `pending`, `active` or `deactivated`.
    status: &'static str,
    /// `customer`, `staff`, `analyst`, `operator` or `admin`.
    role: &'static str,
    email: Option<String>,
    name: Option<String>,
    phone: Option<String>,
    addresses: Vec<AddressResource>,
    /// Whether a second factor is asked for at log-in.
    second_factor: bool,
    registered_at: Option<DateTime<Utc>>,
    /// The version of its stream.
    version: i64,
}

/// A session of an account.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct SessionResource {
    id: Uuid,
    started_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<DateTime<Utc>>,
    /// What the client called itself.
    client: Option<String>,
    /// The address that the log-in came from.
    source: Option<String>,
}

/// All that is known of somebody.
#[derive(Debug, Serialize, ToSchema)]
struct Export {
    account: AccountResource,
    sessions: Vec<SessionResource>,
    /// What happened to the account, in order.
    history: Vec<HistoryEntry>,
    /// At most 10,000, the newest first.
    #[schema(value_type = Vec<Object>)]
    orders: Vec<Box<RawValue>>,
}

/// Something that happened to an account.
#[derive(Debug, Serialize, ToSchema)]
struct HistoryEntry {
    event_type: String,
    recorded_at: DateTime<Utc>,
    /// Who did it.
    actor: String,
}

/// An account, to its owner and to the staff. Everybody else is told that there is none.
#[utoipa::path(
    get, path = "/v1/accounts/{id}", tag = "accounts", security(("token" = [])), params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = AccountResource), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem),
    )
)]
async fn one(State(state): State<QueryState>, actor: Actor, PathId(id): PathId) -> Result<Response, Problem> {
    actor.require_account(id, &[Role::Staff])?;
    let (account, _) = state.account(id).await?;
    Ok(private(&account))
}

/// The sessions of an account, the newest first, as long as their tokens could be used.
#[utoipa::path(
    get, path = "/v1/accounts/{id}/sessions", tag = "sessions", security(("token" = [])), params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = Vec<SessionResource>), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem),
    )
)]
async fn sessions(
    State(state): State<QueryState>,
    actor: Actor,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    actor.require_account(id, &[Role::Staff])?;
    state.account(id).await?;
    Ok(private(&state.sessions(id).await?))
}

/// All that is known of somebody, for themselves: profile, address book, sessions, what happened, orders.
#[utoipa::path(
    get, path = "/v1/accounts/{id}/export", tag = "accounts", security(("token" = [])),
    params(("id" = Uuid, Path), ("Tidemark-After" = Option<String>, Header)),
    responses(
        (status = 200, body = Export), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 404, body = Problem), (status = 409, body = Problem), (status = 429, body = Problem),
        (status = 503, body = Problem),
    )
)]
async fn export(
    State(state): State<QueryState>,
    actor: Actor,
    after: After,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    actor.require_account(id, &[])?;
    let (account, events) = state.account(id).await?;
    let history = events
        .iter()
        .map(|event| HistoryEntry {
            event_type: event.event_type.to_string(),
            recorded_at: event.recorded_at,
            actor: event.metadata.actor.clone(),
        })
        .collect();
    state.wait(after, &[View::Orders]).await?;
    let orders = state.orders_of(id).await?;
    Ok(private(&Export { account, sessions: state.sessions(id).await?, history, orders }))
}

/// The public keys that access tokens are signed with (RFC 7517). A shop with a secret publishes none.
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "sessions",
    responses((status = 200, body = serde_json::Value, content_type = "application/jwk-set+json"))
)]
async fn keys(State(access): State<Access>) -> Response {
    let headers =
        [(header::CONTENT_TYPE, "application/jwk-set+json"), (header::CACHE_CONTROL, "public, max-age=10")];
    (headers, access.published().to_string()).into_response()
}

/// Kept by nobody on the way.
fn private(body: &impl Serialize) -> Response {
    let mut response = axum::Json(body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl QueryState {
    /// An account that is not erased, and what happened to it.
    async fn account(&self, id: Uuid) -> Result<(AccountResource, Vec<RecordedEvent>), Problem> {
        let events = self.0.log.read_stream(id, 0, STREAM_PAGE).await.map_err(|error| log_away(&error))?;
        let mut facts = decoded(&events)?;
        let is_account = matches!(facts.first(), Some(Fact::Account(AccountEvent::AccountRegistered(_))));
        let is_erased =
            facts.iter().any(|fact| matches!(fact, Fact::Account(AccountEvent::AccountErased(_))));
        if !is_account || is_erased {
            return Err(problem::no_account(id));
        }
        self.unseal(id, &mut facts).await?;
        let mut account = AccountResource {
            id,
            status: "pending",
            role: AccountRole::default().as_str(),
            ..Default::default()
        };
        for (event, fact) in events.iter().zip(&facts) {
            account.version = event.version;
            if let Fact::Account(fact) = fact {
                account.take(event, fact)?;
            }
        }
        Ok((account, events))
    }

    async fn unseal(&self, subject: Uuid, facts: &mut [Fact]) -> Result<(), Problem> {
        let texts = facts.iter_mut().flat_map(Fact::personal).map(|(field, text)| (subject, field, text));
        self.0.vault.unseal_all(texts).await.map_err(|error| match error {
            VaultError::Database(_) | VaultError::Schema(_) => {
                tracing::warn!(%error, "the keys of accounts cannot be read");
                Problem::new(&problem::UNAVAILABLE, "accounts cannot be read now").with_retry_after(1)
            }
            _ => {
                tracing::error!(%error, account = %subject, "personal data cannot be opened");
                Problem::new(&problem::INTERNAL, "personal data cannot be read")
            }
        })
    }

    async fn sessions(&self, id: Uuid) -> Result<Vec<SessionResource>, Problem> {
        let rows = sqlx::query(
            "SELECT session_id, started_at, expires_at, ended_at FROM accounts.sessions \
             WHERE account_id = $1 ORDER BY session_id DESC LIMIT 100",
        )
        .bind(id)
        .fetch_all(self.0.log.pool())
        .await
        .map_err(|error| unavailable(&error))?;
        let read = |row: &sqlx::postgres::PgRow| -> Result<SessionResource, sqlx::Error> {
            Ok(SessionResource {
                id: row.try_get(0)?,
                started_at: row.try_get(1)?,
                expires_at: row.try_get(2)?,
                ended_at: row.try_get(3)?,
                client: None,
                source: None,
            })
        };
        let sessions: Result<Vec<_>, _> = rows.iter().map(read).collect();
        let mut sessions = sessions.map_err(|error| unavailable(&error))?;
        let ids: Vec<Uuid> = sessions.iter().map(|session| session.id).collect();
        let events = self.0.log.read_firsts(&ids).await.map_err(|error| log_away(&error))?;
        let mut facts = decoded(&events)?;
        self.unseal(id, &mut facts).await?;
        for (event, fact) in events.iter().zip(&facts) {
            let session = sessions.iter_mut().find(|session| session.id == event.stream_id);
            if let (Some(session), Fact::Session(SessionEvent::SessionStarted(started))) = (session, fact) {
                session.client = text_of(started.client.as_ref());
                session.source = text_of(started.source.as_ref());
            }
        }
        Ok(sessions)
    }

    async fn orders_of(&self, customer: Uuid) -> Result<Vec<Box<RawValue>>, Problem> {
        let instance = self.tables(&[View::Orders])?.orders;
        let needed = self.0.cache.needed_of_views(&[View::Orders]);
        let sql = format!(
            "SELECT o.body, h.number FROM views.head h LEFT JOIN LATERAL (SELECT id, body \
             FROM views.orders_{instance} WHERE customer_id = $1 ORDER BY id DESC LIMIT $2) o ON true ORDER BY o.id DESC"
        );
        let arguments = arguments!(customer, EXPORTED_ORDERS)?;
        let (_, rows) = self.0.reads.rows(&self.0.standing, needed, &sql, arguments).await?;
        let body = |row: &sqlx::postgres::PgRow| row.try_get::<Option<String>, _>(0).transpose();
        rows.iter()
            .filter_map(body)
            .map(|body| {
                let body = body.map_err(|error| unavailable(&error))?;
                RawValue::from_string(body).map_err(|error| {
                    tracing::error!(%error, "a stored body is not JSON");
                    Problem::new(&problem::INTERNAL, "a stored body cannot be read")
                })
            })
            .collect()
    }
}

impl AccountResource {
    fn take(&mut self, recorded: &RecordedEvent, event: &AccountEvent) -> Result<(), Problem> {
        match event {
            AccountEvent::AccountRegistered(event) => {
                self.email = text_of(Some(&event.email));
                self.name = text_of(event.name.as_ref());
                self.registered_at = Some(recorded.recorded_at);
            }
            AccountEvent::EmailVerified(_) | AccountEvent::AccountReinstated(_) => self.status = "active",
            AccountEvent::AccountDeactivated(_) => self.status = "deactivated",
            AccountEvent::ProfileUpdated(event) => {
                self.name = text_of(event.name.as_ref());
                self.phone = text_of(event.phone.as_ref());
            }
            AccountEvent::AddressAdded(event) => {
                let address = address_of(&event.address)?;
                self.addresses.push(AddressResource { id: event.address_id, address });
            }
            AccountEvent::AddressRevised(event) => {
                let address = address_of(&event.address)?;
                for known in self.addresses.iter_mut().filter(|known| known.id == event.address_id) {
                    known.address.clone_from(&address);
                }
            }
            AccountEvent::AddressRemoved(event) => {
                self.addresses.retain(|known| known.id != event.address_id)
            }
            AccountEvent::RoleGranted(event) => self.role = event.role.as_str(),
            AccountEvent::SecondFactorEnabled(_) => self.second_factor = true,
            AccountEvent::SecondFactorDisabled(_) => self.second_factor = false,
            AccountEvent::VerificationRequested(_)
            | AccountEvent::RegistrationRepeated(_)
            | AccountEvent::PasswordResetRequested(_)
            | AccountEvent::PasswordChanged(_)
            | AccountEvent::LoginFailed(_)
            | AccountEvent::AccountErased(_) => {}
        }
        Ok(())
    }
}

fn text_of(personal: Option<&Personal>) -> Option<String> {
    personal.and_then(Personal::text).map(ToOwned::to_owned)
}

fn address_of(personal: &Personal) -> Result<Box<RawValue>, Problem> {
    let text = personal.text().unwrap_or("null").to_owned();
    RawValue::from_string(text).map_err(|error| {
        tracing::error!(%error, "a sealed address is not JSON");
        Problem::new(&problem::INTERNAL, "an address cannot be read")
    })
}

fn decoded(events: &[RecordedEvent]) -> Result<Vec<Fact>, Problem> {
    let facts: Result<Vec<Fact>, _> = events.iter().map(RecordedEvent::decode).collect();
    facts.map_err(|error| {
        tracing::warn!(%error, "a stream of accounts cannot be read by this version");
        Problem::new(&problem::UNAVAILABLE, "the account was written by a newer version").with_retry_after(5)
    })
}

fn log_away(error: &LogError) -> Problem {
    tracing::warn!(%error, "cannot read the log");
    Problem::new(&problem::UNAVAILABLE, "accounts cannot be read now").with_retry_after(1)
}
