//! The link's numbers, for one scrape.

use std::{fmt, sync::Arc};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};

use super::status::{Counters, LinkStatus};
use crate::metrics::out::{Out, signed};

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
        let mut out = Out(&mut encoder);
        for (name, help, value) in self.counters.all() {
            out.count(&format!("link_{name}"), help, value)?;
        }
        let hub = self.status.hub.as_ref();
        let connected = self.status.managers.values().filter(|peer| peer.connected).count();
        let days = self.status.days_left.map_or(-1, signed);
        let listening = i64::from(self.status.view != "nobody");
        for (name, help, value) in [
            ("link_view_live", "1: the view comes from a manager that speaks", listening),
            ("link_managers_connected", "Managers this node reports to", signed(connected)),
            ("link_certificate_days", "Days until this node's certificate ends; -1: none", days),
            ("link_hub_ready", "1: the hub has a whole view", hub.map_or(0, |h| h.ready.into())),
            ("link_nodes_alive", "Nodes the hub hears", hub.map_or(0, |hub| signed(hub.alive))),
            ("link_nodes_silent", "Nodes fallen silent", hub.map_or(0, |hub| signed(hub.silent))),
        ] {
            out.value(name, help, value)?;
        }
        Ok(())
    }
}
