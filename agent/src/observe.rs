//! All that the agent can say of itself at one moment: what status, metrics and readiness are made
//! of.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use weir_loader::DroppedPacket;
use weir_mesh::{
    NodeName,
    trace::{Fate, Pass},
};

use crate::{
    config::Config,
    dns::Dns,
    drain::{Drained, Drains},
    link::{
        ClusterView, From,
        status::{Counters, LinkStatus},
    },
    plane::beside::Beside,
    probes::LocalHealth,
    reconciler::{
        Asked, FlowSource, ReconcileReport, StatsReport, Traced,
        thread::{AskError, Handle},
    },
    snapshots::View,
    source::SourceState,
    swarm::LateLink,
};

/// The mesh as it should be, and how this node's tasks are.
pub struct Judged {
    /// The mesh.
    pub view: watch::Receiver<View>,
    /// The tasks.
    pub health: watch::Receiver<LocalHealth>,
}

/// The planes of this node.
pub struct Planes {
    /// The one that was chosen.
    pub main: Handle,
    /// The proxy beside it, once there is one.
    pub beside: Beside,
}

/// Where observations are made.
pub struct Observer {
    config: Arc<Config>,
    source: watch::Receiver<SourceState>,
    judged: Judged,
    planes: Planes,
    stats: Mutex<Arc<StatsReport>>,
    started: Instant,
    opened: watch::Receiver<bool>,
    link: LateLink,
    dns: Option<Arc<Dns>>,
    drains: Option<Arc<Drains>>,
}

/// One moment.
#[derive(Clone)]
pub struct Observation {
    /// How the agent is configured.
    pub config: Arc<Config>,
    /// What the source last said.
    pub source: SourceState,
    /// The mesh as it should be.
    pub view: View,
    /// How this node's tasks are.
    pub health: LocalHealth,
    /// How the kernel stands to it.
    pub report: ReconcileReport,
    /// What the kernel counted.
    pub stats: Arc<StatsReport>,
    /// Since when the agent runs.
    pub started: Instant,
    /// Whether the data plane is loaded and attached.
    pub opened: bool,
    /// The cluster link, where there is one.
    pub link: Option<LinkMoment>,
    /// The DNS server, where there is one.
    pub dns: Option<Arc<Dns>>,
    /// What is drained by hand.
    pub drained: Arc<Drained>,
}

/// The cluster link at one moment.
#[derive(Clone, Debug)]
pub struct LinkMoment {
    /// How it is.
    pub status: LinkStatus,
    /// What it has counted.
    pub counters: Arc<Counters>,
    /// What is known of the cluster by it.
    pub view: ClusterView,
}

/// Counters are read from the kernel at most this often, however many ask.
const FRESH: Duration = Duration::from_secs(1);
/// Who asks gets older counters rather than wait longer for a busy reconciler.
const PATIENCE: Duration = Duration::from_secs(2);

impl LinkMoment {
    /// The addresses of nodes that were heard, and whether they are now, as far as somebody says so now.
    pub fn heard(&self) -> BTreeMap<IpAddr, bool> {
        let mut heard = BTreeMap::new();
        if self.view.from == From::Nobody {
            return heard;
        }
        for node in self.view.reports.values() {
            let Some(report) = &node.report else { continue };
            // A host that left the Swarm and joined again has an old name as well, at the same address.
            *heard.entry(report.node.address).or_default() |= node.alive;
        }
        heard
    }

    /// The addresses of nodes that were heard and are silent now.
    pub fn silent(&self) -> BTreeSet<IpAddr> {
        let silent = self.heard().into_iter().filter(|(_, alive)| !alive);
        silent.map(|(address, _)| address).collect()
    }
}

impl Observation {
    /// What this node is called in the mesh.
    pub fn here(&self) -> &NodeName {
        let snapshot = self.view.snapshot.as_ref();
        let named = snapshot.and_then(|snapshot| snapshot.here.as_ref());
        named.unwrap_or(&self.config.node.name)
    }
}

impl Observer {
    /// Observes these.
    pub fn new(
        config: Arc<Config>,
        source: watch::Receiver<SourceState>,
        judged: Judged,
        planes: Planes,
        opened: watch::Receiver<bool>,
        link: LateLink,
    ) -> Self {
        let mut long_ago = StatsReport::empty();
        long_ago.read = long_ago.read.checked_sub(FRESH).unwrap_or(long_ago.read);
        let stats = Mutex::new(Arc::new(long_ago));
        Self {
            config,
            source,
            judged,
            planes,
            stats,
            started: Instant::now(),
            opened,
            link,
            dns: None,
            drains: None,
        }
    }

    /// The DNS server as well, if there is one.
    pub fn with_dns(self, dns: Option<Arc<Dns>>) -> Self {
        Self { dns, ..self }
    }

    /// What is drained by hand as well.
    pub fn with_drains(self, drains: Option<Arc<Drains>>) -> Self {
        Self { drains, ..self }
    }

