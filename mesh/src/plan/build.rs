//! Finds room for what a service should look like, all of it or nothing, and brings it about.

use std::collections::BTreeSet;

use super::{
    Resource,
    run::Run,
    stock::Freed,
    wanted::{Member, Wanted},
};
use crate::{
    balance::{cell_cap, interleave, maglev, maglev::table_size},
    ident::{Ident, Tag},
    install::{
        BackendGeneration, BackendIndex, BackendRecord, Frontend, ListId, MapOp, Region, Rules,
        ServiceId, ServiceRecord, Slot,
    },
    service::{Locality, Port, PublishMode, Service, ServiceName},
};

/// What would be written for a service, with places for all of it.
#[derive(Debug, Default)]
struct Build {
    /// Places that were taken for it.
    taken: Vec<Freed>,
    /// Backends, in the order of the members.
    backends: Vec<(BackendIndex, BackendRecord)>,
    /// Regions that are not written yet.
    regions: Vec<(Region, Vec<BackendIndex>)>,
    /// A list that is not written yet.
    list: Option<(ListId, Rules)>,
    /// Records that are not written yet, and the ports that will point at them.
    records: Vec<(Frontend, Slot, ServiceRecord)>,
}

/// The regions of a service.
#[derive(Clone, Copy, Debug)]
struct Regions {
    pick: [Region; 2],
    host: [Region; 2],
    local: [Region; 2],
}

