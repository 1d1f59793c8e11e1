//! Sessions that have ended before their access tokens expire.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;

use uuid::Uuid;

/// How many more there may be before those that are over are thrown out.
const SWEEP_EVERY: usize = 1_000;

/// The sessions whose tokens are refused, each until its last token has expired.
#[derive(Debug, Default)]
pub struct Revocations {
    known: RwLock<Known>,
    /// Spares the lock as long as there are none.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Known {
    sessions: HashMap<Uuid, SystemTime>,
    /// How many were left when those that were over had been thrown out.
    swept: usize,
}

impl Revocations {
    /// Whether a session's tokens are refused.
    #[must_use]
    pub fn contains(&self, session: Uuid) -> bool {
        self.count.load(Ordering::Acquire) > 0
            && self.known.read().unwrap_or_else(PoisonError::into_inner).sessions.contains_key(&session)
    }

    /// Refuses the tokens of sessions, each until a time.
    pub fn add(&self, sessions: impl IntoIterator<Item = (Uuid, SystemTime)>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.sessions.extend(sessions);
        if known.sessions.len() >= known.swept + SWEEP_EVERY {
            let now = SystemTime::now();
            known.sessions.retain(|_, until| *until > now);
            known.swept = known.sessions.len();
        }
        self.count.store(known.sessions.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn those_that_are_over_are_forgotten_in_time() {
        let revocations = Revocations::default();
        let (past, future) =
            (SystemTime::now() - Duration::from_secs(1), SystemTime::now() + Duration::from_secs(60));
        revocations.add((0..600).map(|n| (Uuid::from_u128(n), past)));
        assert!(revocations.contains(Uuid::from_u128(1)));
        revocations.add((600..2_000).map(|n| (Uuid::from_u128(n), future)));
        assert!(!revocations.contains(Uuid::from_u128(1)));
        assert!(revocations.contains(Uuid::from_u128(1_999)));
        // Also when they come one by one, as they do.
        for n in 2_000..10_000 {
            revocations.add([(Uuid::from_u128(n), past)]);
        }
        assert!(revocations.count.load(Ordering::Acquire) <= 1_400 + SWEEP_EVERY);
    }
}
