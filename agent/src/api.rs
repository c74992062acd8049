//! The read-only JSON of `/api/v1/…`: what the command line and a dashboard show.

mod drops;
mod events;
mod flows;
mod names;
mod rates;
mod tasks;
mod trace;

pub use drops::{Drop, DroppedPackets, DroppedView, Drops, dropped_packets, drops};
pub use events::{Event, EventKind, Look, Looks};
pub use flows::{FlowBook, FlowFilter, FlowView, Flows, Killed, MOST as MOST_FLOWS, Whose, stage};
pub use rates::{PortRate, Rate, Rates, ServiceRates, TaskRate, rates};
pub use tasks::{Standing, TaskRow, Tasks, tasks};
pub use trace::{Enters, Trace, TracePath, TraceTask, TraceVerdict, trace};

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_loader::{Answers, Counters};
use weir_mesh::{
    Access, Balance, EndpointMode, Ident, Locality, NetworkId, NodeName, Protocol, PublishMode,
    PublishedPort, Service, ServiceName, TargetPort, Task, TaskName, TaskState, Timeouts,
    health::Verdict,
    install::{BackendState, Frontend, Via},
    vip::VipKey,
};

use crate::{
    health::{self, Condition, Subsystem},
    observe::{LinkMoment, Observation},
    plane::{Chosen, Kind},
};

/// `/api/v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// This node.
    pub node: NodeName,
    /// Its underlay address.
    pub address: IpAddr,
    /// Process number of the agent.
    pub pid: u32,
    /// Since when the agent runs.
    pub uptime_seconds: u64,
    /// The snapshot in the kernel.
    pub generation: Option<u64>,
    /// The newest snapshot.
    pub wanted: Option<u64>,
    /// Whether that is from disk.
    pub stale: bool,
    /// The worst of the subsystems.
    pub condition: Condition,
    /// The subsystems.
    pub subsystems: Vec<Subsystem>,
    /// Everything that is wrong with the desired state as read from its source.
    pub source_faults: Vec<String>,
    /// Everything that keeps the mesh from being served as it should be.
    pub problems: Vec<String>,
    /// The data plane, and why it is that one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dataplane: Option<Chosen>,
    /// Hook to how it is attached.
    pub hooks: BTreeMap<String, String>,
    /// Operations and time of the last pass that changed something.
    pub last_pass: LastPass,
    /// How often the kernel's maps differed from what was written.
    pub drift: u64,
}

/// The last pass of the reconciler that changed something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LastPass {
    /// Changes.
    pub operations: usize,
    /// How long they took.
    pub milliseconds: f64,
}

/// `/api/v1/services`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Services {
    /// The snapshot that is described; `None` while there is none.
    pub generation: Option<u64>,
    /// When the counters were read: milliseconds since the agent began.
    #[serde(default)]
    pub counters_at_ms: u64,
    /// The services, by name.
    pub services: Vec<ServiceView>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// How new flows choose a task.
    pub balance: Balance,
    /// Whose tasks they choose among.
    #[serde(default)]
    pub locality: Locality,
    /// Who may be a client; nothing for everybody.
    #[serde(default, skip_serializing_if = "Access::is_open")]
    pub access: Access,
    /// Its published ports.
    pub ports: Vec<PortView>,
    /// Its tasks.
    pub tasks: Vec<TaskView>,
    /// What its name leads to.
    #[serde(default, skip_serializing_if = "EndpointMode::is_default")]
    pub endpoint_mode: EndpointMode,
    /// Virtual addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<VipView>,
    /// Timeouts of its flows.
    pub timeouts: Timeouts,
}

/// Whether this node serves a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// It does.
    Served,
    /// A local process has it.
    Withheld,
    /// It is in host mode, and no task of the service runs here.
    Elsewhere,
    /// It will, or a problem keeps it from doing so.
    Pending,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortView {
    /// The protocol.
    pub protocol: Protocol,
    /// Where clients connect.
    pub published: PublishedPort,
    /// Where the tasks listen.
    pub target: TargetPort,
    /// Through the mesh or past it.
    pub mode: PublishMode,
    /// Whether this node serves it.
    pub state: PortState,
    /// Who has it, if it is withheld.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub holder: Option<String>,
    /// What this node has counted there.
    pub counters: CountersView,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskView {
    /// Its name.
    pub name: TaskName,
    /// The node that runs it.
    pub node: NodeName,
    /// Its addresses on its node.
    pub addresses: Vec<IpAddr>,
    /// Its share of new flows.
    pub weight: u16,
    /// Whether it should take flows.
    pub state: TaskState,
    /// Why it takes no new flows although the source wants it to, or why it does although it should
    /// not; only of this node's tasks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub health: Option<String>,
    /// Whether the kernel lets it: `active`, `draining`, `gone`, or `absent`.
    pub kernel: String,
    /// How this node reaches it: `peer`, `neighbour`, `tunnel`, `unreachable`, or nothing.
    pub via: Option<String>,
    /// Live flows that entered the mesh on this node.
    pub active: u64,
    /// What this node has counted for it.
    pub counters: CountersView,
}

/// Packets and bytes, and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(
    missing_docs,
    reason = "each field is that of weir_loader::Counters, or of the Answers in it"
)]
pub struct CountersView {
    pub connections: u64,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    #[serde(default)]
    pub accepted: u64,
    #[serde(default)]
    pub refused: u64,
}

