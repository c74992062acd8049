//! Which services may not publish the same port.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::PortConflict;
use crate::service::{NodeName, Port, PublishMode, Service, ServiceName};

/// Every pair of services of which only one could have a port.
///
/// A port in ingress mode is taken on every node, so it excludes any other use of the number. Two
/// services in host mode may share a number as long as no node runs tasks of both. What one
/// service says twice is not judged here.
pub fn port_conflicts(services: &BTreeMap<ServiceName, Arc<Service>>) -> Vec<PortConflict> {
    let every =
        services.values().flat_map(|service| service.ports.iter().map(|port| (&**service, port)));
    let mut users: Vec<(&Service, &Port)> = every.collect();
    let number = |(_, port): &(&Service, &Port)| (port.protocol, port.published);
    // Users of one port stay in the order of their names.
    users.sort_by_key(number);
    let mut conflicts = Vec::new();
    for users in users.chunk_by(|a, b| number(a) == number(b)) {
        for (at, second) in users.iter().enumerate() {
            conflicts.extend(users[..at].iter().find_map(|first| conflict(*first, *second)));
        }
    }
    conflicts
}

fn conflict(first: (&Service, &Port), second: (&Service, &Port)) -> Option<PortConflict> {
    if first.0.name == second.0.name {
        return None;
    }
    let both_host = first.1.mode == PublishMode::Host && second.1.mode == PublishMode::Host;
    let node = if both_host { Some(shared_node(first.0, second.0)?) } else { None };
    Some(PortConflict {
        port: *second.1,
        first: first.0.name.clone(),
        second: second.0.name.clone(),
        node,
    })
}

fn shared_node(first: &Service, second: &Service) -> Option<NodeName> {
    let nodes: BTreeSet<&NodeName> = first.tasks.iter().map(|task| &task.node).collect();
    second.tasks.iter().map(|task| &task.node).find(|node| nodes.contains(node)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{
        Balance, Protocol, PublishedPort, TargetPort, Task, TaskName, TaskState, Timeouts,
    };

    fn service(name: &str, mode: PublishMode, nodes: &[&str]) -> (ServiceName, Arc<Service>) {
        let task = |(at, node): (usize, &&str)| Task {
            name: TaskName::new(format!("{name}.{at}")),
            node: NodeName::new(*node),
            ipv4: None,
            ipv6: None,
            weight: 1,
            state: TaskState::Active,
            networks: BTreeMap::new(),
            aliases: Default::default(),
        };
        let name = ServiceName::new(name);
        let port = Port {
            protocol: Protocol::Tcp,
            published: PublishedPort::new(80).unwrap(),
            target: TargetPort::new(80).unwrap(),
            mode,
        };
        let service = Service {
            name: name.clone(),
            balance: Balance::RoundRobin,
            ports: vec![port],
            tasks: nodes.iter().enumerate().map(task).collect(),
            timeouts: Timeouts::default(),
            health: Default::default(),
            vips: BTreeMap::new(),
            aliases: Default::default(),
        };
        (name, Arc::new(service))
    }

    fn found(services: [(ServiceName, Arc<Service>); 2]) -> Vec<String> {
        port_conflicts(&services.into()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn two_services_cannot_have_one_ingress_port() {
        use PublishMode::{Host, Ingress};
        let text = ["services a and b both publish tcp/80"];
        assert_eq!(found([service("a", Ingress, &[]), service("b", Ingress, &[])]), text);
        assert_eq!(found([service("a", Host, &[]), service("b", Ingress, &[])]), text);
    }

    #[test]
    fn two_services_may_share_a_host_port_as_long_as_no_node_runs_both() {
        use PublishMode::Host;
        assert!(found([service("a", Host, &["n1"]), service("b", Host, &["n2"])]).is_empty());
        let text = ["services a and b both publish tcp/80 in host mode and both run on node n2"];
        assert_eq!(found([service("a", Host, &["n1", "n2"]), service("b", Host, &["n2"])]), text);
    }
}
