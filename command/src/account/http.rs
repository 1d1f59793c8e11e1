//! Routes of accounts and sessions. None of them takes an Idempotency-Key: their bodies hold secrets, of which not even a
//! digest is kept; each can be sent again without harm.

use std::str::FromStr;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tidemark_events::Personal;
use tidemark_events::account::SessionEnd;
use tidemark_events::log::Head;
use tidemark_events::personal::Clear;
use tidemark_http::{Actor, Class, Client, Email, Flow, Json, OptionalJson, PathId, Problem, Role, problem};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::decider::{AccountCommand, AccountStatus, TAKEN};
use super::factor;
use super::link::{Link, Purpose};
use super::password::Verdict;
use super::service::{
    Accounts, Known, event_role, password_problem, reset_mail, unavailable, vault_problem, verification_mail,
};
use super::store::{RefreshToken, Refreshed};
use super::value::{NewPassword, Phone, ShownPassword};
use crate::Command;
use crate::http::{CommandState, json, metadata, now, problem_of};
use crate::value::{AddressLine, PersonName, PostalCode, Reason};
use crate::writer::{Accepted, Render, Rendered, Request};

pub(crate) fn routes() -> OpenApiRouter<CommandState> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(verify))
        .routes(routes!(request_verification))
        .routes(routes!(log_in))
        .routes(routes!(refresh))
        .routes(routes!(log_out))
        .routes(routes!(log_out_everywhere))
        .routes(routes!(change_password))
        .routes(routes!(request_reset))
        .routes(routes!(reset))
        .routes(routes!(update_profile))
        .routes(routes!(add_address))
        .routes(routes!(revise_address, remove_address))
        .routes(routes!(grant_role))
        .routes(routes!(begin_second_factor))
        .routes(routes!(confirm_second_factor))
        .routes(routes!(disable_second_factor))
        .routes(routes!(deactivate))
        .routes(routes!(reinstate))
        .routes(routes!(erase))
}

/// Who did something before there was a token.
const ANONYMOUS: &str = "anonymous";

/// The longest name of a client that is kept.
const CLIENT_MOST: usize = 200;

/// One command, with what its event says of who asked.
async fn submit(
    state: &CommandState,
    by: String,
    flow: Flow,
    command: AccountCommand,
) -> Result<(Accepted, Head), Problem> {
    let render: Render = |outcomes| {
        outcomes.first()?.as_ref().ok()?;
        Some(Rendered { status: 200, location: None, body: Vec::new() })
    };
    let request = Request {
        commands: vec![Command::Account(command)],
        key: None,
        if_match: None,
        now: now(),
        metadata: metadata(flow, by),
        render,
        stop_at_rejection: false,
        bytes: 1_024,
    };
    let answer = state.writer.submit(request).await.map_err(|error| problem_of(&error))?;
    let accepted = answer.outcomes.into_iter().next().and_then(Result::ok);
    let accepted = accepted.ok_or_else(|| Problem::new(&problem::INTERNAL, "the command has no outcome"))?;
    Ok((accepted, answer.head))
}

/// An account as the subject of what it does itself.
fn label_of(id: Uuid) -> String {
    format!("account:{id}")
}

/// An answer that is nobody else's business, and where the log stands with it.
fn answer(status: StatusCode, head: Option<Head>, body: Vec<u8>) -> Response {
    let mut response = if body.is_empty() { status.into_response() } else { (status, body).into_response() };
    let headers = response.headers_mut();
    if status != StatusCode::NO_CONTENT {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(value) = head.and_then(|head| HeaderValue::try_from(head.to_string()).ok()) {
        headers.insert("tidemark-position", value);
    }
    response
}

fn done(head: Head) -> Response {
    answer(StatusCode::NO_CONTENT, Some(head), Vec::new())
}

async fn sealed(
    accounts: &Accounts,
    subject: Uuid,
    field: &'static str,
    text: Option<&str>,
) -> Result<Option<Personal>, Problem> {
    match text {
        Some(text) => {
            let sealed = accounts.vault().seal(subject, field, text).await;
            sealed.map(Some).map_err(|error| vault_problem(&error))
        }
        None => Ok(None),
    }
}

/// Charges who asks, by address and by what is asked about: guessing is slow from one address, and slow at one account.
async fn charge(client: &Client, class: Class, about: &Email) -> Result<(), Problem> {
    client.check_address(class).await?;
    client.check(class, &about.folded()).await
}

/// The same for an account's password, of whoever has a token already.
async fn charge_account(client: &Client, account_id: Uuid) -> Result<(), Problem> {
    client.check_address(Class::LogIn).await?;
    client.check_id(Class::LogIn, account_id).await
}

/// Where a request came from, sealed.
async fn source_of(
    accounts: &Accounts,
    account_id: Uuid,
    client: &Client,
) -> Result<Option<Personal>, Problem> {
    sealed(accounts, account_id, "source", Some(&client.address().to_string())).await
}

/// What a client calls itself, without what does not belong into a text.
fn client_of(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::USER_AGENT)?.to_str().ok()?;
    Some(text.chars().filter(|c| !c.is_control()).take(CLIENT_MOST).collect())
}

/// Somebody who wants an account.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Registration {
    email: Email,
    password: NewPassword,
    #[serde(default)]
    name: Option<PersonName>,
}

/// What is said to whoever gives an address, whether it has an account or not.
#[derive(Debug, Serialize, ToSchema)]
struct Told {
    /// What happens now.
    #[schema(example = "if the address can be used, a mail is on its way")]
    detail: &'static str,
}

