//! Packets that nobody should send: never a panic, never an answer to another question.

use proptest::prelude::*;
use weir_dns::handler::{Ends, Outcome, Transport};

use super::{
    check::check,
    world::{BLUE, Type, World, question, with_edns},
};

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for name in [
        "web.",
        "tasks.web.weir.",
        "_80._tcp.web.",
        "db.1.green.weir.",
        "3.9.0.10.in-addr.arpa.",
        "example.com.",
        ".",
    ] {
        for kind in [Type::A, Type::AAAA, Type::SRV, Type::PTR, Type::ANY, Type::SOA, Type::AXFR] {
            seeds.push(question(name, kind).to_vec().unwrap());
            seeds.push(with_edns(name, kind, 1232).to_vec().unwrap());
        }
    }
    seeds
}

#[test]
fn every_packet_cut_short_or_with_any_byte_changed_is_survived() {
    let world = World::new();
    world.ask_also(&["192.0.2.53:53".parse().unwrap()], &[]);
    for seed in seeds() {
        for end in 0..=seed.len() {
            check(&world, &seed[..end], Transport::Udp);
        }
        for at in 0..seed.len() {
            let flips = (0..8).map(|bit| seed[at] ^ 1 << bit);
            for value in flips.chain([0, 0x3f, 0x40, 0xc0, 0xff]) {
                let mut packet = seed.clone();
                packet[at] = value;
                check(&world, &packet, Transport::Udp);
                check(&world, &packet, Transport::Tcp);
            }
        }
    }
}

/// Names whose pointers lead to themselves, forward, around in circles, and into the middle of others:
/// in the question, where there may be none, and in a record after it.
#[test]
fn names_that_never_end_are_refused_at_once() {
    let world = World::new();
    let begun = std::time::Instant::now();
    for target in 0..80_u16 {
        let [high, low] = (0xc000 | target).to_be_bytes();
        let mut packet = question("web.weir.", Type::A).to_vec().unwrap();
        packet.splice(12..13, [high, low]);
        assert_eq!(refused(&world, &packet), Some(1), "a pointer in the question to {target}");
        let mut packet = question("web.weir.", Type::A).to_vec().unwrap();
        packet[11] = 2;
        let second = (0xc000 | packet.len() as u16).to_be_bytes();
        for owner in [[high, low], second] {
            packet.extend(owner);
            // An OPT, which may only belong to the root.
            packet.extend([0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        check(&world, &packet, Transport::Udp);
        check(&world, &packet, Transport::Tcp);
        assert!(matches!(refused(&world, &packet), Some(1)), "an OPT with a name by {target}");
    }
    // As many labels as fit, each a pointer further: what would take quadratic time.
    let mut packet = question("web.weir.", Type::A).to_vec().unwrap();
    packet[10..12].copy_from_slice(&4000_u16.to_be_bytes());
    let mut before = 12_u16;
    for _ in 0..4000 {
        let own = packet.len() as u16;
        packet.push(1);
        packet.push(b'a');
        packet.extend((0xc000 | before).to_be_bytes());
        packet.extend([0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
        before = if own < 0x3fff { own } else { before };
    }
    check(&world, &packet, Transport::Tcp);
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// The code of the answer.
fn refused(world: &World, packet: &[u8]) -> Option<u8> {
    let client = (BLUE.parse::<std::net::IpAddr>().unwrap(), 99).into();
    let ends = Ends { client, transport: Transport::Tcp };
    let mut reply = Vec::new();
    match world.handler.answer(packet, ends, std::time::Instant::now(), &mut reply) {
        Outcome::Reply(_) => reply.get(3).map(|flags| flags & 0xf),
        Outcome::Forward(_) | Outcome::Nothing(_) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(packet in prop::collection::vec(any::<u8>(), 0..600)) {
        let world = WORLD.with(std::rc::Rc::clone);
        check(&world, &packet, Transport::Udp);
    }

    #[test]
    fn many_changes_at_once_are_survived(
        seed in 0..98_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        more in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let world = WORLD.with(std::rc::Rc::clone);
        let mut packet = seeds().swap_remove(seed);
        packet.extend(more);
        for (at, value) in changes {
            let at = at.index(packet.len());
            packet[at] = value;
        }
        check(&world, &packet, Transport::Tcp);
    }
}

thread_local! {
    static WORLD: std::rc::Rc<World> = std::rc::Rc::new({
        let world = World::new();
        world.ask_also(&["192.0.2.53:53".parse().unwrap()], &[]);
        world
    });
}
