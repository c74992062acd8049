//! What a node would do with a flow, in words.

use std::{collections::BTreeMap, net::SocketAddr};

use weir_mesh::{
    Limits, Protocol,
    install::{BackendIndex, Via},
    trace::{Entry, Fate, Host, How, Known, Question, Seen, trace},
};

use crate::world::{World, mesh, reach_all};

const OWN: &str = "192.0.2.1";

fn world(text: &str) -> World {
    let mut world = World::new(Limits::default());
    let snapshot = mesh(text);
    world.local.reach = reach_all(&snapshot);
    world.serve(&snapshot);
    world
}

fn host() -> Host {
    Host {
        own: [OWN.parse().unwrap(), "2001:db8::1".parse().unwrap()].into(),
        source4: Some(OWN.parse().unwrap()),
        source6: Some("2001:db8::1".parse().unwrap()),
    }
}

fn question(client: &str, to: &str, entry: Entry) -> Question {
    let (client, client_port) = match client.parse::<SocketAddr>() {
        Ok(socket) => (socket.ip(), Some(socket.port())),
        Err(_) => (client.parse().unwrap(), None),
    };
    let to = to.parse().unwrap();
    Question { protocol: Protocol::Tcp, client, client_port, to, entry }
}

/// `in turn: tunnel 1, local 2 of 3`.
fn told(world: &World, question: &Question, known: Option<Known>) -> String {
    let fate = trace(&world.kernel, &host(), question, known).fate;
    let Fate::Served(served) = fate else { return format!("{fate:?}") };
    let mut ways = BTreeMap::<&str, u32>::new();
    for (index, cells) in &served.tasks {
        let way = match world.kernel.backends[index].via {
            Via::Tunnel { .. } => "there",
            _ => "here",
        };
        *ways.entry(way).or_default() += cells;
    }
    format!("{:?} {ways:?} nobody {}", served.how, served.nobody)
}

fn of_wire(world: &World, client: &str, to: &str) -> String {
    told(world, &question(client, to, Entry::Wire), None)
}

#[test]
fn a_client_outside_is_given_tasks_here_and_there_by_their_shares() {
    let world = world("web 8080:80 | 1@n1 2@n2 weight=2");
    assert_eq!(
        of_wire(&world, "198.51.100.7", "192.0.2.1:8080"),
        "Turns {\"here\": 1, \"there\": 2} nobody 0"
    );
    assert_eq!(of_wire(&world, "198.51.100.7", "192.0.2.1:8081"), "Passes(NotPublished)");
    assert_eq!(of_wire(&world, "198.51.100.7", "192.0.2.2:8080"), "Passes(NotOwn)");
    assert_eq!(of_wire(&world, "2001:db8::7", "[2001:db8::1]:8080"), "NoBackend(Empty)");
}

#[test]
fn a_client_s_port_tells_which_task_maglev_gives_it() {
    let world = world("web 8080:80 maglev | 1@n1 2@n2 3@n3");
    let all = of_wire(&world, "198.51.100.7", "192.0.2.1:8080");
    assert!(all.starts_with("Chance {\"here\": ") && all.contains("\"there\""), "{all}");
    let one = of_wire(&world, "198.51.100.7:40000", "192.0.2.1:8080");
    assert!(one.starts_with("Hashed {") && one.contains(": 1}"), "{one}");
    let answer = |client: &str| {
        let question = question(client, "192.0.2.1:8080", Entry::Wire);
        match trace(&world.kernel, &host(), &question, None).fate {
            Fate::Served(served) => *served.tasks.first_key_value().unwrap().0,
            fate => panic!("{fate:?}"),
        }
    };
    let tasks: std::collections::BTreeSet<BackendIndex> =
        (40000..40040).map(|port| answer(&format!("198.51.100.7:{port}"))).collect();
    assert_eq!(tasks.len(), 3, "other ports get other tasks");
}

#[test]
fn who_is_denied_is_told_the_range_that_denies() {
    let world = world("web 8080:80 allow=198.51.100.0/24 deny=198.51.100.7 | 1@n1");
    let asked = question("198.51.100.7", "192.0.2.1:8080", Entry::Wire);
    let answer = trace(&world.kernel, &host(), &asked, None);
    assert_eq!(answer.fate, Fate::Denied);
    assert_eq!(answer.rule, Some(("198.51.100.7/32".parse().unwrap(), false)));
    let asked = question("198.51.100.8", "192.0.2.1:8080", Entry::Wire);
    let answer = trace(&world.kernel, &host(), &asked, None);
    assert_eq!(answer.rule, Some(("198.51.100.0/24".parse().unwrap(), true)));
    assert!(matches!(answer.fate, Fate::Served(_)));
    let container = question("172.18.0.9", "192.0.2.1:8080", Entry::Container);
    let answer = trace(&world.kernel, &host(), &container, None);
    assert_eq!(answer.fate, Fate::Denied, "a container counts as its node");
}

#[test]
fn a_container_is_seen_as_its_node_and_a_client_as_itself() {
    let world = world("web 8080:80 | 1@n1 2@n2");
    let seen = |client: &str, to: &str, entry| match trace(
        &world.kernel,
        &host(),
        &question(client, to, entry),
        None,
    )
    .fate
    {
        Fate::Served(served) => (served.seen_here, served.seen_there),
        fate => panic!("{fate:?}"),
    };
    let node = Seen::Node(OWN.parse().unwrap());
    assert_eq!(seen("198.51.100.7", "192.0.2.1:8080", Entry::Wire), (Seen::Client, Seen::Client));
    assert_eq!(seen("172.18.0.9", "192.0.2.1:8080", Entry::Container), (node, node));
    assert_eq!(seen("127.0.0.1", "127.0.0.1:8080", Entry::Process), (Seen::NodeTowardTask, node));
}

#[test]
fn a_process_may_ask_localhost_and_an_ipv6_one_gets_a_task_with_ipv4() {
    let world = world("web 8080:80 source | 1@n1 2@n2");
    let ask = |client: &str, to: &str| told(&world, &question(client, to, Entry::Process), None);
    for (client, to) in [("127.0.0.1", "127.0.0.1:8080"), (OWN, "192.0.2.1:8080")] {
        assert!(ask(client, to).starts_with("Hashed {"), "{client} {to}: {}", ask(client, to));
    }
    assert!(ask("::1", "[::1]:8080").starts_with("Hashed {"), "{}", ask("::1", "[::1]:8080"));
    assert_eq!(ask("2001:db8::1", "[2001:db8::1]:8080"), "NoBackend(Empty)", "not localhost");
    assert_eq!(ask(OWN, "192.0.2.9:8080"), "Passes(NotOwn)");
}

#[test]
fn a_flow_that_is_remembered_stays_with_its_task_until_it_ends() {
    let world = world("web 8080:80 | 1@n1 2@n2");
    let (index, backend) = world.kernel.backends.first_key_value().unwrap();
    let known = Known {
        backend: *index,
        generation: backend.generation,
        ended: false,
        established: true,
        expired: false,
    };
    let asked = question("198.51.100.7:40000", "192.0.2.1:8080", Entry::Wire);
    let told = |known| match trace(&world.kernel, &host(), &asked, Some(known)).fate {
        Fate::Served(served) => served.how,
        fate => panic!("{fate:?}"),
    };
    assert_eq!(told(known), How::Remembered);
    assert_eq!(told(Known { ended: true, ..known }), How::Turns);
    assert_eq!(told(Known { expired: true, ..known }), How::Turns);
    let other = weir_mesh::install::BackendGeneration(known.generation.0 + 1);
    assert_eq!(told(Known { generation: other, ..known }), How::Turns);
}
