//! Each rule of the merge once.

use std::{collections::BTreeMap, sync::Arc};

use weir_mesh::{
    Balance, Health, NetworkId, NodeName, Protocol, PublishMode, PublishedPort, ServiceName,
    TargetPort, TaskName,
    cluster::{
        Availability, BoundPort, DeclaredNetwork, DeclaredPort, HeardPort, HeardService, HeardTask,
        Hearsay, Life, ServiceId, TaskId, Transport, WishedState,
    },
    health::{Check, CheckKind, Verdict},
};

use crate::world::{World, address, node_id, notes, ports, states, tcp};

/// Two nodes with one task each of a service on port 80.
fn two_nodes() -> World {
    let mut world = World { own: Some(node_id("n1")), ..World::default() };
    for (node, last) in [("n1", 1), ("n2", 2)] {
        world.node(node, last);
        world.speaks(node, last);
    }
    world.service("web", &[tcp(80, 8080)]);
    for (node, task) in [("n1", "web.1"), ("n2", "web.2")] {
        world.wish("web", task, node, WishedState::Running);
        world.reports(node, "web", task, 3, Life::Active);
    }
    world
}

#[test]
fn what_managers_declare_and_nodes_report_is_one_mesh() {
    let merged = two_nodes().merged();
    assert_eq!(states(&merged, "web"), ["web.1=active", "web.2=active"]);
    assert_eq!(ports(&merged, "web"), ["tcp/80->8080 ingress"]);
    assert_eq!(merged.names[&node_id("n2")], NodeName::new("n2"));
    assert_eq!(notes(&merged), [] as [&str; 0]);
}

#[test]
fn a_task_is_not_served_before_it_is_healthy() {
    let mut world = two_nodes();
    world.change_report("n2", "web.2", |task| task.life = Life::Starting);
    assert_eq!(states(&world.merged(), "web"), ["web.1=active"]);
}

#[test]
fn a_task_drains_when_its_node_or_swarm_or_silence_says_so() {
    let drained = ["web.1=active", "web.2=draining"];
    let mut killed = two_nodes();
    killed.change_report("n2", "web.2", |task| task.life = Life::Draining);
    assert_eq!(states(&killed.merged(), "web"), drained);

    let mut unwished = two_nodes();
    unwished.wish("web", "web.2", "n2", WishedState::Shutdown);
    assert_eq!(states(&unwished.merged(), "web"), drained);

    let mut drained_node = two_nodes();
    drained_node.change_node("n2", |node| node.availability = Availability::Drain);
    assert_eq!(states(&drained_node.merged(), "web"), drained);

    let mut silent = two_nodes();
    silent.alive.remove(&node_id("n2"));
    assert_eq!(states(&silent.merged(), "web"), drained);
}

#[test]
fn a_task_that_swarm_has_taken_off_its_list_is_down_when_its_node_is_silent() {
    let mut world = two_nodes();
    world.declare().tasks.remove(&TaskId::new("web.2"));
    assert_eq!(states(&world.merged(), "web"), ["web.1=active", "web.2=active"]);
    world.alive.remove(&node_id("n2"));
    assert_eq!(states(&world.merged(), "web"), ["web.1=active", "web.2=down"]);
    world.change_report("n2", "web.2", |task| task.life = Life::Draining);
    assert_eq!(states(&world.merged(), "web"), ["web.1=active", "web.2=down"]);
}

#[test]
fn a_node_whose_dockerd_swarm_does_not_hear_goes_on_serving() {
    let mut world = two_nodes();
    world.change_node("n2", |node| node.ready = false);
    assert_eq!(states(&world.merged(), "web"), ["web.1=active", "web.2=active"]);
}

#[test]
fn a_task_that_ended_is_down_until_its_node_forgets_it() {
    let mut world = two_nodes();
    world.change_report("n2", "web.2", |task| task.life = Life::Down);
    assert_eq!(states(&world.merged(), "web"), ["web.1=active", "web.2=down"]);
    world.reports("n2", "web", "web.3", 3, Life::Active);
    let merged = world.merged();
    assert_eq!(
        states(&merged, "web"),
        ["web.1=active", "web.3=active"],
        "its address is another's"
    );
}

#[test]
fn a_task_that_the_managers_have_not_heard_of_yet_is_served() {
    let mut world = two_nodes();
    world.reports("n2", "web", "web.4", 4, Life::Active);
    assert_eq!(states(&world.merged(), "web"), ["web.1=active", "web.2=active", "web.4=active"]);
}

