//! `weir-lab-soak`: what takes too long for every run of the tests, on a real Swarm under load.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use weir_tests::swarm::{Node, SETTLE, Swarm, Update};
use weir_tests::traffic::{HttpLoad, Report, Running, UdpLoad};
use weir_tests::{Probe, Talk, eventually, interrupt};

/// Under load: rolling updates in both orders, changes of the leader, restarts of agents, drains,
/// restarts of dockerd; and connections that are idle in real time. Ends with 1 when a request failed
/// that none should have.
#[derive(Debug, Parser)]
struct Cli {
    /// How many rolling updates in each order
    #[arg(long, default_value_t = 20)]
    updates: usize,
    /// How long a connection is left idle, in minutes; 15 is where Docker's own mesh cuts it
    #[arg(long, default_value_t = 20)]
    idle: u64,
    /// How many nodes; the first half and one more are managers
    #[arg(long, default_value_t = 5)]
    nodes: usize,
    /// Only these sections
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
}

/// A part of the whole, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Rolling updates
    Updates,
    /// The leader is demoted, and promoted again
    Demote,
    /// Each node's agent is killed, and another begins
    Agents,
    /// Connections that nobody uses, while what is above goes on
    Idle,
    /// Each node is drained, and comes back
    Drain,
    /// The leader's dockerd is killed
    Leader,
    /// A worker's dockerd is restarted
    Restart,
}

