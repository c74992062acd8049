//! What the maps hold, as the planner knows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weir_abi::{Load, PortCell, Routing, TagKey, backend_state, balance};
use weir_mesh::{
    Installed, MapOp, PublishedPort,
    ident::Tag,
    install::{
        BackendGeneration, BackendIndex, BackendRecord, Frontend, NodeIndex, Region, ServiceId,
        ServiceRecord, Slot,
    },
    plan::Limits,
};

use crate::{
    error::{Error, Tried as _},
    maps::Maps,
    records::{self, Clock, cell_of, frontend_at, wide},
};

/// The maps, and how the planner's operations change them.
pub(crate) struct Store {
    pub(crate) maps: Maps,
    pub(crate) clock: Clock,
    /// Counter positions of published ports; the kernel's `PORTS` has them too.
    pub(crate) counters: BTreeMap<Frontend, u32>,
    free_counters: Vec<u32>,
}

impl Store {
    /// Takes over what the maps hold.
    pub(crate) fn new(maps: Maps, clock: Clock) -> Result<Self, Error> {
        let mut store = Self { maps, clock, counters: BTreeMap::new(), free_counters: Vec::new() };
        store.restore_counters()?;
        Ok(store)
    }

    /// Sizes of the kernel's arrays.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            backends: self.maps.backends.len(),
            cells: self.maps.picks.len(),
            records: self.maps.records.len(),
            nodes: self.maps.nodes.len(),
            services: weir_abi::size::SERVICES,
            // A plan writes new lists before it removes those that they take the place of, so what was
            // and what will be are there at the same time. The map has no room for more than it says.
            ranges: self.maps.access.capacity() / 2,
            routed: self.maps.routed.capacity(),
        }
    }

    /// What the maps hold now, read from the kernel.
    pub(crate) fn installed(&self) -> Result<Installed, Error> {
        let mut installed = Installed::default();
        let nodes = &mut installed.nodes;
        self.maps.nodes.visit(|index, node| {
            let record = records::node_from_abi(&node);
            nodes.extend(record.map(|record| (NodeIndex(index as u16), record)));
        })?;
        let (backends, generations) = (&mut installed.backends, &mut installed.generations);
        self.maps.backends.visit(|index, backend| {
            let record = records::backend_from_abi(&backend);
            backends.extend(record.map(|record| (BackendIndex(index), record)));
            if backend.generation != 0 {
                generations.insert(BackendIndex(index), BackendGeneration(backend.generation));
            }
        })?;
        self.maps.records.visit(|slot, service| {
            let record = records::service_from_abi(&service, self.clock);
            installed.records.extend(record.map(|record| (Slot(slot), record)));
        })?;
        let regions: BTreeSet<Region> =
            installed.records.values().flat_map(ServiceRecord::regions).collect();
        for region in regions {
            installed.regions.insert(region.offset, self.read_region(region)?);
        }
        let ports = &mut installed.ports;
        self.maps.ports.visit(|cell, PortCell { record, .. }| {
            let frontend = frontend_at(cell).filter(|_| record != 0);
            ports.extend(frontend.map(|frontend| (frontend, Slot(record))));
        })?;
        let what = || "list the ports at routed virtual addresses".to_owned();
        for key in self.maps.routed.keys().tried(what)? {
            let port = self.maps.routed.get(&key).tried(what)?;
            let to = records::routed_from_abi(&key).zip(port);
            installed.routed.extend(to.and_then(|(at, port)| {
                let port = PublishedPort::new(port as u16)?;
                Some((at, Frontend { protocol: at.protocol, port }))
            }));
        }
        let what = || "list who may be a client".to_owned();
        for range in self.maps.access.keys().tried(what)? {
            let may = self.maps.access.get(&range).tried(what)?;
            if let Some(((list, subnet), may)) = records::range_from_abi(&range).zip(may) {
                installed.lists.entry(list).or_default().insert(subnet, may != 0);
            }
        }
        let what = || "list the tags in the kernel".to_owned();
        for key in self.maps.tags.keys().tried(what)? {
            if let Some(index) = self.maps.tags.get(&key).tried(what)? {
                let tag = (ServiceId(key.service), Tag(key.tag));
                installed.tags.insert(tag, BackendIndex(index));
            }
        }
        Ok(installed)
    }

    fn read_region(&self, region: Region) -> Result<Vec<BackendIndex>, Error> {
        let cells = region.offset..region.offset + region.len;
        cells.map(|cell| self.maps.picks.get(cell).map(BackendIndex)).collect()
    }

    /// Applies one operation. An error leaves the maps as they were before it.
    pub(crate) fn apply(&mut self, op: &MapOp) -> Result<(), Error> {
        let maps = &self.maps;
        match op {
            MapOp::SetNode(index, record) => {
                let old = records::node_from_abi(&maps.nodes.get(index.0.into())?);
                maps.nodes.set(index.0.into(), records::node_to_abi(record))?;
                let what = || format!("let node {} send", record.address);
                maps.senders.set(&wide(record.address), &index.0.into()).tried(what)?;
                if let Some(old) = old.filter(|old| old.address != record.address) {
                    self.forget_sender(old.address, *index)?;
                }
            }
            MapOp::RemoveNode(index) => {
                if let Some(old) = records::node_from_abi(&maps.nodes.get(index.0.into())?) {
                    self.forget_sender(old.address, *index)?;
                }
                maps.nodes.set(index.0.into(), weir_abi::Node::default())?;
            }
            MapOp::SetBackend(index, record) => self.set_backend(*index, record)?,
            // A packet in flight may still read what is freed: only the mark of use goes.
            MapOp::RemoveBackend(index) => {
                let gone = weir_abi::Backend {
                    state: backend_state::GONE,
                    ident: 0,
                    ..maps.backends.get(index.0)?
                };
                self.write_backend(*index, gone)?;
            }
            MapOp::WriteRegion { offset, cells } => {
                for (cell, backend) in (*offset..).zip(cells) {
                    maps.picks.set(cell, backend.0)?;
                }
            }
            MapOp::FreeRegion { .. } => {}
            MapOp::WriteList(list, rules) => {
                let what = || format!("write list {}", list.0);
                for (subnet, may) in rules {
                    let range = records::range_to_abi(*list, *subnet);
                    maps.access.set(&range, &u32::from(*may)).tried(what)?;
                }
            }
            MapOp::RemoveList(list, rules) => {
                let what = || format!("remove list {}", list.0);
                for subnet in rules.keys() {
                    maps.access.remove(&records::range_to_abi(*list, *subnet)).tried(what)?;
                }
            }
            MapOp::SetRecord(slot, record) => {
                maps.records.set(slot.0, records::service_to_abi(record, self.clock))?;
            }
            MapOp::RemoveRecord(slot) => {
                let ident = std::mem::offset_of!(weir_abi::Service, ident);
                maps.records.publish(slot.0, ident, 0)?;
            }
            MapOp::Publish(frontend, slot) => self.publish(*frontend, *slot)?,
            MapOp::Withdraw(frontend) => {
                maps.ports.publish(cell_of(*frontend), 0, 0)?;
                if let Some(counters) = self.counters.remove(frontend) {
                    self.free_counters.push(counters);
                }
            }
            MapOp::SetRouted(at, frontend) => {
                maps.routing.set(0, Routing { any: 1, zero: 0 })?;
                let what = || format!("let {at} stand for {frontend}");
                let port = weir_abi::routed_port(frontend.port.get());
                maps.routed.set(&records::routed_to_abi(*at), &port).tried(what)?;
            }
            MapOp::RemoveRouted(at) => {
                let what = || format!("no longer serve {at}");
                maps.routed.remove(&records::routed_to_abi(*at)).tried(what)?;
                if maps.routed.is_empty().tried(what)? {
                    maps.routing.set(0, Routing::default())?;
                }
            }
            MapOp::SetTag(service, tag, index) => {
                let key = TagKey { service: service.0, tag: tag.0 };
                let what = || format!("let tag {} mean backend {}", tag.0, index.0);
                maps.tags.set(&key, &index.0).tried(what)?;
            }
            MapOp::RemoveTag(service, tag) => {
                let key = TagKey { service: service.0, tag: tag.0 };
                maps.tags.remove(&key).tried(|| format!("forget tag {}", tag.0))?;
            }
        }
        Ok(())
    }

    fn forget_sender(&self, address: IpAddr, index: NodeIndex) -> Result<(), Error> {
        let what = || format!("forget node {address}");
        let key = wide(address);
        if self.maps.senders.get(&key).tried(what)? == Some(index.0.into()) {
            self.maps.senders.remove(&key).tried(what)?;
        }
        Ok(())
    }

    fn set_backend(&mut self, index: BackendIndex, record: &BackendRecord) -> Result<(), Error> {
        let old = self.maps.backends.get(index.0)?;
        let new = records::backend_to_abi(record);
        // 0: the index was never used, and its counters were never anything but zero.
        let used = old.generation != 0;
        if used && (old.ident != new.ident || old.generation != new.generation) {
            let what = || format!("clear the counters of backend {}", index.0);
            self.maps.backend_stats.clear(index.0).tried(what)?;
            self.maps.loads.publish(index.0, 0, 0)?;
        }
        self.write_backend(index, new)
    }

    /// The first word of a backend (generation, state, way, interface) decides whether the rest is
    /// read, so it is written last; while the rest changes under a live backend, flows see either
    /// address of the same task.
    fn write_backend(&self, index: BackendIndex, backend: weir_abi::Backend) -> Result<(), Error> {
        let old = self.maps.backends.get(index.0)?;
        let same_body = weir_abi::Backend {
            generation: old.generation,
            state: old.state,
            via: old.via,
            ifindex: old.ifindex,
            ..backend
        } == old;
        if !same_body {
            let closed = weir_abi::Backend {
                generation: old.generation,
                state: old.state,
                via: old.via,
                ifindex: old.ifindex,
                ..backend
            };
            self.maps.backends.set(index.0, closed)?;
        }
        let word = u64::from(backend.generation)
            | u64::from(backend.state) << 16
            | u64::from(backend.via) << 24
            | u64::from(backend.ifindex) << 32;
        self.maps.backends.publish(index.0, 0, u64::from_le(word))
    }

    /// Tells the programs how many flows the tasks have of services that balance by that, each task's
    /// in proportion to its weight.
    pub(crate) fn note_loads(&self, active: &BTreeMap<BackendIndex, u64>) -> Result<(), Error> {
        let mut regions = BTreeSet::new();
        self.maps.records.visit(|_, service| {
            if service.ident != 0 && service.balance == balance::LEAST {
                let [v4, v6] = [service.pick4, service.pick6];
                let region = if v4.len > 0 { v4 } else { v6 };
                regions.insert(Region { offset: region.offset, len: region.len });
            }
        })?;
        for region in regions {
            let mut weights = BTreeMap::<BackendIndex, u32>::new();
            for backend in self.read_region(region)? {
                *weights.entry(backend).or_default() += 1;
            }
            for (backend, weight) in weights {
                let step = (Load::UNIT / weight).max(1);
                let flows = active.get(&backend).copied().unwrap_or_default();
                let flows = flows.saturating_mul(step.into()).min(u32::MAX.into());
                let word = flows | u64::from(step) << 32;
                self.maps.loads.publish(backend.0, 0, u64::from_le(word))?;
            }
        }
        Ok(())
    }

    fn publish(&mut self, frontend: Frontend, slot: Slot) -> Result<(), Error> {
        let counters = match self.counters.get(&frontend) {
            Some(counters) => *counters,
            None => {
                let what = || format!("publish {}/{}", frontend.port, frontend.protocol);
                let counters = self.free_counters.pop().ok_or_else(|| {
                    Error::new(what(), "all counters of published ports are in use")
                })?;
                self.maps.frontend_stats.clear(counters).tried(what)?;
                self.counters.insert(frontend, counters);
                counters
            }
        };
        let word = u64::from(slot.0) | u64::from(counters) << 32;
        self.maps.ports.publish(cell_of(frontend), 0, u64::from_le(word))
    }

    fn restore_counters(&mut self) -> Result<(), Error> {
        let known = &mut self.counters;
        self.maps.ports.visit(|cell, PortCell { record, counters }| {
            let frontend = frontend_at(cell).filter(|_| record != 0);
            known.extend(frontend.map(|frontend| (frontend, counters)));
        })?;
        let used: BTreeSet<u32> = self.counters.values().copied().collect();
        self.free_counters =
            (0..weir_abi::size::FRONTENDS).rev().filter(|index| !used.contains(index)).collect();
        Ok(())
    }
}
