//! The proxy as its owner sees it: operations in, counters out.

mod succession;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use quinn_udp::UdpSocketState;
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;
use tracing::info;
use weir_mesh::{
    Ident, Installed, MapOp, MeshSnapshot, Protocol,
    install::{BackendIndex, BackendRecord, Frontend, Slot},
    proxied::Proxied,
};

use crate::{
    address::plain,
    backend::Backend,
    counters::{Counted, Reason},
    door::{Dispatch, Door},
    handover::{HandoverError, Place, Word},
    listen,
    port::Port,
    relay,
    route::Route,
    service::Service,
    settings::Settings,
    shared::Shared,
    sys, tcp,
    udp::{self, Entrance, Inherited},
    worker::Worker,
};

use succession::Heirlooms;
pub use succession::Remains;

/// The userspace data plane. One owner applies operations; workers carry traffic.
pub struct Proxy {
    pub(crate) shared: Arc<Shared>,
    installed: Installed,
    backends: HashMap<BackendIndex, Arc<Backend>>,
    services: HashMap<Ident, Arc<Service>>,
    listeners: BTreeMap<Frontend, Listening>,
    door: Option<Door>,
    unserved: BTreeMap<Frontend, String>,
    relay: watch::Sender<Word>,
    heirlooms: Heirlooms,
    /// Dropped last: they end everything.
    workers: Vec<Worker>,
}

/// How a published port is listened on.
enum Listening {
    /// By sockets of its own.
    Apart(watch::Sender<Word>),
    /// By the sockets of the [`Door`].
    AtDoor,
}

/// A proxy that could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// No thread or no runtime.
    #[error("cannot start a worker: {0}")]
    Worker(#[source] io::Error),
    /// Other nodes could not hand anything over.
    #[error(
        "cannot listen on {address}/{protocol}, where other nodes hand over connections: {error}"
    )]
    Relay {
        /// Where.
        address: SocketAddr,
        /// Which protocol.
        protocol: Protocol,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// There is no going on with what another proxy has left.
    #[error(transparent)]
    Handover(#[from] HandoverError),
}

/// What is counted of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounts {
    /// Of flows that entered the mesh here.
    pub counted: Counted,
    /// Live flows that entered the mesh here.
    pub active: u64,
    /// Connections that it took, wherever they entered.
    pub accepted: u64,
    /// Connections that it refused, wherever they entered.
    pub refused: u64,
}

/// What is in use, of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// TCP connections.
    pub connections: u64,
    /// As many as there may be.
    pub connection_limit: u64,
    /// UDP sessions that entered here.
    pub sessions: u64,
}

impl Proxy {
    /// Starts workers, and listens for other nodes. With a `dispatch` one listener serves all TCP ports, if
    /// the kernel lets it.
    ///
    /// # Errors
    /// When a thread cannot be started, or the relay port is taken.
    pub fn start(
        settings: Settings,
        dispatch: Option<Box<dyn Dispatch>>,
    ) -> Result<Self, ProxyError> {
        let mut proxy = Self::begin(settings, Heirlooms::default())?;
        proxy.open_door(dispatch);
        proxy.relay = listen_for_nodes(&proxy.shared, &proxy.workers, None, None)?;
        Ok(proxy)
    }

    /// One that nobody reaches yet.
    fn begin(settings: Settings, heirlooms: Heirlooms) -> Result<Self, ProxyError> {
        let workers =
            (0..settings.workers.max(1)).map(Worker::start).collect::<Result<Vec<_>, _>>();
        let workers = workers.map_err(ProxyError::Worker)?;
        let batches = probe_batches().map_err(ProxyError::Worker)?;
        let transparent = probe_transparent();
        Ok(Self {
            shared: Arc::new(Shared::new(settings, batches, transparent)),
            installed: Installed::default(),
            backends: HashMap::new(),
            services: HashMap::new(),
            listeners: BTreeMap::new(),
            door: None,
            unserved: BTreeMap::new(),
            relay: watch::Sender::default(),
            heirlooms,
            workers,
        })
    }

