//! A node of a Swarm: its dockerd and the agents of the other nodes, brought together.
//!
//! dockerd tells the link who this node is, what it runs and, on managers, what the Swarm declares;
//! the link tells the source what the other nodes say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time};
use tracing::warn;
use weir_mesh::cluster::Report;

use crate::{
    config::{Config, DockerSourceConfig, LinkConfig},
    hold_back::HoldBack,
    last_words::LastWords,
    link::{self, ClusterView, From, Inputs, Link, identity::Files},
    probes::LocalHealth,
    reconciler::{ReconcileReport, thread::Handle},
    source::{
        SourceState,
        docker::{DockerSource, DockerState, Engine, PeerWords, Voices},
    },
};

/// For so long a start waits for the agent of a manager; then this node goes on with what it knows
/// itself and Docker's gossip.
const PATIENCE: Duration = Duration::from_secs(10);

/// The link, as soon as dockerd has said who this node is.
pub type LateLink = Arc<OnceLock<Link>>;

/// What is followed in a Swarm.
pub struct Followed {
    /// The desired state.
    pub state: watch::Receiver<SourceState>,
    /// The link to the other agents.
    pub link: LateLink,
    /// What dockerd says.
    pub words: watch::Receiver<DockerState>,
}

/// Follows dockerd and the other agents; the desired state is what all of them say together. `health` is how
/// this node's tasks are, `reconciled` what its data plane holds.
pub fn follow(
    config: &Config,
    docker: &DockerSourceConfig,
    health: watch::Receiver<LocalHealth>,
    reconciled: watch::Receiver<ReconcileReport>,
) -> Followed {
    let (source, words) = DockerSource::new(docker, config.node.address);
    tokio::spawn(source.run());
    let unheard = PeerWords { settled: false, ..PeerWords::none() };
    let (peers, heard) = watch::channel(unheard);
    let (voices, state) = Voices::new(words.clone(), heard, config.timeouts);
    tokio::spawn(voices.run());
    let late = LateLink::default();
    let own = Own { words: words.clone(), health, reconciled, hold_back: HoldBack::default() };
    let kept = LastWords::beside(&config.state);
    tokio::spawn(link_up(config.link.clone(), own, peers, (kept, late.clone())));
    Followed { state, link: late, words }
}

/// Tells the reconciler of the network namespaces of this node's containers.
pub async fn pass_spaces(mut words: watch::Receiver<DockerState>, reconciler: Handle) {
    let mut told = None;
    loop {
        let spaces = words.borrow_and_update().spaces.clone();
        if spaces != told
            && let Some(spaces) = &spaces
        {
            reconciler.see_spaces(spaces.to_vec());
        }
        told = spaces;
        if words.changed().await.is_err() {
            return;
        }
    }
}

/// Starts the link once there is something to say: a report without this node's tasks would make
/// the other nodes give them up.
async fn link_up(
    config: LinkConfig,
    mut own: Own,
    peers: watch::Sender<PeerWords>,
    (kept, late): (LastWords, LateLink),
) {
    let known = own.words.wait_for(|state| state.engine.is_some() && state.report.is_some()).await;
    let Ok(state) = known.map(|state| state.clone()) else { return };
    let Some((engine, report)) = state.engine.as_ref().zip(own.report(&state)) else { return };
    let (files, files_seen) = watch::channel(files(&config, engine));
    let (managers, managers_seen) = watch::channel(managers(&config, engine));
    let (declared, declared_seen) = watch::channel(first_hand(&state));
    let (reports, reports_seen) = watch::channel(report);
    let inputs = Inputs {
        files: files_seen,
        managers: managers_seen,
        declared: declared_seen,
        asked: state.asked.clone(),
        report: reports_seen,
    };
    let settings = link::Settings { silence: config.silence, ..link::Settings::at(config.listen) };
    let started = link::start(&settings, inputs);
    let view = started.view();
    // Nobody else sets it.
    let _ = late.set(started);
    let telling = async {
        while own.changed().await {
            let state = own.words.borrow_and_update().clone();
            if let Some(engine) = &state.engine {
                replace(&files, self::files(&config, engine));
                replace(&managers, self::managers(&config, engine));
            }
            if let Some(report) = own.report(&state) {
                replace(&reports, report);
            }
            replace(&declared, first_hand(&state));
        }
    };
    let last = kept.load(&engine.node).unwrap_or_else(|error| {
        warn!(%error, "starting without what other nodes said last");
        None
    });
    let keeping = kept.keep(engine.node.clone(), peers.subscribe());
    tokio::join!(telling, keeping, listen(view, peers, last));
}

