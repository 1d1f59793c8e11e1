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
    sessions: RwLock<HashMap<Uuid, SystemTime>>,
    /// Spares the lock as long as there are none.
    count: AtomicUsize,
}

impl Revocations {
    /// Whether a session's tokens are refused.
    #[must_use]
    pub fn contains(&self, session: Uuid) -> bool {
        self.count.load(Ordering::Acquire) > 0
            && self.sessions.read().unwrap_or_else(PoisonError::into_inner).contains_key(&session)
    }

    /// Refuses the tokens of sessions, each until a time.
    pub fn add(&self, sessions: impl IntoIterator<Item = (Uuid, SystemTime)>) {
        let mut known = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(sessions);
        if known.len() >= self.count.load(Ordering::Acquire) + SWEEP_EVERY {
            let now = SystemTime::now();
            known.retain(|_, until| *until > now);
        }
        self.count.store(known.len(), Ordering::Release);
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
    }
}
