//! Every setting there is: flags, environment variables, defaults.

use std::ffi::OsString;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use axum::http::Uri;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};
use sqlx::postgres::PgConnectOptions;
use tidemark_command::WriterConfig;
use tidemark_command::account::RefusedPasswords;
use tidemark_command::account::mail::Mailbox;
use tidemark_http::Role;
use tidemark_http::access::MIN_SECRET;
use tidemark_http::{Front, Hosts, Origins, Proxies, RateLimits, Rates, Tls, TlsError};
use tidemark_kafka::KafkaConfig;
use tidemark_projector::{ProjectorConfig, Retention};
use tidemark_query::{QueryConfig, Servers, Tier};
use tidemark_vault::MasterKeys;
use uuid::Uuid;

use crate::Failure;
use crate::database::{data_dir, pooled_options, url_options};
use crate::keys::TokenKeys;

/// Tidemark: an event-sourced CQRS commerce backend.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) action: Action,
}

impl Cli {
    /// Reads flags and environment variables. Help, and what is wrong with something that has no variable, is printed
    /// and ends the process.
    pub(crate) fn read() -> Result<Self, Failure> {
        Self::read_from(std::env::args_os())
    }

    /// The same with other arguments than the process's.
    pub(crate) fn read_from(
        arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, Failure> {
        let cli = Self::try_parse_from(arguments).map_err(|error| match explain(&error) {
            Some(message) => Failure::Configuration(message),
            None => error.exit(),
        })?;
        // Files that cannot be used are a setting that is wrong, too.
        if let Some(serve) = cli.action.serve() {
            serve.front.tls()?;
        }
        Ok(cli)
    }
}

/// What is wrong with settings, each with its variable and what is expected; `None` if it is about something else. A
/// value that may be a secret is not repeated.
fn explain(error: &clap::Error) -> Option<String> {
    let names = match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(name) => std::slice::from_ref(name),
        ContextValue::Strings(names) => names,
        _ => return None,
    };
    let told = names.iter().map(|name| {
        let flag = name.strip_prefix("--")?.split([' ', '=']).next()?;
        let setting = setting(&Cli::command(), flag)?;
        let variable = setting.get_env()?.to_string_lossy().into_owned();
        match error.kind() {
            ErrorKind::MissingRequiredArgument => {
                Some(format!("{variable} (--{flag}) is missing: {}", setting.get_help()?))
            }
            ErrorKind::ValueValidation => {
                let expected = std::error::Error::source(error)?;
                let found = match error.get(ContextKind::InvalidValue) {
                    Some(ContextValue::String(value)) if !setting.is_hide_env_values_set() => {
                        format!("{value:?}")
                    }
                    _ => "the value".to_owned(),
                };
                Some(format!("{variable} (--{flag}): {found} is not {expected}"))
            }
            _ => None,
        }
    });
    Some(told.collect::<Option<Vec<_>>>()?.join("; "))
}

/// The setting of a flag, whichever subcommand has it: the same flag has the same variable everywhere.
fn setting(command: &clap::Command, flag: &str) -> Option<clap::Arg> {
    let here = command.get_arguments().find(|setting| setting.get_long() == Some(flag)).cloned();
    here.or_else(|| command.get_subcommands().find_map(|command| setting(command, flag)))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Runs the whole shop in one process: commands, projections, queries.
    Up(Box<UpOptions>),
    /// Takes commands, appends to the log, and publishes it to Kafka.
    Command(Box<CommandOptions>),
    /// Folds the log into the views.
    Projector(Box<ProjectorOptions>),
    /// Serves the views.
    Query(Box<QueryOptions>),
    /// Prints an access token for development.
    Token(TokenOptions),
    /// Prints the log, one event a line (NDJSON).
    Replay(Box<ReplayOptions>),
    /// Builds a projection anew beside the live one and switches readers to it.
    Rebuild(Box<RebuildOptions>),
    /// Keys outside databases: those that sign access tokens, and the master key of personal data.
    Keys(KeysOptions),
    /// Takes in data from outside, through the same decisions as HTTP.
    Import(Box<ImportOptions>),
    /// Says what of the configuration should not meet the open internet.
    Doctor(DoctorOptions),
}

