//! What runs in the lab's tasks: servers that say who they are, and bulk transfers.

mod bulk;
mod echo;
mod http;
mod image;
mod listen;
mod refusing;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use weir_tests::Probe;

/// Servers for the lab's tasks.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, Subcommand)]
enum Program {
    /// HTTP/1.1: answers `NAME CLIENT`. Paths: /, /slow/MS, /bytes/N
    Http {
        #[command(flatten)]
        server: Server,
    },
    /// TCP and UDP echo on one port
    Echo {
        #[command(flatten)]
        server: Server,
        /// Put `NAME CLIENT` before each UDP answer
        #[arg(long)]
        say_name: bool,
    },
    /// What a container of the lab's images does: HTTP at port 80, echo at port 53
    Serve(image::Serve),
    /// The health check of such a container
    Health,
    /// Make the health check of this container fail
    Sick,
    /// End that
    Well,
    /// Ask services over sockets, and print what was seen
    Probe {
        /// A JSON list of probes
        probes: String,
    },
    /// Run a command for which the kernel refuses eBPF programs
    RefusePrograms {
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Wait until standard input ends, then remove what is left of the process that started this
    Sweep,
    /// Receive bulk data, check every byte, report the count
    Sink(bulk::Peer),
    /// Send bulk data
    Source {
        #[command(flatten)]
        peer: bulk::Peer,
        /// How many megabytes (10^6)
        #[arg(long, default_value_t = 100)]
        mb: u64,
    },
}

#[derive(Debug, Clone, Args)]
struct Server {
    /// What it calls itself
    #[arg(long)]
    name: String,
    /// The port, on all addresses of both families
    #[arg(long)]
    listen: u16,
    /// What to do on SIGTERM
    #[arg(long, value_enum, default_value_t = OnTerm::Exit)]
    on_term: OnTerm,
    /// For how many milliseconds it goes on taking connections and datagrams after SIGTERM
    #[arg(long, default_value_t = 0)]
    linger: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnTerm {
    /// End at once
    Exit,
    /// Take no new connections, answer open requests, then end
    Finish,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Cli::parse().program {
        Program::Http { server } => http::serve(server).await,
        Program::Echo { server, say_name } => echo::serve(server, say_name).await,
        Program::Serve(settings) => image::serve(settings).await,
        Program::Health => image::health(),
        Program::Sick => image::set_sick(true),
        Program::Well => image::set_sick(false),
        Program::Probe { probes } => probe(&probes),
        Program::RefusePrograms { command } => refusing::run(&command),
        Program::Sweep => weir_tests::sweeper::wait_and_sweep(),
        Program::Sink(peer) => bulk::sink(&peer),
        Program::Source { peer, mb } => bulk::source(&peer, mb * 1_000_000),
    }
}

fn probe(probes: &str) -> Result<()> {
    let probes: Vec<Probe> = serde_json::from_str(probes)?;
    let seen: Vec<_> = probes.iter().flat_map(Probe::ask_all).collect();
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}
