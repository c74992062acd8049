//! A data plane in memory, as strict as the kernel's, and a small mesh to put into it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    rc::Rc,
};

use weir_loader::{Answers, Attachments, Counters, Error, FlowCensus, NetnsCookies, Stats};
use weir_mesh::{
    Balance, Generation, Installed, Limits, MapOp, MeshSnapshot, Node, NodeName, Port, Protocol,
    PublishMode, PublishedPort, Service, ServiceName, TargetPort, Task, TaskName, TaskState,
    Timeouts,
    install::{BackendIndex, Frontend, Via},
    vip::{InstalledVips, SpaceCookie, VipLimits, VipOp},
};

use super::Kernel;

/// How the local task of [`mesh`] is reached.
pub(crate) const PEER: Via = Via::Peer { ifindex: 7, mac: [2, 0, 0, 0, 0, 1] };

/// Maps in memory. The test keeps one handle, the reconciler the other.
#[derive(Clone, Default)]
pub(crate) struct Fake(pub(crate) Rc<RefCell<Maps>>);

#[derive(Default)]
pub(crate) struct Maps {
    pub(crate) installed: Installed,
    pub(crate) vips: InstalledVips,
    /// Network namespaces by file.
    pub(crate) spaces: BTreeMap<PathBuf, SpaceCookie>,
    pub(crate) applied: usize,
    /// Refuse operations once this many were applied.
    pub(crate) refuse_after: Option<usize>,
    pub(crate) reach: BTreeMap<IpAddr, Via>,
    pub(crate) interfaces_unreadable: bool,
}

fn refusal(what: &str) -> Error {
    Error { what: what.into(), cause: "no space left on device".into(), remedy: String::new() }
}

impl Kernel for Fake {
    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn installed(&self) -> Result<Installed, Error> {
        Ok(self.0.borrow().installed.clone())
    }

    fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        let mut maps = self.0.borrow_mut();
        if maps.refuse_after.is_some_and(|after| maps.applied >= after) {
            return Err(refusal("write to the map"));
        }
        maps.installed.apply(op).expect("no prefix of a plan leaves anything dangling");
        maps.applied += 1;
        Ok(())
    }

    fn vip_limits(&self) -> VipLimits {
        VipLimits { vips: 64, cells: 256, spaces: 16, networks: 8 }
    }

    fn installed_vips(&self) -> Result<InstalledVips, Error> {
        Ok(self.0.borrow().vips.clone())
    }

    fn apply_vip(&mut self, op: &VipOp) -> Result<(), Error> {
        let mut maps = self.0.borrow_mut();
        if maps.refuse_after.is_some_and(|after| maps.applied >= after) {
            return Err(refusal("write to the map"));
        }
        maps.vips.apply(op).expect("no prefix of a plan leaves anything dangling");
        maps.applied += 1;
        Ok(())
    }

    fn own_space(&self) -> Result<SpaceCookie, Error> {
        Ok(SpaceCookie(1))
    }

    fn space_at(&self, path: &Path, _: &mut NetnsCookies) -> Result<SpaceCookie, Error> {
        let known = self.0.borrow().spaces.get(path).copied();
        known.ok_or_else(|| refusal("look at the network namespace"))
    }

    fn sync_interfaces(
        &mut self,
        tasks: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Via>, Error> {
        let maps = self.0.borrow();
        if maps.interfaces_unreadable {
            return Err(refusal("list the interfaces"));
        }
        let reached = maps.reach.iter().filter(|(address, _)| tasks.contains(address));
        Ok(reached.map(|(address, via)| (*address, *via)).collect())
    }

    fn settled(&mut self) {}

    fn attachments(&self) -> Attachments {
        Attachments::default()
    }

    fn stats(&self) -> Result<Stats, Error> {
        let maps = self.0.borrow();
        let counters = Counters { connections: 7, ..Counters::default() };
        let backends = maps.installed.backends.keys().map(|index| (*index, counters)).collect();
        Ok(Stats { backends, ..Stats::default() })
    }

    fn answers(
        &self,
        backends: &mut dyn Iterator<Item = BackendIndex>,
    ) -> Result<Vec<(BackendIndex, Answers)>, Error> {
        Ok(backends.map(|index| (index, Answers { accepted: 1, refused: 2 })).collect())
    }

    fn collect_flows(&mut self) -> Result<FlowCensus, Error> {
        let installed = &self.0.borrow().installed;
        let active = installed.backends.keys().map(|index| (*index, 3)).collect();
        Ok(FlowCensus { active, expired: 2, forward: 5, reverse: 4, ..FlowCensus::default() })
    }
}

/// Two nodes and services that publish a port each, with a task on each node.
pub(crate) fn mesh(generation: u64, services: &[(&str, u16)]) -> MeshSnapshot {
    let node = |name: &str, last: u8| {
        let name = NodeName::new(name);
        (name.clone(), Node { name, address: [10, 0, 0, last].into(), spaces: Vec::new() })
    };
    let task = |service: &str, node: &str, last: u8| Task {
        name: TaskName::new(format!("{service}.{last}")),
        node: NodeName::new(node),
        ipv4: Some([172, 18, 0, last].into()),
        ipv6: None,
        weight: 1,
        state: TaskState::Active,
        networks: BTreeMap::new(),
        aliases: Default::default(),
    };
    let service = |&(name, port): &(&str, u16)| {
        let service = Service {
            name: ServiceName::new(name),
            balance: Balance::RoundRobin,
            ports: vec![Port {
                protocol: Protocol::Tcp,
                published: PublishedPort::new(port).unwrap(),
                target: TargetPort::new(80).unwrap(),
                mode: PublishMode::Ingress,
            }],
            tasks: vec![task(name, "n1", 3), task(name, "n2", 4)],
            timeouts: Timeouts::default(),
            health: Default::default(),
            vips: BTreeMap::new(),
            aliases: Default::default(),
        };
        (service.name.clone(), service.into())
    };
    MeshSnapshot {
        generation: Generation(generation),
        nodes: [node("n1", 1), node("n2", 2)].into(),
        services: services.iter().map(service).collect(),
        networks: Default::default(),
    }
}

pub(crate) fn frontend(port: u16) -> Frontend {
    Frontend { protocol: Protocol::Tcp, port: PublishedPort::new(port).unwrap() }
}
