//! The kernel data plane of one node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use weir_abi::{Config, Ip4, Ip6, LAYOUT, TUNNEL_MAC};
use weir_mesh::{Installed, MapOp, install::Via, plan::Limits, trace};

use crate::{
    Attachments, Options,
    error::{Error, Tried as _},
    hooks::{Hooks, Side},
    kernel,
    maps::Maps,
    net::{self, Host, Link, Netlink},
    object,
    records::{narrow, wide},
    store::Store,
    sys,
};

/// Towards local sockets these stand for "through the tunnel": link-local and unique-local
/// addresses that nobody else uses, routed to the tunnel device on every node.
pub(crate) const RELAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 119, 1);
/// See [`RELAY4`].
pub(crate) const RELAY6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x6569, 0x7200, 0, 0, 0, 0, 1);

/// Tasks whose link-layer addresses are asked for at once. The kernel's neighbour table is one for
/// all namespaces and refuses all when it is full (`net.ipv4.neigh.default.gc_thresh3`, 1024): a
/// thousand tasks that do not answer must not keep the host from finding its gateway. Until its
/// turn comes, a task is reached by the kernel's own neighbour resolution.
const MOST_ASKED: usize = 64;

/// Headers that the tunnel adds: outer IP, UDP, VXLAN, inner Ethernet.
pub(crate) const OVERHEAD4: u32 = 20 + 8 + 8 + 14;
pub(crate) const OVERHEAD6: u32 = 40 + 8 + 8 + 14;

/// The kernel data plane of one node: programs, maps, tunnel device. Dropping it leaves everything
/// in the kernel as it is: forwarding goes on.
pub struct Dataplane {
    pub(crate) options: Options,
    pub(crate) store: Store,
    pub(crate) hooks: Hooks,
    netlink: Netlink,
    missing: BTreeSet<String>,
    /// The last task whose link-layer address was asked for.
    asked: Option<IpAddr>,
}

impl Dataplane {
    /// Loads the programs, or takes over what an earlier agent pinned, makes the tunnel device and
    /// attaches.
    ///
    /// # Errors
    /// Names what was tried and the way out. Whatever forwarded before goes on forwarding.
    pub fn open(options: &Options) -> Result<Self, Error> {
        prepare_pins(options)?;
        let mut object = object::load(options)?;
        object::verify(&mut object, |_| true)?;
        let maps = Maps::open(&mut object)?;
        let clock = kernel::clock(&object)?;
        let csum_ipv6_flag = kernel::csum_ipv6_flag(&object)?;
        let netlink = Netlink::new()?;
        let hooks = Hooks::new(object, options.links_dir(), options.attach);
        let mut plane = Self {
            options: options.clone(),
            store: Store::new(maps, clock)?,
            hooks,
            netlink,
            missing: BTreeSet::new(),
            asked: None,
        };
        let host = plane.netlink.host()?;
        let tunnel = plane.ensure_tunnel(&host)?;
        plane.write_config(&host, &tunnel, csum_ipv6_flag)?;
        plane.hooks.interface("tun_in", &tunnel, Side::Ingress)?;
        plane.hooks.interface("tun_out", &tunnel, Side::Egress)?;
        plane.hooks.cgroup(&options.cgroup)?;
        Ok(plane)
    }

    /// Sizes of the kernel's arrays.
    pub fn limits(&self) -> Limits {
        self.store.limits()
    }