impl Action {
    /// What a process that listens is told about it.
    fn serve(&self) -> Option<&ServeOptions> {
        match self {
            Self::Up(options) => Some(&options.serve),
            Self::Command(options) => Some(&options.serve),
            Self::Projector(options) => Some(&options.serve),
            Self::Query(options) => Some(&options.serve),
            Self::Token(_)
            | Self::Replay(_)
            | Self::Rebuild(_)
            | Self::Keys(_)
            | Self::Import(_)
            | Self::Doctor(_) => None,
        }
    }
}

/// Where the data is.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataOptions {
    /// Directory of the private PostgreSQL and the keys [default: data, or /var/lib/tidemark where that cannot be]
    #[arg(long, env = "TIDEMARK_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// A PostgreSQL to use instead of a private one
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true, value_parser = url_options)]
    pub(crate) database_url: Option<PgConnectOptions>,
}

/// How tokens are signed.
#[derive(Debug, Clone, Args)]
pub(crate) struct TokenKeyOptions {
    /// An HS256 secret of at least 32 bytes, instead of the EdDSA key under the data directory
    #[arg(long, env = "TIDEMARK_TOKEN_SECRET", value_name = "SECRET", hide_env_values = true, value_parser = secret)]
    pub(crate) token_secret: Option<String>,
}

/// The keys of personal data.
#[derive(Debug, Clone, Args)]
pub(crate) struct VaultOptions {
    /// The PostgreSQL of the keys of personal data [default: the log's]
    #[arg(long, env = "TIDEMARK_VAULT_URL", value_name = "URL", hide_env_values = true, value_parser = url_options)]
    pub(crate) vault_url: Option<PgConnectOptions>,
    /// The key that wraps them, 32 random bytes in base64, former ones behind it [default: keys/master.key in the data directory]
    #[arg(long, env = "TIDEMARK_MASTER_KEY", value_name = "KEYS", hide_env_values = true, value_parser = master_key)]
    pub(crate) master_key: Option<String>,
}

/// Accounts and their mails.
#[derive(Debug, Clone, Args)]
pub(crate) struct AccountOptions {
    /// Where mails go, smtp://user:password@host:port or smtps://… [default: files]
    #[arg(long, env = "TIDEMARK_SMTP_URL", value_name = "URL", hide_env_values = true, value_parser = smtp_url)]
    pub(crate) smtp_url: Option<String>,
    /// Directory of mails where there is no SMTP [default: mails in the data directory]
    #[arg(long, env = "TIDEMARK_MAIL_DIR", value_name = "DIR")]
    pub(crate) mail_dir: Option<PathBuf>,
    /// Who mails come from
    #[arg(long, env = "TIDEMARK_MAIL_FROM", value_name = "ADDRESS", default_value = "Tidemark <no-reply@localhost>", value_parser = mailbox)]
    pub(crate) mail_from: Mailbox,
    /// Roles whose sessions are a customer's until the account has a second factor, with commas between
    #[arg(long, env = "TIDEMARK_SECOND_FACTOR_FOR", value_name = "ROLES", value_delimiter = ',')]
    pub(crate) second_factor_for: Vec<Role>,
    /// Passwords that are refused, one a line: a list of common ones
    #[arg(long, env = "TIDEMARK_REFUSED_PASSWORDS", value_name = "FILE", value_parser = password_list)]
    pub(crate) refused_passwords: Option<RefusedPasswords>,
}

/// Where a process listens, and how much it takes on.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeOptions {
    /// Address to listen on
    #[arg(long, env = "TIDEMARK_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = address)]
    pub(crate) listen: SocketAddr,
    /// Connections that are open at once
    #[arg(long, env = "TIDEMARK_MAX_CONNECTIONS", value_name = "N", default_value_t = 10_000, value_parser = between(1_u32..=1_000_000))]
    pub(crate) max_connections: u32,
    /// Requests that are worked on at once; one more is answered 503
    #[arg(long, env = "TIDEMARK_MAX_REQUESTS", value_name = "N", default_value_t = 4_096, value_parser = between(1_u32..=1_000_000))]
    pub(crate) max_requests: u32,
    #[command(flatten)]
    pub(crate) front: FrontOptions,
}

