//! What a mesh consists of: nodes, services, published ports and tasks.
//!
//! The words are Docker's and the field's; `docs/glossary.md` defines each once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    access::Access,
    health::{Health, Verdict},
    proxied::Proxied,
};

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Copies share their text, so that snapshots are copied and compared cheaply.
        #[derive(Clone, Debug, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the name as it is; sources check what they accept.
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into().into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        // Equality and order are those of the text: the pointers only make it quick to see.
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                if Arc::ptr_eq(&self.0, &other.0) {
                    return std::cmp::Ordering::Equal;
                }
                self.0.cmp(&other.0)
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

pub(crate) use name_type;

name_type!(
    /// The name of a node, unique in the mesh.
    NodeName
);
name_type!(
    /// The name of a service, unique in the mesh.
    ServiceName
);
name_type!(
    /// The name of a task, unique within its service.
    TaskName
);

name_type!(
    /// A network that containers are attached to: Docker's identity of it, or its name in a file.
    NetworkId
);

/// A transport protocol that a port is published for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol, IP protocol number 6.
    Tcp,
    /// User Datagram Protocol, IP protocol number 17.
    Udp,
}

/// The port that clients connect to on a node: 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct PublishedPort(pub NonZeroU16);

/// The port that a task listens on: 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct TargetPort(pub NonZeroU16);

/// How a port is published; Docker's `mode=`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// Every node answers, whichever node runs the task.
    #[default]
    Ingress,
    /// Only a node that runs a task answers, with that task; the mesh is bypassed.
    Host,
}

/// How a new flow chooses among the tasks of a service. Weights count in every mode.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Each task in turn (interleaved by weight).
    #[default]
    RoundRobin,
    /// A task drawn by chance, in proportion to its weight.
    Random,
    /// Consistent hashing of the client's address and port: every node chooses the same task.
    Maglev,
    /// Consistent hashing of the client's address alone: a client has the same task through every node
    /// for as long as the tasks are the same, and few clients change when these do.
    Source,
    /// Of two tasks drawn by chance, in proportion to their weights, the one with fewer live flows for its
    /// weight, as far as these have entered by this node.
    LeastConnections,
}

/// Whose tasks clients of a node are given.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Locality {
    /// Those of all nodes.
    #[default]
    Cluster,
    /// The node's own, while it has any that take flows.
    PreferLocal,
    /// The node's own and no others: where there are none, clients are refused.
    Local,
}

/// How containers find a service on a network that they share.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// By a virtual address, if it has one.
    #[default]
    Vip,
    /// By the addresses of its tasks. Docker publishes ports of such a service in host mode only.
    Dnsrr,
}

impl EndpointMode {
    /// Whether it is what most services have.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether a task takes new flows, and whether it keeps those it has.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Takes new flows.
    #[default]
    Active,
    /// Keeps established flows, takes no new ones.
    Draining,
    /// Takes nothing; what it still has is reset.
    Down,
}

/// A published port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// The protocol it is published for.
    pub protocol: Protocol,
    /// Where clients connect, on every node (ingress) or on the task's node (host).
    pub published: PublishedPort,
    /// Where the tasks listen.
    pub target: TargetPort,
    /// Through the mesh or past it.
    pub mode: PublishMode,
}

/// A task: one instance of a service on one node. A backend, seen from the data plane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Task {
    /// Unique within the service.
    pub name: TaskName,
    /// The node that runs it.
    pub node: NodeName,
    /// The IPv4 address at which its own node reaches it.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address at which its own node reaches it.
    pub ipv6: Option<Ipv6Addr>,
    /// Its share of new flows, relative to the other tasks' weights; 0 takes none.
    pub weight: u16,
    /// Whether it takes flows.
    pub state: TaskState,
    /// Its addresses on the networks it is attached to: where what is attached to them, too, reaches
    /// it without anybody's help.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<NetworkId, Vec<IpAddr>>,
    /// What another node has told of this task of its own, where that is bad. What a node has found out
    /// about its own tasks is not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// What it is called on its networks besides its name: its host name and the like.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<NetworkId, Vec<String>>,
}

/// How long the data plane remembers a flow that is silent, by what it last saw of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Timeouts {
    /// TCP: SYN seen, no answer from the client yet.
    pub tcp_syn: Duration,
    /// TCP: established. Longer than the 7200 s keep-alive default of Linux and most others, so
    /// that an idle connection with keep-alives is never cut.
    pub tcp_established: Duration,
    /// TCP: both sides have sent FIN.
    pub tcp_fin: Duration,
    /// TCP: RST seen.
    pub tcp_reset: Duration,
    /// UDP: only one side has spoken.
    pub udp_one_way: Duration,
    /// UDP: both sides have spoken.
    pub udp_both_ways: Duration,
    /// How long a task that left the desired state may keep its established flows.
    pub drain: Duration,
}

/// A service: what is published, and the tasks that serve it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Service {
    /// Unique in the mesh.
    pub name: ServiceName,
    /// How new flows choose a task.
    pub balance: Balance,
    /// Whose tasks they choose among.
    #[serde(default, skip_serializing_if = "Locality::is_default")]
    pub locality: Locality,
    /// Who may be a client.
    #[serde(default, skip_serializing_if = "Access::is_open")]
    pub access: Access,
    /// Published ports, in order, without duplicates.
    pub ports: Vec<Port>,
    /// Tasks, ordered by name.
    pub tasks: Vec<Task>,
    /// Timeouts of its flows.
    pub timeouts: Timeouts,
    /// How its tasks are judged.
    #[serde(default, skip_serializing_if = "Health::is_default")]
    pub health: Health,
    /// What only the userspace proxy can do for it.
    #[serde(default, skip_serializing_if = "Proxied::is_default")]
    pub proxied: Proxied,
    /// What its name leads to.
    #[serde(default, skip_serializing_if = "EndpointMode::is_default")]
    pub endpoint_mode: EndpointMode,
    /// Its virtual addresses by network: each stands for all tasks that have an address of the same
    /// family there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vips: BTreeMap<NetworkId, Vec<IpAddr>>,
    /// What it is called on its networks besides its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<NetworkId, Vec<String>>,
    /// What its target ports are called where they are looked up by name (`_http._tcp`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub port_names: BTreeMap<String, TargetPort>,
}

