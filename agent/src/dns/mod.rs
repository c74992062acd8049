//! The DNS server of this node, fed by snapshots and by what a source sees of containers.

pub mod metrics;
pub mod places;
pub mod view;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::histogram::Histogram;
use tokio::{fs, sync::watch, task::spawn_blocking, time::interval};
use tracing::{debug, info, warn};
use weir_dns::{
    Directory, Forwarder, Handler, Identity, Outside, Routes, Zone, ZoneSettings,
    forward::{PORT, servers_in},
    server::Server,
};
use weir_mesh::{MeshSnapshot, NodeName, Space};

use self::places::Places;
use crate::{
    config::{Config, DnsConfig},
    reconciler::{Intercept, intercept::Networks, thread::Handle},
    snapshots::View,
    source::docker::DockerState,
};

/// The server, and what it answers from.
pub struct Dns {
    /// How it is configured.
    pub config: DnsConfig,
    /// What it answers from.
    pub handler: Arc<Handler>,
    /// Its sockets.
    pub server: Server,
    node: NodeName,
    settings: ZoneSettings,
    outside: Outside,
    places: Mutex<Places>,
}

/// What the server follows.
pub struct Inputs {
    /// The mesh.
    pub view: watch::Receiver<View>,
    /// What dockerd says of this node's containers, where there is one.
    pub docker: Option<watch::Receiver<DockerState>>,
    /// From a change being noticed to its being answered.
    pub programming: Histogram,
    /// Leads containers here that ask Docker's resolver.
    pub reconciler: Handle,
}

/// What a source sees of this node's containers, once it has said so.
type Spaces = Option<Arc<Vec<Space>>>;

/// Interfaces are looked at this often.
const LOOK: Duration = Duration::from_secs(1);

/// Starts the server, if it is to listen anywhere.
pub fn start(config: &Config, inputs: Inputs) -> io::Result<Option<Arc<Dns>>> {
    if config.dns.listen.is_empty() {
        return Ok(None);
    }
    let dns = Arc::new(Dns::new(config)?);
    tokio::spawn(dns.clone().stay_in_place(inputs.reconciler.clone()));
    tokio::spawn(dns.clone().follow(inputs));
    tokio::spawn(dns.clone().know_servers());
    Ok(Some(dns))
}

