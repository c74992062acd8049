//! What the agent makes of a dockerd that is not well, and of words that do not fit together.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::dockerd::Trouble;
use weir_tests::{Agent, FakeDockerd, Lab, Probe, Task, eventually};

/// More than dockerd is given to answer, and more than any wait before it is asked again.
const SOON: Duration = Duration::from_secs(30);

/// A host with tasks, whose agent follows a dockerd of ours.
struct Docked {
    lab: Lab,
    dockerd: FakeDockerd,
    tasks: Vec<Task>,
}

impl Docked {
    fn new() -> Self {
        let lab = Lab::builder().hosts(1).default_route().build().unwrap();
        let host = lab.host("n1");
        let socket = host.run_dir().join("docker.sock");
        let dockerd = FakeDockerd::start(&socket, "n1", host.addresses()[0]).unwrap();
        Self { lab, dockerd, tasks: Vec::new() }
    }

    /// A task that says its name to whoever comes.
    fn runs(&mut self, service: &str, name: &str, labels: Value) {
        let mut task = self.lab.task("n1", name).unwrap();
        task.serve_http(80).unwrap();
        self.dockerd.runs(service, &task, labels);
        self.tasks.push(task);
    }

    fn agent(&self) -> Agent {
        let socket = self.lab.host("n1").run_dir().join("docker.sock").display().to_string();
        let agent = self.lab.agent_with("n1", |config| {
            for key in ["node.name", "node.address", "source.file.path"] {
                config.unset(key);
            }
            config.set("source.docker.socket", socket).set("source.docker.poll", "200ms");
        });
        let agent = agent.unwrap();
        agent.wait_ready().unwrap();
        agent
    }

    /// Waits until new connections at a port are answered by this task.
    fn answers(&self, port: u16, task: &str) {
        let mut targets = self.lab.host("n1").targets(port);
        targets.retain(|target| matches!(target.ip(), IpAddr::V4(_)));
        eventually(&format!("{task} to answer at {port}"), SOON, || {
            self.lab.client("c1").ask(&Probe::tcp(targets[0])).by(task).map(drop)
        })
        .unwrap();
    }

    /// That a new connection at a port is answered by this task at once.
    fn answers_now(&self, port: u16, task: &str) {
        let target = self.lab.host("n1").targets(port)[0];
        self.lab.client("c1").ask(&Probe::tcp(target)).by(task).unwrap();
    }
}

/// What `weir status` says of the source.
fn source(agent: &Agent) -> Result<Value> {
    let status: Value = serde_json::from_str(&agent.api("/api/v1/status")?.body)?;
    let all = status["subsystems"].as_array().context("no subsystems")?;
    let source = all.iter().find(|subsystem| subsystem["name"] == "source docker");
    source.cloned().context("no source")
}

/// Everything that `weir status -o json` finds wrong with what the source says.
fn faults(agent: &Agent) -> Result<Vec<String>> {
    let status: Value = serde_json::from_str(&agent.api("/api/v1/status")?.body)?;
    let faults = status["source_faults"].as_array().context("no source_faults")?;
    Ok(faults.iter().map(ToString::to_string).collect())
}

fn wait_source(agent: &Agent, condition: &str, reason: &str) -> Value {
    eventually(&format!("the source to be {condition}: {reason}"), SOON, || {
        let source = source(agent)?;
        let said = source["reason"].as_str().unwrap_or_default();
        ensure!(source["condition"] == condition && said.contains(reason), "{source}");
        Ok(source)
    })
    .unwrap()
}

fn wait_fault(agent: &Agent, words: &[&str]) {
    eventually(&format!("a fault with {words:?}"), SOON, || {
        let faults = faults(agent)?;
        let named = faults.iter().any(|one| words.iter().all(|word| one.contains(word)));
        ensure!(named, "{faults:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_dockerd_that_forbids_hangs_cuts_off_or_talks_nonsense_is_named_and_forwarding_goes_on() {
    let mut docked = Docked::new();
    docked.dockerd.service("web", 8080, json!({}));
    docked.runs("web", "web.1", json!({}));
    let agent = docked.agent();
    docked.answers(8080, "web.1");
    for (trouble, reason) in [
        (Trouble::Forbids, "authorization denied by plugin"),
        (Trouble::CutsOff, "the answer was cut off"),
        (Trouble::TalksNonsense, "is answered with something else"),
        (Trouble::Hangs, "was not answered within 10 s"),
    ] {
        docked.dockerd.trouble(Some(trouble));
        let source = wait_source(&agent, "degraded", reason);
        let said = source.to_string();
        assert!(said.contains("docker.sock") && said.contains("stays in place"), "{said}");
        docked.answers_now(8080, "web.1");
        docked.dockerd.trouble(None);
        wait_source(&agent, "ok", "1 services");
        docked.answers_now(8080, "web.1");
    }
    agent.stop().unwrap();
    docked.tasks.clear();
    docked.lab.finish().unwrap();
}

#[test]
fn labels_with_wrong_values_are_named_and_their_services_are_served_by_the_defaults() {
    let mut docked = Docked::new();
    let wrong = json!({ "weir.balance": "fastest", "weir.weigth": "3", "weir.enable": "perhaps" });
    docked.dockerd.service("web", 8080, wrong);
    docked.runs("web", "web.1", json!({ "weir.weight": "-5" }));
    let agent = docked.agent();
    docked.answers(8080, "web.1");
    for words in [
        ["service web", "weir.balance", "fastest"],
        ["service web", "weir.weigth", "weir.weight"],
        ["service web", "weir.enable", "perhaps"],
        ["container web.1.task-web.1", "weir.weight", "-5"],
    ] {
        wait_fault(&agent, &words);
    }
    agent.stop().unwrap();
    docked.tasks.clear();
    docked.lab.finish().unwrap();
}

#[test]
fn of_two_services_with_one_port_the_first_by_name_keeps_it_and_the_other_has_it_when_it_is_free() {
    let mut docked = Docked::new();
    // As managers that were apart may have declared it.
    docked.dockerd.service("web", 8080, json!({}));
    docked.runs("web", "web.1", json!({}));
    let agent = docked.agent();
    docked.answers(8080, "web.1");
    docked.dockerd.service("api", 8080, json!({}));
    let words = ["service web", "8080/tcp", "service api has this port already and keeps it"];
    wait_fault(&agent, &words);
    // The same after a restart: it is no matter of who came first.
    agent.restart().unwrap();
    agent.wait_ready().unwrap();
    wait_fault(&agent, &words);
    docked.dockerd.service("api", 8081, json!({}));
    docked.answers(8080, "web.1");
    wait_source(&agent, "ok", "2 services");
    assert_eq!(faults(&agent).unwrap(), Vec::<String>::new());
    agent.stop().unwrap();
    docked.tasks.clear();
    docked.lab.finish().unwrap();
}
