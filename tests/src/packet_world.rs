//! A node of which only the kernel programs are real: no interfaces, no sockets, one packet at a
//! time. Its maps are filled by the planner from a snapshot, as an agent's are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use weir_abi::{Config, DropReason, Ip4, Ip6};
use weir_loader::{Arrival, DroppedPacket, Flow, FlowName, Trial};
use weir_mesh::{
    Balance, Generation, Installed, LocalView, MeshSnapshot, Network, NetworkId, Node, NodeName,
    Port, Problem, Protocol, PublishMode, PublishedPort, Service, ServiceName, TargetPort, Task,
    TaskName, TaskState,
    install::{Frontend, Via},
    plan::{Moment, Planner},
    trace::{self, Answer, Known, Question},
};

use crate::{bpffs::BpffsLease, packet};

/// Where the tunnel device would be.
pub const TUNNEL: u32 = 7;
/// Where clients arrive.
pub const UPLINK: u32 = 3;
/// The host side of a local task's veth.
pub const VETH: u32 = 9;

/// The node `n1`: 10.77.0.11 and fd77::11, also 10.77.0.21 and fd77::21.
pub struct World {
    trial: Trial,
    planner: Planner,
    snapshot: MeshSnapshot,
    ceded: BTreeSet<Frontend>,
    shared: BTreeSet<Frontend>,
    now: Duration,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Left to the stack, untouched.
    Passed,
    /// Dropped.
    Dropped,
    /// Sent on, as described.
    Sent(String),
}

