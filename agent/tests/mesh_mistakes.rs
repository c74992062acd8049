//! Every mistake in a `mesh.toml` gets a message that names the line, the key, the value and the
//! way out, and all of them come at once.

use std::time::Duration;

use weir::source::{Desired, file::parse};
use weir_mesh::{
    Balance, Health, NetworkId, Protocol, ServiceName, SpaceAt, TargetPort, TaskState, Timeouts,
    health::{Check, CheckKind, Ejection},
};

fn mistakes(text: &str) -> Vec<String> {
    match parse("mesh.toml", text, Timeouts::default()) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    }
}

fn good(text: &str) -> Desired {
    match parse("mesh.toml", text, Timeouts::default()) {
        Ok(desired) => desired,
        Err(faults) => panic!("{}", faults.iter().map(|f| format!("{f}\n")).collect::<String>()),
    }
}

macro_rules! mistakes {
    ($($name:ident: $text:expr => [$($message:expr),* $(,)?];)*) => {$(
        #[test]
        fn $name() {
            let expected: &[&str] = &[$($message),*];
            assert_eq!(mistakes($text), expected);
        }
    )*};
}

/// Two nodes, on lines 1 to 6.
macro_rules! nodes {
    ($rest:expr) => {
        concat!(
            "[[node]]\nname = \"n1\"\naddress = \"10.0.0.1\"\n",
            "[[node]]\nname = \"n2\"\naddress = \"10.0.0.2\"\n",
            $rest
        )
    };
}

/// A service on lines 1 and 2 with `publish` on line 3.
macro_rules! publish {
    ($entry:expr) => {
        concat!("[[service]]\nname = \"web\"\npublish = [", $entry, "]\n")
    };
}

