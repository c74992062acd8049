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

/// Ports on their way from the kernel to the proxy.
#[derive(Debug, Default)]
pub(super) struct Handing {
    /// Since when the proxy listens there as well.
    since: BTreeMap<Frontend, Instant>,
}

/// Who leaves the clients of which ports to the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) by_kernel: BTreeSet<Frontend>,
    /// As far as clients are of a family that no task has.
    pub(super) shared: BTreeSet<Frontend>,
    pub(super) by_proxy: BTreeSet<Frontend>,
}

/// Whether a service asks for what only the proxy can do.
pub(super) fn needs(service: &Service) -> bool {
    service.proxied.is_needed()
}

/// Whether clients of one address family have no task to talk to in a service that the kernel serves
/// otherwise. In a Swarm that is the rule: Docker gives tasks no IPv6 address unless asked to.
pub(super) fn shares(service: &Service) -> bool {
    let some = |has: fn(&Task) -> bool| service.tasks.iter().any(has);
    let (v4, v6) = (some(|task| task.ipv4.is_some()), some(|task| task.ipv6.is_some()));
    let ingress = service.ports.iter().any(|port| port.mode == PublishMode::Ingress);
    !needs(service) && ingress && v4 != v6
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
        node: &NodeName,
        kernel: &ReconcileReport,
        proxy: Option<&ReconcileReport>,
        now: Instant,
    ) {
        let both = |port: &Frontend| kernel.ports.contains(port) && listens(proxy, port);
        let before = mem::take(&mut self.since);
        let needing = services.filter(|service| needs(service));
        let ports = needing.flat_map(|service| ports_of(service, node)).filter(both);
        self.since = ports.map(|port| (port, *before.get(&port).unwrap_or(&now))).collect();
    }

    /// Whether the kernel may leave a port that it serves.
    fn is_over(&self, port: &Frontend, now: Instant) -> bool {
        self.since.get(port).is_some_and(|since| *since + GRACE <= now)
    }

    /// When the next port may be left.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.since.values().map(|since| *since + GRACE).filter(|end| *end > now).min()
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
        for service in services {
            let ports = ports_of(service, node);
            if needs(service) {
                // What the kernel serves it goes on serving until the proxy listens, here and elsewhere.
                let left =
                    |port: &Frontend| !kernel.ports.contains(port) || handing.is_over(port, now);
                split.by_kernel.extend(ports.filter(left));
            } else if both_families && shares(service) {
                // Nobody served these clients before: other nodes need not be waited for. The kernel takes
                // the family that it serves before the proxy sees it.
                let ingress = service.ports.iter().filter(|it| it.mode == PublishMode::Ingress);
                let listened = ingress.map(Frontend::of).filter(|port| listens(proxy, port));
                split.shared.extend(listened);
                let host = service.ports.iter().filter(|it| it.mode == PublishMode::Host);
                split.by_proxy.extend(host.map(Frontend::of));
            } else {
                // The other way round nothing has to be waited for: the kernels of other nodes take what
                // is forwarded at ports that they leave to their proxy as well.
                let left = |port: &Frontend| kernel.ports.contains(port) || !listens(proxy, port);
                split.by_proxy.extend(ports.filter(left));
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
            self.handing.look(services(), &node, &kernel, proxy.as_ref(), self.now);
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
            let (node, handing) = (NodeName::new("n1"), Handing::default());
            let how = (&handing, both_families);
            Split::new([web].into_iter(), &node, &kernel, proxy.as_ref(), how, Instant::now())
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
    fn the_proxy_listens_until_the_kernel_serves() {
        let mut watch = Watch::new();
        assert_eq!(watch.who(&[], Some(&[80, 81])), [vec![80], vec![]]);
        assert_eq!(watch.who(&[81], Some(&[80, 81])), [vec![80], vec![81]]);
    }
}
