//! What differs between IPv4 and IPv6, so that everything else is written once.

use aya_ebpf::maps::LruHashMap;
use weir_abi::{Backend, Config, FlowKey, Forward, Ip4, Ip6, Region, Reverse, Service};

use crate::{
    checksum,
    maps::{FORWARD4, FORWARD6, LOCAL, REVERSE4, REVERSE6},
    packet::{self, ETH_LEN, Frame, Ipv4, Ipv6, NotRead, Packet},
    skb::Skb,
};

/// IPv4.
pub struct V4;
/// IPv6.
pub struct V6;

/// An address family.
pub trait Family: Sized + 'static {
    /// An address, in network order.
    type Addr: Copy + PartialEq + Default + 'static;

    fn forward() -> &'static LruHashMap<FlowKey<Self::Addr>, Forward>;
    fn reverse() -> &'static LruHashMap<FlowKey<Self::Addr>, Reverse<Self::Addr>>;
    fn read(skb: Skb) -> Result<Packet<Self::Addr>, NotRead>;
    fn pick(service: &Service) -> Region;
    fn local(service: &Service) -> Region;
    fn addr(backend: &Backend) -> Self::Addr;
    fn mss(config: &Config) -> u16;
    /// This node's own address as a source.
    fn source(config: &Config) -> Self::Addr;
    /// The address that stands for "through the tunnel" towards local sockets.
    fn relay(config: &Config) -> Self::Addr;
    /// The 128-bit form: IPv4 as `::ffff:a.b.c.d`.
    fn wide(addr: Self::Addr) -> Ip6;
    /// A word to hash.
    fn word(addr: Self::Addr) -> u64;
    /// Writes the addresses, one hop less, and answers by how much the pseudo header's sum changed.
    fn write(skb: Skb, old: &FlowKey<Self::Addr>, new: &FlowKey<Self::Addr>) -> Option<u32>;
    /// Extra flags for a change of the pseudo header.
    fn pseudo_flags(config: &Config) -> u64;

    /// Whether `addr` is one of the host's own addresses.
    #[inline(always)]
    fn is_local(addr: Self::Addr) -> bool {
        LOCAL.get_ptr(Self::wide(addr)).is_some()
    }
}

impl Family for V4 {
    type Addr = Ip4;

    #[inline(always)]
    fn forward() -> &'static LruHashMap<FlowKey<Ip4>, Forward> {
        &FORWARD4
    }

    #[inline(always)]
    fn reverse() -> &'static LruHashMap<FlowKey<Ip4>, Reverse<Ip4>> {
        &REVERSE4
    }

    #[inline(always)]
    fn read(skb: Skb) -> Result<Packet<Ip4>, NotRead> {
        packet::read_ipv4(&skb)
    }

    #[inline(always)]
    fn pick(service: &Service) -> Region {
        service.pick4
    }

    #[inline(always)]
    fn local(service: &Service) -> Region {
        service.local4
    }

    #[inline(always)]
    fn addr(backend: &Backend) -> Ip4 {
        backend.addr4
    }

    #[inline(always)]
    fn mss(config: &Config) -> u16 {
        config.mss4
    }

    #[inline(always)]
    fn source(config: &Config) -> Ip4 {
        config.source4
    }

    #[inline(always)]
    fn relay(config: &Config) -> Ip4 {
        config.relay4
    }

    #[inline(always)]
    fn wide(addr: Ip4) -> Ip6 {
        addr.mapped()
    }

    #[inline(always)]
    fn word(addr: Ip4) -> u64 {
        u64::from(u32::from_be(addr.word()))
    }

    #[inline(always)]
    fn write(skb: Skb, old: &FlowKey<Ip4>, new: &FlowKey<Ip4>) -> Option<u32> {
        let ip = skb.at::<Ipv4>(ETH_LEN)?;
        let diff = checksum::diff_ip4(old.src, new.src) + checksum::diff_ip4(old.dst, new.dst);
        let diff = checksum::fold32(diff);
        // SAFETY: `at` checked the bounds.
        unsafe {
            (*ip).src = new.src;
            (*ip).dst = new.dst;
            // The TTL is the high byte of its 16-bit word.
            (*ip).ttl -= 1;
            let ttl =
                u32::from(u16::from_ne_bytes([0xff, 0xff])) - u32::from(u16::from_ne_bytes([1, 0]));
            let sum = u64::from(diff) + u64::from(ttl);
            (*ip).check = checksum::apply((*ip).check, checksum::fold32(sum));
        }
        Some(diff)
    }

    #[inline(always)]
    fn pseudo_flags(_: &Config) -> u64 {
        0
    }
}

impl Family for V6 {
    type Addr = Ip6;

    #[inline(always)]
    fn forward() -> &'static LruHashMap<FlowKey<Ip6>, Forward> {
        &FORWARD6
    }

    #[inline(always)]
    fn reverse() -> &'static LruHashMap<FlowKey<Ip6>, Reverse<Ip6>> {
        &REVERSE6
    }

    #[inline(always)]
    fn read(skb: Skb) -> Result<Packet<Ip6>, NotRead> {
        packet::read_ipv6(&skb)
    }

    #[inline(always)]
    fn pick(service: &Service) -> Region {
        service.pick6
    }

    #[inline(always)]
    fn local(service: &Service) -> Region {
        service.local6
    }

    #[inline(always)]
    fn addr(backend: &Backend) -> Ip6 {
        backend.addr6
    }

    #[inline(always)]
    fn mss(config: &Config) -> u16 {
        config.mss6
    }

    #[inline(always)]
    fn source(config: &Config) -> Ip6 {
        config.source6
    }

    #[inline(always)]
    fn relay(config: &Config) -> Ip6 {
        config.relay6
    }

    #[inline(always)]
    fn wide(addr: Ip6) -> Ip6 {
        addr
    }

    #[inline(always)]
    fn word(addr: Ip6) -> u64 {
        let [a, b] = addr.halves();
        u64::from_be(a) ^ u64::from_be(b).rotate_left(32)
    }

    #[inline(always)]
    fn write(skb: Skb, old: &FlowKey<Ip6>, new: &FlowKey<Ip6>) -> Option<u32> {
        let ip = skb.at::<Ipv6>(ETH_LEN)?;
        let diff = checksum::diff_ip6(old.src, new.src) + checksum::diff_ip6(old.dst, new.dst);
        // SAFETY: `at` checked the bounds.
        unsafe {
            (*ip).src = new.src;
            (*ip).dst = new.dst;
            (*ip).hop_limit -= 1;
        }
        Some(checksum::fold32(diff))
    }

    #[inline(always)]
    fn pseudo_flags(config: &Config) -> u64 {
        u64::from(config.csum_ipv6_flag)
    }
}
