//! Every walk of docs/datapath.md, for TCP and UDP, over IPv4 and IPv6, from one text each.

use std::time::Duration;

use weir_abi::Tag;
use weir_mesh::{Balance, TaskState::Active};
use weir_tests::packet_world::{
    Outcome::{self, Dropped, Passed},
    World,
};

use crate::WEB;

/// What a walk is gone with.
#[derive(Clone, Copy, Debug)]
struct Kind {
    udp: bool,
    ipv6: bool,
}

const KINDS: [Kind; 4] = [
    Kind { udp: false, ipv6: false },
    Kind { udp: true, ipv6: false },
    Kind { udp: false, ipv6: true },
    Kind { udp: true, ipv6: true },
];

/// Names in texts: the client, this node and its second address, another node, two tasks, another
/// container of this node, the relay address; then the ports.
const ADDRESSES: [(&str, &str, &str); 8] = [
    ("CLIENT", "10.77.0.101", "[fd77::101]"),
    ("NODE", "10.77.0.11", "[fd77::11]"),
    ("SECOND", "10.77.0.21", "[fd77::21]"),
    ("OTHER", "10.77.0.12", "[fd77::12]"),
    ("TASK3", "172.18.0.3", "[fd18::3]"),
    ("TASK4", "172.18.0.4", "[fd18::4]"),
    ("CONTAINER", "172.18.0.9", "[fd18::9]"),
    ("RELAY", "169.254.119.1", "[fd77:6569:7200::1]"),
];
const WORDS: [(&str, &str, &str); 6] = [
    ("IP", "tcp", "udp"),
    ("PUBLISHED", "8080", "5353"),
    ("TARGET", "80", "53"),
    ("opens", "S mss 1300 seq 5", "data 30"),
    ("answers", "SA mss 1300 seq 8 ack 6", "data 31"),
    ("goes-on", "AP seq 6 ack 9 data 32", "data 32"),
];

impl Kind {
    /// The text with the words of this kind.
    fn text(self, text: &str) -> String {
        let addresses = ADDRESSES.map(|(name, v4, v6)| (name, if self.ipv6 { v6 } else { v4 }));
        let words = WORDS.map(|(name, tcp, udp)| (name, if self.udp { udp } else { tcp }));
        let known = |word: &str| {
            let found = addresses.iter().chain(&words).find(|(name, _)| *name == word);
            found.map_or_else(|| word.to_owned(), |(_, said)| (*said).to_owned())
        };
        let end = |end: &str| match end.split_once(':') {
            Some((address, port)) => format!("{}:{}", known(address), known(port)),
            None => known(end),
        };
        text.split(' ').map(end).collect::<Vec<_>>().join(" ")
    }
}

/// What happens on a mesh.
struct Walk<'w> {
    kind: Kind,
    world: &'w World,
}

/// `tasks` as (name, node, last byte of the address).
type Tasks<'t> = &'t [(&'t str, &'t str, u8)];

/// To load the programs takes seconds: one world serves all kinds, whose flows are apart.
fn world(ports: &[&str], tasks: Tasks<'_>) -> World {
    let mut world = World::new().unwrap();
    serve(&mut world, ports, tasks);
    world
}

fn serve(world: &mut World, ports: &[&str], tasks: Tasks<'_>) {
    let tasks: Vec<_> =
        tasks.iter().map(|(name, node, last)| (*name, *node, *last, Active)).collect();
    world.service("web", Balance::RoundRobin, ports, &tasks).unwrap();
}

fn each(world: &World, walk: impl Fn(Walk<'_>)) {
    KINDS.into_iter().for_each(|kind| walk(Walk { kind, world }));
}

impl Walk<'_> {
    /// Of a packet that a program gets, `expected` is sent on, one hop older.
    fn sends(&self, program: &str, packet: &str, expected: &str) {
        let packet = self.kind.text(packet);
        let outcome = match program {
            "tun_out" => self.world.departs(&packet),
            program => self.world.run(program, &packet),
        };
        self.is(outcome.unwrap(), expected, &format!("{program}: {packet}"));
    }

    /// The same of one that the other node sent through the tunnel with `tag`.
    fn tunnelled(&self, tag: u32, packet: &str, expected: &str) {
        let outcome = self.tunnel(tag, packet);
        self.is(outcome, expected, &format!("tag {tag:#x}: {packet}"));
    }

    fn tunnel(&self, tag: u32, packet: &str) -> Outcome {
        let from = self.world.node("n2").unwrap();
        self.world.tunnel(from, tag, &self.kind.text(packet)).unwrap()
    }

    fn is(&self, outcome: Outcome, expected: &str, what: &str) {
        let expected = Outcome::Sent(format!("{} ttl 63", self.kind.text(expected)));
        assert_eq!(outcome, expected, "{:?} {what}", self.kind);
    }
}

