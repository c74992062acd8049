//! The file changes, agents are killed, firewalls are flushed, and no request fails.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use weir_tests::firewall::{tcp, udp};
use weir_tests::traffic::{HttpLoad, Report, Running, UdpLoad};
use weir_tests::{Cases, Lab, Plane, Probe, Scene, State, Task, eventually, on_both_planes};

const SECOND: Duration = Duration::from_secs(1);
const HOSTS: [&str; 3] = ["n1", "n2", "n3"];
const PORT: u16 = 8080;

fn scene(plane: Plane) -> Scene {
    // Docker's rules for published ports would take packets away from the proxy's sockets.
    let rules: &[_] = match plane {
        Plane::Ebpf => &[tcp(PORT), udp(PORT)],
        Plane::Proxy => &[],
    };
    let lab = Lab::builder().hosts(3).docker_firewall(rules.iter().copied());
    let mut scene = Scene::on(plane, lab).unwrap();
    scene.service("web", PORT);
    scene
}

fn targets(scene: &Scene) -> Vec<SocketAddr> {
    scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)).collect()
}

/// New and kept connections through every node, over both families.
struct Load {
    fresh: Running,
    kept: Running,
}

impl Load {
    fn start(scene: &Scene) -> Self {
        let netns = scene.lab.client("c1").netns();
        let load = || HttpLoad::new(netns, targets(scene)).timeout(5 * SECOND);
        let fresh = load().connections(6).rate(1500).start().unwrap();
        let kept = load().connections(12).rate(5000).keep_alive().start().unwrap();
        Self { fresh, kept }
    }

    /// Goes on until so many requests are done, and gives what became of them.
    fn until(self, requests: u64) -> [Report; 2] {
        eventually("the requests", 300 * SECOND, || {
            let done = self.fresh.report().ok + self.kept.report().ok;
            if done >= requests { Ok(()) } else { Err(format!("{done} are done")) }
        })
        .unwrap();
        [self.fresh.stop().unwrap(), self.kept.stop().unwrap()]
    }

    fn assert_clean(self, requests: u64, scene: &Scene) {
        let [fresh, kept] = self.until(requests);
        println!("new connections: {fresh}\nkept connections: {kept}");
        let clean = [&fresh, &kept].iter().all(|report| report.ok > 0 && report.failures() == 0);
        assert!(clean, "new: {fresh}\nkept: {kept}\n{}", scene.drops());
    }
}

/// Starts tasks on the hosts in turn, and tells the mesh when they serve, as Swarm does.
fn add(scene: &mut Scene, numbers: std::ops::Range<usize>) {
    for number in numbers {
        scene.task("web", HOSTS[number % 3], &format!("web.{number}")).unwrap();
    }
    scene.apply().unwrap();
}

/// Drains, then stops gracefully, then forgets, as Swarm does.
fn retire(scene: &mut Scene, numbers: std::ops::Range<usize>) {
    let names: Vec<_> = numbers.map(|number| format!("web.{number}")).collect();
    for name in &names {
        scene.mesh.service("web").state(name, State::Draining);
    }
    scene.apply().unwrap();
    let mut tasks: Vec<_> = names.iter().filter_map(|name| scene.tasks.remove(name)).collect();
    stop(&mut tasks).unwrap();
    for name in &names {
        scene.mesh.service("web").remove_task(name);
    }
    scene.apply().unwrap();
}

fn stop(tasks: &mut [Task]) -> Result<()> {
    thread::scope(|scope| {
        let stops: Vec<_> =
            tasks.iter_mut().map(|task| scope.spawn(|| task.stop(15 * SECOND))).collect();
        stops.into_iter().try_for_each(|stop| stop.join().unwrap())
    })
}

on_both_planes! {
    scaling_draining_and_replacing_all_tasks_fails_no_request_of_a_hundred_thousand
    a_flush_of_all_firewall_rules_in_mid_flight_is_not_noticed
    thousands_of_services_come_and_go_at_once_and_no_request_fails
}

