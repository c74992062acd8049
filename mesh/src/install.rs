//! The mirror of what the kernel maps hold, and the operations that change it.
//!
//! The loader translates these records to and from the kernel's layout (`weir-abi`); the planner
//! only ever sees them. Every index is a position in a kernel array.

mod apply;
mod dump;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    access::Subnet,
    ident::{Ident, Tag},
    service::{Balance, Port, Protocol, PublishedPort, TargetPort, Timeouts},
};

pub use apply::Violation;

/// Position of a backend in the kernel's backend array; 0 is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackendIndex(pub u32);

/// Counts the uses of one [`BackendIndex`]: a flow of an earlier use cannot land on a later one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BackendGeneration(pub u16);

/// Dense number of a service on this node, for statistics and tags; 0 is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceId(pub u32);

/// Position of a service record in the kernel's record array; 0 is never used. Records are
/// immutable while a port points at them: a change writes a new one and flips the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u32);

/// Number of a list of address ranges; 0 is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ListId(pub u32);

/// A list of address ranges: whether clients in each may be served, the longest range deciding.
pub type Rules = BTreeMap<Subnet, bool>;

/// Position of a node in the kernel's node array; 0 is never used (it means "here").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeIndex(pub u16);

/// A run of cells in the kernel's pick table, each naming a backend. Empty: no backend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Region {
    /// First cell.
    pub offset: u32,
    /// Number of cells; 0 is the empty region, whose offset is 0.
    pub len: u32,
}

/// A (protocol, published port) pair: what a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    /// The protocol.
    pub protocol: Protocol,
    /// The published port.
    pub port: PublishedPort,
}

/// A port at a virtual address that packets are routed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoutedPort {
    /// The virtual address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port: as at connect time, the one where the tasks listen.
    pub port: TargetPort,
}

/// What the kernel may do with flows to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// New and established flows.
    Active,
    /// Established flows only.
    Draining,
    /// No flows: TCP is reset, UDP picks again.
    Gone,
}

/// How packets for a backend leave this node's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Via {
    /// Through the tunnel to another node.
    Tunnel {
        /// The node.
        node: NodeIndex,
    },
    /// Straight into the task's network namespace, by the host side of its veth pair.
    Peer {
        /// Interface index of the host side.
        ifindex: u32,
        /// The task's own link-layer address.
        mac: [u8; 6],
    },
    /// Out of an interface, by neighbour resolution (a bridge, or a link whose peer is unknown).
    Neighbour {
        /// Interface index.
        ifindex: u32,
    },
    /// A task of this node that no interface leads to. Nothing can be sent to it.
    Unreachable,
}

/// A backend: one task, as the kernel sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRecord {
    /// Identity of the task.
    pub ident: Ident,
    /// Which use of the index this is.
    pub generation: BackendGeneration,
    /// What flows it may have.
    pub state: BackendState,
    /// The service it belongs to.
    pub service: ServiceId,
    /// How to reach it.
    pub via: Via,
    /// Names it on the tunnel.
    pub tag: Tag,
    /// Its IPv4 address on its own node.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address on its own node.
    pub ipv6: Option<Ipv6Addr>,
}

/// A service record: how a frontend finds a backend. Both address families have their own regions,
/// since a task may have only one of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Identity of the service.
    pub ident: Ident,
    /// Dense number of the service.
    pub service: ServiceId,
    /// How the pick region is read.
    pub balance: Balance,
    /// Whether only this node's tasks may serve it (`mode=host`).
    pub host_mode: bool,
    /// Whether clients of this node are left to the process that has the port here. What other
    /// nodes forward is served all the same.
    pub withheld: bool,
    /// Whether clients of an address family that no task has are left to another plane of this node.
    #[serde(default)]
    pub shared: bool,
    /// Where the tasks listen.
    pub target: TargetPort,
    /// Who may be a client; `None`: everybody.
    pub list: Option<ListId>,
    /// All active tasks with an IPv4 address.
    pub pick4: Region,
    /// All active tasks with an IPv6 address.
    pub pick6: Region,
    /// This node's active tasks with an IPv4 address, for second chances.
    pub local4: Region,
    /// This node's active tasks with an IPv6 address.
    pub local6: Region,
    /// Timeouts of its flows.
    pub timeouts: Timeouts,
}

/// A node, as the kernel sees it: the end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Identity of the node.
    pub ident: Ident,
    /// Underlay address.
    pub address: IpAddr,
}

/// Everything the kernel maps hold that the planner decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Other nodes.
    pub nodes: BTreeMap<NodeIndex, NodeRecord>,
    /// Backends.
    pub backends: BTreeMap<BackendIndex, BackendRecord>,
    /// Contents of the regions of the pick table that records point at, by offset.
    pub regions: BTreeMap<u32, Vec<BackendIndex>>,
    /// Service records.
    pub records: BTreeMap<Slot, ServiceRecord>,
    /// Lists that records point at.
    pub lists: BTreeMap<ListId, Rules>,
    /// Which record each published port points at.
    pub ports: BTreeMap<Frontend, Slot>,
    /// Which published port each port at a routed virtual address stands for.
    #[serde(default)]
    pub routed: BTreeMap<RoutedPort, Frontend>,
    /// Which local backend a tag means, for one service.
    pub tags: BTreeMap<(ServiceId, Tag), BackendIndex>,
    /// Highest generation that each backend index has had, also of free ones.
    pub generations: BTreeMap<BackendIndex, BackendGeneration>,
}

