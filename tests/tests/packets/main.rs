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
mod routed;
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

/// So that nothing is left of them, whatever ends their process.
#[test]
fn a_world_that_is_loaded_has_no_pins() {
    let mut world = World::new().unwrap();
    let own = format!("weir-trial-{}-", std::process::id());
    let pins = std::fs::read_dir(weir_tests::bpffs::BPFFS).unwrap();
    let names = pins.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let own: Vec<String> = names.filter(|name| name.starts_with(&own)).collect();
    assert_eq!(own, Vec::<String>::new());
    let web = &[("web.1", "n1", 3, weir_mesh::TaskState::Active)];
    world.service("web", weir_mesh::Balance::RoundRobin, WEB, web).unwrap();
    let asked = "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S";
    let expected = "tcp 10.77.0.101:40000 > 172.18.0.3:80 S ttl 63";
    assert_eq!(world.run("nic_in", asked).unwrap(), sent(expected), "its programs share the maps");
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
