//! What is attached to which network, and at which addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use weir_mesh::{NetworkId, Space, SpaceAt};

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

/// What of a node is attached to networks: its own processes by `networks`, and further network
/// namespaces by `[[node.space]]`.
pub(super) fn spaces(node: Table<'_, '_>, subject: &str) -> Vec<Space> {
    let own = node.get("networks").map(networks).filter(|own| !own.is_empty());
    let own = own.map(|networks| Space { at: SpaceAt::Host, networks });
    let subject = format!("{subject}: space");
    let further = node.get("space").and_then(|spaces| spaces.list("[[node.space]]"));
    let further = further.into_iter().flatten().filter_map(|value| {
        let table = value.table("[[node.space]]")?.named(&subject);
        table.allow_only(&["path", "networks"]);
        let path = table.require("path", "write a file such as path = \"/run/netns/web\"");
        let listed = table.require("networks", &format!("write networks = {NETWORKS}"));
        let (at, networks) = (path.and_then(file), listed.map(networks));
        Some(Space { at: SpaceAt::File(at?), networks: networks? })
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
