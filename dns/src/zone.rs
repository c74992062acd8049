//! Which names there are: a pure function of a snapshot. A zone is built whole and swapped whole.
//!
//! Every name is on a network, and is seen by whoever is attached to it. What is kept are services
//! and tasks by name; `tasks.`, `_port._proto.` and `<name>.<network>` are taken apart when they are
//! asked for.

mod addresses;
mod build;
mod find;
mod names;
mod reverse;
mod text;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use weir_mesh::{Generation, NetworkId, NodeName, Protocol};

pub use addresses::{Addresses, Srv};
pub use find::{AskedPort, Found, Kind};
pub use reverse::{Reverse, address_in, is_reverse};

use self::names::Names;
use crate::name::Key;

/// What a zone is told besides the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneSettings {
    /// The domain that all names are under, besides being asked for bare.
    pub domain: Key,
    /// How long an answer may be kept.
    pub ttl: Duration,
    /// This node.
    pub node: NodeName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// All names of a snapshot.
///
/// What there is much of is in a few long lists, and refers to others by position: a zone is made and
/// given back beside one that answers, and a mesh may have a hundred thousand names.
#[derive(Debug)]
pub struct Zone {
    /// Of which snapshot.
    pub generation: Generation,
    settings: ZoneSettings,
    networks: Vec<Network>,
    by_id: HashMap<NetworkId, u32>,
    by_name: HashMap<Key, Vec<u32>>,
    /// Names of ports.
    port_names: HashMap<Box<[u8]>, PortName>,
    names: Names,
    services: Vec<Service>,
    vips: Vec<IpAddr>,
    tasks: Vec<Task>,
    ports: Vec<(Protocol, u16)>,
    /// Target ports by what they are called.
    named: Vec<(PortName, u16)>,
    /// By address.
    reverse: Vec<Owner>,
}

/// A part of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    from: u32,
    to: u32,
}

/// Which networks somebody sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Those at these positions of the zone.
    Some(Arc<[u32]>),
}

#[derive(Debug)]
struct Network {
    name: Key,
    subnets: Vec<IpNet>,
}

/// A service on one network.
#[derive(Debug)]
struct Service {
    name: Part,
    network: u32,
    /// Its virtual addresses; none: its name stands for its tasks.
    vips: Part,
    /// Those that take flows.
    tasks: Part,
    ports: Part,
    named: Part,
}

/// A name of ports, by number. Services may mean different ports by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortName(u32);

#[derive(Debug)]
struct Task {
    name: Part,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    weight: u16,
}

/// What has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Holder {
    network: u32,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// A service, by position.
    Service(u32),
    /// A task, by position.
    Task(u32),
    /// Nothing itself, but there are names below it.
    Parent,
}

/// Who has an address.
#[derive(Debug)]
struct Owner {
    address: IpAddr,
    network: u32,
    name: Part,
}

impl Part {
    /// Appends to a list, and answers where.
    fn append<T>(list: &mut Vec<T>, more: impl IntoIterator<Item = T>) -> Self {
        let from = position(list);
        list.extend(more);
        Self { from, to: position(list) }
    }

    fn of<T>(self, list: &[T]) -> &[T] {
        &list[self.from as usize..self.to as usize]
    }
}

/// That of what comes next.
fn position<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

impl Scope {
    /// Whether it includes the network at this position.
    pub fn includes(&self, network: u32) -> bool {
        match self {
            Self::All => true,
            Self::Some(networks) => networks.contains(&network),
        }
    }
}

impl Zone {
    /// The domain that names are under.
    pub fn domain(&self) -> &[u8] {
        &self.settings.domain
    }

    /// The settings it was built with.
    pub fn settings(&self) -> &ZoneSettings {
        &self.settings
    }

    /// The scope of somebody who is attached to `networks`.
    pub fn scope<'a>(&self, networks: impl IntoIterator<Item = &'a NetworkId>) -> Scope {
        let found = networks.into_iter().filter_map(|network| self.by_id.get(network).copied());
        Scope::Some(found.collect())
    }

    /// The scope of the networks with these names. The first that is not there is answered instead.
    pub fn scope_of_names<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Scope, &'a str> {
        let mut found = Vec::new();
        for name in names {
            let known = crate::name::from_text(name).and_then(|key| self.by_name.get(&key));
            found.extend(known.ok_or(name)?);
        }
        Ok(Scope::Some(found.into()))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
