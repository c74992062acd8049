//! Which nodes there are, and what they are called.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Availability, NodeId, Note, merge::Words};
use crate::service::{Node, NodeName};

/// The nodes that can be in the mesh.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// Their names in the mesh.
    pub names: BTreeMap<NodeId, NodeName>,
    /// What the mesh knows of them.
    pub nodes: BTreeMap<NodeName, Node>,
}

struct Candidate {
    hostname: String,
    address: IpAddr,
}

impl Nodes {
    /// Chooses the nodes that have an address, one for each address, and names them.
    pub fn choose(words: &Words<'_>, notes: &mut BTreeSet<Note>) -> Self {
        let candidates = one_for_each_address(words, notes);
        let names = names(&candidates);
        let node = |(id, name): (&NodeId, &NodeName)| {
            let address = candidates.get(id)?.address;
            let whole = words.reports.contains_key(id) && words.alive.contains(id);
            Some((name.clone(), Node { whole, ..Node::new(name.clone(), address) }))
        };
        let nodes = names.iter().filter_map(node).collect();
        Self { names, nodes }
    }
}

/// Whether Swarm is moving the node's tasks away.
pub(super) fn drained(words: &Words<'_>, node: &NodeId) -> bool {
    let declared = words.declared.and_then(|declared| declared.nodes.get(node));
    declared.is_some_and(|node| node.availability == Availability::Drain)
}

/// A host that left the Swarm and joined again is there twice, until somebody removes the old
/// entry. The one that Swarm hears is the one that counts.
fn one_for_each_address(
    words: &Words<'_>,
    notes: &mut BTreeSet<Note>,
) -> BTreeMap<NodeId, Candidate> {
    let mut by_address = BTreeMap::<IpAddr, Vec<(NodeId, String)>>::new();
    for id in ids(words) {
        let reported = words.reports.get(id).map(|report| &report.node);
        let declared = words.declared.and_then(|declared| declared.nodes.get(id));
        let hostname = declared.map(|node| &node.hostname);
        let hostname = hostname.or(reported.map(|node| &node.hostname));
        let hostname = hostname.filter(|name| !name.is_empty()).cloned();
        let hostname = hostname.unwrap_or_else(|| id.to_string());
        let address = reported.map(|node| node.address);
        match address.or(declared.and_then(|node| node.address)) {
            Some(address) => {
                by_address.entry(address).or_default().push((id.clone(), hostname));
            }
            None => {
                notes.insert(Note {
                    about: format!("node {hostname}"),
                    key: "address".to_owned(),
                    value: None,
                    problem: "nobody knows it, so the node is not in the mesh".to_owned(),
                    remedy: "run weir on that node, or join it with --advertise-addr".to_owned(),
                });
            }
        }
    }
    let mut chosen = BTreeMap::new();
    for (address, mut nodes) in by_address {
        // Stable: among equals the lowest identity stays first.
        // A node that reports another's address, by mistake or not, does not take its place.
        nodes.sort_by_key(|(id, _)| (!is_declared(words, id, address), standing(words, id)));
        let mut nodes = nodes.into_iter();
        let Some((first, hostname)) = nodes.next() else { continue };
        for (other, _) in nodes.filter(|(id, _)| heard(words, id)) {
            notes.insert(Note {
                about: format!("node {hostname}"),
                key: "address".to_owned(),
                value: Some(address.to_string()),
                problem: format!("nodes {first} and {other} both have it; {other} is left out"),
                remedy: "set node.address on one of them".to_owned(),
            });
        }
        chosen.insert(first, Candidate { hostname, address });
    }
    chosen
}

fn ids<'a>(words: &Words<'a>) -> BTreeSet<&'a NodeId> {
    let declared = words.declared.into_iter().flat_map(|declared| declared.nodes.keys());
    // A node that Swarm does not know is either just joining or gone for good.
    let reporting = words.reports.keys().filter(|id| {
        words.alive.contains(*id)
            || words.declared.is_none_or(|declared| declared.nodes.contains_key(*id))
    });
    declared.chain(reporting).collect()
}

fn heard(words: &Words<'_>, id: &NodeId) -> bool {
    match words.declared.and_then(|declared| declared.nodes.get(id)) {
        Some(node) => node.ready,
        None => words.alive.contains(id),
    }
}

fn is_declared(words: &Words<'_>, id: &NodeId, address: IpAddr) -> bool {
    let declared = words.declared.and_then(|declared| declared.nodes.get(id));
    declared.is_some_and(|node| node.address == Some(address))
}

fn standing(words: &Words<'_>, id: &NodeId) -> (bool, bool) {
    (!heard(words, id), !words.reports.contains_key(id))
}

/// The host name; where nodes share one, with the first 8 characters of the identity for each.
fn names(candidates: &BTreeMap<NodeId, Candidate>) -> BTreeMap<NodeId, NodeName> {
    let mut owners = BTreeMap::<String, Vec<&NodeId>>::new();
    for (id, candidate) in candidates {
        owners.entry(candidate.hostname.clone()).or_default().push(id);
    }
    let mut names = BTreeMap::<String, Vec<&NodeId>>::new();
    for (hostname, ids) in owners {
        let alone = ids.len() == 1;
        for id in ids {
            let short: String = id.as_str().chars().take(8).collect();
            let name = if alone { hostname.clone() } else { format!("{hostname}.{short}") };
            names.entry(name).or_default().push(id);
        }
    }
    // A host may be called what another was just named; then only the whole identity is sure.
    let named = names.into_iter().flat_map(|(name, ids)| {
        let alone = ids.len() == 1;
        ids.into_iter().map(move |id| {
            let name = if alone { name.clone() } else { format!("{name}.{id}") };
            (id.clone(), NodeName::new(name))
        })
    });
    named.collect()
}