    /// What it serves.
    pub fn installed(&self) -> &Installed {
        &self.installed
    }

    /// Takes what services ask for besides: for operations that follow, and for flows that begin from
    /// now on.
    pub fn follow(&mut self, snapshot: &MeshSnapshot) {
        let asking = snapshot.services.values().filter(|service| !service.proxied.is_default());
        let asked: HashMap<Ident, &Proxied> =
            asking.map(|it| (Ident::of_service(&it.name), &it.proxied)).collect();
        for ident in asked.keys() {
            self.services.entry(*ident).or_default();
        }
        for (ident, service) in &self.services {
            let wishes = asked.get(ident).copied().cloned().unwrap_or_default();
            if **service.wishes.load() != wishes {
                service.wishes.store(Arc::new(wishes));
            }
        }
        // Whatever is still needed is held by routes and flows.
        let known: HashSet<Ident> = snapshot.services.keys().map(Ident::of_service).collect();
        self.services
            .retain(|ident, service| known.contains(ident) || Arc::strong_count(service) > 1);
    }

    /// Applies one operation of a plan, in the plan's order. A port that cannot be listened on is no
    /// failure of the plan: see [`Self::unserved`].
    pub fn apply(&mut self, op: &MapOp) {
        self.installed.put(op);
        match op {
            MapOp::SetNode(index, record) => {
                self.shared.directory.write().nodes.insert(*index, record.address);
            }
            MapOp::RemoveNode(index) => {
                self.shared.directory.write().nodes.remove(index);
            }
            MapOp::SetBackend(index, record) => self.set_backend(*index, record),
            MapOp::RemoveBackend(index) => {
                if let Some(backend) = self.backends.remove(index) {
                    backend.end();
                }
            }
            MapOp::Publish(frontend, slot) => self.publish(*frontend, *slot),
            MapOp::Withdraw(frontend) => {
                self.shared.directory.write().ports.remove(frontend);
                self.close(*frontend);
            }
            MapOp::SetTag(service, tag, index) => {
                if let Some(backend) = self.backends.get(index) {
                    self.shared.directory.write().tags.insert((*service, *tag), backend.clone());
                }
            }
            MapOp::RemoveTag(service, tag) => {
                self.shared.directory.write().tags.remove(&(*service, *tag));
            }
            // Routes are made of these when a port is pointed at them.
            MapOp::WriteRegion { .. }
            | MapOp::FreeRegion { .. }
            | MapOp::WriteList(..)
            | MapOp::RemoveList(..)
            | MapOp::SetRecord(..)
            | MapOp::RemoveRecord(_) => {}
            // What is routed to this host and is none of its addresses reaches no socket.
            MapOp::SetRouted(..) | MapOp::RemoveRouted(_) => {}
        }
    }

    /// A first plan was applied as a whole: nodes and services are known, and what other nodes have handed
    /// over until now is read. It waits till then, since nobody would be known.
    pub fn settled(&self) {
        // Later plans settle nothing more.
        self.shared.settled.set(()).ok();
    }

    /// Tries again what could not be listened on, and closes what nobody needs any more.
    pub fn look_after_listeners(&mut self) {
        let ports: Vec<_> = self.shared.directory.write().ports.values().cloned().collect();
        for port in ports {
            self.listen_or_not(&port);
        }
    }

    /// Services that want tasks to see the client's address, where this process may not talk from it.
    pub fn opaque(&self) -> impl Iterator<Item = Ident> {
        let wished = self.services.iter().filter(|_| !self.shared.transparent);
        wished.filter(|(_, it)| it.wishes.load().transparent).map(|(ident, _)| *ident)
    }

    /// Published ports that should be listened on here and are not, and why.
    pub fn unserved(&self) -> &BTreeMap<Frontend, String> {
        &self.unserved
    }

    /// Whether one listener serves all TCP ports that have none of their own.
    pub fn has_door(&self) -> bool {
        self.door.is_some()
    }