/// One change of the kernel maps. Each is atomic for packets in flight; a plan orders them so that
/// after every prefix nothing points at something missing.
///
/// The operations that free a record, a region or a backend must not clear what it held: a packet
/// that read the port just before it was flipped still reads the old record. The planner leaves
/// freed places alone for [`GRACE`](crate::plan::GRACE) before it writes them again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum MapOp {
    /// Make a node known: it may send to us, and be sent to.
    SetNode(NodeIndex, NodeRecord),
    /// Forget a node.
    RemoveNode(NodeIndex),
    /// Write a backend (new, or changed in place).
    SetBackend(BackendIndex, BackendRecord),
    /// Forget a backend; flows that still name it are treated as [`BackendState::Gone`].
    RemoveBackend(BackendIndex),
    /// Fill cells of the pick table from `offset`; no record points there yet.
    WriteRegion {
        /// First cell.
        offset: u32,
        /// The backends, one a cell.
        cells: Vec<BackendIndex>,
    },
    /// Mark a region free; no record points there any more.
    FreeRegion {
        /// First cell.
        offset: u32,
    },
    /// Write a list of address ranges; no record points at it yet.
    WriteList(ListId, Rules),
    /// Remove a list, of these ranges; no record points at it any more.
    RemoveList(ListId, Rules),
    /// Write a service record; no port points at it yet.
    SetRecord(Slot, ServiceRecord),
    /// Mark a record free; no port points at it any more.
    RemoveRecord(Slot),
    /// Point a published port at a record (new, or flipped from another).
    Publish(Frontend, Slot),
    /// Withdraw a published port: packets to it are no longer ours. Nothing routed stands for it.
    Withdraw(Frontend),
    /// Let a port at a routed virtual address stand for a published port.
    SetRouted(RoutedPort, Frontend),
    /// Packets to a port at a routed virtual address are no longer ours.
    RemoveRouted(RoutedPort),
    /// Let a tag of a service mean a local backend.
    SetTag(ServiceId, Tag, BackendIndex),
    /// Forget a tag.
    RemoveTag(ServiceId, Tag),
}

// === impl Frontend, Region, Via ===

impl Frontend {
    /// What clients connect to for this port.
    pub fn of(port: &Port) -> Self {
        Self { protocol: port.protocol, port: port.published }
    }
}

impl fmt::Display for Frontend {
    /// `tcp/8080`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.port)
    }
}

impl RoutedPort {
    /// Where a packet is sent to, if that may be one: there is no port 0.
    pub fn new(protocol: Protocol, to: SocketAddr) -> Option<Self> {
        Some(Self { address: to.ip(), protocol, port: TargetPort::new(to.port())? })
    }
}

impl fmt::Display for RoutedPort {
    /// `10.0.9.2 tcp/80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.address, self.protocol, self.port)
    }
}

impl Region {
    /// Whether it holds no backend at all.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

impl Via {
    /// Whether the task runs on this node.
    pub fn is_local(self) -> bool {
        !matches!(self, Self::Tunnel { .. })
    }
}

// === impl Installed ===

impl Installed {
    /// The published port that clients meet at an address and port: one that a routed virtual address
    /// stands for, else the port itself. And whether it is the former.
    pub fn frontend_at(&self, protocol: Protocol, to: SocketAddr) -> Option<(Frontend, bool)> {
        match RoutedPort::new(protocol, to).and_then(|at| self.routed.get(&at)) {
            Some(frontend) => Some((*frontend, true)),
            None => Some((Frontend { protocol, port: PublishedPort::new(to.port())? }, false)),
        }
    }

    /// Whether clients of this node are served at a port.
    pub fn serves(&self, frontend: Frontend) -> bool {
        let record = self.ports.get(&frontend).and_then(|slot| self.records.get(slot));
        record.is_some_and(|record| !record.withheld)
    }
}

// === impl ServiceRecord ===

impl ServiceRecord {
    /// Whether clients of this node are left to whoever has the port here, by the address family that they
    /// use. As `flow::is_left` of the kernel programs.
    pub fn leaves(&self, ipv4: bool) -> bool {
        let (own, other) = match ipv4 {
            true => (self.pick4, self.pick6),
            false => (self.pick6, self.pick4),
        };
        self.withheld || self.shared && own.len == 0 && other.len != 0
    }

    /// Its regions that hold something.
    pub fn regions(&self) -> impl Iterator<Item = Region> + use<> {
        [self.pick4, self.pick6, self.local4, self.local6]
            .into_iter()
            .filter(|region| !region.is_empty())
    }

    /// The same record with nothing to pick from: new flows are refused, established ones go on.
    pub fn emptied(self) -> Self {
        let none = Region::default();
        Self { pick4: none, pick6: none, local4: none, local6: none, ..self }
    }
}