#[test]
fn a_node_may_not_speak_about_the_task_of_another() {
    let mut world = two_nodes();
    world.reports("n1", "web", "web.2", 9, Life::Down);
    assert_eq!(states(&world.merged(), "web"), ["web.1=active", "web.2=active"]);
}

#[test]
fn a_removed_service_has_no_ports_and_is_gone_with_its_tasks() {
    let mut world = two_nodes();
    world.declare().services.clear();
    let merged = world.merged();
    assert_eq!(states(&merged, "web"), ["web.1=draining", "web.2=draining"]);
    assert!(ports(&merged, "web").is_empty());
    world.change_report("n2", "web.2", |task| task.life = Life::Down);
    assert_eq!(states(&world.merged(), "web"), ["web.1=draining", "web.2=down"]);
    world.speaks("n1", 1);
    world.speaks("n2", 2);
    assert!(world.merged().services.is_empty());
}

#[test]
fn tasks_of_a_removed_service_get_no_flows_of_a_new_one_with_its_name() {
    let mut world = two_nodes();
    let web = world.declare().services.pop_first().unwrap().1;
    world.declare().services.insert(ServiceId::new("another"), web);
    let merged = world.merged();
    assert_eq!(states(&merged, "web"), ["web.1=draining", "web.2=draining"]);
    assert_eq!(ports(&merged, "web"), ["tcp/80->8080 ingress"]);
}

#[test]
fn all_that_lives_on_a_node_is_known_while_it_speaks() {
    let mut world = two_nodes();
    world.node("n3", 3);
    world.alive.remove(&node_id("n2"));
    let whole: Vec<bool> = world.merged().nodes.values().map(|node| node.whole).collect();
    assert_eq!(whole, [true, false, false], "n2 is silent, and n3 has never spoken");
}

#[test]
fn without_managers_tasks_are_known_from_their_nodes_and_ports_from_gossip() {
    let mut world = two_nodes();
    world.declared = None;
    let merged = world.merged();
    assert_eq!(states(&merged, "web"), ["web.1=active", "web.2=active"]);
    assert!(ports(&merged, "web").is_empty());

    let port = |published, target| HeardPort {
        published: PublishedPort::new(published).unwrap(),
        target: TargetPort::new(target).unwrap(),
    };
    let heard = |ports: &[HeardPort], tasks: &[&str]| HeardService {
        vip: None,
        ports: ports.to_vec(),
        tasks: tasks
            .iter()
            .map(|task| (TaskName::new(*task), HeardTask { address: None, node: None }))
            .collect(),
    };
    let twice = [port(80, 8080), port(53, 53), port(53, 53)];
    let mut hearsay = Hearsay::default();
    hearsay.services.insert(ServiceName::new("web"), heard(&twice, &["web.1", "web.2"]));
    world.hearsay = Some(hearsay.clone());
    let expected = ["tcp/53->53 ingress", "tcp/80->8080 ingress", "udp/53->53 ingress"];
    assert_eq!(ports(&world.merged(), "web"), expected);

    hearsay.services.insert(ServiceName::new("web"), heard(&twice, &["web.1"]));
    world.hearsay = Some(hearsay.clone());
    assert_eq!(states(&world.merged(), "web"), ["web.1=active", "web.2=draining"]);

    hearsay.services.insert(ServiceName::new("web"), heard(&twice, &[]));
    world.hearsay = Some(hearsay);
    assert_eq!(states(&world.merged(), "web"), ["web.1=active", "web.2=active"]);
}

#[test]
fn nodes_of_one_name_are_told_apart_by_their_identity() {
    let mut world = two_nodes();
    world.change_node("n2", |node| node.hostname = "n1".to_owned());
    let merged = world.merged();
    assert_eq!(merged.names[&node_id("n1")].as_str(), "n1.n1ididid");
    assert_eq!(merged.names[&node_id("n2")].as_str(), "n1.n2ididid");
}

#[test]
fn a_host_that_joined_again_takes_the_place_of_its_old_self() {
    let mut world = two_nodes();
    world.node("old", 2);
    world.change_node("old", |node| {
        node.hostname = "n2".to_owned();
        node.ready = false;
    });
    let merged = world.merged();
    assert_eq!(merged.names[&node_id("n2")].as_str(), "n2");
    assert_eq!(merged.names.len(), 2);
    assert_eq!(notes(&merged), [] as [&str; 0]);
}

