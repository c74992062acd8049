//! What a manager reads from Swarm: what should be.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{EndpointMode, Labels, NetworkId, NodeId, ServiceId, TaskId};
use crate::service::{PublishMode, ServiceName, TaskName};

/// Everything that Swarm's managers agree on, as far as the mesh needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declared {
    /// The nodes of the Swarm.
    pub nodes: BTreeMap<NodeId, Arc<DeclaredNode>>,
    /// The services, published or not.
    pub services: BTreeMap<ServiceId, Arc<DeclaredService>>,
    /// The tasks that have not ended long ago.
    pub tasks: BTreeMap<TaskId, Arc<DeclaredTask>>,
    /// The networks of the Swarm's scope.
    pub networks: BTreeMap<NetworkId, Arc<DeclaredNetwork>>,
}

/// A node of the Swarm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredNode {
    /// Its host name; not always unique.
    pub hostname: String,
    /// The address at which the managers see it.
    pub address: Option<IpAddr>,
    /// Whether it may run tasks.
    pub availability: Availability,
    /// Whether the managers hear of it.
    pub ready: bool,
    /// For a manager: where it can be reached by the others.
    pub manager: Option<SocketAddr>,
}

/// Whether a node may run tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// It gets new tasks.
    Active,
    /// It keeps its tasks and gets no new ones.
    Pause,
    /// Its tasks are moved away.
    Drain,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredService {
    /// Unique in the Swarm at any moment.
    pub name: ServiceName,
    /// The stack it belongs to (`com.docker.stack.namespace`).
    pub stack: Option<String>,
    /// How other containers find it.
    pub endpoint_mode: EndpointMode,
    /// Published ports.
    pub ports: Vec<DeclaredPort>,
    /// Its own labels (`deploy.labels`).
    pub labels: Labels,
    /// Virtual addresses by network, the ingress network's included.
    pub vips: BTreeMap<NetworkId, IpAddr>,
    /// The networks its tasks are attached to, with its aliases there.
    pub networks: BTreeMap<NetworkId, Vec<String>>,
}

/// A published port, as it is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeclaredPort {
    /// The protocol it is published for.
    pub transport: Transport,
    /// Where the tasks listen.
    pub target: u16,
    /// Where clients connect; `None`: Docker draws a number for each task (host mode).
    pub published: Option<u16>,
    /// Through the mesh or past it.
    pub mode: PublishMode,
}

/// The protocols that Swarm publishes ports for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Stream Control Transmission Protocol; the mesh does not carry it.
    Sctp,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredTask {
    /// The service it is an instance of.
    pub service: ServiceId,
    /// Where it is to run, once that is decided.
    pub node: Option<NodeId>,
    /// Which replica it is; `None` for global services.
    pub slot: Option<u64>,
    /// The name of its container: `web.1.<task>`, or `web.<node>.<task>` of a global service.
    pub name: TaskName,
    /// Whether Swarm wants it to run.
    pub wished: WishedState,
    /// Whether Swarm has heard that it runs.
    pub running: bool,
    /// Its addresses by network.
    pub addresses: BTreeMap<NetworkId, Vec<IpAddr>>,
}

/// What Swarm wants of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WishedState {
    /// To run, now or soon.
    Running,
    /// To end.
    Shutdown,
}

/// A network of the Swarm's scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredNetwork {
    /// Unique among the Swarm's networks.
    pub name: String,
    /// Its subnets, as `10.0.1.0/24`.
    pub subnets: Vec<String>,
    /// Whether it is the one that carries Docker's own mesh.
    pub ingress: bool,
    /// Whether it is closed towards the outside (`--internal`).
    pub internal: bool,
}
