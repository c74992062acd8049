//! What the kernel can do, asked of the kernel itself.

use aya_ebpf::{bindings::BPF_F_PSEUDO_HDR, helpers::generated};
use weir_abi::probe;

use crate::{
    packet::Frame,
    skb::{Skb, now},
};

/// The first byte of the packet is the question.
#[inline(always)]
pub fn answer(skb: Skb) -> i32 {
    let Some(question) = skb.at::<[u8; 4]>(0) else { return -1 };
    // SAFETY: `at` checked the bounds.
    match unsafe { *question }[0] {
        probe::JIFFIES => (now() & 0x7fff_ffff) as i32,
        probe::CSUM_IPV6 => {
            let flags = u64::from(BPF_F_PSEUDO_HDR) | probe::BPF_F_IPV6;
            // SAFETY: the packet is longer than the offset says, or the helper refuses.
            unsafe { generated::bpf_l4_csum_replace(skb.raw(), 20, 0, 0, flags) as i32 }
        }
        _ => -1,
    }
}
