//! What users do to a Swarm, in Docker's own words, and who answers then at every node.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use serde_json::{Value, json};
use weir_tests::swarm::{Node, SETTLE, Swarm, TaskAt, Update};
use weir_tests::traffic::HttpLoad;
use weir_tests::{How, Plane, Probe, Seen, Talk, eventually, on_both_planes};

const SECOND: Duration = Duration::from_secs(1);
const HTTP: (How, u16) = (How::Tcp, 8081);

on_both_planes! {
    all_running_tasks_answer_at_every_node_whatever_docker_does_to_them
    whatever_way_a_port_is_published_it_is_served_though_two_nodes_have_one_host_name
    a_task_takes_flows_from_when_it_is_healthy_until_it_is_told_to_end
}

fn swarm(plane: Plane) -> Swarm {
    let swarm = Swarm::builder().plane(plane).with_images().unwrap().build().unwrap();
    swarm.deploy_weir().unwrap();
    say(&swarm, "weir is ready");
    for node in swarm.nodes() {
        let status = node.weir("/api/v1/status").unwrap().body;
        let by_proxy = status.contains("TCP by one listener (sk_lookup)");
        assert_eq!(by_proxy, plane == Plane::Proxy, "{status}");
    }
    swarm
}

fn say(swarm: &Swarm, what: &str) {
    eprintln!("{:5.1} s: {what}", swarm.age().as_secs_f32());
}

fn all(swarm: &Swarm) -> Vec<&Node> {
    swarm.nodes().iter().collect()
}

/// `docker service create` without looking for the image in a registry.
fn create(swarm: &Swarm, arguments: &str) {
    swarm.docker(&format!("service create -d --no-resolve-image {arguments}")).unwrap();
}

/// `docker service update` that does not wait five seconds for stability.
fn update(swarm: &Swarm, arguments: &str) {
    swarm.docker(&format!("service update -d --no-resolve-image {arguments}")).unwrap();
}

/// Every node answers from all running tasks of `web`, of which there are so many.
fn answered(swarm: &Swarm, tasks: usize, what: &str) {
    swarm.wait_running("web", tasks).unwrap();
    swarm.wait_answered(&all(swarm), "web", HTTP).unwrap();
    say(swarm, what);
}

