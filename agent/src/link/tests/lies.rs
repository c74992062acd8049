//! Nodes that do not keep to the rules, spoken by hand.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{
    BodyExt,
    channel::{Channel, Sender},
};
use hyper::{Request, Response, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, net::TcpStream, time::Instant};
use weir_mesh::cluster::{Life, NodeId, TaskId};

use super::pki::{Authority, Leaf, TestNode, declared, eventually, report};
use crate::link::{
    tls::Tls,
    wire::{Decoder, Frame, Head, Item, MOST_FRAME, PATH, Span},
};

/// A connection whose frames are written by hand.
pub struct Guest {
    out: Sender<Bytes>,
    pub response: Response<Incoming>,
    decoder: Decoder,
}

impl Guest {
    pub async fn join(ca: &Authority, m1: &TestNode, node: &str, path: &str) -> Self {
        let root = TempDir::new().expect("a directory");
        let files = ca.install(root.path(), &Leaf::worker(node));
        let tls = Tls::new(&files.read().expect("an identity")).expect("TLS");
        let stream = TcpStream::connect(m1.address().await).await.expect("a connection");
        let name = ServerName::try_from("weir").expect("a name");
        let stream = tokio_rustls::TlsConnector::from(tls.client).connect(name, stream).await;
        let io = TokioIo::new(stream.expect("TLS"));
        let (mut requests, connection) =
            http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
        tokio::spawn(connection);
        let (out, body) = Channel::<Bytes>::new(1);
        let request = Request::post(format!("https://weir{path}")).body(body).expect("a request");
        let response = requests.send_request(request).await.expect("a response");
        // Without a handle to make requests the connection lives until its one request ends.
        Self { out, response, decoder: Decoder::unpacking() }
    }

    pub async fn say(&mut self, from: u64, to: u64, first: bool, items: Vec<Item>) {
        self.send(frame(Span { from, to, first, whole: true }, &items)).await;
    }

    /// Whether it could be said.
    pub async fn say_if(&mut self, from: u64, to: u64, items: Vec<Item>) -> bool {
        let frame = frame(Span { from, to, first: false, whole: true }, &items);
        self.out.send_data(frame).await.is_ok()
    }

    /// A part of a report that is never whole; it may be that nobody takes it any more.
    pub async fn part(&mut self, at: u64, first: bool, items: Vec<Item>) {
        let frame = frame(Span { from: at, to: at + 1, first, whole: false }, &items);
        self.out.send_data(frame).await.ok();
    }

    /// Anything; it may be that nobody takes it any more.
    pub async fn send(&mut self, frame: Bytes) {
        self.out.send_data(frame).await.ok();
    }

    pub async fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.frame().expect("a frame") {
                return Some(frame);
            }
            let data = self.response.body_mut().frame().await?.ok()?.into_data().expect("data");
            self.decoder.push(&data);
        }
    }

    /// Why the hub ended it.
    pub async fn refused(mut self) -> String {
        while let Some(frame) = self.hear().await {
            if let Head::Refused { reason } = frame.head {
                return reason;
            }
        }
        panic!("ended without a word")
    }
}

fn frame(span: Span, items: &[Item]) -> Bytes {
    let items: Vec<Bytes> = items.iter().map(|item| item.encode().expect("short")).collect();
    Head::Batch(span).frame_with(items.iter().map(AsRef::as_ref))
}

pub async fn manager(ca: &Authority) -> TestNode {
    let m1 = TestNode::start(ca, &Leaf::manager("m1"));
    m1.declare.send_replace(declared(&["m1"], &["web"]));
    m1.reports(&[("t-m1", Life::Active)]);
    m1.address().await;
    m1
}

