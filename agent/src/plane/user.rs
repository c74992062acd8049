//! The userspace proxy as a data plane that a reconciler drives.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::{BorrowedFd, OwnedFd},
    thread::available_parallelism,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};
use weir_loader::{
    Answers, Attachments, Counters, Dataplane, Error, FlowCensus, Options, SocketLookup, Stats,
};
use weir_mesh::{
    Ident, Installed, Limits, MapOp, MeshSnapshot, Network, PublishedPort,
    install::{BackendIndex, Frontend, Via},
    vip::{InstalledVips, SpaceCookie, VipKey, VipLimits, VipOp},
};
use weir_proxy::{Counted, Dispatch, Proxy, Settings};

use super::Chosen;
use crate::{
    config::Config,
    reconciler::Kernel,
    upgrade::{Heritage, Role},
};

/// The proxy, with what the reconciler wants to know besides.
pub struct UserPlane {
    proxy: Proxy,
    chosen: Chosen,
    /// What an earlier agent may have left in the kernel; `None` if the kernel plane is at work.
    before: Option<Options>,
    vips: InstalledVips,
}

/// The kernel's own dispatch of published ports to one listener.
#[derive(Default)]
struct Lookup(Option<SocketLookup>);

/// Files that the agent needs for everything but flows.
const OWN_FILES: u64 = 1000;

impl UserPlane {
    /// In place of the kernel plane, which is taken away once the proxy serves.
    pub(super) fn instead(
        config: &Config,
        chosen: Chosen,
        heritage: &Heritage,
    ) -> Result<Self, Error> {
        let before = Some(config.dataplane_options());
        Ok(Self { before, ..Self::start(config, chosen, heritage, Role::Alone)? })
    }

    /// Beside the kernel plane.
    pub(super) fn beside(
        config: &Config,
        chosen: Chosen,
        heritage: &Heritage,
    ) -> Result<Self, Error> {
        Self::start(config, chosen, heritage, Role::Beside)
    }

    fn start(
        config: &Config,
        chosen: Chosen,
        heritage: &Heritage,
        role: Role,
    ) -> Result<Self, Error> {
        let settings = settings(config);
        let dispatch = config.proxy.sk_lookup.then(Lookup::boxed);
        let proxy = match heritage.take(role)? {
            Some(handover) => Proxy::take_over(settings, handover, dispatch),
            None => Proxy::start(settings, dispatch),
        };
        let proxy = proxy.map_err(|error| Error {
            what: "start the userspace proxy".to_owned(),
            cause: error.to_string(),
            remedy: "set node.address to an address of this host, or proxy.relay_port, on every \
                     node alike"
                .to_owned(),
        })?;
        Ok(Self { proxy, chosen, before: None, vips: InstalledVips::default() })
    }
}

fn settings(config: &Config) -> Settings {
    let proxy = &config.proxy;
    let files = raise_file_limit();
    let connections = usize::try_from(files.saturating_sub(OWN_FILES) / 2).unwrap_or(usize::MAX);
    Settings {
        address: config.node.address,
        relay_port: proxy.relay_port,
        workers: proxy.workers.unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
        connect_timeout: proxy.connect_timeout,
        keepalive: proxy.keepalive,
        user_timeout: proxy.user_timeout,
        connections: proxy.connections.unwrap_or(connections.max(1)),
        udp_sessions: proxy.udp_sessions,
    }
}

/// As many files as the host lets this process have.
fn raise_file_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

impl Lookup {
    fn boxed() -> Box<dyn Dispatch> {
        Box::new(Self::default())
    }

