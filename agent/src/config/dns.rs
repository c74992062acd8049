//! The section `[dns]`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use weir_dns::{
    forward::{self, PORT, Route, RouteError, server_in},
    name::{Key, from_text},
    server,
};

use super::read::absolute_path;
use crate::{document::Value, reconciler::intercept::Networks};

/// The DNS server.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsConfig {
    /// Where it listens; nowhere: there is none.
    pub listen: Vec<ListenAt>,
    /// Whether somebody wrote that. What is only the default is no trouble when it cannot be had.
    pub wanted: bool,
    /// The domain that names are under.
    pub domain: Key,
    /// How long an answer may be kept.
    pub ttl: Duration,
    /// Who may ask, besides this node and its containers.
    pub allow: Vec<IpNet>,
    /// The networks that those and this node see; `None`: all.
    pub networks: Option<Vec<String>>,
    /// Who is asked for other names; `None`: those in `resolv_conf`.
    pub upstreams: Option<Vec<SocketAddr>>,
    /// Names the servers of the host.
    pub resolv_conf: PathBuf,
    /// Who is asked for the names of some domains.
    pub routes: Vec<Route>,
    /// The networks whose containers are answered here when they ask Docker's resolver.
    pub intercept: Networks,
    /// What is remembered, and how long one waits.
    pub forward: forward::Settings,
    /// How much at one time.
    pub server: server::Settings,
}

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAt {
    /// At an address; the unspecified one means all of the host's.
    Address(SocketAddr),
    /// At the addresses of an interface, as they come and go.
    Interface(String, u16),
}

/// What was written of it.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "each field is the key of its name, documented in keys.rs")]
pub struct DnsSettings {
    pub listen: Option<Vec<ListenAt>>,
    pub domain: Option<Key>,
    pub ttl: Option<Duration>,
    pub allow: Option<Vec<IpNet>>,
    pub networks: Option<Vec<String>>,
    pub upstreams: Option<Vec<SocketAddr>>,
    pub resolv_conf: Option<PathBuf>,
    pub routes: Option<Vec<Route>>,
    pub intercept: Option<Vec<String>>,
    pub cache: Option<usize>,
    pub stale: Option<Duration>,
    pub failover: Option<Duration>,
    pub workers: Option<usize>,
    pub under_way: Option<usize>,
    pub under_way_of_client: Option<usize>,
    pub connections: Option<usize>,
    pub connections_of_client: Option<usize>,
    pub idle: Option<Duration>,
}

/// The bridge by which every container on an overlay network reaches its host.
const GATEWAY_BRIDGE: &str = "docker_gwbridge";
const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const EVERYTHING: &str = "*";