/// What this node knows of itself.
struct Own {
    words: watch::Receiver<DockerState>,
    health: watch::Receiver<LocalHealth>,
    reconciled: watch::Receiver<ReconcileReport>,
    hold_back: HoldBack,
}

impl Own {
    /// Waits for news; false when there will be none.
    async fn changed(&mut self) -> bool {
        let waits_until = self.hold_back.waits_until();
        let programmed = async {
            match waits_until {
                // Reports come several times a second; and a reconciler that has ended is noticed elsewhere.
                Some(until) => {
                    drop(time::timeout_at(until.into(), self.reconciled.changed()).await)
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.words.changed() => changed.is_ok(),
            changed = self.health.changed() => changed.is_ok(),
            () = programmed => true,
        }
    }

    /// What others are told of this node's tasks: as far as its data plane knows them, too.
    fn report(&mut self, state: &DockerState) -> Option<Arc<Report>> {
        let report = self.known(state)?;
        let held = self.reconciled.borrow_and_update().held.clone();
        Some(self.hold_back.pass(report, held.as_deref(), Instant::now()))
    }

    /// What dockerd says, and what was found out besides.
    fn known(&mut self, state: &DockerState) -> Option<Arc<Report>> {
        let report = state.report.clone()?;
        let health = self.health.borrow_and_update();
        let bad = health.values().filter_map(|task| {
            Some(((task.service.as_str(), task.task.as_str()), task.verdict.as_ref()?))
        });
        let bad: BTreeMap<_, _> = bad.collect();
        if bad.is_empty() {
            return Some(report);
        }
        let mut told = (*report).clone();
        for task in told.tasks.values_mut() {
            let found = bad.get(&(task.service_name.as_str(), task.name.as_str()));
            if let Some(verdict) = found.copied() {
                Arc::make_mut(task).verdict = Some(verdict.clone());
            }
        }
        Some(Arc::new(told))
    }
}

/// Passes on what the other nodes say, from when somebody says something. If nobody does, what they
/// said to the agent before this one: that it ended is no reason to give up their tasks.
async fn listen(
    mut view: watch::Receiver<ClusterView>,
    peers: watch::Sender<PeerWords>,
    last: Option<PeerWords>,
) {
    let heard = view.wait_for(|view| view.from != From::Nobody);
    if time::timeout(PATIENCE, heard).await.is_err() {
        warn!(
            waited = ?PATIENCE,
            known_before = last.is_some(),
            "no agent on a manager is heard, going on with what was said last, or with Docker's gossip"
        );
    }
    loop {
        let view_now = view.borrow_and_update().clone();
        let before = last.as_ref().filter(|_| view_now.declared.is_none());
        peers.send_replace(before.cloned().unwrap_or_else(|| words_of(&view_now)));
        if view.changed().await.is_err() {
            return;
        }
    }
}

/// What a view says. While no manager is heard nobody can tell who is alive.
fn words_of(view: &ClusterView) -> PeerWords {
    let reports = view.reports.iter();
    let said = reports.filter_map(|(id, node)| Some((id.clone(), node.report.clone()?)));
    let alive = view.reports.iter().filter(|(_, node)| node.alive).map(|(id, _)| id.clone());
    PeerWords {
        declared: view.declared.clone(),
        reports: said.collect(),
        alive: (view.from != From::Nobody).then(|| alive.collect()),
        settled: true,
        dated: false,
        noticed: Instant::now(),
    }
}

/// Swarm's own certificates, unless others are configured.
fn files(config: &LinkConfig, engine: &Engine) -> Option<Files> {
    Some(config.files.clone().unwrap_or_else(|| Files::of_swarm(&engine.root)))
}

/// Swarm's managers, unless others are configured. Their agents listen where this one would.
fn managers(config: &LinkConfig, engine: &Engine) -> BTreeSet<SocketAddr> {
    if !config.peers.is_empty() {
        return config.peers.clone();
    }
    let port = config.listen.port();
    engine.managers.iter().map(|(_, swarm)| SocketAddr::new(swarm.ip(), port)).collect()
}

/// What this node may declare to others.
fn first_hand(state: &DockerState) -> Option<Arc<weir_mesh::cluster::Declared>> {
    let manager = state.engine.as_ref().is_some_and(|engine| engine.manager);
    state.declared.clone().filter(|_| manager)
}

fn replace<T: PartialEq>(to: &watch::Sender<T>, new: T) {
    to.send_if_modified(|old| {
        let changed = *old != new;
        *old = new;
        changed
    });
}
