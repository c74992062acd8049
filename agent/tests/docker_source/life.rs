//! The life of a task as dockerd tells it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_mesh::{Balance, NodeName, ServiceName};

use crate::{
    fake::{container, gateway, info, labels, nodes, service, task},
    watched::{Watched, tasks},
};

const ACTIVE: &str = "web.1.taskone 172.18.0.3 active";
const DRAINING: &str = "web.1.taskone 172.18.0.3 draining";

fn attributes() -> Value {
    labels("taskone", &json!({}))
}

fn killed(signal: &str) -> Value {
    labels("taskone", &json!({ "signal": signal }))
}

#[tokio::test]
async fn a_manager_alone_makes_a_mesh_of_what_its_dockerd_says() {
    let mut watched = Watched::with_a_task();
    let state = watched.until_tasks(&[ACTIVE]).await;
    let desired = state.desired.unwrap();
    assert!(state.trouble.is_none() && state.notes.is_empty(), "{:?}", state.notes);
    let node = &desired.nodes[&NodeName::new("m1")];
    assert_eq!(node.address.to_string(), "10.0.0.1");
    let web = &desired.services[&ServiceName::new("web")];
    assert_eq!(web.ports[0].published.get(), 8080);
}

#[tokio::test]
async fn a_stop_is_published_within_milliseconds_though_dockerd_is_busy() {
    let mut watched = Watched::with_a_task();
    watched.until_tasks(&[ACTIVE]).await;
    // Whatever is asked from now on is not answered.
    for question in ["/tasks", "/containers/c1/json", "/networks"] {
        watched.dockerd.answer(question, crate::fake::Answer::Hang);
    }
    let killed_at = Instant::now();
    watched.dockerd.event("kill", "c1", killed("15"));
    watched.until_tasks(&[DRAINING]).await;
    let took = killed_at.elapsed();
    assert!(took < Duration::from_millis(50), "{took:?}");
}

#[tokio::test]
async fn a_signal_that_only_reloads_changes_nothing() {
    let mut watched = Watched::with_a_task();
    watched.until_tasks(&[ACTIVE]).await;
    watched.dockerd.event("kill", "c1", killed("1"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(tasks(&watched.state.borrow()), [ACTIVE]);
}

#[tokio::test]
async fn a_task_that_ends_is_down_at_once() {
    let mut watched = Watched::with_a_task();
    watched.until_tasks(&[ACTIVE]).await;
    watched.dockerd.event("die", "c1", attributes());
    watched.until_tasks(&["web.1.taskone 172.18.0.3 down"]).await;
    watched.dockerd.answer("/containers/c1/json", crate::fake::Answer::Status(404, "gone"));
    watched.dockerd.event("destroy", "c1", attributes());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let down = ["web.1.taskone 172.18.0.3 down"];
    assert_eq!(tasks(&watched.state.borrow()), down, "what it had is still to be reset");
}

#[tokio::test]
async fn a_new_task_is_served_when_it_is_healthy_and_not_when_it_is_not() {
    let mut watched = Watched::with_a_task();
    watched.until_tasks(&[ACTIVE]).await;
    let mut second = container("c2", "tasktwo");
    second["State"]["Health"] = json!({ "Status": "starting", "FailingStreak": 0 });
    watched.dockerd.say("/containers/c2/json", second);
    watched.dockerd.say("/networks/docker_gwbridge", gateway(&["c1", "c2"]));
    let attributes = labels("tasktwo", &json!({}));
    watched.dockerd.event("start", "c2", attributes.clone());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(tasks(&watched.state.borrow()), [ACTIVE]);
    watched.dockerd.event("health_status: healthy", "c2", attributes.clone());
    watched.until_tasks(&[ACTIVE, "web.1.tasktwo 172.18.0.4 active"]).await;
    watched.dockerd.event("health_status: unhealthy", "c2", attributes);
    watched.until_tasks(&[ACTIVE, "web.1.tasktwo 172.18.0.4 draining"]).await;
}

#[tokio::test]
async fn a_task_that_swarm_wants_to_end_drains_before_its_container_is_told() {
    let mut watched = Watched::with_a_task();
    watched.until_tasks(&[ACTIVE]).await;
    watched.dockerd.say("/tasks", json!([task("taskone", "shutdown", "running")]));
    watched.dockerd.stir("service");
    watched.until_tasks(&[DRAINING]).await;
}

#[tokio::test]
async fn a_change_of_a_service_is_seen_by_its_event_and_not_by_waiting() {
    let mut watched = Watched::with_a_task();
    watched.until_tasks(&[ACTIVE]).await;
    watched.dockerd.say("/services", json!([service(json!({ "weir.balance": "maglev" }))]));
    watched.dockerd.stir("service");
    let changed = |state: &weir::source::SourceState| {
        let web = ServiceName::new("web");
        state.desired.as_ref().is_some_and(|it| it.services[&web].balance == Balance::Maglev)
    };
    watched.until(changed).await;
}

#[tokio::test]
async fn a_label_that_is_not_taken_is_said_and_the_service_runs() {
    let mut watched = Watched::with_a_task();
    let wrong = service(json!({ "weir.balance": "fair", "weir.return": "direct", "mine": "1" }));
    watched.dockerd.say("/services", json!([wrong]));
    let state = watched.until(|state| !state.notes.is_empty()).await;
    let notes: Vec<String> = state.notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            "service web: weir.balance = fair: no such choice; write round-robin, random, maglev, \
             source or least-connections",
            "service web: weir.return = direct: not supported: replies go back by the node that the \
             client entered by; write symmetric, or leave it out",
        ]
    );
    watched.until_tasks(&[ACTIVE]).await;
}

