//! Flows: which task a packet belongs to, and the memory of it.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    maps::lpm_trie::Key,
};
use weir_abi::{
    Backend, Client, Config, Counters, DropReason, FlowKey, Forward, Ip6, Load, PortCell, Region,
    Reverse, RoutedKey, Routing, Service, Timeouts, backend_state, balance, flow_flag, port_cell,
    service_flag, via,
};

use crate::{
    family::Family,
    hash,
    maps::{
        ACCESS, BACKEND_STATS, BACKENDS, CONFIG, FRONTEND_STATS, LOADS, PICKS, PORTS, RECORDS,
        ROUTED, ROUTING, TURNS,
    },
    packet::{Packet, tcp_flag},
    skb::{Skb, now, random},
};

/// Cells looked at when the first choice is not to be had: a task may start to drain between the
/// write of its state and the flip of the record.
const TRIES: u32 = 4;

/// Tries to find a free source port. A client with a quarter of the ports in use toward one task
/// fails once in four thousand million flows.
const PORT_TRIES: u32 = 16;

/// Source ports below this are not given to translated flows.
const FIRST_ALIAS: u32 = 1024;

/// Flags that mean nothing on the way back.
const OF_FORWARD: u8 = flow_flag::SOURCE_NAT | flow_flag::HOPPED;

/// Where a flow enters this node.
#[derive(Clone, Copy)]
pub struct Origin {
    /// The node that sent it through the tunnel; 0: it enters the mesh here.
    pub from: u16,
    /// Interface for the way back; 0: this host's own sockets.
    pub ifindex: u32,
    /// Whether tasks see this node as the client (the client's address means nothing elsewhere).
    pub translate: bool,
    /// Whether another node has forwarded it already without having a task for it.
    pub hopped: bool,
}

/// What is published at a port.
#[derive(Clone, Copy)]
pub struct Frontend {
    pub cell: PortCell,
    pub service: &'static Service,
    /// The published port.
    pub port: [u8; 2],
    /// `flow_flag::ROUTED` if the client named a routed virtual address, which is this node's as much as any
    /// other's; else 0.
    pub routed: u8,
}

/// A backend and its position.
#[derive(Clone, Copy)]
pub struct Choice {
    pub index: u32,
    pub backend: &'static Backend,
}

/// What a port means to clients of this node, if it is published.
#[inline(always)]
pub fn entrance(udp: bool, port: [u8; 2]) -> Option<Frontend> {
    frontend(udp, port).filter(|found| found.service.flags & service_flag::WITHHELD == 0)
}

/// Whether new clients of this family are left to whoever has the port on this host.
#[inline(always)]
pub fn is_left<F: Family>(service: &Service) -> bool {
    let (v4, v6) = (service.pick4.len, service.pick6.len);
    service.flags & service_flag::WITHHELD != 0
        || service.flags & service_flag::SHARED != 0 && F::pick(service).len == 0 && v4 | v6 != 0
}

/// What a port means in the mesh, if it is published.
#[inline(always)]
pub fn frontend(udp: bool, port: [u8; 2]) -> Option<Frontend> {
    let cell = *PORTS.get(port_cell(udp, port))?;
    if cell.record == 0 {
        return None;
    }
    let service = RECORDS.get(cell.record)?;
    Some(Frontend { cell, service, port, routed: 0 })
}

/// What an address and port mean to clients: at a routed virtual address a port stands for a published one,
/// by which other nodes know it.
///
/// If the verifier could tell the two cases apart, it would go through all that follows twice, and through
/// most of that several times.
#[inline(always)]
pub fn frontend_at<F: Family>(addr: F::Addr, udp: bool, port: [u8; 2]) -> Option<Frontend> {
    // SAFETY: a cell of a map.
    let Routing { any, zero } = unsafe { ROUTING.get_ptr(0)?.read_volatile() };
    let mut meant = u32::from(u16::from_be_bytes(port)) | zero;
    if any != 0 {
        let key = RoutedKey { addr: F::wide(addr), port, udp: udp.into(), pad: 0 };
        if let Some(published) = ROUTED.get_ptr(key) {
            // SAFETY: a value of a map.
            meant = unsafe { published.read_volatile() };
        }
    }
    let found = frontend(udp, (meant as u16).to_be_bytes())?;
    Some(Frontend { routed: (meant >> 16) as u8, ..found })
}

