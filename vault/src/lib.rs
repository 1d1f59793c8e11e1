//! Keys of personal data: one for each account, wrapped by a master key that stands in no database.
//!
//! | module | what it does |
//! |---|---|
//! | [`master`] | master keys, and what is wrapped by them |
//! | [`Vault`] | an account's key: made, used, destroyed |
//!
//! A text is sealed with AES-256-GCM under its subject's key, bound to the subject and the field, so that it can be
//! moved to neither another account nor another field. Destroying the key leaves a tombstone: a missing key is an
//! alarm, a tombstone says that the person was forgotten.

pub mod master;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use quick_cache::sync::Cache;
use sqlx::migrate::Migrator;
use sqlx::{PgPool, Row};
use tidemark_events::migrations::{Schema, SchemaError};
use tidemark_events::personal::{Clear, Personal};
use tidemark_events::stream;
use uuid::Uuid;
use zeroize::Zeroizing;

pub use master::{MasterKeyError, MasterKeys};

static MIGRATOR: Migrator = sqlx::migrate!("../migrations/vault");

/// The schema `vault`.
pub const SCHEMA: Schema = Schema { name: "vault", migrator: &MIGRATOR, brought_by: "`tidemark command`" };

/// Bytes of a key.
const KEY_LEN: usize = 32;

/// What a sealed text begins with: which way it is sealed.
const PREFIX: &str = "v1.";

/// How many keys are kept in memory, and for how long: another process may destroy one.
const REMEMBERED: usize = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(30);

/// The shop's own key.
const SHOP: Uuid = Uuid::nil();

/// What can go wrong with personal data.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The database of the keys did not answer, or refused.
    #[error("the database of the keys: {0}")]
    Database(#[from] sqlx::Error),
    /// Its schema cannot be brought up to date.
    #[error("the database of the keys: {0}")]
    Schema(#[from] SchemaError),
    /// There is neither a key nor a tombstone: it was lost.
    #[error(
        "the key of account {0} is missing and was not destroyed by an erasure: restore the keys' database"
    )]
    Missing(Uuid),
    /// The key was destroyed.
    #[error("account {0} is erased: its key was destroyed")]
    Erased(Uuid),
    /// The key was wrapped by a master key that this process does not have.
    #[error("the key of account {subject} is wrapped by master key {master}, which is not configured")]
    UnknownMaster {
        /// Whose key.
        subject: Uuid,
        /// The master key's id.
        master: String,
    },
    /// What was sealed was changed, or is of another account or field.
    #[error("a sealed text of account {0} cannot be opened: it was changed, or belongs elsewhere")]
    Broken(Uuid),
    /// The system has no randomness.
    #[error("the system gives no random bytes")]
    Randomness,
}

impl VaultError {
    /// Whether the operator has to change something before trying again helps.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::UnknownMaster { .. } => true,
            Self::Schema(error) => error.is_misfit(),
            _ => false,
        }
    }
}

type Key = Zeroizing<[u8; KEY_LEN]>;

/// What is known of a subject's key.
#[derive(Clone)]
enum Found {
    Key(Arc<Key>),
    Erased,
}

/// Seals and opens personal data. Cheap to clone.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    pool: PgPool,
    masters: MasterKeys,
    keys: Cache<Uuid, (Found, Instant)>,
    /// What keyed hashes are made with.
    shop: hmac::Key,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault")
    }
}

