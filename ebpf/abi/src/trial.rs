//! What packet cases and benches share with their own kernel programs.

/// Bytes of a packet that are restored on every repetition.
pub const FRAME: usize = 88;

/// What each repetition starts from.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// The packet's first bytes. The two bytes of the client's address at `address`, and of its port
    /// at `port`, are zero.
    pub frame: [u64; FRAME / 8],
    /// The next flow.
    pub next: u32,
    /// How many flows there are.
    pub flows: u32,
    /// Odd: the order in which they are visited.
    pub stride: u32,
    /// A power of two, less one: the number of flows or more.
    pub mask: u32,
    /// Offset of the low half of the client's address.
    pub address: u16,
    /// Offset of the client's port.
    pub port: u16,
    /// Offset of the transport checksum.
    pub transport_check: u16,
    /// Offset of the IP header checksum; 0: there is none.
    pub header_check: u16,
}
const _: () = assert!(size_of::<Template>() == FRAME + 24);
