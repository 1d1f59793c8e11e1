//! The benchmark: starts the real shop, measures it against limits measured in the same run, prints a table.
//!
//! | module | what it does |
//! |---|---|
//! | [`figures`] | the measurements, one file a group |
//! | [`shop`], [`seed`], [`catalog`] | the shop as a process, and what it is filled with |
//! | [`wrk`], [`load`], [`client`] | load: closed loop by wrk, open loop by this program |
//! | [`whole`], [`background`] | the shop as many processes, and other programs |
//! | [`bare`], [`cluster`] | the limits: a bare handler, pgbench |
//! | [`books`], [`metrics`] | whether what was fast was also right, and what the shop says itself |
//! | [`report`], [`stats`] | the table |

mod background;
mod bare;
mod books;
mod catalog;
mod client;
mod cluster;
mod error;
mod figures;
mod load;
mod metrics;
mod position;
mod process;
mod random;
mod report;
mod scratch;
mod seed;
mod shop;
mod stats;
mod steal;
mod whole;
mod wrk;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::error::BenchError;
use crate::figures::{Figure, Settings};

/// The allocator of the shop, so that the bare handler differs from it in nothing else.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the shop against limits measured in the same run.
#[derive(Debug, Parser)]
#[command(name = "tidemark-bench")]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Seconds of each measurement of each round
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Rounds; a figure is the median of them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=99))]
    rounds: u64,
    /// One round of two seconds: shows that all works, says little about speed
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    quick: bool,
    /// Only these figures
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Figure>,
    /// Folder of the complete-journey data set (products.csv.gz, basket_lines.csv.gz), for the import of all baskets
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where to store the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The program to measure, instead of the one built beside this
    #[arg(long, value_name = "FILE")]
    tidemark: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serves stored answers without any middleware (started by the benchmark itself)
    #[command(hide = true)]
    Bare {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        answers: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.role {
        // As many threads as the shop has.
        Some(Role::Bare { listen, answers }) => {
            on(tokio::runtime::Builder::new_multi_thread(), bare::serve(listen, &answers)).map(|()| true)
        }
        // One thread is enough to send load and takes the least from what is measured.
        None => on(tokio::runtime::Builder::new_current_thread(), measure(arguments)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn on<T>(
    mut runtime: tokio::runtime::Builder,
    work: impl Future<Output = Result<T, BenchError>>,
) -> Result<T, BenchError> {
    runtime.enable_all().build().map_err(BenchError::io("starting the runtime"))?.block_on(work)
}

/// Runs the figures; whether all could be had. What was started ends with the future, also when a signal ends it.
async fn measure(arguments: Arguments) -> Result<bool, BenchError> {
    let settings = Settings {
        seconds: if arguments.quick { 2 } else { arguments.seconds },
        rounds: if arguments.quick { 1 } else { arguments.rounds },
        only: arguments.only,
        data: arguments.data,
        program: arguments.tidemark,
        database_url: std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty()),
    };
    let report = tokio::select! {
        report = figures::all(&settings) => report?,
        name = stopped() => return Err(BenchError::Wrong(format!("stopped by {}", name?))),
    };
    report.print();
    if let Some(path) = &arguments.json {
        report.store(path)?;
    }
    Ok(report.complete())
}

async fn stopped() -> Result<&'static str, BenchError> {
    let listen = |kind| signal(kind).map_err(BenchError::io("listening to signals"));
    let (mut interrupt, mut terminate, mut hangup) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    tokio::select! {
        _ = interrupt.recv() => Ok("SIGINT"),
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = hangup.recv() => Ok("SIGHUP"),
    }
}
