//! A keep-alive HTTP/1.1 connection to the shop.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::error::BenchError;

/// How long an answer may take before the figure counts as broken.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The most bytes of an answer that is held in memory.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// The header of a command's answer that says where the log stands with it.
pub(crate) const POSITION: &str = "tidemark-position";

/// The header of a query that waits until its views stand there.
pub(crate) const AFTER: &str = "tidemark-after";

/// A request to be.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: Method,
    path: String,
    token: Option<String>,
    key: Option<String>,
    after: Option<String>,
    body: Option<Bytes>,
}

impl Call {
    /// A read.
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), token: None, key: None, after: None, body: None }
    }

    /// A command.
    pub(crate) fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, body: Some(body.into()), ..Self::get(path) }
    }

    /// A command without a body.
    pub(crate) fn put(path: impl Into<String>) -> Self {
        Self { method: Method::PUT, ..Self::get(path) }
    }

    /// With this access token.
    pub(crate) fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// With this Idempotency-Key.
    pub(crate) fn key(mut self, key: String) -> Self {
        self.key = Some(key);
        self
    }

    /// Wait until the views stand at this position.
    pub(crate) fn after(mut self, position: &str) -> Self {
        self.after = Some(position.to_owned());
        self
    }

    fn request(&self, host: &str) -> Result<Request<Body>, BenchError> {
        let mut request =
            Request::builder().method(self.method.clone()).uri(&self.path).header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = &self.key {
            request = request.header("idempotency-key", key);
        }
        if let Some(after) = &self.after {
            request = request.header(AFTER, after);
        }
        let request = match &self.body {
            Some(body) => {
                request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.clone()))
            }
            None => request.body(Body::empty()),
        };
        request.map_err(|error| {
            BenchError::Wrong(format!("{} {} cannot be asked: {error}", self.method, self.path))
        })
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    /// 2xx, since others are errors.
    pub(crate) status: StatusCode,
    /// All of them.
    pub(crate) headers: HeaderMap,
    /// All of it.
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, BenchError> {
        serde_json::from_slice(&self.body).map_err(BenchError::json("an answer"))
    }

    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Result<String, BenchError> {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value
            .map(str::to_owned)
            .ok_or_else(|| BenchError::Wrong(format!("an answer without the header {name}")))
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    host: String,
    sender: SendRequest<Body>,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(address: SocketAddr) -> Result<Self, BenchError> {
        let stream =
            TcpStream::connect(address).await.map_err(BenchError::io(format!("connecting to {address}")))?;
        stream.set_nodelay(true).map_err(BenchError::io("TCP_NODELAY"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the sender; what goes wrong on it comes out of the sender too.
        tokio::spawn(async move { connection.await.ok() });
        Ok(Self { host: address.to_string(), sender })
    }

    /// Asks and reads the whole answer; anything but 2xx is an error.
    pub(crate) async fn send(&mut self, call: &Call) -> Result<Answer, BenchError> {
        let answer = self.try_send(call).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(unexpected(call, &answer)) }
    }

    /// Asks and reads the whole answer, whatever its status.
    pub(crate) async fn try_send(&mut self, call: &Call) -> Result<Answer, BenchError> {
        let asked = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(call.request(&self.host)?).await?.into_parts();
            let body = axum::body::to_bytes(Body::new(body), MAX_ANSWER).await?;
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        within(ANSWER_WITHIN, call, asked).await
    }

    /// Asks and hands over the body piece by piece as it comes.
    pub(crate) async fn stream(
        &mut self,
        call: &Call,
        mut piece: impl FnMut(&[u8]) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        self.sender.ready().await?;
        let sent = self.sender.send_request(call.request(&self.host)?);
        let (head, body) = within(ANSWER_WITHIN, call, async { Ok(sent.await?) }).await?.into_parts();
        if !head.status.is_success() {
            let body = axum::body::to_bytes(Body::new(body), MAX_ANSWER).await?;
            return Err(unexpected(call, &Answer { status: head.status, headers: head.headers, body }));
        }
        let mut pieces = Body::new(body).into_data_stream();
        while let Some(data) = within(ANSWER_WITHIN, call, async { Ok(pieces.next().await) }).await? {
            piece(&data?)?;
        }
        Ok(())
    }
}

async fn within<T>(
    limit: Duration,
    call: &Call,
    asked: impl Future<Output = Result<T, BenchError>>,
) -> Result<T, BenchError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(BenchError::Wrong(format!(
            "{} {} was not answered within {} s",
            call.method,
            call.path,
            limit.as_secs()
        ))),
    }
}

fn unexpected(call: &Call, answer: &Answer) -> BenchError {
    BenchError::Answer {
        method: call.method.clone(),
        path: call.path.clone(),
        status: answer.status,
        body: String::from_utf8_lossy(&answer.body).chars().take(500).collect(),
    }
}