    /// What is counted, by published port.
    pub fn ports(&self) -> BTreeMap<Frontend, Counted> {
        let directory = self.shared.directory.write();
        let ports = directory.ports.iter();
        ports.map(|(frontend, port)| (*frontend, port.traffic.read())).collect()
    }

    /// What is counted of a task.
    pub fn backend(&self, index: BackendIndex) -> BackendCounts {
        let Some(backend) = self.backends.get(&index) else { return BackendCounts::default() };
        BackendCounts {
            counted: backend.traffic.read(),
            active: backend.flows(),
            accepted: backend.accepted.load(Relaxed),
            refused: backend.refused.load(Relaxed),
        }
    }

    /// What was not forwarded, or not as it was first chosen.
    pub fn reasons(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.shared.tally.read()
    }

    /// What is in use.
    pub fn usage(&self) -> Usage {
        let directory = self.shared.directory.write();
        Usage {
            connections: self.shared.connections() as u64,
            connection_limit: self.shared.settings.connections as u64,
            sessions: directory.ports.values().map(|port| port.sessions.load(Relaxed)).sum(),
        }
    }

    fn set_backend(&mut self, index: BackendIndex, record: &BackendRecord) {
        // Entries of an earlier use are another task's.
        let known = self.backends.get(&index);
        match known.filter(|known| known.record().generation == record.generation) {
            Some(known) => known.update(record),
            None => {
                let fresh = Arc::new(Backend::new(record));
                if let Some(old) = self.backends.insert(index, fresh) {
                    old.end();
                }
            }
        }
    }

    fn publish(&mut self, frontend: Frontend, slot: Slot) {
        let Some(record) = self.installed.records.get(&slot) else { return };
        let service = self.services.entry(record.ident).or_default().clone();
        let route = Route::new(*record, &self.installed, &self.backends, service);
        let route = Arc::new(route);
        let known = self.shared.directory.port(frontend);
        let port = match known {
            Some(port) => {
                port.route.store(route);
                port
            }
            None => {
                let port = Arc::new(Port::new(frontend, route));
                self.shared.directory.write().ports.insert(frontend, port.clone());
                port
            }
        };
        self.listen_or_not(&port);
    }

    /// A port without a task is not listened on, so that clients are refused at once. UDP sessions
    /// that still drain need the socket for their answers.
    fn listen_or_not(&mut self, port: &Arc<Port>) {
        let route = port.route.load();
        let draining = port.sessions.load(Relaxed) > 0;
        let wanted = !route.record.withheld && route.has_tasks();
        if wanted && !self.listeners.contains_key(&port.frontend) {
            self.open(port);
        } else if !wanted && !draining {
            self.close(port.frontend);
        }
    }

    fn open(&mut self, port: &Arc<Port>) {
        let frontend = port.frontend;
        let opened = match frontend.protocol {
            Protocol::Tcp => self.open_tcp(port),
            Protocol::Udp => self.open_udp(port),
        };
        match opened {
            Ok(listening) => {
                self.listeners.insert(frontend, listening);
                self.unserved.remove(&frontend);
            }
            Err(error) => {
                self.unserved.insert(frontend, listen::explain(frontend, &error));
            }
        }
    }

    fn open_tcp(&mut self, port: &Arc<Port>) -> io::Result<Listening> {
        let place = Place::Port(port.frontend);
        let sockets = match (self.heirlooms.listeners(place), &self.door) {
            (Some(sockets), _) => sockets,
            (None, Some(door)) => {
                return door.lead(port.frontend).map(|()| Listening::AtDoor);
            }
            (None, None) => listen::tcp(port.frontend, self.workers.len(), &self.shared.settings)?,
        };
        let stop = watch::Sender::default();
        // The process before may have had more workers, or fewer.
        for (worker, socket) in self.workers.iter().cycle().zip(sockets) {
            let (port, shared) = (port.clone(), self.shared.clone());
            worker.spawn(tcp::accept(
                socket,
                place,
                shared.clone(),
                stop.subscribe(),
                move |stream, from| {
                    // A client that has gone meanwhile has none.
                    let Ok(asked) = stream.local_addr() else { return };
                    let from = (from, plain(asked));
                    tokio::spawn(tcp::serve(stream, from, port.clone(), shared.clone()));
                },
            ));
        }
        Ok(Listening::Apart(stop))
    }

