//! A mesh, a handler that answers from it, and questions as other people's software writes them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use weir_dns::{
    Directory, Forwarder, Handler, Identity, Outcome, Outside, Routes, Transport, Zone,
    ZoneSettings,
    forward::{Route, Settings},
    handler::Ends,
    name::from_text,
};
use weir_mesh::{
    Generation, MeshSnapshot, Network, NetworkId, Node, NodeName, Port, Protocol, PublishMode,
    PublishedPort, Service, ServiceName, TargetPort, Task, TaskName,
};

pub use hickory_proto::rr::RecordType as Type;

/// A container on `blue`, on n1.
pub const BLUE: &str = "172.18.0.2";
/// A container on `green`, on n1.
pub const GREEN: &str = "172.18.0.3";
/// A container on both.
pub const BOTH: &str = "172.18.0.4";
/// Somebody who may not ask.
pub const STRANGER: &str = "198.51.100.7";
/// An allowed client.
pub const ALLOWED: &str = "192.0.2.77";

pub struct World {
    pub snapshot: MeshSnapshot,
    pub outside: Outside,
    pub settings: ZoneSettings,
    pub handler: Arc<Handler>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A task of n1 with its addresses on networks.
pub fn task(name: &str, reached: &str, networks: &[(&str, &[&str])]) -> Task {
    let on = |(network, addresses): &(&str, &[&str])| {
        (NetworkId::new(*network), addresses.iter().map(|text| ip(text)).collect())
    };
    let IpAddr::V4(ipv4) = ip(reached) else { panic!("{reached} is no IPv4 address") };
    Task {
        ipv4: Some(ipv4),
        networks: networks.iter().map(on).collect(),
        ..Task::new(TaskName::new(name), NodeName::new("n1"))
    }
}

/// A service with virtual addresses and tasks, serving 80/tcp and 53/udp.
pub fn service(name: &str, vips: &[(&str, &[&str])], tasks: Vec<Task>) -> Service {
    let port = |protocol, published, target| Port {
        protocol,
        published: PublishedPort::new(published).unwrap(),
        target: TargetPort::new(target).unwrap(),
        mode: PublishMode::Ingress,
    };
    let on = |(network, addresses): &(&str, &[&str])| {
        (NetworkId::new(*network), addresses.iter().map(|text| ip(text)).collect())
    };
    let number = name.bytes().map(u16::from).sum::<u16>();
    Service {
        ports: vec![
            port(Protocol::Tcp, 10_000 + number, 80),
            port(Protocol::Udp, 20_000 + number, 53),
        ],
        tasks,
        vips: vips.iter().map(on).collect(),
        ..Service::new(ServiceName::new(name))
    }
}

impl World {
    /// `web` on blue with a virtual address and two tasks; `db` on green by its tasks only, of both
    /// families; `both` on both networks; `lone` on blue without any task.
    pub fn new() -> Self {
        let mut web = service(
            "web",
            &[("blue", &["10.0.9.2"])],
            vec![
                task("web.1", "172.18.0.11", &[("blue", &["10.0.9.3"])]),
                task("web.2", "172.18.0.12", &[("blue", &["10.0.9.4"])]),
            ],
        );
        web.aliases
            .insert(NetworkId::new("blue"), vec!["www".to_owned(), "www.example.com".to_owned()]);
        web.tasks[0].aliases.insert(NetworkId::new("blue"), vec!["c0ffee".to_owned()]);
        web.tasks[0].weight = 3;
        web.port_names.insert("http".to_owned(), TargetPort::new(80).unwrap());
        let db = service(
            "db",
            &[],
            vec![
                task("db.1", "172.18.0.21", &[("green", &["10.0.8.3", "fd08::3"])]),
                task("db.2", "172.18.0.22", &[("green", &["10.0.8.4", "fd08::4"])]),
            ],
        );
        let both = service(
            "both",
            &[("blue", &["10.0.9.20"]), ("green", &["10.0.8.20"])],
            vec![task(
                "both.1",
                "172.18.0.31",
                &[("blue", &["10.0.9.21"]), ("green", &["10.0.8.21"])],
            )],
        );
        let lone = service("lone", &[("blue", &["10.0.9.30"])], Vec::new());
        let asks = |address, networks: &[&str]| {
            let networks: Vec<(&str, &[&str])> =
                networks.iter().map(|network| (*network, &[][..])).collect();
            task(&format!("asks-from-{address}"), address, &networks)
        };
        let askers = service(
            "asker",
            &[],
            vec![asks(BLUE, &["blue"]), asks(GREEN, &["green"]), asks(BOTH, &["blue", "green"])],
        );
        Self::of(vec![web, db, both, lone, askers])
    }

    pub fn of(services: Vec<Service>) -> Self {
        let node = Node::new(NodeName::new("n1"), ip("192.0.2.1"));
        let mut snapshot = MeshSnapshot::build(Generation(42), vec![node], services).unwrap();
        for (name, subnets) in
            [("blue", ["10.0.9.0/24", "fd09::/64"]), ("green", ["10.0.8.0/24", "fd08::/64"])]
        {
            let subnets = subnets.iter().map(|text| text.parse().unwrap()).collect();
            snapshot
                .networks
                .insert(NetworkId::new(name), Network { subnets, ..Network::new(name) });
        }
        let settings = ZoneSettings {
            domain: from_text("weir.").unwrap(),
            ttl: Duration::from_secs(5),
            node: NodeName::new("n1"),
            addresses: vec![ip("192.0.2.1")],
        };
        let outside = Outside {
            own: vec![ip("192.0.2.1")],
            allow: vec!["192.0.2.64/26".parse().unwrap()],
            networks: None,
        };
        let world = Self {
            snapshot,
            handler: Arc::new(handler(&settings, &outside, Settings::default())),
            outside,
            settings,
        };
        world.publish();
        world
    }

