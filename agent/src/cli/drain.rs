//! `weir drain`, `weir undrain`: an operator's own decisions on this node.

use clap::{Args, Subcommand};

use super::{AgentArgs, Failed, client, table::Table, watch::Shown};
use crate::{drain::Drained, health::Condition};

/// Which task.
#[derive(Debug, Args)]
pub(super) struct TaskArgs {
    /// Its name, as weir tasks and weir drain list show it
    name: String,
    /// Its service, where tasks of more than one have the name
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    #[command(flatten)]
    agent: AgentArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum DrainCommand {
    /// Give a task no new flows; its flows go on
    ///
    /// This agent decides for its own node: clients that enter here are given other tasks. Of a task of
    /// this node the other nodes are told over the cluster link, where there is one, and give it none
    /// either; where there is none, this node passes on to other tasks what they still send to it. Of a
    /// task of another node nobody else is told: drain it there. It lasts until weir undrain, over
    /// restarts of the agent. The last task of a service is drained, too.
    #[command(
        after_help = "Examples:\n  weir drain task web.1\n  weir drain task web.1 --service web\n  weir flows \
                      --backend web.1"
    )]
    Task(TaskArgs),
    /// Give the tasks of this node no new flows, and let /readyz answer 503; flows go on
    ///
    /// For a load balancer before the nodes, which then sends new clients to other nodes; those that
    /// come here all the same are served by tasks elsewhere. The reach is that of weir drain task.
    #[command(after_help = "Example:\n  weir drain node && weir status --watch")]
    Node(AgentArgs),
    /// List what is drained by hand on this node
    #[command(after_help = "Example:\n  weir drain list -o json")]
    List(AgentArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum UndrainCommand {
    /// Let a task have new flows again
    #[command(after_help = "Example:\n  weir undrain task web.1")]
    Task(TaskArgs),
    /// Let the tasks of this node have new flows again
    #[command(after_help = "Example:\n  weir undrain node && weir status --wait 30s")]
    Node(AgentArgs),
    /// Let all have new flows again that were drained on this node
    #[command(after_help = "Example:\n  weir undrain all")]
    All(AgentArgs),
}

pub(super) fn drain(command: &DrainCommand) -> Result<Condition, Failed> {
    match command {
        DrainCommand::Task(task) => act(&task.agent, &format!("/api/v1/drain?{}", task.query()?)),
        DrainCommand::Node(agent) => act(agent, "/api/v1/drain?node=true"),
        DrainCommand::List(agent) => {
            let drained: Drained = client::get(&agent.socket, "/api/v1/drained")?;
            show(agent, &drained)
        }
    }
}

pub(super) fn undrain(command: &UndrainCommand) -> Result<Condition, Failed> {
    match command {
        UndrainCommand::Task(task) => {
            act(&task.agent, &format!("/api/v1/undrain?{}", task.query()?))
        }
        UndrainCommand::Node(agent) => act(agent, "/api/v1/undrain?node=true"),
        UndrainCommand::All(agent) => act(agent, "/api/v1/undrain?all=true"),
    }
}

impl TaskArgs {
    fn query(&self) -> Result<String, Failed> {
        let service = self.service.as_ref().map(|service| client::value("service", service));
        Ok(client::value("task", &self.name)? + &service.transpose()?.unwrap_or_default())
    }
}

fn act(agent: &AgentArgs, path: &str) -> Result<Condition, Failed> {
    let drained: Drained = client::post(&agent.socket, path)?;
    show(agent, &drained)
}

fn show(agent: &AgentArgs, drained: &Drained) -> Result<Condition, Failed> {
    Shown::new(&agent.output, false, drained, Condition::Ok, || text(drained))?.print()
}

fn text(drained: &Drained) -> String {
    if drained.is_empty() {
        return "nothing is drained by hand on this node\n".to_owned();
    }
    let mut text = String::new();
    if drained.node {
        text.push_str("this node is drained: its tasks take no new flows\n");
    }
    if drained.tasks.is_empty() {
        return text;
    }
    let mut table = Table::default();
    table.row(["Drained task", "Service", "Node"]);
    for task in &drained.tasks {
        table.row([task.task.as_str(), task.service.as_str(), task.node.as_str()]);
    }
    text + &table.text()
}