#[tokio::test]
async fn host_mode_without_a_number_is_published_at_the_one_that_docker_bound() {
    let mut watched = Watched::start(|dockerd| {
        let mut host = service(json!({}));
        host["Endpoint"]["Ports"] = json!([
            { "Protocol": "tcp", "TargetPort": 80, "PublishMode": "host" },
        ]);
        let mut bound = container("c1", "taskone");
        bound["NetworkSettings"]["Networks"] =
            json!({ "bridge": { "NetworkID": "thebridge", "IPAddress": "172.17.0.2" } });
        bound["NetworkSettings"]["Ports"] = json!({
            "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "32768" },
                       { "HostIp": "::", "HostPort": "32768" }],
            "81/tcp": null,
        });
        dockerd.say("/nodes", nodes());
        dockerd.say("/services", json!([host]));
        dockerd.say("/tasks", json!([task("taskone", "running", "running")]));
        dockerd.say("/networks", json!([{ "Id": "thebridge", "Driver": "bridge" }]));
        dockerd.say("/containers/json", json!([{ "Id": "c1" }]));
        dockerd.say("/containers/c1/json", bound);
    });
    let state = watched.until_tasks(&["web.1.taskone 172.17.0.2 active"]).await;
    let desired = state.desired.unwrap();
    let own = &desired.services[&ServiceName::new("web@web.1.taskone")];
    assert_eq!(own.ports.len(), 1, "both families are one port");
    assert_eq!(own.ports[0].published.get(), 32768);
    assert_eq!(own.ports[0].mode, weir_mesh::PublishMode::Host);
}

#[tokio::test]
async fn a_worker_that_hears_no_manager_serves_what_gossip_and_its_containers_say() {
    let mut watched = Watched::with_a_task();
    watched.until_tasks(&[ACTIVE]).await;
    let mut worker = Watched::start(|dockerd| {
        dockerd.say("/info", info(false));
        dockerd.answer("/services", crate::fake::Answer::Status(503, "not a swarm manager"));
        dockerd.say("/containers/json", json!([{ "Id": "c1" }]));
        dockerd.say("/containers/c1/json", container("c1", "taskone"));
        dockerd.say("/networks/docker_gwbridge", gateway(&["c1"]));
        dockerd.say(
            "/networks/ingress",
            json!({
                "Name": "ingress", "Id": "ingressnet", "Ingress": true,
                "Services": {
                    "": { "VIP": "<nil>", "Ports": [], "Tasks": [] },
                    "web": {
                        "VIP": "10.11.0.2", "Ports": ["Target: 80, Publish: 8080"],
                        "LocalLBIndex": 256,
                        "Tasks": [{ "Name": "web.1.taskone", "EndpointID": "e",
                                    "EndpointIP": "10.11.0.3",
                                    "Info": { "Host IP": "10.0.0.1" } }],
                    },
                },
            }),
        );
    });
    let published = |state: &weir::source::SourceState| {
        let web = ServiceName::new("web");
        let desired = state.desired.as_ref();
        desired.and_then(|it| it.services.get(&web)).is_some_and(|web| web.ports.len() == 1)
    };
    let state = worker.until(published).await;
    assert_eq!(tasks(&state), [ACTIVE]);
    assert_eq!(worker.dockerd.asked("/services"), 0, "a worker is not asked for what it lacks");
}
