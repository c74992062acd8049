//! What the kernel should know of virtual addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{OwnVip, VipKey, VipProblem};
use crate::{
    balance::interleave::{cell_cap, reduce},
    ident::Ident,
    service::{Locality, NetworkId, NodeName, Service, ServiceName, Task, TaskState},
    snapshot::MeshSnapshot,
};

/// A virtual address as it should be.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) service: &'a ServiceName,
    /// Addresses of the tasks in ascending order, each as often as it has turns.
    pub(super) cells: Vec<IpAddr>,
    pub(super) stride: u32,
}

/// The virtual addresses on networks that something of this node is attached to. Of services that want
/// the same one the first by name gets it. Those of this node itself go before all.
pub(super) fn wanted<'a>(
    snapshot: &'a MeshSnapshot,
    here: &NodeName,
    own: &'a [OwnVip],
    attached: &BTreeSet<Ident>,
    problems: &mut Vec<VipProblem>,
) -> BTreeMap<VipKey, Wanted<'a>> {
    let mut all = BTreeMap::<VipKey, Wanted<'a>>::new();
    if attached.is_empty() {
        return all;
    }
    for OwnVip { service, network, address, target } in own {
        let key = VipKey { network: Ident::of_network(network), address: *address };
        if attached.contains(&key.network) {
            all.insert(key, Wanted { service, cells: vec![*target], stride: 1 });
        }
    }
    for (name, service) in &snapshot.services {
        for (network, addresses) in &service.vips {
            let ident = Ident::of_network(network);
            if !attached.contains(&ident) {
                continue;
            }
            for address in addresses {
                let key = VipKey { network: ident, address: *address };
                if let Some(first) = all.get(&key) {
                    if first.service != name {
                        problems.push(VipProblem::Conflict {
                            service: name.clone(),
                            address: *address,
                            network: network.clone(),
                            winner: first.service.clone(),
                        });
                    }
                    continue;
                }
                let cells = cells(service, here, network, *address);
                let stride = stride(&cells);
                all.insert(key, Wanted { service: name, cells, stride });
            }
        }
    }
    all
}

/// The askers are this node's: by the service's locality its own tasks come first, or are all.
fn cells(service: &Service, here: &NodeName, network: &NetworkId, vip: IpAddr) -> Vec<IpAddr> {
    let takes_flows = |task: &&Task| task.state == TaskState::Active && task.weight > 0;
    let address = |task: &Task| {
        let mut own = task.networks.get(network)?.iter().copied();
        own.find(|own| own.is_ipv4() == vip.is_ipv4())
    };
    let serving = service.tasks.iter().filter(takes_flows);
    let serving = serving.filter_map(|task| Some((task, address(task)?)));
    let own_only = match service.locality {
        Locality::Cluster => false,
        Locality::PreferLocal => serving.clone().any(|(task, _)| task.node == *here),
        Locality::Local => true,
    };
    let mut tasks: Vec<(IpAddr, u64)> = serving
        .filter(|(task, _)| !own_only || task.node == *here)
        .map(|(task, address)| (address, u64::from(task.weight)))
        .collect();
    tasks.sort_unstable();
    // Two tasks at one address are one, of which the word about the other is old.
    tasks.dedup_by_key(|(address, _)| *address);
    if tasks.is_empty() {
        return Vec::new();
    }
    let weights = tasks.iter().map(|(_, weight)| *weight).collect();
    let turns = reduce(weights, cell_cap(tasks.len()));
    let repeat = |((address, _), turns): (&(IpAddr, u64), i64)| {
        std::iter::repeat_n(*address, usize::try_from(turns).unwrap_or(1))
    };
    tasks.iter().zip(turns).flat_map(repeat).collect()
}

/// One cell on when every task has one cell. Else about 0.618 of the run, so that the turns of a task
/// with many cells lie apart (three-distance theorem).
fn stride(cells: &[IpAddr]) -> u32 {
    let len = cells.len() as u64;
    if len < 3 || cells.windows(2).all(|pair| pair[0] != pair[1]) {
        return 1;
    }
    let golden = len * 618 / 1000;
    (golden..len).find(|stride| gcd(*stride, len) == 1).map_or(1, |stride| stride as u32)
}

/// The greatest common divisor.
pub(super) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