/// What the programs know of the host.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// The backend of a flow, if the flow may go on with it.
#[inline(always)]
pub fn continues<A>(
    flow: &Forward,
    packet: &Packet<A>,
    timeouts: &Timeouts,
    now: u32,
) -> Option<Choice> {
    let backend = BACKENDS.get(flow.backend)?;
    if backend.generation != flow.generation || backend.state == backend_state::GONE {
        return None;
    }
    if since(flow.last, now) > timeout(flow.flags, packet.is_udp(), timeouts) {
        return None;
    }
    // A SYN on a flow that has ended, or whose task takes no new connections, opens a new one:
    // clients reuse their ports.
    let ended = flow_flag::CLIENT_FIN | flow_flag::TASK_FIN | flow_flag::RESET;
    if packet.is_syn() && (flow.flags & ended != 0 || backend.state != backend_state::ACTIVE) {
        return None;
    }
    Some(Choice { index: flow.backend, backend })
}

/// How long a flow in this state may be silent.
#[inline(always)]
fn timeout(flags: u8, udp: bool, timeouts: &Timeouts) -> u32 {
    let both = flow_flag::CLIENT_FIN | flow_flag::TASK_FIN;
    if udp {
        if flags & flow_flag::ESTABLISHED != 0 {
            timeouts.udp_both_ways
        } else {
            timeouts.udp_one_way
        }
    } else if flags & flow_flag::RESET != 0 {
        timeouts.tcp_reset
    } else if flags & both == both {
        timeouts.tcp_fin
    } else if flags & flow_flag::ESTABLISHED != 0 {
        timeouts.tcp_established
    } else {
        timeouts.tcp_syn
    }
}

/// Flags of a flow after a packet from the client.
#[inline(always)]
pub fn flags_from_client<A>(old: u8, packet: &Packet<A>) -> u8 {
    if packet.is_udp() {
        return old;
    }
    let mut flags = old & !flow_flag::RESET;
    if packet.flags & (tcp_flag::SYN | tcp_flag::RST) == 0 {
        flags |= flow_flag::ESTABLISHED;
    }
    if packet.flags & tcp_flag::FIN != 0 {
        flags |= flow_flag::CLIENT_FIN;
    }
    if packet.flags & tcp_flag::RST != 0 {
        flags |= flow_flag::RESET;
    }
    flags
}

/// Flags of a flow after a packet from the task.
#[inline(always)]
pub fn flags_from_task<A>(old: u8, packet: &Packet<A>) -> u8 {
    if packet.is_udp() {
        return old | flow_flag::ESTABLISHED;
    }
    let mut flags = old;
    if packet.flags & tcp_flag::FIN != 0 {
        flags |= flow_flag::TASK_FIN;
    }
    if packet.flags & tcp_flag::RST != 0 {
        flags |= flow_flag::RESET;
    }
    flags
}

/// Whether a service admits a client. A list that is not there admits nobody.
#[inline(always)]
pub fn admits(service: &Service, client: Ip6) -> bool {
    if service.list == 0 {
        return true;
    }
    let client = Client { list: service.list, addr: client.words() };
    ACCESS.get(Key::new(Client::BITS, client)) == Some(&1)
}

/// Chooses a task for a new flow from a region of the pick table.
#[inline(always)]
pub fn pick<F: Family>(
    service: &Service,
    region: Region,
    client: F::Addr,
    port: [u8; 2],
    wanted: impl Fn(&Backend) -> bool,
) -> Option<Choice> {
    if region.len == 0 {
        return None;
    }
    let mut cell = match service.balance {
        balance::MAGLEV => {
            let client = F::word(client) ^ (u64::from(u16::from_be_bytes(port)) << 48);
            hash::reduce(hash::mix(client, service.ident), region.len)
        }
        balance::SOURCE => hash::reduce(hash::mix(F::word(client), service.ident), region.len),
        balance::LEAST => {
            let one = hash::reduce(u64::from(random()) << 32, region.len);
            let other = hash::reduce(u64::from(random()) << 32, region.len);
            if laden(region, other) < laden(region, one) { other } else { one }
        }
        balance::RANDOM => hash::reduce(u64::from(random()) << 32, region.len),
        _ => turn(service.id) % region.len,
    };
    for _ in 0..TRIES {
        if let Some(choice) = choice_at(region.offset.wrapping_add(cell))
            && choice.backend.state == backend_state::ACTIVE
            && choice.backend.via != via::UNREACHABLE
            && wanted(choice.backend)
        {
            return Some(choice);
        }
        cell += 1;
        if cell >= region.len {
            cell = 0;
        }
    }
    None
}

