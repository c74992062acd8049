//! Programs that only packet cases and benches use. They share the maps of `main.rs` by their pins.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {
    panic!("these programs run in the kernel: `make ebpf` builds them");
}

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::{
        macros::{classifier, map},
        maps::{Array, ProgramArray},
        programs::TcContext,
    };
    use weir_abi::{
        DropReason, Forward,
        trial::{FRAME, Template},
    };
    use weir_programs::{
        checksum,
        family::{Family, V4, V6},
        fate,
        packet::{self, ETH_IPV4, ETH_IPV6, Ethernet, Frame},
        skb::Skb,
        tunnel,
    };

    /// What each repetition of a bench starts from.
    #[map]
    static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);

    /// Cell 0: the program under test.
    #[map]
    static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

    /// `tun_in`, with the tunnel header's content taken from the control buffer, since
    /// `BPF_PROG_TEST_RUN` cannot give a packet a tunnel header: the node in its first word, the
    /// tag in its second.
    #[classifier]
    pub fn tun_in_case(ctx: TcContext) -> i32 {
        // SAFETY: reading the context is what the verifier allows.
        let (kind, from, tag) = unsafe {
            let skb = ctx.skb.skb;
            ((*skb).protocol as u16, (*skb).cb[0], (*skb).cb[1])
        };
        let skb = Skb::new(&ctx);
        let (from, unreadable) = (from as u16, Some(DropReason::Malformed));
        match kind.to_ne_bytes() {
            ETH_IPV4 => fate::run::<V4>(skb, unreadable, |skb, packet, config| {
                tunnel::opened::<V4>(skb, packet, from, tag, config)
            }),
            ETH_IPV6 => fate::run::<V6>(skb, unreadable, |skb, packet, config| {
                tunnel::opened::<V6>(skb, packet, from, tag, config)
            }),
            _ => fate::NEXT,
        }
    }

    /// A target that does nothing: what the wrapper itself costs.
    #[classifier]
    pub fn nothing(_: TcContext) -> i32 {
        -1
    }

    /// A target that looks one flow up: what this machine takes for the dearest thing that a
    /// program cannot do without.
    #[classifier]
    pub fn one_lookup(ctx: TcContext) -> i32 {
        let skb = Skb::new(&ctx);
        match packet::read_ipv4(&skb) {
            Ok(packet) if V4::forward().get_ptr(packet.key).is_some() => 7,
            _ => -1,
        }
    }

    /// A target that remembers one flow.
    #[classifier]
    pub fn one_insert(ctx: TcContext) -> i32 {
        let skb = Skb::new(&ctx);
        let flow = Forward::default();
        match packet::read_ipv4(&skb) {
            Ok(packet) if V4::forward().insert(packet.key, flow, 0).is_ok() => 7,
            _ => -1,
        }
    }

    /// A target that corrects one transport checksum.
    #[classifier]
    pub fn one_checksum(ctx: TcContext) -> i32 {
        const TCP_CHECK: u32 = 34 + 16;
        if Skb::new(&ctx).fix_pseudo(TCP_CHECK, 1, false, 0) { 7 } else { -1 }
    }

    /// Restores the packet, chooses a flow, and runs the program under test on it. Repeating a
    /// program by itself would feed it the packet that it rewrote the last time.
    #[classifier]
    pub fn wrap(ctx: TcContext) -> i32 {
        restore(Skb::new(&ctx));
        // SAFETY: a tail call; it comes back only when the cell is empty.
        let _ = unsafe { TARGET.tail_call(&ctx, 0) };
        2
    }

    #[inline(always)]
    fn restore(skb: Skb) -> Option<()> {
        let template = TEMPLATE.get_ptr_mut(0)?;
        let frame = skb.at::<[u64; FRAME / 8]>(0)?;
        // SAFETY: `at` checked the bounds; the map's cell is ours alone while a bench runs.
        unsafe {
            let template = &mut *template;
            *frame = template.frame;
            let flow = template.next;
            template.next = if flow + 1 >= template.flows { 0 } else { flow + 1 };
            // An odd stride visits every flow once, in an order unlike that of insertion.
            let index = flow.wrapping_mul(template.stride) & template.mask;
            let host = (index >> 14) as u16;
            let port = (1024 + (index & 0x3fff)) as u16;
            patch(skb, template.address as usize, host)?;
            patch(skb, template.port as usize, port)?;
            let delta = u64::from(host.to_be()) + u64::from(port.to_be());
            let both = checksum::fold32(delta);
            let transport = skb.at::<[u8; 2]>(template.transport_check as usize & 0x7f)?;
            *transport = checksum::apply(*transport, both);
            if template.header_check != 0 {
                let header = skb.at::<[u8; 2]>(template.header_check as usize & 0x7f)?;
                *header = checksum::apply(*header, u32::from(host.to_be()));
            }
            let _ = skb.at::<Ethernet>(0)?;
        }
        Some(())
    }

    /// Writes a number over two bytes that are zero in the template.
    #[inline(always)]
    unsafe fn patch(skb: Skb, at: usize, value: u16) -> Option<()> {
        let field = skb.at::<[u8; 2]>(at & 0x7f)?;
        // SAFETY: `at` checked the bounds.
        unsafe { *field = value.to_be_bytes() };
        Some(())
    }
}

/// As in `main.rs`.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
