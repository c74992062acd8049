//! Certificates: of others, of the past, and new ones.

use std::time::Duration;

use tempfile::TempDir;
use weir_mesh::cluster::Life;

use super::pki::{Authority, Leaf, TestNode, declared, eventually, write};
use crate::link::{
    ca,
    identity::{Files, Role},
};

async fn manager(ca: &Authority) -> TestNode {
    let m1 = TestNode::start(ca, &Leaf::manager("m1"));
    m1.declare.send_replace(declared(&["m1"], &["web"]));
    m1.address().await;
    m1
}

/// Tries to join, and gives both sides' words once both have said something.
async fn refused(m1: &TestNode, guest: &TestNode) -> (String, String) {
    guest.know(&[m1.address().await]);
    let both = || !guest.trouble().is_empty() && !m1.refusals().is_empty();
    eventually("both sides say why", both, || (guest.trouble(), m1.refusals())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!guest.sees_service("web") && m1.sees_alive(guest.id.as_str()).is_none());
    (guest.trouble(), m1.refusals())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused_and_both_sides_say_so() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let w1 = TestNode::start(&ca, &Leaf { hours: (-48, -1), ..Leaf::worker("w1") });
    let (guest, host) = refused(&m1, &w1).await;
    assert!(guest.contains("this node's certificate has expired"), "{guest}");
    assert!(host.contains("the other node's certificate has expired"), "{host}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clusters_authority_is_refused_and_both_sides_say_so() {
    let m1 = manager(&Authority::new()).await;
    let w1 = TestNode::start(&Authority::new(), &Leaf::worker("w1"));
    let (guest, host) = refused(&m1, &w1).await;
    assert!(guest.contains("the other node's certificate is of another authority"), "{guest}");
    assert!(host.contains("this node's certificate is of another authority"), "{host}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_of_one_authority_is_refused_and_both_sides_say_so() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let w1 = TestNode::start(&ca, &Leaf { cluster: "c2", ..Leaf::worker("w1") });
    let (guest, host) = refused(&m1, &w1).await;
    assert!(guest.contains("no manager of this cluster"), "{guest}");
    assert!(host.contains("this node is no manager of its cluster"), "{host}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_serves_is_not_listened_to() {
    // A worker's agent opens no hub: one that does all the same is made by hand.
    let ca = Authority::new();
    let worker = TestNode::start(&ca, &Leaf::worker("w2"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(worker.link.status().hub, None, "a worker opens no hub");
    let files = worker.files.borrow().clone().expect("files");
    let tls = crate::link::tls::Tls::new(&files.read().expect("an identity")).expect("TLS");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (said_in, said) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let acceptor = tokio_rustls::TlsAcceptor::from(tls.server);
        let error = acceptor.accept(stream).await.err();
        said_in.send(error.map(|error| crate::link::tls::reason(&error))).ok();
    });
    let w1 = TestNode::start(&ca, &Leaf::worker("w1"));
    w1.know(&[address]);
    let said = said.await.expect("an end").expect("an error");
    assert!(said.contains("no manager"), "{said}");
    eventually("refused", || w1.trouble().contains("only managers may serve"), || w1.trouble())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_rotate_while_the_link_runs() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let w1 = TestNode::start(&ca, &Leaf::worker("w1"));
    w1.know(&[m1.address().await]);
    w1.reports(&[("t1", Life::Active)]);
    eventually("seen", || m1.sees("w1", "t1").is_some(), || m1.view()).await;
    let connects = || {
        let counters = w1.link.counters();
        counters.connects.load(std::sync::atomic::Ordering::Relaxed)
    };
    let before = connects();
    let mut alive = m1.link.view();
    ca.install(w1.root.path(), &Leaf::worker("w1"));
    ca.install(m1.root.path(), &Leaf::manager("m1"));
    eventually("connected anew", || connects() > before, || w1.link.status()).await;
    w1.reports(&[("t1", Life::Draining)]);
    while m1.sees("w1", "t1") != Some(Life::Draining) {
        alive.changed().await.expect("a view");
        assert_eq!(m1.sees_alive("w1"), Some(true), "never silent meanwhile");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_replaced_node_by_node() {
    let (old, new) = (Authority::new(), Authority::new());
    let bridge = new.signed_by(&old);
    let m1 = manager(&old).await;
    let w1 = TestNode::start(&old, &Leaf::worker("w1"));
    w1.know(&[m1.address().await]);
    // First the leaves, each with the bridge; the trusted root is still the old one.
    let renew = |node: &TestNode, leaf: Leaf<'_>, root: &str| {
        let (certificate, key) = new.issue(&leaf);
        write(node.root.path(), root, &format!("{certificate}{bridge}"), &key);
    };
    renew(&w1, Leaf::worker("w1"), &old.pem);
    renew(&m1, Leaf::manager("m1"), &old.pem);
    tokio::time::sleep(Duration::from_millis(300)).await;
    w1.reports(&[("t1", Life::Active)]);
    eventually("by the bridge", || m1.sees("w1", "t1").is_some(), || w1.link.status()).await;
    // Then the root, on one node after the other, for a while both.
    renew(&m1, Leaf::manager("m1"), &format!("{}{}", new.pem, old.pem));
    renew(&w1, Leaf::worker("w1"), &new.pem);
    tokio::time::sleep(Duration::from_millis(300)).await;
    w1.reports(&[("t2", Life::Active)]);
    eventually("by the new root", || m1.sees("w1", "t2").is_some(), || w1.link.status()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_becomes_a_worker_closes_its_hub() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let address = m1.address().await;
    let w1 = TestNode::start(&ca, &Leaf::worker("w1"));
    w1.know(&[address]);
    eventually("seen", || w1.sees_service("web"), || w1.link.status()).await;
    ca.install(m1.root.path(), &Leaf::worker("m1"));
    eventually("closed", || m1.link.status().hub.is_none(), || m1.link.status()).await;
    let open = || w1.link.status().managers.values().any(|peer| peer.connected);
    eventually("the connection ends", || !open(), || w1.link.status()).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_certificate_does_not_replace_a_good_one() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let files = m1.files.borrow().clone().expect("files");
    std::fs::write(&files.certificate, "nonsense").expect("written");
    let trouble = || m1.link.status().identity_trouble;
    eventually("told", || trouble().is_some(), || m1.link.status()).await;
    let said = trouble().expect("trouble");
    assert!(said.contains("swarm-node.crt") && said.contains("BEGIN CERTIFICATE"), "{said}");
    let w1 = TestNode::start(&ca, &Leaf::worker("w1"));
    w1.know(&[m1.address().await]);
    eventually("served on", || w1.sees_service("web"), || w1.link.status()).await;
}

#[test]
fn a_key_that_autolock_encrypted_is_named_with_the_way_out() {
    let ca = Authority::new();
    let root = TempDir::new().expect("a directory");
    let (certificate, _) = ca.issue(&Leaf::manager("m1"));
    let key = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nkek-version: 7\n\nAAAA\n\
               -----END ENCRYPTED PRIVATE KEY-----\n";
    let error = write(root.path(), &ca.pem, &certificate, key).read().expect_err("locked");
    let said = error.to_string();
    assert!(said.contains("autolock") && said.contains("weir ca issue"), "{said}");
}

#[test]
fn a_key_of_another_certificate_is_named() {
    let ca = Authority::new();
    let root = TempDir::new().expect("a directory");
    let (certificate, _) = ca.issue(&Leaf::manager("m1"));
    let (_, key) = ca.issue(&Leaf::manager("m1"));
    let identity = write(root.path(), &ca.pem, &certificate, &key).read().expect("three files");
    assert!(crate::link::tls::Tls::new(&identity).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_clock_an_hour_ahead_is_taken() {
    let ca = Authority::new();
    let m1 = manager(&ca).await;
    let w1 = TestNode::start(&ca, &Leaf { hours: (1, 2160), ..Leaf::worker("w1") });
    w1.know(&[m1.address().await]);
    eventually("seen", || w1.sees_service("web"), || w1.link.status()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_authority_makes_a_cluster() {
    let directory = TempDir::new().expect("a directory");
    ca::init(directory.path(), None).expect("an authority");
    assert!(matches!(ca::init(directory.path(), None), Err(ca::Error::Exists(_))));
    let issue = |node: &str, role| -> Files {
        let addresses = vec!["10.0.0.1".parse().expect("an address")];
        let request = ca::Request { node: node.into(), role, addresses, days: 365 };
        ca::issue(directory.path(), &request).expect("a certificate")
    };
    let start = |node: &str, files| {
        TestNode::start_with(node, TempDir::new().expect("a directory"), files, "127.0.0.1:0")
    };
    let n1 = start("n1", issue("n1", Role::Manager));
    n1.declare.send_replace(declared(&["n1", "n2"], &["web"]));
    let n2 = start("n2", issue("n2", Role::Worker));
    n2.reports(&[("t2", Life::Active)]);
    n2.know(&[n1.address().await]);
    eventually("seen", || n1.sees("n2", "t2").is_some(), || n1.link.status()).await;
    eventually("seen", || n2.sees_service("web"), || n2.link.status()).await;
    let key = std::fs::metadata(directory.path().join("n2.key")).expect("a key");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
}
