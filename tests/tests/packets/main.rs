//! Packet cases: each a sentence, a packet in, and what becomes of it. The kernel itself runs the
//! programs (`BPF_PROG_TEST_RUN`) on maps that the planner filled.
//!
//! The test run does not carry out redirects; where packets really go is tested in the lab.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

mod broken;
mod choice;
mod flows;
mod refusals;
mod roads;
mod walks;

use weir_tests::packet_world::{Outcome, World};

/// A case: what it shows, the program, the packet, and what becomes of it.
type Case = (&'static str, &'static str, &'static str, Outcome);

const WEB: &[&str] = &["8080:80/tcp", "5353:53/udp"];

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

#[test]
fn no_program_keeps_the_verifier_long() {
    let verified = World::new().unwrap().trial().verified().unwrap();
    assert!(verified.iter().any(|(name, _)| name == "nic_in"), "{verified:?}");
    for (name, instructions) in &verified {
        // Half of what a kernel takes; other kernels come to other numbers.
        assert!((1..500_000).contains(instructions), "{name}: {verified:?}");
    }
}
