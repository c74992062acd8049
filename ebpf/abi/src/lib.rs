//! The layout of everything that the kernel programs and user space share.
//!
//! Rules of this file:
//! * Addresses and ports are in **network order**, exactly as on the wire. Every other number is in
//!   the machine's order.
//! * No implicit padding: each struct says its padding, and a compile-time assertion its size. Keys
//!   must be zeroed in their padding, since hash maps compare bytes.
//! * Indices are positions in arrays; index 0 is never used and means "none" or "here".
//! * [`LAYOUT`] changes with every change of a layout; it is part of the pin path, so that programs
//!   of one layout never meet maps of another.
#![no_std]

mod address;
mod reason;
pub mod trial;
mod tunnel;
mod vip;

pub use address::{Ip4, Ip6};
pub use reason::{DropReason, REASONS};
pub use tunnel::{SENDER_MAC, TUNNEL_MAC, Tag};
pub use vip::{RoutedKey, Routing, Space, Vip, VipKey, routed_port};

/// Version of the layout of all maps. Part of the pin path.
pub const LAYOUT: u32 = 2;

/// Sizes of the arrays whose positions are handed out by the planner.
pub mod size {
    /// Cells of `PORTS`: two protocols times 65536 ports.
    pub const PORTS: u32 = 2 << 16;
    /// Service records.
    pub const RECORDS: u32 = 1 << 16;
    /// Published ports with counters.
    pub const FRONTENDS: u32 = 1 << 16;
    /// Services.
    pub const SERVICES: u32 = 1 << 16;
    /// Backends.
    pub const BACKENDS: u32 = 1 << 17;
    /// Cells of the pick table.
    pub const PICKS: u32 = 1 << 20;
    /// Nodes.
    pub const NODES: u32 = 1 << 12;
    /// Virtual addresses.
    pub const VIPS: u32 = 1 << 15;
    /// Address ranges in lists of who may be a client.
    pub const ACCESS: u32 = 1 << 16;
    /// Cells for addresses of the tasks that virtual addresses stand for.
    pub const VIP_TASKS: u32 = 1 << 18;
    /// Network namespaces that are attached to networks with virtual addresses.
    pub const SPACES: u32 = 1 << 14;
    /// Networks that one namespace is attached to.
    pub const SPACE_NETWORKS: usize = 63;
    /// Ports at routed virtual addresses.
    pub const ROUTED: u32 = 1 << 15;
    /// Packets of each CPU that were not forwarded and are remembered.
    pub const LAST_DROPS: u32 = 128;
    /// Flows a table, unless user space chooses otherwise.
    pub const FLOWS: u32 = 1 << 19;
}

/// A cell of `PORTS`: which record a published port points at, and where it is counted. Written as
/// one 64-bit word, so that a flip is atomic.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCell {
    /// Position of the service record; 0: not published.
    pub record: u32,
    /// Position in `FRONTEND_STATS`.
    pub counters: u32,
}
const _: () = assert!(size_of::<PortCell>() == 8);

/// A packet that was not forwarded, as it came. User space reads it while it may be written anew: it is
/// whole if `at` and `end` agree, since it is written from `end` = 0 to `at` and then `end`, and read from
/// `at` on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedPacket {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`; 0: there was none yet.
    pub at: u64,
    /// Its source; IPv4 as `::ffff:a.b.c.d`.
    pub src: Ip6,
    /// Its destination, likewise.
    pub dst: Ip6,
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// Its protocol, as in the IP header.
    pub protocol: u8,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
    /// A [`DropReason`].
    pub reason: u16,
    /// [`Self::at`] again.
    pub end: u64,
}
const _: () = assert!(size_of::<DroppedPacket>() == 56);

/// Position of a published port in `PORTS`.
pub const fn port_cell(udp: bool, port: [u8; 2]) -> u32 {
    ((udp as u32) << 16) | u16::from_be_bytes(port) as u32
}

