//! `weir state diff --against docker`: where Docker's view and the agent's are not the same.

use std::{collections::BTreeMap, path::PathBuf, thread, time::Duration};

use clap::{Args, ValueEnum};
use schemars::JsonSchema;
use serde::Serialize;
use weir_mesh::TaskState;

use super::{AgentArgs, Failed, client, table::Table, watch::Shown};
use crate::{
    api::{Nodes, Services},
    health::Condition,
    source::docker::{self, Survey, SurveyedPort, SwarmSurvey},
};

/// Long enough for a change to have come to both.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct StateDiffArgs {
    /// Whose view is compared with the agent's
    #[arg(long, value_enum)]
    against: Other,
    /// The socket of dockerd
    #[arg(long, value_name = "PATH", default_value = "/var/run/docker.sock")]
    docker: PathBuf,
    #[command(flatten)]
    agent: AgentArgs,
}

/// Who has a view of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Other {
    /// dockerd: on a manager of the whole Swarm, else of this node's tasks
    Docker,
}

/// `weir state diff -o json`
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub(super) struct Answer {
    /// Whether services, ports and nodes were compared, and tasks of all nodes; else only tasks of this
    /// node.
    whole_swarm: bool,
    /// What is not the same, for longer than a change takes.
    differences: Vec<Difference>,
}

/// Something that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
struct Difference {
    /// Of which kind it is.
    kind: Kind,
    /// What it is.
    subject: String,
    /// What Docker says.
    docker: String,
    /// What the agent says.
    weir: String,
    /// Why, if the agent knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Difference {
    fn is(&self, other: &Self) -> bool {
        let of = |it: &Self| (it.kind, it.subject.clone(), it.docker.clone(), it.weir.clone());
        of(self) == of(other)
    }
}

/// What there is to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Service,
    Port,
    Task,
    Node,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Port => "port",
            Self::Task => "task",
            Self::Node => "node",
        }
    }
}

pub(super) fn diff(args: &StateDiffArgs) -> Result<Condition, Failed> {
    let Other::Docker = args.against;
    let mut answer = compared(args)?;
    if !answer.differences.is_empty() {
        thread::sleep(SETTLE);
        let again = compared(args)?;
        // The reason may have changed meanwhile.
        answer.differences.retain(|one| again.differences.iter().any(|other| one.is(other)));
    }
    let condition = match answer.differences.is_empty() {
        true => Condition::Ok,
        false => Condition::Degraded,
    };
    Shown::new(&args.agent.output, false, &answer, condition, || text(&answer))?.print()
}

fn compared(args: &StateDiffArgs) -> Result<Answer, Failed> {
    let socket = &args.agent.socket;
    let services: Services = client::get(socket, "/api/v1/services")?;
    let nodes: Nodes = client::get(socket, "/api/v1/nodes")?;
    let survey = survey(args)?;
    Ok(differences(&survey, &services, &nodes))
}

fn survey(args: &StateDiffArgs) -> Result<Survey, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let path = args.docker.display();
    match runtime.block_on(docker::survey(&args.docker)) {
        Ok(Ok(survey)) => Ok(survey),
        Ok(Err(no_swarm)) => Err(format!("{path}: {}; {}", no_swarm.problem, no_swarm.remedy)),
        Err(error @ docker::Error::Missing) => {
            Err(format!("{path}: {error}; name dockerd's socket with --docker PATH"))
        }
        Err(error) => Err(format!("{path}: {error}; {}", error.remedy())),
    }
}

fn differences(docker: &Survey, services: &Services, nodes: &Nodes) -> Answer {
    let mut differences = tasks(docker, services);
    if let Some(swarm) = &docker.swarm {
        differences.extend(declared(swarm, services));
        differences.extend(members(swarm, nodes));
    }
    differences.sort();
    Answer { whole_swarm: docker.swarm.is_some(), differences }
}

const NOTHING: &str = "nothing";

fn difference(kind: Kind, subject: &str, docker: &str, weir: &str) -> Difference {
    let [subject, docker, weir] = [subject, docker, weir].map(str::to_owned);
    Difference { kind, subject, docker, weir, why: None }
}

