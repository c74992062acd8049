//! Where the proxy differs from the kernel plane (the table in `docs/proxy.md`), and what only it
//! does.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::firewall::{tcp, udp};
use weir_tests::lab::command;
use weir_tests::task::task_program;
use weir_tests::traffic::{FailureKind, HttpLoad};
use weir_tests::{
    Agent, Cases, Families, How, Lab, Plane, Probe, Publish, Scene, State, eventually,
};

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 8080;

/// `web.1` on n1 and `web.2` on n2, not started.
fn scene() -> Scene {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder()).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    scene
}

fn metric(agent: &Agent, name: &str, labels: &str) -> u64 {
    let text = agent.http("/metrics").unwrap().body;
    let line = text.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
    });
    let value =
        line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value.parse().unwrap());
    value.unwrap_or_default()
}

/// Counters are read at most once a second.
fn counted(agent: &Agent, reason: &str, times: u64) {
    eventually(&format!("{reason} to be counted"), 5 * SECOND, || {
        let counted = metric(agent, "weir_drops_total", reason);
        ensure!(counted == times, "{counted} and not {times}");
        Ok(())
    })
    .unwrap();
}

fn status(scene: &Scene, host: &str) -> String {
    scene.agent(host).api("/api/v1/status").unwrap().body
}

fn connect(scene: &Scene, target: SocketAddr) -> TcpStream {
    let stream = scene.lab.client("c1").run(|| TcpStream::connect_timeout(&target, 2 * SECOND));
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(3 * SECOND)).unwrap();
    stream
}

/// What comes until the other side ends.
fn read_all(mut stream: TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn tasks_see_the_node_in_place_of_the_client_unless_they_ask_for_a_header() {
    let mut scene = scene();
    scene.service("told", 8081).set("proxy_protocol", "v1");
    scene.mesh.service("told").publish("8082:53");
    scene.task("told", "n1", "told.1").unwrap();
    scene.service("told2", 8083).set("proxy_protocol", "v2");
    scene.mesh.service("told2").publish("8084:53");
    scene.task("told2", "n2", "told2.1").unwrap();
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    for target in scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)) {
        let seen = client.ask(&Probe::tcp(target));
        let own = client.addresses();
        let hidden = || {
            let client = seen.client.context("no client")?;
            ensure!(!own.contains(&client.ip()), "{seen}");
            Ok(())
        };
        cases.note(format!("{target}: the task sees a node"), hidden());
    }
    for host in scene.lab.hosts() {
        for target in host.targets(8082) {
            cases.note(format!("{target}: version 1"), header_of_version_1(&scene, target));
        }
        for target in host.targets(8084) {
            cases.note(format!("{target}: version 2"), header_of_version_2(&scene, target));
        }
        for target in host.targets(8083) {
            cases.note(format!("{target}: before every datagram"), each_datagram(&scene, target));
        }
    }
    cases.end(&scene).unwrap();
}

/// The task echoes what it gets: first the header, then what the client said.
fn header_of_version_1(scene: &Scene, target: SocketAddr) -> Result<()> {
    let mut stream = connect(scene, target);
    let own = stream.local_addr()?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let got = String::from_utf8(read_all(stream)?)?;
    let family = if own.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (own.ip(), target.ip());
    let expected = format!("PROXY {family} {from} {to} {} {}\r\nhello", own.port(), target.port());
    ensure!(got == expected, "{got:?} is not {expected:?}");
    Ok(())
}

fn header_of_version_2(scene: &Scene, target: SocketAddr) -> Result<()> {
    let mut stream = connect(scene, target);
    let own = stream.local_addr()?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let got = read_all(stream)?;
    let (header, rest) = got.split_at_checked(got.len().saturating_sub(5)).context("nothing")?;
    ensure!(rest == b"hello", "{got:?}");
    says(header, own, target)
}

