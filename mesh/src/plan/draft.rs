//! The mirror as it will be once the plan being made is applied, with the indexes that make a
//! small change cheap to plan.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ident::{Ident, Tag},
    install::{
        BackendIndex, BackendRecord, BackendState, Frontend, Installed, ListId, MapOp, NodeIndex,
        Region, ServiceId, ServiceRecord, Slot, Via,
    },
};

/// What is installed for one service.
#[derive(Clone, Debug, Default)]
pub(super) struct Hold {
    /// Identity of the service. Backends alone do not tell it, so that after a restart it may be
    /// unknown until a service is found that has one of their tasks.
    pub(super) ident: Option<Ident>,
    /// Its backends by identity of the task. A task has several when its address changed.
    pub(super) backends: BTreeSet<(Ident, BackendIndex)>,
    /// The ports that point at its records.
    pub(super) ports: BTreeSet<Frontend>,
    /// How many records it has.
    records: usize,
}

/// [`Installed`], indexed by service, with a count of what points at what.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub(super) installed: Installed,
    holds: BTreeMap<ServiceId, Hold>,
    /// The numbers of services. One may have two while a new record with a new number is in place
    /// and the old one is not removed.
    ids: BTreeSet<(Ident, ServiceId)>,
    /// Backends that were found at the start and that no record tells the service of, by identity
    /// of the task.
    strays: BTreeSet<(Ident, ServiceId)>,
    nodes: BTreeMap<Ident, NodeIndex>,
    /// How many ports point at a record.
    record_users: BTreeMap<Slot, u32>,
    /// How many times records point at a region, by its offset.
    region_users: BTreeMap<u32, u32>,
    /// How many records point at a list.
    list_users: BTreeMap<ListId, u32>,
    /// How many backends are behind a node.
    node_users: BTreeMap<NodeIndex, u32>,
}

impl Draft {
    /// Indexes what is installed.
    pub(super) fn new(installed: Installed) -> Self {
        let mut draft = Self::default();
        draft.nodes.extend(installed.nodes.iter().map(|(index, node)| (node.ident, *index)));
        for (index, backend) in &installed.backends {
            draft.add_backend(*index, backend);
        }
        for record in installed.records.values() {
            draft.add_record(record);
        }
        for (frontend, slot) in &installed.ports {
            draft.add_port(*frontend, *slot, installed.records.get(slot));
        }
        draft.installed = installed;
        let nameless = draft.holds.iter().filter(|(_, hold)| hold.ident.is_none());
        draft.strays = nameless
            .flat_map(|(id, hold)| hold.backends.iter().map(|(task, _)| (*task, *id)))
            .collect();
        draft
    }

    /// Applies an operation.
    pub(super) fn put(&mut self, op: &MapOp) {
        match op {
            MapOp::SetNode(index, node) => {
                self.nodes.insert(node.ident, *index);
            }
            MapOp::RemoveNode(index) => self.forget_node(*index),
            MapOp::SetBackend(index, backend) => {
                self.forget_use(*index);
                self.add_backend(*index, backend);
            }
            MapOp::RemoveBackend(index) => self.forget_backend(*index),
            MapOp::SetRecord(_, record) => self.add_record(record),
            MapOp::RemoveRecord(slot) => self.forget_record(*slot),
            MapOp::Publish(frontend, slot) => {
                self.forget_port(*frontend);
                let record = self.installed.records.get(slot).copied();
                self.add_port(*frontend, *slot, record.as_ref());
            }
            MapOp::Withdraw(frontend) => self.forget_port(*frontend),
            MapOp::WriteRegion { .. }
            | MapOp::FreeRegion { .. }
            | MapOp::WriteList(..)
            | MapOp::RemoveList(..)
            | MapOp::SetRouted(..)
            | MapOp::RemoveRouted(_)
            | MapOp::SetTag(..)
            | MapOp::RemoveTag(..) => {}
        }
        self.installed.put(op);
    }

