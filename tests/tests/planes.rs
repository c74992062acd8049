//! The proxy beside the kernel plane: it serves what the kernel cannot, and a port passes from one to
//! the other without a moment in which nobody serves it.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use weir_tests::firewall::{tcp, udp};
use weir_tests::traffic::{HttpLoad, UdpLoad};
use weir_tests::{
    Cases, Families, How, Lab, Plane, Probe, Scene, State, Talk, eventually, on_both_planes,
};

const SECOND: Duration = Duration::from_secs(1);
const WEB: u16 = 8080;
const TOLD: u16 = 8081;

on_both_planes! {
    a_service_that_asks_for_a_header_gets_it_and_the_others_are_served_as_ever
    a_service_that_asks_for_a_header_only_later_gets_it_then
    each_datagram_of_one_client_goes_to_the_task_whose_turn_it_is
    a_client_reaches_a_task_that_has_only_the_other_address_family
}

fn a_client_reaches_a_task_that_has_only_the_other_address_family(plane: Plane) {
    let mut scene = Scene::on(plane, Lab::builder()).unwrap();
    for (name, port, families) in [("four", 8081, Families::V4), ("six", 8082, Families::V6)] {
        scene.service(name, port);
        let mut task = scene.lab.task_of("n2", &format!("{name}.1"), families).unwrap();
        task.serve_http(80).unwrap();
        task.serve_echo(53).unwrap();
        scene.mesh.service(name).task(&task);
        scene.tasks.insert(name.to_owned(), task);
    }
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    // The kernel plane starts a proxy for it.
    for target in [8081, 8082].into_iter().flat_map(|port| targets(&scene, port)) {
        eventually("each family to be served", 10 * SECOND, || {
            for probe in [Probe::tcp(target), Probe::udp(target)] {
                let seen = client.ask(&probe);
                ensure!(seen.task.is_some(), "{probe}: {seen}");
            }
            anyhow::Ok(())
        })
        .unwrap();
    }
    let mut cases = Cases::default();
    for (port, task) in [(8081, "four.1"), (8082, "six.1")] {
        for target in targets(&scene, port) {
            for probe in [How::Tcp, How::Udp, How::UdpConnected].map(|how| Probe::new(how, target))
            {
                let seen = client.ask(&probe);
                // The family that a task has is still the kernel's.
                let kept = plane.keeps_client() && target.is_ipv4() == (port == 8081);
                let own = seen.client.is_some_and(|from| client.addresses().contains(&from.ip()));
                let result =
                    seen.by(task).and_then(|seen| seen.answered_from(target)).and_then(|seen| {
                        match own == kept {
                            true => Ok(seen),
                            false => Err(anyhow!("the task sees {:?}", seen.client)),
                        }
                    });
                cases.note(probe, result.map(drop));
            }
        }
        // The node's own processes, by its own address of either family.
        let n1 = scene.lab.host("n1");
        for target in n1.targets(port) {
            let seen = n1.probe(&[Probe::tcp(target)]).unwrap().remove(0);
            cases.note(format!("from n1 to {target}"), seen.by(task).map(drop));
        }
    }
    cases.end(&scene).unwrap();
    // With an address of its own in that family a task is the kernel's there, too.
    let mut both = scene.lab.task("n1", "four.2").unwrap();
    both.serve_http(80).unwrap();
    both.serve_echo(53).unwrap();
    scene.mesh.service("four").task(&both).remove_task("four.1");
    scene.apply().unwrap();
    let client = scene.lab.client("c1");
    for target in targets(&scene, 8081) {
        let seen = client.ask(&Probe::tcp(target));
        let from = seen.client.unwrap_or_else(|| panic!("{target}: {seen}"));
        assert_eq!(client.addresses().contains(&from.ip()), plane.keeps_client(), "{target}");
    }
}

/// `web` with a task on each node; `told`, which asks for a header, with one on n2.
fn scene(plane: Plane) -> Scene {
    let mut scene = Scene::on(plane, Lab::builder()).unwrap();
    scene.service("web", WEB);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    scene.mesh.service("told").publish(format!("{TOLD}:53").as_str());
    scene.task("told", "n2", "told.1").unwrap();
    scene
}

