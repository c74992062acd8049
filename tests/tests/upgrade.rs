//! `weir upgrade`: another process goes on, and nobody notices: no connection is reset, no datagram of a
//! session is lost.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::traffic::{HttpLoad, Running, UdpLoad};
use weir_tests::{Agent, How, Lab, Plane, Probe, Scene, eventually, on_both_planes};

const SECOND: Duration = Duration::from_secs(1);
const WEB: u16 = 8080;
const LIMITED: u16 = 8081;

on_both_planes! {
    upgrades_of_each_node_under_load_fail_no_request_and_no_session
}

/// `web` with a task on each node, and `limited` with the same tasks, which the proxy serves on either
/// plane.
fn scene(plane: Plane) -> Scene {
    let mut scene = Scene::on(plane, Lab::builder()).unwrap();
    scene.service("web", WEB);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    let limits = toml::Table::from_iter([("connections".to_owned(), 100_000.into())]);
    scene.service("limited", LIMITED).set("limits", limits);
    for task in ["web.1", "web.2"] {
        let task = &scene.tasks[task];
        scene.mesh.service("limited").task(task);
    }
    scene
}

/// New and kept connections, new and kept UDP sessions.
fn load(scene: &Scene) -> Vec<Running> {
    let netns = scene.lab.client("c1").netns();
    let hosts = scene.lab.hosts();
    let targets: Vec<_> = [WEB, LIMITED]
        .into_iter()
        .flat_map(|port| hosts.iter().flat_map(move |host| host.targets(port)))
        .collect();
    let http = HttpLoad::new(netns, targets.clone()).timeout(5 * SECOND);
    let udp = UdpLoad::new(netns, targets).timeout(5 * SECOND);
    vec![
        http.clone().connections(4).rate(300).start().unwrap(),
        http.keep_alive().connections(8).rate(200).start().unwrap(),
        udp.clone().rate(200).start().unwrap(),
        udp.keep_socket().sockets(8).rate(200).start().unwrap(),
    ]
}

fn pid(agent: &Agent) -> Result<u64> {
    let status: Value = serde_json::from_str(&agent.api("/api/v1/status")?.body)?;
    status["pid"].as_u64().context("no pid")
}

/// The process that waits for another one.
fn parent(pid: u64) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no stat")?;
    Ok(rest.split_whitespace().nth(1).context("no parent")?.parse()?)
}

