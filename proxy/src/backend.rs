//! Tasks, as flows hold on to them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use weir_mesh::{
    Ident,
    install::{BackendRecord, BackendState, Via},
};

use crate::counters::Traffic;

/// One use of a backend's position: one task, for as long as anything holds on to it.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) ident: Ident,
    record: ArcSwap<BackendRecord>,
    active: AtomicBool,
    gone: AtomicBool,
    ended: Notify,
    /// How often they had to end.
    ends: AtomicU64,
    /// Of flows that entered the mesh here.
    pub(crate) traffic: Traffic,
    /// Live flows that entered the mesh here.
    flows: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// A live flow, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Flow(Arc<Backend>);

impl Backend {
    pub(crate) fn new(record: &BackendRecord) -> Self {
        let backend = Self {
            ident: record.ident,
            record: ArcSwap::from_pointee(*record),
            active: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            ended: Notify::new(),
            ends: AtomicU64::new(0),
            traffic: Traffic::default(),
            flows: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        backend.update(record);
        backend
    }

    /// The same use, in another state or with more addresses.
    pub(crate) fn update(&self, record: &BackendRecord) {
        self.record.store(Arc::new(*record));
        if record.state == BackendState::Gone {
            return self.end();
        }
        // A task that comes back, of which its node had said that it was down, is the same use.
        self.gone.store(false, Relaxed);
        self.active.store(record.state == BackendState::Active, Relaxed);
    }

    /// Nothing may have flows with it any more.
    pub(crate) fn end(&self) {
        self.active.store(false, Relaxed);
        self.gone.store(true, Relaxed);
        self.ends.fetch_add(1, Relaxed);
        self.ended.notify_waiters();
    }

    pub(crate) fn record(&self) -> Arc<BackendRecord> {
        self.record.load_full()
    }

    /// Whether it takes new flows.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Relaxed)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.record.load().via, Via::Tunnel { .. })
    }

    /// How often its flows had to end. Another number than at a flow's beginning says that it has to, though
    /// the task be back.
    pub(crate) fn ends(&self) -> u64 {
        self.ends.load(Relaxed)
    }

    /// Comes to an end when its flows have to.
    pub(crate) async fn ended(&self) {
        let mut ended = std::pin::pin!(self.ended.notified());
        ended.as_mut().enable();
        if !self.is_gone() {
            ended.await;
        }
    }

    pub(crate) fn flows(&self) -> u64 {
        self.flows.load(Relaxed)
    }
}

impl Flow {
    /// `None` if the task has as many flows as it may.
    pub(crate) fn begin(backend: &Arc<Backend>, most: u64) -> Option<Self> {
        let before = backend.flows.fetch_add(1, Relaxed);
        // What is too much goes again when this is dropped.
        Some(Self(backend.clone())).filter(|_| before < most)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.0.flows.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        pin::{Pin, pin},
        task::{Context, Poll, Waker},
    };

    use weir_mesh::{
        Ident,
        ident::Tag,
        install::{BackendGeneration, ServiceId, Via},
    };

    use super::*;

    fn record(state: BackendState) -> BackendRecord {
        BackendRecord {
            ident: Ident(1),
            service: ServiceId(1),
            generation: BackendGeneration(1),
            tag: Tag(1),
            state,
            ipv4: Some(Ipv4Addr::LOCALHOST),
            ipv6: None,
            via: Via::Unreachable,
        }
    }

    #[tokio::test]
    async fn a_task_that_comes_back_takes_flows_again_and_those_from_before_have_ended() {
        let backend = Backend::new(&record(BackendState::Active));
        let mut before = pin!(backend.ended());
        assert_eq!(polled(before.as_mut()), Poll::Pending);
        backend.update(&record(BackendState::Gone));
        assert!(backend.is_gone() && !backend.is_active());
        backend.update(&record(BackendState::Active));
        assert!(backend.is_active() && !backend.is_gone());
        assert_eq!(polled(before), Poll::Ready(()));
        assert_eq!(polled(pin!(backend.ended())), Poll::Pending);
    }

    fn polled(future: Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }
}
