//! The one writer of the mesh snapshot: it turns what the sources say into numbered snapshots.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time};
use tracing::{info, warn};
use weir_mesh::{Generation, MeshSnapshot};

use crate::{
    diff, memory,
    probes::judge::{Chamber, Judge},
    source::{Desired, SourceState},
    state::{Restored, StateFile},
};

/// The mesh as it should be, for everybody who consumes it.
#[derive(Clone, Debug)]
pub struct View {
    /// The snapshot; `None` while nothing may be decided yet.
    pub snapshot: Option<Arc<MeshSnapshot>>,
    /// Whether it is from disk and no source has confirmed it.
    pub stale: bool,
    /// When the change that led to it was noticed.
    pub noticed: Instant,
}

/// Makes snapshots of what the source says, and of what is known of this node's tasks.
pub struct SnapshotWriter {
    restored: Option<Restored>,
    /// What the source said last, without what is known of tasks.
    declared: Arc<MeshSnapshot>,
    last: Arc<MeshSnapshot>,
    view: watch::Sender<View>,
    declared_view: watch::Sender<View>,
}

impl SnapshotWriter {
    /// Begins after the snapshot that was on disk, if there was one.
    pub fn new(restored: Option<Restored>) -> (Self, watch::Receiver<View>) {
        let nothing = View { snapshot: None, stale: false, noticed: Instant::now() };
        let (view, receiver) = watch::channel(nothing);
        let last = restored.as_ref().map(|restored| restored.snapshot.clone());
        let last = Arc::new(last.unwrap_or_default());
        let declared_view = watch::Sender::new(view.borrow().clone());
        (Self { restored, declared: last.clone(), last, view, declared_view }, receiver)
    }

    /// The snapshots without what is known of tasks: what is worth keeping for a later start.
    pub fn declared(&self) -> watch::Receiver<View> {
        self.declared_view.subscribe()
    }

    /// Follows the source until it ends. Until the source has spoken, or `start_wait` is over, and
    /// until it is known what the kernel holds, there is no snapshot, and so nothing that the kernel
    /// holds is touched.
    pub async fn run(
        mut self,
        mut source: watch::Receiver<SourceState>,
        start_wait: Duration,
        chamber: Chamber,
    ) {
        let spoken = source.wait_for(|state| state.readings > 0);
        if time::timeout(start_wait, spoken).await.is_err() {
            warn!(?start_wait, "the source has not spoken, going on without it");
        }
        let Some(mut judge) = chamber.open().await else { return };
        self.follow(&source.borrow_and_update().clone(), &mut judge);
        loop {
            tokio::select! {
                changed = source.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.follow(&source.borrow_and_update().clone(), &mut judge);
                }
                () = judge.changed() => self.judge_again(&judge),
            }
        }
    }

    fn follow(&mut self, state: &SourceState, judge: &mut Judge) {
        match &state.desired {
            Some(desired) => self.take(desired, state.noticed, judge),
            None => self.fall_back(judge),
        }
    }

    fn take(&mut self, desired: &Desired, noticed: Instant, judge: &mut Judge) {
        let declared = &self.declared;
        let unchanged = desired.here == declared.here
            && desired.nodes == declared.nodes
            && desired.services == declared.services
            && desired.networks == declared.networks;
        let (begun, stale) = self.stands();
        if unchanged && begun && !stale {
            return;
        }
        judge.declare(desired.here.as_ref(), &desired.services, &declared.services);
        self.declared = Arc::new(MeshSnapshot {
            generation: declared.generation,
            here: desired.here.clone(),
            nodes: desired.nodes.clone(),
            services: desired.services.clone(),
            networks: desired.networks.clone(),
        });
        self.restored = None;
        self.publish(judge, false, noticed);
    }

    fn fall_back(&mut self, judge: &mut Judge) {
        let Some(restored) = self.restored.take() else { return };
        let generation = restored.snapshot.generation;
        let age = restored.written.elapsed().unwrap_or_default().as_secs();
        warn!(%generation, age_seconds = age, "no source is good, going on with the snapshot on disk");
        let declared = &self.declared;
        judge.declare(declared.here.as_ref(), &declared.services, &declared.services);
        self.publish(judge, true, Instant::now());
    }

    /// Something was found out about this node's tasks.
    fn judge_again(&mut self, judge: &Judge) {
        let (begun, stale) = self.stands();
        if begun && judge.overlaid() != self.last.services {
            self.publish(judge, stale, Instant::now());
        }
    }

    /// Whether there is a snapshot, and whether it is from disk.
    fn stands(&self) -> (bool, bool) {
        let view = self.view.borrow();
        (view.snapshot.is_some(), view.stale)
    }

    fn publish(&mut self, judge: &Judge, stale: bool, noticed: Instant) {
        let MeshSnapshot { here, nodes, networks, .. } = &*self.declared;
        let services = judge.overlaid();
        let unchanged = *here == self.last.here
            && *nodes == self.last.nodes
            && services == self.last.services
            && *networks == self.last.networks;
        let generation = match unchanged && self.last.generation > Generation(0) {
            true => self.last.generation,
            false => Generation(self.last.generation.0 + 1),
        };
        let (here, nodes, networks) = (here.clone(), nodes.clone(), networks.clone());
        let snapshot = MeshSnapshot { generation, here, nodes, services, networks };
        let count = snapshot.services.len();
        let changes = diff::summary(&self.last, &snapshot);
        if !changes.is_empty() {
            info!(%generation, services = count, changes, "a new snapshot");
        } else if !stale {
            info!(%generation, services = count, "the source confirms the last snapshot");
        }
        self.last = Arc::new(snapshot);
        self.declared = match self.last.services == self.declared.services {
            true => self.last.clone(),
            false => Arc::new(MeshSnapshot { generation, ..(*self.declared).clone() }),
        };
        let declared = View { snapshot: Some(self.declared.clone()), stale, noticed };
        self.declared_view.send_replace(declared);
        self.view.send_replace(View { snapshot: Some(self.last.clone()), stale, noticed });
    }
}

