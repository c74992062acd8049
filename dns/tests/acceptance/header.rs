//! Headers and EDNS: what a server must check before it answers at all.

use hickory_proto::op::{Message, ResponseCode};
use weir_dns::handler::Transport;

use super::world::{ALLOWED, BLUE, Type, World, code, question, with_edns};

/// The code of the answer to a packet whose third and fourth byte, and counts, are changed.
fn changed(flags: u16, questions: u16) -> Option<u8> {
    let mut packet = question("web.", Type::A).to_vec().unwrap();
    packet[2..4].copy_from_slice(&flags.to_be_bytes());
    packet[4..6].copy_from_slice(&questions.to_be_bytes());
    let reply = World::new().raw(&packet, BLUE, Transport::Udp)?;
    Some(reply[3] & 0xf)
}

#[test]
fn line_9_edns_is_answered_with_edns_and_without_it_without() {
    let world = World::new();
    let said = world.send(BLUE, &with_edns("web.", Type::A, 4096));
    let edns = said.edns.expect("no EDNS");
    assert_eq!((edns.version(), edns.max_payload(), edns.flags().dnssec_ok), (0, 1232, false));
    assert!(world.ask(BLUE, "web.", Type::A).edns.is_none());
}

#[test]
fn line_9_a_wish_for_signatures_is_repeated_and_never_invented() {
    let world = World::new();
    let mut asked = with_edns("web.", Type::A, 1232);
    asked.edns.as_mut().unwrap().set_dnssec_ok(true);
    assert!(world.send(BLUE, &asked).edns.unwrap().flags().dnssec_ok);
}

#[test]
fn line_9_another_version_of_edns_is_told_the_one_that_is_known() {
    let world = World::new();
    let mut asked = with_edns("web.", Type::A, 1232);
    asked.edns.as_mut().unwrap().set_version(1);
    let said = world.send(BLUE, &asked);
    assert_eq!(u16::from(code(&said)), 16);
    assert_eq!(said.edns.unwrap().version(), 0);
    assert!(said.answers.is_empty());
}

#[test]
fn line_9_two_opts_are_an_error() {
    let mut packet = with_edns("web.", Type::A, 1232).to_vec().unwrap();
    let opt = packet[packet.len() - 11..].to_vec();
    packet.extend(opt);
    packet[11] = 2;
    let reply = World::new().raw(&packet, BLUE, Transport::Udp).unwrap();
    assert_eq!(reply[3] & 0xf, 1);
}

#[test]
fn line_9_unknown_options_are_ignored_and_nsid_names_the_node() {
    let mut packet = question("web.", Type::A).to_vec().unwrap();
    // Option 65001 with two bytes, and NSID without any.
    packet.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 10, 0xfd, 0xe9, 0, 2, 7, 7, 0, 3, 0, 0]);
    packet[11] = 1;
    let reply = World::new().raw(&packet, BLUE, Transport::Udp).unwrap();
    let said = Message::from_vec(&reply).unwrap();
    assert_eq!((code(&said), said.answers.len()), (ResponseCode::NoError, 1));
    assert!(reply.ends_with(&[0, 3, 0, 2, b'n', b'1']), "{reply:?}");
}

#[test]
fn line_12_what_is_no_question_is_not_answered() {
    let world = World::new();
    assert_eq!(changed(0x8100, 1), None, "an answer");
    assert!(world.raw(&[0; 11], BLUE, Transport::Udp).is_none());
    assert!(world.raw(&[], BLUE, Transport::Udp).is_none());
}

#[test]
fn line_12_more_or_less_than_one_question_is_an_error() {
    assert_eq!([changed(0x0100, 0), changed(0x0100, 2)], [Some(1), Some(1)]);
}

#[test]
fn line_12_other_operations_are_not_implemented() {
    // IQUERY, STATUS, NOTIFY, UPDATE, and one that nobody has defined.
    for opcode in [1, 2, 4, 5, 15] {
        assert_eq!(changed(0x0100 | opcode << 11, 1), Some(4), "opcode {opcode}");
    }
}

