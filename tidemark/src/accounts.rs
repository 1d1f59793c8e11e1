//! Puts accounts together: keys, mails, sessions that end.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tidemark_command::account::service::Sign;
use tidemark_command::account::steward::Steward;
use tidemark_command::account::{Accounts, AccountsConfig, Mailer, MailerConfig};
use tidemark_events::listener::Subscription;
use tidemark_events::log::{Log, revocations};
use tidemark_http::Access;
use tidemark_vault::Vault;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{AccountOptions, VaultOptions};
use crate::database::{begin_on, pool, wait_for_schema};
use crate::{Failure, keys};

/// Connections to the secrets of accounts, and to the keys of personal data.
const ACCOUNT_CONNECTIONS: u32 = 8;
const VAULT_CONNECTIONS: u32 = 4;

/// Opens the keys of personal data: in the database of `TIDEMARK_VAULT_URL`, or in the log's.
pub(crate) async fn vault(
    options: &VaultOptions,
    log: &PgConnectOptions,
    data_dir: impl FnOnce() -> Result<PathBuf, Failure>,
) -> Result<Vault, Failure> {
    let masters = keys::master(options.master_key.as_deref(), data_dir)?;
    let (variable, target) = match &options.vault_url {
        Some(url) => ("TIDEMARK_VAULT_URL", url),
        None => ("TIDEMARK_LOG_URL", log),
    };
    let pool = pool(target, VAULT_CONNECTIONS);
    begin_on(variable, target, async || Ok(Vault::open(pool.clone(), masters.clone()).await?)).await
}

/// The same for who only reads: waits until others have made them, and changes nothing.
pub(crate) async fn vault_to_read(
    options: &VaultOptions,
    log: &PgConnectOptions,
    data_dir: impl FnOnce() -> Result<PathBuf, Failure>,
) -> Result<Vault, Failure> {
    let masters = keys::master(options.master_key.as_deref(), data_dir)?;
    let (variable, target) = match &options.vault_url {
        Some(url) => ("TIDEMARK_VAULT_URL", url),
        None => ("TIDEMARK_LOG_URL", log),
    };
    wait_for_schema(variable, target, &tidemark_vault::SCHEMA).await?;
    let pool = pool(target, VAULT_CONNECTIONS);
    begin_on(variable, target, async || Ok(Vault::join(pool.clone(), masters.clone()).await?)).await
}

/// Accounts and their steward.
pub(crate) struct Opened {
    pub(crate) accounts: Accounts,
    pub(crate) steward: Steward,
}

/// What routes of accounts work with.
pub(crate) fn open(
    options: &AccountOptions,
    log: &Log,
    database: &PgConnectOptions,
    vault: Vault,
    sign: Sign,
    data_dir: impl FnOnce() -> Result<PathBuf, Failure>,
    public_url: &str,
) -> Result<Opened, Failure> {
    let config = AccountsConfig {
        factor_for: options.second_factor_for.clone(),
        refused_passwords: options.refused_passwords.clone().unwrap_or_default(),
        ..AccountsConfig::default()
    };
    let pool: PgPool = pool(database, ACCOUNT_CONNECTIONS);
    let accounts = Accounts::new(log.clone(), pool, vault, sign, config)
        .map_err(|error| Failure::Configuration(format!("the pool of password hashes: {error}")))?;
    let folder = match &options.mail_dir {
        Some(folder) => folder.clone(),
        None => data_dir()?.join("mails"),
    };
    if options.smtp_url.is_none() {
        tracing::info!(folder = %folder.display(), "there is no TIDEMARK_SMTP_URL: mails are written to files");
    }
    let mailer = Mailer::new(MailerConfig {
        smtp_url: options.smtp_url.clone(),
        folder,
        from: options.mail_from.clone(),
        public_url: public_url.to_owned(),
    })
    .map_err(|error| Failure::Configuration(format!("TIDEMARK_SMTP_URL: {error} is expected")))?;
    let steward = Steward { log: log.clone(), accounts: accounts.clone(), mailer };
    Ok(Opened { accounts, steward })
}

/// Refuses the tokens of ended sessions, until `stop`. Returns when those are known that have been ended up to now: no token
/// may be looked at before.
pub(crate) async fn follow_revocations(
    access: &Access,
    database: PgConnectOptions,
    heard: Subscription,
    stop: CancellationToken,
) -> Result<JoinHandle<()>, Failure> {
    let access = access.clone();
    let (known, all) = oneshot::channel();
    let mut known = Some(known);
    let following = tokio::spawn(revocations::follow(database, heard, stop, move |sessions| {
        let until = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default() + 1)
        };
        access.revocations().add(sessions.into_iter().map(|(id, at)| (id, until(at.timestamp()))));
        if let Some(known) = known.take() {
            known.send(()).ok();
        }
    }));
    // It ends without only when it is stopped, and then so is whoever waits here.
    all.await.ok();
    Ok(following)
}
