//! How what is installed becomes what is wanted.
//!
//! [`Planner::plan`] compares a snapshot with the mirror of the kernel maps and answers with
//! operations, ordered so that after every prefix of them nothing points at something missing.
//! What goes away does so in steps that take time: a port first refuses new flows, a backend first
//! drains, and every freed place rests before it is used again. The planner keeps these deadlines;
//! the clock is the caller's.
//!
//! Order of reading: `run` goes through one plan, `wanted` says what a service should look like,
//! `build` finds room for it, `depart` is how things leave.

mod build;
mod changes;
mod depart;
mod draft;
pub(crate) mod extents;
pub(crate) mod pool;
mod routed;
mod run;
mod steps;
mod stock;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use serde::Serialize;

pub use self::routed::{Route, routes};
use self::{
    changes::Memory,
    depart::Departures,
    draft::Draft,
    run::Run,
    stock::{Freed, Stock},
};
use crate::{
    install::{BackendIndex, Frontend, Installed, MapOp, Via},
    service::{NodeName, ServiceName, TaskName},
    snapshot::MeshSnapshot,
};

/// How long an index, slot or region rests before it is used again, so that no packet in flight
/// still reads what it was. Packets are in a program for microseconds; the rest is for flow
/// entries written at the last moment, and for nodes that learn of a change later than others.
pub const GRACE: Duration = Duration::from_secs(2);

/// A moment on the caller's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Moment(pub Duration);

/// What only this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalView {
    /// This node.
    pub node: NodeName,
    /// How this node's own tasks are reached. One that is missing is unreachable.
    pub reach: BTreeMap<IpAddr, Via>,
    /// Ports that this node must not begin to serve, since a local process listens there. Those
    /// that it serves already it goes on serving.
    pub withheld: BTreeSet<Frontend>,
    /// Ports whose clients on this node another plane of ours serves, from now on. What other nodes
    /// forward is served all the same.
    pub ceded: BTreeSet<Frontend>,
    /// Ports at which another plane of ours serves clients of this node whose address family no task has.
    pub shared: BTreeSet<Frontend>,
    /// What became of flows of this node's clients when their tables were last gone through.
    pub carried: Carried,
}

/// Backends with connections that live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// When that was looked at.
    pub seen: Moment,
    /// Those that drain behind other nodes and have TCP connections which entered by this node.
    pub backends: BTreeSet<BackendIndex>,
}

/// The sizes of the kernel arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Backends, with the reserved 0.
    pub backends: u32,
    /// Cells of the pick table.
    pub cells: u32,
    /// Service records, with the reserved 0.
    pub records: u32,
    /// Nodes, with the reserved 0.
    pub nodes: u32,
    /// Services, with the reserved 0.
    pub services: u32,
    /// Address ranges in lists of who may be a client. While a plan is applied there are up to twice
    /// as many: new lists are written before old ones are removed.
    pub ranges: u32,
    /// Ports at routed virtual addresses.
    pub routed: u32,
}

/// What must be done now, what cannot be done, and when to ask again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes, in the order in which they must be applied.
    pub ops: Vec<MapOp>,
    /// Everything that is wrong now, whether or not it is news.
    pub problems: Vec<Problem>,
    /// When something will be due although nothing changed; `None`: never.
    pub wake: Option<Moment>,
}

/// A kernel array that can be full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Backends.
    Backends,
    /// Cells of the pick table.
    Cells,
    /// Service records.
    Records,
    /// Service numbers.
    Services,
    /// Address ranges.
    Ranges,
    /// Ports at routed virtual addresses.
    Routed,
}

/// Something that keeps the mesh from being served as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Problem {
    /// A kernel array is full; the service goes on as it was.
    #[error(
        "service {service} is not up to date: all {limit} {resource} of the kernel maps are taken"
    )]
    Exhausted {
        /// The service, by name, or by identity when it has left the mesh.
        service: String,
        /// What there is none left of.
        resource: Resource,
        /// How much there is.
        limit: u32,
    },
    /// More nodes than the kernel array holds.
    #[error("node {node} is unknown to the data plane: it has room for {limit} nodes")]
    TooManyNodes {
        /// The node that found no place.
        node: NodeName,
        /// How many there may be.
        limit: u32,
    },
    /// A local process listens on the port.
    #[error(
        "service {service} is not served at {frontend} here: a process on this node listens there"
    )]
    PortTaken {
        /// The service.
        service: ServiceName,
        /// The port.
        frontend: Frontend,
    },
    /// Two services want one port.
    #[error("service {service} is not served at {frontend}: service {winner} has it")]
    PortConflict {
        /// The service that does not have it.
        service: ServiceName,
        /// The port.
        frontend: Frontend,
        /// The service that has it: the first by name.
        winner: ServiceName,
    },
    /// A task of this node that no interface leads to.
    #[error(
        "task {task} of service {service} gets no flows: no interface of this node leads to it"
    )]
    Unreachable {
        /// The service.
        service: ServiceName,
        /// The task.
        task: TaskName,
    },
    /// A task of another node that is not in the mesh.
    #[error("task {task} of service {service} gets no flows: its node {node} is not in the mesh")]
    UnknownNode {
        /// The service.
        service: ServiceName,
        /// The task.
        task: TaskName,
        /// Its node.
        node: NodeName,
    },
}

