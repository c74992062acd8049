//! The server on real sockets.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use weir_dns::server::{Server, Settings};

use super::{
    upstream::{Mood, Upstream},
    world::{Type, World, code, data, question, with_edns},
};

const PATIENCE: Duration = Duration::from_secs(5);

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn serve(world: &World, settings: Settings) -> (Server, SocketAddr) {
    let server = Server::start(world.handler.clone(), settings).unwrap();
    let address = free_address();
    server.listen([address].into());
    let begun = Instant::now();
    while server.bound().get(&address) != Some(&None) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", server.bound());
        std::thread::sleep(Duration::from_millis(5));
    }
    // The other workers are as quick.
    std::thread::sleep(Duration::from_millis(50));
    (server, address)
}

fn small() -> Settings {
    Settings { workers: 2, idle: Duration::from_millis(500), ..Settings::default() }
}

fn by_udp(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(server).unwrap();
    socket.send(&message.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("no answer");
    Message::from_vec(&buffer[..length]).unwrap()
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().unwrap();
    [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()
}

fn receive(stream: &mut TcpStream) -> Option<Message> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).ok()?;
    Some(Message::from_vec(&bytes).unwrap())
}

#[test]
fn a_question_is_answered_over_udp_and_tcp_from_the_address_that_was_asked() {
    let world = World::new();
    let (_server, address) = serve(&world, small());
    assert_eq!(data(&by_udp(address, &question("web.", Type::A))), ["10.0.9.2"]);
    let mut stream = connect(address);
    stream.write_all(&framed(&question("web.", Type::A))).unwrap();
    assert_eq!(data(&receive(&mut stream).unwrap()), ["10.0.9.2"]);
}

#[test]
fn line_11_many_questions_on_one_connection_are_all_answered() {
    let world = World::new();
    let (_server, address) = serve(&world, small());
    let mut stream = connect(address);
    let messages: Vec<Message> = (0..200).map(|_| question("web.", Type::A)).collect();
    let all: Vec<u8> = messages.iter().flat_map(framed).collect();
    stream.write_all(&all).unwrap();
    let mut ids: BTreeSet<u16> = messages.iter().map(|message| message.metadata.id).collect();
    for _ in &messages {
        ids.remove(&receive(&mut stream).unwrap().metadata.id);
    }
    assert!(ids.is_empty());
}

#[test]
fn line_11_a_message_may_come_in_pieces() {
    let world = World::new();
    let (_server, address) = serve(&world, small());
    let mut stream = connect(address);
    for byte in framed(&question("web.", Type::A)) {
        stream.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(data(&receive(&mut stream).unwrap()), ["10.0.9.2"]);
}

#[test]
fn line_11_an_idle_connection_is_closed() {
    let world = World::new();
    let (_server, address) = serve(&world, small());
    let mut stream = connect(address);
    let begun = Instant::now();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    let waited = begun.elapsed();
    assert!((400..2000).contains(&waited.as_millis()), "{waited:?}");
}

#[test]
fn line_11_a_connection_that_is_half_closed_gets_its_answers() {
    let world = World::new();
    let (_server, address) = serve(&world, small());
    let mut stream = connect(address);
    stream.write_all(&framed(&question("web.", Type::A))).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(data(&receive(&mut stream).unwrap()), ["10.0.9.2"]);
    assert!(receive(&mut stream).is_none());
}

#[test]
fn line_11_a_bad_message_closes_its_own_connection_and_no_other() {
    let world = World::new();
    let (_server, address) = serve(&world, small());
    let mut other = connect(address);
    for bad in [
        &b"\x00\x00"[..],
        b"\x00\x03abc",
        b"\x00\x0c\x00\x01\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    ] {
        let mut stream = connect(address);
        stream.write_all(bad).unwrap();
        assert!(receive(&mut stream).is_none(), "{bad:?}");
    }
    let mut formerr = connect(address);
    formerr.write_all(b"\x00\x0d\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x3f").unwrap();
    assert_eq!(code(&receive(&mut formerr).unwrap()), ResponseCode::FormErr);
    assert!(receive(&mut formerr).is_none());
    other.write_all(&framed(&question("web.", Type::A))).unwrap();
    assert_eq!(data(&receive(&mut other).unwrap()), ["10.0.9.2"]);
}

#[test]
fn line_11_connections_are_limited_for_each_client() {
    let world = World::new();
    let (_server, address) = serve(&world, Settings { connections_of_client: 3, ..small() });
    let mut held: Vec<TcpStream> = (0..3).map(|_| connect(address)).collect();
    for stream in &mut held {
        stream.write_all(&framed(&question("web.", Type::A))).unwrap();
        assert!(receive(stream).is_some());
    }
    let mut more = connect(address);
    assert_eq!(more.read(&mut [0; 1]).unwrap_or(0), 0);
    drop(held);
}

#[test]
fn line_11_answers_come_in_the_order_in_which_they_are_known() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let upstream = runtime.block_on(Upstream::start(Mood::Slow(300)));
    let world = World::new();
    world.ask_also(&[upstream.address], &[]);
    let (_server, address) = serve(&world, small());
    let mut stream = connect(address);
    let (slow, quick) = (question("www.example.org.", Type::A), question("web.", Type::A));
    stream.write_all(&[framed(&slow), framed(&quick)].concat()).unwrap();
    let ids = [(); 2].map(|()| receive(&mut stream).unwrap().metadata.id);
    assert_eq!(ids, [quick.metadata.id, slow.metadata.id]);
}

