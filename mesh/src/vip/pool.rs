//! Virtual addresses out of a pool: which service has which follows from names alone, so that every
//! node finds the same without asking, and finds it again after a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::{
    ident::Ident,
    service::{NetworkId, ServiceName},
};

/// A pool in which there is no address left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} services want an address of {pool}, which has {size}")]
pub struct PoolFull {
    /// The network.
    pub network: NetworkId,
    /// The pool.
    pub pool: IpNet,
    /// How many services want one.
    pub wanted: usize,
    /// How many addresses it has for services.
    pub size: u128,
}

/// An address of `pool` for each service, none of which is in `taken`.
///
/// Each service has a place of its own in the pool, by the hash of its name and the network's. Where two
/// have the same, the first by name gets it, and the other gets the next that is free. So a service
/// keeps its address whatever other services come and go, unless one comes that has the same place
/// and an earlier name; in a pool with a hundred times the room that is one case in a hundred.
pub fn allocate(
    network: &NetworkId,
    pool: IpNet,
    services: &BTreeSet<&ServiceName>,
    taken: &BTreeSet<IpAddr>,
) -> Result<BTreeMap<ServiceName, IpAddr>, PoolFull> {
    let size = size(pool);
    let in_pool = taken.iter().filter(|address| pool.contains(*address)).count() as u128;
    let full = || PoolFull { network: network.clone(), pool, wanted: services.len(), size };
    if services.len() as u128 > size.saturating_sub(in_pool) {
        return Err(full());
    }
    let mut used = taken.clone();
    let mut addresses = BTreeMap::new();
    // First everybody who has a place alone or comes first, then those who have to move on.
    let mut moved = Vec::new();
    for service in services {
        let place = u128::from(Ident::of_vip(service, network).0) % size;
        let address = at(pool, place);
        if used.insert(address) {
            addresses.insert((*service).clone(), address);
        } else {
            moved.push((service, place));
        }
    }
    for (service, place) in moved {
        let mut further = (1..size).map(|step| at(pool, (place + step) % size));
        let free = further.find(|address| !used.contains(address)).ok_or_else(full)?;
        used.insert(free);
        addresses.insert((*service).clone(), free);
    }
    Ok(addresses)
}

/// Addresses that a pool has for services: not the first two, which are the network's own and often
/// its gateway's, nor the last.
fn size(pool: IpNet) -> u128 {
    let bits = u32::from(pool.max_prefix_len() - pool.prefix_len());
    let all = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
    all.saturating_sub(3)
}

fn at(pool: IpNet, place: u128) -> IpAddr {
    match pool.network() {
        IpAddr::V4(first) => {
            let first = u128::from(u32::from(first));
            Ipv4Addr::from(u32::try_from(first + 2 + place).unwrap_or(u32::MAX)).into()
        }
        IpAddr::V6(first) => {
            Ipv6Addr::from(u128::from(first).saturating_add(2).saturating_add(place)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<ServiceName> {
        (0..count).map(|at| ServiceName::new(format!("service-{at}"))).collect()
    }

    fn given(pool: &str, names: &[ServiceName], taken: &[&str]) -> BTreeMap<ServiceName, IpAddr> {
        let taken = taken.iter().map(|text| text.parse().unwrap()).collect();
        let blue = NetworkId::new("blue");
        allocate(&blue, pool.parse().unwrap(), &names.iter().collect(), &taken).unwrap()
    }

    #[test]
    fn every_service_has_an_address_of_its_own_in_the_pool() {
        for pool in ["10.96.0.0/24", "fd96::/64"] {
            let all = given(pool, &names(200), &["10.96.0.77"]);
            let distinct: BTreeSet<_> = all.values().collect();
            assert_eq!(distinct.len(), 200);
            let net: IpNet = pool.parse().unwrap();
            assert!(all.values().all(|address| net.contains(address)));
            for unfit in ["10.96.0.0", "10.96.0.1", "10.96.0.255", "10.96.0.77"] {
                assert!(!distinct.contains(&unfit.parse::<IpAddr>().unwrap()), "{unfit}");
            }
        }
    }

    #[test]
    fn a_service_keeps_its_address_when_others_come_and_go() {
        let all = names(100);
        let before = given("10.96.0.0/16", &all, &[]);
        let fewer: Vec<_> = all.iter().step_by(2).cloned().collect();
        let after = given("10.96.0.0/16", &fewer, &[]);
        let moved = after.iter().filter(|(name, address)| before[*name] != **address).count();
        assert_eq!(moved, 0);
    }

    #[test]
    fn a_pool_can_be_used_to_its_last_address_and_no_further() {
        assert_eq!(given("10.96.0.0/29", &names(5), &[]).len(), 5);
        let blue = NetworkId::new("blue");
        let six = names(6);
        let pool = "10.96.0.0/29".parse().unwrap();
        let full = allocate(&blue, pool, &six.iter().collect(), &BTreeSet::new()).unwrap_err();
        assert_eq!(full.to_string(), "6 services want an address of 10.96.0.0/29, which has 5");
    }

    #[test]
    fn the_addresses_are_the_same_in_every_build() {
        let web = [ServiceName::new("web")];
        assert_eq!(given("10.96.0.0/16", &web, &[])[&web[0]].to_string(), EXPECTED);
    }

    const EXPECTED: &str = "10.96.214.51";
}
