//! Virtual addresses with real sockets: containers on networks that they share or do not share, TCP
//! and UDP, IPv4 and IPv6.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weir_tests::{
    Cases, How, Lab, Network, Plane, Probe, Scene, Seen, State, Task, eventually, lab::command,
};

const SECOND: Duration = Duration::from_secs(1);
const HTTP: u16 = 80;
const ECHO: u16 = 53;
/// The virtual address of `web` on `blue`, and of `other` on `green`.
const VIP: u8 = 2;

/// `web.1` on n1, `web.2` and `web.3` on n2, all on `blue`; `other.1` on n1, on `green`, at the same
/// virtual address. Askers on n1: `blue-asker`, `green-asker`, and `loner`, which has interfaces on
/// both and is attached to neither as far as anybody says.
struct World {
    scene: Scene,
    askers: BTreeMap<&'static str, Task>,
    _networks: [Network; 2],
}

impl World {
    fn new() -> Self {
        let mut scene = Scene::new(Lab::builder()).unwrap();
        let networks = [Network::new("blue").unwrap(), Network::new("green").unwrap()];
        let [blue, green] = &networks;
        for (service, task, host, network, last) in [
            ("web", "web.1", "n1", blue, 11),
            ("web", "web.2", "n2", blue, 12),
            ("web", "web.3", "n2", blue, 13),
            ("other", "other.1", "n1", green, 11),
        ] {
            scene.task(service, host, task).unwrap();
            let netns = scene.tasks[task].netns();
            let addresses = network.attach(netns, last).unwrap();
            scene.mesh.attach_space(host, &netns.path(), &[network.name()]);
            scene.mesh.service(service).on_network(task, network.name(), &addresses);
        }
        scene.mesh.service("web").vip("blue", &Network::addresses(VIP));
        scene.mesh.service("other").vip("green", &Network::addresses(VIP));
        let mut askers = BTreeMap::new();
        for (name, attached, on) in [
            ("blue-asker", true, vec![blue]),
            ("green-asker", true, vec![green]),
            ("loner", false, vec![blue]),
        ] {
            let task = scene.lab.task("n1", name).unwrap();
            for network in on {
                network.attach(task.netns(), 21 + askers.len() as u8).unwrap();
                if attached {
                    scene.mesh.attach_space("n1", &task.netns().path(), &[network.name()]);
                }
            }
            askers.insert(name, task);
        }
        // An interface that is not there before the agent starts would look left over.
        blue.attach(scene.lab.host("n1").netns(), 31).unwrap();
        scene.start().unwrap();
        Self { scene, askers, _networks: networks }
    }

    fn ask(&self, asker: &str, probes: &[Probe]) -> Vec<Seen> {
        self.askers[asker].probe(probes).unwrap()
    }

    /// Until the kernel of n1 has what was changed.
    fn state(&mut self, task: &str, state: State) {
        self.scene.mesh.service("web").state(task, state);
        self.scene.apply().unwrap();
    }
}

/// Every way to ask at the virtual address, with the address.
fn ways() -> Vec<(How, SocketAddr)> {
    let ways = |address: &IpAddr| {
        let (web, echo) = (SocketAddr::new(*address, HTTP), SocketAddr::new(*address, ECHO));
        [(How::Tcp, web), (How::Udp, echo), (How::UdpConnected, echo)]
    };
    let mut all: Vec<_> = Network::addresses(VIP).iter().flat_map(ways).collect();
    // A socket of IPv6 that talks IPv4.
    all.extend(ways(&Ipv4Addr::new(10, 0, 9, VIP).to_ipv6_mapped().into()));
    all
}

fn tasks(seen: &[Seen]) -> BTreeSet<&str> {
    seen.iter().filter_map(|seen| seen.task.as_deref()).collect()
}

/// All answered, each as if the virtual address had, and these tasks did.
fn answered(seen: &[Seen], asked: SocketAddr, by: &[&str]) -> Result<()> {
    for one in seen {
        ensure!(one.task.is_some(), "no answer: {one}");
        one.answered_from(asked)?;
    }
    ensure!(tasks(seen) == by.iter().copied().collect(), "expected {by:?}, saw {:?}", tasks(seen));
    Ok(())
}

