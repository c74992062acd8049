//! One rule a test.

use std::{collections::BTreeMap, time::Duration};

use weir_mesh::{
    Generation, Locality, MeshSnapshot, Node, NodeName, Service, Task,
    TaskState::{Active, Down, Draining},
    plan::GRACE,
    vip::{OwnVip, VipLimits, VipOp},
};

use crate::world::{LIMITS, World, ident, ip, service, snapshot, spaces, task};

const VIP: &str = "10.0.9.2";

fn turns(expected: &[(&str, usize)]) -> Option<BTreeMap<std::net::IpAddr, usize>> {
    Some(expected.iter().map(|(address, count)| (ip(address), *count)).collect())
}

#[test]
fn active_tasks_with_weight_have_turns_and_others_have_none() {
    let mut world = World::new(LIMITS);
    let tasks = vec![
        task("blue", 11, 3, Active),
        task("blue", 12, 1, Active),
        task("blue", 13, 0, Active),
        task("blue", 14, 1, Draining),
        task("blue", 15, 1, Down),
        task("green", 16, 1, Active),
    ];
    let vips = [("blue", VIP), ("blue", "fd00:9::2")];
    world.serve(&snapshot(vec![service("web", &vips, tasks)]), Some(&spaces(&[(7, &["blue"])])));
    assert_eq!(world.reached(7, ip(VIP)), turns(&[("10.0.9.11", 3), ("10.0.9.12", 1)]));
    let six = turns(&[("fd00:9::b", 3), ("fd00:9::c", 1)]);
    assert_eq!(world.reached(7, ip("fd00:9::2")), six);
}

#[test]
fn only_networks_that_something_here_is_attached_to_are_in_the_kernel() {
    let mut world = World::new(LIMITS);
    let mesh = snapshot(vec![
        service("web", &[("blue", VIP)], vec![task("blue", 11, 1, Active)]),
        service("api", &[("green", VIP)], vec![task("green", 12, 1, Active)]),
        service("far", &[("red", VIP)], vec![task("red", 13, 1, Active)]),
    ]);
    world.serve(&mesh, Some(&spaces(&[(7, &["blue"]), (8, &["green"])])));
    assert_eq!(world.reached(7, ip(VIP)), turns(&[("10.0.9.11", 1)]));
    assert_eq!(world.reached(8, ip(VIP)), turns(&[("10.0.9.12", 1)]));
    assert_eq!(world.reached(9, ip(VIP)), None);
    assert_eq!(world.kernel.records.len(), 2);
    world.serve(&mesh, Some(&spaces(&[(7, &["blue"])])));
    assert_eq!(world.kernel.records.len(), 1);
}

#[test]
fn an_address_without_a_task_refuses_and_a_service_that_left_is_left_alone() {
    let mut world = World::new(LIMITS);
    let local = spaces(&[(7, &["blue"])]);
    let with = |tasks| snapshot(vec![service("web", &[("blue", VIP)], tasks)]);
    world.serve(&with(vec![task("blue", 11, 1, Active)]), Some(&local));
    world.serve(&with(vec![task("blue", 11, 1, Draining)]), Some(&local));
    assert_eq!(world.reached(7, ip(VIP)), turns(&[]));
    assert!(world.kernel.runs.is_empty());
    world.serve(&snapshot(vec![]), Some(&local));
    assert_eq!(world.reached(7, ip(VIP)), None);
    assert!(world.kernel.records.is_empty() && world.kernel.names.is_empty());
}

#[test]
fn a_change_of_tasks_writes_a_new_run_and_flips_and_no_change_does_nothing() {
    let mut world = World::new(LIMITS);
    let local = spaces(&[(7, &["blue"])]);
    let with = |tasks| snapshot(vec![service("web", &[("blue", VIP)], tasks)]);
    world.serve(&with(vec![task("blue", 11, 1, Active)]), Some(&local));
    let more = with(vec![task("blue", 11, 1, Active), task("blue", 12, 1, Active)]);
    let ops = world.serve(&more, Some(&local)).ops;
    let kinds = [
        matches!(ops[0], VipOp::WriteRun { .. }),
        matches!(ops[1], VipOp::Flip { .. }),
        matches!(ops[2], VipOp::FreeRun { .. }),
    ];
    assert_eq!((kinds, ops.len()), ([true; 3], 3), "{ops:?}");
    assert_eq!(world.serve(&more, Some(&local)).ops, []);
    assert_eq!(world.serve(&more, None).ops, [], "nobody knows of namespaces: they stay");
}

#[test]
fn of_two_services_at_one_address_the_first_by_name_has_it_and_the_other_is_named() {
    let mut world = World::new(LIMITS);
    let mesh = snapshot(vec![
        service("web", &[("blue", VIP)], vec![task("blue", 11, 1, Active)]),
        service("api", &[("blue", VIP)], vec![task("blue", 12, 1, Active)]),
    ]);
    let plan = world.serve(&mesh, Some(&spaces(&[(7, &["blue"])])));
    assert_eq!(world.reached(7, ip(VIP)), turns(&[("10.0.9.12", 1)]));
    assert_eq!(
        plan.problems[0].to_string(),
        "service web is not served at its virtual address 10.0.9.2 on network blue: service api has it"
    );
}

