//! The demo for machines: each promise is one line, ok or FAILED.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weir_tests::lab::command;
use weir_tests::traffic::{HttpLoad, Report, UdpLoad};
use weir_tests::{State, eventually, interrupt};

use crate::demo::{Demo, ECHO, WEB};

/// Long enough for a change of mesh.toml to be everywhere.
const SETTLE: Duration = Duration::from_secs(10);
const REQUESTS: u64 = 30;

/// Runs all checks; `true` when all are well.
pub fn run(demo: &mut Demo) -> Result<bool> {
    let mut board = Board { failed: 0, done: 0 };
    for (host, target) in demo.targets(WEB) {
        board.line(&format!("tcp  {host} {target}"), || web_answers(demo, target))?;
    }
    for (host, target) in demo.targets(ECHO) {
        board.line(&format!("udp  {host} {target}"), || echo_answers(demo, target))?;
        board.line(&format!("echo {host} {target}"), || echo_stream(demo, target))?;
    }
    for target in ["127.0.0.1", "[::1]", "10.77.0.11", "[fd77::11]"] {
        let name = format!("from n1 itself to {target}:{WEB}");
        board.line(&name, || from_the_host(demo, &format!("http://{target}:{WEB}/")))?;
    }
    // The proxy's connections are the agent's own.
    if !demo.by_proxy() {
        board.line("keeps forwarding while an agent is killed", || killed_agent(demo))?;
        board.line("an agent that comes back disturbs nothing", || agent_comes_back(demo))?;
    }
    board.line("a drained task loses nothing", || drain(demo))?;
    println!("{} checks, {} failed", board.done, board.failed);
    Ok(board.failed == 0)
}

struct Board {
    failed: usize,
    done: usize,
}

impl Board {
    fn line(&mut self, name: &str, check: impl FnOnce() -> Result<String>) -> Result<()> {
        interrupt::go_on()?;
        self.done += 1;
        match check() {
            Ok(what) => println!("ok      {name}: {what}"),
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {name}: {error:#}");
            }
        }
        Ok(())
    }
}

fn web_answers(demo: &Demo, target: SocketAddr) -> Result<String> {
    let load = HttpLoad::new(demo.client().netns(), [target]).connections(3).requests(REQUESTS);
    all_tasks_saw_the_client(demo, target, &load.run()?)
}

fn echo_answers(demo: &Demo, target: SocketAddr) -> Result<String> {
    let load = UdpLoad::new(demo.client().netns(), [target]).sockets(10).requests(REQUESTS);
    let load = load.timeout(Duration::from_millis(500));
    all_tasks_saw_the_client(demo, target, &load.run()?)
}

/// Every request is a new flow, so every task must have had some, and from our own address.
fn all_tasks_saw_the_client(demo: &Demo, target: SocketAddr, report: &Report) -> Result<String> {
    ensure!(report.failures() == 0 && report.ok == REQUESTS, "{report}");
    ensure!(report.by_task.len() == 3, "not all three tasks answered: {report}");
    let of_family = |address: &&IpAddr| address.is_ipv4() == target.is_ipv4();
    let own = demo.client().addresses().iter().find(of_family).context("no own address")?;
    let seen: BTreeSet<_> = report.by_client.keys().collect();
    if demo.by_proxy() {
        return Ok(format!("{:?}", report.by_task));
    }
    ensure!(seen.iter().eq([&own]), "the client is {own}, the tasks saw {seen:?}");
    Ok(format!("{:?} from {own}", report.by_task))
}

fn echo_stream(demo: &Demo, target: SocketAddr) -> Result<String> {
    let mut answer = [0; 64];
    demo.client().run(|| -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(&[7; 64])?;
        Ok(stream.read_exact(&mut answer)?)
    })?;
    ensure!(answer == [7; 64], "got {answer:?}");
    Ok("64 bytes came back".to_owned())
}

/// A process in the host's cgroup: only such are seen by the connect-time programs.
fn from_the_host(demo: &Demo, url: &str) -> Result<String> {
    let host = demo.agent("n1")?.host();
    let mut tasks = BTreeSet::new();
    for _ in 0..6 {
        let curl = command("curl", &["--silent", "--show-error", "--max-time", "2", "-g", url]);
        let output = host.output(curl)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{}", error.trim());
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        tasks.extend(answer.split(' ').next().map(str::to_owned));
    }
    Ok(format!("answers by {tasks:?}"))
}

fn both_loads(demo: &Demo, change: impl FnOnce() -> Result<()>) -> Result<String> {
    let targets: Vec<_> = demo.targets(WEB).into_iter().map(|(_, target)| target).collect();
    let load = |targets: &[SocketAddr]| {
        HttpLoad::new(demo.client().netns(), targets.to_vec()).connections(6).rate(600)
    };
    let (fresh, kept) = (load(&targets).start()?, load(&targets).keep_alive().start()?);
    interrupt::sleep(Duration::from_millis(500));
    change()?;
    interrupt::sleep(Duration::from_secs(2));
    let (fresh, kept) = (fresh.stop()?, kept.stop()?);
    ensure!(fresh.ok > 0 && fresh.failures() == 0, "new connections: {fresh}");
    ensure!(kept.ok > 0 && kept.failures() == 0, "kept connections: {kept}");
    Ok(format!("{} new and {} kept connections' requests, 0 failed", fresh.ok, kept.ok))
}

fn killed_agent(demo: &Demo) -> Result<String> {
    let agent = demo.agent("n1")?;
    both_loads(demo, || {
        agent.kill9();
        Ok(())
    })
}

fn agent_comes_back(demo: &Demo) -> Result<String> {
    let agent = demo.agent("n1")?;
    both_loads(demo, || {
        agent.launch()?;
        agent.wait_ready()
    })
}

/// What an orchestrator does: draining, until no new flow arrives; then SIGTERM; then gone.
fn drain(demo: &mut Demo) -> Result<String> {
    demo.mesh.service("web").state("web.1", State::Draining);
    let mut task = demo.tasks.remove("web.1").context("no web.1")?;
    let (draining, mut gone) = (demo.mesh.clone(), demo.mesh.clone());
    gone.service("web").remove_task("web.1");
    let said = both_loads(demo, || {
        draining.write()?;
        eventually("web.1 to get no new flows", SETTLE, || {
            let targets = demo.targets(WEB).into_iter().map(|(_, target)| target);
            let load = HttpLoad::new(demo.client().netns(), targets).requests(6 * REQUESTS);
            let report = load.run()?;
            ensure!(report.failures() == 0 && !report.by_task.contains_key("web.1"), "{report}");
            Ok(())
        })?;
        task.stop(SETTLE)?;
        gone.write()
    });
    demo.mesh = gone;
    said
}
