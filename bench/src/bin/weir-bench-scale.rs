//! 10,000 services with 10 tasks each from one file: how long until the kernel holds them, how long
//! for one change after that, and how much memory the agent has.
//!
//! Times are read off the agent's log, which costs it nothing: asking it for its state while it
//! works would be measured too.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use weir_bench::{
    Spread,
    large::{SERVICES, TASKS, mesh, on_one_host},
    machine,
};
use weir_tests::{Agent, Lab, lab::command, process::status_kib};

const CHANGES: usize = 11;
const PATIENCE: Duration = Duration::from_secs(60);
/// How finely times are read.
const LOOK: Duration = Duration::from_micros(500);
const HELD: &str = "the kernel holds the snapshot";

fn main() -> Result<()> {
    on_one_host(0, measure)
}

fn measure(lab: &Lab) -> Result<()> {
    put(&lab.mesh_file(), &mesh(0, None))?;
    let agent = lab.agent("n1")?;
    agent.wait_ready()?;
    println!("agent with nothing: {:.0} MB", memory(&agent)?);
    shares(&agent)?;

    let whole = mesh(SERVICES, None);
    println!("mesh.toml: {SERVICES} services x {TASKS} tasks, {} bytes", whole.len());
    let install = after_change(&agent, &lab.mesh_file(), &whole)?;
    goal("from the file to the kernel, s", Spread::of(vec![install.seen.as_secs_f64()]), 2.0, 2);
    println!("  of it in the reconciler: {} ms", install.reconciler);
    goal("memory after it, MB", Spread::of(vec![memory(&agent)?]), 100.0, 0);
    shares(&agent)?;

    changes(&agent, &lab.mesh_file())?;
    goal("memory at the end, MB", Spread::of(vec![memory(&agent)?]), 100.0, 0);
    shares(&agent)?;
    println!("  highest so far: {:.0} MB", status_megabytes(&agent, "VmHWM")?);
    restart(&agent)
}

fn changes(agent: &Agent, path: &Path) -> Result<()> {
    let (mut seen, mut reconciler) = (Vec::new(), Vec::new());
    let before = scrape(agent)?;
    let worked = processor_milliseconds(agent)?;
    for number in 0..CHANGES {
        let change = after_change(agent, path, &mesh(SERVICES, Some(number)))?;
        seen.push(change.seen.as_secs_f64() * 1000.0);
        reconciler.push(change.reconciler);
    }
    let worked = (processor_milliseconds(agent)? - worked) / CHANGES as f64;
    let after = scrape(agent)?;
    let programming = (after.programming - before.programming) * 1000.0 / CHANGES as f64;
    goal("one change, file replaced to kernel, ms", Spread::of(seen), 20.0, 0);
    println!("  from being noticed (programming_duration), mean: {programming:.1} ms");
    println!("  of it in the reconciler, ms: {:.0}", Spread::of(reconciler));
    println!("  processor time of the agent, mean: {worked:.0} ms");
    println!("a scrape of /metrics: {:.2} s, {} bytes", after.took.as_secs_f64(), after.bytes);
    Ok(())
}

/// A start on what the kernel holds already.
fn restart(agent: &Agent) -> Result<()> {
    let start = Instant::now();
    agent.restart()?;
    agent.wait_ready()?;
    println!("agent restarted until ready: {:.2} s", start.elapsed().as_secs_f64());
    println!("  memory then: {:.0} MB", memory(agent)?);
    Ok(())
}

fn goal(name: &str, spread: Spread, goal: f64, digits: usize) {
    let verdict = match spread.median < goal {
        true => "met".to_owned(),
        false => format!("missed by {:.digits$}", spread.median - goal),
    };
    println!("{name:42} {:24} goal < {goal}  {verdict}", format!("{spread:.digits$}"));
}

struct Change {
    /// From the file being in place to the agent saying that the kernel holds it.
    seen: Duration,
    /// The milliseconds that the reconciler says it took.
    reconciler: f64,
}

/// Replaces the file and waits for the agent to say that the kernel holds the new one.
fn after_change(agent: &Agent, path: &Path, text: &str) -> Result<Change> {
    let said = agent.log().matches(HELD).count();
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    let start = Instant::now();
    fs::rename(&new, path)?;
    loop {
        let log = agent.log();
        let seen = start.elapsed();
        if log.matches(HELD).count() > said && log.ends_with('\n') {
            let reconciler = last_milliseconds(&log).context("no milliseconds in the log")?;
            return Ok(Change { seen, reconciler });
        }
        if seen > PATIENCE {
            bail!("the agent did not take the change in {PATIENCE:?}:\n{log}");
        }
        std::thread::sleep(LOOK);
    }
}

fn last_milliseconds(log: &str) -> Option<f64> {
    let line = log.lines().rfind(|line| line.contains(HELD))?;
    line.split("milliseconds=").nth(1)?.split_whitespace().next()?.parse().ok()
}

/// What a scrape of `/metrics` said, and cost.
struct Scraped {
    /// Seconds from changes being noticed to the kernel holding them, all together.
    programming: f64,
    took: Duration,
    bytes: usize,
}

fn scrape(agent: &Agent) -> Result<Scraped> {
    let start = Instant::now();
    let request = ["-sS", "-m", "60", "http://127.0.0.1:9950/metrics"];
    let output = agent.host().output(command("curl", &request))?;
    let took = start.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    let sum = "weir_programming_duration_seconds_sum";
    let line = text.lines().find(|line| line.starts_with(sum));
    let value = line.and_then(|line| line.split_whitespace().next_back());
    let value =
        value.with_context(|| format!("{sum}: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(Scraped { programming: value.parse()?, took, bytes: text.len() })
}

fn memory(agent: &Agent) -> Result<f64> {
    status_megabytes(agent, "VmRSS")
}

fn processor_milliseconds(agent: &Agent) -> Result<f64> {
    let pid = agent.pid().context("the agent has ended")?;
    Ok(machine::worked(pid)?.as_secs_f64() * 1000.0)
}

/// What the memory is: the agent's own, and what it has mapped of its program and of the kernel's
/// arrays, whose pages are there whether or not it maps them.
fn shares(agent: &Agent) -> Result<()> {
    let own = status_megabytes(agent, "RssAnon")?;
    let mapped = status_megabytes(agent, "RssFile")? + status_megabytes(agent, "RssShmem")?;
    println!("  its own: {own:.0} MB, program and kernel arrays mapped: {mapped:.0} MB");
    Ok(())
}

/// A size of `/proc/PID/status`, in units of 1,000,000 bytes.
fn status_megabytes(agent: &Agent, key: &str) -> Result<f64> {
    let pid = agent.pid().context("the agent has ended")?;
    Ok(status_kib(pid, key)? as f64 * 1.024 / 1000.0)
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}
