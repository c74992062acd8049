//! What the 24 bits of the VXLAN network identifier mean.

/// Link-layer address of the tunnel device on every node. Being the same everywhere, a sender knows
/// it, and the receiver's kernel takes the inner frame as its own.
pub const TUNNEL_MAC: [u8; 6] = [0x02, b'w', b'e', b'i', b'r', 0x01];

/// Link-layer source of what goes through the tunnel. Not [`TUNNEL_MAC`]: a VXLAN device takes a
/// frame from its own address for a loop and drops it (`vxlan_set_mac` in `vxlan_core.c`).
pub const SENDER_MAC: [u8; 6] = [0x02, b'w', b'e', b'i', b'r', 0x02];

/// A tunnel tag: who the inner packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u32);

impl Tag {
    /// The receiver picks one of its own tasks.
    pub const CHOOSE: u32 = 0;
    /// A reply on its way to the node that the client entered by.
    pub const RETURN: u32 = (1 << 23) - 1;
    /// Set when the flow has been forwarded once by a node that could not serve it.
    pub const HOPPED: u32 = 1 << 23;

    /// The tag without the flag.
    pub fn task(self) -> u32 {
        self.0 & !Self::HOPPED
    }

    /// Whether the flow was forwarded once already.
    pub fn hopped(self) -> bool {
        self.0 & Self::HOPPED != 0
    }
}
