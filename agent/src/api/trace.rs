//! `/api/v1/trace`: what this node would do with a flow, and why, without sending anything.

mod words;

use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_mesh::{
    Balance, MeshSnapshot, NodeName, Protocol, Service, ServiceName, TaskName,
    install::{BackendIndex, BackendRecord, Via},
    proxied::HeaderVersion,
    trace::{Entry, Fate, Seen, Served},
};

use super::names::Names;
use crate::{
    health::Condition,
    observe::Observation,
    reconciler::{Asked, Traced},
};

/// `/api/v1/trace`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trace {
    /// The node that answers.
    pub node: NodeName,
    /// The protocol of the flow.
    pub protocol: Protocol,
    /// Who begins it.
    pub client: IpAddr,
    /// From which port, if that was said.
    pub client_port: Option<u16>,
    /// Where to.
    pub to: SocketAddr,
    /// Where it enters this node.
    pub enters: Enters,
    /// What becomes of it.
    pub verdict: TraceVerdict,
    /// Why, in a sentence.
    pub reason: String,
    /// What to do about it, where there is something to be done.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
    /// The service that publishes the port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<ServiceName>,
    /// How the service chooses a task.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub balance: Option<Balance>,
    /// Why the client is or is not admitted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub admission: Option<String>,
    /// Who may get it.
    pub tasks: Vec<TraceTask>,
}

/// Where a flow enters a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Enters {
    /// On an uplink.
    Uplink,
    /// From a container of the node.
    Container,
    /// From a process of the node, as it connects.
    Process,
    /// At a socket of the userspace proxy.
    Proxy,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TraceVerdict {
    /// A task gets it.
    Served,
    /// The mesh leaves it alone: the host's stack goes on with it.
    Passes,
    /// The service does not admit the client.
    Denied,
    /// The client is told that there is nobody.
    NoBackend,
    /// It is lost on the way to its task.
    Lost,
}

/// A task that may get the flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TraceTask {
    /// Its name; an identity where the snapshot does not know it any more.
    pub task: TaskName,
    /// Its node.
    pub node: NodeName,
    /// Where it listens, on its node.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<SocketAddr>,
    /// The part of such flows that it gets, in percent.
    pub percent: f64,
    /// By which way it is reached.
    pub path: TracePath,
    /// The same with what it goes through.
    pub by: String,
    /// Whether the task sees the client's address.
    pub client_kept: bool,
    /// Whom it sees.
    pub sees: String,
}

/// The way to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TracePath {
    /// It is on this node.
    Local,
    /// Through the tunnel to its node.
    Tunnel,
    /// By sockets of the userspace proxy, here or on both nodes.
    Proxy,
}

impl TraceVerdict {
    /// The word that is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Passes => "passes",
            Self::Denied => "denied",
            Self::NoBackend => "no backend",
            Self::Lost => "lost",
        }
    }
}

impl Trace {
    /// Whether a task gets the flow.
    pub fn condition(&self) -> Condition {
        match self.verdict {
            TraceVerdict::Served => Condition::Ok,
            _ => Condition::Degraded,
        }
    }
}

/// The answer in words.
pub fn trace(now: &Observation, asked: &Asked, traced: &Traced) -> Trace {
    let empty = MeshSnapshot::default();
    let snapshot = now.view.snapshot.as_deref().unwrap_or(&empty);
    let names = Names::of(snapshot);
    let ident = traced.answer.record.map(|record| record.ident);
    let name = ident.and_then(|ident| names.services.get(&ident)).cloned();
    let service = name.as_ref().and_then(|name| snapshot.services.get(name));
    let telling =
        Telling { now, asked, traced, snapshot, names: &names, service: service.map(|it| &**it) };
    let (verdict, reason, hint) = telling.verdict();
    Trace {
        node: now.here().clone(),
        protocol: asked.protocol,
        client: asked.client,
        client_port: asked.client_port,
        to: asked.to,
        enters: match traced.entry {
            Some(Entry::Wire) => Enters::Uplink,
            Some(Entry::Container) => Enters::Container,
            Some(Entry::Process) => Enters::Process,
            None => Enters::Proxy,
        },
        verdict,
        reason,
        hint,
        service: name,
        balance: traced.answer.record.map(|record| record.balance),
        admission: telling.admission(),
        tasks: telling.tasks(),
    }
}

