//! The hub, on managers: hears every node, and tells everybody.

mod allowance;
mod serve;
mod session;
mod strangers;
mod unlisted;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::Instant,
};
use weir_mesh::cluster::{Declared, NodeId, Report};

use super::{
    Settings,
    identity::Role,
    keeper::Known,
    reading::{Place, Reading},
    status::{Counters, lock},
    table::Table,
    view::{ClusterView, From, Replica, declared_changes, report_changes},
    wire::{Item, Key},
};

pub use serve::Serving;
use unlisted::Unlisted;

/// All that a manager's agent knows, and whom it tells.
#[derive(Debug)]
pub struct Hub {
    epoch: u64,
    silence: Duration,
    counters: Arc<Counters>,
    state: Mutex<State>,
    pulse: watch::Sender<Pulse>,
    /// For those who are told everything: the first to come have it soon, where all at once would
    /// have it late.
    seats: Arc<Semaphore>,
}

/// What wakes those who listen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// The last change.
    pub head: u64,
    /// Whether the view is whole.
    pub ready: bool,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    replica: Replica,
    declared: Option<Arc<Declared>>,
    own: Option<(NodeId, Arc<Report>)>,
    reporters: BTreeMap<NodeId, Reporter>,
    sessions: u64,
    /// Bytes that each node has said and that are kept.
    said: BTreeMap<NodeId, usize>,
    /// Who did not keep to the rules, and until when nobody hears it.
    barred: BTreeMap<NodeId, Instant>,
    /// When the managers' word first was there; the others then have a moment to report.
    began: Option<Instant>,
    ready: bool,
    unlisted: Unlisted,
}

/// A node that reports.
#[derive(Debug)]
struct Reporter {
    session: u64,
    /// Dropped: an older session of the same node ends.
    _current: oneshot::Sender<()>,
    heard: Instant,
    alive: bool,
    /// What a snapshot that is under way has named so far.
    named: Option<BTreeSet<Key>>,
    /// Bytes of that snapshot so far.
    coming: usize,
    reading: Reading,
}

/// After the managers' word is there, so many silences are waited for nodes that have not reported
/// yet, before the view counts as whole.
const OPENING_SILENCES: u32 = 3;
/// So many nodes are told everything at the same time.
const SEATS: usize = 16;
/// Those who listen are told of changes no faster than this, ...
const PACE: Duration = Duration::from_millis(5);
/// ... with many of them no faster than this for each, so that the hub has time for other things ...
const PACE_EACH: Duration = Duration::from_micros(50);
/// ... and never slower than this.
const PACE_MOST: Duration = Duration::from_millis(100);
/// Tasks that one node may report.
pub const MOST_TASKS: usize = 10_000;
/// Bytes that one node may report.
pub const MOST_SAID: usize = 8 << 20;
/// Whoever did not keep to the rules is not heard for so long.
const BARRED: Duration = Duration::from_secs(5);

// === impl Hub ===

impl Hub {
    /// A hub that knows nothing yet.
    pub fn new(settings: &Settings, counters: Arc<Counters>) -> Arc<Self> {
        let epoch = rand::random::<u64>().max(1);
        let (pulse, _) = watch::channel(Pulse::default());
        let state = Mutex::new(State { table: Table::packing(), ..State::default() });
        let seats = Arc::new(Semaphore::new(SEATS));
        Arc::new(Self { epoch, silence: settings.silence, counters, state, pulse, seats })
    }

    /// Wakes at every change.
    pub fn pulse(&self) -> watch::Receiver<Pulse> {
        self.pulse.subscribe()
    }

    /// The whole, as the hub itself sees it.
    pub fn view(&self) -> ClusterView {
        lock(&self.state).replica.view(From::Own)
    }

    /// Nodes alive, and nodes silent.
    pub fn counts(&self) -> (usize, usize) {
        let state = lock(&self.state);
        let own = usize::from(state.own.is_some());
        let alive = state.reporters.values().filter(|reporter| reporter.alive).count();
        (alive + own, state.reporters.len() - alive)
    }

