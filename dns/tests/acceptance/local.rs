//! Names of services, tasks and addresses. The numbers are the lines of the acceptance list.

use std::{collections::BTreeSet, net::Ipv4Addr};

use hickory_proto::{op::ResponseCode, rr::RData};
use weir_dns::handler::Transport;
use weir_mesh::TaskState;

use super::world::{
    ALLOWED, BLUE, BOTH, GREEN, Type, World, assert_no_data, code, data, question, service, soa,
    task, with_edns,
};

#[test]
fn a_service_is_its_virtual_address() {
    let world = World::new();
    for name in
        ["web.", "web.weir.", "web.blue.", "web.blue.weir.", "www.", "www.weir.", "WeB.WEIR."]
    {
        let said = world.ask(BLUE, name, Type::A);
        assert_eq!(data(&said), ["10.0.9.2"], "{name}");
        assert!(said.metadata.authoritative);
        assert_eq!(said.answers[0].ttl, 5);
    }
}

#[test]
fn a_service_without_a_virtual_address_is_its_tasks() {
    let world = World::new();
    assert_eq!(world.data(GREEN, "db.", Type::A), ["10.0.8.3", "10.0.8.4"]);
    assert_eq!(world.data(GREEN, "db.weir.", Type::AAAA), ["fd08::3", "fd08::4"]);
}

#[test]
fn tasks_of_a_service_are_all_that_take_flows() {
    let mut world = World::new();
    for name in
        ["tasks.web.", "tasks.web.weir.", "tasks.web.blue.", "tasks.web.blue.weir.", "tasks.www."]
    {
        assert_eq!(world.data(BLUE, name, Type::A), ["10.0.9.3", "10.0.9.4"], "{name}");
    }
    world.change("web", |web| web.tasks[0].state = TaskState::Draining);
    assert_eq!(world.data(BLUE, "tasks.web.", Type::A), ["10.0.9.4"]);
    world.change("web", |web| web.tasks[1].weight = 0);
    assert_no_data(&world.ask(BLUE, "tasks.web.", Type::A));
}

#[test]
fn a_task_has_a_name_and_aliases() {
    let world = World::new();
    for name in ["web.1.", "web.1.weir.", "web.1.blue.weir.", "c0ffee.", "c0ffee.blue.weir."] {
        assert_eq!(world.data(BLUE, name, Type::A), ["10.0.9.3"], "{name}");
    }
}

#[test]
fn line_1_a_name_without_the_type_is_no_error_and_has_an_soa() {
    let world = World::new();
    for kind in [
        Type::AAAA,
        Type::MX,
        Type::TXT,
        Type::HTTPS,
        Type::SVCB,
        Type::NS,
        Type::SRV,
        Type::CNAME,
        Type::PTR,
    ] {
        for name in ["web.", "web.weir.", "tasks.web.", "web.1.blue.weir."] {
            let said = world.ask(BLUE, name, kind);
            assert_no_data(&said);
            let owner = soa(&said).unwrap().0;
            assert_eq!(owner, if name.ends_with("weir.") { "weir." } else { "." }, "{name}");
        }
    }
}

#[test]
fn line_2_a_name_that_is_not_there_is_nxdomain_and_has_an_soa() {
    let world = World::new();
    for name in [
        "nobody.weir.",
        "a.b.c.weir.",
        "nobody.",
        "web.nonet.weir.",
        "_81._tcp.web.",
        "_sctp.web.weir.",
        "tasks.nobody.",
    ] {
        let said = world.ask(BLUE, name, Type::A);
        assert_eq!(code(&said), ResponseCode::NXDomain, "{name}");
        assert!(said.metadata.authoritative && soa(&said).is_some(), "{name}");
    }
}

#[test]
fn line_2_a_name_with_others_below_it_is_there() {
    let world = World::new();
    for name in [
        "_tcp.web.",
        "_udp.web.weir.",
        "tasks.",
        "tasks.weir.",
        "blue.weir.",
        "tasks.blue.weir.",
        "1.weir.",
    ] {
        assert_no_data(&world.ask(BLUE, name, Type::A));
    }
}

