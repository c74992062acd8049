//! Which clients are served, and by whose tasks: `affinity`, `locality`, `allow` and `deny`, and
//! `balance = "least-connections"`. All of it on both data planes.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weir_tests::{Cases, How, Lab, Plane, Probe, Scene, State, Talk, eventually, on_both_planes};

const STICKY: u16 = 8081;
const NEAR: u16 = 8082;
const HERE: u16 = 8083;
const GUARDED: u16 = 8084;
const INVITED: u16 = 8085;

on_both_planes! {
    clients_get_the_tasks_that_the_service_means_them_to_have
    who_is_not_invited_is_counted_and_not_served_and_what_is_open_outlives_the_list
    least_connections_follows_the_connections_that_are_open
}

/// Three hosts with a task of each service on each, but for `here`, which has none on n3.
fn scene(plane: Plane) -> Scene {
    let mut scene = Scene::on(plane, Lab::builder().hosts(3)).unwrap();
    let denied: Vec<toml::Value> = {
        let client = scene.lab.client("c1").addresses();
        client.iter().map(|address| address.to_string().into()).collect()
    };
    scene.service("sticky", STICKY).set("affinity", "client-ip");
    scene.service("near", NEAR).set("locality", "prefer-local");
    scene.service("here", HERE).set("locality", "local");
    scene.service("guarded", GUARDED).set("deny", denied);
    for (host, name) in [("n1", "t.1"), ("n2", "t.2"), ("n3", "t.3")] {
        scene.task("sticky", host, name).unwrap();
        let task = &scene.tasks[name];
        scene.mesh.service("near").task(task);
        scene.mesh.service("guarded").task(task);
        if host != "n3" {
            scene.mesh.service("here").task(task);
        }
    }
    scene.start().unwrap();
    scene
}

/// The tasks that answer a client of `c1` at a port of a host, over TCP and UDP, IPv4 and IPv6.
fn answers(scene: &Scene, host: &str, port: u16) -> Result<BTreeSet<String>> {
    let mut tasks = BTreeSet::new();
    for target in scene.lab.host(host).targets(port) {
        for how in [How::Tcp, How::Udp].into_iter().cycle().take(8) {
            let seen = scene.lab.client("c1").ask(&Probe::new(how, target));
            tasks.insert(seen.task.clone().with_context(|| format!("{how:?} {target}: {seen}"))?);
        }
    }
    Ok(tasks)
}

/// The tasks that answer processes of a host at its localhost.
fn answers_inside(scene: &Scene, host: &str, port: u16) -> Result<BTreeSet<String>> {
    let probes: Vec<_> = (0..8).map(|_| Probe::tcp(format!("127.0.0.1:{port}"))).collect();
    let seen = scene.lab.host(host).probe(&probes)?;
    seen.into_iter().map(|seen| seen.task.clone().with_context(|| seen.to_string())).collect()
}

fn only(task: &str) -> BTreeSet<String> {
    [task.to_owned()].into()
}

fn clients_get_the_tasks_that_the_service_means_them_to_have(plane: Plane) {
    let mut scene = scene(plane);
    let mut cases = Cases::default();
    let hosts = [("n1", "t.1"), ("n2", "t.2"), ("n3", "t.3")];

    // Each address of the client is a client.
    for own in scene.lab.client("c1").addresses() {
        let mut tasks = BTreeSet::new();
        for (host, _) in hosts {
            let targets = scene.lab.host(host).targets(STICKY);
            for target in targets.into_iter().filter(|to| to.is_ipv4() == own.is_ipv4()) {
                let seen = (0..6).map(|_| scene.lab.client("c1").ask(&Probe::tcp(target)));
                tasks.extend(seen.map(|seen| seen.task.unwrap_or_default()));
            }
        }
        let one = if tasks.len() == 1 { Ok(()) } else { Err(anyhow::anyhow!("{tasks:?}")) };
        cases.note(format!("{own} has one task through all hosts"), one);
    }
    for (host, _) in hosts {
        let inside = answers_inside(&scene, host, STICKY);
        let one = inside.and_then(|tasks| {
            ensure!(tasks.len() == 1, "{tasks:?}");
            Ok(())
        });
        cases.note(format!("the processes of {host} have one task"), one);
    }

    for (host, own) in hosts {
        let near = [answers(&scene, host, NEAR), answers_inside(&scene, host, NEAR)];
        for found in near {
            let found = found.and_then(|tasks| {
                ensure!(tasks == only(own), "{tasks:?}");
                Ok(())
            });
            cases.note(format!("{host} prefers its own task"), found);
        }
    }
    for (host, own) in &hosts[..2] {
        let here = answers(&scene, host, HERE).and_then(|tasks| {
            ensure!(tasks == only(own), "{tasks:?}");
            Ok(())
        });
        cases.note(format!("{host} serves with its own task alone"), here);
    }
    for target in scene.lab.host("n3").targets(HERE) {
        let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
        cases.note("n3 has no task, and refuses", seen.refused_at_once().map(drop));
    }

    for (host, _) in hosts {
        let target = scene.lab.host(host).targets(GUARDED)[0];
        let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
        let silent = if seen.task.is_none() && seen.errno != Some(libc::ECONNREFUSED) {
            Ok(())
        } else {
            Err(anyhow::anyhow!("{seen}"))
        };
        cases.note(format!("{host} does not answer who is denied"), silent);
        let inside = answers_inside(&scene, host, GUARDED).and_then(|tasks| {
            ensure!(tasks.len() == 3, "{tasks:?}");
            Ok(())
        });
        cases.note(format!("{host} itself is not denied"), inside);
    }

    scene.mesh.service("near").state("t.1", State::Draining);
    scene.mesh.service("guarded").set("deny", vec![toml::Value::from("192.0.2.0/24")]);
    scene.apply().unwrap();
    let others = answers(&scene, "n1", NEAR).and_then(|tasks| {
        ensure!(tasks.len() == 2 && !tasks.contains("t.1"), "{tasks:?}");
        Ok(())
    });
    cases.note("without a task of its own a host uses others", others);
    let served = answers(&scene, "n1", GUARDED).map(drop);
    cases.note("who is no longer denied is served", served);
    cases.end(&scene).unwrap();
}

