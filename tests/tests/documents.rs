//! What README and docs/ tell a reader to type on hosts without Docker does what they say, typed as it is
//! there, on machines of the lab. `swarm_documents.rs` is the same for a Swarm.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Result, ensure};
use regex::Regex;
use weir_tests::agent::agent_program;
use weir_tests::documents::{block, blocks, commands};
use weir_tests::lab::command;
use weir_tests::process::Process;
use weir_tests::swarm::{Node, repository};
use weir_tests::{Client, Host, Lab, Probe, eventually};

const SECOND: Duration = Duration::from_secs(1);
/// Where the reader is: among the first things that he makes are `weir.toml` and `mesh.toml`.
const DESK: &str = "/root/reader";

/// What a block is for is in its language; commands are run, and files are taken, by tests that name them.
#[test]
fn every_block_says_what_it_is_and_a_test_runs_it() {
    let sources = sources(&repository("tests"));
    let call = Regex::new(r#"block\(\s*"([^"]+)",\s*"((?:[^"\\]|\\.)+)",?\s*\)"#).unwrap();
    let meant = |literal: &str| literal.replace("\\n", "\n").replace("\\\"", "\"");
    let calls = sources.iter().flat_map(|text| call.captures_iter(text));
    let named: Vec<(&str, String)> = calls
        .map(|call| call.extract().1)
        .map(|[document, beginning]| (document, meant(beginning)))
        .collect();
    let mut unknown = Vec::new();
    for found in blocks().unwrap() {
        let run = named.iter().any(|(document, beginning)| {
            *document == found.document && found.text.starts_with(beginning)
        });
        match found.language.as_str() {
            "text" => {}
            "sh" | "toml" if run => {}
            _ => unknown.push(format!("{} ```{}\n{}", found.document, found.language, found.text)),
        }
    }
    assert!(unknown.is_empty(), "no test runs:\n{}", unknown.join("\n"));
}

fn sources(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: PathBuf| match path.is_dir() {
        true => sources(&path),
        false if path.extension().is_some_and(|kind| kind == "rs") => {
            vec![fs::read_to_string(path).unwrap()]
        }
        false => vec![],
    };
    entries.flat_map(of).collect()
}

/// Targets of the Makefile: the demo that checks itself and all tests are what CI runs, and an image is made
/// of the program under test for every Swarm of the lab.
#[test]
fn what_is_told_to_be_made_can_be_made() {
    let makes = [
        block("README.md", "make demo\n").unwrap(),
        block("README.md", "make demo CHECK=1").unwrap(),
        block("README.md", "make image").unwrap(),
        block("docs/swarm.md", "make image").unwrap(),
    ];
    let mut seen = BTreeSet::new();
    for line in makes.iter().flat_map(|text| commands(text)).filter(|it| it.starts_with("make ")) {
        let mut command = Command::new("make");
        command.arg("--dry-run").args(line.split_whitespace().skip(1)).current_dir(repository("."));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !said.is_empty(), "{line}: {output:?}");
        seen.insert(line);
    }
    let ci = fs::read_to_string(repository(".ci/run")).unwrap();
    assert!(ci.contains("make test") || ci.contains("make --no-print-directory test"), "{ci}");
    let all = fs::read_to_string(repository(".ci/test")).unwrap();
    assert!(all.contains("make --no-print-directory demo CHECK=1"), "{all}");
    let known = ["make demo", "make demo CHECK=1", "make image", "make test"].map(str::to_owned);
    assert_eq!(seen, BTreeSet::from(known));
}

/// A reader with a terminal on each host.
struct Reader {
    lab: Lab,
    nodes: Vec<Node>,
}

impl Reader {
    fn new(hosts: usize) -> Self {
        let lab = Lab::builder().hosts(hosts).build().unwrap();
        let nodes: Vec<Node> =
            lab.hosts().iter().map(|host| Node::boot(host, host.name()).unwrap()).collect();
        let reader = Self { lab, nodes };
        let program = agent_program().unwrap();
        for node in &reader.nodes {
            fs::create_dir(node.path(DESK)).unwrap();
            fs::create_dir_all(node.path("/etc/weir")).unwrap();
            // What was built, and what was installed of it.
            fs::copy(&program, node.path(DESK).join("weir")).unwrap();
            reader.types(node, "install -m 755 weir /usr/local/bin/weir");
            // Docker's, where a host is in no Swarm any more.
            let bridge = "ip link add docker_gwbridge type bridge && ip link set docker_gwbridge up && \
                          ip address add 172.30.0.1/16 dev docker_gwbridge";
            reader.types(node, bridge);
        }
        reader
    }

