//! Tasks that drain, refuse, reset or are slow, and how many connections there may be.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use weir_tests::{Cases, How, Lab, Plane, Probe, Scene, State, eventually};

use crate::{PORT, SECOND, connect, counted, drop_it, metric, read_all, scene};

#[test]
fn when_all_tasks_drain_new_datagrams_are_not_answered_and_old_sessions_go_on() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder()).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene.start().unwrap();
    let target = scene.lab.host("n1").targets(PORT)[0];
    let client = scene.lab.client("c1").clone();
    let mut talk = Probe::udp(target).open_in(client.netns()).unwrap();
    talk.ask().by("web.1").unwrap();
    scene.mesh.service("web").state("web.1", State::Draining);
    scene.apply().unwrap();
    talk.ask().by("web.1").unwrap();
    let seen = client.ask(&Probe::new(How::UdpConnected, target));
    assert!(seen.task.is_none(), "{seen}");
    client.ask(&Probe::tcp(target)).refused_at_once().unwrap();
    counted(scene.agent("n1"), "no_backend", 1..=1);
}

#[test]
fn a_service_has_no_more_connections_than_it_may_each_limit_with_its_reason() {
    let mut scene = scene();
    for (name, port, key) in [
        ("all", 8081, "connections"),
        ("each", 8082, "per_client"),
        ("task", 8083, "per_task"),
        ("rate", 8084, "rate"),
    ] {
        let limits = toml::Table::from_iter([(key.to_owned(), 2.into())]);
        scene.service(name, port).set("limits", limits);
        scene.task(name, "n1", &format!("{name}.1")).unwrap();
    }
    scene.start().unwrap();
    let netns = scene.lab.client("c1").netns();
    for (port, reason) in [
        (8081, "limit_service"),
        (8082, "limit_client"),
        (8083, "limit_task"),
        (8084, "limit_rate"),
    ] {
        let target = scene.lab.host("n1").targets(port)[0];
        let mut talks: Vec<_> =
            (0..4).filter_map(|_| Probe::tcp(target).open_in(netns).ok()).collect();
        let answered = talks.iter_mut().filter_map(|talk| talk.ask().task).count();
        // A bucket that is refilled with two a second begins with one.
        assert!((1..=2).contains(&answered), "{reason}: {answered} of 4 were served");
        let refused = 4 - answered as u64;
        counted(scene.agent("n1"), reason, refused..=refused);
        // Those that were let in go on.
        assert_eq!(talks.iter_mut().filter_map(|talk| talk.ask().task).count(), answered);
    }
}

/// A listener in a task of n1 that does this with each connection.
fn odd_task(scene: &mut Scene, name: &str, port: u16, what: fn(TcpStream)) {
    let task = scene.lab.task("n1", name).unwrap();
    let listener = task.run(|| TcpListener::bind("[::]:80")).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || what(stream));
        }
    });
    scene.mesh.service(name).publish(format!("{port}:80").as_str()).task(&task);
    scene.tasks.insert(name.to_owned(), task);
}

fn with_a_reset(stream: TcpStream) {
    let mut buffer = [0; 16];
    let mut reading = &stream;
    let _ = reading.read(&mut buffer);
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

fn slowly(mut stream: TcpStream) {
    let mut buffer = [0; 16];
    let _ = stream.read(&mut buffer);
    for byte in b"slow" {
        thread::sleep(SECOND / 4);
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
    }
}

#[test]
fn a_task_that_resets_or_is_slow_is_passed_on_as_it_is() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder()).unwrap();
    odd_task(&mut scene, "resets", 8081, with_a_reset);
    odd_task(&mut scene, "slow", 8082, slowly);
    scene.start().unwrap();
    for host in ["n1", "n2"] {
        let target = |port| scene.lab.host(host).targets(port)[0];
        let mut stream = connect(&scene, target(8081));
        stream.write_all(b"hello").unwrap();
        let error = stream.read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{host}: {error}");
        let mut stream = connect(&scene, target(8082));
        stream.write_all(b"hello").unwrap();
        assert_eq!(read_all(stream).unwrap(), b"slow", "{host}");
    }
}

#[test]
fn a_task_that_refuses_or_does_not_answer_is_passed_over_for_another() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder()).unwrap();
    scene.service("web", PORT).set("eject", false);
    scene.task("web", "n1", "web.1").unwrap();
    // One whose server has crashed, and one that nobody answers for.
    let refusing = scene.lab.task("n1", "web.2").unwrap();
    scene.mesh.service("web").task(&refusing);
    scene.mesh.service("web").task_at("web.3", "n1", &["172.18.0.250".parse().unwrap()]);
    scene
        .start_with(|_, config| {
            config.set("proxy.connect_timeout", "500ms");
        })
        .unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    for target in scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)) {
        for _ in 0..6 {
            cases.note(target, client.ask(&Probe::tcp(target)).by("web.1").map(drop_it));
        }
    }
    let agent = scene.agent("n1");
    for reason in ["task_refused", "task_timeout"] {
        counted(agent, reason, 1..=u64::MAX);
    }
    let failed = metric(agent, "weir_drops_total", "connect_failed");
    cases.end(&scene).unwrap();
    assert_eq!(failed, 0, "nobody was turned away");
}

