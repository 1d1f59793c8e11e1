//! What the routes of accounts work with: states from the log, secrets beside it, and what proves them.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use tidemark_events::account::AccountRole;
use tidemark_events::fact::{AccountEvent, DecodeError};
use tidemark_events::log::{Log, LogError};
use tidemark_events::{Fact, Personal};
use tidemark_http::access::KeyError;
use tidemark_http::{Actor, Email, Problem, Role, problem};
use tidemark_vault::{Vault, VaultError};
use uuid::Uuid;

use super::decider::{Account, EmailClaim, Mailed};
use super::password::{PasswordConfig, PasswordError, Passwords};
use super::refused::RefusedPasswords;
use super::store::{Lifetimes, Store};
use crate::shop::Aggregate;

/// How long a mail that verifies an address can be used, and one that sets a new password.
const VERIFY_WITHIN: TimeDelta = TimeDelta::hours(24);
const RESET_WITHIN: TimeDelta = TimeDelta::hours(1);

/// Bounds of accounts.
#[derive(Debug, Clone, Default)]
pub struct AccountsConfig {
    /// The pool that hashes passwords.
    pub passwords: PasswordConfig,
    /// Passwords that are refused by name.
    pub refused_passwords: RefusedPasswords,
    /// How long tokens hold.
    pub lifetimes: Lifetimes,
    /// Roles that need a second factor.
    pub factor_for: Vec<Role>,
}

/// Signs access tokens with whichever key is the newest.
pub type Sign = Arc<dyn Fn(&Actor, Duration) -> Result<String, KeyError> + Send + Sync>;

/// Accounts, as the routes work with them. Cheap to clone.
#[derive(Clone)]
pub struct Accounts(Arc<Inner>);

struct Inner {
    log: Log,
    store: Store,
    vault: Vault,
    passwords: Passwords,
    sign: Sign,
    factor_for: Vec<AccountRole>,
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Accounts")
    }
}

/// An account as the log has it now.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its id.
    pub id: Uuid,
    /// Its state.
    pub state: Account,
    /// Its e-mail address, sealed.
    pub email: Option<Personal>,
}

/// Why an account cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log's database, which all accounts are in.
    #[error(transparent)]
    Log(#[from] LogError),
    /// This account has an event that this version cannot read.
    #[error(transparent)]
    Event(#[from] DecodeError),
}

impl Accounts {
    /// Starts the threads that hash passwords. `pool` leads to the log's database.
    ///
    /// # Errors
    /// [`PasswordError`] when the parameters are none.
    pub fn new(
        log: Log,
        pool: PgPool,
        vault: Vault,
        sign: Sign,
        config: AccountsConfig,
    ) -> Result<Self, PasswordError> {
        let passwords = Passwords::start(config.passwords, config.refused_passwords)?;
        let factor_for = config.factor_for.into_iter().map(event_role).collect();
        let store = Store::new(pool, config.lifetimes);
        Ok(Self(Arc::new(Inner { log, store, vault, passwords, sign, factor_for })))
    }

    /// Secrets beside the log.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The keys of personal data.
    #[must_use]
    pub fn vault(&self) -> &Vault {
        &self.0.vault
    }

    /// Roles that need a second factor.
    pub(crate) fn factor_for(&self) -> &[AccountRole] {
        &self.0.factor_for
    }

    /// Hashes and compares.
    #[must_use]
    pub fn passwords(&self) -> &Passwords {
        &self.0.passwords
    }

    /// The stream of the claim on an e-mail address.
    #[must_use]
    pub fn claim_of(&self, email: &Email) -> Uuid {
        self.0.vault.claim_of_email(&email.folded())
    }

    /// An access token of a session.
    ///
    /// # Errors
    /// 500.
    pub fn access_token(&self, subject: Uuid, role: Role, session: Uuid) -> Result<String, Problem> {
        let actor = Actor { subject, role, session: Some(session) };
        (self.0.sign)(&actor, self.0.store.lifetimes().access).map_err(|error| {
            tracing::error!(%error, "an access token cannot be signed");
            Problem::new(&problem::INTERNAL, "no access token can be made")
        })
    }

    /// The account that an e-mail address belongs to.
    ///
    /// # Errors
    /// 503.
    pub async fn by_email(&self, email: &Email) -> Result<Option<Known>, Problem> {
        let mut claim = EmailClaim::default();
        let take = |fact| {
            if let Fact::Email(event) = fact {
                claim.evolve(&event);
            }
        };
        self.fold(self.claim_of(email), 0, take).await.map_err(|error| unread(&error))?;
        match claim.owner {
            Some(owner) => self.by_id(owner).await,
            None => Ok(None),
        }
    }

    /// An account.
    ///
    /// # Errors
    /// 503.
    pub async fn by_id(&self, id: Uuid) -> Result<Option<Known>, Problem> {
        self.read(id).await.map_err(|error| unread(&error))
    }

    /// The same, for who has to know whether it is this account or all of them that cannot be read.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(&self, id: Uuid) -> Result<Option<Known>, ReadError> {
        let (mut known, mut version) = (None, 0);
        if let Some(snapshot) = self.0.log.snapshot(id).await?
            && let Some(Aggregate::Account(state)) =
                Aggregate::from_snapshot(snapshot.fold_version, &snapshot.state)
        {
            let mut email = None;
            for event in self.0.log.read_firsts(&[id]).await? {
                // Decisions do not need the address: it is in no state.
                if let Fact::Account(AccountEvent::AccountRegistered(registered)) = event.decode()? {
                    email = Some(registered.email);
                }
            }
            (known, version) = (Some(Known { id, state, email }), snapshot.version);
        }
        let take = |fact| {
            let Fact::Account(event) = fact else { return };
            let known = known.get_or_insert_with(|| Known { id, state: Account::default(), email: None });
            if let AccountEvent::AccountRegistered(registered) = &event {
                known.email = Some(registered.email.clone());
            }
            known.state.evolve(&event);
        };
        self.fold(id, version, take).await?;
        Ok(known)
    }

    /// Every fact of a stream behind a version, to its end: who knows an address can make the stream long with log-ins
    /// that fail, and what counts is behind them.
    async fn fold(
        &self,
        stream_id: Uuid,
        after_version: i64,
        mut take: impl FnMut(Fact),
    ) -> Result<(), ReadError> {
        let mut pages = self.0.log.stream_pages(stream_id, after_version);
        while let Some(events) = pages.next().await? {
            for event in &events {
                take(event.decode()?);
            }
        }
        Ok(())
    }
}

