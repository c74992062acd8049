//! Packet cases: each a sentence, a packet in, and what becomes of it. The kernel itself runs the
//! programs (`BPF_PROG_TEST_RUN`) on maps that the planner filled.
//!
//! The test run does not carry out redirects; where packets really go is tested in the lab.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;

use weir_mesh::{
    Balance,
    TaskState::{Active, Down, Draining},
};
use weir_tests::packet_world::{
    Outcome::{self, Dropped, Passed},
    World,
};

/// A case: what it shows, the program, the packet, and what becomes of it.
type Case = (&'static str, &'static str, &'static str, Outcome);

fn sent(text: &str) -> Outcome {
    Outcome::Sent(text.to_owned())
}

fn check(world: &World, cases: &[Case]) {
    for (says, program, packet, expected) in cases {
        let outcome = world.run(program, packet).expect(says);
        assert_eq!(&outcome, expected, "{says}\n  {program}: {packet}");
    }
}

/// The source port of a packet's text.
fn port_of(text: &str) -> u16 {
    text.split([':', ' ']).nth(2).unwrap().parse().unwrap()
}

const WEB: &[&str] = &["8080:80/tcp", "5353:53/udp"];

#[test]
fn a_local_task_gets_the_packet_and_the_client_gets_the_reply() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    check(
        &world,
        &[
            (
                "a SYN to a published port goes to the task, the client's address kept",
                "nic_in",
                "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S mss 1460 seq 5",
                sent("tcp 10.77.0.101:40000 > 172.18.0.3:80 S mss 1460 seq 5 ttl 63"),
            ),
            (
                "the rest of the connection follows it",
                "nic_in",
                "tcp 10.77.0.101:40000 > 10.77.0.11:8080 AP seq 6 ack 9 data 31",
                sent("tcp 10.77.0.101:40000 > 172.18.0.3:80 AP seq 6 ack 9 data 31 ttl 63"),
            ),
            (
                "the task's answer comes from the address that the client asked, its segment size untouched",
                "task_out",
                "tcp 172.18.0.3:80 > 10.77.0.101:40000 SA mss 1460 seq 8 ack 6",
                sent("tcp 10.77.0.11:8080 > 10.77.0.101:40000 SA mss 1460 seq 8 ack 6 ttl 63"),
            ),
            (
                "the rest of the connection follows it back",
                "task_out",
                "tcp 172.18.0.3:80 > 10.77.0.101:40000 A seq 9 ack 7",
                sent("tcp 10.77.0.11:8080 > 10.77.0.101:40000 A seq 9 ack 7 ttl 63"),
            ),
            (
                "UDP likewise",
                "nic_in",
                "udp 10.77.0.101:40000 > 10.77.0.11:5353 data 17",
                sent("udp 10.77.0.101:40000 > 172.18.0.3:53 data 17 ttl 63"),
            ),
            (
                "and its answer",
                "task_out",
                "udp 172.18.0.3:53 > 10.77.0.101:40000 data 170",
                sent("udp 10.77.0.11:5353 > 10.77.0.101:40000 data 170 ttl 63"),
            ),
            (
                "a UDP checksum of zero stays zero",
                "nic_in",
                "udp 10.77.0.101:40001 > 10.77.0.11:5353 data 4 nosum",
                sent("udp 10.77.0.101:40001 > 172.18.0.3:53 data 4 nosum ttl 63"),
            ),
            (
                "IPv6: a SYN",
                "nic_in",
                "tcp [fd77::101]:40000 > [fd77::11]:8080 S mss 1440",
                sent("tcp [fd77::101]:40000 > [fd18::3]:80 S mss 1440 ttl 63"),
            ),
            (
                "IPv6: the answer",
                "task_out",
                "tcp [fd18::3]:80 > [fd77::101]:40000 SA mss 1440",
                sent("tcp [fd77::11]:8080 > [fd77::101]:40000 SA mss 1440 ttl 63"),
            ),
            (
                "IPv6: UDP",
                "nic_in",
                "udp [fd77::101]:40000 > [fd77::11]:5353 data 9",
                sent("udp [fd77::101]:40000 > [fd18::3]:53 data 9 ttl 63"),
            ),
            (
                "IPv6: its answer",
                "task_out",
                "udp [fd18::3]:53 > [fd77::101]:40000 data 9",
                sent("udp [fd77::11]:5353 > [fd77::101]:40000 data 9 ttl 63"),
            ),
        ],
    );
}

