//! Brings the words together: what dockerd says here, and what other nodes say over the link.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use tokio::sync::watch;
use weir_mesh::{
    NodeName, Timeouts,
    cluster::{Declared, NodeId, Note, Report, Words, merge},
};

use super::state::DockerState;
use crate::{
    document::{Fault, Place},
    source::{Desired, SourceState},
};

/// What other nodes say.
#[derive(Clone, Debug)]
pub struct PeerWords {
    /// What a manager's agent relays of Swarm's declarations.
    pub declared: Option<Arc<Declared>>,
    /// The last report of each other node.
    pub reports: BTreeMap<NodeId, Arc<Report>>,
    /// The nodes whose reports are current; `None` while nobody can tell, which is no reason to
    /// give their tasks up.
    pub alive: Option<BTreeSet<NodeId>>,
    /// Whether all has been heard that can be expected after a start. Until then the mesh from disk
    /// is better than half of one.
    pub settled: bool,
    /// Whether it was said to an agent before this one: what has come since is not in it, so nothing
    /// has ended because it is not in it.
    pub dated: bool,
    /// When what led to the last change was noticed here.
    pub noticed: Instant,
}

/// Makes the desired state of everybody's words.
pub struct Voices {
    docker: watch::Receiver<DockerState>,
    peers: watch::Receiver<PeerWords>,
    defaults: Timeouts,
    state: SourceState,
    output: watch::Sender<SourceState>,
}

impl PeerWords {
    /// No other node is expected to say anything.
    pub fn none() -> Self {
        Self {
            declared: None,
            reports: BTreeMap::new(),
            alive: None,
            settled: true,
            dated: false,
            noticed: Instant::now(),
        }
    }
}

impl Voices {
    /// Listens to these, and where it will publish.
    pub fn new(
        docker: watch::Receiver<DockerState>,
        peers: watch::Receiver<PeerWords>,
        defaults: Timeouts,
    ) -> (Self, watch::Receiver<SourceState>) {
        let state = SourceState::silent();
        let (output, input) = watch::channel(state.clone());
        (Self { docker, peers, defaults, state, output }, input)
    }

    /// Publishes whenever somebody says something new. Ends with its listeners, or with dockerd's
    /// source. A link that has ended says nothing new, no more.
    pub async fn run(mut self) {
        let mut linked = true;
        loop {
            self.hear();
            tokio::select! {
                changed = self.docker.changed() => if changed.is_err() { return },
                changed = self.peers.changed(), if linked => linked = changed.is_ok(),
                () = self.output.closed() => return,
            }
        }
    }

    fn hear(&mut self) {
        let docker = self.docker.borrow_and_update().clone();
        let peers = self.peers.borrow_and_update().clone();
        let state = &mut self.state;
        state.readings = docker.readings;
        state.confirmed = docker.confirmed;
        state.trouble = docker.trouble.clone().or(docker.swarm_trouble.clone());
        state.errors = docker.errors.clone();
        state.noticed = docker.noticed.max(peers.noticed);
        if let Some((desired, notes)) = self.desired(&docker, &peers) {
            self.state.notes = notes;
            if self.state.desired.as_deref() != Some(&desired) {
                self.state.desired = Some(Arc::new(desired));
            }
        } else if self.state.trouble.is_none() && self.state.desired.is_none() {
            // Something has been heard, and the rest is on its way.
            self.state.readings = 0;
        }
        self.output.send_replace(self.state.clone());
    }

    fn desired(&self, docker: &DockerState, peers: &PeerWords) -> Option<(Desired, Arc<[Fault]>)> {
        let (engine, own) = docker.engine.as_ref().zip(docker.report.as_ref())?;
        let first_hand = docker.declared.as_ref().filter(|_| engine.manager);
        let relayed = peers.declared.as_ref();
        let declared = first_hand.or(relayed).or(docker.declared.as_ref());
        let hearsay = docker.hearsay.as_ref().filter(|_| relayed.is_none());
        if !peers.settled || (declared.is_none() && (engine.manager || hearsay.is_none())) {
            return None;
        }
        let mut reports = peers.reports.clone();
        reports.insert(engine.node.clone(), own.clone());
        let mut alive = match &peers.alive {
            Some(alive) => alive.clone(),
            None => reports.keys().cloned().collect(),
        };
        alive.insert(engine.node.clone());
        let mut merged = merge(&Words {
            declared: declared.map(|declared| &**declared),
            hearsay: hearsay.map(|hearsay| &**hearsay),
            reports: &reports,
            alive: &alive,
            own: Some(&engine.node),
            timeouts: self.defaults,
        });
        let notes = merged.notes.into_iter().map(fault).collect();
        // A node that found no place in the mesh is nobody in it, and not whoever has its host name.
        let unplaced = || NodeName::new(engine.node.as_str());
        let here = merged.names.get(&engine.node).cloned().unwrap_or_else(unplaced);
        for node in merged.nodes.values_mut().filter(|node| peers.dated && node.name != here) {
            node.whole = false;
        }
        let here = Some(here);
        let desired = Desired {
            here,
            nodes: merged.nodes,
            services: merged.services,
            networks: merged.networks,
        };
        Some((desired, notes))
    }
}

fn fault(note: Note) -> Fault {
    let Note { about, key, value, problem, remedy } = note;
    Fault { place: Place::Swarm(about), key, value, problem, remedy }
}
