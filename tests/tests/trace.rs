//! `weir trace` says what the kernel does: its pure function and the kernel programs
//! (`BPF_PROG_TEST_RUN`) are asked about the same packet, over random meshes.
//!
//! Processes of the node are not here, since the kernel has no test runs of socket programs of this
//! kind; `tests/tests/commands.rs` lets real ones connect.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use weir_loader::FlowName;
use weir_mesh::{
    Access, Balance, NetworkId, NodeName, Port, Protocol, PublishMode, PublishedPort, Service,
    ServiceName, TargetPort, Task, TaskName, TaskState,
    install::{Frontend, Via},
    trace::{Entry, Fate, Question, Served},
};
use weir_tests::packet_world::{Outcome, World};

/// A mesh, and packets for it.
#[derive(Clone, Debug)]
struct Case {
    services: Vec<Service>,
    withheld: BTreeSet<Frontend>,
    shared: BTreeSet<Frontend>,
    unreached: BTreeSet<IpAddr>,
    packets: Vec<Packet>,
}

/// The first packet of a flow, sent twice: the second time the flow is known.
#[derive(Clone, Copy, Debug)]
struct Packet {
    protocol: Protocol,
    client: u8,
    to: u8,
    port: u16,
    ipv6: bool,
    entry: Entry,
}

const NAMES: [&str; 3] = ["api", "db", "web"];

fn port() -> impl Strategy<Value = Port> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let mode = prop_oneof![4 => Just(PublishMode::Ingress), 1 => Just(PublishMode::Host)];
    (protocol, 80_u16..84, mode).prop_map(|(protocol, published, mode)| Port {
        protocol,
        published: PublishedPort::new(published).unwrap(),
        target: TargetPort::new(8000 + published).unwrap(),
        mode,
    })
}

fn task(service: usize, number: u8) -> impl Strategy<Value = Option<Task>> {
    let state = prop_oneof![
        5 => Just(TaskState::Active), 1 => Just(TaskState::Draining), 1 => Just(TaskState::Down)
    ];
    let weight = prop_oneof![5 => Just(1_u16), 1 => Just(0), 1 => 2..4_u16];
    let families =
        prop_oneof![4 => Just((true, true)), 1 => Just((true, false)), 1 => Just((false, true))];
    let made = (state, weight, 1_u8..4, families).prop_map(move |(state, weight, on, (v4, v6))| {
        let ident = 10 * (service as u8 + 1) + number;
        Task {
            ipv4: v4.then_some(Ipv4Addr::new(172, 18, 0, ident)),
            ipv6: v6.then_some(Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, ident.into())),
            weight,
            state,
            ..Task::new(
                TaskName::new(format!("{}.{number}", NAMES[service])),
                NodeName::new(format!("n{on}")),
            )
        }
    });
    prop::option::weighted(0.7, made)
}

fn service(number: usize) -> impl Strategy<Value = Service> {
    let balance = prop::sample::select(Balance::ALL.to_vec());
    let range = prop::sample::select(vec![
        "10.77.0.0/24",
        "10.77.0.101",
        "10.77.0.11",
        "172.18.0.0/16",
        "fd77::/64",
        "fd77::101",
    ]);
    let ranges =
        || prop::collection::vec(range.clone().prop_map(|text| text.parse().unwrap()), 0..3);
    let access = prop_oneof![
        3 => Just(Access::default()),
        2 => (ranges(), ranges()).prop_map(|(allow, deny)| Access { allow, deny }),
    ];
    let ports = prop::collection::vec(port(), 1..3);
    let tasks = (0..4).map(|at| task(number, at)).collect::<Vec<_>>();
    (balance, access, ports, tasks).prop_map(move |(balance, access, ports, tasks)| Service {
        balance,
        access,
        ports,
        tasks: tasks.into_iter().flatten().collect(),
        vips: BTreeMap::from([(NetworkId::new("blue"), vips(number))]),
        ..Service::new(ServiceName::new(NAMES[number]))
    })
}

