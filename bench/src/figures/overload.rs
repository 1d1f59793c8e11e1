//! Orders at three times the rate that can be done, and how soon all is as before.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::{Stage, orders};
use crate::client::Connection;
use crate::error::BenchError;
use crate::load;
use crate::report::{Bound, Row};
use crate::stats::Latencies;
use crate::wrk;

/// How much more is asked for than can be done.
const TIMES: f64 = 3.0;

/// Connections that carry it: more than there may be requests at work.
const CONNECTIONS: usize = 6_000;

/// Orders that tell how fast one is answered while nobody else asks.
const PROBES: usize = 100;

/// Orders by which the rate is guessed.
const GUESS: usize = 5_000;

/// How long it is looked for the end of the overload's effects.
const NORMAL_WITHIN: Duration = Duration::from_secs(20);

/// The figures of overload.
pub(super) async fn overload(stage: &Stage<'_>) -> Result<Vec<Row>, BenchError> {
    eprintln!("orders at three times the peak rate");
    let seconds = stage.settings.seconds as f64;
    let mut next = 10_000_000;
    let (mut peaks, mut goodputs, mut recoveries, mut notes) = (vec![], vec![], vec![], vec![]);
    let guess = closed(stage, &mut next, GUESS).await?;
    for _ in 0..stage.settings.rounds {
        let quiet = probe(stage, &mut next).await?;
        let peak = closed(stage, &mut next, (guess * seconds) as usize).await?;
        let rate = TIMES * peak;
        let (first, total) = (next, (rate * seconds) as usize);
        next += total;
        // Connections take their time to open: what counts begins with the first order that is sent.
        let (begun, last) = (Cell::new(None), Cell::new(None));
        let job = async |connection: &mut Connection, number: usize| {
            let sent = Instant::now();
            let begin = begun.get().unwrap_or(sent);
            begun.set(Some(begin));
            // What has not been sent when the time is over is not sent any more.
            if sent.duration_since(begin) >= Duration::from_secs(stage.settings.seconds) {
                return Ok(None);
            }
            let answer = connection.try_send(&orders::any_order(stage, first + number)).await?;
            last.set(Some(Instant::now()));
            Ok(Some((answer.status.as_u16(), sent.elapsed())))
        };
        let done = load::open(stage.shop.address, CONNECTIONS, rate, total, job).await?;
        let took = begun
            .get()
            .zip(last.get())
            .map_or(seconds, |(begun, last)| last.duration_since(begun).as_secs_f64());
        let over = Instant::now();
        let answers: Vec<(u16, Duration)> = done.into_iter().filter_map(|(_, answer)| answer).collect();
        let of = |wanted: u16| answers.iter().filter(move |(status, _)| *status == wanted);
        let admitted = Latencies::new(of(201).map(|(_, latency)| *latency).collect());
        let refused = of(503).count();
        if admitted.count() + refused < answers.len() {
            return Err(BenchError::Wrong(
                "an overloaded shop answered something else than 201 and 503".to_owned(),
            ));
        }
        peaks.push(peak);
        goodputs.push(admitted.count() as f64 / took);
        let mut recovered = probe(stage, &mut next).await?;
        while recovered > 2.0 * quiet && over.elapsed() < NORMAL_WITHIN {
            recovered = probe(stage, &mut next).await?;
        }
        recoveries.push(over.elapsed().as_secs_f64());
        notes.push(format!(
            "offered {rate:.0}/s; {refused} refused; admitted: {}; p99 of one at a time {quiet:.1} ms before, \
             {recovered:.1} ms after",
            admitted.describe()
        ));
    }
    let what = format!("orders while {TIMES} times the peak is offered on {CONNECTIONS} connections");
    let mut goodput = Row::new("overload", what, "/s", goodputs)
        .against("peak, closed loop, the same client", peaks)
        .bound(Bound::Ratio(0.9));
    goodput.notes = notes;
    let recovery =
        Row::new("overload-recovery", "then until p99 is below twice the quiet one", "s", recoveries)
            .bound(Bound::Below(5.0));
    Ok(vec![goodput, recovery])
}

/// Places so many orders as fast as 64 connections have them answered; orders a second.
async fn closed(stage: &Stage<'_>, next: &mut usize, total: usize) -> Result<f64, BenchError> {
    let first = *next;
    *next += total;
    let begun = Instant::now();
    load::closed(stage.shop.address, wrk::CONNECTIONS, total, async |connection, number| {
        connection.send(&orders::any_order(stage, first + number)).await.map(drop)
    })
    .await?;
    Ok(total as f64 / begun.elapsed().as_secs_f64())
}

/// p99 of orders one after the other, in milliseconds.
async fn probe(stage: &Stage<'_>, next: &mut usize) -> Result<f64, BenchError> {
    let first = *next;
    *next += PROBES;
    let latencies = load::closed(stage.shop.address, 1, PROBES, async |connection, number| {
        let sent = Instant::now();
        connection.send(&orders::any_order(stage, first + number)).await?;
        Ok(sent.elapsed())
    })
    .await?;
    Ok(Latencies::new(latencies).percentile(99.0))
}
