//! The limit for reads: an axum handler that does nothing but return bytes it holds, without any middleware.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::routing::get;
use axum::serve::ListenerExt;
use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};

use crate::client::Answer;
use crate::error::BenchError;

/// How long the server may take to listen.
const START_WITHIN: Duration = Duration::from_secs(10);

/// What it serves: the file of the bytes, and the shop's route for them.
const ANSWERS: [(&str, &str); 3] =
    [("product", "/v1/products/{id}"), ("order", "/v1/orders/{id}"), ("list", "/v1/products")];

/// Serves what [`keep`] put into `answers`, until it is killed.
pub(crate) async fn serve(listen: SocketAddr, answers: &Path) -> Result<(), BenchError> {
    let mut router = Router::new();
    let kept = |name: &str| answers.join(format!("{name}.body")).exists();
    for (name, route) in ANSWERS.into_iter().filter(|(name, _)| kept(name)) {
        let read = |kind: &str| {
            let path = answers.join(format!("{name}.{kind}"));
            fs::read(&path).map_err(BenchError::io(format!("reading {}", path.display())))
        };
        let body = Bytes::from(read("body")?);
        let kind = HeaderValue::from_bytes(&read("type")?)
            .map_err(|error| BenchError::Wrong(format!("the content type of {name}: {error}")))?;
        let handler = move || async move { ([(header::CONTENT_TYPE, kind)], body) };
        router = router.route(route, get(handler));
    }
    let listener =
        TcpListener::bind(listen).await.map_err(BenchError::io(format!("listening on {listen}")))?;
    let listener = listener.tap_io(|stream| {
        // Without it the answer would wait for the client's acknowledgement of the one before.
        stream.set_nodelay(true).ok();
    });
    axum::serve(listener, router).await.map_err(BenchError::io("serving"))
}

/// Stores an answer of the shop for [`serve`], as `product`, `order` or `list`.
pub(crate) fn keep(answers: &Path, name: &str, answer: &Answer) -> Result<(), BenchError> {
    let kind = answer.header(header::CONTENT_TYPE.as_str())?;
    for (end, bytes) in [("body", answer.body.as_ref()), ("type", kind.as_bytes())] {
        let path = answers.join(format!("{name}.{end}"));
        fs::write(&path, bytes).map_err(BenchError::io(format!("writing {}", path.display())))?;
    }
    Ok(())
}

/// The server as a process of its own, as the shop is one. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Bare {
    process: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Bare {
    /// Starts it on a free port.
    pub(crate) async fn start(answers: PathBuf) -> Result<Self, BenchError> {
        let program = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
        let address = crate::shop::free_address().await?;
        let process = Command::new(program)
            .args(["bare", "--listen", &address.to_string(), "--answers"])
            .arg(answers)
            .stdin(Stdio::null())
            .spawn()
            .map_err(BenchError::io("starting the bare server"))?;
        let bare = Self { process, address };
        let deadline = Instant::now() + START_WITHIN;
        while let Err(error) = TcpStream::connect(address).await {
            if Instant::now() > deadline {
                return Err(BenchError::io("reaching the bare server")(error));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(bare)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
