//! A real Docker Swarm: the hosts of a [`Lab`] with a dockerd on each.
//!
//! A node has all namespaces of its own but the user's, a cgroup2 hierarchy with one root, a BPF
//! file system, and its own `/run`, `/etc` and `/var/lib`; `weir-lab-node` makes it. So paths in a
//! node are those of any Docker host, the stack file is used as it is, and when the node's first
//! process ends the kernel removes everything else.

mod docker;
mod image;
mod node;
mod service;
mod weir;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::documents::block;
use crate::failure;
use crate::host::Client;
use crate::lab::Lab;
use crate::plane::Plane;
use crate::wait::eventually;

pub use docker::{Docker, docker_program};
pub use image::{Image, TASK_HEALTH, TASK_V1, TASK_V2, task_images, weir_image};
pub use node::Node;
pub use service::{TaskAt, Update};

/// Longer than any change of a Swarm that has nothing else to do.
pub const SETTLE: Duration = Duration::from_secs(30);

/// How many nodes, and how many of them are managers.
#[derive(Debug, Clone)]
pub struct SwarmBuilder {
    nodes: usize,
    managers: usize,
    clients: usize,
    images: Vec<Image>,
    host_names: BTreeMap<String, String>,
    ipv6: bool,
    plane: Plane,
}

impl SwarmBuilder {
    /// How many nodes (`n1`…). Default 3.
    pub fn nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    /// How many of the first nodes are managers. Default 1.
    pub fn managers(self, managers: usize) -> Self {
        Self { managers, ..self }
    }

    /// How many clients (`c1`…). Default 1.
    pub fn clients(self, clients: usize) -> Self {
        Self { clients, ..self }
    }

    /// An image that every node has before anything is deployed.
    pub fn image(mut self, image: Image) -> Self {
        self.images.push(image);
        self
    }

    /// The host name of a node, which is otherwise its name. Docker shows host names.
    pub fn host_name(mut self, node: &str, host_name: &str) -> Self {
        self.host_names.insert(node.to_owned(), host_name.to_owned());
        self
    }

    /// `docker_gwbridge` is made before Docker does, with IPv6, as docs/swarm.md says.
    pub fn ipv6(self) -> Self {
        Self { ipv6: true, ..self }
    }

    /// The data plane of the weir that is deployed.
    pub fn plane(self, plane: Plane) -> Self {
        Self { plane, ..self }
    }

    /// Starts everything, and waits until all nodes are ready.
    pub fn build(self) -> Result<Swarm> {
        ensure!((1..=self.nodes).contains(&self.managers), "between 1 manager and all nodes");
        let lab = Lab::builder()
            .hosts(self.nodes)
            .clients(self.clients)
            .no_gateway()
            .default_route()
            .build()?;
        let (nodes, started) = (Nodes(Vec::new()), Instant::now());
        let mut swarm = Swarm { nodes, lab, started, plane: self.plane };
        for host in swarm.lab.hosts() {
            let name = self.host_names.get(host.name()).map_or(host.name(), String::as_str);
            swarm.nodes.0.push(Node::boot(host, name)?);
        }
        swarm.on_each(|node| {
            node.start_docker()?;
            if self.ipv6 {
                node.docker(&gwbridge_with_ipv6()?)?;
            }
            self.images.iter().try_for_each(|image| node.load(image))
        })?;
        swarm.form(self.managers)?;
        Ok(swarm)
    }
}

/// A Swarm and its clients. Nodes are in front of the lab: they end first.
#[derive(Debug)]
pub struct Swarm {
    nodes: Nodes,
    lab: Lab,
    started: Instant,
    plane: Plane,
}

impl Swarm {
    /// The data plane of the weir that is deployed.
    pub fn plane(&self) -> Plane {
        self.plane
    }

    /// One manager, two workers and a client, unless told otherwise.
    pub fn builder() -> SwarmBuilder {
        let (images, host_names) = (Vec::new(), BTreeMap::new());
        let (ipv6, plane) = (false, Plane::default());
        SwarmBuilder { nodes: 3, managers: 1, clients: 1, images, host_names, ipv6, plane }
    }

    /// The node of this name.
    ///
    /// # Panics
    /// When there is none: a mistake in the test.
    pub fn node(&self, name: &str) -> &Node {
        let node = self.nodes.0.iter().find(|node| node.name() == name);
        node.unwrap_or_else(|| panic!("the Swarm has no node {name}"))
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes.0
    }

