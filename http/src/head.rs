//! A time-out for the heads of a connection's requests that costs a request nearly nothing.
//!
//! hyper asks for a timer for each head that it waits for, and drops it when the head is there. Here they share one of
//! the runtime's for as long as the connection lives: that is set once, and set anew only when it has run out before its
//! time has come, which is as seldom as the time-out is long. Nor is it asked again by who is known to it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// The timer of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeadTimer(Arc<Mutex<Option<Shared>>>);

/// The runtime's timer, and whom it wakes.
#[derive(Debug)]
struct Shared {
    sleep: Pin<Box<tokio::time::Sleep>>,
    waker: Waker,
}

impl Shared {
    /// Whether it will wake this waker, no later than at this deadline.
    fn will_wake(&self, waker: &Waker, deadline: tokio::time::Instant) -> bool {
        self.sleep.deadline() <= deadline && self.waker.will_wake(waker) && !self.sleep.is_elapsed()
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Waiting { timer: self.clone(), deadline })
    }
}

/// Ends at its deadline.
struct Waiting {
    timer: HeadTimer,
    deadline: Instant,
}

impl Sleep for Waiting {}

impl Future for Waiting {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline.into();
        // A poisoned lock holds a timer all the same.
        let mut shared = self.timer.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.as_ref().is_some_and(|shared| shared.will_wake(context.waker(), deadline)) {
            return Poll::Pending;
        }
        let shared = shared.get_or_insert_with(|| Shared {
            sleep: Box::pin(tokio::time::sleep_until(deadline)),
            waker: context.waker().clone(),
        });
        shared.waker.clone_from(context.waker());
        if shared.sleep.deadline() > deadline {
            shared.sleep.as_mut().reset(deadline);
        }
        while shared.sleep.as_mut().poll(context).is_ready() {
            if shared.sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            // It was set for a head before this one.
            shared.sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn each_ends_at_its_own_deadline() {
        let (timer, begun) = (HeadTimer::default(), Instant::now());
        let after = |millis| timer.sleep_until(begun + Duration::from_millis(millis));
        let mut dropped = after(10);
        assert!(poll!(&mut dropped).is_pending());
        drop(dropped);
        after(60).await;
        assert!(begun.elapsed() >= Duration::from_millis(60), "later than the one before");
        let mut long = after(600_000);
        assert!(poll!(&mut long).is_pending());
        after(120).await;
        let elapsed = begun.elapsed();
        assert!(elapsed >= Duration::from_millis(120), "{elapsed:?}");
        assert!(elapsed < Duration::from_secs(60), "earlier than the one before: {elapsed:?}");
        assert!(poll!(&mut long).is_pending());
        assert!(poll!(&mut after(50)).is_ready(), "at once when it is over");
    }
}
