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
}

/// Everything the kernel counts.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// By published port.
    pub frontends: BTreeMap<Frontend, Counters>,
    /// By backend.
    pub backends: BTreeMap<BackendIndex, Counters>,
    /// By drop reason, as labelled by `weir_abi::DropReason`.
    pub drops: BTreeMap<&'static str, u64>,
    /// Entries and capacity by map name.
    pub maps: BTreeMap<&'static str, (u64, u64)>,
}

fn sum(values: &[weir_abi::Counters]) -> Counters {
    let mut total = Counters::default();
    for cpu in values {
        total.connections += cpu.connections;
        total.rx_packets += cpu.rx_packets;
        total.rx_bytes += cpu.rx_bytes;
        total.tx_packets += cpu.tx_packets;
        total.tx_bytes += cpu.tx_bytes;
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
}

impl Store {
    pub(crate) fn stats(&self) -> Result<Stats, Error> {
        let what = || "read the kernel's counters".to_owned();
        let mut stats = Stats::default();
        for (frontend, index) in &self.counters {
            let values = self.maps.frontend_stats.get(*index).tried(what)?;
            stats.frontends.insert(*frontend, sum(&values));
        }
        let mut backends = 0;
        for index in 1..self.maps.backends.len() {
            if self.maps.backends.get(index).ident != 0 {
                let values = self.maps.backend_stats.get(index).tried(what)?;
                stats.backends.insert(BackendIndex(index), sum(&values));
                backends += 1;
            }
        }
        for reason in DropReason::ALL {
            let values = self.maps.drops.get(*reason as u32).tried(what)?;
            stats.drops.insert(reason.label(), values.iter().sum());
        }
        let records = (1..self.maps.records.len())
            .filter(|slot| self.maps.records.get(*slot).ident != 0)
            .count();
        stats.maps.insert("backends", (backends, self.maps.backends.len().into()));
        stats.maps.insert("records", (records as u64, self.maps.records.len().into()));
        let vips = (1..self.maps.vips.len())
            .filter(|slot| self.maps.vips.get(*slot).key.network != 0)
            .count();
        stats.maps.insert("vips", (vips as u64, self.maps.vips.len().into()));
        let flows = u64::from(self.maps.forward4.capacity());
        stats.maps.insert("forward", (0, 2 * flows));
        stats.maps.insert("reverse", (0, 2 * flows));
        stats.maps.insert("sockets", (0, self.maps.sockets.capacity().into()));
        Ok(stats)
    }
}
