//! From a snapshot to its names.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use weir_mesh::{MeshSnapshot, NetworkId, Service as MeshService, Task as MeshTask, TaskState};

use super::{Holder, Network, Owner, PortName, Service, Task, What, Zone, ZoneSettings};
use crate::name::{Asked, Key, from_text};

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
            services: Vec::new(),
            names: HashMap::new(),
            reverse: BTreeMap::new(),
        };
        for (id, network) in &snapshot.networks {
            let Some(name) = from_text(&network.name) else { continue };
            let at = position(&zone.networks);
            zone.by_id.insert(id.clone(), at);
            zone.by_name.entry(name.clone()).or_default().push(at);
            zone.networks.push(Network { name, subnets: network.subnets.clone() });
        }
        let mut names = Names::default();
        for service in snapshot.services.values() {
            if !service.name.as_str().contains(OF_ONE_TASK) {
                zone.take(service, &mut names);
            }
        }
        zone.names = names.finish();
        zone
    }

    fn take(&mut self, service: &MeshService, names: &mut Names) {
        let Some(key) = from_text(service.name.as_str()) else { return };
        let of_tasks = service.tasks.iter().flat_map(|task| task.networks.keys());
        let named: Vec<_> = service
            .port_names
            .iter()
            .map(|(name, port)| (self.port_name(name), port.get()))
            .collect();
        let networks: BTreeSet<&NetworkId> = service.vips.keys().chain(of_tasks).collect();
        for id in networks {
            let Some(&network) = self.by_id.get(id) else { continue };
            let at = position(&self.services);
            names.add(&key, Holder { network, what: What::Service(at) });
            for alias in service.aliases.get(id).into_iter().flatten() {
                names.add_text(alias, Holder { network, what: What::Service(at) });
            }
            let vips = service.vips.get(id).cloned().unwrap_or_default();
            for vip in &vips {
                self.own(*vip, network, &key);
            }
            let tasks = self.tasks(service, id, (at, network), names);
            let ports = service.ports.iter().map(|port| (port.protocol, port.target.get()));
            let ports: BTreeSet<_> = ports.collect();
            let ports = ports.into_iter().collect();
            let (name, named) = (key.clone(), named.clone());
            self.services.push(Service { name, network, vips, tasks, ports, named });
        }
    }

    fn port_name(&mut self, name: &str) -> PortName {
        let next = PortName(u32::try_from(self.port_names.len()).unwrap_or(u32::MAX));
        *self.port_names.entry(name.as_bytes().into()).or_insert(next)
    }

    /// The tasks that are given out. One that is draining is still known by its address.
    fn tasks(
        &mut self,
        service: &MeshService,
        id: &NetworkId,
        (at, network): (u32, u32),
        names: &mut Names,
    ) -> Vec<Task> {
        let mut tasks = Vec::new();
        let mut seen = BTreeSet::new();
        for task in &service.tasks {
            let Some(addresses) = task.networks.get(id) else { continue };
            let Some(name) = from_text(task.name.as_str()) else { continue };
            if task.state != TaskState::Down {
                addresses.iter().for_each(|address| self.own(*address, network, &name));
            }
            // A new task may have the address of one whose end is not known yet.
            if !takes_flows(task) || !addresses.iter().all(|address| seen.insert(*address)) {
                continue;
            }
            let holder = Holder { network, what: What::Task(at, position(&tasks)) };
            names.add(&name, holder);
            for alias in task.aliases.get(id).into_iter().flatten() {
                names.add_text(alias, holder);
            }
            let mut v4 = addresses.iter().filter_map(|address| match address {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            });
            let mut v6 = addresses.iter().filter_map(|address| match address {
                IpAddr::V6(v6) => Some(*v6),
                IpAddr::V4(_) => None,
            });
            tasks.push(Task { name, ipv4: v4.next(), ipv6: v6.next(), weight: task.weight });
        }
        tasks
    }

    fn own(&mut self, address: IpAddr, network: u32, name: &Key) {
        let own_name = [&**name, &*self.networks[network as usize].name].concat().into();
        let owners = self.reverse.entry(address).or_default();
        if owners.iter().all(|owner| owner.network != network) {
            owners.push(Owner { network, name: own_name });
        }
    }
}

fn takes_flows(task: &MeshTask) -> bool {
    task.state == TaskState::Active && task.weight > 0
}

fn position<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

/// Names being collected, with those above them.
#[derive(Default)]
struct Names(HashMap<Key, Vec<Holder>>);

impl Names {
    fn add_text(&mut self, name: &str, holder: Holder) {
        if let Some(key) = from_text(name) {
            self.add(&key, holder);
        }
    }

    fn add(&mut self, key: &Key, holder: Holder) {
        let Some(name) = Asked::of(key).filter(|name| name.labels() > 0) else { return };
        self.put(key, holder);
        for label in 1..name.labels() {
            let parent = Holder { network: holder.network, what: What::Parent };
            self.put(name.part(label, name.labels()), parent);
        }
    }

    fn put(&mut self, key: &[u8], holder: Holder) {
        match self.0.get_mut(key) {
            Some(holders) if holders.contains(&holder) => {}
            Some(holders) => holders.push(holder),
            None => drop(self.0.insert(key.into(), vec![holder])),
        }
    }

    fn finish(self) -> HashMap<Key, Box<[Holder]>> {
        self.0.into_iter().map(|(name, holders)| (name, holders.into())).collect()
    }
}