#[test]
fn line_3_a_name_of_one_label_and_special_names_are_not_asked_for_elsewhere() {
    let world = World::new();
    world.ask_also(&["192.0.2.53:53".parse().unwrap()], &[]);
    for name in
        ["nobody.", "printer.local.", "x.test.", "x.invalid.", "x.onion.", "9.9.9.10.in-addr.arpa."]
    {
        assert_eq!(code(&world.ask(BLUE, name, Type::A)), ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(world.data(BLUE, "localhost.", Type::A), ["127.0.0.1"]);
    assert_eq!(world.data(BLUE, "db.localhost.", Type::AAAA), ["::1"]);
    assert!(world.would_forward(BLUE, "example.com.", Type::A));
    assert!(world.would_forward(BLUE, "8.8.8.8.in-addr.arpa.", Type::PTR));
}

#[test]
fn line_3_special_names_are_asked_for_where_a_route_says_so() {
    let world = World::new();
    let routes = ["local=192.0.2.54", "10.in-addr.arpa=192.0.2.54", "corp=192.0.2.54"]
        .map(|text| text.parse().unwrap());
    world.ask_also(&[], &routes);
    for name in ["printer.local.", "9.9.9.10.in-addr.arpa.", "corp.", "www.corp."] {
        assert!(world.would_forward(BLUE, name, Type::A), "{name}");
    }
    assert_eq!(world.data(BLUE, "web.", Type::A), ["10.0.9.2"]);
}

#[test]
fn line_4_a_name_under_a_search_suffix_is_asked_for_elsewhere() {
    let world = World::new();
    world.ask_also(&["192.0.2.53:53".parse().unwrap()], &[]);
    assert!(world.would_forward(BLUE, "web.example.org.", Type::A));
    // A service has the alias `www.example.com`, and takes nobody's domain by that.
    assert!(world.would_forward(BLUE, "example.com.", Type::A));
    assert!(world.would_forward(BLUE, "mail.example.com.", Type::A));
    assert_eq!(world.data(BLUE, "www.example.com.", Type::A), ["10.0.9.2"]);
}

#[test]
fn line_5_without_healthy_tasks_a_virtual_address_stays_and_tasks_are_nothing_for_a_second() {
    let world = World::new();
    assert_eq!(world.data(BLUE, "lone.", Type::A), ["10.0.9.30"]);
    let said = world.ask(BLUE, "tasks.lone.weir.", Type::A);
    assert_no_data(&said);
    assert_eq!(soa(&said).unwrap().1, 1);
    assert_eq!(soa(&world.ask(BLUE, "web.weir.", Type::AAAA)).unwrap().1, 5);
}

#[test]
fn line_6_before_the_first_state_our_names_fail_and_others_are_asked_for() {
    let world = World::unready();
    world.ask_also(&["192.0.2.53:53".parse().unwrap()], &[]);
    for name in ["web.", "web.weir.", "tasks.web.", "3.9.0.10.in-addr.arpa."] {
        let said = world.send(ALLOWED, &with_edns(name, Type::A, 1232));
        assert_eq!(code(&said), ResponseCode::ServFail, "{name}");
        assert_eq!(extended_error(&said), Some(14), "{name}");
    }
    assert!(world.would_forward(ALLOWED, "www.example.com.", Type::A));
}

#[test]
fn line_7_addresses_come_in_an_order_that_changes() {
    let world = World::new();
    let firsts: BTreeSet<String> =
        (0..64).map(|_| world.ask(GREEN, "db.", Type::A).answers[0].data.to_string()).collect();
    assert_eq!(firsts.len(), 2);
}

#[test]
fn line_7_an_address_that_two_tasks_have_is_given_once() {
    let twice = vec![
        task("web.1", "172.18.0.11", &[("blue", &["10.0.9.3"])]),
        task("web.2", "172.18.0.12", &[("blue", &["10.0.9.3"])]),
    ];
    let asker = task("asker.1", BLUE, &[("blue", &["10.0.9.99"])]);
    let world = World::of(vec![service("web", &[], twice), service("asker", &[], vec![asker])]);
    assert_eq!(world.data(BLUE, "web.", Type::A), ["10.0.9.3"]);
}

fn large(tasks: u32) -> World {
    let tasks = (0..tasks)
        .map(|at| {
            let address =
                Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 9, 0)) + at + 1).to_string();
            task(&format!("web.{at}"), "172.18.9.9", &[("blue", &[&address])])
        })
        .collect();
    World::of(vec![service("web", &[], tasks)])
}

