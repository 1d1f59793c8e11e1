//! Stands between a shop and its database, on a socket of its own, and breaks connections at the worst moments.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::harness::{Postgres, folder};

/// What it does to the next append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cut {
    /// Nothing.
    Never = 0,
    /// The statement never reaches the server.
    BeforeTheEffect = 1,
    /// The server commits, and the answer never reaches the shop.
    AfterTheEffect = 2,
    /// The server commits, and nothing is heard of it any more: the connection stays open, as when a machine is gone.
    Silence = 3,
}

#[derive(Default)]
struct State {
    cut: AtomicU8,
    event_type: Mutex<&'static str>,
    closed: AtomicBool,
    cuts: AtomicUsize,
}

/// A proxy before a PostgreSQL's socket.
pub(crate) struct Proxy {
    folder: TempDir,
    state: Arc<State>,
}

impl Proxy {
    pub(crate) fn before(postgres: &Postgres) -> Self {
        let folder = folder();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let server = postgres.folder.path().join(".s.PGSQL.5432");
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !shared.closed.load(Ordering::SeqCst) {
                    tokio::spawn(pass(client, server.clone(), Arc::clone(&shared)));
                }
            }
        });
        Self { folder, state }
    }

    /// The URL of a database, through it.
    pub(crate) fn through(&self, url: &str) -> String {
        let socket = self.folder.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://tidemark@{socket}/{}", url.rsplit('/').next().unwrap())
    }

    /// Cuts the connection of the next append of an event of this type, once.
    pub(crate) fn cut_next(&self, cut: Cut, event_type: &'static str) {
        *self.state.event_type.lock().unwrap() = event_type;
        self.state.cut.store(cut as u8, Ordering::SeqCst);
    }

    /// Lets no new connection through, or does again.
    pub(crate) fn close(&self, closed: bool) {
        self.state.closed.store(closed, Ordering::SeqCst);
    }

    /// How many connections it has cut.
    pub(crate) fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::SeqCst)
    }
}

async fn pass(mut client: UnixStream, server: PathBuf, state: Arc<State>) {
    let Ok(mut server) = UnixStream::connect(server).await else { return };
    let (mut asked, mut told) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(read @ 1..) = read else { return };
                let armed = state.cut.load(Ordering::SeqCst);
                if armed != Cut::Never as u8 && holds(&asked[..read], &state) {
                    state.cut.store(Cut::Never as u8, Ordering::SeqCst);
                    if armed != Cut::BeforeTheEffect as u8 {
                        server.write_all(&asked[..read]).await.unwrap();
                        // It answers when it has committed.
                        assert_ne!(server.read(&mut told).await.unwrap(), 0);
                    }
                    state.cuts.fetch_add(1, Ordering::SeqCst);
                    if armed == Cut::Silence as u8 {
                        // As long as the shop does not give it up.
                        while client.read(&mut asked).await.is_ok_and(|read| read > 0) {}
                    }
                    return;
                }
                if server.write_all(&asked[..read]).await.is_err() { return }
            }
            read = server.read(&mut told) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&told[..read]).await.is_err() { return }
            }
        }
    }
}

/// Whether an event of the type is among what is sent; a statement that only names it has it in quotes.
fn holds(asked: &[u8], state: &State) -> bool {
    let event_type = state.event_type.lock().unwrap().as_bytes();
    let found = |window: &[u8]| window.starts_with(event_type) && !window.ends_with(b"'");
    asked.windows(event_type.len() + 1).any(found)
}
