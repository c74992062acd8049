//! The Docker source: what dockerd knows of this node's containers and, on a manager, of the Swarm.
//!
//! It only reads. While dockerd cannot be reached it keeps what it last knew, says what is wrong and
//! tries again, for ever.

mod client;
mod containers;
mod declared;
mod engine;
mod gossip;
mod local;
mod model;
mod signal;
mod state;
mod survey;
mod swarm;
mod words;

pub use client::{Client, Error};
pub use engine::{Engine, NoSwarm};
pub use state::DockerState;
pub use survey::{Survey, SurveyedNode, SurveyedPort, SurveyedTask, SwarmSurvey, survey};
pub use words::{PeerWords, Voices};

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};
use weir_mesh::cluster::ReportedNode;

use self::{containers::Containers, model::Info, state::Publisher};
use crate::config::DockerSourceConfig;

/// Between attempts to reach dockerd: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The same for the Swarm.
const SWARM_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Asks the dockerd behind `socket` once for its place in a Swarm.
pub async fn ask(socket: &Path) -> Result<Result<Engine, NoSwarm>, Error> {
    let client = Client::connect(socket).await?;
    Ok(Engine::read(&client.get::<Info>("/info").await?))
}

/// Follows one dockerd.
pub struct DockerSource {
    config: DockerSourceConfig,
    address: IpAddr,
    publisher: Publisher,
}

/// How following ended.
enum End {
    Failed(Error),
    NoSwarm(NoSwarm),
    /// The node's place in the Swarm is another.
    Moved,
}

impl DockerSource {
    /// A source for the node with this underlay address, and where it will publish.
    pub fn new(
        config: &DockerSourceConfig,
        address: IpAddr,
    ) -> (Self, watch::Receiver<DockerState>) {
        let (publisher, state) = Publisher::new(config.socket.display().to_string());
        (Self { config: config.clone(), address, publisher }, state)
    }

    /// Follows until nobody listens any more.
    pub async fn run(self) {
        tokio::select! {
            () = self.follow_for_ever() => {}
            () = self.publisher.closed() => {}
        }
    }

    async fn follow_for_ever(&self) {
        let mut containers = Containers::default();
        let mut wait = BACKOFF.0;
        loop {
            let mut lived = false;
            match self.follow(&mut containers, &mut lived).await {
                End::Moved => info!("this node's place in the Swarm has changed"),
                End::Failed(error) => {
                    if lived || wait == BACKOFF.0 {
                        let remedy = error.remedy();
                        warn!(%error, remedy, "dockerd cannot be followed, keeping what is known");
                    }
                    self.publisher.failed(&error);
                }
                End::NoSwarm(NoSwarm { problem, remedy }) => {
                    if lived || wait == BACKOFF.0 {
                        warn!(problem, remedy, "no Swarm to follow, keeping what is known");
                    }
                    self.publisher.no_swarm(problem, remedy);
                }
            }
            wait = if lived { BACKOFF.0 } else { (wait * 2).min(BACKOFF.1) };
            sleep(wait).await;
        }
    }

    async fn follow(&self, containers: &mut Containers, lived: &mut bool) -> End {
        match self.connected(containers, lived).await {
            Ok(end) => end,
            Err(error) => End::Failed(error),
        }
    }

    async fn connected(&self, containers: &mut Containers, lived: &mut bool) -> Result<End, Error> {
        let client = Client::connect(&self.config.socket).await?;
        let engine = match Engine::read(&client.get::<Info>("/info").await?) {
            Ok(engine) => engine,
            Err(no_swarm) => return Ok(End::NoSwarm(no_swarm)),
        };
        // Before anything is asked, so that nothing happens unseen in between.
        let events = local::events(&client).await?;
        *lived = true;
        let (node, manager) = (&engine.node, engine.manager);
        info!(socket = %self.config.socket.display(), %node, manager, "following dockerd");
        self.publisher.engine(&engine);
        let own = ReportedNode { hostname: engine.hostname.clone(), address: self.address };
        let publisher = &self.publisher;
        let ended = tokio::select! {
            ended = local::follow(&client, events, containers, &own, publisher) => ended,
            ended = self.swarm(&client, &engine) => ended,
        };
        ended.map(|()| End::Moved)
    }

    /// What goes wrong here does not keep the containers from being followed: a manager without a
    /// majority can say nothing of the Swarm, a busy one is slow with its 20,000 tasks.
    async fn swarm(&self, client: &Client, engine: &Engine) -> Result<(), Error> {
        let mut wait = SWARM_BACKOFF.0;
        loop {
            let begun = Instant::now();
            let Err(error) = swarm::follow(client, engine, self.config.poll, &self.publisher).await
            else {
                return Ok(());
            };
            self.publisher.swarm_failed(&error);
            wait = if begun.elapsed() > SWARM_BACKOFF.1 { SWARM_BACKOFF.0 } else { wait };
            sleep(wait).await;
            wait = (wait * 2).min(SWARM_BACKOFF.1);
            let Ok(info) = client.get::<Info>("/info").await else { continue };
            match Engine::read(&info) {
                Ok(now) if (&now.node, now.manager) == (&engine.node, engine.manager) => {}
                _ => return Ok(()),
            }
        }
    }
}