const TOLD: Told = Told { detail: "if the address can be used, a mail is on its way" };

/// Registers an account; a mail brings the token that verifies the address. The answer does not tell whether the
/// address has an account already: its owner is told by mail.
#[utoipa::path(
    post, path = "/v1/accounts", tag = "accounts", request_body = Registration,
    responses(
        (status = 202, body = Told, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn register(
    State(state): State<CommandState>,
    flow: Flow,
    client: Client,
    Json(body): Json<Registration>,
) -> Result<Response, Problem> {
    charge(&client, Class::Recovery, &body.email).await?;
    let accounts = &state.accounts;
    let hash = hash(accounts, body.password, Some(&body.email)).await?;
    let (account_id, credential_id) = (Uuid::now_v7(), Uuid::now_v7());
    let vault = accounts.vault();
    vault.make(account_id).await.map_err(|error| vault_problem(&error))?;
    let email = vault.seal(account_id, "email", body.email.as_str()).await;
    let email = email.map_err(|error| vault_problem(&error))?;
    let name = sealed(accounts, account_id, "name", body.name.as_ref().map(PersonName::as_str)).await?;
    let added = accounts.store().add_credential(credential_id, account_id, &hash).await;
    added.map_err(|error| unavailable(&error))?;
    let command = AccountCommand::Register {
        account_id,
        email,
        claim: accounts.claim_of(&body.email),
        name,
        credential_id,
        verification: verification_mail(now()),
    };
    let (accepted, head) = submit(&state, ANONYMOUS.to_owned(), flow, command).await?;
    if accepted.status == TAKEN {
        // Apart, so that it takes no longer than a registration that is taken.
        let accounts = accounts.clone();
        tokio::spawn(async move {
            if let Err(error) = accounts.store().remove_credential(credential_id).await {
                tracing::warn!(%error, "a hash that nobody needs stays");
            }
            if let Err(error) = accounts.vault().forget_unused(account_id).await {
                tracing::warn!(%error, "a key that nobody needs stays");
            }
        });
    }
    Ok(answer(StatusCode::ACCEPTED, Some(head), json(&TOLD)))
}

async fn hash(accounts: &Accounts, password: NewPassword, email: Option<&Email>) -> Result<String, Problem> {
    let hash = accounts.passwords().hash(password, email).await.map_err(password_problem)?;
    hash.ok_or_else(|| {
        let detail = "it is among those that are tried first";
        Problem::new(&problem::WEAK_PASSWORD, detail).with_error("/password", detail)
    })
}

/// A mail's token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Verification {
    /// Of the mail.
    #[schema(min_length = 1, max_length = 200)]
    token: String,
}

/// Verifies an e-mail address with the token of the mail.
#[utoipa::path(
    post, path = "/v1/accounts/email-verifications", tag = "accounts", request_body = Verification,
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 410, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
        (status = 422, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem),
        (status = 504, body = Problem),
    )
)]
async fn verify(
    State(state): State<CommandState>,
    flow: Flow,
    client: Client,
    Json(body): Json<Verification>,
) -> Result<Response, Problem> {
    client.check_address(Class::Recovery).await?;
    let link = read_link(&state.accounts, &body.token, Purpose::Verify)?;
    let command = AccountCommand::VerifyEmail { account_id: link.account_id, verification_id: link.mail_id };
    let (_, head) = submit(&state, label_of(link.account_id), flow, command).await.map_err(void)?;
    Ok(done(head))
}

fn read_link(accounts: &Accounts, token: &str, purpose: Purpose) -> Result<Link, Problem> {
    const MOST: usize = 200;
    let length = token.chars().count();
    if !(1..=MOST).contains(&length) {
        let detail = format!("must have 1 to {MOST} characters, has {length}");
        return Err(Problem::new(&problem::INVALID_VALUE, detail.clone()).with_error("/token", detail));
    }
    Link::read(token, accounts.vault(), purpose).ok_or_else(link_void)
}

fn link_void() -> Problem {
    Problem::new(&problem::LINK_VOID, "the token was used, has expired, or a newer mail was sent")
}

/// The account of a mail may be erased by now: to whoever has the mail that is the same.
fn void(problem: Problem) -> Problem {
    if problem.status() == StatusCode::NOT_FOUND { link_void() } else { problem }
}

/// Whose address.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Address {
    email: Email,
}

/// Asks for another mail that verifies an address. The answer does not tell whether there is such an account.
#[utoipa::path(
    post, path = "/v1/accounts/email-verifications/requests", tag = "accounts", request_body = Address,
    responses(
        (status = 202, body = Told), (status = 400, body = Problem), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem),
        (status = 503, body = Problem),
    )
)]
async fn request_verification(
    State(state): State<CommandState>,
    flow: Flow,
    client: Client,
    Json(body): Json<Address>,
) -> Result<Response, Problem> {
    charge(&client, Class::Recovery, &body.email).await?;
    let answer = in_the_background(state, flow, body.email, |account_id| {
        AccountCommand::RequestVerification { account_id, verification: verification_mail(now()) }
    });
    Ok(answer)
}

