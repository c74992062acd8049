//! Hosts and clients: a namespace on the fabric with a name and addresses.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::AtomicU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

use crate::agent::AgentSlot;
use crate::cgroup::Cgroup;
use crate::firewall::DockerRules;
use crate::http::Answer;
use crate::lab::Options;
use crate::netns::Netns;
use crate::probe::{Probe, Seen};
use crate::process::{self, Process};

/// A node of the mesh: an uplink `eth0` on the fabric, a bridge `gw0` for its tasks, a cgroup.
/// Clones are the same host.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) inner: Arc<HostParts>,
}

/// What the lab knows of a host; tasks and agents share it.
#[derive(Debug)]
pub(crate) struct HostParts {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) cgroup: Cgroup,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) run_dir: PathBuf,
    pub(crate) pin_dir: PathBuf,
    pub(crate) mesh_file: PathBuf,
    pub(crate) options: Options,
    pub(crate) next_task: AtomicU16,
    pub(crate) rules: Mutex<Option<DockerRules>>,
    pub(crate) agent: Mutex<AgentSlot>,
}

impl Host {
    /// The name, `n1` and so on.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.inner.netns
    }

    /// The cgroup of everything that runs on the host.
    pub fn cgroup(&self) -> &Cgroup {
        &self.inner.cgroup
    }

    /// The addresses on the fabric: IPv4, then IPv6.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.inner.addresses
    }

    /// `address:port` for each address on the fabric.
    pub fn targets(&self, port: u16) -> Vec<SocketAddr> {
        self.addresses().iter().map(|address| SocketAddr::new(*address, port)).collect()
    }

    /// Where the host's configuration, socket and logs are.
    pub fn run_dir(&self) -> &Path {
        &self.inner.run_dir
    }

    /// Where weir's pins of this host are.
    pub fn pin_dir(&self) -> &Path {
        &self.inner.pin_dir
    }

    /// Starts a program on the host, in its namespace and cgroup.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Process::spawn(command, self.netns(), Some(self.cgroup()))
    }

    /// Runs a program on the host to its end.
    pub fn output(&self, command: Command) -> Result<Output> {
        process::output(command, self.netns(), Some(self.cgroup()))
    }

    /// Asks from programs of the host, one after the other.
    pub fn probe(&self, probes: &[Probe]) -> Result<Vec<Seen>> {
        Probe::seen(&self.output(Probe::command(probes)?)?)
    }

    /// Runs a closure in the host's namespace. It stays in our own cgroup: for what weir's
    /// connect-time programs shall see use [`Host::spawn`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns().run(work)
    }

    /// Empties all netfilter tables, as a firewall that restarts in mid-flight does.
    pub fn flush_firewall(&self) -> Result<()> {
        self.with_rules(DockerRules::flush)
    }

    /// Puts the Docker-like rules back after [`Host::flush_firewall`].
    pub fn reinstall_firewall(&self) -> Result<()> {
        self.with_rules(DockerRules::reinstall)
    }

    fn with_rules(&self, change: impl FnOnce(&mut DockerRules) -> Result<()>) -> Result<()> {
        let mut rules = self.inner.lock_rules();
        change(rules.as_mut().context("the lab was built without docker_firewall")?)
    }
}

impl HostParts {
    pub(crate) fn lock_rules(&self) -> MutexGuard<'_, Option<DockerRules>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock_agent(&self) -> MutexGuard<'_, AgentSlot> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody outside of the mesh who talks to it.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Client {
    /// The name, `c1` and so on.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The addresses on the fabric: IPv4, then IPv6.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Runs a closure in the client's namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work)
    }

    /// Starts a program in the client's namespace.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Process::spawn(command, &self.netns, None)
    }

    /// Runs a program in the client's namespace to its end.
    pub fn output(&self, command: Command) -> Result<Output> {
        process::output(command, &self.netns, None)
    }

    /// Asks once.
    pub fn ask(&self, probe: &Probe) -> Seen {
        self.run(|| probe.ask())
    }

    /// `GET /` over a new connection.
    pub fn get(&self, target: SocketAddr) -> Result<Answer> {
        self.netns.http_get(target, "/")
    }
}
