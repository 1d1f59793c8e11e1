//! Secrets beside the log: hashes of passwords, second factors, sessions and their refresh tokens.

use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;
use zeroize::Zeroizing;

/// The channel on which revocations are announced.
pub use tidemark_events::log::revocations::CHANNEL;

/// A refresh token that was used may be shown once more for so long, in case its answer was lost on the way. As long as
/// the shop takes to be back after everything was killed (45 s), and some more: a client whose refresh was done and not
/// answered would else be taken for a thief. A thief within it is found all the same: each repetition voids the successor
/// before, and whoever goes on with a void one ends the session.
const GRACE: Duration = Duration::from_secs(60);

/// Bytes of a refresh token.
const TOKEN_LEN: usize = 32;

/// A refresh token as the client has it, and as it is stored.
#[derive(Debug)]
pub struct RefreshToken {
    /// 43 characters of base64url.
    pub text: Zeroizing<String>,
    hash: Vec<u8>,
}

impl RefreshToken {
    /// A new one; `None` when the system has no randomness.
    #[must_use]
    pub fn generate() -> Option<Self> {
        let mut bytes = Zeroizing::new([0; TOKEN_LEN]);
        aws_lc_rs::rand::fill(&mut bytes[..]).ok()?;
        let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(&bytes[..]));
        let hash = hash_of(&text);
        Some(Self { text, hash })
    }
}

fn hash_of(token: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, token.as_bytes()).as_ref().to_vec()
}

/// How long tokens hold.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// An access token.
    pub access: Duration,
    /// A refresh token that is not used.
    pub refresh: Duration,
    /// A session, however often it is refreshed.
    pub session: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self {
            access: Duration::from_secs(15 * 60),
            refresh: Duration::from_secs(7 * DAY),
            session: Duration::from_secs(30 * DAY),
        }
    }
}

/// What a refresh came to.
#[derive(Debug)]
pub enum Refreshed {
    /// Another token takes its place.
    Next {
        /// The session.
        session_id: Uuid,
        /// Whose.
        account_id: Uuid,
        /// Its role.
        role: String,
        /// The new token.
        token: RefreshToken,
    },
    /// It was used before: the session is ended, with all its tokens.
    Reused {
        /// The session.
        session_id: Uuid,
        /// Whose.
        account_id: Uuid,
    },
    /// It is none, has expired, or its session has ended.
    Refused,
    /// The commit was not answered: the token may have been used. It can be shown again.
    Unknown(sqlx::Error),
}

/// The secrets of accounts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    lifetimes: Lifetimes,
}

impl Store {
    /// In the log's database.
    #[must_use]
    pub fn new(pool: PgPool, lifetimes: Lifetimes) -> Self {
        Self { pool, lifetimes }
    }

    /// How long tokens hold.
    #[must_use]
    pub fn lifetimes(&self) -> Lifetimes {
        self.lifetimes
    }

