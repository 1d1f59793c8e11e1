//! Who is at the other end: the client's address, through proxies that are trusted and no others.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;
use uuid::Uuid;

use crate::limits::{Class, RateLimits, Standing};
use crate::problem::{self, Problem};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The most proxies that are looked through.
const MAX_HOPS: usize = 32;

/// The other end of a request's connection; the server puts it into every request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Networks whose word about where a request comes from counts.
#[derive(Debug, Clone, Default)]
pub struct Proxies(Vec<IpNet>);

impl FromStr for Proxies {
    type Err = String;

    /// Networks in CIDR form, or single addresses, with commas between.
    fn from_str(text: &str) -> Result<Self, String> {
        let one = |part: &str| {
            let part = part.trim();
            let address = part.parse::<IpAddr>().map(IpNet::from);
            part.parse::<IpNet>()
                .or(address)
                .map_err(|_| "networks like 10.0.0.0/8,::1, with commas between".to_owned())
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Self)
    }
}

impl Proxies {
    /// Whether an address belongs to them.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Where a request comes from: the last address on its way that is no trusted proxy. What stands further left
    /// was written by somebody who is not trusted. Where `Forwarded` (RFC 7239) and `X-Forwarded-For` are both there
    /// and differ, one of them went through a proxy that does not know it, and neither counts.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if self.0.is_empty() || !self.contain(peer) {
            return peer;
        }
        let named = |name: &HeaderName, read: fn(&str) -> Option<IpAddr>| {
            headers.contains_key(name).then(|| self.last_untrusted(peer, headers, name, read))
        };
        match (named(&X_FORWARDED_FOR, address), named(&header::FORWARDED, forwarded)) {
            (Some(one), Some(other)) if one != other => peer,
            (Some(address), _) | (None, Some(address)) => address,
            (None, None) => peer,
        }
    }

    fn last_untrusted(
        &self,
        peer: IpAddr,
        headers: &HeaderMap,
        name: &HeaderName,
        read: fn(&str) -> Option<IpAddr>,
    ) -> IpAddr {
        let mut nearest = peer;
        let values = headers.get_all(name).iter().rev();
        let hops = values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
        for hop in hops.take(MAX_HOPS) {
            // What cannot be read was not written by who is trusted; whoever handed it on is the client.
            let Some(address) = read(hop.trim()) else { return nearest };
            nearest = address;
            if !self.contain(address) {
                break;
            }
        }
        nearest
    }
}

/// An address, with or without a port, IPv6 with a port in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let plain = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    plain.ok().or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

/// The address in `for=` of an element of `Forwarded`.
fn forwarded(element: &str) -> Option<IpAddr> {
    let value = element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    })?;
    address(value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value))
}

/// Who asks, as an address, and what may be asked how often. An extractor for handlers of commands that charge more than
/// the layer does, or note where a request came from. What they charge is told by the answer, whatever it is.
#[derive(Debug, Clone)]
pub struct Client {
    address: IpAddr,
    rates: RateLimits,
    charged: Charged,
}

impl Client {
    pub(crate) fn new(address: IpAddr, rates: RateLimits, charged: Charged) -> Self {
        Self { address, rates, charged }
    }

    /// Where the request comes from, behind trusted proxies.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Charges the client's address.
    ///
    /// # Errors
    /// 429, with the time to wait.
    pub async fn check_address(&self, class: Class) -> Result<(), Problem> {
        self.charged.note(class, self.rates.check_address(class, self.address).await)
    }

    /// Charges an account.
    ///
    /// # Errors
    /// 429, with the time to wait.
    pub async fn check_id(&self, class: Class, id: Uuid) -> Result<(), Problem> {
        self.charged.note(class, self.rates.check_id(class, id).await)
    }

    /// Charges something else: a normalised e-mail address.
    ///
    /// # Errors
    /// 429, with the time to wait.
    pub async fn check(&self, class: Class, key: &str) -> Result<(), Problem> {
        self.charged.note(class, self.rates.check(class, key).await)
    }
}

/// What a request was charged beyond what the layer does, for its answer to tell: of each class what has least left.
#[derive(Debug, Clone, Default)]
pub(crate) struct Charged(Arc<Mutex<Vec<(Class, Standing)>>>);

impl Charged {
    fn note(&self, class: Class, charged: Result<Option<Standing>, Problem>) -> Result<(), Problem> {
        // Every command is charged to its account, and hardly any comes near to that limit.
        let is_worth_telling = |standing: &Standing| class != Class::Account || !standing.is_comfortable();
        let standing = match charged {
            Ok(standing) => standing.filter(is_worth_telling),
            Err(refusal) => {
                // It tells of its class itself.
                self.standings().retain(|(noted, _)| *noted != class);
                return Err(refusal);
            }
        };
        if let Some(standing) = standing {
            let mut standings = self.standings();
            match standings.iter_mut().find(|(noted, _)| *noted == class) {
                Some((_, noted)) if noted.remaining() <= standing.remaining() => {}
                Some((_, noted)) => *noted = standing,
                None => standings.push((class, standing)),
            }
        }
        Ok(())
    }

