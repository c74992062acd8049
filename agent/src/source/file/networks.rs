//! What is attached to which network, and at which addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use ipnet::IpNet;
use weir_mesh::{Network, NetworkId, Service, Space, SpaceAt};

use super::services::addresses;
use crate::document::{Table, Value};

const NETWORKS: &str = "a list of names of networks: [\"blue\"]";

/// Addresses by network: `{ blue = "10.0.9.3", green = ["10.0.8.3", "fd09::3"] }`.
pub(super) fn by_network(value: Value<'_, '_>, subject: &str) -> BTreeMap<NetworkId, Vec<IpAddr>> {
    let example = "the addresses by network: { blue = \"10.0.9.3\" }";
    let Some(table) = value.table(example) else { return BTreeMap::new() };
    let read = |(name, value): (&str, Value<'_, '_>)| {
        let network = network(name, value)?;
        let (ipv4, ipv6) = addresses(value)?;
        let both = ipv4.map(IpAddr::V4).into_iter().chain(ipv6.map(IpAddr::V6));
        Some((network, both.collect()))
    };
    table.named(subject).entries().filter_map(read).collect()
}

/// Further names by network: `{ blue = ["db", "postgres"] }`.
pub(super) fn aliases(value: Value<'_, '_>, subject: &str) -> BTreeMap<NetworkId, Vec<String>> {
    let example = "further names by network: { blue = [\"db\"] }";
    let Some(table) = value.table(example) else { return BTreeMap::new() };
    let read = |(name, value): (&str, Value<'_, '_>)| {
        let network = network(name, value)?;
        let names = value.list("[\"db\"]")?;
        Some((network, names.filter_map(alias).collect()))
    };
    table.named(subject).entries().filter_map(read).collect()
}

fn alias(value: Value<'_, '_>) -> Option<String> {
    let name = value.string("a name such as \"db\"")?;
    if weir_dns::name::from_text(name).is_none_or(|key| key.is_empty()) {
        value.fault(
            "not a name for DNS",
            "write labels of at most 63 characters, with dots between",
        );
        return None;
    }
    Some(name.to_owned())
}

/// A `[[network]]` and where it stands.
pub(super) struct NetworkDraft {
    pub id: NetworkId,
    pub subnets: Vec<IpNet>,
    /// Where virtual addresses come from.
    pub pools: Vec<IpNet>,
    /// Whether packets that are routed to a node for one are balanced.
    pub routed: bool,
    pub offset: usize,
}

/// Reads a `[[network]]`.
pub(super) fn network_table(table: Table<'_, '_>) -> Option<NetworkDraft> {
    let value = table.require("name", "give the network a name: name = \"blue\"")?;
    let id = network(value.string("name = \"blue\"")?, value)?;
    let subject = format!("network {id}");
    let table = table.named(&subject);
    table.allow_only(&["name", "subnets", "vips", "routed"]);
    let subnets = table.get("subnets").map(|value| subnets(value, 0)).unwrap_or_default();
    let pools = table.get("vips").map(pools).unwrap_or_default();
    let routed =
        table.get("routed").and_then(|value| value.switch("routed = true")).unwrap_or_default();
    Some(NetworkDraft { id, subnets, pools, routed, offset: table.offset() })
}

/// One of each family at most, with room for some services.
fn pools(value: Value<'_, '_>) -> Vec<IpNet> {
    let pools = subnets(value, 3);
    let of = |v4: bool| pools.iter().filter(|pool| pool.addr().is_ipv4() == v4).count();
    if of(true) > 1 || of(false) > 1 {
        value.fault("two pools of one family", "write at most one IPv4 and one IPv6 subnet");
    }
    pools
}

