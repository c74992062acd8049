//! weir beside a real Docker Swarm, deployed as a user deploys it.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::agent::agent_program;
use weir_tests::swarm::{Node, Swarm, repository};
use weir_tests::traffic::HttpLoad;
use weir_tests::{How, Probe, Seen, eventually};

const CREATE_WEB: &str = "service create -d --no-resolve-image --name web --replicas 3 \
                          -p 8081:80 -p 8081:53/udp task:v1";

fn swarm() -> Swarm {
    let swarm = Swarm::builder().with_images().unwrap().build().unwrap();
    eprintln!("the Swarm is ready after {:?}", swarm.age());
    swarm
}

/// Every node answers a client from all three tasks, over TCP and UDP, and so does its localhost.
fn assert_served(swarm: &Swarm) {
    swarm.wait_served("web").unwrap();
    let client = swarm.client("c1");
    for node in swarm.nodes() {
        for how in [How::Tcp, How::Udp] {
            let answered: BTreeSet<String> = (0..12)
                .map(|_| {
                    let seen = client.ask(&Probe::new(how, node.target(8081)));
                    seen.client_kept(client.addresses()[0]).unwrap();
                    seen.task.unwrap()
                })
                .collect();
            assert_eq!(answered.len(), 3, "{} {answered:?}", node.name());
        }
        let own: Vec<Probe> = (0..6).map(|_| Probe::tcp("127.0.0.1:8081")).collect();
        let seen = node.host().probe(&own).unwrap();
        let answered: BTreeSet<_> = seen.into_iter().map(|seen| seen.task).collect();
        assert_eq!(answered.len(), 3, "from {} itself: {answered:?}", node.name());
    }
}

/// The same over IPv6, which Docker's own mesh does not have. Tasks see the client if they have IPv6.
fn assert_served_over_ipv6(swarm: &Swarm, with_ipv6: bool) {
    let client = swarm.client("c1");
    let own = client.addresses().iter().find(|address| address.is_ipv6()).unwrap();
    for node in swarm.nodes() {
        let target = node.host().targets(8081).into_iter().find(|target| target.is_ipv6()).unwrap();
        for how in [How::Tcp, How::Udp] {
            // A proxy is started for tasks without.
            eventually("an answer over IPv6", Duration::from_secs(10), || {
                let seen = client.ask(&Probe::new(how, target));
                ensure!(seen.task.is_some(), "{seen}");
                Ok(())
            })
            .unwrap();
            let answered: BTreeSet<String> = (0..12)
                .map(|_| {
                    let seen = client.ask(&Probe::new(how, target));
                    if with_ipv6 {
                        seen.client_kept(*own).unwrap();
                    }
                    seen.task.unwrap()
                })
                .collect();
            assert_eq!(answered.len(), 3, "{} {answered:?}", node.name());
        }
    }
}

#[test]
fn every_node_of_a_swarm_answers_from_all_tasks_and_each_sees_the_client() {
    let swarm = Swarm::builder().ipv6().with_images().unwrap().build().unwrap();
    swarm.docker(CREATE_WEB).unwrap();
    swarm.wait_running("web", 3).unwrap();
    eprintln!("the service runs after {:?}", swarm.age());
    swarm.deploy_weir().unwrap();
    assert_served(&swarm);
    assert_served_over_ipv6(&swarm, true);
    swarm.nodes().iter().for_each(assert_as_capable_as_the_stack_file_says);
    swarm.nodes().iter().for_each(assert_of_dockers_mind);
    eprintln!("all is asked after {:?}", swarm.age());
    swarm.finish().unwrap();
}

/// `weir state diff` finds none between an agent and the dockerd beside it.
fn assert_of_dockers_mind(node: &Node) {
    let agent = node.tasks("weir_agent").unwrap().pop().unwrap().container;
    eventually("weir and Docker to agree", Duration::from_secs(20), || {
        let said = node.docker(&format!("exec {agent} /weir state diff --against docker"))?;
        ensure!(said.starts_with("no difference: "), "{said}");
        Ok(())
    })
    .unwrap();
}

