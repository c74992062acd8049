//! The walks of `docs/datapath.md` with real sockets: TCP and UDP, IPv4 and IPv6, on hosts that
//! have Docker's netfilter rules. One lab for each walk; every case of a walk is tried, and a
//! failure names all cases that fail.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use socket2::{Domain, Socket, Type};
use weir_tests::firewall::{tcp, udp};
use weir_tests::lab::command;
use weir_tests::task::task_program;
use weir_tests::{
    Cases, How, Lab, LabBuilder, Plane, Probe, Publish, Scene, Seen, eventually, on_both_planes,
};

const SECOND: Duration = Duration::from_secs(1);
const ALL: [How; 3] = [How::Tcp, How::Udp, How::UdpConnected];

/// Services by where their only task is, seen from n1, and one with a task on each host.
const HERE: u16 = 8081;
const ALSO_HERE: u16 = 8082;
const THERE: u16 = 8083;
const BOTH: u16 = 8084;
const EMPTY: u16 = 8090;
const HOST_MODE: u16 = 9090;

/// Hosts with Docker's rules; where the proxy serves, without those for published ports, which would
/// take packets away from its sockets.
fn docker(plane: Plane, hosts: usize) -> LabBuilder {
    let ports: &[u16] = match plane {
        Plane::Ebpf => &[HERE, ALSO_HERE, THERE, BOTH, EMPTY],
        Plane::Proxy => &[],
    };
    let ports = ports.iter().copied();
    let rules: Vec<_> = ports.flat_map(|port| [tcp(port), udp(port)]).collect();
    Lab::builder().hosts(hosts).docker_firewall(rules)
}

/// `here` and `also-here` on n1, `there` on n2; `both.1` and `both.2` on one each; `empty`.
fn scene(plane: Plane) -> Scene {
    let mut scene = Scene::on(plane, docker(plane, 2)).unwrap();
    let services = [("here", HERE), ("also-here", ALSO_HERE), ("there", THERE), ("both", BOTH)];
    for (name, port) in services {
        scene.service(name, port);
    }
    scene.service("empty", EMPTY);
    for (service, host, task) in [
        ("here", "n1", "here.1"),
        ("also-here", "n1", "also-here.1"),
        ("there", "n2", "there.1"),
        ("both", "n1", "both.1"),
        ("both", "n2", "both.2"),
    ] {
        scene.task(service, host, task).unwrap();
    }
    scene.start().unwrap();
    scene
}

fn of_family(addresses: &[IpAddr], of: SocketAddr) -> IpAddr {
    *addresses.iter().find(|address| address.is_ipv4() == of.is_ipv4()).unwrap()
}

/// The client is kept where the plane can, the answer comes from where the question went, the right
/// task answers.
fn whole(plane: Plane, seen: &Seen, task: &str, own: IpAddr, target: SocketAddr) -> Result<()> {
    kept(plane, seen.by(task)?, own)?.answered_from(target).map(drop)
}

fn kept(plane: Plane, seen: &Seen, own: IpAddr) -> Result<&Seen> {
    if plane.keeps_client() { seen.client_kept(own) } else { Ok(seen) }
}

on_both_planes! {
    a_and_b_a_client_reaches_local_and_remote_tasks_which_see_its_real_address
    b_a_process_on_a_host_reaches_a_task_through_another_host
    c_a_process_on_a_node_reaches_services_at_loopback_and_at_its_own_addresses
    c_many_connections_of_a_process_on_a_node_reach_all_tasks
    c_a_process_in_a_container_keeps_its_own_loopback
    e_a_task_reaches_services_of_its_own_node_by_the_nodes_address
    f_udp_without_checksums_and_from_unconnected_sockets_reaches_all_tasks
    f_a_udp_flow_stays_with_its_task_until_it_was_idle_for_the_timeout
    g_a_tcp_connection_is_idle_for_as_long_as_its_timeout_and_no_longer
    i_a_service_without_a_task_refuses_at_once
    j_in_host_mode_only_nodes_with_a_task_answer_and_the_others_are_as_without_weir
    k_one_client_port_through_two_addresses_to_one_task
}

