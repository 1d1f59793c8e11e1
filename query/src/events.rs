//! The log itself, streamed as NDJSON to analysts.

use std::fmt::Display;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use tidemark_events::log::{Filter, Head, Log, LogError, Page};
use tidemark_events::ndjson;
use tidemark_http::{Actor, Problem, Role};
use tokio::sync::mpsc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::page::{Parameters, invalid};
use crate::position::{Mark, lost, parse};
use crate::{QueryState, log_away};

/// Events that are read at once.
const BATCH: usize = 5_000;

pub(crate) fn routes() -> OpenApiRouter<QueryState> {
    OpenApiRouter::new().routes(routes!(stream))
}

/// The log from a position on, one event a line, in order and without gaps. `Tidemark-Epoch` says in which epoch its
/// positions are; it breaks off when another one begins. Who goes on says with `after` that epoch and the position of the
/// last line, and is refused if what was read was lost.
#[utoipa::path(
    get, path = "/v1/events", tag = "log", security(("token" = [])),
    params(
        ("from" = Option<i64>, Query, description = "The first position, 1 if left out"),
        ("to" = Option<i64>, Query, description = "The last position, the newest if left out"),
        ("type" = Option<String>, Query, description = "Only these event types, by comma"),
        ("category" = Option<String>, Query, description = "Only these categories, by comma"),
        ("stream" = Option<Uuid>, Query, description = "Only this stream"),
        ("follow" = Option<bool>, Query, description = "Go on with what is yet to come"),
        ("after" = Option<String>, Query,
            description = "What was read up to now, as `<epoch>-<position>`: goes on behind it, unless `from` says otherwise"),
    ),
    responses(
        (status = 200, content_type = "application/x-ndjson", body = String,
            headers(("Tidemark-Epoch" = i32, description = "The epoch of all positions"))),
        (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem),
        (status = 503, body = Problem),
    )
)]
async fn stream(
    State(state): State<QueryState>,
    actor: Actor,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    actor.require(&[Role::Analyst])?;
    let parameters =
        Parameters::read(query.as_deref(), &["from", "to", "type", "category", "stream", "follow", "after"])?;
    let after = match parameters.get("after") {
        Some(text) => {
            Some(parse(text).ok_or_else(|| invalid("after", "must be an epoch, - and a position"))?)
        }
        None => None,
    };
    let behind = || after.map_or(1, |read| read.position.saturating_add(1));
    let from: i64 = parameters.parse("from", "a position")?.unwrap_or_else(behind);
    let to: Option<i64> = parameters.parse("to", "a position")?;
    if from < 1 || to.is_some_and(|to| to < 0) {
        return Err(invalid("from", "positions begin at 1"));
    }
    let list = |name| parameters.get(name).map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>());
    let filter = Filter {
        categories: list("category").unwrap_or_default().into_iter().map(Into::into).collect(),
        event_types: list("type").unwrap_or_default(),
        stream_id: parameters.parse::<Uuid>("stream", "a UUID")?,
        audited: false,
    };
    let follow = parameters.parse("follow", "true or false")?.unwrap_or(false);
    let log = state.0.log.clone();
    let head = log.head().await.map_err(|error| log_away(&error))?;
    log.committed(head);
    if let Some(Mark { epoch: Some(epoch), position }) = after
        && !is_part(&log, Head { epoch, position }, head).await.map_err(|error| log_away(&error))?
    {
        return Err(lost());
    }

    // One batch is read while the one before is written and the one before that is sent; who reads slowly is
    // waited for, and who goes away ends it.
    let (pages, mut to_write) = mpsc::channel::<Result<Page, BrokenOff>>(1);
    let (lines, to_send) = mpsc::channel::<Result<Bytes, BrokenOff>>(1);
    tokio::spawn(read(log, filter, head, Range { after: from - 1, to, follow }, pages));
    tokio::spawn(async move {
        while let Some(page) = to_write.recv().await {
            let written = page.map(|page| {
                let mut text = Vec::with_capacity(page.events.len() * 640);
                for event in &page.events {
                    ndjson::write_line(event, &mut text);
                }
                Bytes::from(text)
            });
            if lines.send(written).await.is_err() {
                return;
            }
        }
    });
    let body = futures_util::stream::unfold(to_send, async |mut to_send| {
        let chunk = to_send.recv().await?;
        Some((chunk, to_send))
    });
    // Who compresses it asks once more after its end.
    let body = body.fuse();
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, [("tidemark-epoch", head.epoch.to_string())], Body::from_stream(body)).into_response())
}

/// The body breaks off, and its connection with it, so that it is not taken for whole. Its reader goes on from the last
/// line it has.
#[derive(Debug, thiserror::Error)]
#[error("the log cannot be read on")]
struct BrokenOff;

/// Whether what was read up to somewhere is part of the history of a log that stands at `head`.
async fn is_part(log: &Log, read: Head, head: Head) -> Result<bool, LogError> {
    let there_is = read.epoch <= head.epoch && read.position <= head.position;
    Ok(there_is && log.continues(read, head.epoch).await?)
}

/// What is asked for.
struct Range {
    after: i64,
    to: Option<i64>,
    follow: bool,
}

async fn break_off(pages: &mpsc::Sender<Result<Page, BrokenOff>>, at: i64, reason: &(dyn Display + Sync)) {
    tracing::warn!(%reason, at, "a replay breaks off");
    pages.send(Err(BrokenOff)).await.ok();
}

async fn read(
    log: Log,
    filter: Filter,
    begun: Head,
    Range { after: mut at, to, follow }: Range,
    pages: mpsc::Sender<Result<Page, BrokenOff>>,
) {
    const EPOCH: &str = "another epoch has begun";
    let mut wake = log.wake();
    let last = to.unwrap_or(i64::MAX);
    loop {
        let head = *wake.borrow_and_update();
        // What was sent may have been lost, though the log does not reach as far any more.
        if head.epoch != begun.epoch {
            return break_off(&pages, at, &EPOCH).await;
        }
        let end = if follow { head.position } else { begun.position }.min(last);
        while at < end {
            let page = match log.read(at, end, &filter, BATCH).await {
                Ok(page) if page.epoch == begun.epoch => page,
                Ok(_) => return break_off(&pages, at, &EPOCH).await,
                Err(error) => return break_off(&pages, at, &error).await,
            };
            if page.read_to == at && !follow {
                return break_off(&pages, at, &"the log does not reach as far any more").await;
            }
            if page.read_to == at {
                break;
            }
            at = page.read_to;
            if !page.events.is_empty() && pages.send(Ok(page)).await.is_err() {
                return;
            }
        }
        if !follow || at >= last {
            return;
        }
        tokio::select! {
            () = pages.closed() => return,
            changed = wake.changed() => if changed.is_err() { return },
        }
    }
}
