//! What goes wrong beside the traffic and is not to be seen in it; and what is the same for everybody
//! who looks.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::task::task_program;
use weir_tests::traffic::{HttpLoad, Running, UdpLoad};
use weir_tests::{Agent, Cases, Lab, Probe, Scene, eventually};

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;

/// `web.1` on n1 and `web.2` on n2.
fn scene() -> Scene {
    let mut scene = Scene::new(Lab::builder()).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    scene.start().unwrap();
    scene
}

/// New connections and datagrams through both nodes.
fn load(scene: &Scene) -> [Running; 2] {
    let netns = scene.lab.client("c1").netns();
    let targets: Vec<_> = scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)).collect();
    let web = HttpLoad::new(netns, targets.clone()).timeout(5 * SECOND).connections(4).rate(400);
    [
        web.start().unwrap(),
        UdpLoad::new(netns, targets).timeout(5 * SECOND).rate(200).start().unwrap(),
    ]
}

#[test]
fn a_file_that_is_broken_in_any_way_is_named_and_no_request_fails() {
    let mut scene = scene();
    let running = load(&scene);
    let sound = scene.mesh.render().unwrap();
    let half = &sound[..sound.len() / 2 + 3];
    let twice = format!("{sound}\n[[service]]\nname = \"other\"\npublish = [\"{PORT}:80\"]\n");
    for (broken, said) in [
        (half, "mesh.toml:"),
        ("", "is empty"),
        ("[[service]]\nname = 5\n", "mesh.toml:2:"),
        ("[[service]]\nname = \"web\"\npublish = [\"70000:80\"]\n", "70000"),
        (twice.as_str(), "8080"),
    ] {
        fs::write(scene.mesh.path(), broken).unwrap();
        for agent in &scene.agents {
            eventually("the mistake to be named", 10 * SECOND, || {
                let status = agent.api("/api/v1/status")?.body;
                ensure!(status.contains(said), "no {said:?} in {status}");
                Ok(())
            })
            .unwrap();
        }
    }
    fs::remove_file(scene.mesh.path()).unwrap();
    for agent in &scene.agents {
        eventually("the loss to be named", 10 * SECOND, || {
            let status = agent.api("/api/v1/status")?.body;
            ensure!(status.contains("vanished"), "{status}");
            Ok(())
        })
        .unwrap();
    }
    scene.apply().unwrap();
    for agent in &scene.agents {
        eventually("all to be well", 10 * SECOND, || {
            let status = agent.api("/api/v1/status")?.body;
            ensure!(status.contains("\"condition\":\"ok\""), "{status}");
            Ok(())
        })
        .unwrap();
    }
    running.into_iter().for_each(|running| running.stop().unwrap().assert_clean());
}

/// Ends with an error of its own, and leaves the traffic alone.
fn is_refused(scene: &Scene, wrapper: &[&str], setting: (&str, toml::Value), said: &str) {
    let output = Agent::attempt(scene.lab.host("n1"), wrapper, |config| {
        config.set("dataplane.mode", "ebpf").set(setting.0, setting.1);
    });
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(said), "{}: {text}", output.status);
}

#[test]
fn what_the_last_agent_left_in_the_kernel_forwards_on_while_others_are_refused() {
    let scene = scene();
    let running = load(&scene);
    let before = running[0].report().ok;
    scene.agent("n1").kill9();
    let right = || ("tunnel.port", 7950.into());
    let task = task_program().unwrap();
    let refuser = [task.to_str().unwrap(), "refuse-programs", "--"];
    is_refused(&scene, &refuser, right(), "the kernel takes no classifier programs");
    let weak = ["setpriv", "--bounding-set=-net_admin,-sys_admin", "--inh-caps=-all"];
    is_refused(&scene, &weak, right(), "CAP_NET_ADMIN");
    is_refused(&scene, &[], ("tunnel.port", 70_000.into()), "70000");
    is_refused(&scene, &[], ("node.adress", "10.77.0.11".into()), "node.adress");
    assert!(running[0].report().ok > before, "there was no traffic meanwhile");
    scene.agent("n1").launch().unwrap();
    scene.agent("n1").wait_ready().unwrap();
    running.into_iter().for_each(|running| running.stop().unwrap().assert_clean());
}