#[test]
fn tasks_answer_in_turn_at_a_virtual_address_on_a_network_that_is_shared() {
    let world = World::new();
    let mut cases = Cases::default();
    for (how, target) in ways() {
        let probes = vec![Probe::new(how, target); 6];
        let seen = world.ask("blue-asker", &probes);
        cases.note(&probes[0], answered(&seen, target, &["web.1", "web.2", "web.3"]));
        let addresses = Network::addresses(21);
        for one in &seen {
            let client = one.client.map(|client| client.ip().to_canonical());
            let kept = client.is_some_and(|client| addresses.contains(&client));
            let result = kept.then_some(()).with_context(|| one.to_string());
            cases.note(format!("{}: the task sees the asker", probes[0]), result);
        }
    }
    // A task asks for its own service, and gets all of it, itself included.
    let (_, target) = ways()[0];
    let seen = world.scene.tasks["web.1"].probe(&vec![Probe::tcp(target); 6]).unwrap();
    cases.note("web.1 asks for web", answered(&seen, target, &["web.1", "web.2", "web.3"]));
    cases.end(&world.scene).unwrap();
}

#[test]
fn the_same_address_on_another_network_is_another_service_and_without_a_network_it_is_none() {
    let world = World::new();
    let mut cases = Cases::default();
    for (how, target) in ways() {
        let probes = vec![Probe::new(how, target); 3];
        let seen = world.ask("green-asker", &probes);
        cases.note(format!("on green, {}", probes[0]), answered(&seen, target, &["other.1"]));
    }
    // It has an interface on the network, so the address is looked for there, and nobody has it.
    for how in [How::Tcp, How::Udp] {
        let target =
            SocketAddr::new(Network::addresses(VIP)[0], if how == How::Tcp { HTTP } else { ECHO });
        for one in world.ask("loner", &[Probe::new(how, target)]) {
            let untouched = || {
                ensure!(one.task.is_none() && one.millis > 500, "not left alone: {one}");
                Ok(())
            };
            cases.note(format!("on no network, {how:?}"), untouched());
        }
    }
    cases.end(&world.scene).unwrap();
}

#[test]
fn a_task_that_drains_gets_no_new_connections_and_none_left_means_refused_at_once() {
    let mut world = World::new();
    let mut cases = Cases::default();
    world.state("web.2", State::Draining);
    for (how, target) in ways() {
        let probes = vec![Probe::new(how, target); 6];
        let seen = world.ask("blue-asker", &probes);
        cases.note(
            format!("one drains, {}", probes[0]),
            answered(&seen, target, &["web.1", "web.3"]),
        );
    }
    world.scene.mesh.service("web").weight("web.1", 3);
    world.scene.apply().unwrap();
    let (how, target) = ways()[0];
    let seen = world.ask("blue-asker", &vec![Probe::new(how, target); 16]);
    let first = seen.iter().filter(|seen| seen.task.as_deref() == Some("web.1")).count();
    cases.note(
        "three to one",
        (first == 12).then_some(()).with_context(|| format!("{first} of 16")),
    );
    for task in ["web.1", "web.3"] {
        world.scene.mesh.service("web").state(task, State::Down);
    }
    world.scene.apply().unwrap();
    for (how, target) in ways() {
        for one in world.ask("blue-asker", &[Probe::new(how, target)]) {
            let refused = || match how {
                How::Tcp | How::UdpConnected => one.refused_at_once().map(drop),
                How::Udp => {
                    ensure!(one.errno == Some(libc::EPERM) && one.millis < 500, "{one}");
                    Ok(())
                }
            };
            cases.note(format!("none is left, {how:?} to {target}"), refused());
        }
    }
    world.state("web.2", State::Active);
    for (how, target) in ways() {
        let seen = world.ask("blue-asker", &[Probe::new(how, target)]);
        cases
            .note(format!("one is back, {how:?} to {target}"), answered(&seen, target, &["web.2"]));
    }
    cases.end(&world.scene).unwrap();
}

