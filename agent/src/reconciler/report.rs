//! What the reconciler says of its work.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use weir_loader::{Answers, Attachments, Counters, FlowCensus, Stats};
use weir_mesh::{
    Generation, Ident, MeshSnapshot,
    install::{BackendGeneration, BackendIndex, BackendState, Frontend, Installed, Via},
    vip::VipKey,
};

use crate::{listeners::Holder, plane::Chosen};

/// How things stand after a pass.
#[derive(Clone, Debug, Default)]
pub struct ReconcileReport {
    /// The data plane, once it is open.
    pub plane: Option<Chosen>,
    /// The newest snapshot that is in the kernel, whole.
    pub generation: Option<Generation>,
    /// That snapshot.
    pub held: Option<Arc<MeshSnapshot>>,
    /// The newest snapshot that was asked for.
    pub wanted: Option<Generation>,
    /// Whether that snapshot is from disk.
    pub stale: bool,
    /// Ports that this node serves.
    pub ports: Arc<BTreeSet<Frontend>>,
    /// Ports that a local process keeps from this node.
    pub withheld: BTreeMap<Frontend, Holder>,
    /// Ports that the data plane holds and clients are not served at, and why.
    pub unserved: BTreeMap<Frontend, String>,
    /// Those of them whose services do not ask for what only the proxy does.
    pub spare: BTreeSet<Frontend>,
    /// What keeps the mesh from being served as it should be.
    pub problems: Vec<String>,
    /// What failed, if the last pass did.
    pub failed: Option<String>,
    /// Why the host's interfaces could not be followed.
    pub host_failed: Option<String>,
    /// How long the last pass took that changed something.
    pub duration: Duration,
    /// Operations of that pass.
    pub operations: usize,
    /// How often the kernel's maps turned out to differ from the mirror.
    pub drift: u64,
    /// Passes that failed since the start.
    pub failures: u64,
    /// Hooks.
    pub attachments: Attachments,
}

/// Counters and gauges of one moment.
#[derive(Clone, Debug)]
pub struct StatsReport {
    /// When they were read.
    pub read: Instant,
    /// By published port.
    pub frontends: BTreeMap<Frontend, Counters>,
    /// Connections by virtual address, of networks that something of this node is attached to.
    pub vips: BTreeMap<VipKey, u64>,
    /// By task, in order. There may be 100,000, for which a tree takes half as much room again.
    backends: Vec<(Ident, BackendStats)>,
    /// By drop reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// Entries and capacity by map name.
    pub maps: BTreeMap<&'static str, (u64, u64)>,
    /// Entries in the forward flow tables.
    pub forward_flows: u64,
    /// Entries in the reverse flow tables.
    pub reverse_flows: u64,
    /// Flow entries deleted because they had timed out, since the start.
    pub expired_flows: u64,
}

/// One task in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct BackendStats {
    /// What flows it may have.
    pub state: BackendState,
    /// How it is reached.
    pub via: Via,
    /// What it has had.
    pub counters: Counters,
    /// Live flows, as entered on this node.
    pub active: u64,
}

/// What a task of this node has said to new connections, in one place of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskAnswers {
    /// The place.
    pub index: BackendIndex,
    /// Which use of it: each begins at zero.
    pub generation: BackendGeneration,
    /// The task.
    pub task: Ident,
    /// What it has said.
    pub answers: Answers,
}

impl StatsReport {
    /// Nothing counted yet.
    pub fn empty() -> Self {
        Self {
            read: Instant::now(),
            frontends: BTreeMap::new(),
            vips: BTreeMap::new(),
            backends: Vec::new(),
            drops: BTreeMap::new(),
            maps: BTreeMap::new(),
            forward_flows: 0,
            reverse_flows: 0,
            expired_flows: 0,
        }
    }