/// Does something for the account of an address, if there is one, after the answer: it takes the same time for all.
fn in_the_background(
    state: CommandState,
    flow: Flow,
    email: Email,
    command: impl FnOnce(Uuid) -> AccountCommand + Send + 'static,
) -> Response {
    tokio::spawn(async move {
        let Ok(Some(known)) = state.accounts.by_email(&email).await else { return };
        if let Err(problem) = submit(&state, ANONYMOUS.to_owned(), flow, command(known.id)).await {
            tracing::debug!(?problem, account = %known.id, "a mail that was asked for is not sent");
        }
    });
    answer(StatusCode::ACCEPTED, None, json(&TOLD))
}

/// What somebody shows to log in.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LogIn {
    email: Email,
    password: ShownPassword,
    /// Six digits of the authenticator, if the account has a second factor.
    #[serde(default)]
    #[schema(max_length = 20)]
    one_time_code: Option<String>,
    /// Instead of them, a recovery code.
    #[serde(default)]
    #[schema(max_length = 100)]
    recovery_code: Option<String>,
}

/// What a session is used with.
#[derive(Debug, Serialize, ToSchema)]
struct Tokens {
    /// For the header `Authorization: Bearer`.
    access_token: String,
    /// Always `Bearer`.
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// Seconds until the access token expires.
    #[schema(example = 900)]
    expires_in: u64,
    /// Good for one use, which brings the next: `POST /v1/sessions/refresh`.
    refresh_token: String,
    account_id: Uuid,
    session_id: Uuid,
    /// What the access token may do.
    #[schema(example = "customer")]
    role: String,
}

/// Logs in. What is wrong is not said: an unknown address and a wrong password have one answer, in one time.
#[utoipa::path(
    post, path = "/v1/sessions", tag = "sessions", request_body = LogIn,
    responses(
        (status = 201, body = Tokens), (status = 400, body = Problem),
        (status = 401, body = Problem, description = "login-refused, second-factor-required"),
        (status = 403, body = Problem, description = "email-unverified"), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem),
        (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn log_in(
    State(state): State<CommandState>,
    flow: Flow,
    client: Client,
    headers: HeaderMap,
    Json(body): Json<LogIn>,
) -> Result<Response, Problem> {
    charge(&client, Class::LogIn, &body.email).await?;
    let accounts = &state.accounts;
    let known = accounts.by_email(&body.email).await?;
    if known.is_none() {
        // What a known one costs.
        accounts.by_id(Uuid::nil()).await?;
    }
    if !is_right(accounts, known.as_ref(), &body.password).await? {
        if let Some(known) = known {
            report_failure(state, flow, client, known.id, "password");
        }
        return Err(refused());
    }
    let Some(known) = known else { return Err(refused()) };
    match known.state.status {
        AccountStatus::Active => {}
        AccountStatus::Pending => {
            return Err(Problem::new(&problem::EMAIL_UNVERIFIED, "the e-mail address is not verified"));
        }
        AccountStatus::Deactivated | AccountStatus::Erased => return Err(refused()),
    }
    if let Some(factor_id) = known.state.factor_id {
        let (code, recovery) = (body.one_time_code.as_deref(), body.recovery_code.as_deref());
        if code.is_none() && recovery.is_none() {
            return Err(Problem::new(
                &problem::SECOND_FACTOR_REQUIRED,
                "one_time_code or recovery_code is missing",
            ));
        }
        if !shows_factor(accounts, known.id, factor_id, code, recovery).await? {
            report_failure(state, flow, client, known.id, "second_factor");
            return Err(refused());
        }
    }
    let session_id = Uuid::now_v7();
    let command = AccountCommand::StartSession {
        session_id,
        account_id: known.id,
        credential_id: known.state.credential_id,
        factor_id: known.state.factor_id,
        factor_for: accounts.factor_for().to_vec(),
        source: source_of(accounts, known.id, &client).await?,
        client: sealed(accounts, known.id, "client", client_of(&headers).as_deref()).await?,
    };
    let (accepted, head) = submit(&state, label_of(known.id), flow, command).await?;
    let token = new_refresh_token()?;
    let role = Role::from_str(accepted.status)
        .map_err(|_| Problem::new(&problem::INTERNAL, "the account's role is not known"))?;
    let opened =
        accounts.store().open_session(session_id, known.id, role.as_str(), accepted.position, &token).await;
    opened.map_err(|error| unavailable(&error))?;
    // What ends sessions may have come after the log-in was decided and before its row was there to be ended.
    let still = accounts.by_id(known.id).await?;
    let same = still.is_some_and(|still| {
        still.state.status == AccountStatus::Active
            && still.state.credential_id == known.state.credential_id
            && still.state.role == known.state.role
    });
    if !same {
        accounts.store().end_session(session_id).await.map_err(|error| unavailable(&error))?;
        return Err(refused());
    }
    tokens(accounts, StatusCode::CREATED, Some(head), known.id, session_id, role, &token)
}

fn new_refresh_token() -> Result<RefreshToken, Problem> {
    RefreshToken::generate().ok_or_else(|| Problem::new(&problem::INTERNAL, "no refresh token can be made"))
}

fn tokens(
    accounts: &Accounts,
    status: StatusCode,
    head: Option<Head>,
    account_id: Uuid,
    session_id: Uuid,
    role: Role,
    refresh: &RefreshToken,
) -> Result<Response, Problem> {
    let tokens = Tokens {
        access_token: accounts.access_token(account_id, role, session_id)?,
        token_type: "Bearer",
        expires_in: accounts.store().lifetimes().access.as_secs(),
        refresh_token: refresh.text.to_string(),
        account_id,
        session_id,
        role: role.as_str().to_owned(),
    };
    Ok(answer(status, head, json(&tokens)))
}

fn refused() -> Problem {
    Problem::new(
        &problem::LOGIN_REFUSED,
        "the e-mail address or the password is wrong, or the account cannot be used",
    )
}

/// Whether it is the account's password. It takes as long without an account.
async fn is_right(
    accounts: &Accounts,
    known: Option<&Known>,
    password: &ShownPassword,
) -> Result<bool, Problem> {
    let credential_id = known.map_or(Uuid::nil(), |known| known.state.credential_id);
    let stored = accounts.store().credential(credential_id).await.map_err(|error| unavailable(&error))?;
    let verdict = accounts.passwords().verify(password.normal().cloned(), stored.clone()).await;
    match (verdict.map_err(password_problem)?, stored) {
        (Verdict::Wrong, _) | (_, None) => Ok(false),
        (Verdict::Right, Some(_)) => Ok(true),
        (Verdict::Outdated(newer), Some(stored)) => {
            if let Err(error) = accounts.store().replace_hash(credential_id, &stored, &newer).await {
                tracing::warn!(%error, "a hash stays as cheap as it was");
            }
            Ok(true)
        }
    }
}

async fn shows_factor(
    accounts: &Accounts,
    account_id: Uuid,
    factor_id: Uuid,
    code: Option<&str>,
    recovery: Option<&str>,
) -> Result<bool, Problem> {
    let store = accounts.store();
    if let Some(code) = code {
        let Some(step) = step_shown(accounts, account_id, factor_id, code).await? else { return Ok(false) };
        return store.take_step(factor_id, step).await.map_err(|error| unavailable(&error));
    }
    match recovery {
        Some(code) => {
            let taken = store.take_recovery_code(factor_id, &factor::hash_of(code)).await;
            taken.map_err(|error| unavailable(&error))
        }
        None => Ok(false),
    }
}

/// The time step that a code of a second factor is of.
async fn step_shown(
    accounts: &Accounts,
    account_id: Uuid,
    factor_id: Uuid,
    code: &str,
) -> Result<Option<i64>, Problem> {
    let sealed = accounts.store().factor(factor_id, account_id).await.map_err(|error| unavailable(&error))?;
    let Some(sealed) = sealed else { return Ok(None) };
    let clear = accounts.vault().unseal(account_id, "factor", &Personal::sealed(sealed)).await;
    match clear.map_err(|error| vault_problem(&error))? {
        Clear::Text(secret) => Ok(factor::step_of(&secret, code, now())),
        Clear::Erased | Clear::Unopened => Ok(None),
    }
}

/// Writes down a failed log-in, after the answer.
fn report_failure(state: CommandState, flow: Flow, client: Client, account_id: Uuid, reason: &'static str) {
    metrics::counter!("tidemark_logins_failed_total", "reason" => reason).increment(1);
    tokio::spawn(async move {
        let source = source_of(&state.accounts, account_id, &client).await.ok().flatten();
        let command = AccountCommand::ReportFailure { account_id, reason, source };
        if let Err(problem) = submit(&state, ANONYMOUS.to_owned(), flow, command).await {
            tracing::debug!(?problem, account = %account_id, "a failed log-in is not written down");
        }
    });
}

/// A refresh token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Refresh {
    /// As it was given at log-in, or by the refresh before.
    #[schema(min_length = 1, max_length = 200)]
    refresh_token: String,
}

