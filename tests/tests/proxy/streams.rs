//! What is carried, and how it is counted.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::thread;

use anyhow::ensure;
use weir_tests::{Lab, Plane, Probe, Scene, eventually};

use crate::{PORT, SECOND, connect, counted, metric, read_all, scene};

#[test]
fn datagrams_of_any_size_arrive_whole_and_in_fragments() {
    let mut scene = scene();
    scene.start().unwrap();
    let netns = scene.lab.client("c1").netns();
    for target in scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)) {
        let mut talk = Probe::udp(target).open_in(netns).unwrap();
        for size in [1, 1400, 1472, 1473, 9000, 60_000] {
            let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let back = talk.echo(&data).unwrap_or_else(|error| panic!("{target}, {size}: {error}"));
            assert!(back.ends_with(&data), "{target}: {size} bytes came back as {}", back.len());
        }
    }
}

#[test]
fn a_datagram_that_has_no_room_for_the_client_s_address_is_counted() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder()).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n2", "web.2").unwrap();
    scene.start().unwrap();
    let target = scene.lab.host("n1").targets(PORT)[0];
    let socket = scene.lab.client("c1").run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    // The largest of IPv4: on its way to the other node it has to be larger.
    socket.send_to(&[7; 65_507], target).unwrap();
    counted(scene.agent("n1"), "send_failed", 1..=1);
    let mut talk = Probe::udp(target).open_in(scene.lab.client("c1").netns()).unwrap();
    talk.ask().by("web.2").unwrap();
    counted(scene.agent("n1"), "send_failed", 1..=1);
}

#[test]
fn what_one_side_has_said_to_the_end_the_other_hears_and_may_still_answer() {
    let mut scene = scene();
    scene.mesh.service("web").publish("8085:53");
    scene.start().unwrap();
    for target in scene.lab.hosts().iter().flat_map(|host| host.targets(8085)) {
        let mut stream = connect(&scene, target);
        let data = vec![7; 3_000_000];
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            writer.write_all(&data).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        writing.join().unwrap();
        assert!(bytes.len() == 3_000_000 && bytes.iter().all(|byte| *byte == 7), "{}", bytes.len());
    }
}

#[test]
fn tcp_is_counted_in_connections_and_bytes_and_udp_in_datagrams_too() {
    let mut scene = scene();
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let target = scene.lab.host("n1").targets(PORT)[0];
    for _ in 0..4 {
        client.ask(&Probe::tcp(target));
        client.ask(&Probe::udp(target));
    }
    let agent = scene.agent("n1");
    eventually("the counters", 5 * SECOND, || {
        let of = |name: &str, protocol: &str| {
            let labels = format!("service=\"web\",protocol=\"{protocol}\"");
            metric(agent, &format!("weir_service_{name}_total"), &labels)
        };
        ensure!(of("connections", "tcp") == 4 && of("connections", "udp") == 4, "connections");
        ensure!(of("rx_packets", "tcp") == 0 && of("rx_packets", "udp") == 4, "packets");
        let asked = b"GET / HTTP/1.1\r\nHost: weir\r\n\r\n".len() as u64;
        ensure!(of("rx_bytes", "tcp") == 4 * asked, "{} bytes", of("rx_bytes", "tcp"));
        ensure!(of("tx_bytes", "udp") > 0, "answers");
        Ok(())
    })
    .unwrap();
    eventually("each to be counted on its own node, once", 5 * SECOND, || {
        let tasks = metric(agent, "weir_backend_accepted_total", "web.1")
            + metric(scene.agent("n2"), "weir_backend_accepted_total", "web.2");
        ensure!(tasks == 4, "{tasks}");
        Ok(())
    })
    .unwrap();
    let text = agent.cli(&["services", "web", "--stats"]).unwrap();
    assert!(text.contains("TCP *:8080"), "{text}");
}

#[test]
fn the_relay_hears_nodes_only() {
    let mut scene = scene();
    scene.start().unwrap();
    let relay = SocketAddr::new(scene.lab.host("n1").addresses()[0], 7952);
    let connected = scene.lab.client("c1").run(|| TcpStream::connect_timeout(&relay, SECOND));
    // The reset may come before anything can be said.
    if let Ok(mut stream) = connected {
        // A socket tells of a reset once: to whichever comes first.
        let said = stream.write_all(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
        assert!(said.is_err() || read_all(stream).is_err(), "a reset");
    }
    let socket = scene.lab.client("c1").run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.send_to(b"anything", relay).unwrap();
    counted(scene.agent("n1"), "unknown_sender", 2..=2);
}