    /// Keeps what this node itself knows up to date, and who is alive. Ends when the inputs do.
    pub async fn run(
        self: Arc<Self>,
        (mut declared, asked): (
            watch::Receiver<Option<Arc<Declared>>>,
            watch::Receiver<Option<std::time::Instant>>,
        ),
        mut report: watch::Receiver<Arc<Report>>,
        mut known: watch::Receiver<Known>,
    ) {
        let tick = (self.silence / 20).max(Duration::from_millis(5));
        let mut due = None;
        loop {
            let now = Instant::now();
            // When this process itself was held up, the others' words wait in its sockets: nobody
            // is silent for that.
            let late = due.map(|due| now.saturating_duration_since(due)).unwrap_or_default();
            if late > self.silence / 4 {
                lock(&self.state).reporters.values_mut().for_each(|node| node.heard += late);
            }
            let who = known.borrow_and_update().tls.as_ref().map(|tls| tls.who.clone());
            // A worker's hub hears nobody who could fall silent.
            due = who.as_ref().filter(|who| who.role == Role::Manager).map(|_| now + tick);
            let own = who.map(|who| who.node);
            // Before what it led to.
            let asked = *asked.borrow();
            let said = declared.borrow_and_update().clone();
            let reported = report.borrow_and_update().clone();
            self.change(|state| {
                state.declare(said);
                state.report_own(own, reported);
                let silent = state.look_for_silence(now, self.silence);
                Counters::add(&self.counters.silences, silent);
                state.open(now, self.silence);
                let (items, lies) = state.unlisted.look(asked, now.into_std());
                items.into_iter().for_each(|item| state.say(item));
                lies.iter().for_each(|(node, lie)| self.counters.refuse(node.as_str(), lie));
            });
            let ended = tokio::select! {
                () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some() => false,
                changed = declared.changed() => changed.is_err(),
                changed = report.changed() => changed.is_err(),
                changed = known.changed() => changed.is_err(),
            };
            if ended {
                return;
            }
        }
    }

    fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let dropped = state.table.dropped();
        let result = work(&mut state);
        Counters::add(&self.counters.oversized, (state.table.dropped() - dropped) as usize);
        let now = Pulse { head: state.table.head(), ready: state.ready };
        drop(state);
        self.pulse.send_if_modified(|pulse| {
            // Two changes may arrive here in the other order.
            let newer = now.head > pulse.head || now.ready != pulse.ready;
            if newer {
                *pulse = Pulse { head: now.head.max(pulse.head), ready: now.ready };
            }
            newer
        });
        result
    }

    /// The next frame for a reader, and whether it then has everything.
    fn next(&self, place: &mut Place) -> (Option<bytes::Bytes>, bool) {
        let table = &mut lock(&self.state).table;
        (table.next(place), place.has(table.head()))
    }

    /// Notes that a node did not keep to the rules.
    fn bar(&self, node: &NodeId) {
        let until = Instant::now() + BARRED;
        lock(&self.state).barred.insert(node.clone(), until);
    }

    /// Whether a node is not heard because of what it said before.
    fn is_barred(&self, node: &NodeId) -> bool {
        let barred = &mut lock(&self.state).barred;
        let now = Instant::now();
        barred.retain(|_, until| *until > now);
        barred.contains_key(node)
    }

    /// How long whoever has everything rests before it is told more. The first change after a quiet
    /// time is told at once.
    fn pace(&self) -> Duration {
        let listeners = u32::try_from(self.pulse.receiver_count()).unwrap_or(u32::MAX);
        PACE_EACH.saturating_mul(listeners).clamp(PACE, PACE_MOST)
    }
}

// === impl Reporter ===

impl Reporter {
    /// Whether all that the node had to say is there.
    fn is_whole(&self) -> bool {
        self.reading.has_begun() && self.named.is_none()
    }
}

// === impl State ===

impl State {
    fn say(&mut self, item: Item) {
        if let Item::Report(node, task, None) = &item {
            self.unlisted.forget(node, task);
        }
        let key = item.key();
        let speaker = key.speaker().cloned();
        let before = speaker.as_ref().map_or(0, |_| self.table.length(&key));
        if !self.table.set(item.clone()) {
            return;
        }
        self.replica.apply(item);
        if let Some(node) = speaker {
            let said = self.said.entry(node.clone()).or_default();
            *said = (*said + self.table.length(&key)).saturating_sub(before);
            if *said == 0 {
                self.said.remove(&node);
            }
        }
    }

