//! Which task a new flow gets, and whose flows get one at all.

use std::collections::BTreeSet;

use weir_mesh::{Balance, TaskState::Active};
use weir_tests::packet_world::{
    Outcome::{self, Dropped},
    World,
};

use crate::{WEB, check, sent};

#[test]
fn maglev_finds_a_lost_flow_again() {
    let mut world = World::new().unwrap();
    let tasks =
        [("web.1", "n1", 3, Active), ("web.2", "n1", 4, Active), ("web.3", "n1", 5, Active)];
    world.service("web", Balance::Maglev, WEB, &tasks).unwrap();
    let mut tasks_seen = BTreeSet::new();
    for port in 40000..40032 {
        let first = task_of(&world, &format!("tcp 10.77.0.101:{port} > 10.77.0.11:8080 S"));
        // Another address of the node: another flow entry, the same client.
        let again =
            task_of(&world, &format!("tcp 10.77.0.101:{port} > 10.77.0.21:8080 A seq 1 ack 1"));
        assert_eq!(first, again, "a segment in mid-flow finds the task that its hash names");
        tasks_seen.insert(first);
    }
    assert_eq!(tasks_seen.len(), 3, "{tasks_seen:?}");
}

#[test]
fn balance_by_source_gives_all_flows_of_a_client_one_task() {
    let mut world = World::new().unwrap();
    let tasks =
        [("web.1", "n1", 3, Active), ("web.2", "n1", 4, Active), ("web.3", "n1", 5, Active)];
    world.service("web", Balance::Source, WEB, &tasks).unwrap();
    let mut all = BTreeSet::new();
    for client in 101..133 {
        let flow = |port: u16, flags: &str| {
            task_of(&world, &format!("tcp 10.77.0.{client}:{port} > 10.77.0.11:8080 {flags}"))
        };
        let mut of_client: BTreeSet<_> = (40000..40016).map(|port| flow(port, "S")).collect();
        of_client.insert(flow(50000, "A seq 1 ack 1"));
        assert_eq!(of_client.len(), 1, "segments in mid-flow find it, too: {of_client:?}");
        all.extend(of_client);
    }
    assert_eq!(all.len(), 3, "{all:?}");
}

#[test]
fn least_connections_gives_most_new_flows_to_the_task_that_has_few() {
    let mut world = World::new().unwrap();
    let flow = |world: &World, port: u16| {
        task_of(world, &format!("tcp 10.77.0.101:{port} > 10.77.0.11:8080 S"))
    };
    world.service("web", Balance::LeastConnections, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    (20000..20400).for_each(|port| drop(flow(&world, port)));
    let both = [("web.1", "n1", 3, Active), ("web.2", "n1", 4, Active)];
    world.service("web", Balance::LeastConnections, WEB, &both).unwrap();
    let new = (30000..30200).filter(|port| flow(&world, *port) == "172.18.0.4:80").count();
    // Unless chance has drawn the other task twice: 150 of 200, with a deviation of 6.
    assert!((125..=175).contains(&new), "{new} of 200");
    (31000..31600).for_each(|port| drop(flow(&world, port)));
    let even = (32000..32200).filter(|port| flow(&world, *port) == "172.18.0.4:80").count();
    assert!((75..=125).contains(&even), "{even} of 200, when both have as many");
}

#[test]
fn clients_that_are_not_admitted_get_no_answer_and_flows_that_were_go_on() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let syn = "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S mss 1460 seq 5";
    check(
        &world,
        &[(
            "before",
            "nic_in",
            syn,
            sent("tcp 10.77.0.101:40000 > 172.18.0.3:80 S mss 1460 seq 5 ttl 63"),
        )],
    );
    let range = |text: &str| text.parse().unwrap();
    world
        .change("web", |web| {
            web.access.allow = vec![range("10.77.0.0/24"), range("fd77::/64"), range("10.77.0.11")];
            web.access.deny = vec![range("10.77.0.101"), range("fd77::102")];
        })
        .unwrap();
    check(
        &world,
        &[
            (
                "a flow that began when its client was admitted goes on",
                "nic_in",
                "tcp 10.77.0.101:40000 > 10.77.0.11:8080 AP seq 6 ack 9 data 31",
                sent("tcp 10.77.0.101:40000 > 172.18.0.3:80 AP seq 6 ack 9 data 31 ttl 63"),
            ),
            (
                "a new one of a denied client does not begin",
                "nic_in",
                "tcp 10.77.0.101:40001 > 10.77.0.11:8080 S mss 1460",
                Dropped,
            ),
            ("nor does UDP", "nic_in", "udp 10.77.0.101:40001 > 10.77.0.11:5353 data 17", Dropped),
            (
                "one who is allowed by a shorter range is served",
                "nic_in",
                "tcp 10.77.0.102:40001 > 10.77.0.11:8080 S mss 1460",
                sent("tcp 10.77.0.102:40001 > 172.18.0.3:80 S mss 1460 ttl 63"),
            ),
            (
                "whoever is in no range is denied where some are allowed",
                "nic_in",
                "tcp 10.78.0.102:40001 > 10.77.0.11:8080 S mss 1460",
                Dropped,
            ),
            (
                "IPv6: allowed",
                "nic_in",
                "tcp [fd77::101]:40001 > [fd77::11]:8080 S",
                sent("tcp [fd77::101]:40001 > [fd18::3]:80 S ttl 63"),
            ),
            ("IPv6: denied", "nic_in", "tcp [fd77::102]:40001 > [fd77::11]:8080 S", Dropped),
            (
                "a container counts as its node, which is allowed",
                "task_out",
                "tcp 172.18.0.9:40000 > 10.77.0.11:8080 S mss 1460",
                sent("tcp 10.77.0.11:40000 > 172.18.0.3:80 S mss 1460 ttl 63"),
            ),
        ],
    );
    world.change("web", |web| web.access = Default::default()).unwrap();
    check(
        &world,
        &[(
            "without lists everybody is served again",
            "nic_in",
            "tcp 10.77.0.101:40001 > 10.77.0.11:8080 S mss 1460",
            sent("tcp 10.77.0.101:40001 > 172.18.0.3:80 S mss 1460 ttl 63"),
        )],
    );
}

/// The task that a packet goes to.
fn task_of(world: &World, packet: &str) -> String {
    match world.run("nic_in", packet).unwrap() {
        Outcome::Sent(text) => text.split(' ').nth(3).unwrap().to_owned(),
        other => panic!("{packet}: {other:?}"),
    }
}
