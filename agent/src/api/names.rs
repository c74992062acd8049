//! The names of what the data plane knows by identity.

use std::collections::BTreeMap;

use weir_mesh::{Ident, MeshSnapshot, NodeName, ServiceName, TaskName};

/// A task by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its service.
    pub service: ServiceName,
    /// Its name.
    pub task: TaskName,
    /// Its node.
    pub node: NodeName,
}

/// The names in a snapshot, by identity.
#[derive(Debug, Default)]
pub struct Names {
    /// Tasks.
    pub tasks: BTreeMap<Ident, Named>,
    /// Services.
    pub services: BTreeMap<Ident, ServiceName>,
    /// Nodes.
    pub nodes: BTreeMap<Ident, NodeName>,
}

impl Names {
    /// Those of a snapshot.
    pub fn of(snapshot: &MeshSnapshot) -> Self {
        let mut names = Self::default();
        for service in snapshot.services.values() {
            names.services.insert(Ident::of_service(&service.name), service.name.clone());
            for task in &service.tasks {
                let ident = Ident::of_task(&service.name, &task.name, &task.node);
                let (service, task, node) =
                    (service.name.clone(), task.name.clone(), task.node.clone());
                names.tasks.insert(ident, Named { service, task, node });
            }
        }
        let nodes = snapshot.nodes.keys();
        names.nodes = nodes.map(|name| (Ident::of_node(name), name.clone())).collect();
        names
    }
}
