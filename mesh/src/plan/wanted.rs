//! What a service should look like on this node, given what is installed of it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Problem, run::Run};
use crate::{
    ident::{Ident, Tag},
    install::{
        BackendGeneration, BackendIndex, BackendRecord, BackendState, Frontend, ServiceId, Via,
    },
    service::{Locality, Port, PublishMode, Service, Task, TaskState},
};

/// A service as it should be.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) service: &'a Service,
    pub(super) ident: Ident,
    /// Its number, if anything of it is installed.
    pub(super) id: Option<ServiceId>,
    /// The ports that this node serves.
    pub(super) ports: Vec<Port>,
    /// Those of them that it serves to other nodes only.
    pub(super) withheld: BTreeSet<Frontend>,
    pub(super) members: Vec<Member>,
}

/// A task that should be a backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) ident: Ident,
    /// The backend that it is already.
    pub(super) existing: Option<(BackendIndex, BackendRecord)>,
    pub(super) state: BackendState,
    pub(super) via: Via,
    pub(super) local: bool,
    /// Whether packets for it have a way to go.
    pub(super) usable: bool,
    pub(super) weight: u16,
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
}

impl Member {
    /// Whether it takes new flows.
    pub(super) fn is_picked(&self) -> bool {
        self.usable && self.weight > 0 && self.state == BackendState::Active
    }

    /// Its backend record, for a use of an index.
    pub(super) fn record(
        &self,
        service: ServiceId,
        generation: BackendGeneration,
    ) -> BackendRecord {
        BackendRecord {
            ident: self.ident,
            generation,
            state: self.state,
            service,
            via: self.via,
            tag: Tag::of(self.ident),
            ipv4: self.ipv4,
            ipv6: self.ipv6,
        }
    }
}

