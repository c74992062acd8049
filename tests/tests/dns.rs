//! The DNS server in the lab, asked by the resolvers that people have: glibc, musl, c-ares (Node.js),
//! dig, kdig, drill, and busybox.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weir_tests::{Cases, How, Lab, Network, Probe, Scene, State, Task, eventually};

const SECOND: Duration = Duration::from_secs(1);
/// The bridge of a host in the lab, where its agent answers.
const SERVER: &str = "172.18.0.1";
/// Where Docker's resolver answers in its containers.
const DOCKERS: &str = "127.0.0.11";
/// Prints the addresses of a name, as `getaddrinfo` of the C library gives them.
const LOOK_UP: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
    int failed = getaddrinfo(argv[1], 0, &hints, &found);
    if (failed) { fprintf(stderr, "%s\n", gai_strerror(failed)); return 1; }
    for (; found; found = found->ai_next) {
        char text[64];
        getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST);
        puts(text);
    }
    return 0;
}"#;

/// `web` on `blue` with a virtual address from the pool, two tasks on two hosts; `many` with 200 tasks
/// that only have names; `other` on `green`. Askers on n1: one on `blue`, one on `green`.
struct World {
    scene: Scene,
    blue: Task,
    green: Task,
    files: tempfile::TempDir,
    _networks: [Network; 2],
}

impl World {
    fn new() -> Self {
        Self::with(&[])
    }

