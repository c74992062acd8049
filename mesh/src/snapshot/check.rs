//! What every source must get right before its word becomes a snapshot.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use super::{Generation, MeshSnapshot};
use crate::{
    ports::{PortConflict, port_conflicts},
    service::{Node, NodeName, Port, Service, ServiceName, TaskName},
};

/// Something that cannot stand in a snapshot. The positions are those in the lists that were
/// given, so that a source can point at the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Two nodes with one name.
    #[error("node {node} is there twice")]
    DuplicateNode {
        /// Position of the second in the list of nodes.
        at: usize,
        /// Its name.
        node: NodeName,
    },
    /// Two nodes with one underlay address.
    #[error("nodes {first} and {second} have the same address {address}")]
    DuplicateAddress {
        /// Position of the second in the list of nodes.
        at: usize,
        /// The one that came first.
        first: NodeName,
        /// The other.
        second: NodeName,
        /// Their address.
        address: std::net::IpAddr,
    },
    /// Two services with one name.
    #[error("service {service} is there twice")]
    DuplicateService {
        /// Position of the second in the list of services.
        at: usize,
        /// Its name.
        service: ServiceName,
    },
    /// Two tasks of a service with one name.
    #[error("service {service} has two tasks named {task}")]
    DuplicateTask {
        /// The service.
        service: ServiceName,
        /// Position of the second task in it.
        at: usize,
        /// Its name.
        task: TaskName,
    },
    /// A task on a node that is not there.
    #[error("task {task} of service {service} runs on node {node}, which is not in the mesh")]
    UnknownNode {
        /// The service.
        service: ServiceName,
        /// Position of the task in it.
        at: usize,
        /// The task.
        task: TaskName,
        /// The node.
        node: NodeName,
    },
    /// A service that publishes one port twice.
    #[error("service {service} publishes {}/{} twice", .port.protocol, .port.published)]
    DuplicatePort {
        /// The service.
        service: ServiceName,
        /// Position of the second port in it.
        at: usize,
        /// The port.
        port: Port,
    },
    /// Two services that want one port.
    #[error(transparent)]
    PortConflict(#[from] PortConflict),
}

impl MeshSnapshot {
    /// Builds a snapshot, with tasks ordered by name, or says everything that is wrong with it.
    pub fn build(
        generation: Generation,
        nodes: Vec<Node>,
        services: Vec<Service>,
    ) -> Result<Self, Vec<SnapshotError>> {
        let mut errors = Vec::new();
        let nodes = index_nodes(nodes, &mut errors);
        let mut named = BTreeMap::new();
        for (at, mut service) in services.into_iter().enumerate() {
            check_tasks(&service, &nodes, &mut errors);
            check_ports(&service, &mut errors);
            service.tasks.sort_by(|a, b| a.name.cmp(&b.name));
            match named.entry(service.name.clone()) {
                Entry::Vacant(place) => {
                    place.insert(Arc::new(service));
                }
                Entry::Occupied(first) => {
                    let service = first.key().clone();
                    errors.push(SnapshotError::DuplicateService { at, service });
                }
            }
        }
        errors.extend(port_conflicts(&named).into_iter().map(SnapshotError::from));
        if errors.is_empty() {
            Ok(Self { generation, here: None, nodes, services: named, networks: BTreeMap::new() })
        } else {
            Err(errors)
        }
    }
}

fn index_nodes(nodes: Vec<Node>, errors: &mut Vec<SnapshotError>) -> BTreeMap<NodeName, Node> {
    let mut named = BTreeMap::<NodeName, Node>::new();
    let mut addresses = BTreeMap::new();
    for (at, node) in nodes.into_iter().enumerate() {
        if named.contains_key(&node.name) {
            errors.push(SnapshotError::DuplicateNode { at, node: node.name });
            continue;
        }
        if let Some(first) = addresses.insert(node.address, node.name.clone()) {
            let (second, address) = (node.name.clone(), node.address);
            errors.push(SnapshotError::DuplicateAddress { at, first, second, address });
        }
        named.insert(node.name.clone(), node);
    }
    named
}

/// A task of `services` on a node that is not among `nodes`, if there is one.
pub fn unknown_node<'a>(
    services: impl IntoIterator<Item = &'a Arc<Service>>,
    nodes: &BTreeMap<NodeName, Node>,
) -> Option<&'a NodeName> {
    let mut tasks = services.into_iter().flat_map(|service| &service.tasks);
    tasks.find(|task| !nodes.contains_key(&task.node)).map(|task| &task.node)
}

fn check_tasks(
    service: &Service,
    nodes: &BTreeMap<NodeName, Node>,
    errors: &mut Vec<SnapshotError>,
) {
    let mut names = BTreeSet::new();
    for (at, task) in service.tasks.iter().enumerate() {
        let (service, name) = (service.name.clone(), task.name.clone());
        if !names.insert(&task.name) {
            errors.push(SnapshotError::DuplicateTask { service, at, task: name });
        } else if !nodes.contains_key(&task.node) {
            let node = task.node.clone();
            errors.push(SnapshotError::UnknownNode { service, at, task: name, node });
        }
    }
}

fn check_ports(service: &Service, errors: &mut Vec<SnapshotError>) {
    let mut seen = BTreeSet::new();
    for (at, port) in service.ports.iter().enumerate() {
        if !seen.insert((port.protocol, port.published)) {
            let (service, port) = (service.name.clone(), *port);
            errors.push(SnapshotError::DuplicatePort { service, at, port });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{Protocol, PublishMode, PublishedPort, TargetPort, Task};

    fn node(name: &str, last: u8) -> Node {
        Node::new(NodeName::new(name), [10, 0, 0, last].into())
    }

    fn service(name: &str, tasks: &[(&str, &str)], ports: &[u16]) -> Service {
        let task =
            |(name, node): &(&str, &str)| Task::new(TaskName::new(*name), NodeName::new(*node));
        let port = |number: &u16| Port {
            protocol: Protocol::Udp,
            published: PublishedPort::new(*number).unwrap(),
            target: TargetPort::new(53).unwrap(),
            mode: PublishMode::Ingress,
        };
        Service {
            ports: ports.iter().map(port).collect(),
            tasks: tasks.iter().map(task).collect(),
            ..Service::new(ServiceName::new(name))
        }
    }

    #[test]
    fn a_sound_mesh_is_built_with_its_tasks_in_order() {
        let services = vec![service("web", &[("b", "n1"), ("a", "n2")], &[80])];
        let nodes = vec![node("n2", 2), node("n1", 1)];
        let snapshot = MeshSnapshot::build(Generation(7), nodes, services).unwrap();
        let web = &snapshot.services[&ServiceName::new("web")];
        assert_eq!(web.tasks[0].name.as_str(), "a");
        assert_eq!(snapshot.generation, Generation(7));
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let nodes = vec![node("n1", 1), node("n1", 2), node("n3", 1)];
        let services = vec![
            service("web", &[("a", "n1"), ("a", "n1"), ("b", "n9")], &[80, 81, 80]),
            service("web", &[], &[]),
            service("zoo", &[], &[81]),
        ];
        let errors = MeshSnapshot::build(Generation(1), nodes, services).unwrap_err();
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "node n1 is there twice",
                "nodes n1 and n3 have the same address 10.0.0.1",
                "service web has two tasks named a",
                "task b of service web runs on node n9, which is not in the mesh",
                "service web publishes udp/80 twice",
                "service web is there twice",
                "services web and zoo both publish udp/81",
            ]
        );
    }
}