/// Takes a refresh token and gives the next, with a new access token. A token that is used twice ends its session,
/// unless the second use comes within 60 seconds and nobody has used its successor: then its answer may have been lost.
#[utoipa::path(
    post, path = "/v1/sessions/refresh", tag = "sessions", request_body = Refresh,
    responses(
        (status = 200, body = Tokens), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem),
        (status = 504, body = Problem, description = "outcome-unknown"),
    )
)]
async fn refresh(
    State(state): State<CommandState>,
    flow: Flow,
    client: Client,
    Json(body): Json<Refresh>,
) -> Result<Response, Problem> {
    let accounts = &state.accounts;
    let refused = || Problem::new(&problem::REFRESH_REFUSED, "log in again");
    match accounts.store().refresh(&body.refresh_token).await.map_err(|error| unavailable(&error))? {
        Refreshed::Next { session_id, account_id, role, token } => {
            let role = Role::from_str(&role).map_err(|_| refused())?;
            tokens(accounts, StatusCode::OK, None, account_id, session_id, role, &token)
        }
        Refreshed::Reused { session_id, account_id } => {
            metrics::counter!("tidemark_refresh_tokens_reused_total").increment(1);
            tracing::warn!(session = %session_id, account = %account_id, "a refresh token was used twice, its session is ended");
            let reason = SessionEnd::TokenReused;
            let source = source_of(accounts, account_id, &client).await.ok().flatten();
            let command = AccountCommand::EndSession { session_id, account_id, reason, source };
            if let Err(problem) = submit(&state, ANONYMOUS.to_owned(), flow, command).await {
                tracing::warn!(?problem, session = %session_id, "the end of a session is not written down");
            }
            Err(refused())
        }
        Refreshed::Refused => Err(refused()),
        Refreshed::Unknown(error) => {
            tracing::warn!(%error, "whether a session was refreshed is not known");
            let detail = "whether the session was refreshed is not known: show the same refresh token again within a minute";
            Err(Problem::new(&problem::OUTCOME_UNKNOWN, detail).with_retry_after(1))
        }
    }
}

