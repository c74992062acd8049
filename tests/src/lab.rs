//! Building a lab, and taking it down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicU16;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};

use crate::agent::{self, Agent, AgentConfig, AgentSlot};
use crate::bpffs::BpffsLease;
use crate::cgroup::Cgroup;
use crate::failure;
use crate::firewall::{DockerRules, IngressPort};
use crate::host::{Client, Host, HostParts};
use crate::link::{Prefix, Veth};
use crate::mesh::Mesh;
use crate::netns::Netns;
use crate::offload::Offloads;
use crate::plan::{self, Families, GATEWAY, UPLINK};
use crate::residue::{self, LabName};
use crate::task::{Task, default_of};

const FABRIC: &str = "fabric";

/// What is the same everywhere in a lab.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) fabric_mtu: u32,
    pub(crate) gateway_mtu: u32,
    pub(crate) offloads: Offloads,
    pub(crate) rp_filter: String,
    pub(crate) families: Families,
    default_route: bool,
    gateway: bool,
    docker_rules: Option<Vec<IngressPort>>,
}

/// Collects the wishes; [`LabBuilder::build`] makes it all.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    hosts: usize,
    clients: usize,
    options: Options,
}

impl LabBuilder {
    /// How many hosts (`n1`..), 10.77.0.11 and fd77::11 upwards. Default 2.
    pub fn hosts(self, hosts: usize) -> Self {
        Self { hosts, ..self }
    }

    /// How many clients (`c1`..), 10.77.0.101 and fd77::101 upwards. Default 1.
    pub fn clients(self, clients: usize) -> Self {
        Self { clients, ..self }
    }

    /// The MTU between hosts and clients. Default 1500.
    pub fn fabric_mtu(mut self, mtu: u32) -> Self {
        self.options.fabric_mtu = mtu;
        self
    }

    /// The MTU between a host and its tasks. Default 1500.
    pub fn gateway_mtu(mut self, mtu: u32) -> Self {
        self.options.gateway_mtu = mtu;
        self
    }

    /// The offloads of all veths, on both ends. Default: as the kernel makes them.
    pub fn offloads(mut self, offloads: Offloads) -> Self {
        self.options.offloads = offloads;
        self
    }

    /// `rp_filter` of hosts, clients and tasks: 0 off, 1 strict, 2 loose. Default 0.
    pub fn rp_filter(mut self, mode: u8) -> Self {
        self.options.rp_filter = mode.to_string();
        self
    }

    /// The address families of tasks. Default both; [`Lab::task_of`] decides for one task.
    pub fn families(mut self, families: Families) -> Self {
        self.options.families = families;
        self
    }

    /// Gives hosts and clients a default route to the fabric. Default: only their own network.
    pub fn default_route(mut self) -> Self {
        self.options.default_route = true;
        self
    }

    /// Leaves out `gw0`, the bridge for tasks: hosts on which dockerd itself makes its bridges.
    pub fn no_gateway(mut self) -> Self {
        self.options.gateway = false;
        self
    }

    /// Puts Docker's netfilter rules on every host, with these ports in DOCKER-INGRESS.
    pub fn docker_firewall(mut self, published: impl IntoIterator<Item = IngressPort>) -> Self {
        self.options.docker_rules = Some(published.into_iter().collect());
        self
    }

    /// Makes the lab; on failure everything made so far is removed.
    pub fn build(self) -> Result<Lab> {
        ensure!(nix::unistd::geteuid().is_root(), "the lab needs root: namespaces, cgroups, eBPF");
        failure::remember();
        residue::sweep();
        let name = LabName::next();
        let mut lab = Lab::empty(&name, self.options)?;
        for index in 0..self.hosts {
            lab.add_host(&name, index).with_context(|| format!("make host n{}", index + 1))?;
        }
        for index in 0..self.clients {
            lab.add_client(index).with_context(|| format!("make client c{}", index + 1))?;
        }
        Ok(lab)
    }
}

/// Hosts and clients on one fabric. Dropping it uninstalls weir from the hosts, removes
/// everything, and fails the test when something was left.
#[derive(Debug)]
pub struct Lab {
    fabric: Netns,
    hosts: Vec<Host>,
    clients: Vec<Client>,
    options: Options,
    cgroup: Cgroup,
    run_dir: PathBuf,
    bpffs: Option<BpffsLease>,
}

impl Lab {
    /// Two hosts and a client, unless told otherwise.
    pub fn builder() -> LabBuilder {
        let options = Options {
            fabric_mtu: 1500,
            gateway_mtu: 1500,
            offloads: Offloads::Kernel,
            rp_filter: "0".to_owned(),
            families: Families::Both,
            default_route: false,
            gateway: true,
            docker_rules: None,
        };
        LabBuilder { hosts: 2, clients: 1, options }
    }

