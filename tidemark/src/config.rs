//! Every setting there is: flags, environment variables, defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tidemark_http::Role;
use uuid::Uuid;

/// Tidemark: an event-sourced CQRS commerce backend.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the whole shop in one process: commands, projections, queries.
    Up(UpOptions),
    /// Prints an access token for development.
    Token(TokenOptions),
    /// Prints the log, one event a line (NDJSON).
    Replay(ReplayOptions),
    /// Builds a projection anew beside the live one and switches readers to it.
    Rebuild(RebuildOptions),
    /// Takes in data from outside, through the same decisions as HTTP.
    Import(ImportOptions),
}

/// Where the data is.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataOptions {
    /// Directory of the private PostgreSQL and the keys [default: data, or /var/lib/tidemark where that cannot be]
    #[arg(long, env = "TIDEMARK_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// A PostgreSQL to use instead of a private one
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub(crate) database_url: Option<String>,
}

/// How tokens are signed.
#[derive(Debug, Clone, Args)]
pub(crate) struct TokenKeyOptions {
    /// An HS256 secret of at least 32 bytes, instead of the EdDSA key under the data directory
    #[arg(long, env = "TIDEMARK_TOKEN_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub(crate) token_secret: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct UpOptions {
    /// Address to listen on
    #[arg(long, env = "TIDEMARK_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) data: DataOptions,
    #[command(flatten)]
    pub(crate) key: TokenKeyOptions,
    /// Commands that may wait for the log; one more is answered 503
    #[arg(long, env = "TIDEMARK_QUEUE_COMMANDS", value_name = "N", default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) queue_commands: u32,
    /// MiB of states that the writer keeps in memory
    #[arg(long, env = "TIDEMARK_STATE_MIB", value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) state_mib: u32,
    /// MiB of ready bodies kept in memory
    #[arg(long, env = "TIDEMARK_CACHE_MIB", value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) cache_mib: u32,
    /// Workers of each projection
    #[arg(long, env = "TIDEMARK_PROJECTOR_WORKERS", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i16).range(1..=8))]
    pub(crate) projector_workers: i16,
    /// Connections that are open at once
    #[arg(long, env = "TIDEMARK_MAX_CONNECTIONS", value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_connections: u32,
    /// Requests that are worked on at once; one more is answered 503
    #[arg(long, env = "TIDEMARK_MAX_REQUESTS", value_name = "N", default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_requests: u32,
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
    #[command(flatten)]
    pub(crate) data: DataOptions,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RebuildOptions {
    /// products, stock or orders
    pub(crate) name: String,
    /// Go back to the instance before the last rebuild
    #[arg(long)]
    pub(crate) back: bool,
    #[command(flatten)]
    pub(crate) data: DataOptions,
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
    pub(crate) data: DataOptions,
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
        use clap::CommandFactory;
        Cli::command().debug_assert();
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
