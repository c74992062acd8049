//! From the text to a desired state that fits together.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use weir_mesh::{
    Generation, MeshSnapshot, Node, Port, ServiceName, Timeouts,
    ports::{PortSpec, assign_ports},
    snapshot::SnapshotError,
};

use super::{
    networks::{self, NetworkDraft},
    pieces::{Digest, pieces},
    pool,
    services::{self, NodeNames, ServiceDraft, TaskDraft},
};
use crate::{
    document::{Fault, Findings, Table, nearest, parse_piece},
    source::Desired,
};

/// Reads the text of a `mesh.toml` called `file`: the desired state, or everything that is wrong.
/// Services that set no timeouts get `defaults`.
pub fn parse(file: &str, text: &str, defaults: Timeouts) -> Result<Desired, Vec<Fault>> {
    parse_whole(file, text, defaults).map(|(desired, _)| desired)
}

/// The same, with what came from which piece of the text.
pub(super) fn parse_whole(
    file: &str,
    text: &str,
    defaults: Timeouts,
) -> Result<(Desired, Vec<Piece>), Vec<Fault>> {
    let findings = Findings::new(file, text);
    let mut drafts = Drafts::read(&findings, defaults);
    let pieces = std::mem::take(&mut drafts.pieces);
    let desired = drafts.assemble(&findings);
    match desired {
        Some(desired) if findings.is_empty() => Ok((desired, pieces)),
        _ => Err(findings.into_faults()),
    }
}

/// What one piece of the text says, as far as the rest of the mesh depends on it.
pub(super) struct Piece {
    /// Its length in bytes.
    pub len: usize,
    /// What tells its text from any other.
    pub digest: Digest,
    pub nodes: Vec<Node>,
    pub services: Vec<(ServiceName, Box<[PortSpec]>)>,
    /// Whether it says something of networks that concerns other services.
    pub of_networks: bool,
}

/// All that the file says, with where it stands.
#[derive(Default)]
pub(super) struct Drafts {
    nodes: Vec<Node>,
    node_offsets: Vec<usize>,
    /// Names of all nodes, also of those with mistakes, about which no more need be said.
    node_names: BTreeSet<String>,
    pub(super) services: Vec<ServiceDraft>,
    networks: Vec<NetworkDraft>,
    pub(super) pieces: Vec<Piece>,
    /// Names of nodes that tasks name, kept once each.
    names: NodeNames,
    /// A piece could not be parsed, so what seems missing may be in it.
    incomplete: bool,
}

/// Where the parts of one service stand.
struct Offsets {
    service: usize,
    ports: Vec<usize>,
    /// Of each task: itself, and its `node`.
    tasks: Vec<(usize, usize)>,
}

impl Drafts {
    fn read(findings: &Findings<'_>, defaults: Timeouts) -> Self {
        let mut drafts = Self::default();
        let pieces = pieces(findings.text());
        let keys: usize =
            pieces.into_iter().map(|piece| drafts.take_piece(findings, piece, defaults)).sum();
        if keys == 0 && findings.is_empty() {
            findings.note(
                0,
                "",
                "says nothing",
                "to publish nothing on purpose, write: service = []",
            );
        }
        drafts
    }

    /// Reads one piece and answers how many keys it has at its top.
    pub(super) fn take_piece(
        &mut self,
        findings: &Findings<'_>,
        range: Range<usize>,
        defaults: Timeouts,
    ) -> usize {
        let Some(document) = parse_piece(findings, range.clone()) else {
            self.incomplete |= findings.text()[range].contains("[[node");
            return 0;
        };
        let (nodes, services) = (self.nodes.len(), self.services.len());
        let root = Table::root(findings, &document, range.start);
        root.allow_only(&["node", "network", "service"]);
        let of_networks = root.get("network").is_some();
        for table in services::tables(root, "network", "[[network]]") {
            self.networks.extend(networks::network_table(table));
        }
        for table in services::tables(root, "node", "[[node]]") {
            self.take_node(table);
        }
        for table in services::tables(root, "service", "[[service]]") {
            self.services.extend(services::service(table, defaults, &mut self.names));
        }
        let services = self.services[services..].iter();
        let of_networks = of_networks || services.clone().any(|draft| !draft.wants.is_empty());
        self.pieces.push(Piece {
            of_networks,
            len: range.len(),
            digest: Digest::of(&findings.text()[range]),
            nodes: self.nodes[nodes..].to_vec(),
            services: services.map(|draft| (draft.name.clone(), draft.specs())).collect(),
        });
        document.get_ref().len()
    }