/// What an echo server is sent.
fn echoed(scene: &Scene, target: SocketAddr) -> Result<(SocketAddr, String)> {
    let mut stream =
        scene.lab.client("c1").run(|| TcpStream::connect_timeout(&target, 2 * SECOND))?;
    stream.set_read_timeout(Some(2 * SECOND))?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok((stream.local_addr()?, text))
}

fn is_told(scene: &Scene, target: SocketAddr) -> Result<()> {
    let (own, text) = echoed(scene, target)?;
    let family = if own.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (own.ip(), target.ip());
    let header = format!("PROXY {family} {from} {to} {} {TOLD}\r\n", own.port());
    ensure!(text == format!("{header}hello"), "{text:?}");
    Ok(())
}

fn targets(scene: &Scene, port: u16) -> Vec<SocketAddr> {
    scene.lab.hosts().iter().flat_map(|host| host.targets(port)).collect()
}

fn all_are_told(scene: &Scene) -> Result<()> {
    targets(scene, TOLD).into_iter().try_for_each(|target| is_told(scene, target))
}

fn a_service_that_asks_for_a_header_gets_it_and_the_others_are_served_as_ever(plane: Plane) {
    let mut scene = scene(plane);
    scene.mesh.service("told").set("proxy_protocol", "v1");
    scene.start().unwrap();
    eventually("every address to tell the task who asks", 10 * SECOND, || all_are_told(&scene))
        .unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    for target in targets(&scene, WEB) {
        for probe in [Probe::tcp(target), Probe::udp(target)] {
            let seen = client.ask(&probe);
            let own = client.addresses().iter().find(|own| own.is_ipv4() == target.is_ipv4());
            let kept = match plane {
                Plane::Ebpf => seen.client_kept(*own.unwrap()).map(drop),
                Plane::Proxy => seen.answered_from(target).map(drop),
            };
            cases.note(probe, kept);
        }
    }
    cases.end(&scene).unwrap();
    // A plane reports what it serves after it serves it.
    eventually("the agent to say so", 5 * SECOND, || {
        let said = scene.agent("n1").cli(&["services", "told"])?;
        let served = |line: &str| line.starts_with("TCP *:8081") && line.ends_with("served");
        ensure!(said.lines().any(served), "{said}");
        let status = scene.agent("n1").api("/api/v1/status")?.body;
        ensure!(status.contains("\"condition\":\"ok\""), "{status}");
        anyhow::Ok(())
    })
    .unwrap();
    let name = "weir_service_connections_total";
    let series = format!("{name}{{service=\"told\",protocol=\"tcp\",port=\"8081\"}}");
    // Counters are read at most once a second.
    eventually("its connections to be counted", 5 * SECOND, || {
        let text = scene.agent("n1").http("/metrics")?.body;
        let line = text.lines().find(|line| line.starts_with(&series)).context("no series")?;
        ensure!(!line.ends_with(" 0"), "{line}");
        anyhow::Ok(())
    })
    .unwrap();
}

fn a_service_that_asks_for_a_header_only_later_gets_it_then(plane: Plane) {
    let mut scene = scene(plane);
    scene.start().unwrap();
    for target in targets(&scene, TOLD) {
        assert_eq!(echoed(&scene, target).unwrap().1, "hello");
    }
    scene.mesh.service("told").set("proxy_protocol", "v1");
    scene.apply().unwrap();
    eventually("every address to tell the task who asks", 10 * SECOND, || all_are_told(&scene))
        .unwrap();
    scene.mesh.remove_service("told");
    let task = &scene.tasks["told.1"];
    scene.mesh.service("told").publish(format!("{TOLD}:53").as_str()).task(task);
    scene.apply().unwrap();
    eventually("no address to tell the task who asks", 10 * SECOND, || {
        for target in targets(&scene, TOLD) {
            let (_, text) = echoed(&scene, target)?;
            ensure!(text == "hello", "{target}: {text:?}");
        }
        anyhow::Ok(())
    })
    .unwrap();
}

