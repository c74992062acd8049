//! Looking into the data plane on behalf of somebody who asks: nothing is changed here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use weir_loader::{Error, FlowName, FlowTables};
use weir_mesh::{
    Ident, Protocol,
    install::{
        BackendGeneration, BackendIndex, BackendRecord, NodeIndex, NodeRecord, ServiceId, Via,
    },
    trace::{self, Answer, Entry, Fate, Host, Known, Loss, Question},
};

use super::{Kernel, Reconciler};

/// A flow that somebody might begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who begins it.
    pub client: IpAddr,
    /// From which port.
    pub client_port: Option<u16>,
    /// Where to.
    pub to: SocketAddr,
}

/// What the data plane would do with it, and the records that the answer speaks of.
#[derive(Clone, Debug)]
pub struct Traced {
    /// Where it would enter; `None`: by a socket of the proxy.
    pub entry: Option<Entry>,
    /// The answer.
    pub answer: Answer,
    /// The backends in it.
    pub backends: BTreeMap<BackendIndex, BackendRecord>,
    /// Their nodes.
    pub nodes: BTreeMap<NodeIndex, NodeRecord>,
}

/// The flows of the kernel, and who their tasks are.
pub struct FlowSource {
    /// The tables.
    pub tables: FlowTables,
    /// Identity and use of each backend.
    pub backends: BTreeMap<BackendIndex, (Ident, BackendGeneration)>,
    /// Identity of each service.
    pub services: BTreeMap<ServiceId, Ident>,
    /// Identity of each other node.
    pub nodes: BTreeMap<NodeIndex, Ident>,
}

impl<K: Kernel> Reconciler<K> {
    /// What the data plane would do with a flow.
    ///
    /// # Errors
    /// When the host or a map cannot be read.
    pub fn trace(&self, asked: &Asked) -> Result<Traced, Error> {
        let installed = self.planner.installed();
        let Asked { protocol, client, client_port, to } = *asked;
        let standing = self.kernel.standing(client)?;
        let entry = standing.as_ref().map(|(_, entry)| *entry);
        // The proxy listens at every address of the host, so not at those of other nodes.
        let elsewhere = installed.nodes.values().any(|node| node.address == to.ip());
        let host = match standing {
            Some((host, _)) => host,
            None if elsewhere => Host::default(),
            None => Host { own: BTreeSet::from([to.ip()]), ..Host::default() },
        };
        let entered = entry.unwrap_or(Entry::Wire);
        let question = Question { protocol, client, client_port, to, entry: entered };
        let known = match client_port.filter(|_| entered != Entry::Process) {
            Some(port) => {
                let name = FlowName { protocol, client: SocketAddr::new(client, port), asked: to };
                self.known(&name)?
            }
            None => None,
        };
        let answer = trace::trace(installed, &host, &question, known);
        let backends = named(&answer.fate)
            .into_iter()
            .filter_map(|index| installed.backends.get(&index).map(|backend| (index, *backend)));
        let backends: BTreeMap<_, _> = backends.collect();
        let nodes = backends.values().filter_map(|backend| match backend.via {
            Via::Tunnel { node } => Some((node, *installed.nodes.get(&node)?)),
            _ => None,
        });
        Ok(Traced { entry, answer, nodes: nodes.collect(), backends })
    }

    fn known(&self, name: &FlowName) -> Result<Option<Known>, Error> {
        let Some(tables) = self.kernel.flow_tables()? else { return Ok(None) };
        let installed = self.planner.installed();
        let port = weir_mesh::PublishedPort::new(name.asked.port());
        let frontend =
            port.map(|port| weir_mesh::install::Frontend { protocol: name.protocol, port });
        let record = frontend
            .and_then(|frontend| installed.ports.get(&frontend))
            .and_then(|slot| installed.records.get(slot));
        let Some(record) = record else { return Ok(None) };
        let found = tables.find(name, &record.timeouts)?;
        Ok(found.and_then(|(flow, expired)| {
            let ended = flow.stage.has_ended();
            let established = flow.stage.is_established();
            let (backend, generation) = (flow.backend, flow.generation?);
            Some(Known { backend, generation, ended, established, expired })
        }))
    }

    /// The flows of the kernel; `None` where flows are sockets of the agent.
    ///
    /// # Errors
    /// When the tables cannot be opened once more.
    pub fn flow_source(&self) -> Result<Option<FlowSource>, Error> {
        let Some(tables) = self.kernel.flow_tables()? else { return Ok(None) };
        let installed = self.planner.installed();
        let backends = installed.backends.iter();
        let records = installed.records.values();
        Ok(Some(FlowSource {
            tables,
            backends: backends.map(|(index, it)| (*index, (it.ident, it.generation))).collect(),
            services: records.map(|record| (record.service, record.ident)).collect(),
            nodes: installed.nodes.iter().map(|(index, node)| (*index, node.ident)).collect(),
        }))
    }
}

/// The backends that an answer speaks of.
fn named(fate: &Fate) -> Vec<BackendIndex> {
    match fate {
        Fate::Served(served) => served.tasks.keys().copied().collect(),
        Fate::Lost(Loss::Unreachable(index) | Loss::UnknownNode(index)) => vec![*index],
        Fate::Passes(_) | Fate::Denied | Fate::NoBackend(_) => Vec::new(),
    }
}
