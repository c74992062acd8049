//! The maps. Names are the pinned names; the loader refers to them by these strings.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use weir_abi::{
    Backend, Client, Config, Counters, DroppedPacket, FlowKey, Forward, Ip4, Ip6, Load, Node,
    PortCell, REASONS, Reverse, RoutedKey, Routing, Service, SocketKey, SocketPeer, Space, TagKey,
    Vip, VipKey, size,
};

/// Cell 0: what the programs know of the host.
#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, BPF_F_MMAPABLE);

/// Published ports: `weir_abi::port_cell` is the index.
#[map]
pub static PORTS: Array<PortCell> = Array::pinned(size::PORTS, BPF_F_MMAPABLE);

/// Published ports by what stands for them at virtual addresses that packets are routed to.
#[map]
pub static ROUTED: HashMap<RoutedKey, u32> = HashMap::pinned(size::ROUTED, BPF_F_NO_PREALLOC);

/// Cell 0: whether there is anything in `ROUTED`.
#[map]
pub static ROUTING: Array<Routing> = Array::pinned(1, BPF_F_MMAPABLE);

/// Service records.
#[map]
pub static RECORDS: Array<Service> = Array::pinned(size::RECORDS, BPF_F_MMAPABLE);

/// Who may be a client: ranges of addresses by list, the longest deciding.
#[map]
pub static ACCESS: LpmTrie<Client, u32> = LpmTrie::pinned(size::ACCESS, 0);

/// The pick table: cells name backends, records name runs of cells.
#[map]
pub static PICKS: Array<u32> = Array::pinned(size::PICKS, BPF_F_MMAPABLE);

/// Backends.
#[map]
pub static BACKENDS: Array<Backend> = Array::pinned(size::BACKENDS, BPF_F_MMAPABLE);

/// How laden backends are, for services that balance by that.
#[map]
pub static LOADS: Array<Load> = Array::pinned(size::BACKENDS, BPF_F_MMAPABLE);

/// Nodes.
#[map]
pub static NODES: Array<Node> = Array::pinned(size::NODES, BPF_F_MMAPABLE);

/// Nodes by underlay address: who may send through the tunnel.
#[map]
pub static SENDERS: HashMap<Ip6, u32> = HashMap::pinned(size::NODES, BPF_F_NO_PREALLOC);

/// Local tasks by tag.
#[map]
pub static TAGS: HashMap<TagKey, u32> = HashMap::pinned(size::BACKENDS, BPF_F_NO_PREALLOC);

/// This host's own addresses; IPv4 as `::ffff:a.b.c.d`.
#[map]
pub static LOCAL: HashMap<Ip6, u32> = HashMap::pinned(4096, BPF_F_NO_PREALLOC);

/// Bridges by the interface index of their ports.
#[map]
pub static BRIDGES: HashMap<u32, u32> = HashMap::pinned(1 << 14, BPF_F_NO_PREALLOC);

/// Flows from clients, IPv4.
#[map]
pub static FORWARD4: LruHashMap<FlowKey<Ip4>, Forward> = LruHashMap::pinned(size::FLOWS, 0);

/// Flows from clients, IPv6.
#[map]
pub static FORWARD6: LruHashMap<FlowKey<Ip6>, Forward> = LruHashMap::pinned(size::FLOWS, 0);

/// Ways back, IPv4.
#[map]
pub static REVERSE4: LruHashMap<FlowKey<Ip4>, Reverse<Ip4>> = LruHashMap::pinned(size::FLOWS, 0);

/// Ways back, IPv6.
#[map]
pub static REVERSE6: LruHashMap<FlowKey<Ip6>, Reverse<Ip6>> = LruHashMap::pinned(size::FLOWS, 0);

/// Network namespaces that are attached to networks, by cookie.
#[map]
pub static SPACES: HashMap<u64, Space> = HashMap::pinned(size::SPACES, BPF_F_NO_PREALLOC);

/// Where virtual addresses are found in `VIPS`.
#[map]
pub static VIP_SLOTS: HashMap<VipKey, u32> = HashMap::pinned(size::VIPS, BPF_F_NO_PREALLOC);

/// What virtual addresses stand for.
#[map]
pub static VIPS: Array<Vip> = Array::pinned(size::VIPS, BPF_F_MMAPABLE);

/// Addresses of the tasks that virtual addresses stand for.
#[map]
pub static VIP_TASKS: Array<Ip6> = Array::pinned(size::VIP_TASKS, BPF_F_MMAPABLE);

/// Sockets that were redirected when they connected.
#[map]
pub static SOCKETS: LruHashMap<SocketKey, SocketPeer> = LruHashMap::pinned(1 << 16, 0);

/// Round-robin position of each service.
#[map]
pub static TURNS: Array<u32> = Array::pinned(size::SERVICES, 0);

/// Counters of published ports, by `PortCell::counters`.
#[map]
pub static FRONTEND_STATS: PerCpuArray<Counters> = PerCpuArray::pinned(size::FRONTENDS, 0);

/// Counters of backends.
#[map]
pub static BACKEND_STATS: PerCpuArray<Counters> = PerCpuArray::pinned(size::BACKENDS, 0);

/// Packets not forwarded, by `weir_abi::DropReason`.
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(REASONS, 0);

/// The last packets that were not forwarded: a ring a CPU.
#[map]
pub static LAST_DROPS: PerCpuArray<DroppedPacket> = PerCpuArray::pinned(size::LAST_DROPS, 0);

/// Cell 0: packets written to the ring so far.
#[map]
pub static DROP_TURN: PerCpuArray<u64> = PerCpuArray::pinned(1, 0);