fn each_datagram_of_one_client_goes_to_the_task_whose_turn_it_is(plane: Plane) {
    let mut scene = scene(plane);
    scene.service("each", 8082).set("per_packet", true);
    for (host, name) in [("n1", "each.1"), ("n2", "each.2"), ("n2", "each.3")] {
        scene.task("each", host, name).unwrap();
    }
    scene.start().unwrap();
    let netns = scene.lab.client("c1").netns();
    let mut cases = Cases::default();
    let mut talks = Vec::new();
    for target in targets(&scene, 8082) {
        let mut talk = Probe::udp(target).open_in(netns).unwrap();
        eventually("the proxy to serve it", 10 * SECOND, || {
            ensure!(turns(&mut talk, target, 6)?.len() == 3, "one task after the other");
            anyhow::Ok(())
        })
        .unwrap();
        let counts = turns(&mut talk, target, 12).unwrap();
        let fair = counts.len() == 3 && counts.values().all(|count| *count == 4);
        cases.note(target, if fair { Ok(()) } else { Err(anyhow::anyhow!("{counts:?}")) });
        talks.push((target, talk));
    }
    // One that goes is missed by nobody, and it has its turn again when it is back.
    for (state, tasks) in [(State::Down, 2), (State::Active, 3)] {
        scene.mesh.service("each").state("each.2", state);
        scene.apply().unwrap();
        for (target, talk) in &mut talks {
            let counts = turns(talk, *target, 12);
            let all = counts.and_then(|counts| {
                ensure!(counts.len() == tasks, "{counts:?}");
                anyhow::Ok(())
            });
            cases.note(format!("{target}, each.2 {state:?}"), all);
        }
    }
    cases.end(&scene).unwrap();
}

/// How many of so many datagrams of one socket each task answered, from the address that was asked.
fn turns(talk: &mut Talk, target: SocketAddr, count: usize) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        let seen = talk.ask();
        seen.answered_from(target)?;
        *counts.entry(seen.task.context("nobody said who answered")?).or_default() += 1;
    }
    Ok(counts)
}

/// Whether the proxy has listeners for this port apart: it has none, if the kernel plane serves the port.
fn listens(scene: &Scene, host: &str, port: u16) -> bool {
    let table =
        scene.lab.host(host).run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6")).unwrap();
    table.lines().any(|line| line.contains(&format!(":{port:04X} ")) && line.contains(" 0A "))
}

/// Waits until clients are, or are not, served by the kernel at every address: it keeps theirs.
fn passed(scene: &Scene, targets: &[SocketAddr], to_kernel: bool) {
    let client = scene.lab.client("c2");
    eventually("the port to have passed", 10 * SECOND, || {
        for target in targets {
            let seen = client.ask(&Probe::tcp(*target));
            let from = seen.client.with_context(|| seen.to_string())?;
            ensure!(client.addresses().contains(&from.ip()) == to_kernel, "{target}: {seen}");
        }
        anyhow::Ok(())
    })
    .unwrap();
}

#[test]
fn a_port_that_dockerd_holds_over_udp_is_no_trouble_to_the_kernel_plane() {
    let mut scene = Scene::new(Lab::builder()).unwrap();
    scene.service("four", WEB);
    let mut task = scene.lab.task_of("n1", "four.1", Families::V4).unwrap();
    task.serve_http(80).unwrap();
    task.serve_echo(53).unwrap();
    scene.mesh.service("four").task(&task);
    scene.tasks.insert("four.1".to_owned(), task);
    let n1 = scene.lab.host("n1").clone();
    std::fs::write("/proc/self/comm", "dockerd").unwrap();
    let held = n1.run(|| UdpSocket::bind(("::", WEB))).unwrap();
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let [v4, v6] = n1.targets(WEB)[..] else { panic!("one address of each family") };
    eventually("a proxy to serve what is to be had", 10 * SECOND, || {
        client.ask(&Probe::tcp(v6)).by("four.1").map(drop)
    })
    .unwrap();
    for probe in [Probe::tcp(v4), Probe::udp(v4)] {
        client.ask(&probe).by("four.1").unwrap();
    }
    // Datagrams that nobody would answer are not left to dockerd.
    client.ask(&Probe::new(How::UdpConnected, v6)).refused_at_once().unwrap();
    let status: serde_json::Value =
        serde_json::from_str(&scene.agent("n1").api("/api/v1/status").unwrap().body).unwrap();
    assert_eq!(status["condition"], "ok", "{status}");
    assert_eq!(status["problems"], serde_json::json!([]), "{status}");
    drop(held);
}

