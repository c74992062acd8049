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

/// Makes snapshots of what the source says.
pub struct SnapshotWriter {
    restored: Option<Restored>,
    last: Arc<MeshSnapshot>,
    view: watch::Sender<View>,
}

impl SnapshotWriter {
    /// Begins after the snapshot that was on disk, if there was one.
    pub fn new(restored: Option<Restored>) -> (Self, watch::Receiver<View>) {
        let nothing = View { snapshot: None, stale: false, noticed: Instant::now() };
        let (view, receiver) = watch::channel(nothing);
        let last = restored.as_ref().map(|restored| restored.snapshot.clone());
        (Self { restored, last: Arc::new(last.unwrap_or_default()), view }, receiver)
    }

    /// Follows the source until it ends. Until the source has spoken, or `start_wait` is over,
    /// there is no snapshot, and so nothing that the kernel holds is touched.
    pub async fn run(mut self, mut source: watch::Receiver<SourceState>, start_wait: Duration) {
        let spoken = source.wait_for(|state| state.readings > 0);
        if time::timeout(start_wait, spoken).await.is_err() {
            warn!(?start_wait, "the source has not spoken, going on without it");
        }
        loop {
            let state = source.borrow_and_update().clone();
            match &state.desired {
                Some(desired) => self.take(desired, state.noticed),
                None => self.fall_back(),
            }
            if source.changed().await.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, desired: &Desired, noticed: Instant) {
        let unchanged = desired.nodes == self.last.nodes && desired.services == self.last.services;
        let known = self.view.borrow().clone();
        if unchanged && known.snapshot.is_some() && !known.stale {
            return;
        }
        let generation = match unchanged && self.last.generation > Generation(0) {
            true => self.last.generation,
            false => Generation(self.last.generation.0 + 1),
        };
        let snapshot = MeshSnapshot {
            generation,
            nodes: desired.nodes.clone(),
            services: desired.services.clone(),
        };
        let services = snapshot.services.len();
        let changes = diff::summary(&self.last, &snapshot);
        if changes.is_empty() {
            info!(%generation, services, "the source confirms the last snapshot");
        } else {
            info!(%generation, services, changes, "a new snapshot");
        }
        self.restored = None;
        self.publish(Arc::new(snapshot), false, noticed);
    }

    fn fall_back(&mut self) {
        let Some(restored) = self.restored.take() else { return };
        let generation = restored.snapshot.generation;
        let age = restored.written.elapsed().unwrap_or_default().as_secs();
        warn!(%generation, age_seconds = age, "no source is good, going on with the snapshot on disk");
        self.publish(Arc::new(restored.snapshot), true, Instant::now());
    }

    fn publish(&mut self, snapshot: Arc<MeshSnapshot>, stale: bool, noticed: Instant) {
        self.last = snapshot.clone();
        self.view.send_replace(View { snapshot: Some(snapshot), stale, noticed });
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
    use std::{collections::BTreeMap, time::SystemTime};

    use weir_mesh::{Node, NodeName};

    use super::*;

    fn desired(nodes: &[&str]) -> Desired {
        let node = |name: &&str| {
            let name = NodeName::new(*name);
            (name.clone(), Node { name, address: [10, 0, 0, 1].into(), spaces: Vec::new() })
        };
        Desired { nodes: nodes.iter().map(node).collect(), services: BTreeMap::new() }
    }

    fn restored(nodes: &[&str]) -> Restored {
        let snapshot = MeshSnapshot {
            generation: Generation(41),
            nodes: desired(nodes).nodes,
            services: BTreeMap::new(),
        };
        Restored { snapshot, written: SystemTime::now() }
    }

    fn said(desired: Option<Desired>) -> SourceState {
        SourceState { desired: desired.map(Arc::new), readings: 1, ..SourceState::silent() }
    }

    const WAIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn nothing_is_decided_until_the_source_has_spoken() {
        let (source, input) = watch::channel(SourceState::silent());
        let (writer, mut view) = SnapshotWriter::new(Some(restored(&["n1"])));
        tokio::spawn(writer.run(input, WAIT));
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
        tokio::spawn(writer.run(input, WAIT));
        let view = view.wait_for(|view| view.snapshot.is_some()).await.unwrap();
        assert!(view.stale);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_source_at_start_means_the_snapshot_on_disk_at_once() {
        let (source, input) = watch::channel(SourceState::silent());
        let (writer, mut view) = SnapshotWriter::new(Some(restored(&["n1"])));
        source.send_replace(said(None));
        let started = time::Instant::now();
        tokio::spawn(writer.run(input, WAIT));
        let stale = view.wait_for(|view| view.snapshot.is_some()).await.unwrap().stale;
        assert!(stale && started.elapsed() < Duration::from_secs(1));
        source.send_replace(said(Some(desired(&["n1"]))));
        let view = view.wait_for(|view| !view.stale).await.unwrap();
        assert_eq!(view.snapshot.as_ref().unwrap().generation, Generation(41), "nothing changed");
    }

    #[tokio::test(start_paused = true)]
    async fn without_source_and_disk_nothing_is_decided_ever() {
        let (source, input) = watch::channel(SourceState::silent());
        let (writer, view) = SnapshotWriter::new(None);
        source.send_replace(said(None));
        tokio::spawn(writer.run(input, WAIT));
        time::sleep(WAIT * 2).await;
        assert!(view.borrow().snapshot.is_none());
    }
}
