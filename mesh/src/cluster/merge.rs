//! Many words, one mesh: a pure function, so that nodes that know the same decide the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Declared, DeclaredService, Hearsay, Labels, NodeId, Note, Report, ServiceId, TaskId, health,
    labels::Wishes,
    nodes::Nodes,
    publish,
    tasks::{self, Placed},
};
use crate::service::{
    EndpointMode, Network, NetworkId, Node, NodeName, Service, ServiceName, Task, TaskState,
    Timeouts,
};

/// Everything that is known, and how current it is.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    /// What the managers last said; also when it is old.
    pub declared: Option<&'a Declared>,
    /// Docker's gossip; only while no manager's agent can be heard.
    pub hearsay: Option<&'a Hearsay>,
    /// The last report of each node; also when it is old.
    pub reports: &'a BTreeMap<NodeId, Arc<Report>>,
    /// The nodes whose reports are current. While nobody can tell, all of them: silence of the
    /// link itself is no reason to give tasks up.
    pub alive: &'a BTreeSet<NodeId>,
    /// The node that merges. What it says of itself is never hearsay.
    pub own: Option<&'a NodeId>,
    /// For services whose labels set no timeouts.
    pub timeouts: Timeouts,
}

/// One mesh. Sound in the sense of [`crate::MeshSnapshot::build`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// The nodes by name.
    pub nodes: BTreeMap<NodeName, Node>,
    /// The services by name.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// The networks on which services have names.
    pub networks: BTreeMap<NetworkId, Network>,
    /// What Swarm's nodes are called in the mesh.
    pub names: BTreeMap<NodeId, NodeName>,
    /// What is not as it was asked for.
    pub notes: BTreeSet<Note>,
}

/// Makes one mesh of all that is known.
///
/// A task is in it from the moment its own node calls it healthy until that node says it has ended.
/// It takes no new flows once anybody with a right to says that it should end: its node, Swarm,
/// or silence. Services come from the managers, else from gossip, else from the tasks themselves. One
/// that is removed, or not to be served, is there without ports for as long as its tasks are: their
/// flows go on until they end.
pub fn merge(words: &Words<'_>) -> Merged {
    let mut notes = BTreeSet::new();
    let Nodes { names, nodes } = Nodes::choose(words, &mut notes);
    let mut services = BTreeMap::new();
    for (name, draft) in drafts(words, &names) {
        let draft = draft.with_sound_tasks();
        let new = draft.services(&name, words, &mut notes);
        services.extend(new.into_iter().map(|(name, service)| (name, Arc::new(service))));
    }
    publish::settle_conflicts(&mut services, &mut notes);
    Merged { nodes, services, networks: networks(words), names, notes }
}

/// The networks that Swarm declares, but for the one that carries Docker's own mesh.
fn networks(words: &Words<'_>) -> BTreeMap<NetworkId, Network> {
    let declared = words.declared.into_iter().flat_map(|declared| &declared.networks);
    let own = declared.filter(|(_, network)| !network.ingress);
    own.map(|(id, network)| {
        let subnets = network.subnets.iter().filter_map(|subnet| subnet.parse().ok()).collect();
        (id.clone(), Network { subnets, ..Network::new(&network.name) })
    })
    .collect()
}

/// A service with everything that is said of it.
#[derive(Default)]
pub(super) struct Draft<'a> {
    pub declared: Option<&'a DeclaredService>,
    pub heard: Option<&'a super::HeardService>,
    pub tasks: Vec<Placed<'a>>,
}

fn drafts<'a>(
    words: &Words<'a>,
    names: &BTreeMap<NodeId, NodeName>,
) -> BTreeMap<ServiceName, Draft<'a>> {
    let mut drafts = BTreeMap::<ServiceName, Draft<'a>>::new();
    let mut by_id = BTreeMap::<&ServiceId, &ServiceName>::new();
    for (id, service) in words.declared.into_iter().flat_map(|declared| &declared.services) {
        by_id.insert(id, &service.name);
        drafts.entry(service.name.clone()).or_default().declared.get_or_insert(service);
    }
    for (name, heard) in words.hearsay.into_iter().flat_map(|hearsay| &hearsay.services) {
        drafts.entry(name.clone()).or_default().heard = Some(heard);
    }
    let mut seen = BTreeSet::<&TaskId>::new();
    for (node, report) in words.reports {
        let Some(node_name) = names.get(node) else { continue };
        for (id, task) in &report.tasks {
            if !tasks::may_speak(words, node, id) || !seen.insert(id) {
                continue;
            }
            let name = by_id.get(&task.service).copied();
            let draft = drafts.entry(name.unwrap_or(&task.service_name).clone()).or_default();
            let heard = draft.heard;
            let removed = words.declared.is_some() && name.is_none() && heard.is_none();
            let placed = Placed::of(words, (node, node_name), (id, task), heard);
            draft.tasks.extend(placed.map(|placed| placed.of_removed(removed)));
        }
    }
    drafts
}