#[inline(always)]
fn choice_at(cell: u32) -> Option<Choice> {
    let index = *PICKS.get(cell)?;
    Some(Choice { index, backend: BACKENDS.get(index)? })
}

/// How laden the task in a cell of a region is.
#[inline(always)]
fn laden(region: Region, cell: u32) -> u32 {
    let index = PICKS.get(region.offset.wrapping_add(cell)).copied().unwrap_or_default();
    LOADS.get(index).map_or(u32::MAX, |load| load.flows)
}

/// Notes that a task has one flow more, where that matters. CPUs that do so at once may lose one: the
/// next census finds it.
#[inline(always)]
pub fn burden(service: &Service, backend: u32) {
    if service.balance != balance::LEAST {
        return;
    }
    if let Some(load) = LOADS.get_ptr_mut(backend) {
        // SAFETY: a cell of a map; races are accepted, see above.
        unsafe {
            let step = if (*load).step == 0 { Load::UNIT } else { (*load).step };
            (*load).flows = (*load).flows.saturating_add(step);
        }
    }
}

/// The next round-robin position. Two CPUs may now and then take the same: cheaper than an atomic
/// that all of them fight for, and no worse than chance.
#[inline(always)]
fn turn(service: u32) -> u32 {
    match TURNS.get_ptr_mut(service) {
        // SAFETY: a cell of a map; races are accepted, see above.
        Some(turn) => unsafe {
            let position = *turn;
            *turn = position.wrapping_add(1);
            position
        },
        None => 0,
    }
}

/// Makes sure that replies find their way back: `key` is a reply as the task sends it, `value` what
/// it becomes. Another flow may own `key` (the same client port through two addresses of the mesh):
/// then the flow gets another source port, which is answered.
#[inline(always)]
pub fn ensure_reverse<F: Family>(
    key: &mut FlowKey<F::Addr>,
    value: &Reverse<F::Addr>,
    timeouts: &Timeouts,
) -> Result<[u8; 2], DropReason> {
    match take_reverse::<F>(key, value, timeouts, BPF_ANY) {
        Ok(true) => return Ok(key.dport),
        Ok(false) => {}
        Err(reason) => return Err(reason),
    }
    for _ in 0..PORT_TRIES {
        let port = FIRST_ALIAS + hash::reduce(u64::from(random()) << 32, 65536 - FIRST_ALIAS);
        key.dport = (port as u16).to_be_bytes();
        if let Ok(true) = take_reverse::<F>(key, value, timeouts, BPF_NOEXIST) {
            return Ok(key.dport);
        }
    }
    Err(DropReason::NoSourcePort)
}

/// Writes an entry of the reverse table unless another flow owns it.
///
/// A flow that both sides have ended owns it until `tcp_fin` is over: the task is in TIME_WAIT for
/// it, and takes a SYN only with a later sequence number or timestamp (tcp_timewait_state_process of
/// Linux). Clients begin both anew for each address they talk to. After a reset nothing is left.
#[inline(always)]
fn take_reverse<F: Family>(
    key: &FlowKey<F::Addr>,
    value: &Reverse<F::Addr>,
    timeouts: &Timeouts,
    insert: u32,
) -> Result<bool, DropReason> {
    let reverse = F::reverse();
    let Some(found) = reverse.get_ptr_mut(key) else {
        return match reverse.insert(key, value, u64::from(insert)) {
            Ok(()) => Ok(true),
            Err(_) => Err(DropReason::FlowTable),
        };
    };
    // SAFETY: a value of a map; racing writers write the same or lose.
    let found = unsafe { &mut *found };
    let same = found.src == value.src
        && found.sport == value.sport
        && found.dst == value.dst
        && found.dport == value.dport;
    let udp = key.protocol == u32::from(crate::packet::UDP);
    let over = found.flags & flow_flag::RESET != 0
        || since(found.last, value.last) > timeout(found.flags, udp, timeouts);
    if same || over {
        *found = *value;
    }
    Ok(same || over)
}

/// Remembers a flow. `reverse_here`: replies pass this node's reverse table, since the task is here
/// or the source is translated here. Answers the forward entry.
#[inline(always)]
pub fn remember<F: Family>(
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    choice: Choice,
    origin: Origin,
    config: &Config,
) -> Result<Forward, DropReason> {
    let mut flow = Forward {
        backend: choice.index,
        generation: choice.backend.generation,
        flags: flags_from_client(0, packet),
        pad: 0,
        last: now(),
        alias: [0; 2],
        from: origin.from,
        ifindex: origin.ifindex,
        service: frontend.service.id,
    };
    if origin.translate {
        flow.flags |= flow_flag::SOURCE_NAT;
    }
    if origin.hopped {
        flow.flags |= flow_flag::HOPPED;
    }
    flow.flags |= frontend.routed;
    if choice.backend.via != via::TUNNEL || origin.translate || frontend.routed != 0 {
        let seen = reverse_for::<F>(packet, frontend, choice, &flow, config)?;
        if seen != packet.key.sport {
            flow.alias = seen;
        }
    }
    Ok(flow)
}

