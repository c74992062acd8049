//! Virtual addresses of services on networks that containers share.

use crate::{Ip6, Region, flow_flag, size};

/// Which networks a network namespace is attached to: value of `SPACES`, by the namespace's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// The key again. A hash map may give the memory of a deleted element to another one while a
    /// program still reads it; the program sees it here.
    pub cookie: u64,
    /// Identities of the networks; the first 0 ends them.
    pub networks: [u64; size::SPACE_NETWORKS],
}
const _: () = assert!(size_of::<Space>() == 512);

impl Default for Space {
    fn default() -> Self {
        Self { cookie: 0, networks: [0; size::SPACE_NETWORKS] }
    }
}

/// A virtual address on its network: key of `VIP_SLOTS`, whose values are positions in `VIPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipKey {
    /// Identity of the network.
    pub network: u64,
    /// The address; IPv4 as `::ffff:a.b.c.d`.
    pub addr: Ip6,
}
const _: () = assert!(size_of::<VipKey>() == 24);

/// What a virtual address stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vip {
    /// The cells of `VIP_TASKS` with the addresses of its tasks, ascending. Changed as one word.
    pub run: Region,
    /// The virtual address itself; network 0: the position is free.
    pub key: VipKey,
    /// How many turns were taken. Counted by the programs.
    pub turn: u32,
    /// How far one turn is from the next, in cells.
    pub stride: u32,
}
const _: () = assert!(size_of::<Vip>() == 40);

/// What the programs know of `ROUTED` without a look-up in it; cell 0 of `ROUTING`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Not 0 when there may be something in it.
    pub any: u32,
    /// Always 0, which the verifier cannot know.
    pub zero: u32,
}
const _: () = assert!(size_of::<Routing>() == 8);

/// The value in `ROUTED` for a published port, in the machine's order: with [`flow_flag::ROUTED`] above it.
pub const fn routed_port(published: u16) -> u32 {
    (flow_flag::ROUTED as u32) << 16 | published as u32
}

/// A port at a virtual address that packets are routed to: key of `ROUTED`, whose values are the published
/// ports that they stand for ([`routed_port`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutedKey {
    /// The address; IPv4 as `::ffff:a.b.c.d`.
    pub addr: Ip6,
    /// The port.
    pub port: [u8; 2],
    /// 1 for UDP.
    pub udp: u16,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<RoutedKey>() == 24);