/// Keeps the newest confirmed snapshot on disk until the writer ends.
pub async fn keep(state: StateFile, mut view: watch::Receiver<View>) {
    let mut complained = false;
    while view.changed().await.is_ok() {
        let View { snapshot: Some(snapshot), stale: false, .. } = view.borrow_and_update().clone()
        else {
            continue;
        };
        // The kernel comes first, and of snapshots that follow one another closely the last will do.
        time::sleep(pause(&snapshot)).await;
        let View { snapshot: Some(snapshot), .. } = view.borrow_and_update().clone() else {
            continue;
        };
        let rest = pause(&snapshot) * REST;
        let state = state.clone();
        let stored = tokio::task::spawn_blocking(move || {
            let stored = state.store(&snapshot);
            drop(snapshot);
            memory::give_back();
            stored
        });
        let stored = stored.await;
        match stored {
            Ok(Err(error)) if !complained => {
                warn!(%error, "the last good snapshot is not kept on disk");
                complained = true;
            }
            Ok(Ok(())) => complained = false,
            _ => {}
        }
        time::sleep(rest).await;
    }
}

/// How long a snapshot waits before it is written: the time that writing it takes, roughly, and so
/// nothing to speak of for a small mesh.
fn pause(snapshot: &MeshSnapshot) -> Duration {
    Duration::from_micros(50).saturating_mul(snapshot.services.len().try_into().unwrap_or(u32::MAX))
}

