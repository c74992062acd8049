//! Hosts that are linked by the operator's certificates: who is silent and which tasks are out is
//! known on all of them.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use serde_json::Value;
use weir_tests::agent::weir;
use weir_tests::traffic::HttpLoad;
use weir_tests::{Cases, Lab, Probe, Scene, Task, eventually};

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;
/// Where a task says whether it is well.
const HEALTH: u16 = 81;
/// n1 and n2 have certificates of managers.
const MANAGERS: [&str; 2] = ["n1", "n2"];

/// Three hosts with a task each, an authority, and a certificate for each host.
struct Linked {
    scene: Scene,
    ca: PathBuf,
    /// Whose clock is wrong by so many hours, and what makes it so.
    clocks: Vec<(PathBuf, &'static str, i32)>,
}

impl Linked {
    /// Everything but the agents.
    fn new() -> Self {
        let mut scene = Scene::new(Lab::builder().hosts(3)).unwrap();
        scene.service("web", PORT);
        for (host, name) in [("n1", "web.1"), ("n2", "web.2"), ("n3", "web.3")] {
            scene.task("web", host, name).unwrap();
        }
        let linked = Self { ca: scene.lab.run_dir().join("ca"), scene, clocks: Vec::new() };
        linked.make_ca(&linked.ca);
        for host in ["n1", "n2", "n3"] {
            linked.issue(&linked.ca, host, host);
        }
        linked
    }

