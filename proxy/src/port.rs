//! A published port while it is served.

use std::sync::{Arc, atomic::AtomicU64};

use arc_swap::ArcSwap;
use weir_mesh::install::Frontend;

use crate::{counters::Traffic, route::Route};

/// A published port. Its listeners and flows hold on to it; where it leads is swapped in it.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) frontend: Frontend,
    pub(crate) route: ArcSwap<Route>,
    pub(crate) traffic: Traffic,
    /// Live UDP sessions.
    pub(crate) sessions: AtomicU64,
}

impl Port {
    pub(crate) fn new(frontend: Frontend, route: Arc<Route>) -> Self {
        let (traffic, sessions) = (Traffic::default(), AtomicU64::new(0));
        Self { frontend, route: ArcSwap::new(route), traffic, sessions }
    }
}