fn subnets(value: Value<'_, '_>, least_bits: u8) -> Vec<IpNet> {
    let one = |value: Value<'_, '_>| {
        let subnet: IpNet = value.parse("a subnet", "one such as \"10.0.9.0/24\"")?;
        if subnet.max_prefix_len() - subnet.prefix_len() < least_bits {
            value.fault("too small", "write a subnet of at least 8 addresses");
            return None;
        }
        Some(subnet.trunc())
    };
    let entries = value.list("[\"10.0.9.0/24\"]").into_iter().flatten();
    entries.filter_map(one).collect()
}

/// Networks on which a service wants an address, and where each is written.
pub(super) fn wanted(value: Value<'_, '_>) -> Vec<(NetworkId, usize)> {
    let entries = value.list(NETWORKS).into_iter().flatten();
    let one = |entry: Value<'_, '_>| {
        let name = entry.string("the name of a [[network]]")?;
        Some((network(name, entry)?, entry.offset()))
    };
    entries.filter_map(one).collect()
}

/// The networks on which services have something, and those that are declared: they are called as
/// they are written.
pub(super) fn named<'a>(
    services: impl IntoIterator<Item = &'a Arc<Service>>,
    declared: impl IntoIterator<Item = NetworkDraft>,
) -> BTreeMap<NetworkId, Network> {
    let network = |id: &NetworkId| Network::new(id.as_str());
    let declared = declared.into_iter().map(|draft| {
        let NetworkDraft { id, mut subnets, pools, routed, .. } = draft;
        subnets.extend(pools);
        let network = Network { subnets, routed, ..network(&id) };
        (id, network)
    });
    let mut named: BTreeMap<NetworkId, Network> = declared.collect();
    for service in services {
        let of_tasks = service.tasks.iter().flat_map(|task| task.networks.keys());
        for id in service.vips.keys().chain(of_tasks) {
            // Most name one that is known.
            if !named.contains_key(id) {
                named.insert(id.clone(), network(id));
            }
        }
    }
    named
}

/// What of a node is attached to networks: its own processes by `networks`, and further network
/// namespaces by `[[node.space]]`.
pub(super) fn spaces(node: Table<'_, '_>, subject: &str) -> Vec<Space> {
    let own = node.get("networks").map(networks).filter(|own| !own.is_empty());
    let own = own.map(|networks| Space { at: SpaceAt::Host, networks, addresses: Vec::new() });
    let subject = format!("{subject}: space");
    let further = node.get("space").and_then(|spaces| spaces.list("[[node.space]]"));
    let further = further.into_iter().flatten().filter_map(|value| {
        let table = value.table("[[node.space]]")?.named(&subject);
        table.allow_only(&["path", "networks", "address"]);
        let path = table.require("path", "write a file such as path = \"/run/netns/web\"");
        let listed = table.require("networks", &format!("write networks = {NETWORKS}"));
        let (at, networks) = (path.and_then(file), listed.map(networks));
        let asks = table.get("address").and_then(addresses).unwrap_or_default();
        let addresses = asks.0.map(IpAddr::V4).into_iter().chain(asks.1.map(IpAddr::V6));
        Some(Space { at: SpaceAt::File(at?), networks: networks?, addresses: addresses.collect() })
    });
    own.into_iter().chain(further).collect()
}

fn networks(value: Value<'_, '_>) -> BTreeSet<NetworkId> {
    let entries = value.list(NETWORKS).into_iter().flatten();
    entries.filter_map(|entry| network(entry.string("the name of a network")?, entry)).collect()
}

fn network(name: &str, value: Value<'_, '_>) -> Option<NetworkId> {
    if name.is_empty() || name.len() > 253 || name.chars().any(|c| c.is_whitespace()) {
        value.fault("not the name of a network", "write at most 253 characters without blanks");
        return None;
    }
    Some(NetworkId::new(name))
}

fn file(value: Value<'_, '_>) -> Option<PathBuf> {
    let path = PathBuf::from(value.string("a file such as \"/run/netns/web\"")?);
    if path.is_relative() {
        value.fault("not an absolute path", "write it from the root on: \"/run/netns/web\"");
        return None;
    }
    Some(path)
}
