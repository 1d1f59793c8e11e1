//! `tidemark rebuild`: the next instance of a projection, with a progress bar.

use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use sqlx::postgres::PgConnectOptions;
use tidemark_events::log::Log;
use tidemark_projector::{Progress, rebuild, switch_back};
use tokio_util::sync::CancellationToken;

use crate::config::RebuildOptions;
use crate::database::{Database, pool};
use crate::{Failure, processes};

/// Connections for reading the log.
const LOG_CONNECTIONS: u32 = 3;

pub(crate) async fn run(options: RebuildOptions) -> Result<(), Failure> {
    // An unknown name is a mistake of whoever typed it, not worth a database.
    tidemark_projector::find(&options.name).map_err(|error| Failure::Configuration(error.to_string()))?;
    if let (Some(log), Some(views)) = (&options.log_url, &options.views_url) {
        processes::views(views).await?;
        let pool = pool(log, LOG_CONNECTIONS);
        Log::migrate(&pool).await?;
        return build(&options, &Log::new(pool), views).await;
    }
    let database = Database::existing(&options.data).await?;
    let built =
        async { build(&options, &database.log(LOG_CONNECTIONS).await?, &database.options).await }.await;
    database.close().await?;
    built
}

async fn build(options: &RebuildOptions, log: &Log, views: &PgConnectOptions) -> Result<(), Failure> {
    let retention = options.retention.retention();
    if options.back {
        let instance = switch_back(log, views, &options.name, retention).await?;
        tracing::info!(name = options.name, instance, "readers are back on the former instance");
        return Ok(());
    }
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            on_signal.cancel();
        }
    });
    let bar = ProgressBar::new(0).with_style(style());
    bar.enable_steady_tick(Duration::from_millis(200));
    let started = Instant::now();
    let mut first = None;
    let mut folded = 0;
    let report = |progress| match progress {
        Progress::Folding { position, head } => {
            let first = *first.get_or_insert(position.min(head));
            folded = position - first.min(position);
            bar.set_length(u64::try_from(head).unwrap_or(0));
            bar.set_position(u64::try_from(position).unwrap_or(0));
        }
        Progress::Indexing => bar.set_message("making indexes"),
        Progress::Switched { .. } => bar.finish_and_clear(),
    };
    let instance = rebuild(log, views, &options.name, retention, &stop, report).await?;
    let head = log.head().await?.position;
    let seconds = started.elapsed().as_secs_f64();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people"
    )]
    let rate = (head as f64 / seconds) as u64;
    tracing::info!(
        name = options.name, instance, events = head, folded_here = folded,
        seconds = format!("{seconds:.2}"), events_per_second = %HumanCount(rate),
        "readers are on the new instance; --back returns to the former one"
    );
    Ok(())
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{bar:40} {percent:>3}%  {human_pos}/{human_len} events  {per_sec}  ETA {eta}  {msg}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
}