    /// Keeps a hash. It counts once an event says so.
    ///
    /// # Errors
    /// The database's.
    pub async fn add_credential(&self, id: Uuid, account_id: Uuid, hash: &str) -> Result<(), sqlx::Error> {
        sqlx::query("INSERT INTO accounts.credentials (credential_id, account_id, hash) VALUES ($1, $2, $3)")
            .bind(id)
            .bind(account_id)
            .bind(hash)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Forgets a hash that no event speaks of.
    ///
    /// # Errors
    /// The database's.
    pub async fn remove_credential(&self, id: Uuid) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM accounts.credentials WHERE credential_id = $1")
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Forgets the hashes of an account that were made for good before a new one counted. What is younger may belong to
    /// a change that is on its way.
    ///
    /// # Errors
    /// The database's.
    pub async fn remove_credentials_before(
        &self,
        account_id: Uuid,
        new: Uuid,
        counted_at: DateTime<Utc>,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "DELETE FROM accounts.credentials WHERE account_id = $1 AND credential_id <> $2 \
             AND made_at < $3::timestamptz - interval '1 minute'",
        )
        .bind(account_id)
        .bind(new)
        .bind(counted_at)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A hash.
    ///
    /// # Errors
    /// The database's.
    pub async fn credential(&self, id: Uuid) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar("SELECT hash FROM accounts.credentials WHERE credential_id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
    }

    /// Puts a hash of the same password in the place of one that was made at a lower cost.
    ///
    /// # Errors
    /// The database's.
    pub async fn replace_hash(&self, id: Uuid, old: &str, new: &str) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE accounts.credentials SET hash = $3 WHERE credential_id = $1 AND hash = $2")
            .bind(id)
            .bind(old)
            .bind(new)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Keeps a second factor. It counts once an event says so.
    ///
    /// # Errors
    /// The database's.
    pub async fn add_factor(
        &self,
        id: Uuid,
        account_id: Uuid,
        sealed_secret: &str,
        recovery_codes: &[Vec<u8>],
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO accounts.factors (factor_id, account_id, secret, recovery_codes) VALUES ($1, $2, $3, $4)",
        )
        .bind(id)
        .bind(account_id)
        .bind(sealed_secret)
        .bind(recovery_codes)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A second factor's sealed secret, of an account.
    ///
    /// # Errors
    /// The database's.
    pub async fn factor(&self, id: Uuid, account_id: Uuid) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar("SELECT secret FROM accounts.factors WHERE factor_id = $1 AND account_id = $2")
            .bind(id)
            .bind(account_id)
            .fetch_optional(&self.pool)
            .await
    }

    /// Takes the code of a time step, which can be done once; `false` if it, or a later one, was taken.
    ///
    /// # Errors
    /// The database's.
    pub async fn take_step(&self, factor_id: Uuid, step: i64) -> Result<bool, sqlx::Error> {
        let taken =
            sqlx::query("UPDATE accounts.factors SET last_step = $2 WHERE factor_id = $1 AND last_step < $2")
                .bind(factor_id)
                .bind(step)
                .execute(&self.pool)
                .await?;
        Ok(taken.rows_affected() == 1)
    }

    /// Takes a recovery code, which can be done once; `false` if there is no such code.
    ///
    /// # Errors
    /// The database's.
    pub async fn take_recovery_code(&self, factor_id: Uuid, hash: &[u8]) -> Result<bool, sqlx::Error> {
        let taken = sqlx::query(
            "UPDATE accounts.factors SET recovery_codes = array_remove(recovery_codes, $2) \
             WHERE factor_id = $1 AND $2 = ANY(recovery_codes)",
        )
        .bind(factor_id)
        .bind(hash)
        .execute(&self.pool)
        .await?;
        Ok(taken.rows_affected() == 1)
    }

