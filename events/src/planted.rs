//! Bugs planted on purpose, to see that the chaos run finds them. They are compiled in with the feature `planted` only,
//! and one of them is switched on by `TIDEMARK_PLANTED=name`. Without the feature nothing of them is left.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("planted bugs are for tests: a release build does not have them");

#[cfg(feature = "planted")]
mod switched {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// How many calls of [`sometimes`] lie between two that say yes.
    const EVERY: usize = 40;

    /// Whether this bug is switched on.
    pub fn is(name: &str) -> bool {
        static ON: OnceLock<Option<String>> = OnceLock::new();
        ON.get_or_init(|| std::env::var("TIDEMARK_PLANTED").ok()).as_deref() == Some(name)
    }

    /// Whether this bug is switched on and strikes now.
    pub fn sometimes(name: &str) -> bool {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        is(name) && CALLS.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1
    }
}

#[cfg(feature = "planted")]
pub use switched::{is, sometimes};

/// Whether this bug is switched on: never, here.
#[cfg(not(feature = "planted"))]
#[inline(always)]
#[must_use]
pub const fn is(_: &str) -> bool {
    false
}

/// Whether this bug is switched on and strikes now: never, here.
#[cfg(not(feature = "planted"))]
#[inline(always)]
#[must_use]
pub const fn sometimes(_: &str) -> bool {
    false
}