/// The port that an agent says a service without a number of its own has.
fn given(agent: &Agent, service: &str) -> Result<u16> {
    let said: Value = serde_json::from_str(&agent.api("/api/v1/services")?.body)?;
    let services = said["services"].as_array().context("no services")?;
    let found = services.iter().find(|found| found["name"] == service);
    let ports = found.and_then(|found| found["ports"].as_array()).context("no ports")?;
    let port = ports.first().and_then(|port| port["published"].as_u64()).context("no number")?;
    Ok(u16::try_from(port)?)
}

#[test]
fn a_port_without_a_number_gets_the_same_on_every_node_and_keeps_it() {
    let mut scene = scene();
    let task = &scene.tasks["web.1"];
    scene.mesh.service("auto").publish("80").task(task);
    scene.apply().unwrap();
    let number = given(scene.agent("n1"), "auto").unwrap();
    assert!((30_000..=32_767).contains(&number), "{number}");
    for round in 0..2 {
        let mut cases = Cases::default();
        for agent in &scene.agents {
            assert_eq!(given(agent, "auto").unwrap(), number, "round {round}");
            for target in agent.host().targets(number) {
                let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
                cases.note(target, seen.by("web.1").map(drop));
            }
        }
        cases.end(&scene).unwrap();
        // Others that come, before it in the file and in the alphabet, do not move it.
        for name in ["a", "aa", "zz"] {
            scene.mesh.service(name).publish("80").publish("81/udp");
        }
        scene.apply().unwrap();
    }
}

/// A counter of the service `web` at UDP or TCP.
fn counted(agent: &Agent, name: &str, protocol: &str) -> Result<u64> {
    let series = format!("weir_service_{name}_total{{service=\"web\",protocol=\"{protocol}\"");
    let text = agent.http("/metrics")?.body;
    let line = text.lines().find(|line| line.starts_with(&series)).context("no series")?;
    Ok(line.rsplit_once(' ').context("no value")?.1.parse()?)
}

/// Clients are counted where they enter: once, whichever node their task is on.
#[test]
fn the_kernel_counts_every_flow_packet_and_byte_of_clients_where_they_enter() {
    const DATAGRAMS: u64 = 20;
    const IP_AND_UDP: u64 = 28;
    let scene = scene();
    let target = scene.lab.host("n1").targets(PORT)[0];
    assert!(target.is_ipv4());
    let netns = scene.lab.client("c1").netns();
    let mut talk = Probe::udp(target).open_in(netns).unwrap();
    let (mut asked, mut answered) = (0, 0);
    for size in 1..=DATAGRAMS {
        asked += IP_AND_UDP + size;
        // The echo says before it who answers, and to whom.
        answered += IP_AND_UDP + talk.echo(&vec![7; size as usize]).unwrap().len() as u64;
    }
    for _ in 0..6 {
        assert!(scene.lab.client("c1").ask(&Probe::tcp(target)).task.is_some());
    }
    // Counters are read at most once a second.
    eventually("all to be counted", 5 * SECOND, || {
        let agent = scene.agent("n1");
        let udp = |name| counted(agent, name, "udp");
        let flows = (udp("connections")?, counted(agent, "connections", "tcp")?);
        ensure!(flows == (1, 6), "flows: {flows:?}");
        let packets = (udp("rx_packets")?, udp("tx_packets")?);
        ensure!(packets == (DATAGRAMS, DATAGRAMS), "packets: {packets:?}");
        let bytes = (udp("rx_bytes")?, udp("tx_bytes")?);
        ensure!(bytes == (asked, answered), "bytes: {bytes:?}, not {asked} and {answered}");
        Ok(())
    })
    .unwrap();
    // Older values than a second are not given.
    thread::sleep(SECOND);
    let entered = counted(scene.agent("n2"), "connections", "tcp").unwrap();
    assert_eq!(entered, 0, "no client entered at n2");
    let shown = scene.agent("n1").cli(&["services", "web", "--stats"]).unwrap();
    let line = shown.lines().find(|line| line.starts_with("UDP *:8080")).unwrap();
    assert!(line.split_whitespace().any(|word| word == DATAGRAMS.to_string()), "{shown}");
}
