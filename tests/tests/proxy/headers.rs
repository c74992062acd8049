//! Client addresses: what tasks see, and PROXY headers to them and from clients.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Shutdown, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use weir_tests::documents::block;
use weir_tests::{Cases, Probe, Scene};

use crate::{PORT, SECOND, connect, counted, read_all, scene};

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

#[test]
fn tasks_of_a_transparent_service_see_the_client_wherever_it_enters() {
    let mut scene = scene();
    scene.mesh.service("web").set("transparent", true);
    let rules = block("docs/proxy.md", "for iptables in").unwrap();
    for host in scene.lab.hosts() {
        let done = host.run(|| Command::new("sh").args(["-ec", &rules]).output()).unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    scene.start().unwrap();
    let client = scene.lab.client("c1");
    let mut cases = Cases::default();
    for target in scene.lab.hosts().iter().flat_map(|host| host.targets(PORT)) {
        let own = client.addresses().iter().find(|own| own.is_ipv4() == target.is_ipv4()).unwrap();
        // From both tasks, one of which is on the other node.
        for probe in [Probe::tcp(target), Probe::udp(target)] {
            let mut tasks = BTreeSet::new();
            let seen = (0..8).try_for_each(|_| {
                let seen = client.ask(&probe);
                let from = seen.client.with_context(|| seen.to_string())?;
                ensure!(from.ip() == *own, "{seen}");
                tasks.extend(seen.task.clone());
                seen.answered_from(target).map(drop)
            });
            let both = seen.and_then(|()| {
                ensure!(tasks.len() == 2, "only {tasks:?}");
                Ok(())
            });
            cases.note(probe, both);
        }
    }
    cases.end(&scene).unwrap();
    // Much in both directions, and one side that ends first.
    let target = scene.lab.host("n1").targets(PORT)[0];
    let mut talk = connect(&scene, target);
    talk.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    talk.shutdown(Shutdown::Write).unwrap();
    assert!(
        read_all(talk).unwrap().starts_with(b"HTTP/1."),
        "an answer after the client has ended"
    );
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
    counted(scene.agent("n1"), "proxy_header", 1..=1);
    // Of somebody who is not trusted it is what any client may say.
    let (own, got) = ask(8082, &format!("{header}hello"));
    let ours = format!("PROXY TCP4 {} {} {} 8082\r\n", own.ip(), target(8082).ip(), own.port());
    assert_eq!(got.unwrap(), format!("{ours}{header}hello"));
}
