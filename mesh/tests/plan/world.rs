//! A planner, the kernel maps that it plans for, and a clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use weir_mesh::{
    Balance, Carried, Generation, Installed, Limits, LocalView, Locality, MapOp, MeshSnapshot,
    Moment, Node, NodeName, Plan, Planner, PublishMode, Service, ServiceName, Subnet, Task,
    TaskName, TaskState,
    install::{BackendIndex, BackendState, Region, Via},
    plan::GRACE,
    ports::parse_ports,
};

/// The node whose planner this is.
pub const HERE: &str = "n1";

pub struct World {
    pub kernel: Installed,
    pub planner: Planner,
    pub local: LocalView,
    pub now: Moment,
    pub limits: Limits,
    freed: Vec<(Place, Moment)>,
    gone_since: BTreeMap<BackendIndex, Moment>,
}

/// A place in a kernel array, as a run of positions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Array {
    Backends,
    Slots,
    Nodes,
    Cells,
}
type Place = (Array, Region);

impl World {
    pub fn new(limits: Limits) -> Self {
        let now = Moment(Duration::from_secs(100));
        let kernel = Installed::default();
        Self {
            planner: Planner::new(kernel.clone(), limits, now),
            kernel,
            local: LocalView {
                carried: Carried { seen: now, backends: BTreeSet::new() },
                ..LocalView::new(NodeName::new(HERE))
            },
            now,
            limits,
            freed: Vec::new(),
            gone_since: BTreeMap::new(),
        }
    }

    /// Plans for a snapshot and applies the plan.
    pub fn serve(&mut self, snapshot: &MeshSnapshot) -> Plan {
        let plan = self.planner.plan(snapshot, &self.local, self.now);
        self.apply(&plan.ops);
        assert_eq!(*self.planner.installed(), self.kernel);
        plan
    }

    /// Applies operations; after each of them nothing may point at something missing.
    pub fn apply(&mut self, ops: &[MapOp]) {
        for op in ops {
            self.check_rest(op);
            self.note_freed(op);
            let applied = self.kernel.apply(op);
            assert_eq!(applied, Ok(()), "{op:?} in\n{}\nof {ops:#?}", self.kernel.dump());
            assert_sound(&self.kernel);
            let ranges: usize = self.kernel.lists.values().map(|rules| rules.len()).sum();
            assert!(ranges <= 2 * self.limits.ranges as usize, "{ranges} at {op:?} of {ops:#?}");
            self.planner.applied(self.now);
        }
    }

    /// The flow tables are gone through: all backends have connections, or none has.
    pub fn look_at_flows(&mut self, carried: bool) {
        let backends = self.kernel.backends.keys().copied().filter(|_| carried).collect();
        self.local.carried = Carried { seen: self.now, backends };
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    /// A new agent finds what the old one left.
    pub fn restart(&mut self) {
        self.planner = Planner::new(self.kernel.clone(), self.limits, self.now);
        // How far up the arrays had been used before is not in the maps, but for backends.
        self.freed.retain(|((array, _), _)| *array == Array::Backends);
    }

    fn check_rest(&mut self, op: &MapOp) {
        let one = |at: u32| Region { offset: at, len: 1 };
        let (array, used) = match op {
            MapOp::SetNode(at, _) if !self.kernel.nodes.contains_key(at) => {
                (Array::Nodes, one(at.0.into()))
            }
            MapOp::SetBackend(at, _) if !self.kernel.backends.contains_key(at) => {
                (Array::Backends, one(at.0))
            }
            MapOp::SetRecord(at, _) => (Array::Slots, one(at.0)),
            MapOp::WriteRegion { offset, cells } => {
                (Array::Cells, Region { offset: *offset, len: cells.len() as u32 })
            }
            MapOp::RemoveBackend(at) => {
                // Drains in these tests take a second at least.
                let since = self.gone_since.remove(at).expect("only what is gone is removed");
                assert!(since.after(Duration::from_secs(1)) <= self.now, "{op:?} too early");
                return;
            }
            MapOp::SetBackend(at, backend) if backend.state == BackendState::Gone => {
                self.gone_since.entry(*at).or_insert(self.now);
                return;
            }
            MapOp::SetBackend(at, _) => {
                self.gone_since.remove(at);
                return;
            }
            _ => return,
        };
        let limit = match array {
            Array::Backends => self.limits.backends,
            Array::Slots => self.limits.records,
            Array::Nodes => self.limits.nodes,
            Array::Cells => self.limits.cells,
        };
        assert!(used.offset + used.len <= limit, "{op:?} is past the end");
        for ((freed_array, freed), since) in &self.freed {
            let overlaps = *freed_array == array
                && used.offset < freed.offset + freed.len
                && freed.offset < used.offset + used.len;
            assert!(!overlaps || since.after(GRACE) <= self.now, "{op:?} before its rest");
        }
    }

    fn note_freed(&mut self, op: &MapOp) {
        let place = match op {
            MapOp::RemoveNode(at) => (Array::Nodes, u32::from(at.0), 1),
            MapOp::RemoveBackend(at) => (Array::Backends, at.0, 1),
            MapOp::RemoveRecord(at) => (Array::Slots, at.0, 1),
            MapOp::FreeRegion { offset } => {
                (Array::Cells, *offset, self.kernel.regions[offset].len())
            }
            _ => return,
        };
        let region = Region { offset: place.1, len: place.2 as u32 };
        self.freed.push(((place.0, region), self.now));
    }
}

/// Nothing points at something missing, nor at something of another service.
pub fn assert_sound(kernel: &Installed) {
    for (frontend, slot) in &kernel.ports {
        assert!(kernel.records.contains_key(slot), "{frontend} points at nothing");
    }
    for (slot, record) in &kernel.records {
        for region in record.regions() {
            let cells = &kernel.regions[&region.offset];
            assert_eq!(cells.len() as u32, region.len, "record {slot:?}");
            let backends: BTreeSet<_> = cells.iter().collect();
            for index in backends {
                assert_eq!(kernel.backends[index].service, record.service, "record {slot:?}");
            }
        }
    }
    for ((service, tag), index) in &kernel.tags {
        let backend = &kernel.backends[index];
        assert_eq!((backend.service, backend.tag), (*service, *tag));
        assert!(backend.via.is_local());
    }
    for backend in kernel.backends.values() {
        if let Via::Tunnel { node } = backend.via {
            assert!(kernel.nodes.contains_key(&node), "{backend:?} is behind nothing");
        }
    }
}

/// The backends that a port picks from.
pub fn picked(
    kernel: &Installed,
    record: &weir_mesh::install::ServiceRecord,
) -> BTreeSet<BackendIndex> {
    let regions = [record.pick4, record.pick6].into_iter().filter(|region| !region.is_empty());
    regions.flat_map(|region| kernel.regions[&region.offset].iter().copied()).collect()
}

/// Reads a mesh, one service a line:
/// `web 8080:80 53:53/udp maglev drain=10s host | 1@n1 2@n2 draining 3@n3 weight=2 addr=10.9.9.9`.
/// Nodes n1 to n4 are always there. All that lives on a node is known when there is a line such as
/// `whole n1 n2`.
pub fn mesh(text: &str) -> MeshSnapshot {
    let nodes = (1..=4).map(node).collect();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let (whole, services): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with("whole "));
    let services = services.into_iter().map(service).collect();
    let mut mesh = MeshSnapshot::build(Generation(1), nodes, services).unwrap();
    for name in whole.iter().flat_map(|line| line.split(' ').skip(1)) {
        mesh.nodes.get_mut(&NodeName::new(name)).unwrap().whole = true;
    }
    mesh
}

