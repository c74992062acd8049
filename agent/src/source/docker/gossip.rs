//! What `GET /networks/ingress?verbose=true` says on a worker: Docker's own gossip.

use weir_mesh::{
    PublishedPort, ServiceName, TargetPort, TaskName,
    cluster::{HeardPort, HeardService, HeardTask, Hearsay},
};

use super::{declared::address_of, model::Network};

/// Services and their tasks as the ingress network knows them.
pub(super) fn read(network: &Network) -> Hearsay {
    let services = network.services.iter().filter(|(name, _)| !name.is_empty());
    let services = services.map(|(name, gossip)| {
        let tasks = gossip.tasks.iter().map(|task| {
            let node = task.info.get("Host IP").and_then(|text| text.parse().ok());
            (TaskName::new(&*task.name), HeardTask { address: address_of(&task.address), node })
        });
        let mut ports: Vec<HeardPort> = gossip.ports.iter().filter_map(|text| port(text)).collect();
        ports.sort_unstable();
        let heard = HeardService { vip: address_of(&gossip.vip), ports, tasks: tasks.collect() };
        (ServiceName::new(&**name), heard)
    });
    Hearsay { services: services.collect() }
}

/// `Target: 80, Publish: 8080`
fn port(text: &str) -> Option<HeardPort> {
    let (target, published) = text.split_once(',')?;
    let target = target.trim().strip_prefix("Target:")?.trim().parse().ok()?;
    let published = published.trim().strip_prefix("Publish:")?.trim().parse().ok()?;
    Some(HeardPort { published: PublishedPort::new(published)?, target: TargetPort::new(target)? })
}
