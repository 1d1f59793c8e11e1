//! The writer's states: a bounded cache, by bytes.
//!
//! An order is seldom asked for again, and thousands of them a second must not push out the products they are for. So
//! what is new stands in a queue of its own and is forgotten at its end, unless it was used more than once or others'
//! commands read it, too; the rest is forgotten when it has not been used for longest (S3-FIFO without its ghost queue: Yang et al., "FIFO queues are
//! all you need for cache eviction", SOSP 2023).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};

use tidemark_events::log::{Loaded, Snapshot};
use tidemark_events::{Fact, RecordedEvent};
use uuid::Uuid;

use crate::shop::{Aggregate, Entry, States};

#[derive(Debug)]
struct Slot {
    entry: Entry,
    bytes: usize,
    /// How often it was read, [`MOST_USES`] at most, less the times it was passed over.
    uses: AtomicU8,
}

const MOST_USES: u8 = 3;

/// How often something must be used while it is new to stay.
const PROVEN: u8 = 2;

/// The part of all states that is kept for new ones: one in so many.
const NEW: usize = 10;

/// How many states one commit passes over at most: all of them would be a pause for everybody.
const STEPS: usize = 4_096;

/// States by stream. Every one of them stands at the same position of the log: the writer's.
#[derive(Debug)]
pub(super) struct StateCache {
    slots: HashMap<Uuid, Slot>,
    /// In the order they came.
    new: VecDeque<Uuid>,
    /// In the order they were last passed over. Both may hold streams that have been forgotten since.
    proven: VecDeque<Uuid>,
    bytes: usize,
    capacity: usize,
}

impl States for StateCache {
    fn entry(&self, stream_id: Uuid) -> Option<&Entry> {
        let slot = self.slots.get(&stream_id)?;
        let uses = slot.uses.load(Ordering::Relaxed);
        if uses < MOST_USES {
            // One task reads and writes it: no count is lost.
            slot.uses.store(uses + 1, Ordering::Relaxed);
        }
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
            new: VecDeque::with_capacity(most * 2),
            proven: VecDeque::new(),
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

    /// A state as it is now, for others than a decision: that does not count as a use.
    pub(super) fn peek(&self, stream_id: Uuid) -> Option<&Entry> {
        self.slots.get(&stream_id).map(|slot| &slot.entry)
    }

    /// Puts a state in, or in the place of another.
    pub(super) fn insert(&mut self, stream_id: Uuid, entry: Entry) {
        let bytes = weigh(&entry);
        self.bytes += bytes;
        let slot = Slot { entry, bytes, uses: AtomicU8::new(0) };
        match self.slots.insert(stream_id, slot) {
            Some(old) => self.bytes -= old.bytes,
            None => self.new.push_back(stream_id),
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
            // Its place in a queue stays, and is passed over.
        }
    }

    /// Drops all of them.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }

    /// Forgets until seven eighths of the bytes are enough, a bounded number at each call. Should all of them be taken
    /// all the same, whatever comes first goes.
    pub(super) fn shrink(&mut self) {
        if self.new.len() + self.proven.len() > self.slots.len() * 2 + 64 {
            // Rare: so many have been dropped for other reasons than room.
            let mut seen = HashSet::with_capacity(self.slots.len());
            for queue in [&mut self.proven, &mut self.new] {
                queue.retain(|stream| self.slots.contains_key(stream) && seen.insert(*stream));
            }
        }
        let enough = self.capacity - self.capacity / 8;
        for step in 0.. {
            let full = self.bytes > self.capacity;
            if self.bytes <= enough || (step >= STEPS && !full) {
                return;
            }
            let is_new = self.new.len() > self.proven.len() / NEW;
            let queue = if is_new { &mut self.new } else { &mut self.proven };
            let Some(stream_id) = queue.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(&stream_id) else { continue };
            let uses = slot.uses.get_mut();
            if full {
                self.forget(stream_id);
            } else if is_new
                && (*uses >= PROVEN || slot.entry.state.as_ref().is_some_and(Aggregate::is_shared))
            {
                *uses = 0;
                self.proven.push_back(stream_id);
            } else if !is_new && *uses > 0 {
                *uses -= 1;
                self.proven.push_back(stream_id);
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
    Aggregate::from_snapshot(snapshot.fold_version, &snapshot.state)
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
        let mut cache = StateCache::new(one * 16);
        for n in 0..14 {
            cache.insert(stream(n), Entry::default());
        }
        cache.shrink();
        assert_eq!(cache.len(), 14);
        for n in 14..100 {
            assert!(cache.entry(stream(3)).is_some(), "what is read each time is kept, at {n}");
            cache.insert(stream(n), Entry::default());
            cache.shrink();
            assert!(cache.bytes() <= one * 14);
        }
        assert!(cache.entry(stream(4)).is_none());
        for n in 0..1_000 {
            for stream in [stream(n), stream(7)] {
                cache.insert(stream, Entry::default());
                cache.forget(stream);
            }
            cache.shrink();
        }
        assert!(cache.new.len() < 200, "places of what was forgotten do not pile up: {}", cache.new.len());
        for n in 0..1_000 {
            cache.insert(stream(n), Entry::default());
            while cache
                .entry(stream(n))
                .is_some_and(|_| cache.slots[&stream(n)].uses.load(Ordering::Relaxed) < MOST_USES)
            {
            }
        }
        cache.shrink();
        assert!(cache.bytes() <= one * 16, "also when all of them are used");
    }

    #[test]
    fn a_flood_of_what_is_used_once_leaves_what_is_used_often() {
        let one = weigh(&Entry::default());
        let mut cache = StateCache::new(one * 800);
        for n in 0..100 {
            cache.insert(stream(n), Entry::default());
            for _ in 0..MOST_USES {
                assert!(cache.entry(stream(n)).is_some());
            }
        }
        for n in 1_000..20_000 {
            cache.insert(stream(n), Entry::default());
            assert!(cache.entry(stream(n)).is_some());
            cache.shrink();
        }
        assert!((0..100).all(|n| cache.slots.contains_key(&stream(n))));
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
