//! Socket options that no library sets.

#![allow(unsafe_code, reason = "setsockopt; each block says why it is sound")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Lets datagrams be as large as they are: fragmented where the path asks for it, and without errors
/// of earlier datagrams reported on later ones. `quinn-udp` sets up sockets for QUIC, which wants
/// the opposite.
pub(crate) fn carry_any_datagram(socket: &impl AsFd, ipv6: bool) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_WANT)?;
    set(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 0)?;
    if ipv6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT)?;
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 0)?;
        take_without_checksum(socket)?;
    }
    Ok(())
}

/// Takes IPv6 datagrams without a checksum (RFC 6935), which the kernel drops otherwise: the kernel plane
/// forwards them, too.
pub(crate) fn take_without_checksum(socket: &impl AsFd) -> io::Result<()> {
    const UDP_NO_CHECK6_RX: libc::c_int = 102; // linux/udp.h
    set(socket, libc::SOL_UDP, UDP_NO_CHECK6_RX, 1)
}

/// Takes datagrams of one peer that arrive together as one buffer. Linux 5.0 and later.
pub(crate) fn merge_datagrams(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Binding to an address leaves the choice of the port to `connect`, so that ports are used once for
/// each peer and not once in all.
pub(crate) fn choose_port_late(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Lets a socket be bound to an address that is not this host's, and take what comes for it. Needs
/// CAP_NET_ADMIN or CAP_NET_RAW.
pub(crate) fn be_transparent(socket: &impl AsFd, ipv6: bool) -> io::Result<()> {
    match ipv6 {
        false => set(socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1),
        true => set(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

fn set(socket: &impl AsFd, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open while it is borrowed, and the value lives until the call
    // returns.
    let result = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::setsockopt(fd, level, option, (&raw const value).cast(), size)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