fn denied(scene: &Scene) -> u64 {
    let text = scene.agent("n1").http("/metrics").unwrap().body;
    let line = text.lines().find(|line| line.starts_with("weir_drops_total{reason=\"denied\"}"));
    let value = line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value.parse());
    value.and_then(Result::ok).unwrap_or_default()
}

fn who_is_not_invited_is_counted_and_not_served_and_what_is_open_outlives_the_list(plane: Plane) {
    let mut scene = Scene::on(plane, Lab::builder().hosts(1)).unwrap();
    let client = scene.lab.client("c1").clone();
    let own = client.addresses().iter().find(|own| own.is_ipv4()).unwrap().to_string();
    scene.service("invited", INVITED).set("allow", vec![toml::Value::from(own)]);
    scene.task("invited", "n1", "t.1").unwrap();
    scene.start().unwrap();
    let targets = scene.lab.host("n1").targets(INVITED);
    let four = targets.iter().copied().find(|target| target.is_ipv4()).unwrap();
    let six = targets.iter().copied().find(|target| target.is_ipv6()).unwrap();
    let hows = [How::Tcp, How::UdpConnected];
    let mut talks = hows.map(|how| Probe::new(how, four).open_in(client.netns()).unwrap());
    for talk in &mut talks {
        talk.ask().by("t.1").unwrap();
    }
    for how in hows {
        let seen = client.ask(&Probe::new(how, six));
        assert!(seen.task.is_none(), "{how:?}: {seen}");
    }
    eventually("both to be counted", Duration::from_secs(5), || {
        let counted = denied(&scene);
        // The kernel plane counts packets, and a client sends its first more than once.
        ensure!(counted >= 2, "{counted}");
        Ok(())
    })
    .unwrap();
    scene.mesh.service("invited").set("allow", vec![toml::Value::from("192.0.2.0/24")]);
    scene.apply().unwrap();
    for how in hows {
        let seen = client.ask(&Probe::new(how, four));
        assert!(seen.task.is_none(), "{how:?}: {seen}");
    }
    for talk in &mut talks {
        talk.ask().by("t.1").unwrap();
    }
}

/// Opens so many connections and asks once by each; answers them, and how many `t.1` has.
fn open(scene: &Scene, count: usize) -> (Vec<Talk>, usize) {
    let target = scene.lab.host("n1").targets(STICKY)[0];
    let netns = scene.lab.client("c1").netns();
    let mut of_first = 0;
    let talks = (0..count).map(|_| {
        let mut talk = Probe::tcp(target).open_in(netns).unwrap();
        of_first += usize::from(talk.ask().task.as_deref() == Some("t.1"));
        talk
    });
    (talks.collect(), of_first)
}

fn least_connections_follows_the_connections_that_are_open(plane: Plane) {
    const CENSUS: Duration = Duration::from_millis(2500);
    let mut scene = Scene::on(plane, Lab::builder().hosts(1)).unwrap();
    scene.service("least", STICKY).balance("least-connections");
    for name in ["t.1", "t.2", "t.3"] {
        scene.task("least", "n1", name).unwrap();
    }
    scene.mesh.service("least").state("t.2", State::Draining).state("t.3", State::Draining);
    scene
        .start_with(|_, config| {
            config.set("reconcile.flow_interval", "1s");
        })
        .unwrap();
    let (first, of_first) = open(&scene, 40);
    assert_eq!(of_first, 40);
    scene.mesh.service("least").state("t.2", State::Active).state("t.3", State::Active);
    scene.apply().unwrap();
    thread::sleep(CENSUS);
    // Only where chance draws it twice: a ninth, 7 of 60. By turns it would be 20; more than 16 are four
    // standard deviations.
    let (others, of_first) = open(&scene, 60);
    assert!(of_first <= 16, "{of_first} of 60 to the task that has 40 already");
    drop(first);
    thread::sleep(CENSUS);
    // Where chance draws it at all, until it has as many as the others: five ninths, 33 of 60. A task whose
    // connections were still counted would get 7; fewer than 18 are four standard deviations.
    let (last, of_first) = open(&scene, 60);
    assert!(of_first >= 18, "{of_first} of 60 to the task that has hardly any");
    drop((others, last));
}
