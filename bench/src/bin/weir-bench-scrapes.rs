//! Whether forwarding suffers when an agent of 10,000 services is asked a thousand times a second how things
//! are: the times of requests that the mesh carries, with nobody asking, with everybody asking, and beside
//! processes that only use the processors as much.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use weir_bench::{
    Spread,
    large::{SERVICES, TASKS, mesh, on_one_host},
    machine,
};
use weir_tests::{Agent, Lab, traffic::HttpLoad};

const ROUNDS: usize = 5;
/// How long each case of a round is measured.
const TIME: Duration = Duration::from_secs(5);
/// Between the start of a case and its measurement.
const WARM: Duration = Duration::from_secs(1);
/// Requests of clients a second, over connections that stay.
const REQUESTS: u64 = 1000;
/// Scrapes a second that are asked for, and by how many.
const SCRAPES: u64 = 1000;
const SCRAPERS: u64 = 32;
const PUBLISHED: u16 = 9000;
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9950);

/// What happens beside the requests.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    /// A path of the agent is asked for, with a header.
    Scrapes(&'static str, &'static str),
    /// Threads that do nothing but use a processor.
    Busy(usize),
}

const CASES: [(&str, Beside); 6] = [
    ("nobody asks", Beside::Nothing),
    // As Prometheus does.
    ("/metrics", Beside::Scrapes("/metrics", "Accept-Encoding: gzip\r\n")),
    ("/metrics, not packed", Beside::Scrapes("/metrics", "")),
    ("/api/v1/status", Beside::Scrapes("/api/v1/status", "")),
    ("one busy thread", Beside::Busy(1)),
    ("two busy threads", Beside::Busy(2)),
];

/// What a case of a round gave.
struct Measured {
    p50: f64,
    p99: f64,
    failed: u64,
    /// Scrapes that were answered, a second.
    scrapes: f64,
    /// Seconds of processor time of the agent, a second.
    agent: f64,
}

fn main() -> Result<()> {
    on_one_host(1, measure)
}

fn measure(lab: &Lab) -> Result<()> {
    let mut task = lab.task("n1", "real.1")?;
    task.serve_http(80)?;
    let address = task.addresses()[0];
    let real = format!(
        "[[service]]\nname = \"real\"\npublish = [\"{PUBLISHED}:80\"]\n[[service.task]]\n\
         name = \"real.1\"\nnode = \"n1\"\naddress = [\"{address}\"]\n"
    );
    fs::write(lab.mesh_file(), mesh(SERVICES, None) + &real)?;
    let agent = lab.agent("n1")?;
    agent.wait_ready()?;
    println!(
        "{SERVICES} services x {TASKS} tasks; {REQUESTS} requests a second through the kernel plane"
    );
    let mut all: Vec<Vec<Measured>> = CASES.iter().map(|_| Vec::new()).collect();
    for round in 0..ROUNDS {
        // In every round another case is first.
        for turn in 0..CASES.len() {
            let at = (round + turn) % CASES.len();
            all[at].push(case(lab, &agent, CASES[at].1)?);
        }
    }
    println!(
        "| beside | p50, us | p99, us [min..max] | x nobody's [min..max] | failed | scrapes/s | agent, processors |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let quiet: Vec<f64> = all[0].iter().map(|one| one.p99).collect();
    for ((name, _), rounds) in CASES.iter().zip(&all) {
        let of = |value: fn(&Measured) -> f64| Spread::of(rounds.iter().map(value).collect());
        let ratios = rounds.iter().zip(&quiet).map(|(one, quiet)| one.p99 / quiet).collect();
        println!(
            "| {name} | {:.0} | {:.0} | {:.2} | {} | {:.0} | {:.2} |",
            of(|one| one.p50).median,
            of(|one| one.p99),
            Spread::of(ratios),
            rounds.iter().map(|one| one.failed).sum::<u64>(),
            of(|one| one.scrapes).median,
            of(|one| one.agent).median,
        );
    }
    Ok(())
}

fn case(lab: &Lab, agent: &Agent, beside: Beside) -> Result<Measured> {
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let host = agent.host();
        let (stop, answered) = (&stop, &answered);
        match beside {
            Beside::Nothing => {}
            Beside::Scrapes(path, header) => {
                for number in 0..SCRAPERS {
                    let work = move || scrape((path, header), number, stop, answered);
                    scope.spawn(move || host.run(work));
                }
            }
            Beside::Busy(threads) => {
                for _ in 0..threads {
                    scope.spawn(move || while !stop.load(Ordering::Relaxed) {});
                }
            }
        }
        thread::sleep(WARM);
        let measured = requests(lab, agent, answered);
        stop.store(true, Ordering::Relaxed);
        measured
    })
}

fn requests(lab: &Lab, agent: &Agent, answered: &AtomicU64) -> Result<Measured> {
    let pid = agent.pid().context("the agent has ended")?;
    let target = lab.host("n1").targets(PUBLISHED);
    let load = HttpLoad::new(lab.client("c1").netns(), target).keep_alive().rate(REQUESTS);
    let (scrapes, worked) = (answered.load(Ordering::Relaxed), machine::worked(pid)?);
    let load = load.start()?;
    thread::sleep(TIME);
    let report = load.stop()?;
    let seconds = report.elapsed.as_secs_f64();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    Ok(Measured {
        p50: micros(report.p50),
        p99: micros(report.p99),
        failed: report.failures(),
        scrapes: (answered.load(Ordering::Relaxed) - scrapes) as f64 / seconds,
        agent: (machine::worked(pid)? - worked).as_secs_f64() / seconds,
    })
}

/// Asks at its pace, or as often as it is answered. Whoever asks is elsewhere as a rule; here it gets what
/// processors have to spare.
fn scrape(what: (&str, &str), number: u64, stop: &AtomicBool, answered: &AtomicU64) {
    machine::stand_back();
    let pace = Duration::from_secs(1).mul_f64(SCRAPERS as f64 / SCRAPES as f64);
    let mut next = Instant::now() + pace.mul_f64(number as f64 / SCRAPERS as f64);
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next = Instant::now().max(next + pace);
        if ask(what).is_ok() {
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn ask((path, header): (&str, &str)) -> Result<()> {
    let mut stream = TcpStream::connect(METRICS)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: weir\r\n{header}Connection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "not answered");
    Ok(())
}
