//! What the reconciler needs of a data plane.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use weir_loader::{
    Answers, Attachments, Dataplane, DroppedPacket, Error, FlowCensus, FlowTables, NetnsCookies,
    Stats,
};
use weir_mesh::{
    Installed, Limits, MapOp, MeshSnapshot,
    install::{BackendIndex, Frontend, Via},
    trace::{Entry, Host},
    vip::{InstalledVips, SpaceCookie, VipKey, VipLimits, VipOp},
};
use weir_proxy::Proxy;

use crate::plane::Chosen;

/// A data plane that a [`super::Reconciler`] can drive: the kernel's, or one in memory in tests.
pub trait Kernel {
    /// Which data plane it is, and why.
    fn chosen(&self) -> Chosen;
    /// A snapshot that is about to be planned: for what no operation says.
    fn follow(&mut self, _: &MeshSnapshot) {}
    /// Published ports that clients are not served at although the maps say so, and why.
    fn unserved(&self) -> BTreeMap<Frontend, String> {
        BTreeMap::new()
    }
    /// What services want and this plane cannot do on this host, each with the way out.
    fn wishes_not_met(&self, _: &MeshSnapshot) -> Vec<String> {
        Vec::new()
    }
    /// Whether virtual addresses can be served at all.
    fn serves_vips(&self) -> bool {
        true
    }
    /// The sizes of the maps.
    fn limits(&self) -> Limits;
    /// What the maps hold now.
    fn installed(&self) -> Result<Installed, Error>;
    /// Applies one operation; an error leaves the maps as they were.
    fn apply(&mut self, op: &MapOp) -> Result<(), Error>;
    /// The sizes of the maps of virtual addresses.
    fn vip_limits(&self) -> VipLimits;
    /// What these maps hold now.
    fn installed_vips(&self) -> Result<InstalledVips, Error>;
    /// How many connections each virtual address has given a task, on this node.
    fn vip_connections(&self) -> Result<BTreeMap<VipKey, u64>, Error>;
    /// Applies one operation on virtual addresses; an error leaves the maps as they were.
    fn apply_vip(&mut self, op: &VipOp) -> Result<(), Error>;
    /// The network namespace of the host.
    fn own_space(&self) -> Result<SpaceCookie, Error>;
    /// The network namespace that a file stands for; `cookies` are those that are known.
    fn space_at(&self, path: &Path, cookies: &mut NetnsCookies) -> Result<SpaceCookie, Error> {
        cookies.cookie_of(path)
    }
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
    /// The last packets that were not forwarded, the latest at the end; none where clients are served by
    /// sockets of the agent.
    fn last_drops(&self) -> Result<Vec<DroppedPacket>, Error> {
        Ok(Vec::new())
    }
    /// Reads what these backends, tasks of this node, have said to new connections.
    fn answers(
        &self,
        backends: &mut dyn Iterator<Item = BackendIndex>,
    ) -> Result<Vec<(BackendIndex, Answers)>, Error>;
    /// Deletes flows that have timed out and counts the others.
    fn collect_flows(&mut self) -> Result<FlowCensus, Error>;
    /// What goes on without an agent only if another one takes it over.
    fn leave(self) -> Option<Proxy>
    where
        Self: Sized,
    {
        None
    }
    /// The flow tables, to be read elsewhere; `None` where flows are sockets of the agent.
    fn flow_tables(&self) -> Result<Option<FlowTables>, Error> {
        Ok(None)
    }
    /// This host's addresses, and where packets of a client enter; `None` where clients are served by
    /// sockets of the agent.
    fn standing(&self, _client: IpAddr) -> Result<Option<(Host, Entry)>, Error> {
        Ok(None)
    }
}

impl Kernel for Dataplane {
    fn chosen(&self) -> Chosen {
        Chosen::ebpf()
    }

    fn limits(&self) -> Limits {
        Self::limits(self)
    }

    fn installed(&self) -> Result<Installed, Error> {
        Self::installed(self)
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        Self::apply(self, op)
    }

    fn vip_limits(&self) -> VipLimits {
        Self::vip_limits(self)
    }

    fn installed_vips(&self) -> Result<InstalledVips, Error> {
        Self::installed_vips(self)
    }

    fn vip_connections(&self) -> Result<BTreeMap<VipKey, u64>, Error> {
        Self::vip_connections(self)
    }

    fn apply_vip(&mut self, op: &VipOp) -> Result<(), Error> {
        Self::apply_vip(self, op)
    }

    fn own_space(&self) -> Result<SpaceCookie, Error> {
        Self::own_space(self)
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

    fn last_drops(&self) -> Result<Vec<DroppedPacket>, Error> {
        Self::last_drops(self)
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

    fn flow_tables(&self) -> Result<Option<FlowTables>, Error> {
        Self::flow_tables(self).map(Some)
    }

    fn standing(&self, client: IpAddr) -> Result<Option<(Host, Entry)>, Error> {
        Ok(Some((self.trace_host()?, self.entry_of(client)?)))
    }
}