fn declared(swarm: &SwarmSurvey, services: &Services) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut ours = BTreeMap::new();
    for service in &services.services {
        // A task with ports of its own has a service of its own, NAME@TASK; and one that was removed is
        // there until its tasks have ended.
        let name = service.name.as_str();
        let declared = name.split_once('@').map_or(name, |(name, _)| name);
        let lives = !service.ports.is_empty()
            || service.tasks.iter().any(|task| task.state == TaskState::Active);
        if lives && !swarm.services.contains(declared) {
            found.push(difference(Kind::Service, service.name.as_str(), NOTHING, "a service"));
        }
        for port in &service.ports {
            let surveyed = SurveyedPort {
                service: service.name.to_string(),
                protocol: port.protocol.to_string(),
                published: port.published.get(),
                target: port.target.get(),
                mode: port.mode.as_str().to_owned(),
            };
            ours.insert(surveyed, port);
        }
    }
    for port in swarm.ports.iter().filter(|port| !ours.contains_key(port)) {
        let mut one = difference(Kind::Port, &named(port), "published", NOTHING);
        if port.protocol == "sctp" {
            one.why = Some("weir serves TCP and UDP".to_owned());
        }
        found.push(one);
    }
    for port in ours.keys().filter(|port| !swarm.ports.contains(port)) {
        // A port of host mode without a number has the one that a container was given.
        if port.mode == "ingress" {
            found.push(difference(Kind::Port, &named(port), NOTHING, "published"));
        }
    }
    found
}

fn named(port: &SurveyedPort) -> String {
    let SurveyedPort { service, protocol, published, target, mode } = port;
    let mode = if mode == "host" { " in host mode" } else { "" };
    format!("{service} {protocol}/{published} to {target}{mode}")
}

fn tasks(docker: &Survey, services: &Services) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut ours = BTreeMap::new();
    for service in &services.services {
        for task in &service.tasks {
            ours.insert(task.name.as_str(), task);
        }
    }
    for (name, task) in &docker.tasks {
        let said = format!("runs on {}", task.node);
        match ours.get(name.as_str()) {
            None if task.wanted => {
                found.push(difference(Kind::Task, name, &said, NOTHING));
            }
            Some(own) if own.node.as_str() != task.node => {
                let weir = format!("runs on {}", own.node);
                found.push(difference(Kind::Task, name, &said, &weir));
            }
            // A worker's dockerd does not say that a task is being ended.
            Some(own) if docker.swarm.is_none() && own.state == TaskState::Draining => {}
            Some(own) if task.wanted && own.state != TaskState::Active => {
                let mut one = difference(Kind::Task, name, &said, own.state.as_str());
                one.why = own.health.clone();
                found.push(one);
            }
            Some(own) if !task.wanted && own.state == TaskState::Active => {
                found.push(difference(Kind::Task, name, "is being ended", "active"));
            }
            _ => {}
        }
    }
    // A worker's dockerd knows of no other node's tasks.
    let known = |node: &str| docker.swarm.is_some() || node == docker.node;
    for (name, own) in ours {
        let live = own.state == TaskState::Active && known(own.node.as_str());
        if live && !docker.tasks.contains_key(name) {
            let weir = format!("active on {}", own.node);
            found.push(difference(Kind::Task, name, "does not run", &weir));
        }
    }
    found
}

fn members(swarm: &SwarmSurvey, nodes: &Nodes) -> Vec<Difference> {
    let mut found = Vec::new();
    let ours: BTreeMap<&str, _> =
        nodes.nodes.iter().map(|node| (node.name.as_str(), node)).collect();
    for (name, node) in &swarm.nodes {
        match ours.get(name.as_str()) {
            None => {
                let mut one = difference(Kind::Node, name, &node.state, NOTHING);
                one.why = Some("no agent there has been heard".to_owned());
                found.push(one);
            }
            Some(own) => {
                if let Some(address) = node.address.filter(|address| *address != own.address) {
                    let (docker, weir) = (address.to_string(), own.address.to_string());
                    found.push(difference(Kind::Node, name, &docker, &weir));
                }
            }
        }
    }
    for name in ours.keys().filter(|name| !swarm.nodes.contains_key(**name)) {
        found.push(difference(Kind::Node, name, NOTHING, "a node"));
    }
    found
}

