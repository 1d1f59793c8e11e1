//! Databases that say nothing: a server, or what is between, may be gone without a word, and a connection does not notice.

use std::time::Duration;

/// Waits for an answer of a database no longer than `within`. Whoever gets none gives the connection up: what it had asked
/// may still be answered there.
///
/// # Errors
/// [`sqlx::Error::Io`] of the kind `TimedOut`, when there is none in time; else the answer's own.
pub async fn in_time<T, E: From<sqlx::Error>>(
    within: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::time::timeout(within, answer).await.unwrap_or_else(|_elapsed| Err(silent().into()))
}

/// What stands for an answer that did not come.
#[must_use]
pub fn silent() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}
