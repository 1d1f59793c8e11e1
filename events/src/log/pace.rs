//! How long whoever follows the log waits between two batches.

use std::time::Duration;

/// Steps that grow with the load: a batch costs about the same however little is in it, so a busy log is followed in
/// few large ones, and a quiet one at once.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The longest time from one batch to the next.
    pub longest: Duration,
    /// Events a second from which on it is taken; below, a share of it.
    pub busy: f64,
}

impl Pace {
    /// The time from one batch to the next, when the log has grown by `events` in `elapsed`.
    #[must_use]
    pub fn step(&self, events: i64, elapsed: Duration) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "a few million at most")]
        let rate = events as f64 / elapsed.as_secs_f64().max(0.001);
        self.longest.mul_f64((rate / self.busy).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_log_is_followed_in_the_longest_steps_and_a_quiet_one_at_once() {
        let pace = Pace { longest: Duration::from_millis(50), busy: 10_000.0 };
        let second = Duration::from_secs(1);
        assert_eq!(pace.step(0, second), Duration::ZERO);
        assert_eq!(pace.step(-5, second), Duration::ZERO);
        assert_eq!(pace.step(5_000, second), Duration::from_millis(25));
        assert_eq!(pace.step(1_000_000, second), pace.longest);
        assert_eq!(pace.step(100, Duration::ZERO), pace.longest);
    }
}
