//! Interfaces, addresses and routes, by rtnetlink.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{
    BridgePortState, InfoBridgePort, InfoData, InfoPortData, InfoVeth, LinkAttribute, LinkInfo,
    LinkMessage,
};
use rtnetlink::packet_route::tc::{TcAttribute, TcMessage};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use crate::eventually;
use crate::netns::Netns;

/// How long the kernel may take over a link.
const SETTLE: Duration = Duration::from_secs(10);

/// An address with the length of its prefix.
pub type Prefix = (IpAddr, u8);

/// A veth pair: `name` in the namespace that creates it, `peer_name` in `peer`.
#[derive(Debug)]
pub struct Veth<'a> {
    /// The name here.
    pub name: &'a str,
    /// The namespace of the other end.
    pub peer: &'a Netns,
    /// The name there.
    pub peer_name: &'a str,
    /// The MTU of both ends.
    pub mtu: u32,
}

impl Netns {
    /// Creates a veth pair between this namespace and another, both ends down.
    pub fn add_veth(&self, veth: &Veth<'_>) -> Result<()> {
        let far = LinkMessageBuilder::<LinkUnspec>::new()
            .name(veth.peer_name)
            .mtu(veth.mtu)
            .setns_by_fd(veth.peer.raw_fd())
            .build();
        let near = LinkVeth::new(veth.name, veth.peer_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .mtu(veth.mtu)
            .build();
        self.netlink(|handle| async move { Ok(handle.link().add(near).execute().await?) })
            .with_context(|| format!("create veth {} - {}", veth.name, veth.peer_name))
    }

    /// Creates a bridge, up, with its addresses.
    pub fn add_bridge(&self, name: &str, mtu: u32, addresses: &[Prefix]) -> Result<()> {
        self.netlink(|handle| async move {
            handle.link().add(LinkBridge::new(name).build()).execute().await?;
            // A bridge follows the smallest MTU of its ports until one is set by hand.
            let set = LinkUnspec::new_with_name(name).mtu(mtu).up().build();
            handle.link().change(set).execute().await?;
            add_addresses(&handle, name, addresses).await
        })
        .with_context(|| format!("create bridge {name}"))
    }

    /// Sets an interface up, with addresses that are usable at once.
    pub fn set_up(&self, name: &str, addresses: &[Prefix]) -> Result<()> {
        self.netlink(|handle| async move {
            let up = LinkUnspec::new_with_name(name).up().build();
            handle.link().change(up).execute().await?;
            add_addresses(&handle, name, addresses).await
        })
        .with_context(|| format!("set up {name} with {addresses:?}"))
    }

    /// Sets an interface down, as an operator or a pulled cable would.
    pub fn set_down(&self, name: &str) -> Result<()> {
        let down = LinkUnspec::new_with_name(name).down().build();
        self.netlink(|handle| async move { Ok(handle.link().change(down).execute().await?) })
            .with_context(|| format!("set down {name}"))
    }

    /// Makes `name` a port of `bridge` and sets it up.
    pub fn add_port(&self, bridge: &str, name: &str) -> Result<()> {
        self.netlink(|handle| async move {
            let bridge = find(&handle, bridge).await?.header.index;
            let port = LinkUnspec::new_with_name(name).controller(bridge).up().build();
            Ok(handle.link().set_port(port).execute().await?)
        })
        .with_context(|| format!("add {name} to bridge {bridge}"))
    }

    /// Waits until a port of a bridge forwards, after its other end was set up. The kernel sees to that
    /// some time later (linkwatch_event); until then the bridge drops what comes and goes.
    pub fn wait_forwarding(&self, port: &str) -> Result<()> {
        eventually(&format!("port {port} to forward"), SETTLE, || {
            let link = self.netlink(|handle| async move { find(&handle, port).await })?;
            let forwarding = InfoBridgePort::State(BridgePortState::Forwarding);
            let state = link.attributes.iter().any(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => infos.iter().any(|info| match info {
                    LinkInfo::PortData(InfoPortData::BridgePort(of)) => of.contains(&forwarding),
                    _ => false,
                }),
                _ => false,
            });
            ensure!(state, "{link:?}");
            Ok(())
        })
    }

    /// Removes an interface, and the other end of a veth with it.
    pub fn delete_link(&self, name: &str) -> Result<()> {
        self.netlink(|handle| async move {
            let index = find(&handle, name).await?.header.index;
            Ok(handle.link().del(index).execute().await?)
        })
        .with_context(|| format!("delete {name}"))
    }

    /// Adds a route; a prefix of length 0 is the default route.
    pub fn add_route(&self, (network, length): Prefix, gateway: IpAddr) -> Result<()> {
        self.netlink(|handle| async move {
            let route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(network, length)?
                .gateway(gateway)?
                .build();
            Ok(handle.route().add(route).execute().await?)
        })
        .with_context(|| format!("route to {network}/{length} via {gateway}"))
    }

    /// The names of interfaces with a clsact qdisc: what weir's filters are in on old kernels.
    pub fn clsact(&self) -> Result<Vec<String>> {
        let links = self.links()?;
        let qdiscs: Vec<TcMessage> = self
            .netlink(
                |handle| async move { Ok(handle.qdisc().get().execute().try_collect().await?) },
            )
            .context("list qdiscs")?;
        let clsact = TcAttribute::Kind("clsact".to_owned());
        let on = |index: u32| {
            qdiscs.iter().any(|qdisc| {
                u32::try_from(qdisc.header.index) == Ok(index) && qdisc.attributes.contains(&clsact)
            })
        };
        Ok(links.into_iter().filter(|(_, index)| on(*index)).map(|(name, _)| name).collect())
    }

    /// The names and indices of all interfaces.
    pub fn links(&self) -> Result<Vec<(String, u32)>> {
        self.netlink(|handle| async move {
            let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
            Ok(links.iter().filter_map(|link| Some((name(link)?, link.header.index))).collect())
        })
        .context("list interfaces")
    }
}

async fn add_addresses(handle: &Handle, link: &str, addresses: &[Prefix]) -> Result<()> {
    let index = find(handle, link).await?.header.index;
    for (address, length) in addresses {
        let mut request = handle.address().add(index, *address, *length);
        if address.is_ipv6() {
            // Without this the address is tentative for a second and cannot be bound.
            let nodad = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(nodad);
        }
        request.execute().await?;
    }
    Ok(())
}

async fn find(handle: &Handle, name: &str) -> Result<LinkMessage> {
    let mut links = handle.link().get().match_name(name).execute();
    links.try_next().await?.with_context(|| format!("no interface {name}"))
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}