fn a_and_b_a_client_reaches_local_and_remote_tasks_which_see_its_real_address(plane: Plane) {
    let scene = scene(plane);
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    for (port, task) in [(HERE, "here.1"), (THERE, "there.1")] {
        for host in scene.lab.hosts() {
            let walk = if scene.tasks[task].node() == host.name() { "a" } else { "b" };
            for (target, how) in
                host.targets(port).into_iter().flat_map(|target| ALL.map(|how| (target, how)))
            {
                let probe = Probe::new(how, target);
                let own = of_family(client.addresses(), target);
                for round in 1..=3 {
                    let seen = client.ask(&probe);
                    cases.note(
                        format!("{walk}: {probe} on {}, round {round}", host.name()),
                        whole(plane, &seen, task, own, target),
                    );
                }
            }
        }
    }
    cases.end(&scene).unwrap();
}

fn b_a_process_on_a_host_reaches_a_task_through_another_host(plane: Plane) {
    let scene = scene(plane);
    let (n1, n2) = (scene.lab.host("n1"), scene.lab.host("n2"));
    let mut cases = Cases::default();
    for (port, task) in [(HERE, "here.1"), (THERE, "there.1"), (BOTH, "")] {
        let targets = n2.targets(port).into_iter().flat_map(|target| ALL.map(|how| (target, how)));
        let targets: Vec<_> = targets.collect();
        let probes: Vec<_> = targets.iter().map(|(target, how)| Probe::new(*how, target)).collect();
        let answers = n1.probe(&probes).unwrap();
        for ((probe, seen), (target, _)) in probes.iter().zip(&answers).zip(&targets) {
            let result = seen.answered_from(*target).and_then(|seen| match task {
                "" => kept(plane, seen, of_family(n1.addresses(), *target)),
                task => seen.by(task),
            });
            cases.note(format!("b: on n1, {probe} of n2, task {task}"), result);
        }
    }
    cases.end(&scene).unwrap();
}

fn c_a_process_on_a_node_reaches_services_at_loopback_and_at_its_own_addresses(plane: Plane) {
    let scene = scene(plane);
    let host = scene.lab.host("n1");
    let mut names = vec!["127.0.0.1".to_owned(), "[::1]".to_owned()];
    names.extend(host.addresses().iter().map(|address| match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }));
    let mut cases = Cases::default();
    for (port, task) in [(HERE, "here.1"), (THERE, "there.1")] {
        let targets: Vec<_> = names.iter().map(|name| format!("{name}:{port}")).collect();
        let probes: Vec<_> =
            targets.iter().flat_map(|target| ALL.map(|how| Probe::new(how, target))).collect();
        let asked = targets.iter().flat_map(|target| [target.parse::<SocketAddr>().unwrap(); 3]);
        for round in 1..=2 {
            let answers = host.probe(&probes).unwrap();
            for ((probe, seen), target) in probes.iter().zip(&answers).zip(asked.clone()) {
                let result = seen.by(task).and_then(|seen| seen.answered_from(target));
                cases.note(format!("c: {probe}, task {task}, round {round}"), result);
            }
        }
        // The name may stand for either address.
        let probes = ALL.map(|how| Probe::new(how, format!("localhost:{port}")));
        for (probe, seen) in probes.iter().zip(host.probe(&probes).unwrap()) {
            let result = seen.by(task).and_then(|seen| {
                let asked = seen.peer.or(seen.source);
                ensure!(asked.is_some_and(|asked| asked.ip().is_loopback()), "{seen}");
                Ok(())
            });
            cases.note(format!("c: {probe}, task {task}"), result);
        }
    }
    cases.end(&scene).unwrap();
}

fn c_many_connections_of_a_process_on_a_node_reach_all_tasks(plane: Plane) {
    let scene = scene(plane);
    let mut cases = Cases::default();
    for how in ALL {
        for name in ["127.0.0.1", "[::1]"] {
            let probes = vec![Probe::new(how, format!("{name}:{BOTH}")); 12];
            let answers = scene.lab.host("n1").probe(&probes).unwrap();
            let tasks: BTreeSet<_> = answers.iter().map(|seen| seen.task.clone()).collect();
            let wanted = ["both.1", "both.2"].map(|task| Some(task.to_owned()));
            let check = || {
                ensure!(tasks == BTreeSet::from(wanted), "{tasks:?}, first {}", answers[0]);
                Ok(())
            };
            cases.note(format!("c: 12 times {}", probes[0]), check());
        }
    }
    cases.end(&scene).unwrap();
}