#[test]
fn without_room_an_address_keeps_its_tasks_until_what_was_freed_has_rested() {
    let mut world = World::new(VipLimits { cells: 3, ..LIMITS });
    let local = spaces(&[(7, &["blue"])]);
    let with = |last: u8| {
        let tasks = vec![task("blue", last, 1, Active), task("blue", last + 1, 1, Active)];
        snapshot(vec![service("web", &[("blue", VIP)], tasks)])
    };
    world.serve(&with(11), Some(&local));
    let before = world.reached(7, ip(VIP));
    let plan = world.serve(&with(21), Some(&local));
    assert_eq!(world.reached(7, ip(VIP)), before);
    assert!(plan.problems[0].to_string().contains("all 3 cells of the kernel maps are taken"));
    let none = snapshot(vec![service("web", &[("blue", VIP)], vec![])]);
    world.serve(&none, Some(&local));
    let wake = world.serve(&with(21), Some(&local)).wake;
    assert_eq!(wake, Some(world.now.after(GRACE)));
    world.pass(GRACE);
    assert_eq!(world.serve(&with(21), Some(&local)).problems, []);
    assert_eq!(world.reached(7, ip(VIP)), turns(&[("10.0.9.21", 1), ("10.0.9.22", 1)]));
}

#[test]
fn namespaces_and_networks_beyond_the_kernels_room_are_named() {
    let mut world = World::new(VipLimits { spaces: 1, networks: 1, ..LIMITS });
    let mesh = snapshot(vec![service("web", &[("blue", VIP)], vec![])]);
    let local = spaces(&[(7, &["blue", "green"]), (8, &["blue"])]);
    let texts: Vec<String> =
        world.serve(&mesh, Some(&local)).problems.iter().map(ToString::to_string).collect();
    assert!(texts[0].contains("work in 1 containers of this node and not in 1 more"), "{texts:?}");
    assert!(texts[1].contains("attached to 2 networks"), "{texts:?}");
    assert_eq!(world.kernel.spaces.len(), 1);
}

#[test]
fn what_an_agent_left_in_pieces_is_put_right() {
    let mut world = World::new(LIMITS);
    let local = spaces(&[(7, &["blue"])]);
    let mesh = snapshot(vec![service(
        "web",
        &[("blue", VIP)],
        vec![task("blue", 11, 1, Active), task("blue", 12, 1, Active)],
    )]);
    world.serve(&mesh, Some(&local));
    // The record is another's, as after damage from outside.
    let slot = *world.kernel.names.values().next().unwrap();
    world.kernel.records.get_mut(&slot).unwrap().key.network = ident("green");
    world.restart();
    let plan = world.serve(&mesh, Some(&local));
    assert!(plan.wake.is_some_and(|wake| wake <= world.now), "there is more to do at once");
    world.serve(&mesh, Some(&local));
    assert_eq!(world.reached(7, ip(VIP)), turns(&[("10.0.9.11", 1), ("10.0.9.12", 1)]));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.serve(&mesh, Some(&local)).ops, []);
}

#[test]
fn by_locality_the_nodes_own_tasks_come_first_or_are_all() {
    let mut world = World::new(LIMITS);
    let (near, far) = ("10.0.9.11", "10.0.9.12");
    for (locality, own, reached) in [
        (Locality::Cluster, Active, &[(near, 1), (far, 1)][..]),
        (Locality::PreferLocal, Active, &[(near, 1)]),
        (Locality::PreferLocal, Draining, &[(far, 1)]),
        (Locality::Local, Active, &[(near, 1)]),
        (Locality::Local, Draining, &[]),
    ] {
        let other = Task { node: NodeName::new("n2"), ..task("blue", 12, 1, Active) };
        let web = service("web", &[("blue", VIP)], vec![task("blue", 11, 1, own), other]);
        let mesh = MeshSnapshot::build(
            Generation(1),
            [("n1", "192.0.2.1"), ("n2", "192.0.2.2")]
                .map(|(name, address)| Node::new(NodeName::new(name), ip(address)))
                .into(),
            vec![Service { locality, ..web }],
        );
        world.serve(&mesh.unwrap(), Some(&spaces(&[(7, &["blue"])])));
        assert_eq!(world.reached(7, ip(VIP)), turns(reached), "{locality:?}, {own:?}");
        world.pass(GRACE);
    }
}

#[test]
fn an_address_of_the_node_itself_is_served_to_its_own_network_until_it_is_taken_back() {
    let mut world = World::new(LIMITS);
    let own = OwnVip {
        service: weir_mesh::ServiceName::new("resolver"),
        network: weir_mesh::NetworkId::new("own"),
        address: ip("127.0.0.11"),
        target: ip("172.18.0.1"),
    };
    let mesh = snapshot(vec![service("web", &[("blue", VIP)], vec![task("blue", 11, 1, Active)])]);
    let attached = spaces(&[(7, &["blue", "own"]), (8, &["blue"])]);
    world.planner.serve_own(vec![own]);
    world.serve(&mesh, Some(&attached));
    assert_eq!(world.reached(7, ip("127.0.0.11")), turns(&[("172.18.0.1", 1)]));
    assert_eq!(world.reached(8, ip("127.0.0.11")), None);
    assert_eq!(world.reached(7, ip(VIP)), turns(&[("10.0.9.11", 1)]));
    // After a resync it is still wanted.
    let kernel = world.kernel.clone();
    world.planner.resync(kernel, world.now);
    assert_eq!(world.serve(&mesh, Some(&attached)).ops, []);
    world.planner.serve_own(Vec::new());
    world.serve(&mesh, Some(&spaces(&[(7, &["blue"]), (8, &["blue"])])));
    assert_eq!(world.reached(7, ip("127.0.0.11")), None);
}