    fn host(&self, name: &str) -> &Host {
        self.lab.host(name)
    }

    fn client(&self) -> &Client {
        self.lab.client("c1")
    }

    /// The reader's hosts have other addresses than those of the documents.
    fn meant(text: &str) -> String {
        text.replace("10.0.0.1", "10.77.0.1").replace("192.0.2.11", "10.77.0.11")
    }

    fn shell(text: &str) -> Command {
        let script = format!("cd {DESK}; export PATH=/usr/local/bin:$PATH; {}", Self::meant(text));
        command("bash", &["-ec", &script])
    }

    /// Types what ends by itself, and all is well.
    fn types(&self, node: &Node, text: &str) -> String {
        let output = node.output(Self::shell(text)).unwrap();
        said(text, &output, 0)
    }

    /// Types what goes on until Ctrl-C, at a terminal.
    fn watches(&self, node: &Node, line: &str) -> String {
        let line = line.replace('\'', "'\\''");
        let at_terminal = format!("timeout 3 script -qec '{line}' /dev/null");
        said(&line, &node.output(Self::shell(&at_terminal)).unwrap(), 124)
    }

    /// Types the commands of a block one after the other.
    fn reads(&self, node: &Node, text: &str) {
        for line in commands(text) {
            let endless = line.contains("--watch")
                || line.starts_with("weir top")
                || line.starts_with("weir monitor") && !line.contains("--for");
            match () {
                () if endless => self.watches(node, &line),
                // Nothing writes a journal on these machines, which a report says.
                () if line.starts_with("weir bugreport") => {
                    said(&line, &node.output(Self::shell(&line)).unwrap(), 1)
                }
                () => self.types(node, &line),
            };
        }
    }

    /// Types what runs in the foreground, and leaves that terminal.
    fn leaves(&self, node: &Node, text: &str) -> Process {
        node.spawn(Self::shell(text)).unwrap()
    }

    fn write(&self, node: &Node, file: &str, text: &str) {
        fs::write(node.path(DESK).join(file), Self::meant(text)).unwrap();
    }

    /// Asks until each of these tasks has answered, over IPv4, which all of them have.
    fn answered_by(&self, node: &str, port: u16, tasks: &[&str]) {
        let wanted: BTreeSet<String> = tasks.iter().map(|task| (*task).to_owned()).collect();
        let target = self.host(node).targets(port)[0];
        let what = format!("{target} to be answered by all");
        eventually(&what, 10 * SECOND, || -> Result<()> {
            let ask = |_| self.client().ask(&Probe::tcp(target)).task;
            let answered: BTreeSet<String> = (0..8).filter_map(ask).collect();
            ensure!(answered == wanted, "{answered:?}");
            Ok(())
        })
        .unwrap();
    }
}

fn said(typed: &str, output: &Output, code: i32) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(output.status.code(), Some(code), "{typed}\n{text}");
    text
}

/// `weir.toml` of the README for one of its nodes.
fn configuration(node: &Node) -> String {
    let mut text = block("README.md", "[node]").unwrap();
    text += &block("docs/dns.md", "[dns]").unwrap();
    match node.name() {
        "n1" => text,
        other => text.replace("\"n1\"", &format!("{other:?}")).replace("10.0.0.11", "10.0.0.12"),
    }
}

