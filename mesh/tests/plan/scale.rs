//! How long planning takes. Prints, and asserts nothing about time: run it in release with
//! `cargo test --release -p weir-mesh --test plan scale -- --nocapture`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use weir_mesh::{
    Balance, Generation, Ident, Limits, MeshSnapshot, NodeName, Port, Protocol, PublishMode,
    PublishedPort, Service, ServiceName, TargetPort, Task, TaskName, TaskState, Timeouts,
    balance::maglev::{LARGE, SMALL, maglev},
};

use crate::world::{World, node, reach_all};

const SERVICES: usize = 10_000;
const TASKS: usize = 10;

fn service(number: usize) -> Service {
    let task = |at: usize| Task {
        name: TaskName::new(format!("service-{number}.{at}.0123456789abcdefghijklmno")),
        node: NodeName::new(format!("n{}", (number + at) % 4 + 1)),
        ipv4: Some(std::net::Ipv4Addr::from(0x0a00_0000 + (number * TASKS + at) as u32)),
        ipv6: None,
        weight: 1,
        state: TaskState::Active,
        networks: BTreeMap::new(),
        aliases: Default::default(),
    };
    let port = Port {
        protocol: Protocol::Tcp,
        published: PublishedPort::new(number as u16 + 1000).unwrap(),
        target: TargetPort::new(80).unwrap(),
        mode: PublishMode::Ingress,
    };
    Service {
        name: ServiceName::new(format!("service-{number}")),
        balance: Balance::RoundRobin,
        ports: vec![port],
        tasks: (0..TASKS).map(task).collect(),
        timeouts: Timeouts::default(),
        health: Default::default(),
        vips: BTreeMap::new(),
        aliases: Default::default(),
    }
}

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    println!("{what}: {:?}", start.elapsed());
    result
}

#[test]
fn ten_thousand_services_are_planned_at_once_and_then_one_at_a_time() {
    let nodes = (1..=4).map(node).collect();
    let services = (0..SERVICES).map(service).collect();
    let mut snapshot = timed("build and check the snapshot", || {
        MeshSnapshot::build(Generation(1), nodes, services).unwrap()
    });
    let mut world = World::new(Limits::default());
    world.local.reach = reach_all(&snapshot);
    let plan = |world: &mut World, snapshot: &MeshSnapshot, what: &str| {
        let plan = timed(what, || world.planner.plan(snapshot, &world.local, world.now));
        timed("  noting what was applied", || {
            plan.ops.iter().for_each(|_| world.planner.applied(world.now));
        });
        println!("  {} operations", plan.ops.len());
        plan.ops.len()
    };
    plan(&mut world, &snapshot, "from scratch, memory untouched");
    let reach = world.local.reach;
    world = World::new(Limits::default());
    world.local.reach = reach;
    plan(&mut world, &snapshot, "from scratch");
    let copy = timed("copy of the snapshot", || snapshot.clone());
    assert_eq!(plan(&mut world, &copy, "nothing changed"), 0);
    let name = ServiceName::new("service-5000");
    Arc::make_mut(snapshot.services.get_mut(&name).unwrap()).tasks.pop();
    assert!(plan(&mut world, &snapshot, "one task went") > 0);
    world.pass(Duration::from_secs(31));
    assert_eq!(plan(&mut world, &snapshot, "its drain ended"), 1);

    let kernel = world.planner.installed().clone();
    timed("an agent restarts", || {
        world.planner = weir_mesh::Planner::new(kernel, Limits::default(), world.now);
    });
    assert_eq!(plan(&mut world, &snapshot, "after a restart"), 0);
    snapshot.nodes.remove(&NodeName::new("n4"));
    plan(&mut world, &snapshot, "a node went");
}

#[test]
fn maglev_tables_are_built() {
    let tasks = |count: u64| -> Vec<(Ident, u16)> {
        (0..count).map(|at| (Ident(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)), 1)).collect()
    };
    for (count, size) in [(2, SMALL), (10, SMALL), (163, SMALL), (1000, LARGE)] {
        let tasks = tasks(count);
        timed(&format!("maglev {size} cells, {count} tasks"), || maglev(&tasks, size));
    }
    let mut weighted = tasks(10);
    weighted[3].1 = 5;
    timed("maglev 16381 cells, 10 tasks of different weights", || maglev(&weighted, SMALL));
}
