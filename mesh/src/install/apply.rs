//! What each operation does to the mirror, and what it must never do.

use super::{
    BackendIndex, BackendRecord, Frontend, Installed, MapOp, NodeIndex, Region, ServiceRecord,
    Slot, Via,
};
use crate::{
    ident::Tag,
    install::{BackendGeneration, ServiceId},
};

/// An operation that would leave something pointing at something missing, or that would change
/// what packets in flight may be reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Index 0 is reserved in every array.
    #[error("{0} 0 is reserved")]
    Reserved(&'static str),
    /// The operation names something that is not installed.
    #[error("{what} {index} is not installed")]
    Missing {
        /// What kind of thing.
        what: &'static str,
        /// Its index, slot or offset.
        index: u32,
    },
    /// The place is taken.
    #[error("{what} {index} is in use")]
    InUse {
        /// What kind of thing.
        what: &'static str,
        /// Its index, slot or offset.
        index: u32,
    },
    /// The port is not published.
    #[error("port {0} is not published")]
    NotPublished(Frontend),
    /// A port at a routed virtual address must not be led to another service, or to nobody.
    #[error("something routed stands for port {0}")]
    Routed(Frontend),
    /// A use of a backend index has one task for life; another task needs a new generation.
    #[error("backend {} changed its identity within one generation", .0.0)]
    Identity(BackendIndex),
    /// A new use of a backend index needs a generation that no flow can remember.
    #[error("backend {} reuses generation {}", .0.0, .1.0)]
    Generation(BackendIndex, BackendGeneration),
    /// A region or tag of one service names a backend of another.
    #[error("backend {} belongs to service {}, not to service {}", .backend.0, .has.0, .wants.0)]
    Foreign {
        /// The backend.
        backend: BackendIndex,
        /// Its service.
        has: ServiceId,
        /// The service that was to use it.
        wants: ServiceId,
    },
    /// A tag names a backend of this node by the backend's own tag.
    #[error("tag {} cannot mean backend {}", .0.0, .1.0)]
    Tag(Tag, BackendIndex),
    /// A region is written once, as a whole, where nothing else is.
    #[error("region {}+{} is empty or overlaps another", .0.offset, .0.len)]
    Overlap(Region),
}

impl Installed {
    /// Applies an operation, or says which invariant it would break and changes nothing. Slower
    /// than the kernel needs it to be: it searches for whatever still points at what is removed.
    pub fn apply(&mut self, op: &MapOp) -> Result<(), Violation> {
        self.check(op)?;
        self.put(op);
        Ok(())
    }

    /// Applies an operation that is known to be sound: one of a plan, in its order.
    pub fn put(&mut self, op: &MapOp) {
        match op {
            MapOp::SetNode(index, node) => drop(self.nodes.insert(*index, *node)),
            MapOp::RemoveNode(index) => drop(self.nodes.remove(index)),
            MapOp::SetBackend(index, backend) => {
                self.generations.insert(*index, backend.generation);
                self.backends.insert(*index, *backend);
            }
            MapOp::RemoveBackend(index) => drop(self.backends.remove(index)),
            MapOp::WriteRegion { offset, cells } => {
                self.regions.insert(*offset, cells.clone());
            }
            MapOp::FreeRegion { offset } => drop(self.regions.remove(offset)),
            MapOp::WriteList(list, rules) => drop(self.lists.insert(*list, rules.clone())),
            MapOp::RemoveList(list, _) => drop(self.lists.remove(list)),
            MapOp::SetRecord(slot, record) => drop(self.records.insert(*slot, *record)),
            MapOp::RemoveRecord(slot) => drop(self.records.remove(slot)),
            MapOp::Publish(frontend, slot) => drop(self.ports.insert(*frontend, *slot)),
            MapOp::Withdraw(frontend) => drop(self.ports.remove(frontend)),
            MapOp::SetRouted(at, frontend) => drop(self.routed.insert(*at, *frontend)),
            MapOp::RemoveRouted(at) => drop(self.routed.remove(at)),
            MapOp::SetTag(service, tag, index) => {
                self.tags.insert((*service, *tag), *index);
            }
            MapOp::RemoveTag(service, tag) => drop(self.tags.remove(&(*service, *tag))),
        }
    }

