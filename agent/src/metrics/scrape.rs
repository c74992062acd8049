//! One moment, told as metrics.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc, time::Duration};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use weir_loader::Counters;
use weir_mesh::{
    Ident, NetworkId, Node, Service,
    install::{BackendState, Frontend},
    vip::VipKey,
};

use super::out::{CounterOf, Labels, Out, signed};
use crate::{
    config::SourceConfig,
    observe::{LinkMoment, Observation},
    probes::TaskHealth,
    reconciler::BackendStats,
    version::{COMMIT, VERSION},
};

/// One moment.
pub(super) struct Scrape {
    now: Observation,
    agent: Vec<(&'static str, String)>,
}

/// What only a task has, on its own node.
const ANSWERS: [CounterOf; 2] = [
    ("accepted", "New connections that the task took", |counters| counters.answers.accepted),
    ("refused", "New connections that the task refused", |counters| counters.answers.refused),
];

const COUNTERS: [CounterOf; 5] = [
    ("connections", "New flows", |counters| counters.connections),
    ("rx_packets", "Packets from clients", |counters| counters.rx_packets),
    ("rx_bytes", "Bytes from clients", |counters| counters.rx_bytes),
    ("tx_packets", "Packets to clients", |counters| counters.tx_packets),
    ("tx_bytes", "Bytes to clients", |counters| counters.tx_bytes),
];

/// A published port with its labels' texts.
struct PortRow<'a> {
    service: &'a str,
    protocol: String,
    port: String,
    counters: Counters,
}

/// A virtual address with its labels' texts.
struct VipRow<'a> {
    service: &'a str,
    network: &'a str,
    address: String,
    connections: u64,
}

/// A task with its labels' texts.
struct TaskRow<'a> {
    service: &'a str,
    task: &'a str,
    node: &'a str,
    weight: u16,
    stats: Option<BackendStats>,
}

impl Scrape {
    pub(super) fn new(now: Observation) -> Self {
        let agent = vec![
            ("version", VERSION.to_owned()),
            ("commit", COMMIT.to_owned()),
            (
                "object",
                if now.opened { weir_loader::object_digest().to_owned() } else { String::new() },
            ),
        ];
        Self { now, agent }
    }

    fn agent(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let Self { now, agent } = self;
        let build: Labels<'_> = agent.iter().map(|(key, value)| (*key, value.as_str())).collect();
        out.gauge("build_info", "What this agent is", [(build, 1)])?;
        let generation = now.report.generation.map_or(0, |generation| generation.0);
        let help = "The newest snapshot that is whole in the data plane";
        out.value("snapshot_generation", help, signed(generation))?;
        let source = match now.config.source {
            SourceConfig::File(_) => "file",
            SourceConfig::Docker(_) => "docker",
        };
        let confirmed = now.source.confirmed.unwrap_or(now.started).elapsed().as_secs();
        let help = "Since the source last confirmed the desired state";
        out.gauge("source_age_seconds", help, [(vec![("source", source)], signed(confirmed))])?;
        let help = "Labels and the like that were not taken as they were written";
        out.value("source_notes", help, now.source.notes.len() as i64)?;
        let errors = now
            .source
            .errors
            .iter()
            .map(|(reason, count)| (vec![("source", source), ("reason", *reason)], *count));
        out.counter("source_errors", "Readings of the source that were not taken", errors)?;
        let plane = now.report.plane.iter().map(|plane| {
            let labels = vec![("mode", plane.kind.as_str()), ("reason", plane.reason.as_str())];
            (labels, i64::from(now.opened))
        });
        out.gauge("dataplane_info", "Which data plane is at work", plane)?;
        let help = "Times that the kernel's maps were not what had been written";
        out.count("reconcile_drift", help, now.report.drift)?;
        let help = "Changes that the kernel refused";
        out.count("reconcile_failures", help, now.report.failures)?;
        let help = "What keeps the mesh from being served as it should be";
        out.value("problems", help, now.report.problems.len() as i64)
    }