#[test]
fn a_local_task_sees_the_client_and_answers_as_the_address_that_was_asked() {
    let world = world(WEB, &[("web.1", "n1", 3)]);
    each(&world, |walk| {
        for said in ["opens", "goes-on"] {
            walk.sends(
                "nic_in",
                &format!("IP CLIENT:40000 > NODE:PUBLISHED {said}"),
                &format!("IP CLIENT:40000 > TASK3:TARGET {said}"),
            );
        }
        for said in ["answers", "goes-on"] {
            walk.sends(
                "task_out",
                &format!("IP TASK3:TARGET > CLIENT:40000 {said}"),
                &format!("IP NODE:PUBLISHED > CLIENT:40000 {said}"),
            );
        }
    });
}

#[test]
fn to_a_remote_task_and_back_a_packet_passes_its_entrance_unchanged() {
    let world = world(WEB, &[("web.2", "n2", 3)]);
    each(&world, |walk| {
        for said in ["opens", "goes-on"] {
            let packet = format!("IP CLIENT:40000 > NODE:PUBLISHED {said}");
            walk.sends("nic_in", &packet, &packet);
        }
        for said in ["answers", "goes-on"] {
            let packet = format!("IP NODE:PUBLISHED > CLIENT:40000 {said}");
            walk.tunnelled(Tag::RETURN, &packet, &packet);
        }
        let stray = walk.tunnel(Tag::RETURN, "IP NODE:PUBLISHED > CLIENT:40001 answers");
        assert_eq!(stray, Dropped, "{:?} an answer to a flow that did not enter here", walk.kind);
    });
}

#[test]
fn the_node_of_the_task_translates_and_its_answers_are_the_entrances() {
    let world = world(WEB, &[("web.1", "n1", 3), ("web.2", "n1", 4)]);
    each(&world, |walk| {
        let tag = walk.world.tag("web", "web.2", "n1").unwrap();
        for said in ["opens", "goes-on"] {
            walk.tunnelled(
                tag,
                &format!("IP CLIENT:40000 > OTHER:PUBLISHED {said}"),
                &format!("IP CLIENT:40000 > TASK4:TARGET {said}"),
            );
        }
        for said in ["answers", "goes-on"] {
            walk.sends(
                "task_out",
                &format!("IP TASK4:TARGET > CLIENT:40000 {said}"),
                &format!("IP OTHER:PUBLISHED > CLIENT:40000 {said}"),
            );
        }
    });
}

#[test]
fn a_process_of_this_host_reaches_remote_tasks_by_the_relay_address() {
    let world = world(WEB, &[("web.2", "n2", 3)]);
    each(&world, |walk| {
        let packet = "IP NODE:50000 > RELAY:PUBLISHED opens";
        walk.sends("tun_out", packet, packet);
        let answer = "IP RELAY:PUBLISHED > NODE:50000 answers";
        walk.tunnelled(Tag::RETURN, answer, answer);
    });
}

#[test]
fn a_process_of_another_host_reaches_a_task_here() {
    let world = world(WEB, &[("web.1", "n1", 3)]);
    each(&world, |walk| {
        let tag = walk.world.tag("web", "web.1", "n1").unwrap();
        walk.tunnelled(
            tag,
            "IP OTHER:50000 > RELAY:PUBLISHED opens",
            "IP OTHER:50000 > TASK3:TARGET opens",
        );
        walk.sends(
            "task_out",
            "IP TASK3:TARGET > OTHER:50000 answers",
            "IP RELAY:PUBLISHED > OTHER:50000 answers",
        );
    });
}

#[test]
fn containers_of_a_node_ask_as_the_node_themselves_included() {
    let world = world(WEB, &[("web.1", "n1", 3)]);
    each(&world, |walk| {
        for (asker, port) in [("CONTAINER", 40000), ("TASK3", 40001)] {
            walk.sends(
                "task_out",
                &format!("IP {asker}:{port} > NODE:PUBLISHED opens"),
                &format!("IP NODE:{port} > TASK3:TARGET opens"),
            );
            walk.sends(
                "task_out",
                &format!("IP TASK3:TARGET > NODE:{port} answers"),
                &format!("IP NODE:PUBLISHED > {asker}:{port} answers"),
            );
        }
    });
}

