//! Where a task runs and whether it takes flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    HeardService, Life, NodeId, Note, ReportedTask, TaskId, WishedState, labels::Wishes,
    merge::Words, nodes,
};
use crate::service::{NodeName, Task, TaskState};

/// A task that its node reported, and what all the words together make of it.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    pub said: &'a ReportedTask,
    node: NodeName,
    state: TaskState,
}

impl<'a> Placed<'a> {
    /// `None` for a task that is not ready yet, or that nobody can reach.
    pub fn of(
        words: &Words<'_>,
        (node, node_name): (&NodeId, &NodeName),
        (id, said): (&TaskId, &'a ReportedTask),
        heard: Option<&HeardService>,
    ) -> Option<Self> {
        // On an internal network its node does not reach it, but its neighbours there do.
        let reachable = said.ipv4.is_some() || said.ipv6.is_some() || !said.networks.is_empty();
        let state = match said.life {
            _ if !reachable => return None,
            Life::Starting => return None,
            Life::Down => TaskState::Down,
            _ if ended_in_silence(words, node, id) => TaskState::Down,
            Life::Draining => TaskState::Draining,
            Life::Active if should_end(words, node, id, said, heard) => TaskState::Draining,
            Life::Active => TaskState::Active,
        };
        Some(Self { said, node: node_name.clone(), state })
    }

    /// The same when Swarm has removed its service: it ends soon.
    pub fn of_removed(mut self, removed: bool) -> Self {
        if removed && self.state == TaskState::Active {
            self.state = TaskState::Draining;
        }
        self
    }

    /// What the labels of its container ask for.
    pub fn wishes(&self, notes: &mut BTreeSet<Note>) -> Wishes {
        Wishes::read(&self.said.labels, &format!("container {}", self.said.name), notes)
    }

    /// As the mesh takes it.
    pub fn task(&self, weight: u16) -> Task {
        Task {
            name: self.said.name.clone(),
            node: self.node.clone(),
            ipv4: self.said.ipv4,
            ipv6: self.said.ipv6,
            weight,
            state: self.state,
            networks: self.said.networks.clone(),
            verdict: self.said.verdict.clone(),
            aliases: self.said.aliases.clone(),
        }
    }

    fn addresses(&self) -> impl Iterator<Item = (NodeName, IpAddr)> {
        let (ipv4, ipv6) = (self.said.ipv4.map(IpAddr::V4), self.said.ipv6.map(IpAddr::V6));
        ipv4.into_iter().chain(ipv6).map(|address| (self.node.clone(), address))
    }
}

/// A node speaks for its own tasks only: Swarm says which those are, where it says something.
pub(super) fn may_speak(words: &Words<'_>, node: &NodeId, task: &TaskId) -> bool {
    let declared = words.declared.and_then(|declared| declared.tasks.get(task));
    let owner = declared.and_then(|task| task.node.as_ref());
    owner.is_none_or(|owner| owner == node)
}

/// Whether anybody but its own node says that a task should end. What nobody speaks of goes on: a
/// manager's word may be older than the task.
fn should_end(
    words: &Words<'_>,
    node: &NodeId,
    id: &TaskId,
    said: &ReportedTask,
    heard: Option<&HeardService>,
) -> bool {
    let declared = words.declared.and_then(|declared| declared.tasks.get(id));
    let unwished = declared.is_some_and(|task| task.wished == WishedState::Shutdown);
    let silent = !words.alive.contains(node);
    let foreign = words.own != Some(node);
    unwished
        || silent
        || nodes::drained(words, node)
        || (foreign && heard.is_some_and(|service| left_gossip(service, said)))
}

/// Whether a task has ended on a node that can no longer say so itself: Swarm has taken it off its
/// list. On a drained node that is the rule, since the agent ends there with the other tasks.
fn ended_in_silence(words: &Words<'_>, node: &NodeId, id: &TaskId) -> bool {
    let silent = !words.alive.contains(node);
    silent && words.declared.is_some_and(|declared| !declared.tasks.contains_key(id))
}

/// Gossip that lists tasks of the service, but not this one. An empty list says nothing: the node
/// may just have lost the ingress network.
fn left_gossip(service: &HeardService, task: &ReportedTask) -> bool {
    !service.tasks.is_empty() && !service.tasks.contains_key(&task.name)
}

/// Docker gives the address of a task that has ended to the next one, while the first is still
/// remembered.
pub(super) fn one_for_each_address(tasks: &mut Vec<Placed<'_>>) {
    let mut users = BTreeMap::<(NodeName, IpAddr), TaskState>::new();
    let rank = |state: TaskState| match state {
        TaskState::Active => 0,
        TaskState::Draining => 1,
        TaskState::Down => 2,
    };
    // In the order of their standing; within it by name, so that every node keeps the same one.
    tasks.sort_by(|a, b| (rank(a.state), &a.said.name).cmp(&(rank(b.state), &b.said.name)));
    tasks.retain(|task| {
        let addresses: Vec<_> = task.addresses().collect();
        if addresses.iter().any(|address| users.contains_key(address)) {
            return false;
        }
        users.extend(addresses.into_iter().map(|address| (address, task.state)));
        true
    });
}
