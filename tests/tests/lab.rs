//! The lab is tested as everything else is: with real namespaces, as root. Without root these
//! tests fail; a lab that was not tested is not a lab that works.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use weir_tests::firewall::{tcp, udp};
use weir_tests::lab::command;
use weir_tests::task::task_program;
use weir_tests::traffic::{FailureKind, HttpLoad, UdpLoad};
use weir_tests::{Families, Lab, Netns, Offloads, Process, Task, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// The task program, run on a host itself instead of in a task.
fn http_on(lab: &Lab, host: &str) -> Process {
    let arguments = ["http", "--name", host, "--listen", "80"];
    let process = lab.host(host).spawn(command(task_program().unwrap(), &arguments)).unwrap();
    let target = lab.host(host).targets(80)[0];
    let netns = lab.host(host).netns();
    eventually("the server", 5 * SECOND, || netns.http_get(target, "/")).unwrap();
    process
}

fn web_task(lab: &Lab, host: &str, name: &str) -> Task {
    let mut task = lab.task(host, name).unwrap();
    task.serve_http(80).unwrap();
    task
}

fn task_target(task: &Task, port: u16) -> SocketAddr {
    SocketAddr::new(task.addresses()[0], port)
}

/// Gives the client a route to the tasks of a host, as no client should have.
fn route_to_tasks(lab: &Lab, host: &str) {
    let [v4, v6] = lab.host(host).addresses() else { panic!("two addresses") };
    let netns = lab.client("c1").netns();
    netns.add_route(("172.18.0.0".parse().unwrap(), 16), *v4).unwrap();
    netns.add_route(("fd18::".parse().unwrap(), 64), *v6).unwrap();
}

#[test]
fn hosts_and_client_reach_each_other_over_both_families() {
    let lab = Lab::builder().build().unwrap();
    let client = lab.client("c1");
    for host in lab.hosts() {
        for address in host.addresses() {
            client.netns().ping(*address, 56, SECOND).unwrap();
        }
        for address in client.addresses() {
            host.netns().ping(*address, 56, SECOND).unwrap();
        }
    }
    let _server = http_on(&lab, "n2");
    for (target, own) in lab.host("n2").targets(80).into_iter().zip(client.addresses()) {
        let answer = client.get(target).unwrap();
        let local = answer.local.unwrap();
        assert_eq!(answer.body, format!("n2 {local}\n"));
        assert_eq!(local.ip(), *own);
    }
}

#[test]
fn a_task_is_reached_from_its_host_over_both_families() {
    let lab = Lab::builder().hosts(1).clients(0).build().unwrap();
    let task = web_task(&lab, "n1", "web.1");
    assert_eq!(task.addresses().len(), 2);
    for address in task.addresses() {
        let target = SocketAddr::new(*address, 80);
        let answer = lab.host("n1").netns().http_get(target, "/").unwrap();
        assert!(answer.body.starts_with("web.1 "), "{answer:?}");
        assert!(["172.18.0.1", "fd18::1"].contains(&&*answer.local.unwrap().ip().to_string()));
    }
}

#[test]
fn a_task_reaches_the_world_by_its_default_routes() {
    let lab = Lab::builder().hosts(1).default_route().build().unwrap();
    let task = web_task(&lab, "n1", "web.1");
    route_to_tasks(&lab, "n1");
    for address in lab.client("c1").addresses() {
        task.netns().ping(*address, 56, SECOND).unwrap();
    }
}

#[test]
fn families_of_tasks_are_kept() {
    let lab = Lab::builder().hosts(1).families(Families::V4).build().unwrap();
    let only_v4 = lab.task("n1", "a").unwrap();
    let only_v6 = lab.task_of("n1", "b", Families::V6).unwrap();
    assert!(matches!(only_v4.addresses(), [address] if address.is_ipv4()));
    assert!(matches!(only_v6.addresses(), [address] if address.is_ipv6()));
    lab.host("n1").netns().ping(only_v6.addresses()[0], 56, SECOND).unwrap();
}

#[test]
fn two_labs_at_once_do_not_see_each_other() {
    let (one, two) = (Lab::builder().build().unwrap(), Lab::builder().build().unwrap());
    let _server = http_on(&one, "n1");
    let target = one.host("n1").targets(80)[0];
    assert!(one.client("c1").get(target).is_ok());
    let error = two.client("c1").get(target).unwrap_err();
    assert!(format!("{error:#}").contains("refused"), "{error:#}");
}

#[test]
fn nothing_is_left_after_the_drop() {
    let lab = Lab::builder().build().unwrap();
    let task = web_task(&lab, "n1", "web.1");
    let server = http_on(&lab, "n1");
    // It leaves its process group and its parent: only the cgroup still knows it.
    let _stray = lab.host("n2").spawn(command("setsid", &["sleep", "99"])).unwrap();
    let mut pids = processes(lab.host("n2").cgroup().path());
    pids.push(server.pid().to_string());
    assert!(pids.len() > 1);
    let inodes = [lab.host("n1").netns(), lab.client("c1").netns(), lab.fabric(), task.netns()];
    let inodes = inodes.map(Netns::inode);
    let cgroup = lab.host("n1").cgroup().path().parent().unwrap().to_owned();
    let run_dir = lab.host("n1").run_dir().parent().unwrap().to_owned();
    assert!(cgroup.exists() && run_dir.exists());
    assert!(inodes.iter().all(|inode| namespace_is_open(*inode)));
    drop((task, server));
    lab.finish().unwrap();
    assert!(!cgroup.exists() && !run_dir.exists());
    assert!(!pids.iter().any(|pid| Path::new("/proc").join(pid).join("exe").exists()));
    assert!(!inodes.iter().any(|inode| namespace_is_open(*inode)));
}

/// The pids in a cgroup, once there are some.
fn processes(cgroup: &Path) -> Vec<String> {
    let text = eventually("a process", SECOND, || {
        let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        if text.is_empty() { Err("none") } else { Ok(text) }
    });
    text.unwrap().lines().map(str::to_owned).collect()
}

/// Whether any process is in the namespace, or we hold a descriptor of it.
fn namespace_is_open(inode: u64) -> bool {
    let name = format!("net:[{inode}]");
    let is_it = |link: &Path| fs::read_link(link).is_ok_and(|to| to.as_os_str() == name.as_str());
    let entries = |dir: &str| fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries("/proc").any(|process| is_it(&process.path().join("ns/net")))
        || entries("/proc/self/fd").any(|descriptor| is_it(&descriptor.path()))
}

#[test]
fn a_new_lab_sweeps_what_a_killed_one_left() {
    let mut owner = std::process::Command::new("true").spawn().unwrap();
    owner.wait().unwrap(); // its pid is free now
    let dead = format!("weir-lab-{}-1", owner.id());
    let cgroup = weir_tests::cgroup::cgroup2_root().unwrap().join(&dead);
    let run_dir = std::env::temp_dir().join(&dead);
    fs::create_dir_all(cgroup.join("n1")).unwrap();
    fs::create_dir_all(run_dir.join("n1")).unwrap();
    let _lab = Lab::builder().hosts(0).clients(0).build().unwrap();
    assert!(!cgroup.exists() && !run_dir.exists());
}

#[test]
fn programs_of_a_host_are_in_its_cgroup_and_those_of_tasks_below_it() {
    let lab = Lab::builder().hosts(1).build().unwrap();
    let cgroup_of =
        |process: &Process| fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).unwrap();
    let host = lab.host("n1").spawn(command("sleep", &["9"])).unwrap();
    let task = lab.task("n1", "web.1").unwrap();
    let inside = task.spawn(command("sleep", &["9"])).unwrap();
    assert!(cgroup_of(&host).lines().any(|line| line.ends_with("/n1")), "{}", cgroup_of(&host));
    assert!(cgroup_of(&inside).contains("/n1/task-0-web.1"), "{}", cgroup_of(&inside));
}