fn all_running_tasks_answer_at_every_node_whatever_docker_does_to_them(plane: Plane) {
    let swarm = swarm(plane);
    create(&swarm, "--name web --replicas 3 -p 8081:80 -p 8081:53/udp task:v1");
    answered(&swarm, 3, "three replicas answer");
    swarm.wait_answered(&all(&swarm), "web", (How::Udp, 8081)).unwrap();
    swarm.docker("service scale -d web=6").unwrap();
    answered(&swarm, 6, "six replicas answer");

    let mut kept = with_own_task(&swarm, "n2");
    kill_task_of(&swarm, "n2", &mut kept);
    answered(&swarm, 6, "the one that was killed is replaced");

    let pace = "--update-parallelism 2 --update-delay 1s --update-monitor 500ms \
                --rollback-parallelism 3 --rollback-monitor 500ms";
    update(&swarm, &format!("--image task:v2 {pace} web"));
    swarm.wait_updated("web", Update::Completed).unwrap();
    answered(&swarm, 6, "all are updated");
    assert_eq!(versions(&swarm), ["v2"]);
    swarm.docker("service rollback -d web").unwrap();
    swarm.wait_updated("web", Update::RolledBack).unwrap();
    answered(&swarm, 6, "the update is rolled back");
    assert_eq!(versions(&swarm), ["v1"]);

    let mut kept = with_own_task(&swarm, "n2");
    swarm.docker("node update --availability drain n2").unwrap();
    eventually("n2 to be empty", SETTLE, || {
        let left = swarm.node("n2").tasks("web")?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .unwrap();
    swarm.wait_running("web", 6).unwrap();
    swarm.wait_answered(&[swarm.node("n1"), swarm.node("n3")], "web", HTTP).unwrap();
    // Swarm ends the agent of a drained node, and a proxy with it.
    if plane == Plane::Ebpf {
        answers_without_agent(&swarm, "n2");
        // Its task has ended with the agent, which told the kernel.
        let seen = kept.ask();
        assert!(seen.task.is_some(), "{seen}");
        say(&swarm, "n2 is drained, and answers");
    }
    swarm.docker("node update --availability active n2").unwrap();
    swarm.node("n2").wait_weir().unwrap();
    eventually("a datagram of a kept socket to reach another task", Duration::from_secs(5), || {
        let seen = kept.ask();
        ensure!(seen.task.is_some(), "{seen}");
        Ok(())
    })
    .unwrap();
    answered(&swarm, 6, "n2 knows all tasks again");

    swarm.node("n3").stop_docker().unwrap();
    let rest = [swarm.node("n1"), swarm.node("n2")];
    eventually("the tasks of n3 to be started elsewhere", 2 * SETTLE, || {
        let running: usize =
            rest.iter().map(|node| node.tasks("web").map_or(0, |tasks| tasks.len())).sum();
        ensure!(running == 6, "{running} run");
        Ok(())
    })
    .unwrap();
    swarm.wait_answered(&rest, "web", HTTP).unwrap();
    say(&swarm, "n1 and n2 answer without n3");
    swarm.node("n3").start_docker().unwrap();
    swarm.wait_nodes(3).unwrap();
    swarm.node("n3").wait_weir().unwrap();
    answered(&swarm, 6, "n3 is back, and answers");

    swarm.docker("service rm web").unwrap();
    refused(&swarm, 8081);
    say(&swarm, "the service is removed");
    a_worker_leaves(&swarm);
    swarm.finish().unwrap();
}

/// n3 leaves the Swarm for good: its tasks are started elsewhere, and the others know it no more.
fn a_worker_leaves(swarm: &Swarm) {
    create(swarm, "--name last --replicas 3 -p 8082:80 task:v1");
    swarm.wait_running("last", 3).unwrap();
    swarm.wait_answered(&all(swarm), "last", (How::Tcp, 8082)).unwrap();
    swarm.node("n3").docker("swarm leave").unwrap();
    let rest = [swarm.node("n1"), swarm.node("n2")];
    eventually("its tasks to be started elsewhere", 2 * SETTLE, || {
        let running: usize =
            rest.iter().map(|node| node.tasks("last").map_or(0, |tasks| tasks.len())).sum();
        ensure!(running == 3, "{running} run");
        Ok(())
    })
    .unwrap();
    swarm.wait_answered(&rest, "last", (How::Tcp, 8082)).unwrap();
    eventually("Docker to forget it", SETTLE, || swarm.docker("node rm n3").map(drop)).unwrap();
    for node in rest {
        eventually("the mesh to forget it", SETTLE, || {
            let known: Value = serde_json::from_str(&node.weir("/api/v1/nodes")?.body)?;
            let known = known["nodes"].as_array().map_or(0, Vec::len);
            ensure!(known == 2, "{known} nodes");
            Ok(())
        })
        .unwrap();
    }
    swarm.wait_answered(&rest, "last", (How::Tcp, 8082)).unwrap();
    say(swarm, "n3 has left, n1 and n2 answer");
}

/// A UDP socket whose datagrams a node gives to a task of its own.
fn with_own_task(swarm: &Swarm, node: &str) -> Talk {
    let node = swarm.node(node);
    let own: Vec<_> = node.tasks("web").unwrap().iter().map(TaskAt::said).collect();
    eventually("a task of the node itself to answer", SETTLE, || {
        let mut talk = Probe::udp(node.target(8081)).open_in(swarm.client("c1").netns())?;
        let seen = talk.ask();
        let by_own =
            seen.task.as_ref().is_some_and(|task| own.iter().any(|own| task.ends_with(own)));
        ensure!(by_own, "{seen}");
        Ok(talk)
    })
    .unwrap()
}

/// Kills the task that a UDP socket's datagrams go to: the socket's next ones reach another.
fn kill_task_of(swarm: &Swarm, node: &str, kept: &mut Talk) {
    let task = kept.ask().task.unwrap();
    let container = task.rsplit('@').next().unwrap();
    swarm.node(node).docker(&format!("kill {container}")).unwrap();
    // Each of which waits for two seconds.
    eventually("a datagram of the kept socket to reach another task", 7 * SECOND, || {
        let seen = kept.ask();
        ensure!(seen.task.as_ref().is_some_and(|other| *other != task), "{seen}");
        Ok(())
    })
    .unwrap();
}

/// A drained node has no agent: Swarm ends the tasks of global services there, too. Its kernel
/// forwards to the tasks that it last knew; for those that have ended since, their nodes choose.
fn answers_without_agent(swarm: &Swarm, node: &str) {
    let node = swarm.node(node);
    eventually("the agent to be gone", SETTLE, || {
        let agents = node.tasks("weir_agent")?;
        ensure!(agents.is_empty(), "{agents:?}");
        Ok(())
    })
    .unwrap();
    let client = swarm.client("c1");
    for _ in 0..20 {
        let seen = client.ask(&Probe::tcp(node.target(HTTP.1)));
        seen.client_kept(client.addresses()[0]).unwrap();
    }
}

/// What the tasks at the port of `web` say they are.
fn versions(swarm: &Swarm) -> Vec<String> {
    let mut versions: Vec<_> = (0..6)
        .map(|_| swarm.client("c1").ask(&Probe::tcp(swarm.node("n1").target(8081))).task.unwrap())
        .map(|task| task.split('@').next().unwrap().to_owned())
        .collect();
    versions.dedup();
    versions
}

/// Nobody answers at a port any more, on no node.
fn refused(swarm: &Swarm, port: u16) {
    for node in swarm.nodes() {
        eventually(&format!("{}:{port} to refuse", node.name()), SETTLE, || {
            let seen = swarm.client("c1").ask(&Probe::tcp(node.target(port)));
            ensure!(seen.errno == Some(libc::ECONNREFUSED), "{seen:?}");
            Ok(())
        })
        .unwrap();
    }
}

/// The published ports of a service in the order of their targets, as Docker shows them.
fn published(swarm: &Swarm, service: &str) -> Vec<u16> {
    let inspected = swarm.inspect(service).unwrap();
    let mut ports = inspected["Endpoint"]["Ports"].as_array().cloned().unwrap_or_default();
    ports.sort_by_key(|port| port["TargetPort"].as_u64());
    let numbers = ports.iter().filter_map(|port| port["PublishedPort"].as_u64());
    numbers.map(|port| u16::try_from(port).unwrap()).collect()
}

fn whatever_way_a_port_is_published_it_is_served_though_two_nodes_have_one_host_name(plane: Plane) {
    // Swarm knows nodes by identity; so does the mesh.
    let builder = Swarm::builder().plane(plane).host_name("n3", "n2");
    let swarm = builder.with_images().unwrap().build().unwrap();
    swarm.deploy_weir().unwrap();
    each_is_itself(&swarm);
    let nodes = all(&swarm);
    create(&swarm, "--name everywhere --mode global -p 8001:80 task:v1");
    create(&swarm, "--name auto -p 80 task:v1");
    create(&swarm, "--name range --replicas 2 -p 8100-8101:79-80 -p 8100-8101:53-54/udp task:v1");
    create(&swarm, "--name both --replicas 2 -p 8002:53/tcp -p 8002:53/udp task:v1");
    create(&swarm, "--name long --publish published=8003,target=80,protocol=tcp task:v1");
    create(&swarm, "--name moving --replicas 2 -p 8004:80 task:v1");
    let by_host = "--publish mode=host,published=8005,target=80";
    create(&swarm, &format!("--name fixed --mode global {by_host} task:v1"));
    create(&swarm, "--name ephemeral --publish mode=host,target=80 task:v1");
    for (service, tasks) in [("everywhere", 3), ("range", 2), ("both", 2), ("moving", 2)] {
        swarm.wait_running(service, tasks).unwrap();
    }
    let served = |service: &str, how, port| {
        swarm.wait_answered(&nodes, service, (how, port)).unwrap();
        say(&swarm, &format!("{service} answers at {port}"));
    };
    served("everywhere", How::Tcp, 8001);
    served("auto", How::Tcp, published(&swarm, "auto")[0]);
    served("range", How::Tcp, 8101);
    served("range", How::Udp, 8100);
    served("both", How::Udp, 8002);
    echoes(&swarm, 8002);
    served("long", How::Tcp, 8003);

    served("moving", How::Tcp, 8004);
    update(&swarm, "--publish-add 8014:80 moving");
    served("moving", How::Tcp, 8014);
    served("moving", How::Tcp, 8004);
    update(&swarm, "--publish-rm 80 --publish-add 8024:80 moving");
    served("moving", How::Tcp, 8024);
    refused(&swarm, 8004);
    refused(&swarm, 8014);

    in_host_mode(&swarm);
    stack(&swarm);
    swarm.finish().unwrap();
}

/// Each node is in the mesh, once, under a name of its own, and knows which it is.
fn each_is_itself(swarm: &Swarm) {
    let mut names = BTreeSet::new();
    for node in swarm.nodes() {
        eventually(&format!("{} to know itself", node.name()), SETTLE, || {
            let status: Value = serde_json::from_str(&node.weir("/api/v1/status")?.body)?;
            ensure!(status["problems"] == json!([]), "{status}");
            let known: Value = serde_json::from_str(&node.weir("/api/v1/nodes")?.body)?;
            let known = known["nodes"].as_array().cloned().unwrap_or_default();
            let own: Vec<_> = known.iter().filter(|node| node["here"] == true).collect();
            let address = node.address().to_string();
            ensure!(
                known.len() == 3 && own.len() == 1 && own[0]["address"] == address,
                "{known:?}"
            );
            ensure!(status["node"] == own[0]["name"], "{status}");
            names.insert(own[0]["name"].to_string());
            Ok(())
        })
        .unwrap();
    }
    assert_eq!(names.len(), 3, "{names:?}");
}

/// A TCP echo server, without an HTTP answer, is at a port of every node.
fn echoes(swarm: &Swarm, port: u16) {
    use std::io::{Read, Write};
    for node in swarm.nodes() {
        let target = node.target(port);
        let mut said = [0; 5];
        swarm
            .client("c1")
            .run(|| -> std::io::Result<()> {
                let mut stream = std::net::TcpStream::connect(target)?;
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                stream.write_all(b"hello")?;
                stream.read_exact(&mut said)
            })
            .unwrap();
        assert_eq!(&said, b"hello");
    }
}

/// A port in host mode is that of the node's own tasks, and refused where there are none.
fn in_host_mode(swarm: &Swarm) {
    swarm.wait_running("fixed", 3).unwrap();
    for node in swarm.nodes() {
        swarm.wait_answered(&[node], "fixed", (How::Tcp, 8005)).unwrap();
    }
    swarm.wait_running("ephemeral", 1).unwrap();
    let at = swarm.tasks("ephemeral").unwrap().pop().unwrap();
    let shown = swarm.node(&at.node).docker(&format!("port {} 80/tcp", at.container)).unwrap();
    let port = shown.lines().next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    swarm.wait_answered(&[swarm.node(&at.node)], "ephemeral", (How::Tcp, port)).unwrap();
    let others = swarm.nodes().iter().filter(|node| node.name() != at.node);
    for other in others {
        let seen = swarm.client("c1").ask(&Probe::tcp(other.target(port)));
        assert_eq!(seen.errno, Some(libc::ECONNREFUSED), "{seen:?}");
    }
    say(swarm, "host mode is that of the node");
}

const STACK: &str = r#"version: "3.8"
services:
  front:
    image: task:v1
    ports: ["8006:80"]
    deploy: {replicas: 2}
  back:
    image: task:v2
    ports: ["8007:80"]
    networks: [default, shared]
    deploy: {replicas: 2, endpoint_mode: vip}
networks:
  shared: {external: true}
"#;

const SECOND_STACK: &str = r#"version: "3.8"
services:
  guest:
    image: task:v1
    networks: [shared]
  stranger:
    image: task:v1
networks:
  shared: {external: true}
"#;

fn stack(swarm: &Swarm) {
    swarm.docker("network create -d overlay shared").unwrap();
    for (stack, text) in [("shop", STACK), ("visit", SECOND_STACK)] {
        let file = swarm.node("n1").host().run_dir().join(format!("{stack}.yml"));
        fs::write(&file, text).unwrap();
        swarm.deploy(stack, &[&file]).unwrap();
    }
    for (service, port) in [("shop_front", 8006), ("shop_back", 8007)] {
        swarm.wait_running(service, 2).unwrap();
        swarm.wait_answered(&all(swarm), service, (How::Tcp, port)).unwrap();
    }
    say(swarm, "both services of the stack answer");
    swarm.wait_running("visit_guest", 1).unwrap();
    swarm.wait_running("visit_stranger", 1).unwrap();
    // Virtual addresses the proxy leaves to Docker, which has no IPVS here.
    if swarm.plane() == Plane::Proxy {
        return;
    }
    // By the name that Docker's resolver knows, at the virtual address behind it.
    reaches_both(swarm, "shop_front", "back");
    reaches_both(swarm, "visit_guest", "shop_back");
    let strange = ask_from(swarm, "visit_stranger", "shop_back:80");
    assert_eq!(strange.task, None, "not on its network");
    say(swarm, "a second stack reaches a service of the first on the network that both share");
}

/// A container of one service is answered by both tasks of another, asked by its name.
fn reaches_both(swarm: &Swarm, from: &str, name: &str) {
    eventually(&format!("both tasks of {name} to answer {from}"), SETTLE, || {
        let answered: BTreeSet<_> =
            (0..4).map(|_| ask_from(swarm, from, &format!("{name}:80")).task).collect();
        ensure!(answered.len() == 2 && !answered.contains(&None), "{answered:?}");
        Ok(())
    })
    .unwrap();
}

/// What a container of a service sees when it asks.
fn ask_from(swarm: &Swarm, service: &str, target: &str) -> Seen {
    let task = swarm.tasks(service).unwrap().pop().unwrap();
    let probes = serde_json::to_string(&[Probe::tcp(target)]).unwrap();
    let arguments = ["exec", &task.container, "/weir-lab-task", "probe", &probes];
    let answer = swarm.node(&task.node).docker_with(&arguments).unwrap();
    serde_json::from_str::<Vec<Seen>>(&answer).unwrap().pop().unwrap()
}

fn a_task_takes_flows_from_when_it_is_healthy_until_it_is_told_to_end(plane: Plane) {
    let swarm = swarm(plane);
    create(&swarm, "--name web --replicas 3 --env START_AFTER=2000 -p 8081:80 task:health");
    answered(&swarm, 3, "three replicas are healthy");
    let targets = swarm.nodes().iter().map(|node| node.target(HTTP.1));
    let load = HttpLoad::new(swarm.client("c1").netns(), targets).rate(300).timeout(SETTLE);
    let load = load.start().unwrap();
    swarm.docker("service scale -d web=4").unwrap();
    answered(&swarm, 4, "the fourth is healthy, too");
    let sick = swarm.node("n2").tasks("web").unwrap().pop().unwrap();
    swarm.node("n2").docker(&format!("exec {} /weir-lab-task sick", sick.container)).unwrap();
    for node in swarm.nodes() {
        node.wait_tasks("web", |tasks| !takes_flows(tasks, &sick.name)).unwrap();
    }
    say(&swarm, "no node sends anybody to the sick one");
    eventually("Swarm to replace it", SETTLE, || {
        let running = swarm.tasks("web")?;
        ensure!(!running.contains(&sick), "it runs");
        Ok(())
    })
    .unwrap();
    answered(&swarm, 4, "it is replaced");
    load.stop().unwrap().assert_clean();

    let mut delays: Vec<_> = (0..5).flat_map(|_| kill_is_known(&swarm)).collect();
    delays.sort_unstable();
    let (half, most) = (delays[delays.len() / 2], delays[delays.len() - 1]);
    eprintln!("from the kill event to no new flows on another node: p50 {half:?}, max {most:?}");
    assert!(half < Duration::from_millis(100), "{delays:?}");
    swarm.finish().unwrap();
}

/// Whether the kernel of the node that was asked gives new flows to a task.
fn takes_flows(tasks: &[serde_json::Value], name: &str) -> bool {
    tasks.iter().any(|task| task["name"] == name && task["kernel"] == "active")
}

/// Kills a task on n2, and gives how long after Docker's event the kernels of the other nodes held
/// a snapshot without it. Nothing else changes at that time.
fn kill_is_known(swarm: &Swarm) -> Vec<Duration> {
    swarm.wait_running("web", 4).unwrap();
    let task = swarm.node("n2").tasks("web").unwrap().pop().unwrap();
    for node in swarm.nodes() {
        node.wait_tasks("web", |tasks| takes_flows(tasks, &task.name)).unwrap();
    }
    let n2 = swarm.node("n2");
    let begun = SystemTime::now();
    n2.docker(&format!("kill {}", task.container)).unwrap();
    for node in swarm.nodes() {
        node.wait_tasks("web", |tasks| !takes_flows(tasks, &task.name)).unwrap();
    }
    let event = n2.event_of("kill", &task.container, begun).unwrap();
    let after = |node| swarm.node(node).kernel_changed_after(event).unwrap();
    ["n1", "n3"].map(|node| after(node).duration_since(event).unwrap()).to_vec()
}
