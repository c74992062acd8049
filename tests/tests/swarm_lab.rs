//! The Swarm lab itself: what users do to a Swarm happens, is waited for, and leaves nothing.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weir_tests::cgroup::cgroup2_root;
use weir_tests::eventually;
use weir_tests::swarm::{Swarm, Update, docker_program, task_images};

fn swarm(nodes: usize, managers: usize) -> Swarm {
    let builder = Swarm::builder().nodes(nodes).managers(managers);
    let images = task_images().unwrap();
    images.into_iter().fold(builder, |builder, image| builder.image(image)).build().unwrap()
}

fn nodes_of(swarm: &Swarm, service: &str) -> BTreeSet<String> {
    swarm.tasks(service).unwrap().into_iter().map(|task| task.node).collect()
}

#[test]
fn scale_update_rollback_drain_and_a_restart_of_dockerd_are_waited_for() {
    let swarm = swarm(2, 1);
    swarm.docker("service create -d --no-resolve-image --name web --replicas 2 task:v1").unwrap();
    swarm.wait_running("web", 2).unwrap();
    swarm.docker("service scale -d web=4").unwrap();
    swarm.wait_running("web", 4).unwrap();
    assert_eq!(nodes_of(&swarm, "web").len(), 2);

    let update = "service update -d --no-resolve-image --image task:v2 --update-parallelism 2 \
                  --update-delay 0s --update-monitor 500ms --rollback-monitor 500ms web";
    swarm.docker(update).unwrap();
    swarm.wait_updated("web", Update::Completed).unwrap();
    let version = swarm.node("n2").docker("ps --format {{.Image}}").unwrap();
    assert_eq!(version, "task:v2\ntask:v2\n");
    swarm.docker("service rollback -d web").unwrap();
    swarm.wait_updated("web", Update::RolledBack).unwrap();
    swarm.wait_running("web", 4).unwrap();

    swarm.docker("node update --availability drain n2").unwrap();
    eventually("n2 to be empty", Duration::from_secs(20), || -> Result<()> {
        let there = nodes_of(&swarm, "web");
        ensure!(there == BTreeSet::from(["n1".to_owned()]), "{there:?}");
        Ok(())
    })
    .unwrap();
    swarm.wait_running("web", 4).unwrap();
    swarm.docker("node update --availability active n2").unwrap();

    let n2 = swarm.node("n2");
    n2.stop_docker().unwrap();
    n2.start_docker().unwrap();
    n2.kill_docker();
    n2.start_docker().unwrap();
    swarm.wait_nodes(2).unwrap();
    swarm.finish().unwrap();
}

#[test]
fn a_health_check_can_be_made_to_fail() {
    let swarm = swarm(1, 1);
    swarm.docker("service create -d --no-resolve-image --name web task:health").unwrap();
    swarm.wait_running("web", 1).unwrap();
    let task = swarm.tasks("web").unwrap().pop().unwrap();
    let health = |wanted: &str| {
        eventually(
            &format!("the task to be {wanted}"),
            Duration::from_secs(10),
            || -> Result<()> {
                let container = swarm.inspect(&task.container)?;
                let health = container["State"]["Health"]["Status"].as_str().unwrap_or_default();
                ensure!(health == wanted, "{health}");
                Ok(())
            },
        )
        .unwrap();
    };
    health("healthy");
    swarm.docker(&format!("exec {} /weir-lab-task sick", task.container)).unwrap();
    health("unhealthy");
    swarm.finish().unwrap();
}

#[test]
fn five_nodes_with_three_managers_elect_another_leader() {
    let swarm = swarm(5, 3);
    let leader = |from: &str| {
        let list = ["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"];
        let nodes = swarm.node(from).docker_with(&list).unwrap_or_default();
        let mut lines = nodes.lines();
        lines.find_map(|line| line.strip_suffix(" Leader").map(str::to_owned))
    };
    assert_eq!(leader("n2").as_deref(), Some("n1"));
    swarm.power_off("n1").unwrap();
    eventually("another leader", Duration::from_secs(40), || {
        let leader = leader("n2");
        ensure!(leader.as_deref().is_some_and(|name| name != "n1"), "{leader:?}");
        Ok(())
    })
    .unwrap();
    swarm.power_on("n1").unwrap();
    eventually("n1 to follow it", Duration::from_secs(40), || {
        let leader = leader("n1");
        ensure!(leader.as_deref().is_some_and(|name| name != "n1"), "{leader:?}");
        Ok(())
    })
    .unwrap();
    swarm.finish().unwrap();
}

/// A Swarm of one node in another process, with a running task.
fn elsewhere() -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-lab-swarm"));
    command.args(["--nodes", "1"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map_while(Result::ok);
    let export = lines.into_iter().find(|line| line.starts_with("export DOCKER_HOST=")).unwrap();
    let host = export.trim_start_matches("export DOCKER_HOST=");
    let mut docker = Command::new(docker_program());
    docker.args(["-H", host, "run", "-d", "task:v1"]);
    assert!(docker.output().unwrap().status.success());
    child
}

/// What carries the name of a lab of this process.
fn named_after(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("weir-lab-{pid}-");
    let entries = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let places = [cgroup2_root().unwrap(), std::env::temp_dir()];
    let all = places.iter().flat_map(|place| entries(place));
    all.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&prefix)).collect()
}

fn processes_in(cgroup: &Path) -> String {
    let mut found = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for entry in fs::read_dir(cgroup).into_iter().flatten().filter_map(Result::ok) {
        if entry.path().is_dir() {
            found += &processes_in(&entry.path());
        }
    }
    found
}

#[test]
fn an_interrupted_swarm_leaves_nothing() {
    let mut swarm = elsewhere();
    kill(Pid::from_raw(swarm.id().cast_signed()), Signal::SIGINT).unwrap();
    assert!(swarm.wait().unwrap().success());
    assert_eq!(named_after(swarm.id()), Vec::<PathBuf>::new());
}

#[test]
fn a_killed_swarm_leaves_nothing() {
    let mut swarm = elsewhere();
    let left = named_after(swarm.id());
    let cgroup = left.iter().find(|path| path.starts_with("/sys/fs/cgroup")).unwrap();
    assert!(processes_in(cgroup).lines().count() > 4);
    swarm.kill().unwrap();
    swarm.wait().unwrap();
    eventually("all its processes to be gone", Duration::from_secs(5), || {
        let processes = processes_in(cgroup);
        ensure!(processes.is_empty(), "{processes:?}");
        Ok(())
    })
    .unwrap();
    eventually("the rest to be gone", Duration::from_secs(20), || {
        let left = named_after(swarm.id());
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .unwrap();
}
