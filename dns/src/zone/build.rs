//! From a snapshot to its names.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use weir_mesh::{MeshSnapshot, NetworkId, Service as MeshService, Task as MeshTask, TaskState};

use super::{
    Holder, Network, Owner, Part, PortName, Service, Task, What, Zone, ZoneSettings, names::Names,
    position,
};
use crate::name::from_text;

/// In front of the name of the one task of a service that the cluster merge made for its own ports
/// (decision 9). It is in the zone with its service already.
const OF_ONE_TASK: char = '@';

impl Zone {
    /// All names of a snapshot.
    pub fn build(snapshot: &MeshSnapshot, settings: ZoneSettings) -> Self {
        let mut zone = Self {
            generation: snapshot.generation,
            settings,
            networks: Vec::with_capacity(snapshot.networks.len()),
            by_id: HashMap::new(),
            by_name: HashMap::new(),
            port_names: HashMap::new(),
            names: Names::default(),
            services: Vec::new(),
            vips: Vec::new(),
            tasks: Vec::new(),
            ports: Vec::new(),
            named: Vec::new(),
            reverse: Vec::new(),
        };
        for (id, network) in &snapshot.networks {
            let Some(name) = from_text(&network.name) else { continue };
            let at = position(&zone.networks);
            zone.by_id.insert(id.clone(), at);
            zone.by_name.entry(name.clone()).or_default().push(at);
            zone.networks.push(Network { name, subnets: network.subnets.clone() });
        }
        for service in snapshot.services.values() {
            if !service.name.as_str().contains(OF_ONE_TASK) {
                zone.take(service);
            }
        }
        zone.settle();
        zone
    }

    fn take(&mut self, service: &MeshService) {
        let Some(name) = from_text(service.name.as_str()) else { return };
        let of_tasks = service.tasks.iter().flat_map(|task| task.networks.keys());
        let networks: BTreeSet<&NetworkId> = service.vips.keys().chain(of_tasks).collect();
        let name = self.names.keep(&name);
        let tasks = service.tasks.iter().filter_map(|task| {
            let name = from_text(task.name.as_str())?;
            Some((self.names.keep(&name), task))
        });
        let named_tasks: Vec<(Part, &MeshTask)> = tasks.collect();
        let ports = service.ports.iter().map(|port| (port.protocol, port.target.get()));
        let ports = Part::append(&mut self.ports, ports.collect::<BTreeSet<_>>());
        let named =
            service.port_names.iter().map(|(name, port)| (self.port_name(name), port.get()));
        let named: Vec<_> = named.collect();
        let named = Part::append(&mut self.named, named);
        for id in networks {
            let Some(&network) = self.by_id.get(id) else { continue };
            let holder = Holder { network, what: What::Service(position(&self.services)) };
            self.names.add(name, holder);
            self.names.add_all(service.aliases.get(id), holder);
            let vips = service.vips.get(id).into_iter().flatten().copied();
            let vips = Part::append(&mut self.vips, vips);
            for at in vips.from..vips.to {
                self.reverse.push(Owner { address: self.vips[at as usize], network, name });
            }
            let tasks = self.tasks(&named_tasks, id, network);
            self.services.push(Service { name, network, vips, tasks, ports, named });
        }
    }

    fn port_name(&mut self, name: &str) -> PortName {
        let next = PortName(u32::try_from(self.port_names.len()).unwrap_or(u32::MAX));
        *self.port_names.entry(name.as_bytes().into()).or_insert(next)
    }

    /// The tasks that are given out. One that is draining is still known by its address.
    fn tasks(&mut self, tasks: &[(Part, &MeshTask)], id: &NetworkId, network: u32) -> Part {
        let from = position(&self.tasks);
        let mut seen = BTreeSet::new();
        for (name, task) in tasks {
            let Some(addresses) = task.networks.get(id) else { continue };
            let name = *name;
            if task.state != TaskState::Down {
                let owner = |address: &IpAddr| Owner { address: *address, network, name };
                self.reverse.extend(addresses.iter().map(owner));
            }
            // A new task may have the address of one whose end is not known yet.
            if !takes_flows(task) || !addresses.iter().all(|address| seen.insert(*address)) {
                continue;
            }
            let holder = Holder { network, what: What::Task(position(&self.tasks)) };
            self.names.add(name, holder);
            self.names.add_all(task.aliases.get(id), holder);
            let mut v4 = addresses.iter().filter_map(|address| match address {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            });
            let mut v6 = addresses.iter().filter_map(|address| match address {
                IpAddr::V6(v6) => Some(*v6),
                IpAddr::V4(_) => None,
            });
            let (ipv4, ipv6) = (v4.next(), v6.next());
            self.tasks.push(Task { name, ipv4, ipv6, weight: task.weight });
        }
        Part { from, to: position(&self.tasks) }
    }

    /// Brings the lists into the form in which they are kept.
    fn settle(&mut self) {
        self.names.settle();
        // The first of a network has the address.
        self.reverse.sort_by_key(|owner| owner.address);
        let mut owners: Vec<Owner> = Vec::with_capacity(self.reverse.len());
        for owner in self.reverse.drain(..) {
            let same = owners.iter().rev().take_while(|known| known.address == owner.address);
            if same.clone().all(|known| known.network != owner.network) {
                owners.push(owner);
            }
        }
        self.reverse = owners;
        self.reverse.shrink_to_fit();
        self.services.shrink_to_fit();
        self.vips.shrink_to_fit();
        self.tasks.shrink_to_fit();
        self.ports.shrink_to_fit();
        self.named.shrink_to_fit();
    }
}

impl Names {
    /// Somebody has these names besides.
    fn add_all(&mut self, aliases: Option<&Vec<String>>, holder: Holder) {
        for alias in aliases.into_iter().flatten() {
            if let Some(alias) = from_text(alias) {
                let alias = self.keep(&alias);
                self.add(alias, holder);
            }
        }
    }
}

fn takes_flows(task: &MeshTask) -> bool {
    task.state == TaskState::Active && task.weight > 0
}
