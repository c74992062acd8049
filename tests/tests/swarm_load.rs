//! What users do to a Swarm while clients talk to it through every node, and that no request fails.
//!
//! `WEIR_LOAD_ROUNDS` says how often each kind of update is made; 20 for a long look.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::swarm::{Node, SETTLE, Swarm, Update, repository};
use weir_tests::traffic::{HttpLoad, Report, Running, UdpLoad};
use weir_tests::{Plane, Probe, eventually, on_both_planes};

const SECOND: Duration = Duration::from_secs(1);
/// What the load is at least, over all its kinds.
const RATE: f64 = 1000.0;

fn rounds() -> usize {
    std::env::var("WEIR_LOAD_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap())
}

/// With a service whose tasks have a HEALTHCHECK: without one Docker calls a task running before it
/// listens, and nobody can know better.
fn swarm(plane: Plane, managers: usize, replicas: usize) -> Swarm {
    let builder = Swarm::builder().plane(plane).managers(managers).with_images().unwrap();
    let swarm = builder.build().unwrap();
    let create = "service create -d --no-resolve-image --name web -p 8081:80 -p 8081:53/udp";
    swarm.docker(&format!("{create} --replicas {replicas} task:health")).unwrap();
    swarm.deploy_weir().unwrap();
    swarm.wait_running("web", replicas).unwrap();
    swarm.wait_served("web").unwrap();
    swarm
}

/// New connections, kept ones and datagrams, through every node.
struct Load {
    fresh: Running,
    kept: Running,
    datagrams: Running,
}

impl Load {
    fn start(swarm: &Swarm, through: &[SocketAddr], timeout: Duration) -> Self {
        let netns = swarm.client("c1").netns();
        let http = || HttpLoad::new(netns, through.iter().copied()).timeout(timeout);
        let udp = UdpLoad::new(netns, through.iter().copied()).timeout(timeout);
        Self {
            fresh: http().connections(32).rate(500).start().unwrap(),
            kept: http().connections(16).rate(800).keep_alive().start().unwrap(),
            datagrams: udp.sockets(12).rate(300).unused_ports().start().unwrap(),
        }
    }

    fn stop(self) -> [(&'static str, Report); 3] {
        let (fresh, kept) = (self.fresh.stop().unwrap(), self.kept.stop().unwrap());
        let datagrams = self.datagrams.stop().unwrap();
        [("new connections", fresh), ("kept connections", kept), ("datagrams", datagrams)]
    }
}

/// What happened, under load; all of it is told before the test fails.
struct Diary<'a> {
    swarm: &'a Swarm,
    failed: Vec<String>,
}

impl<'a> Diary<'a> {
    fn of(swarm: &'a Swarm) -> Self {
        Self { swarm, failed: Vec::new() }
    }

    /// Does something under load through all nodes, with none of which a request may fail.
    fn calm(&mut self, what: &str, work: impl FnOnce()) {
        let through: Vec<_> = self.swarm.nodes().iter().map(|node| node.target(8081)).collect();
        let load = Load::start(self.swarm, &through, 5 * SECOND);
        thread::sleep(SECOND / 2);
        work();
        thread::sleep(SECOND / 2);
        let reports = load.stop();
        let before = self.failed.len();
        let rate: f64 = reports.iter().map(|(_, report)| report.rate()).sum();
        eprintln!("{:5.1} s: {what}: {rate:.0}/s", self.swarm.age().as_secs_f32());
        for (kind, report) in reports {
            let line = format!("{what}, {kind}: {report}");
            eprintln!("    {line}");
            if report.ok == 0 || report.failures() > 0 {
                self.failed.push(line);
            }
        }
        if self.failed.len() > before {
            self.swarm.nodes().iter().for_each(print_drops);
        }
        if rate < RATE {
            self.failed.push(format!("{what}: only {rate:.0} requests a second"));
        }
    }

    fn end(self) {
        assert!(self.failed.is_empty(), "{}", self.failed.join("\n"));
    }
}

/// What the kernel of a node has dropped so far, by reason.
fn print_drops(node: &Node) {
    let metrics = node.weir("/metrics").map(|answer| answer.body).unwrap_or_default();
    let drops = metrics
        .lines()
        .filter(|line| line.starts_with("weir_drops_total") && !line.ends_with(" 0"));
    eprintln!("    {}: {:?}", node.name(), drops.collect::<Vec<_>>());
}

fn update(swarm: &Swarm, order: &str, round: usize) {
    let env = format!("--env-add VERSION=v{round}");
    let how = "--update-parallelism 1 --update-delay 0s --update-monitor 500ms";
    let update = "service update -d --no-resolve-image";
    swarm.docker(&format!("{update} {env} {how} --update-order {order} web")).unwrap();
    swarm.wait_updated("web", Update::Completed).unwrap();
}

on_both_planes! {
    updates_scaling_and_draining_fail_no_request
}

fn updates_scaling_and_draining_fail_no_request(plane: Plane) {
    let swarm = swarm(plane, 1, 2);
    let mut diary = Diary::of(&swarm);
    let mut made = 0;
    for order in ["start-first", "stop-first"] {
        diary.calm(&format!("{} updates, {order}", rounds()), || {
            for _ in 0..rounds() {
                made += 1;
                update(&swarm, order, made);
            }
        });
    }
    diary.calm("2 to 10 to 2 tasks", || {
        for tasks in [2, 10, 2] {
            swarm.docker(&format!("service scale -d web={tasks}")).unwrap();
            swarm.wait_running("web", tasks).unwrap();
        }
        gone(&swarm, 2);
    });
    if plane == Plane::Proxy {
        // Swarm ends the agent of a drained node, and a proxy with it.
        diary.end();
        return swarm.finish().unwrap();
    }
    for node in swarm.nodes() {
        diary.calm(&format!("{} is drained and comes back", node.name()), || {
            swarm.docker(&format!("node update --availability drain {}", node.name())).unwrap();
            eventually("it to be empty", SETTLE, || {
                let left = node.tasks("web")?.len();
                ensure!(left == 0, "{left} tasks");
                Ok(())
            })
            .unwrap();
            swarm.wait_running("web", 2).unwrap();
            swarm.docker(&format!("node update --availability active {}", node.name())).unwrap();
            node.wait_weir().unwrap();
        });
    }
    diary.calm("the agent of n3 begins and hears no manager", || unheard(&swarm, swarm.node("n3")));
    diary.end();
    swarm.finish().unwrap();
}

/// Waits until no more than so many containers of `web` are left.
fn gone(swarm: &Swarm, left: usize) {
    eventually("the other tasks to be gone", SETTLE, || {
        let running = swarm.tasks("web")?.len();
        ensure!(running == left, "{running} run");
        Ok(())
    })
    .unwrap();
}

/// How many tasks of `web` take flows, as a node knows them.
fn active(node: &Node) -> Result<usize> {
    let known = node.weir_service("web")?;
    let tasks = known["tasks"].as_array().into_iter().flatten();
    Ok(tasks.filter(|task| task["state"] == "active").count())
}

/// A worker whose agent begins and finds no manager.
fn unheard(swarm: &Swarm, worker: &Node) {
    let firewall = |change: &str| {
        let mut rule = Command::new("iptables");
        rule.args([change, "OUTPUT", "-p", "tcp", "--dport", "7951", "-j", "REJECT"]);
        let said = worker.output(rule).unwrap();
        assert!(said.status.success(), "{said:?}");
    };
    firewall("-I");
    let old = agent(worker).unwrap();
    worker.docker(&format!("kill {old}")).unwrap();
    another_agent(worker, &old);
    let link = worker.weir("/api/v1/status").unwrap().body;
    assert_eq!(active(worker).unwrap(), 2, "tasks of nodes that were not heard stay: {link}");
    firewall("-D");
    swarm.wait_served("web").unwrap();
}

/// The container of a node's agent.
fn agent(node: &Node) -> Result<String> {
    let task = node.tasks("weir_agent")?.pop();
    task.map(|task| task.container).ok_or_else(|| anyhow::anyhow!("no agent runs"))
}

/// Waits until another container than this one is the node's agent, and ready.
fn another_agent(node: &Node, old: &str) {
    eventually(&format!("another agent on {}", node.name()), SETTLE, || {
        let new = agent(node)?;
        ensure!(new != old, "it is the old one");
        Ok(())
    })
    .unwrap();
    node.wait_weir().unwrap();
}

#[test]
fn agents_and_managers_that_come_and_go_fail_no_request() {
    let swarm = swarm(Plane::Ebpf, 3, 3);
    let mut diary = Diary::of(&swarm);
    for node in swarm.nodes() {
        diary.calm(&format!("the agent of {} is killed", node.name()), || {
            let old = agent(node).unwrap();
            node.docker(&format!("kill {old}")).unwrap();
            another_agent(node, &old);
        });
    }
    diary.calm("all agents are replaced", || {
        let update = "service update -d --no-resolve-image --force --update-delay 0s";
        swarm.docker(&format!("{update} --update-monitor 1s weir_agent")).unwrap();
        swarm.wait_updated("weir_agent", Update::Completed).unwrap();
        swarm.nodes().iter().for_each(|node| node.wait_weir().unwrap());
    });
    let n2 = swarm.node("n2");
    diary.calm("the leader is demoted, and another leads", || {
        n2.docker("node demote n1").unwrap();
        // While the managers change places Docker may ask for patience.
        eventually("Docker to scale", SETTLE, || n2.docker("service scale -d web=6").map(drop))
            .unwrap();
        eventually("six tasks to be known everywhere", SETTLE, || {
            for node in swarm.nodes() {
                let active = active(node)?;
                ensure!(active == 6, "{active} on {}", node.name());
            }
            Ok(())
        })
        .unwrap();
        eventually("Docker to promote n1", SETTLE, || n2.docker("node promote n1").map(drop))
            .unwrap();
    });
    diary.end();
    swarm.finish().unwrap();
}

/// What the stack file leaves at its default: how long a task that left keeps its flows, and how often
/// flows are looked at.
const SOON: &str = r#"
version: "3.8"
services: {agent: {environment: {WEIR_TIMEOUTS_DRAIN: 2s, WEIR_RECONCILE_FLOW_INTERVAL: 1s}}}
"#;

/// A task ends while the agent of n1 is frozen, so that n1 goes on choosing it for a while: n2 gives
/// these connections to the task on n3, and that is where they belong, whatever n1 hears later.
#[test]
fn connections_with_a_second_chance_outlive_the_drain_of_the_task_that_was_chosen_first() {
    let swarm = Swarm::builder().managers(1).with_images().unwrap().build().unwrap();
    let soon = swarm.node("n1").host().run_dir().join("soon.yml");
    fs::write(&soon, SOON).unwrap();
    swarm.deploy("weir", &[&repository("deploy/stack.yml"), &soon]).unwrap();
    for node in swarm.nodes() {
        node.wait_weir().unwrap();
    }
    let create = "service create -d --no-resolve-image --restart-delay 1h --name web -p 8081:80";
    let there = "--replicas 2 --constraint node.role==worker --placement-pref";
    let image = "spread=node.hostname task:health";
    swarm.docker(&format!("{create} {there} {image}")).unwrap();
    swarm.wait_running("web", 2).unwrap();
    swarm.wait_served("web").unwrap();
    let [ends, stays] = ["n2", "n3"].map(|node| {
        let mut tasks = swarm.node(node).tasks("web").unwrap();
        assert_eq!(tasks.len(), 1, "{node}: {tasks:?}");
        tasks.pop().unwrap()
    });
    let by_who_stays = |task: &String| task.ends_with(&stays.said());
    let drops = || {
        let counted = swarm.node("n2").weir("/api/v1/drops").unwrap().body;
        let counted: serde_json::Value = serde_json::from_str(&counted).unwrap();
        let drops = counted["drops"].as_array().cloned().unwrap_or_default();
        let second = drops.iter().find(|drop| drop["reason"] == "second_chance").cloned();
        second.and_then(|drop| drop["count"].as_u64()).unwrap_or_default()
    };

    let (n1, n2) = (swarm.node("n1"), swarm.node("n2"));
    let frozen = agent(n1).unwrap();
    n1.docker(&format!("pause {frozen}")).unwrap();
    n2.docker(&format!("kill {}", ends.container)).unwrap();
    n2.wait_tasks("web", |tasks| {
        let active = |task: &&serde_json::Value| task["kernel"] == "active";
        tasks.iter().find(active).is_some_and(|task| task["name"] == stays.name.as_str())
            && tasks.iter().filter(active).count() == 1
    })
    .unwrap();
    let before = drops();
    let probe = Probe::tcp(n1.target(8081));
    let mut talks: Vec<_> =
        (0..10).map(|_| probe.open_in(swarm.client("c1").netns()).unwrap()).collect();
    for talk in &mut talks {
        let seen = talk.ask();
        assert!(seen.task.as_ref().is_some_and(by_who_stays), "{seen}");
    }
    // Counters are read once a second.
    eventually("n1 to have chosen the task that had ended", SETTLE, || {
        let given = drops() - before;
        ensure!(given >= 3, "for {given} of ten connections");
        Ok(())
    })
    .unwrap();

    n1.docker(&format!("unpause {frozen}")).unwrap();
    n1.wait_tasks("web", |tasks| {
        tasks.iter().all(|task| task["name"] != ends.name.as_str() || task["kernel"] != "active")
    })
    .unwrap();
    // Twice as long as the drain, and as often as flows are looked at.
    thread::sleep(6 * SECOND);
    for talk in &mut talks {
        let seen = talk.ask();
        assert!(seen.task.as_ref().is_some_and(by_who_stays), "{seen}");
    }
    swarm.finish().unwrap();
}

#[test]
fn after_a_crash_new_connections_through_the_others_soon_work() {
    const LIMIT: Duration = Duration::from_millis(1500);
    let swarm = swarm(Plane::Ebpf, 3, 6);
    let through: Vec<_> = ["n1", "n2"].map(|name| swarm.node(name).target(8081)).to_vec();
    let netns = swarm.client("c1").netns();
    let load = HttpLoad::new(netns, through).connections(400).rate(500).timeout(SECOND);
    let load = load.start().unwrap();
    thread::sleep(SECOND);
    swarm.power_off("n3").unwrap();
    let crash = load.report().elapsed;
    thread::sleep(4 * SECOND);
    let report = load.stop().unwrap();
    eprintln!("{report}");
    let last = report.last_failure.as_ref().map_or(Duration::ZERO, |last| last.at);
    let failed_for = last.saturating_sub(crash);
    eprintln!("new connections failed for {failed_for:?} after the crash");
    assert!(
        report.failures() > 0,
        "a third of the tasks were cut off, and nobody noticed: {report}"
    );
    assert!(failed_for <= LIMIT, "{report}");
    swarm.finish().unwrap();
}