/// A virtual address of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VipView {
    /// The network it is on.
    pub network: NetworkId,
    /// The address.
    pub address: IpAddr,
    /// Connections that were given a task by it on this node; `None` where nothing of this node is
    /// attached to the network.
    pub connections: Option<u64>,
    /// Ports at which packets are served that others route to this node for it: `80/tcp`. Empty unless
    /// its network is `routed`.
    #[serde(default)]
    pub routed: Vec<String>,
}

/// `/api/v1/nodes`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Nodes {
    /// The snapshot that is described; `None` while there is none.
    pub generation: Option<u64>,
    /// The nodes, by name.
    pub nodes: Vec<NodeView>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Its underlay address.
    pub address: IpAddr,
    /// Whether it is this one.
    pub here: bool,
    /// Tasks that it runs.
    pub tasks: usize,
    /// Whether it was heard over the cluster link, and is silent now. Who was never heard is not, nor is
    /// anybody while no manager is heard.
    #[serde(default)]
    pub silent: bool,
}

/// `/api/v1/state`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StateDump {
    /// The kernel's maps, one line an entry.
    pub dump: String,
}

/// The answer to `POST /api/v1/upgrade`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Upgrade {
    /// Process number of the agent that is to go on.
    pub pid: u32,
}

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub error: String,
}

/// The status of the agent.
pub fn status(now: &Observation) -> Status {
    let subsystems = health::subsystems(now);
    let faults = now.source.trouble.iter().flat_map(|trouble| trouble.faults.iter());
    let faults = faults.chain(now.source.notes.iter());
    let hooks = now.report.attachments.hooks.iter();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: now.here().clone(),
        address: now.config.node.address,
        pid: std::process::id(),
        uptime_seconds: now.started.elapsed().as_secs(),
        generation: now.report.generation.map(|generation| generation.0),
        wanted: now.report.wanted.map(|generation| generation.0),
        stale: now.report.stale,
        condition: health::worst(&subsystems),
        subsystems,
        source_faults: faults.map(ToString::to_string).collect(),
        problems: now.report.problems.clone(),
        dataplane: now.report.plane.clone(),
        hooks: hooks.map(|(hook, how)| (hook.clone(), (*how).to_owned())).collect(),
        last_pass: LastPass {
            operations: now.report.operations,
            milliseconds: now.report.duration.as_secs_f64() * 1e3,
        },
        drift: now.report.drift,
    }
}

/// The services, or the one of that name, with what the kernel counted.
pub fn services(now: &Observation, only: Option<&str>) -> Services {
    let read = now.stats.read.saturating_duration_since(now.started);
    let counters_at_ms = read.as_millis() as u64;
    let Some(snapshot) = &now.view.snapshot else {
        return Services { generation: None, counters_at_ms, services: Vec::new() };
    };
    let wanted = |service: &&Arc<Service>| only.is_none_or(|name| service.name.as_str() == name);
    let services = snapshot.services.values().filter(wanted).map(|service| ServiceView {
        name: service.name.clone(),
        balance: service.balance,
        locality: service.locality,
        access: service.access.clone(),
        ports: ports(service, now),
        tasks: service.tasks.iter().map(|one| task(service, one, now)).collect(),
        endpoint_mode: service.endpoint_mode,
        vips: vips(service, now),
        timeouts: service.timeouts,
    });
    let generation = Some(snapshot.generation.0);
    Services { generation, counters_at_ms, services: services.collect() }
}