mistakes! {
    an_unknown_key_gets_a_suggestion: "[[service]]\nname = \"web\"\nbalence = \"random\"\n" =>
        ["mesh.toml:3: service web: balence: unknown key; did you mean \"balance\"?"];

    a_check_that_is_none_is_named: concat!(publish!("\"80:80\""), "health = \"http\"\n") =>
        ["mesh.toml:4: service web: health = \"http\": no such check; \
          write \"tcp\", \"http:/healthz\", or { http = \"/healthz\", interval = \"2s\" }"];

    a_check_of_a_service_without_a_tcp_port_needs_one:
        concat!(publish!("\"53:53/udp\""), "health = \"tcp\"\n") =>
        ["mesh.toml:4: service web: health = \"tcp\": no port to ask at; \
          the service publishes none for TCP; name one: { http = \"/healthz\", port = 80 }"];

    everything_wrong_with_a_check_is_named: concat!(
        publish!("\"80:80\""),
        "[service.health]\nhttp = \"healthz\"\nintervall = \"2s\"\ntimeout = 1\nrise = 0\nport = 0\n"
    ) =>
        ["mesh.toml:5: service web: health: http = \"healthz\": not a path; \
          write one that begins with a slash, without blanks",
         "mesh.toml:6: service web: health: intervall: unknown key; did you mean \"interval\"?",
         "mesh.toml:7: service web: health: timeout = 1: a whole number where a string belongs; \
          write a time such as \"30s\"",
         "mesh.toml:8: service web: health: rise = 0: out of range; write a number from 1 to 1000",
         "mesh.toml:9: service web: health: port = 0: out of range; write a number from 1 to 65535"];

    everything_wrong_with_an_ejection_is_named: concat!(
        publish!("\"80:80\""),
        "eject = { refuse = 3, for = \"0s\", panic = 101 }\n",
        "[[service]]\nname = \"b\"\neject = \"off\"\n"
    ) =>
        ["mesh.toml:4: service web: eject: refuse: unknown key; did you mean \"refused\"?",
         "mesh.toml:4: service web: eject: for = \"0s\": out of range; \
          write more than nothing and at most \"86400s\"",
         "mesh.toml:4: service web: eject: panic = 101: out of range; \
          write a number from 0 to 100",
         "mesh.toml:7: service b: eject = \"off\": a string where true or false belongs; \
          write false, or { refused = 5, for = \"10s\" }"];

    an_unknown_key_at_the_top_is_named: "[[services]]\nname = \"web\"\n" =>
        ["mesh.toml:1: services: unknown key; did you mean \"service\"?"];

    a_wrong_type_is_named: "[[service]]\nname = 7\n" =>
        ["mesh.toml:2: name = 7: a whole number where a string belongs; write name = \"web\""];

    a_single_table_where_a_list_belongs_is_named: "[node]\nname = \"n1\"\n" =>
        ["mesh.toml:1: node = { name = \"n1\" }: a table where a list belongs; write [[node]]"];

    a_missing_name_is_named: "[[service]]\npublish = [\"80\"]\n" =>
        ["mesh.toml:1: \"name\" is missing; give the service a name: name = \"web\""];

    port_0_is_refused: publish!("\"0:80\"") =>
        ["mesh.toml:3: service web: publish = \"0:80\": port 0 is out of range; \
          ports are 1 to 65535"];

    port_70000_is_refused: publish!("\"70000:80\"") =>
        ["mesh.toml:3: service web: publish = \"70000:80\": port 70000 is out of range; \
          ports are 1 to 65535"];

    port_70000_in_a_table_is_refused: publish!("{ published = 70000, target = 80 }") =>
        ["mesh.toml:3: service web: publish: published = 70000: out of range; \
          write a number from 1 to 65535"];

    a_port_that_is_no_number_is_named: publish!("\"http:80\"") =>
        ["mesh.toml:3: service web: publish = \"http:80\": \"http\" is not a port; \
          write PUBLISHED:TARGET, as in 8080:80"];

    an_address_in_publish_is_refused: publish!("\"127.0.0.1:80:80\"") =>
        ["mesh.toml:3: service web: publish = \"127.0.0.1:80:80\": names the address 127.0.0.1, \
          but the mesh publishes on all addresses of every node; write \"80:80\""];

    a_protocol_that_is_not_carried_is_named: publish!("\"80:80/sctp\"") =>
        ["mesh.toml:3: service web: publish = \"80:80/sctp\": protocol \"sctp\" is not supported; \
          use tcp or udp, and one entry for each if you need both"];

    a_published_port_without_target_is_named: publish!("{ published = 80 }") =>
        ["mesh.toml:3: service web: publish: \"target\" is missing; \
          write where the tasks listen: target = 80"];

    one_port_twice_in_a_service_is_named: publish!("\"80:80\", \"80:81\"") =>
        ["mesh.toml:3: service web publishes tcp/80 twice; take one of the two entries out"];

    one_port_in_two_services_is_named:
        "[[service]]\nname = \"a\"\npublish = [\"80\", \"81:80\"]\n\
         [[service]]\nname = \"b\"\npublish = [\"81:8080\"]\n" =>
        ["mesh.toml:4: services a and b both publish tcp/81; \
          choose another published port for one of them; a is on line 1"];

    a_task_on_an_unknown_node_is_named: nodes!(
        "[[service]]\nname = \"web\"\n[[service.task]]\nname = \"web.1\"\nnode = \"n3\"\n\
         address = \"172.18.0.3\"\n") =>
        ["mesh.toml:11: service web: node = \"n3\": no such node; did you mean \"n1\"?"];

    a_task_on_an_unknown_node_is_named_also_when_it_has_other_mistakes: nodes!(
        "[[service]]\nname = \"web\"\n[[service.task]]\nname = \"web.1\"\nnode = \"worker\"\n\
         address = \"172.18.0\"\n") =>
        ["mesh.toml:11: service web: node = \"worker\": no such node; \
          add a [[node]], or name one of: n1, n2",
         "mesh.toml:12: service web: task web.1: address = \"172.18.0\": not an IP address; \
          write one such as \"172.18.0.3\" or \"fd18::3\""];

    a_second_address_of_one_family_is_refused: nodes!(
        "[[service]]\nname = \"web\"\n[[service.task]]\nname = \"web.1\"\nnode = \"n1\"\n\
         address = [\"172.18.0.3\", \"172.18.0.4\"]\n") =>
        ["mesh.toml:12: service web: task web.1: address = \"172.18.0.4\": a second IPv4 address; \
          write at most one IPv4 and one IPv6 address"];

    networks_and_namespaces_are_checked: concat!(
        "[[node]]\nname = \"n1\"\naddress = \"10.0.0.1\"\nnetworks = \"blue\"\n",
        "[[node.space]]\npath = \"netns/web\"\nnetworks = [\"a b\"]\n",
        "[[node.space]]\nnetworks = []\n",
        "[[service]]\nname = \"web\"\nvip = { blue = \"10.0.9\", green = [] }\n") =>
        ["mesh.toml:4: node n1: networks = \"blue\": a string where a list belongs; \
          write a list of names of networks: [\"blue\"]",
         "mesh.toml:6: node n1: space: path = \"netns/web\": not an absolute path; \
          write it from the root on: \"/run/netns/web\"",
         "mesh.toml:7: node n1: space: networks = \"a b\": not the name of a network; \
          write at most 253 characters without blanks",
         "mesh.toml:8: node n1: space: \"path\" is missing; \
          write a file such as path = \"/run/netns/web\"",
         "mesh.toml:12: service web: vip: blue = \"10.0.9\": not an IP address; \
          write one such as \"172.18.0.3\" or \"fd18::3\"",
         "mesh.toml:12: service web: vip: green = []: an empty list; \
          write one such as \"172.18.0.3\" or \"fd18::3\""];

    two_tasks_at_one_address_are_refused: nodes!(
        "[[service]]\nname = \"web\"\n\
         task = [{ name = \"a\", node = \"n1\", address = \"172.18.0.3\" },\n\
         { name = \"b\", node = \"n1\", address = \"172.18.0.3\" }]\n") =>
        ["mesh.toml:10: service web: task b: has the address 172.18.0.3 that task a has on node \
          n1; give each task its own address, or one task more weight"];

    a_weight_below_nothing_is_refused: nodes!(
        "[[service]]\nname = \"web\"\n[[service.task]]\nname = \"web.1\"\nnode = \"n1\"\n\
         address = \"172.18.0.3\"\nweight = -1\n") =>
        ["mesh.toml:13: service web: task web.1: weight = -1: out of range; \
          write a number from 0 to 1000"];

    a_state_that_is_none_gets_a_suggestion: nodes!(
        "[[service]]\nname = \"web\"\n[[service.task]]\nname = \"web.1\"\nnode = \"n1\"\n\
         address = \"172.18.0.3\"\nstate = \"drain\"\n") =>
        ["mesh.toml:13: service web: task web.1: state = \"drain\": no such choice; \
          write one of \"active\", \"draining\", \"down\""];

    two_tasks_of_one_name_are_named: nodes!(
        "[[service]]\nname = \"web\"\n\
         task = [{ name = \"a\", node = \"n1\", address = \"172.18.0.3\" },\n\
         { name = \"a\", node = \"n1\", address = \"172.18.0.4\" }]\n") =>
        ["mesh.toml:10: service web has two tasks named a; \
          give each task of a service a name of its own"];

    two_services_of_one_name_are_named:
        "[[service]]\nname = \"web\"\n[[service]]\nname = \"web\"\n" =>
        ["mesh.toml:3: service web is there twice; rename one, or merge them; \
          the first is on line 1"];

    two_nodes_of_one_name_are_named:
        "[[node]]\nname = \"n1\"\naddress = \"10.0.0.1\"\n\
         [[node]]\nname = \"n1\"\naddress = \"10.0.0.2\"\n" =>
        ["mesh.toml:4: node n1 is there twice; give each node a name of its own"];

    two_nodes_of_one_address_are_named:
        "[[node]]\nname = \"n1\"\naddress = \"10.0.0.1\"\n\
         [[node]]\nname = \"n2\"\naddress = \"10.0.0.1\"\n" =>
        ["mesh.toml:4: nodes n1 and n2 have the same address 10.0.0.1; \
          give each node its own address"];

    an_address_of_a_node_that_is_none_brings_no_further_complaints:
        "[[node]]\nname = \"n1\"\naddress = \"10.0.0\"\n[[service]]\nname = \"web\"\n\
         task = [{ name = \"a\", node = \"n1\", address = \"172.18.0.3\" }]\n" =>
        ["mesh.toml:3: node n1: address = \"10.0.0\": not an IP address; \
          write one such as \"10.0.0.11\""];

    an_unknown_timeout_gets_a_suggestion:
        "[[service]]\nname = \"web\"\n[service.timeouts]\ntcp_sny = \"3s\"\n" =>
        ["mesh.toml:4: service web: timeouts: tcp_sny: unknown key; did you mean \"tcp_syn\"?"];

    a_file_without_any_key_is_not_taken_for_an_empty_mesh: "# nothing here yet\n" =>
        ["mesh.toml:1: says nothing; to publish nothing on purpose, write: service = []"];

    half_a_file_names_the_line_where_it_ends: nodes!("[[service]]\nname = \"we") =>
        ["mesh.toml:8: not valid TOML: invalid basic string, expected `\"`; \
          mend the TOML there; a string needs quotes, a table a header in brackets"];

    broken_toml_in_one_service_hides_no_mistake_in_another:
        "[[service]]\nname = \"a\npublish = []\n\
         [[service]]\nname = \"b\"\npublish = [\"0:1\"]\n" =>
        ["mesh.toml:2: not valid TOML: invalid basic string, expected `\"`; \
          mend the TOML there; a string needs quotes, a table a header in brackets",
         "mesh.toml:6: service b: publish = \"0:1\": port 0 is out of range; \
          ports are 1 to 65535"];

    no_services_on_purpose_are_fine: "service = []\n" => [];
}

