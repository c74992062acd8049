//! Which ports are listened on, by whom, and what is said of those that are not.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use anyhow::ensure;
use serde_json::Value;
use weir_tests::agent::agent_program;
use weir_tests::firewall::{tcp, udp};
use weir_tests::lab::command;
use weir_tests::task::task_program;
use weir_tests::{Lab, Plane, Probe, Publish, Scene, eventually};

use crate::{PORT, SECOND, drop_it, scene};

fn status(scene: &Scene, host: &str) -> String {
    scene.agent(host).api("/api/v1/status").unwrap().body
}

#[test]
fn a_port_that_cannot_be_listened_on_is_named_and_the_others_are_served() {
    let mut scene = scene();
    scene.service("other", 8081);
    scene.task("other", "n1", "other.1").unwrap();
    let n1 = scene.lab.host("n1").clone();
    let bind = || -> std::io::Result<_> {
        // On one address only, and of a process that is named as Docker's are: it is no reason to
        // withhold the port, but a socket on all addresses is not to be had.
        TcpListener::bind(SocketAddr::new("127.0.0.7".parse().unwrap(), PORT))
    };
    let holder = n1.run(bind).unwrap();
    apart(&mut scene);
    let client = scene.lab.client("c1");
    client.ask(&Probe::tcp(n1.targets(8081)[0])).by("other.1").unwrap();
    client.ask(&Probe::tcp(n1.targets(PORT)[0])).refused_at_once().unwrap();
    client.ask(&Probe::udp(n1.targets(PORT)[0])).answered_from(n1.targets(PORT)[0]).unwrap();
    let text = status(&scene, "n1");
    let told = "another process listens on tcp/8080, ss -ltnp 'sport = :8080' names it";
    assert!(text.contains(told) && text.contains("1 of 4 ports are not listened on"), "{text}");
    drop(holder);
    eventually("the port to be served", 5 * SECOND, || {
        let seen = client.ask(&Probe::tcp(n1.targets(PORT)[0]));
        ensure!(seen.task.is_some(), "{seen}");
        ensure!(!status(&scene, "n1").contains("not listened on"), "{}", status(&scene, "n1"));
        Ok(())
    })
    .unwrap();
}

/// Starts agents that listen at each port apart.
fn apart(scene: &mut Scene) {
    scene.start_with(|_, config| drop_it(config.set("proxy.sk_lookup", false))).unwrap();
}

/// The ports of a host's TCP listeners, each as often as there are sockets.
fn listened(scene: &Scene, host: &str) -> Vec<u16> {
    let read = |of| std::fs::read_to_string(format!("/proc/thread-self/net/{of}")).unwrap();
    let table = scene.lab.host(host).run(|| read("tcp") + &read("tcp6"));
    let sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listeners = sockets.filter(|fields| fields[3] == "0A");
    listeners
        .map(|fields| u16::from_str_radix(fields[1].rsplit_once(':').unwrap().1, 16).unwrap())
        .collect()
}

#[test]
fn one_listener_serves_all_tcp_ports_over_both_families_for_as_long_as_they_have_tasks() {
    let mut scene = scene();
    let ports = 9000..9100;
    for port in ports.clone() {
        scene.mesh.service("web").publish(format!("{port}:80").as_str());
    }
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let n1 = scene.lab.host("n1").clone();
    for target in ports.clone().flat_map(|port| n1.targets(port)) {
        let seen = client.ask(&Probe::tcp(target));
        assert!(seen.task.is_some(), "{target}: {seen}");
    }
    let text = status(&scene, "n1");
    assert!(text.contains("102 ports, TCP by one listener (sk_lookup)"), "{text}");
    // Those of n2 are apart. The rest is the same on both: between nodes, and for commands.
    let (one, many) = (listened(&scene, "n1").len(), listened(&scene, "n2").len());
    assert!(one < 20 && many > 100, "{one} and {many}");
    scene.mesh.service("web").remove_task("web.1").remove_task("web.2");
    scene.apply().unwrap();
    for target in n1.targets(9000) {
        scene.lab.client("c1").ask(&Probe::tcp(target)).refused_at_once().unwrap();
    }
}

#[test]
fn nobody_else_s_listener_is_met_at_a_led_port_and_nothing_at_the_listener_s_own() {
    let mut scene = scene();
    let n1 = scene.lab.host("n1").clone();
    // dockerd holds the ports that services publish.
    std::fs::write("/proc/self/comm", "dockerd").unwrap();
    let held = n1.run(|| TcpListener::bind(("0.0.0.0", PORT))).unwrap();
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    for target in n1.targets(PORT) {
        let seen = client.ask(&Probe::tcp(target));
        assert!(seen.task.is_some(), "{target}: {seen}");
    }
    assert!(!status(&scene, "n1").contains("not listened on"), "{}", status(&scene, "n1"));
    let others = [PORT, 7952, 9950];
    let own: BTreeSet<u16> =
        listened(&scene, "n1").into_iter().filter(|port| !others.contains(port)).collect();
    assert_eq!(own.len(), 1, "{own:?}");
    for target in own.into_iter().flat_map(|port| n1.targets(port)) {
        client.ask(&Probe::tcp(target)).refused_at_once().unwrap();
    }
    drop(held);
}

