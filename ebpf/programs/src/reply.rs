//! Packets from tasks and containers of this node: replies on their way back, and requests to
//! published ports.

use crate::{
    fate::{Fate, Way},
    flow::{self, Direction, Origin, account, account_answer, flags_from_task, stale},
    ingress,
    maps::BRIDGES,
    packet::Packet,
    reject::Answer,
    skb::{Skb, now},
};
use weir_abi::{Config, FlowKey, Reverse, flow_flag};

/// Decides about a packet on a bridge, or on the host side of a veth that is a port of one. At the
/// port already, since netfilter may have its way with a bridged packet before it reaches the bridge
/// itself (`net.bridge.bridge-nf-call-iptables`, which Docker sets).
#[inline(always)]
pub fn from_container<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    config: &Config,
) -> Fate<F::Addr> {
    if let Some(back) = F::reverse().get_ptr_mut(packet.key) {
        // SAFETY: a value of a map; racing writers write the same or lose.
        return send_back::<F>(skb, packet, unsafe { &mut *back }, config);
    }
    let key = &packet.key;
    let Some(frontend) = flow::frontend_at::<F>(key.dst, packet.is_udp(), key.dport) else {
        return Fate::pass(packet);
    };
    if frontend.routed == 0 && !F::is_local(key.dst) {
        return Fate::pass(packet);
    }
    // A node without an address in this family cannot stand in for its containers.
    if F::source(config) == F::Addr::default() {
        return Fate::pass(packet);
    }
    // The way back is over the bridge, whose neighbours are known, not over its port.
    let ifindex = match BRIDGES.get_ptr(skb.ifindex()) {
        // SAFETY: a value of a map.
        Some(bridge) => unsafe { *bridge },
        None => skb.ifindex(),
    };
    // The container's address means something on this node's bridge only, and its own neighbours
    // would answer it directly: the task sees this node instead.
    let origin = Origin { from: 0, ifindex, translate: true, hopped: false };
    ingress::enter::<F>(skb, packet, frontend, origin, config)
}

/// What a reply becomes for the client, and the way to it.
#[inline(always)]
pub fn send_back<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    back: &mut Reverse<F::Addr>,
    config: &Config,
) -> Fate<F::Addr> {
    account_answer(back.backend, back.flags, packet);
    let mut sport = back.sport;
    if back.node == 0
        && let Some(frontend) = flow::frontend(packet.is_udp(), sport)
    {
        account(skb, Direction::ToClient, frontend.cell.counters, back.backend);
        if back.flags & flow_flag::ROUTED != 0 {
            sport = frontend.service.target;
        }
    }
    let flags = flags_from_task(back.flags, packet);
    let now = now();
    if flags != back.flags || stale(back.last, now, config) {
        let news = flags != back.flags;
        back.flags = flags;
        back.last = now;
        if news {
            tell_forward::<F>(packet, back, sport);
        }
    }
    let new = FlowKey { src: back.src, dst: back.dst, sport, dport: back.dport, ..packet.key };
    Fate::send(new, Way::client(back.node, back.ifindex))
}

/// Lets the forward entry of a flow know what its task has said: that it answers, or has finished. `asked`:
/// the port that the client knows.
#[inline(always)]
fn tell_forward<F: Answer>(packet: &Packet<F::Addr>, back: &Reverse<F::Addr>, asked: [u8; 2]) {
    let key =
        FlowKey { src: back.dst, dst: back.src, sport: back.dport, dport: asked, ..packet.key };
    if let Some(flow) = F::forward().get_ptr_mut(key) {
        // SAFETY: a value of a map; a flag lost to a race is set by the next packet.
        let flow = unsafe { &mut *flow };
        // The client may have a new flow by now, with another task. (0: the task is another node's.)
        if back.backend == 0 || flow.backend == back.backend {
            flow.flags |= back.flags;
        }
    }
}
