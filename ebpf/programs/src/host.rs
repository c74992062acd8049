//! Questions to this host's own sockets.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::generated,
};
use weir_abi::FlowKey;

use crate::{family::Family, packet::Packet, skb::Skb};

/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = u64::MAX;
/// `TCP_LISTEN`.
const LISTEN: u32 = 10;

/// Whether a socket of this host has exactly this peer: then the packet is an answer to it.
/// Listening and unconnected sockets do not count, since dockerd holds one on every published port.
#[inline(always)]
pub fn owns<F: Family>(skb: Skb, packet: &Packet<F::Addr>) -> bool {
    // `struct bpf_sock_tuple` is source, destination, source port, destination port: the first 12
    // (IPv4) or 36 (IPv6) bytes of a flow key.
    let mut key: FlowKey<F::Addr> = packet.key;
    let size = (2 * size_of::<F::Addr>() + 4) as u32;
    let tuple = (&raw mut key).cast::<bpf_sock_tuple>();
    // SAFETY: `size` bytes of `key` are initialised; the socket is released below.
    unsafe {
        let socket: *mut bpf_sock = if packet.is_udp() {
            generated::bpf_sk_lookup_udp(skb.context(), tuple, size, CURRENT_NETNS, 0)
        } else {
            generated::bpf_skc_lookup_tcp(skb.context(), tuple, size, CURRENT_NETNS, 0)
        };
        if socket.is_null() {
            return false;
        }
        let owns =
            if packet.is_udp() { (*socket).dst_port != 0 } else { (*socket).state != LISTEN };
        generated::bpf_sk_release(socket.cast());
        owns
    }
}
