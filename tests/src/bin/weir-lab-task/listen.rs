//! Dual-stack sockets, client addresses as the client would write them, and SIGTERM.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::OnTerm;

/// Listens on all addresses of both families.
pub fn tcp(port: u16) -> Result<TcpListener> {
    let socket = dual_stack(Type::STREAM, port)?;
    socket.listen(4096)?;
    Ok(TcpListener::from_std(socket.into())?)
}

/// The same for UDP.
pub fn udp(port: u16) -> Result<UdpSocket> {
    let socket = dual_stack(Type::DGRAM, port)?;
    accept_no_checksum(&socket)?;
    Ok(UdpSocket::from_std(socket.into())?)
}

/// IPv6 datagrams without a checksum are dropped unless the server wants them (RFC 6936).
fn accept_no_checksum(socket: &Socket) -> Result<()> {
    const UDP_NO_CHECK6_RX: libc::c_int = 102; // linux/udp.h
    let on: libc::c_int = 1;
    let (fd, size) = (socket.as_raw_fd(), size_of_val(&on) as libc::socklen_t);
    // SAFETY: the value lives until the call returns.
    let result = unsafe {
        libc::setsockopt(fd, libc::SOL_UDP, UDP_NO_CHECK6_RX, (&raw const on).cast(), size)
    };
    anyhow::ensure!(result == 0, "UDP_NO_CHECK6_RX: {}", std::io::Error::last_os_error());
    Ok(())
}

fn dual_stack(kind: Type, port: u16) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, None)?;
    socket.set_only_v6(false)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    socket.bind(&address.into()).with_context(|| format!("bind port {port}"))?;
    Ok(socket)
}

/// `::ffff:10.0.0.1` is `10.0.0.1`.
pub fn client(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Waits for the end, and then for as long as connections are still to be taken.
pub async fn end_of_listening(mut ending: watch::Receiver<bool>, linger: u64) {
    let _ = ending.wait_for(|ended| *ended).await;
    tokio::time::sleep(Duration::from_millis(linger)).await;
}

/// Turns to `true` on SIGTERM; with [`OnTerm::Exit`] the default action of the signal stays.
pub fn ending(on_term: OnTerm) -> Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    if on_term == OnTerm::Finish {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::spawn(async move {
            terminate.recv().await;
            let _ = sender.send(true);
        });
    } else {
        std::mem::forget(sender); // a closed channel would read as an end
    }
    Ok(receiver)
}
