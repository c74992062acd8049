//! What is told of the link: counted, and shown.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tracing::{debug, warn};

/// How the link is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LinkStatus {
    /// This node by its certificate: `manager n1 of cluster …`.
    pub identity: Option<String>,
    /// Days until that certificate ends.
    pub days_left: Option<u64>,
    /// Whether that certificate has expired.
    pub expired: bool,
    /// What is wrong with the certificates.
    pub identity_trouble: Option<String>,
    /// The hub, on managers.
    pub hub: Option<HubStatus>,
    /// Whose view is used: `own`, the name of a manager, or `nobody`.
    pub view: String,
    /// The agents on managers, by address.
    pub managers: BTreeMap<SocketAddr, PeerStatus>,
}

/// How the hub is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HubStatus {
    /// Where it listens; `None`: it cannot.
    pub listening: Option<SocketAddr>,
    /// Why not.
    pub trouble: Option<String>,
    /// Whether it can tell a whole view.
    pub ready: bool,
    /// Nodes that are alive.
    pub alive: usize,
    /// Nodes that were heard and are silent.
    pub silent: usize,
    /// Who was refused last, and why; the newest at the end.
    pub refused: VecDeque<String>,
}

/// How the connection to a manager is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// The node, once it has shown a certificate.
    pub node: Option<String>,
    /// Whether it is this node itself, which needs no connection.
    pub own: bool,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether it can tell a whole view.
    pub ready: bool,
    /// How long it takes there and back, smoothed; while it is connected.
    pub rtt: Option<Duration>,
    /// Why the last connection ended or could not be made.
    pub trouble: Option<String>,
}

/// What is counted, and the last refusals.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that were made, as client.
    pub connects: AtomicU64,
    /// Connections that failed or ended, as client.
    pub disconnects: AtomicU64,
    /// Connections and requests that the hub refused.
    pub refused: AtomicU64,
    /// Conversations with nodes that ended, as hub.
    pub ended: AtomicU64,
    /// Times that the view came from somebody else than before.
    pub failovers: AtomicU64,
    /// Snapshots asked for again after a gap.
    pub resyncs: AtomicU64,
    /// Nodes that fell silent, as seen by the hub.
    pub silences: AtomicU64,
    /// Bytes of frames that were sent, before TLS.
    pub sent_bytes: AtomicU64,
    /// Frames that were sent.
    pub sent_frames: AtomicU64,
    /// Items that were too long to be sent.
    pub oversized: AtomicU64,
    /// Frames of nodes that said more than they may, and had to wait.
    pub held: AtomicU64,
    last: Mutex<VecDeque<String>>,
}

/// So many refusals are remembered.
const MOST_REFUSALS: usize = 16;

impl Counters {
    /// Counts one.
    pub fn add(counter: &AtomicU64, more: usize) {
        counter.fetch_add(more as u64, Ordering::Relaxed);
    }

    /// Notes a refusal. Only the first of a kind is a warning: whoever is refused tries again.
    pub fn refuse(&self, whom: &str, reason: &str) {
        Self::add(&self.refused, 1);
        let text = format!("{whom}: {reason}");
        let mut last = lock(&self.last);
        if last.contains(&text) {
            debug!(whom, reason, "refused on the link");
            return;
        }
        warn!(whom, reason, "refused on the link");
        last.push_back(text);
        if last.len() > MOST_REFUSALS {
            last.pop_front();
        }
    }

    /// The last refusals.
    pub fn refusals(&self) -> VecDeque<String> {
        lock(&self.last).clone()
    }

    /// Every counter with its name in metrics (without `weir_link_` and `_total`) and its help.
    pub fn all(&self) -> [(&'static str, &'static str, u64); 11] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("connects", "Connections made to managers", get(&self.connects)),
            ("disconnects", "Connections to managers that failed or ended", get(&self.disconnects)),
            ("refused", "Connections and requests that the hub refused", get(&self.refused)),
            ("ended", "Conversations with nodes that ended, as hub", get(&self.ended)),
            ("failovers", "Changes of where the view comes from", get(&self.failovers)),
            ("resyncs", "Snapshots asked for after a gap", get(&self.resyncs)),
            ("silences", "Nodes that fell silent, as seen by the hub", get(&self.silences)),
            ("sent_bytes", "Bytes of frames sent, before TLS", get(&self.sent_bytes)),
            ("sent_frames", "Frames sent", get(&self.sent_frames)),
            ("oversized", "Items too long to be sent", get(&self.oversized)),
            ("held", "Frames that waited: their nodes say more than they may", get(&self.held)),
        ]
    }
}

/// A lock whose holder panicked is taken all the same: what it guards is replaced, never left half
/// changed for long.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
