//! What is counted, without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Packets and bytes in each direction, and connections. Bytes are payload; of TCP no packets are
/// seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// New flows.
    pub connections: u64,
    /// Datagrams from clients.
    pub rx_packets: u64,
    /// Bytes from clients.
    pub rx_bytes: u64,
    /// Datagrams to clients.
    pub tx_packets: u64,
    /// Bytes to clients.
    pub tx_bytes: u64,
}

/// Counts while others read.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    connections: AtomicU64,
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
}

impl Traffic {
    pub(crate) fn opened(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(crate) fn up(&self, packets: u64, bytes: u64) {
        self.rx_packets.fetch_add(packets, Relaxed);
        self.rx_bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn down(&self, packets: u64, bytes: u64) {
        self.tx_packets.fetch_add(packets, Relaxed);
        self.tx_bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn read(&self) -> Counted {
        Counted {
            connections: self.connections.load(Relaxed),
            rx_packets: self.rx_packets.load(Relaxed),
            rx_bytes: self.rx_bytes.load(Relaxed),
            tx_packets: self.tx_packets.load(Relaxed),
            tx_bytes: self.tx_bytes.load(Relaxed),
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why something was not forwarded, or not as it was first chosen.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As metrics name it. Where the kernel programs count the same, it has their name.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

reasons! {
    /// A new flow, and no active task.
    NoBackend = "no_backend",
    /// The task of a flow is gone; its connections are reset.
    BackendGone = "backend_gone",
    /// Something on the relay port from an address that is no node of the mesh.
    UnknownSender = "unknown_sender",
    /// A node handed over a flow for a port that is not published here.
    NotPublished = "not_published",
    /// A flow that was handed on once already, and no task here either.
    HopLimit = "hop_limit",
    /// Given to another task. Not a loss.
    SecondChance = "second_chance",
    /// A node handed over something that cannot be read.
    Malformed = "malformed",
    /// A task refused, and another one was tried, if there was one.
    TaskRefused = "task_refused",
    /// A task or node did not answer in time, and another one was tried, if there was one.
    TaskTimeout = "task_timeout",
    /// No task that was tried accepted the connection.
    ConnectFailed = "connect_failed",
    /// One side of a connection was reset, or acknowledged nothing any more; the other was reset, too.
    Broken = "broken",
    /// A connection that was silent for its timeout.
    Idle = "idle",
    /// There are as many connections as there may be.
    TooMany = "too_many",
    /// The service has as many connections as it may.
    LimitService = "limit_service",
    /// The client has as many connections as one may.
    LimitClient = "limit_client",
    /// Every task has as many flows as it may.
    LimitTask = "limit_task",
    /// New connections come faster than they may.
    LimitRate = "limit_rate",
    /// The process may open no more files.
    NoDescriptors = "no_descriptors",
    /// A UDP session made room for a newer one.
    SessionEvicted = "session_evicted",
    /// A datagram that the socket did not take.
    SendFailed = "send_failed",
    /// A client that the service does not allow.
    Denied = "denied",
    /// A client's PROXY header is missing, broken, or comes from somebody who may not send one.
    ProxyHeader = "proxy_header",
}

/// Counters by reason.
#[derive(Debug, Default)]
pub(crate) struct Tally([AtomicU64; Reason::ALL.len()]);

impl Tally {
    pub(crate) fn count(&self, reason: Reason) {
        self.add(reason, 1);
    }

    pub(crate) fn add(&self, reason: Reason, count: u64) {
        self.0[reason as usize].fetch_add(count, Relaxed);
    }

    pub(crate) fn read(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().map(|reason| (*reason, self.0[*reason as usize].load(Relaxed)))
    }
}