/// What the stack file adds, by its names and by their numbers in linux/capability.h.
fn capabilities_of_the_stack() -> Vec<(String, u32)> {
    let stack = fs::read_to_string(repository("deploy/stack.yml")).unwrap();
    let added = stack.split("cap_add:").nth(1).unwrap().split("volumes:").next().unwrap();
    let names = added.lines().filter_map(|line| line.trim().strip_prefix("- "));
    let number = |name: &str| match name {
        "NET_BIND_SERVICE" => 10,
        "NET_ADMIN" => 12,
        "SYS_ADMIN" => 21,
        other => panic!("what is the number of {other}?"),
    };
    names.map(|name| (name.to_owned(), number(name))).collect()
}

fn assert_as_capable_as_the_stack_file_says(node: &Node) {
    let agent = node.tasks("weir_agent").unwrap().pop().unwrap().container;
    let process = node.inspect(&agent).unwrap()["State"]["Pid"].as_u64().unwrap();
    let status = fs::read_to_string(node.path(&format!("/proc/{process}/status"))).unwrap();
    let added = capabilities_of_the_stack();
    let wanted = added.iter().fold(0_u64, |all, (_, number)| all | 1 << number);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        let held = u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap();
        assert_eq!(held, wanted, "{set} of the agent on {}; wanted: {added:?}", node.name());
    }
}

