//! What a node does with the first packet of a flow, and why, without a packet.
//!
//! The same decision as the kernel programs make: `ebpf/programs/src/ingress.rs` for clients on an
//! uplink, `reply.rs` for containers of the node, `socket.rs` for its processes. A property test
//! (`tests/tests/trace.rs`) lets the kernel run the programs on the same packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{
    access::Subnet,
    balance::client_cell,
    install::{
        BackendGeneration, BackendIndex, BackendRecord, BackendState, Frontend, Installed, ListId,
        Region, ServiceRecord, Via,
    },
    service::{Balance, Protocol, PublishedPort},
};

/// A flow that somebody might begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who begins it.
    pub client: IpAddr,
    /// From which port, if that is to count.
    pub client_port: Option<u16>,
    /// Where to.
    pub to: SocketAddr,
    /// Where it would enter this node.
    pub entry: Entry,
}

/// Where a flow enters a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// On an uplink.
    Wire,
    /// From a container of the node, over its bridge.
    Container,
    /// From a process of the node, when its socket connects.
    Process,
}

/// What is known of the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its own addresses at which published ports answer.
    pub own: BTreeSet<IpAddr>,
    /// Its address towards tasks and other nodes, IPv4.
    pub source4: Option<Ipv4Addr>,
    /// The same, IPv6.
    pub source6: Option<Ipv6Addr>,
}

/// A flow that the node remembers under the question's addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whom it was given to.
    pub backend: BackendIndex,
    /// Which use of that position.
    pub generation: BackendGeneration,
    /// Whether a side has ended it: a SYN then begins anew.
    pub ended: bool,
    /// Whether it is a TCP connection that has come about: where another plane has the port by now, a SYN
    /// then begins anew there.
    pub established: bool,
    /// Whether it has been silent for too long.
    pub expired: bool,
}

/// What becomes of the flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What is published at the port, if anything is.
    pub record: Option<ServiceRecord>,
    /// The range that the client is in, where a list says who may be one.
    pub rule: Option<(Subnet, bool)>,
    /// The end.
    pub fate: Fate,
}

/// The end of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The mesh does not touch it: the host's stack goes on with it.
    Passes(Pass),
    /// The service does not admit the client.
    Denied,
    /// No task can take it: the client is told so.
    NoBackend(Lack),
    /// It is given to a task.
    Served(Served),
    /// It is lost after a task was chosen.
    Lost(Loss),
}

/// Why the mesh does not touch a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Nothing is published at the port on this node.
    NotPublished,
    /// A process of this node, or another plane, has the port.
    Withheld,
    /// The address is none of this node's.
    NotOwn,
    /// This node has no address of the family that could stand for its containers.
    NoSource,
}

/// Why there is no task for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// A routed virtual address stands for a port that a process of this node, or another plane, has: it
    /// serves the node's own addresses alone.
    Withheld,
    /// The service has no active task with an address of the client's family.
    Empty,
    /// Those that were tried take no new flows.
    Unfit,
}

/// Why a flow is lost although a task was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing leads to the task.
    Unreachable(BackendIndex),
    /// Its node is not known.
    UnknownNode(BackendIndex),
}

/// Who takes a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// How the task is chosen.
    pub how: How,
    /// Who may be chosen, with the number of starting points that lead there.
    pub tasks: BTreeMap<BackendIndex, u32>,
    /// Starting points that lead to nobody.
    pub nobody: u32,
    /// Whom a task of this node sees.
    pub seen_here: Seen,
    /// Whom a task of another node sees.
    pub seen_there: Seen,
}

/// How a task is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The node remembers the flow.
    Remembered,
    /// By a hash of what is known of the client.
    Hashed,
    /// By turns.
    Turns,
    /// By chance.
    Chance,
    /// The less laden of two by chance.
    LessLaden,
}

/// Whom a task sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The client.
    Client,
    /// This node, by this address.
    Node(IpAddr),
    /// This node, by whichever address it has towards the task.
    NodeTowardTask,
}

/// Cells looked at, as in the kernel programs' `flow::TRIES`.
const TRIES: usize = 4;