    fn open_udp(&mut self, port: &Arc<Port>) -> io::Result<Listening> {
        let sockets = match self.heirlooms.sockets(Place::Port(port.frontend)) {
            Some(sockets) => self.inherit(sockets, Some(port)),
            None => fresh(listen::udp(port.frontend, self.workers.len())?),
        };
        let stop = watch::Sender::default();
        for (worker, (socket, sessions)) in self.workers.iter().cycle().zip(sockets) {
            let entrance = Entrance::Port(port.clone());
            let shared = self.shared.clone();
            worker.spawn(udp::run(socket, entrance, sessions, shared, stop.subscribe()));
        }
        Ok(Listening::Apart(stop))
    }

    fn close(&mut self, frontend: Frontend) {
        self.unserved.remove(&frontend);
        match (self.listeners.remove(&frontend), &self.door) {
            (Some(Listening::Apart(stop)), _) => drop(stop.send_replace(Word::Stop)),
            (Some(Listening::AtDoor), Some(door)) => door.leave(frontend),
            (Some(Listening::AtDoor) | None, _) => {}
        }
    }

    /// Without one each port has listeners of its own.
    fn open_door(&mut self, dispatch: Option<Box<dyn Dispatch>>) {
        let Some(dispatch) = dispatch else { return };
        let (sockets, before) = (self.heirlooms.listeners(Place::Door), self.heirlooms.dispatch());
        match Door::open(dispatch, sockets, before, &self.shared, &self.workers) {
            Ok(door) => self.door = Some(door),
            Err(cause) => info!(cause, "each published TCP port has listeners of its own"),
        }
    }
}

/// What this kernel can do with batches of datagrams, as seen by a socket of no further use.
fn probe_batches() -> io::Result<UdpSocketState> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    UdpSocketState::new((&socket).into())
}

/// Whether this process may talk from addresses that are not this host's, as seen by a socket of no further
/// use.
fn probe_transparent() -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None);
    socket.is_ok_and(|socket| sys::be_transparent(&socket, false).is_ok())
}

/// Sockets without sessions.
fn fresh(sockets: Vec<UdpSocket>) -> Vec<(UdpSocket, Vec<Inherited>)> {
    sockets.into_iter().map(|socket| (socket, Vec::new())).collect()
}

/// By the sockets that are there already, or by new ones.
fn listen_for_nodes(
    shared: &Arc<Shared>,
    workers: &[Worker],
    listeners: Option<Vec<TcpListener>>,
    sockets: Option<Vec<(UdpSocket, Vec<Inherited>)>>,
) -> Result<watch::Sender<Word>, ProxyError> {
    let address = SocketAddr::new(shared.settings.address, shared.settings.relay_port);
    let failed = |protocol| move |error| ProxyError::Relay { address, protocol, error };
    let stop = watch::Sender::default();
    let listeners = match listeners {
        Some(listeners) => Ok(listeners),
        None => listen::tcp_at(address, workers.len(), &shared.settings),
    };
    let sockets = match sockets {
        Some(sockets) => Ok(sockets),
        None => listen::udp_at(address, workers.len()).map(fresh),
    };
    let listeners = listeners.map_err(failed(Protocol::Tcp))?;
    let sockets = sockets.map_err(failed(Protocol::Udp))?;
    for (worker, listener) in workers.iter().cycle().zip(listeners) {
        let ours = shared.clone();
        worker.spawn(tcp::accept(
            listener,
            Place::Relay(Protocol::Tcp),
            shared.clone(),
            stop.subscribe(),
            move |stream, from| {
                tokio::spawn(relay::serve(stream, from, ours.clone()));
            },
        ));
    }
    for (worker, (socket, sessions)) in workers.iter().cycle().zip(sockets) {
        let shared = shared.clone();
        worker.spawn(udp::run(socket, Entrance::Relay, sessions, shared, stop.subscribe()));
    }
    Ok(stop)
}