impl DnsSettings {
    /// Reads each key by `get`.
    pub(super) fn read<'t, 'i: 't>(get: impl Fn(&'static str) -> Option<Value<'t, 'i>>) -> Self {
        let number = |key, most| {
            let number = get(key)?.number(1..=most)?;
            usize::try_from(number).ok()
        };
        Self {
            listen: get("dns.listen").and_then(|value| list(value, LISTEN, listen_at)),
            domain: get("dns.domain").and_then(domain),
            ttl: get("dns.ttl").and_then(|value| whole_seconds(value, HOUR)),
            allow: get("dns.allow").and_then(|value| list(value, ALLOW, subnet)),
            networks: get("dns.networks").and_then(|value| list(value, NETWORKS, network)),
            upstreams: get("dns.upstreams").and_then(|value| list(value, UPSTREAMS, upstream)),
            resolv_conf: get("dns.resolv_conf").and_then(absolute_path),
            routes: get("dns.routes").and_then(|value| list(value, ROUTES, route)),
            intercept: get("dns.intercept").and_then(|value| list(value, INTERCEPT, network)),
            cache: number("dns.cache", 16 << 10),
            stale: get("dns.stale").and_then(|value| value.duration(WEEK)),
            failover: get("dns.failover").and_then(failover),
            workers: number("dns.workers", 64),
            under_way: number("dns.in_flight", 1 << 16),
            under_way_of_client: number("dns.in_flight_per_client", 1 << 16),
            connections: number("dns.connections", 1 << 14),
            connections_of_client: number("dns.connections_per_client", 1 << 14),
            idle: get("dns.idle").and_then(|value| value.duration(HOUR)),
        }
    }

    /// Fills in what nobody wrote. On a Swarm node containers are answered at the address of the
    /// bridge to their host, which nobody else reaches; elsewhere the server is off.
    pub(super) fn resolve(self, swarm: bool) -> DnsConfig {
        let wanted = self.listen.is_some();
        let bridge = || ListenAt::Interface(GATEWAY_BRIDGE.to_owned(), PORT);
        let forward = forward::Settings::default();
        let server = server::Settings::default();
        let everything = |networks: &Vec<String>| networks.iter().any(|one| one == EVERYTHING);
        DnsConfig {
            listen: self.listen.unwrap_or_else(|| swarm.then(bridge).into_iter().collect()),
            wanted,
            domain: self.domain.or_else(|| from_text("weir.")).unwrap_or_default(),
            ttl: self.ttl.unwrap_or(Duration::from_secs(5)),
            allow: self.allow.unwrap_or_default(),
            networks: self.networks.filter(|networks| !everything(networks)),
            upstreams: self.upstreams,
            resolv_conf: self.resolv_conf.unwrap_or_else(|| "/etc/resolv.conf".into()),
            routes: self.routes.unwrap_or_default(),
            intercept: match self.intercept {
                Some(networks) if everything(&networks) => Networks::All,
                networks => Networks::Named(networks.unwrap_or_default().into_iter().collect()),
            },
            forward: forward::Settings {
                cache: self.cache.map_or(forward.cache, |mebibytes| mebibytes << 20),
                stale: self.stale.unwrap_or(forward.stale),
                failover: self.failover.unwrap_or(forward.failover),
                ..forward
            },
            server: server::Settings {
                workers: self.workers.unwrap_or(server.workers),
                under_way: self.under_way.unwrap_or(server.under_way),
                under_way_of_client: self.under_way_of_client.unwrap_or(server.under_way_of_client),
                connections: self.connections.unwrap_or(server.connections),
                connections_of_client: self
                    .connections_of_client
                    .unwrap_or(server.connections_of_client),
                idle: self.idle.unwrap_or(server.idle),
            },
        }
    }
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Interface(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

const LISTEN: &str = "listen = [\"docker_gwbridge\", \"10.0.0.11\"]";
const ALLOW: &str = "allow = [\"10.0.0.0/8\"]";
const NETWORKS: &str = "networks = [\"blue\"]";
const INTERCEPT: &str = "intercept = [\"blue\"]";
const UPSTREAMS: &str = "upstreams = [\"10.0.0.53\"]";
const ROUTES: &str = "routes = [\"corp.example=10.0.0.53\"]";

fn list<T>(
    value: Value<'_, '_>,
    example: &str,
    read: impl Fn(Value<'_, '_>) -> Option<T>,
) -> Option<Vec<T>> {
    Some(value.list(example)?.filter_map(read).collect())
}

/// An address or the name of an interface, with or without a port.
fn listen_at(value: Value<'_, '_>) -> Option<ListenAt> {
    let text = value.string("an address such as \"10.0.0.11\", or an interface")?;
    if let Some(address) = server_in(text) {
        return Some(ListenAt::Address(address));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok().filter(|port| *port != 0)),
        None => (text, Some(PORT)),
    };
    let is_name = !name.is_empty() && name.len() <= 15 && !name.contains(['/', ':', '.', ' ']);
    match port.filter(|_| is_name) {
        Some(port) => Some(ListenAt::Interface(name.to_owned(), port)),
        None => {
            value.fault(
                "neither an address nor an interface",
                "write \"10.0.0.11\", \"10.0.0.11:5353\", \"[fd00::11]:53\" or \"docker_gwbridge\"",
            );
            None
        }
    }
}

fn domain(value: Value<'_, '_>) -> Option<Key> {
    let text = value.string("a domain such as \"weir.\"")?;
    let domain = from_text(text).filter(|domain| !domain.is_empty() && domain.len() <= 128);
    if domain.is_none() {
        let remedy = "write labels of at most 63 characters, 127 together: \"weir.\" or \"mesh.corp.example\"";
        value.fault("not a domain", remedy);
    }
    domain
}

/// The wire knows whole seconds only.
fn whole_seconds(value: Value<'_, '_>, longest: Duration) -> Option<Duration> {
    let duration = value.duration(longest)?;
    if duration.subsec_nanos() != 0 {
        value.fault("not whole seconds", "write \"1s\" or more");
        return None;
    }
    Some(duration)
}

fn failover(value: Value<'_, '_>) -> Option<Duration> {
    let failover = value.duration(Duration::from_secs(2))?;
    if failover < Duration::from_millis(50) {
        value.fault("too short", "write \"50ms\" to \"2s\": healthy servers need some time");
        return None;
    }
    Some(failover)
}

fn subnet(value: Value<'_, '_>) -> Option<IpNet> {
    let text = value.string("a subnet such as \"10.0.0.0/8\"")?;
    let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let subnet = text.parse::<IpNet>().ok().or_else(one);
    if subnet.is_none() {
        value.fault(
            "not a subnet",
            "write one such as \"10.0.0.0/8\", \"fd00::/8\" or \"10.0.0.7\"",
        );
    }
    subnet
}

fn network(value: Value<'_, '_>) -> Option<String> {
    Some(value.string("the name of a network, or \"*\" for all")?.to_owned())
}

fn upstream(value: Value<'_, '_>) -> Option<SocketAddr> {
    let text = value.string("an address such as \"10.0.0.53\"")?;
    let server = server_in(text);
    if server.is_none() {
        value.fault("not the address of a server", "write \"10.0.0.53\" or \"10.0.0.53:5353\"");
    }
    server
}

fn route(value: Value<'_, '_>) -> Option<Route> {
    let text = value.string("a route such as \"corp.example=10.0.0.53\"")?;
    match text.parse() {
        Ok(route) => Some(route),
        Err(error) => {
            let error: RouteError = error;
            value.fault(error.to_string(), "write one such as \"corp.example=10.0.0.53\"");
            None
        }
    }
}
