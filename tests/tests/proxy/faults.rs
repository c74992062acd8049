//! What goes wrong around the proxy: each fault has its reason, and is counted under it. See also
//! `tasks.rs` and `listening.rs`.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use weir_tests::lab::command;
use weir_tests::{How, Lab, Plane, Probe, Scene, State, Talk, eventually};

use crate::{PORT, SECOND, counted};

/// One host with `web.1`, not started.
fn scene() -> Scene {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder().hosts(1)).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene
}

fn target(scene: &Scene, port: u16) -> SocketAddr {
    scene.lab.host("n1").targets(port)[0]
}

fn open(scene: &Scene, how: How) -> Talk {
    Probe::new(how, target(scene, PORT)).open_in(scene.lab.client("c1").netns()).unwrap()
}

fn connect(scene: &Scene, port: u16) -> TcpStream {
    let target = target(scene, port);
    let stream = scene.lab.client("c1").run(|| TcpStream::connect_timeout(&target, 2 * SECOND));
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(8 * SECOND)).unwrap();
    stream
}

#[test]
fn a_client_that_says_nothing_is_let_go_after_its_timeout_and_one_that_talks_is_not() {
    let mut scene = scene();
    let timeouts = toml::Table::from_iter([("tcp_established".to_owned(), "2s".into())]);
    scene.mesh.service("web").set("timeouts", timeouts);
    scene.start().unwrap();
    let mut talk = open(&scene, How::Tcp);
    // The proxy's clock begins with its accept.
    let start = Instant::now();
    let mut silent = connect(&scene, PORT);
    let talking = thread::spawn(move || {
        for _ in 0..8 {
            assert!(talk.ask().task.is_some());
            thread::sleep(SECOND / 2);
        }
    });
    let error = silent.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert!(start.elapsed() >= 2 * SECOND, "{:?}", start.elapsed());
    talking.join().unwrap();
    counted(scene.agent("n1"), "idle", 1..=1);
}

#[test]
fn a_sender_that_owes_a_header_and_says_nothing_is_let_go() {
    let mut scene = scene();
    scene.mesh.service("web").set("accept_proxy_protocol", vec!["10.77.0.0/16"]);
    scene.start().unwrap();
    let mut silent = connect(&scene, PORT);
    let error = silent.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    counted(scene.agent("n1"), "proxy_header", 1..=1);
}

#[test]
fn a_connection_that_a_side_resets_is_counted_once() {
    let mut scene = scene();
    scene.mesh.service("web").publish("8085:53");
    scene.start().unwrap();
    let mut stream = connect(&scene, 8085);
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    counted(scene.agent("n1"), "broken", 1..=1);
}

/// A client that talks with a task, which then cannot be reached any more.
fn cut_off(scene: &mut Scene, options: &[(&str, &str)]) -> TcpStream {
    scene.mesh.service("web").publish("8085:53");
    scene
        .start_with(|_, config| {
            options.iter().for_each(|(option, value)| {
                config.set(option, *value);
            });
        })
        .unwrap();
    let mut stream = connect(scene, 8085);
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    let cut = command("ip", &["link", "set", "dev", scene.tasks["web.1"].veth(), "down"]);
    let output = scene.lab.host("n1").output(cut).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stream
}

#[test]
fn a_task_that_falls_silent_while_nothing_is_said_is_given_up_by_keep_alive() {
    let mut scene = scene();
    let options = [("proxy.keepalive", "1s"), ("proxy.user_timeout", "5s")];
    let mut stream = cut_off(&mut scene, &options);
    // A second until it is watched, another until it is asked, and four more without an answer.
    stream.set_read_timeout(Some(20 * SECOND)).unwrap();
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    counted(scene.agent("n1"), "broken", 1..=1);
}

#[test]
fn a_task_that_falls_silent_in_mid_stream_is_given_up_when_it_acknowledges_nothing() {
    let mut scene = scene();
    let mut stream = cut_off(&mut scene, &[("proxy.user_timeout", "1s")]);
    stream.write_all(b"are you there?").unwrap();
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    counted(scene.agent("n1"), "broken", 1..=1);
}

#[test]
fn connections_of_a_task_that_is_taken_down_are_reset_and_when_it_is_back_it_is_served_again() {
    let mut scene = scene();
    scene.start().unwrap();
    let mut talk = open(&scene, How::Tcp);
    talk.ask().by("web.1").unwrap();
    scene.mesh.service("web").state("web.1", State::Down);
    scene.apply().unwrap();
    let seen = talk.ask();
    assert!(seen.task.is_none(), "{seen}");
    counted(scene.agent("n1"), "backend_gone", 1..=1);
    scene.mesh.service("web").state("web.1", State::Active);
    scene.apply().unwrap();
    for how in [How::Tcp, How::UdpConnected] {
        let mut talk = open(&scene, how);
        talk.ask().by("web.1").unwrap();
        talk.ask().by("web.1").unwrap();
    }
    counted(scene.agent("n1"), "backend_gone", 1..=1);
}

#[test]
fn a_flood_to_a_task_that_does_not_read_fills_sockets_and_not_the_agent() {
    let mut scene = scene();
    let task = scene.lab.task("n1", "deaf.1").unwrap();
    let listener = task.run(|| TcpListener::bind("[::]:80")).unwrap();
    let (held, holding) = std::sync::mpsc::channel();
    let listening = thread::spawn(move || {
        for stream in listener.incoming().flatten().take(20) {
            held.send(stream).unwrap();
        }
    });
    scene.mesh.service("deaf").publish("8081:80").task(&task);
    scene.start().unwrap();
    let before = scene.agent("n1").resident().unwrap();
    let mut floods: Vec<_> = (0..20).map(|_| connect(&scene, 8081)).collect();
    let data = vec![7; 1 << 20];
    for flood in &mut floods {
        flood.set_write_timeout(Some(SECOND / 20)).unwrap();
        // As much as sockets take, until nothing moves for a while.
        while flood.write(&data).is_ok() {}
    }
    open(&scene, How::Tcp).ask().by("web.1").unwrap();
    let after = scene.agent("n1").resident().unwrap();
    assert!(after < before + 8_000, "{before} KiB, then {after} KiB");
    drop(floods);
    listening.join().unwrap();
    drop(holding);
}

