//! Requests that the shop itself sends to addresses which somebody else has written down: webhooks.
//!
//! Such an address must not lead back inside. A request goes out only over https to a public address; a name is
//! resolved here, every address that it has is checked, and the connection is made to the checked ones, so that a name
//! cannot mean something else a moment later. Redirects are not followed, proxies of the environment are not used, and
//! time and size have bounds.

mod address;

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Response};
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;
use reqwest::{Client, ClientBuilder, Url};

pub use address::is_public;

/// The most addresses of a name that are looked at; one with more is refused.
const MAX_ADDRESSES: usize = 32;

/// What may be asked for, and how much.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Networks that are allowed though they are not public.
    pub allowed: Vec<IpNet>,
    /// Whether http is allowed, too.
    pub plain: bool,
    /// Ports that may be asked; all where it is empty.
    pub ports: Vec<u16>,
    /// From the beginning to the end of an answer.
    pub within: Duration,
    /// For resolving the name and connecting.
    pub connect_within: Duration,
    /// The most bytes of an answer's body.
    pub most_bytes: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allowed: Vec::new(),
            plain: false,
            ports: vec![443, 8443],
            within: Duration::from_secs(10),
            connect_within: Duration::from_secs(3),
            most_bytes: 64 * 1024,
        }
    }
}

impl Policy {
    fn allows(&self, address: IpAddr) -> bool {
        is_public(address) || self.allowed.iter().any(|network| network.contains(&address.to_canonical()))
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutgoingError {
    /// The URL, or where it leads to, is not allowed. Nothing was sent.
    #[error("the URL is not allowed: {0}")]
    Refused(#[from] Refusal),
    /// The answer is longer than the policy says.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    /// Not done in time.
    #[error("no answer in time")]
    TooSlow,
    /// The other side, or the way to it.
    #[error("no answer: {0}")]
    Failed(#[source] reqwest::Error),
}

/// Why a URL is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It cannot be read.
    #[error("it is no URL")]
    NotUrl,
    /// Not https.
    #[error("only https is allowed")]
    Scheme,
    /// A name or a password before the host.
    #[error("it has a user name or a password")]
    Credentials,
    /// A port that is not one of the policy's.
    #[error("the port {0} is not allowed")]
    Port(u16),
    /// An address that is not public. It is not told which: who asks must not learn how names resolve inside.
    #[error("the host has an address that is not public")]
    Address,
}

/// Where names are looked up.
trait Names: Send + Sync + 'static {
    fn look_up(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver.
struct System;

impl Names for System {
    fn look_up(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).take(MAX_ADDRESSES + 1).collect())
        })
    }
}

/// Looks a name up and lets nothing through but addresses that are allowed.
struct Checked<N> {
    names: Arc<N>,
    policy: Arc<Policy>,
}

impl<N: Names> Resolve for Checked<N> {
    fn resolve(&self, name: Name) -> Resolving {
        let looked_up = self.names.look_up(name.as_str().to_owned());
        let policy = Arc::clone(&self.policy);
        Box::pin(async move {
            let found = tokio::time::timeout(policy.connect_within, looked_up).await??;
            // One inner address among public ones is a trap, too.
            if found.len() > MAX_ADDRESSES || !found.iter().all(|address| policy.allows(*address)) {
                return Err(Refusal::Address.into());
            }
            let addresses: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

/// The one client for requests to addresses that others have written down. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outgoing {
    client: Client,
    policy: Arc<Policy>,
}

impl Outgoing {
    /// A client that keeps to a policy.
    ///
    /// # Errors
    /// [`OutgoingError::Failed`] when the system has no certificates to trust.
    pub fn new(policy: Policy) -> Result<Self, OutgoingError> {
        Self::with_names(policy, System)
    }

    fn with_names(policy: Policy, names: impl Names) -> Result<Self, OutgoingError> {
        let policy = Arc::new(policy);
        Self::of(builder(&policy, names), policy)
    }

    fn of(builder: ClientBuilder, policy: Arc<Policy>) -> Result<Self, OutgoingError> {
        Ok(Self { client: builder.build().map_err(OutgoingError::Failed)?, policy })
    }

    /// Whether a URL may be written down. Where its name leads to is looked at each time it is asked.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, url: &str) -> Result<(), Refusal> {
        self.read(url).map(drop)
    }

    fn read(&self, url: &str) -> Result<Url, Refusal> {
        // A URL's syntax forgives blanks, tabs and line ends; whoever writes them means to confuse somebody.
        if url.bytes().any(|byte| byte.is_ascii_control() || byte == b' ' || byte == b'\\') {
            return Err(Refusal::NotUrl);
        }
        let url = Url::parse(url).map_err(|_| Refusal::NotUrl)?;
        match url.scheme() {
            "https" => {}
            "http" if self.policy.plain => {}
            _ => return Err(Refusal::Scheme),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Credentials);
        }
        let port = url.port_or_known_default().ok_or(Refusal::NotUrl)?;
        if !self.policy.ports.is_empty() && !self.policy.ports.contains(&port) {
            return Err(Refusal::Port(port));
        }
        // An address in the URL itself is never looked up; all its spellings have become one by now.
        let host = url.host_str().ok_or(Refusal::NotUrl)?;
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match literal.parse() {
            Ok(address) if !self.policy.allows(address) => Err(Refusal::Address),
            _ => Ok(url),
        }
    }

    /// Posts a body and reads the whole answer.
    ///
    /// # Errors
    /// [`OutgoingError`]; with [`OutgoingError::Refused`] nothing was sent.
    pub async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Bytes>, OutgoingError> {
        let request = self.client.post(self.read(url)?).headers(headers).body(body);
        let mut answer = request.send().await.map_err(explain)?;
        let most = self.policy.most_bytes;
        let declared = answer.content_length().is_some_and(|length| length > most as u64);
        let mut body = BytesMut::new();
        while !declared && let Some(chunk) = answer.chunk().await.map_err(explain)? {
            body.extend_from_slice(&chunk);
            if body.len() > most {
                break;
            }
        }
        if declared || body.len() > most {
            return Err(OutgoingError::TooLarge(most));
        }
        let mut response = Response::new(body.freeze());
        *response.status_mut() = answer.status();
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        Ok(response)
    }
}

/// What keeps to a policy, with the certificates that the system trusts.
fn builder(policy: &Arc<Policy>, names: impl Names) -> ClientBuilder {
    Client::builder()
        .dns_resolver(Arc::new(Checked { names: Arc::new(names), policy: Arc::clone(policy) }))
        .https_only(!policy.plain)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .timeout(policy.within)
        .connect_timeout(policy.connect_within)
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(Duration::from_secs(30))
        .user_agent(concat!("Tidemark/", env!("CARGO_PKG_VERSION")))
}

/// A refusal of the resolver comes wrapped. The URL stays out of messages: it may hold a secret.
fn explain(error: reqwest::Error) -> OutgoingError {
    let mut source: Option<&(dyn Error + 'static)> = error.source();
    while let Some(cause) = source {
        if let Some(refusal) = cause.downcast_ref::<Refusal>() {
            return OutgoingError::Refused(refusal.clone());
        }
        source = cause.source();
    }
    if error.is_timeout() { OutgoingError::TooSlow } else { OutgoingError::Failed(error.without_url()) }
}

#[cfg(test)]
mod tests;