/// Ends the session of the access token.
#[utoipa::path(
    delete, path = "/v1/sessions/current", tag = "sessions", security(("token" = [])),
    responses(
        (status = 204), (status = 401, body = Problem), (status = 409, body = Problem),
        (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn log_out(
    State(state): State<CommandState>,
    actor: Actor,
    client: Client,
    flow: Flow,
) -> Result<Response, Problem> {
    let Some(session_id) = actor.session else {
        return Err(Problem::new(&problem::STATE_CONFLICT, "the access token is of no session"));
    };
    end_session(&state, &actor, flow, &client, session_id).await.map(done)
}

async fn end_session(
    state: &CommandState,
    actor: &Actor,
    flow: Flow,
    client: &Client,
    session_id: Uuid,
) -> Result<Head, Problem> {
    let store = state.accounts.store();
    store.end_session(session_id).await.map_err(|error| unavailable(&error))?;
    let (account_id, reason) = (actor.subject, SessionEnd::LoggedOut);
    // A token may be of an account that is none of the shop's: then there is nothing to end, and no key to seal with.
    let source = source_of(&state.accounts, account_id, client).await.ok().flatten();
    let command = AccountCommand::EndSession { session_id, account_id, reason, source };
    let (_, head) = submit(state, actor.label(), flow, command).await?;
    Ok(head)
}

/// Ends all sessions of the access token's account.
#[utoipa::path(
    delete, path = "/v1/sessions", tag = "sessions", security(("token" = [])),
    responses(
        (status = 204), (status = 401, body = Problem), (status = 503, body = Problem),
        (status = 504, body = Problem),
    )
)]
async fn log_out_everywhere(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    client: Client,
) -> Result<Response, Problem> {
    let sessions = state.accounts.store().sessions(actor.subject).await;
    let mut head = None;
    for session_id in sessions.map_err(|error| unavailable(&error))? {
        head = Some(end_session(&state, &actor, flow.clone(), &client, session_id).await?);
    }
    Ok(answer(StatusCode::NO_CONTENT, head, Vec::new()))
}

/// The old password and the new one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PasswordChange {
    current_password: ShownPassword,
    password: NewPassword,
}

/// The state of the actor's own account, whose password is shown.
async fn proven(
    accounts: &Accounts,
    actor: &Actor,
    account_id: Uuid,
    password: &ShownPassword,
) -> Result<Known, Problem> {
    actor.require_self(account_id)?;
    let known = accounts.by_id(account_id).await?;
    if !is_right(accounts, known.as_ref(), password).await? {
        return Err(refused());
    }
    known.ok_or_else(refused)
}

/// Sets another password. All other sessions end, and a mail says so.
#[utoipa::path(
    put, path = "/v1/accounts/{id}/password", tag = "accounts", request_body = PasswordChange,
    security(("token" = [])), params(("id" = Uuid, Path)),
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn change_password(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    client: Client,
    PathId(account_id): PathId,
    Json(body): Json<PasswordChange>,
) -> Result<Response, Problem> {
    charge_account(&client, account_id).await?;
    let accounts = &state.accounts;
    let known = proven(accounts, &actor, account_id, &body.current_password).await?;
    let hash = hash(accounts, body.password, None).await?;
    let new = Uuid::now_v7();
    let added = accounts.store().add_credential(new, account_id, &hash).await;
    added.map_err(|error| unavailable(&error))?;
    let (old, kept_session) = (known.state.credential_id, actor.session);
    let command = AccountCommand::ChangePassword { account_id, old, new, kept_session };
    let (accepted, head) = match submit(&state, actor.label(), flow, command).await {
        Ok(done) => done,
        Err(problem) => {
            forget_refused(accounts, new, &problem).await;
            return Err(problem);
        }
    };
    end_sessions(accounts, account_id, accepted.position, kept_session).await?;
    Ok(done(head))
}

/// Forgets the hash of a password that was refused; unless it is not known what came of it.
async fn forget_refused(accounts: &Accounts, credential_id: Uuid, problem: &Problem) {
    if problem.status().is_client_error()
        && let Err(error) = accounts.store().remove_credential(credential_id).await
    {
        tracing::warn!(%error, credential = %credential_id, "the hash of a password that was refused stays");
    }
}

/// What the steward would do, at once.
async fn end_sessions(
    accounts: &Accounts,
    account_id: Uuid,
    position: i64,
    kept: Option<Uuid>,
) -> Result<(), Problem> {
    // The position of the command's last event; sessions that began with it or before it end.
    let ended = accounts.store().end_sessions_before(account_id, position + 1, kept).await;
    ended.map(drop).map_err(|error| unavailable(&error))
}

/// Asks for a mail with which a new password can be set. The answer does not tell whether there is such an account.
#[utoipa::path(
    post, path = "/v1/password-resets", tag = "accounts", request_body = Address,
    responses(
        (status = 202, body = Told), (status = 400, body = Problem), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem),
        (status = 503, body = Problem),
    )
)]
async fn request_reset(
    State(state): State<CommandState>,
    flow: Flow,
    client: Client,
    Json(body): Json<Address>,
) -> Result<Response, Problem> {
    charge(&client, Class::Recovery, &body.email).await?;
    let answer = in_the_background(state, flow, body.email, |account_id| AccountCommand::RequestReset {
        account_id,
        reset: reset_mail(now()),
    });
    Ok(answer)
}

