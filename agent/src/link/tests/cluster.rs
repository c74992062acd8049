//! Several nodes that get along.

use std::time::Duration;

use tokio::time::Instant;
use weir_mesh::cluster::{Life, NodeId};

use super::pki::{Authority, Leaf, SILENCE, TestNode, declared, eventually};
use crate::link::From;

const NODES: [&str; 5] = ["m1", "m2", "w1", "w2", "w3"];

/// Two managers and three workers that have found each other, each with a task.
async fn five(ca: &Authority) -> Vec<TestNode> {
    let leaf = |node: &&'static str| match node.starts_with('m') {
        true => Leaf::manager(node),
        false => Leaf::worker(node),
    };
    let nodes: Vec<TestNode> = NODES.iter().map(|n| TestNode::start(ca, &leaf(n))).collect();
    let managers = [nodes[0].address().await, nodes[1].address().await];
    for (node, name) in nodes.iter().zip(NODES) {
        node.reports(&[(&format!("t-{name}"), Life::Active)]);
        node.know(&managers);
    }
    for manager in &nodes[..2] {
        manager.declare.send_replace(declared(&NODES, &["web"]));
    }
    for node in &nodes {
        eventually("all see all", || all_seen(node), || (node.view(), node.link.status())).await;
    }
    nodes
}

fn all_seen(node: &TestNode) -> bool {
    node.sees_service("web")
        && NODES.iter().all(|other| {
            node.sees(other, &format!("t-{other}")) == Some(Life::Active)
                && node.sees_alive(other) == Some(true)
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_says_is_known_on_all_within_100_ms() {
    let nodes = five(&Authority::new()).await;
    let mut quickest = Duration::MAX;
    for life in [Life::Draining, Life::Active, Life::Draining, Life::Down] {
        let begun = Instant::now();
        nodes[4].reports(&[("t-w3", life)]);
        for node in &nodes {
            eventually("seen", || node.sees("w3", "t-w3") == Some(life), || node.view()).await;
        }
        quickest = quickest.min(begun.elapsed());
    }
    // Other tests may have the processors at any one time.
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
    nodes[4].reports(&[]);
    for node in &nodes {
        eventually("gone", || node.sees("w3", "t-w3").is_none(), || node.view()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_silent_is_not_alive_and_is_again_when_it_speaks() {
    let ca = Authority::new();
    let mut nodes = five(&ca).await;
    let begun = Instant::now();
    let gone = nodes.pop().expect("five");
    let managers = [nodes[0].address().await, nodes[1].address().await];
    drop(gone);
    for node in &nodes {
        eventually("silent", || node.sees_alive("w3") == Some(false), || node.view()).await;
    }
    let took = begun.elapsed();
    assert!(took > SILENCE / 2 && took < SILENCE * 10, "{took:?}");
    assert_eq!(nodes[0].sees("w3", "t-w3"), Some(Life::Active), "what it said is kept");
    let back = TestNode::start(&ca, &Leaf::worker("w3"));
    back.reports(&[("t-new", Life::Starting)]);
    back.know(&managers);
    for node in &nodes {
        eventually(
            "back, with what it says now and nothing of what it said",
            || {
                node.sees_alive("w3") == Some(true)
                    && node.sees("w3", "t-new") == Some(Life::Starting)
                    && node.sees("w3", "t-w3").is_none()
            },
            || node.view(),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_manager_goes_the_others_listen_to_another_and_lose_nothing() {
    let mut nodes = five(&Authority::new()).await;
    drop(nodes.remove(0));
    let others = [1, 2, 3];
    let from = From::Manager(NodeId::new("m2"));
    for node in others.map(|at| &nodes[at]) {
        eventually("failover", || node.view().from == from, || node.link.status()).await;
        assert!(node.sees_service("web"), "nothing is lost on the way");
        eventually("m1 is silent", || node.sees_alive("m1") == Some(false), || node.view()).await;
        assert_eq!(node.sees_alive("w1"), Some(true));
    }
    nodes[0].declare.send_replace(declared(&NODES, &["web", "db"]));
    for node in others.map(|at| &nodes[at]) {
        eventually("news", || node.sees_service("db"), || node.view()).await;
    }
    drop(nodes.remove(0));
    for node in [0, 1, 2].map(|at| &nodes[at]) {
        eventually("nobody", || node.view().from == From::Nobody, || node.link.status()).await;
        assert!(node.sees_service("db") && node.sees("w1", "t-w1").is_some(), "the last is kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_starts_anew_is_not_listened_to_before_it_has_heard_the_nodes() {
    let ca = Authority::new();
    let m1 = TestNode::start(&ca, &Leaf::manager("m1"));
    let w1 = TestNode::start(&ca, &Leaf::worker("w1"));
    let address = m1.address().await;
    m1.declare.send_replace(declared(&["m1", "w1"], &["web"]));
    w1.reports(&[("t-w1", Life::Active)]);
    w1.know(&[address]);
    eventually("seen", || w1.sees("w1", "t-w1").is_some(), || w1.link.status()).await;
    let TestNode { link, root, files, .. } = m1;
    drop(link);
    eventually("nobody", || w1.view().from == From::Nobody, || w1.link.status()).await;
    let files = files.borrow().clone().expect("files");
    let again = TestNode::start_with("m1", root, files, &address.to_string());
    let mut view = w1.link.view();
    again.declare.send_replace(declared(&["m1", "w1"], &["web", "db"]));
    while !w1.sees_service("db") {
        view.changed().await.expect("a view");
        assert!(w1.sees("w1", "t-w1").is_some(), "half a view: {:?}", w1.view());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_values_that_travel_backwards_in_a_snapshot_arrive_all_the_same() {
    // The node's own entry changes after its tasks: in the order of changes it comes last.
    let ca = Authority::new();
    let m1 = TestNode::start(&ca, &Leaf::manager("m1"));
    let mut report = super::pki::report(&[("t1", Life::Active)]);
    m1.report.send_replace(report.clone().into());
    tokio::time::sleep(Duration::from_millis(50)).await;
    report.node.hostname = "renamed".into();
    m1.report.send_replace(report.into());
    tokio::time::sleep(Duration::from_millis(50)).await;
    m1.declare.send_replace(declared(&["m1"], &["web"]));
    let w1 = TestNode::start(&ca, &Leaf::worker("w1"));
    w1.know(&[m1.address().await]);
    eventually("seen", || w1.sees("m1", "t1").is_some(), || w1.view()).await;
}
