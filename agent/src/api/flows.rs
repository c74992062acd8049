//! `/api/v1/flows`: single flows of this node, some of them.
//!
//! The kernel may hold a million. They are read in batches and never kept but for those that are
//! wanted, at most [`MOST`]; the pass is done off the reconciler's thread, one at a time.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_loader::{Flow, FlowName, Stage};
use weir_mesh::{
    Balance, Ident, MeshSnapshot, NodeName, Protocol, ServiceName, Subnet, TaskName,
    install::{BackendIndex, ServiceId},
};

use super::names::Names;
use crate::{document::missing, reconciler::FlowSource};

/// More than these are never listed, nor ended at once.
pub const MOST: usize = 10_000;

/// `/api/v1/flows`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flows {
    /// Those that are wanted, in no order.
    pub flows: Vec<FlowView>,
    /// Whether there are more than were asked for.
    pub more: bool,
    /// How many entries of the kernel's tables were read.
    pub read: u64,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowView {
    /// Its protocol.
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// What the client talks to.
    pub asked: SocketAddr,
    /// Its service; nothing if that is gone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<ServiceName>,
    /// Its task; nothing if that is gone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub task: Option<TaskName>,
    /// The task's node.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<NodeName>,
    /// How far it has come: `syn`, `established`, `closing`, `closed`, `reset`, `one-way`,
    /// `both-ways`.
    pub state: String,
    /// How long it has been silent, in milliseconds; noted once a second.
    pub silent_ms: u64,
    /// The node that the client entered by; nothing: this one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entered: Option<NodeName>,
    /// Whether the task sees the client's address.
    pub client_kept: bool,
}

/// The answer to `POST /api/v1/flows/kill`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Killed {
    /// Flows that were ended.
    pub killed: u64,
    /// Flows that entered by other nodes, which alone can end them.
    pub elsewhere: u64,
    /// Whether there are more that could be ended.
    pub more: bool,
    /// Services among them that balance by a hash: a TCP client that goes on is given the same task.
    pub hashed: BTreeSet<ServiceName>,
}

/// Which flows are wanted; everything that is said must be so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Of this service.
    pub service: Option<String>,
    /// Of clients in this range, or of this client alone.
    pub client: Option<Whose>,
    /// With this task.
    pub backend: Option<String>,
    /// In this state.
    pub state: Option<Stage>,
}

/// Which clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// All in a range.
    Range(Subnet),
    /// One port of one.
    One(SocketAddr),
}

impl FlowFilter {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::str::FromStr for Whose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(client) = text.parse() {
            return Ok(Self::One(client));
        }
        text.parse().map(Self::Range).map_err(|error: weir_mesh::access::SubnetError| {
            format!("client \"{text}\": {error}; write 10.0.0.7, 10.0.0.0/8 or 10.0.0.7:40000")
        })
    }
}

/// What an operator calls a state.
///
/// # Errors
/// Names those that there are.
pub fn stage(text: &str) -> Result<Stage, String> {
    let found = Stage::ALL.into_iter().find(|stage| stage.as_str() == text);
    found.ok_or_else(|| {
        let known: Vec<&str> = Stage::ALL.iter().map(|stage| stage.as_str()).collect();
        format!("no state \"{text}\"; write one of {}", known.join(", "))
    })
}

/// The flows of a node, and the names in them.
pub struct FlowBook {
    source: FlowSource,
    names: Names,
    hashed: BTreeSet<ServiceName>,
}

/// What a filter comes to in the kernel's terms.
struct Wanted {
    services: Option<BTreeSet<ServiceId>>,
    backends: Option<BTreeSet<BackendIndex>>,
    client: Option<Whose>,
    state: Option<Stage>,
}

impl FlowBook {
    /// The flows of a node that has this snapshot.
    pub fn new(source: FlowSource, snapshot: &MeshSnapshot) -> Self {
        let services = snapshot.services.values();
        let by_hash = |balance: Balance| balance.is_hashed();
        let hashed = services.filter(|it| by_hash(it.balance)).map(|it| it.name.clone());
        Self { source, names: Names::of(snapshot), hashed: hashed.collect() }
    }

    /// Those that are wanted, at most so many. To be called where waiting is allowed.
    ///
    /// # Errors
    /// When the filter names what there is not, or the tables cannot be read.
    pub fn list(&self, filter: &FlowFilter, limit: usize) -> Result<Flows, String> {
        let (found, more, read) = self.find(filter, limit, |_| true)?;
        let flows = found.iter().map(|flow| self.view(flow)).collect();
        Ok(Flows { flows, more, read })
    }