/// A service whose port can pass from one plane to the other.
fn passing() -> Scene {
    let builder = Lab::builder().clients(2).docker_firewall([tcp(TOLD), udp(TOLD)]);
    let mut scene = Scene::new(builder).unwrap();
    scene.service("web", WEB);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    scene.start().unwrap();
    scene
}

/// A limit that nobody meets: the kernel plane knows none.
fn limit(scene: &mut Scene, limited: bool) {
    let limits = [("connections".to_owned(), 1_000_000.into())];
    let limits = limits.into_iter().filter(|_| limited).collect::<toml::Table>();
    scene.mesh.service("web").set("limits", limits);
    scene.apply().unwrap();
}

/// Lets every packet of a client but the first of a connection get lost, or arrive again.
fn lose_answers(scene: &Scene, change: &str) {
    for program in ["iptables", "ip6tables"] {
        let mut command = Command::new(program);
        let of_which = ["-p", "tcp", "--tcp-flags", "SYN", "NONE", "-j", "DROP"];
        command.args(["-w", change, "OUTPUT"]).args(of_which);
        let output = scene.lab.client("c1").output(command).unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    }
}

/// Asks, and waits for as long as it takes to send it again some times.
fn get(mut client: TcpStream) -> Result<()> {
    client.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    client.set_read_timeout(Some(10 * SECOND))?;
    let mut answer = [0; 12];
    client.read_exact(&mut answer)?;
    ensure!(answer == *b"HTTP/1.1 200", "{}", answer.escape_ascii());
    Ok(())
}

#[test]
fn a_handshake_with_the_proxy_ends_well_when_the_kernel_takes_the_port_meanwhile() {
    let mut scene = passing();
    let targets = targets(&scene, WEB);
    limit(&mut scene, true);
    passed(&scene, &targets, false);
    lose_answers(&scene, "-A");
    let netns = scene.lab.client("c1").netns().clone();
    // The proxy has not heard the end of the handshake, while the client thinks that all is well.
    let connect = |to| netns.run(|| TcpStream::connect_timeout(to, SECOND)).unwrap();
    let asking: Vec<_> =
        targets.iter().map(connect).map(|client| thread::spawn(|| get(client))).collect();
    limit(&mut scene, false);
    passed(&scene, &targets, true);
    lose_answers(&scene, "-D");
    let mut cases = Cases::default();
    for (target, asking) in targets.iter().zip(asking) {
        cases.note(target, asking.join().unwrap());
    }
    cases.end(&scene).unwrap();
}

#[test]
fn a_port_passes_from_the_kernel_to_the_proxy_and_back_and_no_connection_fails() {
    let mut scene = passing();
    let targets = targets(&scene, WEB);
    let netns = scene.lab.client("c1").netns().clone();
    let load = HttpLoad::new(&netns, targets.clone()).timeout(5 * SECOND);
    let fresh = load.connections(6).rate(600).start().unwrap();
    let kept = HttpLoad::new(&netns, targets.clone()).timeout(5 * SECOND).keep_alive();
    let kept = kept.connections(6).rate(300).start().unwrap();
    let datagrams = UdpLoad::new(&netns, targets.clone()).timeout(5 * SECOND).rate(200);
    let datagrams = datagrams.start().unwrap();
    // n1 has one listener for all ports, which is there in any case.
    for _ in 0..4 {
        limit(&mut scene, true);
        eventually("the proxy to listen", 10 * SECOND, || {
            ensure!(listens(&scene, "n2", WEB), "nobody listens");
            Ok(())
        })
        .unwrap();
        passed(&scene, &targets, false);
        limit(&mut scene, false);
        eventually("the proxy to listen no more", 10 * SECOND, || {
            ensure!(!listens(&scene, "n2", WEB), "it listens");
            Ok(())
        })
        .unwrap();
        passed(&scene, &targets, true);
    }
    let fresh = fresh.stop().unwrap();
    // What the kernel carries when it leaves a port goes on.
    assert!(fresh.ok > 1000 && fresh.failures() == 0, "{fresh}\n{}", scene.drops());
    let kept = kept.stop().unwrap();
    assert!(kept.ok > 1000 && kept.failures() == 0, "{kept}\n{}", scene.drops());
    let datagrams = datagrams.stop().unwrap();
    assert!(datagrams.failures() == 0, "{datagrams}\n{}", scene.drops());
}
