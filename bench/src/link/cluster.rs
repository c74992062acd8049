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

/// The name of a node, like Swarm's. Node 0 is the manager.
pub fn name(at: usize) -> String {
    identity(1, at)
}

/// A task; the one with the number of a node tells that node's changes.
pub fn mark(at: usize) -> TaskId {
    TaskId::new(identity(2, at))
}

/// 25 characters of which none can be told from the others, as Swarm's are: names that only count
/// would be packed much too well.
fn identity(kind: u64, at: usize) -> String {
    // SplitMix64.
    let mut state = (kind << 32) + at as u64;
    let mut drawn = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u128::from(mixed ^ (mixed >> 31))
    };
    let mut rest = drawn() << 64 | drawn();
    let digits = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut digit = || {
        let digit = digits[(rest % 36) as usize];
        rest /= 36;
        char::from(digit)
    };
    (0..25).map(|_| digit()).collect()
}

impl Size {
    /// What a node reports. The task that is called after it is in the state `life`.
    pub fn report(self, at: usize, life: Life) -> Arc<Report> {
        let own = (at..self.tasks).step_by(self.nodes);
        let task = |number: usize| ReportedTask {
            service: ServiceId::new(identity(3, number / 10)),
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
            service: ServiceId::new(identity(3, number / 10)),
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
    TaskName::new(format!("stack_service-{}.{}.{}", number / 10, number % 10, mark(number)))
}
