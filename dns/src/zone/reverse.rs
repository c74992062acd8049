//! Names of addresses: `in-addr.arpa` (RFC 1035 3.5) and `ip6.arpa` (RFC 3596 2.5).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use super::{Owner, Scope, Zone};
use crate::name::Asked;

/// What is known of a name below `in-addr.arpa` or `ip6.arpa`.
#[derive(Debug)]
pub enum Reverse<'z> {
    /// The names of an address, each with that of its network; both stand in front of the domain.
    Names(Vec<[&'z [u8]; 2]>),
    /// There are names below it.
    Parent,
    /// Nobody has the address, and nobody else could: it is in one of our networks.
    Nobody,
    /// It is none of ours.
    Foreign,
}

const V4: &[u8] = b"\x07in-addr\x04arpa";
const V6: &[u8] = b"\x03ip6\x04arpa";

/// Whether a name is below the trees of addresses.
pub fn is_reverse(name: &Asked) -> bool {
    name.labels_before(V4).is_some() || name.labels_before(V6).is_some()
}

/// The addresses that a name stands for: one, or all that begin so. `None` for what is no such name,
/// or not written as the standards say.
pub fn address_in(name: &Asked) -> Option<RangeInclusive<IpAddr>> {
    if let Some(labels) = name.labels_before(V4) {
        let mut bytes = [0_u8; 4];
        if labels > bytes.len() {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate().take(labels) {
            let label = std::str::from_utf8(name.label(labels - 1 - at)).ok()?;
            *byte = label.parse().ok()?;
            // `010` and `+1` are no bytes here.
            if label.starts_with('+') || label.len() > 1 && label.starts_with('0') {
                return None;
            }
        }
        let first = u32::from_be_bytes(bytes);
        let last = first | u32::MAX.checked_shr(8 * labels as u32).unwrap_or(0);
        return Some(Ipv4Addr::from(first).into()..=Ipv4Addr::from(last).into());
    }
    let labels = name.labels_before(V6)?;
    if labels > 32 {
        return None;
    }
    let mut first = 0_u128;
    for at in 0..labels {
        let [nibble] = name.label(labels - 1 - at) else { return None };
        let value = char::from(*nibble).to_digit(16)?;
        first |= u128::from(value) << (124 - 4 * at);
    }
    let last = first | u128::MAX.checked_shr(4 * labels as u32).unwrap_or(0);
    Some(Ipv6Addr::from(first).into()..=Ipv6Addr::from(last).into())
}

impl Zone {
    /// What is known of a name of addresses, for somebody with this scope.
    pub fn reverse(&self, addresses: &RangeInclusive<IpAddr>, scope: &Scope) -> Reverse<'_> {
        let seen = |network: u32| scope.includes(network);
        let from = self.reverse.partition_point(|owner| owner.address < *addresses.start());
        let within = self.reverse[from..].iter().take_while(|one| addresses.contains(&one.address));
        let mut owners = within.filter(|owner| seen(owner.network)).peekable();
        if owners.peek().is_some() {
            if addresses.start() != addresses.end() {
                return Reverse::Parent;
            }
            let name = |owner: &Owner| {
                [self.names.text(owner.name), &*self.networks[owner.network as usize].name]
            };
            return Reverse::Names(owners.map(name).collect());
        }
        let mut networks = self.networks.iter().zip(0..);
        let covered = |subnet: &ipnet::IpNet| {
            subnet.contains(addresses.start()) && subnet.contains(addresses.end())
        };
        let ours = networks.any(|(network, at)| seen(at) && network.subnets.iter().any(covered));
        if ours { Reverse::Nobody } else { Reverse::Foreign }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::from_text;

    fn read(text: &str) -> Option<(String, String)> {
        let range = address_in(&Asked::of(&from_text(text)?)?)?;
        Some((range.start().to_string(), range.end().to_string()))
    }

    #[test]
    fn names_of_addresses_are_read_strictly() {
        let one = |address: &str| Some((address.to_owned(), address.to_owned()));
        assert_eq!(read("3.9.0.10.in-addr.arpa"), one("10.0.9.3"));
        assert_eq!(read("9.0.10.in-addr.arpa"), Some(("10.0.9.0".into(), "10.0.9.255".into())));
        assert_eq!(read("in-addr.arpa"), Some(("0.0.0.0".into(), "255.255.255.255".into())));
        let v6 = "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.1.d.F.ip6.arpa";
        assert_eq!(read(v6), one("fd18::3"));
        assert_eq!(read("0.0.d.f.ip6.arpa").map(|range| range.0), Some("fd00::".into()));
        for wrong in [
            "300.0.0.10.in-addr.arpa",
            "03.0.0.10.in-addr.arpa",
            "1.2.3.4.5.in-addr.arpa",
            "x.in-addr.arpa",
            "10.ip6.arpa",
            "g.ip6.arpa",
            "web.weir",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