/// The state of a pending mail that is asked for now.
#[must_use]
pub fn verification_mail(now: DateTime<Utc>) -> Mailed {
    Mailed { id: Uuid::now_v7(), expires_at: now + VERIFY_WITHIN }
}

/// The same for a new password.
#[must_use]
pub fn reset_mail(now: DateTime<Utc>) -> Mailed {
    Mailed { id: Uuid::now_v7(), expires_at: now + RESET_WITHIN }
}

/// A role as events name it.
#[must_use]
pub fn event_role(role: Role) -> AccountRole {
    match role {
        Role::Customer => AccountRole::Customer,
        Role::Staff => AccountRole::Staff,
        Role::Analyst => AccountRole::Analyst,
        Role::Operator => AccountRole::Operator,
        Role::Admin => AccountRole::Admin,
    }
}

fn away() -> Problem {
    Problem::new(&problem::UNAVAILABLE, "accounts cannot be read now; nothing was done").with_retry_after(1)
}

fn unread(error: &ReadError) -> Problem {
    tracing::warn!(%error, "a stream of accounts cannot be read");
    away()
}

/// The databases' errors, as clients see them.
pub(crate) fn unavailable(error: &sqlx::Error) -> Problem {
    tracing::warn!(%error, "the secrets of accounts cannot be read or written");
    away()
}

pub(crate) fn vault_problem(error: &VaultError) -> Problem {
    match error {
        VaultError::Erased(id) => problem::no_account(*id),
        VaultError::Database(_) | VaultError::Schema(_) => {
            tracing::warn!(%error, "the keys of accounts cannot be read or written");
            away()
        }
        _ => {
            tracing::error!(%error, "personal data cannot be sealed or opened");
            Problem::new(&problem::INTERNAL, "personal data cannot be read or written")
        }
    }
}

pub(crate) fn password_problem(error: PasswordError) -> Problem {
    match error {
        PasswordError::Busy => {
            metrics::counter!("tidemark_passwords_refused_total").increment(1);
            Problem::new(&problem::OVERLOADED, "too many log-ins at once; nothing was done")
                .with_retry_after(1)
        }
        PasswordError::Broken => {
            tracing::error!("a password could not be hashed or compared");
            Problem::new(&problem::INTERNAL, "the password could not be looked at")
        }
    }
}
