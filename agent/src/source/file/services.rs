//! Nodes, services and tasks as they stand in the file, each checked on its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use weir_mesh::{
    Access, Balance, EndpointMode, Health, Locality, NetworkId, Node, NodeName, Port, Proxied,
    Service, ServiceName, TargetPort, Task, TaskName, TaskState, Timeouts, is_port_name,
    ports::PortSpec,
};

use super::{clients, health, networks, proxied, publish};
use crate::document::{Table, Value};

/// A service and where it stands.
pub(super) struct ServiceDraft {
    pub name: ServiceName,
    pub offset: usize,
    pub balance: Balance,
    pub locality: Locality,
    pub access: Access,
    pub ports: Vec<PortDraft>,
    pub tasks: Vec<TaskDraft>,
    /// What tasks that have other mistakes name as their node, and where.
    pub loose_nodes: Vec<(String, usize)>,
    pub timeouts: Timeouts,
    pub health: Health,
    pub proxied: Proxied,
    pub vips: BTreeMap<NetworkId, Vec<IpAddr>>,
    pub aliases: BTreeMap<NetworkId, Vec<String>>,
    /// What its target ports are called.
    pub port_names: BTreeMap<String, TargetPort>,
    /// Networks on which it wants a virtual address from the pool, and where that is written.
    pub wants: Vec<(NetworkId, usize)>,
}

/// A published port and where it stands.
pub(super) struct PortDraft {
    pub spec: PortSpec,
    pub offset: usize,
}

/// A task and where it stands.
pub(super) struct TaskDraft {
    pub task: Task,
    pub offset: usize,
    /// Where its `node` stands.
    pub node_offset: usize,
}

/// Names of nodes, each kept once however many tasks the node runs.
#[derive(Default)]
pub(super) struct NodeNames(BTreeMap<String, NodeName>);

impl NodeNames {
    fn of(&mut self, name: &str) -> NodeName {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let new = NodeName::new(name);
        self.0.insert(name.to_owned(), new.clone());
        new
    }
}

impl ServiceDraft {
    /// What it publishes.
    pub(super) fn specs(&self) -> Box<[PortSpec]> {
        self.ports.iter().map(|port| port.spec).collect()
    }

    /// The service, with numbers for all of its ports.
    pub(super) fn into_service(self, ports: Vec<Port>) -> Service {
        let mut tasks: Vec<Task> = self.tasks.into_iter().map(|task| task.task).collect();
        // Collected in the place of the drafts, which are larger and were not counted before.
        tasks.shrink_to_fit();
        let Self { name, balance, locality, access, timeouts, health, .. } = self;
        let Self { proxied, vips, aliases, port_names, .. } = self;
        Service {
            name,
            balance,
            locality,
            access,
            ports,
            tasks,
            timeouts,
            health,
            endpoint_mode: EndpointMode::default(),
            proxied,
            vips,
            aliases,
            port_names,
        }
    }
}

/// The name of a node, also if the rest is wrong, and the node.
pub(super) fn node(table: Table<'_, '_>) -> (Option<String>, Option<Node>) {
    let Some(name) = name_of(table, "node", "name = \"n1\"") else { return (None, None) };
    let subject = format!("node {name}");
    let table = table.named(&subject);
    table.allow_only(&["name", "address", "networks", "space"]);
    let address = table.require("address", "write its underlay address: address = \"10.0.0.11\"");
    let address = address.and_then(crate::config::node_address);
    let spaces = networks::spaces(table, &subject);
    let node = address.map(|address| Node { spaces, ..Node::new(NodeName::new(name), address) });
    (Some(name.to_owned()), node)
}