#[test]
fn hosts_without_docker_are_set_up_looked_at_linked_upgraded_and_cleaned_as_the_documents_say() {
    let reader = Reader::new(2);
    let [n1, n2] = &reader.nodes[..] else { panic!("two nodes") };
    let tasks = [("n1", "web.1"), ("n2", "web.2")];
    let tasks = tasks.map(|(host, name)| {
        let mut task = reader.lab.task(host, name).unwrap();
        task.serve_http(80).unwrap();
        task
    });
    let before = n1.kernel_traces().unwrap();
    for node in [n1, n2] {
        reader.write(node, "weir.toml", &configuration(node));
        reader.write(node, "mesh.toml", &block("README.md", "[[node]]").unwrap());
    }
    let start = block("README.md", "weir config check mesh.toml").unwrap();
    let mut agents = [n1, n2].map(|node| reader.leaves(node, &start));
    for node in [n1, n2] {
        reader.types(node, "weir status --wait 30s");
    }
    reader.answered_by("n1", 8080, &["web.1", "web.2"]);
    reader.answered_by("n2", 8080, &["web.1", "web.2"]);

    reader.reads(n1, &block("README.md", "weir status").unwrap());
    reader.types(n1, "weir undrain task web.1 && weir status --wait 30s");
    reader.reads(n1, &block("docs/operations.md", "weir status                  #").unwrap());
    reader.reads(n1, &block("docs/operations.md", "weir status\n").unwrap());
    reader.reads(n1, &block("docs/operations.md", "weir nodes").unwrap());
    reader.reads(n1, &block("docs/operations.md", "weir monitor").unwrap());
    reader.reads(n1, &block("docs/operations.md", "weir dns query").unwrap());
    reader.reads(n1, &block("docs/dns.md", "weir dns query").unwrap());

    reader.types(n1, &block("docs/upgrade.md", "install -m 755 weir").unwrap());
    reader.types(n1, &block("docs/proxy.md", "install -m 755 weir").unwrap());
    reader.answered_by("n1", 8080, &["web.1", "web.2"]);

    // The certificates are made on the one, and carried to the other.
    reader.types(n1, &block("README.md", "weir ca init").unwrap());
    for file in ["weir-ca.crt", "n1.crt", "n1.key", "n2.crt", "n2.key"] {
        let node = if file.starts_with("n2") { n2 } else { n1 };
        fs::copy(n1.path("/root/weir-ca").join(file), node.path("/etc/weir").join(file)).unwrap();
    }
    fs::copy(n1.path("/etc/weir/weir-ca.crt"), n2.path("/etc/weir/weir-ca.crt")).unwrap();
    for (node, agent) in [n1, n2].into_iter().zip(&mut agents) {
        let link =
            block("README.md", "[link]").unwrap().replace("n1.", &format!("{}.", node.name()));
        reader.write(node, "weir.toml", &(configuration(node) + &link));
        agent.stop(10 * SECOND).unwrap();
        *agent = reader.leaves(node, &start);
    }
    for (node, other) in [(n1, "n2"), (n2, "n1")] {
        reader.types(node, "weir status --wait 30s");
        let up = format!("weir_link_up{{node={other:?}}} 1");
        eventually(&format!("{} to hear {other}", node.name()), 30 * SECOND, || -> Result<()> {
            let metrics = reader.types(node, "curl -s localhost:9950/metrics");
            let told: Vec<_> = metrics.lines().filter(|it| it.contains("link_up")).collect();
            ensure!(told.contains(&up.as_str()), "{told:?}");
            Ok(())
        })
        .unwrap();
    }

    for agent in &mut agents {
        agent.stop(10 * SECOND).unwrap();
    }
    reader.answered_by("n1", 8080, &["web.1", "web.2"]);
    for node in [n1, n2] {
        reader.types(node, &block("README.md", "weir uninstall").unwrap());
    }
    let seen = reader.client().ask(&Probe::tcp(reader.host("n1").targets(8080)[0]));
    assert!(seen.task.is_none(), "{seen}");
    eventually("n1 to be as before", 10 * SECOND, || -> Result<()> {
        let left: Vec<_> = n1.kernel_traces()?.difference(&before).cloned().collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .unwrap();
    drop(tasks);
    drop(reader.nodes);
    reader.lab.finish().unwrap();
}

#[test]
fn every_file_in_the_documents_is_one_that_weir_takes_and_what_else_they_say_is_done() {
    let reader = Reader::new(1);
    let n1 = &reader.nodes[0];
    let configuration = block("README.md", "[node]").unwrap();
    let proxy = block("docs/proxy.md", "[dataplane]").unwrap();
    reader.write(n1, "weir.toml", &(configuration + &proxy));
    reader.types(n1, "weir config check weir.toml");
    let mesh = [
        block("docs/configuration.md", "[[network]]").unwrap(),
        "[[service]]\nname = \"db\"\npublish = [\"5432:5432\"]\nnetworks = [\"blue\"]\n".to_owned(),
        block("docs/configuration.md", "health = ").unwrap(),
        block("docs/configuration.md", "eject = ").unwrap(),
    ];
    reader.write(n1, "mesh.toml", &mesh.concat());
    reader.types(n1, "weir config check mesh.toml");

    reader.types(n1, &block("docs/security.md", "weir ca init").unwrap());
    assert!(n1.path("/root/weir-ca/NODE_ID.crt").exists());
    // From a host that the pool is to be led by.
    let route = Reader::meant(&block("docs/configuration.md", "ip route add").unwrap());
    let output = reader.client().output(command("bash", &["-ec", &route])).unwrap();
    said(&route, &output, 0);
    let output = command("ip", &["route", "get", "10.0.9.1"]);
    let output = reader.client().output(output).unwrap();
    let road = said("ip route get", &output, 0);
    assert!(road.contains("via 10.77.0.11"), "{road}");
    drop(reader.nodes);
    reader.lab.finish().unwrap();
}
