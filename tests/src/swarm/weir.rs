//! weir on the nodes of a Swarm: deployed as a user deploys it, and asked for what it serves.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::plane::Plane;
use crate::probe::{How, Probe};
use crate::swarm::{Node, SETTLE, Swarm, SwarmBuilder, repository, task_images, weir_image};
use crate::wait::eventually;

/// What a user adds to the stack file for the userspace proxy.
const PROXY: &str = r#"version: "3.8"
services:
  agent:
    environment:
      WEIR_DATAPLANE_MODE: proxy
"#;

impl SwarmBuilder {
    /// The images of the lab's tasks and of the `weir` under test.
    pub fn with_images(self) -> Result<Self> {
        let images = task_images()?.into_iter().chain([weir_image()?]);
        Ok(images.fold(self, Self::image))
    }
}

impl Swarm {
    /// Deploys weir as a user does, with the stack file and nothing else, and waits until it is
    /// ready on every node.
    pub fn deploy_weir(&self) -> Result<()> {
        let stack = repository("deploy/stack.yml");
        match self.plane() {
            Plane::Ebpf => self.deploy("weir", &[&stack])?,
            Plane::Proxy => {
                let change = self.lab().hosts()[0].run_dir().join("proxy.yml");
                fs::write(&change, PROXY)?;
                self.deploy("weir", &[&stack, &change])?;
            }
        }
        self.nodes().iter().try_for_each(Node::wait_weir)
    }

    /// Waits until all ports of a service are served on every node.
    pub fn wait_served(&self, service: &str) -> Result<()> {
        self.nodes().iter().try_for_each(|node| {
            eventually(&format!("{service} to be served on {}", node.name()), SETTLE, || {
                let served = node.weir_service(service)?;
                let ports = served["ports"].as_array().cloned().unwrap_or_default();
                let all = ports.iter().all(|port| port["state"] == "served");
                ensure!(!ports.is_empty() && all, "{served}");
                Ok(())
            })
        })
    }

    /// Waits until a client is answered at a port of each of these nodes by every running task
    /// that a service has on them, and by nobody else.
    pub fn wait_answered(&self, nodes: &[&Node], service: &str, asked: (How, u16)) -> Result<()> {
        let (how, port) = asked;
        for node in nodes {
            let what = format!("all tasks of {service} to answer at {}:{port}", node.name());
            eventually(&what, SETTLE, || {
                let mut running = BTreeSet::new();
                for other in nodes {
                    running.extend(other.tasks(service)?.into_iter().map(|task| task.said()));
                }
                let answered = self.answered(&Probe::new(how, node.target(port)), &running)?;
                ensure!(!running.is_empty() && answered == running, "{answered:?} of {running:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Asks until each of these has answered, but no longer than that should take.
    fn answered(&self, probe: &Probe, wanted: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        let client = self.client("c1");
        let mut answered = BTreeSet::new();
        for _ in 0..4 * wanted.len() + 4 {
            let seen = client.ask(probe);
            if self.plane().keeps_client() {
                seen.client_kept(client.addresses()[0])?;
            }
            let task = seen.task.context("an answer without a name")?;
            answered.insert(task.split_once('@').map_or(task.as_str(), |(_, at)| at).to_owned());
        }
        Ok(answered)
    }
}

impl Node {
    /// Waits until the node's weir says that it is ready.
    pub fn wait_weir(&self) -> Result<()> {
        eventually(&format!("weir on {} to be ready", self.name()), SETTLE, || {
            let answer = self.weir("/readyz")?;
            ensure!(answer.status == 200, "{} {}", answer.status, answer.body.trim());
            Ok(())
        })
    }

    /// What the node's weir says of a service; `null` when it knows none.
    pub fn weir_service(&self, service: &str) -> Result<Value> {
        let answer: Value = serde_json::from_str(&self.weir("/api/v1/services")?.body)?;
        let services = answer["services"].as_array().context("/api/v1/services")?;
        let found = services.iter().find(|known| known["name"] == service);
        Ok(found.cloned().unwrap_or_default())
    }

    /// Waits until the node's weir holds what `wanted` says of the tasks of a service.
    pub fn wait_tasks(&self, service: &str, wanted: impl Fn(&[Value]) -> bool) -> Result<()> {
        let what = format!("{} to know what became of {service}", self.name());
        eventually(&what, SETTLE, || {
            let known = self.weir_service(service)?;
            let tasks = known["tasks"].as_array().cloned().unwrap_or_default();
            ensure!(wanted(&tasks), "{known}");
            Ok(())
        })
    }

    /// A service's task on this node, gone as the process of the container ends: `docker kill`.
    pub fn kill_task(&self, service: &str) -> Result<()> {
        let task = self.tasks(service)?.pop();
        let task = task.with_context(|| format!("no task of {service} on {}", self.name()))?;
        self.docker(&format!("kill {}", task.container)).map(drop)
    }

    /// When Docker last told of this event of a container, since `begun`.
    pub fn event_of(&self, event: &str, container: &str, begun: SystemTime) -> Result<SystemTime> {
        let since = begun.duration_since(UNIX_EPOCH)?.as_secs();
        let until = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 2;
        let filters = format!("--filter event={event} --filter container={container}");
        let events = format!("events --since {since} --until {until} {filters}");
        let format = ["--format", "{{.TimeNano}}"];
        let arguments: Vec<_> = events.split(' ').chain(format).collect();
        let times = self.docker_with(&arguments)?;
        let last = times.lines().last().with_context(|| format!("no {event} of {container}"))?;
        Ok(UNIX_EPOCH + Duration::from_nanos(last.trim().parse()?))
    }

    /// When the kernel of this node was changed first after `event`, by the agent's log: its API is a
    /// second old.
    pub fn kernel_changed_after(&self, event: SystemTime) -> Result<SystemTime> {
        const DAY: u64 = 24 * 3600;
        let since = event.duration_since(UNIX_EPOCH)?.as_secs();
        let agent = self.tasks("weir_agent")?.pop().context("no agent runs")?.container;
        let mut logs = self.daemon().command();
        logs.args(["logs", "--since", &since.to_string(), &agent]);
        let output = logs.output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines = said.lines().filter(|line| line.contains("the kernel holds the snapshot"));
        // 2026-11-21T09:31:56.591552Z
        let times = lines.filter_map(|line| {
            let time = line.split(' ').next()?.split_once('T')?.1.trim_end_matches('Z');
            let parts: Vec<f64> = time.split(':').filter_map(|part| part.parse().ok()).collect();
            let [hours, minutes, seconds] = parts[..] else { return None };
            let today = UNIX_EPOCH + Duration::from_secs(since / DAY * DAY);
            Some(today + Duration::from_secs_f64((hours * 60.0 + minutes) * 60.0 + seconds))
        });
        let first = times.filter(|time| *time >= event).min();
        first.with_context(|| format!("nothing changed on {}: {said}", self.name()))
    }
}
