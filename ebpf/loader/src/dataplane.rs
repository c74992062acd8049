//! The kernel data plane of one node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use weir_abi::{Config, LAYOUT, PortCell, TUNNEL_MAC, TagKey};
use weir_mesh::{
    Installed, MapOp,
    ident::Tag,
    install::{
        BackendGeneration, BackendIndex, Frontend, NodeIndex, Region, ServiceId, Slot, Via,
    },
    plan::Limits,
};

use crate::{
    Attachments, Options,
    error::{Error, Tried as _},
    hooks::{Hooks, Side},
    kernel,
    maps::Maps,
    net::{self, Host, Link, Netlink},
    object,
    records::{self, Clock, cell_of, frontend_at, wide},
    sys,
};

/// Towards local sockets these stand for "through the tunnel": link-local and unique-local
/// addresses that nobody else uses, routed to the tunnel device on every node.
pub(crate) const RELAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 119, 1);
/// See [`RELAY4`].
pub(crate) const RELAY6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x6569, 0x7200, 0, 0, 0, 0, 1);

/// Headers that the tunnel adds: outer IP, UDP, VXLAN, inner Ethernet.
const OVERHEAD4: u32 = 20 + 8 + 8 + 14;
const OVERHEAD6: u32 = 40 + 8 + 8 + 14;