fn c_a_process_in_a_container_keeps_its_own_loopback(plane: Plane) {
    let scene = scene(plane);
    let task = &scene.tasks["here.1"];
    let mut cases = Cases::default();
    let targets = [format!("127.0.0.1:{HERE}"), format!("[::1]:{HERE}")];
    let probes: Vec<_> = targets
        .iter()
        .flat_map(|target| [How::Tcp, How::UdpConnected].map(|how| Probe::new(how, target)))
        .collect();
    for (probe, seen) in probes.iter().zip(task.probe(&probes).unwrap()) {
        cases.note(format!("c: in a container, {probe}"), seen.refused_at_once());
    }
    let listen = HERE.to_string();
    let arguments = ["echo", "--name", "inner", "--listen", &listen, "--say-name"];
    let _echo = task.spawn(command(task_program().unwrap(), &arguments)).unwrap();
    let probes: Vec<_> = targets.iter().map(Probe::udp).collect();
    eventually("the container's own server", 5 * SECOND, || {
        task.probe(&probes)?.iter().try_for_each(|seen| seen.by("inner").map(drop))
    })
    .unwrap();
    cases.end(&scene).unwrap();
}

fn e_a_task_reaches_services_of_its_own_node_by_the_nodes_address(plane: Plane) {
    let scene = scene(plane);
    let task = &scene.tasks["here.1"];
    let mut cases = Cases::default();
    let services = [(HERE, "here.1"), (ALSO_HERE, "also-here.1"), (THERE, "there.1")];
    for host in scene.lab.hosts() {
        for (port, server) in services {
            let targets: Vec<_> = host
                .targets(port)
                .into_iter()
                .flat_map(|target| ALL.map(|how| (target, how)))
                .collect();
            let probes: Vec<_> =
                targets.iter().map(|(target, how)| Probe::new(*how, target)).collect();
            let of_program = task.probe(&probes).unwrap();
            // The same without connect-time programs: every packet takes the packet path.
            let of_packets: Vec<_> = probes.iter().map(|probe| task.run(|| probe.ask())).collect();
            for (way, answers) in [("program", of_program), ("packets", of_packets)] {
                for ((probe, seen), (target, _)) in probes.iter().zip(&answers).zip(&targets) {
                    let result = seen.by(server).and_then(|seen| seen.answered_from(*target));
                    let node = host.name();
                    cases.note(format!("e: {way} in here.1, {probe} of {node}, {server}"), result);
                }
            }
        }
    }
    cases.end(&scene).unwrap();
}

fn f_udp_without_checksums_and_from_unconnected_sockets_reaches_all_tasks(plane: Plane) {
    let scene = scene(plane);
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    for target in scene.lab.hosts().iter().flat_map(|host| host.targets(BOTH)) {
        for (what, probe) in [
            ("with checksum", Probe::udp(target)),
            ("without checksum", Probe::udp(target).without_checksum()),
        ] {
            let answers: Vec<_> = (0..8).map(|_| client.ask(&probe)).collect();
            let tasks: BTreeSet<_> = answers.iter().filter_map(|seen| seen.task.clone()).collect();
            let own = of_family(client.addresses(), target);
            let each = || -> Result<()> {
                for seen in &answers {
                    kept(plane, seen, own)?.answered_from(target)?;
                }
                ensure!(tasks.len() == 2, "only {tasks:?} answered");
                Ok(())
            };
            cases.note(format!("f: {probe} {what}"), each());
        }
    }
    cases.end(&scene).unwrap();
}