    /// The other nodes, as the link knows them.
    fn nodes(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let now = &self.now;
        let (nodes, link) = (now.view.snapshot.iter().flat_map(|it| it.nodes.values()), &now.link);
        let heard = link.as_ref().map(LinkMoment::heard).unwrap_or_default();
        let others = || nodes.clone().filter(|node| node.name != *now.here());
        let label = |node: &'_ Node| vec![("node", node.name.to_string())];
        let known = !heard.is_empty();
        let up = |node: &'_ Node| i64::from(heard.get(&node.address) == Some(&true));
        let series = others().filter(|_| known).map(|node| (label(node), up(node)));
        out.gauge("link_up", "1: the node is heard", series)?;
        let managers = link.iter().flat_map(|link| &link.status.managers);
        let measured = managers.filter_map(|(at, peer)| Some((at.ip(), peer.rtt?)));
        let measured: BTreeMap<IpAddr, Duration> = measured.collect();
        let rtt = |node: &'_ Node| Some((label(node), measured.get(&node.address)?.as_secs_f64()));
        let help = "To a manager's agent and back, as the kernel measures it";
        out.gauge("link_rtt_seconds", help, others().filter_map(rtt))
    }

    fn kernel(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let stats = &self.now.stats;
        let drops = stats.drops.iter().map(|(reason, count)| (vec![("reason", *reason)], *count));
        out.counter("drops", "Packets dropped, by reason", drops)?;
        let of_map = |map: &&'static str| vec![("map", *map)];
        let entries = stats.maps.iter().map(|(map, (entries, _))| (of_map(map), signed(*entries)));
        out.gauge("map_entries", "Entries of a kernel map", entries)?;
        let room = stats.maps.iter().map(|(map, (_, room))| (of_map(map), signed(*room)));
        out.gauge("map_capacity", "Room in a kernel map", room)?;
        let flows = [("forward", stats.forward_flows), ("reverse", stats.reverse_flows)]
            .map(|(direction, flows)| (vec![("direction", direction)], signed(flows)));
        out.gauge("flows", "Live entries of the flow tables", flows)?;
        let help = "Flow entries deleted because they had timed out";
        out.count("flows_expired", help, stats.expired_flows)
    }

    fn services(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let rows: Vec<_> = self.all_services().flat_map(|service| self.ports(service)).collect();
        for (name, help, value) in COUNTERS {
            let series = rows.iter().map(|row| (row.labels(), value(&row.counters)));
            out.counter(&format!("service_{name}"), help, series)?;
        }
        let vips: Vec<_> = self.all_services().flat_map(|service| self.vips(service)).collect();
        let help = "Connections that a virtual address gave a task, from this node";
        let series = vips.iter().map(|row| (row.labels(), row.connections));
        out.counter("vip_connections", help, series)?;
        let active = self.all_services().map(|service| {
            let active: u64 = self.tasks(service).map(|row| row.active()).sum();
            (vec![("service", service.name.as_str())], signed(active))
        });
        out.gauge("service_connections_active", "Live flows that entered here", active)
    }

    fn backends(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let limit = self.now.config.backend_limit;
        let tasks = self.all_services().map(|service| service.tasks.len()).sum();
        let (rows, omitted): (Vec<_>, usize) = match tasks > limit {
            true => (vec![], tasks),
            false => (self.all_services().flat_map(|service| self.tasks(service)).collect(), 0),
        };
        let help = "Tasks without metrics of their own: more than metrics.backend_limit";
        out.value("backends_omitted", help, omitted as i64)?;
        let up = |row: &TaskRow<'_>| row.is(BackendState::Active);
        let up = rows.iter().map(|row| (row.labels(), up(row)));
        out.gauge("backend_up", "Whether the task takes new flows here", up)?;
        let draining = rows.iter().map(|row| (row.labels(), row.is(BackendState::Draining)));
        out.gauge("backend_draining", "Whether the task keeps old flows only", draining)?;
        let weight = rows.iter().map(|row| (row.labels(), i64::from(row.weight)));
        out.gauge("backend_weight", "The task's share of new flows", weight)?;
        let active = rows.iter().map(|row| (row.labels(), signed(row.active())));
        out.gauge("backend_connections_active", "Live flows that entered here", active)?;
        for (name, help, value) in COUNTERS {
            let count = |row: &TaskRow<'_>| row.stats.map_or(0, |stats| value(&stats.counters));
            let series = rows.iter().map(|row| (row.labels(), count(row)));
            out.counter(&format!("backend_{name}"), help, series)?;
        }
        let here = self.now.here().as_str();
        let own: Vec<_> = rows.iter().filter(|row| row.node == here).collect();
        for (name, help, value) in ANSWERS {
            let count = |row: &TaskRow<'_>| row.stats.map_or(0, |stats| value(&stats.counters));
            let series = own.iter().map(|row| (row.labels(), count(row)));
            out.counter(&format!("backend_{name}"), help, series)?;
        }
        self.health(out, omitted == 0)
    }

