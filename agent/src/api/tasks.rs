//! `/api/v1/tasks`: every task, how it stands with this node, and why.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_mesh::{NodeName, ServiceName, TaskName, TaskState};

use super::{PortState, ServiceView, TaskView, services};
use crate::{health::Condition, observe::Observation};

/// `/api/v1/tasks`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tasks {
    /// The snapshot that is described; `None` while there is none.
    pub generation: Option<u64>,
    /// The tasks, by service.
    pub tasks: Vec<TaskRow>,
}

/// A task, as it stands with this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskRow {
    /// Its service.
    pub service: ServiceName,
    /// Its name.
    pub task: TaskName,
    /// The node that runs it.
    pub node: NodeName,
    /// Its addresses on its node.
    pub addresses: Vec<IpAddr>,
    /// How it stands.
    pub state: Standing,
    /// Why it is not plainly active.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// Whether somebody should look at it: it is to take flows and does not.
    pub trouble: bool,
}

/// How a task stands with this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// New flows and established ones.
    Active,
    /// Established flows only.
    Draining,
    /// No flows.
    Down,
    /// It is to have flows, and nothing leads to it from here.
    Unreachable,
    /// It is to have flows, and the data plane does not know it yet.
    Absent,
}

impl Standing {
    /// The word that is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Unreachable => "unreachable",
            Self::Absent => "absent",
        }
    }
}

impl Tasks {
    /// Degraded when somebody should look at one of them.
    pub fn condition(&self) -> Condition {
        match self.tasks.iter().any(|task| task.trouble) {
            true => Condition::Degraded,
            false => Condition::Ok,
        }
    }
}

/// The tasks of all services, or of one.
pub fn tasks(now: &Observation, only: Option<&str>) -> Tasks {
    let services = services(now, only);
    let of_service =
        |service: &ServiceView| service.tasks.iter().map(|task| row(service, task)).collect();
    let tasks: Vec<Vec<TaskRow>> = services.services.iter().map(of_service).collect();
    Tasks { generation: services.generation, tasks: tasks.concat() }
}

fn row(service: &ServiceView, task: &TaskView) -> TaskRow {
    // A service without a port that this node serves is not in its data plane: it is not published, or
    // in host mode and elsewhere.
    let carried = service.ports.iter().any(|port| !matches!(port.state, PortState::Elsewhere));
    let (state, why, trouble) = standing(task, carried);
    TaskRow {
        service: service.name.clone(),
        task: task.name.clone(),
        node: task.node.clone(),
        addresses: task.addresses.clone(),
        state,
        why,
        trouble,
    }
}

/// `carried`: whether the data plane of this node is to know the task at all.
fn standing(task: &TaskView, carried: bool) -> (Standing, Option<String>, bool) {
    let said = |text: &str| Some(text.to_owned());
    let found = task.health.clone();
    let out = found.is_some();
    match (task.state, task.kernel.as_str()) {
        (TaskState::Down, _) => (Standing::Down, said("the source has it down"), false),
        (TaskState::Draining, _) => {
            (Standing::Draining, found.or_else(|| said("the source drains it")), out)
        }
        (TaskState::Active, _) if task.via.as_deref() == Some("unreachable") => {
            let why = said("no interface of this node leads to its address");
            (Standing::Unreachable, why, true)
        }
        (TaskState::Active, "active") if task.weight == 0 => {
            (Standing::Active, found.or_else(|| said("weight 0: no new flows")), out)
        }
        (TaskState::Active, "active") => (Standing::Active, found, out),
        // Counters, and this with them, are read once a second.
        (TaskState::Active, "draining") => {
            (Standing::Draining, found.or_else(|| said("about to take new flows again")), out)
        }
        (TaskState::Active, _) if !carried => (Standing::Active, found, out),
        (TaskState::Active, kernel) => {
            let why = format!("the data plane has it as {kernel}: weir status says why");
            (Standing::Absent, found.or(Some(why)), true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::CountersView;

    fn task(state: TaskState, kernel: &str, via: &str, health: Option<&str>) -> TaskView {
        TaskView {
            name: TaskName::new("web.1"),
            node: NodeName::new("n1"),
            addresses: Vec::new(),
            weight: 1,
            state,
            health: health.map(str::to_owned),
            kernel: kernel.to_owned(),
            via: Some(via.to_owned()),
            active: 0,
            counters: CountersView::default(),
        }
    }

    #[test]
    fn a_task_that_takes_no_new_flows_says_why_and_whether_that_is_trouble() {
        use TaskState::{Active, Down, Draining};
        for (task, state, why, trouble) in [
            (task(Active, "active", "peer", None), Standing::Active, "", false),
            (task(Down, "absent", "peer", None), Standing::Down, "the source has it down", false),
            (
                task(Draining, "draining", "peer", None),
                Standing::Draining,
                "the source drains it",
                false,
            ),
            (
                task(Draining, "draining", "peer", Some("health: refused")),
                Standing::Draining,
                "health: refused",
                true,
            ),
            (
                task(Active, "active", "unreachable", None),
                Standing::Unreachable,
                "no interface of this node leads to its address",
                true,
            ),
            (
                task(Active, "absent", "tunnel", None),
                Standing::Absent,
                "the data plane has it as absent: weir status says why",
                true,
            ),
        ] {
            let expected = (state, Some(why.to_owned()).filter(|why| !why.is_empty()), trouble);
            assert_eq!(standing(&task, true), expected, "{task:?}");
        }
        let idle = TaskView { weight: 0, ..self::task(Active, "active", "peer", None) };
        assert_eq!(standing(&idle, true).1.unwrap(), "weight 0: no new flows");
        // Of a service that is not published nothing is missing in the data plane.
        let inside = self::task(Active, "absent", "tunnel", None);
        assert_eq!(standing(&inside, false), (Standing::Active, None, false));
    }
}
