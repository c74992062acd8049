//! How what is installed of virtual addresses becomes what is wanted.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    InstalledVips, LocalSpaces, OwnVip, SpaceCookie, VipKey, VipLimits, VipOp, VipProblem,
    VipRecord, VipSlot,
    wanted::{Wanted, wanted},
};
use crate::{
    ident::Ident,
    install::Region,
    plan::{GRACE, Moment, extents::Extents, pool::Pool},
    service::NodeName,
    snapshot::MeshSnapshot,
};

/// What must be done now, what cannot be done, and when to ask again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VipPlan {
    /// The changes, in the order in which they must be applied.
    pub ops: Vec<VipOp>,
    /// Everything that is wrong now, whether or not it is news.
    pub problems: Vec<VipProblem>,
    /// When something will be due although nothing changed; `None`: never.
    pub wake: Option<Moment>,
}

/// Turns snapshots into operations. One planner belongs to one set of kernel maps.
#[derive(Clone, Debug)]
pub struct VipPlanner {
    /// What the kernel holds, as far as operations were reported applied.
    installed: InstalledVips,
    limits: VipLimits,
    slots: Pool,
    cells: Extents,
    /// What this node serves besides the services of snapshots.
    own: Vec<OwnVip>,
    /// Operations of the last plan that were not reported applied.
    outstanding: usize,
}

impl VipPlanner {
    /// A planner for maps that hold this. What nothing refers to is freed by the first plan.
    pub fn new(installed: InstalledVips, limits: VipLimits, now: Moment) -> Self {
        let slots = installed.records.keys().map(|slot| slot.0).collect();
        let runs = installed
            .runs
            .iter()
            .map(|(offset, cells)| Region { offset: *offset, len: cells.len() as u32 })
            .collect();
        Self {
            slots: Pool::new(limits.vips, &slots, now),
            cells: Extents::new(limits.cells, &runs, now),
            installed,
            limits,
            own: Vec::new(),
            outstanding: 0,
        }
    }

    /// Serves these besides the services of snapshots, from the next plan on. Always all of them.
    pub fn serve_own(&mut self, own: Vec<OwnVip>) {
        self.own = own;
    }

    /// Begins anew from what the maps really hold, after an operation failed or when they turned out
    /// to differ.
    pub fn resync(&mut self, installed: InstalledVips, now: Moment) {
        let mut anew = Self::new(installed, self.limits, now);
        anew.own = std::mem::take(&mut self.own);
        anew.slots.mark_used(self.slots.fresh(), now);
        anew.cells.mark_used(self.cells.fresh(), now);
        *self = anew;
    }

    /// What the kernel holds, as far as it was reported.
    pub fn installed(&self) -> &InstalledVips {
        &self.installed
    }

