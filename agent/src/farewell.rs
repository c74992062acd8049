//! The end of an agent on a node that is being drained. Swarm ends its tasks together with the agent,
//! and afterwards nobody would tell this node's kernel, or other nodes, that they are gone.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};
use tracing::info;
use weir_mesh::{Generation, MeshSnapshot, NodeName, TaskState};

use crate::{reconciler::ReconcileReport, snapshots::View};

/// Docker kills a container 10 s after it told it to end.
const PATIENCE: Duration = Duration::from_secs(8);

/// Swarm tells an agent and the tasks beside it to end in any order.
const ORDER: Duration = Duration::from_millis(500);

/// What the tasks of this node are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tasks {
    /// Some go on: the agent alone is to end.
    Stay,
    /// All that are left are ending.
    Leave,
    /// None is left.
    Gone,
}

/// Waits until the tasks of this node that are ending have ended, and the kernel knows. Returns after half a
/// second while any of them goes on.
pub async fn wait(
    mut view: watch::Receiver<View>,
    mut report: watch::Receiver<ReconcileReport>,
    node: &NodeName,
) {
    let look = |view: &View| {
        let snapshot = view.snapshot.as_ref()?;
        Some((tasks(snapshot, node), snapshot.generation))
    };
    let stays = |view: &View| look(view).is_some_and(|(tasks, _)| tasks == Tasks::Stay);
    timeout(ORDER, view.wait_for(|view| !stays(view))).await.ok();
    if look(&view.borrow()).is_none_or(|(tasks, _)| tasks != Tasks::Leave) {
        return;
    }
    info!("all tasks of this node are ending, and the agent stays until they have");
    let ended = async {
        let left = view.wait_for(|view| look(view).is_none_or(|(tasks, _)| tasks != Tasks::Leave));
        let last: Option<Generation> = left.await.ok().and_then(|view| Some(look(&view)?.1));
        // Gone already is as good.
        report.wait_for(|report| report.generation >= last).await.ok();
    };
    // Whoever takes longer is killed together with the agent.
    timeout(PATIENCE, ended).await.ok();
}

fn tasks(snapshot: &MeshSnapshot, node: &NodeName) -> Tasks {
    let here = snapshot.here.as_ref().unwrap_or(node);
    let tasks = snapshot.services.values().flat_map(|service| &service.tasks);
    // The agent itself has no address: it is in the host's network.
    let own = tasks.filter(|task| task.node == *here && task.addresses().next().is_some());
    own.fold(Tasks::Gone, |all, task| match (all, task.state) {
        (Tasks::Stay, _) | (_, TaskState::Active) => Tasks::Stay,
        (_, TaskState::Draining) => Tasks::Leave,
        (all, TaskState::Down) => all,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use weir_mesh::{Service, ServiceName, Task, TaskName};

    use super::*;

    fn view(generation: u64, states: &[TaskState]) -> View {
        let task = |(number, state): (usize, &TaskState)| Task {
            ipv4: Some([172, 18, 0, number as u8].into()),
            state: *state,
            ..Task::new(TaskName::new(format!("web.{number}")), NodeName::new("n1"))
        };
        let agent = Task {
            state: TaskState::Draining,
            ..Task::new(TaskName::new("agent"), NodeName::new("n1"))
        };
        let tasks = states.iter().enumerate().map(task).chain([agent]).collect();
        let web = Service { tasks, ..Service::new(ServiceName::new("web")) };
        let snapshot = MeshSnapshot {
            generation: Generation(generation),
            services: [(web.name.clone(), web.into())].into(),
            ..MeshSnapshot::default()
        };
        View { snapshot: Some(snapshot.into()), stale: false, noticed: Instant::now() }
    }

    async fn waited(states: &[TaskState], later: &[TaskState]) -> Duration {
        let (views, seen) = watch::channel(view(1, states));
        let held = |generation| ReconcileReport {
            generation: Some(Generation(generation)),
            ..ReconcileReport::default()
        };
        let (reports, report) = watch::channel(held(1));
        let later = view(2, later);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            views.send_replace(later);
            tokio::time::sleep(Duration::from_secs(1)).await;
            reports.send_replace(held(2));
            tokio::time::sleep(PATIENCE).await;
        });
        let begun = tokio::time::Instant::now();
        wait(seen, report, &NodeName::new("n1")).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_told_to_end_before_its_tasks_waits_for_them_all_the_same() {
        use TaskState::{Active, Down, Draining};
        let (views, seen) = watch::channel(view(1, &[Active]));
        let held =
            ReconcileReport { generation: Some(Generation(3)), ..ReconcileReport::default() };
        let (_reports, report) = watch::channel(held);
        tokio::spawn(async move {
            tokio::time::sleep(ORDER / 2).await;
            views.send_replace(view(2, &[Draining]));
            tokio::time::sleep(Duration::from_secs(3)).await;
            views.send_replace(view(3, &[Down]));
            tokio::time::sleep(PATIENCE).await;
        });
        let begun = tokio::time::Instant::now();
        wait(seen, report, &NodeName::new("n1")).await;
        assert_eq!(begun.elapsed().as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_whose_tasks_all_end_waits_until_the_kernel_knows_that_they_have() {
        use TaskState::{Active, Down, Draining};
        assert_eq!(waited(&[Draining, Down], &[Down, Down]).await.as_secs(), 2);
        assert_eq!(waited(&[Draining, Active], &[Down, Active]).await.as_secs(), 0);
        assert_eq!(waited(&[Down], &[Down]).await.as_secs(), 0);
        assert_eq!(waited(&[], &[]).await.as_secs(), 0);
        assert_eq!(waited(&[Draining], &[Draining]).await, PATIENCE, "not for ever");
    }
}
