//! The merged view: what managers declare, what every node reports, and who is alive.

use std::{collections::BTreeMap, sync::Arc};

use weir_mesh::cluster::{Declared, NodeId, Report, ReportedNode, ReportedTask, TaskId};

use super::wire::Item;

/// What the link knows of the cluster. Stays as it was when no manager's agent can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// What the managers declare; `None`: nothing was heard yet.
    pub declared: Option<Arc<Declared>>,
    /// What every node reports, as last heard.
    pub reports: Arc<BTreeMap<NodeId, NodeView>>,
    /// Whose view it is.
    pub from: From,
}

/// What is known of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// What it says; `None`: it has not said anything yet.
    pub report: Option<Arc<Report>>,
    /// Whether it was heard within the time that `link.silence` allows.
    pub alive: bool,
}

/// Whose view it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// Nobody's: no manager's agent is reached, and the view is the last that was heard.
    #[default]
    Nobody,
    /// This node's own, which is a manager.
    Own,
    /// That of the agent on this manager.
    Manager(NodeId),
}

/// The view in the making.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    declared: Arc<Declared>,
    reports: Arc<BTreeMap<NodeId, NodeView>>,
    /// Tasks of nodes that have not said who they are: a snapshot is in the order of changes, so a
    /// node may follow its tasks.
    orphans: BTreeMap<NodeId, BTreeMap<TaskId, Arc<ReportedTask>>>,
    items: usize,
}

// === impl Replica ===

impl Replica {
    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.items
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// What it amounts to.
    pub fn view(&self, from: From) -> ClusterView {
        let declared = Some(self.declared.clone());
        ClusterView { declared, reports: self.reports.clone(), from }
    }

    /// The tasks of a node.
    pub fn tasks_of(&self, node: &NodeId) -> impl Iterator<Item = &TaskId> {
        let report = self.reports.get(node).and_then(|node| node.report.as_ref());
        let orphans = self.orphans.get(node).into_iter().flat_map(BTreeMap::keys);
        report.into_iter().flat_map(|report| report.tasks.keys()).chain(orphans)
    }

    /// Takes a value, or the word that it is gone.
    pub fn apply(&mut self, item: Item) {
        let (before, after) = match item {
            Item::Node(id, value) => put(&mut Arc::make_mut(&mut self.declared).nodes, id, value),
            Item::Service(id, value) => {
                put(&mut Arc::make_mut(&mut self.declared).services, id, value)
            }
            Item::Task(id, value) => put(&mut Arc::make_mut(&mut self.declared).tasks, id, value),
            Item::Network(id, value) => {
                put(&mut Arc::make_mut(&mut self.declared).networks, id, value)
            }
            Item::Reporter(node, value) => self.reporter(node, value),
            Item::Report(node, task, value) => {
                let reports = Arc::make_mut(&mut self.reports);
                match reports.get_mut(&node).and_then(|node| node.report.as_mut()) {
                    Some(report) => put(&mut Arc::make_mut(report).tasks, task, value),
                    None => put(self.orphans.entry(node).or_default(), task, value),
                }
            }
            Item::Alive(node, value) => self.alive(node, value),
        };
        self.items = (self.items + usize::from(after)).saturating_sub(usize::from(before));
    }

    fn reporter(&mut self, id: NodeId, value: Option<ReportedNode>) -> (bool, bool) {
        let reports = Arc::make_mut(&mut self.reports);
        let Some(said) = value else {
            let report = reports.get_mut(&id).and_then(|node| node.report.take());
            let before = report.is_some();
            if let Some(report) = report {
                // Its tasks are taken back one by one.
                self.orphans.insert(id.clone(), Arc::unwrap_or_clone(report).tasks);
            }
            reports.retain(|node, view| *node != id || view.alive);
            return (before, false);
        };
        let node = reports.entry(id.clone()).or_insert(NodeView { report: None, alive: false });
        match &mut node.report {
            Some(report) => {
                Arc::make_mut(report).node = said;
                (true, true)
            }
            none => {
                let tasks = self.orphans.remove(&id).unwrap_or_default();
                *none = Some(Arc::new(Report { node: said, tasks }));
                (false, true)
            }
        }
    }

    fn alive(&mut self, id: NodeId, value: Option<bool>) -> (bool, bool) {
        let reports = Arc::make_mut(&mut self.reports);
        match value {
            Some(alive) => {
                let node = reports.entry(id).or_insert(NodeView { report: None, alive });
                node.alive = alive;
            }
            None => {
                if let Some(node) = reports.get_mut(&id) {
                    node.alive = false;
                }
                reports.retain(|node, view| *node != id || view.report.is_some());
            }
        }
        // Bounded by the other keys: not counted.
        (false, false)
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> (bool, bool) {
    let after = value.is_some();
    let before = match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
    (before.is_some(), after)
}

/// The items by which `old` becomes `new`.
pub fn declared_changes(old: &Declared, new: &Declared) -> Vec<Item> {
    let mut items = Vec::new();
    changes(&old.nodes, &new.nodes, |id, value| items.push(Item::Node(id, value)));
    changes(&old.networks, &new.networks, |id, value| items.push(Item::Network(id, value)));
    changes(&old.services, &new.services, |id, value| items.push(Item::Service(id, value)));
    changes(&old.tasks, &new.tasks, |id, value| items.push(Item::Task(id, value)));
    items
}

/// The items by which what `node` has said becomes `new`. The node itself comes first.
pub fn report_changes(node: &NodeId, old: Option<&Report>, new: &Report) -> Vec<Item> {
    let mut items = Vec::new();
    if old.is_none_or(|old| old.node != new.node) {
        items.push(Item::Reporter(node.clone(), Some(new.node.clone())));
    }
    let none = BTreeMap::new();
    let old = old.map_or(&none, |old| &old.tasks);
    changes(old, &new.tasks, |id, value| items.push(Item::Report(node.clone(), id, value)));
    items
}

/// Walks through two maps at once: most values are the very same, and that is quick to see.
fn changes<K: Ord + Clone, V>(
    old: &BTreeMap<K, Arc<V>>,
    new: &BTreeMap<K, Arc<V>>,
    mut change: impl FnMut(K, Option<Arc<V>>),
) {
    let mut olds = old.iter().peekable();
    for (key, value) in new {
        while let Some((gone, _)) = olds.next_if(|(old, _)| *old < key) {
            change(gone.clone(), None);
        }
        match olds.next_if(|(old, _)| *old == key) {
            Some((_, before)) if Arc::ptr_eq(before, value) => {}
            _ => change(key.clone(), Some(value.clone())),
        }
    }
    olds.for_each(|(gone, _)| change(gone.clone(), None));
}