    /// The same before the first snapshot.
    pub fn unready() -> Self {
        let world = Self::new();
        let unready = Directory::unready(world.settings.clone(), &world.outside);
        world.handler.directory.store(Arc::new(unready));
        world
    }

    /// Takes the snapshot as it is now.
    pub fn publish(&self) {
        let zone = Arc::new(Zone::build(&self.snapshot, self.settings.clone()));
        let node = NodeName::new("n1");
        let directory = Directory::new(zone, &self.snapshot, &node, &[], &self.outside);
        self.handler.directory.store(Arc::new(directory));
    }

    /// Changes a service, and publishes it.
    pub fn change(&mut self, service: &str, change: impl FnOnce(&mut Service)) {
        let service = self.snapshot.services.get_mut(&ServiceName::new(service)).unwrap();
        change(Arc::make_mut(service));
        self.publish();
    }

    /// Asks these servers for names of others.
    pub fn ask_also(&self, servers: &[SocketAddr], routes: &[Route]) {
        self.handler.forwarder.set_routes(Routes::new(servers, routes, &[]));
    }

    /// What is answered to a packet, if anything is.
    pub fn raw(&self, packet: &[u8], from: &str, transport: Transport) -> Option<Vec<u8>> {
        let ends = Ends { client: (ip(from), 4711).into(), transport };
        let mut reply = Vec::new();
        match self.handler.answer(packet, ends, Instant::now(), &mut reply) {
            Outcome::Reply(_) => Some(reply),
            Outcome::Nothing(_) => None,
            Outcome::Forward(pending) => panic!("would be forwarded: {pending:?}"),
        }
    }

    /// Whether somebody else would be asked.
    pub fn would_forward(&self, from: &str, name: &str, kind: RecordType) -> bool {
        let ends = Ends { client: (ip(from), 4711).into(), transport: Transport::Udp };
        let packet = question(name, kind).to_vec().unwrap();
        let outcome = self.handler.answer(&packet, ends, Instant::now(), &mut Vec::new());
        matches!(outcome, Outcome::Forward(_))
    }

    /// The answer to a message over UDP.
    pub fn send(&self, from: &str, message: &Message) -> Message {
        let packet = message.to_vec().unwrap();
        let reply = self.raw(&packet, from, Transport::Udp).expect("no answer");
        let said = Message::from_vec(&reply).unwrap();
        assert_eq!(said.metadata.id, message.metadata.id);
        assert_eq!(said.metadata.message_type, MessageType::Response);
        said
    }

    /// The answer to a question from `from`.
    pub fn ask(&self, from: &str, name: &str, kind: RecordType) -> Message {
        self.send(from, &question(name, kind))
    }

    /// The same over TCP.
    pub fn ask_by_tcp(&self, from: &str, name: &str, kind: RecordType) -> Message {
        let packet = question(name, kind).to_vec().unwrap();
        Message::from_vec(&self.raw(&packet, from, Transport::Tcp).expect("no answer")).unwrap()
    }

    /// The data of the answers, sorted.
    pub fn data(&self, from: &str, name: &str, kind: RecordType) -> Vec<String> {
        data(&self.ask(from, name, kind))
    }
}

pub fn handler(settings: &ZoneSettings, outside: &Outside, forward: Settings) -> Handler {
    let directory = Directory::unready(settings.clone(), outside);
    let identity = Identity { node: "n1".to_owned(), version: "weir 0.1".to_owned() };
    Handler::new(directory, Arc::new(Forwarder::new(forward)), identity)
}

/// A question with RD, without EDNS.
pub fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Query;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// The same with EDNS and this size.
pub fn with_edns(name: &str, kind: RecordType, size: u16) -> Message {
    let mut message = question(name, kind);
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

/// The data of the answers, sorted.
pub fn data(message: &Message) -> Vec<String> {
    let mut data: Vec<String> =
        message.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    data
}

pub fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

/// The SOA in the authority section: its owner, its TTL, and its MINIMUM.
pub fn soa(message: &Message) -> Option<(String, u32, u32)> {
    let soa = |record: &Record| match &record.data {
        RData::SOA(soa) => Some((record.name.to_string(), record.ttl, soa.minimum)),
        _ => None,
    };
    message.authorities.iter().find_map(soa)
}

/// Asserts that a name exists and has nothing of the type: what A3 asks for.
pub fn assert_no_data(message: &Message) {
    assert_eq!(code(message), ResponseCode::NoError);
    assert!(message.answers.is_empty(), "{message}");
    assert!(message.metadata.authoritative, "{message}");
    let (_, ttl, minimum) = soa(message).expect("no SOA");
    assert!(ttl <= 5 && minimum == ttl, "SOA TTL {ttl}, MINIMUM {minimum}");
}
