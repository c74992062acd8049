//! Every mistake in a `weir.toml` gets a message that names the line, the key, the value and the
//! way out, and all of them come at once.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use weir::{
    config::{Overrides, Settings, SourceConfig},
    host::Host,
};

fn mistakes(text: &str) -> Vec<String> {
    match Settings::read(Path::new("weir.toml"), text, &Overrides::default()) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    }
}

macro_rules! mistakes {
    ($($(#[$meta:meta])* $name:ident: $text:expr => [$($message:expr),* $(,)?];)*) => {$(
        $(#[$meta])*
        #[test]
        fn $name() {
            let expected: &[&str] = &[$($message),*];
            assert_eq!(mistakes($text), expected);
        }
    )*};
}

mistakes! {
    an_empty_configuration_is_fine: "" => [];

    the_example_of_the_contract_is_fine: r#"
[node]
name = "n1"
address = "10.77.0.11"
addresses = ["10.77.0.11", "fd77::11"]
uplinks = ["eth0"]
[dataplane]
mode = "auto"
cgroup = "/sys/fs/cgroup/n1"
pin = "/sys/fs/bpf/weir"
[tunnel]
port = 7950
[http]
listen = "0.0.0.0:9950"
[socket]
path = "/run/weir/weir.sock"
[source.file]
path = "mesh.toml"
"# => [];

    an_unknown_section_gets_a_suggestion: "[nodes]\nname = \"n1\"\n" =>
        ["weir.toml:1: nodes: unknown key; did you mean \"node\"?"];

    an_unknown_key_gets_a_suggestion: "[node]\n\nadress = \"10.0.0.1\"\n" =>
        ["weir.toml:3: node.adress: unknown key; did you mean \"address\"?"];

    the_link_of_a_cluster_without_swarm_is_fine: r#"
[link]
listen = "10.77.0.11:7951"
peers = ["10.77.0.11", "10.77.0.12:7951", "fd77::13"]
silence = "500ms"
ca = "/etc/weir/weir-ca.crt"
certificate = "/etc/weir/n1.crt"
key = "/etc/weir/n1.key"
"# => [];

    a_link_that_cannot_be_is_named:
        "[link]\npeers = [\"n2\"]\nsilence = \"20ms\"\nkey = \"n1.key\"\n" => [
            "weir.toml:2: link.peers = \"n2\": not an address and port; write one such as \"10.0.0.11:7951\"",
            "weir.toml:3: link.silence = \"20ms\": too short; write at least \"200ms\": signs of life come four times in it",
            "weir.toml:4: link.key = \"n1.key\": a relative path; write an absolute one: it must not depend on where weir starts",
        ];

    a_key_unlike_any_other_gets_the_list: "[tunnel]\nencryption = true\n" =>
        ["weir.toml:2: tunnel.encryption: unknown key; known here: port, device"];

    an_unknown_kind_of_source_is_named: "[source.etcd]\nx = 1\n" =>
        ["weir.toml:1: source.etcd: unknown key; known here: docker, file"];

    a_second_source_is_refused:
        "[source.docker]\nsocket = \"/run/docker.sock\"\n[source.file]\npath = \"/m.toml\"\n" =>
        ["weir.toml:2: source.docker.socket = \"/run/docker.sock\": a second source beside \
          source.file.path; leave out source.docker.socket or source.file.path"];

    a_wrong_type_is_named: "[tunnel]\nport = \"7950\"\n" =>
        ["weir.toml:2: tunnel.port = \"7950\": a string where a whole number belongs; \
          write a number from 1 to 65535"];

    a_value_where_a_section_belongs_is_named: "node = 3\n" =>
        ["weir.toml:1: node = 3: a whole number where a table belongs; write [node]"];

    port_0_is_refused: "[tunnel]\nport = 0\n" =>
        ["weir.toml:2: tunnel.port = 0: out of range; write a number from 1 to 65535"];

    port_70000_is_refused: "[tunnel]\nport = 70000\n" =>
        ["weir.toml:2: tunnel.port = 70000: out of range; write a number from 1 to 65535"];

    a_port_that_dockers_overlay_uses_is_refused: "[tunnel]\nport = 4789\n" =>
        ["weir.toml:2: tunnel.port = 4789: this port belongs to Docker's overlay networks; \
          leave the key out for 7950"];

    an_address_that_is_no_address_is_named: "[node]\naddress = \"10.0.0.256\"\n" =>
        ["weir.toml:2: node.address = \"10.0.0.256\": not an IP address; \
          write one such as \"10.0.0.11\""];

    a_loopback_address_cannot_be_a_node: "[node]\naddress = \"127.0.0.1\"\n" =>
        ["weir.toml:2: node.address = \"127.0.0.1\": a loopback address; \
          write an address at which other nodes and clients reach this one"];

    an_empty_list_of_uplinks_is_refused: "[node]\nuplinks = []\n" =>
        ["weir.toml:2: node.uplinks = []: no interface; \
          name at least one, or leave the key out"];

    an_uplink_named_twice_is_refused: "[node]\nuplinks = [\"eth0\", \"eth0\"]\n" =>
        ["weir.toml:2: node.uplinks = [\"eth0\", \"eth0\"]: \"eth0\" twice; \
          name each interface once"];

    an_interface_name_that_is_too_long_is_refused: "[tunnel]\ndevice = \"weir-tunnel-device\"\n" =>
        ["weir.toml:2: tunnel.device = \"weir-tunnel-device\": not the name of an interface; \
          write at most 15 characters without blanks and slashes"];

    a_plane_that_does_not_exist_is_refused: "[dataplane]\nmode = \"prox\"\n" =>
        ["weir.toml:2: dataplane.mode = \"prox\": no such choice; did you mean \"proxy\"? \
          (known: \"auto\", \"ebpf\", \"proxy\")"];

    a_proxy_without_threads_is_refused: "[proxy]\nworkers = 0\nconnect_timeout = \"5m\"\n" =>
        ["weir.toml:2: proxy.workers = 0: out of range; write a number from 1 to 1024",
         "weir.toml:3: proxy.connect_timeout = \"5m\": out of range; \
          write more than nothing and at most \"60s\""];

    a_word_that_is_no_choice_gets_a_suggestion: "[dataplane]\nattach = \"clsac\"\n" =>
        ["weir.toml:2: dataplane.attach = \"clsac\": no such choice; did you mean \"clsact\"? \
          (known: \"auto\", \"tcx\", \"clsact\")"];

    a_relative_pin_is_refused: "[dataplane]\npin = \"bpf/weir\"\n" =>
        ["weir.toml:2: dataplane.pin = \"bpf/weir\": a relative path; \
          write an absolute one: it must not depend on where weir starts"];

    a_time_without_unit_is_refused: "[timeouts]\ndrain = \"30\"\n" =>
        ["weir.toml:2: timeouts.drain = \"30\": not a length of time; \
          write a whole number with a unit: \"500ms\", \"30s\", \"5m\" or \"2h\""];

    an_empty_string_is_refused: "[node]\nname = \"\"\n" =>
        ["weir.toml:2: node.name = \"\": an empty string; \
          write a name such as \"n1\", or leave the key out"];

    a_log_level_that_is_none_is_refused: "[log]\nlevel = \"weir=loud\"\n" =>
        ["weir.toml:2: log.level = \"weir=loud\": not a log level; \
          write error, warn, info, debug, trace, or a filter such as \"weir=debug\""];

    broken_toml_is_named_with_its_line: "[node]\nname = \"n1\n" =>
        ["weir.toml:2: not valid TOML: invalid basic string, expected `\"`; \
          mend the TOML there; a string needs quotes, a table a header in brackets"];

    a_key_set_twice_is_named: "[tunnel]\nport = 1\nport = 2\n" =>
        ["weir.toml:3: not valid TOML: duplicate key; \
          mend the TOML there; a string needs quotes, a table a header in brackets"];

    all_mistakes_come_at_once_in_the_order_of_their_lines:
        "[tunnel]\nport = 0\n[node]\nadress = \"x\"\nname = 4\n" =>
        ["weir.toml:2: tunnel.port = 0: out of range; write a number from 1 to 65535",
         "weir.toml:4: node.adress: unknown key; did you mean \"address\"?",
         "weir.toml:5: node.name = 4: a whole number where a string belongs; \
          write a name such as \"n1\""];
}

fn host() -> Host {
    Host {
        name: Some("box".into()),
        address: Some("10.0.0.5".parse().unwrap()),
        interfaces: vec![("eth0".into(), "10.0.0.5".parse().unwrap())],
        cgroup: Some("/sys/fs/cgroup".into()),
    }
}

fn read(text: &str, overrides: &Overrides) -> Settings {
    Settings::read(Path::new("/etc/weir/weir.toml"), text, overrides).unwrap()
}

#[test]
fn what_nobody_wrote_comes_from_the_host() {
    let config = read("", &Overrides::default()).resolve(&host()).unwrap();
    assert_eq!(config.node.name.as_str(), "box");
    assert_eq!(config.node.uplinks, ["eth0"]);
    assert_eq!(config.dataplane.cgroup, Path::new("/sys/fs/cgroup"));
    assert_eq!(config.state, Path::new("/var/lib/weir/state.json"));
}

#[test]
fn agents_with_pins_of_their_own_have_states_of_their_own() {
    let text = "[dataplane]\npin = \"/sys/fs/bpf/lab/n1\"\n";
    let config = read(text, &Overrides::default()).resolve(&host()).unwrap();
    assert_eq!(config.state, Path::new("/var/lib/weir/state-sys-fs-bpf-lab-n1.json"));
}

#[test]
fn a_relative_source_counts_from_the_file_that_names_it() {
    let text = "[source.file]\npath = \"mesh.toml\"\n";
    let config = read(text, &Overrides::default()).resolve(&host()).unwrap();
    let SourceConfig::File(source) = config.source else { panic!("{:?}", config.source) };
    assert_eq!(source.path, Path::new("/etc/weir/mesh.toml"));
}

#[test]
fn a_flag_wins_over_the_file() {
    let flags = Overrides::default()
        .with_flag("tunnel.port", "7999")
        .with_flag("node.addresses", "10.0.0.6, fd00::6");
    let config = read("[tunnel]\nport = 7951\n", &flags).resolve(&host()).unwrap();
    assert_eq!(config.tunnel_port, 7999);
    let addresses: Vec<String> = config.node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.5", "10.0.0.6", "fd00::6"]);
}

#[test]
fn a_mistake_in_a_flag_names_the_flag() {
    let flags = Overrides::default().with_flag("tunnel.port", "many");
    let faults = Settings::read(Path::new(""), "", &flags).unwrap_err();
    let message = "--tunnel-port: tunnel.port = \"many\": out of range; \
                   write a number from 1 to 65535";
    assert_eq!(faults[0].to_string(), message);
}

#[test]
fn a_host_that_cannot_tell_names_every_key_to_set() {
    let text = "[dataplane]\nmode = \"ebpf\"\n";
    let faults = read(text, &Overrides::default()).resolve(&Host::default()).unwrap_err();
    let messages: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let expected = [
        "this host: node.name: has no host name; set node.name",
        "this host: node.address: has no default route; \
         set node.address to the address at which other nodes reach this one",
        "this host: dataplane.cgroup: has no cgroup2 file system mounted; \
         mount one (mount -t cgroup2 none /sys/fs/cgroup), or set dataplane.cgroup to where it is",
    ];
    assert_eq!(messages, expected);
}

#[test]
fn the_proxy_needs_neither_a_cgroup_nor_uplinks() {
    let text = "[node]\nname = \"n1\"\naddress = \"10.9.9.9\"\n[dataplane]\nmode = \"proxy\"\n";
    let config = read(text, &Overrides::default()).resolve(&Host::default()).unwrap();
    assert_eq!(config.node.uplinks, [] as [&str; 0]);
    assert_eq!(config.proxy.relay_port, 7952);
}

#[test]
fn an_address_that_no_interface_holds_asks_for_the_uplinks() {
    let text = "[node]\naddress = \"10.9.9.9\"\n";
    let faults = read(text, &Overrides::default()).resolve(&host()).unwrap_err();
    let message = "this host: node.uplinks: no interface holds node.address 10.9.9.9; \
                   set node.uplinks, or node.address to an address of this host";
    assert_eq!(faults[0].to_string(), message);
}

const HOSTS: &str = "[source.file]\npath = \"mesh.toml\"\n";

#[test]
fn hosts_without_certificates_have_no_link() {
    let config = read(HOSTS, &Overrides::default()).resolve(&host()).unwrap();
    assert_eq!(config.link.files, None);
}

#[test]
fn hosts_with_certificates_must_be_told_whom_to_connect_to() {
    let keys = "[link]\nca = \"/ca\"\ncertificate = \"/crt\"\nkey = \"/key\"\n";
    let faults = read(&format!("{HOSTS}{keys}"), &Overrides::default()).resolve(&host());
    let message = "this host: link.peers: names nobody, and there is no Swarm that would; write the \
                   addresses of the hosts that were issued a certificate with --manager, such as \
                   [\"10.0.0.11\"]";
    assert_eq!(faults.unwrap_err()[0].to_string(), message);
    let peers = format!("{HOSTS}{keys}peers = [\"10.0.0.11\"]\n");
    let config = read(&peers, &Overrides::default()).resolve(&host()).unwrap();
    assert!(config.link.files.is_some() && config.link.listen.port() == 7951);
}

#[test]
fn hosts_that_are_told_of_peers_need_certificates() {
    let text = format!("{HOSTS}[link]\npeers = [\"10.0.0.11\"]\n");
    let faults = read(&text, &Overrides::default()).resolve(&host()).unwrap_err();
    let message = "this host: link.peers: is set, and the link has no certificates; set link.ca, \
                   link.certificate and link.key to what weir ca issue has made, or take link.peers \
                   out";
    assert_eq!(faults[0].to_string(), message);
}
