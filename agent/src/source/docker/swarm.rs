//! Follows the Swarm: on a manager by asking for services, tasks, nodes and networks, on a worker by
//! Docker's gossip. Tasks have no events (moby#37403), so they are polled: fast while something
//! changes, calmly otherwise.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};
use weir_mesh::cluster::{
    Declared, DeclaredNetwork, DeclaredNode, DeclaredService, NetworkId, NodeId, ServiceId,
};

use super::{
    client::{Client, Error},
    declared,
    engine::Engine,
    gossip,
    model::{self, Info, Network},
    state::Publisher,
};

/// Between two questions while something changes.
const FAST: Duration = Duration::from_millis(200);
/// How long after the last change that is so.
const EXCITED: Duration = Duration::from_secs(10);
/// What no event says is asked for this often.
const COMPLETE: Duration = Duration::from_secs(10);
/// How often dockerd is asked for its place in the Swarm.
const PLACE: Duration = Duration::from_secs(5);
/// One tenth of the time at most is spent on asking,
const SHARE: u32 = 9;
/// but while something changes the pause is no longer than this: from when Swarm wants a task to end
/// until dockerd signals it there are 2 s (`defaultGossipConvergeDelay` of moby's executor), in which
/// every node must hear of it.
const LONGEST_WHILE_EXCITED: Duration = Duration::from_millis(700);

/// The answers that events announce.
#[derive(Default)]
struct Announced {
    nodes: BTreeMap<NodeId, Arc<DeclaredNode>>,
    services: BTreeMap<ServiceId, Arc<DeclaredService>>,
    networks: BTreeMap<NetworkId, Arc<DeclaredNetwork>>,
    updating: bool,
}

/// Follows until dockerd cannot be followed, or the node's place in the Swarm is another.
pub(super) async fn follow(
    client: &Client,
    engine: &Engine,
    calm: Duration,
    publisher: &Publisher,
) -> Result<(), Error> {
    let mut announced: Option<Announced> = None;
    let mut complete_at = Instant::now();
    let mut place_at = Instant::now() + PLACE;
    let mut excited_until = Instant::now();
    let mut stirred = true;
    loop {
        let begun = Instant::now();
        if begun >= place_at {
            let now = Engine::read(&client.get::<Info>("/info").await?);
            match now {
                Ok(now) if (&now.node, now.manager) == (&engine.node, engine.manager) => {
                    publisher.engine(&now);
                }
                // It was promoted, demoted, or has left: begin anew.
                _ => return Ok(()),
            }
            place_at = begun + PLACE;
        }
        let changed = if engine.manager {
            let due = announced.as_ref().is_none_or(|known| known.updating);
            if stirred || due || begun >= complete_at {
                announced = Some(ask_announced(client).await?);
                complete_at = begun + COMPLETE;
            }
            match &announced {
                Some(announced) => ask_tasks(client, announced, publisher, begun).await?,
                None => false,
            }
        } else {
            hear(client, publisher).await?
        };
        if changed || stirred {
            excited_until = Instant::now() + EXCITED;
        }
        let updating = announced.as_ref().is_some_and(|known| known.updating);
        let share = begun.elapsed() * SHARE;
        let pause = if updating || Instant::now() < excited_until {
            FAST.max(share.min(LONGEST_WHILE_EXCITED))
        } else {
            calm.max(share)
        };
        stirred = timeout(pause, publisher.stirred()).await.is_ok();
        if stirred {
            // What one command does comes as several events.
            sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn ask_announced(client: &Client) -> Result<Announced, Error> {
    let (nodes, services, networks) = tokio::try_join!(
        client.get::<Vec<model::Node>>("/nodes"),
        client.get::<Vec<model::Service>>("/services"),
        client.get::<Vec<Network>>("/networks"),
    )?;
    let (services, updating) = declared::services(&services);
    let (nodes, networks) = (declared::nodes(&nodes), declared::networks(&networks));
    Ok(Announced { nodes, services, networks, updating })
}

async fn ask_tasks(
    client: &Client,
    announced: &Announced,
    publisher: &Publisher,
    begun: Instant,
) -> Result<bool, Error> {
    let tasks: Vec<model::Task> = client.get("/tasks").await?;
    let mut declared = Declared {
        nodes: announced.nodes.clone(),
        services: announced.services.clone(),
        tasks: declared::tasks(&tasks, &announced.services),
        networks: announced.networks.clone(),
    };
    if let Some(last) = publisher.last_declared() {
        declared::share(&last, &mut declared);
    }
    publisher.no_hearsay();
    Ok(publisher.declared(declared, begun))
}

/// A worker without any published service has no ingress network yet.
async fn hear(client: &Client, publisher: &Publisher) -> Result<bool, Error> {
    let network = match client.get::<Network>("/networks/ingress?verbose=true").await {
        Ok(network) => network,
        Err(error) if error.is_absent() => Network::default(),
        Err(error) => return Err(error),
    };
    Ok(publisher.hearsay(gossip::read(&network)))
}