/// A mail's token and the new password.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reset {
    /// Of the mail.
    #[schema(min_length = 1, max_length = 200)]
    token: String,
    password: NewPassword,
}

/// Sets a new password with the token of the mail. All sessions end; the address counts as verified.
#[utoipa::path(
    post, path = "/v1/password-resets/completion", tag = "accounts", request_body = Reset,
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 410, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
        (status = 422, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem),
        (status = 504, body = Problem),
    )
)]
async fn reset(
    State(state): State<CommandState>,
    flow: Flow,
    client: Client,
    Json(body): Json<Reset>,
) -> Result<Response, Problem> {
    client.check_address(Class::Recovery).await?;
    let accounts = &state.accounts;
    let link = read_link(accounts, &body.token, Purpose::Reset)?;
    let hash = hash(accounts, body.password, None).await?;
    let (account_id, credential_id) = (link.account_id, Uuid::now_v7());
    let added = accounts.store().add_credential(credential_id, account_id, &hash).await;
    added.map_err(|error| unavailable(&error))?;
    let command = AccountCommand::Reset { account_id, reset_id: link.mail_id, credential_id };
    let outcome = submit(&state, label_of(account_id), flow, command).await;
    match outcome {
        Ok((accepted, head)) => {
            end_sessions(accounts, account_id, accepted.position, None).await?;
            Ok(done(head))
        }
        Err(problem) => {
            forget_refused(accounts, credential_id, &problem).await;
            Err(void(problem))
        }
    }
}

/// How somebody wants to be called and can be reached; what is left out is removed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Profile {
    #[serde(default)]
    name: Option<PersonName>,
    #[serde(default)]
    phone: Option<Phone>,
}

/// Writes the profile anew.
#[utoipa::path(
    put, path = "/v1/accounts/{id}/profile", tag = "accounts", request_body = Profile,
    security(("token" = [])), params(("id" = Uuid, Path)),
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn update_profile(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    PathId(account_id): PathId,
    Json(body): Json<Profile>,
) -> Result<Response, Problem> {
    let accounts = &state.accounts;
    must_exist(accounts, &actor, account_id).await?;
    let command = AccountCommand::UpdateProfile {
        account_id,
        name: sealed(accounts, account_id, "name", body.name.as_ref().map(PersonName::as_str)).await?,
        phone: sealed(accounts, account_id, "phone", body.phone.as_ref().map(Phone::as_str)).await?,
    };
    submit(&state, actor.label(), flow, command).await.map(|(_, head)| done(head))
}

/// Only what exists has a key to seal with.
async fn must_exist(accounts: &Accounts, actor: &Actor, account_id: Uuid) -> Result<(), Problem> {
    actor.require_account(account_id, &[])?;
    match accounts.by_id(account_id).await? {
        Some(known) if known.state.status != AccountStatus::Erased => Ok(()),
        _ => Err(problem::no_account(account_id)),
    }
}

/// An address that things are sent to.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PostalAddress {
    /// Who receives it.
    name: PersonName,
    /// Street and number, or what stands for them.
    line1: AddressLine,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    line2: Option<AddressLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    postal_code: Option<PostalCode>,
    city: AddressLine,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    region: Option<AddressLine>,
    /// ISO 3166-1 alpha-2.
    country: Country,
}

/// Two letters of ISO 3166-1.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[A-Z]{2}$", example = "DE")]
struct Country(String);

impl TryFrom<String> for Country {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let sound = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_uppercase());
        sound.then_some(Self(text)).ok_or("must be two upper-case letters of ISO 3166-1, like DE")
    }
}

impl From<Country> for String {
    fn from(country: Country) -> Self {
        country.0
    }
}

/// The id of what was made.
#[derive(Debug, Serialize, ToSchema)]
struct Made {
    id: Uuid,
}

async fn sealed_address(
    accounts: &Accounts,
    account_id: Uuid,
    address: &PostalAddress,
) -> Result<Personal, Problem> {
    let text = String::from_utf8(json(address))
        .map_err(|_| Problem::new(&problem::INTERNAL, "the address cannot be written as JSON"))?;
    accounts.vault().seal(account_id, "address", &text).await.map_err(|error| vault_problem(&error))
}