/// What is told of.
struct Telling<'a> {
    now: &'a Observation,
    asked: &'a Asked,
    traced: &'a Traced,
    snapshot: &'a MeshSnapshot,
    names: &'a Names,
    service: Option<&'a Service>,
}

impl Telling<'_> {
    fn tasks(&self) -> Vec<TraceTask> {
        let Fate::Served(served) = &self.traced.answer.fate else { return Vec::new() };
        let all = served.tasks.values().sum::<u32>() + served.nobody;
        let task = |(index, cells): (&BackendIndex, &u32)| {
            let backend = self.traced.backends.get(index)?;
            let percent = f64::from(*cells) * 100.0 / f64::from(all.max(1));
            Some(self.task(served, backend, percent))
        };
        let mut tasks: Vec<TraceTask> = served.tasks.iter().filter_map(task).collect();
        tasks.sort_by(|one, other| (&one.node, &one.task).cmp(&(&other.node, &other.task)));
        tasks
    }

    fn task(&self, served: &Served, backend: &BackendRecord, percent: f64) -> TraceTask {
        let named = self.names.tasks.get(&backend.ident);
        let here = backend.via.is_local();
        let node = match (named, backend.via) {
            (Some(named), _) => named.node.clone(),
            (None, Via::Tunnel { node }) => {
                let ident = self.traced.nodes.get(&node).map(|node| node.ident);
                let name = ident.and_then(|ident| self.names.nodes.get(&ident));
                name.cloned().unwrap_or_else(|| NodeName::new("unknown"))
            }
            (None, _) => self.now.here().clone(),
        };
        let (path, by) = self.path(backend, &node);
        let (client_kept, sees) = match path {
            TracePath::Proxy => self.seen_by_proxied(here, &node),
            _ => self.seen(if here { served.seen_here } else { served.seen_there }),
        };
        TraceTask {
            task: named
                .map_or_else(|| TaskName::new(backend.ident.to_string()), |it| it.task.clone()),
            address: self.address(backend),
            node,
            percent,
            path,
            by,
            client_kept,
            sees,
        }
    }

    fn address(&self, backend: &BackendRecord) -> Option<SocketAddr> {
        let port = self.traced.answer.record?.target.get();
        let (v4, v6) = (backend.ipv4.map(IpAddr::V4), backend.ipv6.map(IpAddr::V6));
        let address = if self.asked.to.is_ipv4() { v4.or(v6) } else { v6.or(v4) };
        address.map(|address| SocketAddr::new(address, port))
    }

    fn path(&self, backend: &BackendRecord, node: &NodeName) -> (TracePath, String) {
        match (self.traced.entry, backend.via) {
            (None, Via::Tunnel { .. }) => {
                (TracePath::Proxy, format!("proxy, relayed by that of {node}"))
            }
            (None, _) => (TracePath::Proxy, "proxy".to_owned()),
            (_, Via::Tunnel { node: index }) => {
                let address = self.traced.nodes.get(&index).map(|node| node.address);
                let at = address.map(|address| format!(" ({address})")).unwrap_or_default();
                (TracePath::Tunnel, format!("tunnel to {node}{at}"))
            }
            (Some(Entry::Process), _) => {
                (TracePath::Local, "local, as the process connects".to_owned())
            }
            (_, Via::Peer { ifindex, .. }) => {
                (TracePath::Local, format!("local, into the namespace behind interface {ifindex}"))
            }
            (_, Via::Neighbour { ifindex }) => {
                (TracePath::Local, format!("local, out of interface {ifindex}"))
            }
            (_, Via::Unreachable) => (TracePath::Local, "nothing leads to it".to_owned()),
        }
    }

    fn seen(&self, seen: Seen) -> (bool, String) {
        match seen {
            Seen::Client => (true, self.asked.client.to_string()),
            Seen::Node(address) => (false, format!("{address}, of this node")),
            Seen::NodeTowardTask => (false, "this node's address towards it".to_owned()),
        }
    }

    fn seen_by_proxied(&self, here: bool, node: &NodeName) -> (bool, String) {
        let who = if here { self.now.here() } else { node };
        let header = self.service.and_then(|service| service.proxied.header);
        match header {
            Some(version) => {
                let version = match version {
                    HeaderVersion::V1 => "v1",
                    HeaderVersion::V2 => "v2",
                };
                let client = self.asked.client;
                (true, format!("{client}, by the PROXY header {version}; node {who} as the peer"))
            }
            None => (false, format!("node {who}")),
        }
    }
}