#[test]
fn load_counts_answers_and_the_failures_after_a_kill() {
    let lab = Lab::builder().hosts(1).build().unwrap();
    let mut task = web_task(&lab, "n1", "web.1");
    route_to_tasks(&lab, "n1");
    let (netns, target) = (lab.client("c1").netns(), task_target(&task, 80));
    let fresh = HttpLoad::new(netns, [target]).connections(4).requests(2000).run().unwrap();
    fresh.assert_clean();
    assert_eq!((fresh.ok, fresh.by_task["web.1"]), (2000, 2000));
    assert_eq!(fresh.by_client[&lab.client("c1").addresses()[0]], 2000);

    let fresh = HttpLoad::new(netns, [target]).rate(500).start().unwrap();
    let kept = HttpLoad::new(netns, [target]).rate(500).keep_alive().start().unwrap();
    eventually("answers", 5 * SECOND, || (kept.report().ok > 100).then_some(()).ok_or("few"))
        .unwrap();
    task.kill9();
    eventually("failures", 5 * SECOND, || {
        let report = fresh.report();
        (report.failed_by(FailureKind::Refused) > 20)
            .then_some(())
            .ok_or_else(|| report.to_string())
    })
    .unwrap();
    let (fresh, kept) = (fresh.stop().unwrap(), kept.stop().unwrap());
    assert!(fresh.failed_by(FailureKind::Refused) > 20, "{fresh}");
    assert!(kept.failed_by(FailureKind::Refused) > 0, "{kept}");
    let broken = kept.failures() - kept.failed_by(FailureKind::Refused);
    assert!((1..=8).contains(&broken), "each kept connection breaks once: {kept}");
    let first = fresh.first_failure.clone().unwrap();
    assert_eq!(first.target, target);
    assert!(first.at > Duration::ZERO && first.at < fresh.elapsed, "{first:?}");
}

