//! How things leave: a port first refuses new flows, a backend first drains, then each goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{GRACE, Moment, Planner, draft::Draft, run::Run, stock::Freed};
use crate::{
    ident::{Ident, Tag},
    install::{
        BackendIndex, BackendRecord, BackendState, Frontend, Installed, MapOp, ServiceId, Via,
    },
    service::{Node, Service, ServiceName, Task, TaskState, Timeouts},
};

/// What is leaving, and when its next step is due.
#[derive(Clone, Debug, Default)]
pub(super) struct Departures {
    /// A backend that drains is gone then; one that is gone is removed then.
    backends: BTreeMap<BackendIndex, Moment>,
    /// A port that refuses new flows is withdrawn then.
    ports: BTreeMap<Frontend, Moment>,
}

impl Departures {
    /// All deadlines.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Moment> {
        self.backends.values().chain(self.ports.values()).copied()
    }

    /// Forgets what is not the same in the maps as they were thought to be and as they are.
    pub(super) fn keep_common(&mut self, thought: &Installed, found: &Installed) {
        self.backends.retain(|index, _| {
            let of = |maps: &Installed| maps.backends.get(index).map(|it| it.generation);
            of(thought) == of(found)
        });
        self.ports.retain(|frontend, _| found.ports.contains_key(frontend));
    }

    /// The services of which a backend is leaving.
    pub(super) fn leaving(&self, draft: &Draft) -> BTreeSet<ServiceId> {
        let backends = self.backends.keys();
        backends.filter_map(|at| Some(draft.installed.backends.get(at)?.service)).collect()
    }

    /// The services of which something is due.
    pub(super) fn due(&self, draft: &Draft, now: Moment) -> BTreeSet<ServiceId> {
        let backends = self.backends.iter().filter(|(_, until)| **until <= now);
        let backends = backends.filter_map(|(index, _)| draft.installed.backends.get(index));
        let ports = self.ports.iter().filter(|(_, until)| **until <= now);
        let ports = ports.filter_map(|(frontend, _)| draft.record_of(*frontend));
        backends.map(|it| it.service).chain(ports.map(|it| it.service)).collect()
    }
}

