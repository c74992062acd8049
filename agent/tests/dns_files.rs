//! What the files say of DNS: `[dns]` in `weir.toml`, networks with pools and aliases in `mesh.toml`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::IpAddr, path::Path, time::Duration};

use weir::{
    config::{Config, ListenAt, Overrides, Settings},
    document::Fault,
    host::Host,
    reconciler::intercept::Networks,
    source::{
        Desired,
        file::{Reader, parse},
    },
};
use weir_dns::name::show;
use weir_mesh::{NetworkId, Service, ServiceName, Timeouts};

fn texts(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

fn config_mistakes(text: &str) -> Vec<String> {
    let read = Settings::read(Path::new("weir.toml"), text, &Overrides::default());
    read.map_or_else(|faults| texts(&faults), |_| Vec::new())
}

fn config(text: &str) -> Config {
    let host = Host {
        name: Some("n1".into()),
        address: Some([10, 0, 0, 1].into()),
        interfaces: vec![("eth0".into(), [10, 0, 0, 1].into())],
        cgroup: Some("/sys/fs/cgroup".into()),
    };
    let settings = Settings::read(Path::new("weir.toml"), text, &Overrides::default());
    settings.unwrap().resolve(&host).unwrap()
}

fn mesh(text: &str) -> Desired {
    parse("mesh.toml", text, Timeouts::default()).unwrap_or_else(|faults| panic!("{faults:?}"))
}

fn mesh_mistakes(text: &str) -> Vec<String> {
    let read = parse("mesh.toml", text, Timeouts::default());
    read.map_or_else(|faults| texts(&faults), |_| Vec::new())
}

fn service<'a>(mesh: &'a Desired, name: &str) -> &'a Service {
    &mesh.services[&ServiceName::new(name)]
}

fn vip(mesh: &Desired, name: &str) -> Vec<IpAddr> {
    service(mesh, name).vips.get(&NetworkId::new("blue")).cloned().unwrap_or_default()
}

#[test]
fn the_server_is_off_without_a_swarm_and_on_the_bridge_to_the_host_with_one() {
    assert!(config("[source.file]\npath = \"mesh.toml\"\n").dns.listen.is_empty());
    let dns = config("[source.docker]\nsocket = \"/run/docker.sock\"\n").dns;
    assert_eq!(dns.listen, [ListenAt::Interface("docker_gwbridge".into(), 53)]);
    assert!(!dns.wanted);
    assert_eq!((show(&dns.domain).as_str(), dns.ttl), ("weir.", Duration::from_secs(5)));
}

#[test]
fn every_key_is_read() {
    let dns = config(
        r#"
[dns]
listen = ["10.0.0.1", "[fd00::1]:5353", "eth0:54"]
domain = "Mesh.Corp.Example"
ttl = "2s"
allow = ["10.0.0.0/8", "fd00::7"]
networks = ["blue"]
upstreams = ["10.0.0.53", "[fd00::53]:5353"]
routes = ["corp.example=10.0.0.54", "corp.example=10.0.0.55:54"]
intercept = ["blue"]
cache = 1
failover = "300ms"
in_flight = 10
"#,
    )
    .dns;
    let listen: Vec<String> = dns.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["10.0.0.1:53", "[fd00::1]:5353", "eth0:54"]);
    assert!(dns.wanted);
    assert_eq!(show(&dns.domain), "mesh.corp.example.");
    assert_eq!(dns.allow.len(), 2);
    assert_eq!(dns.networks.as_deref(), Some(&["blue".to_owned()][..]));
    assert_eq!(dns.upstreams.as_ref().map(Vec::len), Some(2));
    assert_eq!(dns.routes.len(), 2);
    assert_eq!(dns.intercept, Networks::Named(["blue".to_owned()].into()));
    assert_eq!(config("[dns]\nintercept = [\"*\"]\n").dns.intercept, Networks::All);
    assert_eq!((dns.forward.cache, dns.server.under_way), (1 << 20, 10));
    assert!(config("[dns]\nlisten = []\nnetworks = [\"*\"]\n").dns.networks.is_none());
}

#[test]
fn every_mistake_of_the_section_is_named() {
    let said = config_mistakes(
        "[dns]\nlisten = [\"300.1.2.3\"]\ndomain = \".\"\nttl = \"500ms\"\nallow = [\"10.0.0.0/99\"]\n\
         upstreams = [\"dns\"]\nroutes = [\"corp.example\"]\nfailover = \"1ms\"\nlisten_on = 1\n",
    );
    let keys: Vec<&str> = said.iter().filter_map(|text| text.split(' ').nth(1)).collect();
    for key in ["listen", "domain", "ttl", "allow", "upstreams", "routes", "failover", "listen_on"]
    {
        let named = keys.iter().any(|named| named.trim_end_matches(':') == format!("dns.{key}"));
        assert!(named, "{key} in {said:#?}");
    }
    assert_eq!(said.len(), 8, "{said:#?}");
}

const POOL: &str = "[[network]]\nname = \"blue\"\nsubnets = [\"10.0.9.0/24\"]\n\
                    vips = [\"10.96.0.0/16\", \"fd96::/64\"]\n";

