//! One node: a machine of its own with a dockerd.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::agent::HTTP_PORT;
use crate::host::Host;
use crate::http::Answer;
use crate::lab::command;
use crate::leftovers::Traces;
use crate::process::Process;
use crate::swarm::docker::Docker;
use crate::swarm::image::Image;
use crate::task::program;
use crate::wait::eventually;

const BOOT: Duration = Duration::from_secs(15);
/// Containers get ten seconds to end.
const STOP: Duration = Duration::from_secs(30);

/// A node of the Swarm. On drop everything in it is killed.
#[derive(Debug)]
pub struct Node {
    host: Host,
    docker: Docker,
    dockerd: Mutex<Option<Process>>,
    first: i32,
    machine: Process,
}

impl Node {
    /// Makes the machine of a host; dockerd does not run yet.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn boot(host: &Host, host_name: &str) -> Result<Self> {
        let ready = host.run_dir().join("first.pid");
        let _ = fs::remove_file(&ready);
        let mut command = Command::new(node_program()?);
        command.args(["init", "--name", host_name, "--ready"]).arg(&ready);
        let machine = host.spawn(to_log(command, host, "machine.log")?)?;
        let first: i32 = eventually("the machine to be mounted", BOOT, || -> Result<i32> {
            Ok(fs::read_to_string(&ready).context("not yet")?.parse()?)
        })
        .with_context(|| {
            fs::read_to_string(host.run_dir().join("machine.log")).unwrap_or_default()
        })?;
        let socket = PathBuf::from(format!("/proc/{first}/root/run/docker.sock"));
        let docker = Docker::at(socket, host.run_dir().join("docker-config"));
        Ok(Self { host: host.clone(), docker, dockerd: Mutex::new(None), first, machine })
    }

    /// The name, which is the host name that Docker shows, unless the builder was told otherwise.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// The host below: its namespace, cgroup and addresses.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The first process; `nsenter -t PID -a` gives a shell in the node.
    pub fn first_process(&self) -> i32 {
        self.first
    }

    /// The IPv4 address on the fabric.
    pub fn address(&self) -> IpAddr {
        self.host.addresses()[0]
    }

    /// The IPv4 address on the fabric with a port.
    pub fn target(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(), port)
    }

    /// The daemon.
    pub fn daemon(&self) -> &Docker {
        &self.docker
    }

    /// `docker` with these words, split at blanks.
    pub fn docker(&self, words: &str) -> Result<String> {
        self.docker_with(&words.split_ascii_whitespace().collect::<Vec<_>>())
    }

    /// `docker` with arguments that have blanks.
    pub fn docker_with(&self, arguments: &[&str]) -> Result<String> {
        self.docker.run(arguments).with_context(|| self.name().to_owned())
    }

    /// What `docker inspect` says of anything.
    pub fn inspect(&self, what: &str) -> Result<Value> {
        self.docker.inspect(&["inspect", what])
    }

    /// What `docker network inspect` says; nothing when there is no such network. Docker makes
    /// `docker_gwbridge` on a worker only when the first task that needs it comes.
    pub fn network(&self, name: &str) -> Result<Option<Value>> {
        match self.docker.inspect(&["network", "inspect", name]) {
            Ok(network) => Ok(Some(network)),
            Err(error) if error.to_string().contains("No such network") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `GET` from the HTTP server of the node's weir, which is in the node's network namespace.
    pub fn weir(&self, path: &str) -> Result<Answer> {
        let server = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HTTP_PORT);
        self.host.netns().http_get(server, path)
    }

    /// What is in the kernel for this node: interfaces, attached programs, routes, pins. To be
    /// compared with an earlier answer.
    pub fn kernel_traces(&self) -> Result<BTreeSet<String>> {
        let mut traces = Traces::of(&self.host)?.into_set();
        for pin in fs::read_dir(self.path("/sys/fs/bpf"))? {
            traces.insert(format!("the pin {}", pin?.file_name().display()));
        }
        Ok(traces)
    }

    /// A path of the node, as the test can open it.
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.first)).join(inside.trim_start_matches('/'))
    }

    /// Starts a program in the node, which sees it as one of its own.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        self.host.spawn(self.inside(command)?)
    }

    /// Runs a program in the node to its end.
    pub fn output(&self, command: Command) -> Result<Output> {
        self.host.output(self.inside(command)?)
    }

    /// Loads an image.
    pub fn load(&self, image: &Image) -> Result<()> {
        let archive = image.archive().display().to_string();
        self.docker_with(&["load", "--quiet", "--input", &archive]).map(drop)
    }

    /// Starts dockerd and waits until it answers.
    pub fn start_docker(&self) -> Result<()> {
        // At its default level it says more than anybody reads after a failed test.
        let dockerd = command("dockerd", &["--log-level", "error"]);
        let log = to_log(self.inside(dockerd)?, &self.host, "dockerd.log")?;
        *self.lock() = Some(self.host.spawn(log)?);
        eventually(&format!("dockerd of {} to answer", self.name()), BOOT, || {
            ensure!(self.lock().as_mut().is_some_and(Process::is_running), "it ended");
            self.docker.run(&["version", "--format", "{{.Server.Version}}"])
        })
        .with_context(|| last_lines(&self.host.run_dir().join("dockerd.log")))?;
        Ok(())
    }

    /// Ends dockerd as `systemctl stop docker` does, and its containers with it.
    pub fn stop_docker(&self) -> Result<()> {
        match self.lock().take() {
            Some(mut dockerd) => dockerd.stop(STOP).map(drop),
            None => Ok(()),
        }
    }

    /// SIGKILL to dockerd: containers go on, and dockerd finds them when it is started again.
    pub fn kill_docker(&self) {
        *self.lock() = None;
        // The containerd that it had started goes with it, but the pid file stays: a new dockerd
        // looks at it and takes whoever has the number now for itself.
        let _ = fs::remove_file(self.path("/run/docker.pid"));
    }

    /// Its environment is taken over, its input and output are not.
    fn inside(&self, command: Command) -> Result<Command> {
        let mut outer = Command::new(node_program()?);
        outer.arg("exec").arg(self.first.to_string()).arg(command.get_program());
        outer.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => outer.env(name, value),
                None => outer.env_remove(name),
            };
        }
        Ok(outer)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.dockerd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Its parent, which we would otherwise kill with it, is there to reap it.
        let _ = kill(Pid::from_raw(self.first), Signal::SIGKILL);
        let _ = self.machine.wait(BOOT);
    }
}

fn node_program() -> Result<PathBuf> {
    program("WEIR_LAB_NODE_BIN", "weir-lab-node")
}

fn to_log(mut command: Command, host: &Host, name: &str) -> Result<Command> {
    let log = File::options().create(true).append(true).open(host.run_dir().join(name))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

fn last_lines(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
