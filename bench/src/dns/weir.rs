//! weir's own server, in a process by itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use weir_dns::{
    Directory, Forwarder, Handler, Identity, Outside, Routes, Zone, ZoneSettings, forward,
    name::from_text,
    server::{self, Server},
};
use weir_mesh::{
    Generation, MeshSnapshot, Network, NetworkId, Node, NodeName, Service, ServiceName, Task,
    TaskName,
};

use super::{DOMAIN, address, many};

/// Serves so many names on loopback until it is killed, and asks `upstream` for others. SIGHUP makes a
/// new zone of the same names, with one task less and more by turns.
pub fn serve(port: u16, names: usize, upstream: SocketAddr) -> Result<()> {
    let forwarder = Arc::new(Forwarder::new(forward::Settings::default()));
    forwarder.set_routes(Routes::new(&[upstream], &[], &[]));
    let identity = Identity { node: "n1".to_owned(), version: String::new() };
    let handler = Arc::new(Handler::new(directory(names, 1)?, forwarder, identity));
    let settings = server::Settings { workers: 1, ..server::Settings::default() };
    let server = Server::start(handler.clone(), settings)?;
    server.listen([(Ipv4Addr::LOCALHOST, port).into()].into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut generation = 1;
        while hangup.recv().await.is_some() {
            generation += 1;
            handler.directory.store(Arc::new(directory(names, generation)?));
        }
        Ok(())
    })
}

fn directory(names: usize, generation: u64) -> Result<Directory> {
    let settings = ZoneSettings {
        domain: from_text(DOMAIN).context("a domain")?,
        ttl: Duration::from_secs(5),
        node: NodeName::new("n1"),
        addresses: Vec::new(),
    };
    let snapshot = mesh(names, generation)?;
    let zone = Arc::new(Zone::build(&snapshot, settings));
    Ok(Directory::new(zone, &snapshot, &NodeName::new("n1"), &[], &Outside::default()))
}

fn mesh(names: usize, generation: u64) -> Result<MeshSnapshot> {
    let blue = NetworkId::new("blue");
    let service = |name: String, vip: Option<Ipv4Addr>, tasks: Vec<Task>| Service {
        tasks,
        vips: vip.map(|vip| (blue.clone(), vec![vip.into()])).into_iter().collect(),
        ..Service::new(ServiceName::new(name))
    };
    let task = |name: String, address: Ipv4Addr| Task {
        networks: [(blue.clone(), vec![address.into()])].into(),
        ..Task::new(TaskName::new(name), NodeName::new("n1"))
    };
    let numbers = 0..u32::try_from(names)?;
    let mut services: Vec<Service> = numbers
        .map(|number| service(format!("s{number}"), Some(address(number)), Vec::new()))
        .collect();
    let all = many().zip(1..).map(|(address, at)| task(format!("many.{at}"), address));
    services.push(service("many".to_owned(), None, all.collect()));
    let coming = (0..generation % 2).map(|at| task(format!("moving.{at}"), [10, 62, 0, 1].into()));
    services.push(service("moving".to_owned(), None, coming.collect()));
    let node = Node::new(NodeName::new("n1"), Ipv4Addr::LOCALHOST.into());
    let mut snapshot = MeshSnapshot::build(Generation(generation), vec![node], services)
        .ok()
        .context("the mesh does not fit together")?;
    let network = Network::new("blue");
    snapshot.networks.insert(blue.clone(), network);
    Ok(snapshot)
}
