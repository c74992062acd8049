//! A packet to the DNS server: never a panic, never an answer to another question.

#![no_main]
#![expect(clippy::unwrap_used, reason = "what fails here is a finding")]

#[path = "../../dns/tests/acceptance/check.rs"]
mod check;
#[path = "../../dns/tests/acceptance/world.rs"]
#[expect(dead_code, unused_imports, reason = "the tests of the DNS server use more of it")]
mod world;

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use weir_dns::handler::Transport;

use self::world::World;

thread_local! {
    static WORLD: LazyCell<World> = const { LazyCell::new(|| {
        let world = World::new();
        world.ask_also(&["192.0.2.53:53".parse().unwrap()], &[]);
        world
    }) };
}

fuzz_target!(|packet: &[u8]| WORLD.with(|world| {
    check::check(world, packet, Transport::Udp);
    check::check(world, packet, Transport::Tcp);
}));
