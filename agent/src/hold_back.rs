//! What other nodes hear of this node's tasks waits for the data plane of this node.
//!
//! Who hears of a new task sends clients here at once. If this node did not know the task yet, because it
//! has more to do for one that is new here than the others have, it would pass these clients on by what it
//! knew before, perhaps to a task that ends at this moment since the new one has come: and nobody hands a
//! client on twice.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use weir_mesh::{
    MeshSnapshot, TaskState,
    cluster::{Life, Report, ReportedTask, TaskId},
};

/// For so long at most. A data plane that takes no changes is told of elsewhere, and other nodes may have
/// ways to a task that this one does not find.
const LONGEST: Duration = Duration::from_secs(2);

/// Decides what may be told.
#[derive(Debug, Default)]
pub struct HoldBack {
    told: Option<Arc<Report>>,
    /// Tasks that wait, and since when.
    since: BTreeMap<TaskId, Instant>,
}

impl HoldBack {
    /// What of a report may be told while the data plane holds this snapshot. The first is told as it is:
    /// other nodes may know its tasks from the agent before.
    pub fn pass(
        &mut self,
        report: Arc<Report>,
        held: Option<&MeshSnapshot>,
        now: Instant,
    ) -> Arc<Report> {
        let Some(before) = &self.told else {
            self.told = Some(report.clone());
            return report;
        };
        let mut since = BTreeMap::new();
        for (id, task) in report.tasks.iter().filter(|(_, task)| is_ready(task)) {
            let known = before.tasks.get(id).is_some_and(|task| is_ready(task));
            if known || held.is_some_and(|held| holds(held, task)) {
                continue;
            }
            let begun = self.since.get(id).copied().unwrap_or(now);
            if now < begun + LONGEST {
                since.insert(id.clone(), begun);
            }
        }
        let told = match since.is_empty() {
            true => report,
            false => {
                let mut told = (*report).clone();
                for id in since.keys() {
                    let Some(task) = told.tasks.get_mut(id).map(Arc::make_mut) else { continue };
                    let before = before.tasks.get(id);
                    task.life = before.map_or(Life::Starting, |before| before.life);
                    task.verdict = before.and_then(|before| before.verdict.clone());
                }
                Arc::new(told)
            }
        };
        self.since = since;
        self.told = Some(told.clone());
        told
    }

    /// Until when something waits at the longest; `None` if nothing does.
    pub fn waits_until(&self) -> Option<Instant> {
        self.since.values().min().map(|since| *since + LONGEST)
    }
}

/// Whether others send clients to a task of which they are told this.
fn is_ready(task: &ReportedTask) -> bool {
    task.life == Life::Active && task.verdict.is_none()
}