#[test]
fn forwarding_outlives_the_stack_and_ends_with_the_uninstall_stack() {
    let swarm = swarm();
    swarm.docker(CREATE_WEB).unwrap();
    swarm.wait_running("web", 3).unwrap();
    let before: Vec<_> = swarm.nodes().iter().map(|node| node.kernel_traces().unwrap()).collect();
    swarm.deploy_weir().unwrap();
    assert_served_over_ipv6(&swarm, false);
    let targets = swarm.nodes().iter().map(|node| node.target(8081));
    let load = HttpLoad::new(swarm.client("c1").netns(), targets).start().unwrap();
    swarm.docker("stack rm weir").unwrap();
    for node in swarm.nodes() {
        let gone = format!("the agent of {} to be gone", node.name());
        eventually(&gone, Duration::from_secs(20), || -> Result<()> {
            ensure!(node.tasks("weir_agent")?.is_empty(), "it runs");
            Ok(())
        })
        .unwrap();
    }
    std::thread::sleep(Duration::from_secs(1));
    load.stop().unwrap().assert_clean();
    swarm.deploy("weir-uninstall", &[&repository("deploy/uninstall.yml")]).unwrap();
    for (node, before) in swarm.nodes().iter().zip(before) {
        let clean = format!("{} to be as before", node.name());
        eventually(&clean, Duration::from_secs(20), || -> Result<()> {
            let left: Vec<_> = node.kernel_traces()?.difference(&before).cloned().collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .unwrap();
    }
    swarm.finish().unwrap();
}

/// What the unit leaves to root.
fn capabilities_of_the_unit() -> Vec<String> {
    let unit = fs::read_to_string(repository("deploy/weir.service")).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    line.split(' ').map(|name| name.trim_start_matches("CAP_").to_owned()).collect()
}

/// What the stack file leaves to the agent where Docker knows BPF and PERFMON. The Docker of this
/// test does not.
fn capabilities_of_a_newer_stack() -> Vec<String> {
    let names = capabilities_of_the_stack().into_iter().map(|(name, _)| name);
    let others = names.filter(|name| name != "SYS_ADMIN");
    others.chain(["BPF", "PERFMON"].map(str::to_owned)).collect()
}

/// `setpriv --bounding-set=-all,+bpf,...`
fn agent_with(capabilities: Vec<String>) -> Command {
    let kept: String =
        capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-all{kept}")).arg(agent_program().unwrap()).arg("agent");
    command
}

#[test]
fn the_capabilities_of_the_unit_and_those_for_newer_dockers_are_enough_on_nodes_of_a_swarm() {
    let swarm = swarm();
    swarm.docker(CREATE_WEB).unwrap();
    swarm.wait_running("web", 3).unwrap();
    let [manager, worker, other] = swarm.nodes() else { panic!("three nodes") };
    let agents = [
        manager.spawn(agent_with(capabilities_of_a_newer_stack())).unwrap(),
        worker.spawn(agent_with(capabilities_of_the_unit())).unwrap(),
        other.spawn(agent_with(capabilities_of_a_newer_stack())).unwrap(),
    ];
    swarm.nodes().iter().for_each(|node| node.wait_weir().unwrap());
    assert_served(&swarm);
    drop(agents);
    swarm.finish().unwrap();
}

#[test]
fn a_port_in_host_mode_is_served_though_docker_proxy_listens_on_it() {
    let swarm = swarm();
    let create = "service create -d --no-resolve-image --name web --mode global \
                  --publish mode=host,published=8090,target=80 task:v1";
    swarm.docker(create).unwrap();
    // The only mode in which Docker publishes ports of a service without a virtual address.
    let create = "service create -d --no-resolve-image --name each --mode global \
                  --endpoint-mode dnsrr --publish mode=host,published=8091,target=80 task:v1";
    swarm.docker(create).unwrap();
    swarm.wait_running("web", 3).unwrap();
    swarm.wait_running("each", 3).unwrap();
    swarm.deploy_weir().unwrap();
    swarm.wait_served("each").unwrap();
    let client = swarm.client("c1");
    for (node, (service, port)) in
        swarm.nodes().iter().flat_map(|node| [("web", 8090), ("each", 8091)].map(|it| (node, it)))
    {
        let seen = client.ask(&Probe::tcp(node.target(port)));
        seen.client_kept(client.addresses()[0]).unwrap();
        let own = node.tasks(service).unwrap();
        let answered = seen.task.unwrap();
        assert!(own[0].container.starts_with(answered.trim_start_matches("v1@")), "{answered}");
        let agent = node.tasks("weir_agent").unwrap().pop().unwrap().container;
        let services = node.docker(&format!("exec {agent} /weir services")).unwrap();
        assert!(services.contains(" served"), "{services}");
    }
    swarm.finish().unwrap();
}

/// What a container of a service sees when it asks.
fn ask_from(swarm: &Swarm, service: &str, probe: &Probe) -> Seen {
    let task = swarm.tasks(service).unwrap().pop().unwrap();
    let probes = serde_json::to_string(&[probe]).unwrap();
    let arguments = ["exec", &task.container, "/weir-lab-task", "probe", &probes];
    let answer = swarm.node(&task.node).docker_with(&arguments).unwrap();
    serde_json::from_str::<Vec<Seen>>(&answer).unwrap().pop().unwrap()
}

#[test]
fn a_container_reaches_a_virtual_address_on_a_network_that_both_share_and_on_no_other() {
    let swarm = swarm();
    for network in ["shared", "other"] {
        swarm.docker(&format!("network create -d overlay {network}")).unwrap();
    }
    for (service, network, replicas) in
        [("back", "shared", 2), ("front", "shared", 1), ("stranger", "other", 1)]
    {
        let create = format!(
            "service create -d --no-resolve-image --name {service} --replicas {replicas} \
             --network {network} task:v1"
        );
        swarm.docker(&create).unwrap();
    }
    for (service, replicas) in [("back", 2), ("front", 1), ("stranger", 1)] {
        swarm.wait_running(service, replicas).unwrap();
    }
    swarm.deploy_weir().unwrap();
    let back = swarm.docker_with(&["service", "inspect", "back"]).unwrap();
    let back: serde_json::Value = serde_json::from_str(&back).unwrap();
    let address = back[0]["Endpoint"]["VirtualIPs"][0]["Addr"].as_str().unwrap();
    let address: std::net::IpAddr = address.split('/').next().unwrap().parse().unwrap();
    for (how, port) in [(How::Tcp, 80), (How::Udp, 53)] {
        let probe = Probe::new(how, std::net::SocketAddr::new(address, port));
        eventually("both tasks to answer", Duration::from_secs(10), || -> Result<()> {
            let answered: BTreeSet<_> =
                (0..4).map(|_| ask_from(&swarm, "front", &probe).task).collect();
            ensure!(answered.len() == 2 && !answered.contains(&None), "{answered:?}");
            Ok(())
        })
        .unwrap();
        let strange = ask_from(&swarm, "stranger", &probe);
        assert_eq!(strange.task, None, "not on its network");
    }
    let asked = swarm.tasks("front").unwrap().pop().unwrap().node;
    let counted = swarm.node(&asked).weir_service("back").unwrap()["vips"].clone();
    assert!(counted[0]["connections"].as_u64() >= Some(8), "{counted}");
    assert_eq!(counted[0]["address"], address.to_string(), "{counted}");
    swarm.finish().unwrap();
}