pub fn said_by(node: &str, task: &str, life: Life) -> Vec<Item> {
    let report = report(&[(task, life)]);
    let value = report.tasks.values().next().cloned();
    let (node, task) = (NodeId::new(node), TaskId::new(task));
    vec![Item::Reporter(node.clone(), Some(report.node)), Item::Report(node, task, value)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_speaks_for_services_is_refused() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    let declared = declared(&[], &["evil"]).expect("declared");
    let (id, service) = declared.services.iter().next().expect("a service");
    let lie = Item::Service(id.clone(), Some(service.clone()));
    guest.say(0, 1, true, vec![lie]).await;
    let reason = guest.refused().await;
    assert!(reason.contains("w1 speaks for the cluster"), "{reason}");
    eventually("told", || m1.refusals().contains("w1 speaks for the cluster"), || m1.refusals())
        .await;
    assert!(!m1.sees_service("evil"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_speaks_for_another_nodes_task_is_refused() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    guest.say(0, 1, true, said_by("m1", "t-m1", Life::Down)).await;
    let reason = guest.refused().await;
    assert!(reason.contains("w1 speaks for m1"), "{reason}");
    assert_eq!(m1.sees("m1", "t-m1"), Some(Life::Active));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_swarm_never_lists_gets_no_new_flows_and_its_node_is_named() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    m1.declare.send_replace(declared(&["m1", "w1"], &["s1"]));
    let now = std::time::Instant::now();
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    guest.say(0, 2, true, said_by("w1", "t1", Life::Active)).await;
    let m1 = &m1;
    let seen =
        |life| eventually("seen", move || m1.sees("w1", "t1") == Some(life), || m1.refusals());
    seen(Life::Active).await;
    // A list that was asked for before proves nothing.
    m1.ask.send_replace(Some(now));
    tokio::time::sleep(Duration::from_millis(200)).await;
    seen(Life::Active).await;
    m1.ask.send_replace(Some(now + Duration::from_secs(60)));
    seen(Life::Draining).await;
    let reason = "w1: reports task t1 of service web, and Swarm lists no such task";
    assert!(m1.refusals().contains(reason), "{}", m1.refusals());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_packs_what_it_says_is_refused() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    let items: Vec<Bytes> = (0..100)
        .flat_map(|at| said_by("w1", &format!("t{at}"), Life::Active))
        .map(|item| item.encode().expect("short"))
        .collect();
    let span = Span { from: 0, to: 200, first: true, whole: true };
    guest.send(span.packed_frame(&items.iter().map(AsRef::as_ref).collect::<Vec<_>>())).await;
    let reason = guest.refused().await;
    assert!(reason.contains("packed items; only a hub may send these"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_of_the_protocol_is_told_so() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let guest = Guest::join(&ca, &m1, "w1", "/weir/link/99").await;
    assert_eq!(guest.response.status(), 426);
    let text = guest.response.into_body().collect().await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&text).contains(PATH));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_gap_the_hub_asks_for_all_again() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    guest.say(0, 2, true, said_by("w1", "t1", Life::Active)).await;
    eventually("taken", || m1.sees("w1", "t1") == Some(Life::Active), || m1.view()).await;
    guest.say(7, 8, false, said_by("w1", "t1", Life::Down)).await;
    while guest.hear().await.expect("a word").head != Head::Again {}
    assert_eq!(m1.sees("w1", "t1"), Some(Life::Active), "what follows a gap is not taken");
    guest.say(0, 8, true, said_by("w1", "t2", Life::Down)).await;
    eventually("taken", || m1.sees("w1", "t2") == Some(Life::Down), || m1.view()).await;
    eventually("gone", || m1.sees("w1", "t1").is_none(), || m1.view()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_on_after_a_gap_of_its_own_gets_a_snapshot() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    guest.out.send_data(Head::Listen { epoch: 1, at: 17 }.frame()).await.expect("sent");
    let first = loop {
        if let Head::Batch(Span { from, first, .. }) = guest.hear().await.expect("a word").head {
            break (from, first);
        }
    };
    assert_eq!(first, (0, true), "a place in another table is no place in this one");
    guest.out.send_data(Head::Again.frame()).await.expect("sent");
    while !matches!(guest.hear().await.expect("a word").head, Head::Batch(Span { first: true, .. }))
    {
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_too_long_ends_the_connection() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut guest = Guest::join(&ca, &m1, "w1", PATH).await;
    let length = u32::try_from(MOST_FRAME + 1).expect("short").to_be_bytes();
    guest.out.send_data(Bytes::copy_from_slice(&length)).await.expect("sent");
    let reason = guest.refused().await;
    assert!(reason.contains("at most 1048576"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_connects_and_says_nothing_is_let_go() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut stream = TcpStream::connect(m1.address().await).await.expect("a connection");
    let begun = Instant::now();
    let mut nothing = [0; 1];
    assert_eq!(stream.read(&mut nothing).await.ok(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_costs_little_and_holds_nobody_up() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let mut slow = Guest::join(&ca, &m1, "w1", PATH).await;
    slow.out.send_data(Head::Listen { epoch: 0, at: 0 }.frame()).await.expect("sent");
    let w2 = TestNode::start(&ca, &Leaf::worker("w2"));
    w2.know(&[m1.address().await]);
    let ids: Vec<String> = (0..2000).map(|at| format!("task-{at}")).collect();
    let tasks = |life| ids.iter().map(|id| (id.as_str(), life)).collect::<Vec<_>>();
    let sent = || m1.link.sent_bytes();
    for turn in 0..20 {
        let life = if turn % 2 == 0 { Life::Active } else { Life::Draining };
        m1.reports(&tasks(life));
        eventually("w2 keeps up", || w2.sees("m1", "task-1999") == Some(life), || ()).await;
    }
    let once = 2000 * 200;
    assert!(sent() < 20 * once * 2, "sent {} bytes for two readers", sent());
    // The slow one then reads on: at most what fits into buffers is old, and the end is new.
    let begun = Instant::now();
    let mut last = None;
    let mut batches = 0;
    while last != Some(Life::Draining) || batches == 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "never up to date, {batches} batches");
        let Frame { items, .. } = slow.hear().await.expect("a word");
        batches += 1;
        for item in items {
            if let Item::Report(_, task, Some(value)) = item
                && task.as_str() == "task-1999"
            {
                last = Some(Arc::unwrap_or_clone(value).life);
            }
        }
    }
    assert!(batches < 60, "{batches} frames, though only the newest counts");
}
