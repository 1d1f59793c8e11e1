//! The steward of accounts: follows the log and does what its events ask for beside it. Sessions end with what ends
//! them, keys and secrets are destroyed with the account, mails are sent.
//!
//! One process at a time does it, under a lease. Whatever it does may be done twice, after a crash or by one that slept
//! past its lease; the checkpoint moves only when it is done, so nothing is left out. Routes end sessions at once by
//! themselves; the steward is what holds when they are killed before they could.

use std::time::{Duration, Instant};

use sqlx::Row;
use tidemark_events::account::SessionEnd;
use tidemark_events::fact::{AccountEvent, SessionEvent};
use tidemark_events::log::{Filter, Lease, Log, LogError};
use tidemark_events::personal::Clear;
use tidemark_events::{Fact, Position, RecordedEvent, stream};
use tidemark_vault::VaultError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::link::{Link, Purpose};
use super::mail::{Kind, MailError, Mailer};
use super::service::{Accounts, ReadError};

/// How long the lease holds without being renewed.
const HELD_FOR: Duration = Duration::from_secs(5);

/// How often the log is looked at, and how often the lease is asked for.
const POLL: Duration = Duration::from_millis(250);
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How long whoever has failed leaves the lease to others, who ask for it sooner: one of them may be able to go on.
const STAND_BACK: Duration = Duration::from_secs(3);

/// Events of one step, and mails of one round.
const AT_ONCE: usize = 500;
const MAILS_AT_ONCE: i64 = 20;

/// How often what has expired is deleted, and how much at once.
const FORGET_EVERY: Duration = Duration::from_secs(60);
const FORGET_AT_ONCE: i64 = 1_000;

/// A mail is tried so often, with pauses from a second to an hour: about a day.
const TRIES: i32 = 30;

/// One that the mail server refuses for good is tried so often, about an hour: time to mend the server, and not so much
/// that it takes the shop for somebody who sends to addresses that are none.
const TRIES_REFUSED: i32 = 13;

/// A mail about what happened longer ago is not begun.
const MAILED_WITHIN: chrono::TimeDelta = chrono::TimeDelta::days(2);

/// Why a step failed; it is tried again.
#[derive(Debug, thiserror::Error)]
enum StewardError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the log's database: {0}")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("the event at {0} is of a newer version of this program, which has to do what it asks for")]
    Newer(Position),
}

/// What the steward works with.
#[derive(Debug, Clone)]
pub struct Steward {
    /// The log.
    pub log: Log,
    /// Accounts and their secrets.
    pub accounts: Accounts,
    /// Sends mails.
    pub mailer: Mailer,
}

impl Steward {
    /// Works until `stop`, whenever it is this process's turn.
    #[must_use]
    pub fn spawn(self, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(async move {
            let lease = Lease::new(self.log.clone(), "accounts", HELD_FOR);
            while !stop.is_cancelled() {
                let ended = tokio::select! {
                    () = stop.cancelled() => break,
                    ended = self.take_turn(&lease) => ended,
                };
                let mut pause = ASK_EVERY;
                if let Err(error) = ended {
                    tracing::warn!(%error, "the steward of accounts leaves its turn to others, and tries again");
                    lease.give_back().await.ok();
                    pause = STAND_BACK;
                }
                tokio::time::timeout(pause, stop.cancelled()).await.ok();
            }
            lease.give_back().await.ok();
        })
    }