/// That a header of version 2 names these two.
fn says(header: &[u8], own: SocketAddr, target: SocketAddr) -> Result<()> {
    ensure!(header.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21"), "no header: {header:?}");
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut expected = [octets(own.ip()), octets(target.ip())].concat();
    expected.extend(own.port().to_be_bytes());
    expected.extend(target.port().to_be_bytes());
    ensure!(header.get(16..) == Some(&expected[..]), "{header:?} does not say {own} {target}");
    Ok(())
}

fn each_datagram(scene: &Scene, target: SocketAddr) -> Result<()> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = scene.lab.client("c1").run(|| {
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(2 * SECOND))?;
        std::io::Result::Ok(socket)
    })?;
    for word in ["one", "two"] {
        socket.send(word.as_bytes())?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer)?;
        let said = &buffer[..length];
        let start = said.windows(4).position(|four| four == b"\r\n\r\n").context("no header")?;
        let (header, rest) = said[start..].split_at(said.len() - start - word.len());
        ensure!(rest == word.as_bytes(), "{said:?}");
        says(header, socket.local_addr()?, target)?;
    }
    Ok(())
}

#[test]
fn a_header_is_taken_from_trusted_senders_only_and_from_them_it_is_required() {
    let mut scene = scene();
    for (name, port, trusted) in [("inner", 8081, "10.77.0.101"), ("outer", 8082, "192.0.2.0/24")] {
        let service = scene.mesh.service(name);
        service.publish(format!("{port}:53").as_str()).publish(format!("{port}:53/udp").as_str());
        service.set("accept_proxy_protocol", vec![trusted]).set("proxy_protocol", "v1");
        scene.task(name, "n2", &format!("{name}.1")).unwrap();
    }
    scene.start().unwrap();
    let target = |port| scene.lab.host("n1").targets(port)[0];
    let header = "PROXY TCP4 198.51.100.7 203.0.113.9 4711 443\r\n";
    let ask = |port, text: &str| {
        let mut stream = connect(&scene, target(port));
        let own = stream.local_addr().unwrap();
        // In pieces: a header need not come whole.
        for piece in text.as_bytes().chunks(20) {
            // Whoever is turned away may meet the reset here.
            stream.write_all(piece).ok();
            thread::sleep(SECOND / 50);
        }
        stream.shutdown(Shutdown::Write).ok();
        (own, read_all(stream).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let (_, got) = ask(8081, &format!("{header}hello"));
    assert_eq!(got.unwrap(), format!("{header}hello"), "whom the sender speaks for is passed on");
    let (_, got) = ask(8081, "hello, I have no header");
    assert!(got.as_ref().map_or(true, String::is_empty), "{got:?}");
    counted(scene.agent("n1"), "proxy_header", 1);
    // Of somebody who is not trusted it is what any client may say.
    let (own, got) = ask(8082, &format!("{header}hello"));
    let ours = format!("PROXY TCP4 {} {} {} 8082\r\n", own.ip(), target(8082).ip(), own.port());
    assert_eq!(got.unwrap(), format!("{ours}{header}hello"));
}

#[test]
fn a_client_reaches_a_task_that_has_only_the_other_address_family() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder()).unwrap();
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
    let mut cases = Cases::default();
    for (port, task) in [(8081, "four.1"), (8082, "six.1")] {
        for target in scene.lab.hosts().iter().flat_map(|host| host.targets(port)) {
            for probe in [How::Tcp, How::Udp, How::UdpConnected].map(|how| Probe::new(how, target))
            {
                let seen = client.ask(&probe);
                let result = seen.by(task).and_then(|seen| seen.answered_from(target));
                cases.note(probe, result);
            }
        }
    }
    cases.end(&scene).unwrap();
}

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
fn connections_and_sessions_end_with_the_agent_and_it_serves_again_when_it_is_back() {
    let mut scene = scene();
    scene.start().unwrap();
    let target = scene.lab.host("n1").targets(PORT)[0];
    let netns = scene.lab.client("c1").netns();
    let mut stream = Probe::tcp(target).open_in(netns).unwrap();
    assert!(stream.ask().task.is_some());
    scene.agent("n1").kill9();
    let seen = stream.ask();
    assert!(seen.task.is_none(), "{seen}");
    scene.lab.client("c1").ask(&Probe::tcp(target)).refused_at_once().unwrap();
    scene.agent("n1").launch().unwrap();
    scene.agent("n1").wait_ready().unwrap();
    eventually("the port to be served again", 5 * SECOND, || {
        let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
        ensure!(seen.task.is_some(), "{seen}");
        Ok(())
    })
    .unwrap();
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
    scene.start().unwrap();
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
    let config = host.run_dir().join("plain.toml");
    let text = format!(
        "[node]\nname = \"n1\"\naddress = \"10.77.0.11\"\n\
         [dataplane]\nmode = \"proxy\"\npin = \"{}\"\n\
         [source.file]\npath = \"{}\"\n[socket]\npath = \"{}\"\n[state]\npath = \"{}\"\n",
        host.pin_dir().display(),
        scene.mesh.path().display(),
        host.run_dir().join("plain.sock").display(),
        host.run_dir().join("plain.json").display(),
    );
    std::fs::write(&config, text).unwrap();
    let drop = "--bounding-set=-net_bind_service";
    let mut command = command("setpriv", &["--inh-caps=-net_bind_service", drop]);
    command
        .arg(weir_tests::agent::agent_program().unwrap())
        .args(["agent", "--config"])
        .arg(&config);
    let mut agent = host.spawn(command).unwrap();
    let client = scene.lab.client("c1");
    eventually("the other port to be served", 10 * SECOND, || {
        ensure!(agent.is_running(), "the agent ended");
        client.ask(&Probe::tcp("10.77.0.11:8080")).by("web.1").map(drop_it)
    })
    .unwrap();
    let answer =
        host.netns().http_get("127.0.0.1:9950".parse().unwrap(), "/api/v1/status").unwrap();
    let told = "this process may not listen on tcp/80: ports below 1024 need CAP_NET_BIND_SERVICE";
    assert!(answer.body.contains(told), "{}", answer.body);
    agent.stop(5 * SECOND).unwrap();
}

