//! Packets from tasks and containers of this node: replies on their way back, and requests to
//! published ports.

use crate::{
    flow::{self, Direction, Origin, account, flags_from_task, stale},
    ingress,
    packet::Packet,
    reject::Answer,
    send,
    skb::{Fate, Skb, now},
};
use weir_abi::{Config, FlowKey, Reverse};

/// Takes a packet on the host side of a task's veth: only replies are of interest here; what a
/// container sends to a published port is taken at its bridge.
#[inline(always)]
pub fn from_task<F: Answer>(skb: Skb) -> Fate {
    let Ok(packet) = F::read(skb) else { return Fate::Pass };
    let Some(back) = F::reverse().get_ptr_mut(packet.key) else { return Fate::Pass };
    let Some(config) = flow::config() else { return Fate::Pass };
    // SAFETY: a value of a map; racing writers write the same or lose.
    send_back::<F>(skb, &packet, unsafe { &mut *back }, config)
}

/// Takes a packet on a bridge.
#[inline(always)]
pub fn from_bridge<F: Answer>(skb: Skb) -> Fate {
    let Ok(packet) = F::read(skb) else { return Fate::Pass };
    let Some(config) = flow::config() else { return Fate::Pass };
    if let Some(back) = F::reverse().get_ptr_mut(packet.key) {
        // SAFETY: as above.
        return send_back::<F>(skb, &packet, unsafe { &mut *back }, config);
    }
    let Some(frontend) = flow::frontend(packet.is_udp(), packet.key.dport) else {
        return Fate::Pass;
    };
    if !F::is_local(packet.key.dst) {
        return Fate::Pass;
    }
    // The container's address means something on this node's bridge only, and its own neighbours
    // would answer it directly: the task sees this node instead.
    let origin = Origin { from: 0, ifindex: skb.ifindex(), translate: true, hopped: false };
    ingress::enter::<F>(skb, &packet, frontend, origin, config)
}

/// Turns a reply into what the client expects, and sends it there.
#[inline(always)]
pub fn send_back<F: Answer>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    back: &mut Reverse<F::Addr>,
    config: &Config,
) -> Fate {
    let flags = flags_from_task(back.flags, packet);
    let now = now();
    if flags != back.flags || stale(back.last, now, config) {
        let news = flags != back.flags;
        back.flags = flags;
        back.last = now;
        if news {
            tell_forward::<F>(packet, back);
        }
    }
    let new = FlowKey {
        src: back.src,
        dst: back.dst,
        sport: back.sport,
        dport: back.dport,
        ..packet.key
    };
    let (node, ifindex, backend) = (back.node, back.ifindex, back.backend);
    if let Err(reason) = send::rewrite::<F>(skb, packet, &new, config) {
        return Fate::Drop(reason);
    }
    if node != 0 {
        return send::back_to_node::<F>(skb, packet, node, config);
    }
    if let Some(frontend) = flow::frontend(packet.is_udp(), new.sport) {
        account(skb, Direction::ToClient, frontend.cell.counters, backend);
    }
    send::to_client(skb, ifindex, config)
}

/// Lets the forward entry of a flow know what its task has said: that it answers, or has finished.
#[inline(always)]
fn tell_forward<F: Answer>(packet: &Packet<F::Addr>, back: &Reverse<F::Addr>) {
    let key = FlowKey {
        src: back.dst,
        dst: back.src,
        sport: back.dport,
        dport: back.sport,
        ..packet.key
    };
    if let Some(flow) = F::forward().get_ptr_mut(key) {
        // SAFETY: a value of a map; a flag lost to a race is set by the next packet.
        unsafe { (*flow).flags |= back.flags };
    }
}
