//! What a service asks for that only the userspace proxy can do.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// What the proxy is to do for a service besides forwarding. A service that asks for any of it is
/// served by the proxy on every node, also where the kernel plane serves the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Proxied {
    /// Tasks are told who the client is, by a PROXY header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderVersion>,
    /// Senders in these networks speak for somebody else and begin with a PROXY header.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<Prefix>,
    /// How much there may be of what.
    #[serde(default)]
    pub limits: FlowLimits,
    /// Each UDP datagram goes to whichever task has its turn, also of one client.
    #[serde(default, skip_serializing_if = "is_false")]
    pub per_packet: bool,
    /// Where the proxy serves the service, it talks to tasks from the client's own address
    /// (`IP_TRANSPARENT`), if the host lets it. The kernel plane does so in any case, so that this alone is
    /// no reason for a proxy.
    #[serde(default, skip_serializing_if = "is_false")]
    pub transparent: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderVersion {
    /// A line of text. TCP only.
    V1,
    /// Binary; for UDP before every datagram.
    V2,
}

/// Limits of a service on each node. `None`: none of its own.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct FlowLimits {
    /// TCP connections at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// TCP connections of one client address at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_client: Option<u32>,
    /// Flows with one task at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_task: Option<u32>,
    /// New TCP connections a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
}

/// Addresses that begin alike, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// Text that is no [`Prefix`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not an address, or not a length.
    #[error("not an address with the length of its prefix")]
    Syntax,
    /// Bits behind the prefix are set.
    #[error("the address has more bits than its prefix; {0} is the network")]
    Loose(Prefix),
}

impl Proxied {
    /// Whether there is anything to do that the kernel plane cannot do.
    pub fn is_needed(&self) -> bool {
        let Self { header, trusted, limits, per_packet, transparent: _ } = self;
        header.is_some() || !trusted.is_empty() || *limits != FlowLimits::default() || *per_packet
    }

    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a sender begins with a PROXY header.
    pub fn trusts(&self, sender: IpAddr) -> bool {
        self.trusted.iter().any(|prefix| prefix.contains(sender))
    }
}

// === impl Prefix ===

impl Prefix {
    /// Whether an address is one of these. Families do not mix.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.length) == self.address
    }
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// An address alone stands for itself.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Syntax)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            Some(length) => length.parse().map_err(|_| PrefixError::Syntax)?,
            None => most,
        };
        if length > most {
            return Err(PrefixError::Syntax);
        }
        let network = Self { address: masked(address, length), length };
        if network.address == address { Ok(network) } else { Err(PrefixError::Loose(network)) }
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Self, PrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_contains_what_begins_like_it_in_its_own_family() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "192.0.2.1", "::"),
            ("fc00::/7", "fdff::1", "fe80::1"),
            ("::/0", "2001:db8::1", "0.0.0.0"),
        ] {
            assert!(prefix(network).contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!prefix(network).contains(outside.parse().unwrap()), "{network} {outside}");
        }
    }

    #[test]
    fn text_that_is_no_prefix_is_refused_with_the_way_out() {
        for text in ["", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/x", "10.0.0.0/-1", "/8"] {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError::Syntax), "{text}");
        }
        let loose = "10.1.2.3/8".parse::<Prefix>().unwrap_err();
        assert_eq!(
            loose.to_string(),
            "the address has more bits than its prefix; 10.0.0.0/8 is the network"
        );
    }

    #[test]
    fn a_service_that_asks_for_nothing_needs_no_proxy() {
        assert!(!Proxied::default().is_needed());
        let limits = FlowLimits { rate: Some(1), ..FlowLimits::default() };
        assert!(Proxied { limits, ..Proxied::default() }.is_needed());
    }
}
