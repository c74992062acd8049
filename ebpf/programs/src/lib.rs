//! The kernel programs: everything but their entry points, which are in `main.rs`.
//!
//! [`packet`], [`checksum`] and [`hash`] need no kernel: they compile on the host too, where their
//! tests run. The rest compiles for BPF only. A packet's way is easiest followed from
//! `ingress::from_wire` on.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod checksum;
pub mod hash;
pub mod packet;

#[cfg(target_arch = "bpf")]
pub mod family;
#[cfg(target_arch = "bpf")]
pub mod fate;
#[cfg(target_arch = "bpf")]
pub mod flow;
#[cfg(target_arch = "bpf")]
pub mod host;
#[cfg(target_arch = "bpf")]
pub mod ingress;
#[cfg(target_arch = "bpf")]
pub mod maps;
#[cfg(target_arch = "bpf")]
pub mod probe;
#[cfg(target_arch = "bpf")]
pub mod reject;
#[cfg(target_arch = "bpf")]
pub mod reply;
#[cfg(target_arch = "bpf")]
pub mod send;
#[cfg(target_arch = "bpf")]
pub mod skb;
#[cfg(target_arch = "bpf")]
pub mod socket;
#[cfg(target_arch = "bpf")]
pub mod tunnel;
#[cfg(target_arch = "bpf")]
pub mod vip;
