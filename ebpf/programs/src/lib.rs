//! The part of the kernel programs that needs no kernel: it compiles on the host too, where its
//! tests run.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod checksum;
pub mod hash;
pub mod packet;