    fn get(&self) -> io::Result<&SocketLookup> {
        self.0.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Dispatch for Lookup {
    fn begin(
        &mut self,
        listener: BorrowedFd<'_>,
        before: Option<Vec<OwnedFd>>,
    ) -> Result<(), String> {
        let before = before.and_then(|files| files.try_into().ok());
        let lookup = match before {
            Some(files) => SocketLookup::from_files(files, listener),
            None => SocketLookup::attach(listener),
        };
        self.0 = Some(lookup.map_err(|error| error.to_string())?);
        Ok(())
    }

    fn lead(&self, port: PublishedPort) -> io::Result<()> {
        self.get()?.lead(port.get())
    }

    fn leave(&self, port: PublishedPort) -> io::Result<()> {
        self.get()?.leave(port.get())
    }

    fn into_files(self: Box<Self>) -> Vec<OwnedFd> {
        self.0.map(SocketLookup::into_files).into_iter().flatten().collect()
    }
}

impl Kernel for UserPlane {
    fn chosen(&self) -> Chosen {
        self.chosen.clone()
    }

    fn follow(&mut self, snapshot: &MeshSnapshot) {
        self.proxy.follow(snapshot);
    }

    fn unserved(&self) -> BTreeMap<Frontend, String> {
        self.proxy.unserved().clone()
    }

    fn wishes_not_met(&self, snapshot: &MeshSnapshot) -> Vec<String> {
        let opaque: BTreeSet<Ident> = self.proxy.opaque().collect();
        let named =
            snapshot.services.keys().filter(|name| opaque.contains(&Ident::of_service(name)));
        let explain = |name| {
            format!(
                "{name}: transparent: this process may not talk from addresses of clients, and tasks \
                 see this node; give it CAP_NET_ADMIN, or use proxy_protocol"
            )
        };
        let routed = snapshot.networks.values().filter(|network| network.routed);
        let lead_elsewhere = |network: &Network| {
            format!(
                "network {}: routed = true: the proxy of this node does not serve packets for virtual \
                 addresses; lead them to nodes whose kernel does",
                network.name
            )
        };
        named.map(explain).chain(routed.map(lead_elsewhere)).collect()
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn installed(&self) -> Result<Installed, Error> {
        Ok(self.proxy.installed().clone())
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        self.proxy.apply(op);
        Ok(())
    }

    /// Virtual addresses need programs in the kernel: there are none to plan for.
    fn vip_limits(&self) -> VipLimits {
        VipLimits { vips: 1, cells: 1, spaces: 1, networks: 1 }
    }

    fn installed_vips(&self) -> Result<InstalledVips, Error> {
        Ok(self.vips.clone())
    }

    fn vip_connections(&self) -> Result<BTreeMap<VipKey, u64>, Error> {
        Ok(BTreeMap::new())
    }

    fn serves_vips(&self) -> bool {
        false
    }

    fn apply_vip(&mut self, _: &VipOp) -> Result<(), Error> {
        Ok(())
    }

    fn own_space(&self) -> Result<SpaceCookie, Error> {
        Ok(SpaceCookie(1))
    }

    /// The host's routes lead to its tasks; whether they do shows when one is connected to.
    fn sync_interfaces(
        &mut self,
        tasks: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Via>, Error> {
        self.proxy.look_after_listeners();
        Ok(tasks.iter().map(|task| (*task, Via::Neighbour { ifindex: 0 })).collect())
    }

    /// All ports are listened on: what an earlier agent left in the kernel may go, and would take
    /// packets before the sockets see them.
    fn settled(&mut self) {
        self.proxy.settled();
        let Some(before) = self.before.take().filter(|before| before.pin.exists()) else { return };
        let (removed, errors) = Dataplane::uninstall(&before);
        if !removed.is_empty() {
            info!(removed = removed.join(", "), "what was in the kernel is removed");
        }
        for error in errors {
            warn!(%error, "something is left in the kernel, and may take packets");
        }
    }

    fn attachments(&self) -> Attachments {
        let hooks = self.proxy.has_door().then(|| ("sk_lookup".to_owned(), "link"));
        Attachments { hooks: hooks.into_iter().collect(), ..Attachments::default() }
    }

    fn stats(&self) -> Result<Stats, Error> {
        let installed = self.proxy.installed();
        let backend = |index: &BackendIndex| {
            let counts = self.proxy.backend(*index);
            let answers = Answers { accepted: counts.accepted, refused: counts.refused };
            (*index, Counters { answers, ..counters(counts.counted) })
        };
        let usage = self.proxy.usage();
        let drops = self.proxy.reasons().map(|(reason, count)| (reason.label(), count));
        Ok(Stats {
            frontends: self
                .proxy
                .ports()
                .into_iter()
                .map(|(port, it)| (port, counters(it)))
                .collect(),
            backends: installed.backends.keys().map(backend).collect(),
            drops: drops.collect(),
            maps: [("connections", (usage.connections, usage.connection_limit))].into(),
        })
    }

    fn answers(
        &self,
        backends: &mut dyn Iterator<Item = BackendIndex>,
    ) -> Result<Vec<(BackendIndex, Answers)>, Error> {
        let read = |index| {
            let counts = self.proxy.backend(index);
            (index, Answers { accepted: counts.accepted, refused: counts.refused })
        };
        Ok(backends.map(read).collect())
    }

    fn leave(self) -> Option<Proxy> {
        Some(self.proxy)
    }

    fn collect_flows(&mut self) -> Result<FlowCensus, Error> {
        let indices = self.proxy.installed().backends.keys();
        let active: BTreeMap<BackendIndex, u64> =
            indices.map(|index| (*index, self.proxy.backend(*index).active)).collect();
        let forward = active.values().sum();
        let carried = active.iter().filter(|(_, flows)| **flows > 0);
        let carried = carried.map(|(index, _)| *index).collect();
        Ok(FlowCensus { active, carried, forward, ..FlowCensus::default() })
    }
}

fn counters(counted: Counted) -> Counters {
    let Counted { connections, rx_packets, rx_bytes, tx_packets, tx_bytes } = counted;
    let answers = Answers::default();
    Counters { connections, rx_packets, rx_bytes, tx_packets, tx_bytes, answers }
}
