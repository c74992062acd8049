//! The cluster link: every node tells the agents on managers what it knows of its own tasks, and
//! hears from one of them what the managers declare and what all nodes report.
//! `docs/decisions/0010-cluster-link.md` says why it is as it is.
//!
//! Read [`table`] and [`wire`] for what travels, [`hub`] for the managers' side, [`client`] for
//! every node's, and [`identity`] and [`tls`] for who may say what.

pub mod ca;
pub mod client;
pub mod hub;
pub mod identity;
pub mod keeper;
pub mod metrics;
pub mod reading;
pub mod status;
mod stream;
pub mod table;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod view;
pub mod wire;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet};
use weir_mesh::cluster::{Declared, NodeId, Report};

use client::{Choice, Client};
use hub::{Hub, Serving};
use identity::Files;
use keeper::Known;
use status::{Counters, HubStatus, LinkStatus};
pub use view::{ClusterView, From, NodeView};

/// The TCP port of the link.
pub const PORT: u16 = 7951;
/// Connections are made anew at least this often, so that certificates are looked at again.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// How often the certificates' files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// How the link works on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the hub listens while this node is a manager.
    pub listen: SocketAddr,
    /// A node that is not heard for so long is not alive. Signs of life are sent four times in it.
    pub silence: Duration,
    /// How often the certificates' files are looked at.
    pub look: Duration,
    /// Whose certificate it must be; `None`: whatever node it names is this one.
    pub node: Option<NodeId>,
}

/// What the link is told.
#[derive(Debug)]
pub struct Inputs {
    /// The identity's files; `None` while there are none, as on a node that is in no Swarm.
    pub files: watch::Receiver<Option<Files>>,
    /// Where the agents on managers listen. This node itself may be among them.
    pub managers: watch::Receiver<BTreeSet<SocketAddr>>,
    /// On managers: what they declare. `None` while it is not known; always `None` on workers.
    pub declared: watch::Receiver<Option<Arc<Declared>>>,
    /// On managers of a Swarm: when the last whole answer about that was asked for. What is declared
    /// may be older by what it takes to get here.
    pub asked: watch::Receiver<Option<Instant>>,
    /// What this node knows of itself and its tasks.
    pub report: watch::Receiver<Arc<Report>>,
}

/// The link at work. It ends when this is dropped.
#[derive(Debug)]
pub struct Link {
    client: Arc<Client>,
    hub: Arc<Hub>,
    serving: Arc<Serving>,
    known: watch::Receiver<Known>,
    counters: Arc<Counters>,
    _tasks: JoinSet<()>,
}

/// Starts the link. Nothing that goes wrong ends it: certificates that are missing, ports that are
/// taken, managers that cannot be reached are told by [`Link::status`], and tried again.
pub fn start(settings: &Settings, inputs: Inputs) -> Link {
    let Inputs { files, managers, declared, asked, report } = inputs;
    let counters = Arc::new(Counters::default());
    let known = keeper::keep(files, settings);
    let hub = Hub::new(settings, counters.clone());
    let serving = Serving::new(hub.clone(), settings.listen, known.clone());
    let client = Client::new(settings.silence, counters.clone(), known.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(hub.clone().run((declared, asked), report.clone(), known.clone()));
    tasks.spawn(serving.clone().run());
    tasks.spawn(client.clone().report(report));
    tasks.spawn(client.clone().connect(managers));
    tasks.spawn(client.clone().choose(Some(hub.clone())));
    Link { client, hub, serving, known, counters, _tasks: tasks }
}

// === impl Settings ===

impl Settings {
    /// Listens at `address`, with everything else as it is by default.
    pub fn at(address: SocketAddr) -> Self {
        Self { listen: address, silence: Duration::from_secs(1), look: LOOK, node: None }
    }
}

// === impl Link ===

impl Link {
    /// The merged view, whenever it changes.
    pub fn view(&self) -> watch::Receiver<ClusterView> {
        self.client.view()
    }

    /// Counters, for metrics.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// How it is now.
    pub fn status(&self) -> LinkStatus {
        let known = self.known.borrow().clone();
        let managers = self.client.peers();
        let view = match self.client.chosen() {
            Choice::Nobody => "nobody".to_owned(),
            Choice::Own => "own".to_owned(),
            Choice::Peer(address) => {
                let node = managers.get(&address).and_then(|peer| peer.node.clone());
                node.unwrap_or_else(|| address.to_string())
            }
        };
        let who = known.tls.as_ref().map(|tls| &tls.who);
        let manager = who.is_some_and(|who| who.role == identity::Role::Manager);
        LinkStatus {
            identity: who.map(ToString::to_string),
            days_left: who.map(|who| who.left().as_secs() / 86_400),
            expired: who.is_some_and(|who| who.left().is_zero()),
            identity_trouble: known.trouble,
            hub: manager.then(|| self.hub_status()),
            view,
            managers,
        }
    }

    fn hub_status(&self) -> HubStatus {
        let bound = self.serving.bound();
        let (alive, silent) = self.hub.counts();
        HubStatus {
            listening: bound.clone().ok(),
            trouble: bound.err(),
            ready: self.hub.pulse().borrow().ready,
            alive,
            silent,
            refused: self.counters.refusals(),
        }
    }

    /// Frames' bytes sent so far, before TLS.
    pub fn sent_bytes(&self) -> u64 {
        self.counters.sent_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.client.disconnect();
    }
}