const PORT: u16 = 8081;
/// Of a service that nothing is done to.
const STILL: u16 = 8082;
/// A manager that joins again under load reads the whole of what it missed.
const LONG: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let result = interrupt::install().and_then(|()| run(&Cli::parse()));
    match result {
        Ok(failed) if failed.is_empty() => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("{} of the steps failed:\n{}", failed.len(), failed.join("\n"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("weir-lab-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<Vec<String>> {
    let managers = cli.nodes / 2 + 1;
    let builder = Swarm::builder().nodes(cli.nodes).managers(managers).with_images()?;
    let mut soak = Soak { swarm: builder.build()?, failed: Vec::new() };
    let result = soak.go_through(cli);
    let Soak { swarm, failed } = soak;
    swarm.finish()?;
    result.map(|()| failed)
}

struct Soak {
    swarm: Swarm,
    failed: Vec<String>,
}

/// What may fail in a step.
#[derive(Clone, Copy, PartialEq)]
enum Allowed {
    /// Nothing.
    Nothing,
    /// Docker itself ends tasks with their connections: failures are counted and told.
    WhatDockerKills,
}

impl Soak {
    fn go_through(&mut self, cli: &Cli) -> Result<()> {
        self.deploy(cli.nodes)?;
        let begun = Instant::now();
        let wanted = |section| cli.only.is_empty() || cli.only.contains(&section);
        let mut idle = if wanted(Section::Idle) { self.idle_talks()? } else { Vec::new() };
        if wanted(Section::Updates) {
            self.updates(cli.updates)?;
        }
        if wanted(Section::Demote) {
            self.demote()?;
        }
        if wanted(Section::Agents) {
            self.agents()?;
        }
        if wanted(Section::Idle) {
            let time = Duration::from_secs(cli.idle * 60);
            interrupt::sleep(time.saturating_sub(begun.elapsed()));
            interrupt::go_on()?;
            let broken: Vec<String> = idle.iter_mut().filter_map(still_open).collect();
            let (count, time) = (idle.len(), begun.elapsed());
            println!(
                "{:6.0} s: {} of {count} broken, idle for {time:.0?}",
                self.age(),
                broken.len()
            );
            self.failed.extend(broken);
        }
        if wanted(Section::Drain) {
            self.drains()?;
        }
        if wanted(Section::Leader) {
            self.leader_killed()?;
        }
        if wanted(Section::Restart) {
            self.restarts()?;
        }
        Ok(())
    }

    /// Checks are rarer than the image says: each is a process that runc starts, and those of five nodes
    /// twice a second would take all of two processors.
    fn deploy(&self, nodes: usize) -> Result<()> {
        let create = "service create -d --no-resolve-image --name web -p 8081:80 -p 8081:53/udp \
                      --health-interval 3s --update-parallelism 2 --update-delay 0s \
                      --update-monitor 1s --replicas";
        self.swarm.docker(&format!("{create} {} task:health", 2 * nodes))?;
        for (name, port, replicas) in [("one", 8091, 1), ("still", STILL, nodes)] {
            let create = "service create -d --no-resolve-image --update-order start-first \
                          --health-interval 3s --update-monitor 1s";
            let what = format!("--name {name} -p {port}:80 --replicas {replicas} task:health");
            self.swarm.docker(&format!("{create} {what}"))?;
        }
        self.swarm.deploy_weir()?;
        for (name, replicas) in [("web", 2 * nodes), ("one", 1), ("still", nodes)] {
            self.swarm.wait_running(name, replicas)?;
            self.swarm.wait_served(name)?;
        }
        Ok(())
    }

    fn updates(&mut self, updates: usize) -> Result<()> {
        for order in ["start-first", "stop-first"] {
            for number in 1..=updates {
                let what = format!("rolling update {number} of {updates}, {order}");
                let update = "service update -d --no-resolve-image --force --update-order";
                self.step(&what, PORT, Allowed::Nothing, |swarm| {
                    swarm.docker(&format!("{update} {order} web"))?;
                    swarm.wait_updated("web", Update::Completed)
                })?;
            }
        }
        self.step("a single replica is updated, start-first", 8091, Allowed::Nothing, |swarm| {
            swarm.docker("service update -d --no-resolve-image --force one")?;
            swarm.wait_updated("one", Update::Completed)
        })
    }

    /// Connections through every node that nobody uses for a while.
    fn idle_talks(&self) -> Result<Vec<(String, String, Talk)>> {
        let netns = self.swarm.client("c1").netns();
        let mut talks = Vec::new();
        for node in self.swarm.nodes() {
            for _ in 0..4 {
                let mut talk = Probe::tcp(node.target(STILL)).open_in(netns)?;
                let task = talk.ask().task.context("no answer at first")?;
                talks.push((node.name().to_owned(), task, talk));
            }
        }
        println!("{:6.0} s: {} connections are idle from now on", self.age(), talks.len());
        Ok(talks)
    }

    fn demote(&mut self) -> Result<()> {
        self.step("the leader is demoted and promoted again", PORT, Allowed::Nothing, |swarm| {
            let other = &swarm.nodes()[1];
            other.docker("node demote n1")?;
            wait_leader(other, &BTreeSet::from(["n1".to_owned()]))?;
            // Refused as out of sequence while Swarm itself changes the node.
            eventually("n1 to be promoted", LONG, || other.docker("node promote n1"))?;
            eventually("n1 to be a manager again", LONG, || swarm.docker("node ls")).map(drop)
        })
    }

    fn agents(&mut self) -> Result<()> {
        for index in 0..self.swarm.nodes().len() {
            let what = format!("the agent of n{} is killed", index + 1);
            self.step(&what, PORT, Allowed::Nothing, |swarm| {
                let node = &swarm.nodes()[index];
                let old = agent(node)?;
                node.docker(&format!("kill {old}"))?;
                eventually("another agent", SETTLE, || {
                    let new = agent(node)?;
                    ensure!(new != old, "it is the old one");
                    Ok(())
                })?;
                node.wait_weir()
            })?;
        }
        Ok(())
    }

    fn drains(&mut self) -> Result<()> {
        for index in 0..self.swarm.nodes().len() {
            let what = format!("n{} is drained and comes back", index + 1);
            self.step(&what, PORT, Allowed::Nothing, |swarm| {
                let node = &swarm.nodes()[index];
                let set = |to: &str| {
                    let set = format!("node update --availability {to} {}", node.name());
                    // Refused as out of sequence while Swarm itself changes the node.
                    eventually("the node to be changed", SETTLE, || swarm.docker(&set)).map(drop)
                };
                set("drain")?;
                eventually("it to be empty", LONG, || {
                    let left = node.tasks("web")?.len();
                    ensure!(left == 0, "{left} tasks");
                    Ok(())
                })?;
                swarm.wait_running("web", 2 * swarm.nodes().len())?;
                set("active")?;
                node.wait_weir()
            })?;
        }
        Ok(())
    }

    /// With fewer than five nodes there are too few managers for another to lead.
    fn leader_killed(&mut self) -> Result<()> {
        if self.swarm.nodes().len() < 5 {
            return Ok(());
        }
        self.step("the leader's dockerd is killed", PORT, Allowed::WhatDockerKills, |swarm| {
            let name = leader(&swarm.nodes()[0])?;
            let gone = swarm.node(&name);
            gone.kill_docker();
            let asked = swarm.nodes().iter().find(|node| node.name() != name);
            wait_leader(asked.context("no other node")?, &BTreeSet::from([name.clone()]))?;
            gone.start_docker()?;
            swarm.wait_nodes(swarm.nodes().len())
        })
    }

    /// A dockerd that ends takes its containers with it; Swarm does not allow live-restore.
    fn restarts(&mut self) -> Result<()> {
        let last = self.swarm.nodes().len() - 1;
        self.step("a worker's dockerd is restarted", PORT, Allowed::WhatDockerKills, |swarm| {
            let node = &swarm.nodes()[last];
            node.stop_docker()?;
            node.start_docker()?;
            swarm.wait_nodes(swarm.nodes().len())?;
            node.wait_weir()
        })
    }

    /// Does something under load through all nodes, and tells what became of the requests.
    fn step(
        &mut self,
        what: &str,
        port: u16,
        allowed: Allowed,
        work: impl FnOnce(&Swarm) -> Result<()>,
    ) -> Result<()> {
        interrupt::go_on()?;
        let load = Load::start(&self.swarm, port)?;
        interrupt::sleep(Duration::from_millis(500));
        work(&self.swarm).with_context(|| what.to_owned())?;
        interrupt::sleep(Duration::from_millis(500));
        println!("{:6.0} s: {what}", self.age());
        for (kind, report) in load.stop()? {
            let brief = brief(&report);
            println!("            {kind}: {brief}");
            if report.ok == 0 || (report.failures() > 0 && allowed == Allowed::Nothing) {
                self.failed.push(format!("{what}, {kind}: {brief}"));
            }
        }
        Ok(())
    }

    fn age(&self) -> f64 {
        self.swarm.age().as_secs_f64()
    }
}

/// A report without the tasks that answered: there are many.
fn brief(report: &Report) -> String {
    let counts = format!("{} ok, {} failed ({:.0}/s)", report.ok, report.failures(), report.rate());
    match &report.first_failure {
        Some(first) => format!("{counts}; first: {first:?}"),
        None => counts,
    }
}

/// What is wrong with a connection that was idle, if anything is.
fn still_open((node, task, talk): &mut (String, String, Talk)) -> Option<String> {
    let seen = talk.ask();
    (seen.task.as_ref() != Some(task)).then(|| format!("idle through {node} to {task}: {seen}"))
}

/// The container of a node's agent.
fn agent(node: &Node) -> Result<String> {
    let task = node.tasks("weir_agent")?.pop();
    task.map(|task| task.container).context("no agent runs")
}

/// The host name of the leader, as a node knows it.
fn leader(asked: &Node) -> Result<String> {
    let list = ["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"];
    let nodes = asked.docker_with(&list)?;
    let found = nodes.lines().find_map(|line| line.strip_suffix(" Leader"));
    found.map(str::to_owned).with_context(|| format!("nobody leads: {nodes}"))
}

fn wait_leader(asked: &Node, not: &BTreeSet<String>) -> Result<()> {
    eventually("another node to lead", LONG, || {
        let leads = leader(asked)?;
        ensure!(!not.contains(&leads), "{leads} leads");
        Ok(())
    })
}

/// New connections, kept ones and datagrams, through every node.
struct Load {
    fresh: Running,
    kept: Running,
    datagrams: Option<Running>,
}

impl Load {
    fn start(swarm: &Swarm, port: u16) -> Result<Self> {
        let through: Vec<SocketAddr> = swarm.nodes().iter().map(|node| node.target(port)).collect();
        let netns = swarm.client("c1").netns();
        let timeout = Duration::from_secs(5);
        let http = || HttpLoad::new(netns, through.iter().copied()).timeout(timeout);
        let udp = UdpLoad::new(netns, through.iter().copied()).timeout(timeout);
        let datagrams = match port {
            PORT => Some(udp.sockets(12).rate(300).unused_ports().start()?),
            _ => None,
        };
        Ok(Self {
            fresh: http().connections(32).rate(500).start()?,
            kept: http().connections(16).rate(800).keep_alive().start()?,
            datagrams,
        })
    }

    fn stop(self) -> Result<Vec<(&'static str, Report)>> {
        let mut reports = vec![("new connections", self.fresh.stop()?)];
        reports.push(("kept connections", self.kept.stop()?));
        if let Some(datagrams) = self.datagrams {
            reports.push(("datagrams", datagrams.stop()?));
        }
        Ok(reports)
    }
}