#[test]
fn a_good_file_means_what_it_says() {
    let desired = good(nodes!(
        r#"
[[service]]
name = "web"
balance = "maglev"
publish = ["8080:80", "9000-9001:90-91/udp", { published = 53, target = 5353, protocol = "udp", mode = "host" }, "80", 81]
[service.timeouts]
tcp_established = "600s"
[[service.task]]
name = "web.2"
node = "n2"
address = "fd18::3"
state = "draining"
weight = 5
[[service.task]]
name = "web.1"
node = "n1"
address = ["172.18.0.3", "fd18::3"]
"#
    ));
    let web = &desired.services[&ServiceName::new("web")];
    assert_eq!(web.balance, Balance::Maglev);
    assert_eq!(web.timeouts.tcp_established, Duration::from_secs(600));
    assert_eq!(web.timeouts.tcp_syn, Timeouts::default().tcp_syn);
    let ports: Vec<_> = web.ports.iter().map(|p| (p.protocol, p.target.get())).collect();
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    assert_eq!(ports, [(tcp, 80), (udp, 90), (udp, 91), (udp, 5353), (tcp, 80), (tcp, 81)]);
    assert!(web.ports[4..].iter().all(|p| (30_000..=32_767).contains(&p.published.get())));
    assert_eq!(web.tasks[0].name.as_str(), "web.1");
    assert_eq!(web.tasks[0].weight, 1);
    assert_eq!(web.tasks[1].state, TaskState::Draining);
    assert_eq!(web.tasks[1].ipv4, None);
}

