//! Where the desired state comes from. A source publishes what it last read and keeps the last
//! good state when it reads nonsense.

pub mod docker;
pub mod file;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use weir_mesh::{Network, NetworkId, Node, NodeName, Service, ServiceName};

use crate::document::Fault;

/// What the mesh should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What this node is called in it, where the source knows.
    pub here: Option<NodeName>,
    /// The nodes by name.
    pub nodes: BTreeMap<NodeName, Node>,
    /// The services by name, shared with the state before where they did not change.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// The networks on which services have names.
    pub networks: BTreeMap<NetworkId, Network>,
}

/// What a source last said.
#[derive(Clone, Debug)]
pub struct SourceState {
    /// The last good state, if there has been one since the start.
    pub desired: Option<Arc<Desired>>,
    /// When the source last confirmed that state.
    pub confirmed: Option<Instant>,
    /// When the change that led to this was noticed.
    pub noticed: Instant,
    /// Why the last reading was not taken.
    pub trouble: Option<Trouble>,
    /// What was taken otherwise than it was asked for.
    pub notes: Arc<[Fault]>,
    /// Readings so far; 0: the source has not spoken yet.
    pub readings: u64,
    /// Readings that were not taken, by reason.
    pub errors: BTreeMap<&'static str, u64>,
}

/// Why a reading was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// A word for metrics: `missing`, `unreadable`, `empty`, `invalid`.
    pub reason: &'static str,
    /// All that is wrong.
    pub faults: Arc<[Fault]>,
}

// === impl SourceState ===

impl SourceState {
    /// A source that has not spoken yet.
    pub fn silent() -> Self {
        Self {
            desired: None,
            confirmed: None,
            noticed: Instant::now(),
            trouble: None,
            notes: Arc::default(),
            readings: 0,
            errors: BTreeMap::new(),
        }
    }
}

// === impl Trouble ===

impl Trouble {
    /// The first fault, and how many more there are.
    pub fn summary(&self) -> String {
        match &*self.faults {
            [] => self.reason.to_owned(),
            [only] => only.to_string(),
            [first, more @ ..] => {
                format!("{first} (and {} more: weir config check names them all)", more.len())
            }
        }
    }
}
