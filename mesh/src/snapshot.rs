//! The immutable whole that every consumer reads.

mod check;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

pub use check::{SnapshotError, unknown_node};

use crate::service::{Network, NetworkId, Node, NodeName, Service, ServiceName};

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
    /// What the node is called in it whose agent made it, where the source knows that better than its
    /// configuration: a Swarm tells nodes apart by identities, and names may turn out not to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub here: Option<NodeName>,
    /// The nodes by name.
    pub nodes: BTreeMap<NodeName, Node>,
    /// The services by name. What did not change is shared with the snapshot before, so that a
    /// small change of a large mesh is small for every consumer.
    #[serde(with = "shared")]
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// The networks on which services have names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<NetworkId, Network>,
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Services are stored as if they were not shared.
mod shared {
    use std::{collections::BTreeMap, sync::Arc};

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::service::{Service, ServiceName};

    type Services = BTreeMap<ServiceName, Arc<Service>>;

    pub(super) fn serialize<S: Serializer>(services: &Services, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(services.iter().map(|(name, service)| (name, &**service)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Services, D::Error> {
        let services = BTreeMap::<ServiceName, Service>::deserialize(from)?;
        Ok(services.into_iter().map(|(name, service)| (name, Arc::new(service))).collect())
    }
}