#[test]
fn datagrams_of_one_socket_go_to_one_task_until_it_is_taken_away() {
    let mut world = World::new();
    let mut cases = Cases::default();
    for target in ways().iter().filter(|(how, _)| *how == How::Udp).map(|(_, target)| *target) {
        let probe = Probe::udp(target).times(30, SECOND / 10);
        let World { scene, askers, .. } = &mut world;
        let change = |scene: &mut Scene, tasks: &[(&str, State)]| {
            for (task, state) in tasks {
                scene.mesh.service("web").state(task, *state);
            }
            scene.apply().unwrap();
        };
        let seen = thread::scope(|scope| {
            let asking = scope.spawn(|| askers["blue-asker"].probe(&[probe]).unwrap());
            thread::sleep(SECOND / 2);
            // What changes does not concern two of the three; then all but one go.
            change(scene, &[("web.3", State::Draining)]);
            thread::sleep(SECOND / 2);
            change(scene, &[("web.1", State::Draining)]);
            thread::sleep(SECOND / 2);
            change(scene, &[("web.1", State::Active), ("web.3", State::Active)]);
            asking.join().unwrap()
        });
        let mut in_a_row: Vec<&str> = seen.iter().filter_map(|one| one.task.as_deref()).collect();
        let answers = in_a_row.len();
        in_a_row.dedup();
        let sticky = || {
            ensure!(answers == 30, "{answers} answers of 30");
            // Whoever was chosen first, web.2 is the last, and nobody has two turns.
            ensure!(in_a_row.last() == Some(&"web.2") && in_a_row.len() <= 3, "{in_a_row:?}");
            seen.iter().try_for_each(|one| one.answered_from(target).map(drop))
        };
        cases.note(format!("datagrams to {target}"), sticky());
    }
    cases.end(&world.scene).unwrap();
}

#[test]
fn without_an_agent_it_goes_on_and_the_next_agent_goes_on_from_there() {
    let mut world = World::new();
    let mut cases = Cases::default();
    let all = ["web.1", "web.2", "web.3"];
    let ask = |world: &World, what: &str, by: &[&str], cases: &mut Cases| {
        for (how, target) in ways() {
            let seen = world.ask("blue-asker", &vec![Probe::new(how, target); 6]);
            cases.note(format!("{what}, {how:?} to {target}"), answered(&seen, target, by));
        }
    };
    let dump = |world: &World| world.scene.agent("n1").cli(&["state", "dump"]).unwrap();
    let before = dump(&world);
    ensure_vips(&before, 4).unwrap();
    world.scene.agent("n1").kill9();
    ask(&world, "without an agent", &all, &mut cases);
    world.scene.agent("n1").launch().unwrap();
    world.scene.agent("n1").wait_ready().unwrap();
    let vips = |dump: &str| -> Vec<String> {
        let ours = dump.lines().filter(|line| line.contains("VIP") || line.starts_with("SPACE"));
        ours.map(str::to_owned).collect()
    };
    assert_eq!(vips(&dump(&world)), vips(&before), "a restart changes nothing");
    ask(&world, "with the next agent", &all, &mut cases);
    world.state("web.1", State::Draining);
    ask(&world, "after a change", &["web.2", "web.3"], &mut cases);
    // A network that nothing is attached to any more is forgotten.
    world.scene.mesh.service("other").set("vip", toml::Table::new());
    world.scene.apply().unwrap();
    ensure_vips(&dump(&world), 2).unwrap();
    cases.end(&world.scene).unwrap();
}

fn ensure_vips(dump: &str, count: usize) -> Result<()> {
    let vips: Vec<&str> = dump.lines().filter(|line| line.starts_with("VIP ")).collect();
    ensure!(vips.len() == count, "{vips:#?}");
    Ok(())
}

