//! Headers as they are on the wire, and the reading of a packet.
//!
//! Works on anything that gives bounds-checked pointers ([`Frame`]): a socket buffer in the kernel,
//! a byte slice in tests. The alignments claimed here are those that let the compiler load a whole
//! field at once; every architecture that runs these programs allows unaligned loads, and the
//! verifier knows it (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`).

use weir_abi::{FlowKey, Ip4, Ip6};

/// Ethertype of IPv4, in network order.
pub const ETH_IPV4: [u8; 2] = [0x08, 0x00];
/// Ethertype of IPv6, in network order.
pub const ETH_IPV6: [u8; 2] = [0x86, 0xdd];
/// Length of an Ethernet header.
pub const ETH_LEN: usize = 14;

/// IP protocol numbers.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;

/// TCP flags, as in octet 13 of the header (RFC 9293 section 3.1).
pub mod tcp_flag {
    /// FIN.
    pub const FIN: u8 = 1;
    /// SYN.
    pub const SYN: u8 = 2;
    /// RST.
    pub const RST: u8 = 4;
    /// ACK.
    pub const ACK: u8 = 16;
}

/// Bounds-checked access to the bytes of a packet.
pub trait Frame {
    /// A pointer to a `T` at `offset`, if all of it lies in the packet's linear part.
    fn at<T>(&self, offset: usize) -> Option<*mut T>;

    /// Length of the whole packet.
    fn size(&self) -> usize;
}

/// Ethernet header.
#[repr(C, align(2))]
pub struct Ethernet {
    /// Destination.
    pub dst: [u8; 6],
    /// Source.
    pub src: [u8; 6],
    /// Ethertype.
    pub kind: [u8; 2],
}

/// IPv4 header without options (RFC 791).
#[repr(C, align(4))]
pub struct Ipv4 {
    /// Version and header length in 32-bit words.
    pub version_ihl: u8,
    /// Type of service.
    pub tos: u8,
    /// Length of the packet.
    pub total_len: [u8; 2],
    /// Identification.
    pub id: [u8; 2],
    /// Flags and fragment offset.
    pub fragment: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// Protocol number.
    pub protocol: u8,
    /// Header checksum.
    pub check: [u8; 2],
    /// Source address.
    pub src: Ip4,
    /// Destination address.
    pub dst: Ip4,
}

/// IPv6 header (RFC 8200).
#[repr(C, align(8))]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_flow: [u8; 4],
    /// Length after this header.
    pub payload_len: [u8; 2],
    /// What follows.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub src: Ip6,
    /// Destination address.
    pub dst: Ip6,
}

/// The part that TCP and UDP headers share.
#[repr(C, align(4))]
pub struct Ports {
    /// Source port.
    pub src: [u8; 2],
    /// Destination port.
    pub dst: [u8; 2],
}

/// TCP header without options (RFC 9293).
#[repr(C, align(4))]
pub struct Tcp {
    /// Source port.
    pub src: [u8; 2],
    /// Destination port.
    pub dst: [u8; 2],
    /// Sequence number.
    pub seq: [u8; 4],
    /// Acknowledgement number.
    pub ack: [u8; 4],
    /// Data offset in 32-bit words, in the high four bits.
    pub offset: u8,
    /// See [`tcp_flag`].
    pub flags: u8,
    /// Window.
    pub window: [u8; 2],
    /// Checksum.
    pub check: [u8; 2],
    /// Urgent pointer.
    pub urgent: [u8; 2],
}

/// UDP header (RFC 768).
#[repr(C, align(4))]
pub struct Udp {
    /// Source port.
    pub src: [u8; 2],
    /// Destination port.
    pub dst: [u8; 2],
    /// Length.
    pub len: [u8; 2],
    /// Checksum; 0: none (IPv4 only).
    pub check: [u8; 2],
}

/// What a packet is, as far as the mesh cares.
pub struct Packet<A> {
    /// Source, destination, ports and protocol.
    pub key: FlowKey<A>,
    /// Offset of the transport header.
    pub l4: u32,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Length of the transport header and what follows, as the IP header says.
    pub len: u16,
}

/// Why a packet has no [`Packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRead {
    /// Another protocol, or an extension header: none of the mesh's business.
    Other,
    /// A fragment.
    Fragment,
    /// A header that contradicts itself or is cut off.
    Malformed,
}

// === impl Packet ===

impl<A> Packet<A> {
    /// A TCP segment that opens a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN
    }

    /// Whether it is UDP; otherwise it is TCP.
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.key.protocol == u32::from(UDP)
    }
}