impl Draft<'_> {
    /// Tasks in the order of their names, one of each name.
    fn with_sound_tasks(mut self) -> Self {
        tasks::one_for_each_address(&mut self.tasks);
        self.tasks.sort_by(|a, b| a.said.name.cmp(&b.said.name));
        self.tasks.dedup_by(|second, first| second.said.name == first.said.name);
        self
    }

    /// The service, and one more for each task with ports of its own.
    fn services(
        &self,
        name: &ServiceName,
        words: &Words<'_>,
        notes: &mut BTreeSet<Note>,
    ) -> Vec<(ServiceName, Service)> {
        // Of a service that is removed nothing needs to be put right.
        let mut unheard = BTreeSet::new();
        let removed = self.is_removed(words);
        let notes = if removed { &mut unheard } else { notes };
        let of_service = self.service_wishes(name, notes);
        let of_tasks: Vec<Wishes> = self.tasks.iter().map(|task| task.wishes(notes)).collect();
        // Containers of a service normally agree; during an update the first that says something
        // counts, which is the same one on every node.
        let wishes = of_tasks.iter().cloned().fold(of_service.clone(), Wishes::or);
        let served = wishes.enable != Some(false) && !removed;
        let weight = |task: &Wishes| task.weight.or(of_service.weight).unwrap_or(1);
        let tasks: Vec<Task> =
            self.tasks.iter().zip(&of_tasks).map(|(task, own)| task.task(weight(own))).collect();
        if removed && tasks.iter().all(|task| task.state == TaskState::Down) {
            // Dead containers may lie about for long; nothing flows to them.
            return Vec::new();
        }
        let ports = publish::ports(self, name, notes);
        let health = health::of(self, name, &wishes.health, &ports, notes);
        let access = wishes.access();
        let service = |name: ServiceName, ports, tasks| Service {
            balance: wishes.balance.unwrap_or_default(),
            locality: wishes.locality.unwrap_or_default(),
            access: access.clone(),
            ports: if served { ports } else { Vec::new() },
            tasks,
            timeouts: wishes.timeouts(words.timeouts),
            health: health.clone(),
            proxied: wishes.proxied(),
            port_names: wishes.port_names.clone().unwrap_or_default(),
            ..Service::new(name)
        };
        let mut services = Vec::new();
        for (placed, task) in self.tasks.iter().zip(&tasks) {
            let own = publish::own_ports(placed, &ports);
            if !own.is_empty() {
                let name = ServiceName::new(format!("{name}@{}", task.name));
                services.push((name.clone(), service(name, own, vec![task.clone()])));
            }
        }
        let vips = if served { self.vips(words) } else { BTreeMap::new() };
        let aliases = self.aliases();
        let endpoint_mode =
            self.declared.map_or(EndpointMode::Vip, |service| service.endpoint_mode);
        let whole = Service { endpoint_mode, vips, aliases, ..service(name.clone(), ports, tasks) };
        services.push((name.clone(), whole));
        services
    }

    /// Whether Swarm has removed it, and only its tasks are left.
    fn is_removed(&self, words: &Words<'_>) -> bool {
        words.declared.is_some() && self.declared.is_none() && self.heard.is_none()
    }

    /// Its virtual addresses, but for that on the network that carries Docker's own mesh: sharing it
    /// is no wish of anybody's.
    fn vips(&self, words: &Words<'_>) -> BTreeMap<NetworkId, Vec<IpAddr>> {
        let networks = words.declared.map(|declared| &declared.networks);
        let ingress = |id| networks.and_then(|all| all.get(id)).is_some_and(|one| one.ingress);
        let declared = self.declared.into_iter().flat_map(|service| &service.vips);
        declared.filter(|(id, _)| !ingress(*id)).map(|(id, ip)| (id.clone(), vec![*ip])).collect()
    }

    fn aliases(&self) -> BTreeMap<NetworkId, Vec<String>> {
        let declared = self.declared.into_iter().flat_map(|service| &service.networks);
        let some = declared.filter(|(_, aliases)| !aliases.is_empty());
        some.map(|(id, aliases)| (id.clone(), aliases.clone())).collect()
    }

    fn service_wishes(&self, name: &ServiceName, notes: &mut BTreeSet<Note>) -> Wishes {
        let nothing = Labels::new();
        let labels = self.declared.map_or(&nothing, |service| &service.labels);
        Wishes::read(labels, &format!("service {name}"), notes)
    }
}