    /// The host of this name.
    ///
    /// # Panics
    /// When there is none: a mistake in the test.
    pub fn host(&self, name: &str) -> &Host {
        let host = self.hosts.iter().find(|host| host.name() == name);
        host.unwrap_or_else(|| panic!("the lab has no host {name}"))
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The client of this name.
    ///
    /// # Panics
    /// When there is none: a mistake in the test.
    pub fn client(&self, name: &str) -> &Client {
        let client = self.clients.iter().find(|client| client.name() == name);
        client.unwrap_or_else(|| panic!("the lab has no client {name}"))
    }

    /// The namespace of the fabric; each host's port there has the host's name.
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// Makes a task on a host, with the lab's address families.
    pub fn task(&self, host: &str, name: &str) -> Result<Task> {
        self.task_of(host, name, self.options.families)
    }

    /// Makes a task with address families of its own.
    pub fn task_of(&self, host: &str, name: &str, families: Families) -> Result<Task> {
        Task::create(self.host(host), name, families)
    }

    /// A description of the mesh that knows the nodes; `write` it before agents start.
    pub fn mesh(&self) -> Mesh {
        let nodes = self.hosts.iter().map(|host| (host.name().to_owned(), host.addresses()[0]));
        Mesh::new(self.mesh_file(), nodes)
    }

    /// The file that all agents of the lab read.
    pub fn mesh_file(&self) -> PathBuf {
        self.run_dir.join("mesh.toml")
    }

    /// Starts weir on a host with the default configuration. Does not wait until it is ready.
    pub fn agent(&self, host: &str) -> Result<Agent> {
        self.agent_with(host, |_| ())
    }

    /// Starts weir on a host with a changed configuration.
    pub fn agent_with(&self, host: &str, change: impl FnOnce(&mut AgentConfig)) -> Result<Agent> {
        Agent::start(self.host(host), change)
    }

    /// Deletes the uplink of a host, as when a cable's driver goes.
    pub fn unplug(&self, host: &str) -> Result<()> {
        self.host(host).netns().delete_link(UPLINK)
    }

    /// Makes the uplink of a host anew, with its addresses, under another ifindex.
    pub fn plug(&self, host: &str) -> Result<()> {
        let index = self.hosts.iter().position(|known| known.name() == host);
        let prefixes = plan::host(index.with_context(|| format!("no host {host}"))?);
        self.connect(self.host(host).netns(), host, &prefixes)
    }

    /// Makes another uplink of a host, `eth1`.
    pub fn plug_second(&self, host: &str, prefixes: &[Prefix]) -> Result<()> {
        let (netns, port) = (self.host(host).netns(), format!("{host}-eth1"));
        let mtu = self.options.fabric_mtu;
        netns.add_veth(&Veth { name: "eth1", peer: &self.fabric, peer_name: &port, mtu })?;
        self.fabric.add_port(FABRIC, &port)?;
        netns.set_up("eth1", prefixes)?;
        self.fabric.wait_forwarding(&port)
    }

    /// Takes the lab down and gives what went wrong instead of panicking.
    pub fn finish(mut self) -> Result<()> {
        let problems = self.take_down();
        if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("\n")) }
    }

    /// Where configuration, sockets and logs are; removed with the lab.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    fn empty(name: &LabName, options: Options) -> Result<Self> {
        // What frees itself comes first: a failure among these leaves nothing.
        let (fabric, bpffs, run_dir) = (Netns::new()?, BpffsLease::take()?, name.run_dir());
        let cgroup = Cgroup::create(name.cgroup()?)?;
        let lab = Self {
            fabric,
            hosts: Vec::new(),
            clients: Vec::new(),
            options,
            cgroup,
            run_dir,
            bpffs: Some(bpffs),
        };
        fs::create_dir_all(&lab.run_dir).context("make the run directory")?;
        prepare(&lab.fabric, &lab.options)?;
        forward(&lab.fabric)?;
        lab.fabric.add_bridge(FABRIC, lab.options.fabric_mtu, &plan::fabric())?;
        Ok(lab)
    }

    fn add_host(&mut self, lab: &LabName, index: usize) -> Result<()> {
        let name = format!("n{}", index + 1);
        let prefixes = plan::host(index);
        let netns = self.join_fabric(&name, &prefixes)?;
        forward(&netns)?;
        if self.options.gateway {
            netns.add_bridge(GATEWAY, self.options.gateway_mtu, &plan::gateway())?;
        }
        let rules = self.options.docker_rules.as_ref();
        let rules = rules.map(|published| DockerRules::install(&netns, published)).transpose()?;
        let run_dir = self.run_dir.join(&name);
        fs::create_dir_all(&run_dir).context("make the host's run directory")?;
        let parts = HostParts {
            cgroup: self.cgroup.child(&name)?,
            addresses: plan::addresses(&prefixes),
            run_dir,
            pin_dir: lab.pin_dir(&name),
            mesh_file: self.mesh_file(),
            options: self.options.clone(),
            next_task: AtomicU16::new(0),
            rules: Mutex::new(rules),
            agent: Mutex::new(AgentSlot::default()),
            name,
            netns,
        };
        self.hosts.push(Host { inner: Arc::new(parts) });
        Ok(())
    }

    fn add_client(&mut self, index: usize) -> Result<()> {
        let name = format!("c{}", index + 1);
        let prefixes = plan::client(index);
        let netns = self.join_fabric(&name, &prefixes)?;
        // A load generator with a new connection per request runs out of ports otherwise.
        netns.sysctl(&[("ipv4/tcp_tw_reuse", "1"), ("ipv4/ip_local_port_range", "10000 65000")])?;
        self.clients.push(Client { name, netns, addresses: plan::addresses(&prefixes) });
        Ok(())
    }

    fn join_fabric(&self, name: &str, prefixes: &[Prefix]) -> Result<Netns> {
        let netns = Netns::new()?;
        prepare(&netns, &self.options)?;
        self.connect(&netns, name, prefixes)?;
        Ok(netns)
    }

    fn connect(&self, netns: &Netns, name: &str, prefixes: &[Prefix]) -> Result<()> {
        let mtu = self.options.fabric_mtu;
        netns.add_veth(&Veth { name: UPLINK, peer: &self.fabric, peer_name: name, mtu })?;
        netns.set_offloads(UPLINK, self.options.offloads)?;
        self.fabric.set_offloads(name, self.options.offloads)?;
        self.fabric.add_port(FABRIC, name)?;
        netns.set_up(UPLINK, prefixes)?;
        self.fabric.wait_forwarding(name)?;
        if self.options.default_route {
            for (gateway, _) in plan::fabric() {
                netns.add_route(default_of(gateway), gateway)?;
            }
        }
        Ok(())
    }

    /// Goes through all steps whatever fails, and collects what did.
    fn take_down(&mut self) -> Vec<String> {
        let Some(bpffs) = self.bpffs.take() else { return Vec::new() };
        let mut problems = Vec::new();
        for host in &self.hosts {
            problems.extend(agent::uninstall(host));
        }
        if let Err(error) = self.cgroup.kill_and_remove() {
            problems.push(format!("{error:#}"));
        }
        for host in &self.hosts {
            let _ = fs::remove_dir_all(&host.inner.pin_dir);
        }
        residue::remove_locks(&self.run_dir);
        let _ = fs::remove_dir_all(&self.run_dir);
        self.hosts.clear();
        self.clients.clear();
        drop(bpffs);
        problems
    }

    /// Everything that a failed test needs to be understood without a second run.
    fn print_logs(&self) {
        for log in log_files(&self.run_dir) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let text = failure::excerpt(&text);
            if !text.is_empty() {
                eprintln!("---- {}\n{text}", log.display());
            }
        }
        eprintln!("==== why the test failed\n{}", failure::why());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        let problems = self.take_down();
        if problems.is_empty() {
            return;
        }
        let text = format!("the lab was not clean at its end:\n{}", problems.join("\n"));
        if std::thread::panicking() {
            eprintln!("{text}");
        } else {
            panic!("{text}");
        }
    }
}

fn log_files(dir: &Path) -> Vec<PathBuf> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let hosts = entries(dir).map(|entry| entry.path()).filter(|path| path.is_dir());
    let mut logs: Vec<PathBuf> = hosts
        .flat_map(|host| entries(&host).map(|entry| entry.path()).collect::<Vec<_>>())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    logs
}

/// What every namespace of a lab has: `lo` up, addresses usable at once, pings allowed.
pub(crate) fn prepare(netns: &Netns, options: &Options) -> Result<()> {
    let rp_filter = options.rp_filter.as_str();
    netns.sysctl(&[
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv4/conf/all/rp_filter", rp_filter),
        ("ipv4/conf/default/rp_filter", rp_filter),
        ("ipv4/ping_group_range", "0 2147483647"),
    ])?;
    netns.set_up("lo", &[])
}

fn forward(netns: &Netns) -> Result<()> {
    netns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])
}

/// A command with arguments, in one expression.
pub fn command(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}
