//! Who serves the clients of which ports, where the proxy runs beside the kernel plane.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use weir_mesh::{NodeName, PublishMode, Service, Task, install::Frontend};

use crate::reconciler::{ReconcileReport, needs::ports_of};

/// How long the kernel goes on serving a port after the proxy began to listen there. Other nodes hear of
/// the same snapshot some tens of milliseconds sooner or later, and more when they are busy. Until they
/// have, their proxies refuse what this one hands over, while their kernels take what this kernel
/// forwards.
const GRACE: Duration = Duration::from_secs(1);

/// How long the proxy goes on listening at a port that the kernel has taken. A client that it has begun
/// to shake hands with has to end that with it: after a round trip, or, if that is lost, when the answer
/// to its first packet is sent again, which is a second later (RFC 6298, section 2.1).
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Ports on their way from one plane to the other.
#[derive(Debug, Default)]
pub(super) struct Handing {
    /// Since when both serve clients there, and what for.
    since: BTreeMap<Frontend, (Asks, Instant)>,
}

/// What a service asks of a proxy beside the kernel plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// All its clients are the proxy's.
    All,
    /// Clients of a family that no task has.
    OtherFamily,
    /// None: the kernel serves them.
    Nothing,
}

/// Who leaves the clients of which ports to the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) by_kernel: BTreeSet<Frontend>,
    /// As far as clients are of a family that no task has.
    pub(super) shared: BTreeSet<Frontend>,
    pub(super) by_proxy: BTreeSet<Frontend>,
}

impl Asks {
    /// `both_families`: the proxy serves those clients whose family no task has.
    pub(super) fn of(service: &Service, both_families: bool) -> Self {
        match () {
            () if service.proxied.is_needed() => Self::All,
            () if both_families && shares(service) => Self::OtherFamily,
            () => Self::Nothing,
        }
    }

    /// How long both planes serve a port, before the one leaves it to the other.
    fn time(self) -> Duration {
        match self {
            Self::All => GRACE,
            Self::OtherFamily | Self::Nothing => HANDSHAKE,
        }
    }
}

/// Whether clients of one address family have no task to talk to in a service that the kernel serves
/// otherwise. In a Swarm that is the rule: Docker gives tasks no IPv6 address unless asked to.
fn shares(service: &Service) -> bool {
    let some = |has: fn(&Task) -> bool| service.tasks.iter().any(has);
    let (v4, v6) = (some(|task| task.ipv4.is_some()), some(|task| task.ipv6.is_some()));
    let ingress = service.ports.iter().any(|port| port.mode == PublishMode::Ingress);
    ingress && v4 != v6
}

/// Whether the proxy listens at a port.
fn listens(proxy: Option<&ReconcileReport>, port: &Frontend) -> bool {
    proxy.is_some_and(|it| it.ports.contains(port) && !it.unserved.contains_key(port))
}

impl Handing {
    /// Notes at which ports, of services that the proxy knows, both planes serve clients.
    pub(super) fn look<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Arc<Service>>,
        both_families: bool,
        node: &NodeName,
        kernel: &ReconcileReport,
        proxy: Option<&ReconcileReport>,
        now: Instant,
    ) {
        let before = mem::take(&mut self.since);
        for service in services {
            let asks = Asks::of(service, both_families);
            let both = |port: &Frontend| kernel.ports.contains(port) && listens(proxy, port);
            self.since.extend(ports_of(service, node).filter(both).map(|port| {
                let known = before.get(&port).filter(|(before, _)| *before == asks);
                (port, *known.unwrap_or(&(asks, now)))
            }));
        }
    }

    /// Whether the one of the planes may leave a port that both serve.
    fn is_over(&self, port: &Frontend, now: Instant) -> bool {
        self.since.get(port).is_some_and(|(asks, since)| *since + asks.time() <= now)
    }

    /// When the next port may be left.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let ends = self.since.values().map(|(asks, since)| *since + asks.time());
        ends.filter(|end| *end > now).min()
    }
}

