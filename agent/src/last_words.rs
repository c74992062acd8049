//! What the other nodes of a Swarm said last, on disk. An agent that begins while no manager is heard
//! goes on with it, as it would have done had it not been stopped.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time};
use tracing::warn;
use weir_mesh::cluster::{Declared, NodeId, Report};

use crate::{
    source::docker::PeerWords,
    state::{self, Error},
};

/// Version of the file's format; another one is not read.
const FORMAT: u32 = 1;
/// So long nothing is written after a writing. What is missed is what other nodes see to: they do not
/// send to tasks that have ended.
const REST: Duration = Duration::from_secs(2);
/// Between two writings there is so many times the time that writing takes.
const SHARE: u32 = 50;

/// Keeps the words in one file.
#[derive(Clone, Debug)]
pub struct LastWords {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct OnDisk<W, D, R> {
    format: u32,
    node: W,
    declared: D,
    reports: R,
}

type Read = OnDisk<NodeId, Arc<Declared>, BTreeMap<NodeId, Arc<Report>>>;

impl LastWords {
    /// In a file beside that of the last good snapshot.
    pub fn beside(state: &Path) -> Self {
        Self { path: state::peers_file(state) }
    }

    /// What was said to this node; `None` if nothing was kept, or it was said to another one.
    ///
    /// # Errors
    /// When the file cannot be read, or not as this version would have written it.
    pub fn load(&self, node: &NodeId) -> Result<Option<PeerWords>, Error> {
        let path = || self.path.clone();
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::Unreadable { path: path(), cause }),
        };
        let foreign = |cause: String| Error::Foreign { path: path(), cause };
        let kept: Read =
            serde_json::from_slice(&bytes).map_err(|error| foreign(error.to_string()))?;
        if kept.format != FORMAT {
            return Err(foreign(format!("format {} where {FORMAT} belongs", kept.format)));
        }
        // It has left that Swarm, and joined another or the same again.
        if kept.node != *node {
            return Ok(None);
        }
        let OnDisk { declared, reports, .. } = kept;
        Ok(Some(PeerWords { declared: Some(declared), reports, dated: true, ..PeerWords::none() }))
    }

    /// Replaces what is kept, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn store(&self, node: &NodeId, words: &PeerWords) -> Result<(), Error> {
        let Some(declared) = &words.declared else { return Ok(()) };
        let kept = OnDisk { format: FORMAT, node, declared, reports: &words.reports };
        state::write_whole(&self.path, |file| Ok(serde_json::to_writer(file, &kept)?))
            .map_err(|cause| Error::Unwritable { path: self.path.clone(), cause })
    }

    /// Keeps what a node is told, while somebody tells it.
    pub async fn keep(self, node: NodeId, mut words: watch::Receiver<PeerWords>) {
        let mut complained = false;
        while words.changed().await.is_ok() {
            let said = words.borrow_and_update().clone();
            if said.alive.is_none() {
                continue;
            }
            let (begun, file, node) = (Instant::now(), self.clone(), node.clone());
            match tokio::task::spawn_blocking(move || file.store(&node, &said)).await {
                Ok(Err(error)) if !complained => {
                    warn!(%error, "what other nodes say is not kept on disk");
                    complained = true;
                }
                Ok(Ok(())) => complained = false,
                _ => {}
            }
            time::sleep(REST.max(begun.elapsed() * SHARE)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use weir_mesh::cluster::{Life, ReportedNode, ReportedTask, ServiceId, TaskId};
    use weir_mesh::{ServiceName, TaskName};

    use super::*;

    fn words() -> PeerWords {
        let task = ReportedTask {
            service: ServiceId::new("s1"),
            service_name: ServiceName::new("web"),
            name: TaskName::new("web.1"),
            ipv4: Some([172, 18, 0, 3].into()),
            ipv6: None,
            life: Life::Active,
            labels: BTreeMap::new(),
            networks: BTreeMap::new(),
            aliases: BTreeMap::new(),
            ports: Vec::new(),
            verdict: None,
        };
        let node = ReportedNode { hostname: "n2".to_owned(), address: [10, 0, 0, 2].into() };
        let report = Report { node, tasks: [(TaskId::new("t1"), Arc::new(task))].into() };
        PeerWords {
            declared: Some(Arc::default()),
            reports: [(NodeId::new("id2"), Arc::new(report))].into(),
            alive: Some(BTreeSet::new()),
            ..PeerWords::none()
        }
    }

    #[test]
    fn what_was_said_comes_back_as_dated_and_nobody_is_taken_for_silent() {
        let directory = tempfile::tempdir().unwrap();
        let kept = LastWords::beside(&directory.path().join("state.json"));
        let node = NodeId::new("id1");
        assert!(kept.load(&node).unwrap().is_none());
        kept.store(&node, &words()).unwrap();
        let back = kept.load(&node).unwrap().unwrap();
        assert_eq!((back.declared, back.reports), (words().declared, words().reports));
        assert!(back.dated && back.settled && back.alive.is_none());
    }

    #[test]
    fn what_was_said_to_another_node_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let kept = LastWords::beside(&directory.path().join("state.json"));
        kept.store(&NodeId::new("id1"), &words()).unwrap();
        assert!(kept.load(&NodeId::new("id7")).unwrap().is_none());
    }

    #[test]
    fn a_damaged_file_is_not_taken_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let kept = LastWords::beside(&directory.path().join("state.json"));
        fs::write(&kept.path, "{\"format\":1,").unwrap();
        let error = kept.load(&NodeId::new("id1")).unwrap_err().to_string();
        assert!(error.contains("state.peers.json is no state of this version"), "{error}");
    }
}
