//! Every key of `weir.toml`. Each is also a flag (`node.name`: `--node-name`) and an environment
//! variable (`WEIR_NODE_NAME`); a flag wins over a variable, a variable over the file.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};
use toml::{
    Spanned,
    de::{DeArray, DeValue},
};

use crate::document::Place;

/// How the text of a flag or variable is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As it is.
    Text,
    /// A whole number.
    Number,
    /// Separated by commas.
    List,
    /// `true` or `false`; the flag alone is `true`.
    Switch,
}

/// A key of `weir.toml`.
#[derive(Debug)]
pub struct Key {
    /// Section and name, with a dot between (`node.name`).
    pub path: &'static str,
    /// How a flag's text is understood.
    pub kind: Kind,
    /// What it does, for `--help`.
    pub help: &'static str,
}

const fn key(path: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { path, kind, help }
}

/// All keys, by section.
pub const KEYS: &[Key] = &[
    key("node.name", Kind::Text, "Name of this node in the mesh [default: the host name]"),
    key("node.address", Kind::Text, "Underlay address [default: source of the default route]"),
    key("node.addresses", Kind::List, "All addresses at which published ports answer"),
    key("node.uplinks", Kind::List, "Interfaces on which clients arrive [default: the address's]"),
    key("dataplane.mode", Kind::Text, "auto, ebpf or proxy [default: auto]"),
    key("dataplane.cgroup", Kind::Text, "cgroup2 directory for connect-time balancing"),
    key("dataplane.pin", Kind::Text, "Directory for pinned maps [default: /sys/fs/bpf/weir]"),
    key("dataplane.attach", Kind::Text, "auto, tcx or clsact [default: auto]"),
    key("dataplane.flow_capacity", Kind::Number, "Room in each flow table [default: by memory]"),
    key(
        "dataplane.on_port_conflict",
        Kind::Text,
        "listener-wins: a process that already listens keeps its port; mesh-wins: it does not",
    ),
    key("proxy.relay_port", Kind::Number, "Port between nodes, TCP and UDP [default: 7952]"),
    key("proxy.workers", Kind::Number, "Threads of the proxy [default: one a core]"),
    key("proxy.connect_timeout", Kind::Text, "Then another task is tried [default: 3s]"),
    key("proxy.keepalive", Kind::Text, "Silent TCP connections are probed [default: 1m]"),
    key("proxy.user_timeout", Kind::Text, "Longest wait for acknowledgement [default: 2m]"),
    key("proxy.connections", Kind::Number, "Most TCP connections [default: by the file limit]"),
    key("proxy.udp_sessions", Kind::Number, "Most UDP sessions, port and worker [default: 16384]"),
    key("proxy.sk_lookup", Kind::Switch, "One listener for all TCP ports [default: if it can]"),
    key("proxy.other_family", Kind::Switch, "IPv6 clients reach IPv4 tasks [default: true]"),
    key("proxy.drain_timeout", Kind::Text, "Connections go on after an upgrade [default: 1h]"),
    key("tunnel.port", Kind::Number, "UDP port of the tunnel [default: 7950]"),
    key("tunnel.device", Kind::Text, "Name of the tunnel device [default: weir0]"),
    key(
        "link.listen",
        Kind::Text,
        "Where a manager hears other nodes [default: node.address:7951]",
    ),
    key("link.peers", Kind::List, "Agents on managers [default: those that Swarm names]"),
    key("link.silence", Kind::Text, "A node silent for so long gets no new flows [default: 1s]"),
    key("link.ca", Kind::Text, "The authority's certificate, PEM [default: Swarm's]"),
    key("link.certificate", Kind::Text, "This node's certificate, PEM [default: Swarm's]"),
    key("link.key", Kind::Text, "This node's key, PEM [default: Swarm's]"),
    key("dns.listen", Kind::List, "Where DNS is served [default: docker_gwbridge on a Swarm]"),
    key("dns.domain", Kind::Text, "The domain that names are under [default: weir.]"),
    key("dns.ttl", Kind::Text, "How long an answer may be kept [default: 5s]"),
    key("dns.allow", Kind::List, "Subnets that may ask, besides this node and its containers"),
    key("dns.networks", Kind::List, "Networks that those and this node see [default: all]"),
    key("dns.upstreams", Kind::List, "Servers for other names [default: those of resolv.conf]"),
    key("dns.resolv_conf", Kind::Text, "Names the host's servers [default: /etc/resolv.conf]"),
    key("dns.routes", Kind::List, "Servers for some domains: corp.example=10.0.0.53"),
    key("dns.intercept", Kind::List, "Networks whose containers' Docker resolver is taken over"),
    key("dns.cache", Kind::Number, "MiB of others' answers that are remembered [default: 16]"),
    key("dns.stale", Kind::Text, "Old answers are given so long if nobody answers [default: 1h]"),
    key("dns.failover", Kind::Text, "The next server is asked after so long [default: 400ms]"),
    key("dns.workers", Kind::Number, "Threads [default: one for each core, at most 4]"),
    key("dns.in_flight", Kind::Number, "Questions that others are being asked [default: 2048]"),
    key("dns.in_flight_per_client", Kind::Number, "The same of one client [default: 256]"),
    key("dns.connections", Kind::Number, "TCP connections at one time [default: 256]"),
    key("dns.connections_per_client", Kind::Number, "The same of one client [default: 32]"),
    key("dns.idle", Kind::Text, "A silent TCP connection is closed after so long [default: 10s]"),
    key("http.listen", Kind::Text, "Where metrics and health are served [default: 0.0.0.0:9950]"),
    key("socket.path", Kind::Text, "The admin socket [default: /run/weir/weir.sock]"),
    key("source.docker.socket", Kind::Text, "dockerd's socket [default: /var/run/docker.sock]"),
    key("source.docker.poll", Kind::Text, "Ask for tasks this often while nothing changes"),
    key("source.file.path", Kind::Text, "The desired state [default: /etc/weir/mesh.toml]"),
    key("source.file.poll", Kind::Text, "Look at the file this often besides watching it"),
    key("state.path", Kind::Text, "Where the last good snapshot is kept"),
    key("reconcile.host_interval", Kind::Text, "Look at interfaces and listeners [default: 2s]"),
    key("reconcile.audit_interval", Kind::Text, "Compare the kernel's maps [default: 10s]"),
    key("reconcile.flow_interval", Kind::Text, "Collect flows that timed out [default: 10s]"),
    key("reconcile.start_wait", Kind::Text, "Wait for the first source at start [default: 30s]"),
    key("metrics.backend_limit", Kind::Number, "Most tasks with metrics of their own"),
    key("compat.ipvs_metrics", Kind::Switch, "Also tell metrics by node_exporter's names for IPVS"),
    key("timeouts.tcp_syn", Kind::Text, "Default flow timeout [default: 20s]"),
    key("timeouts.tcp_established", Kind::Text, "Default flow timeout [default: 8000s]"),
    key("timeouts.tcp_fin", Kind::Text, "Default flow timeout [default: 60s]"),
    key("timeouts.tcp_reset", Kind::Text, "Default flow timeout [default: 10s]"),
    key("timeouts.udp_one_way", Kind::Text, "Default flow timeout [default: 60s]"),
    key("timeouts.udp_both_ways", Kind::Text, "Default flow timeout [default: 180s]"),
    key("timeouts.drain", Kind::Text, "How long a task that left keeps its flows [default: 30s]"),
    key("log.format", Kind::Text, "text or json [default: text]"),
    key("log.level", Kind::Text, "error, warn, info, debug, trace or a filter [default: info]"),
];