fn f_a_udp_flow_stays_with_its_task_until_it_was_idle_for_the_timeout(plane: Plane) {
    let mut scene = Scene::on(plane, docker(plane, 2)).unwrap();
    let timeouts = toml::Table::from_iter(
        ["udp_one_way", "udp_both_ways"].map(|key| (key.to_owned(), "2s".into())),
    );
    scene.service("both", BOTH).set("timeouts", timeouts);
    scene.task("both", "n1", "both.1").unwrap();
    scene.task("both", "n2", "both.2").unwrap();
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    let targets: Vec<_> = scene.lab.hosts().iter().flat_map(|host| host.targets(BOTH)).collect();
    let mut talks: Vec<_> =
        targets.iter().map(|target| Probe::udp(target).open_in(client.netns()).unwrap()).collect();
    let first: Vec<_> = talks.iter_mut().map(|talk| talk.ask().task).collect();
    // More than the timeout, but never idle for that long.
    for _ in 0..7 {
        thread::sleep(SECOND / 2);
        for ((talk, first), target) in talks.iter_mut().zip(&first).zip(&targets) {
            let seen = talk.ask();
            let same = || {
                ensure!(seen.task == *first && first.is_some(), "was {first:?}, is {seen}");
                Ok(())
            };
            cases.note(format!("f: a flow to {target} stays"), same());
        }
    }
    thread::sleep(4 * SECOND);
    // Round robin goes on: of the flows that begin again at a node, half have the other task.
    let again: Vec<_> = talks.iter_mut().map(|talk| talk.ask().task).collect();
    let some = || {
        ensure!(again.iter().all(Option::is_some), "{again:?}");
        Ok(())
    };
    cases.note("f: flows that were idle begin again", some());
    cases.end(&scene).unwrap();
}

fn g_a_tcp_connection_is_idle_for_as_long_as_its_timeout_and_no_longer(plane: Plane) {
    let mut scene = Scene::on(plane, docker(plane, 2)).unwrap();
    // 1 s here for 1000 s by default; all others are far shorter than the connection is idle.
    let mut timeouts: toml::Table = ["tcp_syn", "tcp_fin", "drain"]
        .map(|key| (key.to_owned(), "1s".into()))
        .into_iter()
        .collect();
    timeouts.insert("tcp_established".to_owned(), "8s".into());
    scene.service("both", BOTH).set("timeouts", timeouts);
    scene.task("both", "n1", "both.1").unwrap();
    scene.task("both", "n2", "both.2").unwrap();
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    let targets: Vec<_> = scene.lab.hosts().iter().flat_map(|host| host.targets(BOTH)).collect();
    // Two through each address: one has a task of the node, the other one elsewhere.
    let mut talks = Vec::new();
    for target in targets.iter().chain(&targets) {
        let mut talk = Probe::tcp(target).open_in(client.netns()).unwrap();
        let task = talk.ask().task.unwrap();
        talks.push((target, task, talk));
    }
    thread::sleep(5 * SECOND);
    for (target, task, talk) in &mut talks {
        cases.note(format!("g: idle for 5 of 8 s, {target}, {task}"), talk.ask().by(task));
    }
    thread::sleep(11 * SECOND);
    for (target, task, talk) in &mut talks {
        let seen = talk.ask();
        let reset = if seen.is_reset() { Ok(()) } else { Err(anyhow::anyhow!("saw {seen}")) };
        cases.note(format!("g: idle for 11 of 8 s, {target}, {task}"), reset);
    }
    cases.end(&scene).unwrap();
}

fn i_a_service_without_a_task_refuses_at_once(plane: Plane) {
    let scene = scene(plane);
    let mut cases = Cases::default();
    let probes: Vec<_> = scene
        .lab
        .hosts()
        .iter()
        .flat_map(|host| host.targets(EMPTY))
        .flat_map(|target| [How::Tcp, How::UdpConnected].map(|how| Probe::new(how, target)))
        .collect();
    for probe in &probes {
        let seen = scene.lab.client("c1").ask(probe);
        cases.note(format!("i: from a client, {probe}"), seen.refused_at_once());
    }
    let mut own = probes.clone();
    for loopback in ["127.0.0.1", "[::1]"] {
        let target = format!("{loopback}:{EMPTY}");
        own.extend([How::Tcp, How::UdpConnected].map(|how| Probe::new(how, &target)));
    }
    for (probe, seen) in own.iter().zip(scene.lab.host("n1").probe(&own).unwrap()) {
        cases.note(format!("i: from the host n1, {probe}"), seen.refused_at_once());
    }
    let task = &scene.tasks["here.1"];
    for probe in &probes {
        let seen = task.run(|| probe.ask());
        cases.note(format!("i: from a task on n1, {probe}"), seen.refused_at_once());
    }
    cases.end(&scene).unwrap();
}

