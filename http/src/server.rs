//! Connections: how many, how slow they may be, and how they end.
//!
//! `axum::serve` cannot set hyper's header time-out (it is off without a timer), so connections are served with
//! hyper directly.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::http::Request;
use axum::response::Response;
use futures_util::poll;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::Accept;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::client::{Peer, Proxies};
use crate::connections::Connections;
use crate::first_head::{Begun, first_head};
use crate::head::HeadTimer;
use crate::layers::Limits;
use crate::pace::Taken;
use crate::tls::Tls;

/// The most bytes of a request's head.
const HEAD_BYTES: usize = 64 * 1024;

/// How long room is waited for before others are told to make it again.
const ROOM_WITHIN: Duration = Duration::from_millis(100);

/// How connections come in.
#[derive(Debug, Clone, Default)]
pub struct Door {
    /// Whose connections carry those of many clients.
    pub proxies: Proxies,
    /// TLS, if it is spoken here.
    pub tls: Option<Tls>,
}

/// The address of whoever is no trusted proxy: that of a proxy says nothing about the client.
fn of_client(peer: IpAddr, proxies: &Proxies) -> Option<IpAddr> {
    (!proxies.contain(peer)).then_some(peer)
}

/// Serves until `stop`; then accepts no more, lets the requests in hand end, and closes what is left at the deadline.
///
/// # Errors
/// None today; accepting goes on after errors of single connections.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    door: Door,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(limits.head_within)
        .max_buf_size(HEAD_BYTES)
        .half_close(false)
        // Answers are small: to copy a body behind its head is cheaper than to write from two places.
        .writev(false)
        .keep_alive(true);
    let graceful = GracefulShutdown::new();
    let space = Arc::new(Semaphore::new(limits.connections));
    let connections = Connections::new(limits.connections, limits.connections_of_address);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of file descriptors, most likely: others must end first.
                connections.make_room();
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = connections.place(of_client(peer, &door.proxies)) else { continue };
        let Some(permit) = room(&space, &connections, &stop).await else { break };
        stream.set_nodelay(true).ok();
        let (doing, id) = (Arc::clone(&place.doing), place.id);
        // Of this connection alone, which asks for one answer at a time.
        let router = RefCell::new(router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            doing.busy();
            request.extensions_mut().insert(Peer(peer));
            // A router is always ready.
            let answer = router.borrow_mut().call(request);
            let doing = Arc::clone(&doing);
            async move {
                let answer = answer.await;
                // One that is written as it is made goes on being answered.
                if let Ok(response) = &answer
                    && response.body().size_hint().exact().is_some()
                {
                    doing.idle();
                }
                answer
            }
        });
        let stream = Taken::new(stream, limits.taken_within);
        let terms = Terms {
            builder: builder.clone(),
            head_within: limits.head_within,
            stop: stop.clone(),
            watcher: graceful.watcher(),
        };
        let tls = door.tls.clone();
        let task = tokio::spawn(async move {
            match tls {
                None => talk(stream, service, terms).await,
                // Apart, so that a plain connection is not as large as one with TLS.
                Some(tls) => Box::pin(secured(tls.accept(stream), service, terms)).await,
            }
            drop((place, permit));
        });
        connections.name_task(id, task.abort_handle());
    }
    drop(listener);
    if timeout(limits.drain_within, graceful.shutdown()).await.is_err() {
        tracing::warn!("closing connections whose requests did not end in time");
    }
    Ok(())
}

/// What a connection is served by, and how it ends.
struct Terms {
    builder: http1::Builder,
    head_within: Duration,
    stop: CancellationToken,
    watcher: Watcher,
}

/// Answers the requests of a connection until it ends.
async fn talk<I, S>(mut stream: I, service: S, terms: Terms)
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let Terms { mut builder, head_within, stop, watcher } = terms;
    let begun = match timeout(head_within, first_head(&mut stream, HEAD_BYTES, &stop)).await {
        Ok(Ok(Some(head))) => Begun::new(head, stream),
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::debug!(%error, "a connection ended before its first request"),
        Err(_elapsed) => return tracing::debug!("a client did not send the head of a request in time"),
    };
    builder.timer(HeadTimer::default());
    let mut connection = builder.serve_connection(TokioIo::new(begun), service);
    // Before it can be told to end, it takes in what is there already: that is a request to be answered.
    let ended = match poll!(&mut connection) {
        Poll::Ready(ended) => ended,
        Poll::Pending => watcher.watch(connection).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

/// Waits for a client to begin TLS, then answers its requests.
async fn secured<I, S>(beginning: Accept<I>, service: S, terms: Terms)
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    match timeout(terms.head_within, beginning).await {
        Ok(Ok(stream)) => talk(stream, service, terms).await,
        Ok(Err(error)) => tracing::debug!(%error, "no TLS with a client"),
        Err(_elapsed) => tracing::debug!("a client did not begin TLS in time"),
    }
}

/// Waits for room for a connection, which others have to make if there is none; `None` when told to stop.
async fn room(
    space: &Arc<Semaphore>,
    connections: &Connections,
    stop: &CancellationToken,
) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(space).try_acquire_owned() {
        return Some(permit);
    }
    loop {
        connections.make_room();
        tokio::select! {
            () = stop.cancelled() => return None,
            permit = timeout(ROOM_WITHIN, Arc::clone(space).acquire_owned()) => {
                if let Ok(permit) = permit {
                    return permit.ok();
                }
            }
        }
    }
}