#[test]
fn how_tasks_are_judged_is_read_in_every_form() {
    let judged = |more: &str| {
        let text =
            nodes!("[[service]]\nname = \"web\"\npublish = [\"8080:80\"]\n").to_owned() + more;
        good(&text).services[&ServiceName::new("web")].health.clone()
    };
    assert_eq!(judged(""), Health::default());
    let http = || CheckKind::Http { path: "/healthz".to_owned() };
    assert_eq!(judged("health = \"tcp\"").check, Some(Check::new(CheckKind::Tcp)));
    assert_eq!(judged("health = \"http:/healthz\"").check, Some(Check::new(http())));
    let check = judged(
        "health = { http = \"/healthz\", interval = \"3s\", timeout = \"500ms\", rise = 1, fall = 4, port = 81 }",
    );
    let expected = Check {
        kind: http(),
        port: TargetPort::new(81),
        interval: Duration::from_secs(3),
        timeout: Duration::from_millis(500),
        rise: 1,
        fall: 4,
    };
    assert_eq!(check.check, Some(expected));
    let tcp = Check { fall: 1, ..Check::new(CheckKind::Tcp) };
    assert_eq!(judged("health = { fall = 1 }").check, Some(tcp));
    assert_eq!(judged("eject = false").ejection, None);
    let (within, time) = (Duration::from_secs(5), Duration::from_secs(60));
    let expected = Ejection { refused: 3, within, time, panic: 0 };
    let eject = "eject = { refused = 3, within = \"5s\", for = \"1m\", panic = 0 }";
    assert_eq!(judged(eject).ejection, Some(expected));
}