fn j_in_host_mode_only_nodes_with_a_task_answer_and_the_others_are_as_without_weir(plane: Plane) {
    let mut scene = Scene::on(plane, docker(plane, 3)).unwrap();
    let service = scene.mesh.service("local");
    service.publish(Publish::host_mode(HOST_MODE, 80, "tcp"));
    service.publish(Publish::host_mode(HOST_MODE, 53, "udp"));
    scene.task("local", "n1", "local.1").unwrap();
    scene.task("local", "n2", "local.2").unwrap();
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    for (host, task) in [("n1", "local.1"), ("n2", "local.2")] {
        for target in scene.lab.host(host).targets(HOST_MODE) {
            let own = of_family(client.addresses(), target);
            for probe in ALL.map(|how| Probe::new(how, target)) {
                for _ in 0..2 {
                    let seen = client.ask(&probe);
                    cases.note(
                        format!("j: {probe} of {host}"),
                        whole(plane, &seen, task, own, target),
                    );
                }
            }
        }
        let probes = ALL.map(|how| Probe::new(how, format!("127.0.0.1:{HOST_MODE}")));
        for (probe, seen) in probes.iter().zip(scene.lab.host(host).probe(&probes).unwrap()) {
            cases.note(format!("j: on {host} itself, {probe}"), seen.by(task));
        }
    }
    let elsewhere = scene.lab.host("n3").targets(HOST_MODE);
    let probes: Vec<_> = elsewhere
        .iter()
        .flat_map(|target| [How::Tcp, How::UdpConnected].map(|how| Probe::new(how, target)))
        .collect();
    for probe in &probes {
        cases.note(format!("j: {probe} of n3"), client.ask(probe).refused_at_once());
    }
    for (probe, seen) in probes.iter().zip(scene.lab.host("n3").probe(&probes).unwrap()) {
        cases.note(format!("j: on n3 itself, {probe}"), seen.refused_at_once());
    }
    // A program of n3 that has the port is not disturbed.
    let listen = HOST_MODE.to_string();
    let arguments = ["http", "--name", "own", "--listen", &listen];
    let _own = scene.lab.host("n3").spawn(command(task_program().unwrap(), &arguments)).unwrap();
    eventually("n3's own server", 5 * SECOND, || {
        client.ask(&Probe::tcp(elsewhere[0])).by("own").map(drop)
    })
    .unwrap();
    for target in &elsewhere {
        let own = of_family(client.addresses(), *target);
        let seen = client.ask(&Probe::tcp(target));
        cases.note(
            format!("j: {target}, n3's own server"),
            whole(plane, &seen, "own", own, *target),
        );
    }
    cases.end(&scene).unwrap();
}

fn k_one_client_port_through_two_addresses_to_one_task(plane: Plane) {
    let scene = scene(plane);
    let n1 = scene.lab.host("n1");
    let second = [("10.77.0.21".parse().unwrap(), 16), ("fd77::21".parse().unwrap(), 64)];
    n1.netns().set_up("eth0", &second).unwrap();
    let client = scene.lab.client("c1");
    for (address, _) in second {
        let target = SocketAddr::new(address, HERE);
        eventually("weir to know the new address", 5 * SECOND, || {
            client.ask(&Probe::tcp(target)).by("here.1").map(drop)
        })
        .unwrap();
    }
    let mut cases = Cases::default();
    let mut client_port = 5000;
    for (family, own) in client.addresses().iter().enumerate() {
        let addresses = [
            ("n1", n1.addresses()[family]),
            ("n1's second address", second[family].0),
            ("n2", scene.lab.host("n2").addresses()[family]),
        ];
        for (port, task) in [(HERE, "here.1"), (THERE, "there.1")] {
            for (one, other) in [(0, 1), (0, 2), (2, 1)] {
                client_port += 1;
                let from = SocketAddr::new(*own, client_port);
                let pair = [addresses[one], addresses[other]];
                let name = format!("k: {from} through {} and {} to {task}", pair[0].0, pair[1].0);
                let targets = pair.map(|(_, address)| SocketAddr::new(address, port));
                cases.note(format!("{name}, tcp"), two_streams(&scene, from, targets, task));
                cases.note(format!("{name}, udp"), one_socket(&scene, from, targets, task));
            }
        }
    }
    cases.end(&scene).unwrap();
}

