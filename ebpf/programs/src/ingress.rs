//! Packets that enter the mesh on this node: from a client on an uplink, from a task or container
//! of this node, from a socket of this host.

use crate::{
    fate::{Fate, To, Way},
    flow::{
        self, Choice, Direction, Frontend, Origin, account, account_new, continues,
        flags_from_client, pick, remember, reverse_for, stale,
    },
    host,
    packet::Packet,
    reject::Answer,
    skb::{Skb, now},
};
use aya_ebpf::bindings::BPF_ANY;
use weir_abi::{Backend, Config, DropReason, FlowKey, Forward, Tag, balance, flow_flag, via};

/// Decides about a packet on an uplink, which may be for a published port of this node.
#[inline(always)]
pub fn from_wire<F: Answer>(skb: Skb, packet: &Packet<F::Addr>, config: &Config) -> Fate<F::Addr> {
    let key = &packet.key;
    let Some(frontend) = flow::frontend_at::<F>(key.dst, packet.is_udp(), key.dport) else {
        return Fate::pass(packet);
    };
    let origin = Origin { from: 0, ifindex: skb.ifindex(), translate: false, hopped: false };
    enter::<F>(skb, packet, frontend, origin, config)
}

/// Takes a packet for a published port: goes on with its flow, or begins one. At a port that a process
/// or another plane has, flows from before go on, and whoever has it gets the others.
#[inline(always)]
pub fn enter<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    origin: Origin,
    config: &Config,
) -> Fate<F::Addr> {
    let withheld = origin.ifindex != 0 && flow::is_left::<F>(frontend.service);
    if let Some(flow) = F::forward().get_ptr_mut(packet.key) {
        // SAFETY: a value of a map; racing writers write the same or lose.
        let flow = unsafe { &mut *flow };
        // The address was routed when the flow began and is not now, or the other way round: the port means
        // something else.
        let other = (flow.flags ^ frontend.routed) & flow_flag::ROUTED != 0;
        let anew = other || withheld && packet.is_syn() && flow.flags & flow_flag::ESTABLISHED != 0;
        if let Some(choice) = continues(flow, packet, &frontend.service.timeouts, now())
            && !anew
        {
            touch::<F>(packet, frontend, choice, flow, config);
            account(skb, Direction::FromClient, frontend.cell.counters, choice.index);
            return deliver::<F>(skb, packet, frontend, choice, flow, config);
        }
        if withheld && packet.is_syn() {
            // What follows must not be taken for the client's last connection.
            let _ = F::forward().remove(packet.key);
        }
    }
    if withheld && frontend.routed != 0 {
        // Whoever has the port has it at the node's own addresses.
        return Fate::answer(packet, DropReason::NoBackend, origin);
    }
    if withheld {
        return Fate::pass(packet);
    }
    begin::<F>(skb, packet, frontend, origin, config)
}

/// Notes that a flow is alive, at most once a second, and whenever its state changes. The way back
/// is refreshed with it, so that a lost reverse entry heals within a second.
#[inline(always)]
fn touch<F: Answer>(
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    choice: Choice,
    flow: &mut Forward,
    config: &Config,
) {
    let flags = flags_from_client(flow.flags, packet);
    let now = now();
    if flags == flow.flags && !stale(flow.last, now, config) {
        return;
    }
    flow.flags = flags;
    flow.last = now;
    if choice.backend.via != via::TUNNEL || flags & (flow_flag::SOURCE_NAT | flow_flag::ROUTED) != 0
    {
        // A clash is impossible here: the flow owns its reverse key. A full table is reported when
        // the next flow begins.
        let _ = reverse_for::<F>(packet, frontend, choice, flow, config);
    }
}

/// The first packet of a flow, or one whose flow is not known (any more).
#[inline(always)]
fn begin<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    origin: Origin,
    config: &Config,
) -> Fate<F::Addr> {
    let own_socket = origin.ifindex == 0;
    if !own_socket && frontend.routed == 0 && !F::is_local(packet.key.dst) {
        return Fate::pass(packet);
    }
    let opens = packet.is_syn() || packet.is_udp();
    if !packet.is_syn() && !own_socket && host::owns::<F>(skb, packet) {
        // A published port that lies in the ephemeral range: this is an answer to a connection
        // that the host itself opened from it.
        return Fate::pass(packet);
    }
    // A container counts as this node, which is what the task sees of it.
    let client = if origin.translate { F::source(config) } else { packet.key.src };
    if !flow::admits(frontend.service, F::wide(client)) {
        return Fate::drop(packet, DropReason::Denied);
    }
    let region = F::pick(frontend.service);
    // A segment in mid-flow whose entry was lost: Maglev gives it the task it had; any other way
    // of balancing would guess.
    let balance = frontend.service.balance;
    let consistent = balance == balance::MAGLEV || balance == balance::SOURCE;
    let choice = if opens || consistent {
        pick::<F>(frontend.service, region, packet.key.src, packet.key.sport, |_| true)
    } else {
        None
    };
    let Some(choice) = choice else {
        let reason = if opens { DropReason::NoBackend } else { DropReason::BackendGone };
        return Fate::answer(packet, reason, origin);
    };
    start::<F>(skb, packet, frontend, choice, origin, config)
}

/// Begins a flow with a task.
#[inline(always)]
pub fn start<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    choice: Choice,
    origin: Origin,
    config: &Config,
) -> Fate<F::Addr> {
    let flow = match remember::<F>(packet, frontend, choice, origin, config) {
        Ok(flow) => flow,
        Err(reason) => return Fate::drop(packet, reason),
    };
    if F::forward().insert(packet.key, flow, u64::from(BPF_ANY)).is_err() {
        return Fate::drop(packet, DropReason::FlowTable);
    }
    if origin.from == 0 {
        flow::burden(frontend.service, choice.index);
    }
    // What comes back for a second chance was counted when it entered.
    if origin.from == 0 && !origin.hopped {
        account_new(frontend.cell.counters, choice.index);
        account(skb, Direction::FromClient, frontend.cell.counters, choice.index);
    }
    deliver::<F>(skb, packet, frontend, choice, &flow, config)
}

/// What a packet of a flow becomes, and the way to its task.
#[inline(always)]
pub fn deliver<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    choice: Choice,
    flow: &Forward,
    config: &Config,
) -> Fate<F::Addr> {
    let backend: &Backend = choice.backend;
    let remote = backend.via == via::TUNNEL;
    let translated = flow.flags & flow_flag::SOURCE_NAT != 0;
    let new = FlowKey {
        src: if translated { F::source(config) } else { packet.key.src },
        dst: if remote { packet.key.dst } else { F::addr(backend) },
        sport: if flow.alias == [0; 2] { packet.key.sport } else { flow.alias },
        dport: if remote { frontend.port } else { frontend.service.target },
        ..packet.key
    };
    let own_socket = flow.ifindex == 0 && flow.from == 0;
    let way = if remote {
        let hop = if flow.from != 0 { Tag::HOPPED } else { 0 };
        Way::node(backend.node, backend.tag | hop)
    } else if own_socket && skb.ingress_ifindex() == 0 {
        Way::plain(To::Around)
    } else {
        Way::task(choice.index)
    };
    Fate::send(new, way)
}
