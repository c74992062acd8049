//! What other nodes say of their own tasks, and who of them is silent: by the cluster link.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weir_mesh::{Ident, NodeName, Service, Task, TaskState};

/// What is known of the other nodes. Whoever was never heard is not in it: nothing follows from that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Nodes that were heard and are silent now.
    pub silent: BTreeSet<NodeName>,
    /// Tasks that their own nodes have taken out, and why.
    pub out: BTreeMap<Ident, Arc<str>>,
}

impl Others {
    /// Why tasks of a service take no new flows, those of `node` itself left aside.
    ///
    /// When nobody would be left, those on silent nodes stay: their flows could go nowhere else.
    pub fn reasons(&self, service: &Service, node: &NodeName) -> BTreeMap<Ident, Arc<str>> {
        let mut reasons = BTreeMap::new();
        let mut silent = BTreeMap::new();
        let mut left = false;
        for task in service.tasks.iter().filter(|task| task.state == TaskState::Active) {
            let ident = ident(service, task);
            let foreign = task.node != *node;
            if let Some(why) = self.out.get(&ident).filter(|_| foreign) {
                reasons.insert(ident, format!("{} says: {why}", task.node).into());
            } else if foreign && self.silent.contains(&task.node) {
                silent.insert(ident, format!("{} is silent", task.node).into());
            } else {
                left |= task.weight > 0;
            }
        }
        if left {
            reasons.extend(silent);
        }
        reasons
    }

    /// Whether anything of a service may be another than in `older`.
    pub fn differs(&self, older: &Self, service: &Service) -> bool {
        service.tasks.iter().any(|task| {
            self.silent.contains(&task.node) != older.silent.contains(&task.node)
                || self.out.get(&ident(service, task)) != older.out.get(&ident(service, task))
        })
    }
}

fn ident(service: &Service, task: &Task) -> Ident {
    Ident::of_task(&service.name, &task.name, &task.node)
}