#[test]
fn containers_reach_remote_tasks_as_their_node() {
    let world = world(WEB, &[("web.2", "n2", 3)]);
    each(&world, |walk| {
        walk.sends(
            "task_out",
            "IP CONTAINER:40000 > NODE:PUBLISHED opens",
            "IP NODE:40000 > NODE:PUBLISHED opens",
        );
        walk.tunnelled(
            Tag::RETURN,
            "IP NODE:PUBLISHED > NODE:40000 answers",
            "IP NODE:PUBLISHED > CONTAINER:40000 answers",
        );
    });
}

#[test]
fn host_mode_serves_the_tasks_of_this_node_only() {
    let ports = ["8080:80/tcp/host", "5353:53/udp/host"];
    let mut world = world(&ports, &[("web.1", "n1", 3), ("web.2", "n2", 4)]);
    each(&world, |walk| {
        for port in 40000..40006 {
            walk.sends(
                "nic_in",
                &format!("IP CLIENT:{port} > NODE:PUBLISHED opens"),
                &format!("IP CLIENT:{port} > TASK3:TARGET opens"),
            );
            walk.sends(
                "task_out",
                &format!("IP TASK3:TARGET > CLIENT:{port} answers"),
                &format!("IP NODE:PUBLISHED > CLIENT:{port} answers"),
            );
        }
    });
    serve(&mut world, &ports, &[("web.2", "n2", 4)]);
    world.wait(Duration::from_secs(31)).unwrap();
    each(&world, |walk| {
        let asked = walk.kind.text("IP CLIENT:41000 > NODE:PUBLISHED opens");
        assert_eq!(walk.world.run("nic_in", &asked).unwrap(), Passed, "{asked}");
    });
}

#[test]
fn one_client_port_talks_to_two_addresses_of_a_node_at_once() {
    let world = world(WEB, &[("web.1", "n1", 3)]);
    each(&world, |walk| {
        walk.sends(
            "nic_in",
            "IP CLIENT:40000 > NODE:PUBLISHED opens",
            "IP CLIENT:40000 > TASK3:TARGET opens",
        );
        let second = walk.kind.text("IP CLIENT:40000 > SECOND:PUBLISHED opens");
        let Outcome::Sent(seen) = walk.world.run("nic_in", &second).unwrap() else {
            panic!("{second}: not forwarded");
        };
        let alias = seen.split(' ').nth(1).unwrap();
        let alias = alias.rsplit(':').next().unwrap();
        assert_ne!(alias, "40000", "the task cannot tell them apart: {seen}");
        for (address, port) in [("SECOND", alias), ("NODE", "40000")] {
            walk.sends(
                "nic_in",
                &format!("IP CLIENT:40000 > {address}:PUBLISHED goes-on"),
                &format!("IP CLIENT:{port} > TASK3:TARGET goes-on"),
            );
            walk.sends(
                "task_out",
                &format!("IP TASK3:TARGET > CLIENT:{port} answers"),
                &format!("IP {address}:PUBLISHED > CLIENT:40000 answers"),
            );
        }
    });
}

#[test]
fn a_datagram_without_a_checksum_has_none_on_any_way() {
    let kind = Kind { udp: true, ipv6: false };
    let (asks, says) = ("IP CLIENT:40000 > NODE:PUBLISHED", "IP NODE:PUBLISHED > CLIENT:40000");
    let mut world = world(WEB, &[("web.1", "n1", 3)]);
    let local = Walk { kind, world: &world };
    local.sends(
        "nic_in",
        &format!("{asks} data 4 nosum"),
        "IP CLIENT:40000 > TASK3:TARGET data 4 nosum",
    );
    local.sends(
        "task_out",
        "IP TASK3:TARGET > CLIENT:40000 data 4 nosum",
        &format!("{says} data 4 nosum"),
    );
    local.tunnelled(
        world.tag("web", "web.1", "n1").unwrap(),
        "IP CLIENT:41000 > OTHER:PUBLISHED data 4 nosum",
        "IP CLIENT:41000 > TASK3:TARGET data 4 nosum",
    );
    serve(&mut world, WEB, &[("web.2", "n2", 3)]);
    world.wait(Duration::from_secs(31)).unwrap();
    let remote = Walk { kind, world: &world };
    let packet = "IP CLIENT:42000 > NODE:PUBLISHED data 4 nosum";
    remote.sends("nic_in", packet, packet);
    let packet = "IP NODE:PUBLISHED > CLIENT:42000 data 4 nosum";
    remote.tunnelled(Tag::RETURN, packet, packet);
}
