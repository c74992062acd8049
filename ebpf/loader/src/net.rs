//! The host's interfaces, addresses and neighbours, by rtnetlink; nothing else in the workspace's
//! data plane speaks it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder,
    packet_core::{DefaultNla, NLA_F_NESTED},
    packet_route::{
        AddressFamily,
        address::AddressAttribute,
        link::{
            AfSpecInet, AfSpecUnspec, InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags,
            LinkInfo, LinkMessage,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState},
        route::RouteScope,
        tc::{TcAttribute, TcHandle},
    },
};
use tokio::runtime::Runtime;

use crate::error::{Error, Tried as _};

/// An interface.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) bridge: bool,
    pub(crate) veth: bool,
    /// UDP port, when it is a tunnel device like ours.
    pub(crate) vxlan_port: Option<u16>,
    /// Interface index of the bridge that it is a port of; 0: of none.
    pub(crate) controller: u32,
    /// Whether the other end is in another network namespace.
    pub(crate) peer_elsewhere: bool,
}

/// An address of the host, with its subnet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) ifindex: u32,
    pub(crate) addr: IpAddr,
    pub(crate) prefix: u8,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) links: BTreeMap<u32, Link>,
    pub(crate) addresses: Vec<Address>,
    /// Link-layer address by interface and address.
    pub(crate) neighbours: BTreeMap<(u32, IpAddr), [u8; 6]>,
    /// Bridge port by link-layer address.
    pub(crate) ports: BTreeMap<[u8; 6], u32>,
}

/// A connection to rtnetlink, in the network namespace of the thread that made it.
pub(crate) struct Netlink {
    /// `Some` until it is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Host {
    /// The interface with this name.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The interface whose subnet holds `addr`: the longest prefix wins.
    pub(crate) fn toward(&self, addr: IpAddr) -> Option<&Link> {
        let holder = self
            .addresses
            .iter()
            .filter(|own| within(own.addr, own.prefix, addr))
            .max_by_key(|own| own.prefix)?;
        self.links.get(&holder.ifindex)
    }

    /// The host's own addresses, without loopback's.
    pub(crate) fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(|own| own.addr).filter(|addr| !addr.is_loopback()).collect()
    }
}