/// What the programs need to know of the host; cell 0 of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Cookie of the host's network namespace (`SO_NETNS_COOKIE`): processes in it may use
    /// `localhost`.
    pub netns_cookie: u64,
    /// Interface index of the tunnel device.
    pub tunnel_ifindex: u32,
    /// `BPF_F_IPV6` where `bpf_l4_csum_replace` knows it (Linux 6.16), else 0.
    pub csum_ipv6_flag: u32,
    /// Largest TCP segment that fits the tunnel, IPv4, machine order.
    pub mss4: u16,
    /// Largest TCP segment that fits the tunnel, IPv6, machine order.
    pub mss6: u16,
    /// Jiffies a second.
    pub hz: u32,
    /// IPv4 address that stands for "this service, through the tunnel" towards local sockets.
    pub relay4: Ip4,
    /// This node's own IPv4 address, as a source that other nodes and tasks may answer to; zero:
    /// none.
    pub source4: Ip4,
    /// As `relay4`, for IPv6.
    pub relay6: Ip6,
    /// As `source4`, for IPv6.
    pub source6: Ip6,
}
const _: () = assert!(size_of::<Config>() == 64);

/// A run of cells of the pick table. Written as one 64-bit word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First cell.
    pub offset: u32,
    /// Number of cells; 0: no backend.
    pub len: u32,
}

/// How a region is read: [`Service::balance`].
pub mod balance {
    /// Each cell in turn.
    pub const ROUND_ROBIN: u8 = 0;
    /// A cell by chance.
    pub const RANDOM: u8 = 1;
    /// The cell that the client's address and port hash to.
    pub const MAGLEV: u8 = 2;
    /// The cell that the client's address hashes to.
    pub const SOURCE: u8 = 3;
    /// Of two cells by chance the one whose backend is less laden.
    pub const LEAST: u8 = 4;
}

/// [`Service::flags`].
pub mod service_flag {
    /// Published with `mode=host`.
    pub const HOST_MODE: u8 = 1;
    /// A process of this host has the port: only what other nodes forward is served.
    pub const WITHHELD: u8 = 2;
    /// Another plane of this host serves clients of an address family that no task has.
    pub const SHARED: u8 = 4;
}

/// A service record. Immutable while a cell of `PORTS` points at it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Active tasks with an IPv4 address.
    pub pick4: Region,
    /// Active tasks with an IPv6 address.
    pub pick6: Region,
    /// Dense number of the service: statistics, round-robin position, tags.
    pub id: u32,
    /// Where the tasks listen.
    pub target: [u8; 2],
    /// One of [`balance`].
    pub balance: u8,
    /// A set of [`service_flag`].
    pub flags: u8,
    /// Timeouts in jiffies.
    pub timeouts: Timeouts,
    /// This node's active tasks with an IPv4 address.
    pub local4: Region,
    /// This node's active tasks with an IPv6 address.
    pub local6: Region,
    /// Milliseconds that a task which left may keep its flows. For user space only.
    pub drain_millis: u32,
    /// Number of the list in `ACCESS` that says who may be a client; 0: everybody may. Agents that knew
    /// no lists wrote 0.
    pub list: u32,
    /// Identity of the service; 0: the record is free. For user space only, but for Maglev's hash.
    pub ident: u64,
}
const _: () = assert!(size_of::<Service>() == 80);

/// What a range in `ACCESS` is of, and where it begins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Number of the list.
    pub list: u32,
    /// The address in four words as on the wire; IPv4 as `::ffff:a.b.c.d`.
    pub addr: [u32; 4],
}
const _: () = assert!(size_of::<Client>() == 20);

impl Client {
    /// Bits of all fields: a single address of a list.
    pub const BITS: u32 = 160;
    /// Bits before those of an IPv4 address.
    pub const BITS_BEFORE_IPV4: u32 = 128;
    /// Bits before those of an IPv6 address.
    pub const BITS_BEFORE_IPV6: u32 = 32;
}

/// Key of `ACCESS` as user space writes it: a range of addresses in one list (`struct
/// bpf_lpm_trie_key`). The value is 1 when its clients may be served, else 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// So many bits of what follows count.
    pub bits: u32,
    /// Where it begins.
    pub from: Client,
}
const _: () = assert!(size_of::<Range>() == 24);

/// Idle timeouts in jiffies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, SYN seen.
    pub tcp_syn: u32,
    /// TCP, established.
    pub tcp_established: u32,
    /// TCP, FIN seen from both sides.
    pub tcp_fin: u32,
    /// TCP, RST seen.
    pub tcp_reset: u32,
    /// UDP, one side has spoken.
    pub udp_one_way: u32,
    /// UDP, both have.
    pub udp_both_ways: u32,
}

