//! Packets that enter the mesh on this node: from a client on an uplink, from a task or container
//! of this node, from a socket of this host.

use crate::{
    flow::{
        self, Choice, Direction, Frontend, Origin, account, account_new, continues,
        flags_from_client, pick, remember, reverse_for, stale,
    },
    host,
    packet::{NotRead, Packet},
    reject,
    reject::Answer,
    send,
    skb::{Fate, Skb, now},
};
use aya_ebpf::bindings::BPF_ANY;
use weir_abi::{Backend, Config, DropReason, FlowKey, Forward, Tag, flow_flag, via};

/// Takes a packet that may be for a published port of this node.
#[inline(always)]
pub fn from_wire<F: Answer>(skb: Skb) -> Fate {
    let packet = match F::read(skb) {
        Ok(packet) => packet,
        Err(why) => return not_read::<F>(why),
    };
    let Some(frontend) = flow::frontend(packet.is_udp(), packet.key.dport) else {
        return Fate::Pass;
    };
    let Some(config) = flow::config() else { return Fate::Pass };
    let origin = Origin { from: 0, ifindex: skb.ifindex(), translate: false, hopped: false };
    enter::<F>(skb, &packet, frontend, origin, config)
}

/// What cannot be read is the stack's business: it is counted nowhere, since on an uplink it may be
/// anybody's.
#[inline(always)]
pub fn not_read<F: Answer>(why: NotRead) -> Fate {
    match why {
        NotRead::Other | NotRead::Fragment | NotRead::Malformed => Fate::Pass,
    }
}

/// Takes a packet for a published port: goes on with its flow, or begins one.
#[inline(always)]
pub fn enter<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    origin: Origin,
    config: &Config,
) -> Fate {
    if let Some(flow) = F::forward().get_ptr_mut(packet.key) {
        // SAFETY: a value of a map; racing writers write the same or lose.
        let flow = unsafe { &mut *flow };
        if let Some(choice) = continues(flow, packet, &frontend.service.timeouts, now()) {
            touch::<F>(packet, frontend, choice, flow, config);
            account(skb, Direction::FromClient, frontend.cell.counters, choice.index);
            return deliver::<F>(skb, packet, frontend, choice, flow, config);
        }
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
    if choice.backend.via != via::TUNNEL || flags & flow_flag::SOURCE_NAT != 0 {
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
) -> Fate {
    let own_socket = origin.ifindex == 0;
    if !own_socket && !F::is_local(packet.key.dst) {
        return Fate::Pass;
    }
    let opens = packet.is_syn() || packet.is_udp();
    if !packet.is_syn() && !own_socket && host::owns::<F>(skb, packet) {
        // A published port that lies in the ephemeral range: this is an answer to a connection
        // that the host itself opened from it.
        return Fate::Pass;
    }
    let region = F::pick(frontend.service);
    // A segment in mid-flow whose entry was lost: Maglev gives it the task it had; any other way
    // of balancing would guess.
    let consistent = frontend.service.balance == weir_abi::balance::MAGLEV;
    let choice = if opens || consistent {
        pick::<F>(frontend.service, region, packet.key.src, packet.key.sport, |_| true)
    } else {
        None
    };
    let Some(choice) = choice else {
        let reason = if opens { DropReason::NoBackend } else { DropReason::BackendGone };
        return reject::answer::<F>(skb, packet, reason, origin, config);
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
) -> Fate {
    let flow = match remember::<F>(packet, frontend, choice, origin, config) {
        Ok(flow) => flow,
        Err(reason) => return Fate::Drop(reason),
    };
    if F::forward().insert(packet.key, flow, u64::from(BPF_ANY)).is_err() {
        return Fate::Drop(DropReason::FlowTable);
    }
    if origin.from == 0 {
        account_new(frontend.cell.counters, choice.index);
        account(skb, Direction::FromClient, frontend.cell.counters, choice.index);
    }
    deliver::<F>(skb, packet, frontend, choice, &flow, config)
}

/// Sends a packet of a flow on to its task.
#[inline(always)]
pub fn deliver<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    frontend: Frontend,
    choice: Choice,
    flow: &Forward,
    config: &Config,
) -> Fate {
    let backend: &Backend = choice.backend;
    let remote = backend.via == via::TUNNEL;
    let translated = flow.flags & flow_flag::SOURCE_NAT != 0;
    let new = FlowKey {
        src: if translated { F::source(config) } else { packet.key.src },
        dst: if remote { packet.key.dst } else { F::addr(backend) },
        sport: if flow.alias == [0; 2] { packet.key.sport } else { flow.alias },
        dport: if remote { packet.key.dport } else { frontend.service.target },
        ..packet.key
    };
    if let Err(reason) = send::rewrite::<F>(skb, packet, &new, config) {
        return Fate::Drop(reason);
    }
    if remote {
        let hop = if flow.from != 0 { Tag::HOPPED } else { 0 };
        return send::to_node::<F>(skb, packet, backend.node, backend.tag | hop, config);
    }
    if skb.ingress_ifindex() == 0 && flow.ifindex == 0 && flow.from == 0 {
        // From this host's own socket, on the tunnel device's egress hook.
        return send::around(skb, config);
    }
    send::to_local_task(skb, backend)
}
