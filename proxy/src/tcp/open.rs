//! A connection to a task: the one that was chosen, else another, before the client's first byte.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::AsyncWriteExt, net::TcpSocket, net::TcpStream, time::timeout};
use weir_mesh::{
    Ident,
    install::{BackendRecord, Frontend, Via},
};

use crate::{
    backend::{Backend, Flow},
    counters::Reason,
    header::{self, Addresses},
    relay,
    route::{Among, Route},
    shared::Shared,
    source::Source,
};

/// How a flow entered the mesh.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Who it is.
    pub(crate) client: SocketAddr,
    /// Which address the client used.
    pub(crate) asked: SocketAddr,
    /// The published port.
    pub(crate) frontend: Frontend,
}

/// A connection that a task has accepted.
pub(crate) struct Opened {
    pub(crate) stream: TcpStream,
    pub(crate) backend: Arc<Backend>,
    /// Counts as long as it is kept; none of a flow that entered the mesh elsewhere.
    pub(crate) flow: Option<Flow>,
}

/// Tasks that are tried for one client.
const TRIES: usize = 4;

/// Connects to a task of the service, here or on another node.
pub(crate) async fn open(shared: &Shared, route: &Route, entry: Entry) -> Result<Opened, Reason> {
    let mut tried: Vec<Ident> = Vec::new();
    while tried.len() < TRIES {
        let fresh = |backend: &Backend| !tried.contains(&backend.ident);
        let Some(backend) = route.choose(Among::All, entry.client, fresh) else { break };
        let Some(flow) = Flow::begin(&backend, route.most_flows()) else { continue };
        match dial(shared, route, &backend, entry, false).await {
            Ok(stream) => return Ok(Opened { stream, backend, flow: Some(flow) }),
            Err(reason) => shared.tally.count(reason),
        }
        tried.push(backend.ident);
    }
    Err(if tried.is_empty() { route.nobody() } else { Reason::ConnectFailed })
}

/// Connects to one task. `hopped`: another node has handed the flow over to this one already.
pub(crate) async fn dial(
    shared: &Shared,
    route: &Route,
    backend: &Backend,
    entry: Entry,
    hopped: bool,
) -> Result<TcpStream, Reason> {
    let record = backend.record();
    if let Via::Tunnel { node } = record.via {
        let node = shared.directory.node(node).ok_or(Reason::TaskTimeout)?;
        return relay::dial(shared, node, relay::Envelope { entry, tag: record.tag, hopped }).await;
    }
    let target = target(&record, route, entry.client.ip()).ok_or(Reason::TaskRefused)?;
    let source = Source::towards_task(shared, &route.service, entry.client.ip());
    let mut stream = match connect(shared, target, source).await {
        Ok(stream) => {
            backend.accepted.fetch_add(1, Relaxed);
            stream
        }
        Err(Reason::TaskRefused) => {
            backend.refused.fetch_add(1, Relaxed);
            return Err(Reason::TaskRefused);
        }
        Err(reason) => return Err(reason),
    };
    if let Some(version) = route.service.wishes.load().header {
        let addresses = Addresses { source: entry.client, destination: entry.asked };
        let header = header::encode(version, entry.frontend.protocol, addresses);
        // It fits into an empty socket buffer, so this does not wait.
        stream.write_all(&header).await.map_err(|_| Reason::TaskRefused)?;
    }
    Ok(stream)
}

/// Where a local task listens: of its addresses the one that is of the client's family, if it can be.
pub(crate) fn target(record: &BackendRecord, route: &Route, client: IpAddr) -> Option<SocketAddr> {
    let (v4, v6) = (record.ipv4.map(IpAddr::V4), record.ipv6.map(IpAddr::V6));
    let ip = if client.is_ipv4() { v4.or(v6) } else { v6.or(v4) };
    Some(SocketAddr::new(ip?, route.record.target.get()))
}

/// Connects to a task or a node.
pub(crate) async fn connect(
    shared: &Shared,
    target: SocketAddr,
    source: Source,
) -> Result<TcpStream, Reason> {
    let connecting = async { prepare(target, source)?.connect(target).await };
    match timeout(shared.settings.connect_timeout, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
                Reason::TaskRefused
            }
            _ if super::out_of_files(&error) => Reason::NoDescriptors,
            _ => Reason::TaskTimeout,
        }),
        Err(_) => Err(Reason::TaskTimeout),
    }
}

fn prepare(target: SocketAddr, source: Source) -> io::Result<TcpSocket> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    source.bind(&socket, target)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}
