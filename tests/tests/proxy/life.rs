//! Agents that end and begin, and a mesh that changes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use anyhow::ensure;
use weir_tests::lab::command;
use weir_tests::traffic::{FailureKind, HttpLoad};
use weir_tests::{Lab, Probe, Scene, eventually};

use crate::{PORT, SECOND, scene};

#[test]
fn connections_and_sessions_end_with_the_agent_and_it_serves_again_when_it_is_back() {
    let mut scene = scene();
    scene.start().unwrap();
    let target = scene.lab.host("n1").targets(PORT)[0];
    let netns = scene.lab.client("c1").netns();
    let mut stream = Probe::tcp(target).open_in(netns).unwrap();
    assert!(stream.ask().task.is_some());
    scene.agent("n1").kill9();
    let seen = stream.ask();
    assert!(seen.task.is_none(), "{seen}");
    scene.lab.client("c1").ask(&Probe::tcp(target)).refused_at_once().unwrap();
    scene.agent("n1").launch().unwrap();
    scene.agent("n1").wait_ready().unwrap();
    eventually("the port to be served again", 5 * SECOND, || {
        let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
        ensure!(seen.task.is_some(), "{seen}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_agent_that_comes_back_with_the_proxy_takes_over_and_resets_only_what_is_in_mid_flight() {
    let mut scene = Scene::new(Lab::builder()).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene.start().unwrap();
    let targets = scene.lab.host("n1").targets(PORT);
    let load = HttpLoad::new(scene.lab.client("c1").netns(), targets.clone()).connections(4);
    let load = load.timeout(5 * SECOND).rate(400).start().unwrap();
    let agent = scene.agent("n1");
    agent.stop().unwrap();
    let config = scene.lab.host("n1").run_dir().join("weir.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("mode = \"auto\"", "mode = \"proxy\"")).unwrap();
    agent.launch().unwrap();
    agent.wait_ready().unwrap();
    eventually("nothing of the kernel plane to be left", 10 * SECOND, || {
        ensure!(!scene.lab.host("n1").pin_dir().exists(), "there are pins");
        Ok(())
    })
    .unwrap();
    thread::sleep(SECOND);
    let report = load.stop().unwrap();
    // Four connections at a time: what the kernel carries at that moment is unknown to the stack. The
    // programs of an interface go one after the other, so that each may be hit twice.
    let resets = report.failed_by(FailureKind::Reset);
    assert!(report.ok > 200 && resets <= 8, "{report}");
    assert_eq!(report.failures(), resets, "{report}");
    let seen = scene.lab.client("c1").ask(&Probe::tcp(targets[0]));
    assert_ne!(seen.client.unwrap().ip(), scene.lab.client("c1").addresses()[0], "{seen}");
}

/// As many as the goal names: half enter at each node, and half of those go on to the other.
const CONNECTIONS: usize = 10_000;
/// Opened at a time: no more than a queue of connections takes.
const BATCH: usize = 500;

/// Lets this process, and what it starts, have as many files as it may. The connections of a node take
/// 15,000.
fn allow_files() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let hard = line.split_whitespace().nth(4).unwrap();
    let own = std::process::id().to_string();
    let status = command("prlimit", &["--pid", &own, &format!("--nofile={hard}:")]).status();
    assert!(status.unwrap().success(), "{line}");
}

/// Each says something and hears it again.
fn all_are_answered(streams: &mut [TcpStream]) {
    for batch in streams.chunks_mut(BATCH) {
        for stream in &mut *batch {
            stream.write_all(b"hello").unwrap();
        }
        for stream in batch {
            stream.read_exact(&mut [0; 5]).unwrap();
        }
    }
}

#[test]
fn a_thousand_changes_close_none_of_ten_thousand_connections_and_take_no_memory() {
    allow_files();
    let mut scene = scene();
    scene.mesh.service("web").publish("8085:53");
    scene.start().unwrap();
    let targets: Vec<_> = scene.lab.hosts().iter().map(|host| host.targets(8085)[0]).collect();
    let mut streams = Vec::new();
    while streams.len() < CONNECTIONS {
        let open = |at: usize| TcpStream::connect_timeout(&targets[at % 2], 20 * SECOND).unwrap();
        let client = scene.lab.client("c1");
        let mut batch: Vec<_> = client.run(|| (0..BATCH).map(open).collect());
        for stream in &batch {
            stream.set_read_timeout(Some(20 * SECOND)).unwrap();
        }
        all_are_answered(&mut batch);
        streams.append(&mut batch);
    }
    let change = |scene: &mut Scene, round: u32| {
        scene.mesh.service("web").weight("web.1", 1 + round % 7);
        scene.mesh.write().unwrap();
        thread::sleep(SECOND / 100);
    };
    (0..200).for_each(|round| change(&mut scene, round));
    scene.apply().unwrap();
    let before = scene.agent("n1").resident().unwrap();
    (0..800).for_each(|round| change(&mut scene, round));
    scene.apply().unwrap();
    let after = scene.agent("n1").resident().unwrap();
    all_are_answered(&mut streams);
    assert!(after < before + 4_000, "{before} KiB, then {after} KiB");
}
