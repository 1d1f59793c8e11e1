//! Load over keep-alive connections: as fast as answers come, or at a fixed rate.
//!
//! At a fixed rate (open loop) a request has an intended time, and its latency counts from there. A server that
//! stalls for a second delays all requests of that second, and all of them show it; a closed loop would wait with
//! the server and show one ("coordinated omission").

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::sync::Semaphore;

use crate::client::Connection;
use crate::error::BenchError;

/// From the order to begin until the first request of an open loop.
const LEAD: Duration = Duration::from_millis(20);

/// Does `job` for 0, 1, … `total`, each as soon as one of the connections is free. Returns what came of each, in the
/// order of their numbers. The first error ends it.
pub(crate) async fn closed<T>(
    address: SocketAddr,
    connections: usize,
    total: usize,
    job: impl AsyncFn(&mut Connection, usize) -> Result<T, BenchError>,
) -> Result<Vec<T>, BenchError> {
    let (next, done) = (Cell::new(0), RefCell::new(Vec::with_capacity(total)));
    let worker = async |mut connection: Connection| -> Result<(), BenchError> {
        while let Some(number) = take(&next, total) {
            let outcome = job(&mut connection, number).await?;
            done.borrow_mut().push((number, outcome));
        }
        Ok(())
    };
    try_join_all(open_all(address, connections.min(total)).await?.into_iter().map(worker)).await?;
    let mut done = done.into_inner();
    done.sort_unstable_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, outcome)| outcome).collect())
}

/// Does `job` for 0, 1, … `total` at `rate` a second, whatever the answers do, on at most `connections` connections.
/// Returns what came of each with its latency since its intended time, in no particular order. The first error ends
/// it.
pub(crate) async fn open<T>(
    address: SocketAddr,
    connections: usize,
    rate: f64,
    total: usize,
    job: impl AsyncFn(&mut Connection, usize) -> Result<T, BenchError>,
) -> Result<Vec<(Duration, T)>, BenchError> {
    let connections = open_all(address, connections).await?;
    let (next, done) = (Cell::new(0), RefCell::new(Vec::with_capacity(total)));
    let pace = Pace::start(rate, total)?;
    let worker = async |mut connection: Connection| -> Result<(), BenchError> {
        while let Some(number) = take(&next, total) {
            let intended = pace.wait_for(number).await?;
            let outcome = job(&mut connection, number).await?;
            done.borrow_mut().push((intended.elapsed(), outcome));
        }
        Ok(())
    };
    try_join_all(connections.into_iter().map(worker)).await?;
    Ok(done.into_inner())
}

async fn open_all(address: SocketAddr, connections: usize) -> Result<Vec<Connection>, BenchError> {
    try_join_all((0..connections).map(|_| Connection::open(address))).await
}

fn take(next: &Cell<usize>, total: usize) -> Option<usize> {
    let number = next.get();
    next.set(number + 1);
    (number < total).then_some(number)
}

/// Says when requests are due. A thread of its own, since the runtime's timer counts whole milliseconds and would
/// send what is due within one as a burst.
struct Pace {
    start: Instant,
    rate: f64,
    due: Arc<Semaphore>,
}

impl Pace {
    fn start(rate: f64, total: usize) -> Result<Self, BenchError> {
        let pace = Self { start: Instant::now() + LEAD, rate, due: Arc::new(Semaphore::new(0)) };
        let (start, due) = (pace.start, Arc::clone(&pace.due));
        let ticks = move || {
            for number in 0..total {
                thread::sleep(intended(start, rate, number).saturating_duration_since(Instant::now()));
                if Arc::strong_count(&due) == 1 {
                    // Nobody waits any more.
                    return;
                }
                due.add_permits(1);
            }
        };
        thread::Builder::new()
            .name("pace".to_owned())
            .spawn(ticks)
            .map_err(BenchError::io("starting the thread that keeps the pace"))?;
        Ok(pace)
    }

    /// Waits until request `number` is due; returns when it was to be sent.
    async fn wait_for(&self, number: usize) -> Result<Instant, BenchError> {
        let permit = self.due.acquire().await;
        permit.map_err(|_| BenchError::Wrong("the pace ended early".to_owned()))?.forget();
        Ok(intended(self.start, self.rate, number))
    }
}

fn intended(start: Instant, rate: f64, number: usize) -> Instant {
    start + Duration::from_secs_f64(number as f64 / rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_due_at_the_rate() {
        let pace = Pace::start(1_000.0, 50).unwrap();
        let begin = pace.start;
        for number in 0..50 {
            let intended = pace.wait_for(number).await.unwrap();
            assert_eq!(intended, begin + Duration::from_millis(number as u64));
            assert!(Instant::now() >= intended);
        }
        assert!(begin.elapsed() >= Duration::from_millis(49));
    }

    #[tokio::test]
    async fn a_stall_shows_in_every_request_that_waited() {
        let stall = Duration::from_millis(100);
        let pace = Pace::start(100.0, 10).unwrap();
        tokio::time::sleep(stall + LEAD).await;
        let mut latencies = Vec::new();
        for number in 0..10 {
            latencies.push(pace.wait_for(number).await.unwrap().elapsed());
        }
        assert!(latencies[0] >= stall);
        assert!(latencies.is_sorted_by(|a, b| a > b), "{latencies:?}");
    }
}
