//! Which connections are open: how many of one address, and who makes room when there are too many.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge};
use tokio::task::AbortHandle;

/// How long a connection may be silent before it has to make room.
const YOUNG: Duration = Duration::from_secs(2);

/// The part of all connections that make room at once, so that it is not looked for each time.
const ROOM: usize = 50;

/// What a connection does.
#[derive(Debug, Default)]
pub(crate) struct Doing(AtomicU8);

impl Doing {
    const NOTHING_YET: u8 = 0;
    const IDLE: u8 = 1;
    /// Idle, and found so before: its last answer has long been sent.
    const STILL_IDLE: u8 = 2;
    const BUSY: u8 = 3;

    /// A request has come.
    pub(crate) fn busy(&self) {
        self.0.store(Self::BUSY, Ordering::Relaxed);
    }

    /// Its answer is whole.
    pub(crate) fn idle(&self) {
        self.0.store(Self::IDLE, Ordering::Relaxed);
    }
}

struct Open {
    doing: Arc<Doing>,
    since: Instant,
    task: Option<AbortHandle>,
}

#[derive(Default)]
struct Table {
    /// In the order in which they came.
    open: BTreeMap<u64, Open>,
    of_address: HashMap<IpAddr, usize>,
    next: u64,
}

/// The open connections of a process.
pub(crate) struct Connections {
    table: Mutex<Table>,
    most: usize,
    most_of_address: usize,
    count: Gauge,
    refused: Counter,
    cut: Counter,
}

impl Connections {
    pub(crate) fn new(most: usize, most_of_address: usize) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            most,
            most_of_address,
            count: metrics::gauge!("tidemark_http_connections"),
            refused: metrics::counter!("tidemark_http_connections_refused_total"),
            cut: metrics::counter!("tidemark_http_connections_cut_total"),
        })
    }

    /// Nothing in here can be left half done.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of `address`; `None` if that has its share. Where the address says nothing about the
    /// client, it is `None` and has no bound of its own.
    pub(crate) fn place(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Place> {
        let mut table = self.table();
        if let Some(address) = address {
            let count = table.of_address.entry(address).or_default();
            if *count >= self.most_of_address {
                self.refused.increment(1);
                return None;
            }
            *count += 1;
        }
        let id = table.next;
        table.next += 1;
        let doing = Arc::new(Doing::default());
        table.open.insert(id, Open { doing: Arc::clone(&doing), since: Instant::now(), task: None });
        self.count.set(table.open.len() as f64);
        Some(Place { connections: Arc::clone(self), id, address, doing })
    }

    /// Names the task that has to end when others need the place.
    pub(crate) fn name_task(&self, id: u64, task: AbortHandle) {
        if let Some(open) = self.table().open.get_mut(&id) {
            open.task = Some(task);
        }
    }

    /// Ends connections that wait: first the oldest of those that have never sent a whole request, then those between
    /// two requests. None that is being answered.
    pub(crate) fn make_room(&self) {
        let wanted = (self.most / ROOM).max(1);
        let table = self.table();
        let old = || table.open.values().filter(|open| open.since.elapsed() >= YOUNG);
        let that = |state: u8| old().filter(move |open| open.doing.0.load(Ordering::Relaxed) == state);
        let waiting = that(Doing::NOTHING_YET).chain(that(Doing::STILL_IDLE));
        let mut ended = 0;
        for task in
            waiting.filter_map(|open| open.task.as_ref()).filter(|task| !task.is_finished()).take(wanted)
        {
            task.abort();
            ended += 1;
        }
        for open in that(Doing::IDLE) {
            // One that became busy meanwhile stays so.
            let _ = open.doing.0.compare_exchange(
                Doing::IDLE,
                Doing::STILL_IDLE,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
        self.cut.increment(ended);
    }
}

/// A connection's place; free again when it is dropped.
pub(crate) struct Place {
    connections: Arc<Connections>,
    /// What it is called.
    pub(crate) id: u64,
    address: Option<IpAddr>,
    /// For the connection to say what it does.
    pub(crate) doing: Arc<Doing>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.connections.table();
        table.open.remove(&self.id);
        self.connections.count.set(table.open.len() as f64);
        if let Some(address) = self.address
            && let Some(count) = table.of_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                table.of_address.remove(&address);
            }
        }
    }
}
