//! The writer's states: a bounded cache, by bytes, that forgets what has not been used for longest.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use tidemark_events::log::{Loaded, Snapshot};
use tidemark_events::{Fact, RecordedEvent};
use uuid::Uuid;

use crate::shop::{Aggregate, Entry, States};

#[derive(Debug)]
struct Slot {
    entry: Entry,
    bytes: usize,
    /// Read or changed since the hand last passed (the CLOCK algorithm: close to LRU, without a write per read).
    used: AtomicBool,
}

/// States by stream. Every one of them stands at the same position of the log: the writer's.
#[derive(Debug)]
pub(super) struct StateCache {
    slots: HashMap<Uuid, Slot>,
    hand: VecDeque<Uuid>,
    bytes: usize,
    capacity: usize,
}

impl States for StateCache {
    fn entry(&self, stream_id: Uuid) -> Option<&Entry> {
        let slot = self.slots.get(&stream_id)?;
        slot.used.store(true, Ordering::Relaxed);
        Some(&slot.entry)
    }
}

impl StateCache {
    /// An empty cache of `capacity` bytes. It has room for all that it may ever hold from the start: to grow a table of
    /// half a million slots is a pause of 100 ms. What is not used yet takes no memory.
    pub(super) fn new(capacity: usize) -> Self {
        let most = capacity / FIXED;
        Self {
            slots: HashMap::with_capacity(most),
            hand: VecDeque::with_capacity(most * 2),
            bytes: 0,
            capacity,
        }
    }

    /// How many states there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// About how many bytes they take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts a state in, or in the place of another.
    pub(super) fn insert(&mut self, stream_id: Uuid, entry: Entry) {
        let bytes = weigh(&entry);
        self.bytes += bytes;
        let slot = Slot { entry, bytes, used: AtomicBool::new(true) };
        match self.slots.insert(stream_id, slot) {
            Some(old) => self.bytes -= old.bytes,
            None => self.hand.push_back(stream_id),
        }
    }

    /// Folds an event of this writer's own into a state that is there; returns the stream's new version.
    pub(super) fn apply(&mut self, stream_id: Uuid, fact: &Fact, position: i64) -> Option<i64> {
        let slot = self.slots.get_mut(&stream_id)?;
        slot.entry.version += 1;
        slot.entry.position = position;
        fold(&mut slot.entry, fact);
        let bytes = weigh(&slot.entry);
        self.bytes = self.bytes + bytes - slot.bytes;
        slot.bytes = bytes;
        Some(slot.entry.version)
    }

    /// Folds an event that somebody else appended, if its stream is here.
    pub(super) fn follow(&mut self, event: &RecordedEvent) {
        let Some(slot) = self.slots.get_mut(&event.stream_id) else { return };
        if event.version <= slot.entry.version {
            return;
        }
        fold_recorded(&mut slot.entry, event);
    }

    /// Puts in what was loaded for `wanted`, all of them: a stream without events is one that does not exist.
    pub(super) fn take(&mut self, wanted: &[Uuid], loaded: &Loaded) {
        let mut entries: HashMap<Uuid, Entry> =
            wanted.iter().map(|&stream| (stream, Entry::default())).collect();
        for snapshot in &loaded.snapshots {
            if let Some(state) = state_of(snapshot) {
                entries.insert(
                    snapshot.stream_id,
                    Entry { version: snapshot.version, position: snapshot.position, state: Some(state) },
                );
            }
        }
        for event in &loaded.events {
            if let Some(entry) = entries.get_mut(&event.stream_id) {
                fold_recorded(entry, event);
            }
        }
        for (stream, entry) in entries {
            self.insert(stream, entry);
        }
    }

    /// Drops a state that may hold what was never committed.
    pub(super) fn forget(&mut self, stream_id: Uuid) {
        if let Some(slot) = self.slots.remove(&stream_id) {
            self.bytes -= slot.bytes;
            // Its place in `hand` stays and is passed over when the hand comes to it.
        }
    }