fn drop_it<T>(_: T) {}

#[test]
fn without_programs_auto_chooses_the_proxy_and_says_why() {
    let mut scene = Scene::on(Plane::Proxy, Lab::builder().hosts(1)).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene.write().unwrap();
    let host = scene.lab.host("n1");
    let config = host.run_dir().join("auto.toml");
    let text = format!(
        "[node]\nname = \"n1\"\naddress = \"10.77.0.11\"\n[dataplane]\npin = \"{}\"\n\
         [source.file]\npath = \"{}\"\n[socket]\npath = \"{}\"\n[state]\npath = \"{}\"\n",
        host.pin_dir().display(),
        scene.mesh.path().display(),
        host.run_dir().join("auto.sock").display(),
        host.run_dir().join("auto.json").display(),
    );
    std::fs::write(&config, text).unwrap();
    let mut command = command(task_program().unwrap(), &["refuse-programs", "--"]);
    command
        .arg(weir_tests::agent::agent_program().unwrap())
        .args(["agent", "--config"])
        .arg(&config);
    let mut agent = host.spawn(command).unwrap();
    let client = scene.lab.client("c1");
    eventually("the port to be served", 10 * SECOND, || {
        ensure!(agent.is_running(), "the agent ended");
        client.ask(&Probe::tcp("10.77.0.11:8080")).by("web.1").map(drop_it)
    })
    .unwrap();
    let answer =
        host.netns().http_get("127.0.0.1:9950".parse().unwrap(), "/api/v1/status").unwrap();
    let status: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(status["dataplane"]["kind"], "proxy", "{status}");
    let reason = status["dataplane"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("not ebpf, since bpf: "), "{reason}");
    agent.stop(5 * SECOND).unwrap();
}

