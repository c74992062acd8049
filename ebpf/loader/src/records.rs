//! The planner's records as the kernel's structures, and back.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    time::Duration,
};

use weir_abi::{self as abi, Ip4, Ip6, backend_state, balance, service_flag, via};
use weir_mesh::{
    Balance, Ident, PublishedPort, Subnet, TargetPort, Timeouts,
    ident::Tag,
    install::{
        BackendGeneration, BackendRecord, BackendState, ListId, NodeIndex, NodeRecord, Region,
        RoutedPort, ServiceId, ServiceRecord, Via,
    },
};

/// An address in the 128-bit form of the maps: IPv4 as `::ffff:a.b.c.d`.
pub(crate) fn wide(addr: IpAddr) -> Ip6 {
    match addr {
        IpAddr::V4(addr) => Ip6::new(addr.to_ipv6_mapped().octets()),
        IpAddr::V6(addr) => Ip6::new(addr.octets()),
    }
}

/// The inverse of [`wide`].
pub(crate) fn narrow(addr: Ip6) -> IpAddr {
    Ipv6Addr::from(addr.octets()).to_canonical()
}

/// Jiffies are the kernel's clock; durations are ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Jiffies a second.
    pub(crate) hz: u32,
}

impl Clock {
    /// At most 2^31, beyond which wrapping differences have no meaning.
    pub(crate) fn jiffies(self, duration: Duration) -> u32 {
        let jiffies = duration.as_millis() * u128::from(self.hz) / 1000;
        u32::try_from(jiffies).unwrap_or(u32::MAX).clamp(1, 1 << 31)
    }

    pub(crate) fn duration(self, jiffies: u32) -> Duration {
        Duration::from_millis(u64::from(jiffies) * 1000 / u64::from(self.hz))
    }
}

pub(crate) fn node_to_abi(record: &NodeRecord) -> abi::Node {
    abi::Node {
        address: wide(record.address),
        ident: record.ident.0,
        ipv6: u8::from(record.address.is_ipv6()),
        pad: [0; 7],
    }
}

pub(crate) fn node_from_abi(node: &abi::Node) -> Option<NodeRecord> {
    (node.ident != 0)
        .then(|| NodeRecord { ident: Ident(node.ident), address: narrow(node.address) })
}

pub(crate) fn backend_to_abi(record: &BackendRecord) -> abi::Backend {
    let mut backend = abi::Backend {
        generation: record.generation.0,
        state: state_to_abi(record.state),
        addr4: record.ipv4.map_or(Ip4::NONE, |addr| Ip4::new(addr.octets())),
        addr6: record.ipv6.map_or(Ip6::NONE, |addr| Ip6::new(addr.octets())),
        tag: record.tag.0,
        service: record.service.0,
        ident: record.ident.0,
        ..abi::Backend::default()
    };
    match record.via {
        Via::Tunnel { node } => (backend.via, backend.node) = (via::TUNNEL, node.0),
        Via::Peer { ifindex, mac } => {
            (backend.via, backend.ifindex, backend.mac) = (via::PEER, ifindex, mac);
        }
        Via::Neighbour { ifindex } => {
            (backend.via, backend.ifindex) = (via::NEIGHBOUR, ifindex);
        }
        Via::Unreachable => backend.via = via::UNREACHABLE,
    }
    backend
}

pub(crate) fn backend_from_abi(backend: &abi::Backend) -> Option<BackendRecord> {
    (backend.ident != 0).then(|| BackendRecord {
        ident: Ident(backend.ident),
        generation: BackendGeneration(backend.generation),
        state: state_from_abi(backend.state),
        service: ServiceId(backend.service),
        via: match backend.via {
            via::TUNNEL => Via::Tunnel { node: NodeIndex(backend.node) },
            via::PEER => Via::Peer { ifindex: backend.ifindex, mac: backend.mac },
            via::NEIGHBOUR => Via::Neighbour { ifindex: backend.ifindex },
            _ => Via::Unreachable,
        },
        tag: Tag(backend.tag),
        ipv4: (backend.addr4 != Ip4::NONE).then(|| Ipv4Addr::from(backend.addr4.octets())),
        ipv6: (backend.addr6 != Ip6::NONE).then(|| Ipv6Addr::from(backend.addr6.octets())),
    })
}

fn state_to_abi(state: BackendState) -> u8 {
    match state {
        BackendState::Active => backend_state::ACTIVE,
        BackendState::Draining => backend_state::DRAINING,
        BackendState::Gone => backend_state::GONE,
    }
}