    /// Ends those that are wanted, at most so many. To be called where waiting is allowed.
    ///
    /// # Errors
    /// As for [`FlowBook::list`].
    pub fn kill(&self, filter: &FlowFilter, limit: usize) -> Result<Killed, String> {
        let mut elsewhere = 0;
        let (found, more, _) = self.find(filter, limit, |flow| {
            elsewhere += u64::from(flow.entered.is_some());
            flow.entered.is_none()
        })?;
        let names: BTreeSet<FlowName> = found.iter().map(|flow| flow.name).collect();
        let services = found.iter().filter_map(|flow| self.service(flow));
        let hashed = services.filter(|name| self.hashed.contains(name)).collect();
        let killed = self.source.tables.forget(&names).map_err(|error| error.to_string())?;
        Ok(Killed { killed, elsewhere, more, hashed })
    }

    fn find(
        &self,
        filter: &FlowFilter,
        limit: usize,
        mut take: impl FnMut(&Flow) -> bool,
    ) -> Result<(Vec<Flow>, bool, u64), String> {
        let wanted = self.wanted(filter)?;
        let (mut found, mut more) = (Vec::new(), false);
        let read = self.source.tables.visit(|flow| {
            if !wanted.has(flow) || !take(flow) {
                return ControlFlow::Continue(());
            }
            if found.len() == limit {
                more = true;
                return ControlFlow::Break(());
            }
            found.push(*flow);
            ControlFlow::Continue(())
        });
        Ok((found, more, read.map_err(|error| error.to_string())?))
    }

    fn wanted(&self, filter: &FlowFilter) -> Result<Wanted, String> {
        let service = |name: &String| {
            let known = self.names.services.values();
            let ident = Ident::of_service(&ServiceName::new(name.as_str()));
            if !self.names.services.contains_key(&ident) {
                return Err(missing("service", name, known.map(ServiceName::as_str)));
            }
            let ids = self.source.services.iter().filter(|(_, of)| **of == ident);
            Ok(ids.map(|(id, _)| *id).collect())
        };
        let backend = |name: &String| {
            let tasks = self.names.tasks.iter();
            let idents: BTreeSet<Ident> = tasks
                .filter(|(_, named)| named.task.as_str() == name)
                .map(|(ident, _)| *ident)
                .collect();
            if idents.is_empty() {
                let known = self.names.tasks.values().map(|named| named.task.as_str());
                return Err(missing("task", name, known));
            }
            let all = self.source.backends.iter();
            Ok(all.filter(|(_, (ident, _))| idents.contains(ident)).map(|(at, _)| *at).collect())
        };
        Ok(Wanted {
            services: filter.service.as_ref().map(service).transpose()?,
            backends: filter.backend.as_ref().map(backend).transpose()?,
            client: filter.client,
            state: filter.state,
        })
    }

    fn view(&self, flow: &Flow) -> FlowView {
        let task = self.task(flow);
        let named = task.and_then(|ident| self.names.tasks.get(&ident));
        FlowView {
            protocol: flow.name.protocol,
            client: flow.name.client,
            asked: flow.name.asked,
            service: self.service(flow),
            task: named.map(|named| named.task.clone()),
            node: named.map(|named| named.node.clone()),
            state: flow.stage.as_str().to_owned(),
            silent_ms: flow.silent.as_millis() as u64,
            entered: flow.entered.map(|node| {
                let ident = self.source.nodes.get(&node);
                let name = ident.and_then(|ident| self.names.nodes.get(ident)).cloned();
                name.unwrap_or_else(|| NodeName::new("unknown"))
            }),
            client_kept: !flow.translated,
        }
    }

    fn service(&self, flow: &Flow) -> Option<ServiceName> {
        let ident = self.source.services.get(&flow.service)?;
        self.names.services.get(ident).cloned()
    }

    /// The task, unless its position is another's by now.
    fn task(&self, flow: &Flow) -> Option<Ident> {
        let (ident, generation) = self.source.backends.get(&flow.backend)?;
        flow.generation.is_none_or(|of| of == *generation).then_some(*ident)
    }
}

impl Wanted {
    fn has(&self, flow: &Flow) -> bool {
        let client = flow.name.client;
        self.services.as_ref().is_none_or(|ids| ids.contains(&flow.service))
            && self.backends.as_ref().is_none_or(|all| all.contains(&flow.backend))
            && self.state.is_none_or(|state| state == flow.stage)
            && self.client.is_none_or(|whose| match whose {
                Whose::One(one) => one == client,
                Whose::Range(range) => range.contains(unmapped(client.ip())),
            })
    }
}

fn unmapped(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
