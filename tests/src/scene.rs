//! A lab with tasks, a mesh and agents on it: what most tests of the whole begin with.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::agent::{Agent, AgentConfig};
use crate::lab::{Lab, LabBuilder};
use crate::mesh::Mesh;
use crate::plane::Plane;
use crate::task::Task;
use crate::wait::eventually;

/// What a task of a scene listens on.
pub const HTTP: u16 = 80;
/// What a task of a scene listens on.
pub const ECHO: u16 = 53;
/// Ten thousand services take a debug build some seconds.
const SETTLE: Duration = Duration::from_secs(60);

/// Tasks are in front of the lab: they end first.
#[derive(Debug)]
pub struct Scene {
    /// The tasks, by name.
    pub tasks: BTreeMap<String, Task>,
    /// The desired state; [`Scene::apply`] makes it so.
    pub mesh: Mesh,
    /// The agents, by host.
    pub agents: Vec<Agent>,
    /// The lab.
    pub lab: Lab,
    /// The data plane of all agents.
    pub plane: Plane,
    changes: u32,
}

impl Scene {
    /// A scene without tasks and agents.
    pub fn new(builder: LabBuilder) -> Result<Self> {
        Self::on(Plane::default(), builder)
    }

    /// The same on a data plane.
    pub fn on(plane: Plane, builder: LabBuilder) -> Result<Self> {
        let lab = builder.build()?;
        let (tasks, mesh, agents) = (BTreeMap::new(), lab.mesh(), Vec::new());
        Ok(Self { tasks, mesh, agents, lab, plane, changes: 0 })
    }

    /// Adds a running task to a service, which is made when it is new. It serves HTTP on port 80,
    /// and echoes on port 53.
    pub fn task(&mut self, service: &str, host: &str, name: &str) -> Result<()> {
        let mut task = self.lab.task(host, name)?;
        task.serve_http(HTTP)?;
        task.serve_echo(ECHO)?;
        self.mesh.service(service).task(&task);
        self.tasks.insert(name.to_owned(), task);
        Ok(())
    }

    /// A service that publishes `number` for HTTP over TCP and for echo over UDP.
    pub fn service(&mut self, name: &str, number: u16) -> &mut crate::mesh::Service {
        let service = self.mesh.service(name);
        let (web, echo) = (format!("{number}:{HTTP}"), format!("{number}:{ECHO}/udp"));
        service.publish(web.as_str()).publish(echo.as_str())
    }

    /// Starts an agent on each host, and waits until all serve the mesh.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(|_, _| ())
    }

    /// The same with changed configurations; the closure gets the name of the host.
    pub fn start_with(&mut self, change: impl Fn(&str, &mut AgentConfig)) -> Result<()> {
        self.write()?;
        for host in self.lab.hosts() {
            self.mesh.write_to(&self.own_file(host.name()))?;
            let agent = self.lab.agent_with(host.name(), |config| {
                config.set("dataplane.mode", self.plane.mode());
                // So that what is true of the proxy is tested with both kinds of listeners.
                if host.name() == "n2" {
                    config.set("proxy.sk_lookup", false);
                }
                change(host.name(), config);
            })?;
            self.agents.push(agent);
        }
        self.agents.iter().try_for_each(Agent::wait_ready)?;
        self.settle()
    }

    /// Writes the desired state, and waits until every agent has it in the kernel.
    pub fn apply(&mut self) -> Result<()> {
        self.write()?;
        self.settle()
    }

    /// Writes the desired state.
    pub fn write(&mut self) -> Result<()> {
        self.mark();
        self.mesh.write()
    }

    /// Writes the desired state for one host only, to [`Scene::own_file`], which its agent was
    /// told to read. Waits until it is in the kernel.
    pub fn apply_to(&mut self, host: &str, mesh: &Mesh) -> Result<()> {
        self.changes += 1;
        let mut mesh = mesh.clone();
        mesh.service(&mark(self.changes));
        mesh.write_to(&self.own_file(host))?;
        wait_for(self.agent(host), &mark(self.changes))
    }

    /// A file for the agent of one host alone.
    pub fn own_file(&self, host: &str) -> PathBuf {
        self.lab.host(host).run_dir().join("mesh.toml")
    }

    /// The agent of a host.
    ///
    /// # Panics
    /// When there is none: a mistake in the test.
    pub fn agent(&self, host: &str) -> &Agent {
        let agent = self.agents.iter().find(|agent| agent.host().name() == host);
        agent.unwrap_or_else(|| panic!("no agent on {host}"))
    }

    /// What the kernel programs of each host have dropped, for a failure's report.
    pub fn drops(&self) -> String {
        let mut text = String::new();
        for agent in &self.agents {
            let metrics = agent.http("/metrics").map(|answer| answer.body).unwrap_or_default();
            for line in metrics.lines().filter(|line| line.contains("drop")) {
                if !line.starts_with('#') && !line.ends_with(" 0") {
                    text += &format!("{}: {line}\n", agent.host().name());
                }
            }
        }
        text
    }

    /// A service of no ports, by which agents show that they have read this very file.
    fn mark(&mut self) {
        self.mesh.remove_service(&mark(self.changes));
        self.changes += 1;
        self.mesh.service(&mark(self.changes));
    }

    fn settle(&self) -> Result<()> {
        self.agents
            .iter()
            .filter(|agent| agent.is_running())
            .try_for_each(|agent| wait_for(agent, &mark(self.changes)))
    }
}

fn mark(number: u32) -> String {
    format!("mark-{number}")
}

fn wait_for(agent: &Agent, mark: &str) -> Result<()> {
    let what = format!("the new mesh.toml to be in the kernel of {}", agent.host().name());
    let read = |path| -> Result<Value> { Ok(serde_json::from_str(&agent.api(path)?.body)?) };
    eventually(&what, SETTLE, || {
        let services = read("/api/v1/services")?;
        let known = services["services"].as_array().context("no services")?;
        ensure!(known.iter().any(|service| service["name"] == mark), "{mark} is not known");
        let status = read("/api/v1/status")?;
        ensure!(status["generation"].as_u64() >= services["generation"].as_u64(), "{status}");
        Ok(())
    })
}

/// Many assertions on one scene: all are tried, and each that fails is named.
#[derive(Debug, Default)]
pub struct Cases {
    done: usize,
    failed: Vec<String>,
}

impl Cases {
    /// Notes how one case came out.
    pub fn note<T>(&mut self, name: impl Display, result: Result<T>) {
        self.done += 1;
        if let Err(error) = result {
            self.failed.push(format!("{name}: {error:#}"));
        }
    }

    /// Fails when a case failed, and says what the hosts have dropped.
    pub fn end(self, scene: &Scene) -> Result<()> {
        self.all_well().map_err(|error| anyhow!("{error}\n{}", scene.drops()))
    }

    /// Fails when a case failed.
    pub fn all_well(self) -> Result<()> {
        let Self { done, failed } = self;
        let count = failed.len();
        ensure!(count == 0 && done > 0, "{count} of {done} failed:\n{}", failed.join("\n"));
        Ok(())
    }
}
