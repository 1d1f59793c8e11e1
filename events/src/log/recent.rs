//! The newest events, kept in memory for all who follow the log in this process.
//!
//! Several projections follow the log side by side, and a writer may be at work in the same process. What it has
//! committed is here before anybody asks for it; what others have appended is read once, whoever asks first. Readers
//! that are further behind read for themselves.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Mutex;

use super::{Filter, Head, Log, LogError, Page};
use crate::envelope::RecordedEvent;
use crate::{Epoch, Position};

/// The most events that are kept, and the most bytes of their payloads.
const MOST_EVENTS: usize = 10_000;
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// Events that a writer has committed, with the head that they led to.
#[derive(Debug)]
pub struct Appended {
    /// In the order of positions, without gaps.
    pub events: Vec<RecordedEvent>,
    /// Where the log stood before them.
    pub after: Position,
    /// Where it stands with them.
    pub head: Head,
}

/// The newest events.
#[derive(Debug, Default)]
pub(super) struct Recent {
    kept: Mutex<Kept>,
    /// What a writer has told and no reader has taken in yet.
    told: std::sync::Mutex<Told>,
    /// Whether anybody reads here: else a writer need not tell.
    followed: AtomicBool,
}

/// Bounded like what is kept; beyond that the oldest are left out, and read from the database.
#[derive(Debug, Default)]
struct Told {
    appended: VecDeque<Appended>,
    events: usize,
    bytes: usize,
}

fn bytes_of(events: &[RecordedEvent]) -> usize {
    events.iter().map(|event| event.payload.len()).sum()
}

impl Told {
    fn push(&mut self, appended: Appended) {
        self.events += appended.events.len();
        self.bytes += bytes_of(&appended.events);
        self.appended.push_back(appended);
        while self.events > MOST_EVENTS || self.bytes > MOST_BYTES {
            self.pop();
        }
    }

    fn pop(&mut self) -> Option<Appended> {
        let oldest = self.appended.pop_front()?;
        self.events -= oldest.events.len();
        self.bytes -= bytes_of(&oldest.events);
        Some(oldest)
    }

    /// The next one that is known to be committed, if it goes on from `to` or is older.
    fn next(&mut self, to: Position, known: Head) -> Option<Appended> {
        let next = self.appended.front()?;
        let fits =
            next.head.epoch != known.epoch || (next.after <= to && next.head.position <= known.position);
        if fits { self.pop() } else { None }
    }
}

/// Every event with `from < position <= to`.
#[derive(Debug, Default)]
struct Kept {
    epoch: Epoch,
    from: Position,
    to: Position,
    events: VecDeque<Arc<RecordedEvent>>,
    bytes: usize,
}

impl Kept {
    fn begin(&mut self, epoch: Epoch, after: Position) {
        *self = Self { epoch, from: after, to: after, ..Self::default() };
    }

    fn extend(&mut self, events: Vec<RecordedEvent>, to: Position) {
        for event in events.into_iter().filter(|event| event.position > self.to) {
            self.bytes += event.payload.len();
            self.events.push_back(Arc::new(event));
        }
        self.to = to;
        while self.events.len() > MOST_EVENTS || self.bytes > MOST_BYTES {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.payload.len();
            self.from = oldest.position;
        }
    }

    fn take(&mut self, told: &mut Told, known: Head) {
        while let Some(Appended { events, head, .. }) = told.next(self.to, known) {
            if head.epoch == self.epoch && head.position > self.to {
                self.extend(events, head.position);
            }
        }
    }

    /// The events after a position that a filter lets through, and up to where these are all; `None` when some of them
    /// are not kept.
    fn after(&self, after: Position, filter: &Filter, limit: usize) -> Option<Page<Arc<RecordedEvent>>> {
        if after < self.from {
            return None;
        }
        let begin = self.events.partition_point(|event| event.position <= after);
        let wanted = self.events.range(begin..).filter(|event| filter.lets_through(event));
        let events: Vec<_> = wanted.take(limit).cloned().collect();
        let read_to = match events.last() {
            Some(last) if events.len() == limit => last.position,
            _ => self.to,
        };
        Some(Page { events, read_to, epoch: self.epoch })
    }
}

