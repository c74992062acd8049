//! Tasks that cannot serve are taken out, and brought back: by what they refuse, and by what a probe
//! of their own node finds.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use weir_tests::scene::{ECHO, HTTP};
use weir_tests::traffic::HttpLoad;
use weir_tests::{Cases, Lab, Probe, Scene, Task, eventually};

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;
/// Where a task says whether it is well.
const HEALTH: u16 = 81;
/// Longer than from one reading of the kernel's counters to the next.
const READING: Duration = Duration::from_millis(700);
const REFUSED: u64 = 5;

fn table(entries: &[(&str, toml::Value)]) -> toml::Value {
    toml::Table::from_iter(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())))
        .into()
}

fn targets(scene: &Scene) -> Vec<SocketAddr> {
    scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)).collect()
}

/// What `weir services -o json` of a host says of a task.
fn told(scene: &Scene, host: &str, task: &str) -> Result<Value> {
    let answer: Value =
        serde_json::from_str(&scene.agent(host).cli(&["services", "web", "-o", "json"])?)?;
    let tasks = answer["services"][0]["tasks"].as_array().cloned().unwrap_or_default();
    let found = tasks.into_iter().find(|found| found["name"] == task);
    found.ok_or_else(|| anyhow::anyhow!("no {task} in {answer}"))
}

/// Waits until the kernel of a task's own node has it in this state.
fn wait_for(scene: &Scene, host: &str, task: &str, state: &str) {
    eventually(&format!("{task} to be {state}"), 10 * SECOND, || {
        // What is told of the kernel may be a second old; what the agent wants is not.
        let told = told(scene, host, task)?;
        ensure!(told["state"] == state && told["kernel"] == state, "{told}");
        let status: Value = serde_json::from_str(&scene.agent(host).api("/api/v1/status")?.body)?;
        ensure!(status["generation"] == status["wanted"], "{status}");
        Ok(())
    })
    .unwrap();
}

/// New connections through every address are answered by these tasks and no others.
fn only(scene: &Scene, tasks: &[&str], when: &str) -> Cases {
    let mut cases = Cases::default();
    let mut answered = std::collections::BTreeSet::new();
    for target in targets(scene) {
        for _ in 0..9 {
            let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
            let right = seen.task.as_deref().is_some_and(|task| tasks.contains(&task));
            answered.extend(seen.task.clone());
            let result = if right { Ok(()) } else { Err(anyhow::anyhow!("saw {seen}")) };
            cases.note(format!("{when}: {target}"), result);
        }
    }
    let all = tasks.iter().all(|task| answered.contains(*task));
    cases.note(when, if all { Ok(()) } else { Err(anyhow::anyhow!("only {answered:?}")) });
    cases
}

/// Ends a task's processes, and waits until nothing listens any more.
fn crash(scene: &mut Scene, name: &str) {
    let task = scene.tasks.get_mut(name).unwrap();
    task.kill9();
    let inside = SocketAddr::from(([127, 0, 0, 1], HTTP));
    eventually("the task to refuse", 5 * SECOND, || {
        task.run(|| Probe::tcp(inside).ask()).refused_at_once().map(drop)
    })
    .unwrap();
}

fn serve_again(scene: &mut Scene, name: &str) {
    let task = scene.tasks.get_mut(name).unwrap();
    task.serve_http(HTTP).unwrap();
    task.serve_echo(ECHO).unwrap();
}

/// A server in a task that answers every request with 200, or 503 while it is not well. It ends with
/// the test's process.
fn health_server(task: &Task, well: bool) -> Arc<AtomicBool> {
    let listener = task.run(|| TcpListener::bind(("0.0.0.0", HEALTH))).unwrap();
    let switch = Arc::new(AtomicBool::new(well));
    let state = switch.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap_or(0);
            let asked = request[..length].starts_with(b"GET /healthz HTTP/1.1\r\n");
            let status = match (asked, state.load(Ordering::SeqCst)) {
                (true, true) => "200 OK",
                (true, false) => "503 Service Unavailable",
                (false, _) => "404 Not Found",
            };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    switch
}

