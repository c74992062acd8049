//! Sockets on published ports: a group that shares the port, one socket a worker.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use quinn_udp::UdpSocketState;
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use weir_mesh::{Protocol as Transport, install::Frontend};

use crate::{settings::Settings, sys};

/// How long a queue of connections that nobody has accepted yet may become; the kernel lowers it to
/// net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Room for datagrams that arrive while a worker is busy; the kernel lowers it to its limits.
const DATAGRAM_BUFFER: usize = 4 << 20;
/// Probes that may be lost.
const KEEPALIVE_RETRIES: u32 = 4;

/// Listens for connections at a published port of every address, IPv4 and IPv6.
pub(crate) fn tcp(
    frontend: Frontend,
    count: usize,
    settings: &Settings,
) -> io::Result<Vec<TcpListener>> {
    let port = frontend.port.get();
    let sockets = group(count, || stream(settings), |domain| everywhere(domain, port))?;
    listening(sockets)
}

/// Listens for connections that are led here from published ports, IPv4 and IPv6. Not at a loopback
/// address: a socket that is bound to an address of one family takes clients of that family alone.
pub(crate) fn door(count: usize, settings: &Settings) -> io::Result<Vec<TcpListener>> {
    listening(group(count, || stream(settings), |domain| everywhere(domain, 0))?)
}

/// Listens for connections of other nodes.
pub(crate) fn tcp_at(
    address: SocketAddr,
    count: usize,
    settings: &Settings,
) -> io::Result<Vec<TcpListener>> {
    let new = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        prepare_stream(&socket, settings)?;
        socket.set_reuse_address(true)?;
        Ok((socket, Domain::for_address(address)))
    };
    listening(group(count, new, |_| address)?)
}

/// Takes datagrams at a published port of every address, IPv4 and IPv6.
pub(crate) fn udp(frontend: Frontend, count: usize) -> io::Result<Vec<UdpSocket>> {
    let port = frontend.port.get();
    let sockets = group(count, || either(Type::DGRAM), |domain| everywhere(domain, port))?;
    sockets.into_iter().map(datagrams).collect()
}

/// Takes datagrams of other nodes.
pub(crate) fn udp_at(address: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    let domain = Domain::for_address(address);
    let new = || Ok((Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?, domain));
    group(count, new, |_| address)?.into_iter().map(datagrams).collect()
}

/// What TCP listeners have in common, and what they accept inherits.
fn prepare_stream(socket: &Socket, settings: &Settings) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    watch_peer(socket, settings)
}

/// Notices a peer that goes without a word. With a user timeout the kernel does not count probes: it gives
/// a connection up that has been silent for as long as that, and did not answer the last probe
/// (`tcp_keepalive_timer`). So the probes are spread over the time until then.
pub(crate) fn watch_peer(socket: &Socket, settings: &Settings) -> io::Result<()> {
    let spare = settings.user_timeout.saturating_sub(settings.keepalive);
    let keepalive = TcpKeepalive::new()
        .with_time(settings.keepalive)
        .with_interval((spare / KEEPALIVE_RETRIES).max(Duration::from_secs(1)))
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(settings.user_timeout))
}

/// Why a port cannot be served, and the way out.
pub(crate) fn explain(frontend: Frontend, error: &io::Error) -> String {
    let Frontend { protocol, port } = frontend;
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let list = match protocol {
                Transport::Tcp => format!("ss -ltnp 'sport = :{port}'"),
                Transport::Udp => format!("ss -lunp 'sport = :{port}'"),
            };
            format!(
                "another process listens on {frontend}, {list} names it; stop it, or publish \
                 another port"
            )
        }
        io::ErrorKind::PermissionDenied => format!(
            "this process may not listen on {frontend}: ports below 1024 need \
             CAP_NET_BIND_SERVICE; give it to the agent, lower \
             net.ipv4.ip_unprivileged_port_start, or publish another port"
        ),
        _ => format!("cannot listen on {frontend}: {error}"),
    }
}

/// Several sockets on one port. The first takes it alone, so that a process that has it is noticed
/// whatever options it has set; only then the port is shared.
fn group(
    count: usize,
    new: impl Fn() -> io::Result<(Socket, Domain)>,
    at: impl Fn(Domain) -> SocketAddr,
) -> io::Result<Vec<Socket>> {
    let (first, domain) = new()?;
    let address = SockAddr::from(at(domain));
    first.bind(&address)?;
    first.set_reuse_port(true)?;
    // The kernel may have been left to choose the port.
    let address = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..count {
        let (next, _) = new()?;
        next.set_reuse_port(true)?;
        next.bind(&address)?;
        sockets.push(next);
    }
    Ok(sockets)
}

fn everywhere(domain: Domain, port: u16) -> SocketAddr {
    match domain {
        Domain::IPV4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        _ => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// For both address families, or for IPv4 where the kernel has no IPv6.
fn either(kind: Type) -> io::Result<(Socket, Domain)> {
    match Socket::new(Domain::IPV6, kind, None) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            Ok((socket, Domain::IPV6))
        }
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            Ok((Socket::new(Domain::IPV4, kind, None)?, Domain::IPV4))
        }
        Err(error) => Err(error),
    }
}

fn stream(settings: &Settings) -> io::Result<(Socket, Domain)> {
    let (socket, domain) = either(Type::STREAM)?;
    // Accepted connections inherit these.
    prepare_stream(&socket, settings)?;
    // Connections of an earlier listener may still be ending.
    socket.set_reuse_address(true)?;
    Ok((socket, domain))
}

fn listening(sockets: Vec<Socket>) -> io::Result<Vec<TcpListener>> {
    let listen = |socket: Socket| {
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    sockets.into_iter().map(listen).collect()
}

fn datagrams(socket: Socket) -> io::Result<UdpSocket> {
    let ipv6 = socket.domain()? == Domain::IPV6;
    UdpSocketState::new((&socket).into())?;
    sys::carry_any_datagram(&socket, ipv6)?;
    // A smaller buffer loses more in a burst, and is no reason not to serve.
    socket.set_recv_buffer_size(DATAGRAM_BUFFER).ok();
    socket.set_send_buffer_size(DATAGRAM_BUFFER).ok();
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