    fn declare(&mut self, new: Option<Arc<Declared>>) {
        let (Some(new), old) = (new, self.declared.clone()) else { return };
        if old.as_ref().is_some_and(|old| Arc::ptr_eq(old, &new)) {
            return;
        }
        let changes = declared_changes(&old.unwrap_or_default(), &new);
        let fewer = changes.iter().any(|item| matches!(item, Item::Task(_, None)));
        changes.into_iter().for_each(|item| self.say(item));
        self.declared = Some(new.clone());
        self.forget_strangers();
        self.unlisted.listed(&new).into_iter().for_each(|item| self.say(item));
        if fewer {
            self.judge_all();
        }
    }

    /// Looks at all that the other nodes have said: of what was listed something is not any more.
    fn judge_all(&mut self) {
        let now = std::time::Instant::now();
        let view = self.replica.view(From::Own);
        let own = self.own.as_ref().map(|(own, _)| own);
        let declared = self.declared.as_deref();
        for (node, known) in view.reports.iter().filter(|(node, _)| Some(*node) != own) {
            for (task, said) in known.report.iter().flat_map(|report| &report.tasks) {
                self.unlisted.note(declared, (node, task), said, now);
            }
        }
    }

    /// What is told of what a node says.
    fn judge(&mut self, item: Item, now: std::time::Instant) -> Item {
        match item {
            Item::Report(node, task, Some(said)) => {
                let declared = self.declared.as_deref();
                let told = self.unlisted.judge(declared, (&node, &task), said, now);
                Item::Report(node, task, Some(told))
            }
            other => other,
        }
    }

    /// Nodes that left the cluster, and have no connection: what they said goes too.
    fn forget_strangers(&mut self) {
        let Some(declared) = self.declared.clone() else { return };
        let gone: Vec<NodeId> = self
            .reporters
            .iter()
            .filter(|(node, reporter)| !reporter.alive && !declared.nodes.contains_key(node))
            .map(|(node, _)| node.clone())
            .collect();
        for node in gone {
            self.reporters.remove(&node);
            self.unsay(&node, |_| true);
            self.say(Item::Alive(node, None));
        }
    }

    /// Takes back what a node has said, as far as `which` says.
    fn unsay(&mut self, node: &NodeId, which: impl Fn(&Key) -> bool) {
        let tasks = self.replica.tasks_of(node).cloned();
        let keys: Vec<Key> = tasks
            .map(|task| Key::Report(node.clone(), task))
            .chain([Key::Reporter(node.clone())])
            .filter(which)
            .collect();
        keys.iter().for_each(|key| self.say(key.gone()));
    }

    fn report_own(&mut self, node: Option<NodeId>, report: Arc<Report>) {
        let Some(node) = node else { return };
        let old = self.own.take_if(|(before, _)| *before == node).map(|(_, old)| old);
        if old.as_ref().is_none_or(|old| !Arc::ptr_eq(old, &report)) {
            let changes = report_changes(&node, old.as_deref(), &report);
            changes.into_iter().for_each(|item| self.say(item));
            self.say(Item::Alive(node.clone(), Some(true)));
        }
        self.own = Some((node, report));
    }

    fn look_for_silence(&mut self, now: Instant, silence: Duration) -> usize {
        let quiet = |reporter: &Reporter| {
            reporter.alive && now.saturating_duration_since(reporter.heard) >= silence
        };
        let silent: Vec<NodeId> = self
            .reporters
            .iter_mut()
            .filter(|(_, reporter)| quiet(reporter))
            .map(|(node, reporter)| {
                reporter.alive = false;
                node.clone()
            })
            .collect();
        let count = silent.len();
        silent.into_iter().for_each(|node| self.say(Item::Alive(node, Some(false))));
        count
    }

    /// Whether the view has become whole: the managers' word is there, and every node has reported
    /// or has had the time to.
    fn open(&mut self, now: Instant, silence: Duration) {
        let Some(declared) = self.declared.as_ref().filter(|_| !self.ready) else { return };
        let began = *self.began.get_or_insert(now);
        let own = self.own.as_ref().map(|(node, _)| node);
        let whole = |node: &NodeId| {
            Some(node) == own || self.reporters.get(node).is_some_and(Reporter::is_whole)
        };
        self.ready = declared.nodes.keys().all(whole)
            || now.saturating_duration_since(began) >= silence * OPENING_SILENCES;
    }
}
