//! One node's connection to the hub.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::channel::Sender;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot, watch},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep},
};
use weir_mesh::cluster::NodeId;

use super::{Hub, MOST_SAID, MOST_TASKS, Pulse, Reporter, State, allowance::Allowance};
use crate::link::{
    reading::{Place, Reading, Step},
    status::Counters,
    stream::{End, Inflow, Outflow},
    wire::{Frame, Head, Item, Key, Span},
};

/// So long a node keeps its seat while it is told everything. A slow one goes on without: it takes
/// little from the others.
const SEATED: Duration = Duration::from_secs(2);

/// Longest name that a node may report, in bytes. Docker's are shorter.
const MOST_NAME: usize = 512;

/// What a node wants to hear.
#[derive(Clone, Copy, Debug, Default)]
struct Wish {
    /// Counts the wishes.
    turn: u64,
    /// From where on; `None`: nothing.
    listen: Option<Place>,
    /// Counts the gaps in what it said.
    again: u64,
}

/// How far a node has been told.
#[derive(Debug, Default)]
struct Told {
    turn: u64,
    again: u64,
    ready: bool,
    place: Option<Place>,
    /// It is being told everything: its seat, and since when it has it.
    seat: Option<(OwnedSemaphorePermit, Instant)>,
    /// It has had its seat for this snapshot.
    seated: bool,
}

impl Hub {
    /// Hears a node and tells it what it wishes, until one of them ends it.
    pub async fn converse(
        self: &Arc<Self>,
        node: &NodeId,
        inflow: Inflow,
        out: &mut Sender<Bytes>,
    ) -> End {
        let (current, superseded) = oneshot::channel();
        let session = self.change(|state| state.begin(node, current));
        let (wish_in, wish) = watch::channel(Wish::default());
        tokio::select! {
            end = self.hear(node, session, inflow, wish_in) => end,
            end = self.tell(out, wish) => end,
            _ = superseded => End::Renewed("the node has connected anew"),
        }
    }

    async fn hear(
        &self,
        node: &NodeId,
        session: u64,
        mut inflow: Inflow,
        wish: watch::Sender<Wish>,
    ) -> End {
        let patience = (self.silence * 5).max(Duration::from_secs(5));
        let listen = |place| {
            wish.send_modify(|wish| (wish.turn, wish.listen) = (wish.turn + 1, place));
            Ok(true)
        };
        let mut allowance = Allowance::new(Instant::now());
        loop {
            let Frame { head, items, length } = match inflow.next(patience).await {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.change(|state| state.heard(node, session));
                    continue;
                }
                Err(end) => return end,
            };
            let wait = allowance.take(length, Instant::now());
            if !wait.is_zero() {
                Counters::add(&self.counters.held, 1);
                sleep(wait).await;
            }
            let taken = match head {
                Head::Batch(span) => {
                    self.change(|state| state.take(node, session, (span, length), items))
                }
                Head::Beat { .. } => {
                    self.change(|state| state.heard(node, session));
                    Ok(true)
                }
                Head::Listen { epoch, at } if epoch == self.epoch => listen(Some(Place::after(at))),
                Head::Listen { .. } | Head::Again => listen(Some(Place::default())),
                Head::Deafen => listen(None),
                Head::Refused { reason } => return End::refused(&reason),
                // The decoder gives those of a hub as batches, and refuses those of a node.
                Head::Hello { .. } | Head::Packed { .. } => {
                    Err("a node speaks like a hub".to_owned())
                }
            };
            match taken {
                Ok(true) => {}
                Ok(false) => {
                    Counters::add(&self.counters.resyncs, 1);
                    wish.send_modify(|wish| wish.again += 1);
                }
                Err(lie) => return End::Lied(lie),
            }
        }
    }

    async fn tell(&self, out: &mut Sender<Bytes>, mut wishes: watch::Receiver<Wish>) -> End {
        let mut out = Outflow::new(out, &self.counters);
        match self.tell_on(&mut out, &mut wishes).await {
            Ok(()) => End::Closed,
            Err(end) => end,
        }
    }

    async fn tell_on(
        &self,
        out: &mut Outflow<'_>,
        wishes: &mut watch::Receiver<Wish>,
    ) -> Result<(), End> {
        let mut pulse = self.pulse();
        let mut beat = interval(self.silence / 4);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = Told::default();
        out.send(Head::Hello { epoch: self.epoch }.frame()).await?;
        loop {
            let Pulse { head, ready } = *pulse.borrow_and_update();
            let wish = *wishes.borrow_and_update();
            if wish.turn != told.turn {
                (told.turn, told.place, told.seat) = (wish.turn, wish.listen, None);
                told.seated = false;
            }
            if wish.again != told.again {
                told.again = wish.again;
                out.send(Head::Again.frame()).await?;
            }
            if ready != told.ready {
                told.ready = ready;
                out.send(Head::Beat { ready }.frame()).await?;
            }
            // Before the view is whole, nobody is told anything: what they have is better.
            let behind = ready && told.place.is_some_and(|place| !place.has(head));
            if behind && out.is_due() {
                if self.news(out, &mut told, &mut beat, wishes).await? {
                    out.rest(self.pace());
                }
                continue;
            }
            let more = tokio::select! {
                _ = beat.tick() => {
                    out.send(Head::Beat { ready }.frame()).await?;
                    true
                }
                () = out.until_due(), if behind => true,
                changed = pulse.changed(), if !behind => changed.is_ok(),
                changed = wishes.changed() => changed.is_ok(),
            };
            if !more {
                return Ok(());
            }
        }
    }

    /// Sends the next frame. Whether the node then has everything, or has to wait.
    async fn news(
        &self,
        out: &mut Outflow<'_>,
        told: &mut Told,
        beat: &mut Interval,
        wishes: &mut watch::Receiver<Wish>,
    ) -> Result<bool, End> {
        let Some(place) = &mut told.place else { return Ok(true) };
        if !place.has_begun() && !told.seated {
            let Some(seat) = self.seat(out, beat, wishes).await? else { return Ok(false) };
            (told.seat, told.seated) = (Some((seat, Instant::now())), true);
        }
        if told.seat.as_ref().is_some_and(|(_, since)| since.elapsed() > SEATED) {
            told.seat = None;
        }
        let (frame, whole) = self.next(place);
        if let Some(frame) = frame {
            out.send(frame).await?;
        }
        if whole {
            (told.seat, told.seated) = (None, false);
        }
        Ok(whole)
    }

    /// Waits for a seat, with signs of life. `None`: the node wishes something else.
    async fn seat(
        &self,
        out: &mut Outflow<'_>,
        beat: &mut Interval,
        wishes: &mut watch::Receiver<Wish>,
    ) -> Result<Option<OwnedSemaphorePermit>, End> {
        let mut seat = pin!(self.seats.clone().acquire_owned());
        loop {
            tokio::select! {
                seat = &mut seat => return Ok(seat.ok()),
                _ = beat.tick() => out.send(Head::Beat { ready: true }.frame()).await?,
                changed = wishes.changed() => return changed.map(|()| None).map_err(|_| End::Closed),
            }
        }
    }
}

