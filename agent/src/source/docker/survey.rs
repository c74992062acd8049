//! What dockerd says at one moment, as it says it: for a comparison with what became of it here. It shares
//! nothing with the source but the words of the API, so that it also shows what the source misread.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use super::{
    client::{Client, Error, encode},
    engine::{Engine, NoSwarm, usable},
    model::{Container, Info, Listed, Node, Service, Task},
};

/// A port that a service publishes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SurveyedPort {
    /// The name of the service.
    pub service: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Where clients connect.
    pub published: u16,
    /// Where tasks listen.
    pub target: u16,
    /// `ingress` or `host`.
    pub mode: String,
}

/// A task that runs, as far as dockerd knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedTask {
    /// The host name of its node.
    pub node: String,
    /// Whether it is to go on: not so when it is being ended.
    pub wanted: bool,
}

/// A node of the Swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedNode {
    /// `ready`, `down` and so on.
    pub state: String,
    /// Where Swarm reaches it, if it says so.
    pub address: Option<IpAddr>,
}

/// What one dockerd says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The host name of the node asked.
    pub node: String,
    /// Of the whole Swarm, which only managers know.
    pub swarm: Option<SwarmSurvey>,
    /// Tasks by name: all where `swarm` is there, else those of this node.
    pub tasks: BTreeMap<String, SurveyedTask>,
}

/// What a manager knows besides the tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwarmSurvey {
    /// Services by name.
    pub services: BTreeSet<String>,
    /// What they publish at a number of their own choice or Swarm's.
    pub ports: BTreeSet<SurveyedPort>,
    /// Nodes by host name.
    pub nodes: BTreeMap<String, SurveyedNode>,
}

/// Asks the dockerd behind `socket`.
pub async fn survey(socket: &Path) -> Result<Result<Survey, NoSwarm>, Error> {
    let client = Client::connect(socket).await?;
    let engine = match Engine::read(&client.get::<Info>("/info").await?) {
        Ok(engine) => engine,
        Err(no_swarm) => return Ok(Err(no_swarm)),
    };
    if !engine.manager {
        let tasks = own_tasks(&client, &engine.hostname).await?;
        return Ok(Ok(Survey { node: engine.hostname, swarm: None, tasks }));
    }
    let (nodes, services, tasks) = tokio::try_join!(
        client.get::<Vec<Node>>("/nodes"),
        client.get::<Vec<Service>>("/services"),
        client.get::<Vec<Task>>("/tasks"),
    )?;
    let tasks = tasks_of(&tasks, &services, &nodes);
    let mut swarm = SwarmSurvey::default();
    for service in &services {
        swarm.services.insert(service.spec.name.clone());
        swarm.ports.extend(ports_of(service));
    }
    let node = |node: &Node| {
        let address = node.status.addr.parse().ok().filter(usable);
        let surveyed = SurveyedNode { state: node.status.state.clone(), address };
        (node.description.hostname.clone(), surveyed)
    };
    swarm.nodes = nodes.iter().map(node).collect();
    Ok(Ok(Survey { node: engine.hostname, swarm: Some(swarm), tasks }))
}

fn ports_of(service: &Service) -> impl Iterator<Item = SurveyedPort> + '_ {
    // Who asks to be left alone is (docs/configuration.md, labels).
    let left_alone = service.spec.labels.get("weir.enable").is_some_and(|it| it == "false");
    let ports = service.endpoint.ports.iter().filter(move |_| !left_alone);
    let numbered = ports.filter(|port| port.published_port != 0);
    numbered.map(|port| SurveyedPort {
        service: service.spec.name.clone(),
        protocol: or(&port.protocol, "tcp"),
        published: port.published_port,
        target: port.target_port,
        mode: or(&port.publish_mode, "ingress"),
    })
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text.to_owned() }
}

fn tasks_of(
    tasks: &[Task],
    services: &[Service],
    nodes: &[Node],
) -> BTreeMap<String, SurveyedTask> {
    let running = tasks.iter().filter(|task| task.status.state == "running");
    let surveyed = running.filter_map(|task| {
        let service = services.iter().find(|service| service.id == task.service_id)?;
        let node = nodes.iter().find(|node| node.id == task.node_id)?;
        let service = service.spec.name.clone();
        let which = if task.slot > 0 { task.slot.to_string() } else { task.node_id.clone() };
        let name = format!("{service}.{which}.{}", task.id);
        let wanted = task.desired_state == "running";
        let node = node.description.hostname.clone();
        Some((name, SurveyedTask { node, wanted }))
    });
    surveyed.collect()
}

/// A worker knows its containers.
async fn own_tasks(client: &Client, node: &str) -> Result<BTreeMap<String, SurveyedTask>, Error> {
    let filters = serde_json::json!({ "label": ["com.docker.swarm.task.id"] });
    let question = format!("/containers/json?filters={}", encode(&filters.to_string()));
    let mut tasks = BTreeMap::new();
    for Listed { id } in client.get::<Vec<Listed>>(&question).await? {
        let container: Container = match client.get(&format!("/containers/{id}/json")).await {
            Ok(container) => container,
            // It has ended meanwhile.
            Err(error) if error.is_absent() => continue,
            Err(error) => return Err(error),
        };
        let labels = &container.config.labels;
        let label = |name: &str| labels.get(&format!("com.docker.swarm.{name}")).cloned();
        // A task counts from when it is healthy, as in a Swarm's own list.
        let starting = container.state.health.as_ref().is_some_and(|it| it.status == "starting");
        if let (true, false, Some(task)) = (container.state.running, starting, label("task.name")) {
            tasks.insert(task, SurveyedTask { node: node.to_owned(), wanted: true });
        }
    }
    Ok(tasks)
}