    /// Opens a session with its first refresh token.
    ///
    /// # Errors
    /// The database's.
    pub async fn open_session(
        &self,
        session_id: Uuid,
        account_id: Uuid,
        role: &str,
        position: i64,
        token: &RefreshToken,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "WITH opened AS (INSERT INTO accounts.sessions (session_id, account_id, role, position, expires_at) \
               VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5)) RETURNING session_id) \
             INSERT INTO accounts.refresh_tokens (hash, session_id, expires_at) \
             SELECT $6, session_id, clock_timestamp() + make_interval(secs => $7) FROM opened",
        )
        .bind(session_id)
        .bind(account_id)
        .bind(role)
        .bind(position)
        .bind(self.lifetimes.session.as_secs_f64())
        .bind(&token.hash)
        .bind(self.lifetimes.refresh.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Uses a refresh token: another takes its place. One that was used before ends its session, unless that was just
    /// now and nobody has used its successor: then the answer may have been lost on the way, and the successor that
    /// nobody has is replaced. There is never more than one token that can be used.
    ///
    /// # Errors
    /// The database's; nothing was changed then.
    pub async fn refresh(&self, shown: &str) -> Result<Refreshed, sqlx::Error> {
        let hash = hash_of(shown);
        let mut transaction = self.pool.begin().await?;
        // The session's row is what two uses of its tokens meet at.
        let row = sqlx::query(
            "SELECT s.session_id, s.account_id, s.role, s.ended_at IS NOT NULL OR s.expires_at <= clock_timestamp() \
             FROM accounts.sessions s WHERE s.session_id = \
               (SELECT session_id FROM accounts.refresh_tokens WHERE hash = $1) FOR UPDATE",
        )
        .bind(&hash)
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = row else { return Ok(Refreshed::Refused) };
        let (session_id, account_id, role): (Uuid, Uuid, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if row.try_get(3)? {
            return Ok(Refreshed::Refused);
        }
        let row = sqlx::query(
            "SELECT t.expires_at <= clock_timestamp(), t.used_at IS NOT NULL, \
               COALESCE(t.used_at > clock_timestamp() - make_interval(secs => $2), false) AND n.used_at IS NULL \
                 AND n.hash IS NOT NULL, t.successor \
             FROM accounts.refresh_tokens t LEFT JOIN accounts.refresh_tokens n ON n.hash = t.successor \
             WHERE t.hash = $1",
        )
        .bind(&hash)
        .bind(GRACE.as_secs_f64())
        .fetch_one(&mut *transaction)
        .await?;
        let (expired, used, in_grace): (bool, bool, bool) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let successor: Option<Vec<u8>> = row.try_get(3)?;
        if used && !in_grace {
            end(&mut transaction, &[session_id], self.lifetimes.access).await?;
            return Ok(match transaction.commit().await {
                Ok(()) => Refreshed::Reused { session_id, account_id },
                Err(error) => Refreshed::Unknown(error),
            });
        }
        if expired {
            return Ok(Refreshed::Refused);
        }
        if let Some(successor) = successor {
            // Whoever shows it later is not the one who has the newer one: that is a reuse.
            sqlx::query("UPDATE accounts.refresh_tokens SET used_at = '-infinity' WHERE hash = $1")
                .bind(successor)
                .execute(&mut *transaction)
                .await?;
        }
        let token =
            RefreshToken::generate().ok_or_else(|| sqlx::Error::Protocol("no randomness".to_owned()))?;
        sqlx::query(
            "WITH next AS (INSERT INTO accounts.refresh_tokens (hash, session_id, expires_at) \
               VALUES ($2, $3, clock_timestamp() + make_interval(secs => $4))) \
             UPDATE accounts.refresh_tokens SET used_at = COALESCE(used_at, clock_timestamp()), successor = $2 \
             WHERE hash = $1",
        )
        .bind(&hash)
        .bind(&token.hash)
        .bind(session_id)
        .bind(self.lifetimes.refresh.as_secs_f64())
        .execute(&mut *transaction)
        .await?;
        Ok(match transaction.commit().await {
            Ok(()) => Refreshed::Next { session_id, account_id, role, token },
            Err(error) => Refreshed::Unknown(error),
        })
    }

    /// Ends a session of an account; its access tokens are refused from now on.
    ///
    /// # Errors
    /// The database's.
    pub async fn end_session(&self, session_id: Uuid) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        end(&mut transaction, &[session_id], self.lifetimes.access).await?;
        transaction.commit().await
    }

    /// Ends an account's sessions that began before a position, but one.
    ///
    /// # Errors
    /// The database's.
    pub async fn end_sessions_before(
        &self,
        account_id: Uuid,
        position: i64,
        kept: Option<Uuid>,
    ) -> Result<u64, sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        let ids: Vec<Uuid> = sqlx::query_scalar(
            "SELECT session_id FROM accounts.sessions WHERE account_id = $1 AND position < $2 \
             AND ended_at IS NULL AND session_id IS DISTINCT FROM $3 FOR UPDATE",
        )
        .bind(account_id)
        .bind(position)
        .bind(kept)
        .fetch_all(&mut *transaction)
        .await?;
        end(&mut transaction, &ids, self.lifetimes.access).await?;
        transaction.commit().await?;
        Ok(ids.len() as u64)
    }