/// What a process is told about its place in front of clients.
#[derive(Debug, Clone, Args)]
pub(crate) struct FrontOptions {
    /// Connections of one address that are open at once, trusted proxies apart; one more is closed
    #[arg(long = "max-connections-of-address", env = "TIDEMARK_MAX_CONNECTIONS_OF_ADDRESS", value_name = "N", default_value_t = 1_000, value_parser = between(1_u32..=1_000_000))]
    pub(crate) max_connections_of_address: u32,
    /// Rate limits that differ from the defaults, like log-in=5/m:5,reads=2000/s:10000,commands=off
    #[arg(long = "limits", env = "TIDEMARK_LIMITS", value_name = "LIMITS", value_parser = Rates::from_str)]
    rates: Option<Rates>,
    /// The Redis in which all processes count log-ins and accounts together, redis://host:port [default: none]
    #[arg(long = "limits-redis-url", env = "TIDEMARK_LIMITS_REDIS_URL", value_name = "URL", hide_env_values = true, value_parser = redis_client)]
    limits_redis: Option<redis::Client>,
    /// Networks of proxies whose X-Forwarded-For and Forwarded count, with commas between [default: none]
    #[arg(long = "trusted-proxies", env = "TIDEMARK_TRUSTED_PROXIES", value_name = "NETWORKS", value_parser = Proxies::from_str)]
    proxies: Option<Proxies>,
    /// Names of hosts that requests must be for, with commas between [default: any]
    #[arg(long = "allowed-hosts", env = "TIDEMARK_ALLOWED_HOSTS", value_name = "HOSTS", value_parser = Hosts::from_str)]
    hosts: Option<Hosts>,
    /// Origins of web pages that may ask, exactly as browsers send them, with commas between [default: none]
    #[arg(long = "cors-origins", env = "TIDEMARK_CORS_ORIGINS", value_name = "ORIGINS", value_parser = Origins::from_str)]
    origins: Option<Origins>,
    /// Where clients reach the shop: http or https, and its host [default: where it listens]
    #[arg(long = "public-url", env = "TIDEMARK_PUBLIC_URL", value_name = "URL", value_parser = public_url)]
    public_url: Option<Uri>,
    /// PEM file with the chain of certificates, for TLS [default: none, plain HTTP is spoken]
    #[arg(
        long = "tls-certificate",
        env = "TIDEMARK_TLS_CERTIFICATE",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_certificate: Option<PathBuf>,
    /// PEM file with the private key of the certificate in TIDEMARK_TLS_CERTIFICATE
    #[arg(long = "tls-key", env = "TIDEMARK_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

impl FrontOptions {
    /// Where clients reach the shop, without a slash at the end; where it listens, if nothing else is said.
    pub(crate) fn public_url(&self, listen: SocketAddr) -> String {
        let scheme = if self.tls_certificate.is_some() { "https" } else { "http" };
        let url = self.public_url.as_ref().map_or_else(|| format!("{scheme}://{listen}"), Uri::to_string);
        url.trim_end_matches('/').to_owned()
    }

    pub(crate) fn front(&self) -> Front {
        let is_https = self.public_url.as_ref().and_then(Uri::scheme_str) == Some("https");
        Front {
            rates: RateLimits::new(self.rates.unwrap_or_default(), self.limits_redis.clone()),
            proxies: self.proxies.clone().unwrap_or_default(),
            hosts: self.hosts.clone(),
            origins: self.origins.clone().unwrap_or_default(),
            secure: is_https || self.tls_certificate.is_some(),
        }
    }

    /// The certificate, if TLS is spoken.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, Failure> {
        let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) else { return Ok(None) };
        let wrong = |error| match error {
            TlsError::Certificate(why) => format!("TIDEMARK_TLS_CERTIFICATE (--tls-certificate): {why}"),
            TlsError::Key(why) => format!("TIDEMARK_TLS_KEY (--tls-key): {why}"),
        };
        Tls::load(certificate, key).map(Some).map_err(|error| Failure::Configuration(wrong(error)))
    }
}

/// Bounds of the writer.
#[derive(Debug, Clone, Args)]
pub(crate) struct WriterOptions {
    /// Commands that may wait for the log; one more is answered 503
    #[arg(long, env = "TIDEMARK_QUEUE_COMMANDS", value_name = "N", default_value_t = 4_096, value_parser = between(1_u32..=1_000_000))]
    queue_commands: u32,
    /// MiB of states that the writer keeps in memory
    #[arg(long, env = "TIDEMARK_STATE_MIB", value_name = "MIB", default_value_t = 128, value_parser = between(1_u32..=65_536))]
    state_mib: u32,
}

