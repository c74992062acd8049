//! From the answers of a manager to what Swarm declares.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use weir_mesh::{
    PublishMode, ServiceName, TaskName,
    cluster::{
        Availability, Declared, DeclaredNetwork, DeclaredNode, DeclaredPort, DeclaredService,
        DeclaredTask, EndpointMode, Labels, NetworkId, NodeId, ServiceId, TaskId, Transport,
        WishedState,
    },
};

use super::{
    engine,
    model::{Network, Node, PortConfig, Service, Task},
};

/// States in which a task has nothing left that could take flows.
const ENDED: &[&str] = &["complete", "shutdown", "failed", "rejected", "remove", "orphaned"];

/// The labels that weir heeds, or says that it does not.
pub(super) fn own_labels(labels: &HashMap<String, String>) -> Labels {
    let own = labels.iter().filter(|(name, _)| name.starts_with("weir."));
    own.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// `10.0.0.3/24`, or without the length.
pub(super) fn address_of(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

/// Nodes by identity.
pub(super) fn nodes(nodes: &[Node]) -> BTreeMap<NodeId, Arc<DeclaredNode>> {
    nodes.iter().map(|node| (NodeId::new(&*node.id), Arc::new(declared_node(node)))).collect()
}

fn declared_node(node: &Node) -> DeclaredNode {
    let manager = node.manager_status.as_ref().and_then(|status| status.addr.parse().ok());
    let seen = node.status.addr.parse().ok().filter(engine::usable);
    // The leader sees itself at an address that means nothing to others.
    let told = manager.map(|manager: std::net::SocketAddr| manager.ip()).filter(engine::usable);
    DeclaredNode {
        hostname: node.description.hostname.clone(),
        address: seen.or(told),
        availability: match node.spec.availability.as_str() {
            "drain" => Availability::Drain,
            "pause" => Availability::Pause,
            _ => Availability::Active,
        },
        ready: node.status.state == "ready",
        manager,
    }
}

/// Services by identity, and whether one of them is being updated.
pub(super) fn services(services: &[Service]) -> (BTreeMap<ServiceId, Arc<DeclaredService>>, bool) {
    let declared = services
        .iter()
        .map(|service| (ServiceId::new(&*service.id), Arc::new(declared_service(service))));
    let updating = |service: &Service| {
        matches!(service.update_status.state.as_str(), "updating" | "rollback_started")
    };
    (declared.collect(), services.iter().any(updating))
}

fn declared_service(service: &Service) -> DeclaredService {
    let spec = &service.spec;
    let virtual_ips = service.endpoint.virtual_ips.iter();
    let vips = virtual_ips
        .filter_map(|vip| Some((NetworkId::new(&*vip.network_id), address_of(&vip.addr)?)));
    // Old services have them beside the template.
    let attachments = spec.task_template.networks.iter().chain(&spec.networks);
    let networks =
        attachments.map(|network| (NetworkId::new(&*network.target), network.aliases.clone()));
    let mut ports: Vec<_> = service.endpoint.ports.iter().filter_map(declared_port).collect();
    ports.sort_unstable();
    DeclaredService {
        name: ServiceName::new(&*spec.name),
        stack: spec.labels.get("com.docker.stack.namespace").cloned(),
        // What is asked for: a service with `dnsrr` is given no endpoint that would say so.
        endpoint_mode: match spec.endpoint_spec.mode.as_str() {
            "dnsrr" => EndpointMode::Dnsrr,
            _ => EndpointMode::Vip,
        },
        ports,
        labels: own_labels(&spec.labels),
        vips: vips.collect(),
        networks: networks.collect(),
    }
}

fn declared_port(port: &PortConfig) -> Option<DeclaredPort> {
    let transport = match port.protocol.as_str() {
        "tcp" | "" => Transport::Tcp,
        "udp" => Transport::Udp,
        "sctp" => Transport::Sctp,
        _ => return None,
    };
    let mode = match port.publish_mode.as_str() {
        "host" => PublishMode::Host,
        _ => PublishMode::Ingress,
    };
    let published = Some(port.published_port).filter(|port| *port != 0);
    Some(DeclaredPort { transport, target: port.target_port, published, mode })
}

/// Tasks by identity; those that have ended and should have are left out.
pub(super) fn tasks(
    tasks: &[Task],
    services: &BTreeMap<ServiceId, Arc<DeclaredService>>,
) -> BTreeMap<TaskId, Arc<DeclaredTask>> {
    let declared = tasks.iter().filter_map(|task| {
        let service = ServiceId::new(&*task.service_id);
        let name = services.get(&service)?.name.clone();
        let ended = ENDED.contains(&task.status.state.as_str());
        let wished = match task.desired_state.as_str() {
            "shutdown" | "remove" | "complete" => WishedState::Shutdown,
            _ => WishedState::Running,
        };
        if ended && wished == WishedState::Shutdown {
            return None;
        }
        let which = if task.slot > 0 { task.slot.to_string() } else { task.node_id.clone() };
        let networks = task.networks_attachments.iter().map(|network| {
            let addresses = network.addresses.iter().filter_map(|text| address_of(text));
            (NetworkId::new(&*network.network.id), addresses.collect())
        });
        let declared = DeclaredTask {
            service,
            node: Some(&task.node_id).filter(|id| !id.is_empty()).map(|id| NodeId::new(&**id)),
            slot: Some(task.slot).filter(|slot| *slot > 0),
            name: TaskName::new(format!("{name}.{which}.{}", task.id)),
            wished,
            running: task.status.state == "running",
            addresses: networks.collect(),
        };
        Some((TaskId::new(&*task.id), Arc::new(declared)))
    });
    declared.collect()
}

/// Networks of the Swarm's scope by identity.
pub(super) fn networks(networks: &[Network]) -> BTreeMap<NetworkId, Arc<DeclaredNetwork>> {
    let swarm = networks.iter().filter(|network| network.scope == "swarm");
    let declared = swarm.map(|network| {
        let subnets = network.ipam.config.iter().map(|config| config.subnet.clone());
        let declared = DeclaredNetwork {
            name: network.name.clone(),
            subnets: subnets.filter(|subnet| !subnet.is_empty()).collect(),
            ingress: network.ingress,
            internal: network.internal,
        };
        (NetworkId::new(&*network.id), Arc::new(declared))
    });
    declared.collect()
}

/// Keeps the shared entries of `old` where nothing changed, so that the next comparison is quick.
pub(super) fn share(old: &Declared, new: &mut Declared) {
    fn keep<K: Ord, V: PartialEq>(old: &BTreeMap<K, Arc<V>>, new: &mut BTreeMap<K, Arc<V>>) {
        for (key, value) in new {
            if let Some(same) = old.get(key).filter(|old| *old == value) {
                *value = same.clone();
            }
        }
    }
    keep(&old.nodes, &mut new.nodes);
    keep(&old.services, &mut new.services);
    keep(&old.tasks, &mut new.tasks);
    keep(&old.networks, &mut new.networks);
}
