//! Who may be a client of a service: lists of address ranges.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// A range of addresses, such as `10.0.0.0/8`: those that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: IpAddr,
    /// How many bits are the same: at most 32 or 128.
    len: u8,
}

/// Why a text is no [`Subnet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// It is no address, or its length does not fit.
    #[error("not a range of addresses")]
    Malformed,
    /// It has bits beyond its length, so that it may not be what was meant.
    #[error("has bits beyond its length: write {0}")]
    Loose(Subnet),
}

/// Who may be a client. The longest range that a client is in decides; where it is in none, it may if
/// there is no `allow`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Access {
    /// These may, and without other ranges nobody else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Subnet>,
    /// These may not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Subnet>,
}

impl Subnet {
    /// A range; `None` when the length does not fit the address or the address has bits beyond it.
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        let subnet = Self { address, len };
        (len <= subnet.width() && subnet.tight() == subnet).then_some(subnet)
    }

    /// All IPv4 addresses, and all IPv6 addresses.
    pub fn everything() -> [Self; 2] {
        let all = |address| Self { address, len: 0 };
        [all(Ipv4Addr::UNSPECIFIED.into()), all(Ipv6Addr::UNSPECIFIED.into())]
    }

    /// The first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many bits its addresses have in common.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// Whether an address is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        let same_kind = self.address.is_ipv4() == address.is_ipv4();
        same_kind && Self { address, len: self.len }.tight().address == self.address
    }

    fn width(self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Without the bits beyond its length.
    fn tight(self) -> Self {
        let kept = |width: u32| width.saturating_sub(u32::from(self.len));
        let address = match self.address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(kept(32)).unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(kept(128)).unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
        };
        Self { address, ..self }
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    /// `10.0.0.0/8`, `fd00::/8`, or an address alone.
    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| SubnetError::Malformed)?;
        // As IPv6 they are no clients' addresses.
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err(SubnetError::Malformed);
        }
        let whole = Self { address, len: 0 }.width();
        let digits = |len: &str| len.bytes().all(|byte| byte.is_ascii_digit());
        let len = match len {
            Some(len) if digits(len) => len.parse().map_err(|_| SubnetError::Malformed)?,
            Some(_) => return Err(SubnetError::Malformed),
            None => whole,
        };
        if len > whole {
            return Err(SubnetError::Malformed);
        }
        let subnet = Self { address, len };
        match subnet.tight() {
            tight if tight == subnet => Ok(subnet),
            tight => Err(SubnetError::Loose(tight)),
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl Access {
    /// Whether everybody may.
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// A range that is both allowed and denied, if there is one.
    pub fn contradiction(&self) -> Option<Subnet> {
        self.allow.iter().copied().find(|subnet| self.deny.contains(subnet))
    }

    /// What holds for each range, the longest that an address is in deciding; complete, so that every
    /// address is in one. Empty when everybody may. What is both allowed and denied is denied.
    pub fn rules(&self) -> BTreeMap<Subnet, bool> {
        if self.is_open() {
            return BTreeMap::new();
        }
        let others = Subnet::everything().map(|all| (all, self.allow.is_empty()));
        let allowed = self.allow.iter().map(|subnet| (*subnet, true));
        let denied = self.deny.iter().map(|subnet| (*subnet, false));
        others.into_iter().chain(allowed).chain(denied).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_read_as_they_are_written() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "fd00::/8", "::/0", "::1/128"] {
            assert_eq!(subnet(text).to_string(), text);
        }
        assert_eq!(subnet("192.0.2.1").to_string(), "192.0.2.1/32");
        assert_eq!(subnet("fd00::1").to_string(), "fd00::1/128");
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "fd00::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "::ffff:0.0.0.0/96",
        ] {
            assert_eq!(text.parse::<Subnet>(), Err(SubnetError::Malformed), "{text}");
        }
        let loose = "10.1.2.3/8".parse::<Subnet>().unwrap_err();
        assert_eq!(loose.to_string(), "has bits beyond its length: write 10.0.0.0/8");
    }

    #[test]
    fn an_address_is_in_a_range_of_its_own_kind() {
        let inside = |range: &str, address: &str| subnet(range).contains(address.parse().unwrap());
        assert!(inside("10.0.0.0/8", "10.255.0.1") && !inside("10.0.0.0/8", "11.0.0.1"));
        assert!(inside("fd00::/8", "fd77::1") && !inside("fd00::/8", "fe80::1"));
        assert!(!inside("::/0", "10.0.0.1") && !inside("0.0.0.0/0", "::1"));
    }

    #[test]
    fn without_allow_others_may_and_with_it_they_may_not() {
        let rules = |allow: &[&str], deny: &[&str]| {
            let read = |texts: &[&str]| texts.iter().map(|text| subnet(text)).collect();
            let access = Access { allow: read(allow), deny: read(deny) };
            let rules = access.rules();
            let text = |(subnet, may): (&Subnet, &bool)| format!("{subnet} {may}");
            rules.iter().map(text).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(rules(&[], &[]), "");
        assert_eq!(rules(&[], &["10.0.0.0/8"]), "0.0.0.0/0 true, 10.0.0.0/8 false, ::/0 true");
        assert_eq!(
            rules(&["10.0.0.0/8"], &["10.9.0.0/16"]),
            "0.0.0.0/0 false, 10.0.0.0/8 true, 10.9.0.0/16 false, ::/0 false"
        );
        assert_eq!(rules(&["0.0.0.0/0"], &[]), "0.0.0.0/0 true, ::/0 false");
    }
}