    /// Of this node's tasks: whether they are healthy.
    fn health(&self, out: &mut Out<'_, '_>, shown: bool) -> fmt::Result {
        let own = |task: &&Arc<TaskHealth>| shown && task.node == self.now.config.node.name;
        let tasks: Vec<_> = self.now.health.values().filter(own).collect();
        let help = "Whether this node lets its task have new flows, as far as health is concerned";
        let healthy = tasks.iter().map(|task| (health_labels(task), i64::from(task.healthy)));
        out.gauge("task_healthy", help, healthy)?;
        let help = "Times that this node ejected its task for refusing connections";
        let ejections = tasks.iter().map(|task| (health_labels(task), task.ejections));
        out.counter("task_ejections", help, ejections)
    }

    fn all_services(&self) -> impl Iterator<Item = &Service> {
        let snapshots = self.now.view.snapshot.iter();
        snapshots.flat_map(|snapshot| snapshot.services.values()).map(|service| &**service)
    }

    fn ports<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = PortRow<'a>> {
        service.ports.iter().map(|port| {
            let frontend = Frontend::of(port);
            PortRow {
                service: service.name.as_str(),
                protocol: port.protocol.to_string(),
                port: port.published.to_string(),
                counters: self.now.stats.frontends.get(&frontend).copied().unwrap_or_default(),
            }
        })
    }

    fn vips<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = VipRow<'a>> {
        let all = |(network, all): (&'a NetworkId, &'a Vec<IpAddr>)| {
            let key = move |address: &'a IpAddr| (network, address);
            all.iter().map(key).collect::<Vec<_>>()
        };
        service.vips.iter().flat_map(all).filter_map(|(network, address)| {
            let key = VipKey { network: Ident::of_network(network), address: *address };
            Some(VipRow {
                service: service.name.as_str(),
                network: network.as_str(),
                address: address.to_string(),
                connections: *self.now.stats.vips.get(&key)?,
            })
        })
    }

    fn tasks<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = TaskRow<'a>> {
        service.tasks.iter().map(|task| {
            let ident = Ident::of_task(&service.name, &task.name, &task.node);
            TaskRow {
                service: service.name.as_str(),
                task: task.name.as_str(),
                node: task.node.as_str(),
                weight: task.weight,
                stats: self.now.stats.backend(&ident).copied(),
            }
        })
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        self.agent(&mut out)?;
        self.nodes(&mut out)?;
        self.kernel(&mut out)?;
        self.services(&mut out)?;
        self.backends(&mut out)
    }
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl PortRow<'_> {
    fn labels(&self) -> Labels<'_> {
        vec![("service", self.service), ("protocol", &self.protocol), ("port", &self.port)]
    }
}

impl VipRow<'_> {
    fn labels(&self) -> Labels<'_> {
        vec![("service", self.service), ("network", self.network), ("address", &self.address)]
    }
}

impl<'a> TaskRow<'a> {
    fn labels(&self) -> Labels<'a> {
        vec![("service", self.service), ("task", self.task), ("node", self.node)]
    }

    fn active(&self) -> u64 {
        self.stats.map_or(0, |stats| stats.active)
    }

    fn is(&self, state: BackendState) -> i64 {
        i64::from(self.stats.is_some_and(|stats| stats.state == state))
    }
}

fn health_labels(task: &TaskHealth) -> Labels<'_> {
    vec![("service", task.service.as_str()), ("task", task.task.as_str())]
}