/// A server that closes first keeps TIME_WAIT for its half, and takes a SYN only with a later sequence
/// number or timestamp. Both begin anew for each address that a client talks to.
#[test]
fn k_one_client_port_through_another_node_right_after_its_connection_ended() {
    let scene = scene(Plane::Ebpf);
    let client = scene.lab.client("c1");
    let hosts = ["n1", "n2"].map(|name| scene.lab.host(name));
    let mut cases = Cases::default();
    let mut client_port = 6000;
    for (family, own) in client.addresses().iter().enumerate() {
        for port in [HERE, THERE] {
            for (one, other) in [(0, 1), (1, 0)] {
                client_port += 1;
                let from = SocketAddr::new(*own, client_port);
                for host in [one, other, one] {
                    let to = SocketAddr::new(hosts[host].addresses()[family], port);
                    let asked = client.run(|| asked_until_closed(from, to));
                    let name = format!("k: {from} to {to}, not the first through it");
                    cases.note(
                        name,
                        asked.and_then(|retransmits| {
                            ensure!(retransmits == 0, "{retransmits} retransmitted segments");
                            Ok(())
                        }),
                    );
                }
            }
        }
    }
    cases.end(&scene).unwrap();
}

/// One request on a connection that the server closes; how many segments were sent again.
fn asked_until_closed(from: SocketAddr, to: SocketAddr) -> Result<u32> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), 5 * SECOND)?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n")?;
    stream.read_to_end(&mut Vec::new())?;
    retransmits(&stream)
}

/// `tcpi_total_retrans` of `TCP_INFO`.
fn retransmits(stream: &TcpStream) -> Result<u32> {
    // SAFETY: all zeroes is a tcp_info, and getsockopt writes no more than `length` into it.
    let (answer, info) = unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        let into = (&raw mut info).cast();
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        (libc::getsockopt(stream.as_raw_fd(), level, option, into, &raw mut length), info)
    };
    ensure!(answer == 0, "TCP_INFO: {}", std::io::Error::last_os_error());
    Ok(info.tcpi_total_retrans)
}

fn two_streams(scene: &Scene, from: SocketAddr, to: [SocketAddr; 2], task: &str) -> Result<()> {
    let netns = scene.lab.client("c1").netns();
    let mut one = Probe::tcp(to[0]).from(from).open_in(netns)?;
    kept(scene.plane, one.ask().by(task)?, from.ip())?;
    let mut two = Probe::tcp(to[1]).from(from).open_in(netns)?;
    for _ in 0..3 {
        two.ask().by(task)?.answered_from(to[1])?;
        one.ask().by(task)?.answered_from(to[0])?;
    }
    // The end of one must not end the other.
    drop(one);
    thread::sleep(SECOND / 20);
    two.ask().by(task).map(drop)
}

fn one_socket(scene: &Scene, from: SocketAddr, to: [SocketAddr; 2], task: &str) -> Result<()> {
    let netns = scene.lab.client("c1").netns();
    let mut talk = Probe::udp(to[0]).from(from).open_in(netns)?;
    for _ in 0..3 {
        talk.ask_at(to[0]).by(task)?.answered_from(to[0])?;
        talk.ask_at(to[1]).by(task)?.answered_from(to[1])?;
    }
    crossed(scene, from, to)
}

/// Both questions are on their way before either answer is read.
fn crossed(scene: &Scene, from: SocketAddr, to: [SocketAddr; 2]) -> Result<()> {
    let from = SocketAddr::new(from.ip(), from.port() + 1000);
    let socket = scene.lab.client("c1").run(|| UdpSocket::bind(from))?;
    socket.set_read_timeout(Some(2 * SECOND))?;
    for target in to {
        socket.send_to(format!("for {target}").as_bytes(), target)?;
    }
    let mut buffer = [0; 256];
    for _ in to {
        let (length, source) = socket.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        ensure!(text.ends_with(&format!("for {source}")), "{source} answered {text:?}");
    }
    Ok(())
}
