//! How the words of many nodes become one mesh.
//!
//! Managers say what Swarm wants ([`Declared`]); every node says what it sees of its own tasks
//! ([`Report`]). [`merge()`] makes one mesh of both, the same on every node that knows the same.
//! Every entry has a key and is shared, so that two versions are compared quickly and only what
//! differs travels between nodes.

mod declared;
mod health;
mod ids;
mod labels;
mod merge;
mod nodes;
mod note;
mod publish;
mod report;
mod tasks;

pub use crate::service::{EndpointMode, NetworkId};
pub use declared::{
    Availability, Declared, DeclaredNetwork, DeclaredNode, DeclaredPort, DeclaredService,
    DeclaredTask, Transport, WishedState,
};
pub use ids::{NodeId, ServiceId, TaskId};
pub use merge::{Merged, Words, merge};
pub use note::Note;
pub use report::{
    BoundPort, HeardPort, HeardService, HeardTask, Hearsay, Life, Report, ReportedNode,
    ReportedTask,
};

use std::collections::BTreeMap;

/// Labels whose names begin with `weir.`, by name.
pub type Labels = BTreeMap<String, String>;
