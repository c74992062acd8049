//! What a snapshot asks of the host: which addresses must be reached, which ports be free.

use std::{collections::BTreeSet, net::IpAddr};

use weir_mesh::{MeshSnapshot, NodeName, PublishMode, Service, install::Frontend};

use crate::diff::{Change, each_change};

/// Addresses of the tasks that this node runs.
pub(super) fn local_tasks(snapshot: &MeshSnapshot, node: &NodeName) -> BTreeSet<IpAddr> {
    snapshot.services.values().flat_map(|service| tasks_of(service, node)).collect()
}

/// Ports that this node should serve.
pub(super) fn wanted_ports(snapshot: &MeshSnapshot, node: &NodeName) -> BTreeSet<Frontend> {
    snapshot.services.values().flat_map(|service| ports_of(service, node)).collect()
}

/// Whether a new snapshot asks something of the host that the one before did not. Looking at the
/// host takes longer than all the rest of a small change; it is looked at now and then anyway.
pub(super) fn asks_anew(
    before: Option<&MeshSnapshot>,
    after: Option<&MeshSnapshot>,
    node: &NodeName,
) -> bool {
    let (Some(before), Some(after)) = (before, after) else { return true };
    let mut anew = false;
    each_change(&before.services, &after.services, |_, change| {
        anew = anew
            || match change {
                Change::Removed(_) => true,
                Change::Added(service) => {
                    tasks_of(service, node).next().is_some()
                        || ports_of(service, node).next().is_some()
                }
                Change::Changed(before, after) => {
                    let tasks = |service| tasks_of(service, node).collect::<BTreeSet<_>>();
                    let ports = |service| ports_of(service, node).collect::<BTreeSet<_>>();
                    tasks(before) != tasks(after) || ports(before) != ports(after)
                }
            };
    });
    anew
}

fn tasks_of<'a>(service: &'a Service, node: &'a NodeName) -> impl Iterator<Item = IpAddr> + 'a {
    let here = service.tasks.iter().filter(move |task| task.node == *node);
    here.flat_map(|task| task.addresses())
}

/// Ports of a service that this node should serve.
pub(crate) fn ports_of<'a>(
    service: &'a Service,
    node: &'a NodeName,
) -> impl Iterator<Item = Frontend> + 'a {
    let host = service.ports.iter().any(|port| port.mode == PublishMode::Host);
    let here = host && service.tasks.iter().any(|task| task.node == *node);
    let wanted = move |mode| mode == PublishMode::Ingress || here;
    let ports = service.ports.iter().filter(move |port| wanted(port.mode));
    ports.map(Frontend::of)
}
