//! What the kernel counts.

use std::collections::BTreeMap;

use weir_abi::DropReason;
use weir_mesh::install::{BackendIndex, Frontend};

use crate::{
    Dataplane,
    error::{Error, Tried as _},
    store::Store,
};

/// Packets and bytes in each direction, and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// New flows.
    pub connections: u64,
    /// Packets from clients.
    pub rx_packets: u64,
    /// Bytes from clients, with headers from the IP header on.
    pub rx_bytes: u64,
    /// Packets to clients.
    pub tx_packets: u64,
    /// Bytes to clients.
    pub tx_bytes: u64,
    /// What a task of this node has said to SYNs. Of a published port: nothing.
    pub answers: Answers,
}

/// What a task has said to SYNs, counted on its own node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// It took the connection.
    pub accepted: u64,
    /// It refused, with a reset.
    pub refused: u64,
}

/// Everything the kernel counts.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// By published port.
    pub frontends: BTreeMap<Frontend, Counters>,
    /// By backend, in order. There may be 100,000, for which a tree takes twice the room.
    pub backends: Vec<(BackendIndex, Counters)>,
    /// By drop reason, as labelled by `weir_abi::DropReason`.
    pub drops: BTreeMap<&'static str, u64>,
    /// Entries and capacity by map name.
    pub maps: BTreeMap<&'static str, (u64, u64)>,
}

/// Every reason for which packets are not forwarded: its label, and what it means.
pub fn drop_reasons() -> impl Iterator<Item = (&'static str, &'static str)> {
    DropReason::ALL.iter().map(|reason| (reason.label(), reason.meaning()))
}

fn sum(values: &[weir_abi::Counters]) -> Counters {
    let mut total = Counters::default();
    for cpu in values {
        total.connections += cpu.connections;
        total.rx_packets += cpu.rx_packets;
        total.rx_bytes += cpu.rx_bytes;
        total.tx_packets += cpu.tx_packets;
        total.tx_bytes += cpu.tx_bytes;
        total.answers.accepted += cpu.accepted;
        total.answers.refused += cpu.refused;
    }
    total
}

impl Dataplane {
    /// Reads the counters. The fill of the flow tables is in
    /// [`FlowCensus`](crate::FlowCensus), since counting them takes a pass.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.store.stats()
    }

    /// Reads what tasks of this node have said to SYNs, since their positions were given to them.
    /// One system call a backend.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn answers(
        &self,
        backends: &mut dyn Iterator<Item = BackendIndex>,
    ) -> Result<Vec<(BackendIndex, Answers)>, Error> {
        let what = || "read the kernel's counters of tasks".to_owned();
        let read = |index: BackendIndex| {
            let values = self.store.maps.backend_stats.get(index.0).tried(what)?;
            Ok((index, sum(&values).answers))
        };
        backends.map(read).collect()
    }
}

impl Store {
    pub(crate) fn stats(&self) -> Result<Stats, Error> {
        let what = || "read the kernel's counters".to_owned();
        let mut stats = Stats::default();
        let end = self.counters.values().max().map_or(0, |last| last + 1);
        let mut by_index = Vec::with_capacity(end as usize);
        let frontends = &self.maps.frontend_stats;
        frontends.visit(end, |_, values| by_index.push(sum(values))).tried(what)?;
        for (frontend, index) in &self.counters {
            let counters = by_index.get(*index as usize).copied().unwrap_or_default();
            stats.frontends.insert(*frontend, counters);
        }
        let mut used = Vec::new();
        self.maps.backends.visit(|index, backend| {
            if backend.ident != 0 {
                used.push(index);
            }
        })?;
        let end = used.last().map_or(0, |last| last + 1);
        let mut next = used.iter().peekable();
        stats.backends.reserve_exact(used.len());
        let take = |index: u32, values: &[weir_abi::Counters]| {
            if next.next_if_eq(&&index).is_some() {
                stats.backends.push((BackendIndex(index), sum(values)));
            }
        };
        self.maps.backend_stats.visit(end, take).tried(what)?;
        for reason in DropReason::ALL {
            let values = self.maps.drops.get(*reason as u32).tried(what)?;
            stats.drops.insert(reason.label(), values.iter().sum());
        }
        let mut records = 0;
        self.maps.records.visit(|_, record| records += u64::from(record.ident != 0))?;
        let backends = used.len() as u64;
        stats.maps.insert("backends", (backends, self.maps.backends.len().into()));
        stats.maps.insert("records", (records, self.maps.records.len().into()));
        let mut vips = 0;
        self.maps.vips.visit(|_, vip| vips += u64::from(vip.key.network != 0))?;
        stats.maps.insert("vips", (vips, self.maps.vips.len().into()));
        let flows = u64::from(self.maps.forward4.capacity());
        stats.maps.insert("forward", (0, 2 * flows));
        stats.maps.insert("reverse", (0, 2 * flows));
        stats.maps.insert("sockets", (0, self.maps.sockets.capacity().into()));
        Ok(stats)
    }
}