    /// Takes note that the kernel has applied an operation of the last plan. What it freed rests from
    /// now on.
    pub fn applied(&mut self, op: &VipOp, now: Moment) {
        match op {
            VipOp::RemoveRecord(slot) => self.slots.release(slot.0, now),
            VipOp::FreeRun { offset } => {
                let len = self.installed.runs.get(offset).map_or(0, Vec::len) as u32;
                self.cells.release(Region { offset: *offset, len }, now);
            }
            _ => {}
        }
        self.installed.put(op);
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// What must change so that the maps serve this snapshot to the namespaces of node `here`. While
    /// nobody knows those (`None`), those that are installed stay.
    ///
    /// The operations must be applied in order and each reported to [`Self::applied`]. If some were
    /// not, the next plan starts from what was reported.
    pub fn plan(
        &mut self,
        snapshot: &MeshSnapshot,
        here: &NodeName,
        spaces: Option<&LocalSpaces>,
        now: Moment,
    ) -> VipPlan {
        if self.outstanding > 0 {
            self.resync(self.installed.clone(), now);
        }
        let mut draft = Draft::default();
        let spaces = match spaces {
            Some(spaces) => self.spaces(spaces, &mut draft.problems),
            None => self.installed.spaces.clone(),
        };
        let attached: BTreeSet<Ident> = spaces.values().flatten().copied().collect();
        let own = self.own.clone();
        let wanted = wanted(snapshot, here, &own, &attached, &mut draft.problems);
        self.plan_spaces(&spaces, &mut draft);
        self.plan_removals(&wanted, &mut draft);
        for (key, wanted) in wanted {
            self.plan_vip(key, wanted, now, &mut draft);
        }
        self.plan_loose_runs(&mut draft);
        let wake = self.next_room(&draft, now);
        let plan = draft.finish(wake);
        self.outstanding = plan.ops.len();
        plan
    }

    /// When there will be more room, if there was none for something: what is resting will have rested
    /// then, or what this plan frees.
    fn next_room(&self, draft: &Draft, now: Moment) -> Option<Moment> {
        let exhausted = |problem: &VipProblem| matches!(problem, VipProblem::Exhausted { .. });
        if !draft.problems.iter().any(exhausted) {
            return None;
        }
        let freed = (!draft.frees.is_empty()).then(|| now.after(GRACE));
        [self.slots.next_rested(), self.cells.next_rested(), freed].into_iter().flatten().min()
    }

    /// The namespaces that find room, with the networks that do. Those that are installed keep theirs.
    fn spaces(
        &self,
        wanted: &LocalSpaces,
        problems: &mut Vec<VipProblem>,
    ) -> BTreeMap<SpaceCookie, BTreeSet<Ident>> {
        let limit = self.limits.networks;
        let known = |space: &SpaceCookie| self.installed.spaces.contains_key(space);
        let mut chosen: Vec<_> =
            wanted.iter().filter(|(_, networks)| !networks.is_empty()).collect();
        chosen.sort_by_key(|(space, _)| (!known(space), **space));
        let room = self.limits.spaces as usize;
        if chosen.len() > room {
            let count = chosen.len() - room;
            problems.push(VipProblem::TooManySpaces { count, limit: self.limits.spaces });
            chosen.truncate(room);
        }
        let networks = |(space, networks): (&SpaceCookie, &BTreeSet<_>)| {
            if networks.len() > limit as usize {
                let (space, count) = (*space, networks.len());
                problems.push(VipProblem::TooManyNetworks { space, count, limit });
            }
            let idents = networks.iter().take(limit as usize).map(Ident::of_network).collect();
            (*space, idents)
        };
        chosen.into_iter().map(networks).collect()
    }

    fn plan_spaces(&self, wanted: &BTreeMap<SpaceCookie, BTreeSet<Ident>>, draft: &mut Draft) {
        for (space, networks) in wanted {
            if self.installed.spaces.get(space) != Some(networks) {
                draft.spaces.push(VipOp::SetSpace(*space, networks.clone()));
            }
        }
        let gone = self.installed.spaces.keys().filter(|space| !wanted.contains_key(space));
        draft.gone_spaces.extend(gone.map(|space| VipOp::RemoveSpace(*space)));
    }

    /// Names and records that are not wanted, or that an agent which was cut short left in pieces.
    fn plan_removals(&self, wanted: &BTreeMap<VipKey, Wanted<'_>>, draft: &mut Draft) {
        let whole = |key: &VipKey, slot: &VipSlot| {
            self.installed.records.get(slot).is_some_and(|record| record.key == *key)
        };
        let mut kept = BTreeSet::new();
        for (key, slot) in &self.installed.names {
            if wanted.contains_key(key) && whole(key, slot) {
                kept.insert(*slot);
            } else {
                draft.names_gone.push(VipOp::RemoveName(*key));
                draft.broken.extend((!whole(key, slot)).then_some(*key));
            }
        }
        let loose = self.installed.records.keys().filter(|slot| !kept.contains(slot));
        draft.frees.extend(loose.map(|slot| VipOp::RemoveRecord(*slot)));
        draft.kept = kept;
    }

    fn plan_vip(&mut self, key: VipKey, wanted: Wanted<'_>, now: Moment, draft: &mut Draft) {
        let slot = self.installed.names.get(&key).filter(|slot| draft.kept.contains(slot)).copied();
        let record = slot.and_then(|slot| self.installed.records.get(&slot)).copied();
        if let Some(record) = record
            && self.cells_of(record.run) == Some(&wanted.cells[..])
            && record.stride == wanted.stride
        {
            draft.uses(record.run);
            return;
        }
        let full = |resource, limit| VipProblem::Exhausted {
            service: wanted.service.clone(),
            address: key.address,
            resource,
            limit,
        };
        let run = match wanted.cells.len() as u32 {
            0 => Some(Region::default()),
            len => self.cells.take(len, now),
        };
        let Some(run) = run else {
            // Better some tasks than none: what the address stands for stays until there is room.
            record.iter().for_each(|record| draft.uses(record.run));
            draft.problems.push(full("cells", self.limits.cells));
            return;
        };
        let stride = wanted.stride;
        match slot {
            Some(slot) => draft.flips.push(VipOp::Flip { slot, run, stride }),
            // A broken name must go before the right one can come: in the plan after this one.
            None if draft.broken.contains(&key) => {
                self.give_back(run);
                return;
            }
            None => {
                let Some(slot) = self.slots.take(now).map(VipSlot) else {
                    self.give_back(run);
                    draft.problems.push(full("virtual addresses", self.limits.vips - 1));
                    return;
                };
                draft.records.push(VipOp::SetRecord(slot, VipRecord { key, run, stride }));
                draft.names.push(VipOp::SetName(key, slot));
            }
        }
        if run.len > 0 {
            draft.runs.push(VipOp::WriteRun { offset: run.offset, cells: wanted.cells });
        }
    }

    /// Runs that no record points at when the plan is applied.
    fn plan_loose_runs(&self, draft: &mut Draft) {
        let loose = self.installed.runs.keys().filter(|offset| !draft.used.contains(offset));
        draft.frees.extend(loose.map(|offset| VipOp::FreeRun { offset: *offset }));
    }

    fn give_back(&mut self, run: Region) {
        if run.len > 0 {
            self.cells.untake(run);
        }
    }

    fn cells_of(&self, run: Region) -> Option<&[std::net::IpAddr]> {
        match run.len {
            0 => Some(&[]),
            _ => self.installed.runs.get(&run.offset).map(Vec::as_slice),
        }
    }
}

/// The operations of one plan by kind, in the order of application: what is pointed at before what
/// points, then what takes away, the other way round.
#[derive(Debug, Default)]
struct Draft {
    runs: Vec<VipOp>,
    records: Vec<VipOp>,
    names: Vec<VipOp>,
    flips: Vec<VipOp>,
    spaces: Vec<VipOp>,
    gone_spaces: Vec<VipOp>,
    names_gone: Vec<VipOp>,
    frees: Vec<VipOp>,
    problems: Vec<VipProblem>,
    /// Names that lead to no record of theirs.
    broken: BTreeSet<VipKey>,
    /// Slots whose names stay.
    kept: BTreeSet<VipSlot>,
    /// Runs that records go on pointing at.
    used: BTreeSet<u32>,
}

impl Draft {
    /// Notes that a record goes on pointing at a run.
    fn uses(&mut self, run: Region) {
        self.used.extend((run.len > 0).then_some(run.offset));
    }

    fn finish(self, wake: Option<Moment>) -> VipPlan {
        // A broken name is gone after this plan, and then there is more to do at once.
        let again = (!self.broken.is_empty()).then(Moment::default);
        let kinds = [
            self.runs,
            self.records,
            self.names,
            self.flips,
            self.spaces,
            self.gone_spaces,
            self.names_gone,
            self.frees,
        ];
        let ops = kinds.into_iter().flatten().collect();
        VipPlan { ops, problems: self.problems, wake: again.or(wake) }
    }
}