fn text(answer: &Answer) -> String {
    let what = match answer.whole_swarm {
        true => "services, ports, tasks and nodes of the Swarm",
        false => "tasks of this node (dockerd is no manager)",
    };
    if answer.differences.is_empty() {
        return format!("no difference: {what}\n");
    }
    let mut table = Table::default();
    table.row(["Kind", "Subject", "Docker", "weir", "Why"]);
    for one in &answer.differences {
        let why = one.why.as_deref().unwrap_or_default();
        table.row([one.kind.as_str(), &one.subject, &one.docker, &one.weir, why]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::docker::{SurveyedNode, SurveyedTask};

    fn survey() -> Survey {
        let port = |protocol: &str, published| SurveyedPort {
            service: "web".into(),
            protocol: protocol.into(),
            published,
            target: 80,
            mode: "ingress".into(),
        };
        let task = |wanted| SurveyedTask { node: "n1".into(), wanted };
        let node = SurveyedNode { state: "ready".into(), address: None };
        let swarm = SwarmSurvey {
            services: ["web".to_owned()].into(),
            ports: [port("tcp", 8080), port("sctp", 8081)].into(),
            nodes: [("n1".to_owned(), node.clone()), ("n2".to_owned(), node)].into(),
        };
        let tasks = [("web.1".to_owned(), task(true)), ("web.2".to_owned(), task(false))];
        Survey { node: "n1".into(), swarm: Some(swarm), tasks: tasks.into() }
    }

    fn services(ports: &[u16], tasks: &[(&str, &str)]) -> Services {
        let zero = json!({
            "connections": 0, "rx_packets": 0, "rx_bytes": 0, "tx_packets": 0, "tx_bytes": 0,
        });
        let port = |port: &u16| {
            json!({
                "protocol": "tcp", "published": port, "target": 80, "mode": "ingress",
                "state": "served", "counters": zero,
            })
        };
        let task = |(name, state): &(&str, &str)| {
            json!({
                "name": name, "node": "n1", "addresses": [], "weight": 1, "state": state,
                "kernel": state, "via": null, "active": 0, "counters": zero,
                "health": "it is stopping",
            })
        };
        serde_json::from_value(json!({
            "generation": 1, "services": [{
                "name": "web", "balance": "round-robin", "timeouts": weir_mesh::Timeouts::default(),
                "ports": ports.iter().map(port).collect::<Vec<_>>(),
                "tasks": tasks.iter().map(task).collect::<Vec<_>>(),
            }],
        }))
        .unwrap()
    }

    fn nodes(names: &[&str]) -> Nodes {
        let node =
            |name: &&str| json!({ "name": name, "address": "10.0.0.1", "here": false, "tasks": 0 });
        let nodes: Vec<_> = names.iter().map(node).collect();
        serde_json::from_value(json!({ "generation": 1, "nodes": nodes })).unwrap()
    }

    #[test]
    fn what_only_one_side_has_is_told_by_kind() {
        let services = services(
            &[8080, 9090],
            &[("web.1", "draining"), ("web.2", "active"), ("web.3", "active")],
        );
        let found = text(&differences(&survey(), &services, &nodes(&["n1", "n3"])));
        let found: Vec<Vec<&str>> = found
            .lines()
            .skip(1)
            .map(|line| line.split("  ").map(str::trim).filter(|it| !it.is_empty()).collect())
            .collect();
        assert_eq!(
            found,
            [
                vec![
                    "port",
                    "web sctp/8081 to 80",
                    "published",
                    "nothing",
                    "weir serves TCP and UDP"
                ],
                vec!["port", "web tcp/9090 to 80", "nothing", "published"],
                vec!["task", "web.1", "runs on n1", "draining", "it is stopping"],
                vec!["task", "web.2", "is being ended", "active"],
                vec!["task", "web.3", "does not run", "active on n1"],
                vec!["node", "n2", "ready", "nothing", "no agent there has been heard"],
                vec!["node", "n3", "nothing", "a node"],
            ]
        );
    }

    /// What weir says of services that Docker does not name so, or not any more.
    #[test]
    fn a_service_of_one_task_and_one_that_is_going_are_no_differences() {
        let mut known = services(&[], &[("web.1", "draining"), ("web.2", "active")]);
        known.services.truncate(1);
        let mut own = known.services[0].clone();
        own.name = weir_mesh::ServiceName::new("web@web.2");
        known.services[0].name = weir_mesh::ServiceName::new("gone");
        known.services[0].tasks.truncate(1);
        known.services.push(own);
        let found = declared(&survey().swarm.unwrap(), &known);
        assert!(found.iter().all(|one| one.kind == Kind::Port), "{found:?}");
    }

    #[test]
    fn a_worker_speaks_only_of_its_own_tasks() {
        let survey = Survey { node: "n2".into(), swarm: None, tasks: BTreeMap::new() };
        let found = differences(&survey, &services(&[1], &[("web.3", "active")]), &nodes(&[]));
        assert_eq!(found, Answer { whole_swarm: false, differences: Vec::new() });
    }
}