impl World {
    /// A mesh of `n1` (this node), `n2` and `n3`, with nothing on it.
    ///
    /// # Errors
    /// When the programs cannot be loaded.
    pub fn new() -> Result<Self> {
        let config = Config {
            tunnel_ifindex: TUNNEL,
            mss4: 1410,
            mss6: 1390,
            relay4: Ip4::new([169, 254, 119, 1]),
            source4: Ip4::new([10, 77, 0, 11]),
            relay6: Ip6::new("fd77:6569:7200::1".parse::<Ipv6Addr>()?.octets()),
            source6: Ip6::new("fd77::11".parse::<Ipv6Addr>()?.octets()),
            ..Config::default()
        };
        let own: Vec<IpAddr> = ["10.77.0.11", "10.77.0.21", "fd77::11", "fd77::21"]
            .iter()
            .map(|a| a.parse())
            .collect::<Result<_, _>>()?;
        // Only while it loads: it keeps no pins.
        let trial = BpffsLease::take().and_then(|_bpffs| Ok(Trial::new(config, &own)?))?;
        let limits = weir_mesh::plan::Limits::default();
        let planner = Planner::new(trial.installed()?, limits, Moment(Duration::ZERO));
        let mut snapshot = MeshSnapshot { generation: Generation(1), ..MeshSnapshot::default() };
        for (name, address) in [("n1", "10.77.0.11"), ("n2", "10.77.0.12"), ("n3", "10.77.0.13")] {
            let node = Node::new(NodeName::new(name), address.parse()?);
            snapshot.nodes.insert(node.name.clone(), node);
        }
        let blue = Network { routed: true, ..Network::new("blue") };
        snapshot.networks.insert(NetworkId::new("blue"), blue);
        let (ceded, shared) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { trial, planner, snapshot, ceded, shared, now: Duration::ZERO })
    }

    /// Replaces the service `name`: `ports` such as `"8080:80/tcp"` or `"9090:80/tcp/host"`, tasks
    /// as (name, node, last byte of the address, state).
    ///
    /// # Errors
    /// When the description is wrong, or the kernel refuses it.
    pub fn service(
        &mut self,
        name: &str,
        balance: Balance,
        ports: &[&str],
        tasks: &[(&str, &str, u8, TaskState)],
    ) -> Result<()> {
        let service = Service {
            balance,
            ports: ports.iter().map(|text| port(text)).collect::<Result<_>>()?,
            tasks: tasks
                .iter()
                .map(|(name, node, last, state)| task(name, node, *last, *state))
                .collect(),
            ..Service::new(ServiceName::new(name))
        };
        self.snapshot.services.insert(service.name.clone(), service.into());
        self.apply()
    }

    /// Changes a service in any way.
    ///
    /// # Errors
    /// When there is no such service, or the kernel refuses the change.
    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut Service)) -> Result<()> {
        let service = self.snapshot.services.get_mut(&ServiceName::new(name));
        change(Arc::make_mut(service.context("no such service")?));
        self.apply()
    }

    /// Gives a service virtual addresses on the network `blue`, which packets are routed to.
    ///
    /// # Errors
    /// When there is no such service, or the kernel refuses the change.
    pub fn route(&mut self, name: &str, addresses: &[&str]) -> Result<()> {
        let blue = NetworkId::new("blue");
        let addresses =
            addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
        self.change(name, |service| drop(service.vips.insert(blue, addresses)))
    }

    /// Leaves the clients of all ports of a service to another plane, or takes them back.
    ///
    /// # Errors
    /// When there is no such service, or the kernel refuses the change.
    pub fn cede(&mut self, name: &str, ceded: bool) -> Result<()> {
        let service = self.snapshot.services.get(&ServiceName::new(name));
        let ports = &service.context("no such service")?.ports;
        self.ceded = ports.iter().filter(|_| ceded).map(Frontend::of).collect();
        self.apply()
    }

    /// Ports at which another plane serves clients whose address family no task has; from the next change on.
    pub fn share(&mut self, ports: impl IntoIterator<Item = Frontend>) {
        self.shared = ports.into_iter().collect();
    }

    /// Lets time go by for the planner: deadlines pass.
    ///
    /// # Errors
    /// When the kernel refuses what follows.
    pub fn wait(&mut self, time: Duration) -> Result<()> {
        self.now += time;
        self.apply()
    }

    fn apply(&mut self) -> Result<()> {
        let problems = self.plan(BTreeSet::new(), &BTreeSet::new())?;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    }

    fn plan(
        &mut self,
        withheld: BTreeSet<Frontend>,
        unreached: &BTreeSet<IpAddr>,
    ) -> Result<Vec<Problem>> {
        let own = NodeName::new("n1");
        let mut reach = BTreeMap::new();
        for task in self.snapshot.services.values().flat_map(|service| &service.tasks) {
            if task.node == own {
                for addr in task.addresses().filter(|addr| !unreached.contains(addr)) {
                    reach.insert(addr, Via::Peer { ifindex: VETH, mac: [2, 0, 0, 0, 0, 3] });
                }
            }
        }
        let (ceded, shared) = (self.ceded.clone(), self.shared.clone());
        let local = LocalView { reach, withheld, ceded, shared, ..LocalView::new(own) };
        let now = Moment(self.now);
        let plan = self.planner.plan(&self.snapshot, &local, now);
        for op in &plan.ops {
            self.trial.apply(op)?;
            self.planner.applied(now);
        }
        Ok(plan.problems)
    }

    /// Replaces all services, at once. Ports of `withheld` are a process's, addresses of `unreached`
    /// have no way to them. What cannot be served is left out.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn replace(
        &mut self,
        services: impl IntoIterator<Item = Service>,
        withheld: BTreeSet<Frontend>,
        unreached: &BTreeSet<IpAddr>,
    ) -> Result<()> {
        let named = services.into_iter().map(|service| (service.name.clone(), service.into()));
        self.snapshot.services = named.collect();
        self.snapshot.generation.0 += 1;
        // Long enough for whatever rests, or drains.
        self.now += Duration::from_secs(100);
        self.plan(withheld, unreached).map(drop)
    }

    /// What a flow would meet, by the maps alone.
    ///
    /// # Errors
    /// When the flow tables cannot be read.
    pub fn trace(&self, asked: &Question) -> Result<Answer> {
        let own =
            ["10.77.0.11", "10.77.0.21", "fd77::11", "fd77::21"].iter().map(|addr| addr.parse());
        let host = trace::Host {
            own: own.collect::<Result<_, _>>()?,
            source4: Some("10.77.0.11".parse()?),
            source6: Some("fd77::11".parse()?),
        };
        let port = asked.client_port.context("the port of the client")?;
        let client = SocketAddr::new(asked.client, port);
        let name = FlowName { protocol: asked.protocol, client, asked: asked.to };
        let known = self.flow(&name)?.map(|flow| Known {
            backend: flow.backend,
            generation: flow.generation.unwrap_or_default(),
            ended: flow.stage.has_ended(),
            established: flow.stage.is_established(),
            expired: false,
        });
        Ok(trace::trace(self.installed(), &host, asked, known))
    }

    /// What the kernel remembers of a flow.
    ///
    /// # Errors
    /// When the flow tables cannot be read.
    pub fn flow(&self, name: &FlowName) -> Result<Option<Flow>> {
        let found = self.trial.flow_tables()?.find(name, &weir_mesh::Timeouts::default())?;
        Ok(found.map(|(flow, _)| flow))
    }

    /// What the planner has put into the maps.
    pub fn installed(&self) -> &Installed {
        self.planner.installed()
    }

    /// The programs and their maps, for measurements.
    pub fn trial(&mut self) -> &mut Trial {
        &mut self.trial
    }

    /// Runs a program on a packet that arrived.
    ///
    /// # Errors
    /// When the packet cannot be built or the kernel refuses it.
    pub fn run(&self, program: &str, packet: &str) -> Result<Outcome> {
        self.run_bytes(
            program,
            &packet::build(packet)?,
            Arrival { ingress_ifindex: UPLINK, ..Arrival::default() },
        )
    }

    /// Runs `tun_out` on a packet that a socket of this host sent.
    ///
    /// # Errors
    /// As [`World::run`].
    pub fn departs(&self, packet: &str) -> Result<Outcome> {
        self.run_bytes("tun_out", &packet::build(packet)?, Arrival::default())
    }

    /// Runs the tunnel's program on a packet that node `from` sent with `tag`.
    ///
    /// # Errors
    /// As [`World::run`].
    pub fn tunnel(&self, from: u16, tag: u32, packet: &str) -> Result<Outcome> {
        let arrival = Arrival { ingress_ifindex: TUNNEL, tunnel: (from, tag) };
        self.run_bytes("tun_in_case", &packet::build(packet)?, arrival)
    }

    /// Runs a program on bytes.
    ///
    /// # Errors
    /// As [`World::run`].
    pub fn run_bytes(&self, program: &str, packet: &[u8], arrival: Arrival) -> Result<Outcome> {
        const NEXT: i32 = -1;
        const SHOT: i32 = 2;
        const REDIRECT: i32 = 7;
        let ran = self.trial.run(program, packet, arrival)?;
        Ok(match ran.verdict {
            NEXT if ran.packet == packet => Outcome::Passed,
            NEXT => Outcome::Sent(packet::describe(&ran.packet)),
            SHOT => Outcome::Dropped,
            REDIRECT => Outcome::Sent(packet::describe(&ran.packet)),
            other => anyhow::bail!("{program} gave the verdict {other}"),
        })
    }

    /// The tag of a task, and the position of a node, as the maps have them.
    ///
    /// # Errors
    /// When there is no such task or node.
    pub fn tag(&self, service: &str, task: &str, node: &str) -> Result<u32> {
        let ident = weir_mesh::Ident::of_task(
            &ServiceName::new(service),
            &TaskName::new(task),
            &NodeName::new(node),
        );
        Ok(weir_mesh::ident::Tag::of(ident).0)
    }

    /// The position of a node.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node(&self, name: &str) -> Result<u16> {
        let ident = weir_mesh::Ident::of_node(&NodeName::new(name));
        let installed = self.planner.installed();
        let found = installed.nodes.iter().find(|(_, record)| record.ident == ident);
        found.map(|(index, _)| index.0).with_context(|| format!("no node {name}"))
    }

    /// How many SYNs a task of this node has accepted, and refused, as the programs count.
    ///
    /// # Errors
    /// When there is no such task, or the counters cannot be read.
    pub fn answers(&self, service: &str, task: &str) -> Result<(u64, u64)> {
        let (service, task) = (ServiceName::new(service), TaskName::new(task));
        let ident = weir_mesh::Ident::of_task(&service, &task, &NodeName::new("n1"));
        let mut backends = self.planner.installed().backends.iter();
        let found = backends.find(|(_, record)| record.ident == ident);
        let (index, _) = found.with_context(|| format!("no task {task} here"))?;
        let stats = self.trial.stats()?;
        let counters = stats.backends.iter().find(|(of, _)| of == index);
        let counters = counters.map(|(_, counters)| *counters).unwrap_or_default();
        Ok((counters.answers.accepted, counters.answers.refused))
    }

    /// How often packets were dropped, or answered, for a reason.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        let known = DropReason::ALL.iter().find(|known| known.label() == reason);
        let known = known.with_context(|| format!("no reason {reason}"))?;
        Ok(self.trial.drops(*known)?)
    }

    /// The last packets that were not forwarded, the latest at the end: what they were, and why not.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn last_drops(&self) -> Result<Vec<String>> {
        let packets = self.trial.last_drops()?;
        let shown = packets.iter().map(|packet| {
            let DroppedPacket { protocol, source, destination, flags, reason, .. } = packet;
            format!("{protocol} {source} > {destination} {flags:#04x} {}", reason.label())
        });
        Ok(shown.collect())
    }
}

fn port(text: &str) -> Result<Port> {
    let (ports, rest) = text.split_once('/').context("PUBLISHED:TARGET/PROTOCOL")?;
    let (published, target) = ports.split_once(':').context("PUBLISHED:TARGET")?;
    let mode = if rest.ends_with("/host") { PublishMode::Host } else { PublishMode::Ingress };
    Ok(Port {
        protocol: if rest.starts_with("udp") { Protocol::Udp } else { Protocol::Tcp },
        published: PublishedPort::new(published.parse()?).context("published port 0")?,
        target: TargetPort::new(target.parse()?).context("target port 0")?,
        mode,
    })
}

fn task(name: &str, node: &str, last: u8, state: TaskState) -> Task {
    Task {
        ipv4: Some(Ipv4Addr::new(172, 18, 0, last)),
        ipv6: Some(Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, last.into())),
        state,
        ..Task::new(TaskName::new(name), NodeName::new(node))
    }
}
