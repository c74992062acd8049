//! The ways out: to a local task, through the tunnel, back to a client.

use aya_ebpf::{
    bindings::{BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX},
    helpers::generated,
};
use weir_abi::{Config, DropReason, FlowKey, Node, SENDER_MAC, TUNNEL_MAC, via};

use crate::{
    checksum,
    family::Family,
    fate::{NEXT, To, Way},
    maps::{BACKENDS, NODES},
    packet::{Ethernet, Frame, Packet, Ports, Tcp, tcp_flag},
    skb::Skb,
};

/// Offsets of the checksum in the transport headers.
const TCP_CHECK: u32 = 16;
const UDP_CHECK: u32 = 6;

/// Most TCP options that are searched for the segment size. Stacks send it first.
const OPTIONS: usize = 8;

/// Gives the packet new addresses and ports, and one hop less.
#[inline(always)]
pub fn rewrite<F: Family>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    new: &FlowKey<F::Addr>,
    config: &Config,
) -> Result<(), DropReason> {
    if packet.ttl <= 1 {
        return Err(DropReason::TimeToLive);
    }
    let old = &packet.key;
    let pseudo = F::write(skb, old, new).ok_or(DropReason::Rewrite)?;
    let ports_change = old.sport != new.sport || old.dport != new.dport;
    let addresses_change = old.src != new.src || old.dst != new.dst;
    let l4 = packet.l4 & 0x7f;
    if ports_change {
        let ports = skb.at::<Ports>(l4 as usize).ok_or(DropReason::Rewrite)?;
        // SAFETY: `at` checked the bounds.
        unsafe {
            (*ports).src = new.sport;
            (*ports).dst = new.dport;
        }
    }
    let udp = packet.is_udp();
    let check = l4 + if udp { UDP_CHECK } else { TCP_CHECK };
    if addresses_change && !skb.fix_pseudo(check, pseudo, udp, F::pseudo_flags(config)) {
        return Err(DropReason::Rewrite);
    }
    if ports_change {
        let diff = checksum::diff_ports((old.sport, old.dport), (new.sport, new.dport));
        if !skb.fix_header(check, checksum::fold32(diff), udp) {
            return Err(DropReason::Rewrite);
        }
    }
    Ok(())
}

/// Carries out a [`Way`] for a packet that is rewritten already.
#[inline(always)]
pub fn go<F: Family>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    way: Way,
    config: &Config,
) -> Result<i32, DropReason> {
    match way.to {
        To::Task => to_task(skb, way.index),
        To::Node => to_node::<F>(skb, packet, way, config),
        To::Interface => Ok(skb.to_neighbour(way.index)),
        To::Around => {
            set_macs(skb, TUNNEL_MAC)?;
            Ok(skb.into(config.tunnel_ifindex))
        }
        To::Reflect => {
            swap_macs(skb)?;
            Ok(skb.out_of(skb.ifindex()))
        }
        To::Stack => Ok(NEXT),
    }
}

#[inline(always)]
fn to_task(skb: Skb, index: u32) -> Result<i32, DropReason> {
    let backend = BACKENDS.get(index).ok_or(DropReason::BackendGone)?;
    match backend.via {
        via::PEER => {
            set_macs(skb, backend.mac)?;
            Ok(skb.to_peer(backend.ifindex))
        }
        via::NEIGHBOUR => Ok(skb.to_neighbour(backend.ifindex)),
        _ => Err(DropReason::Unreachable),
    }
}

#[inline(always)]
fn to_node<F: Family>(
    skb: Skb,
    packet: &Packet<F::Addr>,
    way: Way,
    config: &Config,
) -> Result<i32, DropReason> {
    let node = NODES.get(way.index).ok_or(DropReason::UnknownNode)?;
    if node.ident == 0 {
        return Err(DropReason::UnknownNode);
    }
    set_macs(skb, TUNNEL_MAC)?;
    if packet.flags & tcp_flag::SYN != 0 && !clamp_segment_size(skb, packet.l4, F::mss(config)) {
        return Err(DropReason::Rewrite);
    }
    if !set_tunnel_key(skb, node, way.tag) {
        return Err(DropReason::Rewrite);
    }
    if skb.ingress_ifindex() == 0 {
        // From a socket of this host, on the tunnel device's own egress hook: it goes on there.
        return Ok(NEXT);
    }
    Ok(skb.out_of(config.tunnel_ifindex))
}

