//! What the commands say of a real agent, and do to it.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use weir_tests::{Agent, How, Lab, Mesh, Probe, Publish, Scene, eventually};

const SECOND: Duration = Duration::from_secs(1);
const WEB: u16 = 8080;
const GUARDED: u16 = 8081;
const HOSTED: u16 = 8082;
const EMPTY: u16 = 8083;

/// `web` with a task on each node, `guarded` that denies the client, `hosted` in host mode on n2 alone,
/// and `empty` without tasks.
fn scene() -> Scene {
    let mut scene = Scene::new(Lab::builder()).unwrap();
    let denied: Vec<toml::Value> = {
        let client = scene.lab.client("c1").addresses();
        client.iter().map(|address| address.to_string().into()).collect()
    };
    scene.service("web", WEB);
    scene.task("web", "n1", "web.1").unwrap();
    scene.task("web", "n2", "web.2").unwrap();
    scene.service("guarded", GUARDED).set("deny", denied);
    scene.service("empty", EMPTY);
    scene.mesh.service("hosted").publish(Publish::host_mode(HOSTED, 80, "tcp"));
    let Scene { mesh, tasks, .. } = &mut scene;
    mesh.service("guarded").task(&tasks["web.1"]);
    mesh.service("hosted").task(&tasks["web.2"]);
    scene.start().unwrap();
    scene
}

fn v4(addresses: &[IpAddr]) -> IpAddr {
    *addresses.iter().find(|address| address.is_ipv4()).unwrap()
}

/// What a command prints, with its exit code, runs of blanks as one.
fn said(agent: &Agent, arguments: &[&str]) -> (i32, String) {
    let (code, text) = agent.weir(arguments).unwrap();
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    (code, lines.collect::<Vec<_>>().join("\n"))
}