    /// What is installed for a service.
    pub(super) fn hold(&self, service: ServiceId) -> Option<&Hold> {
        self.holds.get(&service)
    }

    /// Every service of which something is installed.
    pub(super) fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.holds.keys().copied()
    }

    /// The number of a service of which something is installed.
    pub(super) fn service_id(&self, service: Ident) -> Option<ServiceId> {
        let every = (service, ServiceId(0))..=(service, ServiceId(u32::MAX));
        self.ids.range(every).next().map(|(_, id)| *id)
    }

    /// Says whose backends these are, where no record does.
    pub(super) fn name_service(&mut self, service: ServiceId, ident: Ident) {
        self.holds.entry(service).or_default().ident = Some(ident);
        self.ids.insert((ident, service));
    }

    /// The number of a service of which only backends are installed, by one of its tasks, and the
    /// state that the task is in.
    pub(super) fn recognise(&self, task: Ident) -> Option<(BackendState, ServiceId)> {
        let of_task = (task, ServiceId(0))..=(task, ServiceId(u32::MAX));
        let nameless = |id: &ServiceId| self.holds.get(id).is_some_and(|it| it.ident.is_none());
        let ids = self.strays.range(of_task).map(|(_, id)| *id).filter(nameless);
        ids.filter_map(|id| Some((self.uses_of(id, task).map(|it| it.1.state).min()?, id))).min()
    }

    /// No longer recognises a service by this task: it has a number, and what it had under another
    /// one is leaving.
    pub(super) fn forget_stray(&mut self, task: Ident) {
        while let Some(stray) = self.strays.range((task, ServiceId(0))..).next().copied()
            && stray.0 == task
        {
            self.strays.remove(&stray);
        }
    }

    /// Whether there may be anything to recognise.
    pub(super) fn has_strays(&self) -> bool {
        !self.strays.is_empty()
    }

    /// The index of a node.
    pub(super) fn node(&self, node: Ident) -> Option<NodeIndex> {
        self.nodes.get(&node).copied()
    }

    /// Nodes that no backend is behind.
    pub(super) fn is_idle(&self, node: NodeIndex) -> bool {
        !self.node_users.contains_key(&node)
    }

    /// Whether a port points at a record.
    pub(super) fn is_published(&self, slot: Slot) -> bool {
        self.record_users.contains_key(&slot)
    }

    /// Whether a record points at a region.
    pub(super) fn is_region_used(&self, offset: u32) -> bool {
        self.region_users.contains_key(&offset)
    }

    /// Whether a record points at a list.
    pub(super) fn is_list_used(&self, list: ListId) -> bool {
        self.list_users.contains_key(&list)
    }

    /// The lists that the published records of a service point at.
    pub(super) fn lists_of(&self, service: ServiceId) -> BTreeSet<ListId> {
        let ports = self.holds.get(&service).into_iter().flat_map(|hold| &hold.ports);
        ports.filter_map(|port| self.record_of(*port)?.list).collect()
    }

    /// The record that a port points at.
    pub(super) fn record_of(&self, frontend: Frontend) -> Option<&ServiceRecord> {
        self.installed.records.get(self.installed.ports.get(&frontend)?)
    }

    /// The backends of a task, by index.
    pub(super) fn uses_of(
        &self,
        service: ServiceId,
        task: Ident,
    ) -> impl Iterator<Item = (BackendIndex, &BackendRecord)> {
        let every = (task, BackendIndex(0))..=(task, BackendIndex(u32::MAX));
        let found = self
            .holds
            .get(&service)
            .into_iter()
            .flat_map(move |it| it.backends.range(every.clone()));
        found.filter_map(|(_, index)| Some((*index, self.installed.backends.get(index)?)))
    }

    /// The regions that the published records of a service point at, by offset.
    pub(super) fn regions_of(&self, service: ServiceId) -> BTreeSet<Region> {
        let ports = self.holds.get(&service).into_iter().flat_map(|hold| &hold.ports);
        ports.filter_map(|port| self.record_of(*port)).flat_map(ServiceRecord::regions).collect()
    }

    /// The tags of a service.
    pub(super) fn tags_of(&self, service: ServiceId) -> impl Iterator<Item = (Tag, BackendIndex)> {
        let every = (service, Tag(0))..=(service, Tag(u32::MAX));
        self.installed.tags.range(every).map(|((_, tag), index)| (*tag, *index))
    }

    fn add_backend(&mut self, index: BackendIndex, backend: &BackendRecord) {
        let hold = self.holds.entry(backend.service).or_default();
        hold.backends.insert((backend.ident, index));
        if let Via::Tunnel { node } = backend.via {
            *self.node_users.entry(node).or_default() += 1;
        }
    }

    fn forget_backend(&mut self, index: BackendIndex) {
        if let Some((task, service)) = self.forget_use(index) {
            self.strays.remove(&(task, service));
            self.forget_if_empty(service);
        }
    }

    /// Forgets what a backend is, for it will be something else. Answers whose it was.
    fn forget_use(&mut self, index: BackendIndex) -> Option<(Ident, ServiceId)> {
        let old = self.installed.backends.get(&index)?;
        if let Some(hold) = self.holds.get_mut(&old.service) {
            hold.backends.remove(&(old.ident, index));
        }
        if let Via::Tunnel { node } = old.via {
            decrement(&mut self.node_users, node);
        }
        Some((old.ident, old.service))
    }

    fn add_record(&mut self, record: &ServiceRecord) {
        let hold = self.holds.entry(record.service).or_default();
        hold.ident = Some(record.ident);
        hold.records += 1;
        self.ids.insert((record.ident, record.service));
        if let Some(list) = record.list {
            *self.list_users.entry(list).or_default() += 1;
        }
        for region in record.regions() {
            *self.region_users.entry(region.offset).or_default() += 1;
        }
    }

    fn forget_record(&mut self, slot: Slot) {
        let Some(record) = self.installed.records.get(&slot).copied() else { return };
        if let Some(list) = record.list {
            decrement(&mut self.list_users, list);
        }
        for region in record.regions() {
            decrement(&mut self.region_users, region.offset);
        }
        if let Some(hold) = self.holds.get_mut(&record.service) {
            hold.records -= 1;
        }
        self.forget_if_empty(record.service);
    }

    fn add_port(&mut self, frontend: Frontend, slot: Slot, record: Option<&ServiceRecord>) {
        *self.record_users.entry(slot).or_default() += 1;
        if let Some(hold) = record.and_then(|record| self.holds.get_mut(&record.service)) {
            hold.ports.insert(frontend);
        }
    }

    fn forget_port(&mut self, frontend: Frontend) {
        let Some(slot) = self.installed.ports.get(&frontend) else { return };
        decrement(&mut self.record_users, *slot);
        if let Some(record) = self.installed.records.get(slot)
            && let Some(hold) = self.holds.get_mut(&record.service)
        {
            hold.ports.remove(&frontend);
        }
    }

    fn forget_node(&mut self, index: NodeIndex) {
        if let Some(node) = self.installed.nodes.get(&index)
            && self.nodes.get(&node.ident) == Some(&index)
        {
            self.nodes.remove(&node.ident);
        }
    }

    fn forget_if_empty(&mut self, service: ServiceId) {
        let empty = |hold: &Hold| hold.backends.is_empty() && hold.records == 0;
        if self.holds.get(&service).is_some_and(empty)
            && let Some(hold) = self.holds.remove(&service)
            && let Some(ident) = hold.ident
        {
            self.ids.remove(&(ident, service));
        }
    }
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    if let std::collections::btree_map::Entry::Occupied(mut entry) = counts.entry(key) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}
