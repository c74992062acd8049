//! The proxy beside the kernel plane: it serves what services ask for and the kernel cannot do.
//!
//! A port passes from one plane to the other without a moment in which nobody serves it: the proxy has
//! listened for a second before the kernel leaves clients to it, and the kernel has taken new clients,
//! which it does before any socket sees them, for two seconds before the proxy closes (`split.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tracing::{error, info};
use weir_mesh::{MeshSnapshot, Service, ServiceName, install::Frontend};

use super::{
    Chosen, Kind, Plane, UserPlane,
    split::{Asks, Handing, Split},
};
use crate::{
    config::Config,
    probes::{Finding, refusals},
    reconciler::{
        self, Ceded, ReconcileReport,
        needs::ports_of,
        thread::{Handle, Started},
    },
    snapshots::View,
    upgrade::{Heritage, Role},
};

/// The reconciler of the proxy beside the kernel plane, once there is one.
pub type Beside = Arc<OnceLock<Handle>>;

/// After a proxy that could not be started.
const RETRY: Duration = Duration::from_secs(5);

/// What passes snapshots on to the planes of this node.
pub struct Splitter {
    /// How the agent is configured.
    pub config: Arc<Config>,
    /// What its reconcilers are told.
    pub settings: reconciler::Settings,
    /// The one of the plane that was chosen.
    pub main: Handle,
    /// Where the other one will be.
    pub beside: Beside,
    /// Takes what tasks refuse.
    pub findings: mpsc::Sender<Finding>,
    /// What the agent before leaves.
    pub heritage: Heritage,
}

/// What of the reports of both planes settles who serves what.
struct Settled {
    kernel: Arc<BTreeSet<Frontend>>,
    /// None before there is a proxy.
    proxy: Option<Arc<BTreeSet<Frontend>>>,
    unserved: BTreeMap<Frontend, String>,
}

/// What was handed on last.
#[derive(Default)]
struct Passed {
    /// Whether a service asks for the proxy.
    asked: bool,
    view: Option<View>,
    /// Services that ask for the proxy, or did.
    known: BTreeSet<ServiceName>,
    /// Ports on their way from the kernel to the proxy.
    handing: Handing,
    /// When the kernel may leave the next of them.
    wake: Option<Instant>,
    by_kernel: Ceded,
    by_proxy: Option<Ceded>,
    /// By which reports that was settled.
    settled_by: Option<Settled>,
    /// Whether the proxy has been told of any.
    begun: bool,
}