    /// What the maps hold now, read from the kernel.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn installed(&self) -> Result<Installed, Error> {
        self.store.installed()
    }

    /// Applies one operation. An error leaves the maps as they were before it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        self.store.apply(op)
    }

    /// What is attached where.
    pub fn attachments(&self) -> Attachments {
        Attachments { missing: self.missing.clone(), ..self.hooks.attachments() }
    }

    /// What the programs know of this host's addresses.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn trace_host(&self) -> Result<trace::Host, Error> {
        let config = self.store.maps.config.get(0)?;
        let own = self.store.maps.local.keys();
        let own = own.tried(|| "list the node's addresses in the kernel".to_owned())?;
        Ok(trace::Host {
            own: own.into_iter().map(narrow).collect(),
            source4: (config.source4 != Ip4::NONE).then(|| config.source4.octets().into()),
            source6: (config.source6 != Ip6::NONE).then(|| config.source6.octets().into()),
        })
    }

    /// Where packets of this client enter, by the interfaces and addresses of this host.
    ///
    /// # Errors
    /// When the host's interfaces cannot be read.
    pub fn entry_of(&self, client: IpAddr) -> Result<trace::Entry, Error> {
        let host = self.netlink.host()?;
        if client.is_loopback() || host.own_addresses().contains(&client) {
            return Ok(trace::Entry::Process);
        }
        let hooks = self.hooks.attachments().hooks;
        let inside = |link: &Link| {
            let is_uplink = self.options.uplinks.contains(&link.name);
            !is_uplink && hooks.contains_key(&format!("task_out@{}", link.name))
        };
        Ok(match host.toward(client).is_some_and(inside) {
            true => trace::Entry::Container,
            false => trace::Entry::Wire,
        })
    }

    fn ensure_tunnel(&self, host: &Host) -> Result<Link, Error> {
        let (name, port) = (&self.options.tunnel_device, self.options.tunnel_port);
        let mtu = self.tunnel_mtu(host);
        if let Some(link) = host.by_name(name) {
            if link.vxlan_port == Some(port) && link.mac == TUNNEL_MAC {
                let link = link.clone();
                if !link.up || link.mtu != mtu {
                    self.netlink.bring_up(link.index, mtu)?;
                }
                return Ok(link);
            }
            if link.vxlan_port.is_none() {
                return Err(Error::new(
                    format!("make the tunnel device {name}"),
                    "an interface of another kind has this name",
                )
                .remedy("set tunnel.device to a free name, or remove the interface"));
            }
            self.netlink.remove_link(link.index)?;
        }
        self.netlink.make_tunnel(name, port, TUNNEL_MAC)?;
        let host = self.netlink.host()?;
        let link = host.by_name(name).cloned().ok_or_else(|| {
            Error::new(format!("make the tunnel device {name}"), "it did not appear")
        })?;
        self.netlink.bring_up(link.index, mtu)?;
        // Reverse-path checks happen before our addresses' routes could satisfy the strictest of
        // them for packets that a program turns round.
        if let Err(error) = self.netlink.no_reverse_path_filter(link.index) {
            tracing::warn!(device = name, %error, "could not switch off reverse-path filtering");
        }
        Ok(link)
    }

    /// The smallest uplink's MTU less the tunnel's headers.
    fn tunnel_mtu(&self, host: &Host) -> u32 {
        let underlay = self
            .options
            .uplinks
            .iter()
            .filter_map(|name| host.by_name(name))
            .map(|link| link.mtu)
            .min()
            .unwrap_or(1500);
        let overhead = if self.options.address.is_ipv6() { OVERHEAD6 } else { OVERHEAD4 };
        // IPv6 works from 1280 on (RFC 8200 section 5).
        (underlay.saturating_sub(overhead)).max(1280)
    }

    fn write_config(&self, host: &Host, tunnel: &Link, csum_ipv6_flag: u32) -> Result<(), Error> {
        let mtu = self.tunnel_mtu(host);
        let source4 = self.source(host, IpAddr::is_ipv4);
        let source6 = self.source(host, IpAddr::is_ipv6);
        let octets4 = |addr: Option<IpAddr>| match addr {
            Some(IpAddr::V4(addr)) => Ip4::new(addr.octets()),
            _ => Ip4::NONE,
        };
        let octets6 = |addr: Option<IpAddr>| match addr {
            Some(IpAddr::V6(addr)) => Ip6::new(addr.octets()),
            _ => Ip6::NONE,
        };
        let config = Config {
            netns_cookie: sys::netns_cookie().tried(|| "read SO_NETNS_COOKIE".to_owned())?,
            tunnel_ifindex: tunnel.index,
            csum_ipv6_flag,
            mss4: (mtu - 40).min(u16::MAX.into()) as u16,
            mss6: (mtu - 60).min(u16::MAX.into()) as u16,
            hz: self.store.clock.hz,
            relay4: Ip4::new(RELAY4.octets()),
            source4: octets4(source4),
            relay6: Ip6::new(RELAY6.octets()),
            source6: octets6(source6),
        };
        if self.store.maps.config.get(0)? != config {
            self.store.maps.config.set(0, config)?;
        }
        if let Some(source) = source4 {
            self.netlink.route(RELAY4.into(), tunnel.index, source)?;
        }
        if let Some(source) = source6 {
            self.netlink.route(RELAY6.into(), tunnel.index, source)?;
        }
        Ok(())
    }

    /// The node's own address of a family, as a source: what the configuration says first, else
    /// what an uplink has.
    fn source(&self, host: &Host, family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let said = std::iter::once(&self.options.address).chain(&self.options.addresses);
        let own = host.own_addresses();
        let uplinks: BTreeSet<u32> = self
            .options
            .uplinks
            .iter()
            .filter_map(|name| host.by_name(name))
            .map(|link| link.index)
            .collect();
        said.copied().find(|addr| family(addr) && own.contains(addr)).or_else(|| {
            host.addresses
                .iter()
                .filter(|own| uplinks.contains(&own.ifindex))
                .map(|own| own.addr)
                .find(|addr| family(addr) && !is_link_local(*addr))
        })
    }

    /// Brings interfaces in line with the host: uplinks that came or went, bridges and veths that
    /// lead to `tasks`, the node's own addresses. Called again and again; does nothing when nothing
    /// changed. Answers how each of `tasks` is reached from here; tasks that nothing leads to are
    /// absent.
    ///
    /// # Errors
    /// When the host's interfaces cannot be read. What cannot be attached is in
    /// [`Dataplane::attachments`] instead.
    pub fn sync_interfaces(
        &mut self,
        tasks: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Via>, Error> {
        let mut host = self.netlink.host()?;
        let unknown: Vec<IpAddr> =
            tasks.iter().copied().filter(|task| wants_neighbour(&host, *task)).collect();
        if !unknown.is_empty() {
            let turn = in_turn(&unknown, self.asked, MOST_ASKED);
            self.asked = turn.last().copied();
            net::ask_for(&turn);
            host = self.netlink.host()?;
        }
        let tunnel = self.ensure_tunnel(&host)?;
        let csum_ipv6_flag = self.store.maps.config.get(0)?.csum_ipv6_flag;
        self.write_config(&host, &tunnel, csum_ipv6_flag)?;
        self.sync_addresses(&host)?;
        self.sync_bridges(&host)?;
        let mut wanted = BTreeSet::from([("tun_in", tunnel.index), ("tun_out", tunnel.index)]);
        self.try_attach("tun_in", &tunnel, Side::Ingress);
        self.try_attach("tun_out", &tunnel, Side::Egress);
        self.sync_uplinks(&host, &mut wanted);
        let reach = self.sync_tasks(&host, tasks, &mut wanted);
        self.hooks.sweep(&wanted);
        Ok(reach)
    }

    fn try_attach(&mut self, program: &'static str, link: &Link, side: Side) {
        // The reason is kept with the hooks, and shown by `attachments`.
        let _ = self.hooks.interface(program, link, side);
    }

    fn sync_uplinks(&mut self, host: &Host, wanted: &mut BTreeSet<(&'static str, u32)>) {
        self.missing.clear();
        for name in self.options.uplinks.clone() {
            match host.by_name(&name) {
                Some(link) => {
                    wanted.insert(("nic_in", link.index));
                    self.try_attach("nic_in", link, Side::Ingress);
                }
                None => {
                    self.missing.insert(name);
                }
            }
        }
    }

    fn sync_tasks(
        &mut self,
        host: &Host,
        tasks: &BTreeSet<IpAddr>,
        wanted: &mut BTreeSet<(&'static str, u32)>,
    ) -> BTreeMap<IpAddr, Via> {
        let mut reach = BTreeMap::new();
        let mut links: BTreeMap<u32, &Link> = BTreeMap::new();
        // Containers reach published ports over any bridge, whether or not a task is on it.
        for link in host.links.values() {
            if link.bridge || is_bridge_port(host, link) {
                links.insert(link.index, link);
            }
        }
        for task in tasks {
            let Some(toward) = host.toward(*task) else { continue };
            links.insert(toward.index, toward);
            let via = match peer(host, toward, *task) {
                Some((port, mac)) => Via::Peer { ifindex: port.index, mac },
                None => Via::Neighbour { ifindex: toward.index },
            };
            reach.insert(*task, via);
        }
        for link in links.values() {
            wanted.insert(("task_out", link.index));
            self.try_attach("task_out", link, Side::Ingress);
        }
        reach
    }

    /// Tells the programs which bridge each port belongs to.
    fn sync_bridges(&self, host: &Host) -> Result<(), Error> {
        let what = || "note which bridge a port belongs to".to_owned();
        let bridges = &self.store.maps.bridges;
        let wanted: BTreeMap<u32, u32> = host
            .links
            .values()
            .filter(|link| is_bridge_port(host, link))
            .map(|link| (link.index, link.controller))
            .collect();
        for port in bridges.keys().tried(what)? {
            if !wanted.contains_key(&port) {
                bridges.remove(&port).tried(what)?;
            }
        }
        for (port, bridge) in wanted {
            if bridges.get(&port).tried(what)? != Some(bridge) {
                bridges.set(&port, &bridge).tried(what)?;
            }
        }
        Ok(())
    }

    fn sync_addresses(&self, host: &Host) -> Result<(), Error> {
        let mut wanted = host.own_addresses();
        wanted.extend(&self.options.addresses);
        wanted.insert(self.options.address);
        let have: BTreeSet<IpAddr> = self
            .store
            .maps
            .local
            .keys()
            .tried(|| "list the node's addresses in the kernel".to_owned())?
            .into_iter()
            .map(narrow)
            .collect();
        for addr in wanted.difference(&have) {
            self.store
                .maps
                .local
                .set(&wide(*addr), &1)
                .tried(|| "add an address of the node".to_owned())?;
        }
        for addr in have.difference(&wanted) {
            self.store
                .maps
                .local
                .remove(&wide(*addr))
                .tried(|| "remove an address of the node".to_owned())?;
        }
        Ok(())
    }

    /// Removes what agents with another layout of the maps left. To be called when the maps hold a
    /// whole snapshot: until then the programs of the other layout forward what ours let pass.
    pub fn retire_other_layouts(&self) {
        let Ok(entries) = fs::read_dir(&self.options.pin) else { return };
        let ours = layout_dir();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('v') && name != ours {
                tracing::info!(layout = name, "Removing the maps and links of another layout");
                for error in crate::uninstall::remove_tree(&entry.path()).1 {
                    tracing::warn!(%error, "Could not remove an old pin");
                }
            }
        }
    }
}

impl Options {
    pub(crate) fn layout_dir(&self) -> PathBuf {
        self.pin.join(layout_dir())
    }

    pub(crate) fn maps_dir(&self) -> PathBuf {
        self.layout_dir().join("maps")
    }

    pub(crate) fn links_dir(&self) -> PathBuf {
        self.layout_dir().join("links")
    }
}

fn layout_dir() -> String {
    format!("v{LAYOUT}")
}

fn prepare_pins(options: &Options) -> Result<(), Error> {
    let what = || format!("pin under {}", options.pin.display());
    for dir in [options.maps_dir(), options.links_dir()] {
        fs::create_dir_all(&dir).tried(what).map_err(|error| {
            error.remedy("mount a BPF file system: `mount -t bpf bpf /sys/fs/bpf`, as root")
        })?;
    }
    if !sys::is_bpffs(&options.pin).tried(what)? {
        // What was just made is on an ordinary file system, and empty.
        for dir in [options.links_dir(), options.maps_dir(), options.layout_dir()] {
            let _ = fs::remove_dir(dir);
        }
        return Err(Error::new(what(), "this is not on a BPF file system")
            .remedy("mount one: `mount -t bpf bpf /sys/fs/bpf`, or set dataplane.pin"));
    }
    if !sys::is_cgroup2(&options.cgroup)
        .tried(|| format!("look at the cgroup {}", options.cgroup.display()))?
    {
        return Err(Error::new(
            format!("use the cgroup {}", options.cgroup.display()),
            "this is not on a cgroup2 file system",
        )
        .remedy("set dataplane.cgroup to the mount point of cgroup2 (see /proc/self/mounts)"));
    }
    Ok(())
}

/// The next `most` of `all`, which is sorted, after the one that was last; then from the start.
fn in_turn(all: &[IpAddr], last: Option<IpAddr>, most: usize) -> Vec<IpAddr> {
    let start = last.map_or(0, |last| all.partition_point(|address| *address <= last));
    let (before, after) = all.split_at(start);
    after.iter().chain(before).copied().take(most).collect()
}

/// A bridge leads to the task, but which of its ports is not known yet.
fn wants_neighbour(host: &Host, task: IpAddr) -> bool {
    host.toward(task).is_some_and(|toward| toward.bridge && peer(host, toward, task).is_none())
}

/// The veth behind which the task lives, if it is one whose other end is in another namespace.
fn peer<'a>(host: &'a Host, bridge: &Link, task: IpAddr) -> Option<(&'a Link, [u8; 6])> {
    let mac = *host.neighbours.get(&(bridge.index, task))?;
    let port = host.links.get(host.ports.get(&mac)?)?;
    (bridge.bridge && port.veth && port.peer_elsewhere).then_some((port, mac))
}

fn is_bridge_port(host: &Host, link: &Link) -> bool {
    link.veth && host.links.get(&link.controller).is_some_and(|controller| controller.bridge)
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_turn_and_never_more_than_so_many_at_once() {
        let all: Vec<IpAddr> = (1..=5).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let mut last = None;
        let mut seen = Vec::new();
        for _ in 0..5 {
            let turn = in_turn(&all, last, 2);
            assert_eq!(turn.len(), 2);
            last = turn.last().copied();
            seen.extend(turn);
        }
        assert_eq!(seen, [&all[..], &all[..]].concat());
        assert_eq!(in_turn(&all[..1], last, 2), all[..1], "those that are gone are passed over");
    }
}