    /// Puts the kernel's counters, which know only indices, under the identities of tasks. A task
    /// can have several indices while an earlier use of it drains.
    pub(super) fn new(
        stats: Stats,
        census: &FlowCensus,
        expired: u64,
        installed: &Installed,
    ) -> Self {
        let mut backends = Vec::with_capacity(installed.backends.len());
        for (index, record) in &installed.backends {
            let counted = stats.backends.binary_search_by_key(index, |(index, _)| *index);
            let counters = counted.map_or_else(|_| Counters::default(), |at| stats.backends[at].1);
            let active = census.active.get(index).copied().unwrap_or_default();
            let fresh = BackendStats { state: record.state, via: record.via, counters, active };
            backends.push((record.ident, fresh));
        }
        backends.sort_unstable_by_key(|(ident, _)| *ident);
        backends.dedup_by(|(next, fresh), (ident, known)| {
            let same = next == ident;
            if same {
                known.merge(fresh);
            }
            same
        });
        Self {
            read: Instant::now(),
            frontends: stats.frontends,
            vips: BTreeMap::new(),
            backends,
            drops: stats.drops,
            maps: stats.maps,
            forward_flows: census.forward,
            reverse_flows: census.reverse,
            expired_flows: expired,
        }
    }
}

impl ReconcileReport {
    /// Of two planes that serve one node together.
    pub fn beside(mut self, other: &Self) -> Self {
        self.generation = self.generation.min(other.generation);
        // A port that this plane serves lacks clients of the other address family alone, if the other plane
        // cannot have it: where dockerd holds a port over UDP that is nothing to be woken for.
        let spare = |port: &Frontend| other.spare.contains(port) && self.ports.contains(port);
        let unserved = other.unserved.iter().filter(|(port, _)| !spare(port));
        let unserved: BTreeMap<_, _> = unserved.map(|(port, why)| (*port, why.clone())).collect();
        let told = |problem: &&String| {
            let listening = other.unserved.values().any(|why| why == *problem);
            let still = !listening || unserved.values().any(|why| why == *problem);
            still && !self.problems.contains(problem)
        };
        let more: Vec<_> = other.problems.iter().filter(told).cloned().collect();
        self.unserved.extend(unserved);
        Arc::make_mut(&mut self.ports).extend(other.ports.iter().copied());
        self.withheld.extend(other.withheld.clone());
        self.problems.extend(more);
        self.failed = self.failed.or_else(|| other.failed.clone());
        self
    }
}

impl StatsReport {
    /// Of two planes that serve one node together.
    pub fn beside(mut self, other: Self) -> Self {
        for (frontend, counters) in other.frontends {
            let known = self.frontends.entry(frontend).or_default();
            *known = sum(*known, counters);
        }
        for (ident, fresh) in &other.backends {
            match self.backends.binary_search_by_key(ident, |(ident, _)| *ident) {
                Ok(at) => self.backends[at].1.merge(fresh),
                Err(at) => self.backends.insert(at, (*ident, *fresh)),
            }
        }
        for (reason, count) in other.drops {
            *self.drops.entry(reason).or_default() += count;
        }
        self.maps.extend(other.maps);
        self.forward_flows += other.forward_flows;
        self
    }

    /// What is counted of a task, if it is in the kernel.
    pub fn backend(&self, task: &Ident) -> Option<&BackendStats> {
        let found = self.backends.binary_search_by_key(task, |(ident, _)| *ident);
        found.ok().map(|at| &self.backends[at].1)
    }
}

impl BackendStats {
    fn merge(&mut self, other: &Self) {
        if other.state < self.state {
            (self.state, self.via) = (other.state, other.via);
        }
        self.active += other.active;
        self.counters = sum(self.counters, other.counters);
    }
}

fn sum(one: Counters, other: Counters) -> Counters {
    Counters {
        connections: one.connections + other.connections,
        rx_packets: one.rx_packets + other.rx_packets,
        rx_bytes: one.rx_bytes + other.rx_bytes,
        tx_packets: one.tx_packets + other.tx_packets,
        tx_bytes: one.tx_bytes + other.tx_bytes,
        answers: Answers {
            accepted: one.answers.accepted + other.answers.accepted,
            refused: one.answers.refused + other.answers.refused,
        },
    }
}
