//! `/metrics`: what the agent and the kernel count, in the OpenMetrics text format.

mod ipvs;
pub(crate) mod out;
mod scrape;

use std::fmt;

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use self::{ipvs::IpvsNames, scrape::Scrape};
use crate::{
    dns::metrics::DnsMetrics,
    link::metrics::LinkMetrics,
    observe::{LinkMoment, Observation},
};

type Labels = Vec<(&'static str, &'static str)>;

/// Metrics that live as long as the agent.
pub struct Metrics {
    registry: Registry,
    /// From a change being noticed to its being in place, by stage.
    programming: Family<Labels, Histogram, fn() -> Histogram>,
    reloads: Family<Labels, Counter>,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let programming = Family::new_with_constructor(stage as fn() -> Histogram);
        let reloads = Family::default();
        let mut registry = Registry::with_prefix("weir");
        registry.register_with_unit(
            "programming_duration",
            "From a change of the desired state being noticed to its being in place",
            Unit::Seconds,
            programming.clone(),
        );
        registry.register("reload", "Reloads that were asked for, by result", reloads.clone());
        let metrics = Self { registry, programming, reloads };
        // There from the start, so that a first one is seen as a change from 0.
        for result in ["applied", "restart_needed", "rejected"] {
            drop(metrics.reloads.get_or_create(&vec![("result", result)]));
        }
        metrics
    }

    /// How long it takes until a change is in place: in the kernel, in the answers of the DNS server.
    pub fn programming(&self, stage: &'static str) -> Histogram {
        self.programming.get_or_create(&vec![("stage", stage)]).clone()
    }

    /// Counts a reload that was asked for.
    pub fn count_reload(&self, result: &'static str) {
        self.reloads.get_or_create(&vec![("result", result)]).inc();
    }

    /// The text for one scrape.
    pub fn encode(&self, now: Observation) -> Result<String, fmt::Error> {
        let mut moment = Registry::with_prefix("weir");
        if let Some(LinkMoment { status, counters, .. }) = now.link.clone() {
            moment.register_collector(Box::new(LinkMetrics { status, counters }));
        }
        if let Some(dns) = now.dns.clone() {
            moment.register_collector(Box::new(DnsMetrics(dns)));
        }
        let mut foreign = Registry::default();
        if now.config.compat_ipvs_metrics {
            foreign.register_collector(Box::new(IpvsNames(now.clone())));
        }
        moment.register_collector(Box::new(Scrape::new(now)));
        let mut text = String::new();
        for registry in [&self.registry, &moment, &foreign] {
            text::encode_registry(&mut text, registry)?;
        }
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Bounds from what the kernel takes to what a busy Swarm takes.
fn stage() -> Histogram {
    Histogram::new([
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
    ])
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