/// [`Backend::state`].
pub mod backend_state {
    /// Free, or gone: no flows.
    pub const GONE: u8 = 0;
    /// Established flows only.
    pub const DRAINING: u8 = 1;
    /// New and established flows.
    pub const ACTIVE: u8 = 2;
}

/// [`Backend::via`].
pub mod via {
    /// No way to it.
    pub const UNREACHABLE: u8 = 0;
    /// Into the namespace behind a veth, by `bpf_redirect_peer`.
    pub const PEER: u8 = 1;
    /// Out of an interface, by `bpf_redirect_neigh`.
    pub const NEIGHBOUR: u8 = 2;
    /// Through the tunnel.
    pub const TUNNEL: u8 = 3;
}

/// A backend: one task. The first 32 bytes are what a packet of an established IPv4 flow needs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Which use of this index it is.
    pub generation: u16,
    /// One of [`backend_state`].
    pub state: u8,
    /// One of [`via`].
    pub via: u8,
    /// Interface to leave by, where [`via`] has one.
    pub ifindex: u32,
    /// The task's link-layer address, for [`via::PEER`].
    pub mac: [u8; 6],
    /// The task's node, for [`via::TUNNEL`]; position in `NODES`.
    pub node: u16,
    /// IPv4 address on its own node; zero: none.
    pub addr4: Ip4,
    /// Names the task on the tunnel.
    pub tag: u32,
    /// The service it belongs to.
    pub service: u32,
    /// Padding.
    pub pad: u32,
    /// IPv6 address on its own node; zero: none.
    pub addr6: Ip6,
    /// Identity of the task; 0: the index is free. For user space only.
    pub ident: u64,
    /// Padding to a cache line.
    pub pad2: u64,
}
const _: () = assert!(size_of::<Backend>() == 64);

/// How laden a backend is: where [`balance::LEAST`] looks. Written as one 64-bit word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Its live flows, in units of which each flow is [`Self::step`]. Programs add new flows, a census
    /// in user space writes what is true.
    pub flows: u32,
    /// [`Self::UNIT`], divided by its weight; 0: not known yet.
    pub step: u32,
}
const _: () = assert!(size_of::<Load>() == 8);

impl Load {
    /// What a flow of a backend of weight 1 counts.
    pub const UNIT: u32 = 1000;
}

/// A node: the other end of a tunnel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Underlay address; IPv4 as `::ffff:a.b.c.d`.
    pub address: Ip6,
    /// Identity of the node; 0: the index is free.
    pub ident: u64,
    /// 1 when the underlay address is IPv6.
    pub ipv6: u8,
    /// Padding.
    pub pad: [u8; 7],
}
const _: () = assert!(size_of::<Node>() == 32);

/// Key of the tag table: a tag means a backend only within one service, so that a packet for one
/// service can never reach a task of another.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TagKey {
    /// Dense number of the service.
    pub service: u32,
    /// The tag.
    pub tag: u32,
}

/// A flow as one side sees it: key of the flow tables. 16 bytes for IPv4, 40 for IPv6.
///
/// Forward tables: source is the client, destination what it connected to. Reverse tables: source
/// is the task, destination the client as the task sees it.
///
/// Aligned to 8, so that the compiler builds it with wide stores rather than byte by byte.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub sport: [u8; 2],
    /// Destination port.
    pub dport: [u8; 2],
    /// IP protocol number.
    pub protocol: u32,
}
const _: () = assert!(size_of::<FlowKey<Ip4>>() == 16);
const _: () = assert!(size_of::<FlowKey<Ip6>>() == 40);

/// [`Forward::flags`] and [`Reverse::flags`].
pub mod flow_flag {
    /// The client has sent FIN.
    pub const CLIENT_FIN: u8 = 1;
    /// The task has sent FIN.
    pub const TASK_FIN: u8 = 2;
    /// Either has sent RST.
    pub const RESET: u8 = 4;
    /// TCP: something other than the SYN was seen. UDP: both sides have spoken.
    pub const ESTABLISHED: u8 = 8;
    /// The source is translated to this node's address and [`super::Forward::alias`].
    pub const SOURCE_NAT: u8 = 16;
    /// Came from another node, which could not serve it: it goes no further than one more node.
    pub const HOPPED: u8 = 32;
    /// Entered here by a routed virtual address: the client knows it by the target port.
    pub const ROUTED: u8 = 64;
}