impl Split {
    /// Among the services that the proxy knows. `both_families`: it serves those clients whose family no task
    /// has.
    pub(super) fn new<'a>(
        services: impl Iterator<Item = &'a Arc<Service>>,
        node: &NodeName,
        kernel: &ReconcileReport,
        proxy: Option<&ReconcileReport>,
        (handing, both_families): (&Handing, bool),
        now: Instant,
    ) -> Self {
        let mut split = Self::default();
        // What the one serves it goes on serving until the other does, and for a while then.
        let by_kernel =
            |port: &Frontend| !kernel.ports.contains(port) || handing.is_over(port, now);
        let by_proxy = |port: &Frontend| !listens(proxy, port) || handing.is_over(port, now);
        for service in services {
            match Asks::of(service, both_families) {
                Asks::All => split.by_kernel.extend(ports_of(service, node).filter(by_kernel)),
                Asks::OtherFamily => {
                    // Nobody served these clients before: other nodes need not be waited for. The kernel takes
                    // the family that it serves before the proxy sees it.
                    let (ingress, host): (Vec<_>, Vec<_>) =
                        service.ports.iter().partition(|it| it.mode == PublishMode::Ingress);
                    let listened = |port: &Frontend| listens(proxy, port);
                    split.shared.extend(ingress.into_iter().map(Frontend::of).filter(listened));
                    split.by_proxy.extend(host.into_iter().map(Frontend::of).filter(by_proxy));
                }
                // Other nodes need not be waited for: their kernels take what is forwarded at ports that
                // they leave to their proxy as well.
                Asks::Nothing => split.by_proxy.extend(ports_of(service, node).filter(by_proxy)),
            }
        }
        split
    }
}

#[cfg(test)]
mod tests {
    use weir_mesh::{
        MeshSnapshot, ServiceName,
        proxied::{HeaderVersion, Proxied},
    };

    use super::*;
    use crate::reconciler::fake::{frontend, mesh};

    fn report(ports: &[u16]) -> ReconcileReport {
        let ports = ports.iter().map(|port| frontend(*port)).collect();
        ReconcileReport { ports: Arc::new(ports), ..ReconcileReport::default() }
    }

    /// `web` at 80 asks for a header, `zoo` at 81 did so once.
    fn snapshot() -> MeshSnapshot {
        let mut snapshot = mesh(1, &[("web", 80), ("zoo", 81)]);
        let web = snapshot.services.get_mut(&ServiceName::new("web")).unwrap();
        let header = Some(HeaderVersion::V2);
        Arc::make_mut(web).proxied = Proxied { header, ..Proxied::default() };
        snapshot
    }

    /// What each plane leaves to the other, as time passes.
    struct Watch {
        handing: Handing,
        now: Instant,
    }

    impl Watch {
        fn new() -> Self {
            Self { handing: Handing::default(), now: Instant::now() }
        }

        fn who(&mut self, kernel: &[u16], proxy: Option<&[u16]>) -> [Vec<u16>; 2] {
            let (snapshot, node) = (snapshot(), NodeName::new("n1"));
            let services = || snapshot.services.values();
            let (kernel, proxy) = (report(kernel), proxy.map(report));
            self.handing.look(services(), false, &node, &kernel, proxy.as_ref(), self.now);
            let handing = &self.handing;
            let split =
                Split::new(services(), &node, &kernel, proxy.as_ref(), (handing, false), self.now);
            [split.by_kernel, split.by_proxy]
                .map(|of| of.iter().map(|port| port.port.get()).collect())
        }
    }

    #[test]
    fn what_is_new_goes_at_once_to_whom_it_belongs() {
        let mut watch = Watch::new();
        assert_eq!(watch.who(&[], None), [vec![80], vec![81]]);
        assert_eq!(watch.who(&[81], Some(&[80])), [vec![80], vec![81]]);
        assert_eq!(watch.handing.next(watch.now), None);
    }

    #[test]
    fn the_kernel_serves_what_it_has_until_the_proxies_of_other_nodes_listen_too() {
        let mut watch = Watch::new();
        assert_eq!(watch.who(&[80, 81], Some(&[])), [vec![], vec![81]]);
        watch.now += 10 * GRACE;
        let begun = watch.now;
        assert_eq!(watch.who(&[80, 81], Some(&[80])), [vec![], vec![81]]);
        assert_eq!(watch.handing.next(watch.now), Some(begun + GRACE));
        watch.now += GRACE / 2;
        assert_eq!(watch.who(&[80, 81], Some(&[80])), [vec![], vec![81]]);
        assert_eq!(watch.handing.next(watch.now), Some(begun + GRACE));
        watch.now = begun + GRACE;
        assert_eq!(watch.who(&[80, 81], Some(&[80])), [vec![80], vec![81]]);
        assert_eq!(watch.handing.next(watch.now), None);
        // And that stays so once the kernel has left it.
        assert_eq!(watch.who(&[81], Some(&[80])), [vec![80], vec![81]]);
    }