/// Adds an address to the address book, which holds 100.
#[utoipa::path(
    post, path = "/v1/accounts/{id}/addresses", tag = "accounts", request_body = PostalAddress,
    security(("token" = [])), params(("id" = Uuid, Path)),
    responses(
        (status = 201, body = Made, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn add_address(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    PathId(account_id): PathId,
    Json(body): Json<PostalAddress>,
) -> Result<Response, Problem> {
    let accounts = &state.accounts;
    must_exist(accounts, &actor, account_id).await?;
    let address = sealed_address(accounts, account_id, &body).await?;
    let command = AccountCommand::AddAddress { account_id, address_id: Uuid::now_v7(), address };
    let (accepted, head) = submit(&state, actor.label(), flow, command).await?;
    Ok(answer(StatusCode::CREATED, Some(head), json(&Made { id: accepted.id })))
}

/// An account that is not one's own and an address that it does not have are one answer.
fn no_address(account_id: Uuid, address_id: Uuid) -> impl FnOnce(Problem) -> Problem {
    move |problem| {
        if problem.status() != StatusCode::NOT_FOUND {
            return problem;
        }
        Problem::new(&problem::NOT_FOUND, format!("account {account_id} has no address {address_id}"))
    }
}

/// The two ids of an address's path; what is no UUID names nothing.
type AddressPath = Result<Path<(Uuid, Uuid)>, axum::extract::rejection::PathRejection>;

fn ids(path: AddressPath) -> Result<(Uuid, Uuid), Problem> {
    path.map(|Path(ids)| ids).map_err(|_| Problem::new(&problem::NOT_FOUND, "nothing has this id"))
}

/// Writes an address anew.
#[utoipa::path(
    put, path = "/v1/accounts/{id}/addresses/{address_id}", tag = "accounts", request_body = PostalAddress,
    security(("token" = [])), params(("id" = Uuid, Path), ("address_id" = Uuid, Path)),
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn revise_address(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    path: AddressPath,
    Json(body): Json<PostalAddress>,
) -> Result<Response, Problem> {
    let (account_id, address_id) = ids(path)?;
    let accounts = &state.accounts;
    let revised = async {
        must_exist(accounts, &actor, account_id).await?;
        let address = sealed_address(accounts, account_id, &body).await?;
        let command = AccountCommand::ReviseAddress { account_id, address_id, address };
        submit(&state, actor.label(), flow, command).await
    };
    revised.await.map(|(_, head)| done(head)).map_err(no_address(account_id, address_id))
}

/// Removes an address.
#[utoipa::path(
    delete, path = "/v1/accounts/{id}/addresses/{address_id}", tag = "accounts", security(("token" = [])),
    params(("id" = Uuid, Path), ("address_id" = Uuid, Path)),
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 401, body = Problem),
        (status = 404, body = Problem), (status = 409, body = Problem), (status = 429, body = Problem),
        (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn remove_address(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    path: AddressPath,
) -> Result<Response, Problem> {
    let (account_id, address_id) = ids(path)?;
    let removed = async {
        actor.require_account(account_id, &[])?;
        let command = AccountCommand::RemoveAddress { account_id, address_id };
        submit(&state, actor.label(), flow, command).await
    };
    removed.await.map(|(_, head)| done(head)).map_err(no_address(account_id, address_id))
}

/// What an account may do.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Grant {
    role: Role,
}

/// Gives an account a role, in the place of the one it has; `customer` takes every other away. Its sessions end. Admins
/// do so, to others.
#[utoipa::path(
    put, path = "/v1/accounts/{id}/role", tag = "accounts", request_body = Grant, security(("token" = [])),
    params(("id" = Uuid, Path)),
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
        (status = 422, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem),
        (status = 504, body = Problem),
    )
)]
async fn grant_role(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    PathId(account_id): PathId,
    Json(body): Json<Grant>,
) -> Result<Response, Problem> {
    actor.require(&[])?;
    if actor.subject == account_id {
        return Err(Problem::new(&problem::STATE_CONFLICT, "nobody changes the role of their own account"));
    }
    let command = AccountCommand::GrantRole { account_id, role: event_role(body.role) };
    end_with(&state, &actor, flow, account_id, command).await
}

/// Does what ends an account's sessions.
async fn end_with(
    state: &CommandState,
    actor: &Actor,
    flow: Flow,
    account_id: Uuid,
    command: AccountCommand,
) -> Result<Response, Problem> {
    let (accepted, head) = submit(state, actor.label(), flow, command).await?;
    end_sessions(&state.accounts, account_id, accepted.position, None).await?;
    Ok(done(head))
}

/// The account's password.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Proof {
    password: ShownPassword,
}

/// A second factor that is not asked for yet.
#[derive(Debug, Serialize, ToSchema)]
struct NewFactor {
    /// What the confirmation names.
    factor_id: Uuid,
    /// For the authenticator, in base32.
    secret: String,
    /// The same as it stands in a QR code.
    url: String,
    /// Each can be used once in the place of a code. They are not shown again.
    recovery_codes: Vec<String>,
}

/// Makes a second factor; it is asked for once a code of it was shown.
#[utoipa::path(
    post, path = "/v1/accounts/{id}/second-factor", tag = "accounts", request_body = Proof,
    security(("token" = [])), params(("id" = Uuid, Path)),
    responses(
        (status = 201, body = NewFactor), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 404, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
        (status = 422, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem),
    )
)]
async fn begin_second_factor(
    State(state): State<CommandState>,
    actor: Actor,
    client: Client,
    PathId(account_id): PathId,
    Json(body): Json<Proof>,
) -> Result<Response, Problem> {
    charge_account(&client, account_id).await?;
    let accounts = &state.accounts;
    let known = proven(accounts, &actor, account_id, &body.password).await?;
    let no_randomness = || Problem::new(&problem::INTERNAL, "no second factor can be made");
    let secret = factor::new_secret().ok_or_else(no_randomness)?;
    let codes = factor::new_recovery_codes().ok_or_else(no_randomness)?;
    let sealed = accounts.vault().seal(account_id, "factor", &secret).await;
    let sealed = sealed.map_err(|error| vault_problem(&error))?;
    let factor_id = Uuid::now_v7();
    let hashes: Vec<Vec<u8>> = codes.iter().map(|(_, hash)| hash.clone()).collect();
    let added = accounts.store().add_factor(factor_id, account_id, sealed.as_sealed(), &hashes).await;
    added.map_err(|error| unavailable(&error))?;
    let label = match &known.email {
        Some(email) => accounts.vault().unseal(account_id, "email", email).await,
        None => Ok(Clear::Unopened),
    };
    let label = match label.map_err(|error| vault_problem(&error))? {
        Clear::Text(email) => email.into_string(),
        Clear::Erased | Clear::Unopened => account_id.to_string(),
    };
    let factor = NewFactor {
        factor_id,
        url: factor::authenticator_url(&secret, &label),
        secret: secret.to_string(),
        recovery_codes: codes.iter().map(|(code, _)| code.to_string()).collect(),
    };
    Ok(answer(StatusCode::CREATED, None, json(&factor)))
}