/// Whether a task of this node gets clients by this snapshot.
fn holds(snapshot: &MeshSnapshot, task: &ReportedTask) -> bool {
    let service = snapshot.services.get(&task.service_name);
    let mut tasks = service.into_iter().flat_map(|service| &service.tasks);
    tasks.any(|it| {
        it.name == task.name
            && it.state == TaskState::Active
            && snapshot.here.as_ref().is_none_or(|here| it.node == *here)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weir_mesh::{
        NodeName, Service, ServiceName, Task, TaskName,
        cluster::{ReportedNode, ServiceId},
        health::Verdict,
    };

    use super::*;

    fn task(name: &str, life: Life) -> ReportedTask {
        ReportedTask {
            service: ServiceId::new("s1"),
            service_name: ServiceName::new("web"),
            name: TaskName::new(name),
            ipv4: Some([172, 18, 0, 3].into()),
            ipv6: None,
            life,
            labels: BTreeMap::new(),
            networks: BTreeMap::new(),
            aliases: BTreeMap::new(),
            ports: Vec::new(),
            verdict: None,
        }
    }

    fn report(tasks: impl IntoIterator<Item = ReportedTask>) -> Arc<Report> {
        let node = ReportedNode { hostname: "n1".to_owned(), address: [10, 0, 0, 1].into() };
        let tasks = tasks.into_iter();
        let tasks = tasks.map(|task| (TaskId::new(task.name.as_str()), Arc::new(task)));
        Arc::new(Report { node, tasks: tasks.collect() })
    }

    fn held(tasks: &[(&str, TaskState)]) -> MeshSnapshot {
        let mut service = Service::new(ServiceName::new("web"));
        service.tasks = tasks
            .iter()
            .map(|(name, state)| Task {
                state: *state,
                ..Task::new(TaskName::new(*name), NodeName::new("n1"))
            })
            .collect();
        MeshSnapshot {
            here: Some(NodeName::new("n1")),
            services: [(service.name.clone(), Arc::new(service))].into(),
            ..MeshSnapshot::default()
        }
    }

    fn life(report: &Report, task: &str) -> Life {
        report.tasks[&TaskId::new(task)].life
    }

    #[test]
    fn a_new_task_is_told_when_the_data_plane_holds_it() {
        let (mut hold_back, now) = (HoldBack::default(), Instant::now());
        let first = report([task("a", Life::Active)]);
        assert_eq!(hold_back.pass(first.clone(), None, now), first, "the first as it is");
        let both = || report([task("a", Life::Active), task("b", Life::Active)]);
        let told = hold_back.pass(both(), Some(&held(&[("a", TaskState::Active)])), now);
        assert_eq!((life(&told, "a"), life(&told, "b")), (Life::Active, Life::Starting));
        assert_eq!(hold_back.waits_until(), Some(now + LONGEST));
        let drains = held(&[("a", TaskState::Active), ("b", TaskState::Draining)]);
        assert_eq!(life(&hold_back.pass(both(), Some(&drains), now), "b"), Life::Starting);
        let serves = held(&[("a", TaskState::Active), ("b", TaskState::Active)]);
        assert_eq!(hold_back.pass(both(), Some(&serves), now), both());
        assert_eq!(hold_back.waits_until(), None);
        // What is told stays told, whatever the data plane holds.
        assert_eq!(hold_back.pass(both(), Some(&drains), now), both());
    }

    #[test]
    fn a_task_that_comes_back_stays_as_it_was_told_so_that_its_flows_go_on() {
        let (mut hold_back, now) = (HoldBack::default(), Instant::now());
        hold_back.pass(report([task("a", Life::Active), task("b", Life::Active)]), None, now);
        let ejected = |name| ReportedTask {
            verdict: Some(Verdict::Ejected { time: Duration::from_secs(30), refused: 5 }),
            ..task(name, Life::Active)
        };
        let ill = report([task("a", Life::Draining), ejected("b")]);
        assert_eq!(hold_back.pass(ill.clone(), None, now), ill, "bad news are told at once");
        let well = || report([task("a", Life::Active), task("b", Life::Active)]);
        let before = held(&[("a", TaskState::Draining), ("b", TaskState::Draining)]);
        assert_eq!(hold_back.pass(well(), Some(&before), now), ill);
        let after = held(&[("a", TaskState::Active), ("b", TaskState::Active)]);
        assert_eq!(hold_back.pass(well(), Some(&after), now), well());
    }

    #[test]
    fn nothing_waits_for_ever() {
        let (mut hold_back, now) = (HoldBack::default(), Instant::now());
        hold_back.pass(report([]), None, now);
        let new = || report([task("a", Life::Active)]);
        assert_eq!(life(&hold_back.pass(new(), None, now), "a"), Life::Starting);
        let nearly = now + LONGEST - Duration::from_millis(1);
        assert_eq!(life(&hold_back.pass(new(), None, nearly), "a"), Life::Starting);
        assert_eq!(hold_back.waits_until(), Some(now + LONGEST));
        assert_eq!(hold_back.pass(new(), None, now + LONGEST), new());
        assert_eq!(hold_back.waits_until(), None);
        // It ends and comes again: it waits again.
        hold_back.pass(report([]), None, now);
        assert_eq!(life(&hold_back.pass(new(), None, now), "a"), Life::Starting);
    }
}
