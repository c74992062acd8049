//! The sockets. Each worker is a thread with a runtime of its own and sockets of its own at every
//! address; the kernel spreads clients over them. What is known here is answered at once, without a
//! task; only what others must be asked becomes one.

mod batch;
mod limits;
mod tcp;
mod udp;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{runtime, sync::watch, task::AbortHandle, time::sleep};
use tracing::{info, warn};

pub use limits::{Limits, LimitsRead};

use crate::handler::Handler;

/// How many threads, and how much at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Threads.
    pub workers: usize,
    /// Questions that others are being asked.
    pub under_way: usize,
    /// Those of one client.
    pub under_way_of_client: usize,
    /// Connections.
    pub connections: usize,
    /// Those of one client.
    pub connections_of_client: usize,
    /// A connection on which nothing is asked for so long is closed.
    pub idle: Duration,
}

/// A running server. When it goes, its sockets are closed.
#[derive(Debug)]
pub struct Server {
    listen: watch::Sender<BTreeSet<SocketAddr>>,
    bound: Bound,
    limits: Arc<Limits>,
}

/// How it went with each address: nothing, or why it is not listened at.
#[derive(Clone, Debug, Default)]
struct Bound(Arc<Mutex<BTreeMap<SocketAddr, Option<String>>>>);

/// What a worker answers from.
#[derive(Clone)]
struct Shared {
    handler: Arc<Handler>,
    limits: Arc<Limits>,
    settings: Settings,
}

/// The tasks of one address. They end with it.
struct Sockets(Vec<AbortHandle>);

/// Addresses that could not be listened at are tried again this often.
const RETRY: Duration = Duration::from_secs(2);
/// Room for questions that arrive while a worker is busy.
const RECEIVE_BUFFER: usize = 1 << 20;

impl Default for Settings {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            workers: cores.min(4),
            under_way: 2048,
            under_way_of_client: 256,
            connections: 256,
            connections_of_client: 32,
            idle: Duration::from_secs(10),
        }
    }
}

impl Server {
    /// Starts the workers. They listen nowhere yet.
    pub fn start(handler: Arc<Handler>, settings: Settings) -> io::Result<Self> {
        let limits = Arc::new(Limits::new(&settings));
        let server = Self {
            listen: watch::Sender::default(),
            bound: Bound::default(),
            limits: limits.clone(),
        };
        for worker in 0..settings.workers.max(1) {
            let shared = Shared { handler: handler.clone(), limits: limits.clone(), settings };
            let (listen, bound) = (server.listen.subscribe(), server.bound.clone());
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let body = move || runtime.block_on(shared.work(listen, bound));
            thread::Builder::new().name(format!("dns-{worker}")).spawn(body)?;
        }
        Ok(server)
    }

    /// Listens at these addresses and at no others.
    pub fn listen(&self, addresses: BTreeSet<SocketAddr>) {
        self.bound.lock().retain(|address, _| addresses.contains(address));
        self.listen.send_if_modified(|old| {
            let changed = *old != addresses;
            *old = addresses;
            changed
        });
    }

    /// How it went with each address: `None`, or why it is not listened at.
    pub fn bound(&self) -> BTreeMap<SocketAddr, Option<String>> {
        self.bound.lock().clone()
    }

    /// What is under way.
    pub fn limits(&self) -> LimitsRead {
        self.limits.read()
    }
}

impl Bound {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Option<String>>> {
        // A map is sound after every one of its steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, address: SocketAddr, failure: Option<&io::Error>) {
        let failure = failure.map(ToString::to_string);
        let before = self.lock().insert(address, failure.clone());
        match (failure, before) {
            (Some(error), None | Some(None)) => {
                warn!(%address, error, "cannot listen for DNS, trying again");
            }
            (None, None | Some(Some(_))) => info!(%address, "listening for DNS"),
            _ => {}
        }
    }
}

impl Shared {
    /// Listens where it is told until nobody can tell any more.
    async fn work(self, mut listen: watch::Receiver<BTreeSet<SocketAddr>>, bound: Bound) {
        let mut sockets = BTreeMap::<SocketAddr, Sockets>::new();
        loop {
            let wanted = listen.borrow_and_update().clone();
            sockets.retain(|address, _| wanted.contains(address));
            let mut missing = false;
            for address in wanted {
                if sockets.contains_key(&address) {
                    continue;
                }
                match self.open(address) {
                    Ok(opened) => {
                        bound.note(address, None);
                        sockets.insert(address, opened);
                    }
                    Err(error) => {
                        bound.note(address, Some(&error));
                        missing = true;
                    }
                }
            }
            tokio::select! {
                changed = listen.changed() => if changed.is_err() { return },
                () = sleep(RETRY), if missing => {}
            }
        }
    }

    fn open(&self, address: SocketAddr) -> io::Result<Sockets> {
        let udp = udp_socket(address)?;
        let tcp = tokio::net::TcpListener::from_std(tcp_listener(address)?)?;
        let udp = udp::Door::new(udp)?;
        let tasks = [
            tokio::spawn(udp.serve(self.clone())).abort_handle(),
            tokio::spawn(tcp::serve(tcp, self.clone())).abort_handle(),
        ];
        Ok(Sockets(tasks.into()))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// One of several at the same address. `SO_REUSEPORT` is for processes of one user only.
fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), Some(protocol))?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    // As much as the host lets us have.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    // Connections of an agent before this one may still be closing.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}