/// 10.0.9.2 and fd00:9::2 for the first service, and so on.
fn vips(number: usize) -> Vec<IpAddr> {
    let last = number as u8 + 2;
    vec![
        Ipv4Addr::new(10, 0, 9, last).into(),
        Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, last.into()).into(),
    ]
}

fn packet() -> impl Strategy<Value = Packet> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let entry = prop_oneof![3 => Just(Entry::Wire), 1 => Just(Entry::Container)];
    (protocol, 0_u8..3, 0_u8..6, 80_u16..85, any::<bool>(), entry).prop_map(
        |(protocol, client, to, port, ipv6, entry)| Packet {
            protocol,
            client,
            to,
            port,
            ipv6,
            entry,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let services = (0..NAMES.len()).map(|at| prop::option::weighted(0.8, service(at)));
    let withheld = prop::option::weighted(0.3, port());
    let shared = prop::collection::vec(port(), 0..3);
    let unreached = prop::option::weighted(0.3, 10_u8..34);
    let packets = prop::collection::vec(packet(), 4..12);
    (services.collect::<Vec<_>>(), withheld, shared, unreached, packets).prop_map(
        |(services, withheld, shared, unreached, packets)| Case {
            services: services.into_iter().flatten().collect(),
            shared: shared.iter().map(Frontend::of).collect(),
            withheld: withheld.iter().map(Frontend::of).collect(),
            unreached: unreached
                .map(|last| Ipv4Addr::new(172, 18, 0, last).into())
                .into_iter()
                .collect(),
            packets,
        },
    )
}

impl Packet {
    fn question(self, client_port: u16) -> Question {
        let clients: [&str; 3] = match (self.entry, self.ipv6) {
            (Entry::Container, false) => ["172.18.0.201", "172.18.0.202", "172.18.0.203"],
            (Entry::Container, true) => ["fd18::201", "fd18::202", "fd18::203"],
            (_, false) => ["10.77.0.101", "10.77.0.102", "192.0.2.7"],
            (_, true) => ["fd77::101", "fd77::102", "2001:db8::7"],
        };
        let own: [&str; 6] = match self.ipv6 {
            false => {
                ["10.77.0.11", "10.77.0.11", "10.77.0.21", "10.77.0.12", "10.0.9.2", "10.0.9.3"]
            }
            true => ["fd77::11", "fd77::11", "fd77::11", "fd77::12", "fd00:9::2", "fd00:9::3"],
        };
        let to: IpAddr = own[usize::from(self.to)].parse().unwrap();
        // At a virtual address the target port counts.
        let port = if self.to > 3 { self.port + 8000 } else { self.port };
        Question {
            protocol: self.protocol,
            client: clients[usize::from(self.client)].parse().unwrap(),
            client_port: Some(client_port),
            to: SocketAddr::new(to, port),
            entry: self.entry,
        }
    }
}

/// How often each thing came up: a test that never meets a case proves nothing of it.
type Met = BTreeMap<&'static str, u32>;

/// Sends the packet and says where the kernel does something else than the answer.
fn check(world: &World, asked: &Question, met: &mut Met) -> Result<(), String> {
    let client = SocketAddr::new(asked.client, asked.client_port.unwrap());
    let name = FlowName { protocol: asked.protocol, client, asked: asked.to };
    let answer = world.trace(asked).unwrap();
    let drops = |reason| world.drops(reason).unwrap();
    let before = (drops("denied"), drops("no_backend"));
    let program = if asked.entry == Entry::Container { "task_out" } else { "nic_in" };
    let kind = match asked.protocol {
        Protocol::Tcp => format!("tcp {client} > {} S", asked.to),
        Protocol::Udp => format!("udp {client} > {} data 5", asked.to),
    };
    let outcome = world.run(program, &kind).unwrap();
    let counted = (drops("denied") - before.0, drops("no_backend") - before.1);
    let flow = world.flow(&name).unwrap();
    let wrong = || Err(format!("{answer:?}\n  but {outcome:?}, counted {counted:?}, {flow:?}"));
    let right = match &answer.fate {
        Fate::Passes(_) => outcome == Outcome::Passed && counted == (0, 0),
        Fate::Denied => outcome == Outcome::Dropped && counted == (1, 0),
        Fate::NoBackend(_) => matches!(outcome, Outcome::Sent(_)) && counted == (0, 1),
        Fate::Lost(_) => outcome == Outcome::Dropped && counted == (0, 0),
        Fate::Served(served) => match flow {
            None => served.nobody > 0 && counted == (0, 1),
            Some(flow) => {
                let backend = flow.backend;
                served.tasks.contains_key(&backend)
                    && counted == (0, 0)
                    && is_sent(world, asked, served, backend, &outcome)
            }
        },
    };
    *met.entry(match &answer.fate {
        Fate::Passes(_) => "passes",
        Fate::Denied => "denied",
        Fate::NoBackend(_) => "no backend",
        Fate::Lost(_) => "lost",
        Fate::Served(served) => match served.how {
            weir_mesh::trace::How::Remembered => "remembered",
            weir_mesh::trace::How::Hashed => "hashed",
            _ => "served",
        },
    })
    .or_default() += 1;
    if right { Ok(()) } else { wrong() }
}

/// Whether the packet went where and as the answer says.
fn is_sent(
    world: &World,
    asked: &Question,
    served: &Served,
    backend: weir_mesh::install::BackendIndex,
    outcome: &Outcome,
) -> bool {
    let Outcome::Sent(text) = outcome else { return false };
    let record = &world.installed().backends[&backend];
    let (frontend, _) = world.installed().frontend_at(asked.protocol, asked.to).unwrap();
    let slot = world.installed().ports[&frontend];
    let target = world.installed().records[&slot].target.get();
    let here = !matches!(record.via, Via::Tunnel { .. });
    let to = match (here, asked.to.is_ipv4()) {
        // To other nodes it is known by the published port.
        (false, _) => SocketAddr::new(asked.to.ip(), frontend.port.get()),
        (true, true) => SocketAddr::new(record.ipv4.unwrap().into(), target),
        (true, false) => SocketAddr::new(record.ipv6.unwrap().into(), target),
    };
    let seen = if here { served.seen_here } else { served.seen_there };
    let seen = match seen {
        weir_mesh::trace::Seen::Client => asked.client,
        weir_mesh::trace::Seen::Node(address) => address,
        weir_mesh::trace::Seen::NodeTowardTask => return false,
    };
    let mut words = text.split(' ').skip(1);
    let (from, arrow, at) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let from: SocketAddr = from.parse().unwrap();
    arrow == ">" && from.ip() == seen && at.parse() == Ok(to)
}

#[test]
fn the_trace_of_a_flow_is_what_the_kernel_does_with_its_first_packet() {
    let world = RefCell::new(World::new().unwrap());
    let met = RefCell::new(Met::new());
    let port = RefCell::new(20_000_u16);
    let config = Config { cases: 120, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&case(), |case| {
        let mut world = world.borrow_mut();
        let Case { services, withheld, shared, unreached, packets } = case;
        world.share(shared);
        world.replace(services, withheld, &unreached).unwrap();
        for packet in packets {
            // A port that no flow had before.
            let mut port = port.borrow_mut();
            *port = if *port == 60_000 { 20_000 } else { *port + 1 };
            let asked = packet.question(*port);
            for time in ["first", "second"] {
                let checked = check(&world, &asked, &mut met.borrow_mut());
                checked.map_err(|wrong| {
                    TestCaseError::fail(format!("{time} {asked:?}:\n  {wrong}"))
                })?;
            }
        }
        Ok(())
    });
    let met = met.into_inner();
    if let Err(error) = outcome {
        panic!("{error}");
    }
    for kind in ["passes", "denied", "no backend", "served", "hashed", "remembered"] {
        assert!(met.get(kind).copied().unwrap_or_default() > 20, "{kind} is hardly met: {met:?}");
    }
}
