//! The answer to a client that cannot be served: a TCP reset, or "port unreachable", at once.
//!
//! The stack could give it too, but its answer would depend on what else listens there (dockerd
//! holds a socket on every published port) and on netfilter rules.

use weir_abi::{Ip4, Ip6};

use crate::{
    checksum,
    family::{Family, V4, V6},
    packet::{ETH_LEN, Frame, Ipv4, Ipv6, Packet, Tcp, Udp, tcp_flag},
    skb::Skb,
};

/// Time to live of what is made here.
const TTL: u8 = 64;
const TCP_LEN: u16 = size_of::<Tcp>() as u16;
const UDP_LEN: u16 = size_of::<Udp>() as u16;
/// ICMP header, and ICMPv6's (RFC 792, RFC 4443).
const ICMP_LEN: usize = 8;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// All bits set.
const ONES: Ip6 = Ip6::new([0xff; 16]);

/// Headers to answer with.
pub trait Answer: Family {
    /// Sum of both addresses, as in the pseudo header.
    fn addresses(packet: &Packet<Self::Addr>) -> u64;
    /// Turns the IP header round, for a payload of `len` bytes.
    fn turn(skb: Skb, packet: &Packet<Self::Addr>, len: u16) -> Option<()>;
    /// Puts an IP and ICMP "port unreachable" header before the packet, which ends after its UDP
    /// header. `check` is what the quoted UDP checksum will be when it leaves.
    fn quote(skb: Skb, packet: &Packet<Self::Addr>, check: [u8; 2]) -> Option<()>;
}

/// Turns a packet into the answer that tells its sender; `None` when there is none to be given.
#[inline(always)]
pub fn turn_into_answer<F: Answer>(skb: Skb, packet: &Packet<F::Addr>) -> Option<()> {
    if packet.flags & tcp_flag::RST != 0 {
        return None;
    }
    if packet.is_udp() { unreachable::<F>(skb, packet) } else { reset::<F>(skb, packet) }
}

/// Sum of the pseudo header.
#[inline(always)]
fn pseudo<F: Answer>(packet: &Packet<F::Addr>, len: u16) -> u64 {
    let [high, low] = len.to_be_bytes();
    F::addresses(packet) + u64::from(u32::from_ne_bytes([0, packet.key.protocol as u8, high, low]))
}

/// Whether the device has yet to compute the packet's checksum: then the field holds the sum of the
/// pseudo header, which a finished checksum does once in 65536 packets.
#[inline(always)]
fn unfinished<F: Answer>(packet: &Packet<F::Addr>, check: [u8; 2]) -> bool {
    let sum = checksum::fold16(checksum::fold32(pseudo::<F>(packet, packet.len)));
    u16::from_ne_bytes(check) == sum
}

/// Turns a segment into the reset that answers it (RFC 9293 section 3.5.2).
#[inline(always)]
fn reset<F: Answer>(skb: Skb, packet: &Packet<F::Addr>) -> Option<()> {
    let l4 = (packet.l4 & 0x7f) as usize;
    if !skb.cut(l4 as u32 + u32::from(TCP_LEN)) {
        return None;
    }
    let tcp = skb.at::<Tcp>(l4)?;
    // SAFETY: as above.
    let tcp = unsafe { &mut *tcp };
    let header = u32::from(tcp.offset >> 4) * 4;
    let opens = u32::from(packet.flags & tcp_flag::SYN != 0);
    let closes = u32::from(packet.flags & tcp_flag::FIN != 0);
    let length = u32::from(packet.len).wrapping_sub(header) + opens + closes;
    let sequence = u32::from_be_bytes(tcp.seq).wrapping_add(length);
    let unfinished = unfinished::<F>(packet, tcp.check);
    if packet.flags & tcp_flag::ACK != 0 {
        tcp.seq = tcp.ack;
        tcp.ack = [0; 4];
        tcp.flags = tcp_flag::RST;
    } else {
        tcp.seq = [0; 4];
        tcp.ack = sequence.to_be_bytes();
        tcp.flags = tcp_flag::RST | tcp_flag::ACK;
    }
    tcp.src = packet.key.dport;
    tcp.dst = packet.key.sport;
    tcp.offset = (TCP_LEN as u8 / 4) << 4;
    tcp.window = [0; 2];
    tcp.urgent = [0; 2];
    tcp.check = [0; 2];
    let sum = pseudo::<F>(packet, TCP_LEN);
    tcp.check = if unfinished {
        checksum::fold16(checksum::fold32(sum)).to_ne_bytes()
    } else {
        let words = (&raw const *tcp).cast::<[u32; 5]>();
        // SAFETY: a TCP header is five words.
        let [a, b, c, d, e] = unsafe { *words };
        checksum::finish(sum + [a, b, c, d, e].iter().map(|word| u64::from(*word)).sum::<u64>())
    };
    F::turn(skb, packet, TCP_LEN)
}

