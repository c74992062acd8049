//! `weir-lab`: a mesh of three hosts on this machine, to look at or (`--check`) to be checked.

mod check;
mod demo;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use weir_tests::interrupt;

use demo::Demo;

/// Three hosts, a client, two services and weir, in network namespaces of this machine.
#[derive(Debug, Parser)]
struct Cli {
    /// Make the requests, say ok or FAILED for each, and exit with 0 or 1
    #[arg(long)]
    check: bool,
    /// The data plane: auto, ebpf or proxy
    #[arg(long, default_value = "auto")]
    mode: String,
    /// Put Docker's netfilter rules on the hosts (needs iptables)
    #[arg(long)]
    docker_firewall: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    interrupt::install()?;
    let mut demo = Demo::build(cli)?;
    let all_well = match demo.start() {
        Ok(()) if cli.check => check::run(&mut demo),
        Ok(()) => watch::run(&demo).map(|()| true),
        Err(error) => Err(error),
    };
    if !matches!(all_well, Ok(true)) && !interrupt::asked() {
        demo.print_agent_logs();
    }
    match (all_well, demo.finish()) {
        (Ok(true), Ok(())) => Ok(ExitCode::SUCCESS),
        (Ok(false), Ok(())) => Ok(ExitCode::FAILURE),
        (Ok(_), Err(left)) => Err(left),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => Err(error.context(format!("{left:#}\nbefore that"))),
    }
}
