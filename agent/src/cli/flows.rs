//! `weir flows`, `weir flows kill`: single flows of this node.

use clap::{Args, Subcommand};

use super::{AgentArgs, Failed, Format, client, table::Table, watch::Shown};
use crate::{
    api::{Flows, Killed},
    health::Condition,
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct FlowsArgs {
    #[command(subcommand)]
    command: Option<FlowsCommand>,
    #[command(flatten)]
    filter: FilterArgs,
    /// List at most so many (up to 10000)
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    agent: AgentArgs,
}

#[derive(Debug, Subcommand)]
enum FlowsCommand {
    /// End flows that clients entered this node with
    ///
    /// The flow is forgotten. A TCP client is reset at its next packet, the next datagram of a UDP
    /// client begins a new flow. A service that balances by a hash (maglev, source) gives a client that
    /// goes on the same task again: drain the task first (weir drain task). Connections of this node's
    /// own processes to a task of this node are not in the tables and cannot be ended here.
    #[command(
        after_help = "Examples:\n  weir flows kill --client 10.0.0.7\n  weir flows kill --backend web.1 \
                      --state established\n  weir flows kill --all"
    )]
    Kill {
        #[command(flatten)]
        filter: FilterArgs,
        /// All flows of this node
        #[arg(long)]
        all: bool,
        /// End at most so many (up to 10000)
        #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
        limit: u32,
        #[command(flatten)]
        agent: AgentArgs,
    },
}

/// Which flows.
#[derive(Debug, Args)]
struct FilterArgs {
    /// Of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Of this client: an address, a range (10.0.0.0/8), or an address with a port
    #[arg(long, value_name = "ADDRESS")]
    client: Option<String>,
    /// With this task
    #[arg(long, value_name = "TASK")]
    backend: Option<String>,
    /// In this state: syn, established, closing, closed, reset, one-way or both-ways
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
}

impl FilterArgs {
    fn query(&self) -> Result<String, Failed> {
        let Self { service, client, backend, state } = self;
        let parts =
            [("service", service), ("client", client), ("backend", backend), ("state", state)];
        let parts = parts.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        parts.map(|(key, text)| client::value(key, text)).collect()
    }
}

pub(super) fn flows(args: &FlowsArgs) -> Result<Condition, Failed> {
    match &args.command {
        None => list(args),
        Some(FlowsCommand::Kill { filter, all, limit, agent }) => kill(filter, *all, *limit, agent),
    }
}

fn list(args: &FlowsArgs) -> Result<Condition, Failed> {
    let path = format!("/api/v1/flows?limit={}{}", args.limit, args.filter.query()?);
    let answer: Flows = client::get(&args.agent.socket, &path)?;
    let shown =
        Shown::new(&args.agent.output, false, &answer, Condition::Ok, || text(&answer))?.print();
    // JSON says so itself.
    if answer.more && args.agent.output.output == Format::Table {
        eprintln!("weir: there are more; --limit shows up to 10000, filters show fewer");
    }
    shown
}

fn text(answer: &Flows) -> String {
    let mut table = Table::default();
    table.row(["Prot", "Client", "Asked", "Service", "Task", "Node", "Silent", "In by", "State"]);
    let name = |name: Option<&str>| name.unwrap_or("gone").to_owned();
    for flow in &answer.flows {
        let silent = format!("{} s", flow.silent_ms / 1000);
        let (client, asked) = (flow.client.to_string(), flow.asked.to_string());
        let task = name(flow.task.as_ref().map(|task| task.as_str()));
        let service = name(flow.service.as_ref().map(|service| service.as_str()));
        let node = flow.node.as_ref().map_or("", |node| node.as_str());
        let entered = flow.entered.as_ref().map_or("here", |node| node.as_str());
        let protocol = flow.protocol.to_string();
        let row = [&protocol, &client, &asked, &service, &task, node, &silent, entered];
        let [a, b, c, d, e, f, g, h] = row;
        table.row([a, b, c, d, e, f, g, h, flow.state.as_str()]);
    }
    table.text()
}

fn kill(
    filter: &FilterArgs,
    all: bool,
    limit: u32,
    agent: &AgentArgs,
) -> Result<Condition, Failed> {
    let path = format!("/api/v1/flows/kill?all={all}&limit={limit}{}", filter.query()?);
    let killed: Killed = client::post(&agent.socket, &path)?;
    Shown::new(&agent.output, false, &killed, Condition::Ok, || killed_text(&killed))?.print()
}

fn killed_text(killed: &Killed) -> String {
    let mut text = format!("{} flows ended\n", killed.killed);
    if killed.elsewhere > 0 {
        let count = killed.elsewhere;
        text.push_str(&format!("{count} entered by other nodes: end them there (weir flows)\n"));
    }
    for service in &killed.hashed {
        text.push_str(&format!(
            "{service} balances by a hash: a TCP client that goes on keeps its task; weir drain task \
             keeps new flows off it\n"
        ));
    }
    if killed.more {
        text.push_str("there are more: run it again\n");
    }
    text
}
