//! The kernel programs: everything but their entry points, which are in `main.rs`.
//!
//! [`packet`], [`checksum`] and [`hash`] need no kernel: they compile on the host too, where their
//! tests run. The rest compiles for BPF only. A packet's way is easiest followed from
//! `ingress::from_wire` on.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod checksum;
pub mod hash;
pub mod packet;

macro_rules! kernel_only {
    ($($name:ident)*) => {
        $(#[cfg(target_arch = "bpf")]
        pub mod $name;)*
    };
}

kernel_only!(family flow host ingress maps probe reject reply send skb socket tunnel);
