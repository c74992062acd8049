//! Virtual addresses that packets are routed to.

use weir_mesh::{Balance, TaskState::Active};
use weir_tests::packet_world::{Outcome::Passed, World};

use crate::{WEB, check, sent};

/// `web` at 10.0.9.2 and fd00:9::2, and `other`, which publishes the ports where the tasks of `web` listen.
fn world(tasks: &[(&str, &str, u8, weir_mesh::TaskState)]) -> World {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, tasks).unwrap();
    let other = ("other.1", "n1", 9, Active);
    world.service("other", Balance::RoundRobin, &["80:8000/tcp", "53:8000/udp"], &[other]).unwrap();
    world.route("web", &["10.0.9.2", "fd00:9::2"]).unwrap();
    world
}

#[test]
fn a_packet_for_a_virtual_address_goes_to_a_task_at_the_target_port() {
    let world = world(&[("web.1", "n1", 3, Active)]);
    check(
        &world,
        &[
            (
                "a SYN, although another service has that port at the node's addresses",
                "nic_in",
                "tcp 10.77.0.101:40000 > 10.0.9.2:80 S mss 1460 seq 5",
                sent("tcp 10.77.0.101:40000 > 172.18.0.3:80 S mss 1460 seq 5 ttl 63"),
            ),
            (
                "the rest of the connection",
                "nic_in",
                "tcp 10.77.0.101:40000 > 10.0.9.2:80 AP seq 6 ack 9 data 31",
                sent("tcp 10.77.0.101:40000 > 172.18.0.3:80 AP seq 6 ack 9 data 31 ttl 63"),
            ),
            (
                "the answer comes from the virtual address",
                "task_out",
                "tcp 172.18.0.3:80 > 10.77.0.101:40000 SA mss 1460 seq 8 ack 6",
                sent("tcp 10.0.9.2:80 > 10.77.0.101:40000 SA mss 1460 seq 8 ack 6 ttl 63"),
            ),
            (
                "UDP",
                "nic_in",
                "udp 10.77.0.101:40000 > 10.0.9.2:53 data 17",
                sent("udp 10.77.0.101:40000 > 172.18.0.3:53 data 17 ttl 63"),
            ),
            (
                "IPv6",
                "nic_in",
                "tcp [fd77::101]:40000 > [fd00:9::2]:80 S mss 1440",
                sent("tcp [fd77::101]:40000 > [fd18::3]:80 S mss 1440 ttl 63"),
            ),
            (
                "its answer",
                "task_out",
                "tcp [fd18::3]:80 > [fd77::101]:40000 SA mss 1440",
                sent("tcp [fd00:9::2]:80 > [fd77::101]:40000 SA mss 1440 ttl 63"),
            ),
            (
                "a container of the node is seen as the node",
                "task_out",
                "tcp 172.18.0.9:40000 > 10.0.9.2:80 S",
                sent("tcp 10.77.0.11:40000 > 172.18.0.3:80 S ttl 63"),
            ),
            (
                "the other service at the node's address",
                "nic_in",
                "tcp 10.77.0.101:40001 > 10.77.0.11:80 S",
                sent("tcp 10.77.0.101:40001 > 172.18.0.9:8000 S ttl 63"),
            ),
            (
                "the published port is none at the virtual address",
                "nic_in",
                "tcp 10.77.0.101:40002 > 10.0.9.2:8080 S",
                Passed,
            ),
            (
                "nor has the address next to it any",
                "nic_in",
                "tcp 10.77.0.101:40002 > 10.0.9.3:80 S",
                Passed,
            ),
        ],
    );
}

/// Between nodes the port is the published one, as for any other address.
#[test]
fn a_task_of_another_node_gets_what_was_for_the_virtual_address_through_the_tunnel_and_back() {
    let here = world(&[("web.2", "n2", 3, Active)]);
    let back = (here.node("n2").unwrap(), weir_abi::Tag::RETURN);
    for [asked, out, answer, returned] in [
        [
            "tcp 10.77.0.101:40000 > 10.0.9.2:80 S mss 1400",
            "tcp 10.77.0.101:40000 > 10.0.9.2:8080 S mss 1400 ttl 63",
            "tcp 10.0.9.2:8080 > 10.77.0.101:40000 SA mss 1400",
            "tcp 10.0.9.2:80 > 10.77.0.101:40000 SA mss 1400 ttl 63",
        ],
        [
            "udp [fd77::101]:40000 > [fd00:9::2]:53 data 5",
            "udp [fd77::101]:40000 > [fd00:9::2]:5353 data 5 ttl 63",
            "udp [fd00:9::2]:5353 > [fd77::101]:40000 data 7",
            "udp [fd00:9::2]:53 > [fd77::101]:40000 data 7 ttl 63",
        ],
    ] {
        assert_eq!(here.run("nic_in", asked).unwrap(), sent(out));
        assert_eq!(here.tunnel(back.0, back.1, answer).unwrap(), sent(returned));
    }
    // From a container, which is seen as its node.
    let asked = "tcp 172.18.0.9:40000 > 10.0.9.2:80 S mss 1400";
    let out = "tcp 10.77.0.11:40000 > 10.0.9.2:8080 S mss 1400 ttl 63";
    assert_eq!(here.run("task_out", asked).unwrap(), sent(out));
    let answer = "tcp 10.0.9.2:8080 > 10.77.0.11:40000 SA mss 1400";
    let returned = "tcp 10.0.9.2:80 > 172.18.0.9:40000 SA mss 1400 ttl 63";
    assert_eq!(here.tunnel(back.0, back.1, answer).unwrap(), sent(returned));
}

