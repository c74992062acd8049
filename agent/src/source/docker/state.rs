//! What is known from dockerd, for whoever needs it: the merge, and the link to other nodes.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use tokio::sync::{Notify, watch};
use weir_mesh::{
    Space,
    cluster::{Declared, Hearsay, Report},
};

use super::{client::Error, engine::Engine};
use crate::{
    document::{Fault, Place},
    source::Trouble,
};

/// What is known from dockerd. Each part is the last good one.
#[derive(Clone, Debug)]
pub struct DockerState {
    /// Its place in the Swarm.
    pub engine: Option<Arc<Engine>>,
    /// This node's own tasks.
    pub report: Option<Arc<Report>>,
    /// Network namespaces of this node's containers, and the networks these are attached to.
    pub spaces: Option<Arc<Vec<Space>>>,
    /// What Swarm declares; only from managers.
    pub declared: Option<Arc<Declared>>,
    /// When the last answer that holds all of that was asked for. Changes without news of the rest.
    pub asked: watch::Receiver<Option<Instant>>,
    /// Docker's gossip; only on workers.
    pub hearsay: Option<Arc<Hearsay>>,
    /// When what led to the last change was noticed.
    pub noticed: Instant,
    /// When dockerd last answered.
    pub confirmed: Option<Instant>,
    /// Why dockerd is not followed, if it is not.
    pub trouble: Option<Trouble>,
    /// Why the Swarm is not followed, while this node's containers are.
    pub swarm_trouble: Option<Trouble>,
    /// Attempts so far; 0: nothing has been heard or failed yet.
    pub readings: u64,
    /// Failures so far, by reason.
    pub errors: BTreeMap<&'static str, u64>,
}

/// Where the parts are published.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    state: watch::Sender<DockerState>,
    asked: watch::Sender<Option<Instant>>,
    stirred: Arc<Notify>,
    socket: String,
}

/// What is read, and can fail, on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Engine,
    Node,
    Swarm,
}

impl DockerState {
    fn silent(asked: watch::Receiver<Option<Instant>>) -> Self {
        Self {
            engine: None,
            report: None,
            spaces: None,
            declared: None,
            asked,
            hearsay: None,
            noticed: Instant::now(),
            confirmed: None,
            trouble: None,
            swarm_trouble: None,
            readings: 0,
            errors: BTreeMap::new(),
        }
    }
}

impl Publisher {
    pub(super) fn new(socket: String) -> (Self, watch::Receiver<DockerState>) {
        let (asked_in, asked) = watch::channel(None);
        let (state, receiver) = watch::channel(DockerState::silent(asked));
        (Self { state, asked: asked_in, stirred: Arc::default(), socket }, receiver)
    }

    /// Ends when nobody listens any more.
    pub(super) async fn closed(&self) {
        self.state.closed().await;
    }

    /// Something changes in the Swarm: whoever polls should look.
    pub(super) fn stir(&self) {
        self.stirred.notify_one();
    }

    pub(super) async fn stirred(&self) {
        self.stirred.notified().await;
    }

    pub(super) fn engine(&self, engine: &Engine) {
        self.publish(Part::Engine, Instant::now(), |state| {
            replace(&mut state.engine, engine.clone())
        });
    }

    pub(super) fn report(&self, report: Report, noticed: Instant) {
        self.publish(Part::Node, noticed, |state| replace(&mut state.report, report));
    }

    pub(super) fn spaces(&self, spaces: Vec<Space>) {
        self.publish(Part::Engine, Instant::now(), |state| replace(&mut state.spaces, spaces));
    }

    /// Whether it is another than before. `asked`: when it was asked for.
    pub(super) fn declared(&self, declared: Declared, asked: Instant) -> bool {
        let changed =
            self.publish(Part::Swarm, asked, |state| replace(&mut state.declared, declared));
        self.asked.send_replace(Some(asked));
        changed
    }

    pub(super) fn last_declared(&self) -> Option<Arc<Declared>> {
        self.state.borrow().declared.clone()
    }

    pub(super) fn hearsay(&self, hearsay: Hearsay) -> bool {
        self.publish(Part::Swarm, Instant::now(), |state| replace(&mut state.hearsay, hearsay))
    }

    /// A manager has no need of gossip.
    pub(super) fn no_hearsay(&self) {
        self.publish(Part::Engine, Instant::now(), |state| state.hearsay.take().is_some());
    }

    /// dockerd cannot be followed.
    pub(super) fn failed(&self, error: &Error) {
        self.trouble(Part::Node, error.reason(), error.to_string(), error.remedy());
    }

    /// The Swarm cannot be followed; the containers of this node are.
    pub(super) fn swarm_failed(&self, error: &Error) {
        self.trouble(Part::Swarm, error.reason(), error.to_string(), error.remedy());
    }

    /// dockerd is no part of a Swarm.
    pub(super) fn no_swarm(&self, problem: String, remedy: &str) {
        self.trouble(Part::Node, "no_swarm", problem, remedy);
    }

    fn trouble(&self, part: Part, reason: &'static str, problem: String, remedy: &str) {
        let fault = Fault {
            place: Place::File(self.socket.clone()),
            key: String::new(),
            value: None,
            problem,
            remedy: remedy.to_owned(),
        };
        self.state.send_modify(|state| {
            state.readings += 1;
            *state.errors.entry(reason).or_default() += 1;
            let trouble = Some(Trouble { reason, faults: [fault].into() });
            match part {
                Part::Swarm => state.swarm_trouble = trouble,
                Part::Node | Part::Engine => state.trouble = trouble,
            }
        });
    }

    fn publish(
        &self,
        part: Part,
        noticed: Instant,
        change: impl FnOnce(&mut DockerState) -> bool,
    ) -> bool {
        self.state.send_if_modified(|state| {
            state.confirmed = Some(Instant::now());
            let changed = change(state);
            let recovered = match part {
                Part::Node => state.trouble.take().is_some(),
                Part::Swarm => state.swarm_trouble.take().is_some(),
                // That dockerd answers does not mean that all can be read.
                Part::Engine => false,
            };
            if changed {
                state.noticed = noticed;
            }
            let news = changed || recovered || state.readings == 0;
            state.readings += 1;
            news
        })
    }
}

/// Whether it is another. What is equal stays the same, so that comparing it again is quick.
fn replace<T: PartialEq>(old: &mut Option<Arc<T>>, new: T) -> bool {
    if old.as_deref() == Some(&new) {
        return false;
    }
    *old = Some(Arc::new(new));
    true
}