#[test]
fn a_host_can_be_attached_too_and_a_namespace_may_come_later_than_its_name() {
    let mut world = World::new();
    let mut cases = Cases::default();
    let late = world.scene.lab.run_dir().join("late");
    world.scene.mesh.attach_node("n1", "blue");
    world.scene.mesh.attach_space("n1", &late, &["blue"]);
    world.scene.apply().unwrap();
    for (how, target) in ways() {
        let seen = world.scene.lab.host("n1").probe(&vec![Probe::new(how, target); 6]).unwrap();
        let all = ["web.1", "web.2", "web.3"];
        cases.note(format!("the host, {how:?} to {target}"), answered(&seen, target, &all));
    }
    let status = world.scene.agent("n1").api("/api/v1/status").unwrap().body;
    let named = status.contains(&format!("look at the network namespace {}", late.display()));
    let named = named.then_some(()).with_context(|| status.clone());
    cases.note("a namespace that is not there is named", named);
    std::os::unix::fs::symlink(world.askers["loner"].netns().path(), &late).unwrap();
    let (how, target) = ways()[0];
    let found = eventually("the late namespace to be found", 5 * SECOND, || {
        let seen = world.ask("loner", &vec![Probe::new(how, target); 3]);
        answered(&seen, target, &["web.1", "web.2", "web.3"])
    });
    cases.note("a namespace that came later", found);
    cases.end(&world.scene).unwrap();
}

/// `web`, one task a host, at virtual addresses that clients have routes to, over a host each.
fn routed(plane: Plane) -> Scene {
    let mut scene = Scene::on(plane, Lab::builder()).unwrap();
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    let web = scene.mesh.service("web");
    web.publish("8080:80").publish("5353:53/udp").vip("blue", &Network::addresses(VIP));
    // Its ports at the hosts' addresses are those of `web` at the virtual ones.
    scene.task("other", "n1", "other.1").unwrap();
    scene.mesh.service("other").publish("80:80").publish("53:53/udp");
    scene.mesh.routed("blue", true);
    scene.start().unwrap();
    lead(&scene, "n1");
    scene
}

