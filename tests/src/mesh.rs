//! `mesh.toml`, typed: what the agents of a lab are told to do.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::task::Task;

/// The description of a mesh. Change it, then [`Mesh::write`] it: agents see all or nothing.
#[derive(Debug, Clone, Serialize)]
pub struct Mesh {
    #[serde(skip)]
    path: PathBuf,
    #[serde(rename = "node")]
    nodes: Vec<Node>,
    #[serde(rename = "network", skip_serializing_if = "Vec::is_empty")]
    networks: Vec<NetworkEntry>,
    #[serde(rename = "service")]
    services: Vec<Service>,
}

#[derive(Debug, Clone, Serialize)]
struct Node {
    name: String,
    address: IpAddr,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    networks: Vec<String>,
    #[serde(rename = "space", skip_serializing_if = "Vec::is_empty")]
    spaces: Vec<SpaceEntry>,
}

#[derive(Debug, Clone, Serialize)]
struct SpaceEntry {
    path: PathBuf,
    networks: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    address: Vec<IpAddr>,
}

#[derive(Debug, Clone, Serialize)]
struct NetworkEntry {
    name: String,
    subnets: Vec<String>,
    vips: Vec<String>,
    routed: bool,
}

/// One service: published ports, and tasks.
#[derive(Debug, Clone, Serialize)]
pub struct Service {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<String>,
    publish: Vec<Publish>,
    #[serde(flatten)]
    more: BTreeMap<String, toml::Value>,
    #[serde(rename = "task")]
    tasks: Vec<TaskEntry>,
}

#[derive(Debug, Clone, Serialize)]
struct TaskEntry {
    name: String,
    node: String,
    address: Vec<IpAddr>,
    weight: u32,
    state: State,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    networks: BTreeMap<String, Vec<IpAddr>>,
}

/// What a task may be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Takes new flows.
    Active,
    /// Keeps its flows, takes no new ones.
    Draining,
    /// Takes nothing.
    Down,
}

/// A published port: the short text, or all fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Publish {
    /// `"8080:80"`, `"5353:53/udp"`, `"80"`.
    Short(String),
    /// The table form, needed for host mode.
    Long {
        /// The port on the nodes.
        published: u16,
        /// The port in the task.
        target: u16,
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// `ingress` or `host`.
        mode: &'static str,
    },
}

impl Publish {
    /// A port that only nodes with a task of the service answer.
    pub fn host_mode(published: u16, target: u16, protocol: &'static str) -> Self {
        Self::Long { published, target, protocol, mode: "host" }
    }
}

impl From<&str> for Publish {
    fn from(text: &str) -> Self {
        Self::Short(text.to_owned())
    }
}

impl Mesh {
    pub(crate) fn new(path: PathBuf, nodes: impl Iterator<Item = (String, IpAddr)>) -> Self {
        let node = |(name, address)| {
            let (networks, spaces) = (Vec::new(), Vec::new());
            Node { name, address, networks, spaces }
        };
        let nodes = nodes.map(node).collect();
        Self { path, nodes, networks: Vec::new(), services: Vec::new() }
    }

    /// The service of this name, made when it is new.
    pub fn service(&mut self, name: &str) -> &mut Service {
        let index = self.services.iter().position(|service| service.name == name);
        let index = index.unwrap_or_else(|| {
            self.services.push(Service::new(name));
            self.services.len() - 1
        });
        &mut self.services[index]
    }

    /// Removes a service.
    pub fn remove_service(&mut self, name: &str) {
        self.services.retain(|service| service.name != name);
    }

    /// Removes a node from the list, as when it left the Swarm.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.retain(|node| node.name != name);
    }

    /// Attaches a node's own processes to a network.
    ///
    /// # Panics
    /// When there is no such node: a mistake in the test.
    pub fn attach_node(&mut self, node: &str, network: &str) {
        self.node(node).networks.push(network.to_owned());
    }

    /// Attaches a network namespace of a node, named by a file, to networks.
    ///
    /// # Panics
    /// When there is no such node: a mistake in the test.
    pub fn attach_space(&mut self, node: &str, path: &Path, networks: &[&str]) {
        self.attach_space_at(node, path, networks, &[]);
    }

    /// The same for one that asks for names from these addresses.
    ///
    /// # Panics
    /// When there is no such node: a mistake in the test.
    pub fn attach_space_at(
        &mut self,
        node: &str,
        path: &Path,
        networks: &[&str],
        addresses: &[IpAddr],
    ) {
        let networks = networks.iter().map(|name| (*name).to_owned()).collect();
        let (path, address) = (path.to_owned(), addresses.to_vec());
        self.node(node).spaces.push(SpaceEntry { path, networks, address });
    }

    /// A network with its subnets, and a pool for virtual addresses.
    pub fn network(&mut self, name: &str, subnets: &[&str], vips: &[&str]) {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let (name, subnets, vips) = (name.to_owned(), texts(subnets), texts(vips));
        self.networks.push(NetworkEntry { name, subnets, vips, routed: false });
    }

    /// A network to whose virtual addresses packets are routed, or are not any more.
    pub fn routed(&mut self, name: &str, routed: bool) {
        self.networks.retain(|network| network.name != name);
        let (subnets, vips) = (Vec::new(), Vec::new());
        self.networks.push(NetworkEntry { name: name.to_owned(), subnets, vips, routed });
    }

    fn node(&mut self, name: &str) -> &mut Node {
        let found = self.nodes.iter_mut().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("the mesh has no node {name}"))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of the file.
    pub fn render(&self) -> Result<String> {
        toml::to_string(self).context("render mesh.toml")
    }

    /// Replaces the file in one step, so that no agent reads half of it.
    pub fn write(&self) -> Result<()> {
        self.write_to(&self.path)
    }

    /// Replaces another file: one that a single agent was told to read.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, self.render()?).with_context(|| new.display().to_string())?;
        fs::rename(&new, path).with_context(|| path.display().to_string())
    }
}

