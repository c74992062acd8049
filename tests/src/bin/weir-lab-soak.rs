//! `weir-lab-soak`: what takes too long for every run of the tests, on a real Swarm under load.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use weir_tests::swarm::{Node, Swarm, Update};
use weir_tests::traffic::{HttpLoad, Report, Running, UdpLoad};
use weir_tests::{Probe, Talk, eventually, interrupt};

/// Rolling updates in both orders, an idle connection in real time, restarts of dockerd and changes of
/// the leader, under load. Ends with 1 when a request failed that none should have.
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
}

const PORT: u16 = 8081;
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
        let create = "service create -d --no-resolve-image --name web -p 8081:80 -p 8081:53/udp \
                      --update-parallelism 2 --update-delay 1s --update-monitor 1s --replicas";
        self.swarm.docker(&format!("{create} {} task:health", 2 * cli.nodes))?;
        let single = "service create -d --no-resolve-image --name one -p 8091:80 \
                      --update-order start-first --update-monitor 1s task:health";
        self.swarm.docker(single)?;
        self.swarm.deploy_weir()?;
        self.swarm.wait_running("web", 2 * cli.nodes)?;
        self.swarm.wait_running("one", 1)?;
        self.swarm.wait_served("web")?;
        self.swarm.wait_served("one")?;
        self.idle(Duration::from_secs(cli.idle * 60))?;
        for order in ["start-first", "stop-first"] {
            for number in 1..=cli.updates {
                let what = format!("rolling update {number} of {}, {order}", cli.updates);
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
        })?;
        self.leaders()?;
        self.restarts()
    }

    /// Connections that nobody uses for a while, through every node, and all the while the rest goes on.
    fn idle(&mut self, time: Duration) -> Result<()> {
        let netns = self.swarm.client("c1").netns();
        let mut talks = Vec::new();
        for node in self.swarm.nodes() {
            for _ in 0..4 {
                let mut talk = Probe::tcp(node.target(PORT)).open_in(netns)?;
                let task = talk.ask().task.context("no answer at first")?;
                talks.push((node.name().to_owned(), task, talk));
            }
        }
        println!("{:6.0} s: {} connections are idle for {time:?}", self.age(), talks.len());
        interrupt::sleep(time);
        interrupt::go_on()?;
        let broken: Vec<String> = talks.iter_mut().filter_map(still_open).collect();
        println!("{:6.0} s: {} of {} are broken", self.age(), broken.len(), talks.len());
        self.failed.extend(broken);
        Ok(())
    }

    /// The leader is demoted, then another's dockerd ends, and each time another leads.
    fn leaders(&mut self) -> Result<()> {
        self.step("the leader is demoted and promoted again", PORT, Allowed::Nothing, |swarm| {
            let other = &swarm.nodes()[1];
            other.docker("node demote n1")?;
            wait_leader(other, &BTreeSet::from(["n1".to_owned()]))?;
            // Refused as out of sequence while Swarm itself changes the node.
            eventually("n1 to be promoted", LONG, || other.docker("node promote n1"))?;
            eventually("n1 to be a manager again", LONG, || swarm.docker("node ls")).map(drop)
        })?;
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
