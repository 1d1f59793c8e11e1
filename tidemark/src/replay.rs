//! `tidemark replay`: the log as NDJSON on standard output.

use std::io::{ErrorKind, Write};

use sqlx::postgres::PgConnectOptions;
use tidemark_events::log::{self, Filter, Head, Log, Page};
use tidemark_events::ndjson;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Failure;
use crate::config::ReplayOptions;
use crate::database::{Database, pool, wait_for};
use crate::service::{stop_on_signals, unless_stopped};

/// Connections for reading the log.
const LOG_CONNECTIONS: u32 = 2;

/// Events that are read at once.
const BATCH: usize = 5_000;

pub(crate) async fn run(options: ReplayOptions) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    if let Some(url) = options.log_url.as_ref().or(options.data.database_url.as_ref()) {
        // A log from outside is only read: it may be a standby, or in the care of another release.
        let variable = if options.log_url.is_some() { "TIDEMARK_LOG_URL" } else { "DATABASE_URL" };
        if unless_stopped(&stop, is_there(variable, url)).await?.is_none() {
            return Ok(());
        }
        let log = Log::new(pool(url, LOG_CONNECTIONS));
        log.committed(log.head().await?);
        return print(&options, &log, url, &stop).await;
    }
    let opened = Database::existing(&options.data);
    let Some(database) = unless_stopped(&stop, opened).await? else { return Ok(()) };
    let printed = match database.log(LOG_CONNECTIONS).await {
        Ok(log) => print(&options, &log, &database.options, &stop).await,
        Err(failure) => Err(failure),
    };
    database.close().await?;
    printed
}

/// Whether there is a log in a database, as this program knows it.
async fn is_there(variable: &str, database: &PgConnectOptions) -> Result<(), Failure> {
    wait_for(variable, database).await?;
    if log::SCHEMA.check(database).await? {
        return Ok(());
    }
    Err(Failure::Configuration(format!(
        "{variable}: there is no log in that database; the one of `tidemark command` is expected"
    )))
}

async fn print(
    options: &ReplayOptions,
    log: &Log,
    database: &PgConnectOptions,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let end = stop.child_token();
    let listening = log.spawn_listener(database.clone(), end.clone());
    let filter = Filter {
        categories: options.categories.iter().cloned().map(Into::into).collect(),
        event_types: options.types.clone(),
        stream_id: options.stream,
        audited: false,
    };
    // One batch is read while the one before is written.
    let (pages, mut to_write) = mpsc::channel::<Page>(1);
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = std::io::stdout().lock();
        let mut text = Vec::new();
        while let Some(page) = to_write.blocking_recv() {
            text.clear();
            for event in &page.events {
                ndjson::write_line(event, &mut text);
            }
            out.write_all(&text).and_then(|()| out.flush())?;
        }
        Ok::<_, std::io::Error>(())
    });
    let read = stop.run_until_cancelled(read(options, log, &filter, pages)).await;
    end.cancel();
    listening.await.ok();
    let Some(read) = read else {
        // Whoever reads the output may have stopped doing so: what is being written is not waited for.
        return Ok(());
    };
    match writing.await {
        Ok(Err(error)) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Io("cannot write the log".to_owned(), error))
        }
        _ => read,
    }
}

/// Hands on what was asked for, page by page.
async fn read(
    options: &ReplayOptions,
    log: &Log,
    filter: &Filter,
    pages: mpsc::Sender<Page>,
) -> Result<(), Failure> {
    let last = options.to.unwrap_or(i64::MAX);
    let mut wake = log.wake();
    let mut at = options.from - 1;
    let mut known: Option<Head> = None;
    loop {
        let head = *wake.borrow_and_update();
        let end = head.position.min(last);
        // What was printed may have been lost, though the log does not reach as far any more.
        if options.follow
            && let Some(known) = known.filter(|known| known.epoch < head.epoch)
            && !log.continues(known, head.epoch).await?
        {
            return Err(Failure::LostEnd(at));
        }
        while at < end {
            let page = log.read(at, end, filter, BATCH).await?;
            if let Some(known) = known
                && !log.continues(known, page.epoch).await?
            {
                return Err(Failure::LostEnd(at));
            }
            known = Some(Head { epoch: page.epoch, position: page.read_to });
            if page.read_to == at {
                break;
            }
            at = page.read_to;
            if !page.events.is_empty() && pages.send(page).await.is_err() {
                return Ok(());
            }
        }
        if !options.follow || at >= last {
            return Ok(());
        }
        tokio::select! {
            () = pages.closed() => return Ok(()),
            changed = wake.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}
