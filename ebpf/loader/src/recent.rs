//! The last packets that were not forwarded.

use std::{net::SocketAddr, time::Duration};

use weir_abi::{DropReason, size};
use weir_mesh::Protocol;

use crate::{
    Dataplane,
    error::{Error, Tried as _},
    records::narrow,
    store::Store,
};

/// A packet that was not forwarded, as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedPacket {
    /// When, on `CLOCK_MONOTONIC`.
    pub at: Duration,
    /// Its protocol.
    pub protocol: Protocol,
    /// Where it came from.
    pub source: SocketAddr,
    /// Where it was to go.
    pub destination: SocketAddr,
    /// Its TCP flags (RFC 9293 section 3.1); 0 for UDP.
    pub flags: u8,
    /// Why not.
    pub reason: DropReason,
}

impl DroppedPacket {
    /// `None` for an empty place, and for one that is written just now.
    fn read(raw: &weir_abi::DroppedPacket) -> Option<Self> {
        if raw.at == 0 || raw.at != raw.end {
            return None;
        }
        let at = |addr, port| SocketAddr::new(narrow(addr), u16::from_be_bytes(port));
        let reason = |known: &&DropReason| **known as u32 == u32::from(raw.reason);
        Some(Self {
            at: Duration::from_nanos(raw.at),
            // Nothing else is forwarded.
            protocol: if raw.protocol == 17 { Protocol::Udp } else { Protocol::Tcp },
            source: at(raw.src, raw.sport),
            destination: at(raw.dst, raw.dport),
            flags: raw.flags,
            reason: *DropReason::ALL.iter().find(reason)?,
        })
    }
}

impl Dataplane {
    /// The last packets that were not forwarded, the latest at the end: so many of each CPU as there is
    /// room for.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn last_drops(&self) -> Result<Vec<DroppedPacket>, Error> {
        self.store.last_drops()
    }
}

impl Store {
    pub(crate) fn last_drops(&self) -> Result<Vec<DroppedPacket>, Error> {
        let mut packets = Vec::new();
        let ring = &self.maps.last_drops;
        ring.visit(size::LAST_DROPS, |_, cpus| {
            packets.extend(cpus.iter().filter_map(DroppedPacket::read));
        })
        .tried(|| "read which packets were dropped".to_owned())?;
        packets.sort_by_key(|packet| packet.at);
        Ok(packets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_empty_or_is_being_written_is_no_packet() {
        let whole = weir_abi::DroppedPacket {
            at: 5,
            end: 5,
            protocol: 6,
            reason: DropReason::HopLimit as u16,
            sport: [1, 2],
            ..Default::default()
        };
        let read = DroppedPacket::read(&whole).unwrap();
        assert_eq!((read.source.port(), read.reason), (0x0102, DropReason::HopLimit));
        for other in [
            weir_abi::DroppedPacket::default(),
            weir_abi::DroppedPacket { end: 0, ..whole },
            weir_abi::DroppedPacket { at: 9, ..whole },
            weir_abi::DroppedPacket { reason: 999, ..whole },
        ] {
            assert_eq!(DroppedPacket::read(&other), None, "{other:?}");
        }
    }
}
