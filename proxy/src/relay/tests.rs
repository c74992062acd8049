use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use weir_mesh::{
    Generation, Limits, LocalView, MeshSnapshot, Moment, Node, NodeName, Planner, Port, Protocol,
    PublishMode, PublishedPort, Service, ServiceName, TargetPort, Task, TaskName, ident::Tag,
    install::Frontend,
};

use socket2::{Domain, Socket, Type};

use super::*;
use crate::{Proxy, Settings, tcp::Entry};

const HERE: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 2);
const THERE: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 1);
const WAIT: Duration = Duration::from_secs(20);

/// A port of a protocol that nobody listens on.
fn free(protocol: Protocol) -> u16 {
    let address = match protocol {
        Protocol::Tcp => TcpListener::bind((HERE, 0)).unwrap().local_addr(),
        Protocol::Udp => UdpSocket::bind((HERE, 0)).unwrap().local_addr(),
    };
    address.unwrap().port()
}

/// At a port that was free a moment ago, over TCP.
fn proxy() -> Proxy {
    let began = (0..20).find_map(|_| Proxy::start(settings(free(Protocol::Tcp)), None).ok());
    began.expect("a port that is free")
}

fn settings(relay_port: u16) -> Settings {
    Settings {
        address: HERE.into(),
        relay_port,
        workers: 1,
        connect_timeout: Duration::from_secs(1),
        keepalive: Duration::from_secs(60),
        user_timeout: Duration::from_secs(60),
        connections: 10,
        udp_sessions: 10,
    }
}

/// A service of one task of this node, and another node.
fn snapshot(protocol: Protocol, published: u16, task: SocketAddr) -> MeshSnapshot {
    let node = |name: &str, address: Ipv4Addr| {
        (NodeName::new(name), Node::new(NodeName::new(name), address.into()))
    };
    let mut echo = Service::new(ServiceName::new("echo"));
    echo.ports = vec![Port {
        protocol,
        published: PublishedPort::new(published).unwrap(),
        target: TargetPort::new(task.port()).unwrap(),
        mode: PublishMode::Ingress,
    }];
    let mut own = Task::new(TaskName::new("echo.1"), NodeName::new("here"));
    own.ipv4 = Some(HERE);
    echo.tasks = vec![own];
    MeshSnapshot {
        generation: Generation(1),
        here: None,
        nodes: BTreeMap::from([node("here", HERE), node("there", THERE)]),
        networks: BTreeMap::new(),
        services: BTreeMap::from([(echo.name.clone(), Arc::new(echo))]),
    }
}

fn apply(proxy: &mut Proxy, snapshot: &MeshSnapshot) {
    let local = LocalView {
        reach: BTreeMap::from([(HERE.into(), Via::Neighbour { ifindex: 0 })]),
        ..LocalView::new(NodeName::new("here"))
    };
    let now = Moment::default();
    let mut planner = Planner::new(proxy.installed().clone(), Limits::default(), now);
    for op in &planner.plan(snapshot, &local, now).ops {
        proxy.apply(op);
    }
    proxy.settled();
}

/// What the other node says before the first byte of a client.
fn envelope(protocol: Protocol, published: u16) -> Vec<u8> {
    let port = PublishedPort::new(published).unwrap();
    let entry = Entry {
        client: "10.0.0.9:5000".parse().unwrap(),
        asked: SocketAddr::new(THERE.into(), published),
        frontend: Frontend { protocol, port },
    };
    Envelope { entry, tag: Tag(7), hopped: false }.encode()
}

fn counted(proxy: &Proxy, reason: Reason) -> u64 {
    proxy.reasons().find(|(known, _)| *known == reason).unwrap().1
}

#[test]
fn a_datagram_that_a_node_hands_over_before_the_first_plan_reaches_its_task() {
    let task = UdpSocket::bind((HERE, 0)).unwrap();
    task.set_read_timeout(Some(WAIT)).unwrap();
    let published = free(Protocol::Udp);
    let mut proxy = proxy();
    let node = UdpSocket::bind((THERE, 0)).unwrap();
    let mut bytes = envelope(Protocol::Udp, published);
    bytes.extend(b"hello");
    node.send_to(&bytes, (HERE, proxy.shared.settings.relay_port)).unwrap();
    // Long enough that a relay that reads would have read.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(counted(&proxy, Reason::UnknownSender), 0);
    apply(&mut proxy, &snapshot(Protocol::Udp, published, task.local_addr().unwrap()));
    let mut buffer = [0; 64];
    let (length, _) = task.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"hello");
}

#[test]
fn a_connection_that_a_node_hands_over_before_the_first_plan_reaches_its_task() {
    let task = TcpListener::bind((HERE, 0)).unwrap();
    let published = free(Protocol::Tcp);
    let mut proxy = proxy();
    let source = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    source.bind(&SocketAddr::new(THERE.into(), 0).into()).unwrap();
    let relay = SocketAddr::new(HERE.into(), proxy.shared.settings.relay_port);
    source.connect(&relay.into()).unwrap();
    let mut node = TcpStream::from(source);
    node.set_read_timeout(Some(WAIT)).unwrap();
    node.write_all(&envelope(Protocol::Tcp, published)).unwrap();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(counted(&proxy, Reason::UnknownSender), 0);
    apply(&mut proxy, &snapshot(Protocol::Tcp, published, task.local_addr().unwrap()));
    let mut said = [0];
    node.read_exact(&mut said).unwrap();
    assert_eq!(said, [TAKEN]);
    task.accept().unwrap();
}

#[test]
fn who_is_no_node_is_refused_though_no_plan_comes() {
    let proxy = proxy();
    let relay = SocketAddr::new(HERE.into(), proxy.shared.settings.relay_port);
    let mut somebody = TcpStream::connect(relay).unwrap();
    somebody.set_read_timeout(Some(WAIT)).unwrap();
    let ended = somebody.read(&mut [0]);
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(counted(&proxy, Reason::UnknownSender), 1);
}
