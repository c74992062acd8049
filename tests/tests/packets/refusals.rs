//! What is not forwarded: told to the client, left to the stack, or dropped.

use weir_mesh::{
    Balance,
    TaskState::{Active, Down},
};
use weir_tests::packet_world::{
    Outcome::{Dropped, Passed},
    World,
};

use crate::{WEB, check, sent};

#[test]
fn a_client_that_cannot_be_served_is_told_at_once() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Down)]).unwrap();
    check(
        &world,
        &[
            (
                "no task: a SYN is reset",
                "nic_in",
                "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S seq 41 mss 1460",
                sent("tcp 10.77.0.11:8080 > 10.77.0.101:40000 AR ack 42 ttl 64"),
            ),
            (
                "IPv6 too",
                "nic_in",
                "tcp [fd77::101]:40000 > [fd77::11]:8080 S seq 41 mss 1440",
                sent("tcp [fd77::11]:8080 > [fd77::101]:40000 AR ack 42 ttl 64"),
            ),
            (
                "a segment of an unknown connection is reset with the number that the client awaits",
                "nic_in",
                "tcp 10.77.0.101:40000 > 10.77.0.11:8080 AP seq 7 ack 99 data 20",
                sent("tcp 10.77.0.11:8080 > 10.77.0.101:40000 R seq 99 ttl 64"),
            ),
            (
                "a reset is never answered",
                "nic_in",
                "tcp 10.77.0.101:40000 > 10.77.0.11:8080 R seq 7",
                Dropped,
            ),
            (
                "a datagram is unreachable",
                "nic_in",
                "udp 10.77.0.101:40000 > 10.77.0.11:5353 data 33",
                sent(
                    "icmp 10.77.0.11 > 10.77.0.101 DestinationUnreachable(Port) about [10.77.0.101:40000 > 10.77.0.11:5353] ttl 64",
                ),
            ),
            (
                "a datagram without data, too",
                "nic_in",
                "udp 10.77.0.101:40000 > 10.77.0.11:5353",
                sent(
                    "icmp 10.77.0.11 > 10.77.0.101 DestinationUnreachable(Port) about [10.77.0.101:40000 > 10.77.0.11:5353] ttl 64",
                ),
            ),
            (
                "IPv6 too",
                "nic_in",
                "udp [fd77::101]:40000 > [fd77::11]:5353 data 33",
                sent(
                    "icmp fd77::11 > fd77::101 DestinationUnreachable(Port) about [[fd77::101]:40000 > [fd77::11]:5353] ttl 64",
                ),
            ),
        ],
    );
    assert_eq!(world.drops("no_backend").unwrap(), 5);
    assert_eq!(world.drops("backend_gone").unwrap(), 2);
}

#[test]
fn what_is_not_for_the_mesh_passes_untouched() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    check(
        &world,
        &[
            ("another port", "nic_in", "tcp 10.77.0.101:40000 > 10.77.0.11:22 S", Passed),
            (
                "the published number, in the other protocol",
                "nic_in",
                "udp 10.77.0.101:40000 > 10.77.0.11:8080 data 1",
                Passed,
            ),
            (
                "an address that is not this node's",
                "nic_in",
                "tcp 10.77.0.101:40000 > 10.99.0.1:8080 S",
                Passed,
            ),
            (
                "the relay address, from outside",
                "nic_in",
                "tcp 10.77.0.101:40000 > 169.254.119.1:8080 S",
                Passed,
            ),
            ("IPv6 likewise", "nic_in", "tcp [fd77::101]:40000 > [fd99::1]:8080 S", Passed),
            ("ICMP", "nic_in", "echo 10.77.0.101:1 > 10.77.0.11:2 data 8", Passed),
            ("ICMPv6", "nic_in", "echo [fd77::101]:1 > [fd77::11]:2 data 8", Passed),
            (
                "a container's packets to anywhere else",
                "task_out",
                "tcp 172.18.0.3:40000 > 1.2.3.4:443 S",
                Passed,
            ),
            (
                "a task that speaks first",
                "task_out",
                "udp 172.18.0.3:53 > 10.77.0.101:999 data 1",
                Passed,
            ),
        ],
    );
}

#[test]
fn a_packet_never_reaches_a_task_of_another_service() {
    let mut world = World::new().unwrap();
    world
        .service("web", Balance::RoundRobin, &["8080:80/tcp"], &[("web.1", "n1", 3, Active)])
        .unwrap();
    world
        .service("db", Balance::RoundRobin, &["5432:5432/tcp"], &[("db.1", "n1", 5, Active)])
        .unwrap();
    let (n2, tag) = (world.node("n2").unwrap(), world.tag("db", "db.1", "n1").unwrap());
    assert_eq!(
        world.tunnel(n2, tag, "tcp 10.77.0.101:40000 > 10.77.0.12:8080 S").unwrap(),
        sent("tcp 10.77.0.101:40000 > 172.18.0.3:80 S ttl 63"),
        "the tag of a task of db on a packet for web: web picks for itself"
    );
}

#[test]
fn a_packet_at_the_end_of_its_life_is_not_forwarded() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    check(
        &world,
        &[
            ("IPv4", "nic_in", "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S ttl 1", Dropped),
            ("IPv6", "nic_in", "tcp [fd77::101]:40000 > [fd77::11]:8080 S ttl 1", Dropped),
        ],
    );
    assert_eq!(world.drops("time_to_live").unwrap(), 2);
}

#[test]
fn what_was_not_forwarded_is_remembered_as_it_came_and_the_last_of_it_longest() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Down)]).unwrap();
    assert!(world.last_drops().unwrap().is_empty());
    world.run("nic_in", "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S").unwrap();
    world.run("nic_in", "udp [fd77::101]:40001 > [fd77::11]:5353 data 3").unwrap();
    world.run("nic_in", "tcp 10.77.0.101:40002 > 10.77.0.11:8080 R seq 7").unwrap();
    assert_eq!(
        world.last_drops().unwrap(),
        [
            "tcp 10.77.0.101:40000 > 10.77.0.11:8080 0x02 no_backend",
            "udp [fd77::101]:40001 > [fd77::11]:5353 0x00 no_backend",
            "tcp 10.77.0.101:40002 > 10.77.0.11:8080 0x04 backend_gone",
        ]
    );
    // More than are remembered of all processors together.
    let room = 128 * std::fs::read_to_string("/proc/cpuinfo").unwrap().matches("processor").count();
    for port in 0..room {
        let client = format!("10.77.0.101:{}", 41_000 + port);
        world.run("nic_in", &format!("tcp {client} > 10.77.0.11:8080 S")).unwrap();
    }
    let last = world.last_drops().unwrap();
    assert!((128..=room).contains(&last.len()), "{}", last.len());
    let newest = format!("tcp 10.77.0.101:{} > 10.77.0.11:8080 0x02 no_backend", 41_000 + room - 1);
    assert_eq!(last.last(), Some(&newest));
}
