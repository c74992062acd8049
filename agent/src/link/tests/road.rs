//! Bad roads: a relay between a node and a hub that is slow, or cuts the connection again and again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};
use weir_mesh::cluster::{Life, NodeId};

use super::pki::{Authority, Leaf, SILENCE, TestNode, declared, eventually};
use crate::link::From;

/// What a relay does to what the hub says.
#[derive(Clone, Copy)]
struct Road {
    /// Bytes a second.
    speed: usize,
    /// The connection is cut after so many bytes.
    cut: usize,
}

const GOOD: Road = Road { speed: usize::MAX, cut: usize::MAX };

/// A relay to `hub`; ends when it is dropped.
async fn relay(hub: SocketAddr, road: Road) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut running = JoinSet::new();
    running.spawn(async move {
        let mut guests = JoinSet::new();
        while let Ok((guest, _)) = listener.accept().await {
            guests.spawn(async move {
                let hub = TcpStream::connect(hub).await.expect("the hub");
                let ((mut from_guest, mut to_guest), (mut from_hub, mut to_hub)) =
                    (guest.into_split(), hub.into_split());
                let up = tokio::io::copy(&mut from_guest, &mut to_hub);
                let down = async {
                    let (mut sent, mut bytes) = (0, [0; 4096]);
                    while let Ok(length) = from_hub.read(&mut bytes).await {
                        sent += length;
                        if length == 0
                            || sent > road.cut
                            || to_guest.write_all(&bytes[..length]).await.is_err()
                        {
                            return;
                        }
                        if road.speed < usize::MAX {
                            sleep(Duration::from_secs_f64(length as f64 / road.speed as f64)).await;
                        }
                    }
                };
                tokio::select! {
                    _ = up => {}
                    () = down => {}
                }
            });
        }
    });
    (address, running)
}

/// A manager that tells of so many tasks, about 250 bytes each.
async fn big(ca: &Authority, tasks: usize) -> TestNode {
    let m1 = TestNode::start(ca, &Leaf::manager("m1"));
    // Drawn, as Swarm's are: what only counts packs much better.
    let ids: Vec<String> = (0..tasks).map(|_| format!("{:032x}", rand::random::<u128>())).collect();
    let tasks: Vec<(&str, Life)> = ids.iter().map(|id| (id.as_str(), Life::Active)).collect();
    m1.declare.send_replace(declared(&["m1"], &["web"]));
    m1.reports(&tasks);
    m1.address().await;
    eventually("the hub is ready", || m1.view().from == From::Own, || m1.link.status()).await;
    m1
}

/// A view is whole or it is none: the number of tasks says which.
fn sees_all(node: &TestNode) -> bool {
    let view = node.view();
    let m1 = view.reports.get(&NodeId::new("m1")).and_then(|node| node.report.clone());
    m1.is_some_and(|report| [400, 4000].contains(&report.tasks.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_goes_on_where_the_last_connection_was_cut() {
    let ca = Authority::new();
    let m1 = big(&ca, 4000).await;
    // Each connection carries a fifth of the snapshot.
    let (address, _relay) = relay(m1.address().await, Road { cut: 30_000, ..GOOD }).await;
    let w1 = TestNode::start(&ca, &Leaf::worker("w1"));
    w1.know(&[address]);
    eventually("w1 sees all", || sees_all(&w1), || w1.link.status()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_slow_road_is_alive_keeps_its_connection_and_sees_all_at_last() {
    let ca = Authority::new();
    let m1 = big(&ca, 4000).await;
    // A frame of 64 KiB, packed, takes longer than the silence that is allowed.
    let speed = 15_000;
    let (address, _relay) = relay(m1.address().await, Road { speed, ..GOOD }).await;
    let w1 = TestNode::start(&ca, &Leaf::worker("w1"));
    w1.know(&[address]);
    w1.reports(&[("t1", Life::Active)]);
    eventually("w1 is heard", || m1.sees_alive("w1") == Some(true), || m1.view()).await;
    let begun = Instant::now();
    while !sees_all(&w1) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", w1.link.status());
        assert_eq!(m1.sees_alive("w1"), Some(true), "after {:?}", begun.elapsed());
        sleep(SILENCE / 8).await;
    }
    assert!(begun.elapsed() > SILENCE * 4, "the road was not slow: {:?}", begun.elapsed());
    let counters = w1.link.counters();
    let connects = counters.connects.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(connects, 1, "{:?}", w1.link.status());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_held_up_keeps_its_connection_and_its_hub() {
    let ca = Authority::new();
    let m1 = big(&ca, 4000).await;
    let address = m1.address().await;
    // Its own thread, which sleeps: as if the machine had no time for this node.
    let held_up = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let w1 = TestNode::start(&ca, &Leaf::worker("w1"));
            w1.know(&[address]);
            eventually("w1 sees all", || sees_all(&w1), || w1.link.status()).await;
            for _ in 0..3 {
                std::thread::sleep(SILENCE * 10);
                sleep(SILENCE / 2).await;
            }
            let count = |counter: &std::sync::atomic::AtomicU64| {
                counter.load(std::sync::atomic::Ordering::Relaxed)
            };
            let counters = w1.link.counters();
            (count(&counters.disconnects), count(&counters.failovers), w1.trouble())
        })
    });
    let joined = tokio::task::spawn_blocking(|| held_up.join()).await.expect("joined");
    let (disconnects, failovers, trouble) = joined.expect("no panic");
    assert_eq!((disconnects, failovers), (0, 1), "{trouble}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_hub_fifty_nodes_are_back_soon_and_never_lost_anything() {
    let ca = Authority::new();
    let m1 = big(&ca, 400).await;
    let address = m1.address().await;
    let names: Vec<String> = (0..50).map(|at| format!("w{at}")).collect();
    let nodes: Vec<TestNode> = names
        .iter()
        .map(|name| {
            let node = TestNode::start(&ca, &Leaf::worker(name));
            node.reports(&[("t1", Life::Active)]);
            node.know(&[address]);
            node
        })
        .collect();
    let all_see = |what: fn(&TestNode) -> bool| nodes.iter().all(what);
    eventually("all see all", || all_see(sees_all), || nodes[0].link.status()).await;
    let TestNode { link, root, files, declare, report, .. } = m1;
    let (declare, report) = (declare.borrow().clone(), report.borrow().clone());
    drop(link);
    let silent = || nodes.iter().all(|node| node.view().from == From::Nobody);
    eventually("nobody is heard", silent, || nodes[0].link.status()).await;
    let files = files.borrow().clone().expect("files");
    let again = TestNode::start_with("m1", root, files, &address.to_string());
    again.report.send_replace(report);
    let mut more = Arc::unwrap_or_clone(declare.expect("declared"));
    more.services.extend(declared(&[], &["db"]).expect("declared").services.clone());
    again.declare.send_replace(Some(Arc::new(more)));
    let begun = Instant::now();
    let back = || nodes.iter().all(|node| node.sees_service("db") && sees_all(node));
    while !back() {
        let lost = nodes.iter().find(|node| !sees_all(node));
        let told = lost.map(|node| (node.view().reports.len(), node.link.status()));
        assert!(lost.is_none(), "what was known is kept: {told:?}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", nodes[0].link.status());
        sleep(Duration::from_millis(20)).await;
    }
    eventually(
        "all are alive",
        || again.link.status().hub.is_some_and(|hub| hub.alive == 51),
        || again.link.status(),
    )
    .await;
}