/// Turns a datagram into the error that answers it.
#[inline(always)]
fn unreachable<F: Answer>(skb: Skb, packet: &Packet<F::Addr>) -> Option<()> {
    let l4 = (packet.l4 & 0x7f) as usize;
    if !skb.cut(l4 as u32 + u32::from(UDP_LEN)) {
        return None;
    }
    let udp = skb.at::<Udp>(l4)?;
    // SAFETY: as above.
    let udp = unsafe { &*udp };
    let mut check = udp.check;
    if unfinished::<F>(packet, check) {
        // The device will finish the quoted datagram's checksum, over the eight bytes that are
        // left of it, on the way out. The ICMP checksum covers the result.
        let words = (&raw const *udp).cast::<[u32; 2]>();
        // SAFETY: a UDP header is two words.
        let [a, b] = unsafe { *words };
        check = checksum::finish(u64::from(a) + u64::from(b));
        if check == [0; 2] {
            check = [0xff; 2];
        }
    }
    F::quote(skb, packet, check)
}

/// Sum of `N` words at `offset`, with the quoted UDP checksum, their last two bytes, as given.
#[inline(always)]
fn quoted_sum<const N: usize>(skb: Skb, offset: usize, check: [u8; 2]) -> Option<u64> {
    let words = skb.at::<[u32; N]>(offset)?;
    // SAFETY: as above.
    let words = unsafe { &*words };
    let mut sum = 0;
    for word in words.iter().take(N - 1) {
        sum += u64::from(*word);
    }
    let [a, b, _, _] = words[N - 1].to_ne_bytes();
    Some(sum + u64::from(u32::from_ne_bytes([a, b, check[0], check[1]])))
}

impl Answer for V4 {
    #[inline(always)]
    fn addresses(packet: &Packet<Ip4>) -> u64 {
        u64::from(packet.key.src.word()) + u64::from(packet.key.dst.word())
    }

    #[inline(always)]
    fn turn(skb: Skb, packet: &Packet<Ip4>, len: u16) -> Option<()> {
        let header = (packet.l4 & 0x7f) as u16 - ETH_LEN as u16;
        write_ipv4(skb, packet, packet.key.protocol as u8, header + len, header as u8)
    }

    #[inline(always)]
    fn quote(skb: Skb, packet: &Packet<Ip4>, check: [u8; 2]) -> Option<()> {
        const HEADER: usize = size_of::<Ipv4>();
        const QUOTED: usize = HEADER + UDP_LEN as usize;
        if packet.l4 as usize != ETH_LEN + HEADER
            || !skb.open_after_ethernet((HEADER + ICMP_LEN) as i32)
        {
            return None;
        }
        write_ipv4(skb, packet, ICMP, (HEADER + ICMP_LEN + QUOTED) as u16, HEADER as u8)?;
        let sum = quoted_sum::<{ QUOTED / 4 }>(skb, ETH_LEN + HEADER + ICMP_LEN, check)?;
        const DESTINATION_UNREACHABLE: u8 = 3;
        const PORT: u8 = 3;
        write_icmp(skb, ETH_LEN + HEADER, DESTINATION_UNREACHABLE, PORT, sum)
    }
}

impl Answer for V6 {
    #[inline(always)]
    fn addresses(packet: &Packet<Ip6>) -> u64 {
        // A difference adds the complement of its first argument: of all ones, zero.
        checksum::diff_ip6(ONES, packet.key.src) + checksum::diff_ip6(ONES, packet.key.dst)
    }

