//! DNS servers side by side in one run, on loopback, with the same names: queries per second, processor
//! time a query, times of answers; local names while the server that is asked for others hangs; zones
//! that are swapped; memory. Each has one thread. Prints tables in Markdown.

use std::{
    collections::BTreeSet,
    env,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use weir_bench::{
    Spread,
    dns::{
        Case, Forwarded, Kind, Server,
        checker::{Checked, Checker},
        perf::{Run, Seen},
        queries,
        upstream::{Mood, Upstream},
        weir,
    },
    machine,
};
use weir_tests::interrupt;

const USAGE: &str = "weir-bench-dns [--names N] [--rate QUERIES] [--rounds N] [--seconds N] \
                     [--parts cases,fast,trouble,swap,memory]";
const PARTS: [&str; 5] = ["cases", "fast", "trouble", "swap", "memory"];
/// The rate of the goal for the 99th percentile.
const FAST: u32 = 50_000;
/// Local names a second, and others, while something else is wrong.
const LOCAL: u32 = 10_000;
const FOREIGN: u32 = 200;
/// Names for the memory.
const LARGE: usize = 100_000;
/// Between two swaps.
const SWAP: Duration = Duration::from_millis(100);
const FIRST_PORT: u16 = 5301;

struct Options {
    names: usize,
    rate: u32,
    rounds: usize,
    time: Duration,
    parts: BTreeSet<String>,
}

/// The servers, and all they need.
struct Bench {
    options: Options,
    files: tempfile::TempDir,
    upstream: Upstream,
    servers: Vec<Server>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [word, port, names, upstream] = arguments.as_slice()
        && word == "serve"
    {
        return weir::serve(port.parse()?, names.parse()?, upstream.parse()?);
    }
    let options = options(&arguments)?;
    // Servers and files are removed in order: each measurement is brought to its end.
    interrupt::install()?;
    println!("{}\n", machine::describe());
    let bench = Bench::start(options)?;
    for (part, run) in [
        ("cases", Bench::cases as fn(&Bench) -> Result<()>),
        ("fast", Bench::fast),
        ("trouble", Bench::trouble),
        ("swap", Bench::swap),
        ("memory", Bench::memory),
    ] {
        if bench.options.parts.contains(part) {
            run(&bench)?;
        }
    }
    println!("\nload average at the end {}", machine::load_average());
    Ok(())
}

fn options(arguments: &[String]) -> Result<Options> {
    let parts = PARTS.map(str::to_owned).into();
    let mut options =
        Options { names: 1000, rate: 20_000, rounds: 5, time: Duration::from_secs(3), parts };
    for pair in arguments.chunks(2) {
        let [key, value] = pair else { bail!("{USAGE}") };
        let number = || value.parse::<u32>().context(USAGE);
        match key.as_str() {
            "--names" => options.names = usize::try_from(number()?)?,
            "--rate" => options.rate = number()?,
            "--rounds" => options.rounds = usize::try_from(number()?)?,
            "--seconds" => options.time = Duration::from_secs(number()?.into()),
            "--parts" => options.parts = value.split(',').map(str::to_owned).collect(),
            _ => bail!("{USAGE}"),
        }
    }
    let known = options.parts.iter().all(|part| PARTS.contains(&part.as_str()));
    ensure!(known && options.rounds > 0 && options.names > 0, "{USAGE}");
    Ok(options)
}

impl Bench {
    fn start(options: Options) -> Result<Self> {
        let files = tempfile::tempdir()?;
        queries(files.path(), options.names)?;
        let upstream = Upstream::start()?;
        let servers = Kind::ALL.into_iter().zip(FIRST_PORT..).map(|(kind, port)| {
            Server::start(kind, port, options.names, upstream.address, files.path())
        });
        let servers = servers.collect::<Result<_>>()?;
        Ok(Self { options, files, upstream, servers })
    }

    fn run(&self, case: Case, rate: Option<u32>) -> Run<'_> {
        Run { case, rate, time: self.options.time, files: self.files.path() }
    }

    /// Every round begins with another server; ratios are of figures of the same round.
    fn rounds<T>(
        &self,
        servers: &[&Server],
        measure: impl Fn(&Server) -> Result<T>,
    ) -> Result<Vec<Vec<T>>> {
        let mut all: Vec<Vec<T>> = servers.iter().map(|_| Vec::new()).collect();
        for round in 0..self.options.rounds {
            for step in 0..servers.len() {
                let at = (round + step) % servers.len();
                all[at].push(measure(servers[at])?);
            }
        }
        Ok(all)
    }

    /// What is asked in many ways, without a limit and at a fixed rate.
    fn cases(&self) -> Result<()> {
        for case in Case::ALL {
            let forwarded = case.forwarded != Forwarded::No;
            let servers: Vec<&Server> =
                self.servers.iter().filter(|server| !forwarded || server.kind.forwards()).collect();
            // What asks others for each name is slower by far.
            let rate = match case.forwarded {
                Forwarded::Always => self.options.rate / 10,
                _ => self.options.rate,
            };
            if case.forwarded == Forwarded::Cached {
                for server in &servers {
                    self.run(*case, Some(rate)).on(server)?;
                }
            }
            let all = self.rounds(&servers, |server| {
                Ok([self.run(*case, None).on(server)?, self.run(*case, Some(rate)).on(server)?])
            })?;
            println!("\n{} (fixed rate: {rate} queries a second)\n", case.title);
            println!(
                "| | most queries/s | us CPU, then | us CPU at the rate | x weir's [min..max] | p50, us | p99, us | lost, % | wrong, % |"
            );
            println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
            for (server, figures) in servers.iter().zip(&all) {
                let of = |at: usize, figure: fn(&Seen) -> f64| {
                    Spread::of(figures.iter().map(|pair| figure(&pair[at])).collect()).median
                };
                let rounds = figures.iter().zip(&all[0]);
                let ratio =
                    Spread::of(rounds.map(|(own, ours)| own[1].cpu / ours[1].cpu).collect());
                println!(
                    "| {} | {:.0} | {:.2} | {:.2} | {ratio:.2} | {:.0} | {:.0} | {:.3} | {:.3} |",
                    server.kind.as_str(),
                    of(0, |seen| seen.rate),
                    of(0, |seen| seen.cpu),
                    of(1, |seen| seen.cpu),
                    of(1, |seen| seen.p50),
                    of(1, |seen| seen.p99),
                    worst(figures.iter().flatten().map(|seen| seen.lost)),
                    worst(figures.iter().flatten().map(|seen| seen.wrong)),
                );
            }
        }
        Ok(())
    }

    /// The goal for the 99th percentile.
    fn fast(&self) -> Result<()> {
        let servers: Vec<&Server> = self.servers.iter().collect();
        let all = self.rounds(&servers, |server| self.run(Case::THERE, Some(FAST)).on(server))?;
        println!("\nnames that are there, {FAST} queries a second\n");
        println!("| | queries/s | us CPU | p50, us | p99, us [min..max] | lost, % | wrong, % |");
        println!("|---|---:|---:|---:|---:|---:|---:|");
        for (server, figures) in servers.iter().zip(&all) {
            let of = |figure: fn(&Seen) -> f64| Spread::of(figures.iter().map(figure).collect());
            println!(
                "| {} | {:.0} | {:.2} | {:.0} | {:.0} | {:.3} | {:.3} |",
                server.kind.as_str(),
                of(|seen| seen.rate).median,
                of(|seen| seen.cpu).median,
                of(|seen| seen.p50).median,
                of(|seen| seen.p99),
                worst(figures.iter().map(|seen| seen.lost)),
                worst(figures.iter().map(|seen| seen.wrong)),
            );
        }
        Ok(())
    }

    /// Local names while the server that is asked for others is prompt, late, silent, or both by turns.
    fn trouble(&self) -> Result<()> {
        println!("\n{LOCAL} local names a second beside {FOREIGN} others\n");
        println!(
            "| | upstream | p50, us | p99, us [min..max] | lost, % | wrong, % | longest of the checker, ms | its wrong and lost |"
        );
        println!("|---|---|---:|---:|---:|---:|---:|---|");
        let servers: Vec<&Server> =
            self.servers.iter().filter(|server| server.kind.forwards()).collect();
        for mood in Mood::ALL {
            self.upstream.set(mood);
            let all =
                self.rounds(&servers, |server| self.beside(server, || self.foreign(server)))?;
            for (server, figures) in servers.iter().zip(&all) {
                report(&format!("{} | {}", server.kind.as_str(), mood.as_str()), figures);
            }
        }
        self.upstream.set(Mood::Prompt);
        Ok(())
    }

    /// Local names while their zone is swapped ten times a second.
    fn swap(&self) -> Result<()> {
        println!(
            "\n{LOCAL} local names a second while the names are read anew ten times a second\n"
        );
        println!(
            "| | | p50, us | p99, us [min..max] | lost, % | wrong, % | longest of the checker, ms | its wrong and lost |"
        );
        println!("|---|---|---:|---:|---:|---:|---:|---|");
        let servers: Vec<&Server> = self.servers.iter().collect();
        for (title, swaps) in [("left alone", false), ("swapped", true)] {
            let all = self.rounds(&servers, |server| {
                let ended = AtomicBool::new(false);
                thread::scope(|scope| {
                    let changes = scope.spawn(|| -> Result<()> {
                        while swaps && !ended.load(Relaxed) {
                            server.reload()?;
                            thread::sleep(SWAP);
                        }
                        Ok(())
                    });
                    let seen = self.beside(server, || Ok(()));
                    ended.store(true, Relaxed);
                    changes.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
                    seen
                })
            })?;
            for (server, figures) in servers.iter().zip(&all) {
                report(&format!("{} | {title}", server.kind.as_str()), figures);
            }
        }
        Ok(())
    }

    /// Local names beside something else, every answer read by the checker.
    fn beside(
        &self,
        server: &Server,
        other: impl FnOnce() -> Result<()> + Send,
    ) -> Result<(Seen, Checked)> {
        let checker = Checker::start(server.port, self.options.names)?;
        let seen = thread::scope(|scope| {
            let other = scope.spawn(other);
            let seen = self.run(Case::THERE, Some(LOCAL)).on(server);
            other.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            seen
        })?;
        Ok((seen, checker.end()?))
    }

    fn foreign(&self, server: &Server) -> Result<()> {
        let case = Case { forwarded: Forwarded::Always, ..Case::THERE };
        self.run(case, Some(FOREIGN)).on(server).map(drop)
    }

    /// Memory with few and with many names, and how long a start takes.
    fn memory(&self) -> Result<()> {
        println!("\nmemory\n");
        println!(
            "| | {} names, MB | {LARGE} names, MB | start with those, s |",
            self.options.names
        );
        println!("|---|---:|---:|---:|");
        for (kind, port) in Kind::ALL.into_iter().zip(FIRST_PORT + 10..) {
            let files: &Path = self.files.path();
            let start = |names| Server::start(kind, port, names, self.upstream.address, files);
            let few = start(self.options.names)?.resident()?;
            let many = start(LARGE)?;
            println!(
                "| {} | {:.1} | {:.1} | {:.2} |",
                kind.as_str(),
                few / 1e6,
                many.resident()? / 1e6,
                many.started.as_secs_f64()
            );
        }
        Ok(())
    }
}

fn report(title: &str, figures: &[(Seen, Checked)]) {
    let of = |figure: fn(&Seen) -> f64| {
        Spread::of(figures.iter().map(|(seen, _)| figure(seen)).collect())
    };
    let sum = |count: fn(&Checked) -> usize| -> usize {
        figures.iter().map(|(_, checked)| count(checked)).sum()
    };
    let first = figures.iter().find_map(|(_, checked)| checked.first.as_deref());
    println!(
        "| {title} | {:.0} | {:.0} | {:.3} | {:.3} | {:.1} | {} and {} of {}{} |",
        of(|seen| seen.p50).median,
        of(|seen| seen.p99),
        worst(figures.iter().map(|(seen, _)| seen.lost)),
        worst(figures.iter().map(|(seen, _)| seen.wrong)),
        worst(figures.iter().map(|(_, checked)| checked.longest)) / 1e3,
        sum(|checked| checked.wrong),
        sum(|checked| checked.lost),
        sum(|checked| checked.asked),
        first.map_or_else(String::new, |first| format!(" ({first})")),
    );
}

fn worst(figures: impl Iterator<Item = f64>) -> f64 {
    figures.fold(0.0, f64::max)
}
