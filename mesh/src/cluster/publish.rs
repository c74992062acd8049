//! Which ports a service publishes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{DeclaredPort, HeardPort, Note, Transport, merge::Draft, tasks::Placed};
use crate::{
    ports::port_conflicts,
    service::{Port, Protocol, PublishMode, PublishedPort, Service, ServiceName, TargetPort},
};

/// The ports that the whole service publishes: those that are declared, else those that are heard.
pub(super) fn ports(
    draft: &Draft<'_>,
    name: &ServiceName,
    notes: &mut BTreeSet<Note>,
) -> Vec<Port> {
    let mut ports: Vec<Port> = match (draft.declared, draft.heard) {
        (Some(service), _) => {
            service.ports.iter().filter_map(|port| declared(port, name, notes)).collect()
        }
        (None, Some(service)) => heard(&service.ports),
        (None, None) => Vec::new(),
    };
    ports.sort_by_key(|port| (port.protocol, port.published, port.mode, port.target));
    ports.dedup_by_key(|port| (port.protocol, port.published));
    ports
}

fn declared(port: &DeclaredPort, name: &ServiceName, notes: &mut BTreeSet<Note>) -> Option<Port> {
    let protocol = match port.transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
        Transport::Sctp => {
            notes.insert(Note {
                about: format!("service {name}"),
                key: "publish".to_owned(),
                value: Some(format!("{}/sctp", port.published.unwrap_or(port.target))),
                problem: "the mesh carries no SCTP".to_owned(),
                remedy: "publish the port with mode=host, then Docker serves it".to_owned(),
            });
            return None;
        }
    };
    let published = PublishedPort::new(port.published?)?;
    Some(Port { protocol, published, target: TargetPort::new(port.target)?, mode: port.mode })
}

/// Gossip names no protocol. A number that is there once is taken for TCP, which is what nearly
/// all are; one that is there twice can only be both.
fn heard(ports: &[HeardPort]) -> Vec<Port> {
    let mut times = BTreeMap::<HeardPort, usize>::new();
    for port in ports {
        *times.entry(*port).or_default() += 1;
    }
    let protocols = |times: usize| Protocol::ALL.into_iter().take(times);
    let ports = times.into_iter().flat_map(|(port, times)| {
        let HeardPort { published, target } = port;
        let mode = PublishMode::Ingress;
        protocols(times).map(move |protocol| Port { protocol, published, target, mode })
    });
    ports.collect()
}

/// Ports that Docker bound for one task alone: in host mode without a number each task has its own.
/// Such a port answers on that task's node, with that task.
pub(super) fn own_ports(task: &Placed<'_>, shared: &[Port]) -> Vec<Port> {
    let is_shared = |protocol, published| {
        shared.iter().any(|port| (port.protocol, port.published) == (protocol, published))
    };
    let bound = task.said.ports.iter();
    let mut own: Vec<Port> = bound
        .filter(|bound| !is_shared(bound.protocol, bound.published))
        .map(|bound| Port {
            protocol: bound.protocol,
            published: bound.published,
            target: bound.target,
            mode: PublishMode::Host,
        })
        .collect();
    own.sort_by_key(|port| (port.protocol, port.published));
    own.dedup_by_key(|port| (port.protocol, port.published));
    own
}

/// Swarm lets no two services have one port; words of different age can. The first by name keeps
/// it.
pub(super) fn settle_conflicts(
    services: &mut BTreeMap<ServiceName, Arc<Service>>,
    notes: &mut BTreeSet<Note>,
) {
    for conflict in port_conflicts(services) {
        let lost = (conflict.port.protocol, conflict.port.published);
        if let Some(service) = services.get_mut(&conflict.second) {
            Arc::make_mut(service).ports.retain(|port| (port.protocol, port.published) != lost);
        }
        notes.insert(Note {
            about: format!("service {}", conflict.second),
            key: "publish".to_owned(),
            value: Some(format!("{}/{}", lost.1, lost.0)),
            problem: format!("service {} has this port already and keeps it", conflict.first),
            remedy: "publish one of them with another number".to_owned(),
        });
    }
}