/// Whether a port may be called so: letters, digits, and dashes between them, at most 62 (a label is
/// longer by its underscore). Some of it must be no digit: `_80._tcp` is a number.
pub fn is_port_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=62).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// A network, as far as names and addresses on it are concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// What people call it; not always unique.
    pub name: String,
    /// The addresses on it: nobody outside of the mesh has one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<IpNet>,
    /// Whether packets that are routed to a node for a virtual address on it are balanced, too, whoever
    /// sends them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub routed: bool,
}

/// A host that runs a weir agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Node {
    /// Unique in the mesh.
    pub name: NodeName,
    /// The underlay address: where the tunnels of other nodes end, and where they come from.
    pub address: IpAddr,
    /// What of it is attached to networks, as far as the desired state says so. What a node knows by
    /// itself of its containers is not here: it concerns nobody else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spaces: Vec<Space>,
    /// Whether all that lives there is known: a task of it that is in no service of the snapshot has
    /// ended, and keeps no flows. Otherwise it has left the desired state, and drains. True of what a
    /// node says of itself at this moment; never of what is on disk.
    #[serde(skip)]
    pub whole: bool,
}

/// A network namespace of a node, and the networks it is attached to: its processes reach the virtual
/// addresses of services there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Space {
    /// Where it is found.
    pub at: SpaceAt,
    /// The networks.
    pub networks: BTreeSet<NetworkId>,
    /// The addresses from which its processes ask for names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// Where a network namespace is found on its node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpaceAt {
    /// The node's own, in which the agent runs.
    Host,
    /// A file that stands for it, such as `/run/netns/web`, or a container's `SandboxKey`.
    File(PathBuf),
}

// === impl Protocol ===

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Both, in a fixed order.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(()),
        }
    }
}

// === impl PublishedPort, TargetPort ===

impl PublishedPort {
    /// `None` for port 0.
    pub fn new(port: u16) -> Option<Self> {
        NonZeroU16::new(port).map(Self)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TargetPort {
    /// `None` for port 0.
    pub fn new(port: u16) -> Option<Self> {
        NonZeroU16::new(port).map(Self)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for TargetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Balance, TaskState, PublishMode ===

impl Balance {
    /// The word used in configuration, status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::Maglev => "maglev",
            Self::Source => "source",
            Self::LeastConnections => "least-connections",
        }
    }

    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::RoundRobin, Self::Random, Self::Maglev, Self::Source, Self::LeastConnections];

    /// Whether a client's task follows from what is known of the client, on every node the same.
    pub fn is_hashed(self) -> bool {
        matches!(self, Self::Maglev | Self::Source)
    }
}

impl Locality {
    /// The word used in configuration and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::PreferLocal => "prefer-local",
            Self::Local => "local",
        }
    }

    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cluster, Self::PreferLocal, Self::Local];

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl TaskState {
    /// The word used in configuration, status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

impl PublishMode {
    /// The word used in configuration, status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Host => "host",
        }
    }
}

// === impl Node, Service ===

impl Network {
    /// A network of which no more is known than what people call it.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), subnets: Vec::new(), routed: false }
    }
}

impl Node {
    /// A node of which nothing more is known.
    pub fn new(name: NodeName, address: IpAddr) -> Self {
        Self { name, address, spaces: Vec::new(), whole: false }
    }
}

impl Service {
    /// A service that asks for nothing: no ports, no tasks, all else by default.
    pub fn new(name: ServiceName) -> Self {
        Self {
            proxied: Proxied::default(),
            name,
            balance: Balance::default(),
            locality: Locality::default(),
            access: Access::default(),
            ports: Vec::new(),
            tasks: Vec::new(),
            timeouts: Timeouts::default(),
            health: Health::default(),
            endpoint_mode: EndpointMode::default(),
            vips: BTreeMap::new(),
            aliases: BTreeMap::new(),
            port_names: BTreeMap::new(),
        }
    }
}

// === impl SpaceAt ===

impl fmt::Display for SpaceAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

// === impl Task ===

impl Task {
    /// An active task without any address.
    pub fn new(name: TaskName, node: NodeName) -> Self {
        Self {
            name,
            node,
            ipv4: None,
            ipv6: None,
            weight: 1,
            state: TaskState::Active,
            networks: BTreeMap::new(),
            verdict: None,
            aliases: BTreeMap::new(),
        }
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

// === impl Timeouts ===

impl Default for Timeouts {
    /// `docs/datapath.md` says where each figure comes from.
    fn default() -> Self {
        Self {
            tcp_syn: Duration::from_secs(20),
            tcp_established: Duration::from_secs(8000),
            tcp_fin: Duration::from_secs(60),
            tcp_reset: Duration::from_secs(10),
            udp_one_way: Duration::from_secs(60),
            udp_both_ways: Duration::from_secs(180),
            drain: Duration::from_secs(30),
        }
    }
}