#[test]
fn what_a_task_says_to_a_syn_is_counted_and_a_later_reset_is_not() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let tag = world.tag("web", "web.1", "n1").unwrap();
    let run = |program: &str, packet: &str| drop(world.run(program, packet).unwrap());
    let counted = || world.answers("web", "web.1").unwrap();
    run("nic_in", "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S");
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40000 RA");
    assert_eq!(counted(), (0, 1), "refused");
    run("nic_in", "tcp [fd77::101]:40001 > [fd77::11]:8080 S");
    run("task_out", "tcp [fd18::3]:80 > [fd77::101]:40001 RA");
    assert_eq!(counted(), (0, 2), "refused by IPv6");
    run("nic_in", "tcp 10.77.0.101:40002 > 10.77.0.11:8080 S");
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40002 SA");
    assert_eq!(counted(), (1, 2), "accepted");
    run("nic_in", "tcp 10.77.0.101:40002 > 10.77.0.11:8080 A");
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40002 AP data 4");
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40002 RA");
    assert_eq!(counted(), (1, 2), "the reset of an established connection is no refusal");
    let node = world.node("n2").unwrap();
    world.tunnel(node, tag, "tcp 10.77.0.101:40003 > 10.77.0.12:8080 S").unwrap();
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40003 RA");
    assert_eq!(counted(), (1, 3), "refused a connection that came by another node");
    world.tunnel(node, tag, "tcp 10.77.0.101:40004 > 10.77.0.12:8080 S").unwrap();
    world.tunnel(node, tag, "tcp 10.77.0.101:40004 > 10.77.0.12:8080 A").unwrap();
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40004 RA");
    assert_eq!(counted(), (1, 3), "reset after the client has answered");
    run("nic_in", "udp 10.77.0.101:40000 > 10.77.0.11:5353 data 17");
    run("task_out", "udp 172.18.0.3:53 > 10.77.0.101:40000 data 170");
    assert_eq!(counted(), (1, 3), "UDP has no SYN");
}

#[test]
fn a_remote_task_gets_the_packet_unchanged_through_the_tunnel() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.2", "n2", 3, Active)]).unwrap();
    check(
        &world,
        &[
            (
                "a SYN goes out as it came, but for a segment size that fits the tunnel",
                "nic_in",
                "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S mss 1460",
                sent("tcp 10.77.0.101:40000 > 10.77.0.11:8080 S mss 1410 ttl 63"),
            ),
            (
                "a smaller segment size is left alone",
                "nic_in",
                "tcp 10.77.0.101:40002 > 10.77.0.11:8080 S mss 1400",
                sent("tcp 10.77.0.101:40002 > 10.77.0.11:8080 S mss 1400 ttl 63"),
            ),
            (
                "IPv6 has less room",
                "nic_in",
                "tcp [fd77::101]:40000 > [fd77::11]:8080 S mss 1440",
                sent("tcp [fd77::101]:40000 > [fd77::11]:8080 S mss 1390 ttl 63"),
            ),
            (
                "UDP goes out as it came",
                "nic_in",
                "udp 10.77.0.101:40000 > 10.77.0.11:5353 data 5",
                sent("udp 10.77.0.101:40000 > 10.77.0.11:5353 data 5 ttl 63"),
            ),
        ],
    );
    let back = (world.node("n2").unwrap(), weir_abi::Tag::RETURN);
    let returned = |packet| world.tunnel(back.0, back.1, packet).unwrap();
    assert_eq!(
        returned("tcp 10.77.0.11:8080 > 10.77.0.101:40000 SA mss 1410"),
        sent("tcp 10.77.0.11:8080 > 10.77.0.101:40000 SA mss 1410 ttl 63"),
        "the reply that comes back through the tunnel goes to the client"
    );
    assert_eq!(
        returned("tcp 10.77.0.11:8080 > 10.77.0.101:50000 SA"),
        Dropped,
        "a reply to a flow that nobody here began goes nowhere"
    );
    assert_eq!(world.drops("unknown_flow").unwrap(), 1);
}