impl Dns {
    fn new(config: &Config) -> io::Result<Self> {
        let node = config.node.name.clone();
        let settings = ZoneSettings {
            domain: config.dns.domain.clone(),
            ttl: config.dns.ttl,
            node: node.clone(),
            addresses: config.node.addresses.clone(),
        };
        let outside = Outside {
            own: config.node.addresses.clone(),
            allow: config.dns.allow.clone(),
            networks: config.dns.networks.clone(),
        };
        let identity = Identity {
            node: node.as_str().to_owned(),
            version: concat!("weir ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let directory = Directory::unready(settings.clone(), &outside);
        let forwarder = Arc::new(Forwarder::new(config.dns.forward));
        let handler = Arc::new(Handler::new(directory, forwarder, identity));
        let server = Server::start(handler.clone(), config.dns.server)?;
        let places = Mutex::default();
        Ok(Self { config: config.dns.clone(), handler, server, node, settings, outside, places })
    }

    /// Where it should be listening, and what is not there.
    pub fn places(&self) -> Places {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers from every new snapshot, as soon as the kernel is told of it.
    async fn follow(self: Arc<Self>, mut inputs: Inputs) {
        let mut zone: Option<Arc<Zone>> = None;
        let mut last: Option<(Arc<MeshSnapshot>, Spaces)> = None;
        loop {
            let View { snapshot, noticed, .. } = inputs.view.borrow_and_update().clone();
            let docker = inputs.docker.as_mut().map(watch::Receiver::borrow_and_update);
            let spaces = docker.and_then(|state| state.spaces.clone());
            if let Some(snapshot) = snapshot {
                let same = last.as_ref().is_some_and(|(old, _)| Arc::ptr_eq(old, &snapshot));
                if !same || last.as_ref().is_none_or(|(_, old)| *old != spaces) {
                    let old = zone.take().filter(|_| same);
                    zone = self.clone().publish(snapshot.clone(), spaces.clone(), old).await;
                    // The time to the first is that of the start.
                    if !same && last.is_some() {
                        inputs.programming.observe(noticed.elapsed().as_secs_f64());
                    }
                    last = Some((snapshot, spaces));
                }
            }
            let contained = async {
                match &mut inputs.docker {
                    Some(docker) => docker.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                changed = inputs.view.changed() => changed.is_ok(),
                changed = contained => changed,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Builds what a snapshot says, away from whoever answers, and swaps it in.
    async fn publish(
        self: Arc<Self>,
        snapshot: Arc<MeshSnapshot>,
        spaces: Spaces,
        zone: Option<Arc<Zone>>,
    ) -> Option<Arc<Zone>> {
        let built = spawn_blocking(move || {
            let zone =
                zone.unwrap_or_else(|| Arc::new(Zone::build(&snapshot, self.settings.clone())));
            let spaces = spaces.as_deref().map_or(&[][..], Vec::as_slice);
            let directory =
                Directory::new(zone.clone(), &snapshot, &self.node, spaces, &self.outside);
            self.handler.directory.store(Arc::new(directory));
            debug!(generation = %zone.generation, names = zone.len(), "answering for a new snapshot");
            zone
        });
        built
            .await
            .inspect_err(|error| warn!(%error, "the names of a snapshot are not served"))
            .ok()
    }

    /// Listens where the configuration says, as addresses come and go.
    async fn stay_in_place(self: Arc<Self>, reconciler: Handle) {
        let mut due = interval(LOOK);
        let networks = self.config.intercept.clone();
        let mut led = Intercept { networks, ..Intercept::default() };
        loop {
            due.tick().await;
            let places = Places::look(&self.config.listen);
            self.server.listen(places.addresses.clone());
            *self.places.lock().unwrap_or_else(PoisonError::into_inner) = places;
            let leads = self.leads();
            if leads != led {
                info!(servers = ?leads.servers, "whoever asks Docker's resolver is led here");
                reconciler.intercept(leads.clone());
                led = leads;
            }
        }
    }

    /// Where containers are to be led that ask Docker's resolver: nowhere before there are answers.
    fn leads(&self) -> Intercept {
        let ready = self.handler.directory.load().zone.is_some();
        let networks = self.config.intercept.clone();
        let answers = |(address, failure): (SocketAddr, Option<String>)| match address {
            SocketAddr::V4(v4) if failure.is_none() && v4.port() == PORT => Some(*v4.ip()),
            _ => None,
        };
        let servers = self.server.bound().into_iter().filter_map(answers);
        // Loopback is another host's in every container.
        let servers = servers.filter(|server| ready && !server.is_loopback());
        let servers =
            if networks == Networks::default() { BTreeSet::new() } else { servers.collect() };
        Intercept { servers, networks }
    }

    /// Asks whom the configuration names, or whom the host asks.
    async fn know_servers(self: Arc<Self>) {
        let mut due = interval(LOOK);
        let mut known: Option<Routes> = None;
        loop {
            due.tick().await;
            let servers = match &self.config.upstreams {
                Some(servers) => servers.clone(),
                None => servers_of_host(&self.config.resolv_conf).await,
            };
            let own: Vec<SocketAddr> = self.places().addresses.into_iter().collect();
            let routes = Routes::new(&servers, &self.config.routes, &own);
            if known.as_ref().is_some_and(|known| known.is_same(&routes)) {
                continue;
            }
            let asked: Vec<_> = servers.iter().filter(|server| !own.contains(server)).collect();
            info!(servers = ?asked, "names of others are asked for here");
            known = Some(Routes::new(&servers, &self.config.routes, &own));
            self.handler.forwarder.set_routes(routes);
        }
    }
}

/// A file that is not there, or just being written, names nobody.
async fn servers_of_host(path: &Path) -> Vec<SocketAddr> {
    let text = fs::read_to_string(path).await;
    text.map(|text| servers_in(&text)).unwrap_or_default()
}