#[test]
fn a_flow_that_a_task_of_another_node_refuses_gets_a_second_chance_there() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder()).unwrap();
    scene.service("web", PORT).set("eject", false);
    scene.task("web", "n2", "web.1").unwrap();
    let refusing = scene.lab.task("n2", "web.2").unwrap();
    scene.mesh.service("web").task(&refusing);
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    let target = scene.lab.host("n1").targets(PORT)[0];
    for probe in [Probe::tcp(target), Probe::udp(target)] {
        for _ in 0..6 {
            cases.note(&probe, client.ask(&probe).by("web.1").map(drop_it));
        }
    }
    cases.end(&scene).unwrap();
    // Whatever was refused there went on there, and n1 never heard of it.
    let there = scene.agent("n2");
    counted(there, "second_chance", 2..=u64::MAX);
    let refused = metric(there, "weir_drops_total", "reason=\"task_refused\"");
    counted(there, "second_chance", refused..=refused);
    counted(scene.agent("n1"), "task_refused", 0..=0);
}

#[test]
fn the_first_datagram_of_a_client_is_answered_though_tasks_refuse_it() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder()).unwrap();
    scene.service("web", PORT).set("eject", false);
    scene.task("web", "n1", "web.1").unwrap();
    // Nobody listens in these: one on the node of the other, one alone on its node.
    for (host, name) in [("n1", "web.2"), ("n2", "web.3")] {
        let refusing = scene.lab.task(host, name).unwrap();
        scene.mesh.service("web").task(&refusing);
        scene.tasks.insert(name.to_owned(), refusing);
    }
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    let mut asked = 0;
    for target in scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)) {
        for _ in 0..6 {
            asked += u64::from(target.ip() == scene.lab.host("n1").targets(PORT)[0].ip());
            cases.note(target, client.ask(&Probe::udp(target)).by("web.1").map(drop_it));
        }
    }
    cases.end(&scene).unwrap();
    let agent = scene.agent("n1");
    counted(agent, "task_refused", 1..=u64::MAX);
    // What is sent again is the client's flow as before.
    let labels = format!("service=\"web\",protocol=\"udp\",port=\"{PORT}\"");
    let flows = metric(agent, "weir_service_connections_total", &labels);
    assert!(flows >= asked, "{flows} of {asked}");
}

#[test]
fn a_datagram_to_a_task_that_has_closed_its_port_is_the_last_that_is_lost() {
    let mut scene = scene();
    scene.start().unwrap();
    let target = scene.lab.host("n1").targets(PORT)[0];
    let netns = scene.lab.client("c1").netns();
    let talk = eventually("a session with web.2", 5 * SECOND, || {
        let mut talk = Probe::udp(target).open_in(netns)?;
        talk.ask().by("web.2")?;
        anyhow::Ok(talk)
    });
    let mut talk = talk.unwrap();
    scene.tasks.get_mut("web.2").unwrap().kill9();
    let start = Instant::now();
    let answered = eventually("another task", 10 * SECOND, || {
        let seen = talk.ask();
        seen.by("web.1").map(drop_it)
    });
    answered.unwrap();
    assert!(start.elapsed() < 9 * SECOND, "{:?}", start.elapsed());
}

#[test]
fn descriptors_that_run_out_turn_new_clients_away_and_leave_the_others_alone() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder().hosts(1)).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene
        .start_with(|_, config| {
            config.set("proxy.connections", 10);
        })
        .unwrap();
    let target = scene.lab.host("n1").targets(PORT)[0];
    let netns = scene.lab.client("c1").netns();
    let mut talks: Vec<_> = (0..10).map(|_| Probe::tcp(target).open_in(netns).unwrap()).collect();
    assert!(talks.iter_mut().all(|talk| talk.ask().task.is_some()));
    for _ in 0..5 {
        let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
        assert!(seen.task.is_none(), "{seen}");
    }
    counted(scene.agent("n1"), "too_many", 5..=5);
    assert!(talks.iter_mut().all(|talk| talk.ask().task.is_some()));
    drop(talks);
    eventually("room again", 5 * SECOND, || {
        scene.lab.client("c1").ask(&Probe::tcp(target)).by("web.1").map(drop_it)
    })
    .unwrap();
}