#[test]
fn the_tasks_node_translates_and_sends_replies_back_to_where_the_client_entered() {
    let mut world = World::new().unwrap();
    let tasks = [("web.1", "n1", 3, Active), ("web.2", "n1", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &tasks).unwrap();
    let (n2, tag) = (world.node("n2").unwrap(), world.tag("web", "web.2", "n1").unwrap());
    for (packet, expected) in [
        (
            "tcp 10.77.0.101:40000 > 10.77.0.12:8080 S mss 1410",
            "tcp 10.77.0.101:40000 > 172.18.0.4:80 S mss 1410 ttl 63",
        ),
        (
            "tcp 10.77.0.101:40000 > 10.77.0.12:8080 A seq 1 ack 1 data 8",
            "tcp 10.77.0.101:40000 > 172.18.0.4:80 A seq 1 ack 1 data 8 ttl 63",
        ),
        (
            "udp 10.77.0.101:40000 > 10.77.0.12:5353 data 8",
            "udp 10.77.0.101:40000 > 172.18.0.4:53 data 8 ttl 63",
        ),
        (
            "tcp [fd77::101]:40000 > [fd77::12]:8080 S mss 1390",
            "tcp [fd77::101]:40000 > [fd18::4]:80 S mss 1390 ttl 63",
        ),
        (
            "udp [fd77::101]:40000 > [fd77::12]:5353 data 8",
            "udp [fd77::101]:40000 > [fd18::4]:53 data 8 ttl 63",
        ),
    ] {
        assert_eq!(
            world.tunnel(n2, tag, packet).unwrap(),
            sent(expected),
            "the tag names the task"
        );
    }
    check(
        &world,
        &[
            (
                "the reply becomes the ingress node's before it enters the tunnel, its segment size clamped",
                "task_out",
                "tcp 172.18.0.4:80 > 10.77.0.101:40000 SA mss 1460",
                sent("tcp 10.77.0.12:8080 > 10.77.0.101:40000 SA mss 1410 ttl 63"),
            ),
            (
                "UDP likewise",
                "task_out",
                "udp 172.18.0.4:53 > 10.77.0.101:40000 data 3",
                sent("udp 10.77.0.12:5353 > 10.77.0.101:40000 data 3 ttl 63"),
            ),
            (
                "IPv6 likewise",
                "task_out",
                "tcp [fd18::4]:80 > [fd77::101]:40000 SA mss 1440",
                sent("tcp [fd77::12]:8080 > [fd77::101]:40000 SA mss 1390 ttl 63"),
            ),
        ],
    );
    assert_eq!(
        world.tunnel(n2, tag, "tcp 10.77.0.101:41000 > 10.77.0.12:8080 A seq 1 ack 1").unwrap(),
        sent("tcp 10.77.0.101:41000 > 172.18.0.4:80 A seq 1 ack 1 ttl 63"),
        "a lost way back is made again by any packet, since the tag names the task"
    );
    assert_eq!(
        world.run("task_out", "tcp 172.18.0.4:80 > 10.77.0.101:41000 A").unwrap(),
        sent("tcp 10.77.0.12:8080 > 10.77.0.101:41000 A ttl 63")
    );
    assert_eq!(
        world.tunnel(n2, tag, "tcp 10.77.0.101:40000 > 10.77.0.12:9999 S").unwrap(),
        Dropped,
        "a port that is not published here"
    );
    assert_eq!(world.drops("not_published").unwrap(), 1);
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
fn a_new_flow_for_a_draining_task_gets_a_second_chance() {
    let mut world = World::new().unwrap();
    let n2 = world.node("n2");
    assert!(n2.is_err(), "nothing is installed yet");
    let active = [("web.1", "n1", 3, Active), ("web.2", "n1", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &active).unwrap();
    let (n2, tag) = (world.node("n2").unwrap(), world.tag("web", "web.2", "n1").unwrap());
    let old = "tcp 10.77.0.101:40000 > 10.77.0.12:8080";
    world.tunnel(n2, tag, &format!("{old} S")).unwrap();
    let draining = [("web.1", "n1", 3, Active), ("web.2", "n1", 4, Draining)];
    world.service("web", Balance::RoundRobin, WEB, &draining).unwrap();
    assert_eq!(
        world.tunnel(n2, tag, &format!("{old} A seq 1 ack 1")).unwrap(),
        sent("tcp 10.77.0.101:40000 > 172.18.0.4:80 A seq 1 ack 1 ttl 63"),
        "an established flow stays with its draining task"
    );
    for protocol in
        ["tcp 10.77.0.101:40001 > 10.77.0.12:8080 S", "tcp [fd77::101]:40001 > [fd77::12]:8080 S"]
    {
        let to = if protocol.contains('[') { "[fd18::3]:80" } else { "172.18.0.3:80" };
        let from = protocol.split(' ').nth(1).unwrap();
        assert_eq!(
            world.tunnel(n2, tag, protocol).unwrap(),
            sent(&format!("tcp {from} > {to} S ttl 63")),
            "a new flow for the draining task gets another task of this node"
        );
    }
    assert_eq!(
        world.tunnel(n2, tag, "tcp 10.77.0.101:40001 > 10.77.0.12:8080 A seq 1 ack 1").unwrap(),
        sent("tcp 10.77.0.101:40001 > 172.18.0.3:80 A seq 1 ack 1 ttl 63"),
        "and stays there, although the sender still names the other"
    );
    let elsewhere = [("web.2", "n1", 4, Draining), ("web.3", "n3", 3, Active)];
    world.service("web", Balance::RoundRobin, WEB, &elsewhere).unwrap();
    assert_eq!(
        world.tunnel(n2, tag, "tcp 10.77.0.101:40002 > 10.77.0.12:8080 S mss 1410").unwrap(),
        sent("tcp 10.77.0.101:40002 > 10.77.0.12:8080 S mss 1410 ttl 63"),
        "with no task left here, it goes on to one more node"
    );
    assert_eq!(
        world
            .tunnel(
                n2,
                tag | weir_abi::Tag::HOPPED,
                "tcp 10.77.0.101:40003 > 10.77.0.12:8080 S seq 4"
            )
            .unwrap(),
        sent("tcp 10.77.0.12:8080 > 10.77.0.101:40003 AR ack 5 ttl 64"),
        "but only once: then the client is told"
    );
    assert_eq!(world.drops("second_chance").unwrap(), 3);
    assert_eq!(world.drops("hop_limit").unwrap(), 1);
}

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
fn a_container_that_asks_its_own_node_is_seen_as_the_node() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    check(
        &world,
        &[
            (
                "a task reaches itself through the mesh, without meeting its own address as a client's",
                "task_out",
                "tcp 172.18.0.3:40000 > 10.77.0.11:8080 S mss 1460",
                sent("tcp 10.77.0.11:40000 > 172.18.0.3:80 S mss 1460 ttl 63"),
            ),
            (
                "and hears the answer from where it asked",
                "task_out",
                "tcp 172.18.0.3:80 > 10.77.0.11:40000 SA mss 1460",
                sent("tcp 10.77.0.11:8080 > 172.18.0.3:40000 SA mss 1460 ttl 63"),
            ),
            (
                "UDP",
                "task_out",
                "udp 172.18.0.9:40000 > 10.77.0.11:5353 data 2",
                sent("udp 10.77.0.11:40000 > 172.18.0.3:53 data 2 ttl 63"),
            ),
            (
                "IPv6",
                "task_out",
                "tcp [fd18::9]:40000 > [fd77::11]:8080 S",
                sent("tcp [fd77::11]:40000 > [fd18::3]:80 S ttl 63"),
            ),
        ],
    );
    world.service("web", Balance::RoundRobin, WEB, &[("web.2", "n2", 3, Active)]).unwrap();
    check(
        &world,
        &[(
            "a container's own address means nothing on another node",
            "task_out",
            "tcp 172.18.0.9:41000 > 10.77.0.11:8080 S mss 1460",
            sent("tcp 10.77.0.11:41000 > 10.77.0.11:8080 S mss 1410 ttl 63"),
        )],
    );
    assert_eq!(
        world
            .tunnel(
                world.node("n2").unwrap(),
                weir_abi::Tag::RETURN,
                "tcp 10.77.0.11:8080 > 10.77.0.11:41000 SA"
            )
            .unwrap(),
        sent("tcp 10.77.0.11:8080 > 172.18.0.9:41000 SA ttl 63"),
        "and the reply finds the container"
    );
}

#[test]
fn one_client_port_may_use_two_addresses_of_the_mesh_at_once() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let first = "tcp 10.77.0.101:40000 > 10.77.0.11:8080";
    let second = "tcp 10.77.0.101:40000 > 10.77.0.21:8080";
    world.run("nic_in", &format!("{first} S")).unwrap();
    let Outcome::Sent(seen) = world.run("nic_in", &format!("{second} S")).unwrap() else {
        panic!("the second connection was not forwarded");
    };
    let alias = port_of(&seen);
    assert_ne!(alias, 40000, "the task must be able to tell the two apart: {seen}");
    assert!(seen.ends_with("> 172.18.0.3:80 S ttl 63"), "{seen}");
    assert_eq!(
        world.run("task_out", &format!("tcp 172.18.0.3:80 > 10.77.0.101:{alias} SA")).unwrap(),
        sent("tcp 10.77.0.21:8080 > 10.77.0.101:40000 SA ttl 63"),
        "the answer to the second comes from the second address, to the client's own port"
    );
    assert_eq!(
        world.run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40000 SA").unwrap(),
        sent("tcp 10.77.0.11:8080 > 10.77.0.101:40000 SA ttl 63"),
        "and the first is undisturbed"
    );
    assert_eq!(
        world.run("nic_in", &format!("{second} A seq 1 ack 1")).unwrap(),
        sent(&format!("tcp 10.77.0.101:{alias} > 172.18.0.3:80 A seq 1 ack 1 ttl 63")),
        "the second connection keeps its alias"
    );
}

#[test]
fn a_client_port_that_is_another_flows_alias_is_not_taken_for_it() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let (n2, tag) = (world.node("n2").unwrap(), world.tag("web", "web.1", "n1").unwrap());
    world.run("nic_in", "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S").unwrap();
    let through_n2 = "tcp 10.77.0.101:40000 > 10.77.0.12:8080 S";
    let Outcome::Sent(seen) = world.tunnel(n2, tag, through_n2).unwrap() else {
        panic!("the second connection was not forwarded");
    };
    let alias = port_of(&seen);
    assert_ne!(alias, 40000, "the task must be able to tell the two apart: {seen}");
    // The client now uses the port that the task knows the second connection by.
    let third = format!("tcp 10.77.0.101:{alias} > 10.77.0.12:8080 S");
    let Outcome::Sent(seen) = world.tunnel(n2, tag, &third).unwrap() else {
        panic!("the third connection was not forwarded");
    };
    let other = port_of(&seen);
    assert_ne!(other, alias, "it is a connection of its own: {seen}");
    for (at_task, at_client) in [(alias, 40000), (other, alias)] {
        let reply = format!("tcp 172.18.0.3:80 > 10.77.0.101:{at_task} SA");
        assert_eq!(
            world.run("task_out", &reply).unwrap(),
            sent(&format!("tcp 10.77.0.12:8080 > 10.77.0.101:{at_client} SA ttl 63")),
            "each answer goes to the port that asked"
        );
    }
}

