//! Single flows: found, listed, and ended.
//!
//! Everything here goes through descriptors of its own, so that a pass over a million flows keeps
//! nobody else waiting.

use std::{
    cell::Cell,
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::ControlFlow,
    time::Duration,
};

use weir_abi::{FlowKey, Forward, Ip4, Ip6, Reverse, flow_flag};
use weir_mesh::{
    Protocol,
    install::{BackendGeneration, BackendIndex, NodeIndex, ServiceId},
};

use crate::{
    error::{Error, Tried as _},
    flows::limit,
    records::{Clock, timeouts_to_abi},
    store::Store,
    table::Table,
};

/// The flow tables of a node, at one moment of its clock.
pub struct FlowTables {
    forward4: Table<FlowKey<Ip4>, Forward>,
    forward6: Table<FlowKey<Ip6>, Forward>,
    reverse4: Table<FlowKey<Ip4>, Reverse<Ip4>>,
    reverse6: Table<FlowKey<Ip6>, Reverse<Ip6>>,
    clock: Clock,
    now: u32,
}

/// Who talks to whom: what a flow is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowName {
    /// Its protocol.
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// What the client talks to: an address of a node, and the published port.
    pub asked: SocketAddr,
}

/// A flow, as a table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who talks to whom.
    pub name: FlowName,
    /// The node that the client entered by; `None`: this one.
    pub entered: Option<NodeIndex>,
    /// The task that it has.
    pub backend: BackendIndex,
    /// Which use of that position; only of what this node has chosen itself.
    pub generation: Option<BackendGeneration>,
    /// Its service.
    pub service: ServiceId,
    /// How far it has come.
    pub stage: Stage,
    /// How long it has been silent; a packet is noted once a second.
    pub silent: Duration,
    /// Whether the task sees this node in place of the client.
    pub translated: bool,
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// TCP: nothing but a SYN.
    Syn,
    /// TCP: more than that.
    Established,
    /// TCP: one side has ended it.
    Closing,
    /// TCP: both have.
    Closed,
    /// TCP: one side has reset it.
    Reset,
    /// UDP: only the client has spoken.
    OneWay,
    /// UDP: both have.
    BothWays,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Syn,
        Self::Established,
        Self::Closing,
        Self::Closed,
        Self::Reset,
        Self::OneWay,
        Self::BothWays,
    ];

    /// The word that is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::OneWay => "one-way",
            Self::BothWays => "both-ways",
        }
    }

    /// Whether it is a TCP connection that has come about and that no side has ended.
    pub fn is_established(self) -> bool {
        self == Self::Established
    }

    /// Whether a side has ended it: a SYN of the same client begins a flow anew.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Closing | Self::Closed | Self::Reset)
    }
}

trait Address: Copy + PartialEq {
    fn ip(self) -> IpAddr;
    fn from_ip(ip: IpAddr) -> Option<Self>;
}

impl Address for Ip4 {
    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self.octets()).into()
    }

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(Self::new(ip.octets())),
            IpAddr::V6(_) => None,
        }
    }
}

impl Address for Ip6 {
    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self.octets()).into()
    }

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V6(ip) => Some(Self::new(ip.octets())),
            IpAddr::V4(_) => None,
        }
    }
}

fn socket(address: impl Address, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address.ip(), u16::from_be_bytes(port))
}

fn protocol(number: u32) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| u32::from(protocol.number()) == number)
}

/// The key of a forward table.
fn key<A: Address>(name: &FlowName) -> Option<FlowKey<A>> {
    Some(FlowKey {
        src: A::from_ip(name.client.ip())?,
        dst: A::from_ip(name.asked.ip())?,
        sport: name.client.port().to_be_bytes(),
        dport: name.asked.port().to_be_bytes(),
        protocol: name.protocol.number().into(),
    })
}

fn stage(flags: u8, protocol: Protocol) -> Stage {
    let has = |flag: u8| flags & flag == flag;
    match protocol {
        Protocol::Udp if has(flow_flag::ESTABLISHED) => Stage::BothWays,
        Protocol::Udp => Stage::OneWay,
        Protocol::Tcp if has(flow_flag::RESET) => Stage::Reset,
        Protocol::Tcp if has(flow_flag::CLIENT_FIN | flow_flag::TASK_FIN) => Stage::Closed,
        Protocol::Tcp if flags & (flow_flag::CLIENT_FIN | flow_flag::TASK_FIN) != 0 => {
            Stage::Closing
        }
        Protocol::Tcp if has(flow_flag::ESTABLISHED) => Stage::Established,
        Protocol::Tcp => Stage::Syn,
    }
}

impl FlowTables {
    fn of_forward<A: Address>(&self, key: &FlowKey<A>, flow: &Forward) -> Option<Flow> {
        let protocol = protocol(key.protocol)?;
        let (client, asked) = (socket(key.src, key.sport), socket(key.dst, key.dport));
        Some(Flow {
            name: FlowName { protocol, client, asked },
            entered: (flow.from != 0).then_some(NodeIndex(flow.from)),
            backend: BackendIndex(flow.backend),
            generation: Some(BackendGeneration(flow.generation)),
            service: ServiceId(flow.service),
            stage: stage(flow.flags, protocol),
            silent: self.silent(flow.last),
            translated: flow.flags & flow_flag::SOURCE_NAT != 0,
        })
    }

