//! Hosts without Swarm that are linked by the operator's certificates, wired together.
//!
//! What should be stays in each host's file. By the link every node says which of its own tasks it
//! has taken out, and that it is there; what follows is the judge's business.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time,
};
use tracing::warn;
use weir_mesh::{
    Ident, NodeName, ServiceName, Task, TaskName, TaskState,
    cluster::{
        Availability, Declared, DeclaredNode, Life, NodeId, Report, ReportedNode, ReportedTask,
        ServiceId, TaskId,
    },
};

use crate::{
    config::{Config, SourceConfig},
    link::{self, ClusterView, From, Inputs, Link},
    probes::{Finding, LocalHealth, Others},
    snapshots::View,
    source::SourceState,
    swarm::LateLink,
};

/// What a node says of a task that is out is carried in this label.
const REASON: &str = "weir.out";
/// The longest reason, in bytes.
const MOST_REASON: usize = 256;
/// A start waits for so many silences until the others have spoken: as long as a hub that has just
/// started waits for them, and a moment.
const PATIENCE: u32 = 4;
/// Though no longer than this.
const MOST_PATIENCE: Duration = Duration::from_secs(10);

/// What the link is wired to.
pub struct Wires {
    /// The file.
    pub source: watch::Receiver<SourceState>,
    /// The mesh as it should be, with what is known of this node's tasks.
    pub view: watch::Receiver<View>,
    /// Why tasks are out.
    pub health: watch::Receiver<LocalHealth>,
    /// Where what the others say is told.
    pub findings: mpsc::Sender<Finding>,
}

/// Links this host with the others, if it is told by which certificates. It goes on until the agent
/// ends; [`settled`] waits for the others' first word.
pub fn link_up(config: &Config, wires: Wires, late: &LateLink) -> Option<watch::Receiver<bool>> {
    let SourceConfig::File(_) = config.source else { return None };
    let files = config.link.files.clone()?;
    let node = NodeId::new(config.node.name.as_str());
    let Wires { source, view, health, findings } = wires;
    let (files, files_seen) = watch::channel(Some(files));
    let (managers, managers_seen) = watch::channel(config.link.peers.clone());
    let (declared, declared_seen) = watch::channel(None);
    let told = ReportedNode { hostname: node.to_string(), address: config.node.address };
    let (report, report_seen) =
        watch::channel(Arc::new(Report { node: told.clone(), tasks: BTreeMap::new() }));
    let inputs = Inputs {
        files: files_seen,
        managers: managers_seen,
        declared: declared_seen,
        // What should be is in the files, and no node is believed in that.
        asked: watch::channel(None).1,
        report: report_seen,
    };
    let settings = link::Settings {
        silence: config.link.silence,
        node: Some(node),
        ..link::Settings::at(config.link.listen)
    };
    let started: Link = link::start(&settings, inputs);
    let heard = started.view();
    // Nobody else sets it.
    let _ = late.set(started);
    let (settled_in, settled) = watch::channel(false);
    let name = config.node.name.clone();
    tokio::spawn(async move {
        // They do not change, and end with the agent.
        let _kept = (files, managers);
        tokio::join!(
            declare(source, declared),
            tell(name.clone(), told, (view, health), report),
            listen(name, heard, findings, settled_in),
        )
    });
    Some(settled)
}

/// Waits until the others have spoken, though not for long: what the kernel holds goes on meanwhile.
pub async fn settled(link: Option<watch::Receiver<bool>>, silence: Duration) {
    let Some(mut link) = link else { return };
    let wait = silence.saturating_mul(PATIENCE).min(MOST_PATIENCE);
    if time::timeout(wait, link.wait_for(|settled| *settled)).await.is_err() {
        warn!(waited = ?wait, "no other agent is heard, going on with what the file says");
    }
}

/// Whom a hub waits for, and whose word it forgets: the nodes of the file.
async fn declare(
    mut source: watch::Receiver<SourceState>,
    declared: watch::Sender<Option<Arc<Declared>>>,
) {
    loop {
        if let Some(desired) = source.borrow_and_update().desired.clone() {
            let node = |(name, node): (&NodeName, &weir_mesh::Node)| {
                let declared = DeclaredNode {
                    hostname: name.to_string(),
                    address: Some(node.address),
                    availability: Availability::Active,
                    ready: true,
                    manager: None,
                };
                (NodeId::new(name.as_str()), Arc::new(declared))
            };
            let nodes = desired.nodes.iter().map(node).collect();
            let new = Arc::new(Declared { nodes, ..Declared::default() });
            declared.send_if_modified(|old| {
                let changed = old.as_ref() != Some(&new);
                *old = Some(new);
                changed
            });
        }
        if source.changed().await.is_err() {
            return;
        }
    }
}