#[test]
fn line_8_64_addresses_fit_a_datagram() {
    let said = large(64).send(ALLOWED, &with_edns("web.", Type::A, 1232));
    assert_eq!((said.answers.len(), said.metadata.truncation), (64, false));
}

#[test]
fn line_10_what_does_not_fit_is_left_out_whole_and_said_and_is_there_over_tcp() {
    let world = large(200);
    for (message, most) in [
        (question("web.", Type::A), 512),
        (with_edns("web.", Type::A, 1232), 1232),
        (with_edns("web.", Type::A, 4096), 1232),
    ] {
        let packet = message.to_vec().unwrap();
        let reply = world.raw(&packet, ALLOWED, Transport::Udp).unwrap();
        assert!(reply.len() <= most && reply.len() + 16 > most, "{} of {most}", reply.len());
        let said = hickory_proto::op::Message::from_vec(&reply).unwrap();
        assert!(said.metadata.truncation && !said.answers.is_empty());
    }
    let said = world.ask_by_tcp(ALLOWED, "web.", Type::A);
    assert_eq!((said.answers.len(), said.metadata.truncation), (200, false));
    assert_eq!(data(&said).len(), 200);
}

#[test]
fn line_13_addresses_have_names() {
    let world = World::new();
    for (address, name) in [
        ("3.9.0.10.in-addr.arpa.", "web.1.blue.weir."),
        ("2.9.0.10.in-addr.arpa.", "web.blue.weir."),
    ] {
        assert_eq!(world.data(BLUE, address, Type::PTR), [name]);
        assert_eq!(world.data(BLUE, name, Type::A).len(), 1, "{name} leads back");
        assert_no_data(&world.ask(BLUE, address, Type::TXT));
    }
    let v6 = "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.0.d.f.ip6.arpa.";
    assert_eq!(world.data(GREEN, v6, Type::PTR), ["db.1.green.weir."]);
}

#[test]
fn line_13_an_address_of_our_networks_that_nobody_has_has_no_name() {
    let world = World::new();
    world.ask_also(&["192.0.2.53:53".parse().unwrap()], &[]);
    let v6 = "9.9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.0.d.f.ip6.arpa.";
    for name in [
        "77.9.0.10.in-addr.arpa.",
        v6,
        "1.2.3.4.5.in-addr.arpa.",
        "x.ip6.arpa.",
        "010.9.0.10.in-addr.arpa.",
    ] {
        let said = world.ask(BLUE, name, Type::PTR);
        assert_eq!(code(&said), ResponseCode::NXDomain, "{name}");
        assert!(soa(&said).is_some());
    }
    assert_no_data(&world.ask(BLUE, "9.0.10.in-addr.arpa.", Type::PTR));
}

#[test]
fn line_13_a_draining_task_keeps_its_name() {
    let mut world = World::new();
    world.change("web", |web| web.tasks[0].state = TaskState::Draining);
    assert_eq!(world.data(BLUE, "3.9.0.10.in-addr.arpa.", Type::PTR), ["web.1.blue.weir."]);
    world.change("web", |web| web.tasks[0].state = TaskState::Down);
    assert_eq!(code(&world.ask(BLUE, "3.9.0.10.in-addr.arpa.", Type::PTR)), ResponseCode::NXDomain);
}