fn json(agent: &Agent, arguments: &[&str]) -> Value {
    let (_, text) = agent.weir(&[arguments, &["-o", "json"]].concat()).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

#[test]
fn the_commands_say_what_the_mesh_does_and_the_mesh_does_what_they_say() {
    let mut scene = scene();
    tasks_and_services(&scene);
    traces(&scene);
    flows(&scene);
    drains(&mut scene);
}

fn tasks_and_services(scene: &Scene) {
    let agent = scene.agent("n1");
    let [one, two] = ["web.1", "web.2"].map(|name| {
        let addresses = scene.tasks[name].addresses().iter();
        addresses.map(ToString::to_string).collect::<Vec<_>>().join(",")
    });
    let expected = format!(
        "Task Service Node Address State Why\nweb.1 web n1 {one} active\nweb.2 web n2 {two} active"
    );
    assert_eq!(said(agent, &["tasks", "web"]), (0, expected));
    let (code, text) = said(agent, &["tasks", "wbe"]);
    assert_eq!((code, text.as_str()), (2, "weir: no service \"wbe\"; did you mean \"web\"?"));
    let (code, text) = said(agent, &["tasks", "--node", "n2"]);
    assert!(code == 0 && !text.contains("web.1") && text.contains("web.2 web n2"), "{text}");

    let own = v4(scene.lab.host("n1").addresses());
    let [one, two] = ["web.1", "web.2"].map(|name| v4(scene.tasks[name].addresses()));
    let (code, text) = said(agent, &["services", "web", "-o", "ipvsadm"]);
    let expected = format!(
        "IP Virtual Server version 1.2.1 (size=4096)\n\
         Prot LocalAddress:Port Scheduler Flags\n\
         -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
         TCP {own}:{WEB} rr\n-> {one}:80 Masq 1 0 0\n-> {two}:80 Tunnel 1 0 0\n\
         UDP {own}:{WEB} rr\n-> {one}:53 Masq 1 0 0\n-> {two}:53 Tunnel 1 0 0"
    );
    assert_eq!((code, text), (0, expected));

    let (code, text) = said(agent, &["services", "web", "--rate"]);
    assert!(code == 0 && text.starts_with("Prot Published Service CPS InPPS"), "{text}");
    assert!(text.contains("TCP *:8080 web 0 0 0 0 0"), "{text}");
}

fn traces(scene: &Scene) {
    let agent = scene.agent("n1");
    let own = v4(scene.lab.host("n1").addresses());
    let other = v4(scene.lab.host("n2").addresses());
    let client = v4(scene.lab.client("c1").addresses());
    let (one, two) = (v4(scene.tasks["web.1"].addresses()), v4(scene.tasks["web.2"].addresses()));
    let trace = |from: &str, to: String| said(agent, &["trace", from, &to]);

    let (code, text) = trace(&client.to_string(), format!("{own}:{WEB}"));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(code, 0, "{text}");
    assert_eq!(lines[0], format!("tcp {client} -> {own}:{WEB}, enters n1 from outside"));
    assert_eq!(lines[1], "served by web: round-robin: in turn among 2 tasks");
    assert_eq!(lines[2], "clients: everybody may be a client");
    let start = format!("50 % web.1 n1 {one}:80 local, into the namespace behind interface ");
    assert!(
        lines[4].starts_with(&start) && lines[4].ends_with(&format!("kept {client}")),
        "{text}"
    );
    assert_eq!(lines[5], format!("50 % web.2 n2 {two}:80 tunnel to n2 ({other}) kept {client}"));

    for (from, to, code, reason) in [
        (client, format!("{own}:{GUARDED}"), 1, format!("denied: guarded does not admit {client}")),
        (client, format!("{own}:{EMPTY}"), 1, "no backend: empty has no active task with an IPv4 address".into()),
        (
            client,
            format!("{own}:{HOSTED}"),
            1,
            "passes: hosted publishes tcp/8082 in host mode and has no task on this node\n-> its tasks: n2".into(),
        ),
        (client, format!("{own}:9"), 1, "passes: no service publishes tcp/9".into()),
        (client, format!("{other}:{WEB}"), 1, format!("passes: {other} is the address of n2, not of this node\n-> run weir trace on n2")),
        (own, format!("{own}:{WEB}"), 0, "from a process of n1\nserved by web".into()),
        (one, format!("{own}:{WEB}"), 0, "from a container of n1\nserved by web".into()),
    ] {
        let (ended, text) = trace(&from.to_string(), to.clone());
        assert!(ended == code && text.contains(&reason), "{from} {to}: {ended} {text}");
    }
    let (code, text) = trace(&client.to_string(), "[fd77::11]:80".into());
    assert!(code == 2 && text.contains("one is IPv4, the other IPv6"), "{text}");

    // What it says of processes and containers is what they see.
    let inside = json(agent, &["trace", "localhost", &format!("localhost:{WEB}")]);
    assert_eq!(
        (&inside["enters"], &inside["tasks"][0]["client_kept"]),
        (&"process".into(), &false.into())
    );
    let probes: Vec<_> = (0..6).map(|_| Probe::tcp(format!("127.0.0.1:{WEB}"))).collect();
    for seen in scene.lab.host("n1").probe(&probes).unwrap() {
        let named = |task: &Value| task["task"].as_str() == seen.task.as_deref();
        assert!(inside["tasks"].as_array().unwrap().iter().any(named), "{seen}: {inside}");
    }
    let container = json(agent, &["trace", &one.to_string(), &format!("{own}:{WEB}")]);
    let seen = scene.tasks["web.1"].probe(&[Probe::tcp(format!("{own}:{WEB}"))]).unwrap();
    let client = seen[0].client.unwrap().ip();
    assert_eq!(container["tasks"][0]["sees"], format!("{client}, of this node"), "{container}");
}

fn flows(scene: &Scene) {
    let agent = scene.agent("n1");
    let own = v4(scene.lab.host("n1").addresses());
    let netns = scene.lab.client("c1").netns();
    let mut tcp = Probe::new(How::Tcp, SocketAddr::new(own, WEB)).open_in(netns).unwrap();
    let mut udp = Probe::new(How::Udp, SocketAddr::new(own, WEB)).open_in(netns).unwrap();
    let (by_tcp, by_udp) = (tcp.ask(), udp.ask());
    let client = by_tcp.client.unwrap();
    let listed = json(agent, &["flows", "--client", &client.to_string()]);
    let flow = &listed["flows"][0];
    assert_eq!(flow["task"].as_str(), by_tcp.task.as_deref(), "{listed}");
    assert_eq!(flow["asked"], format!("{own}:{WEB}"));
    assert_eq!((&flow["state"], &flow["client_kept"]), (&"established".into(), &true.into()));
    assert!(listed["flows"][1].is_null() && listed["more"] == false, "{listed}");
    // The trace of a flow that is known is its task.
    let known = json(agent, &["trace", &client.to_string(), &format!("{own}:{WEB}")]);
    assert_eq!(known["tasks"][0]["task"].as_str(), by_tcp.task.as_deref(), "{known}");
    assert_eq!(known["reason"], "this node remembers the flow, which stays with its task");
    // The flows that came by n1 to the task of n2.
    let elsewhere = json(scene.agent("n2"), &["flows", "--service", "web", "--backend", "web.2"]);
    let entered = elsewhere["flows"].as_array().unwrap().iter().any(|it| it["entered"] == "n1");
    let there = [&by_tcp, &by_udp].iter().any(|seen| seen.task.as_deref() == Some("web.2"));
    assert!(entered || !there, "{elsewhere}");

    let limited = json(agent, &["flows", "--limit", "1"]);
    assert_eq!((limited["flows"].as_array().unwrap().len(), &limited["more"]), (1, &true.into()));
    for (arguments, problem) in [
        (
            &["flows", "kill"][..],
            "nothing says which flows: name service, client, backend or state, or all",
        ),
        (&["flows", "--state", "open"], "no state \"open\"; write one of syn, established,"),
        (&["flows", "--service", "wbe"], "no service \"wbe\"; did you mean \"web\"?"),
        (&["flows", "--backend", "web.3"], "no task \"web.3\"; did you mean \"web."),
        (&["flows", "--limit", "10001"], "limit=10001: write a number from 1 to 10000"),
    ] {
        let (code, text) = said(agent, arguments);
        assert!(code == 2 && text.contains(problem), "{arguments:?}: {code} {text}");
    }
    for path in ["/api/v1/flows", "/api/v1/drained"] {
        assert_eq!(agent.http(path).unwrap().status, 403, "{path} is for the socket alone");
    }

    let killed = json(agent, &["flows", "kill", "--client", &client.to_string()]);
    assert_eq!(killed["killed"], 1, "{killed}");
    let seen = tcp.ask();
    assert!(seen.is_reset(), "the client is told at its next packet: {seen}");
    assert_eq!(udp.ask().task, by_udp.task, "the other flow goes on");
    let again = json(agent, &["flows", "--client", &client.to_string()]);
    assert!(again["flows"].as_array().unwrap().is_empty(), "{again}");
}

/// Every new flow at n1 avoids a task.
fn avoided(scene: &Scene, task: &str) -> Result<()> {
    for target in scene.lab.host("n1").targets(WEB) {
        for _ in 0..4 {
            let seen = scene.lab.client("c1").ask(&Probe::tcp(target));
            ensure!(seen.task.is_some() && seen.task.as_deref() != Some(task), "{seen}");
        }
    }
    Ok(())
}

fn drains(scene: &mut Scene) {
    let agent = scene.agent("n1").clone();
    let own = v4(scene.lab.host("n1").addresses());
    let netns = scene.lab.client("c1").netns();
    let mut with_one = eventually("a flow with web.1", 5 * SECOND, || {
        let mut talk = Probe::new(How::Tcp, SocketAddr::new(own, WEB)).open_in(netns)?;
        talk.ask().by("web.1")?;
        anyhow::Ok(talk)
    })
    .unwrap();
    let (code, text) = said(&agent, &["drain", "task", "web.1"]);
    assert!(code == 2 && text.contains("name the service"), "of guarded and of web: {text}");
    let (code, text) = said(&agent, &["drain", "task", "web.1", "--service", "web"]);
    assert_eq!((code, text.as_str()), (0, "Drained task Service Node\nweb.1 web n1"));
    eventually("new flows to avoid web.1", 5 * SECOND, || avoided(scene, "web.1")).unwrap();
    with_one.ask().by("web.1").unwrap();
    let (code, text) = said(&agent, &["tasks", "web"]);
    assert!(code == 1 && text.contains("draining drained by hand"), "{code} {text}");
    let (code, text) = said(&agent, &["status"]);
    assert!(code == 1 && text.contains("drain task web.1 of web is drained by hand"), "{text}");

    agent.restart().unwrap();
    agent.wait_ready().unwrap();
    assert!(said(&agent, &["drain", "list"]).1.contains("web.1 web n1"), "kept over a restart");
    avoided(scene, "web.1").unwrap();
    with_one.ask().by("web.1").unwrap();

    assert_eq!(said(&agent, &["undrain", "task", "web.1"]).0, 0);
    let (code, text) = said(&agent, &["undrain", "task", "web.1"]);
    assert!(code == 2 && text.contains("is not drained by hand"), "{text}");
    assert_eq!(said(&agent, &["drain", "node"]).0, 0);
    eventually("the node to be not ready", 5 * SECOND, || {
        let answer = agent.http("/readyz")?;
        ensure!(
            answer.status == 503 && answer.body.contains("drain: this node"),
            "{}",
            answer.body
        );
        Ok(())
    })
    .unwrap();
    eventually("new flows to avoid this node's tasks", 5 * SECOND, || avoided(scene, "web.1"))
        .unwrap();
    assert_eq!(
        said(&agent, &["undrain", "all"]),
        (0, "nothing is drained by hand on this node".into())
    );
    agent.wait_ready().unwrap();
}

#[test]
fn what_is_watched_is_shown_again_and_what_happens_is_told() {
    let mut scene = Scene::new(Lab::builder().hosts(1)).unwrap();
    scene.service("web", WEB);
    scene.task("web", "n1", "web.1").unwrap();
    scene.service("empty", EMPTY);
    scene.start().unwrap();
    let agent = scene.agent("n1").clone();
    let own = SocketAddr::new(v4(scene.lab.host("n1").addresses()), EMPTY);
    let watching = std::thread::spawn(move || {
        agent.weir(&["monitor", "--for", "6s", "--every", "500ms", "-o", "json"])
    });
    std::thread::sleep(SECOND);
    for _ in 0..3 {
        assert!(scene.lab.client("c1").ask(&Probe::tcp(own)).task.is_none());
    }
    let mut mesh: Mesh = scene.mesh.clone();
    mesh.service("web").state("web.1", weir_tests::State::Draining);
    scene.mesh = mesh;
    scene.apply().unwrap();
    let (code, text) = watching.join().unwrap().unwrap();
    assert_eq!(code, 0, "{text}");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str, subject: &str| {
        events
            .iter()
            .filter(|it| it["kind"] == kind && it["subject"] == subject)
            .collect::<Vec<_>>()
    };
    let dropped: u64 =
        of("drop", "no_backend").iter().map(|it| it["count"].as_u64().unwrap()).sum();
    assert!(dropped >= 3, "{text}");
    let packets = of("packet", "no_backend");
    let to_empty = format!(" > {own} S; ");
    assert!(packets.len() >= 3, "{text}");
    for packet in packets {
        assert!(packet["text"].as_str().unwrap().contains(&to_empty), "{packet}");
        assert!(packet["text"].as_str().unwrap().starts_with("tcp 10.77.0.101:"), "{packet}");
        assert_eq!(packet["service"], "empty", "{packet}");
    }
    let drained = of("task", "web.1");
    assert!(
        drained.iter().any(|it| it["text"].as_str().unwrap().starts_with("active -> draining")),
        "{text}"
    );
}
