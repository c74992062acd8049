//! One listener for all published TCP ports of the userspace proxy. An object of its own: the proxy has
//! none of the maps of `main.rs`, and nothing here is pinned.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    panic!("this program runs in the kernel: `make ebpf` builds it");
}

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::{
        macros::{map, sk_lookup},
        maps::{HashMap, SockMap},
        programs::SkLookupContext,
    };

    /// `BPF_F_NO_PREALLOC`: room for every port, taken by those that are there.
    const NO_PREALLOC: u32 = 1;
    /// `IPPROTO_TCP`.
    const TCP: u32 = 6;
    /// `SK_DROP`: as if nobody listened.
    const DROP: u32 = 0;
    /// `SK_PASS`: with a socket that was assigned, or else the one that the kernel finds itself.
    const PASS: u32 = 1;

    /// Ports in host byte order; 1: clients are led to the listener, 0: they are refused, at the one that
    /// the listener is bound to itself.
    #[map]
    static PORTS: HashMap<u16, u8> = HashMap::with_max_entries(65536, NO_PREALLOC);

    /// Cell 0: one socket of the listener's group; the kernel spreads clients among all of it.
    #[map]
    static LISTENER: SockMap = SockMap::with_max_entries(1, 0);

    /// Asked for every packet that belongs to no connection, before the kernel looks for a listener.
    #[sk_lookup]
    pub fn lookup(ctx: SkLookupContext) -> u32 {
        // SAFETY: reading the context is what the verifier allows.
        let (protocol, port) = unsafe { ((*ctx.lookup).protocol, (*ctx.lookup).local_port as u16) };
        // SAFETY: nobody keeps what is found.
        let led = if protocol == TCP { unsafe { PORTS.get(&port) } } else { None };
        match led {
            None => PASS,
            Some(0) => DROP,
            Some(_) => {
                // Without a listener the kernel looks on.
                LISTENER.redirect_sk_lookup(&ctx, 0, 0).ok();
                PASS
            }
        }
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