/// Reads an IPv4 packet whose Ethernet header starts at 0.
#[inline(always)]
pub fn read_ipv4(frame: &impl Frame) -> Result<Packet<Ip4>, NotRead> {
    let ip = frame.at::<Ipv4>(ETH_LEN).ok_or(NotRead::Malformed)?;
    // SAFETY: `at` checked the bounds; so for every header below.
    let ip = unsafe { &*ip };
    let (protocol, version_ihl) = (ip.protocol, ip.version_ihl);
    if protocol != TCP && protocol != UDP {
        return Err(NotRead::Other);
    }
    // More fragments, or an offset: all but the "don't fragment" bit.
    if u16::from_ne_bytes(ip.fragment) & u16::from_ne_bytes([0x3f, 0xff]) != 0 {
        return Err(NotRead::Fragment);
    }
    if version_ihl & 0xf0 != 0x40 || version_ihl & 0x0f < 5 {
        return Err(NotRead::Malformed);
    }
    let header = usize::from(version_ihl & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes(ip.total_len));
    let l4 = ETH_LEN + header;
    let transport = read_transport(frame, l4, protocol)?;
    if !holds(total, header + transport.len, frame.size() - ETH_LEN) {
        return Err(NotRead::Malformed);
    }
    let key = FlowKey {
        src: ip.src,
        dst: ip.dst,
        sport: transport.src,
        dport: transport.dst,
        protocol: protocol.into(),
    };
    let len = total.wrapping_sub(header) as u16;
    Ok(Packet { key, l4: l4 as u32, flags: transport.flags, ttl: ip.ttl, len })
}

/// Reads an IPv6 packet whose Ethernet header starts at 0.
#[inline(always)]
pub fn read_ipv6(frame: &impl Frame) -> Result<Packet<Ip6>, NotRead> {
    const FRAGMENT_HEADER: u8 = 44;
    let ip = frame.at::<Ipv6>(ETH_LEN).ok_or(NotRead::Malformed)?;
    // SAFETY: as above.
    let ip = unsafe { &*ip };
    let protocol = ip.next;
    if protocol == FRAGMENT_HEADER {
        return Err(NotRead::Fragment);
    }
    if protocol != TCP && protocol != UDP {
        return Err(NotRead::Other);
    }
    if ip.version_flow[0] & 0xf0 != 0x60 {
        return Err(NotRead::Malformed);
    }
    let l4 = ETH_LEN + size_of::<Ipv6>();
    let transport = read_transport(frame, l4, protocol)?;
    let payload = usize::from(u16::from_be_bytes(ip.payload_len));
    if !holds(payload, transport.len, frame.size() - l4) {
        return Err(NotRead::Malformed);
    }
    let key = FlowKey {
        src: ip.src,
        dst: ip.dst,
        sport: transport.src,
        dport: transport.dst,
        protocol: protocol.into(),
    };
    Ok(Packet {
        key,
        l4: l4 as u32,
        flags: transport.flags,
        ttl: ip.hop_limit,
        len: payload as u16,
    })
}

/// Whether a length field agrees with the headers that it must cover and the bytes that there are.
/// Packets merged by receive offload may be longer than the field can say: then it is 0 ("big TCP").
#[inline(always)]
fn holds(said: usize, headers: usize, there: usize) -> bool {
    if said == 0 { there > usize::from(u16::MAX) } else { said >= headers && said <= there }
}

struct Transport {
    src: [u8; 2],
    dst: [u8; 2],
    flags: u8,
    len: usize,
}