    /// `None` for the way back of a flow that entered here, which the forward table has.
    fn of_reverse<A: Address>(&self, key: &FlowKey<A>, back: &Reverse<A>) -> Option<Flow> {
        let protocol = protocol(key.protocol)?;
        let entered = (back.node != 0).then_some(NodeIndex(back.node))?;
        let (client, asked) = (socket(back.dst, back.dport), socket(back.src, back.sport));
        Some(Flow {
            name: FlowName { protocol, client, asked },
            entered: Some(entered),
            backend: BackendIndex(back.backend),
            generation: None,
            service: ServiceId(back.service),
            stage: stage(back.flags, protocol),
            silent: self.silent(back.last),
            translated: false,
        })
    }

    /// What was noted after the clock was read has been silent for no time.
    fn silent(&self, last: u32) -> Duration {
        let jiffies = self.now.wrapping_sub(last);
        self.clock.duration(if jiffies < 1 << 31 { jiffies } else { 0 })
    }

    /// Shows flows to `visit` until it has seen enough: those that entered here, and those of other
    /// nodes with a task here. Flows that come or go meanwhile may be missed or seen twice. Answers
    /// how many entries were read.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn visit(&self, mut visit: impl FnMut(&Flow) -> ControlFlow<()>) -> Result<u64, Error> {
        let what = || "read the flow tables".to_owned();
        let enough = Cell::new(false);
        let mut show = |flow: Option<Flow>| {
            let Some(flow) = flow else { return ControlFlow::Continue(()) };
            let next = visit(&flow);
            enough.set(next.is_break());
            next
        };
        // What another node has sent here stands in the reverse table in any case.
        let here = |flow: &Flow| flow.entered.is_none();
        let mut read = 0;
        read += self
            .forward4
            .walk(|key, flow| show(self.of_forward(key, flow).filter(here)))
            .tried(what)?;
        if !enough.get() {
            read += self
                .forward6
                .walk(|key, flow| show(self.of_forward(key, flow).filter(here)))
                .tried(what)?;
        }
        if !enough.get() {
            let back = |key: &_, back: &_| show(self.of_reverse(key, back));
            read += self.reverse4.walk(back).tried(what)?;
        }
        if !enough.get() {
            let back = |key: &_, back: &_| show(self.of_reverse(key, back));
            read += self.reverse6.walk(back).tried(what)?;
        }
        Ok(read)
    }

    /// The flow of this name, if this node remembers where it goes, and whether it has timed out.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn find(
        &self,
        name: &FlowName,
        timeouts: &weir_mesh::Timeouts,
    ) -> Result<Option<(Flow, bool)>, Error> {
        let what = || "look a flow up".to_owned();
        let found = match (key::<Ip4>(name), key::<Ip6>(name)) {
            (Some(key), _) => {
                self.forward4.get(&key).tried(what)?.map(|it| (self.of_forward(&key, &it), it))
            }
            (None, Some(key)) => {
                self.forward6.get(&key).tried(what)?.map(|it| (self.of_forward(&key, &it), it))
            }
            (None, None) => None,
        };
        let Some((Some(flow), entry)) = found else { return Ok(None) };
        let udp = name.protocol == Protocol::Udp;
        let limit = limit(&timeouts_to_abi(timeouts, self.clock), entry.flags, udp);
        let silent = self.now.wrapping_sub(entry.last);
        Ok(Some((flow, silent < 1 << 31 && silent > limit)))
    }

    /// Forgets flows, both ways; answers how many were known. The client of a TCP connection is reset
    /// at its next packet, a UDP client's next datagram begins anew. Reads the whole tables of the
    /// ways back, once.
    ///
    /// # Errors
    /// When a table cannot be changed.
    pub fn forget(&self, flows: &BTreeSet<FlowName>) -> Result<u64, Error> {
        let what = || "remove a flow".to_owned();
        let mut forgotten = 0;
        for name in flows {
            let known = match (key::<Ip4>(name), key::<Ip6>(name)) {
                (Some(key), _) => self.forward4.remove(&key),
                (None, Some(key)) => self.forward6.remove(&key),
                (None, None) => Ok(false),
            };
            forgotten += u64::from(known.tried(what)?);
        }
        if forgotten > 0 {
            forget_ways_back(&self.reverse4, flows).tried(what)?;
            forget_ways_back(&self.reverse6, flows).tried(what)?;
        }
        Ok(forgotten)
    }
}

fn forget_ways_back<A: Address>(
    table: &Table<FlowKey<A>, Reverse<A>>,
    flows: &BTreeSet<FlowName>,
) -> io::Result<()> {
    // Where the address was routed, the client knows another port than is noted.
    let of_address = |name: &FlowName| (name.protocol, name.client, name.asked.ip());
    let addresses: BTreeSet<_> = flows.iter().map(of_address).collect();
    let mut keys = Vec::new();
    table.visit(|key, back| {
        let name = protocol(key.protocol).map(|protocol| FlowName {
            protocol,
            client: socket(back.dst, back.dport),
            asked: socket(back.src, back.sport),
        });
        let routed = back.flags & flow_flag::ROUTED != 0;
        if name.is_some_and(|name| match routed {
            true => addresses.contains(&of_address(&name)),
            false => flows.contains(&name),
        }) {
            keys.push(*key);
        }
    })?;
    keys.iter().try_for_each(|key| table.remove(key).map(drop))
}

impl Store {
    /// The flow tables; `now` is the kernel's clock.
    pub(crate) fn flow_tables(&self, now: u32) -> Result<FlowTables, Error> {
        let what = || "open the flow tables once more".to_owned();
        Ok(FlowTables {
            forward4: self.maps.forward4.duplicate().tried(what)?,
            forward6: self.maps.forward6.duplicate().tried(what)?,
            reverse4: self.maps.reverse4.duplicate().tried(what)?,
            reverse6: self.maps.reverse6.duplicate().tried(what)?,
            clock: self.clock,
            now,
        })
    }
}