impl Log {
    /// As [`Log::read`] up to the newest head that is known ([`Log::wake`]), for a reader that follows the log: from
    /// memory, if it is near the head. May return less than there is by now; go on from [`Page::read_to`].
    ///
    /// # Errors
    /// [`LogError::Database`].
    pub async fn read_recent(
        &self,
        after: Position,
        filter: &Filter,
        limit: usize,
    ) -> Result<Page<Arc<RecordedEvent>>, LogError> {
        self.recent.followed.store(true, Ordering::Relaxed);
        // Held while the database is asked: whoever comes meanwhile wants the same events.
        let mut kept = self.recent.kept.lock().await;
        let known = self.wake.known();
        let is_near = known.epoch > 0 && known.position - after <= MOST_EVENTS as i64;
        // What is here is of another history, or ends before this reader begins.
        if is_near && (kept.epoch != known.epoch || kept.to > known.position || kept.to < after) {
            kept.begin(known.epoch, after);
        }
        if is_near && after >= kept.from {
            kept.take(&mut self.told(), known);
            if kept.to == after {
                let page = self.read(after, known.position, &Filter::default(), MOST_EVENTS).await?;
                if page.epoch != kept.epoch {
                    // Another history has begun, and what was known of the head is not true of it.
                    kept.begin(page.epoch, after);
                }
                kept.extend(page.events, page.read_to);
            }
            // What has just been put in may be so large that this reader's next events had to go.
            if let Some(page) = kept.after(after, filter, limit) {
                return Ok(page);
            }
        }
        drop(kept);
        Ok(self.read(after, known.position, filter, limit).await?.shared())
    }

