//! From Docker's event to what clients get, on every node of a real Swarm: one manager, two workers,
//! dockerd on each, weir deployed by its stack file. `weir-bench-convergence [ROUNDS]`, by default 20.
//! As root; `WEIR_BIN` names the agent.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use weir_bench::{dns::ask::Asker, machine};
use weir_tests::{
    Probe, Swarm, eventually,
    swarm::{Node, SETTLE, TaskAt, Update},
};

/// The ports that are added are counted from here.
const ADDED: u16 = 9000;
const PORT: u16 = 8081;
/// Where every node answers its containers, and what they ask.
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(172, 18, 0, 1), 53);
const NAME: &str = "tasks.web.weir";
/// How long a client waits between two attempts at one node.
const PAUSE: Duration = Duration::from_millis(1);

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(20), |text| text.parse())?;
    println!("{}", machine::describe());
    let swarm = Swarm::builder().managers(1).with_images()?.build()?;
    let measured = measure(&swarm, rounds);
    // The lab's own complaint must not hide why nothing was measured.
    let finished = swarm.finish();
    for (what, times) in measured? {
        print(what, times);
    }
    println!("load average at the end {}", machine::load_average());
    finished
}

type Measured = [(&'static str, Vec<Duration>); 4];

fn measure(swarm: &Swarm, rounds: usize) -> Result<Measured> {
    swarm.deploy_weir()?;
    // Each check is a process that runc starts: those of the image, twice a second, would be the load.
    let create = "service create -d --no-resolve-image --restart-delay 0s --health-interval 2s \
                  --update-delay 0s --update-monitor 500ms --name";
    // Names are on networks that users make; a node itself sees them all.
    swarm.docker("network create -d overlay names")?;
    swarm.docker(&format!("{create} web --network names --replicas 3 -p {PORT}:80 task:health"))?;
    swarm.docker(&format!("{create} one --replicas 1 -p 8082:80 task:health"))?;
    swarm.wait_running("web", 3)?;
    swarm.wait_running("one", 1)?;
    swarm.wait_served("web")?;
    swarm.wait_served("one")?;
    let [mut killed, mut unnamed, mut healthy, mut added] = [const { Vec::new() }; 4];
    for round in 0..rounds {
        let (kernel, names) = kill(swarm, round)?;
        killed.extend(kernel);
        unnamed.extend(names);
        healthy.extend(return_of(swarm)?);
        added.extend(publish(swarm, ADDED + u16::try_from(round)?)?);
        eprintln!("round {} of {rounds}, load {}", round + 1, machine::load_average());
    }
    Ok([
        ("kill event -> no new flows in the kernel", killed),
        ("kill event -> not given out by DNS", unnamed),
        ("healthy event -> first connection answered", healthy),
        ("publish-add begun -> first connection answered", added),
    ])
}

/// One of three tasks is killed: until the kernel of each node has taken it out, and until the names that
/// each node gives its containers lead there no more.
fn kill(swarm: &Swarm, round: usize) -> Result<(Vec<Duration>, Vec<Duration>)> {
    swarm.wait_running("web", 3)?;
    let tasks = swarm.tasks("web")?;
    let task = &tasks[round % tasks.len()];
    let active = |wanted: bool| {
        swarm.nodes().iter().try_for_each(|node| {
            node.wait_tasks("web", |known| {
                let in_kernel = |one: &serde_json::Value| {
                    one["name"] == task.name.as_str() && one["kernel"] == "active"
                };
                known.iter().any(in_kernel) == wanted
            })
        })
    };
    active(true)?;
    // So that nothing of what came before is still on its way.
    thread::sleep(Duration::from_secs(1));
    let begun = SystemTime::now();
    let own = swarm.node(&task.node);
    let named = thread::scope(|scope| {
        let watchers: Vec<_> =
            swarm.nodes().iter().map(|node| scope.spawn(move || first_without(node))).collect();
        // Each must have heard of all three before one goes.
        thread::sleep(Duration::from_millis(200));
        let killed = own.docker(&format!("kill {}", task.container));
        let panicked = |_| Err(anyhow::anyhow!("a thread panicked"));
        let named: Result<Vec<SystemTime>> =
            watchers.into_iter().map(|one| one.join().unwrap_or_else(panicked)).collect();
        killed.and(named)
    })?;
    active(false)?;
    let event = own.event_of("kill", &task.container, begun)?;
    let after = |node: &Node| Ok(node.kernel_changed_after(event)?.duration_since(event)?);
    let kernel: Result<_> = swarm.nodes().iter().map(after).collect();
    let names = named.into_iter().map(|at| at.duration_since(event).unwrap_or_default());
    Ok((kernel?, names.collect()))
}

/// When an address of `web` was first missing from what a node answers.
fn first_without(node: &Node) -> Result<SystemTime> {
    node.host().run(|| {
        let mut asker = Asker::new(SERVER.into())?;
        let before = asker.addresses(NAME)?;
        ensure!(before.len() == 3, "{} gives {before:?} out, of three tasks", node.name());
        let deadline = SystemTime::now() + SETTLE;
        loop {
            let now = asker.addresses(NAME)?;
            if !before.is_subset(&now) {
                return Ok(SystemTime::now());
            }
            ensure!(SystemTime::now() < deadline, "{} still gives {before:?} out", node.name());
            thread::sleep(PAUSE);
        }
    })
}

/// The only task of a service is replaced: from when the new one is healthy until each node answers.
fn return_of(swarm: &Swarm) -> Result<Vec<Duration>> {
    let old = only(swarm, None)?;
    let begun = SystemTime::now();
    swarm.node(&old.node).docker(&format!("kill {}", old.container))?;
    let new = only(swarm, Some(&old))?;
    let answered = first_answers(swarm, 8082, &new.said())?;
    let event = swarm.node(&new.node).event_of("health_status", &new.container, begun)?;
    Ok(answered.into_iter().map(|at| at.duration_since(event).unwrap_or_default()).collect())
}

/// The task of `one`, when it is another than `old`.
fn only(swarm: &Swarm, old: Option<&TaskAt>) -> Result<TaskAt> {
    eventually("a task of one", SETTLE, || {
        let tasks = swarm.tasks("one")?;
        let new = tasks.into_iter().find(|task| Some(&task.container) != old.map(|t| &t.container));
        new.context("there is none")
    })
}

/// A port is added: from the command until each node answers there.
fn publish(swarm: &Swarm, port: u16) -> Result<Vec<Duration>> {
    let update = "service update -d --no-resolve-image";
    let begun = SystemTime::now();
    let answered = thread::scope(|scope| {
        let waiting = scope.spawn(|| first_answers(swarm, port, ""));
        let updated = swarm.docker(&format!("{update} --publish-add {port}:80 web"));
        let answered = waiting.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")));
        updated.and(answered)
    })?;
    // Docker replaces the tasks of a service whose ports change.
    swarm.wait_updated("web", Update::Completed)?;
    Ok(answered.into_iter().map(|at| at.duration_since(begun).unwrap_or_default()).collect())
}

/// When each node first answered a new connection at a port, by a task whose name ends so.
fn first_answers(swarm: &Swarm, port: u16, task: &str) -> Result<Vec<SystemTime>> {
    let target = |node: &Node| node.target(port);
    let targets: Vec<SocketAddr> = swarm.nodes().iter().map(target).collect();
    thread::scope(|scope| {
        let ask = |target: SocketAddr| {
            let deadline = SystemTime::now() + SETTLE;
            loop {
                let seen = swarm.client("c1").ask(&Probe::tcp(target));
                if seen.task.as_deref().is_some_and(|name| name.ends_with(task)) {
                    return Ok(SystemTime::now());
                }
                ensure!(SystemTime::now() < deadline, "{target} never answered: {seen}");
                thread::sleep(PAUSE);
            }
        };
        let all: Vec<_> =
            targets.into_iter().map(|target| scope.spawn(move || ask(target))).collect();
        let panicked = |_| Err(anyhow::anyhow!("a thread panicked"));
        all.into_iter().map(|one| one.join().unwrap_or_else(panicked)).collect()
    })
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| {
        let index = ((times.len() - 1) as f64 * share) as usize;
        times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
    };
    println!(
        "{what}: {} samples, p50 {:.0} ms, p99 {:.0} ms, longest {:.0} ms",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
