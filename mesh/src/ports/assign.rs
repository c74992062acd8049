//! Numbers for ports that were published without one.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
};

use siphasher::sip::SipHasher24;

use super::{ASSIGNED, PortSpec, PortsExhausted};
use crate::service::{Port, Protocol, PublishedPort, ServiceName, TargetPort};

const FIRST: u16 = *ASSIGNED.start();
const SPAN: u16 = *ASSIGNED.end() - FIRST + 1;

/// Gives every port a published number, the same on every node: it depends on nothing but
/// `services`.
///
/// A port asks for a number by the keyed hash of what it is: service, protocol, target, and which
/// of several such it is. Numbers that somebody published explicitly are never given out. Among
/// ports that ask for the same number the one with the lowest hash has it and the others walk on,
/// each in its own order. The result does not depend on the order of arrival (this is an ordered
/// hash table), and when a service goes, only ports move that had met one of its numbers, or the
/// old number of a port so moved, on their walk.
pub fn assign_ports(
    services: &BTreeMap<ServiceName, Vec<PortSpec>>,
) -> Result<BTreeMap<ServiceName, Vec<Port>>, PortsExhausted> {
    let mut numbers = place(services)?;
    let mut assigned = BTreeMap::new();
    for (service, specs) in services {
        // Walks are in the order of `specs`, with those left out that have a number.
        let mut walks = walks_of(service, specs).into_iter();
        let mut next = || numbers.remove(&walks.next()?.key());
        let numbered =
            specs.iter().filter_map(|spec| Some((spec, spec.published.or_else(&mut next)?)));
        let ports = numbered.map(|(spec, published)| port(spec, published)).collect();
        assigned.insert(service.clone(), ports);
    }
    Ok(assigned)
}

fn port(spec: &PortSpec, published: PublishedPort) -> Port {
    Port { protocol: spec.protocol, published, target: spec.target, mode: spec.mode }
}

/// A port in search of a number. The derived order puts the hash first, which is the precedence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Walk<'a> {
    hash: u64,
    service: &'a ServiceName,
    protocol: Protocol,
    target: TargetPort,
    ordinal: u32,
}

type Key<'a> = (&'a ServiceName, Protocol, TargetPort, u32);

fn place(
    services: &BTreeMap<ServiceName, Vec<PortSpec>>,
) -> Result<BTreeMap<Key<'_>, PublishedPort>, PortsExhausted> {
    let mut taken: BTreeSet<(Protocol, u16)> = services
        .values()
        .flatten()
        .filter_map(|spec| Some((spec.protocol, spec.published?.get())))
        .collect();
    let mut walks: Vec<Walk<'_>> =
        services.iter().flat_map(|(service, specs)| walks_of(service, specs)).collect();
    walks.sort_unstable();
    let mut numbers = BTreeMap::new();
    for walk in walks {
        let free = walk.steps().find(|number| !taken.contains(&(walk.protocol, *number)));
        let free = free.and_then(PublishedPort::new).ok_or_else(|| walk.exhausted())?;
        taken.insert((walk.protocol, free.get()));
        numbers.insert(walk.key(), free);
    }
    Ok(numbers)
}

/// One walk for each of `specs` without a number, in their order.
fn walks_of<'a>(service: &'a ServiceName, specs: &[PortSpec]) -> Vec<Walk<'a>> {
    let mut ordinals = BTreeMap::<(Protocol, TargetPort), u32>::new();
    let unnumbered = specs.iter().filter(|spec| spec.published.is_none());
    unnumbered
        .map(|spec| {
            let next = ordinals.entry((spec.protocol, spec.target)).or_default();
            *next += 1;
            Walk::of(service, spec, *next)
        })
        .collect()
}

impl<'a> Walk<'a> {
    fn of(service: &'a ServiceName, spec: &PortSpec, ordinal: u32) -> Self {
        let mut hasher = SipHasher24::new_with_keys(0x7765_6972_2d70_6f72, 0x0074_732d_7631);
        hasher.write_u8(spec.protocol.number());
        hasher.write(&spec.target.get().to_le_bytes());
        hasher.write(&ordinal.to_le_bytes());
        hasher.write(service.as_str().as_bytes());
        let (protocol, target) = (spec.protocol, spec.target);
        Self { hash: hasher.finish(), service, protocol, target, ordinal }
    }

