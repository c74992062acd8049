//! What all workers share.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

use quinn_udp::UdpSocketState;
use tokio::sync::SetOnce;

use crate::{
    counters::{Reason, Tally},
    directory::Directory,
    settings::Settings,
};

/// What workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) directory: Directory,
    pub(crate) tally: Tally,
    /// What this kernel can do with batches of datagrams.
    pub(crate) batches: UdpSocketState,
    /// Whether sockets towards tasks may have addresses of clients.
    pub(crate) transparent: bool,
    /// Set once the nodes and services of the mesh are known.
    pub(crate) settled: SetOnce<()>,
    /// Bytes of datagrams that sessions keep to send them again.
    pub(crate) kept: AtomicUsize,
    connections: AtomicUsize,
    epoch: Instant,
}

/// The right to have one more connection.
#[derive(Debug)]
pub(crate) struct Permit<'a>(&'a AtomicUsize);

impl Shared {
    pub(crate) fn new(settings: Settings, batches: UdpSocketState, transparent: bool) -> Self {
        Self {
            settings,
            directory: Directory::default(),
            tally: Tally::default(),
            batches,
            transparent,
            settled: SetOnce::new(),
            kept: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            epoch: Instant::now(),
        }
    }

    /// Milliseconds since long before the start: sessions that are taken over began before it.
    pub(crate) fn now(&self) -> u64 {
        const BEFORE: u64 = 1 << 40;
        u64::try_from(self.epoch.elapsed().as_millis()).map_or(u64::MAX, |since| BEFORE + since)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    pub(crate) fn permit(&self) -> Option<Permit<'_>> {
        if self.connections.fetch_add(1, Relaxed) >= self.settings.connections {
            self.connections.fetch_sub(1, Relaxed);
            self.tally.count(Reason::TooMany);
            return None;
        }
        Some(Permit(&self.connections))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
