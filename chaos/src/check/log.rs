//! The log itself: no gap, no double, nothing that changes behind a reader's back.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::check::Check;
use crate::drive::tail::Seen;
use crate::log::{Chain, Event};

/// Positions from 1 to the head, versions of each stream from 1, ids used once.
pub(crate) fn order(events: &[Event], head: i64) -> Vec<Check> {
    let mut positions = Check::new("positions are 1 to the head, without gaps");
    let mut versions = Check::new("versions of each stream are 1, 2, 3 …");
    let mut ids = Check::new("each event has an id of its own");
    let mut newest: HashMap<Uuid, i64> = HashMap::new();
    let mut known = HashSet::with_capacity(events.len());
    for (event, expected) in events.iter().zip(1..) {
        positions.expect(event.position == expected, || {
            format!("position {} stands at {expected}", event.position)
        });
        let version = newest.entry(event.stream).or_default();
        *version += 1;
        versions.expect(event.version == *version, || {
            format!(
                "stream {} has version {} at {}, not {version}",
                event.stream, event.version, event.position
            )
        });
        *version = event.version;
        ids.expect(known.insert(event.id), || {
            format!("event {} at {} was there before", event.id, event.position)
        });
    }
    let last = events.last().map_or(0, |event| event.position);
    positions.expect(last == head, || format!("the head says {head}, the last event is {last}"));
    vec![positions, versions, ids]
}

/// What a reader saw that followed the log all the time, against the log as it is at the end.
pub(crate) fn followed(events: &[Event], seen: &Seen) -> Vec<Check> {
    let mut once = Check::new("a reader that followed saw each event once, in order");
    once.expect_none(seen.count.unsigned_abs(), seen.wrong.iter().cloned());
    let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
    once.expect(seen.count == count, || format!("it saw {} of {count} events", seen.count));
    let mut prefix = Check::new("what it has read before is unchanged");
    let mut chain = Chain::default();
    let mut marks = seen.marks.iter().peekable();
    for event in events {
        chain.add(event);
        if let Some((position, hash)) = marks.next_if(|(position, _)| *position == event.position) {
            prefix
                .expect(chain.hash() == *hash, || format!("the log up to {position} is another than it was"));
        }
    }
    prefix.expect(marks.next().is_none(), || "it has read positions that are not in the log".to_owned());
    vec![once, prefix]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::event;
    use serde_json::json;

    fn events() -> Vec<Event> {
        (1..=4).map(|n| event(n, 9, n, "PriceChanged", json!({ "price": n }))).collect()
    }

    fn failed(checks: &[Check]) -> Vec<&'static str> {
        checks.iter().filter(|check| !check.holds()).map(|check| check.name).collect()
    }

    #[test]
    fn gaps_doubles_and_swaps_are_seen() {
        assert!(failed(&order(&events(), 4)).is_empty());
        assert_eq!(failed(&order(&events(), 5)).len(), 1, "the head is elsewhere");
        let mut gap = events();
        gap.remove(1);
        assert_eq!(failed(&order(&gap, 4)).len(), 2, "positions and versions");
        let mut swapped = events();
        (swapped[1].version, swapped[2].version) = (3, 2);
        assert_eq!(failed(&order(&swapped, 4)), ["versions of each stream are 1, 2, 3 …"]);
        let mut double = events();
        double[3].id = double[0].id;
        assert_eq!(failed(&order(&double, 4)), ["each event has an id of its own"]);
    }

    #[test]
    fn a_log_that_changes_behind_its_reader_is_seen() {
        let events = events();
        let mut chain = Chain::default();
        let mut seen = Seen::default();
        (seen.count, seen.position) = (4, 4);
        for event in &events {
            chain.add(event);
            seen.marks.push((event.position, chain.hash()));
        }
        assert!(failed(&followed(&events, &seen)).is_empty());
        let mut changed = events.clone();
        changed[1].payload = "{}".to_owned();
        assert_eq!(failed(&followed(&changed, &seen)), ["what it has read before is unchanged"]);
        assert_eq!(failed(&followed(&events[..3], &seen)).len(), 2, "the end is lost");
    }
}
