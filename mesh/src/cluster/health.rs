//! How the tasks of a service are judged.

use std::collections::BTreeSet;

use super::{Note, Transport, merge::Draft, tasks::Placed};
use crate::{
    health::{CheckKind, Health, labels::Wishes},
    service::{Port, Protocol, ServiceName, TargetPort},
};

/// What the labels ask for, with a port to ask at. A check that nobody can make is noted; the
/// tasks are then served without.
pub(super) fn of(
    draft: &Draft<'_>,
    name: &ServiceName,
    wishes: &Wishes,
    ports: &[Port],
    notes: &mut BTreeSet<Note>,
) -> Health {
    let mut note = |value: Option<String>, problem: &str, remedy: &str| {
        notes.insert(Note {
            about: format!("service {name}"),
            key: "weir.health".to_owned(),
            value,
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        });
    };
    if wishes.lack_a_check() {
        note(
            None,
            "missing, so that other labels of the check do nothing",
            "write weir.health = tcp, or http: and a path such as http:/healthz",
        );
    }
    let mut health = wishes.health();
    let Some(mut check) = health.check.take() else { return health };
    let value = match &check.kind {
        CheckKind::Tcp => "tcp".to_owned(),
        CheckKind::Http { path } => format!("http:{path}"),
    };
    check.port = check.port.or_else(|| first_tcp(draft, ports));
    if check.port.is_none() {
        let remedy = "the service publishes none for TCP; name one: weir.health.port = 80";
        note(Some(value), "no port to ask at", remedy);
        return health;
    }
    let beyond = |task: &&Placed<'_>| task.said.ipv4.is_none() && task.said.ipv6.is_none();
    if let Some(task) = draft.tasks.iter().find(beyond) {
        let problem =
            format!("its node does not reach task {}, which is not asked", task.said.name);
        let remedy = "attach the service to a network that is not internal";
        note(Some(value), &problem, remedy);
    }
    health.check = Some(check);
    health
}

/// The first port for TCP; in host mode a port may have no number of its own on the nodes, and is
/// one to ask at all the same.
fn first_tcp(draft: &Draft<'_>, ports: &[Port]) -> Option<TargetPort> {
    let published = ports.iter().find(|port| port.protocol == Protocol::Tcp);
    let declared = draft.declared.into_iter().flat_map(|service| &service.ports);
    let declared = declared.filter(|port| port.transport == Transport::Tcp);
    let bound = draft.tasks.iter().flat_map(|task| &task.said.ports);
    let bound = bound.filter(|port| port.protocol == Protocol::Tcp);
    published
        .map(|port| port.target)
        .or_else(|| declared.filter_map(|port| TargetPort::new(port.target)).min())
        .or_else(|| bound.map(|port| port.target).min())
}
