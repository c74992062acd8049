//! Names on a real Swarm: asked from the namespaces of containers, directly and through Docker's own
//! resolver, with weir deployed as a user deploys it.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weir_tests::eventually;
use weir_tests::swarm::{Swarm, TaskAt};

/// Docker's own resolver in every container on an overlay network.
const DOCKERS: &str = "127.0.0.11";
const PATIENCE: Duration = Duration::from_secs(15);

/// The address at which containers reach their node.
fn gateway(swarm: &Swarm, node: &str) -> Result<String> {
    let bridge = swarm.node(node).network("docker_gwbridge")?.context("no docker_gwbridge")?;
    let gateway = bridge["IPAM"]["Config"][0]["Gateway"].as_str();
    Ok(gateway.context("docker_gwbridge has no gateway")?.to_owned())
}

/// `dig` in the network namespace of a container.
fn dig(swarm: &Swarm, task: &TaskAt, arguments: &str) -> Result<String> {
    let node = swarm.node(&task.node);
    let container = node.inspect(&task.container)?;
    let sandbox = container["NetworkSettings"]["SandboxKey"].as_str().context("no sandbox")?;
    // `/var/run` is a link, which would be followed outside of the node.
    let inside = sandbox.replacen("/var/run/", "/run/", 1);
    let file = format!("--net=/proc/{}/root{inside}", node.first_process());
    let mut command = Command::new("nsenter");
    command.args([&file, "dig", "+tries=1", "+time=2"]).args(arguments.split(' '));
    let output = command.output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn short(swarm: &Swarm, task: &TaskAt, arguments: &str) -> Result<BTreeSet<String>> {
    let said = dig(swarm, task, &format!("+short {arguments}"))?;
    Ok(said.lines().filter(|line| !line.starts_with(';')).map(str::to_owned).collect())
}

#[test]
fn a_container_finds_services_by_name_on_the_networks_that_it_shares_and_on_no_others() {
    let swarm = Swarm::builder().nodes(2).with_images().unwrap().build().unwrap();
    for network in ["shared", "other"] {
        swarm.docker(&format!("network create -d overlay {network}")).unwrap();
    }
    let create = |name: &str, network: &str, more: &str| {
        let line = format!(
            "service create -d --no-resolve-image --name {name} --network {network} {more} task:v1"
        );
        swarm.docker(&line).unwrap();
    };
    create("back", "name=shared,alias=rear", "--replicas 2 -p 8085:80");
    create("each", "shared", "--replicas 2 --endpoint-mode dnsrr");
    create("front", "shared", "--dns 172.18.0.1 --constraint node.role==manager");
    create("stranger", "other", "");
    for (service, tasks) in [("back", 2), ("each", 2), ("front", 1), ("stranger", 1)] {
        swarm.wait_running(service, tasks).unwrap();
    }
    swarm.deploy_weir().unwrap();
    let one = |service: &str| swarm.tasks(service).unwrap().pop().unwrap();
    let (front, stranger) = (one("front"), one("stranger"));
    let server = gateway(&swarm, &front.node).unwrap();
    assert_eq!(server, "172.18.0.1", "the address that front was given");
    let back = swarm.inspect("back").unwrap();
    let networks = back["Endpoint"]["VirtualIPs"].as_array().unwrap().clone();
    let vips: BTreeSet<String> = networks
        .iter()
        .map(|vip| vip["Addr"].as_str().unwrap().split('/').next().unwrap().to_owned())
        .collect();
    let ask = |arguments: &str| short(&swarm, &front, &format!("@{server} {arguments}"));
    eventually("back to have a name", PATIENCE, || -> Result<()> {
        let said = ask("back")?;
        // One of its two: the other is on Docker's ingress network, which nobody shares.
        ensure!(said.len() == 1 && said.is_subset(&vips), "{said:?} of {vips:?}");
        ensure!(ask("tasks.back")?.len() == 2 && ask("each.weir")?.len() == 2, "not all tasks");
        Ok(())
    })
    .unwrap();
    for (service, mode) in [("each", "dnsrr"), ("back", "vip")] {
        let known = swarm.node("n2").weir_service(service).unwrap();
        let said = known["endpoint_mode"].as_str().unwrap_or("vip");
        assert_eq!(said, mode, "{known}");
    }
    let vip = ask("back").unwrap();
    for name in ["back.weir", "back.shared", "back.shared.weir", "rear", "BACK.weir"] {
        assert_eq!(ask(name).unwrap(), vip, "{name}");
    }
    let tasks = ask("tasks.back.weir").unwrap();
    let ports = ask("_80._tcp.back SRV").unwrap();
    let targets: BTreeSet<&str> = ports.iter().filter_map(|srv| srv.rsplit(' ').next()).collect();
    assert_eq!((ports.len(), targets.len()), (2, 2), "{ports:?}");
    let found: BTreeSet<String> = targets.iter().flat_map(|target| ask(target).unwrap()).collect();
    assert_eq!(found, tasks, "the targets of SRV are the tasks");
    for address in &tasks {
        let name = ask(&format!("-x {address}")).unwrap();
        assert!(name.iter().any(|name| name.starts_with("back.")), "{name:?}");
    }
    for task in swarm.tasks("back").unwrap() {
        let said = ask(&task.container[..12]).unwrap();
        assert!(said.is_subset(&tasks) && said.len() == 1, "by the id of its container: {said:?}");
    }
    // Docker's own resolver asks for what it does not know, from the container's own namespace.
    assert_eq!(short(&swarm, &front, &format!("@{DOCKERS} tasks.back.weir")).unwrap(), tasks);
    let through = short(&swarm, &front, &format!("@{DOCKERS} _80._tcp.back.weir SRV")).unwrap();
    assert_eq!(through, ports);

    let server = gateway(&swarm, &stranger.node).unwrap();
    for name in ["back", "tasks.back", "back.weir", "each.shared.weir", "_80._tcp.back"] {
        let said = dig(&swarm, &stranger, &format!("@{server} {name}")).unwrap();
        assert!(said.contains("status: NXDOMAIN"), "{name}: {said}");
    }

    swarm.docker("service scale -d back=4").unwrap();
    swarm.wait_running("back", 4).unwrap();
    eventually("all four tasks to be given out", PATIENCE, || -> Result<()> {
        let said = ask("tasks.back")?;
        ensure!(said.len() == 4, "{said:?}");
        Ok(())
    })
    .unwrap();
    swarm.docker("service rm each").unwrap();
    eventually("a removed service to have no name", PATIENCE, || -> Result<()> {
        let said = dig(&swarm, &front, "@172.18.0.1 each")?;
        ensure!(said.contains("status: NXDOMAIN"), "{said}");
        Ok(())
    })
    .unwrap();
    let of = |node: &str| -> BTreeSet<String> {
        let tasks = swarm.tasks("back").unwrap().into_iter().filter(|task| task.node == node);
        tasks.flat_map(|task| ask(&task.container[..12]).unwrap()).collect()
    };
    let (kept, lost) = (of("n1"), of("n2"));
    assert!(!kept.is_empty() && !lost.is_empty(), "{kept:?} {lost:?}");
    swarm.power_off("n2").unwrap();
    eventually("the tasks of a lost node to be given out no more", PATIENCE, || -> Result<()> {
        let said = ask("tasks.back")?;
        ensure!(said.is_disjoint(&lost) && kept.is_subset(&said), "{said:?} without {lost:?}");
        Ok(())
    })
    .unwrap();
    // Its tasks may be replaced meanwhile; the virtual address is the same.
    assert_eq!(ask("back").unwrap(), vip);
    swarm.finish().unwrap();
}