    fn check(&self, op: &MapOp) -> Result<(), Violation> {
        match op {
            MapOp::SetNode(index, _) => not_reserved("node", u32::from(index.0)),
            MapOp::RemoveNode(index) => self.check_remove_node(*index),
            MapOp::SetBackend(index, backend) => self.check_set_backend(*index, backend),
            MapOp::RemoveBackend(index) => self.check_remove_backend(*index),
            MapOp::WriteRegion { offset, cells } => self.check_write_region(*offset, cells),
            MapOp::FreeRegion { offset } => self.check_free_region(*offset),
            MapOp::WriteList(list, _) => {
                not_reserved("list", list.0)?;
                free("list", list.0, !self.lists.contains_key(list))
            }
            MapOp::RemoveList(list, _) => {
                present("list", list.0, self.lists.get(list))?;
                let used = self.records.values().any(|record| record.list == Some(*list));
                free("list", list.0, !used)
            }
            MapOp::SetRecord(slot, record) => self.check_set_record(*slot, record),
            MapOp::RemoveRecord(slot) => self.check_remove_record(*slot),
            MapOp::Publish(frontend, slot) => self.check_publish(*frontend, *slot),
            MapOp::Withdraw(frontend) => {
                self.check_published(*frontend)?;
                self.check_not_routed(*frontend)
            }
            MapOp::SetRouted(_, frontend) => self.check_published(*frontend),
            MapOp::RemoveRouted(at) => {
                present("routed port", at.port.get().into(), self.routed.get(at)).map(drop)
            }
            MapOp::SetTag(service, tag, index) => self.check_set_tag(*service, *tag, *index),
            MapOp::RemoveTag(service, tag) => {
                present("tag", tag.0, self.tags.get(&(*service, *tag))).map(drop)
            }
        }
    }

    fn check_remove_node(&self, index: NodeIndex) -> Result<(), Violation> {
        present("node", u32::from(index.0), self.nodes.get(&index))?;
        let used = self.backends.values().any(|backend| backend.via == Via::Tunnel { node: index });
        free("node", u32::from(index.0), !used)
    }

    fn check_set_backend(&self, index: BackendIndex, new: &BackendRecord) -> Result<(), Violation> {
        not_reserved("backend", index.0)?;
        not_reserved("service", new.service.0)?;
        if let Via::Tunnel { node } = new.via {
            present("node", u32::from(node.0), self.nodes.get(&node))?;
            let tagged = self.tags.get(&(new.service, new.tag)) == Some(&index);
            free("backend", index.0, !tagged)?;
        }
        match self.backends.get(&index) {
            Some(old) if new.continues(old) => Ok(()),
            Some(_) => Err(Violation::Identity(index)),
            None if self.generations.get(&index) == Some(&new.generation) => {
                Err(Violation::Generation(index, new.generation))
            }
            None => Ok(()),
        }
    }

    fn check_remove_backend(&self, index: BackendIndex) -> Result<(), Violation> {
        present("backend", index.0, self.backends.get(&index))?;
        let picked = self.regions.values().any(|cells| cells.contains(&index));
        let tagged = self.tags.values().any(|tagged| *tagged == index);
        free("backend", index.0, !picked && !tagged)
    }

    fn check_write_region(&self, offset: u32, cells: &[BackendIndex]) -> Result<(), Violation> {
        let region = Region { offset, len: cells.len() as u32 };
        let end = u64::from(offset) + u64::from(region.len);
        let below = self.regions.range(..=offset).next_back();
        let above = self.regions.range(offset..).next();
        let clear = below.is_none_or(|(at, cells)| *at as usize + cells.len() <= offset as usize)
            && above.is_none_or(|(at, _)| end <= u64::from(*at));
        if cells.is_empty() || !clear {
            return Err(Violation::Overlap(region));
        }
        cells
            .iter()
            .try_for_each(|cell| present("backend", cell.0, self.backends.get(cell)).map(drop))
    }

