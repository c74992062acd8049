//! A small Swarm, said word by word.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use weir_mesh::{
    Generation, MeshSnapshot, PublishMode, ServiceName, TaskName, TaskState, Timeouts,
    cluster::{
        Availability, Declared, DeclaredNode, DeclaredPort, DeclaredService, DeclaredTask,
        EndpointMode, Hearsay, Life, Merged, NodeId, Report, ReportedNode, ReportedTask, ServiceId,
        TaskId, Transport, WishedState, Words, merge,
    },
};

/// All that is known, to be changed as a test likes.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub declared: Option<Declared>,
    pub hearsay: Option<Hearsay>,
    pub reports: BTreeMap<NodeId, Arc<Report>>,
    pub alive: BTreeSet<NodeId>,
    pub own: Option<NodeId>,
}

pub fn node_id(node: &str) -> NodeId {
    NodeId::new(format!("{node}idididid"))
}

pub fn address(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

pub fn tcp(published: u16, target: u16) -> DeclaredPort {
    let mode = PublishMode::Ingress;
    DeclaredPort { transport: Transport::Tcp, target, published: Some(published), mode }
}

impl World {
    /// What the words make, checked as a snapshot is.
    pub fn merged(&self) -> Merged {
        let words = Words {
            declared: self.declared.as_ref(),
            hearsay: self.hearsay.as_ref(),
            reports: &self.reports,
            alive: &self.alive,
            own: self.own.as_ref(),
            timeouts: Timeouts::default(),
        };
        let merged = merge(&words);
        let nodes = merged.nodes.values().cloned().collect();
        let services = merged.services.values().map(|service| (**service).clone()).collect();
        let snapshot = MeshSnapshot::build(Generation(1), nodes, services);
        let snapshot = snapshot.expect("a merge is always a sound mesh");
        assert_eq!(snapshot.services, merged.services, "ports and tasks are in order");
        merged
    }

    pub fn declare(&mut self) -> &mut Declared {
        self.declared.get_or_insert_default()
    }

    pub fn node(&mut self, name: &str, last: u8) {
        let node = DeclaredNode {
            hostname: name.to_owned(),
            address: Some(address(last)),
            availability: Availability::Active,
            ready: true,
            manager: None,
        };
        self.declare().nodes.insert(node_id(name), Arc::new(node));
    }

    pub fn change_node(&mut self, name: &str, change: impl FnOnce(&mut DeclaredNode)) {
        change(Arc::make_mut(
            self.declare().nodes.get_mut(&node_id(name)).expect("a test's own words"),
        ));
    }

    pub fn service(&mut self, name: &str, ports: &[DeclaredPort]) {
        let service = DeclaredService {
            name: ServiceName::new(name),
            stack: None,
            endpoint_mode: EndpointMode::Vip,
            ports: ports.to_vec(),
            labels: BTreeMap::new(),
            vips: BTreeMap::new(),
            networks: BTreeMap::new(),
        };
        self.declare().services.insert(ServiceId::new(name), Arc::new(service));
    }

    pub fn change_service(&mut self, name: &str, change: impl FnOnce(&mut DeclaredService)) {
        let service =
            self.declare().services.get_mut(&ServiceId::new(name)).expect("a test's own words");
        change(Arc::make_mut(service));
    }

    pub fn label_service(&mut self, name: &str, label: &str, value: &str) {
        let service =
            self.declare().services.get_mut(&ServiceId::new(name)).expect("a test's own words");
        Arc::make_mut(service).labels.insert(label.to_owned(), value.to_owned());
    }

    pub fn wish(&mut self, service: &str, task: &str, node: &str, wished: WishedState) {
        let task_name = TaskName::new(task);
        let declared = DeclaredTask {
            service: ServiceId::new(service),
            node: Some(node_id(node)),
            slot: Some(1),
            name: task_name,
            wished,
            running: true,
            addresses: BTreeMap::new(),
        };
        self.declare().tasks.insert(TaskId::new(task), Arc::new(declared));
    }

    /// The node says that it lives, on `10.0.0.last`.
    pub fn speaks(&mut self, name: &str, last: u8) {
        let node = ReportedNode { hostname: name.to_owned(), address: address(last) };
        let report = Report { node, tasks: BTreeMap::new() };
        self.reports.insert(node_id(name), Arc::new(report));
        self.alive.insert(node_id(name));
    }

    /// The node says that it has a task of the service, at `172.18.0.last`.
    pub fn reports(&mut self, node: &str, service: &str, task: &str, last: u8, life: Life) {
        let said = ReportedTask {
            service: ServiceId::new(service),
            service_name: ServiceName::new(service),
            name: TaskName::new(task),
            ipv4: Some(Ipv4Addr::new(172, 18, 0, last)),
            ipv6: None,
            life,
            labels: BTreeMap::new(),
            networks: BTreeMap::new(),
            aliases: Default::default(),
            ports: Vec::new(),
            verdict: None,
        };
        let report =
            Arc::make_mut(self.reports.get_mut(&node_id(node)).expect("a test's own words"));
        report.tasks.insert(TaskId::new(task), Arc::new(said));
    }

    pub fn change_report(
        &mut self,
        node: &str,
        task: &str,
        change: impl FnOnce(&mut ReportedTask),
    ) {
        let report =
            Arc::make_mut(self.reports.get_mut(&node_id(node)).expect("a test's own words"));
        change(Arc::make_mut(
            report.tasks.get_mut(&TaskId::new(task)).expect("a test's own words"),
        ));
    }
}

/// `task=state` of the service, in order.
pub fn states(merged: &Merged, service: &str) -> Vec<String> {
    let Some(service) = merged.services.get(&ServiceName::new(service)) else { return vec![] };
    let state = |state: TaskState| state.as_str();
    service.tasks.iter().map(|task| format!("{}={}", task.name, state(task.state))).collect()
}

/// `protocol/published->target mode` of the service, in order.
pub fn ports(merged: &Merged, service: &str) -> Vec<String> {
    let Some(service) = merged.services.get(&ServiceName::new(service)) else { return vec![] };
    let text = |port: &weir_mesh::Port| {
        format!("{}/{}->{} {}", port.protocol, port.published, port.target, port.mode.as_str())
    };
    service.ports.iter().map(text).collect()
}

pub fn notes(merged: &Merged) -> Vec<String> {
    merged.notes.iter().map(ToString::to_string).collect()
}
