//! Follows the containers of this node: an event is in the report within milliseconds, since nothing
//! that is asked of dockerd is waited for in between.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant as TokioInstant, sleep_until},
};
use weir_mesh::cluster::{Report, ReportedNode};

use super::{
    client::{Client, Error, Events, encode},
    containers::{Call, ContainerId, Containers, Reach},
    model::{Container, Event, Listed, Network},
    state::Publisher,
};

/// Everything is looked at again this often, for what no event said.
const RESYNC: Duration = Duration::from_secs(30);
/// Containers that are asked about at one time.
const AT_ONCE: usize = 8;

/// Containers, and what changes in the Swarm, in one stream.
pub(super) async fn events(client: &Client) -> Result<Events<Event>, Error> {
    let filters = json!({
        "type": ["container", "service", "node", "network"],
        "event": [
            "start", "health_status", "kill", "die", "destroy", "pause", "unpause", "create",
            "update", "remove", "connect", "disconnect",
        ],
    });
    client.events(&filters).await
}

/// What dockerd answered.
enum Answer {
    One(ContainerId, Option<Box<Container>>, Reach),
    All(Vec<Container>, Reach, Instant),
}

/// Follows until dockerd cannot be followed any more. `containers` lives longer than a connection,
/// so that a task whose end was missed is still reported as down.
pub(super) async fn follow(
    client: &Client,
    mut events: Events<Event>,
    containers: &mut Containers,
    node: &ReportedNode,
    publisher: &Publisher,
) -> Result<(), Error> {
    let mut answers = JoinSet::new();
    answers.spawn(all(client.clone()));
    let mut whole = false;
    let mut resync = Instant::now() + RESYNC;
    loop {
        let wake = containers.next_change().map_or(resync, |change| change.min(resync));
        let mut changed = true;
        let noticed;
        tokio::select! {
            event = events.next() => {
                let event = event?;
                noticed = Instant::now();
                if event.kind == "container" {
                    let call = containers.event(&event, noticed);
                    changed = call != Call::Nothing;
                    if call == Call::Look {
                        answers.spawn(one(client.clone(), event.actor.id));
                    }
                } else {
                    changed = false;
                    publisher.stir();
                    // A container that was attached to a network, or detached from it.
                    if let Some(id) = event.actor.attributes.get("container") {
                        answers.spawn(one(client.clone(), id.clone()));
                    }
                }
            }
            Some(answer) = answers.join_next() => {
                let Ok(answer) = answer else { continue };
                noticed = Instant::now();
                match answer? {
                    Answer::One(id, container, reach) => {
                        containers.looked(&id, container.map(|boxed| *boxed), noticed);
                        containers.reached(reach);
                    }
                    Answer::All(found, reach, asked) => {
                        containers.all(found, reach, (asked, noticed));
                        (whole, resync) = (true, noticed + RESYNC);
                    }
                }
            }
            () = sleep_until(TokioInstant::from_std(wake)) => {
                noticed = Instant::now();
                if noticed >= resync {
                    answers.spawn(all(client.clone()));
                    resync = noticed + RESYNC;
                }
            }
        }
        // Half of the containers would take the others out of the mesh.
        if changed && whole {
            let tasks = containers.report(noticed);
            publisher.report(Report { node: node.clone(), tasks }, noticed);
            publisher.spaces(containers.spaces());
        }
    }
}

async fn one(client: Client, id: ContainerId) -> Result<Answer, Error> {
    let (container, reach) = tokio::join!(inspect(&client, &id), reach(&client));
    Ok(Answer::One(id, container?.map(Box::new), reach?))
}

async fn all(client: Client) -> Result<Answer, Error> {
    let asked_at = Instant::now();
    let listed: Vec<Listed> = client.get("/containers/json?all=true").await?;
    let ids: BTreeSet<_> = listed.into_iter().map(|listed| listed.id).collect();
    let mut found = Vec::new();
    let mut asked = JoinSet::new();
    for id in ids {
        if asked.len() >= AT_ONCE {
            found.extend(joined(asked.join_next().await)?);
        }
        let client = client.clone();
        asked.spawn(async move { inspect(&client, &id).await });
    }
    while let Some(answer) = asked.join_next().await {
        found.extend(joined(Some(answer))?);
    }
    // Last, so that every container that was found has its address.
    Ok(Answer::All(found, reach(&client).await?, asked_at))
}

type Joined = Option<Result<Result<Option<Container>, Error>, tokio::task::JoinError>>;

fn joined(answer: Joined) -> Result<Option<Container>, Error> {
    match answer {
        Some(Ok(answer)) => answer,
        _ => Ok(None),
    }
}

async fn inspect(client: &Client, id: &str) -> Result<Option<Container>, Error> {
    absent_is_none(client.get(&format!("/containers/{id}/json")).await)
}

async fn reach(client: &Client) -> Result<Reach, Error> {
    let filters = encode(&json!({ "driver": ["bridge"] }).to_string());
    let networks: Vec<Network> = client.get(&format!("/networks?filters={filters}")).await?;
    // It comes to be with the first container that needs it.
    let gateway = absent_is_none(client.get::<Network>("/networks/docker_gwbridge").await)?;
    Ok(Reach::read(&networks, gateway.as_ref()))
}

fn absent_is_none<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}
