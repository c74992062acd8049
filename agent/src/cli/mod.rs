//! The command line. Exit codes: 0 all is well, 1 degraded, 2 failed.

mod bugreport;
mod ca;
mod check;
mod client;
mod config_check;
mod dns;
mod drain;
mod flows;
mod ipvsadm;
mod lifecycle;
mod monitor;
mod pages;
mod schema;
mod services;
mod show;
mod state_diff;
mod table;
mod tasks;
mod top;
mod trace;
mod upgrade;
mod watch;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use watch::WatchArgs;

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
    #[command(
        after_help = "Examples:\n  weir status\n  weir status --watch\n  weir status --wait 30s \
                            && deploy"
    )]
    Status {
        #[command(flatten)]
        agent: AgentArgs,
        #[command(flatten)]
        watch: WatchArgs,
        /// Wait until all is well, at most this long
        #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "watch")]
        wait: Option<Duration>,
    },
    /// List services, ports and tasks, in the manner of ipvsadm -Ln
    #[command(
        after_help = "Examples:\n  weir services\n  weir services web --stats\n  weir services \
                            --rate --watch\n  weir services -o ipvsadm"
    )]
    Services(services::ServicesArgs),
    /// Show services and tasks with live rates, the busiest first
    ///
    /// Keys: up and down (or k and j) move, PageUp and PageDown by ten; s sorts by connections, bytes or
    /// name; t hides tasks and shows them again; / filters by names of services, tasks and nodes (Enter
    /// keeps the filter, Esc ends it); p pauses; q ends.
    #[command(after_help = "Examples:\n  weir top\n  weir top --every 5s")]
    Top(top::TopArgs),
    /// List tasks, how they stand with this node, and why
    ///
    /// Ends with 1 when a task that is to take new flows does not.
    #[command(
        after_help = "Examples:\n  weir tasks\n  weir tasks web --watch\n  weir tasks --node n2"
    )]
    Tasks(tasks::TasksArgs),
    /// List the nodes of the mesh
    #[command(after_help = "Examples:\n  weir nodes\n  weir nodes --watch=5s")]
    Nodes {
        #[command(flatten)]
        agent: AgentArgs,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Say what this node would do with a flow, and why, without sending anything
    ///
    /// Which service, which task, by which way, and whether the task sees the client's address. A client
    /// that is an address of this node stands for its processes, one on a bridge of this node for its
    /// containers, any other comes in by an uplink. With the client's port the answer is exact where the
    /// service balances by it, and flows that this node remembers are found. Ends with 1 when no task
    /// gets the flow.
    #[command(after_help = "Examples:\n  weir trace 203.0.113.7 10.0.0.1:80\n  weir trace \
                      203.0.113.7:40000 10.0.0.1:53/udp\n  weir trace localhost localhost:80\n  weir \
                      trace fd00::7 [fd00::1]:80")]
    Trace(trace::TraceArgs),
    /// List flows of this node, or end them
    ///
    /// Those that clients entered this node with, and those of other nodes with a task here. At most
    /// --limit of them, in no order.
    #[command(
        after_help = "Examples:\n  weir flows --service web\n  weir flows --client 10.0.0.0/8 --state \
                      established\n  weir flows --backend web.1 --limit 1000 -o json\n  weir flows kill \
                      --client 10.0.0.7"
    )]
    Flows(flows::FlowsArgs),
    /// Follow what happens on this node: drops by reason, new flows by port, changes of tasks
    ///
    /// Made of counters that are read again and again: it says how many packets met which end, not
    /// which packets they were. weir trace says what becomes of a flow, weir flows lists them.
    #[command(
        after_help = "Examples:\n  weir monitor\n  weir monitor --dropped\n  weir monitor --service web \
                      --for 30s -o json"
    )]
    Monitor(monitor::MonitorArgs),
    /// Give a task, or all tasks of this node, no new flows
    #[command(subcommand)]
    Drain(drain::DrainCommand),
    /// Take a drain back
    #[command(subcommand)]
    Undrain(drain::UndrainCommand),
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
    /// Look at the state of the kernel, and compare this agent's view with others
    #[command(subcommand)]
    State(StateCommand),
    /// Put what tells how this node is into one file, with keys and passwords masked
    ///
    /// Of the agent, as far as it answers: its status, services, tasks, nodes, drops, names, what the
    /// kernel's maps hold, metrics; the configuration, what weir check says, the kernel, the host, and the
    /// end of the log. Private keys, tokens and passwords are masked. Ends with 1 when something is missing.
    #[command(
        after_help = "Examples:\n  weir bugreport\n  weir bugreport --out /tmp/report.tar --log \
                      /var/log/weir.log && tar -tf /tmp/report.tar"
    )]
    Bugreport(bugreport::BugreportArgs),
    /// Print the JSON schema of what a command prints with -o json
    #[command(
        after_help = "Examples:\n  weir schema\n  weir schema status\n  weir schema flows kill"
    )]
    Schema(schema::SchemaArgs),
    /// Print what completes commands in a shell
    #[command(
        after_help = "Examples:\n  weir completion bash > /usr/share/bash-completion/completions/weir\n  \
                      weir completion zsh > \"${fpath[1]}/_weir\"\n  weir completion fish > \
                      ~/.config/fish/completions/weir.fish"
    )]
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Write the man pages of all commands
    #[command(
        after_help = "Example:\n  weir man --dir /usr/local/share/man/man1 && man weir-trace"
    )]
    Man {
        /// Where to; it is made if it is not there
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Print the version, the commit and the kernel object of this program
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
    /// Show where somebody else's view of services and tasks is not this agent's
    ///
    /// Only what is still so two seconds later: a change is seen by one before the other. Ends with 1 when
    /// there is a difference.
    #[command(after_help = "Example:\n  weir state diff --against docker")]
    Diff(state_diff::StateDiffArgs),
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
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct SocketArgs {
    /// The admin socket of the agent [default: from /etc/weir/weir.toml, or /run/weir/weir.sock]
    #[arg(long, value_name = "PATH", env = "WEIR_SOCKET_PATH", hide_env_values = true)]
    socket: Option<PathBuf>,
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
            Command::Status { agent, watch, wait } => show::status(&agent, &watch, wait),
            Command::Services(args) => services::services(&args),
            Command::Tasks(args) => tasks::tasks(&args),
            Command::Top(args) => top::top(&args),
            Command::Trace(args) => trace::trace(&args),
            Command::Monitor(args) => monitor::monitor(&args),
            Command::Drain(command) => drain::drain(&command),
            Command::Undrain(command) => drain::undrain(&command),
            Command::Flows(args) => flows::flows(&args),
            Command::Nodes { agent, watch } => show::nodes(&agent, &watch),
            Command::Check { config, output } => check::host(&config, &output),
            Command::Ca(command) => ca::run(command),
            Command::Config(ConfigCommand::Check { file, kind, output }) => {
                config_check::file(&file, kind, &output)
            }
            Command::Uninstall { config, output } => lifecycle::uninstall(&config, &output),
            Command::Dns(command) => dns::run(command),
            Command::State(StateCommand::Dump(agent)) => show::dump(&agent),
            Command::State(StateCommand::Diff(args)) => state_diff::diff(&args),
            Command::Bugreport(args) => bugreport::bugreport(&args),
            Command::Schema(args) => schema::schema(&args),
            Command::Completion { shell } => pages::completion(shell),
            Command::Man { dir } => pages::manual(&dir),
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