/// What a node with these maps does with the first packet of a flow; `known` is what it remembers of
/// that flow.
pub fn trace(installed: &Installed, host: &Host, asked: &Question, known: Option<Known>) -> Answer {
    let frontend = match asked.entry {
        // A socket that names a virtual address is given a task as it connects, whatever is published.
        Entry::Process => PublishedPort::new(asked.to.port())
            .map(|port| (Frontend { protocol: asked.protocol, port }, false)),
        Entry::Wire | Entry::Container => installed.frontend_at(asked.protocol, asked.to),
    };
    let routed = frontend.is_some_and(|(_, routed)| routed);
    let slot = frontend.and_then(|(frontend, _)| installed.ports.get(&frontend));
    let Some(record) = slot.and_then(|slot| installed.records.get(slot)) else {
        let fate = Fate::Passes(Pass::NotPublished);
        return Answer { record: None, rule: None, fate };
    };
    let asking = Asking { installed, host, asked, record, routed };
    let goes_on = known.is_some_and(|known| {
        asked.entry != Entry::Process && !known.established && asking.continues(known).is_some()
    });
    let (rule, fate) = match asked.entry {
        Entry::Container if asking.source(asked.client).is_none() => {
            (None, Fate::Passes(Pass::NoSource))
        }
        _ if routed && asking.leaves() && !goes_on => (None, Fate::NoBackend(Lack::Withheld)),
        _ if record.withheld && !goes_on => (None, Fate::Passes(Pass::Withheld)),
        Entry::Process => match asking.by_socket() {
            (_, Fate::NoBackend(_) | Fate::Denied) if asking.leaves() => {
                (None, Fate::Passes(Pass::Withheld))
            }
            told => told,
        },
        _ if asking.leaves() && !goes_on => (None, Fate::Passes(Pass::Withheld)),
        Entry::Container if !asking.is_own() => (None, Fate::Passes(Pass::NotOwn)),
        Entry::Container | Entry::Wire => asking.by_packet(known),
    };
    Answer { record: Some(*record), rule, fate }
}

/// A question about a port that is published.
struct Asking<'a> {
    installed: &'a Installed,
    host: &'a Host,
    asked: &'a Question,
    record: &'a ServiceRecord,
    /// Whether it is about a routed virtual address.
    routed: bool,
}

type Rule = Option<(Subnet, bool)>;