    #[inline(always)]
    fn turn(skb: Skb, packet: &Packet<Ip6>, len: u16) -> Option<()> {
        write_ipv6(skb, packet, packet.key.protocol as u8, len)
    }

    #[inline(always)]
    fn quote(skb: Skb, packet: &Packet<Ip6>, check: [u8; 2]) -> Option<()> {
        const HEADER: usize = size_of::<Ipv6>();
        const QUOTED: usize = HEADER + UDP_LEN as usize;
        const LEN: u16 = (ICMP_LEN + QUOTED) as u16;
        if packet.l4 as usize != ETH_LEN + HEADER
            || !skb.open_after_ethernet((HEADER + ICMP_LEN) as i32)
        {
            return None;
        }
        write_ipv6(skb, packet, ICMPV6, LEN)?;
        let sum = quoted_sum::<{ QUOTED / 4 }>(skb, ETH_LEN + HEADER + ICMP_LEN, check)?;
        let [high, low] = LEN.to_be_bytes();
        let sum =
            sum + Self::addresses(packet) + u64::from(u32::from_ne_bytes([0, ICMPV6, high, low]));
        const DESTINATION_UNREACHABLE: u8 = 1;
        const PORT: u8 = 4;
        write_icmp(skb, ETH_LEN + HEADER, DESTINATION_UNREACHABLE, PORT, sum)
    }
}

#[inline(always)]
fn write_ipv4(skb: Skb, packet: &Packet<Ip4>, protocol: u8, total: u16, header: u8) -> Option<()> {
    let ip = skb.at::<Ipv4>(ETH_LEN)?;
    // SAFETY: as above.
    let ip = unsafe { &mut *ip };
    let plain = header as usize == size_of::<Ipv4>();
    let before = [total_word(ip), [ip.ttl, ip.protocol, 0, 0], [ip.id[0], ip.id[1], 0, 0]];
    if plain {
        ip.version_ihl = 0x45;
    }
    ip.tos = 0;
    ip.total_len = total.to_be_bytes();
    ip.id = [0; 2];
    ip.fragment = [0x40, 0];
    ip.ttl = TTL;
    ip.protocol = protocol;
    ip.src = packet.key.dst;
    ip.dst = packet.key.src;
    if !plain {
        // Options stay, so the old sum does: only what changed is accounted for.
        let after = [total_word(ip), [TTL, protocol, 0, 0], [0; 4]];
        let mut diff = 0;
        for i in 0..3 {
            diff += checksum::diff4(before[i], after[i]);
        }
        ip.check = checksum::apply(ip.check, checksum::fold32(diff));
        return Some(());
    }
    ip.check = [0; 2];
    let words = (&raw const *ip).cast::<[u32; 5]>();
    // SAFETY: an IPv4 header without options is five words.
    let [a, b, c, d, e] = unsafe { *words };
    ip.check = checksum::finish([a, b, c, d, e].iter().map(|word| u64::from(*word)).sum());
    Some(())
}

#[inline(always)]
fn total_word(ip: &Ipv4) -> [u8; 4] {
    [ip.version_ihl, ip.tos, ip.total_len[0], ip.total_len[1]]
}

#[inline(always)]
fn write_ipv6(skb: Skb, packet: &Packet<Ip6>, next: u8, len: u16) -> Option<()> {
    let ip = skb.at::<Ipv6>(ETH_LEN)?;
    // SAFETY: as above.
    let ip = unsafe { &mut *ip };
    ip.version_flow = [0x60, 0, 0, 0];
    ip.payload_len = len.to_be_bytes();
    ip.next = next;
    ip.hop_limit = TTL;
    ip.src = packet.key.dst;
    ip.dst = packet.key.src;
    Some(())
}

#[inline(always)]
fn write_icmp(skb: Skb, offset: usize, kind: u8, code: u8, sum: u64) -> Option<()> {
    let icmp = skb.at::<[u8; ICMP_LEN]>(offset)?;
    let first = u32::from_ne_bytes([kind, code, 0, 0]);
    let [a, b] = checksum::finish(sum + u64::from(first));
    // SAFETY: as above.
    unsafe { *icmp = [kind, code, a, b, 0, 0, 0, 0] };
    Some(())
}
