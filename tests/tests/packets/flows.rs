//! Flows that meet others, outlive their tasks, or are given another one.

use std::time::Duration;

use weir_mesh::{
    Balance, Protocol, PublishedPort, Service,
    TaskState::{Active, Draining},
    install::Frontend,
};
use weir_tests::packet_world::{
    Outcome::{self, Dropped},
    World,
};

use crate::{WEB, port_of, sent};

#[test]
fn a_new_flow_for_a_draining_task_gets_a_second_chance() {
    let mut world = World::new().unwrap();
    let n2 = world.node("n2");
    assert!(n2.is_err(), "nothing is installed yet");
    let active = [("web.1", "n1", 3, Active), ("web.2", "n1", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &active).unwrap();
    let (n2, tag) = (world.node("n2").unwrap(), world.tag("web", "web.2", "n1").unwrap());
    let old = "tcp 10.77.0.101:40000 > 10.77.0.12:8080";
    world.tunnel(n2, tag, &format!("{old} S")).unwrap();
    let draining = [("web.1", "n1", 3, Active), ("web.2", "n1", 4, Draining)];
    world.service("web", Balance::RoundRobin, WEB, &draining).unwrap();
    assert_eq!(
        world.tunnel(n2, tag, &format!("{old} A seq 1 ack 1")).unwrap(),
        sent("tcp 10.77.0.101:40000 > 172.18.0.4:80 A seq 1 ack 1 ttl 63"),
        "an established flow stays with its draining task"
    );
    for protocol in
        ["tcp 10.77.0.101:40001 > 10.77.0.12:8080 S", "tcp [fd77::101]:40001 > [fd77::12]:8080 S"]
    {
        let to = if protocol.contains('[') { "[fd18::3]:80" } else { "172.18.0.3:80" };
        let from = protocol.split(' ').nth(1).unwrap();
        assert_eq!(
            world.tunnel(n2, tag, protocol).unwrap(),
            sent(&format!("tcp {from} > {to} S ttl 63")),
            "a new flow for the draining task gets another task of this node"
        );
    }
    assert_eq!(
        world.tunnel(n2, tag, "tcp 10.77.0.101:40001 > 10.77.0.12:8080 A seq 1 ack 1").unwrap(),
        sent("tcp 10.77.0.101:40001 > 172.18.0.3:80 A seq 1 ack 1 ttl 63"),
        "and stays there, although the sender still names the other"
    );
    let elsewhere = [("web.2", "n1", 4, Draining), ("web.3", "n3", 3, Active)];
    world.service("web", Balance::RoundRobin, WEB, &elsewhere).unwrap();
    assert_eq!(
        world.tunnel(n2, tag, "tcp 10.77.0.101:40002 > 10.77.0.12:8080 S mss 1410").unwrap(),
        sent("tcp 10.77.0.101:40002 > 10.77.0.12:8080 S mss 1410 ttl 63"),
        "with no task left here, it goes on to one more node"
    );
    assert_eq!(
        world
            .tunnel(
                n2,
                tag | weir_abi::Tag::HOPPED,
                "tcp 10.77.0.101:40003 > 10.77.0.12:8080 S seq 4"
            )
            .unwrap(),
        Dropped,
        "but only once: then the client is to ask again, when the nodes agree"
    );
    assert_eq!(world.drops("second_chance").unwrap(), 3);
    assert_eq!(world.drops("hop_limit").unwrap(), 1);
    let nowhere = [("web.2", "n1", 4, Draining)];
    world.service("web", Balance::RoundRobin, WEB, &nowhere).unwrap();
    assert_eq!(
        world.tunnel(n2, tag, "tcp 10.77.0.101:40004 > 10.77.0.12:8080 S seq 4").unwrap(),
        sent("tcp 10.77.0.12:8080 > 10.77.0.101:40004 AR ack 5 ttl 64"),
        "where nobody is left the client is told, through the node that it came by"
    );
    let datagram = "udp 10.77.0.101:40004 > 10.77.0.12:5353 data 9";
    assert_eq!(world.tunnel(n2, tag, datagram).unwrap(), Dropped, "of TCP");
    assert_eq!(world.drops("no_backend").unwrap(), 2, "{:?}", world.drops("backend_gone"));
}

#[test]
fn clients_of_a_family_that_no_task_has_are_left_to_another_plane_where_there_is_one() {
    let mut world = World::new().unwrap();
    let tasks = [("web.1", "n1", 3, Active), ("web.2", "n2", 3, Active)];
    world.service("web", Balance::RoundRobin, WEB, &tasks).unwrap();
    let only_v4 = |service: &mut Service| {
        service.tasks.iter_mut().for_each(|task| task.ipv6 = None);
    };
    world.change("web", only_v4).unwrap();
    let (v4, v6) =
        ("tcp 10.77.0.101:42000 > 10.77.0.11:8080", "tcp [fd77::101]:42000 > [fd77::11]:8080");
    let udp6 = "udp [fd77::101]:42001 > [fd77::11]:5353";
    let run = |world: &World, packet: &str| world.run("nic_in", packet).unwrap();
    let refused = |outcome: &Outcome| match outcome {
        Outcome::Sent(packet) => packet.contains(" AR "),
        _ => false,
    };
    assert!(refused(&run(&world, &format!("{v6} S"))), "nobody else is there");
    let ports = [(Protocol::Tcp, 8080), (Protocol::Udp, 5353)];
    world.share(
        ports
            .map(|(protocol, port)| Frontend { protocol, port: PublishedPort::new(port).unwrap() }),
    );
    world.wait(Duration::ZERO).unwrap();
    assert_eq!(run(&world, &format!("{v6} S")), Outcome::Passed);
    assert_eq!(run(&world, &format!("{v6} A seq 1 ack 1")), Outcome::Passed);
    assert_eq!(run(&world, udp6), Outcome::Passed);
    assert!(matches!(run(&world, &format!("{v4} S")), Outcome::Sent(_)), "tasks have IPv4");
    // Without any task both are refused at once: nobody listens, and Docker's rules would take them.
    world.change("web", |service| service.tasks.clear()).unwrap();
    for packet in [v4, v6].map(|flow| format!("{flow} S").replace(":42000", ":42002")) {
        let outcome = run(&world, &packet);
        assert!(refused(&outcome), "{packet}: {outcome:?}");
    }
}

#[test]
fn flows_go_on_when_their_port_passes_to_another_plane_and_new_ones_are_left_to_it() {
    let mut world = World::new().unwrap();
    let tasks = [("web.1", "n1", 3, Active), ("web.2", "n2", 3, Active)];
    world.service("web", Balance::RoundRobin, WEB, &tasks).unwrap();
    // One for each task, and a container's.
    let begun = [
        ("nic_in", "tcp 10.77.0.101:40000 > 10.77.0.11:8080"),
        ("nic_in", "tcp 10.77.0.101:40001 > 10.77.0.11:8080"),
        ("task_out", "tcp 172.18.0.201:40002 > 10.77.0.11:8080"),
        ("nic_in", "udp 10.77.0.101:40003 > 10.77.0.11:5353"),
        ("nic_in", "tcp [fd77::101]:40004 > [fd77::11]:8080"),
    ];
    let packet = |flow: &str, flags: &str| match flow.starts_with("udp") {
        true => flow.to_owned(),
        false => format!("{flow} {flags}"),
    };
    for (program, flow) in begun {
        let outcome = world.run(program, &packet(flow, "S")).unwrap();
        assert!(matches!(outcome, Outcome::Sent(_)), "{flow}: {outcome:?}");
    }
    let going_on = |world: &World| {
        let outcome = |(program, flow)| world.run(program, &packet(flow, "A seq 1 ack 1")).unwrap();
        begun.map(outcome)
    };
    let before = going_on(&world);
    world.cede("web", true).unwrap();
    assert_eq!(going_on(&world), before, "flows from before go on as they did");
    let new = [
        ("nic_in", "tcp 10.77.0.101:41000 > 10.77.0.11:8080 S"),
        ("task_out", "tcp 172.18.0.201:41000 > 10.77.0.11:8080 S"),
        ("nic_in", "udp 10.77.0.101:41000 > 10.77.0.11:5353"),
        ("nic_in", "tcp [fd77::101]:41000 > [fd77::11]:8080 S"),
        ("nic_in", "tcp 10.77.0.101:41001 > 10.77.0.11:8080 A seq 9 ack 9"),
    ];
    for (program, packet) in new {
        assert_eq!(world.run(program, packet).unwrap(), Outcome::Passed, "{packet}");
    }
    // A client that uses its port again begins anew, whether or not its last connection ended.
    let (over, lost) =
        ("tcp 10.77.0.101:40000 > 10.77.0.11:8080", "tcp 10.77.0.101:40001 > 10.77.0.11:8080");
    world.run("nic_in", &format!("{over} FA seq 1 ack 1")).unwrap();
    for flow in [over, lost] {
        for packet in ["S", "A seq 1 ack 1"].map(|flags| format!("{flow} {flags}")) {
            assert_eq!(world.run("nic_in", &packet).unwrap(), Outcome::Passed, "{packet}");
        }
    }
    world.cede("web", false).unwrap();
    for (program, packet) in &new[..4] {
        let outcome = world.run(program, packet).unwrap();
        assert!(matches!(outcome, Outcome::Sent(_)), "taken back: {packet}: {outcome:?}");
    }
}

/// A connection from n2 to the task of this node at 172.18.0.3, from its beginning to its end.
fn whole_connection(world: &World, n2: u16, tag: u32, client: &str) {
    let flow = format!("tcp {client} > 10.77.0.12:8080");
    for (program, packet) in [
        ("tun_in", format!("{flow} S")),
        ("task_out", format!("tcp 172.18.0.3:80 > {client} SA")),
        ("tun_in", format!("{flow} A seq 1 ack 1")),
        ("task_out", format!("tcp 172.18.0.3:80 > {client} FA seq 1 ack 1")),
        ("tun_in", format!("{flow} FA seq 1 ack 2")),
    ] {
        let outcome = match program {
            "tun_in" => world.tunnel(n2, tag, &packet),
            _ => world.run(program, &packet),
        };
        assert!(matches!(outcome.unwrap(), Outcome::Sent(_)), "{packet}");
    }
}

#[test]
fn a_second_chance_is_not_undone_by_what_is_left_of_the_last_connection() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let (n2, tag) = (world.node("n2").unwrap(), world.tag("web", "web.1", "n1").unwrap());
    let flow = "tcp 10.77.0.101:40000 > 10.77.0.12:8080";
    whole_connection(&world, n2, tag, "10.77.0.101:40000");
    let open = "tcp 10.77.0.101:40001 > 10.77.0.12:8080";
    world.tunnel(n2, tag, &format!("{open} S")).unwrap();
    world.tunnel(n2, tag, &format!("{open} A seq 1 ack 1")).unwrap();
    let away = [("web.1", "n1", 3, Draining), ("web.2", "n3", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &away).unwrap();
    for (flow, last) in [(flow, "has ended"), (open, "was given up by the client")] {
        for packet in ["S mss 1410 seq 7000", "A seq 7001 ack 9001", "A seq 7001 ack 9001 data 40"]
        {
            assert_eq!(
                world.tunnel(n2, tag, &format!("{flow} {packet}")).unwrap(),
                sent(&format!("{flow} {packet} ttl 63")),
                "all of the new connection goes on to n3; the last with the draining task {last}"
            );
        }
    }
    assert_eq!(
        world.run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40000 AF seq 1 ack 2").unwrap(),
        sent("tcp 10.77.0.12:8080 > 10.77.0.101:40000 AF seq 1 ack 2 ttl 63"),
        "what the draining task says once more is still for the client"
    );
    assert_eq!(
        world.tunnel(n2, tag, &format!("{flow} A seq 7041 ack 9001")).unwrap(),
        sent(&format!("{flow} A seq 7041 ack 9001 ttl 63")),
        "and does not end the new connection"
    );
}

#[test]
fn a_task_that_is_heard_of_late_does_not_take_over_a_flow_that_another_has_taken() {
    let mut world = World::new().unwrap();
    let new = [("web.2", "n1", 3, Active)];
    world.service("web", Balance::RoundRobin, WEB, &new).unwrap();
    let late = world.tag("web", "web.2", "n1").unwrap();
    let old = [("web.1", "n1", 3, Active)];
    world.service("web", Balance::RoundRobin, WEB, &old).unwrap();
    let (n2, tag) = (world.node("n2").unwrap(), world.tag("web", "web.1", "n1").unwrap());
    whole_connection(&world, n2, tag, "10.77.0.101:40000");
    let elsewhere = [("web.3", "n3", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &elsewhere).unwrap();
    world.wait(std::time::Duration::from_secs(31)).unwrap();
    let flow = "tcp 10.77.0.101:40000 > 10.77.0.12:8080";
    for packet in ["S mss 1410 seq 7000", "A seq 7001 ack 9001"] {
        assert_eq!(
            world.tunnel(n2, late, &format!("{flow} {packet}")).unwrap(),
            sent(&format!("{flow} {packet} ttl 63")),
            "n2 knows web.2 already, this node does not"
        );
    }
    let both = [("web.2", "n1", 3, Active), ("web.3", "n3", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &both).unwrap();
    assert_eq!(
        world.tunnel(n2, late, &format!("{flow} A seq 7001 ack 9001 data 40")).unwrap(),
        sent(&format!("{flow} A seq 7001 ack 9001 data 40 ttl 63")),
        "web.2 has the address that web.1 had, and knows nothing of this connection"
    );
    world.tunnel(n2, late, &format!("{flow} FA seq 7041 ack 9001")).unwrap();
    let answer = "tcp 10.77.0.12:8080 > 10.77.0.101:40000 FA seq 9001 ack 7042";
    let n3 = world.node("n3").unwrap();
    world.tunnel(n3, weir_abi::Tag::RETURN, answer).unwrap();
    whole_connection(&world, n2, late, "10.77.0.101:40000");
    assert_eq!(
        world.tunnel(n2, late, &format!("{flow} A seq 2 ack 2")).unwrap(),
        sent("tcp 10.77.0.101:40000 > 172.18.0.3:80 A seq 2 ack 2 ttl 63"),
        "to its last segment the next connection is web.2's"
    );
}

#[test]
fn a_flow_that_comes_back_with_a_second_chance_belongs_to_this_node_again() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let (n2, tag) = (world.node("n2").unwrap(), world.tag("web", "web.1", "n1").unwrap());
    world.tunnel(n2, tag, "tcp 10.77.0.101:40000 > 10.77.0.12:8080 S").unwrap();
    let away = [("web.1", "n1", 3, Draining), ("web.2", "n2", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &away).unwrap();
    let flow = "tcp 10.77.0.101:40000 > 10.77.0.11:8080";
    assert_eq!(
        world.run("nic_in", &format!("{flow} S mss 1410")).unwrap(),
        sent(&format!("{flow} S mss 1410 ttl 63")),
        "it enters here, and the only task is on n2"
    );
    let both = [("web.1", "n1", 3, Active), ("web.2", "n2", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &both).unwrap();
    let hopped = tag | weir_abi::Tag::HOPPED;
    let Outcome::Sent(seen) = world.tunnel(n2, hopped, &format!("{flow} S ttl 63")).unwrap() else {
        panic!("n2 has no task any more, and this node does not take it");
    };
    let alias = port_of(&seen);
    assert_ne!(alias, 40000, "the task knows another flow by this port: {seen}");
    assert_eq!(
        world.run("task_out", &format!("tcp 172.18.0.3:80 > 10.77.0.101:{alias} SA")).unwrap(),
        sent("tcp 10.77.0.11:8080 > 10.77.0.101:40000 SA ttl 63"),
        "the client is answered"
    );
    assert_eq!(
        world.run("nic_in", &format!("{flow} A seq 1 ack 1")).unwrap(),
        sent(&format!("tcp 10.77.0.101:{alias} > 172.18.0.3:80 A seq 1 ack 1 ttl 63")),
        "what follows needs n2 no more"
    );
    let reply = "tcp 10.77.0.11:8080 > 10.77.0.101:40000 A";
    assert_eq!(
        world.tunnel(n2, weir_abi::Tag::RETURN, &format!("{reply} ttl 62")).unwrap(),
        sent(&format!("{reply} ttl 61")),
        "and what n2 still sends back goes to the client, not to n2 again"
    );
    assert_eq!(world.drops("hop_limit").unwrap(), 0);
}

#[test]
fn a_flow_stays_while_its_task_drains_and_is_reset_when_it_is_gone() {
    let mut world = World::new().unwrap();
    let both = [("web.1", "n1", 3, Active), ("web.2", "n2", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &both).unwrap();
    let mut mine = None;
    for port in 40000..40002 {
        let packet = format!("tcp 10.77.0.101:{port} > 10.77.0.11:8080 S");
        if world.run("nic_in", &packet).unwrap()
            == sent(&format!("tcp 10.77.0.101:{port} > 172.18.0.3:80 S ttl 63"))
        {
            mine = Some(port);
        }
    }
    let port = mine.expect("round robin gives one of two flows to the local task");
    let segment = format!("tcp 10.77.0.101:{port} > 10.77.0.11:8080 A seq 9 ack 5");
    let draining = [("web.1", "n1", 3, Draining), ("web.2", "n2", 4, Active)];
    world.service("web", Balance::RoundRobin, WEB, &draining).unwrap();
    let stays = sent(&format!("tcp 10.77.0.101:{port} > 172.18.0.3:80 A seq 9 ack 5 ttl 63"));
    assert_eq!(world.run("nic_in", &segment).unwrap(), stays, "an established flow stays");
    for port in 42000..42010 {
        assert_eq!(
            world.run("nic_in", &format!("tcp 10.77.0.101:{port} > 10.77.0.11:8080 S")).unwrap(),
            sent(&format!("tcp 10.77.0.101:{port} > 10.77.0.11:8080 S ttl 63")),
            "new flows go to the other task, through the tunnel"
        );
    }
    world.service("web", Balance::RoundRobin, WEB, &[("web.2", "n2", 4, Active)]).unwrap();
    assert_eq!(world.run("nic_in", &segment).unwrap(), stays, "a removed task drains");
    world.wait(std::time::Duration::from_secs(31)).unwrap();
    assert_eq!(
        world.run("nic_in", &segment).unwrap(),
        sent(&format!("tcp 10.77.0.11:8080 > 10.77.0.101:{port} R seq 5 ttl 64")),
        "after the deadline the client is told"
    );
}

#[test]
fn one_client_port_may_use_two_addresses_of_the_mesh_at_once() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let first = "tcp 10.77.0.101:40000 > 10.77.0.11:8080";
    let second = "tcp 10.77.0.101:40000 > 10.77.0.21:8080";
    world.run("nic_in", &format!("{first} S")).unwrap();
    let Outcome::Sent(seen) = world.run("nic_in", &format!("{second} S")).unwrap() else {
        panic!("the second connection was not forwarded");
    };
    let alias = port_of(&seen);
    assert_ne!(alias, 40000, "the task must be able to tell the two apart: {seen}");
    assert!(seen.ends_with("> 172.18.0.3:80 S ttl 63"), "{seen}");
    assert_eq!(
        world.run("task_out", &format!("tcp 172.18.0.3:80 > 10.77.0.101:{alias} SA")).unwrap(),
        sent("tcp 10.77.0.21:8080 > 10.77.0.101:40000 SA ttl 63"),
        "the answer to the second comes from the second address, to the client's own port"
    );
    assert_eq!(
        world.run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40000 SA").unwrap(),
        sent("tcp 10.77.0.11:8080 > 10.77.0.101:40000 SA ttl 63"),
        "and the first is undisturbed"
    );
    assert_eq!(
        world.run("nic_in", &format!("{second} A seq 1 ack 1")).unwrap(),
        sent(&format!("tcp 10.77.0.101:{alias} > 172.18.0.3:80 A seq 1 ack 1 ttl 63")),
        "the second connection keeps its alias"
    );
}

#[test]
fn a_client_port_that_is_another_flows_alias_is_not_taken_for_it() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let (n2, tag) = (world.node("n2").unwrap(), world.tag("web", "web.1", "n1").unwrap());
    world.run("nic_in", "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S").unwrap();
    let through_n2 = "tcp 10.77.0.101:40000 > 10.77.0.12:8080 S";
    let Outcome::Sent(seen) = world.tunnel(n2, tag, through_n2).unwrap() else {
        panic!("the second connection was not forwarded");
    };
    let alias = port_of(&seen);
    assert_ne!(alias, 40000, "the task must be able to tell the two apart: {seen}");
    // The client now uses the port that the task knows the second connection by.
    let third = format!("tcp 10.77.0.101:{alias} > 10.77.0.12:8080 S");
    let Outcome::Sent(seen) = world.tunnel(n2, tag, &third).unwrap() else {
        panic!("the third connection was not forwarded");
    };
    let other = port_of(&seen);
    assert_ne!(other, alias, "it is a connection of its own: {seen}");
    for (at_task, at_client) in [(alias, 40000), (other, alias)] {
        let reply = format!("tcp 172.18.0.3:80 > 10.77.0.101:{at_task} SA");
        assert_eq!(
            world.run("task_out", &reply).unwrap(),
            sent(&format!("tcp 10.77.0.12:8080 > 10.77.0.101:{at_client} SA ttl 63")),
            "each answer goes to the port that asked"
        );
    }
}

#[test]
fn what_a_task_says_to_a_syn_is_counted_and_a_later_reset_is_not() {
    let mut world = World::new().unwrap();
    world.service("web", Balance::RoundRobin, WEB, &[("web.1", "n1", 3, Active)]).unwrap();
    let tag = world.tag("web", "web.1", "n1").unwrap();
    let run = |program: &str, packet: &str| drop(world.run(program, packet).unwrap());
    let counted = || world.answers("web", "web.1").unwrap();
    run("nic_in", "tcp 10.77.0.101:40000 > 10.77.0.11:8080 S");
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40000 RA");
    assert_eq!(counted(), (0, 1), "refused");
    run("nic_in", "tcp [fd77::101]:40001 > [fd77::11]:8080 S");
    run("task_out", "tcp [fd18::3]:80 > [fd77::101]:40001 RA");
    assert_eq!(counted(), (0, 2), "refused by IPv6");
    run("nic_in", "tcp 10.77.0.101:40002 > 10.77.0.11:8080 S");
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40002 SA");
    assert_eq!(counted(), (1, 2), "accepted");
    run("nic_in", "tcp 10.77.0.101:40002 > 10.77.0.11:8080 A");
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40002 AP data 4");
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40002 RA");
    assert_eq!(counted(), (1, 2), "the reset of an established connection is no refusal");
    let node = world.node("n2").unwrap();
    world.tunnel(node, tag, "tcp 10.77.0.101:40003 > 10.77.0.12:8080 S").unwrap();
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40003 RA");
    assert_eq!(counted(), (1, 3), "refused a connection that came by another node");
    world.tunnel(node, tag, "tcp 10.77.0.101:40004 > 10.77.0.12:8080 S").unwrap();
    world.tunnel(node, tag, "tcp 10.77.0.101:40004 > 10.77.0.12:8080 A").unwrap();
    run("task_out", "tcp 172.18.0.3:80 > 10.77.0.101:40004 RA");
    assert_eq!(counted(), (1, 3), "reset after the client has answered");
    run("nic_in", "udp 10.77.0.101:40000 > 10.77.0.11:5353 data 17");
    run("task_out", "udp 172.18.0.3:53 > 10.77.0.101:40000 data 170");
    assert_eq!(counted(), (1, 3), "UDP has no SYN");
}
