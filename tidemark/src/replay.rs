//! `tidemark replay`: the log as NDJSON on standard output.

use std::io::{ErrorKind, Write};

use tidemark_events::log::{Filter, Page};
use tidemark_events::ndjson;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Failure;
use crate::config::ReplayOptions;
use crate::database::Database;

/// Events that are read at once.
const BATCH: usize = 5_000;

pub(crate) async fn run(options: ReplayOptions) -> Result<(), Failure> {
    let database = Database::open(&options.data, false).await?;
    let printed = print(&options, &database).await;
    database.close().await?;
    printed
}

async fn print(options: &ReplayOptions, database: &Database) -> Result<(), Failure> {
    let log = database.log(2).await?;
    let stop = CancellationToken::new();
    let listening = log.spawn_listener(database.options.clone(), stop.clone());
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
    let last = options.to.unwrap_or(i64::MAX);
    let mut wake = log.wake();
    let mut at = options.from - 1;
    let mut epoch = None;
    'reading: loop {
        let end = wake.borrow_and_update().position.min(last);
        while at < end {
            let page = log.read(at, end, &filter, BATCH).await?;
            if *epoch.get_or_insert(page.epoch) != page.epoch {
                tracing::warn!(at, "the replay ends: the log has lost its end, and a new epoch began");
                break 'reading;
            }
            if page.read_to == at {
                break;
            }
            at = page.read_to;
            if !page.events.is_empty() && pages.send(page).await.is_err() {
                break 'reading;
            }
        }
        if !options.follow || at >= last {
            break;
        }
        tokio::select! {
            () = pages.closed() => break,
            _ = tokio::signal::ctrl_c() => break,
            changed = wake.changed() => if changed.is_err() { break },
        }
    }
    drop(pages);
    stop.cancel();
    listening.await.ok();
    match writing.await {
        Ok(Err(error)) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Io("cannot write the log".to_owned(), error))
        }
        _ => Ok(()),
    }
}