fn within(own: IpAddr, prefix: u8, addr: IpAddr) -> bool {
    match (own, addr) {
        (IpAddr::V4(own), IpAddr::V4(addr)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            u32::from(own) & mask == u32::from(addr) & mask
        }
        (IpAddr::V6(own), IpAddr::V6(addr)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            u128::from(own) & mask == u128::from(addr) & mask
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

impl Netlink {
    pub(crate) fn new() -> Result<Self, Error> {
        let what = || "open a netlink socket".to_owned();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().tried(what)?;
        let (connection, handle, _) = {
            let _guard = runtime.enter();
            rtnetlink::new_connection().tried(what)?
        };
        runtime.spawn(connection);
        Ok(Self { runtime: Some(runtime), handle })
    }

    /// Waits for an exchange with the kernel. On a thread of its own, since the caller may be one
    /// that drives another runtime, where waiting is forbidden.
    fn wait<T: Send>(&self, exchange: impl Future<Output = T> + Send) -> Option<T> {
        let runtime = self.runtime.as_ref()?;
        std::thread::scope(|scope| scope.spawn(|| runtime.block_on(exchange)).join().ok())
    }

    fn request(
        &self,
        exchange: impl Future<Output = Result<(), rtnetlink::Error>> + Send,
    ) -> Result<(), rtnetlink::Error> {
        self.wait(exchange).unwrap_or(Err(rtnetlink::Error::RequestFailed))
    }

    /// Reads everything.
    pub(crate) fn host(&self) -> Result<Host, Error> {
        let read = self.wait(async {
            let mut host = Host::default();
            self.read_links(&mut host).await.tried(|| "list interfaces".to_owned())?;
            self.read_addresses(&mut host).await.tried(|| "list addresses".to_owned())?;
            self.read_neighbours(&mut host).await.tried(|| "list neighbours".to_owned())?;
            self.read_ports(&mut host).await.tried(|| "list bridge ports".to_owned())?;
            Ok(host)
        });
        read.unwrap_or_else(|| Err(Error::new("list interfaces", "the netlink thread has died")))
    }

    async fn read_links(&self, host: &mut Host) -> Result<(), rtnetlink::Error> {
        let mut links = self.handle.link().get().execute();
        while let Some(message) = links.try_next().await? {
            let link = link(&message);
            host.links.insert(link.index, link);
        }
        Ok(())
    }

    async fn read_addresses(&self, host: &mut Host) -> Result<(), rtnetlink::Error> {
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await? {
            // On a point-to-point link `Address` is the other end, and `Local` our own.
            let mut own = None;
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(addr) => own = Some(*addr),
                    AddressAttribute::Address(addr) => own = own.or(Some(*addr)),
                    _ => {}
                }
            }
            if let Some(addr) = own {
                let (ifindex, prefix) = (message.header.index, message.header.prefix_len);
                host.addresses.push(Address { ifindex, addr, prefix });
            }
        }
        Ok(())
    }

    async fn read_neighbours(&self, host: &mut Host) -> Result<(), rtnetlink::Error> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut neighbours =
                self.handle.neighbours().get().set_address_family(family).execute();
            while let Some(message) = neighbours.try_next().await? {
                let unusable = [
                    NeighbourState::Failed,
                    NeighbourState::Incomplete,
                    NeighbourState::None,
                    NeighbourState::Noarp,
                ];
                if unusable.contains(&message.header.state) {
                    continue;
                }
                let addr = message.attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => {
                        Some(IpAddr::V4(*addr))
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => {
                        Some(IpAddr::V6(*addr))
                    }
                    _ => None,
                });
                if let (Some(addr), Some(mac)) = (addr, mac_of(&message.attributes)) {
                    host.neighbours.insert((message.header.ifindex, addr), mac);
                }
            }
        }
        Ok(())
    }

    async fn read_ports(&self, host: &mut Host) -> Result<(), rtnetlink::Error> {
        let family = AddressFamily::Bridge;
        let mut entries = self.handle.neighbours().get().set_address_family(family).execute();
        while let Some(message) = entries.try_next().await? {
            // The port's own address is an entry too, a permanent one.
            if message.header.state == NeighbourState::Permanent {
                continue;
            }
            if let Some(mac) = mac_of(&message.attributes) {
                host.ports.insert(mac, message.header.ifindex);
            }
        }
        Ok(())
    }

    /// Makes a tunnel device: VXLAN, all parameters by packet, answering to no address resolution
    /// since every node's has the same link-layer address.
    pub(crate) fn make_tunnel(&self, name: &str, port: u16, mac: [u8; 6]) -> Result<(), Error> {
        let mut message = LinkVxlan::new(name, 0)
            .collect_metadata(true)
            .port(port)
            .learning(false)
            .udp_zero_csum6_tx(true)
            .udp_zero_csum6_rx(true)
            .address(mac.to_vec())
            .arp(false)
            .build();
        drop_vni(&mut message);
        self.request(self.handle.link().add(message).execute())
            .map_err(|error| explain_tunnel(name, port, &error))
    }

    /// Sets a device's MTU and brings it up.
    pub(crate) fn bring_up(&self, index: u32, mtu: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        self.request(self.handle.link().set(message).execute())
            .tried(|| format!("bring up the tunnel device with an MTU of {mtu}"))
    }

    /// Switches IPv4 reverse-path filtering of an interface off. Not by the file of it, which
    /// cannot be written in a container (`inet_set_link_af`, net/ipv4/devinet.c).
    pub(crate) fn no_reverse_path_filter(&self, index: u32) -> Result<(), Error> {
        // linux/if_link.h, linux/ip.h
        const IFLA_INET_CONF: u16 = 1;
        const IPV4_DEVCONF_RP_FILTER: u16 = 8;
        const OFF: u32 = 0;
        // One attribute in another, by hand: the crate leaves out values of 0.
        let mut value = Vec::new();
        value.extend(8_u16.to_ne_bytes());
        value.extend(IPV4_DEVCONF_RP_FILTER.to_ne_bytes());
        value.extend(OFF.to_ne_bytes());
        let setting = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, value));
        let settings = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![setting])]);
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(settings).build();
        self.request(self.handle.link().set(message).execute())
            .tried(|| format!("switch off reverse-path filtering of the interface {index}"))
    }

    pub(crate) fn remove_link(&self, index: u32) -> Result<(), Error> {
        self.request(self.handle.link().del(index).execute())
            .tried(|| format!("remove the interface with index {index}"))
    }

    /// Removes the clsact qdisc of an interface, unless somebody's filters are still on it. Answers
    /// whether there was one to remove.
    pub(crate) fn remove_empty_clsact(&self, index: u32) -> Result<bool, Error> {
        let what = || format!("remove the clsact qdisc of the interface with index {index}");
        let index = i32::try_from(index).tried(what)?;
        let gone = self.wait(async {
            let mut filters = 0;
            for ingress in [true, false] {
                let request = self.handle.traffic_filter(index).get();
                let request = if ingress { request.ingress() } else { request.egress() };
                let mut found = request.execute();
                // Without the qdisc there is nothing to list, which is an error here.
                while let Ok(Some(_)) = found.try_next().await {
                    filters += 1;
                }
            }
            if filters > 0 {
                return false;
            }
            let mut request = self.handle.qdisc().del(index);
            request.message_mut().header.parent = TcHandle::CLSACT;
            request.message_mut().attributes.push(TcAttribute::Kind("clsact".to_owned()));
            request.execute().await.is_ok()
        });
        Ok(gone.unwrap_or(false))
    }

    /// Routes one address to a device, with a source address.
    pub(crate) fn route(&self, to: IpAddr, index: u32, source: IpAddr) -> Result<(), Error> {
        let message = match (to, source) {
            (IpAddr::V4(to), IpAddr::V4(source)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, 32)
                .output_interface(index)
                .scope(RouteScope::Link)
                .pref_source(source)
                .build(),
            (IpAddr::V6(to), IpAddr::V6(source)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, 128)
                .output_interface(index)
                .pref_source(source)
                .build(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Ok(()),
        };
        self.request(self.handle.route().add(message).replace().execute())
            .tried(|| format!("route {to} to the tunnel device, source {source}"))
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        // Dropping a runtime waits for it, which is forbidden where `wait` would be, too.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Makes the kernel ask for the link-layer addresses of `tasks`, by a datagram to the discard port
/// (RFC 863), and waits a moment for the answers.
pub(crate) fn ask_for(tasks: &[IpAddr]) {
    const DISCARD: u16 = 9;
    for task in tasks {
        let any: SocketAddr = match task {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        // What fails here is seen when the neighbour is still missing.
        if let Ok(socket) = UdpSocket::bind(any) {
            let _ = socket.send_to(&[], (*task, DISCARD));
        }
    }
    std::thread::sleep(Duration::from_millis(5));
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = *index,
            LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Bridge) => link.bridge = true,
                        LinkInfo::Kind(InfoKind::Veth) => link.veth = true,
                        LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan_port = vxlan_port(data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn vxlan_port(data: &[InfoVxlan]) -> Option<u16> {
    let by_packet = data.iter().any(|info| matches!(info, InfoVxlan::CollectMetadata(true)));
    let port = data.iter().find_map(|info| match info {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    });
    port.filter(|_| by_packet)
}

/// A device whose parameters come by packet has no network identifier of its own.
fn drop_vni(message: &mut LinkMessage) {
    for attribute in &mut message.attributes {
        if let LinkAttribute::LinkInfo(infos) = attribute {
            for info in infos {
                if let LinkInfo::Data(InfoData::Vxlan(data)) = info {
                    data.retain(|info| !matches!(info, InfoVxlan::Id(_)));
                }
            }
        }
    }
}

fn explain_tunnel(name: &str, port: u16, error: &rtnetlink::Error) -> Error {
    let failed = Error::new(format!("make the tunnel device {name} on UDP port {port}"), error);
    match error {
        rtnetlink::Error::NetlinkError(message) => match message.raw_code() {
            code if code == -libc::EEXIST => failed.remedy(format!(
                "another device is called {name} or owns UDP port {port}: set tunnel.device and \
                 tunnel.port, or remove it with `ip link del`"
            )),
            code if code == -libc::EADDRINUSE => failed.remedy(format!(
                "something else listens on UDP port {port}: set tunnel.port, on every node alike"
            )),
            code if code == -libc::EOPNOTSUPP => {
                failed.remedy("the kernel has no VXLAN: load the module with `modprobe vxlan`")
            }
            code if code == -libc::EPERM => failed.remedy("run as root, or with CAP_NET_ADMIN"),
            _ => failed,
        },
        _ => failed,
    }
}

fn mac_of(attributes: &[NeighbourAttribute]) -> Option<[u8; 6]> {
    attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_with_the_longest_prefix_leads_to_an_address() {
        let mut host = Host::default();
        for (index, addr, prefix) in
            [(1, "172.18.0.1", 16), (2, "172.18.5.1", 24), (3, "0.0.0.1", 0)]
        {
            host.links.insert(index, Link { index, ..Link::default() });
            host.addresses.push(Address { ifindex: index, addr: addr.parse().unwrap(), prefix });
        }
        let toward = |addr: &str| host.toward(addr.parse().unwrap()).map(|link| link.index);
        assert_eq!(toward("172.18.5.9"), Some(2));
        assert_eq!(toward("172.18.6.9"), Some(1));
        assert_eq!(toward("10.0.0.1"), Some(3));
        assert_eq!(toward("fd18::3"), None);
    }
}
