//! Tasks: containers without an image, behind a host's `gw0`.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cgroup::Cgroup;
use crate::host::{Host, HostParts};
use crate::lab::prepare;
use crate::link::{Prefix, Veth};
use crate::netns::Netns;
use crate::plan::{self, Families, GATEWAY, UPLINK};
use crate::probe::{Probe, Seen};
use crate::process::{self, Process};
use crate::wait::eventually;

/// A task on a host. On drop its programs are killed and its interface is gone at once.
#[derive(Debug)]
pub struct Task {
    name: String,
    host: Arc<HostParts>,
    netns: Netns,
    cgroup: Cgroup,
    addresses: Vec<IpAddr>,
    veth: String,
    programs: Vec<Process>,
}

impl Task {
    pub(crate) fn create(host: &Host, name: &str, families: Families) -> Result<Self> {
        let host = Arc::clone(&host.inner);
        let index = host.next_task.fetch_add(1, Ordering::Relaxed);
        let prefixes = families.keep(plan::task(index));
        let task = Self {
            name: name.to_owned(),
            netns: Netns::new()?,
            cgroup: host.cgroup.child(&format!("task-{index}-{name}"))?,
            addresses: plan::addresses(&prefixes),
            veth: format!("veth-{}", index + 1),
            programs: Vec::new(),
            host,
        };
        task.connect(&prefixes).with_context(|| format!("make task {name}"))?;
        Ok(task)
    }

    /// The name, for example `web.1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the host.
    pub fn node(&self) -> &str {
        &self.host.name
    }

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The addresses behind `gw0`. Tasks of different hosts may have the same ones.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The name of the interface on the host's side, a port of `gw0`.
    pub fn veth(&self) -> &str {
        &self.veth
    }

    /// Starts a program in the task.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Process::spawn(command, &self.netns, Some(&self.cgroup))
    }

    /// Runs a program in the task to its end.
    pub fn output(&self, command: Command) -> Result<Output> {
        process::output(command, &self.netns, Some(&self.cgroup))
    }

    /// Asks from programs of the task, one after the other.
    pub fn probe(&self, probes: &[Probe]) -> Result<Vec<Seen>> {
        Probe::seen(&self.output(Probe::command(probes)?)?)
    }

    /// Runs a closure in the task's namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work)
    }

    /// Starts the HTTP server that answers with the task's name and the client's address; it
    /// finishes open requests on SIGTERM. Returns when it listens.
    pub fn serve_http(&mut self, port: u16) -> Result<()> {
        self.serve("http", port, &["--on-term", "finish"])
    }

    /// Starts the TCP and UDP echo server that puts its name and the client's address before UDP
    /// answers. Returns when it listens.
    pub fn serve_echo(&mut self, port: u16) -> Result<()> {
        self.serve("echo", port, &["--say-name"])
    }

    /// SIGTERM to all programs and waits for their end: how an orchestrator stops a task.
    pub fn stop(&mut self, timeout: Duration) -> Result<()> {
        for mut program in self.programs.drain(..) {
            program.stop(timeout)?;
        }
        Ok(())
    }

    /// SIGKILL to all programs: how a task crashes. Its address stays and refuses connections.
    pub fn kill9(&mut self) {
        self.programs.clear();
    }

    fn serve(&mut self, kind: &str, port: u16, more: &[&str]) -> Result<()> {
        let log = self.host.run_dir.join(format!("{}.log", self.name));
        let log = File::options().create(true).append(true).open(&log).context("task log")?;
        let mut command = Command::new(task_program()?);
        command.args([kind, "--name", &self.name, "--listen", &port.to_string()]).args(more);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.programs.push(self.spawn(command)?);
        self.wait_listening(port)
    }

    fn wait_listening(&self, port: u16) -> Result<()> {
        let targets = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let what = format!("{} to listen on port {port}", self.name);
        self.run(|| {
            eventually(&what, Duration::from_secs(5), || {
                targets.iter().try_for_each(|target| {
                    TcpStream::connect(SocketAddr::new(*target, port)).map(drop)
                })
            })
        })
    }

    fn connect(&self, prefixes: &[Prefix]) -> Result<()> {
        let options = &self.host.options;
        prepare(&self.netns, options)?;
        let (host, veth, mtu) = (&self.host.netns, &self.veth, options.gateway_mtu);
        host.add_veth(&Veth { name: veth, peer: &self.netns, peer_name: UPLINK, mtu })?;
        host.set_offloads(veth, options.offloads)?;
        self.netns.set_offloads(UPLINK, options.offloads)?;
        host.add_port(GATEWAY, veth)?;
        self.netns.set_up(UPLINK, prefixes)?;
        host.wait_forwarding(veth)?;
        for (gateway, _) in plan::gateway() {
            if prefixes.iter().any(|(own, _)| own.is_ipv4() == gateway.is_ipv4()) {
                self.netns.add_route(default_of(gateway), gateway)?;
            }
        }
        match self.host.lock_rules().as_mut() {
            Some(rules) => rules.add_task(&self.addresses),
            None => Ok(()),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.programs.clear();
        // The kernel frees namespaces later, in the background; a task that is gone must be gone.
        let _ = self.host.netns.delete_link(&self.veth);
        if let Some(rules) = self.host.lock_rules().as_mut() {
            let _ = rules.remove_task(&self.addresses);
        }
        let _ = self.cgroup.kill_and_remove();
    }
}

pub(crate) fn default_of(gateway: IpAddr) -> Prefix {
    match gateway {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

/// The task program: `WEIR_LAB_TASK_BIN`, else beside the running test.
pub fn task_program() -> Result<PathBuf> {
    program("WEIR_LAB_TASK_BIN", "weir-lab-task")
}

/// A binary of this workspace: from the environment, else from the target directory that the
/// running program is in (tests are in its `deps`).
pub(crate) fn program(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let me = std::env::current_exe().context("own path")?;
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.exists());
    match found {
        Some(path) => Ok(path),
        None => bail!("no {name} near {}: build it, or set {variable}", me.display()),
    }
}
