//! Accounts, read from the log itself: they are private, their streams are short as a rule, and so nothing personal rests
//! anywhere in clear text, not in a view, not in a cache, not in Redis. Erasing one empties nothing, and what was
//! written is read at once. Only which accounts there are is a view, and there is nothing personal in it.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tidemark_events::account::{AccountRegistered, AccountRole};
use tidemark_events::fact::{AccountEvent, EmailEvent, SessionEvent};
use tidemark_events::{Fact, Personal, RecordedEvent};
use tidemark_http::{Access, Actor, Email, PathId, Problem, Role, problem};
use tidemark_vault::VaultError;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::audit::{items_of, one_more, page};
use crate::feed::View;
use crate::page::Parameters;
use crate::position::After;
use crate::reads::Planned;
use crate::{QueryState, arguments, log_away, unavailable};

/// How accounts stand, as they are listed by it.
pub const STATUSES: &[&str] = &["pending", "active", "deactivated", "erased"];

/// The most orders of an export; the rest is in the list of orders.
const EXPORTED_ORDERS: i64 = 10_000;

/// The most events of a type in an export. Of each type, so that log-ins that fail, which anybody can cause, take no
/// other's place.
const EXPORTED_EVENTS: usize = 10_000;

pub(crate) fn routes() -> OpenApiRouter<QueryState> {
    OpenApiRouter::new()
        .routes(routes!(list))
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
#[derive(Debug, Clone, Serialize, ToSchema)]
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
    /// What happened to the account, in order: of each type at most the newest 10,000.
    history: Vec<HistoryEntry>,
    /// At most 10,000, the newest first.
    #[schema(value_type = Vec<Object>)]
    orders: Vec<Box<RawValue>>,
}

/// Something that happened to an account.
#[derive(Debug, Serialize, ToSchema)]
struct HistoryEntry {
    event_type: Cow<'static, str>,
    recorded_at: DateTime<Utc>,
    /// Who did it.
    actor: String,
}

/// An account in a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct AccountItem {
    id: Uuid,
    /// `pending`, `active`, `deactivated` or `erased`.
    status: String,
    /// `customer`, `staff`, `analyst`, `operator` or `admin`.
    role: String,
    /// `null` once the account is erased.
    email: Option<String>,
    name: Option<String>,
    /// Whether the e-mail address is verified.
    verified: bool,
    /// Whether a second factor is asked for at log-in.
    second_factor: bool,
    registered_at: DateTime<Utc>,
    /// The version of its stream.
    version: i64,
}

/// A page of accounts.
#[derive(Debug, Serialize, ToSchema)]
struct AccountPage {
    items: Vec<AccountItem>,
    /// For the page behind this one, `null` on the last.
    next_cursor: Option<String>,
}

