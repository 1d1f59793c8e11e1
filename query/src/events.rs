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
use crate::{QueryState, log_away};

/// Events that are read at once.
const BATCH: usize = 5_000;

pub(crate) fn routes() -> OpenApiRouter<QueryState> {
    OpenApiRouter::new().routes(routes!(stream))
}

/// The log from a position on, one event a line, in order and without gaps.
#[utoipa::path(
    get, path = "/v1/events", tag = "log", security(("token" = [])),
    params(
        ("from" = Option<i64>, Query, description = "The first position, 1 if left out"),
        ("to" = Option<i64>, Query, description = "The last position, the newest if left out"),
        ("type" = Option<String>, Query, description = "Only these event types, by comma"),
        ("category" = Option<String>, Query, description = "Only these categories, by comma"),
        ("stream" = Option<Uuid>, Query, description = "Only this stream"),
        ("follow" = Option<bool>, Query, description = "Go on with what is yet to come"),
    ),
    responses(
        (status = 200, content_type = "application/x-ndjson", body = String), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 403, body = Problem), (status = 503, body = Problem),
    )
)]
async fn stream(
    State(state): State<QueryState>,
    actor: Actor,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    actor.require(&[Role::Analyst])?;
    let parameters =
        Parameters::read(query.as_deref(), &["from", "to", "type", "category", "stream", "follow"])?;
    let from: i64 = parameters.parse("from", "a position")?.unwrap_or(1);
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

    // One batch is read while the one before is written and the one before that is sent; who reads slowly is
    // waited for, and who goes away ends it.
    let (pages, mut to_write) = mpsc::channel::<Result<Page, BrokenOff>>(1);
    let (lines, to_send) = mpsc::channel::<Result<Bytes, BrokenOff>>(1);
    tokio::spawn(read(log, filter, from - 1, to, follow, pages));
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
    Ok((headers, Body::from_stream(body)).into_response())
}

/// The body breaks off, and its connection with it, so that it is not taken for whole. Its reader goes on from the last
/// line it has.
#[derive(Debug, thiserror::Error)]
#[error("the log cannot be read on")]
struct BrokenOff;

async fn break_off(pages: &mpsc::Sender<Result<Page, BrokenOff>>, at: i64, reason: &(dyn Display + Sync)) {
    tracing::warn!(%reason, at, "a replay breaks off");
    pages.send(Err(BrokenOff)).await.ok();
}

async fn read(
    log: Log,
    filter: Filter,
    mut at: i64,
    to: Option<i64>,
    follow: bool,
    pages: mpsc::Sender<Result<Page, BrokenOff>>,
) {
    let mut wake = log.wake();
    let last = to.unwrap_or(i64::MAX);
    let newest = wake.borrow_and_update().position;
    let mut known: Option<Head> = None;
    loop {
        let head = *wake.borrow_and_update();
        // What was sent may have been lost, though the log does not reach as far any more.
        if let Some(read) = known.filter(|read| follow && read.epoch < head.epoch) {
            match log.continues(read, head.epoch).await {
                Ok(true) => {}
                Ok(false) => return break_off(&pages, at, &"the log has lost its end").await,
                Err(error) => return break_off(&pages, at, &error).await,
            }
        }
        let end = if follow { head.position } else { newest }.min(last);
        while at < end {
            let next = async {
                let page = log.read(at, end, &filter, BATCH).await?;
                let continues = match known {
                    Some(known) => log.continues(known, page.epoch).await?,
                    None => true,
                };
                Ok::<_, LogError>((page, continues))
            };
            let page = match next.await {
                Ok((page, true)) => page,
                Ok((_, false)) => return break_off(&pages, at, &"the log has lost its end").await,
                Err(error) => return break_off(&pages, at, &error).await,
            };
            known = Some(Head { epoch: page.epoch, position: page.read_to });
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
