//! The userspace proxy beside HAProxy, nginx stream and a plain tokio copy, in one lab and one run. What
//! counts is the processor time of the proxy itself: it says something on a busy machine, too.

pub mod bursts;
pub mod copy;
pub mod measure;
pub mod stage;

use std::collections::BTreeMap;

use crate::{
    Spread,
    peers::mode::{Mode, Wire},
};

/// What was measured, by measure and proxy, a figure a round.
pub type Results = BTreeMap<(&'static str, Peer), Vec<f64>>;

/// All, in the order of the table.
pub const PEERS: [Peer; 4] = [Peer::Weir, Peer::Haproxy, Peer::Nginx, Peer::Tokio];
/// A proxy that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// An agent with `dataplane.mode = "proxy"`.
    Weir,
    /// HAProxy in TCP mode.
    Haproxy,
    /// nginx with its stream module.
    Nginx,
    /// [`copy::serve`].
    Tokio,
}

impl Peer {
    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weir => "weir proxy",
            Self::Haproxy => "HAProxy TCP",
            Self::Nginx => "nginx stream",
            Self::Tokio => "tokio copy",
        }
    }

    /// The port at which it serves.
    pub fn port(self, wire: Wire) -> u16 {
        match (self, wire) {
            (Self::Weir, _) => Mode::WeirLocal.port(wire),
            (Self::Haproxy, _) => Mode::Haproxy.port(wire),
            (Self::Nginx, Wire::Echo) => 5356,
            (Self::Nginx, _) => Mode::NginxStream.port(wire),
            (Self::Tokio, Wire::Http) => 8090,
            (Self::Tokio, _) => 5290,
        }
    }

    /// Whether it carries datagrams.
    pub fn carries_udp(self) -> bool {
        matches!(self, Self::Weir | Self::Nginx)
    }
}

/// The median of each, with its lowest and highest.
pub fn table(results: &Results) -> String {
    let measures: std::collections::BTreeSet<&str> =
        results.keys().map(|(name, _)| *name).collect();
    let mut text = format!("| {:27} |", "median [min..max]");
    PEERS.iter().for_each(|peer| text += &format!(" {:>24} |", peer.name()));
    text += &format!("\n|{:-<29}|{}\n", "", format!("{:->25}:|", "").repeat(PEERS.len()));
    for measure in measures {
        text += &format!("| {measure:27} |");
        for peer in PEERS {
            let shown = results.get(&(measure, peer)).map(|values| {
                let spread = Spread::of(values.clone());
                if spread.median < 100.0 { format!("{spread:.1}") } else { format!("{spread}") }
            });
            text += &format!(" {:>24} |", shown.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}