    /// The client of this name.
    pub fn client(&self, name: &str) -> &Client {
        self.lab.client(name)
    }

    /// The lab below.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// How long ago the lab was there and the first dockerd was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// `docker` with these words, split at blanks, on the first node, which is a manager.
    pub fn docker(&self, words: &str) -> Result<String> {
        self.nodes.0[0].docker(words)
    }

    /// `docker` with arguments that have blanks.
    pub fn docker_with(&self, arguments: &[&str]) -> Result<String> {
        self.nodes.0[0].docker_with(arguments)
    }

    /// `docker stack deploy` of these files on the first node.
    pub fn deploy(&self, stack: &str, files: &[&Path]) -> Result<()> {
        let mut arguments = vec!["stack", "deploy", "--resolve-image", "never"];
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        for file in &files {
            arguments.extend(["-c", file]);
        }
        arguments.push(stack);
        self.docker_with(&arguments).map(drop)
    }

    /// What `docker inspect` says of anything.
    pub fn inspect(&self, what: &str) -> Result<Value> {
        self.nodes.0[0].inspect(what)
    }

    /// Cuts a node off, as when its power goes: its uplink goes down, and nobody is told.
    pub fn power_off(&self, node: &str) -> Result<()> {
        self.lab.fabric().set_down(node)
    }

    /// Ends [`Swarm::power_off`].
    pub fn power_on(&self, node: &str) -> Result<()> {
        self.lab.fabric().set_up(node, &[])
    }

    /// Takes everything down and gives what went wrong instead of panicking.
    pub fn finish(mut self) -> Result<()> {
        self.nodes.0.clear();
        self.lab.finish()
    }

    fn form(&mut self, managers: usize) -> Result<()> {
        let first = &self.nodes.0[0];
        first.docker(&format!("swarm init --advertise-addr {}", first.address()))?;
        let token = |role| first.docker(&format!("swarm join-token -q {role}"));
        let (manager, worker) = (token("manager")?, token("worker")?);
        let (at_manager, at_worker) = (manager.trim(), worker.trim());
        let join = |node: &Node, token: &str| {
            let (own, to) = (node.address(), first.address());
            node.docker(&format!("swarm join --token {token} --advertise-addr {own} {to}:2377"))
        };
        // One after the other: Raft takes one new member at a time.
        for node in &self.nodes.0[1..managers] {
            join(node, at_manager)?;
        }
        each(&self.nodes.0[managers..], |node| join(node, at_worker).map(drop))?;
        self.wait_nodes(self.nodes.0.len())
    }

    /// Waits until so many nodes are ready.
    pub fn wait_nodes(&self, wanted: usize) -> Result<()> {
        eventually(&format!("{wanted} nodes to be ready"), SETTLE, || {
            let nodes =
                self.docker_with(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"])?;
            let ready = nodes.lines().filter(|node| node.ends_with(" Ready")).count();
            ensure!(ready == wanted, "{nodes}");
            Ok(())
        })
    }

    fn on_each(&self, work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
        each(&self.nodes.0, work)
    }
}

/// The nodes; they say what they know when a test fails.
#[derive(Debug)]
struct Nodes(Vec<Node>);

impl Nodes {
    /// What a failed test needs to be understood without a second run. The logs of dockerd are
    /// in the lab's files.
    fn print_state(&self) {
        for node in &self.0 {
            let containers = node.docker("ps -a").unwrap_or_else(|error| error.to_string());
            eprintln!("---- containers of {}\n{containers}", node.name());
            let agents =
                node.docker("ps -aq --filter label=com.docker.swarm.service.name=weir_agent");
            for agent in agents.unwrap_or_default().lines() {
                let mut logs = node.daemon().command();
                let Ok(logs) = logs.args(["logs", agent]).output() else { continue };
                let said = [logs.stdout, logs.stderr].concat();
                let said = failure::excerpt(&String::from_utf8_lossy(&said));
                eprintln!("---- weir of {}\n{said}", node.name());
            }
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print_state();
        }
    }
}

/// The same on all nodes at once.
fn each(nodes: &[Node], work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(move || work(node).with_context(|| node.name().to_owned())))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| anyhow!("a thread of the Swarm panicked"))?
        })
    })
}

/// What docs/swarm.md tells a user to type before a node joins, without `docker`.
fn gwbridge_with_ipv6() -> Result<String> {
    let network = block("docs/swarm.md", "docker network create --driver bridge")?;
    Ok(network.trim_start_matches("docker ").replace("\\\n", " "))
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