fn upgrades_of_each_node_under_load_fail_no_request_and_no_session(plane: Plane) {
    let mut scene = scene(plane);
    scene.start().unwrap();
    let netns = scene.lab.client("c1").netns();
    let limited = scene.lab.host("n1").targets(LIMITED)[0];
    for target in scene.lab.hosts().iter().flat_map(|host| host.targets(LIMITED)) {
        eventually("the proxy to serve", 10 * SECOND, || {
            let seen = Probe::tcp(target).open_in(netns)?.ask();
            ensure!(seen.task.is_some(), "{seen}");
            anyhow::Ok(())
        })
        .unwrap();
    }
    let mut talks: Vec<_> = [How::Tcp, How::UdpConnected]
        .into_iter()
        .map(|how| Probe::new(how, limited).open_in(netns).unwrap())
        .collect();
    let tasks: Vec<_> = talks.iter_mut().map(|talk| talk.ask().task.unwrap()).collect();
    let loads = load(&scene);
    // An agent of the kernel plane loads its programs, which takes a while.
    let rounds = if plane == Plane::Proxy { 3 } else { 1 };
    for _ in 0..rounds {
        for agent in &scene.agents {
            let before = pid(agent).unwrap();
            let said = agent.cli(&["upgrade"]).unwrap_or_else(|error| {
                panic!("{error:#}\n{}", agent.log());
            });
            let after = pid(agent).unwrap();
            assert!(after != before && said.contains(&after.to_string()), "{said}");
            thread::sleep(SECOND / 5);
        }
    }
    // A change is still made, and old flows go on where they were.
    scene.apply().unwrap();
    for (talk, task) in talks.iter_mut().zip(&tasks) {
        talk.ask().by(task).unwrap();
    }
    for load in loads {
        let report = load.stop().unwrap();
        assert!(report.ok > 100, "{report}");
        assert_eq!(report.failures(), 0, "{report}\n{}", scene.drops());
    }
    drop(talks);
    for agent in &scene.agents {
        eventually("the agents in between to have ended", 10 * SECOND, || {
            let (keeper, first) = (parent(pid(agent)?)?, agent.pid().context("it ended")?);
            ensure!(keeper == u64::from(first), "{keeper} waits, {first} was first");
            anyhow::Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_new_agent_that_cannot_begin_changes_nothing_and_says_why() {
    let mut scene = scene(Plane::Proxy);
    scene.start().unwrap();
    let netns = scene.lab.client("c1").netns();
    let mut talk = Probe::tcp(scene.lab.host("n1").targets(WEB)[0]).open_in(netns).unwrap();
    assert!(talk.ask().task.is_some());
    let agent = scene.agent("n1");
    let before = pid(agent).unwrap();
    let config = agent.host().run_dir().join("weir.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("mode = \"proxy\"", "mode = \"magic\"")).unwrap();
    let error = agent.cli(&["upgrade"]).unwrap_err().to_string();
    assert!(error.contains("cannot go on in place of this agent"), "{error}");
    assert!(error.contains("dataplane.mode") && error.contains("magic"), "{error}");
    assert_eq!(pid(agent).unwrap(), before);
    assert!(talk.ask().task.is_some());
    std::fs::write(&config, text).unwrap();
    agent.cli(&["upgrade"]).unwrap();
    assert!(talk.ask().task.is_some());
}

#[test]
fn a_new_agent_that_fails_later_gives_everything_back() {
    let mut scene = scene(Plane::Proxy);
    scene.start().unwrap();
    let netns = scene.lab.client("c1").netns();
    let target = scene.lab.host("n1").targets(WEB)[0];
    let mut talks: Vec<_> = [How::Tcp, How::UdpConnected]
        .into_iter()
        .map(|how| Probe::new(how, target).open_in(netns).unwrap())
        .collect();
    let tasks: Vec<_> = talks.iter_mut().map(|talk| talk.ask().task.unwrap()).collect();
    let loads = load(&scene);
    let agent = scene.agent("n1");
    let before = pid(agent).unwrap();
    let config = agent.host().run_dir().join("weir.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    // It is found to be taken only when the agent before has let go of everything but its proxy.
    let _holder = agent.host().run(|| TcpListener::bind("0.0.0.0:9951")).unwrap();
    std::fs::write(&config, text.replace(":9950", ":9951")).unwrap();
    let error = agent.cli(&["upgrade"]).unwrap_err().to_string();
    assert!(error.contains("the one before goes on"), "{error}");
    assert_eq!(pid(agent).unwrap(), before);
    agent.wait_ready().unwrap();
    scene.apply().unwrap();
    for load in loads {
        let report = load.stop().unwrap();
        assert!(report.ok > 10, "{report}");
        assert_eq!(report.failures(), 0, "{report}\n{}", scene.drops());
    }
    for (talk, task) in talks.iter_mut().zip(&tasks) {
        talk.ask().by(task).unwrap();
    }
}

#[test]
fn whoever_ends_the_process_that_was_started_first_ends_the_agent() {
    let mut scene = scene(Plane::Proxy);
    scene.start().unwrap();
    let agent = scene.agent("n1");
    agent.cli(&["upgrade"]).unwrap();
    let last = pid(agent).unwrap();
    agent.stop().unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{last}")).exists(), "{last} still runs");
    let target = scene.lab.host("n1").targets(WEB)[0];
    scene.lab.client("c1").ask(&Probe::tcp(target)).refused_at_once().unwrap();
}
