//! The source with its dockerd, and what it publishes.

use std::{path::PathBuf, time::Duration};

use serde_json::json;
use tokio::{sync::watch, time::timeout};
use weir::{
    config::DockerSourceConfig,
    source::{
        SourceState,
        docker::{DockerSource, PeerWords, Voices},
    },
};
use weir_mesh::{ServiceName, Timeouts};

use crate::fake::{self, Dockerd};

pub struct Watched {
    pub dockerd: Dockerd,
    pub state: watch::Receiver<SourceState>,
    pub peers: watch::Sender<PeerWords>,
    _directory: tempfile::TempDir,
}

const PATIENCE: Duration = Duration::from_secs(25);
/// Long enough that no test waits for it.
const CALM: Duration = Duration::from_secs(60);

/// Follows a socket with nobody behind it, or with what `prepare` puts there.
pub fn follow(socket: PathBuf) -> (watch::Receiver<SourceState>, watch::Sender<PeerWords>) {
    let config = DockerSourceConfig { socket, poll: CALM };
    let (source, words) = DockerSource::new(&config, [10, 0, 0, 1].into());
    tokio::spawn(source.run());
    let (peers_in, peers) = watch::channel(PeerWords::none());
    let (voices, state) = Voices::new(words, peers, Timeouts::default());
    tokio::spawn(voices.run());
    (state, peers_in)
}

impl Watched {
    /// Starts the source once its dockerd is prepared.
    pub fn start(prepare: impl FnOnce(&mut Dockerd)) -> Self {
        let directory = tempfile::tempdir().expect("a test's own words");
        let socket = directory.path().join("docker.sock");
        let mut dockerd = Dockerd::manager(&socket);
        prepare(&mut dockerd);
        let (state, peers) = follow(socket);
        Self { dockerd, state, peers, _directory: directory }
    }

    /// One service with one task, in one container named `c1`.
    pub fn with_a_task() -> Self {
        Self::start(|dockerd| {
            dockerd.say("/nodes", fake::nodes());
            dockerd.say("/services", json!([fake::service(json!({}))]));
            dockerd.say("/tasks", json!([fake::task("taskone", "running", "running")]));
            dockerd.say("/containers/json", json!([{ "Id": "c1" }]));
            dockerd.say("/containers/c1/json", fake::container("c1", "taskone"));
            dockerd.say("/networks/docker_gwbridge", fake::gateway(&["c1"]));
        })
    }

    pub async fn until(&mut self, wanted: impl FnMut(&SourceState) -> bool) -> SourceState {
        let state = timeout(PATIENCE, self.state.wait_for(wanted)).await;
        state.expect("the source says it in time").expect("a test's own words").clone()
    }

    pub async fn until_tasks(&mut self, tasks: &[&str]) -> SourceState {
        self.until(|state| self::tasks(state) == tasks).await
    }
}

/// `task address state` of service `web`.
pub fn tasks(state: &SourceState) -> Vec<String> {
    let Some(desired) = &state.desired else { return Vec::new() };
    let Some(web) = desired.services.get(&ServiceName::new("web")) else { return Vec::new() };
    let text = |task: &weir_mesh::Task| {
        let addresses: Vec<_> = task.addresses().map(|address| address.to_string()).collect();
        format!("{} {} {}", task.name, addresses.join(","), task.state.as_str())
    };
    web.tasks.iter().map(text).collect()
}
