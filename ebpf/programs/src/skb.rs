//! The socket buffer, and the helpers that act on it.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::{self, generated},
    programs::TcContext,
};
use weir_abi::DropReason;

use crate::{
    maps::DROPS,
    packet::{ETH_LEN, Frame},
};

/// Counts a reason without dropping.
#[inline(always)]
pub fn count(reason: DropReason) {
    if let Some(cell) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU cell, and programs are not preempted by themselves on one CPU.
        unsafe { *cell += 1 };
    }
}

/// The socket buffer of one run.
#[derive(Clone, Copy)]
pub struct Skb(*mut __sk_buff);

impl Frame for Skb {
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: reading the context is what the verifier allows.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let start = data + offset;
        if start + size_of::<T>() > end {
            return None;
        }
        Some(start as *mut T)
    }

    #[inline(always)]
    fn size(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.0).len as usize }
    }
}

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    /// Length on the wire after the Ethernet header.
    #[inline(always)]
    pub fn l3_len(self) -> u64 {
        // SAFETY: as in `at`.
        u64::from(unsafe { (*self.0).len }).wrapping_sub(ETH_LEN as u64)
    }

    /// Packets on the wire that this buffer stands for.
    #[inline(always)]
    pub fn segments(self) -> u64 {
        // SAFETY: as in `at`.
        match unsafe { (*self.0).gso_segs } {
            0 => 1,
            segments => u64::from(segments),
        }
    }

    /// The interface whose hook runs. A volatile read, here and below: the verifier allows the
    /// context's fields to be read where they are, but not by a pointer that was computed first.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (&raw const (*self.0).ifindex).read_volatile() }
    }

    /// The interface it arrived on; 0: made by this host.
    #[inline(always)]
    pub fn ingress_ifindex(self) -> u32 {
        // SAFETY: as in `at`.
        unsafe { (&raw const (*self.0).ingress_ifindex).read_volatile() }
    }

    #[inline(always)]
    pub fn cookie(self) -> u64 {
        // SAFETY: the helper takes the context.
        unsafe { generated::bpf_get_socket_cookie(self.0.cast()) }
    }

    /// Makes the packet `len` bytes long.
    #[inline(always)]
    pub fn cut(self, len: u32) -> bool {
        // SAFETY: as above.
        unsafe { generated::bpf_skb_change_tail(self.0, len, 0) == 0 }
    }

    /// Opens `len` bytes between the Ethernet header and what follows.
    #[inline(always)]
    pub fn open_after_ethernet(self, len: i32) -> bool {
        const BPF_ADJ_ROOM_MAC: u32 = 1;
        // SAFETY: as above.
        unsafe { generated::bpf_skb_adjust_room(self.0, len, BPF_ADJ_ROOM_MAC, 0) == 0 }
    }

    /// Corrects a transport checksum for a change of the pseudo header.
    #[inline(always)]
    pub fn fix_pseudo(self, check: u32, diff: u32, udp: bool, flags: u64) -> bool {
        self.fix(check, diff, udp, u64::from(BPF_F_PSEUDO_HDR) | flags)
    }

    /// Corrects a transport checksum for a change of the transport header itself. Nothing happens
    /// to a checksum that the device has yet to compute.
    #[inline(always)]
    pub fn fix_header(self, check: u32, diff: u32, udp: bool) -> bool {
        self.fix(check, diff, udp, 0)
    }

    #[inline(always)]
    fn fix(self, check: u32, diff: u32, udp: bool, flags: u64) -> bool {
        // A UDP checksum of 0 says "none" and must stay; one that becomes 0 is sent as 0xffff
        // (RFC 768).
        let flags = if udp { flags | u64::from(BPF_F_MARK_MANGLED_0) } else { flags };
        // SAFETY: as above. Size 0 in the flags: `to` is a difference.
        unsafe { generated::bpf_l4_csum_replace(self.0, check, 0, u64::from(diff), flags) == 0 }
    }

    /// Out of `ifindex`, to whatever the routing table and the neighbour table say.
    #[inline(always)]
    pub fn to_neighbour(self, ifindex: u32) -> i32 {
        // SAFETY: no pointer is passed.
        unsafe { generated::bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
    }

    /// Into the namespace behind the veth `ifindex`. Only from an ingress hook.
    #[inline(always)]
    pub fn to_peer(self, ifindex: u32) -> i32 {
        // SAFETY: no pointer is passed.
        unsafe { generated::bpf_redirect_peer(ifindex, 0) as i32 }
    }

    /// Out of `ifindex` as it is.
    #[inline(always)]
    pub fn out_of(self, ifindex: u32) -> i32 {
        // SAFETY: no pointer is passed.
        unsafe { generated::bpf_redirect(ifindex, 0) as i32 }
    }

    /// Into the stack, as if it had arrived on `ifindex`.
    #[inline(always)]
    pub fn into(self, ifindex: u32) -> i32 {
        // SAFETY: no pointer is passed.
        unsafe { generated::bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
    }

    /// The raw context, for helpers that are used in one place only.
    #[inline(always)]
    pub fn raw(self) -> *mut __sk_buff {
        self.0
    }

    /// The raw context as the untyped pointer that some helpers take.
    #[inline(always)]
    pub fn context(self) -> *mut c_void {
        self.0.cast()
    }
}

/// Low 32 bits of jiffies.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: takes nothing.
    unsafe { generated::bpf_jiffies64() as u32 }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    // SAFETY: takes nothing.
    unsafe { generated::bpf_ktime_get_ns() }
}

/// A random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: takes nothing.
    unsafe { helpers::bpf_get_prandom_u32() }
}
