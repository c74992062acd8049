//! `weir status`, `nodes`, `state dump`, `version`: what the agent says, as tables.

use std::{
    thread,
    time::{Duration, Instant},
};

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    AgentArgs, Failed, Format, OutputArgs, client,
    services::NO_SNAPSHOT,
    table::{Table, mark, print, print_json},
    watch::{Shown, WatchArgs},
};
use crate::{
    api::{Nodes, StateDump, Status},
    health::Condition,
    version::{self, COMMIT, VERSION},
};

pub(super) fn status(
    agent: &AgentArgs,
    watch: &WatchArgs,
    wait: Option<Duration>,
) -> Result<Condition, Failed> {
    if wait.is_none() {
        return watch.show(|| {
            let status = client::get(&agent.socket, "/api/v1/status")?;
            shown_status(agent, watch.is_on(), &status)
        });
    }
    let deadline = wait.map(|wait| Instant::now() + wait);
    let waiting = |at: Instant| deadline.is_some_and(|deadline| at < deadline);
    let status: Status = loop {
        match client::get::<Status>(&agent.socket, "/api/v1/status") {
            Ok(status) if status.condition == Condition::Ok => break status,
            Ok(status) if !waiting(Instant::now()) => break status,
            Err(failed) if !waiting(Instant::now()) => return Err(failed),
            _ => thread::sleep(Duration::from_millis(100)),
        }
    };
    shown_status(agent, false, &status)?.print()
}

fn shown_status(agent: &AgentArgs, compact: bool, status: &Status) -> Result<Shown, Failed> {
    Shown::new(&agent.output, compact, status, status.condition, || status_text(status))
}

fn status_text(status: &Status) -> String {
    let mut text = format!(
        "{} ({}), weir {}, pid {}, up {}\n",
        status.node,
        status.address,
        status.version,
        status.pid,
        uptime(status.uptime_seconds)
    );
    let mut table = Table::default();
    for subsystem in &status.subsystems {
        table.row([&mark(subsystem.condition), &subsystem.name, &subsystem.reason]);
        if !subsystem.hint.is_empty() {
            table.row(["", "", &format!("-> {}", subsystem.hint)]);
        }
    }
    text.push_str(&table.text());
    text
}

fn uptime(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

pub(super) fn nodes(agent: &AgentArgs, watch: &WatchArgs) -> Result<Condition, Failed> {
    watch.show(|| {
        let answer: Nodes = client::get(&agent.socket, "/api/v1/nodes")?;
        Shown::new(&agent.output, watch.is_on(), &answer, Condition::Ok, || nodes_text(&answer))
    })
}

fn nodes_text(answer: &Nodes) -> String {
    if answer.generation.is_none() {
        return NO_SNAPSHOT.to_owned();
    }
    let mut table = Table::default();
    table.row(["Node", "Address", "Tasks", "State"]);
    for node in &answer.nodes {
        let (address, tasks) = (node.address.to_string(), node.tasks.to_string());
        let state = match (node.here, node.silent) {
            (true, _) => "this node",
            (false, true) => "silent",
            (false, false) => "",
        };
        table.row([node.name.as_str(), &address, &tasks, state]);
    }
    table.text()
}

pub(super) fn dump(agent: &AgentArgs) -> Result<Condition, Failed> {
    let answer: StateDump = client::get(&agent.socket, "/api/v1/state")?;
    if agent.output.output == Format::Json {
        print_json(&answer)?;
    } else {
        print(&answer.dump);
    }
    Ok(Condition::Ok)
}

/// `weir version -o json`
#[derive(Serialize, JsonSchema)]
pub(super) struct Version {
    /// The version of the release.
    version: &'static str,
    /// The commit that was built.
    commit: &'static str,
    /// SHA-256 of the kernel object.
    kernel_object: &'static str,
}

pub(super) fn this_version() -> Version {
    Version { version: VERSION, commit: COMMIT, kernel_object: version::kernel_object() }
}

pub(super) fn version(output: &OutputArgs) -> Result<Condition, Failed> {
    let this = this_version();
    if output.output == Format::Json {
        print_json(&this)?;
    } else {
        let Version { version, commit, kernel_object } = this;
        print(&format!("weir {version}, commit {commit}, kernel object {kernel_object}\n"));
    }
    Ok(Condition::Ok)
}