    fn ca(&self, arguments: &[&str]) {
        let output = weir(self.scene.lab.host("n1"), arguments).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn make_ca(&self, directory: &Path) {
        self.ca(&["ca", "init", "--dir", &directory.display().to_string()]);
    }

    /// Issues a certificate for `name`, and gives it to `host`.
    fn issue(&self, ca: &Path, name: &str, host: &str) {
        let dir = ca.display().to_string();
        let address = self.scene.lab.host(host).addresses()[0].to_string();
        let mut arguments =
            vec!["ca", "issue", "--dir", &dir, "--node", name, "--address", &address];
        if MANAGERS.contains(&name) {
            arguments.push("--manager");
        }
        if !ca.join(format!("{name}.crt")).exists() {
            self.ca(&arguments);
        }
        let read = |file: String| fs::read_to_string(ca.join(file)).unwrap();
        let (certificate, key) = (read(format!("{name}.crt")), read(format!("{name}.key")));
        self.give(host, [&read("weir-ca.crt".into()), &certificate, &key]);
    }

    /// Gives a host an authority, a certificate and a key.
    fn give(&self, host: &str, texts: [&str; 3]) {
        for (path, text) in self.files(host).iter().zip(texts) {
            fs::write(path, text).unwrap();
        }
    }

    fn files(&self, host: &str) -> [PathBuf; 3] {
        let directory = self.scene.lab.host(host).run_dir();
        ["ca.crt", "node.crt", "node.key"].map(|file| directory.join(file))
    }

    /// Starts the agents; those of `linked` are told of the link.
    fn start(&mut self, linked: &[&str]) {
        let peers: Vec<String> =
            MANAGERS.map(|host| self.scene.lab.host(host).addresses()[0].to_string()).to_vec();
        let files: Vec<(&str, [PathBuf; 3])> =
            linked.iter().map(|host| (*host, self.files(host))).collect();
        let clocks = self.clocks.clone();
        let started = self.scene.start_with(|host, config| {
            for (library, _, hours) in clocks.iter().filter(|(_, name, _)| *name == host) {
                config.variable("LD_PRELOAD", library.display().to_string());
                config.variable("CLOCK_IS_OFF_BY", (hours * 3600).to_string());
            }
            let Some((_, files)) = files.iter().find(|(name, _)| *name == host) else { return };
            for (key, path) in ["link.ca", "link.certificate", "link.key"].iter().zip(files) {
                config.set(key, path.display().to_string());
            }
            config.set("link.peers", peers.clone());
        });
        started.unwrap();
        for host in linked {
            self.wait_link(host, "ok", "");
        }
    }

    /// Waits until `weir status` says this of the link.
    fn wait_link(&self, host: &str, condition: &str, why: &str) {
        eventually(&format!("the link of {host} to be {condition}: {why}"), 20 * SECOND, || {
            let link = self.link(host)?.context("no link")?;
            let reason = link["reason"].as_str().unwrap_or_default();
            ensure!(link["condition"] == condition && reason.contains(why), "{link}");
            Ok(())
        })
        .unwrap();
    }

    /// What `weir status` says of the link.
    fn link(&self, host: &str) -> Result<Option<Value>> {
        let status: Value =
            serde_json::from_str(&self.scene.agent(host).api("/api/v1/status")?.body)?;
        let all = status["subsystems"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().find(|subsystem| subsystem["name"] == "cluster link"))
    }

    /// Who is silent by `weir nodes`.
    fn silent(&self, host: &str) -> Vec<String> {
        let table = self.scene.agent(host).cli(&["nodes"]).unwrap();
        let rows = table.lines().filter_map(|row| row.strip_suffix("  silent"));
        rows.filter_map(|row| row.split(' ').next()).map(str::to_owned).collect()
    }

    /// What a host's metrics say of every other node.
    fn told(&self, host: &str, family: &str) -> BTreeMap<String, f64> {
        let scrape = self.scene.agent(host).http("/metrics").unwrap().body;
        let begin = format!("weir_link_{family}{{node=\"");
        let lines = scrape.lines().filter_map(|line| line.strip_prefix(&begin)?.split_once("\"} "));
        lines.map(|(node, value)| (node.to_owned(), value.parse().unwrap())).collect()
    }

    /// Waits until the kernel of `host` has a task in a state, and its agent says why.
    fn wait_task(&self, host: &str, task: &str, state: &str, why: &str) {
        eventually(&format!("{task} to be {state} on {host}"), 10 * SECOND, || {
            let answer = self.scene.agent(host).cli(&["services", "web", "-o", "json"])?;
            let answer: Value = serde_json::from_str(&answer)?;
            let tasks = answer["services"][0]["tasks"].as_array().context("no tasks")?.clone();
            let told = tasks.into_iter().find(|found| found["name"] == task).context("no task")?;
            let health = told["health"].as_str().unwrap_or_default();
            ensure!(told["state"] == state && told["kernel"] == state, "{told}");
            ensure!(health.contains(why), "{told}");
            Ok(())
        })
        .unwrap();
    }

    /// New connections through these hosts are answered by these tasks, all of them, and no others.
    fn only(&self, hosts: &[&str], tasks: &[&str], when: &str) {
        let mut cases = Cases::default();
        let mut answered = std::collections::BTreeSet::new();
        for target in hosts.iter().flat_map(|host| self.scene.lab.host(host).targets(PORT)) {
            for _ in 0..9 {
                let seen = self.scene.lab.client("c1").ask(&Probe::tcp(target));
                let right = seen.task.as_deref().is_some_and(|task| tasks.contains(&task));
                answered.extend(seen.task.clone());
                let result = if right { Ok(()) } else { Err(anyhow::anyhow!("saw {seen}")) };
                cases.note(format!("{when}: {target}"), result);
            }
        }
        let all = tasks.iter().all(|task| answered.contains(*task));
        cases.note(when, if all { Ok(()) } else { Err(anyhow::anyhow!("only {answered:?}")) });
        cases.end(&self.scene).unwrap();
    }
}

/// A server in a task that answers every request with 200, or 503 while it is not well. It ends with
/// the test's process.
fn health_server(task: &Task) -> Arc<AtomicBool> {
    let listener = task.run(|| TcpListener::bind(("0.0.0.0", HEALTH))).unwrap();
    let switch = Arc::new(AtomicBool::new(true));
    let state = switch.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(stream.read(&mut [0; 1024]));
            let status = if state.load(Ordering::SeqCst) { "200 OK" } else { "503 Ill" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    switch
}

#[test]
fn a_silent_host_gets_no_new_flows_after_a_second_and_is_back_when_it_speaks() {
    const LIMIT: Duration = Duration::from_millis(1500);
    let mut linked = Linked::new();
    linked.start(&["n1", "n2", "n3"]);
    linked.only(&["n1", "n2", "n3"], &["web.1", "web.2", "web.3"], "at first");

    let lab = &linked.scene.lab;
    let through: Vec<_> = MANAGERS.iter().map(|host| lab.host(host).targets(PORT)[0]).collect();
    let load = HttpLoad::new(lab.client("c1").netns(), through).connections(300);
    let load = load.rate(300).timeout(SECOND).start().unwrap();
    thread::sleep(SECOND);
    let cut = load.report().elapsed;
    lab.unplug("n3").unwrap();
    thread::sleep(4 * SECOND);
    let report = load.stop().unwrap();
    let last = report.last_failure.as_ref().map_or(Duration::ZERO, |last| last.at);
    let failed_for = last.saturating_sub(cut);
    println!("new connections failed for {failed_for:?} after the cut: {report}");
    assert!(
        report.failures() > 0,
        "a third of the tasks were cut off, and nobody noticed: {report}"
    );
    assert!(failed_for <= LIMIT, "{failed_for:?}: {report}");
    for host in MANAGERS {
        linked.wait_task(host, "web.3", "draining", "n3 is silent");
        assert_eq!(linked.silent(host), ["n3"]);
        let other = if host == "n1" { "n2" } else { "n1" };
        let up = [(other, 1.0), ("n3", 0.0)].map(|(node, up)| (node.to_owned(), up));
        assert_eq!(linked.told(host, "up"), up.into());
        // Of managers alone: the others connect to them.
        let rtt = linked.told(host, "rtt_seconds");
        assert!(rtt.len() == 1 && rtt[other] > 0.0 && rtt[other] < 1.0, "{rtt:?}");
    }
    // Nobody tells it who is there.
    assert_eq!(linked.silent("n3"), [""; 0]);
    assert_eq!(linked.told("n3", "up"), BTreeMap::new());

    linked.scene.lab.plug("n3").unwrap();
    for host in MANAGERS {
        linked.wait_task(host, "web.3", "active", "");
        assert_eq!(linked.silent(host), [""; 0]);
    }
    linked.wait_link("n3", "ok", "");
    // Its interface is another one, which its agent has to find first.
    eventually("n3 to serve clients", 10 * SECOND, || {
        let target = linked.scene.lab.host("n3").targets(PORT)[0];
        let seen = linked.scene.lab.client("c1").ask(&Probe::tcp(target));
        ensure!(seen.task.is_some(), "{seen}");
        Ok(())
    })
    .unwrap();
    linked.only(&["n1", "n2", "n3"], &["web.1", "web.2", "web.3"], "n3 speaks again");
}

#[test]
fn a_task_that_fails_its_check_is_out_on_every_host_and_comes_back_on_every_host() {
    let mut linked = Linked::new();
    let health: toml::Table = [
        ("http".to_owned(), "/".into()),
        ("port".to_owned(), i64::from(HEALTH).into()),
        ("interval".to_owned(), "200ms".into()),
    ]
    .into_iter()
    .collect();
    linked.scene.mesh.service("web").set("health", health);
    let switches: Vec<_> =
        ["web.1", "web.2", "web.3"].map(|name| health_server(&linked.scene.tasks[name])).into();
    linked.start(&["n1", "n2", "n3"]);
    for task in ["web.1", "web.2", "web.3"] {
        ["n1", "n2", "n3"].iter().for_each(|host| linked.wait_task(host, task, "active", ""));
    }
    linked.only(&["n1", "n2", "n3"], &["web.1", "web.2", "web.3"], "all are well");

    switches[2].store(false, Ordering::SeqCst);
    linked.wait_task("n3", "web.3", "draining", "health: http / answered 503, 3 times");
    for host in MANAGERS {
        linked.wait_task(
            host,
            "web.3",
            "draining",
            "n3 says: health: http / answered 503, 3 times",
        );
    }
    linked.only(&["n1", "n2", "n3"], &["web.1", "web.2"], "web.3 is ill");

    // A restart of an agent that does not judge the task does not put it in.
    linked.scene.agent("n1").restart().unwrap();
    linked.scene.agent("n1").wait_ready().unwrap();
    linked.wait_task("n1", "web.3", "draining", "n3 says: health");

    switches[2].store(true, Ordering::SeqCst);
    for host in ["n1", "n2", "n3"] {
        linked.wait_task(host, "web.3", "active", "");
    }
    linked.only(&["n1", "n2", "n3"], &["web.1", "web.2", "web.3"], "it is well again");
}

/// A certificate for n3 of the authority in `ca` that expired an hour ago.
fn expired(ca: &Path) -> [String; 3] {
    let read = |file: &str| fs::read_to_string(ca.join(file)).unwrap();
    let (authority, key) = (read("weir-ca.crt"), KeyPair::from_pem(&read("weir-ca.key")).unwrap());
    let issuer = Issuer::from_ca_cert_pem(&authority, key).unwrap();
    let cluster = fs::read_to_string(ca.join("cluster")).unwrap();
    let mut params = CertificateParams::new(vec!["n3".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "n3");
    params.distinguished_name.push(DnType::OrganizationalUnitName, "weir-worker");
    params.distinguished_name.push(DnType::OrganizationName, cluster.trim());
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::hours(2);
    params.not_after = now - time::Duration::hours(1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    [authority, certificate.pem(), key.serialize_pem()]
}

#[test]
fn a_host_with_a_wrong_certificate_is_told_why_and_goes_on_by_its_file() {
    let mut linked = Linked::new();
    // Made by name, so that a test can make certificates of it, too.
    let ca = linked.scene.lab.run_dir().join("named");
    linked.ca(&["ca", "init", "--dir", &ca.display().to_string(), "--cluster", "lab"]);
    fs::write(ca.join("cluster"), "lab").unwrap();
    for host in ["n1", "n2", "n3"] {
        linked.issue(&ca, host, host);
    }
    linked.start(&["n1", "n2", "n3"]);
    let served = |when: &str| linked.only(&["n3"], &["web.1", "web.2", "web.3"], when);

    linked.issue(&linked.ca, "n3", "n3");
    linked.wait_link("n3", "degraded", "is of another authority: another cluster?");
    served("of another authority");

    let [authority, certificate, key] = expired(&ca);
    linked.give("n3", [&authority, &certificate, &key]);
    linked.wait_link("n3", "degraded", "this node's certificate has expired");
    eventually("n1 or n2 to tell of it", 10 * SECOND, || {
        let hints = MANAGERS.map(|host| linked.link(host).map(|link| link.unwrap_or_default()));
        let told = hints.iter().flatten().any(|link| {
            link["hint"].as_str().is_some_and(|hint| hint.contains("certificate has expired"))
        });
        ensure!(told, "{hints:?}");
        Ok(())
    })
    .unwrap();
    served("expired");

    linked.issue(&ca, "n7", "n3");
    linked.wait_link("n3", "degraded", "is the certificate of n7, and this node is n3");
    served("of another node");

    linked.issue(&ca, "n3", "n3");
    linked.wait_link("n3", "ok", "hears the agent on");
    for host in MANAGERS {
        linked.wait_task(host, "web.3", "active", "");
    }
}

#[test]
fn a_host_without_a_link_is_never_called_silent() {
    let mut linked = Linked::new();
    linked.start(&["n1", "n2"]);
    assert_eq!(linked.link("n3").unwrap(), None);
    thread::sleep(4 * SECOND);
    linked.only(&["n1", "n2", "n3"], &["web.1", "web.2", "web.3"], "n3 has no link");
}

#[test]
fn while_no_hub_is_there_everything_stays_as_it_was() {
    let mut linked = Linked::new();
    linked.start(&["n1", "n2", "n3"]);
    let lab = &linked.scene.lab;
    let through: Vec<_> =
        ["n1", "n2", "n3"].iter().map(|host| lab.host(host).targets(PORT)[0]).collect();
    let load = HttpLoad::new(lab.client("c1").netns(), through).connections(32);
    let load = load.rate(200).timeout(5 * SECOND).start().unwrap();
    for host in MANAGERS {
        linked.scene.agent(host).kill9();
    }
    linked.wait_link("n3", "degraded", "is not reached");
    thread::sleep(3 * SECOND);
    linked.wait_task("n3", "web.1", "active", "");
    linked.only(&["n1", "n2", "n3"], &["web.1", "web.2", "web.3"], "without hubs");
    for host in MANAGERS {
        linked.scene.agent(host).launch().unwrap();
    }
    for host in ["n1", "n2", "n3"] {
        linked.scene.agent(host).wait_ready().unwrap();
        linked.wait_link(host, "ok", "");
    }
    load.stop().unwrap().assert_clean();
}

/// What stands between a program and its wall clock; its other clocks are as they are.
const WRONG_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    const char *by = getenv("CLOCK_IS_OFF_BY");
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME && by)
        now->tv_sec += atol(by);
    return failed;
}
"#;

/// Compiles it.
fn wrong_clock(directory: &Path) -> PathBuf {
    let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
    fs::write(&source, WRONG_CLOCK).unwrap();
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

#[test]
fn hosts_whose_clocks_are_two_hours_apart_hear_each_other_and_lose_nothing() {
    let mut linked = Linked::new();
    let library = wrong_clock(linked.scene.lab.run_dir());
    linked.clocks = vec![(library.clone(), "n2", -1), (library, "n3", 1)];
    let health: toml::Table = [
        ("http".to_owned(), "/".into()),
        ("port".to_owned(), i64::from(HEALTH).into()),
        ("interval".to_owned(), "200ms".into()),
    ]
    .into_iter()
    .collect();
    linked.scene.mesh.service("web").set("health", health);
    let switches: Vec<_> =
        ["web.1", "web.2", "web.3"].map(|name| health_server(&linked.scene.tasks[name])).into();
    linked.start(&["n1", "n2", "n3"]);
    // The clocks are wrong indeed, by what the logs say: 2026-11-21T14:03:05Z.
    let began = |host: &str| {
        let log = linked.scene.agent(host).log();
        let time = log.split(' ').next().unwrap_or_default().to_owned();
        time::OffsetDateTime::parse(&time, &time::format_description::well_known::Rfc3339).unwrap()
    };
    for (host, hours) in [("n2", -1.0), ("n3", 1.0)] {
        let off = (began(host) - began("n1")).as_seconds_f64() / 3600.0;
        assert!((off - hours).abs() < 0.2, "the clock of {host} is off by {off} hours");
    }
    let all = ["web.1", "web.2", "web.3"];
    for task in all {
        ["n1", "n2", "n3"].iter().for_each(|host| linked.wait_task(host, task, "active", ""));
    }
    linked.only(&["n1", "n2", "n3"], &all, "with three clocks");

    // What is newest does not depend on who is ahead: both are taken out, and both come back.
    for (at, task) in [(1, "web.2"), (2, "web.3")] {
        switches[at].store(false, Ordering::SeqCst);
        for other in ["n1", "n2", "n3"] {
            linked.wait_task(other, task, "draining", "health: http / answered 503");
        }
        switches[at].store(true, Ordering::SeqCst);
        ["n1", "n2", "n3"].iter().for_each(|other| linked.wait_task(other, task, "active", ""));
    }
    // Nobody is silent, and nobody takes long to be found silent.
    thread::sleep(2 * SECOND);
    linked.only(&["n1", "n2", "n3"], &all, "after a while");
    linked.scene.lab.unplug("n3").unwrap();
    MANAGERS.iter().for_each(|host| linked.wait_task(host, "web.3", "draining", "n3 is silent"));
    linked.scene.lab.plug("n3").unwrap();
    MANAGERS.iter().for_each(|host| linked.wait_task(host, "web.3", "active", ""));
}
