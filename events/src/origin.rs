//! Where a request came from, without pointing at a person.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network that a request came from: of an IPv4 address the /24, of an IPv6 address the /40. Either holds 256 of what
/// one household or office may have, an address or a /48 (RFC 6177), so it may stay where personal data must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The first three bytes of an IPv4 address.
    V4([u8; 3]),
    /// The first five bytes of an IPv6 address.
    V6([u8; 5]),
}

/// Families of addresses in PostgreSQL's binary format.
const INET: u8 = 2;
const INET6: u8 = 3;

impl Origin {
    /// The network of an address; `None` for the address that stands for none.
    #[must_use]
    pub fn of(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        (!address.is_unspecified()).then(|| Self::around(address))
    }

    fn around(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, e, ..] = address.octets();
                Self::V6([a, b, c, d, e])
            }
        }
    }

    fn address(self) -> IpAddr {
        match self {
            Self::V4([a, b, c]) => Ipv4Addr::new(a, b, c, 0).into(),
            Self::V6(bytes) => {
                let mut octets = [0; 16];
                octets[..bytes.len()].copy_from_slice(&bytes);
                Ipv6Addr::from(octets).into()
            }
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::V4(_) => 24,
            Self::V6(_) => 40,
        }
    }

    /// As PostgreSQL's `cidr` in its binary format: family, bits, whether it is a network, and the address with its
    /// length before it.
    pub(crate) fn write_cidr(self, out: &mut Vec<u8>) {
        match self.address() {
            IpAddr::V4(address) => {
                out.extend_from_slice(&[INET, self.bits(), 1, 4]);
                out.extend_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                out.extend_from_slice(&[INET6, self.bits(), 1, 16]);
                out.extend_from_slice(&address.octets());
            }
        }
    }

    /// Reads a `cidr` in PostgreSQL's binary format; `None` if it is none of ours.
    #[must_use]
    pub fn from_cidr(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [INET, 24, 1, 4, a, b, c, 0] => Some(Self::V4([a, b, c])),
            [INET6, 40, 1, 16, a, b, c, d, e, ref rest @ ..] if *rest == [0; 11] => {
                Some(Self::V6([a, b, c, d, e]))
            }
            _ => None,
        }
    }
}

/// As `192.0.2.0/24`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4([a, b, c]) => write!(f, "{a}.{b}.{c}.0/{}", self.bits()),
            Self::V6(_) => write!(f, "{}/{}", self.address(), self.bits()),
        }
    }
}

/// What is no origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an origin is an IPv4 network with 24 bits or an IPv6 network with 40")]
pub struct NoOrigin;

impl FromStr for Origin {
    type Err = NoOrigin;

    /// Reads what [`Display`](fmt::Display) writes, and nothing that says more.
    fn from_str(text: &str) -> Result<Self, NoOrigin> {
        let (address, bits) = text.split_once('/').ok_or(NoOrigin)?;
        let address: IpAddr = address.parse().map_err(|_| NoOrigin)?;
        let origin = Self::around(address);
        let is_whole = origin.address() == address && bits.parse() == Ok(origin.bits());
        if is_whole { Ok(origin) } else { Err(NoOrigin) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(address: &str) -> Option<String> {
        Origin::of(address.parse().unwrap()).map(|origin| origin.to_string())
    }

    #[test]
    fn an_origin_is_a_network_and_no_address() {
        for (address, origin) in [
            ("192.0.2.77", Some("192.0.2.0/24")),
            ("::ffff:192.0.2.77", Some("192.0.2.0/24")),
            ("2001:db8:12ab:cdef::1", Some("2001:db8:1200::/40")),
            ("127.0.0.1", Some("127.0.0.0/24")),
            ("::1", Some("::/40")),
            ("0.0.0.0", None),
            ("::", None),
        ] {
            assert_eq!(of(address).as_deref(), origin, "{address}");
        }
        for wrong in
            ["", "192.0.2.0", "192.0.2.1/24", "192.0.2.0/25", "2001:db8::/48", "2001:db8:1:2::/40", "x/24"]
        {
            assert_eq!(wrong.parse::<Origin>(), Err(NoOrigin), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn an_origin_comes_back_as_it_was(bytes in any::<[u8; 16]>(), is_v4 in any::<bool>()) {
            let address: IpAddr = if is_v4 {
                Ipv4Addr::from([bytes[0], bytes[1], bytes[2], bytes[3]]).into()
            } else {
                Ipv6Addr::from(bytes).into()
            };
            let Some(origin) = Origin::of(address) else { return Ok(()) };
            let mut cidr = Vec::new();
            origin.write_cidr(&mut cidr);
            prop_assert_eq!(Origin::from_cidr(&cidr), Some(origin));
            prop_assert_eq!(origin.to_string().parse(), Ok(origin));
        }
    }

    #[test]
    fn the_first_network_is_one_too() {
        for origin in [Origin::V4([0; 3]), Origin::V6([0; 5])] {
            assert_eq!(origin.to_string().parse(), Ok(origin));
        }
    }
}