impl Run<'_> {
    /// Takes the next step for every backend of a service that is not to stay.
    pub(super) fn retire(
        &mut self,
        id: ServiceId,
        service: Option<&Service>,
        stay: &BTreeSet<BackendIndex>,
    ) {
        let Some(hold) = self.planner.draft.hold(id) else { return };
        let nothing_left = self.planner.departures.backends.is_empty();
        if nothing_left && hold.backends.iter().all(|(_, index)| stay.contains(index)) {
            return;
        }
        let backends: Vec<_> = hold.backends.iter().copied().collect();
        let drain = service.map_or_else(|| drain_of(self.planner, id), |it| it.timeouts).drain;
        let all_stay = backends.iter().all(|(_, index)| stay.contains(index));
        let listed = service.filter(|_| !all_stay).map(states).unwrap_or_default();
        for (ident, index) in backends {
            let backend = self.planner.draft.installed.backends.get(&index).copied();
            match backend.filter(|_| !stay.contains(&index)) {
                None => drop(self.planner.departures.backends.remove(&index)),
                Some(backend) if self.has_ended(service, listed.get(&ident), &backend) => {
                    self.stop(index, &backend, drain);
                }
                Some(backend) => self.drain(index, &backend, drain, service.is_some()),
            }
        }
    }

    /// Whether the task of a backend is known to have ended, and it is for this node to end its flows:
    /// it is said to be down, or it is not listed although all that lives on its node is. A task that
    /// was renamed with its node is still at its address.
    ///
    /// What ends on another node that can say so drains here. That node knows first-hand, and ends the
    /// flows of the task itself; those to which it has given a second chance only it can tell from them.
    fn has_ended(
        &self,
        service: Option<&Service>,
        listed: Option<&TaskState>,
        backend: &BackendRecord,
    ) -> bool {
        let node = self.node_behind(backend.via).filter(|node| node.whole);
        if node.is_some() && !backend.via.is_local() {
            return false;
        }
        if let Some(state) = listed {
            return *state == TaskState::Down;
        }
        let Some(node) = node else { return false };
        let here = |task: &&Task| task.node == node.name && task.state != TaskState::Down;
        let mut there = service.into_iter().flat_map(|service| &service.tasks).filter(here);
        !there.any(|task| (task.ipv4, task.ipv6) == (backend.ipv4, backend.ipv6))
    }

    /// The node on which a backend is, if it is in the mesh.
    fn node_behind(&self, via: Via) -> Option<&Node> {
        let name = match via {
            Via::Tunnel { node } => {
                let mut nodes = self.planner.memory.nodes.iter();
                nodes.find(|(_, index)| **index == node).map(|(name, _)| name)?
            }
            Via::Peer { .. } | Via::Neighbour { .. } | Via::Unreachable => &self.local.node,
        };
        self.snapshot.nodes.get(name)
    }

    /// A task that is down has nothing to drain. Its backend keeps its place for the drain time, so
    /// that a task that comes back is the same backend.
    fn stop(&mut self, index: BackendIndex, backend: &BackendRecord, drain: Duration) {
        let until = self.now.after(drain);
        if backend.state == BackendState::Gone {
            self.planner.departures.backends.entry(index).or_insert(until);
        } else {
            self.set_state(index, backend, BackendState::Gone, until);
        }
    }

    fn drain(
        &mut self,
        index: BackendIndex,
        backend: &BackendRecord,
        drain: Duration,
        is_served: bool,
    ) {
        let is_gone = backend.state == BackendState::Gone;
        let first = self.now.after(if is_gone { GRACE } else { drain });
        let until = *self.planner.departures.backends.entry(index).or_insert(first);
        if is_gone {
            return;
        }
        if until > self.now {
            self.set_state(index, backend, BackendState::Draining, until);
        } else if is_served && self.may_be_carried(index, backend, until, drain) {
            self.set_state(
                index,
                backend,
                BackendState::Draining,
                self.now.after(drain.max(GRACE)),
            );
        } else {
            self.set_state(index, backend, BackendState::Gone, self.now.after(GRACE));
        }
    }

    /// Whether connections may still go by a backend whose drain is over, and it is not for this node to
    /// end them: its own node can say what is there, has ended the task's own, and to some it may have
    /// given a second chance, which live on with other tasks. Nobody knows of flows begun after they
    /// were last looked at.
    fn may_be_carried(
        &self,
        index: BackendIndex,
        backend: &BackendRecord,
        until: Moment,
        drain: Duration,
    ) -> bool {
        let carried = &self.local.carried;
        let unknown = carried.seen.after(drain) < until;
        let of_other = !backend.via.is_local();
        of_other
            && self.node_behind(backend.via).is_some_and(|node| node.whole)
            && (unknown || carried.backends.contains(&index))
    }

    fn set_state(
        &mut self,
        index: BackendIndex,
        backend: &BackendRecord,
        state: BackendState,
        until: Moment,
    ) {
        self.emit_backend(index, BackendRecord { state, ..*backend });
        self.planner.departures.backends.insert(index, until);
    }

    /// Removes the backends of a service that are gone and have rested. A backend that is still
    /// picked has to stay: its service found no room for a new region.
    pub(super) fn remove_due(&mut self, id: ServiceId) {
        let planner = &*self.planner;
        let Some(hold) = planner.draft.hold(id) else { return };
        let is_due = |index: &BackendIndex| {
            let until = planner.departures.backends.get(index);
            until.is_some_and(|until| *until <= self.now)
                && planner
                    .draft
                    .installed
                    .backends
                    .get(index)
                    .is_some_and(|it| it.state == BackendState::Gone)
        };
        let mut due: BTreeSet<BackendIndex> =
            hold.backends.iter().map(|(_, index)| *index).filter(is_due).collect();
        if due.is_empty() {
            return;
        }
        for region in planner.draft.regions_of(id) {
            let cells = planner.draft.installed.regions.get(&region.offset);
            for cell in cells.into_iter().flatten() {
                due.remove(cell);
            }
        }
        due.into_iter().for_each(|index| self.remove(id, index));
    }

    fn remove(&mut self, id: ServiceId, index: BackendIndex) {
        let tags = self.planner.draft.tags_of(id).filter(|(_, tagged)| *tagged == index);
        let tags: Vec<Tag> = tags.map(|(tag, _)| tag).collect();
        self.planner.departures.backends.remove(&index);
        for tag in tags {
            self.emit(MapOp::RemoveTag(id, tag));
            if let Some(heir) = self.heir_of(id, tag, index) {
                self.emit(MapOp::SetTag(id, tag, heir));
            }
        }
        self.emit(MapOp::RemoveBackend(index));
        self.planner.freed.push(Freed::Backend(index));
        self.note_if_gone(id);
    }

    /// Another task of the service that has the same tag and was not the first to have it.
    fn heir_of(&self, id: ServiceId, tag: Tag, gone: BackendIndex) -> Option<BackendIndex> {
        let planner = &*self.planner;
        let is_heir = |index: &BackendIndex| {
            let stays = *index != gone && !planner.departures.backends.contains_key(index);
            let backend = planner.draft.installed.backends.get(index);
            stays && backend.is_some_and(|it| it.tag == tag && it.via.is_local())
        };
        planner.draft.hold(id)?.backends.iter().map(|(_, index)| *index).find(is_heir)
    }

    /// Lets ports go that their services no longer have and no other service took over.
    pub(super) fn close_ports(&mut self, id: ServiceId, name: Option<&ServiceName>) {
        let ports = self.planner.draft.hold(id).map(|hold| hold.ports.clone());
        for frontend in ports.unwrap_or_default() {
            if name.is_some() && self.planner.memory.winner(frontend) == name {
                self.planner.departures.ports.remove(&frontend);
            } else {
                self.close_port(id, name, frontend);
            }
        }
    }

    fn close_port(&mut self, id: ServiceId, name: Option<&ServiceName>, frontend: Frontend) {
        let Some(record) = self.planner.draft.record_of(frontend).copied() else { return };
        let first = self.now.after(record.timeouts.drain);
        let until = *self.planner.departures.ports.entry(frontend).or_insert(first);
        // A service that wants the port but found no room for it gets it without a gap later.
        let awaited = self.planner.memory.winner(frontend).is_some();
        if until <= self.now && !awaited {
            self.withdraw(frontend);
        } else if record != record.emptied() {
            match self.planner.stock.take_slot(self.now) {
                Ok(slot) => {
                    self.emit(MapOp::SetRecord(slot, record.emptied()));
                    self.flip(frontend, slot);
                }
                Err(resource) => {
                    let service = self.name_of(id, name);
                    let memory = &mut self.planner.memory;
                    match name {
                        Some(name) => drop(memory.unsettled.insert(name.clone())),
                        None => drop(memory.unsettled_gone.insert(id)),
                    }
                    let problem = self.exhausted(service, resource);
                    self.note_elsewhere(problem);
                }
            }
        }
    }

    fn withdraw(&mut self, frontend: Frontend) {
        let slot = self.planner.draft.installed.ports.get(&frontend).copied();
        self.emit(MapOp::Withdraw(frontend));
        self.planner.departures.ports.remove(&frontend);
        slot.into_iter().for_each(|slot| self.drop_record(slot));
    }
}

/// The tasks of a service by identity, with their states.
fn states(service: &Service) -> BTreeMap<Ident, TaskState> {
    let ident = |task: &Task| Ident::of_task(&service.name, &task.name, &task.node);
    service.tasks.iter().map(|task| (ident(task), task.state)).collect()
}

/// The timeouts that a service had when it was last seen.
fn drain_of(planner: &Planner, id: ServiceId) -> Timeouts {
    let mut ports = planner.draft.hold(id).into_iter().flat_map(|hold| &hold.ports);
    let record = ports.find_map(|port| planner.draft.record_of(*port));
    record.map_or_else(Timeouts::default, |record| record.timeouts)
}
