//! The whole log as NDJSON over HTTP.

use std::time::Instant;

use serde::Deserialize;
use uuid::Uuid;

use super::{Settings, rebuild};
use crate::client::{Call, Connection};
use crate::error::BenchError;
use crate::report::{Bound, Row};
use crate::shop::Shop;

#[derive(Debug, Deserialize)]
struct Line {
    position: i64,
}

/// The figure of replaying.
pub(super) async fn replay(settings: &Settings, shop: &Shop, staff: &str) -> Result<Vec<Row>, BenchError> {
    eprintln!("replay");
    let head = rebuild::head(shop, staff).await?;
    let analyst = shop.token("analyst", Uuid::now_v7()).await?;
    let log = Call::get("/v1/events").token(&analyst);
    let (mut rates, mut bytes) = (Vec::new(), 0);
    for _ in 0..settings.rounds {
        let (mut lines, mut end) = (0_i64, Vec::new());
        bytes = 0;
        let begin = Instant::now();
        Connection::open(shop.address)
            .await?
            .stream(&log, |piece| {
                bytes += piece.len();
                lines += piece.iter().filter(|byte| **byte == b'\n').count() as i64;
                keep_last_line(&mut end, piece);
                Ok(())
            })
            .await?;
        rates.push(lines as f64 / begin.elapsed().as_secs_f64());
        let last: Line = serde_json::from_slice(&end).map_err(BenchError::json("the log's last line"))?;
        if lines < head || last.position != lines {
            return Err(BenchError::Wrong(format!(
                "the log's head is {head}, it came in {lines} lines, the last at position {}",
                last.position
            )));
        }
    }
    let row = Row::new("replay", "NDJSON replay over HTTP, one connection", "events/s", rates)
        .bound(Bound::Above(300_000.0))
        .note(format!("{head} events, {:.0} bytes a line", bytes as f64 / head as f64));
    Ok(vec![row])
}

/// Keeps the end of what has come: its last line without the line end.
fn keep_last_line(end: &mut Vec<u8>, piece: &[u8]) {
    let content = piece.strip_suffix(b"\n").unwrap_or(piece);
    match content.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => {
            end.clear();
            end.extend_from_slice(&content[at + 1..]);
        }
        None => end.extend_from_slice(content),
    }
}

/// Reads NDJSON and hands over line by line.
pub(crate) async fn lines(
    shop: &Shop,
    call: &Call,
    mut each: impl FnMut(&[u8]) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let mut rest = Vec::new();
    Connection::open(shop.address)
        .await?
        .stream(call, |piece| {
            rest.extend_from_slice(piece);
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            rest[..whole]
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .try_for_each(&mut each)?;
            rest.drain(..whole);
            Ok(())
        })
        .await?;
    if rest.is_empty() {
        Ok(())
    } else {
        Err(BenchError::Wrong("the log broke off within a line".to_owned()))
    }
}
