//! What the nodes of the bench say.

use std::{collections::BTreeMap, sync::Arc};

use weir_mesh::{
    ServiceName, TaskName,
    cluster::{
        Availability, Declared, DeclaredNode, DeclaredTask, Life, NodeId, Report, ReportedNode,
        ReportedTask, ServiceId, TaskId, WishedState,
    },
};

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes, the manager included.
    pub nodes: usize,
    /// Tasks, spread over all nodes.
    pub tasks: usize,
}

/// The name of a node, as long as Swarm's are. Node 0 is the manager.
pub fn name(at: usize) -> String {
    format!("node{at:021}")
}

/// The task of a node by which changes are told.
pub fn mark(at: usize) -> TaskId {
    TaskId::new(format!("task-{at}"))
}

impl Size {
    /// What a node reports. The task that is called after it is in the state `life`.
    pub fn report(self, at: usize, life: Life) -> Arc<Report> {
        let own = (at..self.tasks).step_by(self.nodes);
        let task = |number: usize| ReportedTask {
            service: ServiceId::new(format!("service{:018}", number / 10)),
            service_name: ServiceName::new(format!("stack_service-{}", number / 10)),
            name: full_name(number),
            ipv4: Some([172, 18, 0, 3].into()),
            ipv6: None,
            life: if number == at { life } else { Life::Active },
            labels: BTreeMap::from([("weir.balance".into(), "maglev".into())]),
            networks: BTreeMap::new(),
            ports: Vec::new(),
            verdict: None,
            aliases: BTreeMap::new(),
        };
        Arc::new(Report {
            node: ReportedNode { hostname: format!("host-{at}"), address: address(at).into() },
            tasks: own.map(|number| (mark(number), Arc::new(task(number)))).collect(),
        })
    }

    /// What the manager declares.
    pub fn declared(self) -> Declared {
        let node = |at: usize| DeclaredNode {
            hostname: format!("host-{at}"),
            address: Some(address(at).into()),
            availability: Availability::Active,
            ready: true,
            manager: None,
        };
        let task = |number: usize| DeclaredTask {
            service: ServiceId::new(format!("service{:018}", number / 10)),
            node: Some(NodeId::new(name(number % self.nodes))),
            slot: Some(number as u64 % 10),
            name: full_name(number),
            wished: WishedState::Running,
            running: true,
            addresses: BTreeMap::new(),
        };
        let nodes = (0..self.nodes).map(|at| (NodeId::new(name(at)), Arc::new(node(at))));
        let tasks = (0..self.tasks).map(|number| (mark(number), Arc::new(task(number))));
        Declared { nodes: nodes.collect(), tasks: tasks.collect(), ..Declared::default() }
    }
}

fn address(at: usize) -> [u8; 4] {
    [10, 0, (at / 256) as u8, at as u8]
}

fn full_name(number: usize) -> TaskName {
    TaskName::new(format!("stack_service-{}.{}.{number:025}", number / 10, number % 10))
}