#[test]
fn udp_load_counts_answers_refusals_and_losses() {
    let lab = Lab::builder().hosts(1).build().unwrap();
    let mut task = lab.task("n1", "echo.1").unwrap();
    task.serve_echo(53).unwrap();
    route_to_tasks(&lab, "n1");
    let target = task_target(&task, 53);
    let load = || {
        let load = UdpLoad::new(lab.client("c1").netns(), [target]).sockets(4);
        load.requests(100).timeout(Duration::from_millis(100))
    };
    let good = load().run().unwrap();
    good.assert_clean();
    assert_eq!((good.ok, good.by_task["echo.1"]), (100, 100));
    assert!(good.by_client.contains_key(&lab.client("c1").addresses()[0]));
    load().keep_socket().size(1200).run().unwrap().assert_clean();
    task.kill9();
    let refused = load().connected().run().unwrap();
    assert!(refused.failed_by(FailureKind::Refused) > 0, "{refused}");
    lab.host("n1").netns().delete_link(task.veth()).unwrap();
    let lost = load().requests(4).run().unwrap();
    assert_eq!((lost.ok, lost.failed_by(FailureKind::AnswerTimeout)), (0, 4), "{lost}");
}

#[test]
fn a_task_that_is_stopped_finishes_open_requests() {
    let lab = Lab::builder().hosts(1).build().unwrap();
    let mut task = web_task(&lab, "n1", "web.1");
    let (host, target) = (lab.host("n1").netns().clone(), task_target(&task, 80));
    let slow = HttpLoad::new(&host, [target]).path("/slow/400").requests(4).connections(4);
    let slow = slow.start().unwrap();
    std::thread::sleep(Duration::from_millis(150));
    task.stop(5 * SECOND).unwrap();
    let report = slow.wait().unwrap();
    report.assert_clean();
    assert_eq!(report.ok, 4);
}

#[test]
fn bulk_data_is_counted_and_checked() {
    let lab = Lab::builder().hosts(1).build().unwrap();
    let task = lab.task("n1", "sink.1").unwrap();
    let program = task_program().unwrap();
    let _sink = task.spawn(command(&program, &["sink", "--listen", "9"])).unwrap();
    let target = task_target(&task, 9).to_string();
    let send = || {
        let source = command(&program, &["source", "--to", &target, "--mb", "20"]);
        let output = lab.host("n1").output(source)?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let said = eventually("the sink", 5 * SECOND, send).unwrap();
    assert!(said.starts_with("sent=20000000 bytes=20000000 intact=true"), "{said}");
}

#[test]
fn mtu_offloads_and_rp_filter_are_as_asked() {
    let builder = Lab::builder().hosts(1).fabric_mtu(9000).gateway_mtu(1450).rp_filter(2);
    let lab = builder.offloads(Offloads::Off).build().unwrap();
    let task = lab.task("n1", "web.1").unwrap();
    let read = |netns: &Netns, path: &str| netns.run(|| fs::read_to_string(path).unwrap());
    let host = lab.host("n1").netns();
    for conf in ["all", "eth0", "gw0", task.veth()] {
        assert_eq!(read(host, &format!("/proc/sys/net/ipv4/conf/{conf}/rp_filter")), "2\n");
    }
    assert_eq!(read(host, "/proc/sys/net/ipv6/conf/eth0/mtu"), "9000\n");
    assert_eq!(read(host, "/proc/sys/net/ipv6/conf/gw0/mtu"), "1450\n");
    assert_eq!(read(task.netns(), "/proc/sys/net/ipv6/conf/eth0/mtu"), "1450\n");
    lab.client("c1").netns().ping(lab.host("n1").addresses()[0], 8900, SECOND).unwrap();
    host.ping(task.addresses()[0], 56, SECOND).unwrap();
}

#[test]
fn docker_rules_drop_a_routed_client_until_they_are_flushed() {
    let lab = Lab::builder().docker_firewall([tcp(8080), udp(5353)]).build().unwrap();
    let task = web_task(&lab, "n1", "web.1");
    route_to_tasks(&lab, "n1");
    let (client, host) = (lab.client("c1"), lab.host("n1"));
    let target = task_target(&task, 80);
    host.netns().http_get(target, "/").unwrap();
    for address in task.addresses() {
        let half = Duration::from_millis(500);
        assert!(client.netns().ping(*address, 56, half).is_err(), "{address} answered");
    }
    host.flush_firewall().unwrap();
    assert!(client.get(target).is_ok());
    host.reinstall_firewall().unwrap();
    let timed_out = HttpLoad::new(client.netns(), [target]).requests(1).timeout(SECOND / 2);
    assert_eq!(timed_out.run().unwrap().failed_by(FailureKind::ConnectTimeout), 1);
}

#[test]
fn docker_rules_masquerade_tasks_that_go_out() {
    let lab = Lab::builder().docker_firewall([tcp(8080)]).build().unwrap();
    let task = lab.task("n1", "web.1").unwrap();
    let _server = http_on(&lab, "n2");
    for (target, n1) in lab.host("n2").targets(80).iter().zip(lab.host("n1").addresses()) {
        let answer = task.netns().http_get(*target, "/").unwrap();
        let seen: SocketAddr = answer.body.trim().split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(seen.ip(), *n1);
    }
}
