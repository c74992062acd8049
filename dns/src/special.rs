//! Names that mean the same everywhere and are no business of any server on the internet
//! (RFC 6761, 6762, 7686, 6303).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{name::Asked, zone::address_in};

/// What is known of a name without asking anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// This host.
    Localhost,
    /// Nothing, ever.
    Nothing,
}

/// Top labels that are never looked up elsewhere unless a route says so.
const NEVER: [&[u8]; 5] = [b"invalid", b"test", b"onion", b"local", b"alt"];

/// Whether a name is special; names of private addresses are.
pub fn of(name: &Asked) -> Option<Special> {
    let last = name.label(name.labels().checked_sub(1)?);
    if last == b"localhost" {
        return Some(Special::Localhost);
    }
    if NEVER.contains(&last) {
        return Some(Special::Nothing);
    }
    let addresses = address_in(name)?;
    let (first, last) = (*addresses.start(), *addresses.end());
    let never = is_private(first) && is_private(last) && begins_alike(first, last);
    never.then_some(Special::Nothing)
}

/// The blocks of private addresses are of 8 bits of prefix and more.
fn begins_alike(first: IpAddr, last: IpAddr) -> bool {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => first.octets()[0] == last.octets()[0],
        (IpAddr::V6(first), IpAddr::V6(last)) => first.octets()[0] == last.octets()[0],
        _ => false,
    }
}

/// Addresses whose names only their own network knows (RFC 6303 section 4).
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let shared = first == 100 && second & 0xc0 == 64;
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_documentation()
                || v4.is_broadcast()
                || first == 0
                || shared
        }
        IpAddr::V6(v6) => {
            let documentation = v6.segments()[..2] == [0x2001, 0x0db8];
            v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_loopback()
                || v6.is_unspecified()
                || documentation
        }
    }
}

/// The addresses of this host, for itself.
pub const LOCALHOST: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::from_text;

    #[test]
    fn special_names_are_known_and_no_others() {
        for (name, wanted) in [
            ("localhost", Some(Special::Localhost)),
            ("db.localhost", Some(Special::Localhost)),
            ("printer.local", Some(Special::Nothing)),
            ("example.invalid", Some(Special::Nothing)),
            ("3.9.0.10.in-addr.arpa", Some(Special::Nothing)),
            ("10.in-addr.arpa", Some(Special::Nothing)),
            ("8.8.8.8.in-addr.arpa", None),
            ("in-addr.arpa", None),
            (
                "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
                Some(Special::Nothing),
            ),
            ("localhost.example.com", None),
        ] {
            assert_eq!(of(&Asked::of(&from_text(name).unwrap()).unwrap()), wanted, "{name}");
        }
    }
}
