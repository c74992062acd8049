//! Makes of a lab host a machine of its own, as far as dockerd can tell.
//!
//! `init` is the first process of such a machine: it makes the namespaces, mounts what a host has,
//! and reaps what is left to it. When it ends, for whatever reason, the kernel kills everything in
//! the machine and frees the mounts: nothing can be forgotten. `exec` runs a program in one.

mod exec;
mod init;
mod mounts;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// A machine of its own for dockerd, in namespaces.
#[derive(Debug, Parser)]
enum Cli {
    /// Be the first process of a new machine, until killed. The network namespace and the cgroup
    /// are the caller's
    Init {
        /// The host name
        #[arg(long)]
        name: String,
        /// Where to write our process id once all is mounted
        #[arg(long)]
        ready: PathBuf,
    },
    /// Run a program in the machine of this process
    Exec {
        /// The first process of the machine
        pid: i32,
        /// The program with its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let result: Result<ExitCode> = match Cli::parse() {
        Cli::Init { name, ready } => init::run(&name, &ready),
        Cli::Exec { pid, command } => exec::run(pid, &command),
    };
    result.unwrap_or_else(|error| {
        eprintln!("weir-lab-node: {error:#}");
        ExitCode::from(125)
    })
}