fn ten_thousand_services() -> String {
    let mut text = String::from(nodes!(""));
    for service in 0..10_000 {
        text.push_str(&format!(
            "[[service]]\nname = \"s{service}\"\npublish = [\"{}:80{}\"]\n",
            5_000 + service % 20_000 + 1,
            if service % 2 == 0 { "" } else { "/udp" },
        ));
        for task in 0..10 {
            text.push_str(&format!(
                "[[service.task]]\nname = \"s{service}.{task}\"\nnode = \"n{}\"\n\
                 address = \"10.{}.{}.{}\"\n",
                task % 2 + 1,
                service / 250,
                service % 250,
                task + 1
            ));
        }
    }
    text
}

#[test]
fn ten_thousand_services_are_read() {
    assert_eq!(good(&ten_thousand_services()).services.len(), 10_000);
}

#[test]
fn ten_thousand_mistakes_are_all_named() {
    let text = ten_thousand_services().replace("node = \"n1\"", "node = \"n9\"");
    assert_eq!(mistakes(&text).len(), 50_000);
}

#[test]
fn virtual_addresses_networks_and_namespaces_are_read() {
    let desired = good(
        "[[node]]\nname = \"n1\"\naddress = \"10.0.0.1\"\nnetworks = [\"blue\"]\n\
         [[node.space]]\npath = \"/run/netns/web\"\nnetworks = [\"blue\", \"green\"]\n\
         [[service]]\nname = \"web\"\nvip = { blue = [\"10.0.9.2\", \"fd00:9::2\"] }\n\
         [[service.task]]\nname = \"web.1\"\nnode = \"n1\"\naddress = \"172.18.0.3\"\n\
         networks = { blue = \"10.0.9.11\" }\n",
    );
    let (blue, green) = (NetworkId::new("blue"), NetworkId::new("green"));
    let spaces = &desired.nodes[&weir_mesh::NodeName::new("n1")].spaces;
    assert_eq!(spaces[0].at, SpaceAt::Host);
    assert_eq!(spaces[1].at, SpaceAt::File("/run/netns/web".into()));
    assert_eq!(spaces[1].networks, [blue.clone(), green].into());
    let web = &desired.services[&ServiceName::new("web")];
    assert_eq!(web.vips[&blue].len(), 2);
    assert_eq!(web.tasks[0].networks[&blue], ["10.0.9.11".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn who_may_be_a_client_is_read_with_every_mistake_named() {
    let text =
        |lines: &str| format!("[[service]]\nname = \"web\"\npublish = [\"80:80\"]\n{lines}\n");
    let desired = good(&text(
        "allow = [\"10.0.0.0/8\"]\ndeny = [\"10.9.0.0/16\", \"fd00::1\"]\nlocality = \"prefer-local\"\naffinity = \"client-ip\"",
    ));
    let web = desired.services.values().next().unwrap();
    assert_eq!(web.access.rules().len(), 5);
    assert_eq!((web.locality.as_str(), web.balance.as_str()), ("prefer-local", "source"));
    let wrong = [
        ("allow = [\"10.1.2.3/8\"]", "has bits beyond its length; write \"10.0.0.0/8\""),
        ("deny = [\"ten\"]", "not a range of addresses; write one such as \"10.0.0.0/8\""),
        ("allow = []", "no range of addresses; name who may be a client"),
        ("allow = [\"::1\"]\ndeny = [\"::1\"]", "::1/128 is in deny, too; leave it out of one"),
        ("locality = \"zone\"", "write one of \"cluster\", \"prefer-local\", \"local\""),
        ("affinity = \"cookie\"", "write one of \"client-ip\""),
        (
            "affinity = \"client-ip\"\nbalance = \"random\"",
            "contradicts balance; leave one of them out",
        ),
    ];
    for (lines, expected) in wrong {
        let said = mistakes(&text(lines));
        assert!(said.iter().any(|line| line.contains(expected)), "{lines}: {said:?}");
    }
}