/// Reads a service whole, also when parts of it are wrong, so that all mistakes are found.
pub(super) fn service(
    table: Table<'_, '_>,
    defaults: Timeouts,
    names: &mut NodeNames,
) -> Option<ServiceDraft> {
    let name = name_of(table, "service", "name = \"web\"");
    let subject = match name {
        Some(name) => format!("service {name}"),
        None => "service without name".to_owned(),
    };
    let table = table.named(&subject);
    let keys = [
        "name",
        "balance",
        "affinity",
        "locality",
        "allow",
        "deny",
        "publish",
        "task",
        "timeouts",
        "health",
        "eject",
        "vip",
        "aliases",
        "networks",
        "port_names",
    ];
    table.allow_only(&[&keys[..], &proxied::KEYS].concat());
    let balance = clients::balance(table);
    let locality = table.get("locality").and_then(clients::locality).unwrap_or_default();
    let access = clients::access(table);
    let ports = table.get("publish").map(publish::ports).unwrap_or_default();
    let tasks = table.get("task").and_then(|tasks| tasks.list("[[service.task]]"));
    let mut loose_nodes = Vec::new();
    let tasks = tasks.into_iter().flatten();
    let tasks = tasks.filter_map(|value| task(value, &subject, &mut loose_nodes, names)).collect();
    let timeouts = match table.get("timeouts").and_then(|t| t.table("[service.timeouts]")) {
        Some(timeouts) => timeouts_of(timeouts, &subject, defaults),
        None => defaults,
    };
    let health = Health {
        check: table.get("health").and_then(|value| health::check(value, &subject, &ports)),
        ejection: health::ejection(table.get("eject"), &subject),
    };
    let vip_subject = format!("{subject}: vip");
    let vips = table.get("vip").map(|vip| networks::by_network(vip, &vip_subject));
    let alias_subject = format!("{subject}: aliases");
    let aliases = table.get("aliases").map(|own| networks::aliases(own, &alias_subject));
    let names_subject = format!("{subject}: port_names");
    let port_names = table.get("port_names").map(|own| port_names(own, &names_subject));
    let wants = table.get("networks").map(networks::wanted).unwrap_or_default();
    let name = ServiceName::new(name?);
    Some(ServiceDraft {
        name,
        offset: table.offset(),
        balance,
        locality,
        access,
        ports,
        tasks,
        loose_nodes,
        timeouts,
        health,
        proxied: proxied::proxied(table, &subject),
        vips: vips.unwrap_or_default(),
        aliases: aliases.unwrap_or_default(),
        port_names: port_names.unwrap_or_default(),
        wants,
    })
}

/// Names of target ports: `{ http = 80 }`.
fn port_names(value: Value<'_, '_>, subject: &str) -> BTreeMap<String, TargetPort> {
    let Some(table) = value.table("names of target ports: { http = 80 }") else {
        return BTreeMap::new();
    };
    let read = |(name, value): (&str, Value<'_, '_>)| {
        if !is_port_name(name) {
            value.fault(
                "not a name for a port",
                "write at most 62 letters, digits and dashes, not digits alone: { http = 80 }",
            );
            return None;
        }
        let port = u16::try_from(value.number(1..=65_535)?).ok()?;
        Some((name.to_ascii_lowercase(), TargetPort::new(port)?))
    };
    table.named(subject).entries().filter_map(read).collect()
}

fn task(
    value: Value<'_, '_>,
    service: &str,
    loose_nodes: &mut Vec<(String, usize)>,
    names: &mut NodeNames,
) -> Option<TaskDraft> {
    let table = value.table("[[service.task]]")?.named(service);
    let name = name_of(table, "task", "name = \"web.1\"");
    let subject = match name {
        Some(name) => format!("{service}: task {name}"),
        None => format!("{service}: task without name"),
    };
    let table = table.named(&subject);
    table.allow_only(&["name", "node", "address", "weight", "state", "networks", "aliases"]);
    let node = table.require("node", "write the name of the [[node]] that runs it");
    let node = node.and_then(|node| Some((node.string("the name of a [[node]]")?, node.offset())));
    let address = table.require("address", ADDRESS).and_then(addresses);
    let weight = table.get("weight").and_then(|weight| weight.number(0..=u64::from(MAX_WEIGHT)));
    let state = table.get("state").and_then(state).unwrap_or_default();
    let networks_subject = format!("{subject}: networks");
    let networks = table.get("networks").map(|own| networks::by_network(own, &networks_subject));
    let alias_subject = format!("{subject}: aliases");
    let aliases = table.get("aliases").map(|own| networks::aliases(own, &alias_subject));
    let (node, node_offset) = node?;
    let Some((name, (ipv4, ipv6))) = name.zip(address) else {
        loose_nodes.push((node.to_owned(), node_offset));
        return None;
    };
    let task = Task {
        ipv4,
        ipv6,
        weight: weight.and_then(|weight| u16::try_from(weight).ok()).unwrap_or(1),
        state,
        networks: networks.unwrap_or_default(),
        aliases: aliases.unwrap_or_default(),
        ..Task::new(TaskName::new(name), names.of(node))
    };
    Some(TaskDraft { task, offset: table.offset(), node_offset })
}

