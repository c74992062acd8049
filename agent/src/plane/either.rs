//! One of the data planes, decided at the start.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weir_loader::{
    Answers, Attachments, Dataplane, DroppedPacket, Error, FlowCensus, FlowTables, Stats,
};
use weir_mesh::{
    Installed, Limits, MapOp, MeshSnapshot,
    install::{BackendIndex, Frontend, Via},
    trace::{Entry, Host},
    vip::{InstalledVips, SpaceCookie, VipKey, VipLimits, VipOp},
};
use weir_proxy::Proxy;

use super::{Chosen, UserPlane};
use crate::reconciler::Kernel;

/// A data plane.
pub struct Plane(Which);

enum Which {
    Kernel(Box<Dataplane>),
    User(Box<UserPlane>),
}

impl Plane {
    /// The kernel's programs.
    pub fn kernel(dataplane: Dataplane) -> Self {
        Self(Which::Kernel(Box::new(dataplane)))
    }

    /// The proxy.
    pub fn user(plane: UserPlane) -> Self {
        Self(Which::User(Box::new(plane)))
    }

    fn get(&self) -> &dyn Kernel {
        match &self.0 {
            Which::Kernel(dataplane) => &**dataplane,
            Which::User(plane) => &**plane,
        }
    }

    fn get_mut(&mut self) -> &mut dyn Kernel {
        match &mut self.0 {
            Which::Kernel(dataplane) => &mut **dataplane,
            Which::User(plane) => &mut **plane,
        }
    }
}

impl Kernel for Plane {
    fn chosen(&self) -> Chosen {
        self.get().chosen()
    }

    fn follow(&mut self, snapshot: &MeshSnapshot) {
        self.get_mut().follow(snapshot);
    }

    fn unserved(&self) -> BTreeMap<Frontend, String> {
        self.get().unserved()
    }

    fn wishes_not_met(&self, snapshot: &MeshSnapshot) -> Vec<String> {
        self.get().wishes_not_met(snapshot)
    }

    fn limits(&self) -> Limits {
        self.get().limits()
    }

    fn installed(&self) -> Result<Installed, Error> {
        self.get().installed()
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        self.get_mut().apply(op)
    }

    fn vip_limits(&self) -> VipLimits {
        self.get().vip_limits()
    }

    fn installed_vips(&self) -> Result<InstalledVips, Error> {
        self.get().installed_vips()
    }

    fn apply_vip(&mut self, op: &VipOp) -> Result<(), Error> {
        self.get_mut().apply_vip(op)
    }

    fn vip_connections(&self) -> Result<BTreeMap<VipKey, u64>, Error> {
        self.get().vip_connections()
    }

    fn serves_vips(&self) -> bool {
        self.get().serves_vips()
    }

    fn own_space(&self) -> Result<SpaceCookie, Error> {
        self.get().own_space()
    }

    fn sync_interfaces(
        &mut self,
        tasks: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Via>, Error> {
        self.get_mut().sync_interfaces(tasks)
    }

    fn settled(&mut self) {
        self.get_mut().settled();
    }

    fn attachments(&self) -> Attachments {
        self.get().attachments()
    }

    fn stats(&self) -> Result<Stats, Error> {
        self.get().stats()
    }

    fn last_drops(&self) -> Result<Vec<DroppedPacket>, Error> {
        self.get().last_drops()
    }

    fn answers(
        &self,
        backends: &mut dyn Iterator<Item = BackendIndex>,
    ) -> Result<Vec<(BackendIndex, Answers)>, Error> {
        self.get().answers(backends)
    }

    fn collect_flows(&mut self) -> Result<FlowCensus, Error> {
        self.get_mut().collect_flows()
    }

    fn leave(self) -> Option<Proxy> {
        match self.0 {
            // What is in the kernel stays there.
            Which::Kernel(_) => None,
            Which::User(plane) => plane.leave(),
        }
    }

    fn flow_tables(&self) -> Result<Option<FlowTables>, Error> {
        self.get().flow_tables()
    }

    fn standing(&self, client: IpAddr) -> Result<Option<(Host, Entry)>, Error> {
        self.get().standing(client)
    }
}