/// Says which of this node's tasks are in and which are out. Until that is known, nothing but that
/// the node is there.
async fn tell(
    node: NodeName,
    told: ReportedNode,
    (mut view, mut health): (watch::Receiver<View>, watch::Receiver<LocalHealth>),
    report: watch::Sender<Arc<Report>>,
) {
    loop {
        let reasons = health.borrow_and_update().clone();
        let snapshot = view.borrow_and_update().snapshot.clone();
        if let Some(snapshot) = snapshot {
            let mut tasks = BTreeMap::new();
            for service in snapshot.services.values() {
                for task in service.tasks.iter().filter(|task| task.node == node) {
                    let ident = Ident::of_task(&service.name, &task.name, &task.node);
                    let health = reasons.get(&ident).filter(|health| !health.healthy);
                    let reason = health.and_then(|health| health.reason.as_deref());
                    let said = Arc::new(say(&service.name, task, reason));
                    tasks.insert(task_id(&service.name, &task.name), said);
                }
            }
            let new = Report { node: told.clone(), tasks };
            report.send_if_modified(|old| {
                let changed = **old != new;
                if changed {
                    *old = Arc::new(new);
                }
                changed
            });
        }
        let ended = tokio::select! {
            changed = view.changed() => changed.is_err(),
            changed = health.changed() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}

/// Nothing but its state: addresses and all else the others have in their files.
fn say(service: &ServiceName, task: &Task, reason: Option<&str>) -> ReportedTask {
    let cut = |reason: &str| {
        reason
            .chars()
            .scan(0, |length, c| {
                *length += c.len_utf8();
                (*length <= MOST_REASON).then_some(c)
            })
            .collect::<String>()
    };
    ReportedTask {
        service: ServiceId::new(service.as_str()),
        service_name: service.clone(),
        name: task.name.clone(),
        ipv4: None,
        ipv6: None,
        life: match task.state {
            TaskState::Active => Life::Active,
            TaskState::Draining => Life::Draining,
            TaskState::Down => Life::Down,
        },
        labels: reason.map(|reason| (REASON.to_owned(), cut(reason))).into_iter().collect(),
        networks: BTreeMap::new(),
        aliases: BTreeMap::new(),
        ports: Vec::new(),
        // What follows from it is said instead: `life`, and why.
        verdict: None,
    }
}

fn task_id(service: &ServiceName, task: &TaskName) -> TaskId {
    TaskId::new(format!("{service}/{task}"))
}

/// Passes on what the others say, as long as somebody says something.
async fn listen(
    own: NodeName,
    mut view: watch::Receiver<ClusterView>,
    findings: mpsc::Sender<Finding>,
    settled: watch::Sender<bool>,
) {
    let mut others = Others::default();
    loop {
        let heard = view.borrow_and_update().clone();
        if heard.from != From::Nobody {
            let before = others.clone();
            follow(&mut others, &own, &heard);
            if others != before
                && findings.send(Finding::Others(Arc::new(others.clone()))).await.is_err()
            {
                return;
            }
            settled.send_replace(true);
        }
        if view.changed().await.is_err() {
            return;
        }
    }
}

/// Takes a view. A word holds until there is another: a hub that has just started does not know of
/// nodes that were silent before, and a node that has just started does not know its tasks yet.
fn follow(others: &mut Others, own: &NodeName, view: &ClusterView) {
    for (id, node) in view.reports.iter() {
        let name = NodeName::new(id.as_str());
        if name == *own {
            continue;
        }
        match node.alive {
            true => others.silent.remove(&name),
            false => others.silent.insert(name.clone()),
        };
        for task in node.report.iter().flat_map(|report| report.tasks.values()) {
            let ident = Ident::of_task(&task.service_name, &task.name, &name);
            match task.life {
                Life::Active | Life::Starting => drop(others.out.remove(&ident)),
                Life::Draining | Life::Down => {
                    let reason = task.labels.get(REASON).map_or("it is draining", String::as_str);
                    if others.out.get(&ident).is_none_or(|known| **known != *reason) {
                        others.out.insert(ident, reason.into());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_mesh::Service;

    use super::*;
    use crate::link::NodeView;

    fn node(alive: bool, tasks: &[(&str, Life)]) -> NodeView {
        let task = |name: &str, life| {
            let labels = [(REASON.to_owned(), "health: it is ill".to_owned())];
            Arc::new(ReportedTask {
                service: ServiceId::new("web"),
                service_name: ServiceName::new("web"),
                name: TaskName::new(name),
                ipv4: None,
                ipv6: None,
                life,
                labels: labels.into(),
                networks: BTreeMap::new(),
                aliases: BTreeMap::new(),
                ports: Vec::new(),
                verdict: None,
            })
        };
        let tasks = tasks.iter().map(|(name, life)| (TaskId::new(*name), task(name, *life)));
        let told = ReportedNode { hostname: String::new(), address: [10, 0, 0, 2].into() };
        let report = Some(Arc::new(Report { node: told, tasks: tasks.collect() }));
        NodeView { report, alive }
    }

    fn view(nodes: &[(&str, NodeView)]) -> ClusterView {
        let reports = nodes.iter().map(|(name, node)| (NodeId::new(*name), node.clone()));
        ClusterView { reports: Arc::new(reports.collect()), from: From::Own, declared: None }
    }

    /// `web.1` on n1, `web.2` on n2, `web.3` on n3.
    fn web() -> Service {
        let task = |number: u8| Task {
            ipv4: Some([172, 18, 0, number].into()),
            ..Task::new(TaskName::new(format!("web.{number}")), NodeName::new(format!("n{number}")))
        };
        Service { tasks: (1..=3).map(task).collect(), ..Service::new(ServiceName::new("web")) }
    }

    fn out(others: &Others, own: &str) -> Vec<String> {
        let service = web();
        let reasons = others.reasons(&service, &NodeName::new(own));
        let of = |task: &&Task| {
            reasons.contains_key(&Ident::of_task(&service.name, &task.name, &task.node))
        };
        service.tasks.iter().filter(of).map(|task| task.name.to_string()).collect()
    }

    #[test]
    fn a_word_holds_until_there_is_another() {
        let (own, mut others) = (NodeName::new("n1"), Others::default());
        let ill = node(true, &[("web.2", Life::Draining)]);
        follow(&mut others, &own, &view(&[("n2", ill), ("n3", node(false, &[]))]));
        assert_eq!(out(&others, "n1"), ["web.2", "web.3"]);
        // A hub that has just started, and an agent that does not know its tasks yet.
        follow(&mut others, &own, &view(&[("n2", node(true, &[]))]));
        assert_eq!(out(&others, "n1"), ["web.2", "web.3"]);
        let well = node(true, &[("web.2", Life::Active)]);
        follow(&mut others, &own, &view(&[("n2", well), ("n3", node(true, &[]))]));
        assert_eq!(out(&others, "n1"), [""; 0]);
    }

    #[test]
    fn a_node_is_not_told_by_others_what_its_own_tasks_are() {
        let (own, mut others) = (NodeName::new("n2"), Others::default());
        follow(&mut others, &own, &view(&[("n2", node(false, &[("web.2", Life::Draining)]))]));
        assert_eq!(others, Others::default());
    }

    #[test]
    fn a_node_speaks_of_no_tasks_but_its_own() {
        let (own, mut others) = (NodeName::new("n1"), Others::default());
        let liar = node(true, &[("web.2", Life::Draining), ("web.3", Life::Draining)]);
        follow(&mut others, &own, &view(&[("n3", liar)]));
        assert_eq!(out(&others, "n1"), ["web.3"], "web.2 is on n2");
    }

    #[test]
    fn when_all_that_are_left_are_on_silent_nodes_they_stay() {
        let (own, mut others) = (NodeName::new("n4"), Others::default());
        let silent = || node(false, &[]);
        let ill = node(true, &[("web.3", Life::Draining)]);
        follow(&mut others, &own, &view(&[("n1", silent()), ("n2", silent()), ("n3", ill)]));
        assert_eq!(out(&others, "n4"), ["web.3"]);
    }

    #[test]
    fn a_reason_is_cut_where_a_character_ends() {
        let web = web();
        let said = say(&web.name, &web.tasks[0], Some(&"ü".repeat(1000)));
        assert_eq!(said.labels[REASON].len(), MOST_REASON);
    }
}
