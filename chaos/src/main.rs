//! Tidemark's chaos run: a cluster of real components, clients that keep it busy, faults that strike every part of it,
//! and a checker that knows nothing of the services' code and looks at what is left.
//!
//! | module | what it does |
//! |---|---|
//! | [`cluster`] | starts, kills, pauses and watches over the members |
//! | [`drive`] | clients that order and read, measure, and follow the log |
//! | [`faults`], [`proxy`] | what is broken, and links that break |
//! | [`history`] | what each client asked and was answered |
//! | [`log`], [`fold`] | the log, and what it adds up to, written a second time |
//! | [`check`] | what must hold |
//! | [`run`], [`report`] | the order of a run, and what it came to |
//! | [`disk`], [`power`] | the long form: a disk that is full, and one that loses its power |
//! | [`planted`] | whether bugs that are planted on purpose are found |

mod access;
mod check;
mod cluster;
mod disk;
mod drive;
mod error;
mod faults;
mod fold;
mod history;
mod log;
mod planted;
mod power;
mod proxy;
mod report;
mod run;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use check::Check;
use disk::Disk;
use error::ChaosError;
use report::Least;
use run::{Done, Options};

/// From this length on Kafka and Redis are gone for a whole minute.
const WHOLE: u64 = 170;

/// How long faults strike while the disk of the log's PostgreSQL is filled again and again, and its size.
const DISK_FULL_RUN: Duration = Duration::from_secs(30);
const DISK_MEGABYTES: u32 = 1_000;

#[derive(Debug, Parser)]
#[command(
    name = "tidemark-chaos",
    about = "Kills every part of a cluster under load, and checks what is left"
)]
struct Arguments {
    /// How long faults strike
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Faults and choices follow from it; another one for each run if it is left out
    #[arg(long)]
    seed: Option<u64>,
    /// Clients that order
    #[arg(long, default_value_t = 48)]
    clients: usize,
    /// Commands a second of all of them together, while nothing is broken
    #[arg(long, default_value_t = 1_500.0)]
    rate: f64,
    /// Also fills the disk of the log's PostgreSQL, and cuts its power; needs root
    #[arg(long)]
    long: bool,
    /// Leaves the disk out of the long form, for machines without root, tmpfs or loop devices: else it fails there
    #[arg(long)]
    without_disk: bool,
    /// Only faults whose names hold one of these, with commas between
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Finds the bugs that are planted in a test build of the services, one after the other; with names only these
    #[arg(long, value_delimiter = ',', num_args = 0.., value_name = "NAME")]
    planted: Option<Vec<String>>,
    /// The program of the services, instead of the one built beside this
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// How many times longer than its bound an outage may be: more than once on a machine that others use, too
    #[arg(long, default_value_t = 1)]
    patience: u32,
    /// Keeps the cluster's directory also when all is well
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("TIDEMARK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ChaosError::io("starting the runtime"))
        .and_then(|runtime| {
            let done = runtime.block_on(whole(arguments));
            // When it was stopped while it read the topic, nobody waits for that any more.
            runtime.shutdown_background();
            done
        });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Makes the run and prints what it came to; whether it passed.
async fn whole(arguments: Arguments) -> Result<bool, ChaosError> {
    let stopped = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signal = signal(kind).map_err(ChaosError::io("listening to signals"))?;
        let stopped = stopped.clone();
        tokio::spawn(async move {
            signal.recv().await;
            stopped.cancel();
        });
    }
    let whole = arguments.only.is_empty();
    let options = Options {
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000)),
        time: Duration::from_secs(arguments.seconds),
        shoppers: arguments.clients,
        rate: arguments.rate,
        gone_for: Duration::from_secs(if arguments.seconds >= WHOLE { 60 } else { arguments.seconds / 8 }),
        only: arguments.only,
        script: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/cluster")),
        program: arguments.program.map_or_else(beside, Ok)?,
        environment: Vec::new(),
        disk: disk::Kind::Plain,
        least: if whole {
            Least::whole(arguments.seconds, arguments.patience)
        } else {
            Least::something(arguments.patience)
        },
        enough: &[],
    };
    if let Some(names) = arguments.planted {
        return planted::find_all(&options, &names, &stopped).await;
    }
    let with_disk = arguments.long && !arguments.without_disk;
    if with_disk {
        // Before minutes have been spent on the rest.
        Disk::can_be_mounted().map_err(|error| {
            ChaosError::Wrong(format!(
                "--long fills a disk and cuts its power, which needs root, tmpfs and loop devices; \
                 --without-disk leaves both out: {error}"
            ))
        })?;
    }
    let passed = print(run::run(&options, &stopped).await?, arguments.keep);
    if !with_disk {
        if arguments.long {
            tracing::warn!("a full disk and a power cut were left out, as was asked for");
        }
        return Ok(passed);
    }
    Ok(long(&options, arguments.keep, &stopped).await? && passed)
}

/// A full disk, and one that loses its power.
async fn long(options: &Options, keep: bool, stopped: &CancellationToken) -> Result<bool, ChaosError> {
    let full = Options {
        time: DISK_FULL_RUN,
        only: vec![faults::DISK_FULL.to_owned()],
        disk: disk::Kind::Small(DISK_MEGABYTES),
        least: Least::something(options.least.patience),
        ..options.clone()
    };
    let mut done = run::run(&full, stopped).await?;
    let mut refused = Check::new("commands are refused while the disk is full");
    let answers = &done.report.history.answers;
    refused.expect(answers.keys().any(|(_, outcome)| outcome == "503"), || {
        "none was refused: the disk was not full".to_owned()
    });
    done.report.checks.push(refused);
    let filled = print(done, keep);
    let checks = power::run(options, stopped).await?;
    Ok(report::print_checks(&checks) && filled)
}

/// Prints a run's report and keeps its directory if it failed or `keep` says so; whether it passed.
fn print(done: Done, keep: bool) -> bool {
    done.report.print();
    let passed = done.report.failures().is_empty();
    if keep || !passed {
        let kept = done.dir.keep();
        tracing::info!(dir = %kept.display(), "the cluster's directory is kept");
    }
    passed
}

/// The service's program, built into the same directory.
fn beside() -> Result<PathBuf, ChaosError> {
    let own = std::env::current_exe().map_err(ChaosError::io("looking for this program"))?;
    let program = own.with_file_name("tidemark");
    if program.exists() {
        return Ok(program);
    }
    Err(ChaosError::Wrong(format!(
        "{} is not there: build it with cargo build -p tidemark",
        program.display()
    )))
}
