//! ICMP echo, without a `ping` program.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

const REPLY_V4: u8 = 0;
const REQUEST_V4: u8 = 8;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;

impl Netns {
    /// Sends one echo request of `size` data bytes and gives the round-trip time.
    pub fn ping(&self, address: IpAddr, size: usize, timeout: Duration) -> Result<Duration> {
        self.run(|| ping(address, size, timeout)).with_context(|| format!("ping {address}"))
    }
}

/// A datagram ICMP socket: the kernel fills in identifier and checksum and gives us our replies
/// only (`ping_group_range` must allow it, which the lab sets everywhere).
fn ping(address: IpAddr, size: usize, timeout: Duration) -> Result<Duration> {
    let (domain, protocol, request, reply) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, REQUEST_V4, REPLY_V4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, REQUEST_V6, REPLY_V6),
    };
    let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(timeout))?;
    socket.connect(&SocketAddr::new(address, 0).into())?;
    let mut packet = vec![0; 8 + size];
    packet[0] = request;
    packet[7] = 1; // sequence number
    let start = Instant::now();
    socket.send(&packet)?;
    let length = socket.read(&mut packet)?;
    ensure!(length == 8 + size && packet[0] == reply, "answer of type {}", packet[0]);
    Ok(start.elapsed())
}
