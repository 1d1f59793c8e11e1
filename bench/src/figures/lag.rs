//! Orders at half the peak rate: their latency from the intended time, and how far views are behind.

use std::time::Instant;

use serde::Deserialize;
use uuid::Uuid;

use super::{Stage, orders};
use crate::client::{Call, Connection, POSITION};
use crate::error::BenchError;
use crate::load;
use crate::report::{Bound, Row};
use crate::stats::Latencies;
use crate::wrk::CONNECTIONS;

/// Orders a second that are read back at once.
const PROBES: f64 = 100.0;

/// What the shop says itself: from the recording of a batch's oldest event until the batch is in the view.
const METRIC: &str = "tidemark_projection_lag_seconds";

/// Connections of the probes.
const PROBE_CONNECTIONS: usize = 16;

#[derive(Debug, Deserialize)]
struct Order {
    id: Uuid,
}

/// The figures at half the peak rate.
pub(super) async fn lag(stage: &Stage<'_>, peak: Option<f64>) -> Result<Vec<Row>, BenchError> {
    eprintln!("orders at half the peak rate");
    let peak = match peak {
        Some(peak) => peak,
        None => orders::peak(stage).await?,
    };
    let rate = (peak / 2.0 - PROBES).max(PROBES);
    let seconds = stage.settings.seconds as f64;
    let (mut order_p99s, mut lag_p99s, mut order_notes, mut lag_notes) = (vec![], vec![], vec![], vec![]);
    for round in 0..stage.settings.rounds as usize {
        let (total, probes) = ((rate * seconds) as usize, (PROBES * seconds) as usize);
        let place = async |connection: &mut Connection, number: usize| {
            connection.send(&orders::any_order(stage, round * total + number)).await.map(drop)
        };
        let read_back = async |connection: &mut Connection, number: usize| {
            read_back(stage, connection, (round + 1_000) * total + number).await
        };
        let before = stage.shop.histograms(METRIC).await?;
        let (placed, lags) = tokio::try_join!(
            load::open(stage.shop.address, CONNECTIONS, rate, total, place),
            load::open(stage.shop.address, PROBE_CONNECTIONS, PROBES, probes, read_back),
        )?;
        let placed = Latencies::new(placed.into_iter().map(|(latency, ())| latency).collect());
        let lags = Latencies::new(lags.into_iter().map(|(_, lag)| lag).collect());
        order_p99s.push(placed.percentile(99.0));
        lag_p99s.push(lags.percentile(99.0));
        order_notes.push(placed.describe());
        let told: Vec<String> = stage
            .shop
            .histograms(METRIC)
            .await?
            .quantile_since(&before, 0.99)
            .into_iter()
            .map(|(name, bound)| format!("{name} ≤ {:.0} ms", bound * 1e3))
            .collect();
        lag_notes.push(format!("{}; {METRIC}, p99: {}", lags.describe(), told.join(", ")));
    }
    let what =
        format!("POST /v1/orders at {:.0}/s, half of the peak, p99 from the intended time", peak / 2.0);
    let mut order = Row::new("orders-half", what, "ms", order_p99s).bound(Bound::Below(15.0));
    order.notes = order_notes;
    let what = "view lag at that rate: an order's answer until its view shows it, p99";
    let mut lag = Row::new("lag", what, "ms", lag_p99s).bound(Bound::Below(100.0));
    lag.notes = lag_notes;
    Ok(vec![order, lag])
}

/// Places an order and reads it from views that stand there; the time between the two answers.
async fn read_back(
    stage: &Stage<'_>,
    connection: &mut Connection,
    number: usize,
) -> Result<std::time::Duration, BenchError> {
    let placed = connection.send(&orders::any_order(stage, number)).await?;
    let answered = Instant::now();
    let order: Order = placed.json()?;
    let read = Call::get(format!("/v1/orders/{}", order.id))
        .token(&stage.seeded.customer)
        .after(&placed.header(POSITION)?);
    let shown: Order = connection.send(&read).await?.json()?;
    let lag = answered.elapsed();
    if shown.id == order.id {
        Ok(lag)
    } else {
        Err(BenchError::Wrong(format!("{order:?} is shown as {shown:?}")))
    }
}