fn ports(service: &Service, now: &Observation) -> Vec<PortView> {
    let here = service.tasks.iter().any(|task| task.node == *now.here());
    let view = |port: &weir_mesh::Port| {
        let frontend = Frontend::of(port);
        let holder = now.report.withheld.get(&frontend);
        let unserved = now.report.unserved.get(&frontend);
        let state = if unserved.is_some() {
            PortState::Pending
        } else if now.report.ports.contains(&frontend) {
            PortState::Served
        } else if holder.is_some() {
            PortState::Withheld
        } else if port.mode == PublishMode::Host && !here {
            PortState::Elsewhere
        } else {
            PortState::Pending
        };
        PortView {
            protocol: port.protocol,
            published: port.published,
            target: port.target,
            mode: port.mode,
            state,
            holder: holder.map(ToString::to_string).or_else(|| unserved.cloned()),
            counters: now.stats.frontends.get(&frontend).copied().unwrap_or_default().into(),
        }
    };
    service.ports.iter().map(view).collect()
}

fn vips(service: &Service, now: &Observation) -> Vec<VipView> {
    let each =
        service.vips.iter().flat_map(|(network, all)| all.iter().map(move |at| (network, at)));
    let by_kernel = now.report.plane.as_ref().is_some_and(|plane| plane.kind == Kind::Ebpf);
    let networks = now.view.snapshot.as_ref().map(|snapshot| &snapshot.networks);
    let is_routed = |network: &NetworkId| {
        let known = networks.and_then(|networks| networks.get(network));
        by_kernel && known.is_some_and(|network| network.routed)
    };
    let ingress = service.ports.iter().filter(|port| port.mode == PublishMode::Ingress);
    let ports: BTreeSet<String> =
        ingress.map(|port| format!("{}/{}", port.target, port.protocol)).collect();
    let ports = Vec::from_iter(ports);
    let view = |(network, address): (&NetworkId, &IpAddr)| {
        let key = VipKey { network: Ident::of_network(network), address: *address };
        let connections = now.stats.vips.get(&key).copied();
        let routed = if is_routed(network) { ports.clone() } else { Vec::new() };
        VipView { network: network.clone(), address: *address, connections, routed }
    };
    each.map(view).collect()
}

fn task(service: &Service, task: &Task, now: &Observation) -> TaskView {
    let ident = Ident::of_task(&service.name, &task.name, &task.node);
    let stats = now.stats.backend(&ident);
    TaskView {
        name: task.name.clone(),
        node: task.node.clone(),
        addresses: task.addresses().collect(),
        weight: task.weight,
        state: task.state,
        health: match now.health.get(&ident) {
            Some(health) => health.reason.clone(),
            None => task.verdict.as_ref().map(|verdict| told(verdict, service, task)),
        },
        kernel: stats.map_or("absent", |stats| kernel_state(stats.state)).to_owned(),
        via: stats.map(|stats| via(stats.via).to_owned()),
        active: stats.map_or(0, |stats| stats.active),
        counters: stats.map(|stats| stats.counters).unwrap_or_default().into(),
    }
}

/// What there is to be said of another node's task.
fn told(verdict: &Verdict, service: &Service, task: &Task) -> String {
    match &service.health.ejection {
        Some(ejection) if task.state == TaskState::Active => verdict.spared(ejection.panic),
        _ => verdict.to_string(),
    }
}

fn kernel_state(state: BackendState) -> &'static str {
    match state {
        BackendState::Active => "active",
        BackendState::Draining => "draining",
        BackendState::Gone => "gone",
    }
}

fn via(via: Via) -> &'static str {
    match via {
        Via::Tunnel { .. } => "tunnel",
        Via::Peer { .. } => "peer",
        Via::Neighbour { .. } => "neighbour",
        Via::Unreachable => "unreachable",
    }
}

/// The nodes of the mesh.
pub fn nodes(now: &Observation) -> Nodes {
    let Some(snapshot) = &now.view.snapshot else {
        return Nodes { generation: None, nodes: Vec::new() };
    };
    let mut tasks = BTreeMap::<&NodeName, usize>::new();
    for task in snapshot.services.values().flat_map(|service| &service.tasks) {
        *tasks.entry(&task.node).or_default() += 1;
    }
    let silent = now.link.as_ref().map(LinkMoment::silent).unwrap_or_default();
    let nodes = snapshot.nodes.values().map(|node| NodeView {
        name: node.name.clone(),
        address: node.address,
        here: node.name == *now.here(),
        tasks: tasks.get(&node.name).copied().unwrap_or_default(),
        silent: silent.contains(&node.address) && node.name != *now.here(),
    });
    Nodes { generation: Some(snapshot.generation.0), nodes: nodes.collect() }
}

impl From<Counters> for CountersView {
    fn from(counters: Counters) -> Self {
        let Counters { connections, rx_packets, rx_bytes, tx_packets, tx_bytes, answers } =
            counters;
        let Answers { accepted, refused } = answers;
        Self { connections, rx_packets, rx_bytes, tx_packets, tx_bytes, accepted, refused }
    }
}
