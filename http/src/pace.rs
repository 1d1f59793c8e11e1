//! How slowly a client may send and take: bodies that come too slowly, and answers that nobody takes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// How fast a request's body must come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// How long nothing is asked of it.
    pub(crate) grace: Duration,
    /// Bytes a second from then on.
    pub(crate) rate: u32,
    /// From its first to its last byte.
    pub(crate) within: Duration,
}

impl Pace {
    /// How long after its beginning a body of which `bytes` are there may go on.
    fn allows(&self, bytes: u64) -> Duration {
        let earned = Duration::from_millis(bytes.saturating_mul(1_000) / u64::from(self.rate.max(1)));
        self.grace.saturating_add(earned).min(self.within)
    }
}

/// Why a body is not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Interrupted {
    /// It came too slowly.
    #[error("the body came too slowly")]
    TooSlow,
    /// Too many others are waited for.
    #[error("too many bodies are still to come")]
    TooMany,
}

impl Interrupted {
    /// The reason within an error, if it is one.
    pub(crate) fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that must keep a pace.
pub(crate) struct Paced<B> {
    body: B,
    pace: Pace,
    begun: Instant,
    bytes: u64,
    /// How many bodies may be waited for.
    room: Arc<Semaphore>,
    /// Since it had to be waited for.
    waiting: Option<(OwnedSemaphorePermit, Pin<Box<Sleep>>)>,
}

impl<B> Paced<B> {
    pub(crate) fn new(body: B, pace: Pace, room: Arc<Semaphore>) -> Self {
        Self { body, pace, begun: Instant::now(), bytes: 0, room, waiting: None }
    }
}

impl<B> Body for Paced<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let deadline = this.begun + this.pace.allows(this.bytes);
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                let Some(Ok(frame)) = frame else {
                    this.waiting = None;
                    return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
                };
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => {
                // Most bodies come with their head. Those that are waited for hold their requests' places.
                let waiting = match &mut this.waiting {
                    Some(waiting) => waiting,
                    none => match Arc::clone(&this.room).try_acquire_owned() {
                        Ok(place) => none.insert((place, Box::pin(sleep_until(deadline)))),
                        Err(_) => return Poll::Ready(Some(Err(Interrupted::TooMany.into()))),
                    },
                };
                let timer = &mut waiting.1;
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(Some(Err(Interrupted::TooSlow.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that breaks off when nothing could be written for a time: the client takes no answer.
pub(crate) struct Taken<S> {
    stream: S,
    within: Duration,
    /// Only while the client does not take what there is.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Taken<S> {
    pub(crate) fn new(stream: S, within: Duration) -> Self {
        Self { stream, within, timer: None }
    }

    fn timed<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.timer = None;
            return poll;
        }
        let within = self.within;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(within)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timed(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.timed(cx, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.timed(cx, poll)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_earns_time_with_its_bytes() {
        let pace = Pace { grace: Duration::from_secs(5), rate: 1_024, within: Duration::from_secs(20) };
        for (bytes, seconds) in [(0, 5), (1_024, 6), (10 * 1_024, 15), (1 << 20, 20), (u64::MAX, 20)] {
            assert_eq!(pace.allows(bytes), Duration::from_secs(seconds), "{bytes}");
        }
    }
}
