//! `/metrics`: what the agent and the kernel count, in the OpenMetrics text format.

mod scrape;

use std::fmt;

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use self::scrape::Scrape;
use crate::{
    link::metrics::LinkMetrics,
    observe::{LinkMoment, Observation},
};

/// Metrics that live as long as the agent.
pub struct Metrics {
    registry: Registry,
    /// From a change being noticed to the kernel holding it.
    pub programming: Histogram,
    reloads: Family<Vec<(&'static str, &'static str)>, Counter>,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let buckets =
            [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
        let programming = Histogram::new(buckets);
        let reloads = Family::default();
        let mut registry = Registry::with_prefix("weir");
        let kernel = registry.sub_registry_with_label(("stage".into(), "kernel".into()));
        kernel.register_with_unit(
            "programming_duration",
            "From a change of the desired state being noticed to the data plane holding it",
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

    /// Counts a reload that was asked for.
    pub fn count_reload(&self, result: &'static str) {
        self.reloads.get_or_create(&vec![("result", result)]).inc();
    }

    /// The text for one scrape.
    pub fn encode(&self, now: Observation) -> Result<String, fmt::Error> {
        let mut moment = Registry::with_prefix("weir");
        if let Some(LinkMoment { status, counters }) = now.link.clone() {
            moment.register_collector(Box::new(LinkMetrics { status, counters }));
        }
        moment.register_collector(Box::new(Scrape::new(now)));
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry)?;
        text::encode_registry(&mut text, &moment)?;
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
