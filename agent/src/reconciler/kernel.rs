//! What the reconciler needs of a data plane.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weir_loader::{Answers, Attachments, Dataplane, Error, FlowCensus, Stats};
use weir_mesh::{
    Installed, Limits, MapOp,
    install::{BackendIndex, Via},
};

/// A data plane that a [`super::Reconciler`] can drive: the kernel's, or one in memory in tests.
pub trait Kernel {
    /// The sizes of the maps.
    fn limits(&self) -> Limits;
    /// What the maps hold now.
    fn installed(&self) -> Result<Installed, Error>;
    /// Applies one operation; an error leaves the maps as they were.
    fn apply(&mut self, op: &MapOp) -> Result<(), Error>;
    /// Follows the host's interfaces; answers how each of `tasks` is reached.
    fn sync_interfaces(&mut self, tasks: &BTreeSet<IpAddr>)
    -> Result<BTreeMap<IpAddr, Via>, Error>;
    /// The maps hold a whole snapshot for the first time: what an agent with another layout of
    /// the maps left is not needed any more.
    fn settled(&mut self);
    /// What is attached where.
    fn attachments(&self) -> Attachments;
    /// Reads the counters.
    fn stats(&self) -> Result<Stats, Error>;
    /// Reads what these backends, tasks of this node, have said to new connections.
    fn answers(
        &self,
        backends: &mut dyn Iterator<Item = BackendIndex>,
    ) -> Result<Vec<(BackendIndex, Answers)>, Error>;
    /// Deletes flows that have timed out and counts the others.
    fn collect_flows(&mut self) -> Result<FlowCensus, Error>;
}

impl Kernel for Dataplane {
    fn limits(&self) -> Limits {
        Self::limits(self)
    }

    fn installed(&self) -> Result<Installed, Error> {
        Self::installed(self)
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        Self::apply(self, op)
    }

    fn sync_interfaces(
        &mut self,
        tasks: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Via>, Error> {
        Self::sync_interfaces(self, tasks)
    }

    fn settled(&mut self) {
        self.retire_other_layouts();
    }

    fn attachments(&self) -> Attachments {
        Self::attachments(self)
    }

    fn stats(&self) -> Result<Stats, Error> {
        Self::stats(self)
    }

    fn answers(
        &self,
        backends: &mut dyn Iterator<Item = BackendIndex>,
    ) -> Result<Vec<(BackendIndex, Answers)>, Error> {
        Self::answers(self, backends)
    }

    fn collect_flows(&mut self) -> Result<FlowCensus, Error> {
        Self::collect_flows(self)
    }
}
