//! The first head of a connection is waited for here, in as little memory as it takes.
//!
//! hyper makes 8 KiB for answers as soon as a connection is given to it, and 16 KiB for a head that comes in more than
//! one piece; and it parses that from the beginning with each piece. Who sends a byte a second gets none of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// Places for a head at first: those of most clients fit in.
const ROOM: usize = 512;

/// How much of a head is there.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes that were looked at.
    seen: usize,
    /// Where the line begins that is not whole yet.
    line: usize,
    /// The request line is whole.
    has_begun: bool,
}

impl Progress {
    /// Whether hyper has to have it now: because it is whole, or because no head comes of it whatever follows.
    fn is_for_hyper(&mut self, head: &[u8]) -> bool {
        for (at, byte) in head.iter().enumerate().skip(self.seen) {
            self.seen = at + 1;
            match byte {
                b'\n' => {
                    let line = head[self.line..at].strip_suffix(b"\r").unwrap_or(&head[self.line..at]);
                    self.line = at + 1;
                    match (self.has_begun, line) {
                        (true, []) => return true,
                        // Before a request there may be empty lines (RFC 9112, section 2.2).
                        (true, _) | (false, []) => {}
                        (false, line) if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") => {
                            self.has_begun = true;
                        }
                        (false, _) => return true,
                    }
                }
                b'\t' | b'\r' => {}
                // Such as a beginning of TLS.
                0..b' ' => return true,
                _ => {}
            }
        }
        false
    }
}

/// Waits for the head of the first request: until it is whole, `most` bytes long or none at all, or until nothing more
/// comes. `None` if nothing has come until `stop`, or to the end.
///
/// # Errors
/// What reading fails with.
pub(crate) async fn first_head<I>(
    stream: &mut I,
    most: usize,
    stop: &CancellationToken,
) -> io::Result<Option<Vec<u8>>>
where
    I: AsyncRead + Unpin,
{
    let mut head = Vec::with_capacity(ROOM);
    let mut progress = Progress::default();
    loop {
        let bytes = if head.is_empty() {
            tokio::select! {
                biased;
                bytes = stream.read_buf(&mut head) => bytes?,
                () = stop.cancelled() => return Ok(None),
            }
        } else {
            stream.read_buf(&mut head).await?
        };
        let is_over = bytes == 0 || head.len() >= most || progress.is_for_hyper(&head);
        if is_over {
            return Ok((!head.is_empty()).then_some(head));
        }
    }
}

/// A stream of which something was read before.
#[derive(Debug)]
pub(crate) struct Begun<I> {
    read: Vec<u8>,
    /// Bytes of it that were read again.
    given: usize,
    stream: I,
}

impl<I> Begun<I> {
    pub(crate) fn new(read: Vec<u8>, stream: I) -> Self {
        Self { read, given: 0, stream }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Begun<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let rest = &self.read[self.given..];
        let bytes = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..bytes]);
        self.given += bytes;
        if self.given == self.read.len() {
            self.read = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Begun<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    const MOST: usize = 4_096;

    /// What is read of a head that comes in such pieces, and how many of them it took.
    async fn read(pieces: &[&[u8]]) -> (Option<Vec<u8>>, usize) {
        let (mut client, mut server) = tokio::io::duplex(2 * MOST);
        let stop = CancellationToken::new();
        let mut sent = 0;
        let head = {
            let mut head = std::pin::pin!(first_head(&mut server, MOST, &stop));
            loop {
                if let Poll::Ready(head) = futures_util::poll!(&mut head) {
                    break head;
                }
                let Some(piece) = pieces.get(sent) else {
                    drop(client);
                    break head.await;
                };
                client.write_all(piece).await.unwrap();
                sent += 1;
            }
        };
        (head.unwrap(), sent)
    }

    /// Bytes one by one, as who is slow sends them.
    async fn dripped(head: &[u8]) -> usize {
        let bytes: Vec<_> = head.chunks(1).collect();
        let (read, sent) = read(&bytes).await;
        assert_eq!(read.unwrap_or_default(), head[..sent], "nothing is lost");
        sent
    }

    #[tokio::test]
    async fn a_head_is_waited_for_to_its_end_and_no_longer() {
        for head in [
            "GET / HTTP/1.1\r\nhost: shop\r\n\r\n",
            "GET / HTTP/1.1\nhost: shop\n\n",
            "\r\n\nGET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nname:\tvalue\r\n\n",
        ] {
            let (whole, more) = (head.as_bytes(), [head.as_bytes(), b"behind"].concat());
            assert_eq!(dripped(&more).await, whole.len(), "{head:?}");
            assert_eq!(read(&[&more]).await, (Some(more.clone()), 1), "{head:?}");
        }
    }

    #[tokio::test]
    async fn what_no_head_comes_of_is_not_waited_for() {
        for (bytes, enough) in [
            (b"\x16\x03\x01\x02".as_slice(), 1),
            (b"HELO shop\r\nmore", 11),
            (b"GET /\r\n\r\n", 7),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 16),
            (b"GET / HTTP/1.1\r\na: \0\r\n", 20),
        ] {
            assert_eq!(dripped(bytes).await, enough, "{}", String::from_utf8_lossy(bytes));
        }
        let endless = [b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'x'; 2 * MOST]].concat();
        assert_eq!(dripped(&endless).await, MOST);
    }

    #[tokio::test]
    async fn who_goes_away_leaves_what_was_said() {
        assert_eq!(read(&[]).await, (None, 0));
        assert_eq!(read(&[b"GET / HT"]).await, (Some(b"GET / HT".to_vec()), 1));
    }

    #[tokio::test]
    async fn at_a_stop_the_silent_are_let_go_and_others_may_end() {
        let stop = CancellationToken::new();
        let (_silent, mut server) = tokio::io::duplex(MOST);
        stop.cancel();
        assert_eq!(first_head(&mut server, MOST, &stop).await.unwrap(), None);
        let (mut client, mut server) = tokio::io::duplex(MOST);
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut head = std::pin::pin!(first_head(&mut server, MOST, &stop));
        let wait = tokio::time::timeout(Duration::from_millis(20), &mut head);
        assert!(wait.await.is_err(), "the rest is waited for");
        client.write_all(b"\r\n").await.unwrap();
        assert_eq!(head.await.unwrap().unwrap(), b"GET / HTTP/1.1\r\n\r\n");
    }

    proptest! {
        #[test]
        fn what_was_read_before_comes_first(
            before in proptest::collection::vec(any::<u8>(), 1..100),
            after in proptest::collection::vec(any::<u8>(), 0..100),
            step in 1_usize..50,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut begun = Begun::new(before.clone(), after.as_slice());
            let mut all = Vec::new();
            loop {
                let mut piece = vec![0; step];
                let bytes = runtime.block_on(begun.read(&mut piece)).unwrap();
                if bytes == 0 {
                    break;
                }
                all.extend_from_slice(&piece[..bytes]);
            }
            prop_assert_eq!(all, [before, after].concat());
        }
    }
}
