//! `weir`: the agent of a node, and the command line to look at it.

use std::process::ExitCode;

use clap::Parser;
use weir::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
