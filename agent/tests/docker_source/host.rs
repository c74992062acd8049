//! What a node is called, and where it is reached, when nobody has set it.

use std::net::IpAddr;

use weir::host::Host;

use crate::fake::{Answer, Dockerd};

fn host() -> Host {
    let address = IpAddr::from([192, 0, 2, 7]);
    Host { name: Some("bare".to_owned()), address: Some(address), ..Host::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_what_its_swarm_says() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let _dockerd = Dockerd::manager(&socket);
    let mut host = host();
    host.ask_docker(&socket);
    assert_eq!(host.name.as_deref(), Some("m1"));
    assert_eq!(host.address, Some([10, 0, 0, 1].into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_what_its_host_says_while_dockerd_does_not_answer() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let dockerd = Dockerd::manager(&socket);
    dockerd.answer("/info", Answer::Hang);
    let mut host = host();
    host.ask_docker(&socket);
    assert_eq!(host.name.as_deref(), Some("bare"));
}