/// Between two writings of a large mesh there is so many times the pause.
const REST: u32 = 10;

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use weir_mesh::{
        Health, Ident, Node, NodeName, Service, ServiceName, Task, TaskName, TaskState,
        health::{Ejection, Seen},
    };

    use super::*;
    use tokio::sync::mpsc;

    use crate::probes::{
        Finding, Held, LocalHealth, Targets,
        judge::{Wires, wired},
    };

    fn desired(nodes: &[&str]) -> Desired {
        let node = |name: &&str| {
            let name = NodeName::new(*name);
            (name.clone(), Node::new(name, [10, 0, 0, 1].into()))
        };
        Desired { nodes: nodes.iter().map(node).collect(), ..Desired::default() }
    }

    fn restored(nodes: &[&str]) -> Restored {
        let snapshot = MeshSnapshot {
            generation: Generation(41),
            nodes: desired(nodes).nodes,
            ..MeshSnapshot::default()
        };
        Restored { snapshot, written: SystemTime::now() }
    }

    fn said(desired: Option<Desired>) -> SourceState {
        SourceState { desired: desired.map(Arc::new), readings: 1, ..SourceState::silent() }
    }

    const WAIT: Duration = Duration::from_secs(30);

    /// The wires that are not used up.
    type Rest = (mpsc::Sender<Finding>, watch::Receiver<Targets>, watch::Receiver<LocalHealth>);

    /// Runs a writer over a kernel that held nothing.
    fn begin(writer: SnapshotWriter, source: watch::Receiver<SourceState>) -> Rest {
        let (chamber, Wires { held, findings, targets, health }) = wired(NodeName::new("n1"));
        held.send(Held::new()).unwrap();
        tokio::spawn(writer.run(source, WAIT, chamber));
        (findings, targets, health)
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_decided_until_the_source_has_spoken() {
        let (source, input) = watch::channel(SourceState::silent());
        let (writer, mut view) = SnapshotWriter::new(Some(restored(&["n1"])));
        let _wires = begin(writer, input);
        time::sleep(WAIT / 2).await;
        assert!(view.borrow().snapshot.is_none());
        source.send_replace(said(Some(desired(&["n1", "n2"]))));
        let view = view.wait_for(|view| view.snapshot.is_some()).await.unwrap();
        assert!(!view.stale);
        assert_eq!(view.snapshot.as_ref().unwrap().generation, Generation(42));
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_stays_silent_is_not_waited_for_for_ever() {
        let (_source, input) = watch::channel(SourceState::silent());
        let (writer, mut view) = SnapshotWriter::new(Some(restored(&["n1"])));
        let _wires = begin(writer, input);
        let view = view.wait_for(|view| view.snapshot.is_some()).await.unwrap();
        assert!(view.stale);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_source_at_start_means_the_snapshot_on_disk_at_once() {
        let (source, input) = watch::channel(SourceState::silent());
        let (writer, mut view) = SnapshotWriter::new(Some(restored(&["n1"])));
        source.send_replace(said(None));
        let started = time::Instant::now();
        let _wires = begin(writer, input);
        let stale = view.wait_for(|view| view.snapshot.is_some()).await.unwrap().stale;
        assert!(stale && started.elapsed() < Duration::from_secs(1));
        source.send_replace(said(Some(desired(&["n1"]))));
        let view = view.wait_for(|view| !view.stale).await.unwrap();
        assert_eq!(view.snapshot.as_ref().unwrap().generation, Generation(41), "nothing changed");
    }

    /// Adds `web` with one task on n1.
    fn with_web(mut desired: Desired) -> Desired {
        let web = Service {
            tasks: vec![Task {
                ipv4: Some([172, 18, 0, 3].into()),
                ..Task::new(TaskName::new("web.1"), NodeName::new("n1"))
            }],
            health: Health {
                check: None,
                ejection: Some(Ejection { panic: 0, ..Ejection::default() }),
            },
            ..Service::new(ServiceName::new("web"))
        };
        desired.services.insert(web.name.clone(), Arc::new(web));
        desired
    }

    fn state_in(view: &View) -> (u64, TaskState) {
        let snapshot = view.snapshot.as_ref().unwrap();
        let task = &snapshot.services[&ServiceName::new("web")].tasks[0];
        (snapshot.generation.0, task.state)
    }

    #[tokio::test(start_paused = true)]
    async fn an_ejected_task_drains_in_the_snapshot_and_not_in_what_is_kept_on_disk() {
        let (_source, input) = watch::channel(said(Some(with_web(desired(&["n1"])))));
        let (writer, mut view) = SnapshotWriter::new(None);
        let mut kept = writer.declared();
        let (findings, _targets, mut health) = begin(writer, input);
        view.wait_for(|view| view.snapshot.is_some()).await.unwrap();
        assert_eq!(state_in(&view.borrow_and_update()), (1, TaskState::Active));
        let (service, task) = (ServiceName::new("web"), TaskName::new("web.1"));
        let ident = Ident::of_task(&service, &task, &NodeName::new("n1"));
        let seen = Seen { accepted: 0, refused: 5 };
        findings.send(Finding::Seen(vec![(ident, seen)])).await.unwrap();
        view.changed().await.unwrap();
        assert_eq!(state_in(&view.borrow_and_update()), (2, TaskState::Draining));
        assert_eq!(state_in(&kept.borrow_and_update()), (2, TaskState::Active));
        assert!(!health.borrow_and_update()[&ident].healthy);
        let out = time::Instant::now();
        view.changed().await.unwrap();
        assert_eq!(state_in(&view.borrow_and_update()), (3, TaskState::Active));
        assert!(out.elapsed().as_secs().abs_diff(10) <= 1, "{:?}", out.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_decided_before_it_is_known_what_the_kernel_holds() {
        let (_source, input) = watch::channel(said(Some(desired(&["n1"]))));
        let (writer, mut view) = SnapshotWriter::new(None);
        let (chamber, Wires { held, .. }) = wired(NodeName::new("n1"));
        tokio::spawn(writer.run(input, WAIT, chamber));
        time::sleep(WAIT * 2).await;
        assert!(view.borrow().snapshot.is_none());
        held.send(Held::new()).unwrap();
        view.wait_for(|view| view.snapshot.is_some()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn without_source_and_disk_nothing_is_decided_ever() {
        let (source, input) = watch::channel(SourceState::silent());
        let (writer, view) = SnapshotWriter::new(None);
        source.send_replace(said(None));
        let _wires = begin(writer, input);
        time::sleep(WAIT * 2).await;
        assert!(view.borrow().snapshot.is_none());
    }
}