    /// With lists of `weir.toml` besides.
    fn with(more: &[(&str, &[&str])]) -> Self {
        let mut scene = Scene::new(Lab::builder()).unwrap();
        let networks = [Network::new("blue").unwrap(), Network::new("green").unwrap()];
        let [blue, green] = &networks;
        scene.mesh.network("blue", &["10.0.9.0/24"], &["10.96.0.0/16"]);
        scene.mesh.network("green", &[], &[]);
        for (service, task, host, network, last) in [
            ("web", "web.1", "n1", blue, 11),
            ("web", "web.2", "n2", blue, 12),
            ("other", "other.1", "n1", green, 11),
        ] {
            scene.task(service, host, task).unwrap();
            let netns = scene.tasks[task].netns();
            let addresses = network.attach(netns, last).unwrap();
            scene.mesh.attach_space(host, &netns.path(), &[network.name()]);
            let v4 = &addresses[..1];
            scene.mesh.service(service).on_network(task, network.name(), v4);
        }
        let names =
            |list: &[&str]| toml::Value::Array(list.iter().map(|name| (*name).into()).collect());
        let mut aliases = toml::Table::new();
        aliases.insert("blue".to_owned(), names(&["www"]));
        scene.service("web", 8080).set("networks", names(&["blue"])).set("aliases", aliases);
        for at in 1..=200_u8 {
            let name = format!("many.{at}");
            let reached = [172, 19, 0, at].into();
            let on_blue = [10, 0, 200, at].into();
            let many = scene.mesh.service("many");
            many.task_at(&name, "n2", &[reached]).on_network(&name, "blue", &[on_blue]);
        }
        let asker = |scene: &mut Scene, name: &str, network: &Network, last: u8| {
            let task = scene.lab.task("n1", name).unwrap();
            network.attach(task.netns(), last).unwrap();
            let (path, addresses) = (task.netns().path(), task.addresses());
            scene.mesh.attach_space_at("n1", &path, &[network.name()], addresses);
            task
        };
        let (blue, green) = (asker(&mut scene, "b", blue, 21), asker(&mut scene, "g", green, 22));
        scene
            .start_with(|_, config| {
                config.set("dns.listen", vec!["gw0", "127.0.0.1"]);
                config.set("dns.upstreams", vec!["192.0.2.53"]);
                config.set("dns.routes", vec!["corp.example=192.0.2.54"]);
                for (key, list) in more {
                    config.set(key, list.to_vec());
                }
            })
            .unwrap();
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("resolv.conf"), format!("nameserver {SERVER}\n")).unwrap();
        fs::write(files.path().join("look_up.c"), LOOK_UP).unwrap();
        let world = Self { scene, blue, green, files, _networks: networks };
        eventually("the server to answer", 10 * SECOND, || -> Result<()> {
            let said = world.run(&world.blue, &format!("dig +short +tries=1 @{SERVER} web"))?;
            ensure!(!said.trim().is_empty(), "nothing");
            Ok(())
        })
        .unwrap();
        world
    }

    /// Runs a line of a shell in a container whose `/etc/resolv.conf` names the server.
    fn run(&self, asker: &Task, line: &str) -> Result<String> {
        let conf = self.files.path().join("resolv.conf");
        let line = format!("mount --bind {} /etc/resolv.conf && {line}", conf.display());
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &line]).current_dir(self.files.path());
        let output = asker.output(command)?;
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{line}: {}{}", said, complained.trim());
        Ok(said.into_owned())
    }

    fn lines(&self, asker: &Task, line: &str) -> Result<BTreeSet<String>> {
        let said = self.run(asker, line)?;
        Ok(said.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Makes `look_up_musl`.
    fn compile_musl(&self) {
        let mut compiler = Command::new("musl-gcc");
        compiler.args(["-static", "-o", "look_up_musl", "look_up.c"]);
        let made = compiler.current_dir(self.files.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// The virtual address of `web`, as the server says.
    fn vip(&self) -> String {
        let said = self.run(&self.blue, &format!("dig +short @{SERVER} web.weir.")).unwrap();
        said.trim().to_owned()
    }
}

fn set(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|one| (*one).to_owned()).collect()
}

fn tool(name: &str) {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
    assert!(found.status.success(), "{name} is missing: run .ci/packages --swarm");
}

#[test]
fn the_resolvers_that_people_have_find_services_by_name() {
    for name in ["dig", "kdig", "drill", "busybox", "node", "musl-gcc", "getent"] {
        tool(name);
    }
    let world = World::new();
    let (blue, vip) = (&world.blue, world.vip());
    assert!(vip.starts_with("10.96."), "{vip}");
    world.compile_musl();
    let node = |call: &str| {
        format!(
            "node -e 'require(\"dns\").{call}(e,r)=>{{if(e)throw e;[r].flat().forEach(x=>console.log(x))}})'"
        )
    };
    let tasks = set(&["10.0.9.11", "10.0.9.12"]);
    let one = |address: &str| set(&[address]);
    let mut cases = Cases::default();
    for (line, wanted) in [
        ("getent ahostsv4 web | awk '{print $1}'".to_owned(), one(&vip)),
        ("getent ahosts web | awk '{print $1}'".to_owned(), one(&vip)),
        ("getent ahosts www.weir | awk '{print $1}'".to_owned(), one(&vip)),
        ("getent ahosts tasks.web | awk '{print $1}'".to_owned(), tasks.clone()),
        ("getent hosts 10.0.9.11 | awk '{print $2}'".to_owned(), one("web.1.blue.weir")),
        ("./look_up_musl web".to_owned(), one(&vip)),
        ("./look_up_musl tasks.web.weir".to_owned(), tasks.clone()),
        ("dig +short web".to_owned(), one(&vip)),
        ("dig +short tasks.WEB.blue.weir".to_owned(), tasks.clone()),
        ("dig +short -x 10.0.9.12".to_owned(), one("web.2.blue.weir.")),
        (
            "dig +short _80._tcp.web SRV".to_owned(),
            set(&["0 1 80 web.1.blue.weir.", "0 1 80 web.2.blue.weir."]),
        ),
        ("kdig +short web".to_owned(), one(&vip)),
        ("kdig +tcp +short tasks.web".to_owned(), tasks.clone()),
        ("drill web | awk '/^web/ {print $5}'".to_owned(), one(&vip)),
        (
            format!("busybox nslookup web {SERVER} | awk '/^Address:/ {{print $2}}' | grep -v :53"),
            one(&vip),
        ),
        (node("resolve4(\"tasks.web\","), tasks.clone()),
        (node("lookup(\"web\","), one(&vip)),
    ] {
        let said = world.lines(blue, &line).and_then(|said| {
            ensure!(said == wanted, "{said:?} instead of {wanted:?}");
            Ok(())
        });
        cases.note(line, said);
    }
    cases.end(&world.scene).unwrap();
}

#[test]
fn dockers_resolver_is_taken_over_for_the_networks_that_want_it_and_as_long_as_the_agent_runs() {
    let world = World::with(&[("dns.intercept", &["blue"])]);
    world.compile_musl();
    let (blue, vip) = (&world.blue, world.vip());
    let conf = world.files.path().join("resolv.conf");
    fs::write(conf, format!("nameserver {DOCKERS}\n")).unwrap();
    world.run(blue, "ip link set lo up").unwrap();
    // In place of Docker's resolver: it hears what it is asked, and says nothing.
    let dockers = blue.netns().run(|| UdpSocket::bind((DOCKERS, 53)).unwrap());
    dockers.set_read_timeout(Some(SECOND)).unwrap();
    let ask = format!("dig +short +tries=1 +time=1 @{DOCKERS} web");
    let led = || -> Result<()> {
        let said = world.lines(blue, &ask)?;
        ensure!(said == set(&[&vip]), "{said:?}");
        Ok(())
    };
    eventually("the container to be led to weir", 10 * SECOND, led).unwrap();
    while dockers.recv(&mut [0; 512]).is_ok() {}
    let mut cases = Cases::default();
    for line in [
        "getent ahostsv4 web | awk '{print $1}'".to_owned(),
        // musl sends without connecting, and reads from whom the answer is.
        "./look_up_musl web".to_owned(),
        "node -e 'require(\"dns\").resolve4(\"web\",(e,r)=>{if(e)throw e;console.log(r[0])})'"
            .into(),
        format!("dig +short @{DOCKERS} web.weir"),
        format!("dig +tcp +short @{DOCKERS} web"),
        format!("kdig +short @{DOCKERS} web"),
        format!("drill @{DOCKERS} web | awk '/^web/ {{print $5}}'"),
        format!("busybox nslookup web {DOCKERS} | awk '/^Address:/ {{print $2}}' | grep -v :53"),
    ] {
        let said = world.lines(blue, &line).and_then(|said| {
            ensure!(said == set(&[&vip]), "{said:?} instead of {vip}");
            Ok(())
        });
        cases.note(&line, said);
    }
    assert!(dockers.recv(&mut [0; 512]).is_err(), "the container asked Docker's resolver");
    let said = world.run(&world.green, &format!("{ask} || true")).unwrap();
    assert!(!said.contains("10."), "green does not want it: {said}");
    let agent = world.scene.agent("n1");
    agent.stop().unwrap();
    world.run(blue, &format!("{ask} || true")).unwrap();
    let asked = dockers.recv(&mut [0; 512]);
    assert!(asked.is_ok(), "without weir it is Docker's resolver that is asked: {asked:?}");
    agent.launch().unwrap();
    eventually("the container to be led to weir again", 10 * SECOND, led).unwrap();
    cases.end(&world.scene).unwrap();
}

#[test]
fn that_a_service_has_no_ipv6_address_delays_nobody_and_fails_nobody() {
    let world = World::new();
    let mut cases = Cases::default();
    for line in ["getent ahosts web", "getent ahosts tasks.web", "getent hosts web.weir"] {
        let begun = Instant::now();
        let said = world.run(&world.blue, line);
        let took = begun.elapsed();
        cases.note(
            line,
            said.and_then(|_| {
                ensure!(took < SECOND, "it took {took:?}");
                Ok(())
            }),
        );
    }
    let said = world.run(&world.blue, &format!("dig @{SERVER} web AAAA")).unwrap();
    assert!(said.contains("status: NOERROR") && said.contains("SOA\tns.weir."), "{said}");
    cases.end(&world.scene).unwrap();
}

#[test]
fn two_hundred_tasks_are_answered_over_udp_as_far_as_they_fit_and_over_tcp_all() {
    let world = World::new();
    let blue = &world.blue;
    let mut cases = Cases::default();
    for (line, least, most) in [
        (format!("dig +short @{SERVER} many"), 200, 200),
        (format!("dig +tcp +short @{SERVER} tasks.many"), 200, 200),
        (format!("dig +ignore +notcp +short @{SERVER} many"), 70, 78),
        (format!("dig +ignore +noedns +notcp +short @{SERVER} many"), 25, 31),
        (format!("kdig +short @{SERVER} many"), 200, 200),
        ("getent ahostsv4 many | awk '{print $1}'".to_owned(), 200, 200),
    ] {
        let said = world.lines(blue, &line).and_then(|said| {
            ensure!((least..=most).contains(&said.len()), "{} addresses", said.len());
            Ok(())
        });
        cases.note(line, said);
    }
    cases.end(&world.scene).unwrap();
}

#[test]
fn a_name_leads_to_a_connection_and_only_on_networks_that_are_shared() {
    let world = World::new();
    let vip: std::net::IpAddr = world.vip().parse().unwrap();
    let probes = vec![Probe::new(How::Tcp, std::net::SocketAddr::new(vip, 80)); 4];
    let seen = world.blue.probe(&probes).unwrap();
    let answered: BTreeSet<_> = seen.iter().filter_map(|one| one.task.as_deref()).collect();
    assert_eq!(answered, ["web.1", "web.2"].into());
    let ask = |asker, name| world.run(asker, &format!("dig @{SERVER} {name}")).unwrap();
    for name in ["web", "tasks.web.weir", "web.blue.weir"] {
        assert!(ask(&world.green, name).contains("status: NXDOMAIN"), "{name}");
    }
    assert!(ask(&world.green, "other").contains("10.0.9.11"));
    assert!(ask(&world.blue, "other").contains("status: NXDOMAIN"));
    // Nobody knows this one: no answer at all.
    let stranger = world.scene.lab.task("n1", "stranger").unwrap();
    let said =
        world.run(&stranger, &format!("dig +tries=1 +time=1 @{SERVER} web || true")).unwrap();
    assert!(said.contains("timed out") || said.contains("no servers could be reached"), "{said}");
}

#[test]
fn a_task_that_drains_is_given_out_no_more_at_the_moment_when_the_kernel_has_it() {
    let mut world = World::new();
    let line = format!("dig +short @{SERVER} tasks.web");
    assert_eq!(world.lines(&world.blue, &line).unwrap().len(), 2);
    world.scene.mesh.service("web").state("web.1", State::Draining);
    world.scene.apply().unwrap();
    // The kernel has it; the answers follow within a fifth of a second.
    let begun = Instant::now();
    eventually("the task to be given out no more", 5 * SECOND, || -> Result<()> {
        let said = world.lines(&world.blue, &line)?;
        ensure!(said == set(&["10.0.9.12"]), "{said:?}");
        Ok(())
    })
    .unwrap();
    assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
    let metrics = world.scene.agent("n1").http("/metrics").unwrap().body;
    let measured = "weir_programming_duration_seconds_count{stage=\"dns\"}";
    assert!(metrics.contains(measured), "{metrics}");
}

#[test]
fn the_command_line_shows_what_the_server_knows_and_does() {
    let world = World::new();
    let agent = world.scene.agent("n1");
    let cli = |line: &str| -> Result<String> {
        agent.cli(&line.split(' ').collect::<Vec<_>>()).with_context(|| line.to_owned())
    };
    let status = cli("status").unwrap();
    assert!(status.contains("dns") && status.contains("172.18.0.1:53"), "{status}");
    let records = cli("dns records").unwrap();
    assert!(records.contains("tasks.web.blue.weir. A 10.0.9.11"), "{records}");
    assert!(records.contains("10.0.9.11 PTR web.1.blue.weir."), "{records}");
    let said = cli("dns query tasks.web.weir").unwrap();
    assert!(said.contains("No Error") && said.contains("10.0.9.12"), "{said}");
    let asker = world.green.addresses()[0];
    let said = cli(&format!("dns query web --from {asker} -o json")).unwrap();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["code"], &said["source"]), (&"Non-Existent Domain".into(), &"local".into()));
    let refused = format!("{:#}", cli("dns query web --from 198.51.100.7").unwrap_err());
    assert!(refused.contains("may not ask"), "{refused}");
    let upstreams = cli("dns upstreams").unwrap();
    assert!(
        upstreams.contains("192.0.2.53:53") && upstreams.contains("corp.example."),
        "{upstreams}"
    );
    assert!(cli("dns cache").unwrap().contains("0 answers"));
    let by_http = agent.http("/api/v1/dns/query?name=web").unwrap();
    assert_eq!(by_http.status, 403, "whoever may only read does not make us ask others");
    let metrics = agent.http("/metrics").unwrap().body;
    for metric in [
        "weir_dns_queries_total{type=\"A\"}",
        "weir_dns_answers_total{source=\"local\",rcode=\"NOERROR\"}",
        "weir_dns_names ",
    ] {
        assert!(metrics.contains(metric), "{metric}: {metrics}");
    }
}
