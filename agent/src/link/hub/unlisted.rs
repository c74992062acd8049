//! Tasks that a node reports and that Swarm does not list.
//!
//! A report is first-hand and mostly earlier than the managers' list, so what it names is believed at
//! once. Swarm knows of a task before any node has it, though: a list that was asked for well after
//! the task was reported, and has it not, will never have it. From then on the task gets no new
//! flows, and of that node nothing more is believed beforehand.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use weir_mesh::cluster::{Declared, Life, NodeId, ReportedTask, TaskId};

use crate::link::wire::Item;

/// The list has to be so much later than the report. A poll takes milliseconds; this is for managers
/// that are held up.
const GRACE: Duration = Duration::from_secs(5);
/// So long after its last unlisted task a node is believed again.
const CAUTIOUS: Duration = Duration::from_secs(600);

/// What is reported and not listed.
#[derive(Debug, Default)]
pub(super) struct Unlisted {
    tasks: BTreeMap<(NodeId, TaskId), Suspect>,
    /// Nodes that reported what was never listed, and when that was last seen.
    caught: BTreeMap<NodeId, Instant>,
}

#[derive(Debug)]
struct Suspect {
    since: Instant,
    said: Arc<ReportedTask>,
    withheld: bool,
}

impl Unlisted {
    /// What is told of what a node says of a task.
    pub(super) fn judge(
        &mut self,
        declared: Option<&Declared>,
        (node, task): (&NodeId, &TaskId),
        said: Arc<ReportedTask>,
        now: Instant,
    ) -> Arc<ReportedTask> {
        let key = (node.clone(), task.clone());
        if !is_unlisted(declared, task, &said) {
            self.tasks.remove(&key);
            return said;
        }
        let cautious =
            self.caught.get(node).is_some_and(|at| now.saturating_duration_since(*at) < CAUTIOUS);
        let suspect = self.tasks.entry(key).or_insert_with(|| Suspect {
            since: now,
            said: said.clone(),
            withheld: cautious,
        });
        suspect.said = said;
        suspect.told()
    }

    /// What was said before is looked at again. What is withheld has been said otherwise than it was
    /// meant, and is known already.
    pub(super) fn note(
        &mut self,
        declared: Option<&Declared>,
        (node, task): (&NodeId, &TaskId),
        said: &Arc<ReportedTask>,
        now: Instant,
    ) {
        if is_unlisted(declared, task, said) {
            let suspect = || Suspect { since: now, said: said.clone(), withheld: false };
            self.tasks.entry((node.clone(), task.clone())).or_insert_with(suspect);
        }
    }

    /// A node does not speak of a task any more.
    pub(super) fn forget(&mut self, node: &NodeId, task: &TaskId) {
        if !self.tasks.is_empty() {
            self.tasks.remove(&(node.clone(), task.clone()));
        }
    }

    /// What is to be told anew because Swarm's list was asked for at `asked`, and those who are
    /// caught by that, in words.
    pub(super) fn look(&mut self, asked: Option<Instant>, now: Instant) -> (Vec<Item>, Vec<Lie>) {
        let (mut items, mut lies) = (Vec::new(), Vec::new());
        let Some(asked) = asked else { return (items, lies) };
        for ((node, task), suspect) in &mut self.tasks {
            // Swarm forgets tasks while their containers still end: those take no flows in any case.
            if suspect.said.life == Life::Draining || asked < suspect.since + GRACE {
                continue;
            }
            self.caught.insert(node.clone(), now);
            if !std::mem::replace(&mut suspect.withheld, true) {
                items.push(Item::Report(node.clone(), task.clone(), Some(suspect.told())));
                let service = &suspect.said.service_name;
                let reason = format!(
                    "reports task {task} of service {service}, and Swarm lists no such task: it \
                     gets no new flows"
                );
                lies.push((node.clone(), reason));
            }
        }
        (items, lies)
    }

    /// The managers' list is another: what is to be told anew of tasks that are on it now.
    pub(super) fn listed(&mut self, declared: &Declared) -> Vec<Item> {
        let is_suspect = |((_, task), suspect): (&(NodeId, TaskId), &mut Suspect)| {
            !is_unlisted(Some(declared), task, &suspect.said)
        };
        let cleared = self.tasks.extract_if(.., |key, suspect| is_suspect((key, suspect)));
        let withheld = cleared.filter(|(_, suspect)| suspect.withheld);
        withheld.map(|((node, task), it)| Item::Report(node, task, Some(it.said))).collect()
    }
}

/// Who, and what it does that it should not.
pub(super) type Lie = (NodeId, String);

impl Suspect {
    fn told(&self) -> Arc<ReportedTask> {
        match self.said.life {
            Life::Active if self.withheld => {
                Arc::new(ReportedTask { life: Life::Draining, ..(*self.said).clone() })
            }
            _ => self.said.clone(),
        }
    }
}

/// Whether a task could take flows of a service that Swarm lists, and Swarm does not list the task.
/// A service that is not listed gets no flows in any case.
fn is_unlisted(declared: Option<&Declared>, task: &TaskId, said: &ReportedTask) -> bool {
    let Some(declared) = declared else { return false };
    let listed = declared.services.contains_key(&said.service);
    listed && said.life != Life::Down && !declared.tasks.contains_key(task)
}

#[cfg(test)]
mod tests {
    use weir_mesh::{
        ServiceName,
        cluster::{DeclaredService, DeclaredTask, EndpointMode, ServiceId, WishedState},
    };