/// Writes or refreshes the way back of `flow`; answers the client's port as the task sees it.
#[inline(always)]
pub fn reverse_for<F: Family>(
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    choice: Choice,
    flow: &Forward,
    config: &Config,
) -> Result<[u8; 2], DropReason> {
    let remote = choice.backend.via == via::TUNNEL;
    let client =
        if flow.flags & flow_flag::SOURCE_NAT != 0 { F::source(config) } else { packet.key.src };
    let port = if flow.alias == [0; 2] { packet.key.sport } else { flow.alias };
    let mut key = FlowKey {
        src: if remote { packet.key.dst } else { F::addr(choice.backend) },
        dst: client,
        sport: if remote { frontend.port } else { frontend.service.target },
        dport: port,
        protocol: packet.key.protocol,
    };
    let value = Reverse {
        src: packet.key.dst,
        dst: packet.key.src,
        sport: frontend.port,
        dport: packet.key.sport,
        backend: if remote { 0 } else { choice.index },
        ifindex: flow.ifindex,
        last: flow.last,
        service: flow.service,
        node: flow.from,
        flags: flow.flags & !OF_FORWARD,
        pad: 0,
    };
    ensure_reverse::<F>(&mut key, &value, &frontend.service.timeouts)
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq)]
pub enum Direction {
    FromClient,
    ToClient,
}

/// Counts a packet that enters or leaves the mesh on this node.
#[inline(always)]
pub fn account(skb: Skb, direction: Direction, counters: u32, backend: u32) {
    // SAFETY: per-CPU cells.
    unsafe {
        if let Some(cell) = FRONTEND_STATS.get_ptr_mut(counters) {
            add(&mut *cell, skb, direction);
        }
        if let Some(cell) = BACKEND_STATS.get_ptr_mut(backend) {
            add(&mut *cell, skb, direction);
        }
    }
}

#[inline(always)]
fn add(cell: &mut Counters, skb: Skb, direction: Direction) {
    match direction {
        Direction::FromClient => {
            cell.rx_packets += skb.segments();
            cell.rx_bytes += skb.l3_len();
        }
        Direction::ToClient => {
            cell.tx_packets += skb.segments();
            cell.tx_bytes += skb.l3_len();
        }
    }
}

/// Counts a new flow.
#[inline(always)]
pub fn account_new(counters: u32, backend: u32) {
    // SAFETY: per-CPU cells.
    unsafe {
        if let Some(cell) = FRONTEND_STATS.get_ptr_mut(counters) {
            (*cell).connections += 1;
        }
        if let Some(cell) = BACKEND_STATS.get_ptr_mut(backend) {
            (*cell).connections += 1;
        }
    }
}

/// Counts what a task of this node says to a SYN. `flags`: of the flow, before this packet.
#[inline(always)]
pub fn account_answer<A>(backend: u32, flags: u8, packet: &Packet<A>) {
    let opening = tcp_flag::SYN | tcp_flag::RST;
    if packet.is_udp() || flags & flow_flag::ESTABLISHED != 0 || packet.flags & opening == 0 {
        return;
    }
    // 0: the task is another node's, which counts for itself.
    if backend != 0
        && let Some(cell) = BACKEND_STATS.get_ptr_mut(backend)
    {
        // SAFETY: per-CPU cells.
        unsafe {
            if packet.flags & tcp_flag::RST != 0 {
                (*cell).refused += 1;
            } else {
                (*cell).accepted += 1;
            }
        }
    }
}

/// Whether a flow's entry is due for a note of the time. Noting every packet would dirty a cache
/// line a packet; a second's precision is enough for timeouts of seconds.
#[inline(always)]
pub fn stale(last: u32, now: u32, config: &Config) -> bool {
    since(last, now) > config.hz
}

/// Jiffies from `last` to `now`. Another CPU may have noted a later time than this one has read: no
/// time has passed then, not 2^32 jiffies.
#[inline(always)]
fn since(last: u32, now: u32) -> u32 {
    let passed = now.wrapping_sub(last);
    if passed > i32::MAX as u32 { 0 } else { passed }
}