    async fn take_turn(&self, lease: &Lease) -> Result<(), StewardError> {
        let mut forgot_at: Option<Instant> = None;
        while lease.take().await? {
            let renew_at = Instant::now() + HELD_FOR / 3;
            while Instant::now() < renew_at {
                let read = self.step().await?;
                let sent = self.send_mails(renew_at).await?;
                if !read && !sent {
                    tokio::time::sleep(POLL).await;
                }
            }
            if forgot_at.is_none_or(|at| at.elapsed() >= FORGET_EVERY) {
                self.accounts.store().forget_expired(FORGET_AT_ONCE).await?;
                forgot_at = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Takes in what has been appended; `true` if there may be more.
    async fn step(&self) -> Result<bool, StewardError> {
        let pool = self.log.pool();
        let row = sqlx::query(
            "SELECT c.epoch, c.position, h.epoch, h.position FROM accounts.checkpoint c, log.head h",
        )
        .fetch_one(pool)
        .await?;
        let (epoch, position): (i32, Position) = (row.try_get(0)?, row.try_get(1)?);
        let (head_epoch, head): (i32, Position) = (row.try_get(2)?, row.try_get(3)?);
        if head <= position && head_epoch == epoch {
            return Ok(false);
        }
        // A log that lost its end has forgotten what came of it, too: the secrets stand in its own database.
        let after = position.min(head);
        let filter =
            Filter { categories: vec![stream::ACCOUNT.into(), stream::SESSION.into()], ..Filter::default() };
        let page = self.log.read(after, head, &filter, AT_ONCE).await?;
        let mut mails = Vec::new();
        for event in &page.events {
            let fact = match event.decode() {
                Ok(fact) => fact,
                // It may ask for something: a newer version will know, and takes its turn.
                Err(error) if error.is_unknown() => return Err(StewardError::Newer(event.position)),
                Err(error) => {
                    tracing::error!(%error, position = event.position, "an event cannot be read, passing over it");
                    continue;
                }
            };
            mails.extend(self.heed(event, &fact).await?);
        }
        let mut transaction = pool.begin().await?;
        if !mails.is_empty() {
            sqlx::query(
                "INSERT INTO accounts.mails (event_id, account_id, kind, about, expires_at) \
                 SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::timestamptz[]) \
                 ON CONFLICT DO NOTHING",
            )
            .bind(mails.iter().map(|mail| mail.event_id).collect::<Vec<_>>())
            .bind(mails.iter().map(|mail| mail.account_id).collect::<Vec<_>>())
            .bind(mails.iter().map(|mail| mail.kind.as_str()).collect::<Vec<_>>())
            .bind(mails.iter().map(|mail| mail.about).collect::<Vec<_>>())
            .bind(mails.iter().map(|mail| mail.expires_at).collect::<Vec<_>>())
            .execute(&mut *transaction)
            .await?;
        }
        sqlx::query("UPDATE accounts.checkpoint SET epoch = $1, position = $2")
            .bind(head_epoch)
            .bind(page.read_to)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(page.read_to < head)
    }

    /// Does what an event asks for, and says which mail it asks for.
    async fn heed(&self, event: &RecordedEvent, fact: &Fact) -> Result<Option<Waiting>, StewardError> {
        let store = self.accounts.store();
        let account_id = event.partition_key;
        // Who goes through the log once more, after a restore, writes no old mails.
        let is_news = chrono::Utc::now() - event.recorded_at < MAILED_WITHIN;
        let mail = |kind, about, expires_at| {
            Ok(is_news.then_some(Waiting { event_id: event.event_id, account_id, kind, about, expires_at }))
        };
        match fact {
            Fact::Account(AccountEvent::AccountRegistered(registered)) => {
                mail(Kind::Verify, Some(registered.verification_id), Some(registered.verification_expires_at))
            }
            Fact::Account(AccountEvent::VerificationRequested(requested)) => {
                mail(Kind::Verify, Some(requested.verification_id), Some(requested.expires_at))
            }
            Fact::Account(AccountEvent::RegistrationRepeated(_)) => mail(Kind::Repeated, None, None),
            Fact::Account(AccountEvent::PasswordResetRequested(requested)) => {
                mail(Kind::Reset, Some(requested.reset_id), Some(requested.expires_at))
            }
            Fact::Account(AccountEvent::PasswordChanged(changed)) => {
                store.end_sessions_before(account_id, event.position, changed.kept_session).await?;
                store.remove_credentials_before(account_id, changed.credential_id, event.recorded_at).await?;
                mail(Kind::PasswordChanged, None, None)
            }
            Fact::Account(AccountEvent::RoleGranted(_) | AccountEvent::AccountDeactivated(_)) => {
                store.end_sessions_before(account_id, event.position, None).await?;
                Ok(None)
            }
            Fact::Account(AccountEvent::AccountErased(_)) => {
                store.end_sessions_before(account_id, event.position, None).await?;
                store.erase(account_id).await?;
                self.accounts.vault().erase(account_id).await?;
                tracing::info!(account = %account_id, "an account is erased: its key is destroyed");
                Ok(None)
            }
            Fact::Session(SessionEvent::SessionEnded(ended)) => {
                store.end_session(event.stream_id).await?;
                match ended.reason {
                    SessionEnd::TokenReused => mail(Kind::TokenReused, None, None),
                    SessionEnd::LoggedOut => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }

    /// Sends mails that are due, until the lease has to be renewed: a mail server that hangs must not keep events
    /// waiting. `true` if there may be more.
    async fn send_mails(&self, renew_at: Instant) -> Result<bool, StewardError> {
        let pool = self.log.pool();
        let rows = sqlx::query(
            "SELECT event_id, account_id, kind, about, expires_at < clock_timestamp(), attempts, error \
             FROM accounts.mails \
             WHERE state = 'waiting' AND try_at <= clock_timestamp() ORDER BY try_at LIMIT $1",
        )
        .bind(MAILS_AT_ONCE)
        .fetch_all(pool)
        .await?;
        for row in &rows {
            let (event_id, account_id): (Uuid, Uuid) = (row.try_get(0)?, row.try_get(1)?);
            let about: Option<Uuid> = row.try_get(3)?;
            let late = row.try_get::<Option<bool>, _>(4)? == Some(true);
            let kind = Kind::parse(row.try_get(2)?);
            let outcome = match kind.filter(|_| !late) {
                Some(kind) => self.send(event_id, account_id, kind, about).await?,
                None => Outcome::Dropped,
            };
            let (tries, before): (i32, Option<&str>) = (row.try_get::<i32, _>(5)? + 1, row.try_get(6)?);
            let (state, error) = match outcome {
                Outcome::Sent => ("sent", None),
                Outcome::Dropped => ("dropped", None),
                Outcome::Never(error) => ("failed", Some(error)),
                // After tries that failed for another reason the server is asked twice.
                Outcome::Refused(error) if tries >= TRIES_REFUSED && before == Some(&error) => {
                    ("failed", Some(error))
                }
                Outcome::Refused(error) | Outcome::Later(error) if tries >= TRIES => ("failed", Some(error)),
                Outcome::Refused(error) | Outcome::Later(error) => ("waiting", Some(error)),
            };
            sqlx::query(
                "UPDATE accounts.mails SET attempts = attempts + 1, error = $3, state = $2, \
                   done_at = CASE WHEN $2 <> 'waiting' THEN clock_timestamp() END, \
                   try_at = clock_timestamp() + make_interval(secs => LEAST(power(2, attempts), 3600)) \
                 WHERE event_id = $1 AND state = 'waiting'",
            )
            .bind(event_id)
            .bind(state)
            .bind(&error)
            .execute(pool)
            .await?;
            metrics::counter!("tidemark_mails_total", "outcome" => state).increment(1);
            if let Some(error) = error {
                tracing::warn!(mail = %event_id, account = %account_id, error, "a mail was not sent");
            }
            if Instant::now() >= renew_at {
                break;
            }
        }
        Ok(!rows.is_empty())
    }

    /// Sends one mail. What is wrong with it or its account alone is an outcome, so that it keeps no other waiting.
    async fn send(
        &self,
        event_id: Uuid,
        account_id: Uuid,
        kind: Kind,
        about: Option<Uuid>,
    ) -> Result<Outcome, StewardError> {
        let vault = self.accounts.vault();
        let known = match self.accounts.read(account_id).await {
            Ok(known) => known,
            Err(ReadError::Log(error)) => return Err(error.into()),
            Err(ReadError::Event(_)) => {
                return Ok(Outcome::Later("an event of the account cannot be read".to_owned()));
            }
        };
        let Some(email) = known.and_then(|known| known.email) else { return Ok(Outcome::Dropped) };
        let to = match vault.unseal(account_id, "email", &email).await {
            Ok(Clear::Text(to)) => to,
            Ok(Clear::Erased | Clear::Unopened) => return Ok(Outcome::Dropped),
            Err(error @ (VaultError::Database(_) | VaultError::Schema(_))) => return Err(error.into()),
            Err(error) => return Ok(Outcome::Later(error.to_string())),
        };
        let purpose = match kind {
            Kind::Verify => Some(Purpose::Verify),
            Kind::Reset => Some(Purpose::Reset),
            Kind::Repeated | Kind::PasswordChanged | Kind::TokenReused => None,
        };
        let token = match (purpose, about) {
            (Some(purpose), Some(mail_id)) => Link { account_id, mail_id }.token(vault, purpose),
            _ => String::new(),
        };
        Ok(match self.mailer.send(event_id, kind, &to, &token).await {
            Ok(()) => Outcome::Sent,
            Err(error @ (MailError::Address | MailError::Settings(_))) => Outcome::Never(error.to_string()),
            Err(error @ MailError::Refused(_)) => Outcome::Refused(error.to_string()),
            Err(MailError::Later(error)) => Outcome::Later(error),
        })
    }
}

/// A mail to be sent.
struct Waiting {
    event_id: Uuid,
    account_id: Uuid,
    kind: Kind,
    about: Option<Uuid>,
    expires_at: Option<chrono::DateTime<chrono::Utc>>,
}

enum Outcome {
    Sent,
    /// There is nobody to send it to, or it is too late.
    Dropped,
    Later(String),
    /// The mail server will not have it.
    Refused(String),
    Never(String),
}
