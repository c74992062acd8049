//! DNS servers side by side in one run, on loopback, with the same names: queries per second, CPU time a
//! query at a fixed rate, memory. Each has one thread.

use std::{env, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use weir_bench::{
    dns::{Case, Figures, Server, measure, queries, serve},
    machine,
};

const USAGE: &str = "weir-bench-dns [--names N] [--rate QUERIES] [--rounds N] [--seconds N]";

struct Options {
    names: usize,
    rate: u32,
    rounds: usize,
    seconds: u64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [word, port, names] = arguments.as_slice()
        && word == "serve"
    {
        return serve(port.parse()?, names.parse()?);
    }
    let options = options(&arguments)?;
    println!("{}", machine::describe());
    println!("{} names, {} queries a second for CPU time", options.names, options.rate);
    let files = tempfile::tempdir()?;
    queries(files.path(), options.names)?;
    let mut servers = Vec::new();
    for (number, kind) in Server::KINDS.iter().enumerate() {
        let port = 5301 + u16::try_from(number)?;
        servers.push(Server::start(kind, port, options.names, files.path())?);
    }
    for case in Case::ALL {
        compare(case, &options, &mut servers, files.path())?;
    }
    for server in &servers {
        println!("{:8} {:8.1} MB resident", server.kind(), server.resident()? / 1e6);
    }
    println!("load average at the end {}", machine::load_average());
    Ok(())
}

fn options(arguments: &[String]) -> Result<Options> {
    let mut options = Options { names: 1000, rate: 20_000, rounds: 3, seconds: 3 };
    for pair in arguments.chunks(2) {
        let [key, value] = pair else { bail!("{USAGE}") };
        let value: u64 = value.parse().context(USAGE)?;
        match key.as_str() {
            "--names" => options.names = usize::try_from(value)?,
            "--rate" => options.rate = u32::try_from(value)?,
            "--rounds" => options.rounds = usize::try_from(value)?,
            "--seconds" => options.seconds = value,
            _ => bail!("{USAGE}"),
        }
    }
    Ok(options)
}

/// Every round begins with another server; ratios are of figures of the same round.
fn compare(
    case: &Case,
    options: &Options,
    servers: &mut [Server],
    files: &std::path::Path,
) -> Result<()> {
    let time = Duration::from_secs(options.seconds);
    let mut all: Vec<Vec<Figures>> = vec![Vec::new(); servers.len()];
    for round in 0..options.rounds {
        for step in 0..servers.len() {
            let at = (round + step) % servers.len();
            all[at].push(measure(&servers[at], case, options.rate, time, files)?);
        }
    }
    println!("{}", case.title);
    println!(
        "         {:>10} {:>12} {:>9} {:>14} {:>13}",
        "queries/s", "us CPU/query", "lost", "CPU to weir's", "rate to weir's"
    );
    for (server, figures) in servers.iter().zip(&all) {
        let ratio = |of: fn(&Figures) -> f64| {
            let rounds = figures.iter().zip(&all[0]);
            median(rounds.map(|(own, ours)| of(own) / of(ours)).collect())
        };
        let middle = |of: fn(&Figures) -> f64| median(figures.iter().map(of).collect());
        println!(
            "{:8} {:>10.0} {:>12.2} {:>8.2}% {:>14.2} {:>13.2}",
            server.kind(),
            middle(|one| one.most),
            middle(|one| one.cpu),
            middle(|one| one.lost),
            ratio(|one| one.cpu),
            ratio(|one| one.most),
        );
    }
    ensure!(!all[0].is_empty(), "no rounds");
    Ok(())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