/// A flow from a client: which task it has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// Position of the backend.
    pub backend: u32,
    /// Generation of the backend that the flow was given.
    pub generation: u16,
    /// A set of [`flow_flag`].
    pub flags: u8,
    /// Zero.
    pub pad: u8,
    /// Low 32 bits of jiffies when a packet was last noted; at most a second old.
    pub last: u32,
    /// Source port that the task sees, when it is not the client's own; else zero.
    pub alias: [u8; 2],
    /// The node it came from through the tunnel; 0: it entered the mesh here.
    pub from: u16,
    /// Interface on which it entered, for the way back; 0: this host's own sockets.
    pub ifindex: u32,
    /// Dense number of the service.
    pub service: u32,
}
const _: () = assert!(size_of::<Forward>() == 24);

/// The way back of a flow: what a reply of the task becomes, and where it goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reverse<A> {
    /// The address that the client connected to: the new source.
    pub src: A,
    /// The client: the new destination.
    pub dst: A,
    /// The published port: the new source port, but for [`flow_flag::ROUTED`].
    pub sport: [u8; 2],
    /// The client's port: the new destination port.
    pub dport: [u8; 2],
    /// Position of the backend; 0 for a translated source.
    pub backend: u32,
    /// Interface towards the client; 0: this host's own sockets.
    pub ifindex: u32,
    /// Low 32 bits of jiffies when a packet was last noted.
    pub last: u32,
    /// Dense number of the service.
    pub service: u32,
    /// The node that the client entered by; 0: here.
    pub node: u16,
    /// A set of [`flow_flag`].
    pub flags: u8,
    /// Zero.
    pub pad: u8,
}
const _: () = assert!(size_of::<Reverse<Ip4>>() == 32);
const _: () = assert!(size_of::<Reverse<Ip6>>() == 56);

/// Key of the table of rewritten sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketKey {
    /// `SO_COOKIE`.
    pub cookie: u64,
    /// The address that the socket really talks to; IPv4 as `::ffff:a.b.c.d`.
    pub addr: Ip6,
    /// The port that it really talks to.
    pub port: [u8; 2],
    /// Zero.
    pub pad: u16,
    /// Zero.
    pub pad2: u32,
}
const _: () = assert!(size_of::<SocketKey>() == 32);

/// What the program believes it talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketPeer {
    /// Address; IPv4 as `::ffff:a.b.c.d`.
    pub addr: Ip6,
    /// Port.
    pub port: [u8; 2],
    /// Zero.
    pub pad: u16,
    /// Backend that was picked at connect time; the tunnel's program keeps to it. Of a virtual
    /// address: the cell of `VIP_TASKS` that was picked.
    pub backend: u32,
}
const _: () = assert!(size_of::<SocketPeer>() == 24);

/// Counters of a service or backend, one a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// New flows.
    pub connections: u64,
    /// Packets from clients.
    pub rx_packets: u64,
    /// Bytes from clients.
    pub rx_bytes: u64,
    /// Packets to clients.
    pub tx_packets: u64,
    /// Bytes to clients.
    pub tx_bytes: u64,
    /// SYNs that the task has accepted, on the task's own node. Of a published port: 0.
    pub accepted: u64,
    /// SYNs that the task has refused with a reset, on the task's own node. Of a published port: 0.
    pub refused: u64,
}
const _: () = assert!(size_of::<Counters>() == 56);

/// Questions of the loader to the kernel, answered by the `probe` program.
pub mod probe {
    /// How many jiffies are it? (low 31 bits)
    pub const JIFFIES: u8 = 1;
    /// Does `bpf_l4_csum_replace` know [`BPF_F_IPV6`]? (0: yes)
    pub const CSUM_IPV6: u8 = 2;
    /// Flag of `bpf_l4_csum_replace`, Linux 6.16: the packet is IPv6, where no header checksum
    /// makes up for a change of address.
    pub const BPF_F_IPV6: u64 = 1 << 7;
}
