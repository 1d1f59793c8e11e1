//! Reads while 10,000 connections send a byte a second and never come to the end of a request.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::Stage;
use super::reads::HOT;
use crate::client::{Call, Connection};
use crate::error::BenchError;
use crate::load;
use crate::process;
use crate::report::{Bound, Row};
use crate::stats::{Latencies, median};

/// Slow connections.
const SLOW: usize = 10_000;

/// Slow connections of each address: as many as one may have.
const OF_ADDRESS: usize = 1_000;

/// How many of them must have been there at once, or the figures say nothing. Some are always about to be opened again.
const LEAST_OPEN: usize = SLOW / 100 * 95;

/// How long the slow ones may take to be there.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Reads a second, by others.
const RATE: f64 = 2_000.0;

/// Connections of the others.
const CONNECTIONS: usize = 32;

/// What the process may grow by, in MB.
const MOST_GROWTH: f64 = 200.0;

/// The figures of slow connections.
pub(super) async fn slow(stage: &Stage<'_>) -> Result<Vec<Row>, BenchError> {
    eprintln!("reads beside slow connections");
    let resident = async || {
        let bytes = process::resident_bytes(stage.shop.process_id()).await;
        bytes.map(|bytes| bytes as f64 / 1e6).ok_or_else(|| BenchError::Wrong("the shop is gone".to_owned()))
    };
    read(stage).await?;
    let mut quiet = Vec::new();
    for _ in 0..stage.settings.rounds {
        quiet.push(read(stage).await?);
    }
    let before = resident().await?;
    let attack = Attack::start(stage.shop.address)?;
    let begun = Instant::now();
    let mut opened = attack.open();
    while opened < SLOW && begun.elapsed() < READY_WITHIN {
        tokio::time::sleep(Duration::from_millis(100)).await;
        opened = opened.max(attack.open());
    }
    enough(opened)?;
    let (mut slow, mut growth, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..stage.settings.rounds {
        let open = attack.open();
        let latencies = read(stage).await?;
        notes.push(format!("{open} to {} slow connections; {}", attack.open(), latencies.describe()));
        slow.push(latencies.percentile(99.0));
        growth.push(resident().await? - before);
    }
    drop(attack);
    let quiet: Vec<f64> = quiet.iter().map(|latencies| latencies.percentile(99.0)).collect();
    let most = 2.0 * median(&quiet);
    let what = format!("reads, {RATE:.0}/s, beside {SLOW} connections that send a byte a second, p99");
    let mut row = Row::new("slow", what, "ms", slow).against("quiet", quiet).bound(Bound::Below(most));
    row.notes = notes;
    let memory = Row::new("slow-memory", "what the process has grown by meanwhile", "MB", growth)
        .bound(Bound::Below(MOST_GROWTH));
    Ok(vec![row, memory])
}

/// Whether so many slow connections are enough.
fn enough(open: usize) -> Result<(), BenchError> {
    if open >= LEAST_OPEN {
        return Ok(());
    }
    Err(BenchError::Wrong(format!(
        "{open} of {SLOW} slow connections could be opened, {LEAST_OPEN} are needed; this program and the shop need as \
         many open files each (ulimit -n)"
    )))
}

/// Reads of products in demand at a fixed rate.
pub(super) async fn read(stage: &Stage<'_>) -> Result<Latencies, BenchError> {
    let total = (RATE * stage.settings.seconds as f64) as usize;
    let hot = &stage.seeded.products[..HOT.min(stage.seeded.products.len())];
    let job = async |connection: &mut Connection, number: usize| {
        let (id, _) = &hot[number % hot.len()];
        connection.send(&Call::get(format!("/v1/products/{id}"))).await.map(drop)
    };
    let done = load::open(stage.shop.address, CONNECTIONS, RATE, total, job).await?;
    Ok(Latencies::new(done.into_iter().map(|(latency, ())| latency).collect()))
}

/// Slow connections, on a thread of their own. They are gone when it is dropped.
struct Attack {
    open: Arc<AtomicUsize>,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Attack {
    fn start(address: SocketAddr) -> Result<Self, BenchError> {
        let (open, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(BenchError::io("starting the runtime of slow connections"))?;
        let (counted, stopped) = (Arc::clone(&open), stop.clone());
        let run = move || {
            runtime.block_on(async {
                for number in 0..SLOW {
                    let (counted, stopped) = (Arc::clone(&counted), stopped.clone());
                    tokio::spawn(stopped.run_until_cancelled_owned(drip(address, number, counted)));
                    if number % 100 == 99 {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                stopped.cancelled().await;
            });
        };
        let thread = thread::Builder::new().name("slow".to_owned()).spawn(run);
        let thread = thread.map_err(BenchError::io("starting the thread of slow connections"))?;
        Ok(Self { open, stop, thread: Some(thread) })
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// One connection, opened again whenever it is cut off.
async fn drip(address: SocketAddr, number: usize, open: Arc<AtomicUsize>) {
    loop {
        if let Ok(mut stream) = connect(address, number).await {
            open.fetch_add(1, Ordering::Relaxed);
            let mut said = stream.write_all(b"GET /v1/products HTTP/1.1\r\nhost: shop\r\nx: ").await;
            while said.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                said = stream.write_all(b"x").await;
            }
            open.fetch_sub(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// From an address of the loopback network that has its share left.
async fn connect(address: SocketAddr, number: usize) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let host = u8::try_from(number / OF_ADDRESS).unwrap_or(u8::MAX);
    socket.bind((Ipv4Addr::new(127, 0, 1, host), 0).into())?;
    socket.connect(address).await
}
