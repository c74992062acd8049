//! The client, on every node: reports to all managers, and listens to one.

pub mod backoff;
mod rtt;
mod session;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::seq::IteratorRandom;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};
use tracing::{info, warn};
use weir_mesh::cluster::{NodeId, Report};

use super::{
    hub::Hub,
    keeper::Known,
    reading::Reading,
    status::{Counters, PeerStatus, lock},
    table::Table,
    tls::Tls,
    view::{ClusterView, From, Replica, report_changes},
};
use backoff::Backoff;

/// All that the connections to the managers share.
#[derive(Debug)]
pub struct Client {
    silence: Duration,
    counters: Arc<Counters>,
    known: watch::Receiver<Known>,
    /// What this node reports.
    own: Mutex<Own>,
    /// The last change of that.
    head: watch::Sender<u64>,
    peers: Mutex<BTreeMap<SocketAddr, Peer>>,
    /// Who is listened to.
    chosen: watch::Sender<Choice>,
    /// Something about the peers has changed.
    news: Notify,
    view: watch::Sender<ClusterView>,
}

#[derive(Debug, Default)]
struct Own {
    node: Option<NodeId>,
    report: Option<Arc<Report>>,
    table: Table,
}

/// Who is listened to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Nobody can tell.
    #[default]
    Nobody,
    /// The hub of this node.
    Own,
    /// The agent at this address.
    Peer(SocketAddr),
}

/// What is known of the agent on a manager.
#[derive(Debug, Default)]
struct Peer {
    node: Option<NodeId>,
    /// It is this node itself, which needs no connection.
    own: bool,
    connected: bool,
    ready: bool,
    heard: Option<Instant>,
    rtt: Option<Duration>,
    trouble: Option<String>,
    /// What was heard of its table: kept across connections.
    heard_view: Heard,
    task: Option<JoinHandle<()>>,
}

/// A copy of a hub's table, and how far it is.
#[derive(Debug, Default)]
struct Heard {
    epoch: u64,
    reading: Reading,
    /// `None` until a snapshot has come to its end.
    whole: Option<Replica>,
    /// A snapshot that is under way.
    coming: Option<Replica>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

// === impl Client ===

impl Client {
    /// A client that has nobody yet.
    pub fn new(
        silence: Duration,
        counters: Arc<Counters>,
        known: watch::Receiver<Known>,
    ) -> Arc<Self> {
        Arc::new(Self {
            silence,
            counters,
            known,
            own: Mutex::default(),
            head: watch::channel(0).0,
            peers: Mutex::default(),
            chosen: watch::channel(Choice::Nobody).0,
            news: Notify::new(),
            view: watch::channel(ClusterView::default()).0,
        })
    }

    /// The view.
    pub fn view(&self) -> watch::Receiver<ClusterView> {
        self.view.subscribe()
    }

    /// How the connections are.
    pub fn peers(&self) -> BTreeMap<SocketAddr, PeerStatus> {
        let status = |peer: &Peer| PeerStatus {
            node: peer.node.as_ref().map(ToString::to_string),
            own: peer.own,
            connected: peer.connected,
            ready: peer.ready,
            rtt: peer.rtt,
            trouble: peer.trouble.clone(),
        };
        lock(&self.peers).iter().map(|(address, peer)| (*address, status(peer))).collect()
    }

    /// Who is listened to.
    pub fn chosen(&self) -> Choice {
        *self.chosen.borrow()
    }

    /// Puts what this node reports into its table. Ends when the inputs do.
    pub async fn report(self: Arc<Self>, mut report: watch::Receiver<Arc<Report>>) {
        let mut known = self.known.clone();
        loop {
            let node = known.borrow_and_update().tls.as_ref().map(|tls| tls.who.node.clone());
            let said = report.borrow_and_update().clone();
            if let Some(node) = node {
                let head = self.say(&mut lock(&self.own), node, said);
                self.head.send_if_modified(|last| std::mem::replace(last, head) != head);
            }
            let ended = tokio::select! {
                changed = report.changed() => changed.is_err(),
                changed = known.changed() => changed.is_err(),
            };
            if ended {
                return;
            }
        }
    }

    fn say(&self, own: &mut Own, node: NodeId, said: Arc<Report>) -> u64 {
        if own.node.as_ref() != Some(&node) {
            // Under another name nothing of what was said is its own.
            *own = Own { node: Some(node.clone()), ..Own::default() };
        }
        let dropped = own.table.dropped();
        for item in report_changes(&node, own.report.as_deref(), &said) {
            own.table.set(item);
        }
        own.report = Some(said);
        Counters::add(&self.counters.oversized, (own.table.dropped() - dropped) as usize);
        own.table.head()
    }

    /// Keeps a connection to every manager. Ends when the list's sender does.
    pub async fn connect(self: Arc<Self>, mut managers: watch::Receiver<BTreeSet<SocketAddr>>) {
        loop {
            let wanted = managers.borrow_and_update().clone();
            {
                let mut peers = lock(&self.peers);
                peers.retain(|address, _| wanted.contains(address));
                for address in wanted {
                    let peer = peers.entry(address).or_default();
                    peer.task
                        .get_or_insert_with(|| tokio::spawn(self.clone().stay_connected(address)));
                }
            }
            self.news.notify_one();
            if managers.changed().await.is_err() {
                lock(&self.peers).clear();
                return;
            }
        }
    }