#[test]
fn a_task_that_does_not_listen_is_ejected_after_five_refusals_and_comes_back_when_it_does() {
    let mut scene = Scene::new(Lab::builder().hosts(3)).unwrap();
    scene.service("web", PORT).set("eject", table(&[("for", "60s".into())]));
    for (host, name) in [("n1", "web.1"), ("n2", "web.2"), ("n3", "web.3")] {
        scene.task("web", host, name).unwrap();
    }
    scene.start().unwrap();
    only(&scene, &["web.1", "web.2", "web.3"], "at first").end(&scene).unwrap();

    crash(&mut scene, "web.2");
    // Refusals that are read together with connections accepted before count for nothing.
    thread::sleep(READING);
    let targets = targets(&scene);
    let mut refused = 0;
    let begun = Instant::now();
    for target in targets.iter().cycle() {
        if told(&scene, "n2", "web.2").unwrap()["state"] == "draining" {
            break;
        }
        assert!(begun.elapsed() < 30 * SECOND, "{refused} were refused, and it is not ejected");
        let seen = scene.lab.client("c1").ask(&Probe::tcp(*target));
        if seen.task.is_none() {
            seen.refused_at_once().unwrap();
            refused += 1;
            // Whoever asks on meets the task again before its node has read the counters.
            thread::sleep(READING);
        }
    }
    assert_eq!(refused, REFUSED);
    wait_for(&scene, "n2", "web.2", "draining");
    let told_why = told(&scene, "n2", "web.2").unwrap();
    assert_eq!(told_why["health"], "ejected for 60 s: refused 5 connections", "{told_why}");
    assert_eq!(
        (&told_why["state"], &told_why["counters"]["refused"]),
        (&"draining".into(), &5.into())
    );
    let metrics = scene.agent("n2").http("/metrics").unwrap().body;
    let ejections = "weir_task_ejections_total{service=\"web\",task=\"web.2\"} 1";
    let healthy = "weir_task_healthy{service=\"web\",task=\"web.2\"} 0";
    assert!(metrics.contains(ejections) && metrics.contains(healthy), "{metrics}");

    // The other nodes go on sending there: its own node gives the flows to others.
    only(&scene, &["web.1", "web.3"], "ejected").end(&scene).unwrap();

    // An ejection lasts for a minute, unless the task is found to listen.
    serve_again(&mut scene, "web.2");
    wait_for(&scene, "n2", "web.2", "active");
    only(&scene, &["web.1", "web.2", "web.3"], "back").end(&scene).unwrap();
}

#[test]
fn tasks_that_were_ejected_by_each_node_for_itself_serve_soon_after_they_listen() {
    let mut scene = Scene::new(Lab::builder().hosts(3)).unwrap();
    scene.service("web", PORT).set("eject", table(&[("for", "60s".into())]));
    let all = [("n1", "web.1"), ("n2", "web.2"), ("n3", "web.3")];
    for (host, name) in all {
        scene.task("web", host, name).unwrap();
    }
    scene.start().unwrap();
    all.iter().for_each(|(_, name)| crash(&mut scene, name));
    let targets = targets(&scene);
    eventually("all to be ejected", 30 * SECOND, || {
        targets.iter().for_each(|target| drop(scene.lab.client("c1").ask(&Probe::tcp(*target))));
        for (host, name) in all {
            let told = told(&scene, host, name)?;
            ensure!(told["state"] == "draining", "{told}");
        }
        Ok(())
    })
    .unwrap();
    all.iter().for_each(|(_, name)| serve_again(&mut scene, name));
    for (host, name) in all {
        wait_for(&scene, host, name, "active");
    }
    only(&scene, &["web.1", "web.2", "web.3"], "back").end(&scene).unwrap();
}

#[test]
fn under_load_a_task_that_does_not_listen_is_out_within_half_a_second() {
    let mut scene = Scene::new(Lab::builder().hosts(2)).unwrap();
    scene.service("web", PORT);
    for (host, name) in [("n1", "web.1"), ("n2", "web.2"), ("n2", "web.3")] {
        scene.task("web", host, name).unwrap();
    }
    scene.start().unwrap();
    crash(&mut scene, "web.2");
    let netns = scene.lab.client("c1").netns();
    let load = HttpLoad::new(netns, targets(&scene)).connections(4).rate(300);
    let report = load.timeout(5 * SECOND).requests(1500).run().unwrap();
    println!("{report}");
    // A third of 300 a second for at most 500 ms, and the few that eject.
    assert!((REFUSED..=60).contains(&report.failures()), "{report}\n{}", scene.drops());
}

#[test]
fn a_task_whose_http_check_fails_is_out_and_comes_back_and_a_new_one_waits_for_its_check() {
    let mut scene = Scene::new(Lab::builder().hosts(2)).unwrap();
    let health = table(&[
        ("http", "/healthz".into()),
        ("port", i64::from(HEALTH).into()),
        ("interval", "200ms".into()),
    ]);
    scene.service("web", PORT).set("health", health);
    let mut switches = Vec::new();
    for (host, name, well) in [("n1", "web.1", true), ("n2", "web.2", true), ("n2", "web.3", false)]
    {
        scene.task("web", host, name).unwrap();
        switches.push(health_server(&scene.tasks[name], well));
    }
    scene.start().unwrap();
    wait_for(&scene, "n1", "web.1", "active");
    wait_for(&scene, "n2", "web.2", "active");
    only(&scene, &["web.1", "web.2"], "web.3 is not well yet").end(&scene).unwrap();
    eventually("web.3 to be asked", 5 * SECOND, || {
        let why = told(&scene, "n2", "web.3")?["health"].clone();
        ensure!(why == "health: not healthy yet, http /healthz answered 503", "{why}");
        Ok(())
    })
    .unwrap();
    switches[2].store(true, Ordering::SeqCst);
    wait_for(&scene, "n2", "web.3", "active");
    only(&scene, &["web.1", "web.2", "web.3"], "all are well").end(&scene).unwrap();

    // An open connection outlives the check.
    let target = scene.lab.host("n1").targets(PORT)[0];
    let netns = scene.lab.client("c1").netns();
    let mut kept = eventually("a connection with web.1", 5 * SECOND, || {
        let mut talk = Probe::tcp(target).open_in(netns)?;
        talk.ask().by("web.1")?;
        anyhow::Ok(talk)
    })
    .unwrap();
    switches[0].store(false, Ordering::SeqCst);
    wait_for(&scene, "n1", "web.1", "draining");
    let why = told(&scene, "n1", "web.1").unwrap()["health"].clone();
    assert_eq!(why, "health: http /healthz answered 503, 3 times");
    let table = scene.agent("n1").cli(&["services"]).unwrap();
    assert!(table.contains("draining; health: http /healthz answered 503, 3 times"), "{table}");
    only(&scene, &["web.2", "web.3"], "web.1 is not well").end(&scene).unwrap();
    kept.ask().by("web.1").unwrap();
    switches[0].store(true, Ordering::SeqCst);
    wait_for(&scene, "n1", "web.1", "active");
    only(&scene, &["web.1", "web.2", "web.3"], "it is well again").end(&scene).unwrap();
}

