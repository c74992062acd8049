//! A dockerd that is absent, forbidden, slow, cut off or out of its mind.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use serde_json::json;
use tokio::time::timeout;
use weir::source::SourceState;
use weir_mesh::{
    NodeName,
    cluster::{NodeId, Report, ReportedNode},
};

use crate::{
    fake::Answer,
    watched::{Watched, follow, tasks},
};

const ACTIVE: &str = "web.1.taskone 172.18.0.3 active";

async fn first_trouble(prepare: impl FnOnce(&mut crate::fake::Dockerd)) -> (String, String) {
    let mut watched = Watched::start(prepare);
    let state = watched.until(|state| state.trouble.is_some()).await;
    assert!(state.desired.is_none(), "half a mesh is none");
    let trouble = state.trouble.expect("waited for");
    (trouble.reason.to_owned(), trouble.summary())
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_named_and_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let (mut state, _peers) = follow(socket.clone());
    let said = state.wait_for(|state| state.trouble.is_some()).await.unwrap().clone();
    let expected = format!(
        "{}: no such file; start dockerd, mount its socket, or set source.docker.socket to where \
         it is",
        socket.display()
    );
    assert_eq!(said.trouble.unwrap().summary(), expected);
    let _dockerd = crate::fake::Dockerd::manager(&socket);
    let well = state.wait_for(|state| state.trouble.is_none() && state.desired.is_some());
    timeout(Duration::from_secs(20), well).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_forbidden_socket_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    // A file is no socket; as root nothing is forbidden by its mode.
    std::fs::write(&socket, "").unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).unwrap();
    let (mut state, _peers) = follow(socket);
    let said = state.wait_for(|state| state.trouble.is_some()).await.unwrap().clone();
    let reason = said.trouble.unwrap().reason;
    assert!(["refused", "forbidden"].contains(&reason), "{reason}");
}

#[tokio::test]
async fn a_slow_dockerd_is_named_and_not_waited_for_for_ever() {
    let (reason, summary) = first_trouble(|dockerd| dockerd.answer("/version", Answer::Hang)).await;
    assert_eq!(reason, "slow");
    assert!(summary.contains("/version was not answered within 10 s; look at"), "{summary}");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_named() {
    let (reason, summary) = first_trouble(|dockerd| dockerd.answer("/nodes", Answer::Cut)).await;
    assert_eq!(reason, "cut");
    assert!(summary.contains("/nodes: the answer was cut off"), "{summary}");
}

#[tokio::test]
async fn nonsense_in_place_of_json_or_http_is_named() {
    for nonsense in [Answer::Nonsense, Answer::Noise] {
        let (reason, summary) = first_trouble(|dockerd| dockerd.answer("/version", nonsense)).await;
        assert_eq!(reason, "invalid", "{summary}");
        assert!(summary.contains("is answered with something else"), "{summary}");
        assert!(summary.contains("see that source.docker.socket is the socket"), "{summary}");
    }
    let wrong_types = json!([{ "ID": 5 }]);
    let (reason, summary) = first_trouble(|dockerd| dockerd.say("/tasks", wrong_types)).await;
    assert_eq!(reason, "invalid", "{summary}");
    assert!(summary.contains("/tasks is answered with something else"), "{summary}");
}

#[tokio::test]
async fn a_dockerd_of_another_age_is_named() {
    let old = json!({ "ApiVersion": "1.39", "MinAPIVersion": "1.12" });
    let (reason, summary) = first_trouble(|dockerd| dockerd.say("/version", old)).await;
    assert_eq!(reason, "version");
    assert!(summary.contains("its API has the versions 1.12 to 1.39"), "{summary}");
}

#[tokio::test]
async fn a_host_without_swarm_is_told_what_it_could_do() {
    let info = json!({ "Name": "m1", "Swarm": { "LocalNodeState": "inactive" } });
    let (reason, summary) = first_trouble(|dockerd| dockerd.say("/info", info)).await;
    assert_eq!(reason, "no_swarm");
    assert!(summary.contains("dockerd is not part of a Swarm"), "{summary}");
}

#[tokio::test]
async fn a_restart_of_dockerd_changes_nothing() {
    let mut watched = Watched::with_a_task();
    watched.until_tasks(&[ACTIVE]).await;
    watched.dockerd.stop();
    let state = watched.until(|state| state.trouble.is_some()).await;
    assert_eq!(tasks(&state), [ACTIVE]);
    watched.dockerd.start();
    let state = watched.until(|state| state.trouble.is_none()).await;
    assert_eq!(tasks(&state), [ACTIVE]);
    // And it is followed again.
    watched.until(|_| true).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    watched.dockerd.event("die", "c1", crate::fake::labels("taskone", &json!({})));
    watched.until_tasks(&["web.1.taskone 172.18.0.3 down"]).await;
}

#[tokio::test]
async fn a_swarm_without_majority_leaves_what_was_declared_and_follows_the_containers() {
    let mut watched = Watched::with_a_task();
    watched.until_tasks(&[ACTIVE]).await;
    for question in ["/tasks", "/services", "/nodes"] {
        let answer = Answer::Status(503, "The swarm does not have a leader.");
        watched.dockerd.answer(question, answer);
    }
    watched.dockerd.stir("node");
    let state = watched.until(|state| state.trouble.is_some()).await;
    assert!(state.trouble.unwrap().summary().contains("does not have a leader"));
    let signal = json!({ "signal": "15" });
    watched.dockerd.event("kill", "c1", crate::fake::labels("taskone", &signal));
    watched.until_tasks(&["web.1.taskone 172.18.0.3 draining"]).await;
}

#[tokio::test]
async fn nothing_is_published_until_the_other_nodes_have_had_their_say() {
    // Nothing has run yet: the source's tasks come after this one.
    let mut watched = Watched::with_a_task();
    watched.peers.send_modify(|peers| peers.settled = false);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let state = watched.state.borrow().clone();
    assert!(state.desired.is_none() && state.readings == 0, "{state:?}");
    watched.peers.send_modify(|peers| peers.settled = true);
    watched.until_tasks(&[ACTIVE]).await;
}

#[tokio::test]
async fn nothing_has_ended_because_it_is_not_in_what_an_agent_before_this_one_was_told() {
    let mut watched = Watched::with_a_task();
    watched.until_tasks(&[ACTIVE]).await;
    let node = ReportedNode { hostname: "n2".to_owned(), address: [10, 0, 0, 2].into() };
    let report = Report { node, tasks: BTreeMap::new() };
    for dated in [true, false] {
        watched.peers.send_modify(|peers| {
            peers.dated = dated;
            peers.reports = [(NodeId::new("id2"), Arc::new(report.clone()))].into();
        });
        let whole = |state: &SourceState, name: &str| {
            let nodes = state.desired.as_ref().map(|desired| &desired.nodes);
            nodes.and_then(|nodes| Some(nodes.get(&NodeName::new(name))?.whole))
        };
        let state = watched.until(|state| whole(state, "n2") == Some(!dated)).await;
        assert_eq!(whole(&state, "m1"), Some(true), "this node knows its own tasks");
    }
}