impl State {
    /// A node has connected. A session that it had is over.
    fn begin(&mut self, node: &NodeId, current: oneshot::Sender<()>) -> u64 {
        self.sessions += 1;
        let session = self.sessions;
        let before = self.reporters.get(node);
        let alive = before.is_some_and(|before| before.alive);
        // Connecting is not speaking: what counts is still when it was last heard.
        let heard = before.map_or_else(Instant::now, |before| before.heard);
        let (named, coming, reading) = (None, 0, Reading::default());
        let reporter =
            Reporter { session, _current: current, heard, alive, named, coming, reading };
        self.reporters.insert(node.clone(), reporter);
        session
    }

    fn heard(&mut self, node: &NodeId, session: u64) {
        let Some(reporter) = self.reporters.get_mut(node).filter(|r| r.session == session) else {
            return;
        };
        reporter.heard = Instant::now();
        // A node counts as alive once its whole word is there.
        if reporter.is_whole() && !reporter.alive {
            reporter.alive = true;
            self.say(Item::Alive(node.clone(), Some(true)));
        }
    }

    /// Takes what a node says. `false`: something before it is missing. An error: it may not say
    /// this; then nothing of the batch is taken.
    fn take(
        &mut self,
        node: &NodeId,
        session: u64,
        (span, length): (Span, usize),
        items: Vec<Item>,
    ) -> Result<bool, String> {
        let keys: Vec<Key> = items.iter().map(Item::key).collect();
        keys.iter().try_for_each(|key| may_say(node, key))?;
        items.iter().try_for_each(check_names)?;
        let Some(reporter) = self.reporters.get_mut(node).filter(|r| r.session == session) else {
            return Ok(true);
        };
        match reporter.reading.step(&span) {
            Step::Begin => (reporter.named, reporter.coming) = (Some(BTreeSet::new()), 0),
            Step::Take => {}
            Step::Leave => return Ok(true),
            Step::Ask => {
                reporter.named = None;
                return Ok(false);
            }
        }
        reporter.coming += length;
        if let Some(named) = &mut reporter.named {
            named.extend(keys);
            if named.len() > MOST_TASKS + 1 || reporter.coming > MOST_SAID {
                return Err(too_much(node));
            }
        }
        let named = if span.whole { reporter.named.take() } else { None };
        let now = Instant::now().into_std();
        for item in items {
            let item = self.judge(item, now);
            self.say(item);
        }
        if let Some(named) = named {
            self.unsay(node, |key| !named.contains(key));
        }
        let said = self.said.get(node).copied().unwrap_or(0);
        if said > MOST_SAID || self.replica.tasks_of(node).count() > MOST_TASKS {
            self.unsay(node, |_| true);
            return Err(too_much(node));
        }
        self.heard(node, session);
        Ok(true)
    }
}

fn too_much(node: &NodeId) -> String {
    let size = MOST_SAID >> 20;
    format!("{node} reports more than {MOST_TASKS} tasks, or more than {size} MiB")
}

/// Names get into logs, metrics and the names of other nodes' tasks.
fn check_names(item: &Item) -> Result<(), String> {
    let (what, name) = match item {
        Item::Reporter(_, Some(node)) => ("a host name", node.hostname.as_str()),
        Item::Report(_, id, None) => ("a task ID", id.as_str()),
        Item::Report(_, id, Some(task)) => {
            check_name("a service's name", task.service_name.as_str())?;
            check_name("a container's name", task.name.as_str())?;
            ("a task ID", id.as_str())
        }
        _ => return Ok(()),
    };
    check_name(what, name)
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    if name.len() <= MOST_NAME && !name.chars().any(char::is_control) {
        return Ok(());
    }
    let length = name.len();
    Err(format!(
        "{what} of {length} bytes; at most {MOST_NAME} are taken, and no control characters"
    ))
}

fn may_say(node: &NodeId, key: &Key) -> Result<(), String> {
    match key.speaker() {
        Some(speaker) if speaker == node => Ok(()),
        Some(other) => {
            Err(format!("{node} speaks for {other}; a node may only speak about its own tasks"))
        }
        None => Err(format!(
            "{node} speaks for the cluster ({key:?}); only the hub of a manager may do that"
        )),
    }
}