/// Accounts, the newest first, those that are erased among them. For admins.
#[utoipa::path(
    get, path = "/v1/accounts", tag = "accounts", security(("token" = [])),
    params(
        ("role" = Option<String>, Query, description = "Only of this role"),
        ("status" = Option<String>, Query, description = "pending, active, deactivated or erased"),
        ("limit" = Option<u32>, Query, description = "1 to 100, 20 if left out"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
        ("Tidemark-Email" = Option<String>, Header, description = "Only the one with exactly this e-mail address; case does not count. A header, since addresses of requests are written down on their way"),
        ("Tidemark-After" = Option<String>, Header, description = "Wait until the view stands there"),
    ),
    responses(
        (status = 200, body = AccountPage, headers(("Link" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem),
        (status = 503, body = Problem),
    )
)]
async fn list(
    State(state): State<QueryState>,
    actor: Actor,
    after: After,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    actor.require(&[])?;
    let parameters = Parameters::read(query.as_deref(), &["role", "status", "limit", "cursor"])?;
    let limit = parameters.limit()?;
    let role = parameters.one_of("role", &Role::names())?;
    let status = parameters.one_of("status", STATUSES)?;
    let before: Option<Uuid> = parameters.cursor()?;
    state.wait(after, &[View::Audit]).await?;
    let one = match headers.get("tidemark-email") {
        // Nobody has an id of zeros.
        Some(email) => {
            let email = std::str::from_utf8(email.as_bytes()).unwrap_or_default();
            Some(state.owner_of(email).await?.unwrap_or_default())
        }
        None => None,
    };
    let sql = format!(
        "SELECT h.number, a.id, a.status, a.role, a.verified, a.second_factor, a.registered_at, a.version \
         FROM views.head h LEFT JOIN LATERAL (SELECT * FROM views.accounts_{} \
         WHERE ($2::uuid IS NULL OR id < $2) AND ($3::text IS NULL OR role = $3) \
           AND ($4::text IS NULL OR status = $4) AND ($5::uuid IS NULL OR id = $5) \
         ORDER BY id DESC LIMIT $1) a ON true ORDER BY a.id DESC",
        state.audit()?
    );
    let rows = state.audit_rows(&sql, arguments!(one_more(limit), before, role, status, one)?).await?;
    let item = |row: &PgRow| {
        Ok(AccountItem {
            id: row.try_get(1)?,
            status: row.try_get(2)?,
            role: row.try_get(3)?,
            email: None,
            name: None,
            verified: row.try_get(4)?,
            second_factor: row.try_get(5)?,
            registered_at: row.try_get(6)?,
            version: row.try_get(7)?,
        })
    };
    let mut items = items_of(&rows, limit, item)?;
    state.add_names(&mut items).await?;
    let next = items.last().filter(|_| rows.len() > limit).map(|item| parameters.cursor_after(item.id));
    Ok(page("/v1/accounts", &parameters, next, |next_cursor| AccountPage { items, next_cursor }))
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
    Ok(private(&state.account(id, |_| ()).await?))
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
    state.account(id, |_| ()).await?;
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
    let mut history = History::default();
    let account = state.account(id, |event| history.take(event)).await?;
    let history = history.in_order();
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
pub(crate) fn private(body: &impl Serialize) -> Response {
    let mut response = axum::Json(body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl QueryState {
    /// An account that is not erased; `told` of each of its events.
    async fn account(
        &self,
        id: Uuid,
        mut told: impl FnMut(&RecordedEvent),
    ) -> Result<AccountResource, Problem> {
        let mut account: Option<Account> = None;
        let mut pages = self.0.log.stream_pages(id, 0);
        while let Some(events) = pages.next().await.map_err(|error| log_away(&error))? {
            for (event, fact) in events.iter().zip(decoded(&events)?) {
                let Fact::Account(fact) = fact else { return Err(problem::no_account(id)) };
                match (&mut account, fact) {
                    (_, AccountEvent::AccountErased(_)) => return Err(problem::no_account(id)),
                    (None, AccountEvent::AccountRegistered(fact)) => {
                        account = Some(Account::registered(event, fact));
                    }
                    (None, _) => return Err(problem::no_account(id)),
                    (Some(account), fact) => account.take(event, fact),
                }
                told(event);
            }
        }
        let mut account = account.ok_or_else(|| problem::no_account(id))?;
        self.unseal(id, account.personal()).await?;
        account.opened(id)
    }

    /// The account that an e-mail address belongs to. What is no address belongs to nobody.
    async fn owner_of(&self, email: &str) -> Result<Option<Uuid>, Problem> {
        let Ok(email) = Email::try_from(email.to_owned()) else { return Ok(None) };
        let claim = self.0.vault.claim_of_email(&email.folded());
        let events =
            self.0.log.read_stream_back(claim, i64::MAX, 1).await.map_err(|error| log_away(&error))?;
        Ok(decoded(&events)?.first().and_then(|fact| match fact {
            Fact::Email(EmailEvent::EmailClaimed(claimed)) => Some(claimed.account_id),
            _ => None,
        }))
    }

    /// Reads the names and addresses of a page from the log, all at once, and opens them.
    async fn add_names(&self, items: &mut [AccountItem]) -> Result<(), Problem> {
        let ids: Vec<Uuid> =
            items.iter().filter(|item| item.status != "erased").map(|item| item.id).collect();
        let types = ["AccountRegistered", "ProfileUpdated"];
        let events = self.0.log.read_newest(&ids, &types).await.map_err(|error| log_away(&error))?;
        let mut facts = decoded(&events)?;
        let of_all = events.iter().zip(&mut facts);
        let mut texts: Vec<_> = of_all
            .flat_map(|(event, fact)| {
                fact.personal().into_iter().map(|(field, text)| (event.stream_id, field, text))
            })
            .collect();
        self.unseal_page(&mut texts).await?;
        // A profile that was written later than the registration says what the name is.
        let mut told: Vec<_> = events.iter().zip(&facts).collect();
        told.sort_by_key(|(event, _)| event.position);
        for (event, fact) in told {
            let Some(item) = items.iter_mut().find(|item| item.id == event.stream_id) else { continue };
            match fact {
                Fact::Account(AccountEvent::AccountRegistered(event)) => {
                    item.email = text_of(Some(&event.email));
                    item.name = text_of(event.name.as_ref());
                }
                Fact::Account(AccountEvent::ProfileUpdated(event)) => {
                    item.name = text_of(event.name.as_ref())
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens what is personal on a page. What cannot be opened, for one key is lost, is missing on it; the rest is there.
    pub(crate) async fn unseal_page(
        &self,
        texts: &mut [(Uuid, &'static str, &mut Personal)],
    ) -> Result<(), Problem> {
        let all = texts.iter_mut().map(|(subject, field, text)| (*subject, *field, &mut **text));
        match self.0.vault.unseal_all(all).await {
            Ok(()) => return Ok(()),
            Err(error @ (VaultError::Database(_) | VaultError::Schema(_))) => return Err(keys_away(&error)),
            Err(error) => tracing::error!(%error, "some personal data of a list cannot be opened"),
        }
        for (subject, field, text) in texts {
            match self.0.vault.unseal(*subject, field, text).await {
                Ok(clear) => text.open(clear),
                Err(error @ VaultError::Database(_)) => return Err(keys_away(&error)),
                Err(_) => {}
            }
        }
        Ok(())
    }

    async fn unseal(
        &self,
        subject: Uuid,
        texts: impl Iterator<Item = (&'static str, &mut Personal)>,
    ) -> Result<(), Problem> {
        let texts = texts.map(|(field, text)| (subject, field, text));
        self.0.vault.unseal_all(texts).await.map_err(|error| match error {
            VaultError::Database(_) | VaultError::Schema(_) => keys_away(&error),
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
        let read = |row: &PgRow| -> Result<SessionResource, sqlx::Error> {
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
        self.unseal(id, facts.iter_mut().flat_map(Fact::personal)).await?;
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
        let (_, rows) = self.0.reads.rows(&self.0.standing, needed, &sql, Planned::Once, arguments).await?;
        let body = |row: &PgRow| row.try_get::<Option<String>, _>(0).transpose();
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

/// An account as its events add up to it, whatever is personal in it sealed: only what it comes to is opened.
struct Account {
    status: &'static str,
    /// Whether the e-mail address was ever verified.
    verified: bool,
    role: AccountRole,
    email: Personal,
    name: Option<Personal>,
    phone: Option<Personal>,
    addresses: Vec<(Uuid, Personal)>,
    second_factor: bool,
    registered_at: DateTime<Utc>,
    version: i64,
}

impl Account {
    fn registered(recorded: &RecordedEvent, event: AccountRegistered) -> Self {
        Self {
            status: "pending",
            verified: false,
            role: AccountRole::default(),
            email: event.email,
            name: event.name,
            phone: None,
            addresses: Vec::new(),
            second_factor: false,
            registered_at: recorded.recorded_at,
            version: recorded.version,
        }
    }

    fn take(&mut self, recorded: &RecordedEvent, event: AccountEvent) {
        self.version = recorded.version;
        match event {
            AccountEvent::EmailVerified(_) => {
                self.status = "active";
                self.verified = true;
            }
            AccountEvent::AccountReinstated(_) => {
                self.status = if self.verified { "active" } else { "pending" };
            }
            AccountEvent::AccountDeactivated(_) => self.status = "deactivated",
            AccountEvent::ProfileUpdated(event) => (self.name, self.phone) = (event.name, event.phone),
            AccountEvent::AddressAdded(event) => self.addresses.push((event.address_id, event.address)),
            AccountEvent::AddressRevised(event) => {
                if let Some((_, known)) = self.addresses.iter_mut().find(|(id, _)| *id == event.address_id) {
                    *known = event.address;
                }
            }
            AccountEvent::AddressRemoved(event) => self.addresses.retain(|(id, _)| *id != event.address_id),
            AccountEvent::RoleGranted(event) => self.role = event.role,
            AccountEvent::SecondFactorEnabled(_) => self.second_factor = true,
            AccountEvent::SecondFactorDisabled(_) => self.second_factor = false,
            AccountEvent::AccountRegistered(_)
            | AccountEvent::VerificationRequested(_)
            | AccountEvent::RegistrationRepeated(_)
            | AccountEvent::PasswordResetRequested(_)
            | AccountEvent::PasswordChanged(_)
            | AccountEvent::LoginFailed(_)
            | AccountEvent::AccountErased(_) => {}
        }
    }

    /// What is sealed, each with the field that it was sealed as.
    fn personal(&mut self) -> impl Iterator<Item = (&'static str, &mut Personal)> {
        std::iter::once(("email", &mut self.email))
            .chain(self.name.as_mut().map(|name| ("name", name)))
            .chain(self.phone.as_mut().map(|phone| ("phone", phone)))
            .chain(self.addresses.iter_mut().map(|(_, address)| ("address", address)))
    }

    /// As it is shown, once what is personal has been opened.
    fn opened(self, id: Uuid) -> Result<AccountResource, Problem> {
        let address =
            |(id, address): &(Uuid, Personal)| Ok(AddressResource { id: *id, address: address_of(address)? });
        Ok(AccountResource {
            id,
            status: self.status,
            role: self.role.as_str(),
            email: text_of(Some(&self.email)),
            name: text_of(self.name.as_ref()),
            phone: text_of(self.phone.as_ref()),
            addresses: self.addresses.iter().map(address).collect::<Result<_, Problem>>()?,
            second_factor: self.second_factor,
            registered_at: Some(self.registered_at),
            version: self.version,
        })
    }
}

/// What happened to an account, by type, each with its version.
#[derive(Default)]
struct History(HashMap<Cow<'static, str>, VecDeque<(i64, HistoryEntry)>>);

impl History {
    fn take(&mut self, event: &RecordedEvent) {
        let of_its_type = self.0.entry(event.event_type.clone()).or_default();
        if of_its_type.len() == EXPORTED_EVENTS {
            of_its_type.pop_front();
        }
        let entry = HistoryEntry {
            event_type: event.event_type.clone(),
            recorded_at: event.recorded_at,
            actor: event.metadata.actor.clone(),
        };
        of_its_type.push_back((event.version, entry));
    }

    fn in_order(self) -> Vec<HistoryEntry> {
        let mut entries: Vec<_> = self.0.into_values().flatten().collect();
        entries.sort_unstable_by_key(|(version, _)| *version);
        entries.into_iter().map(|(_, entry)| entry).collect()
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

fn keys_away(error: &VaultError) -> Problem {
    tracing::warn!(%error, "the keys of accounts cannot be read");
    Problem::new(&problem::UNAVAILABLE, "accounts cannot be read now").with_retry_after(1)
}

fn decoded(events: &[RecordedEvent]) -> Result<Vec<Fact>, Problem> {
    let facts: Result<Vec<Fact>, _> = events.iter().map(RecordedEvent::decode).collect();
    facts.map_err(|error| {
        tracing::warn!(%error, "a stream of accounts cannot be read by this version");
        Problem::new(&problem::UNAVAILABLE, "the account was written by a newer version").with_retry_after(5)
    })
}