fn state_from_abi(state: u8) -> BackendState {
    match state {
        backend_state::ACTIVE => BackendState::Active,
        backend_state::DRAINING => BackendState::Draining,
        _ => BackendState::Gone,
    }
}

fn flag(is_set: bool, flag: u8) -> u8 {
    if is_set { flag } else { 0 }
}

/// How long flows may be silent, in ticks of the kernel's clock.
pub(crate) fn timeouts_to_abi(timeouts: &Timeouts, clock: Clock) -> abi::Timeouts {
    abi::Timeouts {
        tcp_syn: clock.jiffies(timeouts.tcp_syn),
        tcp_established: clock.jiffies(timeouts.tcp_established),
        tcp_fin: clock.jiffies(timeouts.tcp_fin),
        tcp_reset: clock.jiffies(timeouts.tcp_reset),
        udp_one_way: clock.jiffies(timeouts.udp_one_way),
        udp_both_ways: clock.jiffies(timeouts.udp_both_ways),
    }
}

pub(crate) fn service_to_abi(record: &ServiceRecord, clock: Clock) -> abi::Service {
    let timeouts = &record.timeouts;
    abi::Service {
        pick4: region_to_abi(record.pick4),
        pick6: region_to_abi(record.pick6),
        id: record.service.0,
        target: record.target.get().to_be_bytes(),
        balance: match record.balance {
            Balance::RoundRobin => balance::ROUND_ROBIN,
            Balance::Random => balance::RANDOM,
            Balance::Maglev => balance::MAGLEV,
            Balance::Source => balance::SOURCE,
            Balance::LeastConnections => balance::LEAST,
        },
        flags: flag(record.host_mode, service_flag::HOST_MODE)
            | flag(record.withheld, service_flag::WITHHELD)
            | flag(record.shared, service_flag::SHARED),
        timeouts: timeouts_to_abi(timeouts, clock),
        local4: region_to_abi(record.local4),
        local6: region_to_abi(record.local6),
        drain_millis: u32::try_from(timeouts.drain.as_millis()).unwrap_or(u32::MAX),
        list: record.list.map_or(0, |list| list.0),
        ident: record.ident.0,
    }
}

pub(crate) fn service_from_abi(service: &abi::Service, clock: Clock) -> Option<ServiceRecord> {
    let timeouts = &service.timeouts;
    let target = NonZeroU16::new(u16::from_be_bytes(service.target))?;
    (service.ident != 0).then(|| ServiceRecord {
        ident: Ident(service.ident),
        service: ServiceId(service.id),
        balance: match service.balance {
            balance::MAGLEV => Balance::Maglev,
            balance::SOURCE => Balance::Source,
            balance::LEAST => Balance::LeastConnections,
            balance::RANDOM => Balance::Random,
            _ => Balance::RoundRobin,
        },
        host_mode: service.flags & service_flag::HOST_MODE != 0,
        withheld: service.flags & service_flag::WITHHELD != 0,
        shared: service.flags & service_flag::SHARED != 0,
        target: TargetPort(target),
        list: (service.list != 0).then_some(ListId(service.list)),
        pick4: region_from_abi(service.pick4),
        pick6: region_from_abi(service.pick6),
        local4: region_from_abi(service.local4),
        local6: region_from_abi(service.local6),
        timeouts: Timeouts {
            tcp_syn: clock.duration(timeouts.tcp_syn),
            tcp_established: clock.duration(timeouts.tcp_established),
            tcp_fin: clock.duration(timeouts.tcp_fin),
            tcp_reset: clock.duration(timeouts.tcp_reset),
            udp_one_way: clock.duration(timeouts.udp_one_way),
            udp_both_ways: clock.duration(timeouts.udp_both_ways),
            drain: Duration::from_millis(service.drain_millis.into()),
        },
    })
}

/// A range of clients in a list.
pub(crate) fn range_to_abi(list: ListId, subnet: Subnet) -> abi::Range {
    let before = match subnet.address() {
        IpAddr::V4(_) => abi::Client::BITS_BEFORE_IPV4,
        IpAddr::V6(_) => abi::Client::BITS_BEFORE_IPV6,
    };
    let addr = wide(subnet.address()).words();
    let bits = before + u32::from(subnet.prefix_len());
    abi::Range { bits, from: abi::Client { list: list.0, addr } }
}

