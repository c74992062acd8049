//! What README and docs/ tell a reader to type on a Swarm does what they say, typed as it is there.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::documents::{block, commands};
use weir_tests::lab::command;
use weir_tests::swarm::{Node, Swarm, docker_program, repository, weir_image};
use weir_tests::{How, Probe, Seen, eventually};

/// How a reader abbreviates what docs/swarm.md says of asking an agent.
const WEIR: &str = "weir() { docker exec $(docker ps -q -f label=com.docker.swarm.service.name=weir_agent) /weir \"$@\"; }";

/// A reader with a terminal on each node, in a directory with what he has built.
struct Reader {
    swarm: Swarm,
    desk: String,
}

impl Reader {
    fn types(&self, node: &Node, text: &str) -> String {
        self.tries(node, text).unwrap()
    }

    fn tries(&self, node: &Node, text: &str) -> Result<String> {
        let desk = &self.desk;
        let script = format!("cd {desk}; export PATH={desk}/bin:$PATH HOME={desk}; {text}");
        let output = node.output(command("bash", &["-ec", &script]))?;
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(output.status.success(), "{}: {text}\n{said}", node.name());
        Ok(said)
    }

    /// Types it again while something is still on its way.
    fn types_until_well(&self, node: &Node, text: &str) {
        let what = format!("{text} to end well on {}", node.name());
        eventually(&what, Duration::from_secs(20), || self.tries(node, text)).unwrap();
    }

    /// Images are loaded on every node; the rest is for a manager. What is made is there.
    fn reads(&self, text: &str) {
        for line in commands(text).into_iter().filter(|line| !line.starts_with("make ")) {
            let everywhere = line.starts_with("docker load");
            let nodes = self.swarm.nodes().iter().take(if everywhere { usize::MAX } else { 1 });
            nodes.for_each(|node| drop(self.types(node, &line)));
        }
    }
}

/// By the rules of docs/security.md. Without them a container passes for its node.
fn containers_are_kept_from_the_relay(reader: &Reader) {
    let [here, there] = reader.swarm.nodes() else { panic!("two nodes") };
    let container = reader.types(here, "docker ps -q -f ancestor=nginx | head -1");
    // What is no node of the mesh is reset before it has said anything; a node has a moment to speak.
    let relay = serde_json::to_string(&[Probe::tcp(there.target(7952))]).unwrap();
    let ask = format!("docker exec {} /weir-lab-task probe '{relay}'", container.trim());
    let seen = || {
        let seen: Vec<Seen> = serde_json::from_str(&reader.types(here, &ask)).unwrap();
        seen.into_iter().next().unwrap()
    };
    eventually("the relay to be reached", Duration::from_secs(20), || -> Result<()> {
        let before = seen();
        ensure!(before.local.is_some(), "{before}");
        Ok(())
    })
    .unwrap();
    reader.types(here, &block("docs/security.md", "iptables -I DOCKER-USER").unwrap());
    let after = seen();
    assert!(after.local.is_none() && after.task.is_none(), "{after}");
}

#[test]
fn a_swarm_gets_weir_is_looked_at_updated_and_cleaned_as_the_documents_say() {
    let swarm = Swarm::builder().nodes(2).with_images().unwrap().build().unwrap();
    let desk = swarm.lab().run_dir().join("desk");
    fs::create_dir_all(desk.join("target/image")).unwrap();
    fs::create_dir_all(desk.join("bin")).unwrap();
    symlink(docker_program(), desk.join("bin/docker")).unwrap();
    symlink(repository("deploy"), desk.join("deploy")).unwrap();
    symlink(weir_image().unwrap().archive(), desk.join("target/image/weir.tar")).unwrap();
    let reader = Reader { swarm, desk: desk.display().to_string() };
    let (swarm, manager) = (&reader.swarm, &reader.swarm.nodes()[0]);
    for node in swarm.nodes() {
        // Nobody can pull here.
        reader.types(node, "docker tag task:v1 nginx; docker rmi weir:latest");
    }

    reader.reads(&block("README.md", "make image").unwrap());
    swarm.nodes().iter().for_each(|node| node.wait_weir().unwrap());
    for node in swarm.nodes() {
        eventually("three tasks to answer", Duration::from_secs(20), || -> Result<()> {
            let ask = |_| swarm.client("c1").ask(&Probe::new(How::Tcp, node.target(8080))).task;
            let answered: BTreeSet<String> = (0..9).filter_map(ask).collect();
            ensure!(answered.len() == 3, "{answered:?}");
            Ok(())
        })
        .unwrap();
        reader.types_until_well(node, &block("docs/swarm.md", "docker exec").unwrap());
        let compare = block("docs/operations.md", "weir state diff").unwrap();
        reader.types_until_well(node, &format!("{WEIR}; {compare}"));
    }
    containers_are_kept_from_the_relay(&reader);
    // Once more is no harm.
    reader.reads(&block("docs/swarm.md", "make image").unwrap());

    for node in swarm.nodes() {
        reader.types(node, "docker tag weir:latest weir:1.1");
    }
    reader.types(manager, "docker save -o weir.tar weir:1.1");
    reader.reads(&block("docs/upgrade.md", "docker load").unwrap());
    let image = "docker service inspect -f '{{.Spec.TaskTemplate.ContainerSpec.Image}}' weir_agent";
    assert_eq!(reader.types(manager, image).trim(), "weir:1.1");
    swarm.nodes().iter().for_each(|node| node.wait_weir().unwrap());

    let leave = commands(&block("docs/swarm.md", "docker stack rm").unwrap());
    let [stop, uninstall, logs, end] = &leave[..] else { panic!("{leave:?}") };
    reader.types(manager, stop);
    reader.types(manager, uninstall);
    eventually("each node to say what it removed", Duration::from_secs(60), || -> Result<()> {
        let said = reader.types(manager, logs);
        let removed = said.lines().filter(|line| line.contains(" removed ")).collect::<Vec<_>>();
        let by =
            |node: &Node| removed.iter().any(|line| line.contains(&format!("@{} ", node.name())));
        ensure!(swarm.nodes().iter().all(by), "{said}");
        Ok(())
    })
    .unwrap();
    reader.types(manager, end);
    for node in swarm.nodes() {
        eventually(&format!("{} to be without weir", node.name()), Duration::from_secs(20), || {
            let of_weir = |trace: &String| trace.contains("weir") || trace.contains("program");
            let left: Vec<_> = node.kernel_traces()?.into_iter().filter(of_weir).collect();
            ensure!(left.is_empty(), "{left:?}");
            anyhow::Ok(())
        })
        .unwrap();
    }
    reader.swarm.finish().unwrap();
}