#[test]
fn a_flow_that_comes_back_with_a_second_chance_belongs_to_this_node_again() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let (n2, tag) = (world.node("n2").unwrap(), world.tag("web", "web.1", "n1").unwrap());
    world.tunnel(n2, tag, "tcp 10.77.0.101:40000 > 10.77.0.12:8080 S").unwrap();
    let away = [("web.1", "n1", 3, Draining), ("web.2", "n2", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &away).unwrap();
    let flow = "tcp 10.77.0.101:40000 > 10.77.0.11:8080";
    assert_eq!(
        world.run("nic_in", &format!("{flow} S mss 1410")).unwrap(),
        sent(&format!("{flow} S mss 1410 ttl 63")),
        "it enters here, and the only task is on n2"
    );
    let both = [("web.1", "n1", 3, Active), ("web.2", "n2", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &both).unwrap();
    let hopped = tag | weir_abi::Tag::HOPPED;
    let Outcome::Sent(seen) = world.tunnel(n2, hopped, &format!("{flow} S ttl 63")).unwrap() else {
        panic!("n2 has no task any more, and this node does not take it");
    };
    let alias = port_of(&seen);
    assert_ne!(alias, 40000, "the task knows another flow by this port: {seen}");
    assert_eq!(
        world.run("task_out", &format!("tcp 172.18.0.3:80 > 10.77.0.101:{alias} SA")).unwrap(),
        sent("tcp 10.77.0.11:8080 > 10.77.0.101:40000 SA ttl 63"),
        "the client is answered"
    );
    assert_eq!(
        world.run("nic_in", &format!("{flow} A seq 1 ack 1")).unwrap(),
        sent(&format!("tcp 10.77.0.101:{alias} > 172.18.0.3:80 A seq 1 ack 1 ttl 63")),
        "what follows needs n2 no more"
    );
    let reply = "tcp 10.77.0.11:8080 > 10.77.0.101:40000 A";
    assert_eq!(
        world.tunnel(n2, weir_abi::Tag::RETURN, &format!("{reply} ttl 62")).unwrap(),
        sent(&format!("{reply} ttl 61")),
        "and what n2 still sends back goes to the client, not to n2 again"
    );
    assert_eq!(world.drops("hop_limit").unwrap(), 0);
}

#[test]
fn a_flow_stays_while_its_task_drains_and_is_reset_when_it_is_gone() {
    let mut world = World::new().unwrap();
    let both = [("web.1", "n1", 3, Active), ("web.2", "n2", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &both).unwrap();
    let mut mine = None;
    for port in 40000..40002 {
        let packet = format!("tcp 10.77.0.101:{port} > 10.77.0.11:8080 S");
        if world.run("nic_in", &packet).unwrap()
            == sent(&format!("tcp 10.77.0.101:{port} > 172.18.0.3:80 S ttl 63"))
        {
            mine = Some(port);
        }
    }
    let port = mine.expect("round robin gives one of two flows to the local task");
    let segment = format!("tcp 10.77.0.101:{port} > 10.77.0.11:8080 A seq 9 ack 5");
    let draining = [("web.1", "n1", 3, Draining), ("web.2", "n2", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &draining).unwrap();
    let stays = sent(&format!("tcp 10.77.0.101:{port} > 172.18.0.3:80 A seq 9 ack 5 ttl 63"));
    assert_eq!(world.run("nic_in", &segment).unwrap(), stays, "an established flow stays");
    for port in 42000..42010 {
        assert_eq!(
            world.run("nic_in", &format!("tcp 10.77.0.101:{port} > 10.77.0.11:8080 S")).unwrap(),
            sent(&format!("tcp 10.77.0.101:{port} > 10.77.0.11:8080 S ttl 63")),
            "new flows go to the other task, through the tunnel"
        );
    }
    world.service("web", Balance::RoundRobin, WEB, &[("web.2", "n2", 4, Active)]).unwrap();
    assert_eq!(world.run("nic_in", &segment).unwrap(), stays, "a removed task drains");
    world.wait(std::time::Duration::from_secs(31)).unwrap();
    assert_eq!(
        world.run("nic_in", &segment).unwrap(),
        sent(&format!("tcp 10.77.0.11:8080 > 10.77.0.101:{port} R seq 5 ttl 64")),
        "after the deadline the client is told"
    );
}

#[test]
fn host_mode_answers_only_where_a_task_runs() {
    let mut world = World::new().unwrap();
    let ports = &["9090:80/tcp/host", "9091:81/tcp"];
    let tasks = [("web.1", "n1", 3, Active), ("web.2", "n2", 4, Active)];
    world.service("web", Balance::RoundRobin, ports, &tasks).unwrap();
    for port in 40000..40010 {
        assert_eq!(
            world.run("nic_in", &format!("tcp 10.77.0.101:{port} > 10.77.0.11:9090 S")).unwrap(),
            sent(&format!("tcp 10.77.0.101:{port} > 172.18.0.3:80 S ttl 63")),
            "only this node's task"
        );
    }
    world.service("web", Balance::RoundRobin, ports, &[("web.2", "n2", 4, Active)]).unwrap();
    world.wait(std::time::Duration::from_secs(31)).unwrap();
    assert_eq!(
        world.run("nic_in", "tcp 10.77.0.101:41000 > 10.77.0.11:9090 S").unwrap(),
        Passed,
        "a node without a task behaves as if weir were not there"
    );
}

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

/// The task that a packet goes to.
fn task_of(world: &World, packet: &str) -> String {
    match world.run("nic_in", packet).unwrap() {
        Outcome::Sent(text) => text.split(' ').nth(3).unwrap().to_owned(),
        other => panic!("{packet}: {other:?}"),
    }
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

#[test]
fn this_hosts_sockets_reach_remote_tasks_by_the_relay_address() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.2", "n2", 3, Active)]).unwrap();
    let out = |packet| world.departs(packet).unwrap();
    assert_eq!(
        out("tcp 10.77.0.11:50000 > 169.254.119.1:8080 S mss 1460"),
        sent("tcp 10.77.0.11:50000 > 169.254.119.1:8080 S mss 1410 ttl 63")
    );
    assert_eq!(
        out("udp [fd77::11]:50000 > [fd77:6569:7200::1]:5353 data 1"),
        sent("udp [fd77::11]:50000 > [fd77:6569:7200::1]:5353 data 1 ttl 63")
    );
    assert_eq!(
        out("tcp 10.77.0.11:50000 > 10.0.0.1:8080 S"),
        Passed,
        "other destinations are not ours"
    );
    assert_eq!(out("tcp 10.77.0.11:50000 > 169.254.119.1:81 S"), Dropped, "an unpublished port");
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
fn broken_packets_are_never_forwarded() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let arrival = weir_loader::Arrival { ingress_ifindex: 3, ..Default::default() };
    for (text, header) in [
        ("tcp 10.77.0.101:40000 > 10.77.0.11:8080 S mss 1460 data 20", 20),
        ("udp 10.77.0.101:40000 > 10.77.0.11:5353 data 20", 20),
        ("tcp [fd77::101]:40000 > [fd77::11]:8080 S mss 1460 data 20", 40),
        ("udp [fd77::101]:40000 > [fd77::11]:5353 data 20", 40),
    ] {
        let whole = weir_tests::packet::build(text).unwrap();
        assert!(matches!(world.run_bytes("nic_in", &whole, arrival).unwrap(), Outcome::Sent(_)));
        // The kernel takes no packet shorter than its IP header for a test run.
        for cut in 14 + header..whole.len() {
            let outcome = world.run_bytes("nic_in", &whole[..cut], arrival).unwrap();
            assert_eq!(outcome, Passed, "{text}, cut at {cut}");
        }
        let sound = world.run_bytes("nic_in", &whole, arrival).unwrap();
        for at in 14..14 + header {
            for value in [0x00, 0x01, 0x0f, 0x40, 0x7f, 0x80, 0xf0, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= value;
                let Ok(Outcome::Sent(sent)) = world.run_bytes("nic_in", &bytes, arrival) else {
                    continue;
                };
                let to = sound_destination(&sound);
                assert!(sent.contains(&to), "{text}, byte {at} ^ {value:#x}: {sent}");
            }
        }
    }
}

#[test]
fn no_program_keeps_the_verifier_long() {
    let verified = World::new().unwrap().trial().verified().unwrap();
    assert!(verified.iter().any(|(name, _)| name == "nic_in"), "{verified:?}");
    for (name, instructions) in &verified {
        // Half of what a kernel takes; other kernels come to other numbers.
        assert!((1..500_000).contains(instructions), "{name}: {verified:?}");
    }
}

/// ` > ADDRESS:PORT` of a packet that was sent on.
fn sound_destination(outcome: &Outcome) -> String {
    let Outcome::Sent(text) = outcome else { panic!("{outcome:?}") };
    format!(" > {} ", text.split(' ').nth(3).expect("a described packet"))
}