    /// Whether somebody in this process reads by [`Log::read_recent`], so that [`Log::remember`] is worth the while.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.recent.followed.load(Ordering::Relaxed)
    }

    /// Keeps what a writer of this process has committed for whoever follows; then it says so by [`Log::committed`].
    pub fn remember(&self, appended: Appended) {
        let head = appended.head;
        self.told().push(appended);
        self.committed(head);
    }

    /// Drops whatever is kept: the log has lost some of it. What is asked for next is read.
    pub(super) async fn forget(&self) {
        let mut kept = self.recent.kept.lock().await;
        *self.told() = Told::default();
        *kept = Kept::default();
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.recent.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::Metadata;

    fn event(position: Position, category: &'static str, bytes: usize) -> RecordedEvent {
        RecordedEvent {
            position,
            stream_id: Uuid::nil(),
            category: category.into(),
            version: 1,
            event_id: Uuid::nil(),
            event_type: "Happened".into(),
            schema_version: 1,
            payload: "x".repeat(bytes).into(),
            metadata: Metadata {
                correlation_id: Uuid::nil(),
                causation_id: None,
                actor: String::new(),
                traceparent: None,
                origin: None,
            },
            recorded_at: chrono::DateTime::UNIX_EPOCH,
            partition_key: Uuid::nil(),
        }
    }

    fn appended(after: Position, head: Head) -> Appended {
        Appended {
            events: (after + 1..=head.position).map(|at| event(at, "stock", 1)).collect(),
            after,
            head,
        }
    }

    fn at(epoch: Epoch, position: Position) -> Head {
        Head { epoch, position }
    }

    fn positions(page: &Page<Arc<RecordedEvent>>) -> Vec<Position> {
        page.events.iter().map(|event| event.position).collect()
    }

    #[test]
    fn a_page_says_up_to_where_it_is_everything() {
        let mut kept = Kept::default();
        kept.begin(1, 10);
        kept.extend(
            [(11, "order"), (12, "stock"), (13, "order")].map(|(at, of)| event(at, of, 1)).into(),
            15,
        );
        let orders = Filter { categories: vec!["order".into()], ..Filter::default() };
        let page = kept.after(10, &orders, 10).unwrap();
        assert_eq!((positions(&page), page.read_to), (vec![11, 13], 15));
        let page = kept.after(10, &orders, 1).unwrap();
        assert_eq!((positions(&page), page.read_to), (vec![11], 11), "there may be more behind the last");
        let page = kept.after(13, &orders, 10).unwrap();
        assert_eq!((positions(&page), page.read_to), (vec![], 15));
    }

    #[test]
    fn what_was_told_is_taken_in_once_in_order_and_only_if_it_is_committed() {
        let (mut kept, mut told) = (Kept::default(), Told::default());
        kept.begin(1, 10);
        told.push(appended(8, at(1, 9)));
        told.push(appended(9, at(1, 12)));
        told.push(appended(12, at(1, 14)));
        told.push(appended(16, at(1, 17)));
        kept.take(&mut told, at(1, 13));
        assert_eq!(kept.to, 12, "nobody has said yet that the log stands at 14");
        kept.take(&mut told, at(1, 17));
        assert_eq!(kept.to, 14, "15 and 16 are somebody else's, and not known here");
        kept.extend(vec![event(15, "order", 1), event(16, "order", 1)], 16);
        kept.take(&mut told, at(1, 17));
        assert_eq!((kept.from, kept.to), (10, 17));
        assert_eq!(
            positions(&kept.after(10, &Filter::default(), 99).unwrap()),
            (11..=17).collect::<Vec<_>>()
        );
        assert_eq!((told.events, told.bytes), (0, 0));
    }

    #[test]
    fn another_history_is_not_mixed_with_this_one() {
        let (mut kept, mut told) = (Kept::default(), Told::default());
        kept.begin(2, 10);
        told.push(appended(10, at(1, 12)));
        told.push(appended(10, at(2, 11)));
        kept.take(&mut told, at(2, 20));
        assert_eq!(positions(&kept.after(10, &Filter::default(), 99).unwrap()), [11]);
    }

    #[test]
    fn what_is_kept_and_what_was_told_is_bounded() {
        let (mut kept, mut told) = (Kept::default(), Told::default());
        kept.begin(1, 0);
        let many = MOST_EVENTS as Position;
        kept.extend((1..=many + 5).map(|at| event(at, "stock", 1)).collect(), many + 5);
        assert_eq!((kept.events.len(), kept.from), (MOST_EVENTS, 5));
        kept.extend(vec![event(many + 6, "stock", MOST_BYTES)], many + 6);
        assert_eq!((kept.events.len(), kept.from), (1, many + 5));
        for begin in (0..many * 2).step_by(1_000) {
            told.push(appended(begin, at(1, begin + 1_000)));
        }
        assert!(told.events <= MOST_EVENTS && told.appended.len() == MOST_EVENTS / 1_000);
        kept.begin(1, 0);
        kept.take(&mut told, at(1, many * 2));
        assert_eq!(kept.to, 0, "the first that are left do not go on from here");
    }

    #[test]
    fn who_has_not_read_what_had_to_go_is_told_so() {
        let (mut kept, mut told) = (Kept::default(), Told::default());
        kept.begin(1, 0);
        kept.extend((1..=3).map(|at| event(at, "stock", MOST_BYTES / 2)).collect(), 3);
        assert_eq!(kept.after(0, &Filter::default(), 99), None, "the first is not there any more");
        assert_eq!(positions(&kept.after(1, &Filter::default(), 99).unwrap()), [2, 3]);
        for at_position in 4..=6 {
            let events = vec![event(at_position, "stock", MOST_BYTES / 2)];
            told.push(Appended { events, after: at_position - 1, head: at(1, at_position) });
        }
        assert_eq!((told.appended.len(), told.bytes), (2, MOST_BYTES));
    }
}
