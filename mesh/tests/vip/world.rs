//! A planner, the kernel maps that it plans for, and a clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use weir_mesh::{
    Generation, Ident, MeshSnapshot, Moment, NetworkId, Node, NodeName, Service, ServiceName, Task,
    TaskName, TaskState,
    plan::GRACE,
    vip::{InstalledVips, LocalSpaces, SpaceCookie, VipKey, VipLimits, VipOp, VipPlan, VipPlanner},
};

pub const LIMITS: VipLimits = VipLimits { vips: 64, cells: 512, spaces: 16, networks: 4 };

pub struct World {
    pub kernel: InstalledVips,
    pub planner: VipPlanner,
    pub now: Moment,
    pub limits: VipLimits,
    /// Runs of cells and slots that were freed, and when.
    freed: Vec<(std::ops::Range<u32>, Moment)>,
    freed_slots: Vec<(u32, Moment)>,
}

impl World {
    pub fn new(limits: VipLimits) -> Self {
        let (now, kernel) = (Moment(Duration::from_secs(100)), InstalledVips::default());
        let planner = VipPlanner::new(kernel.clone(), limits, now);
        Self { kernel, planner, now, limits, freed: Vec::new(), freed_slots: Vec::new() }
    }

    /// Plans and applies all of it.
    pub fn serve(&mut self, snapshot: &MeshSnapshot, spaces: Option<&LocalSpaces>) -> VipPlan {
        let plan = self.planner.plan(snapshot, &here(), spaces, self.now);
        self.apply(&plan.ops);
        assert_eq!(*self.planner.installed(), self.kernel);
        plan
    }

    /// Applies operations. The maps check that none leaves anything dangling; here it is checked that
    /// nothing is written that may still be read.
    pub fn apply(&mut self, ops: &[VipOp]) {
        for op in ops {
            self.check_rest(op);
            let freed = match op {
                VipOp::FreeRun { offset } => {
                    *offset..*offset + self.kernel.runs[offset].len() as u32
                }
                _ => 0..0,
            };
            if let VipOp::RemoveRecord(slot) = op {
                self.freed_slots.push((slot.0, self.now));
            }
            let applied = self.kernel.apply(op);
            assert_eq!(applied, Ok(()), "{op:?} in\n{}\nof {ops:#?}", self.kernel.dump());
            self.freed.push((freed, self.now));
            self.planner.applied(op, self.now);
        }
    }

    fn check_rest(&self, op: &VipOp) {
        match op {
            VipOp::WriteRun { offset, cells } => {
                let end = offset + cells.len() as u32;
                assert!(end <= self.limits.cells, "{op:?} is past the end");
                for (freed, since) in &self.freed {
                    let overlaps = *offset < freed.end && freed.start < end;
                    assert!(!overlaps || since.after(GRACE) <= self.now, "{op:?} before its rest");
                }
            }
            VipOp::SetRecord(slot, _) => {
                assert!(slot.0 < self.limits.vips);
                for (freed, since) in &self.freed_slots {
                    let rested = *freed != slot.0 || since.after(GRACE) <= self.now;
                    assert!(rested, "{op:?} before its rest");
                }
            }
            VipOp::SetSpace(_, networks) => {
                assert!(networks.len() as u32 <= self.limits.networks);
                assert!(self.kernel.spaces.len() <= self.limits.spaces as usize);
            }
            _ => {}
        }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    /// A new agent finds what the old one left: only what records point at.
    pub fn restart(&mut self) {
        let used: BTreeSet<u32> = self.kernel.records.values().map(|it| it.run.offset).collect();
        self.kernel.runs.retain(|offset, _| used.contains(offset));
        self.planner = VipPlanner::new(self.kernel.clone(), self.limits, self.now);
        // How far up the arrays had been used before is not in the maps.
        self.freed.clear();
        self.freed_slots.clear();
    }

    /// Whom an asker in a namespace reaches at an address, as the kernel program would: with the number
    /// of turns; `None`: it is left alone.
    pub fn reached(&self, space: u64, address: IpAddr) -> Option<BTreeMap<IpAddr, usize>> {
        let networks = self.kernel.spaces.get(&SpaceCookie(space))?;
        let slot = networks
            .iter()
            .find_map(|network| self.kernel.names.get(&VipKey { network: *network, address }))?;
        let record = self.kernel.records[slot];
        let mut turns = BTreeMap::new();
        for turn in 0..record.run.len {
            let at = (turn * record.stride) % record.run.len;
            *turns.entry(self.kernel.runs[&record.run.offset][at as usize]).or_default() += 1;
        }
        Some(turns)
    }
}

/// The node whose kernel it is.
pub fn here() -> NodeName {
    NodeName::new("n1")
}

/// Namespaces attached to networks: `[(7, &["blue"])]`.
pub fn spaces(attached: &[(u64, &[&str])]) -> LocalSpaces {
    let networks = |names: &[&str]| names.iter().map(|name| NetworkId::new(*name)).collect();
    attached.iter().map(|(space, names)| (SpaceCookie(*space), networks(names))).collect()
}

pub fn ident(network: &str) -> Ident {
    Ident::of_network(&NetworkId::new(network))
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn service(name: &str, vips: &[(&str, &str)], tasks: Vec<Task>) -> Service {
    let mut by_network = BTreeMap::<NetworkId, Vec<IpAddr>>::new();
    for (network, address) in vips {
        by_network.entry(NetworkId::new(*network)).or_default().push(ip(address));
    }
    Service { tasks, vips: by_network, ..Service::new(ServiceName::new(name)) }
}

/// Task number `last` at `10.0.9.last` and `fd00:9::last` of a network.
pub fn task(network: &str, last: u8, weight: u16, state: TaskState) -> Task {
    let v6 = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, last.into());
    let own = vec![Ipv4Addr::new(10, 0, 9, last).into(), v6.into()];
    Task {
        weight,
        state,
        networks: BTreeMap::from([(NetworkId::new(network), own)]),
        ..Task::new(TaskName::new(format!("task.{last}")), NodeName::new("n1"))
    }
}

pub fn snapshot(services: Vec<Service>) -> MeshSnapshot {
    let name = NodeName::new("n1");
    let node = Node::new(name, ip("192.0.2.1"));
    MeshSnapshot::build(Generation(1), vec![node], services).unwrap()
}
