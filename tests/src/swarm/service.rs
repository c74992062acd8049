//! What the Swarm says of its services, and waiting for it.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use crate::swarm::{Node, SETTLE, Swarm};
use crate::wait::eventually;

/// A running task, and where its node reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskAt {
    /// `web.1.abc…`: the name of its container.
    pub name: String,
    /// The id of its container.
    pub container: String,
    /// The name of its node.
    pub node: String,
    /// Where its node reaches it: on `docker_gwbridge`, or on `docker0` when it is on no network of
    /// the Swarm. A task in the node's own network has none.
    pub address: Option<IpAddr>,
}

impl TaskAt {
    /// The host name that the task's answers end their name with: `v1@HOSTNAME`.
    pub fn said(&self) -> String {
        self.container.chars().take(12).collect()
    }
}

/// How an update may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// All tasks are as they shall be.
    Completed,
    /// All tasks are as they were before.
    RolledBack,
}

impl Update {
    /// `UpdateStatus.State` of the service.
    fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::RolledBack => "rollback_completed",
        }
    }
}

impl Swarm {
    /// Waits until so many tasks of a service run, and none other is wanted.
    pub fn wait_running(&self, service: &str, wanted: usize) -> Result<()> {
        let list = ["service", "ps", "--no-trunc", "--filter", "desired-state=running"];
        let format = ["--format", "{{.Node}} {{.CurrentState}} {{.Error}}", service];
        eventually(&format!("{wanted} running tasks of {service}"), SETTLE, || {
            let tasks = self.docker_with(&[&list[..], &format[..]].concat())?;
            let running = tasks.lines().filter(|task| task.contains(" Running ")).count();
            ensure!(running == wanted && tasks.lines().count() == wanted, "{tasks}");
            Ok(())
        })
    }

    /// Waits until the update or rollback of a service, started with `--detach`, has ended well.
    pub fn wait_updated(&self, service: &str, end: Update) -> Result<()> {
        eventually(&format!("the update of {service} to be {}", end.word()), 4 * SETTLE, || {
            let service = self.inspect(service)?;
            let state = service["UpdateStatus"]["State"].as_str().unwrap_or("none");
            ensure!(state == end.word(), "{}", service["UpdateStatus"]);
            Ok(())
        })
    }

    /// The running containers of a service on all nodes.
    pub fn tasks(&self, service: &str) -> Result<Vec<TaskAt>> {
        let each: Vec<_> =
            self.nodes().iter().map(|node| node.tasks(service)).collect::<Result<_>>()?;
        Ok(each.concat())
    }
}

impl Node {
    /// The running containers of a service on this node.
    pub fn tasks(&self, service: &str) -> Result<Vec<TaskAt>> {
        let networks = [self.network("docker_gwbridge")?, self.network("bridge")?];
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let list = ["ps", "--no-trunc", "--filter", &filter, "--format", "{{.ID}} {{.Names}}"];
        let containers = self.docker_with(&list)?;
        containers
            .lines()
            .map(|line| {
                let (id, name) = line.split_once(' ').context("docker ps")?;
                let prefix = networks
                    .iter()
                    .flatten()
                    .find_map(|network| network["Containers"][id]["IPv4Address"].as_str());
                let address = prefix.and_then(|prefix| prefix.split('/').next());
                Ok(TaskAt {
                    name: name.to_owned(),
                    container: id.to_owned(),
                    node: self.name().to_owned(),
                    address: address.map(str::parse).transpose()?,
                })
            })
            .collect()
    }
}
