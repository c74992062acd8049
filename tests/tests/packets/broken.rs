//! Packets that no sound sender makes: cut off at any byte, with other bits in their headers, with
//! TCP options of every kind. None is ever sent to where it does not belong.

use weir_loader::Arrival;
use weir_mesh::{Balance, TaskState::Active};
use weir_tests::{
    packet,
    packet_world::{
        Outcome::{self, Dropped, Passed},
        TUNNEL, UPLINK, World,
    },
};

use crate::{WEB, sent};

/// A packet that a program sends on, and what it does with one that cannot be read.
struct Way {
    program: &'static str,
    arrival: Arrival,
    packet: &'static str,
    unread: Outcome,
}

/// `web` on two nodes, and a packet of each protocol and family on each way through this one.
fn ways() -> (World, Vec<Way>) {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let from = (world.node("n2").unwrap(), world.tag("web", "web.1", "n1").unwrap());
    let uplink = Arrival { ingress_ifindex: UPLINK, ..Arrival::default() };
    let tunnel = Arrival { ingress_ifindex: TUNNEL, tunnel: from };
    let mut ways = Vec::new();
    for packet in [
        "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S mss 1460 data 20",
        "udp 10.77.0.101:40000 > 10.77.0.11:5353 data 20",
        "tcp [fd77::101]:40000 > [fd77::11]:8080 S mss 1460 data 20",
        "udp [fd77::101]:40000 > [fd77::11]:5353 data 20",
    ] {
        world.run("nic_in", packet).unwrap();
        ways.push(Way { program: "nic_in", arrival: uplink, packet, unread: Passed });
    }
    for packet in [
        "tcp 172.18.0.3:80 > 10.77.0.101:40000 SA mss 1460 data 20",
        "udp 172.18.0.3:53 > 10.77.0.101:40000 data 20",
        "tcp [fd18::3]:80 > [fd77::101]:40000 SA mss 1460 data 20",
        "udp [fd18::3]:53 > [fd77::101]:40000 data 20",
    ] {
        ways.push(Way { program: "task_out", arrival: uplink, packet, unread: Passed });
    }
    for packet in [
        "tcp 10.77.0.101:41000 > 10.77.0.12:8080 S mss 1400 data 20",
        "udp 10.77.0.101:41000 > 10.77.0.12:5353 data 20",
        "tcp [fd77::101]:41000 > [fd77::12]:8080 S mss 1380 data 20",
        "udp [fd77::101]:41000 > [fd77::12]:5353 data 20",
    ] {
        // Nobody but the mesh has any business on the tunnel.
        ways.push(Way { program: "tun_in_case", arrival: tunnel, packet, unread: Dropped });
    }
    (world, ways)
}

/// The end of an IP header without options.
fn transport(packet: &str) -> usize {
    packet::ETH_LEN + if packet.contains('[') { 40 } else { 20 }
}

/// ` > ADDRESS:PORT ` of a described packet.
fn destination(text: &str) -> String {
    format!(" > {} ", text.split(' ').nth(3).expect("a described packet"))
}

#[test]
fn a_packet_that_is_cut_off_anywhere_is_not_forwarded() {
    let (world, ways) = ways();
    for Way { program, arrival, packet, unread } in &ways {
        let whole = packet::build(packet).unwrap();
        let outcome = world.run_bytes(program, &whole, *arrival).unwrap();
        assert!(matches!(outcome, Outcome::Sent(_)), "{program}: {packet}: {outcome:?}");
        // The kernel takes no packet shorter than its IP header for a test run.
        for cut in transport(packet)..whole.len() {
            let outcome = world.run_bytes(program, &whole[..cut], *arrival).unwrap();
            assert_eq!(&outcome, unread, "{program}: {packet}, cut at {cut}");
        }
    }
}

#[test]
fn whatever_a_header_says_a_packet_goes_where_a_sound_one_goes_or_back_or_nowhere() {
    let (world, ways) = ways();
    for Way { program, arrival, packet, .. } in &ways {
        let whole = packet::build(packet).unwrap();
        let sound = world.run_bytes(program, &whole, *arrival).unwrap();
        let Outcome::Sent(sound) = sound else { panic!("{program}: {packet}: {sound:?}") };
        let to = destination(&sound);
        // A client may be told that there is nothing: by a reset, or unreachable.
        let client = if packet.contains('[') { " > [fd77::" } else { " > 10.77.0." };
        let told = if packet.contains('[') { " > fd77::" } else { " > 10.77.0." };
        for at in packet::ETH_LEN..transport(packet) + 20 {
            for bits in [0x01, 0x0f, 0x40, 0x7f, 0x80, 0xf0, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= bits;
                let Outcome::Sent(text) = world.run_bytes(program, &bytes, *arrival).unwrap()
                else {
                    continue;
                };
                let back = text.contains(client) || text.contains(told);
                // Whom a task answers the task says, though no flow be known.
                let said = *program == "task_out"
                    && text.contains(&destination(&packet::describe(&bytes)));
                assert!(
                    text.contains(&to) || back || said,
                    "{program}: {packet}, {at} ^ {bits:#x}: {text}"
                );
                assert!(!text.contains("BAD packet"), "{program}: {packet}, {at}: {text}");
            }
        }
    }
}

/// What goes out into the tunnel of a SYN with these options. The world allows 1410 over IPv4.
#[test]
fn a_segment_size_is_found_wherever_it_stands_and_nothing_else_is_taken_for_one() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.2", "n2", 3, Active)]).unwrap();
    // 1460 is 0x05b4, 1410 is 0x0582.
    for (says, options, expected) in [
        ("first, before others", "020405b401010402", "0204058201010402"),
        (
            "behind the usual ones",
            "0402080a0000000000000000020405b4",
            "0402080a000000000000000002040582",
        ),
        ("at an odd offset", "01020405b4000000", "0102040582000000"),
        ("at the other odd offset", "010101020405b400", "0101010204058200"),
        ("what follows the end is no option", "00010101020405b4", "00010101020405b4"),
        ("in the data of another option", "fe08020405b40101", "fe08020405b40101"),
        ("with a length of none", "020005b4", "020005b4"),
        ("an unknown option of no length ends the search", "fd00020405b40000", "fd00020405b40000"),
        ("an option that is longer than the header", "fdff020405b40000", "fdff020405b40000"),
        ("cut off by the end of the header", "0101010101020405", "0101010101020405"),
        ("small enough", "0204058201010101", "0204058201010101"),
        (
            "behind as many as there can be",
            "01010101010101010101010101010101010101010101010101010101010101010101010101020405",
            "01010101010101010101010101010101010101010101010101010101010101010101010101020405",
        ),
        (
            "behind more than anybody sends: left to the discovery of the path's size",
            "010101010101010101010101010101010101010101010101010101010101010101010101020405b4",
            "010101010101010101010101010101010101010101010101010101010101010101010101020405b4",
        ),
    ] {
        for ports in ["10.77.0.101:40000 > 10.77.0.11:8080", "[fd77::101]:40000 > [fd77::11]:8080"]
        {
            // IPv6 has 20 bytes less room: 1390 is 0x056e.
            let expected = match ports.starts_with('[') {
                true if options != expected || says == "small enough" => {
                    expected.replace("0582", "056e")
                }
                _ => expected.to_owned(),
            };
            let given = format!("tcp {ports} S options {options}");
            let wanted = format!("tcp {ports} S options {expected} ttl 63");
            assert_eq!(world.run("nic_in", &given).unwrap(), sent(&wanted), "{says}");
        }
    }
}
