//! Where packets go, and their replies.

use weir_mesh::{Balance, TaskState::Active};
use weir_tests::packet_world::{
    Outcome::{Dropped, Passed},
    World,
};

use crate::{WEB, check, sent};

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
