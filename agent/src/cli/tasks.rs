//! `weir tasks`: every task, how it stands with this node, and why.

use clap::Args;

use super::{
    AgentArgs, Failed, client,
    services::{NO_SNAPSHOT, one_service},
    table::Table,
    watch::{Shown, WatchArgs},
};
use crate::{api::Tasks, health::Condition};

#[derive(Debug, Args)]
pub(super) struct TasksArgs {
    /// Only those of this service
    service: Option<String>,
    /// Only those of this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    agent: AgentArgs,
}

pub(super) fn tasks(args: &TasksArgs) -> Result<Condition, Failed> {
    args.watch.show(|| {
        let mut answer: Tasks = client::get(&args.agent.socket, "/api/v1/tasks")?;
        if let Some(name) = &args.service {
            answer.tasks.retain(|task| task.service.as_str() == name);
            if answer.tasks.is_empty() && answer.generation.is_some() {
                // Says what there is, if there is nothing of this name.
                one_service(&args.agent.socket, name)?;
            }
        }
        if let Some(node) = &args.node {
            answer.tasks.retain(|task| task.node.as_str() == node);
        }
        let condition = answer.condition();
        Shown::new(&args.agent.output, args.watch.is_on(), &answer, condition, || text(&answer))
    })
}

fn text(answer: &Tasks) -> String {
    if answer.generation.is_none() {
        return NO_SNAPSHOT.to_owned();
    }
    let mut table = Table::default();
    table.row(["Task", "Service", "Node", "Address", "State", "Why"]);
    for task in &answer.tasks {
        let addresses: Vec<String> = task.addresses.iter().map(ToString::to_string).collect();
        let why = task.why.as_deref().unwrap_or_default();
        let (name, service) = (task.task.as_str(), task.service.as_str());
        let (node, state) = (task.node.as_str(), task.state.as_str());
        table.row([name, service, node, &addresses.join(","), state, why]);
    }
    table.text()
}