pub fn node(number: u8) -> Node {
    Node::new(NodeName::new(format!("n{number}")), [192, 0, 2, number].into())
}

fn service(line: &str) -> Service {
    let (head, tasks) = line.split_once('|').unwrap_or((line, ""));
    let mut words = head.split_whitespace();
    let mut service = Service::new(ServiceName::new(words.next().unwrap()));
    let mut mode = PublishMode::Ingress;
    for word in words {
        match word {
            "maglev" => service.balance = Balance::Maglev,
            "source" => service.balance = Balance::Source,
            "prefer-local" => service.locality = Locality::PreferLocal,
            "local" => service.locality = Locality::Local,
            "host" => mode = PublishMode::Host,
            _ if word.starts_with("allow=") => service.access.allow = subnets(&word[6..]),
            _ if word.starts_with("deny=") => service.access.deny = subnets(&word[5..]),
            _ if word.starts_with("drain=") => service.timeouts.drain = seconds(&word[6..]),
            _ => service.ports.extend(parse_ports(word).unwrap().into_iter().map(|spec| {
                let published = spec.published.unwrap();
                weir_mesh::Port { protocol: spec.protocol, published, target: spec.target, mode }
            })),
        }
    }
    tasks.split_whitespace().for_each(|word| add_task_word(&mut service, word));
    service
}

fn subnets(text: &str) -> Vec<Subnet> {
    text.split(',').map(|subnet| subnet.parse().unwrap()).collect()
}

fn add_task_word(service: &mut Service, word: &str) {
    if let Some((number, on)) = word.split_once('@') {
        service.tasks.push(Task {
            ipv4: Some(address_of(&service.name, number)),
            ..Task::new(TaskName::new(number), NodeName::new(on))
        });
        return;
    }
    let task = service.tasks.last_mut().unwrap();
    match word {
        "draining" => task.state = TaskState::Draining,
        "down" => task.state = TaskState::Down,
        _ if word.starts_with("weight=") => task.weight = word[7..].parse().unwrap(),
        _ if word.starts_with("addr=") => task.ipv4 = Some(word[5..].parse().unwrap()),
        _ => panic!("what is {word}?"),
    }
}

/// An address that tells the service and the task: 172.18.119.1 is task 1 of web.
pub fn address_of(service: &ServiceName, task: &str) -> Ipv4Addr {
    let last = task.parse().unwrap_or(0);
    Ipv4Addr::new(172, 18, service.as_str().as_bytes()[0], last)
}

pub fn seconds(text: &str) -> Duration {
    Duration::from_secs(text.trim_end_matches('s').parse().unwrap())
}

/// Every task of this node is reached through interface 9.
pub fn reach_all(snapshot: &MeshSnapshot) -> BTreeMap<IpAddr, Via> {
    let tasks = snapshot.services.values().flat_map(|service| &service.tasks);
    let local = tasks.filter(|task| task.node.as_str() == HERE);
    local
        .flat_map(Task::addresses)
        .map(|address| (address, Via::Neighbour { ifindex: 9 }))
        .collect()
}