#[inline(always)]
fn swap_macs(skb: Skb) -> Result<(), DropReason> {
    let eth = skb.at::<Ethernet>(0).ok_or(DropReason::Rewrite)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        let dst = (*eth).dst;
        (*eth).dst = (*eth).src;
        (*eth).src = dst;
    }
    Ok(())
}

#[inline(always)]
fn set_macs(skb: Skb, dst: [u8; 6]) -> Result<(), DropReason> {
    let eth = skb.at::<Ethernet>(0).ok_or(DropReason::Rewrite)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        (*eth).dst = dst;
        (*eth).src = SENDER_MAC;
    }
    Ok(())
}

/// `struct bpf_tunnel_key` up to, not including, the local address: the kernel then chooses the
/// source by its routing table. Its own size is one of those that the helpers accept.
#[repr(C)]
pub struct TunnelKey {
    pub id: u32,
    /// IPv4: the first word, in machine order. IPv6: all four, in network order.
    pub remote: [u32; 4],
    tos: u8,
    ttl: u8,
    ext: u16,
    label: u32,
}
const _: () = assert!(size_of::<TunnelKey>() == 28);

impl TunnelKey {
    #[inline(always)]
    pub fn new(id: u32, remote: [u32; 4]) -> Self {
        Self { id, remote, tos: 0, ttl: 64, ext: 0, label: 0 }
    }

    /// The kernel's answer: 0 for success.
    #[inline(always)]
    pub fn read(&mut self, skb: Skb, flags: u64) -> i64 {
        let key = (&raw mut *self).cast();
        // SAFETY: the key is as long as the size says.
        unsafe {
            generated::bpf_skb_get_tunnel_key(skb.raw(), key, size_of::<Self>() as u32, flags)
        }
    }

    #[inline(always)]
    fn write(&mut self, skb: Skb, flags: u64) -> bool {
        let key = (&raw mut *self).cast();
        let size = size_of::<Self>() as u32;
        // SAFETY: as above.
        unsafe { generated::bpf_skb_set_tunnel_key(skb.raw(), key, size, flags) == 0 }
    }
}

#[inline(always)]
fn set_tunnel_key(skb: Skb, node: &Node, tag: u32) -> bool {
    let plain = u64::from(BPF_F_ZERO_CSUM_TX);
    let words = node.address.words();
    if node.ipv6 != 0 {
        TunnelKey::new(tag, words).write(skb, plain | u64::from(BPF_F_TUNINFO_IPV6))
    } else {
        TunnelKey::new(tag, [u32::from_be(words[3]), 0, 0, 0]).write(skb, plain)
    }
}

/// Lowers the maximum segment size that a SYN announces to what fits the tunnel, so that TCP never
/// meets the tunnel's MTU. A SYN without the option keeps the default of 536 or 1220, which fits.
#[inline(always)]
fn clamp_segment_size(skb: Skb, l4: u32, most: u16) -> bool {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const MSS: u8 = 2;
    let l4 = (l4 & 0x7f) as usize;
    let Some(tcp) = skb.at::<Tcp>(l4) else { return false };
    // SAFETY: `at` checked the bounds; so below.
    let end = usize::from(unsafe { (*tcp).offset } >> 4) * 4;
    let mut at = size_of::<Tcp>();
    for _ in 0..OPTIONS {
        if at + 4 > end {
            return true;
        }
        let Some(option) = skb.at::<[u8; 4]>(l4 + (at & 0x3f)) else { return true };
        // SAFETY: as above.
        let [kind, len, high, low] = unsafe { *option };
        match kind {
            END => return true,
            NOP => at += 1,
            MSS if len == 4 => {
                let old = [high, low];
                if u16::from_be_bytes(old) <= most {
                    return true;
                }
                let new = most.to_be_bytes();
                // SAFETY: as above.
                unsafe { *option = [kind, len, new[0], new[1]] };
                // At an odd offset the high byte is the low one of its word, and the low byte the high
                // one of the next.
                let odd = at & 1 != 0;
                let word = |v: [u8; 2]| if odd { [0, v[0], v[1], 0] } else { [v[0], v[1], 0, 0] };
                let diff = checksum::fold32(checksum::diff4(word(old), word(new)));
                return skb.fix_header(l4 as u32 + TCP_CHECK, diff, false);
            }
            _ if len < 2 => return true,
            _ => at += usize::from(len),
        }
    }
    true
}