impl Service {
    fn new(name: &str) -> Self {
        let (publish, tasks) = (Vec::new(), Vec::new());
        Self { name: name.to_owned(), balance: None, publish, more: BTreeMap::new(), tasks }
    }

    /// Publishes a port: `"8080:80"`, `"5353:53/udp"` or [`Publish::host_mode`].
    pub fn publish(&mut self, port: impl Into<Publish>) -> &mut Self {
        self.publish.push(port.into());
        self
    }

    /// `round-robin`, `maglev` or `random`; without it the agent's default is used.
    pub fn balance(&mut self, balance: &str) -> &mut Self {
        self.balance = Some(balance.to_owned());
        self
    }

    /// Any other key of the service, for options that are newer than this builder.
    pub fn set(&mut self, key: &str, value: impl Into<toml::Value>) -> &mut Self {
        self.more.insert(key.to_owned(), value.into());
        self
    }

    /// Gives it virtual addresses on a network.
    pub fn vip(&mut self, network: &str, addresses: &[IpAddr]) -> &mut Self {
        let addresses = addresses.iter().map(|address| address.to_string().into());
        let addresses = toml::Value::Array(addresses.collect());
        let vips = self.more.entry("vip".to_owned()).or_insert_with(|| toml::Table::new().into());
        if let Some(vips) = vips.as_table_mut() {
            vips.insert(network.to_owned(), addresses);
        }
        self
    }

    /// Says at which addresses a task is on a network.
    ///
    /// # Panics
    /// When the service has no such task: a mistake in the test.
    pub fn on_network(&mut self, task: &str, network: &str, addresses: &[IpAddr]) -> &mut Self {
        self.entry(task).networks.insert(network.to_owned(), addresses.to_vec());
        self
    }

    /// Adds a task, active and with weight 1.
    pub fn task(&mut self, task: &Task) -> &mut Self {
        self.task_at(task.name(), task.node(), task.addresses())
    }

    /// Adds a task that need not exist, for lies and mistakes.
    pub fn task_at(&mut self, name: &str, node: &str, addresses: &[IpAddr]) -> &mut Self {
        self.tasks.push(TaskEntry {
            name: name.to_owned(),
            node: node.to_owned(),
            address: addresses.to_vec(),
            weight: 1,
            state: State::Active,
            networks: BTreeMap::new(),
        });
        self
    }

    /// Changes the state of a task.
    ///
    /// # Panics
    /// When the service has no such task: a mistake in the test.
    pub fn state(&mut self, task: &str, state: State) -> &mut Self {
        self.entry(task).state = state;
        self
    }

    /// Changes the weight of a task.
    ///
    /// # Panics
    /// When the service has no such task: a mistake in the test.
    pub fn weight(&mut self, task: &str, weight: u32) -> &mut Self {
        self.entry(task).weight = weight;
        self
    }

    /// Removes a task.
    pub fn remove_task(&mut self, task: &str) -> &mut Self {
        self.tasks.retain(|entry| entry.name != task);
        self
    }

    fn entry(&mut self, task: &str) -> &mut TaskEntry {
        let found = self.tasks.iter_mut().find(|entry| entry.name == task);
        found.unwrap_or_else(|| panic!("service {} has no task {task}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_file_is_what_the_agent_expects() {
        let dir = tempfile::tempdir().unwrap();
        let node = ("n1".to_owned(), address("10.77.0.11"));
        let mut mesh = Mesh::new(dir.path().join("mesh.toml"), [node].into_iter());
        mesh.service("web")
            .balance("maglev")
            .publish("8080:80")
            .publish(Publish::host_mode(9090, 80, "tcp"))
            .set("affinity", "10s")
            .task_at("web.1", "n1", &[address("172.18.0.3"), address("fd18::3")])
            .state("web.1", State::Draining)
            .weight("web.1", 3);
        mesh.write().unwrap();
        let text = fs::read_to_string(mesh.path()).unwrap();
        let file: toml::Table = toml::from_str(&text).unwrap();
        let expected: toml::Table = toml::from_str(
            r#"
            [[node]]
            name = "n1"
            address = "10.77.0.11"
            [[service]]
            name = "web"
            balance = "maglev"
            publish = ["8080:80", { published = 9090, target = 80, protocol = "tcp", mode = "host" }]
            affinity = "10s"
            [[service.task]]
            name = "web.1"
            node = "n1"
            address = ["172.18.0.3", "fd18::3"]
            weight = 3
            state = "draining"
            "#,
        )
        .unwrap();
        assert_eq!(file, expected, "{text}");
    }

    #[test]
    fn asking_for_a_service_twice_gives_the_same_one() {
        let mut mesh = Mesh::new(PathBuf::from("/nowhere"), std::iter::empty());
        mesh.service("web").publish("80");
        mesh.service("web").publish("81");
        assert_eq!(mesh.services.len(), 1);
        assert_eq!(mesh.services[0].publish.len(), 2);
        mesh.remove_service("web");
        assert!(mesh.services.is_empty());
    }
}