impl Vault {
    /// Brings the schema up to date and opens the vault; makes the shop's own key if there is none.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn open(pool: PgPool, masters: MasterKeys) -> Result<Self, VaultError> {
        SCHEMA.migrate(&pool).await?;
        make(&pool, &masters, SHOP).await?;
        Self::join(pool, masters).await
    }

    /// Opens a vault that others have made.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn join(pool: PgPool, masters: MasterKeys) -> Result<Self, VaultError> {
        let row = sqlx::query("SELECT wrapped, master FROM vault.keys WHERE subject = $1")
            .bind(SHOP)
            .fetch_one(&pool)
            .await?;
        let key = masters.unwrap(SHOP, row.try_get(0)?, row.try_get(1)?)?;
        let shop = hmac::Key::new(hmac::HMAC_SHA256, &key[..]);
        Ok(Self(Arc::new(Inner { pool, masters, keys: Cache::new(REMEMBERED), shop })))
    }

    /// Makes a subject's key, if it has none.
    ///
    /// # Errors
    /// The database's.
    pub async fn make(&self, subject: Uuid) -> Result<(), VaultError> {
        make(&self.0.pool, &self.0.masters, subject).await
    }

    /// Takes back a key that nothing was kept under.
    ///
    /// # Errors
    /// The database's.
    pub async fn forget_unused(&self, subject: Uuid) -> Result<(), VaultError> {
        self.0.keys.remove(&subject);
        sqlx::query("DELETE FROM vault.keys WHERE subject = $1 AND wrapped IS NOT NULL")
            .bind(subject)
            .execute(&self.0.pool)
            .await?;
        Ok(())
    }

    /// Destroys a subject's key, for good. It may have been done before.
    ///
    /// # Errors
    /// The database's.
    pub async fn erase(&self, subject: Uuid) -> Result<(), VaultError> {
        sqlx::query(
            "INSERT INTO vault.keys (subject, wrapped, master, erased_at) VALUES ($1, NULL, '', clock_timestamp()) \
             ON CONFLICT (subject) DO UPDATE SET wrapped = NULL, erased_at = clock_timestamp() \
             WHERE vault.keys.wrapped IS NOT NULL",
        )
        .bind(subject)
        .execute(&self.0.pool)
        .await?;
        self.0.keys.insert(subject, (Found::Erased, Instant::now()));
        Ok(())
    }

    /// Seals a text of a subject for a field.
    ///
    /// # Errors
    /// [`VaultError::Erased`], [`VaultError::Missing`], or the database's.
    pub async fn seal(&self, subject: Uuid, field: &'static str, text: &str) -> Result<Personal, VaultError> {
        match self.key(subject).await? {
            Found::Key(key) => {
                let sealed = seal(&key, subject, field, text.as_bytes())?;
                Ok(Personal::sealed(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed))))
            }
            Found::Erased => Err(VaultError::Erased(subject)),
        }
    }

    /// Opens a sealed text.
    ///
    /// # Errors
    /// [`VaultError::Missing`], [`VaultError::Broken`], or the database's. That the subject is erased is none.
    pub async fn unseal(
        &self,
        subject: Uuid,
        field: &'static str,
        personal: &Personal,
    ) -> Result<Clear, VaultError> {
        open(&self.key(subject).await?, subject, field, personal)
    }

    /// Opens sealed texts of several subjects, each key looked up once.
    ///
    /// # Errors
    /// As [`Vault::unseal`].
    pub async fn unseal_all<'a>(
        &self,
        texts: impl IntoIterator<Item = (Uuid, &'static str, &'a mut Personal)>,
    ) -> Result<(), VaultError> {
        let texts: Vec<_> = texts.into_iter().collect();
        let mut keys: HashMap<Uuid, Found> = HashMap::new();
        let mut missing = Vec::new();
        for (subject, ..) in &texts {
            if keys.contains_key(subject) || missing.contains(subject) {
                continue;
            }
            match self.remembered(*subject) {
                Some(found) => drop(keys.insert(*subject, found)),
                None => missing.push(*subject),
            }
        }
        if !missing.is_empty() {
            keys.extend(self.fetch(&missing).await?);
        }
        for (subject, field, personal) in texts {
            let found = keys.get(&subject).ok_or(VaultError::Missing(subject))?;
            let clear = open(found, subject, field, personal)?;
            personal.open(clear);
        }
        Ok(())
    }

    /// A keyed hash under the shop's own key: HMAC-SHA-256 of the purpose and the bytes.
    #[must_use]
    pub fn keyed_hash(&self, purpose: &str, bytes: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0.shop);
        context.update(&purpose.len().to_be_bytes());
        context.update(purpose.as_bytes());
        context.update(bytes);
        let mut hash = [0; 32];
        hash.copy_from_slice(context.sign().as_ref());
        hash
    }

    /// The stream of the claim on an e-mail address, folded so that two spellings of it are one.
    #[must_use]
    pub fn claim_of_email(&self, folded: &str) -> Uuid {
        stream::claim_of_email(&self.keyed_hash("e-mail claim", folded.as_bytes()))
    }

    /// Wraps every key anew that an older master key wraps. Returns how many.
    ///
    /// # Errors
    /// [`VaultError`]; what was done before stays.
    pub async fn rewrap(&self) -> Result<u64, VaultError> {
        const AT_ONCE: i64 = 500;
        let mut done = 0;
        loop {
            let rows = sqlx::query(
                "SELECT subject, wrapped, master FROM vault.keys WHERE wrapped IS NOT NULL AND master <> $1 \
                 ORDER BY subject LIMIT $2",
            )
            .bind(self.0.masters.newest_id())
            .bind(AT_ONCE)
            .fetch_all(&self.0.pool)
            .await?;
            if rows.is_empty() {
                return Ok(done);
            }
            for row in rows {
                let (subject, wrapped, master): (Uuid, Vec<u8>, &str) =
                    (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                let key = self.0.masters.unwrap(subject, &wrapped, master)?;
                let (again, newest) = self.0.masters.wrap(subject, &key)?;
                // Destroyed meanwhile, it stays so.
                sqlx::query(
                    "UPDATE vault.keys SET wrapped = $2, master = $3 WHERE subject = $1 AND wrapped = $4",
                )
                .bind(subject)
                .bind(again)
                .bind(newest)
                .bind(&wrapped)
                .execute(&self.0.pool)
                .await?;
                done += 1;
            }
        }
    }

    fn remembered(&self, subject: Uuid) -> Option<Found> {
        let (found, since) = self.0.keys.get(&subject)?;
        // Once destroyed, always destroyed.
        let holds = matches!(found, Found::Erased) || since.elapsed() < REMEMBERED_FOR;
        holds.then_some(found)
    }

    async fn key(&self, subject: Uuid) -> Result<Found, VaultError> {
        if let Some(found) = self.remembered(subject) {
            return Ok(found);
        }
        self.fetch(&[subject]).await?.remove(&subject).ok_or(VaultError::Missing(subject))
    }

    async fn fetch(&self, subjects: &[Uuid]) -> Result<HashMap<Uuid, Found>, VaultError> {
        let asked_at = Instant::now();
        let rows = sqlx::query("SELECT subject, wrapped, master FROM vault.keys WHERE subject = ANY($1)")
            .bind(subjects)
            .fetch_all(&self.0.pool)
            .await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in rows {
            let subject: Uuid = row.try_get(0)?;
            let key = match row.try_get::<Option<&[u8]>, _>(1)? {
                None => Found::Erased,
                Some(wrapped) => {
                    Found::Key(Arc::new(self.0.masters.unwrap(subject, wrapped, row.try_get(2)?)?))
                }
            };
            self.0.keys.insert(subject, (key.clone(), asked_at));
            found.insert(subject, key);
        }
        Ok(found)
    }
}