    #[test]
    fn a_proxy_that_stops_to_listen_meanwhile_begins_its_time_anew() {
        let mut watch = Watch::new();
        watch.who(&[80], Some(&[80]));
        watch.now += GRACE / 2;
        watch.who(&[80], Some(&[]));
        watch.now += GRACE / 2;
        assert!(watch.who(&[80], Some(&[80]))[0].is_empty());
        watch.now += GRACE;
        assert_eq!(watch.who(&[80], Some(&[80]))[0], [80]);
    }

    #[test]
    fn clients_of_a_family_that_no_task_has_are_the_proxy_s_as_soon_as_it_listens() {
        // A task with IPv4.
        let mut snapshot = mesh(1, &[("web", 80)]);
        let name = ServiceName::new("web");
        let split = |web: &Arc<Service>, listened: Option<&[u16]>, both_families| {
            let (kernel, proxy) = (report(&[80]), listened.map(report));
            let (node, mut handing, begun) =
                (NodeName::new("n1"), Handing::default(), Instant::now());
            handing.look([web].into_iter(), both_families, &node, &kernel, proxy.as_ref(), begun);
            let (how, now) = ((&handing, both_families), begun + HANDSHAKE);
            Split::new([web].into_iter(), &node, &kernel, proxy.as_ref(), how, now)
        };
        let web = &snapshot.services[&name];
        assert!(shares(web));
        let shared = Split { shared: [frontend(80)].into(), ..Split::default() };
        let left = Split { by_proxy: [frontend(80)].into(), ..Split::default() };
        assert_eq!(split(web, None, true), Split::default());
        assert_eq!(split(web, Some(&[80]), true), shared);
        assert_eq!(split(web, Some(&[80]), false), left);
        let six = |task: &mut Task| task.ipv6 = Some([0xfd18, 0, 0, 0, 0, 0, 0, 2].into());
        let web = snapshot.services.get_mut(&name).unwrap();
        Arc::make_mut(web).tasks.iter_mut().for_each(six);
        assert!(!shares(web));
        assert_eq!(split(web, Some(&[80]), true), left);
    }

    #[test]
    fn the_proxy_listens_until_the_kernel_serves_and_handshakes_have_ended() {
        let mut watch = Watch::new();
        assert_eq!(watch.who(&[], Some(&[80, 81])), [vec![80], vec![]]);
        watch.now += 10 * HANDSHAKE;
        let begun = watch.now;
        assert_eq!(watch.who(&[81], Some(&[80, 81])), [vec![80], vec![]]);
        assert_eq!(watch.handing.next(watch.now), Some(begun + HANDSHAKE));
        watch.now = begun + HANDSHAKE;
        assert_eq!(watch.who(&[81], Some(&[80, 81])), [vec![80], vec![81]]);
        assert_eq!(watch.handing.next(watch.now), None);
    }

    #[test]
    fn a_service_that_asks_for_something_else_meanwhile_begins_its_time_anew() {
        let (mut snapshot, node) = (mesh(1, &[("web", 80)]), NodeName::new("n1"));
        let (both, mut now) = (report(&[80]), Instant::now());
        let mut handing = Handing::default();
        let mut ends = |snapshot: &MeshSnapshot, now| {
            let services = snapshot.services.values();
            handing.look(services, true, &node, &both, Some(&both), now);
            handing.next(now)
        };
        assert_eq!(ends(&snapshot, now), Some(now + HANDSHAKE));
        now += HANDSHAKE;
        assert_eq!(ends(&snapshot, now), None);
        let web = Arc::make_mut(snapshot.services.get_mut(&ServiceName::new("web")).unwrap());
        web.proxied.header = Some(HeaderVersion::V2);
        assert_eq!(ends(&snapshot, now), Some(now + GRACE));
        now += GRACE;
        assert_eq!(ends(&snapshot, now), None);
        let web = Arc::make_mut(snapshot.services.get_mut(&ServiceName::new("web")).unwrap());
        (web.proxied, web.tasks) = (Proxied::default(), vec![]);
        assert_eq!(ends(&snapshot, now), Some(now + HANDSHAKE));
    }
}