/// The families in the order of the arrays of [`Regions`].
#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl<'a> Run<'a> {
    /// Plans one service of the snapshot.
    pub(super) fn plan_service(&mut self, name: &ServiceName, service: &'a Service, ident: Ident) {
        let wanted = self.want(service, ident);
        let mut build = Build::default();
        let keep = match self.find_room(&wanted, &mut build) {
            Ok(()) => self.commit(&wanted, build),
            Err(resource) => {
                build.taken.into_iter().rev().for_each(|place| self.planner.stock.untake(place));
                let problem = self.exhausted(name.to_string(), resource);
                self.problems.push(problem);
                self.planner.memory.unsettled.insert(name.clone());
                self.update_in_place(&wanted)
            }
        };
        if let Some(id) = self.planner.draft.service_id(wanted.ident) {
            let stay = keep.iter().map(|(index, _)| *index).collect();
            self.retire(id, Some(wanted.service), &stay);
            self.retag(id, &keep);
        }
        let problems = std::mem::take(&mut self.problems);
        if problems.is_empty() {
            self.planner.memory.problems.remove(name);
        } else {
            self.planner.memory.problems.insert(name.clone(), problems);
        }
    }

    fn find_room(&mut self, wanted: &Wanted<'a>, build: &mut Build) -> Result<(), Resource> {
        if wanted.members.is_empty() && wanted.ports.is_empty() {
            return Ok(());
        }
        let id = match wanted.id {
            Some(id) => id,
            None => {
                let id = self.planner.stock.take_service(self.now)?;
                build.taken.push(Freed::Service(id));
                id
            }
        };
        for member in &wanted.members {
            let backend = self.place_backend(id, member, build)?;
            build.backends.push(backend);
        }
        let regions = self.place_regions(id, wanted, build)?;
        let list = self.place_list(id, wanted, build)?;
        for port in &wanted.ports {
            self.place_record(id, wanted, port, (&regions, list), build)?;
        }
        Ok(())
    }

    fn place_backend(
        &mut self,
        id: ServiceId,
        member: &Member,
        build: &mut Build,
    ) -> Result<(BackendIndex, BackendRecord), Resource> {
        if let Some((index, earlier)) = &member.existing {
            return Ok((*index, member.record(id, earlier.generation)));
        }
        let index = self.planner.stock.take_backend(self.now)?;
        build.taken.push(Freed::Backend(index));
        let last = self.planner.draft.installed.generations.get(&index).copied();
        // 0 is what the kernel's zeroed memory says, so no use has it.
        let generation = last.unwrap_or_default().0.checked_add(1).unwrap_or(1);
        Ok((index, member.record(id, BackendGeneration(generation))))
    }

    fn place_regions(
        &mut self,
        id: ServiceId,
        wanted: &Wanted<'a>,
        build: &mut Build,
    ) -> Result<Regions, Resource> {
        let has = |mode| wanted.ports.iter().any(|port| port.mode == mode);
        let (ingress, host) = (has(PublishMode::Ingress), has(PublishMode::Host));
        let hashed = wanted.service.balance.is_hashed();
        let mut place = |of_use: bool, whose: Locality, hashed: bool, family: Family| {
            let cells = if of_use {
                cells(wanted, &build.backends, whose, hashed, family)
            } else {
                Vec::new()
            };
            self.place_region(id, cells, &mut build.regions, &mut build.taken)
        };
        let mut both = |of_use, whose, hashed| {
            Ok([
                place(of_use, whose, hashed, Family::V4)?,
                place(of_use, whose, hashed, Family::V6)?,
            ])
        };
        Ok(Regions {
            pick: both(ingress, wanted.service.locality, hashed)?,
            local: both(ingress || host, Locality::Local, false)?,
            host: both(host, Locality::Local, hashed)?,
        })
    }

    /// The list of who may be a client: one that the service has, or a new one.
    fn place_list(
        &mut self,
        id: ServiceId,
        wanted: &Wanted<'a>,
        build: &mut Build,
    ) -> Result<Option<ListId>, Resource> {
        if wanted.service.access.is_open() || wanted.ports.is_empty() {
            return Ok(None);
        }
        let rules = wanted.service.access.rules();
        let installed = &self.planner.draft.installed.lists;
        let known = self.planner.draft.lists_of(id);
        if let Some(list) = known.into_iter().find(|list| installed.get(list) == Some(&rules)) {
            return Ok(Some(list));
        }
        let taken: usize = installed.values().map(Rules::len).sum();
        if taken + rules.len() > self.planner.stock.limits().ranges as usize {
            return Err(Resource::Ranges);
        }
        let list = self.planner.stock.take_list(self.now)?;
        build.taken.push(Freed::List(list));
        build.list = Some((list, rules));
        Ok(Some(list))
    }

    /// A region with this content: one that the service has, or a new one.
    fn place_region(
        &mut self,
        id: ServiceId,
        cells: Vec<BackendIndex>,
        new: &mut Vec<(Region, Vec<BackendIndex>)>,
        taken: &mut Vec<Freed>,
    ) -> Result<Region, Resource> {
        if cells.is_empty() {
            return Ok(Region::default());
        }
        if let Some((region, _)) = new.iter().find(|(_, written)| *written == cells) {
            return Ok(*region);
        }
        let draft = &self.planner.draft;
        let same = |region: &Region| draft.installed.regions.get(&region.offset) == Some(&cells);
        if let Some(region) = draft.regions_of(id).into_iter().find(same) {
            return Ok(region);
        }
        let region = self.planner.stock.take_cells(cells.len() as u32, self.now)?;
        taken.push(Freed::Region(region));
        new.push((region, cells));
        Ok(region)
    }

    fn place_record(
        &mut self,
        id: ServiceId,
        wanted: &Wanted<'a>,
        port: &Port,
        (regions, list): (&Regions, Option<ListId>),
        build: &mut Build,
    ) -> Result<(), Resource> {
        let host_mode = port.mode == PublishMode::Host;
        let [pick4, pick6] = if host_mode { regions.host } else { regions.pick };
        let [local4, local6] = regions.local;
        let record = ServiceRecord {
            ident: wanted.ident,
            service: id,
            balance: wanted.service.balance,
            host_mode,
            withheld: wanted.withheld.contains(&Frontend::of(port)),
            shared: self.local.shared.contains(&Frontend::of(port)),
            target: port.target,
            list,
            pick4,
            pick6,
            local4,
            local6,
            timeouts: wanted.service.timeouts,
        };
        let frontend = Frontend::of(port);
        if self.planner.draft.record_of(frontend) != Some(&record) {
            let slot = self.planner.stock.take_slot(self.now)?;
            build.taken.push(Freed::Slot(slot));
            build.records.push((frontend, slot, record));
        }
        Ok(())
    }

    /// Emits all of it. Answers which backend each member now is.
    fn commit(&mut self, wanted: &Wanted<'a>, build: Build) -> Vec<(BackendIndex, Member)> {
        // Where no port is served here there is no record that tells whose the backends are.
        if let Some((_, first)) = build.backends.first() {
            self.planner.draft.name_service(first.service, wanted.ident);
        }
        for (index, record) in &build.backends {
            self.emit_backend(*index, *record);
        }
        for (Region { offset, .. }, cells) in build.regions {
            self.emit(MapOp::WriteRegion { offset, cells });
        }
        if let Some((list, rules)) = build.list {
            self.emit(MapOp::WriteList(list, rules));
        }
        // All new records first: they may keep a region that the old ones had.
        for (_, slot, record) in &build.records {
            self.emit(MapOp::SetRecord(*slot, *record));
        }
        for (frontend, slot, _) in &build.records {
            self.flip(*frontend, *slot);
        }
        build.backends.iter().map(|(index, _)| *index).zip(wanted.members.iter().copied()).collect()
    }

    /// Points a port at a new record, whoever had it before, and drops the old one.
    pub(super) fn flip(&mut self, frontend: Frontend, slot: Slot) {
        let old = self.planner.draft.installed.ports.get(&frontend).copied();
        self.emit(MapOp::Publish(frontend, slot));
        if let Some(old) = old {
            self.drop_record(old);
        }
    }

    /// For a service that found no room: what is installed must at least follow the states of its
    /// tasks, since a drain cannot wait. The kernel gives flows that pick it a second chance.
    /// Answers which backends the members are that have one.
    fn update_in_place(&mut self, wanted: &Wanted<'a>) -> Vec<(BackendIndex, Member)> {
        let installed = wanted.members.iter().filter_map(|it| Some((it.existing?, *it)));
        let mut keep = Vec::new();
        for ((index, earlier), member) in installed {
            self.emit_backend(index, member.record(earlier.service, earlier.generation));
            keep.push((index, member));
        }
        keep
    }

    /// Lets the tags of this node's tasks mean their backends. Where two tasks of a service have
    /// one tag, the lower identity has it on every node.
    fn retag(&mut self, id: ServiceId, members: &[(BackendIndex, Member)]) {
        let mut seen = BTreeSet::new();
        // Members are ordered by identity: the first with a tag has it.
        for (index, member) in members.iter().filter(|(_, member)| member.local) {
            let tag = Tag::of(member.ident);
            if seen.insert(tag) && !self.is_rightly_held(id, tag, member.ident, members) {
                let installed = &self.planner.draft.installed;
                if installed.tags.get(&(id, tag)) != Some(index) {
                    self.emit(MapOp::SetTag(id, tag, *index));
                }
            }
        }
    }

    /// Whether a backend that is leaving has this tag by right of a lower identity.
    fn is_rightly_held(
        &self,
        id: ServiceId,
        tag: Tag,
        wants: Ident,
        members: &[(BackendIndex, Member)],
    ) -> bool {
        let installed = &self.planner.draft.installed;
        let Some(holder) = installed.tags.get(&(id, tag)) else { return false };
        let leaving = !members.iter().any(|(index, _)| index == holder);
        leaving && installed.backends.get(holder).is_some_and(|backend| backend.ident < wants)
    }
}

/// The content of one region.
fn cells(
    wanted: &Wanted<'_>,
    backends: &[(BackendIndex, BackendRecord)],
    whose: Locality,
    hashed: bool,
    family: Family,
) -> Vec<BackendIndex> {
    let serves = |member: &Member| {
        let has_address = match family {
            Family::V4 => member.ipv4.is_some(),
            Family::V6 => member.ipv6.is_some(),
        };
        member.is_picked() && has_address
    };
    let own_only = match whose {
        Locality::Cluster => false,
        Locality::PreferLocal => wanted.members.iter().any(|it| it.local && serves(it)),
        Locality::Local => true,
    };
    let is_in = |member: &Member| serves(member) && (member.local || !own_only);
    let members = wanted.members.iter().zip(backends).filter(|(member, _)| is_in(member));
    let (weights, indexes): (Vec<(Ident, u16)>, Vec<BackendIndex>) =
        members.map(|(member, (index, _))| ((member.ident, member.weight), *index)).unzip();
    let order = if hashed {
        maglev(&weights, table_size(wanted.service.tasks.len()))
    } else {
        interleave(&weights, cell_cap(weights.len()))
    };
    order.into_iter().map(|at| indexes[at]).collect()
}
