//! Whether this node's own tasks can serve: asked by probes, and seen by what they refuse.
//!
//! [`prober`] asks, [`refusals`] reads what the kernel counted; both only report. [`book`] keeps what
//! follows for each task, and for those of other nodes what these say, and is changed by nobody but the [`SnapshotWriter`]: a task that is out is
//! draining in the snapshot, so that it keeps its flows and gets no new ones.
//!
//! [`SnapshotWriter`]: crate::snapshots::SnapshotWriter

mod ask;
pub mod book;
pub mod judge;
mod others;
pub mod prober;
pub mod refusals;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use weir_mesh::{
    Ident, NodeName, ServiceName, TaskName,
    health::{Check, Seen, Verdict},
    install::BackendState,
};

pub use others::Others;

use crate::drain::Drained;

/// Tasks of this node that the kernel held when the agent began, and in which state.
pub type Held = BTreeMap<Ident, BackendState>;

/// What was found out about tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// What a probe of a task found: nothing wrong, or what.
    Probed(Ident, Purpose, Result<(), String>),
    /// What tasks have said to new connections since the last time.
    Seen(Vec<(Ident, Seen)>),
    /// What other nodes say of themselves.
    Others(Arc<Others>),
    /// What an operator has drained on this node.
    Drained(Arc<Drained>),
}

/// Why a task is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Its service has a check.
    Check,
    /// It is ejected, and may come back when it listens again.
    Return,
}

/// A task to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where; it must pass at each of them.
    pub addresses: Vec<SocketAddr>,
    /// How.
    pub check: Check,
    /// Whether it has been healthy before; one that has not is asked sooner.
    pub known: bool,
}

/// The tasks to be probed.
pub type Targets = Arc<BTreeMap<(Ident, Purpose), Target>>;

/// How a task is: one of this node that is judged at all, or one that another node has taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskHealth {
    /// Its service.
    pub service: ServiceName,
    /// Its name.
    pub task: TaskName,
    /// Its node.
    pub node: NodeName,
    /// Whether it may have new flows, as far as this is concerned.
    pub healthy: bool,
    /// What other nodes are told of it, where that is bad.
    pub verdict: Option<Verdict>,
    /// What there is to be said of it: why it is out, or why it is not although it should be.
    pub reason: Option<String>,
    /// How often it was ejected since the agent began.
    pub ejections: u64,
}

/// How tasks are, as far as there is anything to be said of them.
pub type LocalHealth = Arc<BTreeMap<Ident, Arc<TaskHealth>>>;
