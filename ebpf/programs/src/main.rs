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
    use weir_abi::DropReason;
    use weir_programs::{
        family::{V4, V6},
        fate, ingress,
        packet::{ETH_IPV4, ETH_IPV6},
        probe, reply,
        skb::Skb,
        socket::{self, Act, Shape},
        tunnel,
    };

    /// Runs a decision for the family that the ethertype names.
    macro_rules! by_family {
        ($ctx:ident, $unreadable:expr, $decide:ident in $module:ident) => {{
            // SAFETY: reading the context is what the verifier allows.
            let kind = unsafe { (*$ctx.skb.skb).protocol } as u16;
            let skb = Skb::new(&$ctx);
            match kind.to_ne_bytes() {
                ETH_IPV4 => fate::run::<V4>(skb, $unreadable, $module::$decide::<V4>),
                ETH_IPV6 => fate::run::<V6>(skb, $unreadable, $module::$decide::<V6>),
                _ => fate::NEXT,
            }
        }};
    }

    /// From clients, on an uplink.
    #[classifier]
    pub fn nic_in(ctx: TcContext) -> i32 {
        by_family!(ctx, None, from_wire in ingress)
    }

    /// From other nodes, on the tunnel device.
    #[classifier]
    pub fn tun_in(ctx: TcContext) -> i32 {
        by_family!(ctx, Some(DropReason::Malformed), arrives in tunnel)
    }

    /// From this host's own sockets, on the tunnel device.
    #[classifier]
    pub fn tun_out(ctx: TcContext) -> i32 {
        by_family!(ctx, None, departs in tunnel)
    }

    /// From tasks and containers, on their bridge and its ports.
    #[classifier]
    pub fn task_out(ctx: TcContext) -> i32 {
        by_family!(ctx, None, from_container in reply)
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