#[test]
fn line_11_more_questions_than_may_be_under_way_are_all_answered_though_the_client_says_no_more() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let upstream = runtime.block_on(Upstream::start(Mood::Slow(100)));
    let world = World::new();
    world.ask_also(&[upstream.address], &[]);
    let (_server, address) = serve(&world, small());
    let mut stream = connect(address);
    let messages: Vec<Message> =
        (0..100).map(|at| question(&format!("n{at}.example.org."), Type::A)).collect();
    let mut all: Vec<u8> = messages.iter().flat_map(framed).collect();
    // What is cut takes nothing from those before it.
    all.extend(&framed(&question("web.", Type::A))[..9]);
    stream.write_all(&all).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let ids: BTreeSet<u16> = messages.iter().map(|message| message.metadata.id).collect();
    let answered: BTreeSet<u16> =
        std::iter::from_fn(|| receive(&mut stream)).map(|said| said.metadata.id).collect();
    assert_eq!(answered, ids);
}

#[test]
fn line_18_questions_under_way_are_limited_and_the_rest_is_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let upstream = runtime.block_on(Upstream::start(Mood::Silent));
    let world = World::new();
    world.ask_also(&[upstream.address], &[]);
    let (server, address) = serve(&world, Settings { under_way_of_client: 5, ..small() });
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(address).unwrap();
    for at in 0..8 {
        socket
            .send(&with_edns(&format!("n{at}.example.org."), Type::A, 1232).to_vec().unwrap())
            .unwrap();
    }
    let mut buffer = [0; 4096];
    for _ in 0..3 {
        let length = socket.recv(&mut buffer).expect("no answer");
        let said = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(code(&said), ResponseCode::Refused);
    }
    assert_eq!(server.limits().questions, 5);
    let begun = Instant::now();
    assert_eq!(data(&by_udp(address, &question("web.", Type::A))), ["10.0.9.2"]);
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
}

#[test]
fn line_20_while_the_zone_is_swapped_no_answer_is_wrong_or_missing() {
    let mut world = World::new();
    let (_server, address) = serve(&world, small());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asker = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut answers = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let said = by_udp(address, &question("tasks.web.", Type::A));
                let said = data(&said);
                assert!(said == ["10.0.9.3", "10.0.9.4"] || said == ["10.0.9.4"], "{said:?}");
                answers += 1;
            }
            answers
        }
    });
    for at in 0..200 {
        let state = if at % 2 == 0 { weir_mesh::TaskState::Draining } else { Default::default() };
        world.change("web", |web| web.tasks[0].state = state);
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(asker.join().expect("a wrong answer") > 100);
}

#[test]
fn an_address_that_is_taken_is_said_and_tried_again() {
    let world = World::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let server = Server::start(world.handler.clone(), small()).unwrap();
    server.listen([address].into());
    let begun = Instant::now();
    while server.bound().get(&address).is_none_or(Option::is_none) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", server.bound());
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(taken);
    while server.bound().get(&address) != Some(&None) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", server.bound());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(data(&by_udp(address, &question("web.", Type::A))), ["10.0.9.2"]);
}
