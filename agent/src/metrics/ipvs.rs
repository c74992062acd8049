//! node_exporter's names for what IPVS counts, so that dashboards made for Docker's own mesh go on.
//!
//! Docker makes one virtual service of a firewall mark for each service that publishes ports. Ours
//! have no marks: `local_mark` is the name of the service, which is what people look it up for. The
//! rest of the labels is as node_exporter has it for such a service: no local address, port 0.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use weir_mesh::{Ident, install::BackendState};

use super::out::{CounterOf, Labels, Out, signed};
use crate::observe::Observation;

/// One moment in the words of node_exporter 1.x, collector `ipvs`; for a registry without a prefix.
#[derive(Clone)]
pub(super) struct IpvsNames(pub(super) Observation);

/// A service, and an address of tasks of it.
type Name<'a> = (&'a str, String);

/// All tasks of a service at one address: on Docker's gateway networks every node gives out the same.
#[derive(Default)]
struct Backend {
    weight: u64,
    active: u64,
}

const TOTALS: [CounterOf; 5] = [
    ("connections", "The total number of connections made", |counters| counters.connections),
    ("incoming_packets", "The total number of incoming packets", |counters| counters.rx_packets),
    ("outgoing_packets", "The total number of outgoing packets", |counters| counters.tx_packets),
    ("incoming_bytes", "The total amount of incoming data", |counters| counters.rx_bytes),
    ("outgoing_bytes", "The total amount of outgoing data", |counters| counters.tx_bytes),
];

impl IpvsNames {
    fn totals(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        for (name, help, value) in TOTALS {
            let sum = self.0.stats.frontends.values().map(value).sum();
            out.count(&format!("node_ipvs_{name}"), help, sum)?;
        }
        Ok(())
    }

    fn backends(&self) -> BTreeMap<Name<'_>, Backend> {
        let snapshot = self.0.view.snapshot.iter();
        let services = snapshot.flat_map(|snapshot| snapshot.services.values());
        let published = services.filter(|service| !service.ports.is_empty());
        let all: Vec<_> = published
            .flat_map(|service| service.tasks.iter().map(move |task| (service, task)))
            .collect();
        if all.len() > self.0.config.backend_limit {
            return BTreeMap::new();
        }
        let mut backends = BTreeMap::<Name<'_>, Backend>::new();
        for (service, task) in all {
            let ident = Ident::of_task(&service.name, &task.name, &task.node);
            let ipv4 = task.ipv4.map(|address| address.to_string());
            let address = ipv4.or_else(|| task.ipv6.map(|address| address.to_string()));
            let name = (service.name.as_str(), address.unwrap_or_default());
            let backend = backends.entry(name).or_default();
            let Some(stats) = self.0.stats.backend(&ident) else { continue };
            if stats.state == BackendState::Active {
                backend.weight += u64::from(task.weight);
            }
            backend.active += stats.active;
        }
        backends
    }
}

impl Collector for IpvsNames {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        self.totals(&mut out)?;
        let backends = self.backends();
        let active = backends.iter().map(|(name, it)| (labels(name), signed(it.active)));
        let help = "The current active connections by local and remote address";
        out.gauge("node_ipvs_backend_connections_active", help, active)?;
        // Flows that have ended are forgotten, or are among the active ones until they time out.
        let inactive = backends.keys().map(|name| (labels(name), 0));
        let help = "The current inactive connections by local and remote address";
        out.gauge("node_ipvs_backend_connections_inactive", help, inactive)?;
        let weight = backends.iter().map(|(name, it)| (labels(name), signed(it.weight)));
        let help = "The current backend weight by local and remote address";
        out.gauge("node_ipvs_backend_weight", help, weight)
    }
}

fn labels<'a>((service, address): &'a Name<'_>) -> Labels<'a> {
    vec![
        ("local_address", ""),
        ("local_port", "0"),
        ("remote_address", address),
        ("remote_port", "0"),
        ("proto", "FWM"),
        ("local_mark", service),
    ]
}

impl fmt::Debug for IpvsNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IpvsNames")
    }
}
