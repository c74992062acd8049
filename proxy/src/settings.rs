//! What the proxy is told once.

use std::{net::IpAddr, time::Duration};

/// How a proxy works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The node's underlay address: other nodes hand over their connections there, and ours to them
    /// come from there.
    pub address: IpAddr,
    /// TCP and UDP port on which nodes hand over to each other, the same on every node.
    pub relay_port: u16,
    /// Threads that carry traffic; each has sockets of its own for every port.
    pub workers: usize,
    /// How long a task may take to accept a connection before another one is tried.
    pub connect_timeout: Duration,
    /// Silence after which a TCP connection is asked whether it lives.
    pub keepalive: Duration,
    /// How long data that was sent may stay unacknowledged before a connection is given up.
    pub user_timeout: Duration,
    /// Most TCP connections at a time; further ones are reset.
    pub connections: usize,
    /// Most UDP sessions of one published port on one worker; the one that was silent for longest
    /// makes room.
    pub udp_sessions: usize,
}