    use super::*;
    use crate::link::tests::pki::report;

    const SECOND: Duration = Duration::from_secs(1);

    fn declared(tasks: &[&str]) -> Declared {
        let service = DeclaredService {
            name: ServiceName::new("web"),
            stack: None,
            endpoint_mode: EndpointMode::Vip,
            ports: Vec::new(),
            labels: BTreeMap::new(),
            vips: BTreeMap::new(),
            networks: BTreeMap::new(),
        };
        let task = |id: &str| DeclaredTask {
            service: ServiceId::new("s1"),
            node: Some(NodeId::new("w1")),
            slot: Some(1),
            name: weir_mesh::TaskName::new(format!("web.1.{id}")),
            wished: WishedState::Running,
            running: true,
            addresses: BTreeMap::new(),
        };
        Declared {
            services: [(ServiceId::new("s1"), Arc::new(service))].into(),
            tasks: tasks.iter().map(|id| (TaskId::new(*id), Arc::new(task(id)))).collect(),
            ..Declared::default()
        }
    }

    fn said(unlisted: &mut Unlisted, declared: &Declared, task: &str, now: Instant) -> Life {
        said_to_be(unlisted, declared, (task, Life::Active), now)
    }

    fn said_to_be(
        unlisted: &mut Unlisted,
        declared: &Declared,
        (task, life): (&str, Life),
        now: Instant,
    ) -> Life {
        let report = report(&[(task, life)]);
        let value = report.tasks.into_values().next().expect("one");
        let (node, task) = (NodeId::new("w1"), TaskId::new(task));
        unlisted.judge(Some(declared), (&node, &task), value, now).life
    }

    #[test]
    fn a_task_that_is_reported_before_it_is_listed_takes_flows_at_once_and_for_good() {
        let (mut unlisted, now) = (Unlisted::default(), Instant::now());
        assert_eq!(said(&mut unlisted, &declared(&[]), "t1", now), Life::Active);
        // Lists that were asked for before it came, or about then, prove nothing; nor does silence.
        for asked in [None, Some(now), Some(now + GRACE - SECOND)] {
            assert_eq!(unlisted.look(asked, now + 60 * SECOND), (vec![], vec![]), "{asked:?}");
        }
        assert_eq!(unlisted.listed(&declared(&["t1"])), []);
        assert_eq!(unlisted.look(Some(now + 60 * SECOND), now + 60 * SECOND), (vec![], vec![]));
    }

    #[test]
    fn a_task_that_is_never_listed_gets_no_new_flows_nor_does_the_next_of_its_node() {
        let (mut unlisted, now) = (Unlisted::default(), Instant::now());
        said(&mut unlisted, &declared(&["t1"]), "t2", now);
        let later = now + GRACE;
        let (items, lies) = unlisted.look(Some(later), later);
        let [Item::Report(_, _, Some(task))] = &items[..] else { panic!("{items:?}") };
        assert_eq!(task.life, Life::Draining);
        assert!(lies[0].1.contains("task t2 of service web, and Swarm lists no such"), "{lies:?}");
        assert_eq!(unlisted.look(Some(later), later), (vec![], vec![]), "said once");
        // Another name does not help, until Swarm lists it.
        assert_eq!(said(&mut unlisted, &declared(&["t1"]), "t3", later), Life::Draining);
        assert_eq!(said(&mut unlisted, &declared(&["t1"]), "t1", later), Life::Active);
        let items = unlisted.listed(&declared(&["t1", "t3"]));
        let [Item::Report(_, id, Some(task))] = &items[..] else { panic!("{items:?}") };
        assert_eq!((id, task.life), (&TaskId::new("t3"), Life::Active));
    }

    #[test]
    fn a_task_that_ends_while_swarm_has_forgotten_it_is_no_lie_until_it_says_that_it_is_active() {
        let (mut unlisted, now) = (Unlisted::default(), Instant::now());
        let listed = declared(&["t1"]);
        let ends = ("t2", Life::Draining);
        assert_eq!(said_to_be(&mut unlisted, &listed, ends, now), Life::Draining);
        let later = now + 2 * GRACE;
        assert_eq!(unlisted.look(Some(later), later), (vec![], vec![]));
        let later = now + 3 * GRACE;
        assert_eq!(said(&mut unlisted, &listed, "t3", later), Life::Active, "nobody was caught");
        said(&mut unlisted, &listed, "t2", later);
        let (items, lies) = unlisted.look(Some(later), later);
        let [Item::Report(_, id, Some(task))] = &items[..] else { panic!("{items:?}") };
        assert_eq!((id, task.life, lies.len()), (&TaskId::new("t2"), Life::Draining, 1));
    }

    #[test]
    fn a_node_is_believed_again_after_a_while() {
        let (mut unlisted, now) = (Unlisted::default(), Instant::now());
        said(&mut unlisted, &declared(&[]), "t1", now);
        unlisted.look(Some(now + GRACE), now + GRACE);
        unlisted.forget(&NodeId::new("w1"), &TaskId::new("t1"));
        let soon = now + GRACE + SECOND;
        assert_eq!(said(&mut unlisted, &declared(&[]), "t2", soon), Life::Draining);
        unlisted.forget(&NodeId::new("w1"), &TaskId::new("t2"));
        let long = soon + CAUTIOUS;
        assert_eq!(said(&mut unlisted, &declared(&[]), "t3", long), Life::Active);
    }
}
