//! What an operator has drained by hand on this node: a local decision, kept over restarts.
//!
//! It is one more finding for the judge of tasks: a task that is drained is draining in the snapshot.
//! Of this node's own tasks the link tells the others, as it does of a failing check.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, watch};
use tracing::{info, warn};
use weir_mesh::{MeshSnapshot, NodeName, ServiceName, TaskName};

use crate::{probes::Finding, state};

/// What is drained by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drained {
    /// All tasks of this node.
    #[serde(default)]
    pub node: bool,
    /// Single tasks, of any node.
    #[serde(default)]
    pub tasks: BTreeSet<DrainedTask>,
}

/// A task by its names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainedTask {
    /// Its service.
    pub service: ServiceName,
    /// Its name.
    pub task: TaskName,
    /// Its node: a task that has moved is another.
    pub node: NodeName,
}

/// What is said of a task that is drained by hand.
pub const REASON: &str = "drained by hand";

impl DrainedTask {
    /// Whether there is such a task.
    pub fn is_in(&self, snapshot: &MeshSnapshot) -> bool {
        let service = snapshot.services.get(&self.service);
        let mut tasks = service.into_iter().flat_map(|service| &service.tasks);
        tasks.any(|task| task.name == self.task && task.node == self.node)
    }
}

impl Drained {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        !self.node && self.tasks.is_empty()
    }

    /// Whether a task is, on a node of this name.
    pub fn has(&self, here: &NodeName, service: &ServiceName, task: &weir_mesh::Task) -> bool {
        if self.is_empty() {
            return false;
        }
        let of_node = self.node && task.node == *here;
        of_node
            || self.tasks.iter().any(|one| {
                one.task == task.name && one.service == *service && one.node == task.node
            })
    }
}

/// Keeps what is drained, and tells the judge.
pub struct Drains {
    path: PathBuf,
    now: watch::Sender<Arc<Drained>>,
    findings: mpsc::Sender<Finding>,
    changing: Mutex<()>,
}

/// Why a drain was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It would be lost at a restart.
    #[error("{path} cannot be written: {cause}; make room, or set state.path")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The agent is about to end.
    #[error("the agent is ending")]
    Ending,
}

impl Drains {
    /// Takes over what the file beside the state file says, and tells the judge of it.
    pub async fn begin(state: &Path, findings: mpsc::Sender<Finding>) -> Arc<Self> {
        let path = state::drained_file(state);
        let drained = Arc::new(read(&path));
        if !drained.is_empty() {
            info!(node = drained.node, tasks = drained.tasks.len(), "drained by hand, as before");
            // Nobody listens any more only when the agent ends.
            findings.send(Finding::Drained(drained.clone())).await.ok();
        }
        let now = watch::Sender::new(drained);
        Arc::new(Self { path, now, findings, changing: Mutex::new(()) })
    }

    /// What is drained.
    pub fn now(&self) -> Arc<Drained> {
        self.now.borrow().clone()
    }

    /// Changes it, on disk first.
    ///
    /// # Errors
    /// When it cannot be kept: then nothing has changed.
    pub async fn change(&self, change: impl FnOnce(&mut Drained)) -> Result<Arc<Drained>, Error> {
        let _alone = self.changing.lock().await;
        let mut new = (*self.now()).clone();
        change(&mut new);
        if new == *self.now() {
            return Ok(self.now());
        }
        state::write_whole(&self.path, |file| Ok(serde_json::to_writer(file, &new)?))
            .map_err(|cause| Error::Unwritable { path: self.path.clone(), cause })?;
        let new = Arc::new(new);
        info!(node = new.node, tasks = new.tasks.len(), "drained by hand");
        self.now.send_replace(new.clone());
        let told = self.findings.send(Finding::Drained(new.clone())).await;
        told.map_err(|_| Error::Ending)?;
        Ok(new)
    }
}

/// A file that is damaged drains nothing: nobody can say what was meant.
fn read(path: &Path) -> Drained {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Drained::default(),
        Err(error) => {
            warn!(path = %path.display(), %error, "what is drained by hand cannot be read");
            return Drained::default();
        }
    };
    serde_json::from_str(&text).unwrap_or_else(|error| {
        warn!(path = %path.display(), %error, "what is drained by hand is not understood");
        Drained::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str) -> DrainedTask {
        DrainedTask {
            service: ServiceName::new("web"),
            task: TaskName::new(name),
            node: NodeName::new("n1"),
        }
    }

    #[tokio::test]
    async fn what_is_drained_outlives_the_agent_and_is_told_to_the_judge() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state.json");
        let (findings, mut told) = mpsc::channel(4);
        let drains = Drains::begin(&state, findings.clone()).await;
        assert!(told.try_recv().is_err(), "nothing is drained yet");
        drains.change(|all| all.tasks.extend([task("web.1")])).await.unwrap();
        let Ok(Finding::Drained(said)) = told.try_recv() else { panic!("not told") };
        assert_eq!(said.tasks, [task("web.1")].into());

        let again = Drains::begin(&state, findings.clone()).await;
        assert_eq!(again.now(), drains.now());
        assert!(matches!(told.try_recv(), Ok(Finding::Drained(_))), "told at the start, too");
        again.change(|all| all.tasks.clear()).await.unwrap();
        assert!(Drains::begin(&state, findings).await.now().is_empty());
    }

    #[tokio::test]
    async fn agents_with_states_of_their_own_drain_for_themselves() {
        let directory = tempfile::tempdir().unwrap();
        let (findings, _told) = mpsc::channel(4);
        let first = Drains::begin(&directory.path().join("state.json"), findings.clone()).await;
        first.change(|all| all.node = true).await.unwrap();
        let other = directory.path().join("state-sys-fs-bpf-other.json");
        assert!(Drains::begin(&other, findings).await.now().is_empty());
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_not_done() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let (findings, mut told) = mpsc::channel(4);
        let drains = Drains::begin(&file.join("state.json"), findings).await;
        let error = drains.change(|all| all.node = true).await.unwrap_err().to_string();
        assert!(error.contains("state.drained.json cannot be written: "), "{error}");
        assert!(drains.now().is_empty() && told.try_recv().is_err());
    }

    #[test]
    fn a_drained_node_drains_its_own_tasks_and_no_others() {
        let here = NodeName::new("n1");
        let on = |node: &str| weir_mesh::Task::new(TaskName::new("web.1"), NodeName::new(node));
        let web = ServiceName::new("web");
        let node = Drained { node: true, ..Drained::default() };
        assert!(node.has(&here, &web, &on("n1")) && !node.has(&here, &web, &on("n2")));
        let one = Drained { tasks: [task("web.1")].into(), ..Drained::default() };
        assert!(one.has(&here, &web, &on("n1")) && !one.has(&here, &web, &on("n2")));
        assert!(!one.has(&here, &ServiceName::new("api"), &on("n1")));
    }
}