    fn check_free_region(&self, offset: u32) -> Result<(), Violation> {
        present("region", offset, self.regions.get(&offset))?;
        let used =
            self.records.values().any(|record| record.regions().any(|it| it.offset == offset));
        free("region", offset, !used)
    }

    fn check_set_record(&self, slot: Slot, record: &ServiceRecord) -> Result<(), Violation> {
        not_reserved("record", slot.0)?;
        not_reserved("service", record.service.0)?;
        free("record", slot.0, !self.records.contains_key(&slot))?;
        if let Some(list) = record.list {
            present("list", list.0, self.lists.get(&list))?;
        }
        for region in record.regions() {
            let cells = self.regions.get(&region.offset).filter(|it| it.len() as u32 == region.len);
            for cell in present("region", region.offset, cells)? {
                self.check_owner(*cell, record.service)?;
            }
        }
        Ok(())
    }

    fn check_remove_record(&self, slot: Slot) -> Result<(), Violation> {
        present("record", slot.0, self.records.get(&slot))?;
        free("record", slot.0, !self.ports.values().any(|used| *used == slot))
    }

    fn check_publish(&self, frontend: Frontend, slot: Slot) -> Result<(), Violation> {
        let new = present("record", slot.0, self.records.get(&slot))?;
        let old = self.ports.get(&frontend).and_then(|old| self.records.get(old));
        match old {
            Some(old) if old.ident != new.ident => self.check_not_routed(frontend),
            _ => Ok(()),
        }
    }

    fn check_published(&self, frontend: Frontend) -> Result<(), Violation> {
        let published = self.ports.contains_key(&frontend);
        if published { Ok(()) } else { Err(Violation::NotPublished(frontend)) }
    }

    fn check_not_routed(&self, frontend: Frontend) -> Result<(), Violation> {
        let routed = self.routed.values().any(|to| *to == frontend);
        if routed { Err(Violation::Routed(frontend)) } else { Ok(()) }
    }

    fn check_set_tag(
        &self,
        service: ServiceId,
        tag: Tag,
        index: BackendIndex,
    ) -> Result<(), Violation> {
        let backend = self.check_owner(index, service)?;
        let fits = backend.tag == tag && backend.via.is_local();
        if fits { Ok(()) } else { Err(Violation::Tag(tag, index)) }
    }

    fn check_owner(
        &self,
        index: BackendIndex,
        wants: ServiceId,
    ) -> Result<&BackendRecord, Violation> {
        let backend = present("backend", index.0, self.backends.get(&index))?;
        if backend.service == wants {
            Ok(backend)
        } else {
            Err(Violation::Foreign { backend: index, has: backend.service, wants })
        }
    }
}

impl BackendRecord {
    /// Whether this is a later state of the same use of an index: flows of the earlier state may
    /// go on. An address may become known, but not change.
    pub fn continues(&self, earlier: &Self) -> bool {
        self.ident == earlier.ident
            && self.generation == earlier.generation
            && self.service == earlier.service
            && self.tag == earlier.tag
            && (earlier.ipv4.is_none() || earlier.ipv4 == self.ipv4)
            && (earlier.ipv6.is_none() || earlier.ipv6 == self.ipv6)
    }
}

fn not_reserved(what: &'static str, index: u32) -> Result<(), Violation> {
    if index == 0 { Err(Violation::Reserved(what)) } else { Ok(()) }
}

fn present<T>(what: &'static str, index: u32, found: Option<T>) -> Result<T, Violation> {
    found.ok_or(Violation::Missing { what, index })
}

fn free(what: &'static str, index: u32, is_free: bool) -> Result<(), Violation> {
    if is_free { Ok(()) } else { Err(Violation::InUse { what, index }) }
}