    /// Drops all of them.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }

    /// Forgets what has not been used for longest until the rest fits.
    pub(super) fn shrink(&mut self) {
        let mut chances = self.hand.len() * 2;
        while chances > 0 && (self.bytes > self.capacity || self.hand.len() > self.slots.len() * 2 + 64) {
            chances -= 1;
            let Some(stream_id) = self.hand.pop_front() else { return };
            let Some(slot) = self.slots.get(&stream_id) else { continue };
            if self.bytes <= self.capacity || slot.used.swap(false, Ordering::Relaxed) {
                self.hand.push_back(stream_id);
            } else {
                self.forget(stream_id);
            }
        }
    }
}

/// Whether a snapshot was made by this fold and can be read.
pub(super) fn usable(snapshot: &Snapshot) -> bool {
    state_of(snapshot).is_some()
}

fn state_of(snapshot: &Snapshot) -> Option<Aggregate> {
    if snapshot.fold_version != Aggregate::FOLD_VERSION {
        return None;
    }
    serde_json::from_value(snapshot.state.clone()).ok()
}

fn fold(entry: &mut Entry, fact: &Fact) {
    if entry.version == 1 {
        entry.state = Aggregate::initial(fact.event_type().category);
    }
    if let Some(state) = &mut entry.state {
        state.evolve(fact);
    }
}

/// Folds a stored event. One that this code cannot read makes the stream unreadable, for good: what follows cannot
/// be folded without it.
fn fold_recorded(entry: &mut Entry, event: &RecordedEvent) {
    let readable = entry.version == 0 || entry.state.is_some();
    entry.version = event.version;
    entry.position = event.position;
    match event.decode() {
        Ok(fact) if readable => fold(entry, &fact),
        Ok(_) => {}
        Err(error) => {
            tracing::error!(
                stream_id = %event.stream_id, position = event.position, %error,
                "cannot read an event: commands on its stream are refused"
            );
            entry.state = None;
        }
    }
}

/// The slot, its key in the map and in the hand, and the map's free places.
const FIXED: usize = std::mem::size_of::<Slot>() + 2 * std::mem::size_of::<Uuid>() + 32;

fn weigh(entry: &Entry) -> usize {
    FIXED + entry.state.as_ref().map_or(0, Aggregate::heap_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemark_events::stock::StockReceived;

    fn stream(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn it_keeps_what_is_used_and_stays_within_its_bytes() {
        let one = weigh(&Entry::default());
        let mut cache = StateCache::new(one * 10);
        for n in 0..10 {
            cache.insert(stream(n), Entry::default());
        }
        cache.shrink();
        assert_eq!(cache.len(), 10);
        for n in 10..100 {
            assert!(cache.entry(stream(3)).is_some(), "what is read each time is kept, at {n}");
            cache.insert(stream(n), Entry::default());
            cache.shrink();
            assert!(cache.bytes() <= one * 10);
        }
        assert!(cache.entry(stream(4)).is_none());
        for n in 0..1_000 {
            cache.insert(stream(n), Entry::default());
            cache.forget(stream(n));
            cache.shrink();
        }
        assert!(cache.hand.len() < 200, "places of what was forgotten do not pile up: {}", cache.hand.len());
    }

    #[test]
    fn applying_moves_version_and_state() {
        let product_id = stream(7);
        let mut cache = StateCache::new(1_000_000);
        assert_eq!(cache.apply(product_id, &StockReceived { product_id, quantity: 2 }.into(), 1), None);
        cache.insert(product_id, Entry::default());
        assert_eq!(cache.apply(product_id, &StockReceived { product_id, quantity: 2 }.into(), 1), Some(1));
        assert_eq!(cache.apply(product_id, &StockReceived { product_id, quantity: 3 }.into(), 1), Some(2));
        match &cache.entry(product_id).unwrap().state {
            Some(Aggregate::Stock(stock)) => assert_eq!(stock.available(), 5),
            other => panic!("{other:?}"),
        }
    }
}