fn with_services(services: &[&str]) -> String {
    let service = |name: &&str| format!("[[service]]\nname = \"{name}\"\nnetworks = [\"blue\"]\n");
    let services: String = services.iter().map(service).collect();
    format!("{POOL}{services}")
}

#[test]
fn services_get_addresses_from_the_pool_and_keep_them() {
    let two = mesh(&with_services(&["web", "db"]));
    let web = vip(&two, "web");
    assert!(web.len() == 2 && web[0].is_ipv4() && web[1].is_ipv6(), "{web:?}");
    assert_ne!(vip(&two, "db"), web);
    let more = mesh(&with_services(&["api", "web", "zoo", "db"]));
    assert_eq!(vip(&more, "web"), web);
    let blue = &two.networks[&NetworkId::new("blue")];
    assert_eq!((blue.name.as_str(), blue.subnets.len()), ("blue", 3));
}

#[test]
fn an_address_that_is_written_is_kept_and_given_to_nobody_else() {
    let web = vip(&mesh(&with_services(&["web"])), "web")[0];
    let text = format!(
        "{}[[service]]\nname = \"db\"\nnetworks = [\"blue\"]\nvip = {{ blue = \"{web}\" }}\n",
        with_services(&["web"])
    );
    let both = mesh(&text);
    assert_eq!(vip(&both, "db"), [web]);
    assert_ne!(vip(&both, "web")[0], web);
}

#[test]
fn a_file_that_is_read_again_says_what_it_says_at_first_sight() {
    let mut reader = Reader::new(Timeouts::default());
    for services in [&["web"][..], &["web", "db"], &["db"], &["api", "db", "web"]] {
        let text = with_services(services);
        let again = reader.read("mesh.toml", &text).unwrap();
        assert_eq!(*again, mesh(&text), "{services:?}");
    }
}

#[test]
fn aliases_and_the_addresses_of_namespaces_are_read() {
    let desired = mesh(
        r#"
[[node]]
name = "n1"
address = "10.0.0.1"
[[node.space]]
path = "/run/netns/web"
networks = ["blue"]
address = ["172.18.0.9", "fd18::9"]
[[service]]
name = "web"
aliases = { blue = ["www", "www.example.com"] }
port_names = { HTTP = 80, admin = 9090 }
[[service.task]]
name = "web.1"
node = "n1"
address = "172.18.0.3"
networks = { blue = "10.0.9.3" }
aliases = { blue = ["first"] }
"#,
    );
    let web = service(&desired, "web");
    let blue = NetworkId::new("blue");
    assert_eq!(web.aliases[&blue], ["www", "www.example.com"]);
    assert_eq!(web.tasks[0].aliases[&blue], ["first"]);
    let ports: Vec<_> = web.port_names.iter().map(|(name, port)| (&**name, port.get())).collect();
    assert_eq!(ports, [("admin", 9090), ("http", 80)]);
    let space = &desired.nodes.values().next().unwrap().spaces[0];
    assert_eq!(space.addresses.len(), 2);
    assert!(desired.networks.contains_key(&blue), "a network need not be listed");
}

#[test]
fn every_mistake_of_networks_is_named() {
    let text = "[[network]]\nname = \"blue\"\nvips = [\"10.96.0.0/29\"]\n\
                [[network]]\nname = \"blue\"\n\
                [[network]]\nname = \"red\"\nvips = [\"10.97.0.0/30\", \"10.98.0.0\"]\n\
                [[service]]\nname = \"web\"\nnetworks = [\"bleu\"]\naliases = { blue = [\"a..b\"] }\n";
    assert_eq!(
        mesh_mistakes(text),
        [
            "mesh.toml:4: network blue is there twice; give each network a name of its own",
            "mesh.toml:8: network red: vips = \"10.97.0.0/30\": too small; \
             write a subnet of at least 8 addresses",
            "mesh.toml:8: network red: vips = \"10.98.0.0\": not a subnet; \
             write one such as \"10.0.9.0/24\"",
            "mesh.toml:11: service web: networks: \"bleu\": no such network; did you mean \"blue\"?",
            "mesh.toml:12: service web: aliases: blue = \"a..b\": not a name for DNS; \
             write labels of at most 63 characters, with dots between",
        ]
    );
    let services: Vec<String> = (0..6)
        .map(|at| format!("[[service]]\nname = \"s{at}\"\nnetworks = [\"blue\"]\n"))
        .collect();
    let full =
        format!("[[network]]\nname = \"blue\"\nvips = [\"10.96.0.0/29\"]\n{}", services.concat());
    assert_eq!(
        mesh_mistakes(&full),
        [
            "mesh.toml:1: network blue: vips: 6 services want an address of 10.96.0.0/29, which has 5; \
          write a larger subnet, or give some services their own address by vip"
        ]
    );
}

#[test]
fn what_is_no_name_of_a_port_or_no_port_is_named() {
    let said = mesh_mistakes(
        "[[service]]\nname = \"web\"\nport_names = { 80 = 80, http = 0, \"-a\" = 81, admin = 9090 }\n",
    );
    assert_eq!(said.len(), 3, "{said:#?}");
    assert!(said.iter().all(|text| text.contains("service web: port_names")), "{said:#?}");
    let names = said.iter().filter(|text| text.contains("not a name for a port"));
    assert_eq!(names.count(), 2, "{said:#?}");
}
