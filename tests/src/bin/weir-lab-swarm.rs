//! `weir-lab-swarm`: a Docker Swarm of nodes in namespaces of this machine, for people.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use weir_tests::swarm::{Swarm, repository, task_images, weir_image};
use weir_tests::{Process, interrupt};

/// A Docker Swarm in namespaces of this machine, with the images `task` and `weir` on each node;
/// until Ctrl-C.
#[derive(Debug, Parser)]
struct Cli {
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How many of them are managers
    #[arg(long, default_value_t = 1)]
    managers: usize,
    /// Deploy weir with deploy/stack.yml
    #[arg(long)]
    weir: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-lab-swarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    interrupt::install()?;
    let mut builder = Swarm::builder().nodes(cli.nodes).managers(cli.managers);
    for image in task_images()?.into_iter().chain([weir_image()?]) {
        builder = builder.image(image);
    }
    let swarm = builder.build()?;
    if cli.weir {
        swarm.deploy("weir", &[&repository("deploy/stack.yml")])?;
    }
    let mut sleep = Command::new("sleep");
    sleep.arg("infinity");
    let client = swarm.client("c1").spawn(sleep)?;
    introduce(&swarm, &client)?;
    while !interrupt::asked() {
        interrupt::sleep(Duration::from_secs(1));
    }
    println!("\ntaking it down");
    drop(client);
    swarm.finish()
}

fn introduce(swarm: &Swarm, client: &Process) -> Result<()> {
    let first = swarm.nodes().first().context("no nodes")?;
    println!("ready after {:.1} s; end it with Ctrl-C\n", swarm.age().as_secs_f32());
    println!("export DOCKER_HOST=unix://{}", first.daemon().socket().display());
    println!("docker service create -d --name web --replicas 3 -p 8081:80 task:v1");
    let enter = format!("nsenter --net=/proc/{}/ns/net", client.pid());
    println!("{enter} curl http://{}:8081/\n", first.address());
    for node in swarm.nodes() {
        let (name, address, pid) = (node.name(), node.address(), node.first_process());
        println!("{name}  {address}  a shell: nsenter -t {pid} -a");
    }
    Ok(())
}
