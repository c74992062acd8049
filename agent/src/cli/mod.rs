//! The command line. Exit codes: 0 all is well, 1 degraded, 2 failed.

mod ca;
mod check;
mod client;
mod config_check;
mod dns;
mod lifecycle;
mod show;
mod table;
mod upgrade;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    config::{Config, Overrides},
    document::{Fault, parse_duration},
    health::Condition,
};

/// An ingress routing mesh for Docker Swarm and plain hosts, in the kernel.
#[derive(Debug, Parser)]
#[command(name = "weir", version, about, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this node
    #[command(after_help = "Example:\n  weir agent --config /etc/weir/weir.toml")]
    Agent {
        #[command(flatten)]
        config: ConfigArgs,
        /// Go on for the agent at the other end of standard input
        #[arg(long, hide = true)]
        take_over: bool,
    },
    /// Let the program that is on disk now go on in place of the running agent
    #[command(after_help = "Example:\n  install weir /usr/local/bin/weir && weir upgrade")]
    Upgrade(AgentArgs),
    /// Show how the agent is, one line per subsystem
    #[command(after_help = "Examples:\n  weir status\n  weir status --wait 30s && deploy")]
    Status {
        #[command(flatten)]
        agent: AgentArgs,
        /// Wait until all is well, at most this long
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        wait: Option<Duration>,
    },
    /// List services, ports and tasks, in the manner of ipvsadm -Ln
    #[command(after_help = "Examples:\n  weir services\n  weir services web --stats")]
    Services {
        /// Only this service
        name: Option<String>,
        /// Show what was counted on this node
        #[arg(long)]
        stats: bool,
        #[command(flatten)]
        agent: AgentArgs,
    },
    /// List the nodes of the mesh
    #[command(after_help = "Example:\n  weir nodes")]
    Nodes(AgentArgs),
    /// Say what this host can do, and how to mend what it cannot; needs no agent
    #[command(after_help = "Example:\n  weir check --config /etc/weir/weir.toml")]
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make certificates for the link between nodes, for clusters without Swarm
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Work with configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Remove everything that weir has put into the kernel; ends forwarding
    #[command(after_help = "Example:\n  weir uninstall --config /etc/weir/weir.toml")]
    Uninstall {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Look at the DNS server of this node
    #[command(subcommand)]
    Dns(dns::DnsCommand),
    /// Look at the state of the kernel
    #[command(subcommand)]
    State(StateCommand),
    /// Print the version
    #[command(after_help = "Example:\n  weir version -o json")]
    Version(OutputArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a weir.toml or a mesh.toml and name all mistakes; needs no agent
    #[command(
        after_help = "Examples:\n  weir config check mesh.toml\n  weir config check weir.toml"
    )]
    Check {
        /// The file
        file: PathBuf,
        /// What it is, if that is not plain to see
        #[arg(long, value_enum)]
        kind: Option<FileKind>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// Print what the kernel's maps hold, one line an entry
    #[command(after_help = "Example:\n  weir state dump | grep ^PORT")]
    Dump(AgentArgs),
}

/// What a configuration file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileKind {
    /// The configuration of an agent (weir.toml)
    Agent,
    /// The desired state (mesh.toml)
    Mesh,
}

/// How an answer looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
struct OutputArgs {
    /// How the answer looks
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
struct AgentArgs {
    /// The admin socket of the agent [default: from /etc/weir/weir.toml, or /run/weir/weir.sock]
    #[arg(long, value_name = "PATH", env = "WEIR_SOCKET_PATH", hide_env_values = true)]
    socket: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration [default: /etc/weir/weir.toml, if it is there]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

/// What a command failed with, as it is printed.
type Failed = String;

impl Cli {
    /// Does what was typed.
    pub fn run(self) -> ExitCode {
        let outcome = match self.command {
            Command::Agent { config, take_over } => match lifecycle::agent(config, take_over) {
                Ok(code) => return code,
                Err(failed) => Err(failed),
            },
            Command::Upgrade(agent) => upgrade::run(&agent),
            Command::Status { agent, wait } => show::status(&agent, wait),
            Command::Services { name, stats, agent } => show::services(&agent, name, stats),
            Command::Nodes(agent) => show::nodes(&agent),
            Command::Check { config, output } => check::host(&config, &output),
            Command::Ca(command) => ca::run(command),
            Command::Config(ConfigCommand::Check { file, kind, output }) => {
                config_check::file(&file, kind, &output)
            }
            Command::Uninstall { config, output } => lifecycle::uninstall(&config, &output),
            Command::Dns(command) => dns::run(command),
            Command::State(StateCommand::Dump(agent)) => show::dump(&agent),
            Command::Version(output) => show::version(&output),
        };
        match outcome {
            Ok(condition) => ExitCode::from(exit_code(condition)),
            Err(failed) => {
                eprintln!("weir: {failed}");
                ExitCode::from(exit_code(Condition::Failed))
            }
        }
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let remedy = "write a whole number with a unit: 500ms, 30s, 5m or 2h";
    parse_duration(text).ok_or_else(|| remedy.to_owned())
}

fn exit_code(condition: Condition) -> u8 {
    match condition {
        Condition::Ok => 0,
        Condition::Degraded => 1,
        Condition::Failed => 2,
    }
}

impl ConfigArgs {
    fn load(&self) -> Result<Config, Failed> {
        Config::load(self.config.as_deref(), &self.overrides).map_err(|faults| listed(&faults))
    }
}

/// All mistakes, one a line.
fn listed(faults: &[Fault]) -> Failed {
    let mut text = match faults.len() {
        1 => "there is a mistake in the configuration:".to_owned(),
        count => format!("there are {count} mistakes in the configuration:"),
    };
    for fault in faults {
        text.push_str("\n  ");
        text.push_str(&fault.to_string());
    }
    text
}
