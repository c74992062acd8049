//! Ports at virtual addresses that packets are routed to: each stands for a published port, and is served
//! as that is.

use std::collections::BTreeMap;

use super::{Resource, run::Run};
use crate::{
    ident::Ident,
    install::{Frontend, MapOp, RoutedPort},
    service::{PublishMode, ServiceName},
    snapshot::MeshSnapshot,
};

/// What a port at a routed virtual address stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// Its published port.
    pub frontend: Frontend,
}

/// What is routed before a plan changes anything.
pub(super) struct Routed {
    at: RoutedPort,
    frontend: Frontend,
    /// Whose the published port is.
    owner: Option<Ident>,
}

/// The ports at the routed virtual addresses of a snapshot: of each service those that it publishes on every
/// node, by the ports where its tasks listen. Of two that want the same the first by name has it, and of two
/// published ports with one target the lower.
pub fn routes(snapshot: &MeshSnapshot) -> BTreeMap<RoutedPort, Route<'_>> {
    let mut routes = BTreeMap::new();
    let is_routed = |id| snapshot.networks.get(id).is_some_and(|network| network.routed);
    if !snapshot.networks.values().any(|network| network.routed) {
        return routes;
    }
    for (service, of) in &snapshot.services {
        let mut ports: Vec<_> =
            of.ports.iter().filter(|port| port.mode == PublishMode::Ingress).collect();
        ports.sort_by_key(|port| port.published);
        for (_, addresses) in of.vips.iter().filter(|(network, _)| is_routed(network)) {
            for address in addresses {
                for port in &ports {
                    let (address, protocol) = (*address, port.protocol);
                    let at = RoutedPort { address, protocol, port: port.target };
                    routes.entry(at).or_insert(Route { service, frontend: Frontend::of(port) });
                }
            }
        }
    }
    routes
}

impl Run<'_> {
    /// What is routed before anything is planned.
    pub(super) fn routed_now(&self) -> Vec<Routed> {
        let installed = self.planner.draft.installed.routed.iter();
        let routed = installed.map(|(at, frontend)| Routed {
            at: *at,
            frontend: *frontend,
            owner: self.owner(*frontend),
        });
        routed.collect()
    }

    /// Follows what was planned for the published ports. What a service had that left the mesh is routed for
    /// as long as its ports drain.
    pub(super) fn route(&mut self, before: Vec<Routed>) {
        let is_there = |run: &Self, route: &Route<'_>| {
            run.owner(route.frontend) == Some(Ident::of_service(route.service))
        };
        let mut wanted = routes(self.snapshot);
        wanted.retain(|_, route| is_there(self, route));
        for Routed { at, frontend, owner } in before {
            let same = owner.is_some() && self.owner(frontend) == owner;
            let drains = owner.is_some_and(|owner| !self.planner.memory.knows(owner));
            if !same || !drains && !wanted.contains_key(&at) {
                self.emit(MapOp::RemoveRouted(at));
            }
        }
        for (at, Route { service, frontend }) in wanted {
            let routed = &self.planner.draft.installed.routed;
            let (now, len) = (routed.get(&at), routed.len());
            if now.is_none() && len >= self.planner.stock.limit(Resource::Routed) as usize {
                let problem = self.exhausted(service.to_string(), Resource::Routed);
                self.note_elsewhere(problem);
            } else if now != Some(&frontend) {
                self.emit(MapOp::SetRouted(at, frontend));
            }
        }
    }

    fn owner(&self, frontend: Frontend) -> Option<Ident> {
        self.planner.draft.record_of(frontend).map(|record| record.ident)
    }
}