    fn standings(&self) -> MutexGuard<'_, Vec<(Class, Standing)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the headers that tell.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        self.standings().iter().for_each(|(_, standing)| standing.tell(headers));
    }
}

impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let client = parts.extensions.get::<Self>().cloned();
        client.ok_or_else(|| Problem::new(&problem::INTERNAL, "the request did not come through the server"))
    }
}

/// The peer of a request; none is known where it did not come over the network.
pub(crate) fn peer(extensions: &axum::http::Extensions) -> IpAddr {
    extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn client(proxies: &str, peer: &str, headers: &[(&'static str, &str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let proxies: Proxies = if proxies.is_empty() { Proxies::default() } else { proxies.parse().unwrap() };
        proxies.client(peer.parse().unwrap(), &map).to_string()
    }

    #[test]
    fn only_who_is_trusted_says_where_a_request_comes_from() {
        const X: &str = "x-forwarded-for";
        const F: &str = "forwarded";
        const PROXIES: &str = "10.0.0.0/8, 127.0.0.1,2001:db8::/32";
        for (proxies, peer, headers, expected) in [
            ("", "127.0.0.1", &[(X, "192.0.2.1")][..], "127.0.0.1"),
            (PROXIES, "198.51.100.7", &[(X, "192.0.2.1")], "198.51.100.7"),
            (PROXIES, "10.1.2.3", &[], "10.1.2.3"),
            (PROXIES, "10.1.2.3", &[(X, "192.0.2.1")], "192.0.2.1"),
            (PROXIES, "10.1.2.3", &[(X, "192.0.2.1:5555")], "192.0.2.1"),
            (PROXIES, "10.1.2.3", &[(X, "6.6.6.6, 192.0.2.1")], "192.0.2.1"),
            (PROXIES, "10.1.2.3", &[(X, "6.6.6.6"), (X, "192.0.2.1, 10.9.9.9")], "192.0.2.1"),
            (PROXIES, "10.1.2.3", &[(X, "10.4.4.4, 10.5.5.5")], "10.4.4.4"),
            (PROXIES, "10.1.2.3", &[(X, "6.6.6.6, nonsense")], "10.1.2.3"),
            (PROXIES, "10.1.2.3", &[(X, "6.6.6.6, , 10.9.9.9")], "10.9.9.9"),
            (PROXIES, "10.1.2.3", &[(X, "")], "10.1.2.3"),
            (PROXIES, "2001:db8::1", &[(X, "2001:470::7")], "2001:470::7"),
            (PROXIES, "2001:db8::1", &[(X, "[2001:470::7]:80")], "2001:470::7"),
            (PROXIES, "10.1.2.3", &[(X, "::ffff:192.0.2.1")], "192.0.2.1"),
            (PROXIES, "127.0.0.1", &[(F, "for=192.0.2.1;proto=https")], "192.0.2.1"),
            (
                PROXIES,
                "127.0.0.1",
                &[(F, "for=6.6.6.6, proto=https;For=\"[2001:470::7]:80\"")],
                "2001:470::7",
            ),
            (PROXIES, "127.0.0.1", &[(F, "for=6.6.6.6, for=unknown")], "127.0.0.1"),
            (PROXIES, "127.0.0.1", &[(F, "for=_hidden")], "127.0.0.1"),
            (PROXIES, "127.0.0.1", &[(F, "for=192.0.2.1"), (X, "192.0.2.1")], "192.0.2.1"),
            (PROXIES, "127.0.0.1", &[(F, "for=6.6.6.6"), (X, "192.0.2.1")], "127.0.0.1"),
        ] {
            assert_eq!(client(proxies, peer, headers), expected, "{peer} {headers:?}");
        }
    }

    #[test]
    fn a_way_of_proxies_has_an_end() {
        let long = "10.1.1.1,".repeat(100_000) + "10.1.1.1";
        assert_eq!(
            client("10.0.0.0/8", "10.1.2.3", &[("x-forwarded-for", &format!("192.0.2.1,{long}"))]),
            "10.1.1.1"
        );
    }

    #[test]
    fn networks_are_read_or_refused() {
        for bad in ["", "10.0.0.0/33", "example.com", "10.0.0.0/8,", "10.0.0"] {
            assert!(bad.parse::<Proxies>().is_err(), "{bad}");
        }
    }
}
