//! The userspace proxy beside a real Docker Swarm, on every node.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::agent::agent_program;
use weir_tests::swarm::Swarm;
use weir_tests::traffic::HttpLoad;
use weir_tests::{How, Probe, eventually};

const PORT: u16 = 8081;
const PATIENCE: Duration = Duration::from_secs(30);

/// Every node answers a client, and its own processes, from so many tasks.
fn all_answer(swarm: &Swarm, tasks: usize) -> Result<()> {
    for node in swarm.nodes() {
        for how in [How::Tcp, How::Udp] {
            let mut answered = BTreeSet::new();
            for _ in 0..3 * tasks {
                let seen = swarm.client("c1").ask(&Probe::new(how, node.target(PORT)));
                ensure!(seen.task.is_some(), "{} {how:?}: {seen}", node.name());
                answered.extend(seen.task);
            }
            ensure!(answered.len() == tasks, "{} {how:?}: {answered:?}", node.name());
        }
        let own: Vec<_> = (0..2 * tasks).map(|_| Probe::tcp(format!("127.0.0.1:{PORT}"))).collect();
        let seen = node.host().probe(&own)?;
        let answered: BTreeSet<_> = seen.into_iter().filter_map(|seen| seen.task).collect();
        ensure!(answered.len() == tasks, "from {} itself: {answered:?}", node.name());
    }
    Ok(())
}

#[test]
fn every_node_of_a_swarm_answers_by_the_proxy_and_scaling_fails_no_new_connection() {
    let swarm = Swarm::builder().with_images().unwrap().build().unwrap();
    let create = "service create -d --no-resolve-image --name web --replicas 3 -p 8081:80 \
                  -p 8081:53/udp task:v1";
    swarm.docker(create).unwrap();
    swarm.wait_running("web", 3).unwrap();
    let agent = || {
        let mut command = Command::new(agent_program().unwrap());
        command.args(["agent", "--dataplane-mode", "proxy"]);
        command
    };
    let agents: Vec<_> = swarm.nodes().iter().map(|node| node.spawn(agent()).unwrap()).collect();
    swarm.nodes().iter().for_each(|node| node.wait_weir().unwrap());
    swarm.wait_served("web").unwrap();
    eventually("three tasks to answer", PATIENCE, || all_answer(&swarm, 3)).unwrap();
    for node in swarm.nodes() {
        let status = node.weir("/api/v1/status").unwrap().body;
        assert!(status.contains("\"kind\":\"proxy\""), "{status}");
    }
    for (tasks, words) in [(6, "six tasks to answer"), (2, "two tasks to answer")] {
        let targets = swarm.nodes().iter().map(|node| node.target(PORT));
        let load = HttpLoad::new(swarm.client("c1").netns(), targets).rate(300);
        let load = load.timeout(Duration::from_secs(5)).start().unwrap();
        swarm.docker(&format!("service scale -d web={tasks}")).unwrap();
        swarm.wait_running("web", tasks).unwrap();
        eventually(words, PATIENCE, || all_answer(&swarm, tasks)).unwrap();
        let report = load.stop().unwrap();
        assert!(report.ok > 100 && report.failures() == 0, "{tasks}: {report}\n{}", drops(&swarm));
    }
    drop(agents);
    swarm.finish().unwrap();
}

/// What the proxies did not forward as it was first chosen.
fn drops(swarm: &Swarm) -> String {
    let mut text = String::new();
    for node in swarm.nodes() {
        let metrics = node.weir("/metrics").map(|answer| answer.body).unwrap_or_default();
        let drops = metrics.lines().filter(|line| line.starts_with("weir_drops_total"));
        for line in drops.filter(|line| !line.ends_with(" 0")) {
            text += &format!("{}: {line}\n", node.name());
        }
    }
    text
}