impl<'a> Run<'a> {
    /// Draws up what a service should look like. Notes what stands in the way.
    pub(super) fn want(&mut self, service: &'a Service, ident: Ident) -> Wanted<'a> {
        let id = self.id_of(service, ident);
        let (ports, withheld) = self.served_ports(service);
        let mut wanted = Wanted { service, ident, id, ports, withheld, members: Vec::new() };
        let needed = self.tasks_needed_here(service);
        for task in needed.filter(|task| task.state != TaskState::Down) {
            let ident = Ident::of_task(&service.name, &task.name, &task.node);
            wanted.members.extend(self.member(service, id, task, ident));
        }
        // Equal on every node and after every restart, whatever the order of the tasks.
        wanted.members.sort_by_key(|member| member.ident);
        wanted.members.dedup_by_key(|member| member.ident);
        wanted
    }

    /// The number of a service of which something is installed; by its tasks, if nothing else
    /// tells.
    fn id_of(&mut self, service: &Service, ident: Ident) -> Option<ServiceId> {
        let draft = &mut self.planner.draft;
        let mut id = draft.service_id(ident);
        if draft.has_strays() {
            let task = |task: &Task| Ident::of_task(&service.name, &task.name, &task.node);
            let tasks: Vec<Ident> = service.tasks.iter().map(task).collect();
            if id.is_none() {
                // It may have left under one number and come back under another before; then the
                // backends under the old one are leaving.
                let found = tasks.iter().filter_map(|task| draft.recognise(*task)).min();
                id = found.map(|(_, id)| id);
                id.into_iter().for_each(|id| draft.name_service(id, ident));
            }
            tasks.into_iter().filter(|_| id.is_some()).for_each(|task| draft.forget_stray(task));
        }
        if let Some(id) = &id {
            self.planner.memory.gone.remove(id);
        }
        id
    }

    /// A mesh port needs every task; a host port, or a service that is kept to each node, only those that
    /// run here; without ports, and so
    /// without anybody who could ask for them, tasks need not be known.
    fn tasks_needed_here(&self, service: &'a Service) -> impl Iterator<Item = &'a Task> + use<'a> {
        let here = &self.local.node;
        let ingress = service.ports.iter().any(|port| port.mode == PublishMode::Ingress);
        let everywhere = ingress && service.locality != Locality::Local;
        let none = service.ports.is_empty();
        service.tasks.iter().filter(move |task| !none && (everywhere || task.node == *here))
    }

    /// The ports that this node serves, and those of them that it serves to other nodes only.
    fn served_ports(&mut self, service: &Service) -> (Vec<Port>, BTreeSet<Frontend>) {
        let mut ports = Vec::new();
        let mut withheld = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for port in &service.ports {
            let frontend = Frontend::of(port);
            let Some(winner) = self.planner.memory.winner(frontend) else { continue };
            if !seen.insert(frontend) {
                continue;
            }
            let name = service.name.clone();
            if *winner != name {
                let winner = winner.clone();
                self.problems.push(Problem::PortConflict { service: name, frontend, winner });
            } else if self.local.ceded.contains(&frontend) {
                withheld.insert(frontend);
                ports.push(*port);
            } else if self.is_withheld(frontend) {
                self.problems.push(Problem::PortTaken { service: name, frontend });
                // A host port has no clients but this node's. What was served there to other nodes
                // before it became one is not left as it was.
                let was_served = self.planner.draft.record_of(frontend).is_some();
                if port.mode == PublishMode::Ingress || was_served {
                    withheld.insert(frontend);
                    ports.push(*port);
                }
            } else {
                ports.push(*port);
            }
        }
        (ports, withheld)
    }

    /// A port that is served already is not given up to a process that comes later.
    fn is_withheld(&self, frontend: Frontend) -> bool {
        let record = self.planner.draft.record_of(frontend);
        self.local.withheld.contains(&frontend) && record.is_none_or(|record| record.withheld)
    }

    fn member(
        &mut self,
        service: &Service,
        id: Option<ServiceId>,
        task: &Task,
        ident: Ident,
    ) -> Option<Member> {
        let existing = id.and_then(|id| self.same_use(id, task, ident));
        let local = task.node == self.local.node;
        let way = if local { self.local_way(task) } else { self.remote_way(task) };
        if way.is_none() {
            let (service, task, node) =
                (service.name.clone(), task.name.clone(), task.node.clone());
            self.problems.push(match local {
                true => Problem::Unreachable { service, task },
                false => Problem::UnknownNode { service, task, node },
            });
        }
        let via = match (way, local, existing) {
            (Some(via), _, _) => via,
            (None, true, _) => Via::Unreachable,
            // Its node has just left the mesh: established flows may still find the way.
            (None, false, Some((_, backend))) => backend.via,
            (None, false, None) => return None,
        };
        let state = match task.state {
            TaskState::Active => BackendState::Active,
            TaskState::Draining => BackendState::Draining,
            TaskState::Down => BackendState::Gone,
        };
        let Task { weight, ipv4, ipv6, .. } = *task;
        let usable = way.is_some();
        Some(Member { ident, existing, state, via, local, usable, weight, ipv4, ipv6 })
    }

    /// The backend that this task is already: the same task at the same address. An address may
    /// have become known since; if it changed, flows to the old one must not meet the new one.
    fn same_use(
        &self,
        id: ServiceId,
        task: &Task,
        ident: Ident,
    ) -> Option<(BackendIndex, BackendRecord)> {
        // A task of this node under the name that it had before is another node's now.
        let local = task.node == self.local.node;
        let fits = |backend: &BackendRecord| {
            backend.via.is_local() == local
                && (backend.ipv4.is_none() || backend.ipv4 == task.ipv4)
                && (backend.ipv6.is_none() || backend.ipv6 == task.ipv6)
        };
        let uses = self.planner.draft.uses_of(id, ident).filter(|(_, backend)| fits(backend));
        let best = uses.min_by_key(|(index, backend)| {
            let differs = (backend.ipv4, backend.ipv6) != (task.ipv4, task.ipv6);
            (differs, backend.state, *index)
        });
        best.map(|(index, backend)| (index, *backend))
    }

    fn local_way(&self, task: &Task) -> Option<Via> {
        let ways = task.addresses().filter_map(|address: IpAddr| self.local.reach.get(&address));
        ways.copied().find(|via| *via != Via::Unreachable)
    }

    fn remote_way(&self, task: &Task) -> Option<Via> {
        self.planner.memory.nodes.get(&task.node).map(|node| Via::Tunnel { node: *node })
    }
}
