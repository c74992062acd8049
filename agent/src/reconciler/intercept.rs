//! Taking Docker's resolver: containers that ask 127.0.0.11 for names are led to this node's DNS server
//! when they connect or send. To the kernel that is a virtual address as any other, on a network that is
//! made for it; only the namespaces that are to be led are attached to that.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use weir_mesh::{MeshSnapshot, NetworkId, ServiceName, Space, SpaceAt, vip::OwnVip};

/// Where Docker's resolver answers in every container that has one.
pub const DOCKERS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Who is led where. Nothing, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intercept {
    /// Addresses at which the DNS server of this node answers, on port 53: a virtual address keeps the
    /// port that was asked for.
    pub servers: BTreeSet<Ipv4Addr>,
    /// The names of the networks whose containers are led.
    pub networks: Networks,
}

/// Some networks, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Networks {
    /// All.
    All,
    /// These.
    Named(BTreeSet<String>),
}

impl Default for Networks {
    fn default() -> Self {
        Self::Named(BTreeSet::new())
    }
}

impl Intercept {
    /// The network to which the namespaces are attached that are to be led, with those.
    pub(super) fn led<'s>(
        &self,
        snapshot: &MeshSnapshot,
        spaces: impl Iterator<Item = &'s Space>,
    ) -> BTreeMap<&'s SpaceAt, NetworkId> {
        let opted_in = |network: &NetworkId| match &self.networks {
            Networks::All => true,
            Networks::Named(names) => {
                snapshot.networks.get(network).is_some_and(|known| names.contains(&known.name))
            }
        };
        spaces
            // The host asks whom it likes.
            .filter(|space| space.at != SpaceAt::Host)
            .filter(|space| space.networks.iter().any(opted_in))
            .filter_map(|space| Some((&space.at, network_of(self.nearest(&space.addresses)?))))
            .collect()
    }

    /// The server that a container reaches by its own bridge: of all, the one whose address begins most
    /// alike. `None` for a container that has no way to its host: Docker's resolver is all it has.
    fn nearest(&self, asker: &[IpAddr]) -> Option<Ipv4Addr> {
        let asker = asker.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(u32::from(*v4)),
            IpAddr::V6(_) => None,
        })?;
        let alike = |server: &&Ipv4Addr| (u32::from(**server) ^ asker).leading_zeros();
        self.servers.iter().max_by_key(alike).copied()
    }

    /// What the kernel is to serve for it.
    pub(super) fn own_vips(&self) -> Vec<OwnVip> {
        let own = |server: &Ipv4Addr| OwnVip {
            service: ServiceName::new("weir's DNS server"),
            network: network_of(*server),
            address: DOCKERS.into(),
            target: (*server).into(),
        };
        self.servers.iter().map(own).collect()
    }
}

/// A network for each server. Nobody can make one of this name: names of networks have no spaces.
fn network_of(server: Ipv4Addr) -> NetworkId {
    NetworkId::new(format!("weir dns {server}"))
}

#[cfg(test)]
mod tests {
    use weir_mesh::Network;

    use super::*;

    fn space(at: &str, network: &str, addresses: &[&str]) -> Space {
        Space {
            at: SpaceAt::File(at.into()),
            networks: [NetworkId::new(network)].into(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn led(networks: Networks, spaces: &[Space]) -> BTreeMap<String, String> {
        let mut snapshot = MeshSnapshot::default();
        for (id, name) in [("1", "blue"), ("2", "green")] {
            let network = Network::new(name);
            snapshot.networks.insert(NetworkId::new(id), network);
        }
        let servers = [[172, 18, 0, 1].into(), [10, 0, 0, 11].into()].into();
        let intercept = Intercept { servers, networks };
        let led = intercept.led(&snapshot, spaces.iter()).into_iter();
        let text = |(at, network): (&SpaceAt, NetworkId)| {
            let SpaceAt::File(path) = at else { panic!("the host is led") };
            (path.display().to_string(), network.as_str().to_owned())
        };
        led.map(text).collect()
    }

    #[test]
    fn containers_of_the_named_networks_are_led_to_the_server_that_is_nearest() {
        let spaces = [
            space("/a", "1", &["172.18.0.5"]),
            space("/b", "2", &["172.18.0.6"]),
            space("/c", "1", &["fd18::7", "10.0.0.7"]),
        ];
        let blue = Networks::Named(["blue".to_owned()].into());
        let wanted = [("/a", "weir dns 172.18.0.1"), ("/c", "weir dns 10.0.0.11")];
        let wanted = wanted.map(|(at, network)| (at.to_owned(), network.to_owned()));
        assert_eq!(led(blue, &spaces), wanted.into());
        assert_eq!(led(Networks::All, &spaces).len(), 3);
        assert_eq!(led(Networks::default(), &spaces).len(), 0);
    }

    #[test]
    fn neither_the_host_nor_a_container_without_a_way_to_it_is_led() {
        let host = Space { at: SpaceAt::Host, ..space("/h", "1", &["172.18.0.1"]) };
        assert!(
            led(Networks::All, &[host, space("/d", "1", &[]), space("/e", "1", &["fd18::5"])])
                .is_empty()
        );
    }
}