impl WriterOptions {
    pub(crate) fn config(&self) -> WriterConfig {
        WriterConfig {
            queue_commands: usize::try_from(self.queue_commands).unwrap_or(usize::MAX),
            state_bytes: mebibytes(self.state_mib),
            ..WriterConfig::default()
        }
    }
}

/// Bounds of the projections.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProjectionOptions {
    /// Workers of each projection
    #[arg(long, env = "TIDEMARK_PROJECTOR_WORKERS", value_name = "N", default_value_t = 1, value_parser = between(1_i16..=8))]
    projector_workers: i16,
    #[command(flatten)]
    retention: RetentionOptions,
}

impl ProjectionOptions {
    pub(crate) fn config(&self) -> ProjectorConfig {
        ProjectorConfig {
            workers: self.projector_workers,
            retention: self.retention.retention(),
            ..ProjectorConfig::default()
        }
    }
}

/// How long rows of views stay that are not for ever: the same for all who write there.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct RetentionOptions {
    /// How long security events are kept in their view, a number and s, m, h or d
    #[arg(long, env = "TIDEMARK_SECURITY_EVENTS_RETENTION", value_name = "TIME", default_value = "180d", value_parser = retention)]
    security_events_retention: Duration,
}

impl RetentionOptions {
    pub(crate) fn retention(self) -> Retention {
        Retention(self.security_events_retention)
    }
}

/// Bounds of the process's cache.
#[derive(Debug, Clone, Args)]
pub(crate) struct CacheOptions {
    /// MiB of ready bodies kept in memory; 0: none
    #[arg(long, env = "TIDEMARK_CACHE_MIB", value_name = "MIB", default_value_t = 64, value_parser = between(0_u32..=65_536))]
    cache_mib: u32,
}

impl CacheOptions {
    pub(crate) fn config(&self) -> QueryConfig {
        QueryConfig { cache_bytes: mebibytes(self.cache_mib) as u64, ..QueryConfig::default() }
    }
}

fn mebibytes(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(1024 * 1024)
}

#[derive(Debug, Clone, Args)]
pub(crate) struct UpOptions {
    #[command(flatten)]
    pub(crate) serve: ServeOptions,
    #[command(flatten)]
    pub(crate) data: DataOptions,
    #[command(flatten)]
    pub(crate) key: TokenKeyOptions,
    #[command(flatten)]
    pub(crate) writer: WriterOptions,
    #[command(flatten)]
    pub(crate) cache: CacheOptions,
    #[command(flatten)]
    pub(crate) projector: ProjectionOptions,
    #[command(flatten)]
    pub(crate) vault: VaultOptions,
    #[command(flatten)]
    pub(crate) accounts: AccountOptions,
}

/// The log's database, of processes that share it.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogOptions {
    /// The PostgreSQL of the log, postgres://user:password@host/database
    #[arg(long, env = "TIDEMARK_LOG_URL", value_name = "URL", hide_env_values = true, value_parser = url_options)]
    pub(crate) log_url: PgConnectOptions,
}

/// The views' database, of processes that share it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ViewsOptions {
    /// The PostgreSQL of the views, postgres://user:password@host/database
    #[arg(long, env = "TIDEMARK_VIEWS_URL", value_name = "URL", hide_env_values = true, value_parser = url_options)]
    pub(crate) views_url: PgConnectOptions,
}

/// Redis, if ready bodies are kept there.
#[derive(Debug, Clone, Args)]
pub(crate) struct RedisOptions {
    /// The Redis of ready bodies, redis://host:port [default: none, they come from the views]
    #[arg(long = "redis-url", env = "TIDEMARK_REDIS_URL", value_name = "URL", hide_env_values = true, value_parser = redis_url)]
    pub(crate) tier: Option<Tier>,
}

/// Where requests read the views.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReadOptions {
    /// The PostgreSQL of the views through a pooler in transaction mode [default: TIDEMARK_VIEWS_URL itself]
    #[arg(long, env = "TIDEMARK_VIEWS_POOL_URL", value_name = "URL", hide_env_values = true, value_parser = pooled_options)]
    views_pool_url: Option<PgConnectOptions>,
    /// Streaming replicas of the views, with commas between, through a pooler or not
    #[arg(
        long,
        env = "TIDEMARK_REPLICA_URLS",
        value_name = "URLS",
        value_delimiter = ',',
        hide_env_values = true,
        value_parser = pooled_options
    )]
    replica_urls: Vec<PgConnectOptions>,
    /// MiB of the write-ahead log that a replica may be behind and still be read from
    #[arg(long, env = "TIDEMARK_REPLICA_LAG_MIB", value_name = "MIB", default_value_t = 16, value_parser = between(0_u32..=65_536))]
    pub(crate) replica_lag_mib: u32,
}

