//! How new flows choose their task: in turn, by weight, by chance, by Maglev's table.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use weir_tests::{Cases, How, Lab, Plane, Probe, Scene, on_both_planes};

const TURN: u16 = 8081;
const WEIGHED: u16 = 8082;
const CHANCE: u16 = 8083;
const MAGLEV: u16 = 8084;
const BOTH_WAYS: [How; 2] = [How::Tcp, How::Udp];

/// Three hosts with one task of each service on each.
fn scene(plane: Plane) -> Scene {
    let mut scene = Scene::on(plane, Lab::builder().hosts(3)).unwrap();
    for (name, port, balance) in [
        ("turn", TURN, "round-robin"),
        ("weighed", WEIGHED, "round-robin"),
        ("chance", CHANCE, "random"),
        ("maglev", MAGLEV, "maglev"),
    ] {
        scene.service(name, port).balance(balance);
    }
    // The same three tasks serve all four: what is tested is the choice.
    for (host, number) in [("n1", 1), ("n2", 2), ("n3", 3)] {
        scene.task("turn", host, &format!("t.{number}")).unwrap();
        let task = &scene.tasks[&format!("t.{number}")];
        for service in ["weighed", "chance", "maglev"] {
            scene.mesh.service(service).task(task);
        }
    }
    let weighed = scene.mesh.service("weighed");
    weighed.weight("t.1", 1).weight("t.2", 3).weight("t.3", 0);
    scene.start().unwrap();
    scene
}

/// Each from a port of its own: the mesh remembers a UDP port's task for minutes, and of 40 ports that the
/// kernel chooses two are the same now and then.
fn ask(scene: &Scene, how: How, target: SocketAddr, times: usize) -> Result<Vec<String>> {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let client = scene.lab.client("c1");
    let mut own = client.addresses().iter();
    let own = own.find(|own| own.is_ipv4() == target.is_ipv4()).context("no address")?;
    client.run(|| {
        let answers = (0..times).map(|_| {
            let from = SocketAddr::new(*own, NEXT.fetch_add(1, Relaxed));
            let seen = Probe::new(how, target).from(from).ask();
            seen.task.clone().with_context(|| seen.to_string())
        });
        answers.collect()
    })
}

fn counts(tasks: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for task in tasks {
        *counts.entry(task.as_str()).or_default() += 1;
    }
    counts
}

on_both_planes! {
    new_flows_are_spread_as_the_service_says
    maglev_gives_a_client_port_the_same_task_on_every_node
}

fn new_flows_are_spread_as_the_service_says(plane: Plane) {
    let scene = scene(plane);
    let mut cases = Cases::default();
    let hosts = scene.lab.hosts();
    let targets = |port| hosts.iter().flat_map(move |host| host.targets(port));
    for how in BOTH_WAYS {
        for target in targets(TURN) {
            cases.note(format!("in turn, {how:?} {target}"), in_turn(&scene, how, target));
        }
        for target in targets(WEIGHED) {
            cases.note(format!("1:3:0, {how:?} {target}"), by_weight(&scene, how, target));
        }
        for target in targets(CHANCE).take(2) {
            cases.note(format!("by chance, {how:?} {target}"), by_chance(&scene, how, target));
        }
    }
    cases.end(&scene).unwrap();
}

fn in_turn(scene: &Scene, how: How, target: SocketAddr) -> Result<()> {
    let tasks = ask(scene, how, target, 9)?;
    let (first, rest) = tasks.split_at(3);
    ensure!(counts(first).len() == 3, "{tasks:?}");
    ensure!(rest.chunks(3).all(|round| round == first), "{tasks:?}");
    Ok(())
}

fn by_weight(scene: &Scene, how: How, target: SocketAddr) -> Result<()> {
    let tasks = ask(scene, how, target, 40)?;
    ensure!(counts(&tasks) == BTreeMap::from([("t.1", 10), ("t.2", 30)]), "{:?}", counts(&tasks));
    let longest = tasks.chunk_by(|one, other| one == other).map(<[_]>::len).max();
    ensure!(longest <= Some(3), "not spread within the round: {tasks:?}");
    Ok(())
}

/// With 120 throws of a die with three sides, 15 of one side or fewer is one chance in 10^7.
fn by_chance(scene: &Scene, how: How, target: SocketAddr) -> Result<()> {
    let tasks = ask(scene, how, target, 120)?;
    let counts = counts(&tasks);
    ensure!(counts.len() == 3 && counts.values().all(|count| *count > 15), "{counts:?}");
    ensure!(!tasks.chunks(3).all(|round| round == &tasks[..3]), "this is in turn: {tasks:?}");
    Ok(())
}

fn maglev_gives_a_client_port_the_same_task_on_every_node(plane: Plane) {
    let scene = scene(plane);
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    for own in client.addresses() {
        for how in BOTH_WAYS {
            let mut tasks = Vec::new();
            for port in 20_000..20_024 {
                let from = SocketAddr::new(*own, port);
                match one_task(&scene, how, from) {
                    Ok(task) => tasks.push(task),
                    Err(error) => cases.note(format!("{how:?} from {from}"), Err::<(), _>(error)),
                }
            }
            let spread = || {
                ensure!(counts(&tasks).len() == 3, "{:?}", counts(&tasks));
                Ok(())
            };
            cases.note(format!("{how:?} from {own} reaches all tasks"), spread());
        }
    }
    cases.end(&scene).unwrap();
}

/// The task that all nodes give to this client; the flows live at the same time.
fn one_task(scene: &Scene, how: How, from: SocketAddr) -> Result<String> {
    let of_family = |address: &&IpAddr| address.is_ipv4() == from.is_ipv4();
    let (mut talks, mut tasks) = (Vec::new(), Vec::new());
    for host in scene.lab.hosts() {
        let address = host.addresses().iter().find(of_family).context("no address")?;
        let probe = Probe::new(how, SocketAddr::new(*address, MAGLEV)).from(from);
        if how == How::Udp {
            talks.clear(); // two sockets cannot share a UDP port
        }
        let mut talk = probe.open_in(scene.lab.client("c1").netns())?;
        let seen = talk.ask();
        tasks.push(seen.task.clone().with_context(|| format!("{probe}: {seen}"))?);
        talks.push(talk);
    }
    ensure!(tasks.iter().all(|task| *task == tasks[0]), "{tasks:?}");
    Ok(tasks.swap_remove(0))
}
