//! Who sees what.

use hickory_proto::op::ResponseCode;
use weir_dns::{Directory, Zone, handler::Transport};
use weir_mesh::{NetworkId, NodeName, Space, SpaceAt};

use super::world::{ALLOWED, BLUE, BOTH, GREEN, STRANGER, Type, World, code, question};

#[test]
fn line_15_a_container_sees_the_networks_it_is_attached_to() {
    let world = World::new();
    assert_eq!(world.data(BLUE, "web.", Type::A), ["10.0.9.2"]);
    for name in ["db.", "db.weir.", "tasks.db.", "db.green.weir.", "_80._tcp.db.", "green.weir."] {
        assert_eq!(code(&world.ask(BLUE, name, Type::A)), ResponseCode::NXDomain, "{name}");
        assert_ne!(code(&world.ask(GREEN, name, Type::A)), ResponseCode::NXDomain, "{name}");
        assert_ne!(code(&world.ask(BOTH, name, Type::A)), ResponseCode::NXDomain, "{name}");
    }
    let name = "3.8.0.10.in-addr.arpa.";
    assert_eq!(code(&world.ask(BLUE, name, Type::PTR)), ResponseCode::NXDomain);
    assert_eq!(world.data(GREEN, name, Type::PTR), ["db.1.green.weir."]);
}

#[test]
fn line_15_the_node_and_allowed_clients_see_what_the_operator_says() {
    let mut world = World::new();
    for from in ["127.0.0.1", "192.0.2.1", ALLOWED] {
        assert_eq!(world.data(from, "web.", Type::A), ["10.0.9.2"], "{from}");
        assert_eq!(world.data(from, "db.", Type::A).len(), 2, "{from}");
    }
    world.outside.networks = Some(vec!["green".to_owned(), "nonet".to_owned()]);
    world.publish();
    assert_eq!(code(&world.ask(ALLOWED, "web.", Type::A)), ResponseCode::NXDomain);
    assert_eq!(world.data(ALLOWED, "db.", Type::A).len(), 2);
    assert_eq!(world.handler.directory.load().missing, ["nonet"]);
}

#[test]
fn line_18_nobody_else_is_answered() {
    let world = World::new();
    let packet = question("web.", Type::A).to_vec().unwrap();
    for from in [
        STRANGER,
        "172.18.0.99",
        "10.0.9.250",
        "2001:db8::1",
        "255.255.255.255",
        "224.0.0.1",
        "0.0.0.0",
    ] {
        assert!(world.raw(&packet, from, Transport::Udp).is_none(), "{from}");
    }
    let dropped = |why| world.handler.counters.drops().find(|(name, _)| *name == why).unwrap().1;
    assert_eq!((dropped("not_allowed"), dropped("malformed")), (4, 3));
}

#[test]
fn line_18_before_the_first_state_strangers_are_not_answered_either() {
    let world = World::unready();
    let packet = question("web.", Type::A).to_vec().unwrap();
    assert!(world.raw(&packet, STRANGER, Transport::Udp).is_none());
    let said = world.ask("172.18.0.99", "web.", Type::A);
    assert_eq!(code(&said), ResponseCode::ServFail, "it may be a container");
}

#[test]
fn what_a_source_sees_of_a_container_counts_more_than_its_task() {
    let world = World::new();
    let zone = std::sync::Arc::new(Zone::build(&world.snapshot, world.settings.clone()));
    let space = Space {
        at: SpaceAt::File("/run/netns/new".into()),
        networks: [NetworkId::new("green")].into(),
        addresses: vec![BLUE.parse().unwrap()],
    };
    let node = NodeName::new("n1");
    let directory = Directory::new(zone, &world.snapshot, &node, &[space], &world.outside);
    world.handler.directory.store(directory.into());
    assert_eq!(code(&world.ask(BLUE, "web.", Type::A)), ResponseCode::NXDomain);
    assert_eq!(world.data(BLUE, "db.", Type::A).len(), 2);
}

#[test]
fn containers_of_other_nodes_are_not_known_here() {
    let world = World::new();
    let zone = std::sync::Arc::new(Zone::build(&world.snapshot, world.settings.clone()));
    let node = NodeName::new("n2");
    let directory = Directory::new(zone, &world.snapshot, &node, &[], &world.outside);
    assert!(directory.asker(BLUE.parse().unwrap()).is_none());
}