/// Turns snapshots into operations. One planner belongs to one set of kernel maps.
#[derive(Clone, Debug)]
pub struct Planner {
    /// What the kernel holds once the last plan is applied.
    draft: Draft,
    stock: Stock,
    departures: Departures,
    memory: Memory,
    /// Operations of the last plan that were not reported applied.
    outstanding: usize,
    /// What the last plan freed, to rest from when it is applied.
    freed: Vec<Freed>,
}

impl Planner {
    /// A planner for maps that hold this. What nothing refers to is freed by the first plan, and
    /// what is leaving leaves from `now` on, since nobody remembers since when it did.
    pub fn new(installed: Installed, limits: Limits, now: Moment) -> Self {
        Self {
            stock: Stock::new(&installed, limits, now),
            draft: Draft::new(installed),
            departures: Departures::default(),
            memory: Memory::default(),
            outstanding: 0,
            freed: Vec::new(),
        }
    }

    /// Begins anew from what the maps really hold, after an operation failed or when they turned
    /// out to differ, without forgetting since when something is leaving.
    pub fn resync(&mut self, installed: Installed, now: Moment) {
        let mut anew = Self::new(installed, self.stock.limits(), now);
        anew.stock.mark_used(&self.stock, now);
        anew.departures = std::mem::take(&mut self.departures);
        anew.departures.keep_common(&self.draft.installed, &anew.draft.installed);
        *self = anew;
    }

    /// What must change so that the maps serve this snapshot. Once all operations are applied, the
    /// same question has no further answer until time passes.
    ///
    /// The operations must be applied in order and each reported to [`Self::applied`]. While some
    /// are not, nothing is planned: see [`Self::is_behind`].
    pub fn plan(&mut self, snapshot: &MeshSnapshot, local: &LocalView, now: Moment) -> Plan {
        if self.is_behind() {
            return Plan::default();
        }
        let plan = Run::new(self, snapshot, local, now).plan();
        self.outstanding = plan.ops.len();
        plan
    }

    /// Takes note that the kernel has applied the next operation of the last plan.
    pub fn applied(&mut self, now: Moment) {
        self.outstanding = self.outstanding.saturating_sub(1);
        if self.outstanding == 0 {
            for freed in self.freed.drain(..) {
                self.stock.release(freed, now);
            }
        }
    }

    /// Whether operations of the last plan were not reported applied. If they will not be, only
    /// [`Self::resync`] leads on: which of them the kernel holds is best known to the kernel, and a
    /// second mirror to tell would take as much room as the first.
    pub fn is_behind(&self) -> bool {
        self.outstanding > 0
    }

    /// What the kernel holds, unless [`Self::is_behind`]: then what it was to hold.
    pub fn installed(&self) -> &Installed {
        &self.draft.installed
    }
}

// === impl LocalView ===

impl LocalView {
    /// A node of which nothing else is known.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            reach: BTreeMap::new(),
            withheld: BTreeSet::new(),
            ceded: BTreeSet::new(),
            shared: BTreeSet::new(),
            carried: Carried::default(),
        }
    }
}

// === impl Moment, Limits, Resource ===

impl Moment {
    /// The moment that much later.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Default for Limits {
    /// The sizes that the kernel object is built with.
    fn default() -> Self {
        Self {
            backends: 131_072,
            cells: 4_194_304,
            records: 65_536,
            nodes: 4_096,
            services: 65_536,
            ranges: 32_768,
            routed: 32_768,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backends => "backends",
            Self::Cells => "cells",
            Self::Records => "records",
            Self::Services => "service numbers",
            Self::Ranges => "address ranges",
            Self::Routed => "ports at routed virtual addresses",
        })
    }
}
