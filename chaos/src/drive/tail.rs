//! A reader that was there before the first event, and asks for nothing but what is behind the last one it has had.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::ChaosError;
use crate::log::{self, Chain};

/// Between two looks at the log.
const PAUSE: Duration = Duration::from_millis(50);

/// How long one look may take.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// How long the last events are waited for.
const END_WITHIN: Duration = Duration::from_secs(30);

/// What it has seen.
#[derive(Default)]
pub(crate) struct Seen {
    /// Events.
    pub(crate) count: i64,
    /// The position of the last one.
    pub(crate) position: i64,
    /// The hash of the log up to positions along the way.
    pub(crate) marks: Vec<(i64, Vec<u8>)>,
    /// What was out of order.
    pub(crate) wrong: Vec<String>,
    chain: Chain,
}

/// A reader at work.
pub(crate) struct Tail {
    reading: JoinHandle<Seen>,
    end: CancellationToken,
}

impl Tail {
    /// Begins to read at the log's beginning.
    pub(crate) fn begin(port: u16) -> Self {
        let end = CancellationToken::new();
        Self { reading: tokio::spawn(follow(port, end.clone())), end }
    }

    /// Lets it read to the end, which nothing moves any more, and returns what it has seen.
    ///
    /// # Errors
    /// [`ChaosError::TooLong`].
    pub(crate) async fn end(self) -> Result<Seen, ChaosError> {
        self.end.cancel();
        match tokio::time::timeout(END_WITHIN, self.reading).await {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(error)) => Err(ChaosError::Wrong(format!("the reader of the log ended badly: {error}"))),
            Err(_) => Err(ChaosError::TooLong("the reader of the log does not come to its end".to_owned())),
        }
    }
}

async fn follow(port: u16, end: CancellationToken) -> Seen {
    let mut seen = Seen::default();
    let mut connection = None;
    loop {
        let last_look = end.is_cancelled();
        let look = async {
            let connection = match &mut connection {
                Some(connection) => connection,
                None => connection.insert(log::connect(port, "log").await?),
            };
            log::read(connection, seen.position).await
        };
        match tokio::time::timeout(LOOK_WITHIN, look).await {
            Ok(Ok(page)) => {
                for event in &page {
                    if event.position != seen.position + 1 {
                        seen.wrong.push(format!("position {} came behind {}", event.position, seen.position));
                    }
                    seen.chain.add(event);
                    seen.position = event.position;
                    seen.count += 1;
                }
                match i64::try_from(page.len()) {
                    Ok(0) if last_look => return seen,
                    Ok(0) => {}
                    full => {
                        seen.marks.push((seen.position, seen.chain.hash()));
                        if full == Ok(log::PAGE) {
                            continue;
                        }
                    }
                }
            }
            // The database is away, or was: the connection with it.
            Ok(Err(_)) | Err(_) => connection = None,
        }
        tokio::time::sleep(PAUSE).await;
    }
}