    async fn stay_connected(self: Arc<Self>, address: SocketAddr) {
        let mut known = self.known.clone();
        let mut backoff = Backoff::default();
        loop {
            let Some(tls) = known.borrow_and_update().tls.clone() else {
                if known.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let begun = Instant::now();
            let end = self.session(address, &tls, &mut known).await;
            Counters::add(&self.counters.disconnects, 1);
            self.lost(address, &end.to_string());
            if begun.elapsed() > self.silence * 4 {
                backoff.reset();
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// Ends every connection.
    pub fn disconnect(&self) {
        lock(&self.peers).clear();
    }

    fn with_peer<T>(&self, address: SocketAddr, work: impl FnOnce(&mut Peer) -> T) -> Option<T> {
        lock(&self.peers).get_mut(&address).map(work)
    }

    fn lost(&self, address: SocketAddr, reason: &str) {
        self.with_peer(address, |peer| {
            if peer.trouble.as_deref() != Some(reason) && !peer.own {
                warn!(%address, reason, "no connection to a manager's agent");
            }
            peer.trouble = Some(reason.to_owned());
            (peer.connected, peer.ready, peer.rtt) = (false, false, None);
        });
        self.news.notify_one();
    }

    /// Chooses whom to listen to, for ever: the own hub when its view is whole, else whoever was
    /// listened to while that one speaks, else any other.
    pub async fn choose(self: Arc<Self>, hub: Option<Arc<Hub>>) {
        let mut pulse = hub.as_ref().map(|hub| hub.pulse());
        let mut known = self.known.clone();
        let mut due: Option<Instant> = None;
        loop {
            // When this process itself was held up, the managers' words wait in its sockets.
            let late = due.map(|due| due.elapsed()).unwrap_or_default();
            if late > self.silence / 4 {
                // And a moment to look into them.
                let late = late + self.silence / 4;
                let mut peers = lock(&self.peers);
                let heard = peers.values_mut().filter_map(|peer| peer.heard.as_mut());
                heard.for_each(|at| *at += late);
            }
            let own = pulse.as_mut().is_some_and(|pulse| pulse.borrow_and_update().ready)
                && known.borrow_and_update().tls.as_ref().is_some_and(|tls| is_manager(tls));
            let before = self.chosen();
            let choice = if own { Choice::Own } else { self.choose_peer(before) };
            if choice != before {
                info!(?choice, "the view comes from another");
                Counters::add(&self.counters.failovers, 1);
                self.chosen.send_replace(choice);
                if choice == Choice::Nobody {
                    self.view.send_modify(|view| view.from = From::Nobody);
                }
            }
            if let (Choice::Own, Some(hub)) = (choice, &hub) {
                let view = hub.view();
                self.view.send_if_modified(|old| {
                    let same = old.from == view.from
                        && Arc::ptr_eq(&old.reports, &view.reports)
                        && same_arc(old.declared.as_ref(), view.declared.as_ref());
                    *old = view;
                    !same
                });
            }
            let pulsed = async {
                match &mut pulse {
                    Some(pulse) => drop(pulse.changed().await),
                    None => std::future::pending().await,
                }
            };
            due = self.look_again(choice);
            let tick = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.news.notified() => {}
                () = tick => {}
                () = pulsed => {}
                changed = known.changed() => if changed.is_err() { return },
            }
        }
    }

    /// When a choice may be over without anybody's saying so.
    fn look_again(&self, choice: Choice) -> Option<Instant> {
        let peers = lock(&self.peers);
        match choice {
            Choice::Own => None,
            Choice::Peer(address) => {
                let heard = peers.get(&address).and_then(|peer| peer.heard);
                Some(heard.map_or_else(Instant::now, |heard| heard + self.silence))
            }
            // One that is connected and was silent may speak again.
            Choice::Nobody => {
                let silent = peers.values().any(|peer| peer.connected && peer.ready);
                silent.then(|| Instant::now() + self.silence / 20)
            }
        }
    }

    fn choose_peer(&self, before: Choice) -> Choice {
        let peers = lock(&self.peers);
        let speaks = |peer: &Peer| {
            let heard = peer.heard.is_some_and(|heard| heard.elapsed() < self.silence);
            peer.connected && peer.ready && heard
        };
        if let Choice::Peer(address) = before
            && peers.get(&address).is_some_and(speaks)
        {
            return before;
        }
        let can = peers.iter().filter(|(_, peer)| speaks(peer)).map(|(address, _)| *address);
        can.choose(&mut rand::rng()).map_or(Choice::Nobody, Choice::Peer)
    }
}

fn is_manager(tls: &Tls) -> bool {
    tls.who.role == super::identity::Role::Manager
}

fn same_arc<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}