#[test]
fn line_14_srv_names_ports_weights_and_tasks_whose_names_resolve() {
    let world = World::new();
    for name in [
        "_80._tcp.web.",
        "_80._tcp.web.weir.",
        "_80._tcp.web.blue.weir.",
        "_tcp.web.",
        "_80._TCP.www.",
        "_http._tcp.web.",
        "_HTTP._tcp.web.blue.weir.",
    ] {
        let said = world.ask(BLUE, name, Type::SRV);
        assert_eq!(data(&said), ["0 1 80 web.2.blue.weir.", "0 3 80 web.1.blue.weir."], "{name}");
        assert_eq!(said.additionals.len(), 2, "{name}");
        for record in &said.answers {
            let RData::SRV(srv) = &record.data else { panic!("{record}") };
            let target = srv.target.to_string();
            let address = world.data(BLUE, &target, Type::A);
            let added = said.additionals.iter().find(|record| record.name == srv.target);
            assert_eq!(address, [added.expect("no address").data.to_string()]);
        }
    }
    assert_eq!(world.data(BLUE, "_53._udp.web.", Type::SRV).len(), 2);
    // 80 is not served by UDP; nobody calls a port https; both calls none http.
    for name in ["_80._udp.web.", "_http._udp.web.", "_https._tcp.web.", "_http._tcp.both."] {
        assert_eq!(code(&world.ask(BLUE, name, Type::SRV)), ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn line_14_addresses_that_do_not_fit_beside_srv_are_no_truncation() {
    let world = large(12);
    let said = world.ask(ALLOWED, "_80._tcp.web.", Type::SRV);
    assert_eq!((said.answers.len(), said.metadata.truncation), (12, false));
    assert!(said.additionals.len() < 12, "{}", said.additionals.len());
}

#[test]
fn line_14_a_port_without_healthy_tasks_is_there_and_awaited() {
    let world = World::new();
    let said = world.ask(BLUE, "_80._tcp.lone.", Type::SRV);
    assert_no_data(&said);
    assert_eq!(soa(&said).unwrap().1, 1);
}

#[test]
fn line_15_of_a_name_on_two_networks_somebody_on_both_sees_both() {
    let world = World::new();
    assert_eq!(world.data(BLUE, "both.", Type::A), ["10.0.9.20"]);
    assert_eq!(world.data(GREEN, "both.", Type::A), ["10.0.8.20"]);
    assert_eq!(world.data(BOTH, "both.", Type::A), ["10.0.8.20", "10.0.9.20"]);
    assert_eq!(world.data(BOTH, "both.blue.", Type::A), ["10.0.9.20"]);
}

#[test]
fn the_domain_says_who_answers_and_from_which_snapshot() {
    let world = World::new();
    let said = world.ask(ALLOWED, "weir.", Type::SOA);
    assert_eq!(data(&said), ["ns.weir. hostmaster.weir. 42 3600 600 86400 5"]);
    let said = world.ask(ALLOWED, "weir.", Type::NS);
    assert_eq!(data(&said), ["ns.weir."]);
    assert_eq!(said.additionals[0].data.to_string(), "192.0.2.1");
    assert_eq!(world.data(ALLOWED, "ns.weir.", Type::A), ["192.0.2.1"]);
    let text = world.data(ALLOWED, "weir.", Type::TXT);
    assert!(text[0].contains("node=n1") && text[0].contains("generation=42"), "{text:?}");
    assert_no_data(&world.ask(ALLOWED, "weir.", Type::A));
}

/// The extended error (RFC 8914) of an answer.
pub fn extended_error(message: &hickory_proto::op::Message) -> Option<u16> {
    let options = message.edns.as_ref()?.options();
    let option = options.get(15.into())?;
    let bytes: Vec<u8> = option.try_into().ok()?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}