async fn make(pool: &PgPool, masters: &MasterKeys, subject: Uuid) -> Result<(), VaultError> {
    let mut key = Key::default();
    aws_lc_rs::rand::fill(&mut key[..]).map_err(|_| VaultError::Randomness)?;
    let (wrapped, master) = masters.wrap(subject, &key)?;
    sqlx::query(
        "INSERT INTO vault.keys (subject, wrapped, master) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
    )
    .bind(subject)
    .bind(wrapped)
    .bind(master)
    .execute(pool)
    .await?;
    Ok(())
}

/// What a sealed text is bound to.
fn associated(subject: Uuid, field: &str) -> Vec<u8> {
    [subject.as_bytes().as_slice(), field.as_bytes()].concat()
}

/// Nonce, ciphertext, tag.
fn seal(key: &[u8; KEY_LEN], subject: Uuid, field: &str, text: &[u8]) -> Result<Vec<u8>, VaultError> {
    let cipher = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| VaultError::Broken(subject))?;
    let mut text = text.to_vec();
    let nonce = cipher
        .seal_in_place_append_tag(Aad::from(associated(subject, field)), &mut text)
        .map_err(|_| VaultError::Randomness)?;
    Ok([nonce.as_ref().as_slice(), &text].concat())
}

fn open(found: &Found, subject: Uuid, field: &'static str, personal: &Personal) -> Result<Clear, VaultError> {
    let Found::Key(key) = found else { return Ok(Clear::Erased) };
    let broken = || VaultError::Broken(subject);
    let sealed = personal.as_sealed().strip_prefix(PREFIX).ok_or_else(broken)?;
    let sealed = URL_SAFE_NO_PAD.decode(sealed).map_err(|_| broken())?;
    let text = open_bytes(key, subject, field, &sealed)?;
    let text = std::str::from_utf8(&text).map_err(|_| broken())?;
    Ok(Clear::Text(text.into()))
}

fn open_bytes(
    key: &[u8; KEY_LEN],
    subject: Uuid,
    field: &str,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let broken = || VaultError::Broken(subject);
    let cipher = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| broken())?;
    let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or_else(broken)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| broken())?;
    let mut text = Zeroizing::new(text.to_vec());
    let length = cipher
        .open_in_place(nonce, Aad::from(associated(subject, field)), &mut text)
        .map_err(|_| broken())?
        .len();
    text.truncate(length);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key {
        Zeroizing::new([byte; KEY_LEN])
    }

    #[test]
    fn a_sealed_text_opens_for_its_subject_and_field_alone() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let sealed = seal(&key(7), one, "email", b"ada@example.org").unwrap();
        assert_eq!(open_bytes(&key(7), one, "email", &sealed).unwrap().as_slice(), b"ada@example.org");
        assert!(open_bytes(&key(7), other, "email", &sealed).is_err());
        assert!(open_bytes(&key(7), one, "name", &sealed).is_err());
        assert!(open_bytes(&key(8), one, "email", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open_bytes(&key(7), one, "email", &changed).is_err(), "byte {at} changed");
            assert!(open_bytes(&key(7), one, "email", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn no_nonce_comes_twice() {
        let mut nonces = std::collections::HashSet::new();
        for _ in 0..100_000 {
            let sealed = seal(&key(7), Uuid::nil(), "email", b"x").unwrap();
            assert!(nonces.insert(<[u8; NONCE_LEN]>::try_from(&sealed[..NONCE_LEN]).unwrap()));
        }
    }

    #[test]
    fn an_erased_subject_is_told_from_a_broken_text() {
        let personal = Personal::sealed("v1.nonsense");
        assert!(matches!(open(&Found::Erased, Uuid::nil(), "email", &personal), Ok(Clear::Erased)));
        let found = Found::Key(Arc::new(key(1)));
        for text in ["v1.nonsense", "", "v1.", "v2.AAAA", "v1.\u{e9}"] {
            let personal = Personal::sealed(text);
            assert!(
                matches!(open(&found, Uuid::nil(), "email", &personal), Err(VaultError::Broken(_))),
                "{text}"
            );
        }
    }
}
