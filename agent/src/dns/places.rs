//! Where the server listens: addresses, and those of interfaces as they come and go.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use crate::{config::ListenAt, host::interfaces};

/// Where the server should be listening now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The addresses.
    pub addresses: BTreeSet<SocketAddr>,
    /// What has no address now.
    pub missing: Vec<ListenAt>,
}

impl Places {
    /// Looks at the host.
    pub fn look(listen: &[ListenAt]) -> Self {
        Self::among(listen, &interfaces())
    }

    fn among(listen: &[ListenAt], interfaces: &[(String, IpAddr)]) -> Self {
        let mut places = Self::default();
        // One that is link-local would need the interface with it.
        let usable = || interfaces.iter().filter(|(_, address)| !is_link_local(*address));
        for place in listen {
            let found: Vec<SocketAddr> = match place {
                ListenAt::Address(all) if all.ip().is_unspecified() => {
                    let family = |address: &&IpAddr| address.is_ipv4() == all.is_ipv4();
                    let own = usable().map(|(_, address)| address).filter(family);
                    own.map(|address| SocketAddr::new(*address, all.port())).collect()
                }
                ListenAt::Address(address) => vec![*address],
                ListenAt::Interface(name, port) => {
                    let own = usable().filter(|(interface, _)| interface == name);
                    own.map(|(_, address)| SocketAddr::new(*address, *port)).collect()
                }
            };
            if found.is_empty() {
                places.missing.push(place.clone());
            }
            places.addresses.extend(found);
        }
        places
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(listen: &[ListenAt]) -> (Vec<String>, usize) {
        let interfaces: Vec<(String, IpAddr)> = [
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("eth0", "10.0.0.11"),
            ("eth0", "fe80::11"),
            ("docker_gwbridge", "172.18.0.1"),
        ]
        .map(|(name, address)| (name.to_owned(), address.parse().unwrap()))
        .into();
        let places = Places::among(listen, &interfaces);
        (places.addresses.iter().map(ToString::to_string).collect(), places.missing.len())
    }

    #[test]
    fn an_interface_stands_for_its_addresses_and_may_be_missing() {
        let at = |name: &str| ListenAt::Interface(name.to_owned(), 53);
        assert_eq!(look(&[at("docker_gwbridge")]), (vec!["172.18.0.1:53".to_owned()], 0));
        assert_eq!(look(&[at("eth0"), at("eth1")]), (vec!["10.0.0.11:53".to_owned()], 1));
    }

    #[test]
    fn the_unspecified_address_stands_for_all_of_its_family() {
        let all = ListenAt::Address("0.0.0.0:5353".parse().unwrap());
        let wanted = ["10.0.0.11:5353", "127.0.0.1:5353", "172.18.0.1:5353"].map(str::to_owned);
        assert_eq!(look(&[all]), (wanted.into(), 0));
    }
}