    /// What is drained by hand, where that is kept.
    pub fn drains(&self) -> Option<&Arc<Drains>> {
        self.drains.as_ref()
    }

    /// The DNS server, if there is one.
    pub fn dns(&self) -> Option<&Arc<Dns>> {
        self.dns.as_ref()
    }

    /// This moment, with counters as they were last read.
    pub async fn now(&self) -> Observation {
        let stats = self.stats.lock().await.clone();
        self.with(stats)
    }

    /// This moment, with counters no older than a second, unless the reconciler is busy.
    pub async fn now_with_counters(&self) -> Observation {
        let stats = self.fresh_stats().await;
        self.with(stats)
    }

    /// The text form of the kernel's maps.
    pub async fn dump(&self) -> Result<String, String> {
        self.planes.main.dump().await.map_err(|error| error.to_string())
    }

    /// What this node would do with a flow.
    ///
    /// # Errors
    /// When a plane cannot be asked.
    pub async fn trace(&self, asked: Asked) -> Result<Traced, AskError> {
        let traced = self.planes.main.trace(asked).await?;
        // Ports that the kernel leaves alone may be those of the proxy beside it.
        match (&traced.answer.fate, self.planes.beside.get()) {
            (Fate::Passes(Pass::Withheld), Some(beside)) => {
                let by_proxy = beside.trace(asked).await?;
                let serves = !matches!(by_proxy.answer.fate, Fate::Passes(_));
                Ok(if serves { by_proxy } else { traced })
            }
            _ => Ok(traced),
        }
    }

    /// The last packets that were not forwarded by the kernel, the latest at the end.
    ///
    /// # Errors
    /// When the plane cannot be asked.
    pub async fn last_drops(&self) -> Result<Vec<DroppedPacket>, AskError> {
        self.planes.main.last_drops().await
    }

    /// The flows of the kernel; `None` where flows are sockets of the agent.
    ///
    /// # Errors
    /// When the plane cannot be asked.
    pub async fn flows(&self) -> Result<Option<FlowSource>, AskError> {
        self.planes.main.flows().await
    }

    async fn fresh_stats(&self) -> Arc<StatsReport> {
        // Held while asking: of many that ask at once, one asks the kernel.
        let mut stats = self.stats.lock().await;
        let opened = *self.opened.borrow();
        if opened && stats.read.elapsed() >= FRESH {
            match timeout(PATIENCE, self.planes.stats()).await {
                Ok(Ok(fresh)) => *stats = Arc::new(fresh),
                Ok(Err(error)) => tracing::warn!(%error, "cannot read the kernel's counters"),
                Err(_) => tracing::debug!("the reconciler is busy, counters are old"),
            }
        }
        stats.clone()
    }

    fn with(&self, stats: Arc<StatsReport>) -> Observation {
        Observation {
            config: self.config.clone(),
            source: self.source.borrow().clone(),
            view: self.judged.view.borrow().clone(),
            health: self.judged.health.borrow().clone(),
            report: self.planes.report(),
            stats,
            started: self.started,
            opened: *self.opened.borrow(),
            link: self.link.get().map(|link| LinkMoment {
                status: link.status(),
                counters: link.counters().clone(),
                view: link.view().borrow().clone(),
            }),
            dns: self.dns.clone(),
            drained: self.drains.as_ref().map(|drains| drains.now()).unwrap_or_default(),
        }
    }
}

impl Planes {
    fn report(&self) -> ReconcileReport {
        let main = self.main.report().borrow().clone();
        match self.beside.get() {
            Some(beside) => main.beside(&beside.report().borrow()),
            None => main,
        }
    }

    async fn stats(&self) -> Result<StatsReport, AskError> {
        let main = self.main.stats().await?;
        match self.beside.get() {
            Some(beside) => Ok(main.beside(beside.stats().await?)),
            None => Ok(main),
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_mesh::cluster::{NodeId, Report, ReportedNode};

    use super::*;
    use crate::link::NodeView;

    #[test]
    fn who_was_heard_and_is_not_is_silent_as_long_as_somebody_says_so() {
        let node = |last: u8, alive| {
            let address = [10, 0, 0, last].into();
            let node = ReportedNode { hostname: String::new(), address };
            NodeView { report: Some(Arc::new(Report { node, tasks: [].into() })), alive }
        };
        let never = NodeView { report: None, alive: false };
        // The last is the first, from before it left the Swarm and joined again.
        let nodes =
            [("n1", node(1, true)), ("n2", node(2, false)), ("n3", never), ("n4", node(1, false))];
        let reports = nodes.map(|(name, node)| (NodeId::new(name), node));
        let silent = |from| {
            let view =
                ClusterView { declared: None, reports: Arc::new(reports.clone().into()), from };
            let status = LinkStatus::default();
            LinkMoment { status, counters: Arc::default(), view }.silent()
        };
        assert_eq!(silent(From::Own), [IpAddr::from([10, 0, 0, 2])].into());
        assert_eq!(silent(From::Nobody), BTreeSet::new());
    }
}