const MAX_WEIGHT: u16 = 1000;
const ADDRESS: &str = "write where its node reaches it: address = \"172.18.0.3\"";

fn name_of<'t>(table: Table<'t, '_>, what: &str, example: &str) -> Option<&'t str> {
    let value = table.require("name", &format!("give the {what} a name: {example}"))?;
    let name = value.string(example)?;
    if name.len() > 253 || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        value.fault("not a name", "write at most 253 characters without blanks");
        return None;
    }
    Some(name)
}

fn state(value: Value<'_, '_>) -> Option<TaskState> {
    let states = [TaskState::Active, TaskState::Draining, TaskState::Down];
    value.choice(&states.map(|state| (state.as_str(), state)))
}

/// One address, or one of each family.
pub(super) fn addresses(value: Value<'_, '_>) -> Option<(Option<Ipv4Addr>, Option<Ipv6Addr>)> {
    let mut found = (None, None);
    if value.is_list() {
        let before = found;
        for entry in value.list(ADDRESS)? {
            take_address(entry, &mut found)?;
        }
        if found == before {
            value.fault("an empty list", "write one such as \"172.18.0.3\" or \"fd18::3\"");
            return None;
        }
    } else {
        take_address(value, &mut found)?;
    }
    Some(found)
}

fn take_address(
    value: Value<'_, '_>,
    found: &mut (Option<Ipv4Addr>, Option<Ipv6Addr>),
) -> Option<()> {
    let address = value.parse("an IP address", "one such as \"172.18.0.3\" or \"fd18::3\"")?;
    let unfit = match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ => None,
    };
    if let Some(unfit) = unfit {
        value.fault(unfit, "write an address at which others reach it");
        return None;
    }
    let second = match address {
        IpAddr::V4(v4) => found.0.replace(v4).is_some(),
        IpAddr::V6(v6) => found.1.replace(v6).is_some(),
    };
    if second {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let problem = format!("a second {family} address");
        value.fault(problem, "write at most one IPv4 and one IPv6 address");
        return None;
    }
    Some(())
}

fn timeouts_of(table: Table<'_, '_>, service: &str, defaults: Timeouts) -> Timeouts {
    let subject = format!("{service}: timeouts");
    let table = table.named(&subject);
    let mut timeouts = defaults;
    let mut fields = [
        ("tcp_syn", &mut timeouts.tcp_syn),
        ("tcp_established", &mut timeouts.tcp_established),
        ("tcp_fin", &mut timeouts.tcp_fin),
        ("tcp_reset", &mut timeouts.tcp_reset),
        ("udp_one_way", &mut timeouts.udp_one_way),
        ("udp_both_ways", &mut timeouts.udp_both_ways),
        ("drain", &mut timeouts.drain),
    ];
    table.allow_only(&fields.each_ref().map(|(key, _)| *key));
    for (key, field) in &mut fields {
        if let Some(duration) = table.get(key).and_then(|value| value.duration(MONTH)) {
            **field = duration;
        }
    }
    timeouts
}

const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// The `[[node]]` and `[[service]]` tables at the top of a piece.
pub(super) fn tables<'t, 'i>(
    root: Table<'t, 'i>,
    key: &'t str,
    header: &'static str,
) -> impl Iterator<Item = Table<'t, 'i>> + use<'t, 'i> {
    let entries = root.get(key).and_then(|value| value.list(header));
    entries.into_iter().flatten().filter_map(move |entry| entry.table(header))
}