#[test]
fn two_living_nodes_with_one_address_are_named_and_one_is_left_out() {
    let mut world = two_nodes();
    world.node("n3", 2);
    let merged = world.merged();
    assert_eq!(merged.names.len(), 2);
    let expected = "node n2: address = 10.0.0.2: nodes n2idididid and n3idididid both have it; \
                    n3idididid is left out; set node.address on one of them";
    assert_eq!(notes(&merged), [expected]);
}

#[test]
fn a_node_that_claims_the_address_of_another_does_not_take_its_place() {
    let mut world = two_nodes();
    // Its identity sorts before n2's.
    world.node("a-liar", 66);
    world.speaks("a-liar", 2);
    world.speaks("n2", 2);
    let merged = world.merged();
    assert!(merged.names.contains_key(&node_id("n2")), "{:?}", merged.names);
    assert!(!merged.names.contains_key(&node_id("a-liar")), "{:?}", merged.names);
}

#[test]
fn host_mode_with_a_number_belongs_to_the_service_and_without_one_to_each_task() {
    let mut world = two_nodes();
    let host = |published| DeclaredPort { published, mode: PublishMode::Host, ..tcp(1, 8080) };
    world.service("web", &[host(Some(9090)), host(None)]);
    for (node, task, number) in [("n1", "web.1", 32768), ("n2", "web.2", 32770)] {
        let bound = |published| BoundPort {
            protocol: Protocol::Tcp,
            target: TargetPort::new(8080).unwrap(),
            published: PublishedPort::new(published).unwrap(),
        };
        world.change_report(node, task, |said| said.ports = vec![bound(9090), bound(number)]);
    }
    let merged = world.merged();
    assert_eq!(ports(&merged, "web"), ["tcp/9090->8080 host"]);
    assert_eq!(ports(&merged, "web@web.1"), ["tcp/32768->8080 host"]);
    assert_eq!(states(&merged, "web@web.1"), ["web.1=active"]);
    assert_eq!(ports(&merged, "web@web.2"), ["tcp/32770->8080 host"]);
}

#[test]
fn what_the_mesh_does_not_carry_is_named() {
    let mut world = two_nodes();
    let sctp = DeclaredPort { transport: Transport::Sctp, ..tcp(9000, 9000) };
    world.service("web", &[tcp(80, 80), sctp]);
    let merged = world.merged();
    assert_eq!(ports(&merged, "web"), ["tcp/80->80 ingress"]);
    let expected = "service web: publish = 9000/sctp: the mesh carries no SCTP; publish the port \
                    with mode=host, then Docker serves it";
    assert_eq!(notes(&merged), [expected]);
}

#[test]
fn two_services_with_one_port_leave_it_to_the_first_and_say_so() {
    let mut world = two_nodes();
    world.service("api", &[tcp(80, 80)]);
    let merged = world.merged();
    assert_eq!(ports(&merged, "api"), ["tcp/80->80 ingress"]);
    assert!(ports(&merged, "web").is_empty());
    assert!(notes(&merged)[0].starts_with("service web: publish = 80/tcp: service api has"));
}

#[test]
fn labels_of_the_service_win_over_those_of_its_containers() {
    let mut world = two_nodes();
    let label = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    world.change_report("n2", "web.2", |task| task.labels = label("weir.balance", "random"));
    let web = ServiceName::new("web");
    assert_eq!(world.merged().services[&web].balance, Balance::Random);
    world.label_service("web", "weir.balance", "maglev");
    assert_eq!(world.merged().services[&web].balance, Balance::Maglev);
    world.change_report("n2", "web.2", |task| task.labels = label("weir.weight", "5"));
    let weights: Vec<u16> =
        world.merged().services[&web].tasks.iter().map(|task| task.weight).collect();
    assert_eq!(weights, [1, 5]);
    world.label_service("web", "weir.enable", "false");
    let merged = world.merged();
    assert!(ports(&merged, "web").is_empty());
    assert_eq!(states(&merged, "web"), ["web.1=active", "web.2=active"], "flows go on");
}

