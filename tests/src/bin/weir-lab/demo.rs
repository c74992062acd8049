//! The mesh that is shown: `web` and `echo` with three tasks each on three hosts.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use weir_tests::agent::agent_program;
use weir_tests::firewall::{tcp, udp};
use weir_tests::lab::command;
use weir_tests::{Agent, Client, Lab, Mesh, Process, Task, interrupt};

use crate::Cli;

/// The published port of `web`.
pub const WEB: u16 = 8080;
/// The published port of `echo`, TCP and UDP.
pub const ECHO: u16 = 5353;
const HOSTS: [&str; 3] = ["n1", "n2", "n3"];

/// Everything of the demo; tasks and helpers go before the lab.
pub struct Demo {
    pub tasks: BTreeMap<String, Task>,
    pub agents: Vec<Agent>,
    pub mesh: Mesh,
    shells: Vec<(String, Process)>,
    mode: String,
    pub(super) lab: Lab,
}

impl Demo {
    /// Hosts, tasks and mesh.toml; no agents yet.
    pub fn build(cli: &Cli) -> Result<Self> {
        agent_program()?; // before minutes of anything else
        let mut builder = Lab::builder().hosts(HOSTS.len());
        if cli.docker_firewall {
            builder = builder.docker_firewall([tcp(WEB), tcp(ECHO), udp(ECHO)]);
        }
        let lab = builder.build()?;
        let mesh = lab.mesh();
        let (tasks, agents, shells) = (BTreeMap::new(), Vec::new(), Vec::new());
        Ok(Self { tasks, agents, mesh, shells, mode: cli.mode.clone(), lab })
    }

    /// Starts tasks, agents and the helper processes that sit in the namespaces.
    pub fn start(&mut self) -> Result<()> {
        self.add_tasks()?;
        self.mesh.write()?;
        for host in HOSTS {
            let mode = self.mode.clone();
            let agent = self.lab.agent_with(host, |config| {
                config.set("dataplane.mode", mode);
            })?;
            self.agents.push(agent);
        }
        for agent in &self.agents {
            interrupt::go_on()?;
            agent.wait_ready()?;
        }
        let sleep = || command("sleep", &["infinity"]);
        self.shells.push(("c1".to_owned(), self.client().spawn(sleep())?));
        for host in HOSTS {
            self.shells.push((host.to_owned(), self.lab.host(host).spawn(sleep())?));
        }
        Ok(())
    }

    /// The client.
    pub fn client(&self) -> &Client {
        self.lab.client("c1")
    }

    /// Whether the userspace proxy was asked for.
    pub fn by_proxy(&self) -> bool {
        self.mode == "proxy"
    }

    /// The agent of a host.
    pub fn agent(&self, host: &str) -> Result<&Agent> {
        let found = self.agents.iter().find(|agent| agent.host().name() == host);
        found.with_context(|| format!("no agent on {host}"))
    }

    /// A port on every host, IPv4 or IPv6.
    pub fn targets(&self, port: u16) -> Vec<(String, SocketAddr)> {
        let of = |host: &weir_tests::Host| {
            let name = host.name().to_owned();
            host.targets(port).into_iter().map(move |target| (name.clone(), target))
        };
        self.lab.hosts().iter().flat_map(of).collect()
    }

    /// The pids of the processes that sit in the namespaces, for `nsenter`.
    pub fn shells(&self) -> impl Iterator<Item = (&str, u32)> {
        self.shells.iter().map(|(name, process)| (name.as_str(), process.pid()))
    }

    /// The logs, for when something went wrong.
    pub fn print_agent_logs(&self) {
        for agent in &self.agents {
            eprintln!("---- the agent of {}\n{}", agent.host().name(), agent.log());
        }
    }

    /// Takes everything down and says what was left.
    pub fn finish(self) -> Result<()> {
        let Self { tasks, agents, shells, lab, .. } = self;
        drop((tasks, agents, shells));
        lab.finish()
    }

    fn add_tasks(&mut self) -> Result<()> {
        self.mesh.service("web").publish("8080:80");
        self.mesh.service("echo").publish("5353:53/udp").publish("5353:53");
        for (index, host) in HOSTS.iter().enumerate() {
            let mut web = self.lab.task(host, &format!("web.{}", index + 1))?;
            web.serve_http(80)?;
            self.mesh.service("web").task(&web);
            let mut echo = self.lab.task(host, &format!("echo.{}", index + 1))?;
            echo.serve_echo(53)?;
            self.mesh.service("echo").task(&echo);
            for task in [web, echo] {
                self.tasks.insert(task.name().to_owned(), task);
            }
        }
        Ok(())
    }
}