#[test]
fn when_all_tasks_refuse_none_is_ejected_and_all_serve_as_soon_as_they_listen() {
    let mut scene = Scene::new(Lab::builder().hosts(2)).unwrap();
    scene.service("web", PORT).set("eject", table(&[("for", "60s".into())]));
    let names = ["web.1", "web.2", "web.3"];
    for name in names {
        scene.task("web", "n1", name).unwrap();
    }
    scene.start().unwrap();
    scene.tasks.values_mut().for_each(Task::kill9);
    let targets = targets(&scene);
    let kept = "not ejected, although it refused";
    eventually("the panic threshold", 30 * SECOND, || {
        for target in &targets {
            let seen = scene.lab.client("c1").ask(&Probe::tcp(*target));
            ensure!(seen.task.is_none(), "{seen}");
        }
        for name in names {
            let told = told(&scene, "n1", name)?;
            let spared = told["health"].as_str().is_some_and(|why| why.starts_with(kept));
            ensure!(spared && told["kernel"] == "active", "{told}");
        }
        Ok(())
    })
    .unwrap();
    names.iter().for_each(|name| serve_again(&mut scene, name));
    only(&scene, &names, "all listen again").end(&scene).unwrap();
    // Those that serve are trusted again at once, although an ejection lasts for a minute.
    eventually("all to be trusted again", 5 * SECOND, || {
        only(&scene, &names, "still").end(&scene)?;
        for name in names {
            let told = told(&scene, "n1", name)?;
            ensure!(told["health"].is_null() && told["kernel"] == "active", "{told}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_restart_of_the_agent_takes_nothing_out_and_puts_nothing_in() {
    let mut scene = Scene::new(Lab::builder().hosts(2)).unwrap();
    // So slow that a task which had to rise again would be seen to be out.
    let health = table(&[("port", i64::from(HEALTH).into()), ("interval", "1s".into())]);
    scene.service("web", PORT).set("health", health).set("eject", table(&[("for", "60s".into())]));
    let names = ["web.1", "web.2", "web.3", "web.4", "web.5"];
    let hosts = ["n1", "n1", "n2", "n2", "n1"];
    for (name, host) in names.iter().zip(hosts) {
        scene.task("web", host, name).unwrap();
        // web.5 never listens where it is asked.
        if *name != "web.5" {
            health_server(&scene.tasks[*name], true);
        }
    }
    scene.start().unwrap();
    names[..4].iter().zip(hosts).for_each(|(name, host)| wait_for(&scene, host, name, "active"));
    crash(&mut scene, "web.2");
    let target = scene.lab.host("n1").targets(PORT)[0];
    eventually("web.2 to be ejected", 20 * SECOND, || {
        drop(scene.lab.client("c1").ask(&Probe::tcp(target)));
        let told = told(&scene, "n1", "web.2")?;
        ensure!(told["kernel"] == "draining", "{told}");
        Ok(())
    })
    .unwrap();

    let netns = scene.lab.client("c1").netns();
    let load = HttpLoad::new(netns, targets(&scene)).connections(4).rate(300);
    let load = load.timeout(5 * SECOND).start().unwrap();
    let states = || names.map(|name| told(&scene, "n1", name).unwrap()["kernel"].clone());
    let before = states();
    assert_eq!(before, ["active", "draining", "active", "active", "draining"]);
    for round in 0..3 {
        let agent = scene.agent("n1");
        if round == 0 {
            agent.kill9()
        } else {
            agent.stop().unwrap()
        }
        agent.launch().unwrap();
        agent.wait_ready().unwrap();
        let begun = Instant::now();
        while begun.elapsed() < 2 * SECOND {
            assert_eq!(states(), before, "round {round}, {:?} after the start", begun.elapsed());
        }
    }
    let why = told(&scene, "n1", "web.2").unwrap()["health"].clone();
    let report = load.stop().unwrap();
    println!("{report}; {why}");
    let served: Vec<_> = report.by_task.keys().map(String::as_str).collect();
    assert_eq!((report.failures(), served), (0, vec!["web.1", "web.3", "web.4"]), "{report}");
}