#[test]
fn labels_say_how_tasks_are_judged() {
    let mut world = two_nodes();
    let web = ServiceName::new("web");
    assert_eq!(world.merged().services[&web].health, Health::default());
    world.label_service("web", "weir.health", "http:/healthz");
    world.label_service("web", "weir.eject", "false");
    let label = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    world.change_report("n2", "web.2", |task| task.labels = label("weir.health.rise", "7"));
    let merged = world.merged();
    let kind = CheckKind::Http { path: "/healthz".to_owned() };
    let check = Check { port: TargetPort::new(8080), rise: 7, ..Check::new(kind) };
    assert_eq!(merged.services[&web].health, Health { check: Some(check), ejection: None });
    assert_eq!(notes(&merged), [] as [&str; 0]);
}

#[test]
fn what_a_node_has_found_out_about_its_task_is_known_to_all_and_judged_by_each() {
    let mut world = two_nodes();
    let verdict = Verdict::Failing { problem: "tcp refused the connection".to_owned() };
    world.change_report("n2", "web.2", |task| task.verdict = Some(verdict.clone()));
    let merged = world.merged();
    assert_eq!(states(&merged, "web"), ["web.1=active", "web.2=active"]);
    let tasks = &merged.services[&ServiceName::new("web")].tasks;
    assert_eq!((&tasks[0].verdict, &tasks[1].verdict), (&None, &Some(verdict)));
}

#[test]
fn a_check_asks_at_a_port_that_has_no_number_on_the_nodes_too() {
    let mut world = two_nodes();
    world.label_service("web", "weir.health", "tcp");
    let own = DeclaredPort { published: None, mode: PublishMode::Host, ..tcp(80, 8080) };
    world.change_service("web", |service| service.ports = vec![own]);
    let merged = world.merged();
    let health = &merged.services[&ServiceName::new("web")].health;
    assert_eq!(health.check.as_ref().unwrap().port, TargetPort::new(8080));
}

#[test]
fn a_check_that_cannot_be_made_is_noted_and_the_tasks_serve_without() {
    let mut world = two_nodes();
    let web = ServiceName::new("web");
    world.label_service("web", "weir.health", "http:/healthz");
    world.change_service("web", |service| service.ports.clear());
    let merged = world.merged();
    assert_eq!(merged.services[&web].health, Health::default());
    let expected = "service web: weir.health = http:/healthz: no port to ask at; the service \
                    publishes none for TCP; name one: weir.health.port = 80";
    assert_eq!(notes(&merged), [expected]);

    world.label_service("web", "weir.health.port", "8081");
    world.change_report("n2", "web.2", |task| {
        task.ipv4 = None;
        task.networks = BTreeMap::from([(NetworkId::new("inner"), vec![address(9)])]);
    });
    let merged = world.merged();
    let check = merged.services[&web].health.check.as_ref().unwrap();
    assert_eq!(check.port, TargetPort::new(8081));
    let expected = "service web: weir.health = http:/healthz: its node does not reach task web.2, \
                    which is not asked; attach the service to a network that is not internal";
    assert_eq!(notes(&merged), [expected]);
}

#[test]
fn labels_of_a_check_without_the_check_are_noted() {
    let mut world = two_nodes();
    world.label_service("web", "weir.health.interval", "5s");
    let merged = world.merged();
    assert_eq!(merged.services[&ServiceName::new("web")].health, Health::default());
    let expected = "service web: weir.health: missing, so that other labels of the check do \
                    nothing; write weir.health = tcp, or http: and a path such as http:/healthz";
    assert_eq!(notes(&merged), [expected]);
}

#[test]
fn virtual_addresses_come_from_managers_and_the_addresses_behind_them_from_the_tasks_nodes() {
    let mut world = two_nodes();
    let (blue, ingress) = (NetworkId::new("blue"), NetworkId::new("ingress"));
    let network = |ingress| DeclaredNetwork {
        name: "any".to_owned(),
        subnets: Vec::new(),
        ingress,
        internal: false,
    };
    world.declare().networks.insert(ingress.clone(), Arc::new(network(true)));
    world.declare().networks.insert(blue.clone(), Arc::new(network(false)));
    let vips = BTreeMap::from([(blue.clone(), address(2)), (ingress, address(3))]);
    world.change_service("web", |service| service.vips = vips);
    let own = BTreeMap::from([(blue.clone(), vec![address(12)])]);
    // On an internal network its own node does not reach it.
    world.change_report("n2", "web.2", |task| (task.ipv4, task.networks) = (None, own.clone()));
    let web = world.merged().services[&ServiceName::new("web")].clone();
    assert_eq!(web.vips, BTreeMap::from([(blue, vec![address(2)])]), "not Docker's own mesh");
    assert_eq!(web.tasks[1].networks, own);
}