#[test]
fn an_agent_that_comes_back_with_the_proxy_takes_over_and_resets_only_what_is_in_mid_flight() {
    let mut scene = Scene::new(Lab::builder()).unwrap();
    scene.service("web", PORT);
    scene.task("web", "n1", "web.1").unwrap();
    scene.start().unwrap();
    let targets = scene.lab.host("n1").targets(PORT);
    let load = HttpLoad::new(scene.lab.client("c1").netns(), targets.clone()).connections(4);
    let load = load.timeout(5 * SECOND).rate(400).start().unwrap();
    let agent = scene.agent("n1");
    agent.stop().unwrap();
    let config = scene.lab.host("n1").run_dir().join("weir.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("mode = \"auto\"", "mode = \"proxy\"")).unwrap();
    agent.launch().unwrap();
    agent.wait_ready().unwrap();
    eventually("nothing of the kernel plane to be left", 10 * SECOND, || {
        ensure!(!scene.lab.host("n1").pin_dir().exists(), "there are pins");
        Ok(())
    })
    .unwrap();
    thread::sleep(SECOND);
    let report = load.stop().unwrap();
    // Four connections at a time: what the kernel carries at that moment is unknown to the stack.
    let resets = report.failed_by(FailureKind::Reset);
    assert!(report.ok > 200 && resets <= 4, "{report}");
    assert_eq!(report.failures(), resets, "{report}");
    let seen = scene.lab.client("c1").ask(&Probe::tcp(targets[0]));
    assert_ne!(seen.client.unwrap().ip(), scene.lab.client("c1").addresses()[0], "{seen}");
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
    let tasks = metric(agent, "weir_backend_accepted_total", "web.1")
        + metric(scene.agent("n2"), "weir_backend_accepted_total", "web.2");
    assert_eq!(tasks, 4, "each on its own node, once");
    let text = agent.cli(&["services", "web", "--stats"]).unwrap();
    assert!(text.contains("TCP *:8080"), "{text}");
}

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
    counted(scene.agent("n1"), "no_backend", 1);
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
        counted(scene.agent("n1"), reason, 4 - answered as u64);
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
            config.set("proxy.connect_timeout", "200ms");
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
        let counted = metric(agent, "weir_drops_total", reason);
        assert!(counted > 0, "{reason}");
    }
    let failed = metric(agent, "weir_drops_total", "connect_failed");
    cases.end(&scene).unwrap();
    assert_eq!(failed, 0, "nobody was turned away");
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
    counted(scene.agent("n1"), "too_many", 5);
    assert!(talks.iter_mut().all(|talk| talk.ask().task.is_some()));
    drop(talks);
    eventually("room again", 5 * SECOND, || {
        scene.lab.client("c1").ask(&Probe::tcp(target)).by("web.1").map(drop_it)
    })
    .unwrap();
}

#[test]
fn the_relay_hears_nodes_only() {
    let mut scene = scene();
    scene.start().unwrap();
    let relay = SocketAddr::new(scene.lab.host("n1").addresses()[0], 7952);
    let connected = scene.lab.client("c1").run(|| TcpStream::connect_timeout(&relay, SECOND));
    // The reset may come before anything can be said.
    if let Ok(mut stream) = connected {
        let _ = stream.write_all(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
        assert!(read_all(stream).is_err(), "a reset");
    }
    let socket = scene.lab.client("c1").run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.send_to(b"anything", relay).unwrap();
    counted(scene.agent("n1"), "unknown_sender", 2);
}

#[test]
fn a_thousand_changes_close_no_connection_and_take_no_memory() {
    let mut scene = scene();
    scene.start().unwrap();
    let netns = scene.lab.client("c1").netns();
    let targets: Vec<_> = scene.lab.hosts().iter().map(|host| host.targets(PORT)[0]).collect();
    let mut talks: Vec<_> =
        (0..400).map(|at| Probe::tcp(targets[at % 2]).open_in(netns).unwrap()).collect();
    assert!(talks.iter_mut().all(|talk| talk.ask().task.is_some()));
    let change = |scene: &mut Scene, round: u32| {
        scene.mesh.service("web").weight("web.1", 1 + round % 7);
        scene.mesh.write().unwrap();
        thread::sleep(SECOND / 100);
    };
    (0..200).for_each(|round| change(&mut scene, round));
    scene.apply().unwrap();
    let before = resident(scene.agent("n1"));
    (0..800).for_each(|round| change(&mut scene, round));
    scene.apply().unwrap();
    let after = resident(scene.agent("n1"));
    assert!(talks.iter_mut().all(|talk| talk.ask().task.is_some()));
    assert!(after < before + 4_000, "{before} KiB, then {after} KiB");
}

/// Resident memory in KiB.
fn resident(agent: &Agent) -> u64 {
    let pid = agent.pid().unwrap();
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn host_mode_ports_are_listened_on_where_a_task_runs_and_nowhere_else() {
    let mut scene = scene();
    scene.mesh.service("local").publish(Publish::host_mode(9090, 80, "tcp"));
    scene.task("local", "n2", "local.1").unwrap();
    scene.start().unwrap();
    let taken = |host: &str| {
        let bound = scene.lab.host(host).run(|| TcpListener::bind("0.0.0.0:9090"));
        bound.is_err()
    };
    assert!(!taken("n1"), "n1 has no task");
    assert!(taken("n2"));
}