impl ReadOptions {
    pub(crate) fn servers(self, primary: PgConnectOptions) -> Servers {
        Servers { primary, changes: None, pooled: self.views_pool_url, replicas: self.replica_urls }
    }
}

/// Kafka, if the log is published there.
#[derive(Debug, Clone, Args)]
pub(crate) struct KafkaOptions {
    /// Kafka's brokers, host:port with commas between [default: none, events come from the log]
    #[arg(long, env = "TIDEMARK_KAFKA_BROKERS", value_name = "ADDR", value_parser = brokers)]
    kafka_brokers: Option<String>,
    /// The topic of the events
    #[arg(long, env = "TIDEMARK_KAFKA_TOPIC", value_name = "NAME", default_value = "tidemark", value_parser = topic)]
    kafka_topic: String,
    /// What names of consumer groups begin with; projectors of another views' database need another
    #[arg(long, env = "TIDEMARK_KAFKA_GROUP", value_name = "NAME", default_value = "tidemark", value_parser = topic)]
    kafka_group: String,
}

impl KafkaOptions {
    pub(crate) fn config(&self) -> Option<KafkaConfig> {
        let brokers = self.kafka_brokers.clone()?;
        Some(KafkaConfig { brokers, topic: self.kafka_topic.clone(), group: self.kafka_group.clone() })
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CommandOptions {
    #[command(flatten)]
    pub(crate) serve: ServeOptions,
    #[command(flatten)]
    pub(crate) log: LogOptions,
    #[command(flatten)]
    pub(crate) kafka: KafkaOptions,
    #[command(flatten)]
    pub(crate) key: KeyOptions,
    #[command(flatten)]
    pub(crate) writer: WriterOptions,
    #[command(flatten)]
    pub(crate) vault: VaultOptions,
    #[command(flatten)]
    pub(crate) accounts: AccountOptions,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ProjectorOptions {
    #[command(flatten)]
    pub(crate) serve: ServeOptions,
    #[command(flatten)]
    pub(crate) log: LogOptions,
    #[command(flatten)]
    pub(crate) views: ViewsOptions,
    #[command(flatten)]
    pub(crate) kafka: KafkaOptions,
    #[command(flatten)]
    pub(crate) redis: RedisOptions,
    #[command(flatten)]
    pub(crate) projector: ProjectionOptions,
    /// Only these projections, with commas between [default: all]
    #[arg(long, env = "TIDEMARK_PROJECTIONS", value_name = "NAMES", value_delimiter = ',', value_parser = projection)]
    pub(crate) projections: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct QueryOptions {
    #[command(flatten)]
    pub(crate) serve: ServeOptions,
    #[command(flatten)]
    pub(crate) log: LogOptions,
    #[command(flatten)]
    pub(crate) views: ViewsOptions,
    #[command(flatten)]
    pub(crate) reads: ReadOptions,
    #[command(flatten)]
    pub(crate) redis: RedisOptions,
    #[command(flatten)]
    pub(crate) key: KeyOptions,
    #[command(flatten)]
    pub(crate) vault: VaultOptions,
    #[command(flatten)]
    pub(crate) cache: CacheOptions,
}

/// The key of the tokens, of processes that share it.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeyOptions {
    /// Directory of the EdDSA key
    #[arg(long, env = "TIDEMARK_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) key: TokenKeyOptions,
}

impl KeyOptions {
    /// What tokens are checked and signed with.
    pub(crate) fn open(&self) -> Result<TokenKeys, Failure> {
        TokenKeys::open(|| self.data_dir(), &self.key)
    }

    /// The data directory, made if need be.
    pub(crate) fn data_dir(&self) -> Result<PathBuf, Failure> {
        data_dir(self.data_dir.as_deref())
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct KeysOptions {
    #[command(subcommand)]
    pub(crate) action: KeysAction,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum KeysAction {
    /// Makes another key that signs access tokens; those of the former stay good until its file is removed
    Rotate(RotateOptions),
    /// Wraps the keys of personal data with the newest master key
    Rewrap(Box<RewrapOptions>),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RotateOptions {
    /// Directory of the keys [default: as for `up`]
    #[arg(long, env = "TIDEMARK_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RewrapOptions {
    /// The PostgreSQL of the log, postgres://user:password@host/database, where the shop is many processes
    #[arg(long, env = "TIDEMARK_LOG_URL", value_name = "URL", hide_env_values = true, value_parser = url_options)]
    pub(crate) log_url: Option<PgConnectOptions>,
    #[command(flatten)]
    pub(crate) data: DataOptions,
    #[command(flatten)]
    pub(crate) vault: VaultOptions,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TokenOptions {
    /// customer, staff, analyst, operator or admin
    #[arg(long)]
    pub(crate) role: Role,
    /// The account; a new one if left out
    #[arg(long, value_name = "UUID")]
    pub(crate) subject: Option<Uuid>,
    /// How long it holds: 30s, 15m, 1h, 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub(crate) ttl: Duration,
    /// Directory of the key [default: as for `up`]
    #[arg(long, env = "TIDEMARK_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) key: TokenKeyOptions,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ReplayOptions {
    /// The first position
    #[arg(long, value_name = "POSITION", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) from: i64,
    /// The last position [default: the newest]
    #[arg(long, value_name = "POSITION")]
    pub(crate) to: Option<i64>,
    /// Only events of this type; may be given several times
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) types: Vec<String>,
    /// Only streams of this category; may be given several times
    #[arg(long = "category", value_name = "CATEGORY")]
    pub(crate) categories: Vec<String>,
    /// Only this stream
    #[arg(long, value_name = "UUID")]
    pub(crate) stream: Option<Uuid>,
    /// Go on with what is yet to come
    #[arg(long)]
    pub(crate) follow: bool,
    /// The PostgreSQL of the log, postgres://user:password@host/database, where the shop is many processes
    #[arg(long, env = "TIDEMARK_LOG_URL", value_name = "URL", hide_env_values = true, value_parser = url_options)]
    pub(crate) log_url: Option<PgConnectOptions>,
    #[command(flatten)]
    pub(crate) data: DataOptions,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RebuildOptions {
    /// products, stock, orders or audit
    pub(crate) name: String,
    /// Go back to the instance before the last rebuild
    #[arg(long)]
    pub(crate) back: bool,
    /// The PostgreSQL of the log, postgres://user:password@host/database, where the shop is many processes
    #[arg(
        long,
        env = "TIDEMARK_LOG_URL",
        value_name = "URL",
        hide_env_values = true,
        value_parser = url_options,
        requires = "views_url"
    )]
    pub(crate) log_url: Option<PgConnectOptions>,
    /// The PostgreSQL of the views, postgres://user:password@host/database, with that of the log
    #[arg(
        long,
        env = "TIDEMARK_VIEWS_URL",
        value_name = "URL",
        hide_env_values = true,
        value_parser = url_options,
        requires = "log_url"
    )]
    pub(crate) views_url: Option<PgConnectOptions>,
    #[command(flatten)]
    pub(crate) retention: RetentionOptions,
    #[command(flatten)]
    pub(crate) data: DataOptions,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DoctorOptions {
    /// Checks the environment variables of `up`, or of `command`, `projector` and `query`, and the servers they name
    #[arg(long, required = true)]
    deploy: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ImportOptions {
    #[command(subcommand)]
    pub(crate) source: ImportSource,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ImportSource {
    /// The "Complete Journey" grocery baskets: products.csv.gz and basket_lines.csv.gz
    CompleteJourney(CompleteJourneyOptions),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CompleteJourneyOptions {
    /// Directory of the two files
    pub(crate) dir: PathBuf,
    /// Where to write the lines that could not be taken [default: import-report.csv in the data directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) retention: RetentionOptions,
    #[command(flatten)]
    pub(crate) data: DataOptions,
}

/// An address to listen on.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address and a port, like 127.0.0.1:8080".to_owned())
}

/// A number within a range.
fn between<N: FromStr + PartialOrd + Display + Clone>(
    range: RangeInclusive<N>,
) -> impl Fn(&str) -> Result<N, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("a whole number from {} to {}", range.start(), range.end()))
    }
}

/// The URL of a Redis.
fn redis_url(text: &str) -> Result<Tier, String> {
    Tier::new(text).map_err(|_| "a URL of a Redis, like redis://host:6379".to_owned())
}

/// Master keys of personal data.
fn master_key(text: &str) -> Result<String, String> {
    MasterKeys::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// The URL of a mail server.
fn smtp_url(text: &str) -> Result<String, String> {
    let sound = ["smtp://", "smtps://"].iter().any(|scheme| text.starts_with(scheme));
    sound
        .then(|| text.to_owned())
        .ok_or_else(|| "a URL of a mail server, like smtps://user:password@host:465".to_owned())
}

/// A list of passwords, read at once.
fn password_list(path: &str) -> Result<RefusedPasswords, String> {
    RefusedPasswords::read(Path::new(path))
}

/// An address with or without a name.
fn mailbox(text: &str) -> Result<Mailbox, String> {
    text.parse().map_err(|_| "an e-mail address, like Shop <no-reply@example.org>".to_owned())
}

/// A URL without anything behind the host.
fn public_url(text: &str) -> Result<Uri, String> {
    let sound = |uri: &Uri| {
        ["http", "https"].contains(&uri.scheme_str().unwrap_or_default())
            && uri.path_and_query().is_none_or(|path| path == "/")
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    };
    text.parse()
        .ok()
        .filter(sound)
        .ok_or_else(|| "a URL without a path, like https://shop.example".to_owned())
}

/// The URL of a Redis that counts.
fn redis_client(text: &str) -> Result<redis::Client, String> {
    redis::Client::open(text).map_err(|_| "a URL of a Redis, like redis://host:6379".to_owned())
}

/// A secret that is long enough.
fn secret(text: &str) -> Result<String, String> {
    let long_enough = text.len() >= MIN_SECRET;
    long_enough
        .then(|| text.to_owned())
        .ok_or_else(|| format!("a secret of at least {MIN_SECRET} bytes, it has {}", text.len()))
}

/// `host:port`, several with commas between.
fn brokers(text: &str) -> Result<String, String> {
    let is_one = |broker: &str| {
        let (host, port) = broker.trim().rsplit_once(':')?;
        let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let sound = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(of_name),
        };
        (sound && port.parse::<u16>().is_ok_and(|port| port > 0)).then_some(())
    };
    let sound = text.split(',').all(|broker| is_one(broker).is_some());
    sound.then(|| text.to_owned()).ok_or_else(|| "host:port, several with commas between".to_owned())
}

/// What Kafka takes as a name of a topic, with room for what is put behind it.
fn topic(text: &str) -> Result<String, String> {
    const LONGEST: usize = 200;
    let sound = (1..=LONGEST).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && text.bytes().any(|byte| byte != b'.');
    sound
        .then(|| text.to_owned())
        .ok_or_else(|| format!("a name of at most {LONGEST} letters, digits, dots, underscores and hyphens"))
}

/// The name of a projection.
fn projection(name: &str) -> Result<String, String> {
    let found = tidemark_projector::find(name).map(|found| found.name().to_owned());
    found.map_err(|error| format!("the name of a projection: {error}"))
}

/// How long security events are kept. An hour is enough to be looked at; ten years is for ever.
fn retention(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_secs(60 * 60);
    const MOST: Duration = Duration::from_secs(3_650 * 24 * 60 * 60);
    let kept = duration(text).ok().filter(|kept| (LEAST..=MOST).contains(kept));
    kept.ok_or_else(|| "a time from 1h to 3650d, like 180d".to_owned())
}

/// A number and its unit: s, m, h or d.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write a number and s, m, h or d, like 15m");
    let (number, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = number.parse().map_err(|_| wrong())?;
    count.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn brokers_are_hosts_and_ports() {
        for good in ["127.0.0.1:9092", "a:1,b.example:65535", "[::1]:9092", "a:1, b:2"] {
            assert!(brokers(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "a:", ":1", "a:0", "a:65536", "a:1,", "kafka://a:1", "a:1;b:2", "a:x"] {
            assert!(brokers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn security_events_are_kept_for_a_while() {
        assert_eq!(retention("180d"), Ok(Retention::default().0));
        for bad in ["", "0d", "59m", "3651d", "180", "for ever"] {
            assert!(retention(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "1", "h", "1.5h", "-1h", "1w", "99999999999999999999h", "18446744073709551615d", "1é"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