/// Has the client's packets for virtual addresses go to a host.
fn lead(scene: &Scene, host: &str) {
    let via = scene.lab.host(host).addresses();
    for (via, pool) in via.iter().zip(["10.0.9.0/24", "fd00:9::/64"]) {
        let words = ["route", "replace", pool, "via", &via.to_string()];
        let done = scene.lab.client("c1").output(command("ip", &words)).unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

#[test]
fn packets_that_are_routed_to_a_virtual_address_are_balanced_over_all_tasks() {
    let mut scene = routed(Plane::Ebpf);
    let mut cases = Cases::default();
    let v4_and_v6 = || Network::addresses(VIP).into_iter().zip(scene.lab.client("c1").addresses());
    let ask = |cases: &mut Cases, what: &str| {
        for (vip, own) in v4_and_v6() {
            for (how, port) in [(How::Tcp, HTTP), (How::Udp, ECHO)] {
                let target = SocketAddr::new(vip, port);
                let ask = |_| scene.lab.client("c1").ask(&Probe::new(how, target));
                let seen: Vec<Seen> = (0..6).map(ask).collect();
                let checked = answered(&seen, target, &["web.1", "web.2"])
                    .and_then(|()| seen.iter().try_for_each(|it| it.client_kept(*own).map(drop)));
                cases.note(format!("{what}, {how:?} to {target}"), checked);
            }
        }
    };
    ask(&mut cases, "over n1");
    // A connection goes on, through a task of each host.
    let targets = || Network::addresses(VIP).into_iter().map(|vip| SocketAddr::new(vip, ECHO));
    for target in targets() {
        let mut talk =
            Probe::new(How::UdpConnected, target).open_in(scene.lab.client("c1").netns());
        let first = talk.as_mut().unwrap().ask().task;
        let stays = (0..5).all(|_| talk.as_mut().unwrap().ask().task == first);
        let stays = (first.is_some() && stays).then_some(()).context("another task answered");
        cases.note(format!("a socket's datagrams to {target}"), stays);
    }
    // Containers, by the route that their host has for everything; their own hosts stand in for them.
    for task in ["web.1", "web.2"] {
        for target in targets() {
            let seen = scene.tasks[task].probe(&vec![Probe::new(How::Udp, target); 6]).unwrap();
            let checked = answered(&seen, target, &["web.1", "web.2"]);
            cases.note(format!("from the container {task} to {target}"), checked);
        }
    }
    // What is at the hosts' own addresses is somebody else's.
    for target in scene.lab.host("n2").targets(HTTP) {
        let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
        cases.note(format!("to {target}"), seen.by("other.1").map(drop));
    }
    let flows = scene.agent("n1").cli(&["flows", "--service", "web"]).unwrap();
    let named = flows.contains("10.0.9.2:80").then_some(()).context(flows);
    cases.note("weir flows names the virtual address", named);
    let services = scene.agent("n1").cli(&["services", "web"]).unwrap();
    let told =
        services.matches("; routed: 53/udp, 80/tcp").count() == Network::addresses(VIP).len();
    cases.note("weir services names the ports", told.then_some(()).context(services));
    let client = scene.lab.client("c1").addresses()[0].to_string();
    let trace = scene.agent("n1").cli(&["trace", &client, "10.0.9.2:80"]).unwrap();
    let told = ["served", "web.1", "web.2"].iter().all(|word| trace.contains(word));
    cases.note("weir trace says who is served", told.then_some(()).context(trace));
    lead(&scene, "n2");
    ask(&mut cases, "over n2");
    cases.note("nothing is lost", ensure_no_drops(&scene));

    scene.mesh.routed("blue", false);
    scene.apply().unwrap();
    for target in targets() {
        let seen = scene.lab.client("c1").ask(&Probe::new(How::Udp, target));
        let left = || {
            ensure!(seen.task.is_none(), "{seen}");
            Ok(())
        };
        cases.note(format!("{target}, not routed any more"), left());
    }
    cases.end(&scene).unwrap();
}

#[test]
fn a_connection_to_a_virtual_address_goes_on_when_its_packets_come_by_another_node() {
    let mut scene = routed(Plane::Ebpf);
    scene.mesh.service("web").balance("maglev");
    scene.apply().unwrap();
    let client = scene.lab.client("c1");
    let open = |target: SocketAddr| {
        let mut talk = Probe::tcp(target).open_in(client.netns()).unwrap();
        let by = talk.ask().task.unwrap();
        (target, talk, by)
    };
    let targets: Vec<SocketAddr> =
        Network::addresses(VIP).iter().map(|vip| SocketAddr::new(*vip, HTTP)).collect();
    // With both tasks, whose node is then the first or the second that it comes by.
    let mut talks: Vec<_> = targets.iter().cycle().take(16).map(|it| open(*it)).collect();
    let by: BTreeSet<String> = talks.iter().map(|(_, _, by)| by.clone()).collect();
    assert_eq!(by.len(), 2, "{by:?}");
    let mut cases = Cases::default();
    for host in ["n2", "n1"] {
        lead(&scene, host);
        for (target, talk, by) in &mut talks {
            let seen = talk.ask();
            cases.note(format!("to {target} over {host}"), seen.by(by).map(drop));
        }
        // Notes of where a flow comes from are taken once a second.
        thread::sleep(2 * SECOND);
    }
    cases.end(&scene).unwrap();
}

fn ensure_no_drops(scene: &Scene) -> Result<()> {
    let drops = scene.drops();
    ensure!(drops.is_empty(), "{drops}");
    Ok(())
}

#[test]
fn a_proxy_says_that_it_does_not_serve_what_is_routed() {
    let scene = routed(Plane::Proxy);
    let status = scene.agent("n1").api("/api/v1/status").unwrap().body;
    assert!(status.contains("network blue: routed = true"), "{status}");
    let services = scene.agent("n1").cli(&["services", "web"]).unwrap();
    assert!(services.contains("VIP") && !services.contains("routed"), "{services}");
    scene.lab.finish().unwrap();
}