/// The inverse of [`range_to_abi`].
pub(crate) fn range_from_abi(range: &abi::Range) -> Option<(ListId, Subnet)> {
    let address = narrow(Ip6::from_words(range.from.addr));
    // All that begins as mapped IPv4 addresses do is IPv4; `::/0` does not.
    let before = match address {
        IpAddr::V4(_) => abi::Client::BITS_BEFORE_IPV4,
        IpAddr::V6(_) => abi::Client::BITS_BEFORE_IPV6,
    };
    let len = u8::try_from(range.bits.checked_sub(before)?).ok()?;
    Some((ListId(range.from.list), Subnet::new(address, len)?))
}

fn region_to_abi(region: Region) -> abi::Region {
    abi::Region { offset: region.offset, len: region.len }
}

fn region_from_abi(region: abi::Region) -> Region {
    Region { offset: region.offset, len: region.len }
}

/// The published port at a position of `PORTS`.
pub(crate) fn frontend_at(cell: u32) -> Option<weir_mesh::install::Frontend> {
    let protocol =
        if cell >> 16 == 0 { weir_mesh::Protocol::Tcp } else { weir_mesh::Protocol::Udp };
    let port = PublishedPort::new(cell as u16)?;
    Some(weir_mesh::install::Frontend { protocol, port })
}

/// The position of a published port in `PORTS`.
pub(crate) fn cell_of(frontend: weir_mesh::install::Frontend) -> u32 {
    let udp = matches!(frontend.protocol, weir_mesh::Protocol::Udp);
    abi::port_cell(udp, frontend.port.get().to_be_bytes())
}

/// A port at a routed virtual address.
pub(crate) fn routed_to_abi(at: RoutedPort) -> abi::RoutedKey {
    let udp = u16::from(at.protocol == weir_mesh::Protocol::Udp);
    abi::RoutedKey { addr: wide(at.address), port: at.port.get().to_be_bytes(), udp, pad: 0 }
}

/// The inverse of [`routed_to_abi`].
pub(crate) fn routed_from_abi(key: &abi::RoutedKey) -> Option<RoutedPort> {
    let protocol = match key.udp {
        0 => weir_mesh::Protocol::Tcp,
        _ => weir_mesh::Protocol::Udp,
    };
    let port = TargetPort::new(u16::from_be_bytes(key.port))?;
    Some(RoutedPort { address: narrow(key.addr), protocol, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_record_survives_the_way_to_the_kernel_and_back() {
        let record = ServiceRecord {
            ident: Ident(77),
            service: ServiceId(3),
            balance: Balance::Maglev,
            host_mode: true,
            withheld: true,
            shared: true,
            target: TargetPort::new(80).unwrap(),
            list: Some(ListId(9)),
            pick4: Region { offset: 5, len: 9 },
            pick6: Region { offset: 20, len: 1 },
            local4: Region::default(),
            local6: Region { offset: 21, len: 2 },
            timeouts: Timeouts::default(),
        };
        for hz in [100, 250, 300, 1000] {
            let clock = Clock { hz };
            assert_eq!(service_from_abi(&service_to_abi(&record, clock), clock), Some(record));
        }
    }

    #[test]
    fn a_backend_survives_the_way_to_the_kernel_and_back() {
        for via in [
            Via::Tunnel { node: NodeIndex(7) },
            Via::Peer { ifindex: 12, mac: [2, 0, 0, 0, 0, 9] },
            Via::Neighbour { ifindex: 4 },
            Via::Unreachable,
        ] {
            let record = BackendRecord {
                ident: Ident(u64::MAX),
                generation: BackendGeneration(65535),
                state: BackendState::Draining,
                service: ServiceId(1),
                via,
                tag: Tag(Tag::MAX),
                ipv4: Some(Ipv4Addr::new(172, 18, 0, 3)),
                ipv6: None,
            };
            assert_eq!(backend_from_abi(&backend_to_abi(&record)), Some(record));
        }
    }

    #[test]
    fn a_range_survives_the_way_to_the_kernel_and_back() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "::/0", "fd00::/8", "::1/128"] {
            let subnet = text.parse().unwrap();
            let range = range_to_abi(ListId(7), subnet);
            assert_eq!(range_from_abi(&range), Some((ListId(7), subnet)), "{text}");
        }
    }

    #[test]
    fn every_published_port_has_its_own_cell() {
        for cell in [1, 65535, (1 << 16) | 1, (1 << 16) | 65535] {
            assert_eq!(cell_of(frontend_at(cell).unwrap()), cell);
        }
        assert_eq!(frontend_at(0), None);
    }
}