    /// The sessions of an account that go on.
    ///
    /// # Errors
    /// The database's.
    pub async fn sessions(&self, account_id: Uuid) -> Result<Vec<Uuid>, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT session_id FROM accounts.sessions WHERE account_id = $1 AND ended_at IS NULL \
             AND expires_at > clock_timestamp() ORDER BY session_id",
        )
        .bind(account_id)
        .fetch_all(&self.pool)
        .await
    }

    /// Forgets all secrets of an account.
    ///
    /// # Errors
    /// The database's.
    pub async fn erase(&self, account_id: Uuid) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        for statement in [
            "DELETE FROM accounts.credentials WHERE account_id = $1",
            "DELETE FROM accounts.factors WHERE account_id = $1",
            "UPDATE accounts.mails SET state = 'dropped', done_at = clock_timestamp() \
             WHERE account_id = $1 AND state = 'waiting'",
        ] {
            sqlx::query(statement).bind(account_id).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    /// Deletes what has expired, at most `limit` of each: sessions with their tokens, revocations, done mails.
    ///
    /// # Errors
    /// The database's.
    pub async fn forget_expired(&self, limit: i64) -> Result<u64, sqlx::Error> {
        let mut forgotten = 0;
        for statement in [
            "DELETE FROM accounts.sessions WHERE session_id IN (SELECT session_id FROM accounts.sessions \
             WHERE expires_at < clock_timestamp() LIMIT $1)",
            "DELETE FROM accounts.revocations WHERE session_id IN (SELECT session_id FROM accounts.revocations \
             WHERE until < clock_timestamp() LIMIT $1)",
            "DELETE FROM accounts.mails WHERE event_id IN (SELECT event_id FROM accounts.mails \
             WHERE state <> 'waiting' AND done_at < clock_timestamp() - interval '30 days' LIMIT $1)",
        ] {
            forgotten += sqlx::query(statement).bind(limit).execute(&self.pool).await?.rows_affected();
        }
        Ok(forgotten)
    }
}

async fn end(connection: &mut PgConnection, sessions: &[Uuid], access: Duration) -> Result<(), sqlx::Error> {
    if sessions.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "WITH ended AS (UPDATE accounts.sessions SET ended_at = clock_timestamp() \
           WHERE session_id = ANY($1) AND ended_at IS NULL RETURNING session_id), \
         revoked AS (INSERT INTO accounts.revocations (session_id, until) \
           SELECT session_id, clock_timestamp() + make_interval(secs => $2) FROM ended ON CONFLICT DO NOTHING) \
         SELECT pg_notify($3, '')",
    )
    .bind(sessions)
    .bind(access.as_secs_f64())
    .bind(CHANNEL)
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refresh_tokens_are_long_and_never_the_same() {
        let tokens: Vec<RefreshToken> = (0..1_000).filter_map(|_| RefreshToken::generate()).collect();
        let different: std::collections::HashSet<&str> =
            tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(different.len(), 1_000);
        let mut bits = [0_usize; 256];
        for token in &tokens {
            let bytes = URL_SAFE_NO_PAD.decode(token.text.as_bytes()).unwrap();
            assert_eq!(bytes.len() * 8, bits.len());
            assert_eq!(token.hash, hash_of(&token.text));
            assert!(
                !token.hash.windows(8).any(|part| bytes.windows(8).any(|of| of == part)),
                "stored hashed"
            );
            for (at, bit) in bits.iter_mut().enumerate() {
                *bit += usize::from(bytes[at / 8] >> (at % 8) & 1);
            }
        }
        // Each bit is set in about half of them: 500, give or take eight deviations.
        assert!(bits.iter().all(|set| (375..=625).contains(set)), "{bits:?}");
    }
}