    fn key(&self) -> Key<'a> {
        (self.service, self.protocol, self.target, self.ordinal)
    }

    /// Every number once. The stride is the walk's own (double hashing), so that two walks that met
    /// once part again: a service then disturbs few others. It must be coprime to the span.
    fn steps(&self) -> impl Iterator<Item = u16> + use<> {
        let span = u32::from(SPAN);
        let first = (self.hash % u64::from(span)) as u32;
        let wish = (self.hash >> 32) as u32 % span;
        let stride = (wish..).find(|stride| gcd(*stride, span) == 1).unwrap_or(1);
        (0..span).map(move |step| FIRST + ((first + step * (stride % span)) % span) as u16)
    }

    fn exhausted(&self) -> PortsExhausted {
        let (service, protocol, target) = (self.service.clone(), self.protocol, self.target);
        PortsExhausted { service, protocol, target }
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ports::parse_ports, service::PublishMode};

    type Specs = BTreeMap<ServiceName, Vec<PortSpec>>;

    fn specs(services: &[(&str, &[&str])]) -> Specs {
        services
            .iter()
            .map(|(name, ports)| {
                let ports = ports.iter().flat_map(|port| parse_ports(port).unwrap());
                (ServiceName::new(*name), ports.collect())
            })
            .collect()
    }

    #[test]
    fn numbers_are_the_same_in_every_build() {
        let ports = assign_ports(&specs(&[("web", &["80", "80/udp", "8080:81", "80"])])).unwrap();
        let numbers: Vec<u16> =
            ports[&ServiceName::new("web")].iter().map(|port| port.published.get()).collect();
        assert_eq!(numbers, [30468, 30408, 8080, 31095]);
    }

    #[test]
    fn an_explicit_number_is_never_given_to_another() {
        let alone = assign_ports(&specs(&[("web", &["80"])])).unwrap();
        let wanted = alone[&ServiceName::new("web")][0].published;
        let explicit = format!("{wanted}:1");
        let both = assign_ports(&specs(&[("web", &["80"]), ("zoo", &[&explicit])])).unwrap();
        assert_eq!(both[&ServiceName::new("zoo")][0].published, wanted);
        assert_ne!(both[&ServiceName::new("web")][0].published, wanted);
    }

    #[test]
    fn a_full_range_is_used_to_the_last_number_and_then_named() {
        let mut full = specs(&[("web", &["1-2768"])]);
        let ports = assign_ports(&full).unwrap();
        let numbers: BTreeSet<u16> =
            ports.values().flatten().map(|port| port.published.get()).collect();
        assert_eq!(numbers, ASSIGNED.collect());

        full.extend(specs(&[("last", &["1-1"])]));
        let error = assign_ports(&full).unwrap_err().to_string();
        assert!(
            error.starts_with("no free tcp port between 30000 and 32767 for service "),
            "{error}"
        );
        full.extend(specs(&[("last", &["1-1/udp"])]));
        assert!(assign_ports(&full).is_ok(), "udp has numbers of its own");
    }

    fn some_services() -> impl Strategy<Value = Specs> {
        // Few names and targets in a narrow space, plus a service that fills most of the range, so
        // that walks meet.
        let port = (1_u16..6, any::<bool>(), prop::option::of(30_000_u16..30_040));
        prop::collection::btree_map("[a-h]{1,2}", prop::collection::vec(port, 0..5), 0..12)
            .prop_map(|services| {
                let spec = |(target, udp, published): (u16, bool, Option<u16>)| PortSpec {
                    protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                    published: published.and_then(PublishedPort::new),
                    target: TargetPort::new(target).unwrap(),
                    mode: PublishMode::Ingress,
                };
                let ports = |ports: Vec<_>| ports.into_iter().map(spec).collect();
                let mut specs: Specs = services
                    .into_iter()
                    .map(|(name, list)| (ServiceName::new(name), ports(list)))
                    .collect();
                let crowd = (1..2600).map(|target| spec((target, false, None))).collect();
                specs.insert(ServiceName::new("crowd"), crowd);
                specs
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn no_two_ports_without_numbers_share_one(services in some_services()) {
            let ports = assign_ports(&services).unwrap();
            let mut seen = BTreeSet::new();
            for (service, specs) in &services {
                prop_assert_eq!(specs.len(), ports[service].len());
                for (spec, port) in specs.iter().zip(&ports[service]) {
                    let key = (port.protocol, port.published);
                    prop_assert!(spec.published.is_some() || seen.insert(key));
                    prop_assert!(spec.published.is_none_or(|number| number == port.published));
                }
            }
        }

        #[test]
        fn when_a_service_goes_only_ports_that_met_it_move(
            services in some_services(), which: prop::sample::Index,
        ) {
            let gone = services.keys().nth(which.index(services.len())).unwrap().clone();
            let before = place(&services).unwrap();
            let mut rest = services.clone();
            let specs = rest.remove(&gone).unwrap();
            let after = place(&rest).unwrap();

            let mut vacated: BTreeSet<(Protocol, u16)> = specs
                .iter()
                .filter_map(|spec| Some((spec.protocol, spec.published?.get())))
                .collect();
            let of_gone = before.iter().filter(|(key, _)| *key.0 == gone);
            vacated.extend(of_gone.map(|(key, number)| (key.1, number.get())));
            let mut walks: Vec<_> =
                rest.iter().flat_map(|(name, specs)| walks_of(name, specs)).collect();
            walks.sort_unstable();
            for walk in walks {
                let (old, new) = (before[&walk.key()], after[&walk.key()]);
                if old != new {
                    let mut met = walk.steps().take_while(|number| *number != old.get());
                    prop_assert!(met.any(|number| vacated.contains(&(walk.protocol, number))));
                    vacated.insert((walk.protocol, old.get()));
                }
            }
        }
    }
}