#[test]
fn without_files_new_clients_wait_or_are_turned_away_and_the_others_go_on() {
    let mut scene = scene();
    scene.start().unwrap();
    let mut talks: Vec<_> = (0..4).map(|_| open(&scene, How::Tcp)).collect();
    assert!(talks.iter_mut().all(|talk| talk.ask().task.is_some()));
    let pid = scene.agent("n1").pid().unwrap();
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    limit_files(pid, files + 3);
    // Who is turned away at once may see that while it still connects.
    let probe = Probe::new(How::Tcp, target(&scene, PORT));
    let more: Vec<_> = (0..6).map(|_| probe.open_in(scene.lab.client("c1").netns())).collect();
    thread::sleep(SECOND / 2);
    assert!(talks.iter_mut().all(|talk| talk.ask().task.is_some()));
    drop(more);
    limit_files(pid, files + 1000);
    counted(scene.agent("n1"), "no_descriptors", 1..=u64::MAX);
    eventually("new clients to be served", 5 * SECOND, || {
        let seen = open(&scene, How::Tcp).ask();
        ensure!(seen.task.is_some(), "{seen}");
        anyhow::Ok(())
    })
    .unwrap();
    assert!(talks.iter_mut().all(|talk| talk.ask().task.is_some()));
}

fn limit_files(pid: u32, most: usize) {
    let mut command = command("prlimit", &["--pid", &pid.to_string()]);
    let status = command.arg(format!("--nofile={most}:")).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_session_that_was_silent_for_longest_makes_room_and_its_client_begins_another() {
    let mut scene = scene();
    scene
        .start_with(|_, config| {
            config.set("proxy.workers", 1).set("proxy.udp_sessions", 2);
        })
        .unwrap();
    let mut talks: Vec<_> = (0..3).map(|_| open(&scene, How::UdpConnected)).collect();
    for talk in &mut talks {
        talk.ask().by("web.1").unwrap();
    }
    counted(scene.agent("n1"), "session_evicted", 1..=1);
    talks[0].ask().by("web.1").unwrap();
    counted(scene.agent("n1"), "session_evicted", 2..=2);
}

/// What a node says before it hands a connection over: see `docs/proxy.md`.
fn envelope(port: u16, hopped: bool) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x15".to_vec();
    bytes.extend([10, 77, 0, 101, 10, 77, 0, 12, 0x12, 0x34]);
    bytes.extend(port.to_be_bytes());
    bytes.extend([0xe7, 0, 6, 0, if hopped { 0x80 } else { 0 }, 0, 1]);
    bytes.extend(port.to_be_bytes());
    bytes
}

#[test]
fn what_a_node_hands_over_in_vain_is_answered_with_the_reason() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder()).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n2", "web.2").unwrap();
    scene.start().unwrap();
    let relay = SocketAddr::new(scene.lab.host("n1").addresses()[0], 7952);
    let ask = |bytes: &[u8]| {
        let source = SocketAddr::new(scene.lab.host("n2").addresses()[0], 0);
        let mut stream = scene.lab.host("n2").run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&source.into())?;
            socket.connect(&relay.into())?;
            std::io::Result::Ok(TcpStream::from(socket))
        })?;
        stream.set_read_timeout(Some(8 * SECOND))?;
        stream.write_all(bytes)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    assert_eq!(ask(&envelope(9999, false)).unwrap(), [4]);
    counted(scene.agent("n1"), "not_published", 1..=1);
    // n1 has no task, and this one has been handed on before.
    assert_eq!(ask(&envelope(PORT, true)).unwrap(), [5]);
    counted(scene.agent("n1"), "hop_limit", 1..=1);
    ask(b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
    counted(scene.agent("n1"), "malformed", 1..=1);
    let socket = scene.lab.host("n2").run(|| UdpSocket::bind("10.77.0.12:0")).unwrap();
    socket.send_to(b"GET / HTTP/1.1\r\n\r\n", relay).unwrap();
    counted(scene.agent("n1"), "malformed", 2..=2);
}

#[test]
fn a_task_that_moves_to_another_address_is_reached_there_and_old_connections_end() {
    let mut scene = scene();
    scene.start().unwrap();
    let mut talk = open(&scene, How::Tcp);
    let mut session = open(&scene, How::UdpConnected);
    talk.ask().by("web.1").unwrap();
    session.ask().by("web.1").unwrap();
    let mut other = scene.lab.task("n1", "web.1b").unwrap();
    other.serve_http(80).unwrap();
    other.serve_echo(53).unwrap();
    // The same name, as a task that was restarted.
    scene.mesh.service("web").remove_task("web.1").task_at("web.1", "n1", other.addresses());
    scene.tasks.get_mut("web.1").unwrap().kill9();
    scene.apply().unwrap();
    for how in [How::Tcp, How::UdpConnected] {
        open(&scene, how).ask().by("web.1b").unwrap();
    }
    assert!(talk.ask().task.is_none());
    eventually("the session to move", 5 * SECOND, || session.ask().by("web.1b").map(drop)).unwrap();
}
