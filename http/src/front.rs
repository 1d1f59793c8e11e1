//! What a process is told about its place in front of clients: its names, who may ask from a browser, whom it believes.

use std::str::FromStr;
use std::time::Duration;

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, Uri};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::client::Proxies;
use crate::limits::RateLimits;

/// The most origins or names that are listed.
const MAX_LISTED: usize = 100;

/// How long a browser may keep what a preflight was told.
const PREFLIGHT_KEPT: Duration = Duration::from_secs(3_600);

/// What a process is told about its place in front of clients.
#[derive(Debug, Clone)]
pub struct Front {
    /// How often somebody may ask.
    pub rates: RateLimits,
    /// Whose word about a client's address counts.
    pub proxies: Proxies,
    /// The names that the process answers to; all where it is `None`.
    pub hosts: Option<Hosts>,
    /// Web pages of which origins may ask.
    pub origins: Origins,
    /// Whether clients come by https, here or at a proxy: then browsers are told never to come otherwise.
    pub secure: bool,
}

/// Names of hosts that requests may be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl FromStr for Hosts {
    type Err = String;

    /// Names or addresses without a port, with commas between.
    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
        let of_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_[]:".contains(&byte);
        let sound =
            |name: &String| !name.is_empty() && name.bytes().all(of_name) && without_port(name) == name;
        if names.len() <= MAX_LISTED && names.iter().all(sound) {
            Ok(Self(names))
        } else {
            Err("names of hosts without ports, like shop.example,www.shop.example".to_owned())
        }
    }
}

impl Hosts {
    /// Whether a request is for one of them.
    pub(crate) fn contain(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let named = match uri.host() {
            Some(host) => Some(host),
            None => headers.get(header::HOST).and_then(|value| value.to_str().ok()).map(without_port),
        };
        named.is_some_and(|name| {
            let name = name.strip_suffix('.').unwrap_or(name);
            self.0.iter().any(|host| host.eq_ignore_ascii_case(name))
        })
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

/// Origins of web pages that may ask, as browsers send them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(Vec<HeaderValue>);

impl FromStr for Origins {
    type Err = String;

    /// `scheme://host` or `scheme://host:port`, with commas between; never `*` or `null`.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "exact origins like https://shop.example,http://localhost:3000".to_owned();
        let origins: Option<Vec<HeaderValue>> =
            text.split(',').map(|origin| one_origin(origin.trim())).collect();
        origins.filter(|origins| origins.len() <= MAX_LISTED).map(Self).ok_or_else(expected)
    }
}

fn one_origin(text: &str) -> Option<HeaderValue> {
    let uri: Uri = text.parse().ok()?;
    let authority = uri.authority()?;
    let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
    let default_port = if scheme == "https" { 443 } else { 80 };
    // A browser sends neither a path, nor a port that goes without saying, nor capital letters.
    let exact = format!("{scheme}://{authority}") == text
        && text == text.to_ascii_lowercase()
        && !text.contains(['@', '*'])
        && authority.port_u16() != Some(default_port);
    exact.then(|| HeaderValue::from_str(text).ok())?
}

impl Origins {
    /// What answers preflights and tells browsers who may read; nothing where nobody may.
    pub(crate) fn layer(&self) -> Option<CorsLayer> {
        if self.0.is_empty() {
            return None;
        }
        let name = HeaderName::from_static;
        Some(
            CorsLayer::new()
                .allow_origin(AllowOrigin::list(self.0.iter().cloned()))
                .allow_methods([
                    Method::GET,
                    Method::HEAD,
                    Method::POST,
                    Method::PUT,
                    Method::PATCH,
                    Method::DELETE,
                ])
                .allow_headers([
                    header::ACCEPT,
                    header::AUTHORIZATION,
                    header::CONTENT_TYPE,
                    header::IF_MATCH,
                    header::IF_NONE_MATCH,
                    name("idempotency-key"),
                    name("tidemark-after"),
                    name("tidemark-email"),
                    name("traceparent"),
                ])
                .expose_headers([
                    header::ETAG,
                    header::LINK,
                    header::LOCATION,
                    header::RETRY_AFTER,
                    name("idempotency-replayed"),
                    name("ratelimit"),
                    name("ratelimit-policy"),
                    name("tidemark-epoch"),
                    name("tidemark-position"),
                ])
                .max_age(PREFLIGHT_KEPT),
        )
    }

    /// Lets a page read an answer that never reached the layer: a refusal.
    pub(crate) fn tell(&self, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
        if let Some(origin) = origin.filter(|origin| self.0.contains(origin)) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_exact() {
        let hosts: Hosts = "shop.example, [::1],127.0.0.1".parse().unwrap();
        let asked = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            hosts.contain(&Uri::from_static("/"), &headers)
        };
        for good in
            ["shop.example", "Shop.Example:8080", "shop.example.", "[::1]", "[::1]:8080", "127.0.0.1:1"]
        {
            assert!(asked(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "shop.example.evil.example",
            "xshop.example",
            "::1",
            "shop.example@evil",
            ":80",
        ] {
            assert!(!asked(bad), "{bad}");
        }
        assert!(!hosts.contain(&Uri::from_static("/"), &HeaderMap::new()));
        assert!(!hosts.contain(&Uri::from_static("http://evil.example/"), &HeaderMap::new()));
        for bad in ["", "a,", "a:80", "http://a", "a b", "*", "*.example"] {
            assert!(bad.parse::<Hosts>().is_err(), "{bad}");
        }
    }

    #[test]
    fn origins_are_exact() {
        for good in
            ["https://shop.example", "http://localhost:3000,https://a.example:8443", "https://[::1]:1"]
        {
            assert!(good.parse::<Origins>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "*",
            "null",
            "shop.example",
            "https://",
            "https://shop.example/",
            "https://shop.example/a",
            "https://*.example",
            "https://Shop.example",
            "https://shop.example:443",
            "http://shop.example:80",
            "ftp://shop.example",
            "https://u@shop.example",
            "https://a.example,",
            "https://a.example,*",
        ] {
            assert!(bad.parse::<Origins>().is_err(), "{bad}");
        }
    }
}
