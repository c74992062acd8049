//! What happens to flows whose task drains, leaves or is taken down; and that a node which does
//! not know it yet loses nothing.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weir_tests::{
    Cases, How, Lab, Mesh, Plane, Probe, Scene, Seen, State, Talk, eventually, on_both_planes,
};

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;
const DRAIN: Duration = Duration::from_secs(3);

/// `web.1` on n1 and `web.2` on n2.
fn scene(plane: Plane) -> Scene {
    let mut scene = Scene::on(plane, Lab::builder()).unwrap();
    let timeouts = toml::Table::from_iter([("drain".to_owned(), "3s".into())]);
    scene.service("web", PORT).set("timeouts", timeouts);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    scene.start().unwrap();
    scene
}

struct Flow {
    name: String,
    how: How,
    talk: Talk,
}

fn targets(scene: &Scene) -> Vec<SocketAddr> {
    scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)).collect()
}

/// A TCP connection and a UDP flow with `task` through every address.
fn flows(scene: &Scene, task: &str) -> Vec<Flow> {
    let netns = scene.lab.client("c1").netns();
    let mut flows = Vec::new();
    for target in targets(scene) {
        for how in [How::Tcp, How::Udp] {
            let probe = Probe::new(how, target);
            let talk = eventually("a flow with the task", 5 * SECOND, || {
                let mut talk = probe.open_in(netns)?;
                talk.ask().by(task)?;
                anyhow::Ok(talk)
            });
            flows.push(Flow { name: probe.to_string(), how, talk: talk.unwrap() });
        }
    }
    flows
}

fn all_go_on(cases: &mut Cases, flows: &mut [Flow], task: &str, when: &str) {
    for flow in flows {
        let seen = flow.talk.ask();
        cases.note(format!("{when}: {} goes on", flow.name), seen.by(task));
    }
}

/// New flows through every address are answered, and not by `task`.
fn new_ones_avoid(cases: &mut Cases, scene: &Scene, task: &str, when: &str) {
    for target in targets(scene) {
        for probe in [Probe::tcp(target), Probe::udp(target)] {
            for _ in 0..6 {
                let seen = scene.lab.client("c1").ask(&probe);
                cases.note(format!("{when}: a new {probe} avoids {task}"), avoids(&seen, task));
            }
        }
    }
}

fn avoids(seen: &Seen, task: &str) -> Result<()> {
    ensure!(seen.task.as_ref().is_some_and(|answered| answered != task), "saw {seen}");
    Ok(())
}

/// TCP meets a reset with the next request, UDP another task: neither a silence.
fn end_at_once(cases: &mut Cases, flows: &mut [Flow], task: &str, when: &str) {
    for flow in flows {
        let seen = flow.talk.ask();
        let result = match flow.how {
            How::Tcp => ended(&seen),
            _ => avoids(&seen, task),
        };
        cases.note(format!("{when}: {} ends", flow.name), result);
    }
}

fn ended(seen: &Seen) -> Result<()> {
    ensure!(seen.is_reset() && seen.millis < 500, "expected a reset, saw {seen}");
    Ok(())
}

on_both_planes! {
    a_draining_task_keeps_its_flows_and_one_that_left_keeps_them_until_the_deadline
    the_flows_of_a_task_that_is_down_end_at_once
    a_node_whose_task_drains_gives_an_outdated_node_s_flows_to_another_local_task
    a_node_whose_task_is_gone_gives_an_outdated_node_s_flows_to_another_local_task
    a_node_whose_last_task_drains_sends_an_outdated_node_s_flows_on_to_another_node
    a_node_whose_last_task_is_gone_sends_an_outdated_node_s_flows_on_to_another_node
}