#[test]
fn docker_s_own_rules_for_a_port_take_its_packets_first() {
    let builder = Lab::builder().docker_firewall([tcp(PORT), udp(PORT)]);
    let mut scene = Scene::on(Plane::Proxy, builder).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene.start().unwrap();
    let seen = scene.lab.client("c1").ask(&Probe::tcp(scene.lab.host("n1").targets(PORT)[0]));
    assert!(seen.task.is_none(), "{seen}");
}

#[test]
fn virtual_addresses_are_left_alone_and_no_problem_is_made_of_them() {
    let mut scene = scene();
    scene.mesh.attach_node("n1", "blue");
    scene.mesh.service("web").vip("blue", &["10.9.0.2".parse().unwrap()]);
    scene.mesh.service("web").on_network("web.1", "blue", &["10.9.0.3".parse().unwrap()]);
    scene.start().unwrap();
    let status: Value = serde_json::from_str(&status(&scene, "n1")).unwrap();
    assert_eq!(status["condition"], "ok", "{status}");
}

#[test]
fn a_port_below_1024_without_the_capability_is_named_with_the_way_out() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder().hosts(1)).unwrap();
    scene.service("web", 80);
    scene.mesh.service("web").publish("8080:80");
    scene.task("web", "n1", "web.1").unwrap();
    scene.write().unwrap();
    let host = scene.lab.host("n1");
    host.netns().sysctl(&[("ipv4/ip_unprivileged_port_start", "1024")]).unwrap();
    let drop = "--bounding-set=-net_bind_service";
    let status = status_of_one_started_by(
        command("setpriv", &["--inh-caps=-net_bind_service", drop]),
        &scene,
        "mode = \"proxy\"\n[proxy]\nsk_lookup = false",
    );
    let told = "this process may not listen on tcp/80: ports below 1024 need CAP_NET_BIND_SERVICE";
    assert!(status.contains(told), "{status}");
}

#[test]
fn a_transparent_service_without_the_capability_is_served_and_that_is_said() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder().hosts(1)).unwrap();
    scene.service("web", PORT).set("transparent", true);
    scene.task("web", "n1", "web.1").unwrap();
    scene.write().unwrap();
    let capabilities = "-net_admin,-net_raw";
    let inherited = format!("--inh-caps={capabilities}");
    let bounding = format!("--bounding-set={capabilities}");
    let wrapper = command("setpriv", &[&inherited, &bounding]);
    let status = status_of_one_started_by(wrapper, &scene, "mode = \"proxy\"");
    let told = "web: transparent: this process may not talk from addresses of clients";
    assert!(status.contains(told), "{status}");
}

/// What the agent of n1 says of itself once it serves 8080, begun by `wrapper`, a program and arguments
/// that end in running another.
fn status_of_one_started_by(mut wrapper: Command, scene: &Scene, dataplane: &str) -> String {
    let host = scene.lab.host("n1");
    let file = |name: &str| host.run_dir().join(name);
    let text = format!(
        "[node]\nname = \"n1\"\naddress = \"10.77.0.11\"\n[dataplane]\npin = \"{}\"\n{dataplane}\n\
         [source.file]\npath = \"{}\"\n[socket]\npath = \"{}\"\n[state]\npath = \"{}\"\n",
        host.pin_dir().display(),
        scene.mesh.path().display(),
        file("wrapped.sock").display(),
        file("wrapped.json").display(),
    );
    std::fs::write(file("wrapped.toml"), text).unwrap();
    wrapper.arg(agent_program().unwrap()).args(["agent", "--config"]).arg(file("wrapped.toml"));
    let mut agent = host.spawn(wrapper).unwrap();
    let client = scene.lab.client("c1");
    eventually("the port to be served", 10 * SECOND, || {
        ensure!(agent.is_running(), "the agent ended");
        client.ask(&Probe::tcp("10.77.0.11:8080")).by("web.1").map(drop_it)
    })
    .unwrap();
    // A plane reports what it serves after it serves it.
    let answer = eventually("the agent to say what it serves", 10 * SECOND, || {
        let status = host.netns().http_get("127.0.0.1:9950".parse()?, "/api/v1/status")?.body;
        ensure!(!status.contains("\"generation\":null"), "{status}");
        anyhow::Ok(status)
    });
    agent.stop(5 * SECOND).unwrap();
    answer.unwrap()
}

#[test]
fn without_programs_auto_chooses_the_proxy_and_says_why() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder().hosts(1)).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene.write().unwrap();
    let wrapper = command(task_program().unwrap(), &["refuse-programs", "--"]);
    let status = status_of_one_started_by(wrapper, &scene, "");
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["dataplane"]["kind"], "proxy", "{status}");
    let reason = status["dataplane"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("not ebpf, since bpf: "), "{reason}");
    assert!(!status.to_string().contains("sk_lookup"), "{status}");
}

#[test]
fn host_mode_ports_are_listened_on_where_a_task_runs_and_nowhere_else() {
    let mut scene = scene();
    scene.mesh.service("local").publish(Publish::host_mode(9090, 80, "tcp"));
    scene.task("local", "n2", "local.1").unwrap();
    apart(&mut scene);
    let taken = |host: &str| {
        let bound = scene.lab.host(host).run(|| TcpListener::bind("0.0.0.0:9090"));
        bound.is_err()
    };
    assert!(!taken("n1"), "n1 has no task");
    assert!(taken("n2"));
}
