//! `/api/v1/drops`: why packets were not forwarded, as the data plane counts it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_loader::DroppedPacket;
use weir_mesh::{
    Protocol, PublishedPort, ServiceName,
    install::{Frontend, RoutedPort},
    plan::routes,
};

use crate::observe::Observation;

/// `/api/v1/drops`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drops {
    /// When the counters were read: milliseconds since the agent began.
    pub counters_at_ms: u64,
    /// Every reason that there is.
    pub drops: Vec<Drop>,
}

/// A reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drop {
    /// Its label, as in `weir_drops_total`.
    pub reason: String,
    /// What it means, in a sentence.
    pub meaning: String,
    /// Packets, since the data plane was begun.
    pub count: u64,
}

/// Why packets were not forwarded on this node.
pub fn drops(now: &Observation) -> Drops {
    let read = now.stats.read.saturating_duration_since(now.started);
    let drop = |(reason, meaning): (&'static str, &'static str)| Drop {
        reason: reason.to_owned(),
        meaning: meaning.to_owned(),
        count: now.stats.drops.get(reason).copied().unwrap_or_default(),
    };
    let drops = weir_loader::drop_reasons().map(drop).collect();
    Drops { counters_at_ms: read.as_millis() as u64, drops }
}

/// So many packets are told at most: a host with a hundred processors remembers thousands.
const MOST: usize = 256;

/// `/api/v1/drops/packets`, over the admin socket alone: the last packets that were not forwarded, at most 256,
/// the latest at the end. The kernel keeps 128 for each processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DroppedPackets {
    /// The packets.
    pub packets: Vec<DroppedView>,
}

/// A packet that was not forwarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DroppedView {
    /// When, in nanoseconds since the host began.
    pub at_ns: u64,
    /// Its protocol.
    pub protocol: Protocol,
    /// Address and port that it came from.
    pub source: String,
    /// Address and port that it was for.
    pub destination: String,
    /// Its TCP flags, a letter each.
    pub flags: String,
    /// The service that is published at its destination's port, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<ServiceName>,
    /// Why not: the label, as in `weir_drops_total`.
    pub reason: String,
    /// What that means, in a sentence.
    pub meaning: String,
}

/// The last packets that were not forwarded on this node.
pub fn dropped_packets(now: &Observation, packets: &[DroppedPacket]) -> DroppedPackets {
    let snapshot = now.view.snapshot.clone().unwrap_or_default();
    let published = snapshot
        .services
        .values()
        .flat_map(|service| service.ports.iter().map(|port| (Frontend::of(port), &service.name)));
    let published: BTreeMap<_, _> = published.collect();
    let routed = routes(&snapshot);
    let service = |packet: &DroppedPacket| {
        let at = RoutedPort::new(packet.protocol, packet.destination)?;
        if let Some(route) = routed.get(&at) {
            return Some(route.service.clone());
        }
        let port = PublishedPort::new(packet.destination.port())?;
        let frontend = Frontend { protocol: packet.protocol, port };
        published.get(&frontend).map(|name| ServiceName::clone(name))
    };
    let view = |packet: &DroppedPacket| DroppedView {
        at_ns: packet.at.as_nanos() as u64,
        protocol: packet.protocol,
        source: packet.source.to_string(),
        destination: packet.destination.to_string(),
        flags: flags(packet.flags),
        service: service(packet),
        reason: packet.reason.label().to_owned(),
        meaning: packet.reason.meaning().to_owned(),
    };
    let last = &packets[packets.len().saturating_sub(MOST)..];
    DroppedPackets { packets: last.iter().map(view).collect() }
}

/// As tcpdump(8) writes them.
fn flags(bits: u8) -> String {
    const LETTERS: [(u8, char); 6] =
        [(0x02, 'S'), (0x01, 'F'), (0x04, 'R'), (0x08, 'P'), (0x20, 'U'), (0x10, '.')];
    LETTERS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, letter)| *letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_written_as_tcpdump_does() {
        assert_eq!([0x02, 0x12, 0x18, 0x11, 0x04, 0].map(flags), ["S", "S.", "P.", "F.", "R", ""]);
    }
}
