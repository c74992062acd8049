//! One node's connection to the hub.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::channel::Sender;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use weir_mesh::cluster::NodeId;

use super::{Hub, MOST_TASKS, Reporter, State};
use crate::link::{
    status::Counters,
    stream::{End, Inflow, send},
    table::Place,
    wire::{Frame, Head, Item, Key},
};

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
        loop {
            let Frame { head, items } = match inflow.next(patience).await {
                Ok(frame) => frame,
                Err(end) => return end,
            };
            let taken = match head {
                Head::Batch { from, to, first, whole } => {
                    let batch = Batch { from, to, first, whole, items };
                    self.change(|state| state.take(node, session, batch))
                }
                Head::Beat { .. } => {
                    self.change(|state| state.heard(node, session));
                    Ok(true)
                }
                Head::Listen { epoch, at } if epoch == self.epoch => listen(Some(Place::after(at))),
                Head::Listen { .. } | Head::Again => listen(Some(Place::default())),
                Head::Deafen => listen(None),
                Head::Refused { reason } => return End::Refused(reason),
                Head::Hello { .. } => Err("a node greets like a hub".to_owned()),
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

    async fn tell(&self, out: &mut Sender<Bytes>, mut wish: watch::Receiver<Wish>) -> End {
        match self.tell_on(out, &mut wish).await {
            Ok(()) => End::Closed,
            Err(end) => end,
        }
    }

    async fn tell_on(
        &self,
        out: &mut Sender<Bytes>,
        wishes: &mut watch::Receiver<Wish>,
    ) -> Result<(), End> {
        let mut pulse = self.pulse();
        let mut beat = tokio::time::interval(self.silence / 4);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut place, mut turn, mut again, mut said_ready) = (None, 0, 0, false);
        self.send(out, Head::Hello { epoch: self.epoch }.frame()).await?;
        loop {
            let ready = pulse.borrow_and_update().ready;
            let wish = *wishes.borrow_and_update();
            if wish.turn != turn {
                (turn, place) = (wish.turn, wish.listen);
            }
            if wish.again != again {
                again = wish.again;
                self.send(out, Head::Again.frame()).await?;
            }
            if ready != said_ready {
                said_ready = ready;
                self.send(out, Head::Beat { ready }.frame()).await?;
            }
            // Before the view is whole, nobody is told anything: what they have is better.
            let news = place.as_mut().filter(|_| ready).and_then(|place| self.next(place));
            if let Some(frame) = news {
                self.send(out, frame).await?;
                continue;
            }
            let more = tokio::select! {
                _ = beat.tick() => {
                    self.send(out, Head::Beat { ready }.frame()).await?;
                    true
                }
                changed = pulse.changed() => changed.is_ok(),
                changed = wishes.changed() => changed.is_ok(),
            };
            if !more {
                return Ok(());
            }
        }
    }

    async fn send(&self, out: &mut Sender<Bytes>, frame: Bytes) -> Result<(), End> {
        Counters::add(&self.counters.sent_bytes, frame.len());
        Counters::add(&self.counters.sent_frames, 1);
        send(out, frame).await
    }
}

struct Batch {
    from: u64,
    to: u64,
    first: bool,
    whole: bool,
    items: Vec<Item>,
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
        let reporter = Reporter { session, _current: current, heard, alive, named: None, at: 0 };
        self.reporters.insert(node.clone(), reporter);
        session
    }

    fn heard(&mut self, node: &NodeId, session: u64) {
        let Some(reporter) = self.reporters.get_mut(node).filter(|r| r.session == session) else {
            return;
        };
        reporter.heard = Instant::now();
        // A node counts as alive once its whole word is there.
        if reporter.at > 0 && reporter.named.is_none() && !reporter.alive {
            reporter.alive = true;
            self.say(Item::Alive(node.clone(), Some(true)));
        }
    }

    /// Takes what a node says. `false`: something before it is missing. An error: it may not say
    /// this; then nothing of the batch is taken.
    fn take(&mut self, node: &NodeId, session: u64, batch: Batch) -> Result<bool, String> {
        let keys: Vec<Key> = batch.items.iter().map(Item::key).collect();
        keys.iter().try_for_each(|key| may_say(node, key))?;
        let Some(reporter) = self.reporters.get_mut(node).filter(|r| r.session == session) else {
            return Ok(true);
        };
        if batch.first {
            reporter.named = Some(BTreeSet::new());
        } else if reporter.at != batch.from {
            return Ok(false);
        }
        reporter.at = batch.to;
        let too_many = Err(format!("{node} reports more than {MOST_TASKS} tasks"));
        if let Some(named) = &mut reporter.named {
            named.extend(keys);
            if named.len() > MOST_TASKS + 1 {
                return too_many;
            }
        }
        let named = if batch.whole { reporter.named.take() } else { None };
        batch.items.into_iter().for_each(|item| self.say(item));
        if let Some(named) = named {
            self.unsay(node, |key| !named.contains(key));
        }
        if self.replica.tasks_of(node).count() > MOST_TASKS {
            self.unsay(node, |_| true);
            return too_many;
        }
        self.heard(node, session);
        Ok(true)
    }
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
