//! The kernel programs' entry points: each reads the ethertype, and concludes with one fate.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    panic!("these programs run in the kernel: `make ebpf` builds them");
}

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::{
        macros::{cgroup_sock_addr, classifier},
        programs::{SockAddrContext, TcContext},
    };
    use weir_programs::{
        family::{V4, V6},
        ingress,
        packet::{ETH_IPV4, ETH_IPV6},
        probe, reply,
        skb::{Fate, Skb},
        socket::{self, Act, Shape},
        tunnel,
    };

    macro_rules! by_family {
        ($ctx:ident, $v4:ident, $v6:ident) => {{
            // SAFETY: reading the context is what the verifier allows.
            let kind = unsafe { (*$ctx.skb.skb).protocol } as u16;
            let fate = match kind.to_ne_bytes() {
                ETH_IPV4 => $v4(Skb::new(&$ctx)),
                ETH_IPV6 => $v6(Skb::new(&$ctx)),
                _ => Fate::Pass,
            };
            fate.conclude()
        }};
    }

    /// From clients, on an uplink.
    #[classifier]
    pub fn nic_in(ctx: TcContext) -> i32 {
        by_family!(ctx, nic_in4, nic_in6)
    }

    /// From other nodes, on the tunnel device.
    #[classifier]
    pub fn tun_in(ctx: TcContext) -> i32 {
        by_family!(ctx, tun_in4, tun_in6)
    }

    /// From this host's own sockets, on the tunnel device.
    #[classifier]
    pub fn tun_out(ctx: TcContext) -> i32 {
        by_family!(ctx, tun_out4, tun_out6)
    }

    /// From a task, on the host side of its veth.
    #[classifier]
    pub fn task_out(ctx: TcContext) -> i32 {
        by_family!(ctx, task_out4, task_out6)
    }

    /// From tasks and containers, on their bridge.
    #[classifier]
    pub fn bridge_in(ctx: TcContext) -> i32 {
        by_family!(ctx, bridge_in4, bridge_in6)
    }

    #[inline(always)]
    fn nic_in4(skb: Skb) -> Fate {
        ingress::from_wire::<V4>(skb)
    }

    #[inline(always)]
    fn nic_in6(skb: Skb) -> Fate {
        ingress::from_wire::<V6>(skb)
    }

    #[inline(always)]
    fn tun_in4(skb: Skb) -> Fate {
        tunnel::arrives::<V4>(skb)
    }

    #[inline(always)]
    fn tun_in6(skb: Skb) -> Fate {
        tunnel::arrives::<V6>(skb)
    }

    #[inline(always)]
    fn tun_out4(skb: Skb) -> Fate {
        tunnel::departs::<V4>(skb)
    }

    #[inline(always)]
    fn tun_out6(skb: Skb) -> Fate {
        tunnel::departs::<V6>(skb)
    }

    #[inline(always)]
    fn task_out4(skb: Skb) -> Fate {
        reply::from_task::<V4>(skb)
    }

    #[inline(always)]
    fn task_out6(skb: Skb) -> Fate {
        reply::from_task::<V6>(skb)
    }

    #[inline(always)]
    fn bridge_in4(skb: Skb) -> Fate {
        reply::from_bridge::<V4>(skb)
    }

    #[inline(always)]
    fn bridge_in6(skb: Skb) -> Fate {
        reply::from_bridge::<V6>(skb)
    }

    /// Answers what the loader asks of the kernel by `BPF_PROG_TEST_RUN`; never attached.
    #[classifier]
    pub fn probe(ctx: TcContext) -> i32 {
        probe::answer(Skb::new(&ctx))
    }

    #[cgroup_sock_addr(connect4)]
    pub fn connect4(ctx: SockAddrContext) -> i32 {
        socket::outgoing(ctx.sock_addr, Shape::V4, Act::Connect)
    }

    #[cgroup_sock_addr(connect6)]
    pub fn connect6(ctx: SockAddrContext) -> i32 {
        socket::outgoing(ctx.sock_addr, Shape::V6, Act::Connect)
    }

    #[cgroup_sock_addr(sendmsg4)]
    pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
        socket::outgoing(ctx.sock_addr, Shape::V4, Act::Send)
    }

    #[cgroup_sock_addr(sendmsg6)]
    pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
        socket::outgoing(ctx.sock_addr, Shape::V6, Act::Send)
    }

    #[cgroup_sock_addr(recvmsg4)]
    pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
        socket::incoming(ctx.sock_addr, Shape::V4)
    }

    #[cgroup_sock_addr(recvmsg6)]
    pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
        socket::incoming(ctx.sock_addr, Shape::V6)
    }

    #[cgroup_sock_addr(getpeername4)]
    pub fn getpeername4(ctx: SockAddrContext) -> i32 {
        socket::incoming(ctx.sock_addr, Shape::V4)
    }

    #[cgroup_sock_addr(getpeername6)]
    pub fn getpeername6(ctx: SockAddrContext) -> i32 {
        socket::incoming(ctx.sock_addr, Shape::V6)
    }
}

/// The programs are offered under both licences; some helpers ask for the second.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
