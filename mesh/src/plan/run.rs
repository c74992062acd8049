//! One plan, from top to bottom.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    LocalView, Moment, Plan, Planner, Problem, Resource, changes::Todo, steps::Steps, stock::Freed,
};
use crate::{
    ident::{Ident, Tag},
    install::{
        BackendIndex, BackendRecord, BackendState, ListId, MapOp, NodeIndex, NodeRecord, Region,
        ServiceId, Slot,
    },
    service::{Node, NodeName, ServiceName},
    snapshot::MeshSnapshot,
};

/// A plan in the making.
pub(super) struct Run<'a> {
    pub(super) planner: &'a mut Planner,
    pub(super) snapshot: &'a MeshSnapshot,
    pub(super) local: &'a LocalView,
    pub(super) now: Moment,
    steps: Steps,
    /// What there was not enough of.
    pub(super) short_of: BTreeSet<Resource>,
    /// Problems of the service being planned.
    pub(super) problems: Vec<Problem>,
    /// Problems that belong to no service of the snapshot.
    other_problems: Vec<Problem>,
    /// Whether a list was removed since this was last asked.
    list_removed: bool,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        planner: &'a mut Planner,
        snapshot: &'a MeshSnapshot,
        local: &'a LocalView,
        now: Moment,
    ) -> Self {
        Self {
            planner,
            snapshot,
            local,
            now,
            steps: Steps::default(),
            short_of: BTreeSet::new(),
            problems: Vec::new(),
            other_problems: Vec::new(),
            list_removed: false,
        }
    }

    /// Plans whatever has changed or is due.
    pub(super) fn plan(mut self) -> Plan {
        let routed = self.routed_now();
        let first = self.forget_if_new();
        if first {
            self.sweep();
        }
        let moved = self.set_nodes();
        let mut todo = self.find_changes(&moved);
        self.add_accounted(&mut todo);
        self.carry_out(&mut todo, first);
        // Ranges need no rest: those that were freed are there at once for whoever was short of them.
        while std::mem::take(&mut self.list_removed) && self.short_of.remove(&Resource::Ranges) {
            let mut todo = self.unsettled();
            self.carry_out(&mut todo, false);
        }
        self.route(routed);
        self.remove_idle_nodes();
        self.finish()
    }

    fn carry_out(&mut self, todo: &mut Todo<'a>, first: bool) {
        for (name, service, ident) in &todo.services {
            self.plan_service(name, service, *ident);
        }
        if first {
            self.find_strangers(todo);
        }
        // A service that came back was among those present.
        todo.gone.retain(|id| self.planner.memory.gone.contains(id));
        for id in &todo.gone {
            self.retire(*id, None, &BTreeSet::new());
        }
        let looked_at = todo.ids(self.planner);
        for (id, name) in &looked_at {
            self.close_ports(*id, name.as_ref());
        }
        looked_at.iter().for_each(|(id, _)| self.remove_due(*id));
    }

    /// Emits an operation that adds or removes something.
    pub(super) fn emit(&mut self, op: MapOp) {
        self.planner.draft.put(&op);
        self.steps.push(op);
    }

    /// Writes a backend unless it is there already as it should be.
    pub(super) fn emit_backend(&mut self, index: BackendIndex, new: BackendRecord) {
        let old = self.planner.draft.installed.backends.get(&index).copied();
        if old == Some(new) {
            return;
        }
        let op = MapOp::SetBackend(index, new);
        self.planner.draft.put(&op);
        match old {
            Some(old) if is_downgrade(&old, &new) => self.steps.push_downgrade(op),
            _ => self.steps.push(op),
        }
    }

    /// Removes a record that no port points at any more, and the regions that only it pointed at.
    pub(super) fn drop_record(&mut self, slot: Slot) {
        let Some(record) = self.planner.draft.installed.records.get(&slot).copied() else { return };
        if self.planner.draft.is_published(slot) {
            return;
        }
        self.emit(MapOp::RemoveRecord(slot));
        self.planner.freed.push(Freed::Slot(slot));
        self.note_if_gone(record.service);
        record.list.into_iter().for_each(|list| self.drop_list(list));
        for region in record.regions().collect::<BTreeSet<_>>() {
            if !self.planner.draft.is_region_used(region.offset) {
                self.emit(MapOp::FreeRegion { offset: region.offset });
                self.planner.freed.push(Freed::Region(region));
            }
        }
    }

    /// Removes a list that no record points at any more.
    fn drop_list(&mut self, list: ListId) {
        if self.planner.draft.is_list_used(list) {
            return;
        }
        if let Some(rules) = self.planner.draft.installed.lists.get(&list).cloned() {
            self.emit(MapOp::RemoveList(list, rules));
            self.list_removed = true;
            self.planner.freed.push(Freed::List(list));
        }
    }

    /// Gives back the number of a service of which nothing is left.
    pub(super) fn note_if_gone(&mut self, service: ServiceId) {
        if self.planner.draft.hold(service).is_none() {
            self.planner.memory.gone.remove(&service);
            self.planner.freed.push(Freed::Service(service));
        }
    }

    /// Notes that something did not fit.
    pub(super) fn exhausted(&mut self, service: String, resource: Resource) -> Problem {
        self.short_of.insert(resource);
        Problem::Exhausted { service, resource, limit: self.planner.stock.limit(resource) }
    }

    /// Notes a problem of something that is not in the snapshot.
    pub(super) fn note_elsewhere(&mut self, problem: Problem) {
        self.other_problems.push(problem);
    }

    /// Removes what nothing refers to: the remains of a plan that was not applied to its end.
    fn sweep(&mut self) {
        let slots: Vec<Slot> = self.planner.draft.installed.records.keys().copied().collect();
        slots.into_iter().for_each(|slot| self.drop_record(slot));
        let installed = &self.planner.draft.installed;
        let stray = |(offset, cells): (&u32, &Vec<_>)| {
            let used = self.planner.draft.is_region_used(*offset);
            (!used).then_some(Region { offset: *offset, len: cells.len() as u32 })
        };
        let regions: Vec<Region> = installed.regions.iter().filter_map(stray).collect();
        for region in regions {
            self.emit(MapOp::FreeRegion { offset: region.offset });
            self.planner.freed.push(Freed::Region(region));
        }
        let lists: Vec<ListId> = self.planner.draft.installed.lists.keys().copied().collect();
        lists.into_iter().for_each(|list| self.drop_list(list));
        self.sweep_tags();
    }

    fn sweep_tags(&mut self) {
        let installed = &self.planner.draft.installed;
        let is_stray = |service: ServiceId, index: &BackendIndex| {
            let backend = installed.backends.get(index);
            backend.is_none_or(|backend| backend.service != service || !backend.via.is_local())
        };
        let stray = installed.tags.iter().filter(|((service, _), index)| is_stray(*service, index));
        let stray: Vec<(ServiceId, Tag)> = stray.map(|(key, _)| *key).collect();
        stray.into_iter().for_each(|(service, tag)| self.emit(MapOp::RemoveTag(service, tag)));
    }

    /// Makes the other nodes known. Answers which came, went or changed their place.
    fn set_nodes(&mut self) -> BTreeSet<NodeName> {
        let mut nodes = BTreeMap::new();
        for (name, node) in &self.snapshot.nodes {
            if *name != self.local.node
                && let Some(index) = self.set_node(node)
            {
                nodes.insert(name.clone(), index);
            }
        }
        let old = std::mem::replace(&mut self.planner.memory.nodes, nodes);
        let new = &self.planner.memory.nodes;
        let moved = old.iter().filter(|(name, index)| new.get(name) != Some(index));
        let came = new.iter().filter(|(name, _)| !old.contains_key(name));
        moved.chain(came).map(|(name, _)| name.clone()).collect()
    }

    fn set_node(&mut self, node: &Node) -> Option<NodeIndex> {
        let record = NodeRecord { ident: Ident::of_node(&node.name), address: node.address };
        let known = self.planner.draft.node(record.ident);
        let Some(index) = known.or_else(|| self.planner.stock.take_node(self.now)) else {
            let limit = self.planner.stock.limits().nodes.saturating_sub(1);
            self.note_elsewhere(Problem::TooManyNodes { node: node.name.clone(), limit });
            return None;
        };
        if self.planner.draft.installed.nodes.get(&index) != Some(&record) {
            self.emit(MapOp::SetNode(index, record));
        }
        Some(index)
    }

    /// A node that left the mesh stays known until the last backend behind it has drained.
    fn remove_idle_nodes(&mut self) {
        let wanted: BTreeSet<_> = self.planner.memory.nodes.values().collect();
        let draft = &self.planner.draft;
        let nodes = draft.installed.nodes.keys();
        let idle = nodes.filter(|node| !wanted.contains(node) && draft.is_idle(**node));
        for node in idle.copied().collect::<Vec<_>>() {
            self.emit(MapOp::RemoveNode(node));
            self.planner.freed.push(Freed::Node(node));
        }
    }

    fn finish(self) -> Plan {
        let Self { planner, steps, now, short_of, other_problems, .. } = self;
        let places = short_of.iter().filter_map(|resource| planner.stock.next_rested(*resource));
        let freed_now =
            (!short_of.is_empty() && steps.frees_something()).then(|| now.after(super::GRACE));
        let wake = places.chain(freed_now).chain(planner.departures.deadlines());
        let wake = wake.filter(|moment| *moment > now).min();
        let known = planner.memory.problems.values().flatten().cloned();
        Plan { ops: steps.into_ops(), problems: known.chain(other_problems).collect(), wake }
    }

    /// The name of a service for a message.
    pub(super) fn name_of(&self, id: ServiceId, known: Option<&ServiceName>) -> String {
        let ident = || self.planner.draft.hold(id).and_then(|hold| hold.ident);
        match known {
            Some(name) => name.to_string(),
            None => ident().map_or_else(|| format!("number {}", id.0), |ident| ident.to_string()),
        }
    }
}

/// Whether it takes fewer flows than before, by the same way.
fn is_downgrade(old: &BackendRecord, new: &BackendRecord) -> bool {
    let rank = |state| match state {
        BackendState::Active => 2,
        BackendState::Draining => 1,
        BackendState::Gone => 0,
    };
    rank(new.state) < rank(old.state) && old.via == new.via
}

impl Todo<'_> {
    /// Every service that was looked at, by number.
    pub(super) fn ids(&self, planner: &Planner) -> Vec<(ServiceId, Option<ServiceName>)> {
        let present = self.services.iter().filter_map(|(name, _, ident)| {
            Some((planner.draft.service_id(*ident)?, Some((*name).clone())))
        });
        present.chain(self.gone.iter().map(|id| (*id, None))).collect()
    }
}
