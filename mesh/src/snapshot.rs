//! The immutable whole that every consumer reads.

mod check;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use check::SnapshotError;

use crate::service::{Node, NodeName, Service, ServiceName};

/// Counts the snapshots of one agent, upwards. It appears in every log line, metric and API answer
/// that speaks of mesh state.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Everything the agent knows about the mesh at one moment. Never changed, only replaced by one
/// with a higher generation; consumers take it whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshSnapshot {
    /// Which snapshot this is.
    pub generation: Generation,
    /// The nodes by name.
    pub nodes: BTreeMap<NodeName, Node>,
    /// The services by name.
    pub services: BTreeMap<ServiceName, Service>,
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
