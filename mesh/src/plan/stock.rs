//! All free places of all kernel arrays.

use std::collections::BTreeSet;

use super::{Limits, Moment, Resource, extents::Extents, pool::Pool};
use crate::install::{
    BackendIndex, Installed, ListId, NodeIndex, Region, ServiceId, ServiceRecord, Slot,
};

/// A place that a plan freed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Freed {
    Backend(BackendIndex),
    Slot(Slot),
    Node(NodeIndex),
    Service(ServiceId),
    Region(Region),
    List(ListId),
}

/// The free places.
#[derive(Clone, Debug)]
pub(super) struct Stock {
    limits: Limits,
    backends: Pool,
    slots: Pool,
    nodes: Pool,
    services: Pool,
    lists: Pool,
    cells: Extents,
}

impl Stock {
    /// Everything that is not installed.
    pub(super) fn new(installed: &Installed, limits: Limits, now: Moment) -> Self {
        let backends = installed.backends.keys().map(|index| index.0).collect();
        let slots = installed.records.keys().map(|slot| slot.0).collect();
        let nodes = installed.nodes.keys().map(|index| u32::from(index.0)).collect();
        let of_records = installed.records.values().map(|record| record.service.0);
        let of_backends = installed.backends.values().map(|backend| backend.service.0);
        let services = of_records.chain(of_backends).collect();
        let lists = installed.lists.keys().map(|list| list.0).collect();
        let mut stock = Self {
            limits,
            backends: Pool::new(limits.backends, &backends, now),
            slots: Pool::new(limits.records, &slots, now),
            // A node index has 16 bits.
            nodes: Pool::new(limits.nodes.min(1 << 16), &nodes, now),
            services: Pool::new(limits.services, &services, now),
            lists: Pool::new(limits.ranges, &lists, now),
            cells: Extents::new(limits.cells, &regions_of(installed), now),
        };
        let used_before = installed.generations.keys().next_back().map_or(0, |last| last.0 + 1);
        stock.backends.mark_used(used_before, now);
        stock
    }

    /// Lets everything rest that is free and was in use in an earlier stock of the same maps.
    pub(super) fn mark_used(&mut self, earlier: &Self, now: Moment) {
        self.backends.mark_used(earlier.backends.fresh(), now);
        self.slots.mark_used(earlier.slots.fresh(), now);
        self.nodes.mark_used(earlier.nodes.fresh(), now);
        self.services.mark_used(earlier.services.fresh(), now);
        self.lists.mark_used(earlier.lists.fresh(), now);
        self.cells.mark_used(earlier.cells.fresh(), now);
    }

    /// The sizes of the arrays.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// How much there is of something, for a message.
    pub(super) fn limit(&self, resource: Resource) -> u32 {
        match resource {
            Resource::Backends => self.limits.backends.saturating_sub(1),
            Resource::Cells => self.limits.cells,
            Resource::Records => self.limits.records.saturating_sub(1),
            Resource::Services => self.limits.services.saturating_sub(1),
            Resource::Ranges => self.limits.ranges,
            Resource::Routed => self.limits.routed,
        }
    }

    /// When there will be more of something.
    pub(super) fn next_rested(&self, resource: Resource) -> Option<Moment> {
        match resource {
            Resource::Backends => self.backends.next_rested(),
            Resource::Cells => self.cells.next_rested(),
            Resource::Records => self.slots.next_rested(),
            Resource::Services => self.services.next_rested(),
            Resource::Ranges => self.lists.next_rested(),
            // They need no rest.
            Resource::Routed => None,
        }
    }

    pub(super) fn take_backend(&mut self, now: Moment) -> Result<BackendIndex, Resource> {
        self.backends.take(now).map(BackendIndex).ok_or(Resource::Backends)
    }

    pub(super) fn take_slot(&mut self, now: Moment) -> Result<Slot, Resource> {
        self.slots.take(now).map(Slot).ok_or(Resource::Records)
    }

    pub(super) fn take_service(&mut self, now: Moment) -> Result<ServiceId, Resource> {
        self.services.take(now).map(ServiceId).ok_or(Resource::Services)
    }

    /// A number for a list; there are as many as ranges, so that these run out first.
    pub(super) fn take_list(&mut self, now: Moment) -> Result<ListId, Resource> {
        self.lists.take(now).map(ListId).ok_or(Resource::Ranges)
    }

    pub(super) fn take_node(&mut self, now: Moment) -> Option<NodeIndex> {
        self.nodes.take(now).map(|at| NodeIndex(at as u16))
    }

    pub(super) fn take_cells(&mut self, len: u32, now: Moment) -> Result<Region, Resource> {
        self.cells.take(len, now).ok_or(Resource::Cells)
    }

    /// Takes back what was given out and never reached the kernel.
    pub(super) fn untake(&mut self, place: Freed) {
        match place {
            Freed::Backend(BackendIndex(at)) => self.backends.untake(at),
            Freed::Slot(Slot(at)) => self.slots.untake(at),
            Freed::Node(NodeIndex(at)) => self.nodes.untake(at.into()),
            Freed::Service(ServiceId(at)) => self.services.untake(at),
            Freed::Region(region) => self.cells.untake(region),
            Freed::List(ListId(at)) => self.lists.untake(at),
        }
    }

    /// Lets a place rest that the kernel no longer uses.
    pub(super) fn release(&mut self, place: Freed, now: Moment) {
        match place {
            Freed::Backend(BackendIndex(at)) => self.backends.release(at, now),
            Freed::Slot(Slot(at)) => self.slots.release(at, now),
            Freed::Node(NodeIndex(at)) => self.nodes.release(at.into(), now),
            Freed::Service(ServiceId(at)) => self.services.release(at, now),
            Freed::Region(region) => self.cells.release(region, now),
            Freed::List(ListId(at)) => self.lists.release(at, now),
        }
    }
}

fn regions_of(installed: &Installed) -> BTreeSet<Region> {
    let written = installed
        .regions
        .iter()
        .map(|(offset, cells)| Region { offset: *offset, len: cells.len() as u32 });
    written.chain(installed.records.values().flat_map(ServiceRecord::regions)).collect()
}
