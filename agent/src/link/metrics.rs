//! The link's numbers, for one scrape.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use super::status::{Counters, LinkStatus};

/// Tells the link's numbers as they are now; for a registry with the prefix `weir`.
#[derive(Debug)]
pub struct LinkMetrics {
    /// How the link is.
    pub status: LinkStatus,
    /// What it has counted.
    pub counters: Arc<Counters>,
}

impl Collector for LinkMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, value) in self.counters.all() {
            let metric = ConstCounter::new(value);
            let name = format!("link_{name}");
            metric.encode(encoder.encode_descriptor(&name, help, None, metric.metric_type())?)?;
        }
        let hub = self.status.hub.as_ref();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let connected = self.status.managers.values().filter(|peer| peer.connected).count();
        let days = self.status.days_left.map_or(-1, |days| count(days as usize));
        let listening = i64::from(self.status.view != "nobody");
        for (name, help, value) in [
            ("link_view_live", "1: the view comes from a manager that speaks", listening),
            ("link_managers_connected", "Managers this node reports to", count(connected)),
            ("link_certificate_days", "Days until this node's certificate ends; -1: none", days),
            ("link_hub_ready", "1: the hub has a whole view", hub.map_or(0, |h| h.ready.into())),
            ("link_nodes_alive", "Nodes the hub hears", hub.map_or(0, |hub| count(hub.alive))),
            ("link_nodes_silent", "Nodes fallen silent", hub.map_or(0, |hub| count(hub.silent))),
        ] {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        Ok(())
    }
}