#[inline(always)]
fn read_transport(frame: &impl Frame, l4: usize, protocol: u8) -> Result<Transport, NotRead> {
    if protocol == TCP {
        let tcp = frame.at::<Tcp>(l4).ok_or(NotRead::Malformed)?;
        // SAFETY: as above.
        let tcp = unsafe { &*tcp };
        if tcp.offset >> 4 < 5 {
            return Err(NotRead::Malformed);
        }
        let len = usize::from(tcp.offset >> 4) * 4;
        Ok(Transport { src: tcp.src, dst: tcp.dst, flags: tcp.flags, len })
    } else {
        let udp = frame.at::<Udp>(l4).ok_or(NotRead::Malformed)?;
        // SAFETY: as above.
        let udp = unsafe { &*udp };
        // The datagram must end where the IP packet does, or before (RFC 768).
        let len = usize::from(u16::from_be_bytes(udp.len));
        if len < size_of::<Udp>() {
            return Err(NotRead::Malformed);
        }
        Ok(Transport { src: udp.src, dst: udp.dst, flags: 0, len })
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    /// A packet in memory, aligned as the headers claim it is behind an Ethernet header.
    struct Bytes {
        memory: Vec<u64>,
        len: usize,
    }

    /// So that the IP header, 14 bytes on, is aligned to 8.
    const PAD: usize = 2;

    impl Bytes {
        fn new(bytes: &[u8]) -> Self {
            let mut memory = vec![0u64; (bytes.len() + PAD).div_ceil(8)];
            // SAFETY: the vector is long enough.
            unsafe {
                let start = memory.as_mut_ptr().cast::<u8>().add(PAD);
                start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
            Self { memory, len: bytes.len() }
        }
    }

    impl Frame for Bytes {
        fn at<T>(&self, offset: usize) -> Option<*mut T> {
            if offset + size_of::<T>() > self.len {
                return None;
            }
            // SAFETY: in bounds, see above; headers behind options are less aligned than they
            // claim, which `get` below never asks for.
            Some(unsafe { self.memory.as_ptr().cast::<u8>().add(PAD + offset) } as *mut T)
        }

        fn size(&self) -> usize {
            self.len
        }
    }

    fn tcp4() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1000, 80, 7, 100)
            .syn()
            .write(&mut bytes, b"data")
            .unwrap();
        bytes
    }

    fn udp6() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv6([1; 16], [2; 16], 64)
            .udp(1000, 53)
            .write(&mut bytes, b"data")
            .unwrap();
        bytes
    }

    #[test]
    fn a_whole_packet_is_read() {
        let packet = read_ipv4(&Bytes::new(&tcp4())).ok().unwrap();
        assert_eq!(packet.key.src, Ip4::new([10, 0, 0, 1]));
        assert_eq!(packet.key.dport, 80u16.to_be_bytes());
        assert!(packet.is_syn() && !packet.is_udp());
        assert_eq!((packet.l4, packet.ttl, packet.len), (34, 64, 24));
        let packet = read_ipv6(&Bytes::new(&udp6())).ok().unwrap();
        assert!(packet.is_udp() && !packet.is_syn());
        assert_eq!((packet.l4, packet.len), (54, 12));
    }

    #[test]
    fn a_packet_that_is_cut_anywhere_is_malformed() {
        let (tcp, udp) = (tcp4(), udp6());
        for cut in ETH_LEN..tcp.len() {
            let read = read_ipv4(&Bytes::new(&tcp[..cut])).err();
            assert_eq!(read, Some(NotRead::Malformed), "TCP cut at {cut}");
        }
        for cut in ETH_LEN..udp.len() {
            let read = read_ipv6(&Bytes::new(&udp[..cut])).err();
            assert_eq!(read, Some(NotRead::Malformed), "UDP cut at {cut}");
        }
    }

    #[test]
    fn headers_that_contradict_themselves_are_malformed() {
        for (at, value, what) in [
            (ETH_LEN, 0x44, "IPv4 header shorter than itself"),
            (ETH_LEN, 0x55, "version 5"),
            (ETH_LEN, 0x4f, "IPv4 options beyond the packet's length"),
            (ETH_LEN + 3, 30, "total length below the headers"),
            (ETH_LEN + 3, 200, "total length beyond the packet"),
            (ETH_LEN + 3, 0, "no total length"),
            (34 + 12, 0x40, "TCP header shorter than itself"),
            (34 + 12, 0xf0, "TCP options beyond the packet's length"),
        ] {
            let mut bytes = tcp4();
            bytes[at] = value;
            assert_eq!(read_ipv4(&Bytes::new(&bytes)).err(), Some(NotRead::Malformed), "{what}");
        }
    }

    #[test]
    fn fragments_and_other_protocols_are_told_apart() {
        for (high, low) in [(0x20, 0), (0, 1), (0x1f, 0xff)] {
            let mut bytes = tcp4();
            (bytes[ETH_LEN + 6], bytes[ETH_LEN + 7]) = (high, low);
            assert_eq!(read_ipv4(&Bytes::new(&bytes)).err(), Some(NotRead::Fragment));
        }
        let mut bytes = tcp4();
        bytes[ETH_LEN + 6] = 0x40;
        assert!(read_ipv4(&Bytes::new(&bytes)).is_ok(), "\"don't fragment\" is no fragment");
        bytes[ETH_LEN + 9] = 1;
        assert_eq!(read_ipv4(&Bytes::new(&bytes)).err(), Some(NotRead::Other));
        let mut bytes = udp6();
        bytes[ETH_LEN + 6] = 44;
        assert_eq!(read_ipv6(&Bytes::new(&bytes)).err(), Some(NotRead::Fragment));
    }

    proptest! {
        #[test]
        fn reading_never_leaves_the_packet(bytes in prop::collection::vec(any::<u8>(), 14..120)) {
            // The reader holds references only where `at` said yes; what it says must fit.
            if let Ok(packet) = read_ipv4(&Bytes::new(&bytes)) {
                prop_assert!(packet.l4 as usize + usize::from(packet.len) <= bytes.len() || packet.len > 1000);
            }
            if let Ok(packet) = read_ipv6(&Bytes::new(&bytes)) {
                prop_assert!(packet.l4 as usize + 8 <= bytes.len());
            }
        }
    }
}