fn a_draining_task_keeps_its_flows_and_one_that_left_keeps_them_until_the_deadline(plane: Plane) {
    let mut scene = scene(plane);
    let mut cases = Cases::default();
    let mut flows = flows(&scene, "web.1");

    scene.mesh.service("web").state("web.1", State::Draining);
    scene.apply().unwrap();
    all_go_on(&mut cases, &mut flows, "web.1", "draining");
    new_ones_avoid(&mut cases, &scene, "web.1", "draining");
    // Draining has no deadline of its own.
    thread::sleep(DRAIN + SECOND);
    all_go_on(&mut cases, &mut flows, "web.1", "draining for longer than the timeout");

    scene.mesh.service("web").remove_task("web.1");
    scene.apply().unwrap();
    let left = Instant::now();
    all_go_on(&mut cases, &mut flows, "web.1", "removed");
    new_ones_avoid(&mut cases, &scene, "web.1", "removed");
    if left.elapsed() < DRAIN - SECOND {
        all_go_on(&mut cases, &mut flows, "web.1", "removed, before the deadline");
    }
    thread::sleep((DRAIN + SECOND).saturating_sub(left.elapsed()));
    end_at_once(&mut cases, &mut flows, "web.1", "after the deadline");
    cases.end(&scene).unwrap();
}

fn the_flows_of_a_task_that_is_down_end_at_once(plane: Plane) {
    let mut scene = scene(plane);
    let mut cases = Cases::default();
    let mut flows = flows(&scene, "web.1");
    scene.mesh.service("web").state("web.1", State::Down);
    scene.apply().unwrap();
    end_at_once(&mut cases, &mut flows, "web.1", "down");
    new_ones_avoid(&mut cases, &scene, "web.1", "down");
    cases.end(&scene).unwrap();
}

/// n1 believes that the only task is `web.1` on n2, and n2 knows better.
fn outdated(plane: Plane, other: (&str, &str), change: impl Fn(&mut Mesh)) -> Scene {
    let mut scene = Scene::on(plane, Lab::builder().hosts(3)).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n2", "web.1").unwrap();
    let old = scene.mesh.clone();
    scene.task("web", other.1, other.0).unwrap();
    let mut new = scene.mesh.clone();
    change(&mut new);
    let files: Vec<_> =
        ["n1", "n2", "n3"].map(|host| (host.to_owned(), scene.own_file(host))).into();
    scene.mesh = old.clone();
    scene
        .start_with(|host, config| {
            let (_, file) = files.iter().find(|(name, _)| name == host).unwrap();
            config.set("source.file.path", file.to_str().unwrap());
        })
        .unwrap();
    for host in ["n1", "n2", "n3"] {
        scene.apply_to(host, if host == "n1" { &old } else { &new }).unwrap();
    }
    scene
}

fn nothing_fails(scene: &Scene, task: &str) {
    let mut cases = Cases::default();
    for target in scene.lab.host("n1").targets(PORT) {
        for probe in [Probe::tcp(target), Probe::udp(target)] {
            for _ in 0..5 {
                let mut talk = probe.open_in(scene.lab.client("c1").netns());
                for question in 1..=3 {
                    let result = match &mut talk {
                        Ok(talk) => talk.ask().by(task).map(drop),
                        Err(error) => Err(anyhow::anyhow!("{error:#}")),
                    };
                    cases.note(format!("a new {probe}, question {question}"), result);
                }
            }
        }
    }
    cases.end(scene).unwrap();
}

fn a_node_whose_task_drains_gives_an_outdated_node_s_flows_to_another_local_task(plane: Plane) {
    let draining = |mesh: &mut Mesh| {
        mesh.service("web").state("web.1", State::Draining);
    };
    let scene = outdated(plane, ("web.2", "n2"), draining);
    nothing_fails(&scene, "web.2");
}

fn a_node_whose_task_is_gone_gives_an_outdated_node_s_flows_to_another_local_task(plane: Plane) {
    let scene = outdated(plane, ("web.2", "n2"), |mesh| {
        mesh.service("web").remove_task("web.1");
    });
    nothing_fails(&scene, "web.2");
}

fn a_node_whose_last_task_drains_sends_an_outdated_node_s_flows_on_to_another_node(plane: Plane) {
    let draining = |mesh: &mut Mesh| {
        mesh.service("web").state("web.1", State::Draining);
    };
    let scene = outdated(plane, ("web.3", "n3"), draining);
    nothing_fails(&scene, "web.3");
}

fn a_node_whose_last_task_is_gone_sends_an_outdated_node_s_flows_on_to_another_node(plane: Plane) {
    let scene = outdated(plane, ("web.3", "n3"), |mesh| {
        mesh.service("web").remove_task("web.1");
    });
    nothing_fails(&scene, "web.3");
}
