//! What a node says: first-hand about its own tasks, and what it has heard of others'.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Labels, NetworkId, ServiceId, TaskId};
use crate::{
    health::Verdict,
    service::{Protocol, PublishedPort, ServiceName, TargetPort, TaskName},
};

/// What one node says about itself and its own tasks. Always whole: what is not in it is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The node itself.
    pub node: ReportedNode,
    /// Its tasks.
    pub tasks: BTreeMap<TaskId, Arc<ReportedTask>>,
}

/// What a node says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedNode {
    /// Its host name; not always unique.
    pub hostname: String,
    /// Its underlay address: where tunnels to it end.
    pub address: IpAddr,
}

/// What a node says about one of its tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedTask {
    /// The service it is an instance of.
    pub service: ServiceId,
    /// That service's name.
    pub service_name: ServiceName,
    /// The name of its container.
    pub name: TaskName,
    /// The IPv4 address at which the node reaches it.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address at which the node reaches it.
    pub ipv6: Option<Ipv6Addr>,
    /// Where it stands in its life.
    pub life: Life,
    /// The labels of its container.
    pub labels: Labels,
    /// Its addresses by network.
    pub networks: BTreeMap<NetworkId, Vec<IpAddr>>,
    /// What it is called on its networks besides its name.
    #[serde(default)]
    pub aliases: BTreeMap<NetworkId, Vec<String>>,
    /// Its ports in host mode, with the numbers that Docker bound.
    pub ports: Vec<BoundPort>,
    /// What its node has found out about it, where that is bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

/// Where a task stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// It has started and is not healthy yet.
    Starting,
    /// It takes flows.
    Active,
    /// It is being stopped, or unhealthy: it keeps its flows and takes no new ones.
    Draining,
    /// It has ended.
    Down,
}

/// A port of a container that Docker bound on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BoundPort {
    /// The protocol it is bound for.
    pub protocol: Protocol,
    /// Where the task listens.
    pub target: TargetPort,
    /// The number on the node.
    pub published: PublishedPort,
}

/// What Docker's own gossip says on a worker: all that is known of other nodes there while no
/// manager's agent can be reached. It has no protocols, no health and no wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hearsay {
    /// Services that publish ports in ingress mode and have running tasks.
    pub services: BTreeMap<ServiceName, HeardService>,
}

/// A service, from gossip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardService {
    /// Its virtual address on the ingress network.
    pub vip: Option<IpAddr>,
    /// Its ports, without protocol; a number that is published for two protocols is there twice.
    pub ports: Vec<HeardPort>,
    /// Its tasks.
    pub tasks: BTreeMap<TaskName, HeardTask>,
}

/// A published port, from gossip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeardPort {
    /// Where clients connect.
    pub published: PublishedPort,
    /// Where the tasks listen.
    pub target: TargetPort,
}

/// A task, from gossip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardTask {
    /// Its address on the ingress network.
    pub address: Option<IpAddr>,
    /// The address of its node.
    pub node: Option<IpAddr>,
}