#[test]
fn line_12_transfers_and_other_classes_are_refused() {
    let world = World::new();
    for kind in [Type::AXFR, Type::IXFR] {
        assert_eq!(code(&world.ask(BLUE, "weir.", kind)), ResponseCode::Refused);
    }
    let mut packet = question("web.", Type::A).to_vec().unwrap();
    let class = packet.len() - 1;
    for number in [4, 254, 255] {
        packet[class] = number;
        let reply = world.raw(&packet, BLUE, Transport::Udp).unwrap();
        assert_eq!(reply[3] & 0xf, 5, "class {number}");
    }
}

#[test]
fn line_12_the_server_says_who_it_is_in_the_chaos_class() {
    let world = World::new();
    for (name, wanted) in
        [("version.bind.", &b"weir 0.1"[..]), ("id.server.", b"n1"), ("hostname.bind.", b"n1")]
    {
        let mut packet = question(name, Type::TXT).to_vec().unwrap();
        *packet.last_mut().unwrap() = 3;
        let reply = world.raw(&packet, BLUE, Transport::Udp).unwrap();
        assert_eq!(reply[3] & 0xf, 0);
        assert!(reply.ends_with(wanted), "{reply:?}");
    }
}

#[test]
fn line_12_any_is_answered_with_next_to_nothing() {
    let said = World::new().ask(BLUE, "web.weir.", Type::ANY);
    assert_eq!(said.answers.len(), 1);
    assert_eq!(said.answers[0].record_type(), Type::HINFO);
}

#[test]
fn line_12_names_that_break_the_rules_are_an_error() {
    let world = World::new();
    let with = |name: &[u8]| {
        let head = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        [&head[..], name, &[0, 1, 0, 1]].concat()
    };
    let long: Vec<u8> = [[3, b'a', b'b', b'c']; 64].concat().into_iter().chain([0]).collect();
    let label = [&[64][..], &[b'a'; 64], &[0]].concat();
    for name in
        [&[0xc0, 12][..], &[0xc0, 0], &[0xc0, 200], &[3, b'w', 0xc0, 12], &long, &label, &[0x80, 0]]
    {
        let reply = world.raw(&with(name), BLUE, Transport::Udp).unwrap();
        assert_eq!(reply[3] & 0xf, 1, "{name:?}");
    }
}

#[test]
fn line_12_the_question_is_repeated_byte_for_byte() {
    let world = World::new();
    let mut packet = question("wEb.WeIr.", Type::A).to_vec().unwrap();
    packet[0..2].copy_from_slice(&[0xbe, 0xef]);
    let reply = world.raw(&packet, BLUE, Transport::Udp).unwrap();
    assert_eq!(reply[..2], packet[..2]);
    assert_eq!(reply[12..packet.len()], packet[12..]);
}

#[test]
fn line_12_flags_are_repeated_or_said_as_they_are() {
    let world = World::new();
    let mut asked = question("web.", Type::A);
    asked.metadata.checking_disabled = true;
    asked.metadata.authentic_data = true;
    let said = world.send(BLUE, &asked).metadata;
    assert!(said.recursion_desired && said.checking_disabled && said.authoritative);
    assert!(!said.authentic_data && !said.recursion_available, "nobody is asked");
    world.ask_also(&["192.0.2.53:53".parse().unwrap()], &[]);
    asked.metadata.recursion_desired = false;
    let said = world.send(BLUE, &asked).metadata;
    assert!(!said.recursion_desired && said.recursion_available);
}

#[test]
fn line_12_what_is_not_ours_is_refused_without_a_wish_to_look_further() {
    let world = World::new();
    world.ask_also(&["192.0.2.53:53".parse().unwrap()], &[]);
    let mut asked = question("www.example.org.", Type::A);
    asked.metadata.recursion_desired = false;
    assert_eq!(code(&world.send(ALLOWED, &asked)), ResponseCode::Refused);
}