/// The kernel data plane of one node: programs, maps, tunnel device. Dropping it leaves everything
/// in the kernel as it is: forwarding goes on.
pub struct Dataplane {
    pub(crate) options: Options,
    pub(crate) maps: Maps,
    pub(crate) clock: Clock,
    pub(crate) hooks: Hooks,
    netlink: Netlink,
    missing: BTreeSet<String>,
    /// Counter positions of published ports; the kernel's `PORTS` has them too.
    pub(crate) counters: BTreeMap<Frontend, u32>,
    free_counters: Vec<u32>,
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
        object::verify(&mut object)?;
        let maps = Maps::open(&mut object)?;
        let clock = kernel::clock(&object)?;
        let csum_ipv6_flag = kernel::csum_ipv6_flag(&object)?;
        let netlink = Netlink::new()?;
        let hooks = Hooks::new(object, options.links_dir(), options.attach);
        let mut plane = Self {
            options: options.clone(),
            maps,
            clock,
            hooks,
            netlink,
            missing: BTreeSet::new(),
            counters: BTreeMap::new(),
            free_counters: Vec::new(),
        };
        plane.restore_counters();
        let host = plane.netlink.host()?;
        let tunnel = plane.ensure_tunnel(&host)?;
        plane.write_config(&host, &tunnel, csum_ipv6_flag)?;
        plane.hooks.interface("tun_in", &tunnel, Side::Ingress)?;
        plane.hooks.interface("tun_out", &tunnel, Side::Egress)?;
        plane.hooks.cgroup(&options.cgroup)?;
        plane.remove_other_layouts();
        Ok(plane)
    }

    /// Sizes of the kernel's arrays.
    pub fn limits(&self) -> Limits {
        Limits {
            backends: self.maps.backends.len(),
            cells: self.maps.picks.len(),
            records: self.maps.records.len(),
            nodes: self.maps.nodes.len(),
            services: weir_abi::size::SERVICES,
        }
    }

    /// What is attached where.
    pub fn attachments(&self) -> Attachments {
        Attachments { missing: self.missing.clone(), ..self.hooks.attachments() }
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
        let filter = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        if let Err(error) = fs::write(&filter, "0") {
            tracing::warn!(file = filter, %error, "Could not switch off reverse-path filtering");
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
            Some(IpAddr::V4(addr)) => addr.octets(),
            _ => [0; 4],
        };
        let octets6 = |addr: Option<IpAddr>| match addr {
            Some(IpAddr::V6(addr)) => addr.octets(),
            _ => [0; 16],
        };
        let config = Config {
            netns_cookie: sys::netns_cookie().tried(|| "read SO_NETNS_COOKIE".to_owned())?,
            tunnel_ifindex: tunnel.index,
            csum_ipv6_flag,
            mss4: (mtu - 40).min(u16::MAX.into()) as u16,
            mss6: (mtu - 60).min(u16::MAX.into()) as u16,
            hz: self.clock.hz,
            relay4: RELAY4.octets(),
            source4: octets4(source4),
            relay6: RELAY6.octets(),
            source6: octets6(source6),
        };
        if self.maps.config.get(0) != config {
            self.maps.config.set(0, config);
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
            net::ask_for(&unknown);
            host = self.netlink.host()?;
        }
        let tunnel = self.ensure_tunnel(&host)?;
        self.write_config(&host, &tunnel, self.maps.config.get(0).csum_ipv6_flag)?;
        self.sync_addresses(&host)?;
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
        // Containers reach published ports over any bridge, whether or not a task is on it.
        for link in host.links.values().filter(|link| link.bridge) {
            wanted.insert(("bridge_in", link.index));
            self.try_attach("bridge_in", link, Side::Ingress);
        }
        for task in tasks {
            let Some(toward) = host.toward(*task) else { continue };
            if !toward.bridge {
                wanted.insert(("bridge_in", toward.index));
                self.try_attach("bridge_in", toward, Side::Ingress);
            }
            let peer = peer(host, toward, *task);
            if let Some((port, mac)) = peer {
                wanted.insert(("task_out", port.index));
                self.try_attach("task_out", port, Side::Ingress);
                reach.insert(*task, Via::Peer { ifindex: port.index, mac });
            } else {
                reach.insert(*task, Via::Neighbour { ifindex: toward.index });
            }
        }
        reach
    }

    fn sync_addresses(&self, host: &Host) -> Result<(), Error> {
        let mut wanted: BTreeSet<[u8; 16]> = host.own_addresses().into_iter().map(wide).collect();
        wanted.extend(self.options.addresses.iter().map(|addr| wide(*addr)));
        wanted.insert(wide(self.options.address));
        let have: BTreeSet<[u8; 16]> = self
            .maps
            .local
            .keys()
            .tried(|| "list the node's addresses in the kernel".to_owned())?
            .into_iter()
            .collect();
        for addr in wanted.difference(&have) {
            self.maps.local.set(addr, &1).tried(|| "add an address of the node".to_owned())?;
        }
        for addr in have.difference(&wanted) {
            self.maps.local.remove(addr).tried(|| "remove an address of the node".to_owned())?;
        }
        Ok(())
    }

    // --- what the maps hold ---

    /// What the maps hold now, read from the kernel.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn installed(&self) -> Result<Installed, Error> {
        let mut installed = Installed::default();
        for index in 1..self.maps.nodes.len() {
            if let Some(record) = records::node_from_abi(&self.maps.nodes.get(index)) {
                installed.nodes.insert(NodeIndex(index as u16), record);
            }
        }
        for index in 1..self.maps.backends.len() {
            let backend = self.maps.backends.get(index);
            if let Some(record) = records::backend_from_abi(&backend) {
                installed.backends.insert(BackendIndex(index), record);
            }
            if backend.generation != 0 {
                let generation = BackendGeneration(backend.generation);
                installed.generations.insert(BackendIndex(index), generation);
            }
        }
        for slot in 1..self.maps.records.len() {
            let service = self.maps.records.get(slot);
            if let Some(record) = records::service_from_abi(&service, self.clock) {
                for region in [record.pick4, record.pick6, record.local4, record.local6] {
                    self.read_region(region, &mut installed);
                }
                installed.records.insert(Slot(slot), record);
            }
        }
        for cell in 0..self.maps.ports.len() {
            let record = self.maps.ports.get(cell).record;
            if record != 0 && let Some(frontend) = frontend_at(cell) {
                installed.ports.insert(frontend, Slot(record));
            }
        }
        let what = || "list the tags in the kernel".to_owned();
        for key in self.maps.tags.keys().tried(what)? {
            if let Some(index) = self.maps.tags.get(&key).tried(what)? {
                let tag = (ServiceId(key.service), Tag(key.tag));
                installed.tags.insert(tag, BackendIndex(index));
            }
        }
        Ok(installed)
    }

    fn read_region(&self, region: Region, installed: &mut Installed) {
        if region.len == 0 {
            return;
        }
        installed.regions.entry(region.offset).or_insert_with(|| {
            (region.offset..region.offset + region.len)
                .map(|cell| BackendIndex(self.maps.picks.get(cell)))
                .collect()
        });
    }

    /// Applies one operation. An error leaves the maps as they were before it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        let maps = &self.maps;
        match op {
            MapOp::SetNode(index, record) => {
                let old = records::node_from_abi(&maps.nodes.get(index.0.into()));
                maps.nodes.set(index.0.into(), records::node_to_abi(record));
                let what = || format!("let node {} send", record.address);
                maps.senders.set(&wide(record.address), &index.0.into()).tried(what)?;
                if let Some(old) = old.filter(|old| old.address != record.address) {
                    self.forget_sender(old.address, *index)?;
                }
            }
            MapOp::RemoveNode(index) => {
                if let Some(old) = records::node_from_abi(&maps.nodes.get(index.0.into())) {
                    self.forget_sender(old.address, *index)?;
                }
                maps.nodes.set(index.0.into(), weir_abi::Node::default());
            }
            MapOp::SetBackend(index, record) => self.set_backend(*index, record)?,
            MapOp::RemoveBackend(index) => {
                let generation = maps.backends.get(index.0).generation;
                let empty = weir_abi::Backend { generation, ..weir_abi::Backend::default() };
                self.write_backend(*index, empty);
            }
            MapOp::WriteRegion { offset, cells } => {
                for (cell, backend) in (*offset..).zip(cells) {
                    maps.picks.set(cell, backend.0);
                }
            }
            MapOp::FreeRegion { .. } => {}
            MapOp::SetRecord(slot, record) => {
                maps.records.set(slot.0, records::service_to_abi(record, self.clock));
            }
            MapOp::RemoveRecord(slot) => maps.records.set(slot.0, weir_abi::Service::default()),
            MapOp::Publish(frontend, slot) => self.publish(*frontend, *slot)?,
            MapOp::Withdraw(frontend) => {
                maps.ports.publish(cell_of(*frontend), 0, 0);
                if let Some(counters) = self.counters.remove(frontend) {
                    self.free_counters.push(counters);
                }
            }
            MapOp::SetTag(service, tag, index) => {
                let key = TagKey { service: service.0, tag: tag.0 };
                let what = || format!("let tag {} mean backend {}", tag.0, index.0);
                maps.tags.set(&key, &index.0).tried(what)?;
            }
            MapOp::RemoveTag(service, tag) => {
                let key = TagKey { service: service.0, tag: tag.0 };
                maps.tags.remove(&key).tried(|| format!("forget tag {}", tag.0))?;
            }
        }
        Ok(())
    }

    fn forget_sender(&self, address: IpAddr, index: NodeIndex) -> Result<(), Error> {
        let what = || format!("forget node {address}");
        let key = wide(address);
        if self.maps.senders.get(&key).tried(what)? == Some(index.0.into()) {
            self.maps.senders.remove(&key).tried(what)?;
        }
        Ok(())
    }

    fn set_backend(
        &mut self,
        index: BackendIndex,
        record: &weir_mesh::install::BackendRecord,
    ) -> Result<(), Error> {
        let old = self.maps.backends.get(index.0);
        let new = records::backend_to_abi(record);
        if old.ident != new.ident || old.generation != new.generation {
            let what = || format!("clear the counters of backend {}", index.0);
            self.maps.backend_stats.clear(index.0).tried(what)?;
        }
        self.write_backend(index, new);
        Ok(())
    }

    /// The first word of a backend (generation, state, way, interface) decides whether the rest is
    /// read, so it is written last; while the rest changes under a live backend, flows see either
    /// address of the same task.
    fn write_backend(&self, index: BackendIndex, backend: weir_abi::Backend) {
        let old = self.maps.backends.get(index.0);
        let same_body = weir_abi::Backend {
            generation: old.generation,
            state: old.state,
            via: old.via,
            ifindex: old.ifindex,
            ..backend
        } == old;
        if !same_body {
            let closed = weir_abi::Backend {
                generation: old.generation,
                state: old.state,
                via: old.via,
                ifindex: old.ifindex,
                ..backend
            };
            self.maps.backends.set(index.0, closed);
        }
        let word = u64::from(backend.generation)
            | u64::from(backend.state) << 16
            | u64::from(backend.via) << 24
            | u64::from(backend.ifindex) << 32;
        self.maps.backends.publish(index.0, 0, u64::from_le(word));
    }

    fn publish(&mut self, frontend: Frontend, slot: Slot) -> Result<(), Error> {
        let counters = match self.counters.get(&frontend) {
            Some(counters) => *counters,
            None => {
                let what = || {
                    format!("publish {}/{}", frontend.port, frontend.protocol)
                };
                let counters = self.free_counters.pop().ok_or_else(|| {
                    Error::new(what(), "all counters of published ports are in use")
                })?;
                self.maps.frontend_stats.clear(counters).tried(what)?;
                self.counters.insert(frontend, counters);
                counters
            }
        };
        let word = u64::from(slot.0) | u64::from(counters) << 32;
        self.maps.ports.publish(cell_of(frontend), 0, u64::from_le(word));
        Ok(())
    }

    fn restore_counters(&mut self) {
        for cell in 0..self.maps.ports.len() {
            let PortCell { record, counters } = self.maps.ports.get(cell);
            if record != 0 && let Some(frontend) = frontend_at(cell) {
                self.counters.insert(frontend, counters);
            }
        }
        let used: BTreeSet<u32> = self.counters.values().copied().collect();
        self.free_counters =
            (0..weir_abi::size::FRONTENDS).rev().filter(|index| !used.contains(index)).collect();
    }

    /// Removes what agents with another layout of the maps left, now that ours forwards.
    fn remove_other_layouts(&self) {
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
    if !sys::is_cgroup2(&options.cgroup).tried(|| {
        format!("look at the cgroup {}", options.cgroup.display())
    })? {
        return Err(Error::new(
            format!("use the cgroup {}", options.cgroup.display()),
            "this is not on a cgroup2 file system",
        )
        .remedy("set dataplane.cgroup to the mount point of cgroup2 (see /proc/self/mounts)"));
    }
    Ok(())
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

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}
