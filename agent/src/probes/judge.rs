//! The book, and the wires that end at it.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, Instant},
};
use weir_mesh::{Moment, NodeName, Service, ServiceName};

use super::{Finding, Held, LocalHealth, Targets, book::Book};

type Services = BTreeMap<ServiceName, Arc<Service>>;

/// Judges the tasks of this node for the one who writes snapshots.
pub struct Judge {
    book: Book,
    epoch: Instant,
    findings: mpsc::Receiver<Finding>,
    targets: watch::Sender<Targets>,
    health: watch::Sender<LocalHealth>,
}

/// What a judge is made of, before it is known what the kernel holds.
pub struct Chamber {
    node: NodeName,
    held: oneshot::Receiver<Held>,
    findings: mpsc::Receiver<Finding>,
    targets: watch::Sender<Targets>,
    health: watch::Sender<LocalHealth>,
}

/// The other ends of a judge's wires.
pub struct Wires {
    /// Takes what the kernel held when the agent began, once that is known. Until then nothing is
    /// decided.
    pub held: oneshot::Sender<Held>,
    /// Takes findings.
    pub findings: mpsc::Sender<Finding>,
    /// What is to be probed.
    pub targets: watch::Receiver<Targets>,
    /// How the tasks of this node are.
    pub health: watch::Receiver<LocalHealth>,
}

/// Findings that wait for the judge; whoever finds more waits, too.
const WAITING: usize = 256;

/// A judge of the tasks of `node`.
pub fn wired(node: NodeName) -> (Chamber, Wires) {
    let (held_in, held) = oneshot::channel();
    let (findings_in, findings) = mpsc::channel(WAITING);
    let (targets, targets_out) = watch::channel(Targets::default());
    let (health, health_out) = watch::channel(LocalHealth::default());
    let chamber = Chamber { node, held, findings, targets, health };
    let wires =
        Wires { held: held_in, findings: findings_in, targets: targets_out, health: health_out };
    (chamber, wires)
}

impl Chamber {
    /// Waits until it is known what the kernel holds; `None` if that will never be.
    pub async fn open(self) -> Option<Judge> {
        let Self { node, held, mut findings, targets, health } = self;
        let mut book = Book::new(node, held.await.ok()?);
        let epoch = Instant::now();
        // What is known already counts from the first snapshot on.
        while let Ok(finding) = findings.try_recv() {
            book.note(finding, Moment(epoch.elapsed()));
        }
        Some(Judge { book, epoch, findings, targets, health })
    }
}

impl Judge {
    /// Takes what the source wants, and what it calls this node; see [`Book::declare`].
    pub fn declare(&mut self, here: Option<&NodeName>, services: &Services, before: &Services) {
        let now = self.now();
        self.book.call_node(here);
        self.book.declare(services, before, now);
        self.tell();
    }

    /// The services as they are to be in the snapshot.
    pub fn overlaid(&self) -> Services {
        self.book.overlaid()
    }

    /// Waits until something is found out that may change the snapshot. Nothing is lost when it is
    /// not waited for to the end.
    pub async fn changed(&mut self) {
        loop {
            let due = self.book.due().map(|due| self.epoch + due.0);
            let over = async {
                match due {
                    Some(due) => time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let finding = tokio::select! {
                Some(finding) = self.findings.recv() => Some(finding),
                () = over => None,
            };
            let now = self.now();
            let changed = match finding {
                Some(finding) => self.book.note(finding, now),
                None => self.book.tick(now),
            };
            if changed {
                self.tell();
                return;
            }
        }
    }

    fn now(&self) -> Moment {
        Moment(self.epoch.elapsed())
    }

    fn tell(&self) {
        replace(&self.targets, self.book.targets());
        replace(&self.health, self.book.health());
    }
}

fn replace<T: PartialEq>(place: &watch::Sender<T>, new: T) {
    place.send_if_modified(|old| {
        let other = *old != new;
        *old = new;
        other
    });
}