    fn take_node(&mut self, table: Table<'_, '_>) {
        let (name, draft) = services::node(table);
        self.node_names.extend(name);
        if let Some(node) = draft {
            self.nodes.push(node);
            self.node_offsets.push(table.offset());
        }
    }

    fn assemble(self, findings: &Findings<'_>) -> Option<Desired> {
        let ports = self.assign(findings)?;
        let mut vips = pool::vips(&self.networks, &self.services, findings);
        let mut offsets = Vec::with_capacity(self.services.len());
        let mut services = Vec::with_capacity(self.services.len());
        let mut loose_nodes = Vec::new();
        for (draft, ports) in self.services.into_iter().zip(ports) {
            note_shared_addresses(&draft, findings);
            offsets.push(Offsets::of(&draft));
            let loose = draft.loose_nodes.iter();
            loose_nodes.extend(loose.map(|(node, at)| (draft.name.clone(), node.clone(), *at)));
            let from_pool = vips.remove(&draft.name).unwrap_or_default();
            let mut service = draft.into_service(ports);
            service.vips.extend(from_pool);
            services.push(service);
        }
        let places = Places {
            findings,
            nodes: &self.node_offsets,
            node_names: &self.node_names,
            names: services.iter().map(|service| service.name.clone()).collect(),
            services: &offsets,
            incomplete: self.incomplete,
        };
        for (service, node, offset) in &loose_nodes {
            places.note_node(service, node, *offset);
        }
        match MeshSnapshot::build(Generation(0), self.nodes, services) {
            Ok(MeshSnapshot { nodes, services, .. }) => {
                let networks = networks::named(services.values(), self.networks);
                Some(Desired { here: None, nodes, services, networks })
            }
            Err(errors) => {
                errors.iter().for_each(|error| places.note(error));
                None
            }
        }
    }

    /// The ports of each service, in the order of the services. Of services with one name only the
    /// first gets ports: the others are a mistake that is reported as such.
    fn assign(&self, findings: &Findings<'_>) -> Option<Vec<Vec<Port>>> {
        let mut specs = BTreeMap::new();
        for draft in &self.services {
            let ports = || draft.specs().into_vec();
            specs.entry(draft.name.clone()).or_insert_with(ports);
        }
        match assign_ports(&specs) {
            Ok(mut assigned) => {
                let ports = |draft: &ServiceDraft| assigned.remove(&draft.name).unwrap_or_default();
                Some(self.services.iter().map(ports).collect())
            }
            Err(error) => {
                let draft = self.services.iter().find(|draft| draft.name == error.service);
                let offset = draft.map_or(0, |draft| draft.offset);
                let message = error.to_string();
                let (problem, remedy) = message.split_once("; ").unwrap_or((&message, ""));
                findings.note(offset, "publish", problem, remedy);
                None
            }
        }
    }
}

/// Two tasks of a service at one address are one task listed twice: it would get twice its share.
pub(super) fn note_shared_addresses(draft: &ServiceDraft, findings: &Findings<'_>) {
    let mut seen = BTreeMap::new();
    for TaskDraft { task, offset, .. } in &draft.tasks {
        for address in task.addresses() {
            if let Some(first) = seen.insert((&task.node, address), &task.name) {
                findings.note(
                    *offset,
                    format!("service {}: task {}", draft.name, task.name),
                    format!(
                        "has the address {address} that task {first} has on node {}",
                        task.node
                    ),
                    "give each task its own address, or one task more weight",
                );
            }
        }
    }
}