/// A code of a new second factor.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Confirmation {
    factor_id: Uuid,
    /// Six digits of the authenticator.
    #[schema(max_length = 20)]
    one_time_code: String,
}

/// Shows a code of a new second factor: it is asked for from here on.
#[utoipa::path(
    put, path = "/v1/accounts/{id}/second-factor/confirmation", tag = "accounts", request_body = Confirmation,
    security(("token" = [])), params(("id" = Uuid, Path)),
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn confirm_second_factor(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    client: Client,
    PathId(account_id): PathId,
    Json(body): Json<Confirmation>,
) -> Result<Response, Problem> {
    charge_account(&client, account_id).await?;
    actor.require_self(account_id)?;
    let accounts = &state.accounts;
    let factor_id = body.factor_id;
    if !shows_factor(accounts, account_id, factor_id, Some(&body.one_time_code), None).await? {
        let detail = "it is not the code of this moment";
        return Err(Problem::new(&problem::INVALID_VALUE, detail).with_error("/one_time_code", detail));
    }
    let command = AccountCommand::EnableSecondFactor { account_id, factor_id };
    submit(&state, actor.label(), flow, command).await.map(|(_, head)| done(head))
}

/// Asks for no second factor any more.
#[utoipa::path(
    post, path = "/v1/accounts/{id}/second-factor/removal", tag = "accounts", request_body = Proof,
    security(("token" = [])), params(("id" = Uuid, Path)),
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem),
        (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn disable_second_factor(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    client: Client,
    PathId(account_id): PathId,
    Json(body): Json<Proof>,
) -> Result<Response, Problem> {
    charge_account(&client, account_id).await?;
    proven(&state.accounts, &actor, account_id, &body.password).await?;
    let command = AccountCommand::DisableSecondFactor { account_id };
    submit(&state, actor.label(), flow, command).await.map(|(_, head)| done(head))
}

/// Why an account is closed to log-ins.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Deactivation {
    #[serde(default)]
    reason: Option<Reason>,
}

/// Lets nobody log in to an account; its sessions end. Its owner does so, or the staff. The body may be left out.
#[utoipa::path(
    post, path = "/v1/accounts/{id}/deactivation", tag = "accounts", request_body = Option<Deactivation>,
    security(("token" = [])), params(("id" = Uuid, Path)),
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem),
        (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn deactivate(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    PathId(account_id): PathId,
    OptionalJson(body): OptionalJson<Deactivation>,
) -> Result<Response, Problem> {
    actor.require_account(account_id, &[Role::Staff])?;
    let reason = body.unwrap_or_default().reason.map(|reason| reason.to_string());
    let command = AccountCommand::Deactivate { account_id, reason };
    end_with(&state, &actor, flow, account_id, command).await
}

/// Lets the owner of a deactivated account log in again. The staff does so. If its e-mail address was never verified, it
/// is pending again.
#[utoipa::path(
    delete, path = "/v1/accounts/{id}/deactivation", tag = "accounts", security(("token" = [])),
    params(("id" = Uuid, Path)),
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 401, body = Problem),
        (status = 403, body = Problem), (status = 404, body = Problem), (status = 429, body = Problem),
        (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn reinstate(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    PathId(account_id): PathId,
) -> Result<Response, Problem> {
    actor.require(&[Role::Staff])?;
    let command = AccountCommand::Reinstate { account_id };
    submit(&state, actor.label(), flow, command).await.map(|(_, head)| done(head))
}

/// The password of whoever erases their own account.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Erasure {
    #[serde(default)]
    password: Option<ShownPassword>,
}

/// Forgets a person: the account's key is destroyed, and with it all that is personal, wherever it went. It cannot be
/// undone. The owner shows the password; admins need none.
#[utoipa::path(
    post, path = "/v1/accounts/{id}/erasure", tag = "accounts", request_body = Option<Erasure>,
    security(("token" = [])), params(("id" = Uuid, Path)),
    responses(
        (status = 204, headers(("Tidemark-Position" = String))), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 413, body = Problem),
        (status = 415, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem),
        (status = 503, body = Problem), (status = 504, body = Problem),
    )
)]
async fn erase(
    State(state): State<CommandState>,
    actor: Actor,
    flow: Flow,
    client: Client,
    PathId(account_id): PathId,
    OptionalJson(body): OptionalJson<Erasure>,
) -> Result<Response, Problem> {
    charge_account(&client, account_id).await?;
    actor.require_account(account_id, &[])?;
    let accounts = &state.accounts;
    if actor.subject == account_id {
        let shown = body.unwrap_or_default().password;
        let shown = shown.ok_or_else(|| {
            let detail = "is needed to erase one's own account";
            Problem::new(&problem::INVALID_VALUE, detail).with_error("/password", detail)
        })?;
        proven(accounts, &actor, account_id, &shown).await?;
    }
    let command = AccountCommand::Erase { account_id };
    end_with(&state, &actor, flow, account_id, command).await
}