impl Splitter {
    /// Hands every snapshot on, to the kernel plane and, as far as it is needed, to a proxy beside it,
    /// until the writer ends.
    pub async fn run(self, mut view: watch::Receiver<View>) {
        let mut report = self.main.report();
        let plane = report.wait_for(|report| report.plane.is_some()).await;
        let Ok(plane) = plane.map(|report| report.plane.clone()) else { return };
        if plane.is_some_and(|plane| plane.kind == Kind::Proxy) {
            return self.main.follow(view).await;
        }
        let mut passed = Passed::default();
        let mut other = None;
        let mut try_again = Instant::now();
        loop {
            let now = view.borrow_and_update().clone();
            if !self.pass(&now, &mut passed) {
                return;
            }
            let waiting = self.heritage.waits_for(Role::Beside);
            let wanted = (passed.asked || waiting) && other.is_none();
            if wanted && Instant::now() >= try_again {
                other = self.start().await.map(|beside| beside.report());
                try_again = Instant::now() + RETRY;
                continue;
            }
            let wake = passed.wake;
            let moved = async {
                match &mut other {
                    Some(other) => other.changed().await.ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = report.changed() => if changed.is_err() { return },
                _ = moved => {}
                () = sleep_until(try_again), if wanted => {}
                () = sleep_until(wake.unwrap_or(try_again)), if wake.is_some() => {}
            }
        }
    }

    /// Hands on the newest snapshot, and who serves what of it.
    fn pass(&self, view: &View, passed: &mut Passed) -> bool {
        let Some(snapshot) = &view.snapshot else { return true };
        let fresh = !passed.view.as_ref().is_some_and(|before| {
            let same = |of: &Arc<MeshSnapshot>| Arc::ptr_eq(of, snapshot);
            before.snapshot.as_ref().is_some_and(same) && before.stale == view.stale
        });
        if fresh {
            passed.asked = snapshot.services.values().any(|service| self.asks(service));
            passed.view = Some(view.clone());
        }
        // Reports come several times a second: where nobody asks they say nothing.
        if !passed.asked && self.beside.get().is_none() {
            return !fresh || self.main.take(view.clone());
        }
        let kernel = self.main.report().borrow().clone();
        let proxy = self.beside.get().map(|beside| beside.report().borrow().clone());
        // Going through thousands of services at every report would be most of what an idle agent does.
        let settled_by = Settled::of(&kernel, proxy.as_ref());
        let is_due = passed.wake.is_some_and(|wake| wake <= Instant::now());
        let known = passed.settled_by.as_ref().is_some_and(|before| before.is(&settled_by));
        if known && !fresh && !is_due {
            return true;
        }
        passed.settled_by = Some(settled_by);
        // A service that needed the proxy once stays with it: there its ports are ceded, so that its
        // flows there end as they would have, and a change back finds everything in place.
        passed.known.retain(|name| snapshot.services.contains_key(name));
        let known = passed.known.len();
        let needing = snapshot.services.values().filter(|service| self.asks(service));
        passed.known.extend(needing.map(|service| service.name.clone()));
        let services = || passed.known.iter().filter_map(|name| snapshot.services.get(name));
        let (node, now) = (&self.settings.node, Instant::now());
        let both_families = self.config.proxy.other_family;
        passed.handing.look(services(), both_families, node, &kernel, proxy.as_ref(), now);
        let handing = &passed.handing;
        passed.wake = handing.next(now);
        let how = (handing, both_families);
        let split = Split::new(services(), node, &kernel, proxy.as_ref(), how, now);
        // Before it listens anywhere: it may do so sooner than the kernel plane looks.
        let listened = services().flat_map(|service| ports_of(service, node)).collect();
        let by_kernel = Ceded { ports: split.by_kernel, shared: split.shared, listened };
        if passed.by_kernel != by_kernel {
            passed.by_kernel = by_kernel.clone();
            self.main.cede(by_kernel);
        }
        if let Some(beside) = self.beside.get() {
            let by_proxy = Ceded { ports: split.by_proxy, ..Ceded::default() };
            if passed.by_proxy.as_ref() != Some(&by_proxy) {
                passed.by_proxy = Some(by_proxy.clone());
                beside.cede(by_proxy);
            }
            if fresh || !passed.begun || passed.known.len() != known {
                passed.begun = true;
                beside.take(View { snapshot: Some(part(snapshot, &passed.known)), ..view.clone() });
            }
        }
        !fresh || self.main.take(view.clone())
    }

    /// Whether the proxy is to know a service.
    fn asks(&self, service: &Service) -> bool {
        Asks::of(service, self.config.proxy.other_family) != Asks::Nothing
    }

    async fn start(&self) -> Option<&Handle> {
        let settings = reconciler::Settings {
            sees_containers: false,
            programming: Histogram::new([1.0]),
            ..self.settings.clone()
        };
        let (config, heritage) = (self.config.clone(), self.heritage.clone());
        let chosen =
            Chosen { kind: Kind::Proxy, reason: "for what the kernel cannot do".to_owned() };
        let open = move || UserPlane::beside(&config, chosen, &heritage).map(Plane::user);
        let opened = match reconciler::thread::spawn_with(open, settings) {
            Ok(Started { opening, handle, .. }) => {
                let opened = opening.await.map_err(|error| error.to_string());
                opened.and_then(|opened| opened.map_err(|error| error.to_string())).map(|_| handle)
            }
            Err(error) => Err(error.to_string()),
        };
        match opened {
            Ok(handle) => {
                info!("a proxy runs beside the kernel plane, for services that need it");
                tokio::spawn(refusals::run(handle.clone(), self.findings.clone()));
                Some(self.beside.get_or_init(|| handle))
            }
            Err(error) => {
                error!(error, "services that need the proxy are not served, trying again");
                None
            }
        }
    }
}

impl Settled {
    fn of(kernel: &ReconcileReport, proxy: Option<&ReconcileReport>) -> Self {
        Self {
            kernel: kernel.ports.clone(),
            proxy: proxy.map(|report| report.ports.clone()),
            unserved: proxy.map(|report| report.unserved.clone()).unwrap_or_default(),
        }
    }

    fn is(&self, other: &Self) -> bool {
        let proxy = match (&self.proxy, &other.proxy) {
            (Some(ports), Some(others)) => Arc::ptr_eq(ports, others),
            (None, None) => true,
            _ => false,
        };
        proxy && Arc::ptr_eq(&self.kernel, &other.kernel) && self.unserved == other.unserved
    }
}

/// The services that the proxy knows.
fn part(snapshot: &MeshSnapshot, known: &BTreeSet<ServiceName>) -> Arc<MeshSnapshot> {
    let services = snapshot.services.iter().filter(|(name, _)| known.contains(*name));
    Arc::new(MeshSnapshot {
        generation: snapshot.generation,
        here: snapshot.here.clone(),
        nodes: snapshot.nodes.clone(),
        networks: snapshot.networks.clone(),
        services: services.map(|(name, service)| (name.clone(), service.clone())).collect(),
    })
}
