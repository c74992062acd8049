//! Virtual addresses from the pools of networks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weir_mesh::{NetworkId, ServiceName, vip::allocate};

use super::{networks::NetworkDraft, services::ServiceDraft};
use crate::document::{Findings, nearest};

type Vips = BTreeMap<NetworkId, Vec<IpAddr>>;

/// What services get that want an address and name none.
pub(super) fn vips(
    networks: &[NetworkDraft],
    services: &[ServiceDraft],
    findings: &Findings<'_>,
) -> BTreeMap<ServiceName, Vips> {
    note_names(networks, services, findings);
    let mut vips = BTreeMap::<ServiceName, Vips>::new();
    for network in networks {
        let wants = |draft: &&ServiceDraft| {
            !draft.vips.contains_key(&network.id)
                && draft.wants.iter().any(|(wanted, _)| *wanted == network.id)
        };
        let wanting: BTreeSet<&ServiceName> =
            services.iter().filter(wants).map(|draft| &draft.name).collect();
        let taken = taken(&network.id, services);
        for pool in &network.pools {
            match allocate(&network.id, *pool, &wanting, &taken) {
                Ok(given) => {
                    for (service, address) in given {
                        let own = vips.entry(service).or_default();
                        own.entry(network.id.clone()).or_default().push(address);
                    }
                }
                Err(full) => findings.note(
                    network.offset,
                    format!("network {}: vips", network.id),
                    full.to_string(),
                    "write a larger subnet, or give some services their own address by vip",
                ),
            }
        }
    }
    vips
}

/// Addresses on a network that somebody has already.
fn taken(network: &NetworkId, services: &[ServiceDraft]) -> BTreeSet<IpAddr> {
    let written = services.iter().filter_map(|draft| draft.vips.get(network));
    let tasks = services.iter().flat_map(|draft| &draft.tasks);
    let of_tasks = tasks.filter_map(|draft| draft.task.networks.get(network));
    written.chain(of_tasks).flatten().copied().collect()
}

fn note_names(networks: &[NetworkDraft], services: &[ServiceDraft], findings: &Findings<'_>) {
    let mut known = BTreeSet::new();
    for network in networks {
        if !known.insert(network.id.as_str()) {
            let problem = format!("network {} is there twice", network.id);
            findings.note(network.offset, "", problem, "give each network a name of its own");
        }
    }
    for draft in services {
        for (wanted, offset) in &draft.wants {
            if known.contains(wanted.as_str()) {
                continue;
            }
            let remedy = match nearest(wanted.as_str(), known.iter().copied()) {
                Some(nearest) => format!("did you mean \"{nearest}\"?"),
                None => format!("add [[network]] with name = \"{wanted}\""),
            };
            let key = format!("service {}: networks: \"{wanted}\"", draft.name);
            findings.note(*offset, key, "no such network", remedy);
        }
    }
}
