//! The ways from the client to a task that are compared.

use std::net::{Ipv4Addr, SocketAddr};

/// A way from the client to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Routed by the task's host, to the task's own address: nothing in between.
    Straight,
    /// A port that weir publishes, the task is on the node that is asked.
    WeirLocal,
    /// A port that weir publishes, the task is on another node.
    WeirRemote,
    /// Routed through a classic VXLAN device to a task on another host.
    Vxlan,
    /// A port that nftables translates.
    Nftables,
    /// A port that HAProxy serves in TCP mode.
    Haproxy,
    /// A port that nginx serves with its stream module.
    NginxStream,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// The task's HTTP server.
    Http,
    /// The task's iperf3 server.
    Bulk,
    /// The task's UDP echo server.
    Echo,
}

/// Where a task listens.
pub const TASK_HTTP: u16 = 80;
/// Where a task's iperf3 listens.
pub const TASK_BULK: u16 = 5201;
/// Where a task echoes UDP.
pub const TASK_ECHO: u16 = 5353;

/// The first task of every host has this address; the hosts are told apart by the client's routes.
pub const TASK: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 3);
/// The second address of the task behind the VXLAN.
pub const FAR_TASK: Ipv4Addr = Ipv4Addr::new(172, 19, 0, 3);

const WEIR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const PLAIN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 13);
const NFT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 15);

impl Mode {
    /// All, in the order of the table.
    pub const ALL: [Self; 7] = [
        Self::Straight,
        Self::WeirLocal,
        Self::WeirRemote,
        Self::Vxlan,
        Self::Nftables,
        Self::Haproxy,
        Self::NginxStream,
    ];

    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Straight => "straight",
            Self::WeirLocal => "weir local",
            Self::WeirRemote => "weir remote",
            Self::Vxlan => "bare VXLAN",
            Self::Nftables => "nftables DNAT",
            Self::Haproxy => "HAProxy TCP",
            Self::NginxStream => "nginx stream",
        }
    }

    /// Whether it can carry UDP as it is configured here.
    pub fn does(self, wire: Wire) -> bool {
        wire != Wire::Echo || !matches!(self, Self::Haproxy | Self::NginxStream)
    }

    /// What the client asks.
    pub fn target(self, wire: Wire) -> SocketAddr {
        let address = match self {
            Self::Straight => TASK,
            Self::Vxlan => FAR_TASK,
            Self::WeirLocal | Self::WeirRemote => WEIR,
            Self::Nftables => NFT,
            Self::Haproxy | Self::NginxStream => PLAIN,
        };
        SocketAddr::new(address.into(), self.port(wire))
    }

    /// The port that the client asks for.
    pub fn port(self, wire: Wire) -> u16 {
        let [http, bulk, echo] = match self {
            Self::Straight | Self::Vxlan => [TASK_HTTP, TASK_BULK, TASK_ECHO],
            Self::WeirLocal => [8080, 5201, 5353],
            Self::WeirRemote => [8081, 5202, 5354],
            Self::Nftables => [8082, 5203, 5355],
            Self::Haproxy => [8083, 5204, 0],
            Self::NginxStream => [8084, 5205, 0],
        };
        match wire {
            Wire::Http => http,
            Wire::Bulk => bulk,
            Wire::Echo => echo,
        }
    }
}