impl Offsets {
    fn of(draft: &ServiceDraft) -> Self {
        Self {
            service: draft.offset,
            ports: draft.ports.iter().map(|port| port.offset).collect(),
            tasks: draft.tasks.iter().map(|task| (task.offset, task.node_offset)).collect(),
        }
    }
}

/// Finds the place of what does not fit.
struct Places<'a, 'i> {
    findings: &'a Findings<'i>,
    nodes: &'a [usize],
    node_names: &'a BTreeSet<String>,
    names: Vec<ServiceName>,
    services: &'a [Offsets],
    incomplete: bool,
}

impl Places<'_, '_> {
    /// The first service of that name.
    fn service(&self, name: &ServiceName) -> Option<&Offsets> {
        self.names.iter().position(|known| known == name).and_then(|at| self.services.get(at))
    }

    /// Tasks are numbered within a service, and a name may stand for several services by mistake.
    fn task(&self, service: &ServiceName, at: usize) -> (usize, usize) {
        self.service(service).and_then(|offsets| offsets.tasks.get(at)).copied().unwrap_or_default()
    }

    fn note(&self, error: &SnapshotError) {
        let problem = error.to_string();
        let (offset, remedy) = match error {
            SnapshotError::DuplicateNode { at, .. } => {
                (self.nodes.get(*at).copied(), "give each node a name of its own".to_owned())
            }
            SnapshotError::DuplicateAddress { at, .. } => {
                (self.nodes.get(*at).copied(), "give each node its own address".to_owned())
            }
            SnapshotError::DuplicateService { at, service } => {
                let first = self.service(service).map_or(0, |first| first.service);
                let line = self.findings.line_of(first);
                let remedy = format!("rename one, or merge them; the first is on line {line}");
                (self.services.get(*at).map(|offsets| offsets.service), remedy)
            }
            SnapshotError::DuplicateTask { service, at, .. } => {
                let remedy = "give each task of a service a name of its own".to_owned();
                (Some(self.task(service, *at).0), remedy)
            }
            SnapshotError::UnknownNode { service, at, node, .. } => {
                return self.note_node(service, node.as_str(), self.task(service, *at).1);
            }
            SnapshotError::DuplicatePort { service, at, .. } => {
                let port = self.service(service).and_then(|offsets| offsets.ports.get(*at));
                (port.copied(), "take one of the two entries out".to_owned())
            }
            SnapshotError::PortConflict(conflict) => {
                let second = self.service(&conflict.second);
                let line = self.service(&conflict.first).map(|first| first.service);
                let line = line.map_or(0, |offset| self.findings.line_of(offset));
                let remedy = format!(
                    "choose another published port for one of them; {} is on line {line}",
                    conflict.first
                );
                (second.map(|second| second.service), remedy)
            }
        };
        self.findings.note(offset.unwrap_or_default(), "", problem, remedy);
    }

    /// Says so if a node is not in the file.
    fn note_node(&self, service: &ServiceName, node: &str, offset: usize) {
        if self.incomplete || self.node_names.contains(node) {
            return;
        }
        let key = format!("service {service}: node = \"{node}\"");
        self.findings.note(offset, key, "no such node", self.unknown_node(node));
    }

    fn unknown_node(&self, name: &str) -> String {
        let known = self.node_names.iter().map(String::as_str);
        match nearest(name, known.clone()) {
            Some(nearest) => format!("did you mean \"{nearest}\"?"),
            None if self.node_names.is_empty() => "list the nodes as [[node]]".to_owned(),
            None => {
                let some: Vec<&str> = known.take(8).collect();
                format!("add a [[node]], or name one of: {}", some.join(", "))
            }
        }
    }
}
