//! Who sees what: the zone, and the scope of each address that may ask. Built whole, swapped whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use weir_mesh::{MeshSnapshot, NetworkId, NodeName, Space, SpaceAt, TaskState};

use crate::zone::{Scope, Zone, ZoneSettings};

/// What askers that are no containers may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Addresses of this node; loopback needs no mention.
    pub own: Vec<IpAddr>,
    /// Who else may ask.
    pub allow: Vec<IpNet>,
    /// The names of the networks that the node and the allowed see; `None`: all.
    pub networks: Option<Vec<String>>,
}

/// The zone and those who ask.
#[derive(Debug)]
pub struct Directory {
    /// `None` before the first snapshot.
    pub zone: Option<Arc<Zone>>,
    settings: ZoneSettings,
    askers: HashMap<IpAddr, Scope>,
    outside: Scope,
    own: BTreeSet<IpAddr>,
    allow: Vec<IpNet>,
    /// Names of networks that are to be seen from outside and are not there.
    pub missing: Vec<String>,
}

/// Somebody who may ask.
#[derive(Clone, Debug)]
pub struct Asker {
    /// What they see.
    pub scope: Scope,
    /// Whether names that are not ours are looked up for them.
    pub forward: bool,
}

impl Directory {
    /// Nothing is known yet.
    pub fn unready(settings: ZoneSettings, outside: &Outside) -> Self {
        Self {
            zone: None,
            settings,
            askers: HashMap::new(),
            outside: Scope::Some([].into()),
            own: outside.own.iter().copied().collect(),
            allow: outside.allow.clone(),
            missing: Vec::new(),
        }
    }

    /// Everybody who may ask about `zone`. The containers of `node` are known by the tasks that the
    /// snapshot has there, and by the `spaces` that a source sees; those know better.
    pub fn new(
        zone: Arc<Zone>,
        snapshot: &MeshSnapshot,
        node: &NodeName,
        spaces: &[Space],
        outside: &Outside,
    ) -> Self {
        let mut networks = tasks(snapshot, node);
        let declared = snapshot.nodes.get(node).map_or(&[][..], |node| &node.spaces);
        let mut known = BTreeMap::<IpAddr, BTreeSet<NetworkId>>::new();
        for space in declared.iter().chain(spaces).filter(|space| space.at != SpaceAt::Host) {
            for address in &space.addresses {
                known.entry(*address).or_default().extend(space.networks.iter().cloned());
            }
        }
        networks.extend(known);
        let scope =
            |(address, networks): (IpAddr, BTreeSet<NetworkId>)| (address, zone.scope(&networks));
        let (seen, missing) = outside_scope(&zone, outside);
        Self {
            askers: networks.into_iter().map(scope).collect(),
            missing,
            outside: seen,
            ..Self::unready(zone.settings().clone(), outside)
        }
        .with(zone)
    }

    fn with(self, zone: Arc<Zone>) -> Self {
        Self { zone: Some(zone), ..self }
    }

    /// Who asks from `address`. `None`: nobody who may.
    pub fn asker(&self, address: IpAddr) -> Option<Asker> {
        let address = address.to_canonical();
        if let Some(scope) = self.askers.get(&address) {
            return Some(Asker { scope: scope.clone(), forward: true });
        }
        let allowed = address.is_loopback()
            || self.own.contains(&address)
            || self.allow.iter().any(|allowed| allowed.contains(&address));
        if allowed {
            return Some(Asker { scope: self.outside.clone(), forward: true });
        }
        // A container that asks before it is known who there is: it may ask again.
        let near = self.zone.is_none() && is_local(address);
        near.then(|| Asker { scope: Scope::Some([].into()), forward: false })
    }

    /// The domain that names are under.
    pub fn domain(&self) -> &[u8] {
        &self.settings.domain
    }

    /// How long an answer may be kept.
    pub fn ttl(&self) -> Duration {
        self.settings.ttl
    }

    /// What the node itself and the allowed see.
    pub fn outside(&self) -> &Scope {
        &self.outside
    }

    /// How many containers are known.
    pub fn askers(&self) -> usize {
        self.askers.len()
    }
}

/// The tasks of a node by the addresses from which they ask. An address that two tasks have on
/// different networks says nothing.
fn tasks(snapshot: &MeshSnapshot, node: &NodeName) -> BTreeMap<IpAddr, BTreeSet<NetworkId>> {
    let mut found = BTreeMap::<IpAddr, BTreeSet<NetworkId>>::new();
    let mut unclear = BTreeSet::new();
    let tasks = snapshot.services.values().flat_map(|service| &service.tasks);
    for task in tasks.filter(|task| task.node == *node && task.state != TaskState::Down) {
        let networks: BTreeSet<NetworkId> = task.networks.keys().cloned().collect();
        let on_networks = task.networks.values().flatten().copied();
        let addresses: BTreeSet<IpAddr> = task.addresses().chain(on_networks).collect();
        for address in addresses {
            match found.get(&address) {
                Some(known) if *known != networks => drop(unclear.insert(address)),
                Some(_) => {}
                None => drop(found.insert(address, networks.clone())),
            }
        }
    }
    unclear.iter().for_each(|address| drop(found.remove(address)));
    found
}

fn outside_scope(zone: &Zone, outside: &Outside) -> (Scope, Vec<String>) {
    let Some(names) = &outside.networks else { return (Scope::All, Vec::new()) };
    let mut missing = Vec::new();
    let mut seen = Vec::new();
    for name in names {
        match zone.scope_of_names([name.as_str()]) {
            Ok(Scope::Some(networks)) => seen.extend_from_slice(&networks),
            Ok(Scope::All) => {}
            Err(name) => missing.push(name.to_owned()),
        }
    }
    (Scope::Some(seen.into()), missing)
}

/// Addresses that no stranger has.
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}