/// Routers may lead a client to another node at any time: one that finds the same task goes on.
#[test]
fn a_connection_goes_on_when_its_packets_come_by_another_node() {
    let task = ("web.1", "n1", 3, Active);
    let mut here = World::new().unwrap();
    here.service("web", Balance::Maglev, WEB, &[task]).unwrap();
    here.route("web", &["10.0.9.2", "fd00:9::2"]).unwrap();
    let (n2, tag) = (here.node("n2").unwrap(), here.tag("web", "web.1", "n1").unwrap());
    let client = |port: u16, rest: &str| format!("tcp 10.77.0.101:{port} > 10.0.9.2:{rest}");
    let answers = |port: u16| format!("tcp 172.18.0.3:80 > 10.77.0.101:{port} A");
    let to_task = |port: u16, rest: &str| {
        sent(&format!("tcp 10.77.0.101:{port} > 172.18.0.3:80 {rest} ttl 63"))
    };
    let by_node = |port: u16| sent(&format!("tcp 10.0.9.2:8080 > 10.77.0.101:{port} A ttl 63"));
    let direct = |port: u16| sent(&format!("tcp 10.0.9.2:80 > 10.77.0.101:{port} A ttl 63"));

    // From this node, which has the task, to n2.
    assert_eq!(here.run("nic_in", &client(40000, "80 S")).unwrap(), to_task(40000, "S"));
    assert_eq!(here.run("task_out", &answers(40000)).unwrap(), direct(40000));
    assert_eq!(here.tunnel(n2, tag, &client(40000, "8080 A")).unwrap(), to_task(40000, "A"));
    assert_eq!(here.run("task_out", &answers(40000)).unwrap(), by_node(40000));

    // From n2 to this node.
    assert_eq!(here.tunnel(n2, tag, &client(40001, "8080 S")).unwrap(), to_task(40001, "S"));
    assert_eq!(here.run("task_out", &answers(40001)).unwrap(), by_node(40001));
    assert_eq!(here.run("nic_in", &client(40001, "80 A")).unwrap(), to_task(40001, "A"));
    assert_eq!(here.run("task_out", &answers(40001)).unwrap(), direct(40001));
    assert_eq!(here.drops("backend_gone").unwrap(), 0);
}

#[test]
fn a_port_that_another_plane_has_is_refused_at_a_virtual_address_and_flows_that_were_go_on() {
    let mut world = world(&[("web.1", "n1", 3, Active)]);
    let open = "tcp 10.77.0.101:40000 > 10.0.9.2:80 S";
    world.run("nic_in", open).unwrap();
    world.cede("web", true).unwrap();
    let goes_on = world.run("nic_in", "tcp 10.77.0.101:40000 > 10.0.9.2:80 A").unwrap();
    assert_eq!(goes_on, sent("tcp 10.77.0.101:40000 > 172.18.0.3:80 A ttl 63"));
    let new = world.run("nic_in", "tcp 10.77.0.101:40001 > 10.0.9.2:80 S seq 7").unwrap();
    assert_eq!(new, sent("tcp 10.0.9.2:80 > 10.77.0.101:40001 AR ack 8 ttl 64"));
    assert_eq!(world.drops("no_backend").unwrap(), 1);
    world.cede("web", false).unwrap();
    let again = world.run("nic_in", "tcp 10.77.0.101:40002 > 10.0.9.2:80 S").unwrap();
    assert_eq!(again, sent("tcp 10.77.0.101:40002 > 172.18.0.3:80 S ttl 63"));
}

#[test]
fn an_address_that_is_not_routed_any_more_is_left_alone() {
    let mut world = world(&[("web.1", "n1", 3, Active)]);
    let asked = "tcp 10.77.0.101:40000 > 10.0.9.2:80 S";
    assert_ne!(world.run("nic_in", asked).unwrap(), Passed);
    world.change("web", |web| web.vips.clear()).unwrap();
    assert_eq!(world.run("nic_in", asked).unwrap(), Passed, "its flows, too");
    let task = "tcp 172.18.0.9:40000 > 10.0.9.2:80 S";
    assert_eq!(world.run("task_out", task).unwrap(), Passed);
}