impl Asking<'_> {
    /// `flow::is_left`.
    fn leaves(&self) -> bool {
        self.record.leaves(self.asked.to.is_ipv4())
    }

    /// `ingress::enter`.
    fn by_packet(&self, known: Option<Known>) -> (Rule, Fate) {
        if let Some(backend) = known.and_then(|known| self.continues(known)) {
            return (None, self.served(How::Remembered, BTreeMap::from([(backend, 1)]), 0));
        }
        if !self.is_own() {
            return (None, Fate::Passes(Pass::NotOwn));
        }
        let translated = self.asked.entry == Entry::Container;
        let client = match translated {
            true => self.source(self.asked.client).unwrap_or(self.asked.client),
            false => self.asked.client,
        };
        let rule = self.rule(client);
        if !self.admits(rule) {
            return (rule, Fate::Denied);
        }
        let region = match self.asked.client.is_ipv4() {
            true => self.record.pick4,
            false => self.record.pick6,
        };
        (rule, self.pick(region, self.start(region), |_| true))
    }

    /// `socket::published` and `socket::choose`.
    fn by_socket(&self) -> (Rule, Fate) {
        let to = self.asked.to.ip();
        if !to.is_loopback() && !to.is_unspecified() && !self.is_own() {
            return (None, Fate::Passes(Pass::NotOwn));
        }
        let Host { source4, source6, .. } = *self.host;
        let (v4, v6) = (source4.map(IpAddr::V4), source6.map(IpAddr::V6));
        let sends = |source: Option<IpAddr>| {
            move |backend: &BackendRecord| backend.via.is_local() || source.is_some()
        };
        // A family without an address asks as if it had the address of zeros.
        let client4 = v4.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let client6 = v6.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
        let mut last = None;
        if to.is_ipv6() {
            let rule = self.rule(client6);
            let fate = match self.admits(rule) {
                true => {
                    let region = self.record.pick6;
                    self.pick(region, self.start_of_process(region, client6), sends(v6))
                }
                false => Fate::Denied,
            };
            match fate {
                Fate::Denied | Fate::NoBackend(_) => last = Some((rule, fate)),
                fate => return (rule, fate),
            }
        }
        let both = to.is_ipv4() || to.is_loopback() || to.is_unspecified();
        let rule = self.rule(client4);
        match (both && self.admits(rule), last) {
            (true, _) => {
                let region = self.record.pick4;
                let start = self.start_of_process(region, client4);
                (rule, self.pick(region, start, sends(v4)))
            }
            (false, Some(last)) => last,
            (false, None) => (rule, Fate::Denied),
        }
    }

    /// `flow::continues`, for a packet that opens a flow.
    fn continues(&self, known: Known) -> Option<BackendIndex> {
        let backend = self.installed.backends.get(&known.backend)?;
        let same = backend.generation == known.generation && backend.state != BackendState::Gone;
        let syn = self.asked.protocol == Protocol::Tcp;
        let anew = syn && (known.ended || backend.state != BackendState::Active);
        (same && !known.expired && !anew).then_some(known.backend)
    }

    fn is_own(&self) -> bool {
        self.routed || self.host.own.contains(&self.asked.to.ip())
    }

    /// This node's address of the same family.
    fn source(&self, like: IpAddr) -> Option<IpAddr> {
        match like.is_ipv4() {
            true => self.host.source4.map(IpAddr::V4),
            false => self.host.source6.map(IpAddr::V6),
        }
    }

    /// The longest range of the service's list that a client is in.
    fn rule(&self, client: IpAddr) -> Rule {
        let rules = self.installed.lists.get(&self.record.list?)?;
        let inside = rules.iter().filter(|(subnet, _)| subnet.contains(client));
        let longest = inside.max_by_key(|(subnet, _)| subnet.prefix_len());
        longest.map(|(subnet, may)| (*subnet, *may))
    }

    /// A list that is not there admits nobody.
    fn admits(&self, rule: Rule) -> bool {
        let list: Option<ListId> = self.record.list;
        list.is_none() || rule.is_some_and(|(_, may)| may)
    }

    /// The cell of a region that the choice begins with, where it follows from what is known.
    fn start(&self, region: Region) -> Option<usize> {
        let (client, cells) = (self.asked.client, region.len as usize);
        match self.record.balance {
            Balance::Maglev => {
                let client = SocketAddr::new(client, self.asked.client_port?);
                Some(client_cell(client, self.record.ident, cells))
            }
            Balance::Source => self.start_of_process(region, client),
            _ => None,
        }
    }

    /// The processes of a node are one client; where ports count, they draw by chance.
    fn start_of_process(&self, region: Region, client: IpAddr) -> Option<usize> {
        let cells = region.len as usize;
        let by_client = self.record.balance == Balance::Source;
        by_client.then(|| client_cell(SocketAddr::new(client, 0), self.record.ident, cells))
    }

    /// `flow::pick`, from one cell or from each.
    fn pick(
        &self,
        region: Region,
        start: Option<usize>,
        wanted: impl Fn(&BackendRecord) -> bool,
    ) -> Fate {
        let none = Vec::new();
        let cells = match region.is_empty() {
            true => &none,
            false => self.installed.regions.get(&region.offset).unwrap_or(&none),
        };
        if cells.is_empty() {
            return Fate::NoBackend(Lack::Empty);
        }
        let usable = |index: &BackendIndex| {
            self.installed.backends.get(index).is_some_and(|backend| {
                backend.state == BackendState::Active
                    && backend.via != Via::Unreachable
                    && wanted(backend)
            })
        };
        let from = |start: usize| {
            (0..TRIES).map(|step| cells[(start + step) % cells.len()]).find(|index| usable(index))
        };
        let mut tasks = BTreeMap::new();
        let mut nobody = 0;
        let starts = start.map_or(0..cells.len(), |start| start..start + 1);
        for start in starts {
            match from(start) {
                Some(index) => *tasks.entry(index).or_default() += 1,
                None => nobody += 1,
            }
        }
        if tasks.is_empty() {
            return Fate::NoBackend(Lack::Unfit);
        }
        let how = match (start, self.record.balance) {
            (Some(_), _) => How::Hashed,
            (None, Balance::RoundRobin) => How::Turns,
            (None, Balance::LeastConnections) => How::LessLaden,
            (None, Balance::Random | Balance::Maglev | Balance::Source) => How::Chance,
        };
        self.served(how, tasks, nobody)
    }

    fn served(&self, how: How, tasks: BTreeMap<BackendIndex, u32>, nobody: u32) -> Fate {
        if let Some(loss) = self.loss(&tasks) {
            return Fate::Lost(loss);
        }
        let node = self.source(self.asked.to.ip()).map_or(Seen::NodeTowardTask, Seen::Node);
        let (seen_here, seen_there) = match self.asked.entry {
            Entry::Wire => (Seen::Client, Seen::Client),
            Entry::Container => (node, node),
            Entry::Process => (Seen::NodeTowardTask, node),
        };
        Fate::Served(Served { how, tasks, nobody, seen_here, seen_there })
    }

    /// Why a flow would be lost, if each that may be chosen loses it.
    fn loss(&self, tasks: &BTreeMap<BackendIndex, u32>) -> Option<Loss> {
        let of = |index: &BackendIndex| match self.installed.backends.get(index)?.via {
            Via::Unreachable => Some(Loss::Unreachable(*index)),
            Via::Tunnel { node } if !self.installed.nodes.contains_key(&node) => {
                Some(Loss::UnknownNode(*index))
            }
            _ => None,
        };
        let losses: Option<Vec<Loss>> = tasks.keys().map(of).collect();
        losses?.first().copied()
    }
}
