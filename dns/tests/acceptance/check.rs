//! What must be true of every answer, whatever was asked. The fuzz target reads this file, too.

use weir_dns::handler::{Ends, Outcome, Transport};

use super::world::{ALLOWED, BLUE, World};

/// What must be true of every answer.
pub fn check(world: &World, packet: &[u8], transport: Transport) {
    for from in [BLUE, ALLOWED] {
        let ends =
            Ends { client: (from.parse::<std::net::IpAddr>().unwrap(), 99).into(), transport };
        let mut reply = Vec::new();
        let outcome = world.handler.answer(packet, ends, std::time::Instant::now(), &mut reply);
        match outcome {
            Outcome::Nothing(_) => assert!(packet.len() < 12 || packet[2] & 0x80 != 0),
            Outcome::Forward(pending) => {
                assert_eq!(u16::from_be_bytes([packet[4], packet[5]]), 1);
                assert!(!pending.question.name.is_empty() || packet[12] == 0);
            }
            Outcome::Reply(_) => {
                assert!(reply.len() >= 12, "{reply:?}");
                assert_eq!(reply[..2], packet[..2], "another id");
                assert_ne!(reply[2] & 0x80, 0, "no answer");
                if transport == Transport::Udp {
                    assert!(reply.len() <= 1232);
                }
                let places = weir_dns::wire::places(&reply);
                if reply[5] == 1 {
                    let end = weir_dns::wire::question_end(&reply).expect("the question is cut");
                    assert_eq!(reply[12..end], packet[12..end], "another question");
                    assert!(places.is_some(), "not whole: {reply:?}");
                } else {
                    assert_eq!(reply[6..12], [0; 6], "records without a question: {reply:?}");
                }
            }
        }
    }
}