// === impl Key ===

impl Key {
    /// The flag, without dashes in front.
    pub fn flag(&self) -> String {
        self.path.replace(['.', '_'], "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("WEIR_{}", self.path.replace('.', "_").to_uppercase())
    }

    fn value(&self, text: &str) -> Spanned<DeValue<'static>> {
        let string = |text: &str| Spanned::new(0..0, DeValue::String(text.to_owned().into()));
        match self.kind {
            Kind::Text | Kind::Number | Kind::Switch => string(text),
            Kind::List => {
                let mut entries = DeArray::new();
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                parts.for_each(|part| entries.push(string(part)));
                Spanned::new(0..0, DeValue::Array(entries))
            }
        }
    }
}

/// What flags and variables set, by key.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    values: BTreeMap<&'static str, (Place, Spanned<DeValue<'static>>)>,
}

// === impl Overrides ===

impl Overrides {
    /// The value that replaces the file's.
    pub fn get(&self, path: &str) -> Option<&(Place, Spanned<DeValue<'static>>)> {
        self.values.get(path)
    }

    /// As if `--flag value` had been given.
    pub fn with_flag(mut self, path: &str, text: &str) -> Self {
        if let Some(key) = KEYS.iter().find(|key| key.path == path) {
            let value = key.value(text);
            self.values.insert(key.path, (Place::Flag(key.flag()), value));
        }
        self
    }
}

impl clap::FromArgMatches for Overrides {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut overrides = Self::default();
        for key in KEYS {
            let Some(text) = matches.get_one::<String>(&key.flag()) else { continue };
            let place = match matches.value_source(&key.flag()) {
                Some(ValueSource::EnvVariable) => Place::Variable(key.variable()),
                _ => Place::Flag(key.flag()),
            };
            overrides.values.insert(key.path, (place, key.value(text)));
        }
        Ok(overrides)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Overrides {
    fn augment_args(command: Command) -> Command {
        KEYS.iter().fold(command, |command, key| {
            let arg = Arg::new(key.flag())
                .long(key.flag())
                .env(key.variable())
                .hide_env_values(true)
                .action(ArgAction::Set)
                .value_name(match key.kind {
                    Kind::Text => "VALUE",
                    Kind::Number => "NUMBER",
                    Kind::List => "A,B,...",
                    Kind::Switch => "true|false",
                })
                .help(key.help)
                .help_heading("Configuration keys");
            command.arg(match key.kind {
                Kind::Switch => {
                    arg.num_args(0..=1).require_equals(true).default_missing_value("true")
                }
                _ => arg,
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