fn scaling_draining_and_replacing_all_tasks_fails_no_request_of_a_hundred_thousand(plane: Plane) {
    let mut scene = scene(plane);
    scene.task("web", "n1", "web.0").unwrap();
    scene.start().unwrap();
    let load = Load::start(&scene);
    add(&mut scene, 1..20);
    thread::sleep(SECOND);
    retire(&mut scene, 3..20);
    thread::sleep(SECOND / 2);
    retire(&mut scene, 0..1);
    add(&mut scene, 20..23);
    retire(&mut scene, 1..3);
    load.assert_clean(100_000, &scene);
}

/// Only of the kernel plane: the proxy's connections end with their agent.
#[test]
fn agents_that_are_killed_and_come_back_fail_no_request_of_thirty_thousand() {
    let mut scene = scene(Plane::Ebpf);
    for (number, host) in HOSTS.iter().enumerate() {
        scene.task("web", host, &format!("web.{number}")).unwrap();
    }
    scene.start().unwrap();
    let load = Load::start(&scene);
    let udp = UdpLoad::new(scene.lab.client("c1").netns(), targets(&scene)).timeout(5 * SECOND);
    let (fresh, kept) = (udp.clone().rate(200), udp.keep_socket().rate(200));
    let datagrams = [fresh.start().unwrap(), kept.start().unwrap()];
    for host in HOSTS {
        scene.agent(host).kill9();
        thread::sleep(SECOND / 2);
        scene.agent(host).launch().unwrap();
        scene.agent(host).wait_ready().unwrap();
    }
    load.assert_clean(30_000, &scene);
    for running in datagrams {
        running.stop().unwrap().assert_clean();
    }
}

fn a_flush_of_all_firewall_rules_in_mid_flight_is_not_noticed(plane: Plane) {
    let mut scene = scene(plane);
    for (number, host) in HOSTS.iter().enumerate() {
        scene.task("web", host, &format!("web.{number}")).unwrap();
    }
    scene.start().unwrap();
    let load = Load::start(&scene);
    let udp = UdpLoad::new(scene.lab.client("c1").netns(), targets(&scene)).timeout(5 * SECOND);
    let (fresh, kept) = (udp.clone().rate(200), udp.keep_socket().rate(200));
    let datagrams = [fresh.start().unwrap(), kept.start().unwrap()];
    thread::sleep(SECOND / 2);
    for host in scene.lab.hosts() {
        host.flush_firewall().unwrap();
        thread::sleep(SECOND / 4);
    }
    for host in scene.lab.hosts() {
        host.reinstall_firewall().unwrap();
        thread::sleep(SECOND / 4);
    }
    load.assert_clean(5_000, &scene);
    for running in datagrams {
        running.stop().unwrap().assert_clean();
    }
}

fn thousands_of_services_come_and_go_at_once_and_no_request_fails(plane: Plane) {
    const FIRST: u16 = 10_000;
    // A port of the proxy takes a file a worker.
    let many = match plane {
        Plane::Ebpf => 10_000,
        Plane::Proxy => 2_000,
    };
    let mut scene = scene(plane);
    add(&mut scene, 0..3);
    scene.start().unwrap();
    let load = Load::start(&scene);
    let few = scene.mesh.clone();
    for number in 0..many {
        let task = &scene.tasks[&format!("web.{}", number % 3)];
        let service = scene.mesh.service(&format!("many-{number}"));
        service.publish(format!("{}:80", FIRST + number).as_str()).task(task);
    }
    scene.apply().unwrap();
    let mut cases = Cases::default();
    for number in (0..many).step_by(997) {
        for target in HOSTS.iter().flat_map(|host| scene.lab.host(host).targets(FIRST + number)) {
            let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
            cases.note(target, seen.by(&format!("web.{}", number % 3)).map(drop));
        }
    }
    cases.end(&scene).unwrap();
    scene.mesh = few;
    scene.apply().unwrap();
    load.assert_clean(10_000, &scene);
}
