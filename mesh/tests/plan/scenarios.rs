//! Scenarios to read: what was there, what happens, and the maps or operations that follow.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use weir_mesh::{
    Ident, Limits, MapOp, MeshSnapshot, Moment, Network, NetworkId, NodeName, Problem, Protocol,
    PublishedPort, ServiceName, TaskName,
    ident::Tag,
    install::{Frontend, Via},
    plan::Resource,
};

use crate::world::{World, mesh, reach_all};

struct Scene(World);

impl Scene {
    fn new() -> Self {
        Self(World::new(Limits::default()))
    }

    /// Serves a mesh of which every local task is reached; answers the operations in brief.
    fn serve(&mut self, text: &str) -> String {
        let snapshot = mesh(text);
        self.0.local.reach = reach_all(&snapshot);
        self.serve_as_is(&snapshot)
    }

    fn serve_as_is(&mut self, snapshot: &MeshSnapshot) -> String {
        brief(&self.0.serve(snapshot).ops)
    }

    fn wait(&mut self, seconds: u64) {
        self.0.pass(Duration::from_secs(seconds));
    }

    /// The maps without what does not matter here: nodes, identities, tags, timeouts.
    fn maps(&self) -> String {
        let dump = self.0.kernel.dump();
        let lines = dump.lines().filter(|line| !line.starts_with("NODE"));
        let words = |line: &str| -> String {
            let noise = ["ident=", "timeouts=default", "tag=", "ipv6=-"];
            let words =
                line.split(' ').filter(|it| !noise.iter().any(|noise| it.starts_with(noise)));
            words.collect::<Vec<_>>().join(" ") + "\n"
        };
        lines.map(words).collect()
    }
}

/// Operations without their contents.
fn brief(ops: &[MapOp]) -> String {
    let name = |op: &MapOp| match op {
        MapOp::SetNode(at, _) => format!("set-node {}", at.0),
        MapOp::RemoveNode(at) => format!("remove-node {}", at.0),
        MapOp::SetBackend(at, it) => format!("backend {} {}", at.0, it.state.as_str()),
        MapOp::RemoveBackend(at) => format!("remove-backend {}", at.0),
        MapOp::WriteRegion { offset, cells } => {
            let cells: Vec<String> = cells.iter().map(|cell| cell.0.to_string()).collect();
            format!("write {offset}: {}", cells.join(" "))
        }
        MapOp::FreeRegion { offset } => format!("free {offset}"),
        MapOp::WriteList(list, _) => format!("list {}", list.0),
        MapOp::RemoveList(list, _) => format!("remove-list {}", list.0),
        MapOp::SetRecord(slot, _) => format!("record {}", slot.0),
        MapOp::RemoveRecord(slot) => format!("remove-record {}", slot.0),
        MapOp::Publish(frontend, slot) => format!("{frontend} -> {}", slot.0),
        MapOp::Withdraw(frontend) => format!("withdraw {frontend}"),
        MapOp::SetRouted(at, frontend) => format!("{at} -> {frontend}"),
        MapOp::RemoveRouted(at) => format!("remove {at}"),
        MapOp::SetTag(..) => "tag".to_owned(),
        MapOp::RemoveTag(..) => "untag".to_owned(),
    };
    ops.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn tcp(port: u16) -> Frontend {
    Frontend { protocol: Protocol::Tcp, port: PublishedPort::new(port).unwrap() }
}

#[test]
fn a_service_is_installed_from_the_nodes_up_to_the_port() {
    let mut scene = Scene::new();
    let ops = scene.serve("web 8080:80 | 1@n1 2@n2 3@n3 weight=2");
    assert_eq!(
        ops,
        "set-node 1, set-node 2, set-node 3, backend 1 active, backend 2 active, backend 3 active, \
         write 0: 3 1 2 3, write 4: 2, record 1, tag, tcp/8080 -> 1"
    );
    assert_eq!(
        scene.maps(),
        "\
PORT tcp/8080 -> SLOT 1
RECORD 1 service=1 balance=round-robin mode=ingress target=80 pick4=0+4 pick6=- local4=4+1 local6=-
REGION 0+4 3 1 2 3
REGION 4+1 2
BACKEND 1 generation=1 active service=1 via=tunnel:1 ipv4=172.18.119.2
BACKEND 2 generation=1 active service=1 via=neighbour:9 ipv4=172.18.119.1
BACKEND 3 generation=1 active service=1 via=tunnel:2 ipv4=172.18.119.3
TAG 5871970 service=1 -> BACKEND 2
"
    );
}

#[test]
fn a_task_that_vanishes_drains_then_is_gone_then_is_removed() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 drain=10s | 1@n1 2@n2");
    let left = "web 80:80 drain=10s | 1@n1";
    // New flows stop with the flip, and the drain begins in the same plan.
    assert_eq!(
        scene.serve(left),
        "record 2, tcp/80 -> 2, backend 1 draining, remove-record 1, free 0"
    );
    scene.wait(9);
    assert_eq!(scene.serve(left), "");
    scene.wait(1);
    assert_eq!(scene.serve(left), "backend 1 gone");
    scene.wait(2);
    assert_eq!(scene.serve(left), "remove-backend 1");
}

#[test]
fn a_task_that_this_node_no_longer_has_is_gone_at_once_when_all_that_lives_here_is_known() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 drain=10s | 1@n1 3@n2");
    let left = "web 80:80 drain=10s | 3@n2";
    let ops = scene.serve(left);
    assert!(ops.contains("draining") && !ops.contains("gone"), "{ops}");
    scene.wait(1);
    let ops = scene.serve(&format!("whole n1\n {left}"));
    assert!(ops.starts_with("backend") && ops.ends_with("gone"), "{ops}");
}

#[test]
fn a_task_that_ended_on_a_node_which_says_so_drains_here_since_its_node_ends_its_flows() {
    for left in ["1@n1 3@n2 down", "1@n1"] {
        let mut scene = Scene::new();
        scene.serve("whole n1 n2\n web 80:80 drain=10s | 1@n1 3@n2");
        let left = format!("web 80:80 drain=10s | {left}");
        let ops = scene.serve(&format!("whole n1 n2\n {left}"));
        assert!(ops.contains("draining") && !ops.contains("gone"), "{left}: {ops}");
        scene.wait(10);
        let ops = scene.serve(&format!("whole n1 n2\n {left}"));
        assert!(ops.contains("gone"), "{left}: {ops}");
    }
    let mut scene = Scene::new();
    scene.serve("whole n1 n2\n web 80:80 drain=10s | 1@n1 3@n2");
    scene.serve("whole n1 n2\n web 80:80 drain=10s | 1@n1 3@n2 down");
    let ops = scene.serve("whole n1\n web 80:80 drain=10s | 1@n1 3@n2 down");
    assert!(ops.contains("gone"), "a node that is silent ends nothing: {ops}");
}

#[test]
fn connections_by_a_task_of_another_node_are_left_to_that_node_as_long_as_they_live() {
    let begin = |left: &str| {
        let mut scene = Scene::new();
        scene.serve("whole n1 n2\n web 80:80 drain=10s | 1@n1 3@n2");
        scene.serve(left);
        scene
    };
    let left = "whole n1 n2\n web 80:80 drain=10s | 1@n1";
    let mut scene = begin(left);
    for _ in 0..3 {
        scene.wait(10);
        scene.0.look_at_flows(true);
        assert_eq!(scene.serve(left), "");
    }
    scene.0.look_at_flows(false);
    scene.wait(10);
    assert!(scene.serve(left).contains("gone"), "none lives any more");

    for (without, why) in [
        ("web 80:80 drain=10s | 1@n1", "a node that is not heard ends nothing"),
        ("whole n1 n2\n web drain=10s |", "nobody leads to them"),
        ("whole n1 n2", "nobody leads to them"),
    ] {
        let mut scene = begin(left);
        scene.wait(10);
        scene.0.look_at_flows(true);
        let ops = scene.serve(without);
        assert!(ops.contains("gone"), "{without}: {why}: {ops}");
    }
    let own = "whole n1 n2\n web 80:80 drain=10s | 3@n2";
    let mut scene = begin(own);
    scene.0.look_at_flows(true);
    assert!(scene.0.kernel.dump().contains(" gone "), "those of a task of this node end with it");
}

#[test]
fn connections_begun_after_they_were_last_looked_at_may_live() {
    let mut scene = Scene::new();
    let left = "whole n1 n2\n web 80:80 drain=10s | 1@n1";
    scene.serve("whole n1 n2\n web 80:80 drain=10s | 1@n1 3@n2");
    scene.wait(1);
    scene.serve(left);
    scene.wait(10);
    assert_eq!(scene.serve(left), "", "they were looked at before it drained");
    scene.0.look_at_flows(false);
    scene.wait(10);
    assert!(scene.serve(left).contains("gone"));
}

#[test]
fn the_tasks_of_a_service_that_is_gone_end_with_it_when_all_that_lives_here_is_known() {
    let mut scene = Scene::new();
    scene.serve("whole n1\n web 80:80 drain=10s | 1@n1 2@n2");
    // While its tasks are listed their flows go on, although nothing is published.
    let listed = "whole n1\n web drain=10s | 1@n1 draining 2@n2";
    let closed = scene.serve(listed);
    assert!(closed.contains("backend 1 draining, backend 2 draining"), "{closed}");
    scene.wait(1);
    let ops = scene.serve("whole n1");
    assert!(ops.starts_with("backend") && ops.ends_with("gone"), "{ops}");
}

#[test]
fn a_task_that_was_renamed_with_its_node_has_not_ended() {
    let mut scene = Scene::new();
    scene.serve("whole n1\n web 80:80 drain=10s | 1@n1");
    let renamed = scene.serve("whole n1\n web 80:80 drain=10s | 9@n1 addr=172.18.119.1");
    assert!(renamed.contains("backend 1 draining"), "{renamed}");
}

#[test]
fn a_list_of_clients_is_written_before_and_removed_after_the_record_that_names_it() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 | 1@n2");
    assert_eq!(
        scene.serve("web 80:80 allow=10.0.0.0/8 deny=10.9.0.0/16 | 1@n2"),
        "list 1, record 2, tcp/80 -> 2, remove-record 1"
    );
    assert!(scene.maps().contains("LIST 1 -0.0.0.0/0 +10.0.0.0/8 -10.9.0.0/16 -::/0"));
    assert_eq!(
        scene.serve("web 80:80 81:80 allow=10.0.0.0/8 deny=10.9.0.0/16 | 1@n2"),
        "record 3, tcp/81 -> 3",
        "ports of a service share a list"
    );
    let other = scene.serve("web 80:80 81:80 deny=10.9.0.0/16 | 1@n2");
    assert!(other.starts_with("list 2, ") && other.ends_with("remove-list 1"), "{other}");
    let open = scene.serve("web 80:80 81:80 | 1@n2");
    assert!(open.ends_with("remove-list 2"), "{open}");
}

#[test]
fn a_list_that_does_not_fit_leaves_its_service_as_it_was_and_is_named() {
    let mut world = World::new(Limits { ranges: 3, ..Limits::default() });
    world.serve(&mesh("web 80:80 deny=10.0.0.0/8 | 1@n2"));
    let before = world.kernel.dump();
    let plan = world.serve(&mesh("web 80:80 deny=10.0.0.0/8,11.0.0.0/8 | 1@n2"));
    assert_eq!(world.kernel.dump(), before);
    let text = plan.problems[0].to_string();
    assert_eq!(
        text,
        "service web is not up to date: all 3 address ranges of the kernel maps are taken"
    );
}

#[test]
fn a_service_that_prefers_its_nodes_own_tasks_uses_others_only_without_any() {
    let mut scene = Scene::new();
    let ops = scene.serve("web 80:80 prefer-local | 1@n1 2@n2");
    assert!(ops.contains("write 0: 2,") && !ops.contains("write 1"), "{ops}");
    let ops = scene.serve("web 80:80 prefer-local | 1@n1 draining 2@n2");
    assert!(ops.contains("write 1: 1,"), "{ops}");
    let ops = scene.serve("web 80:80 local | 1@n1 draining 2@n2");
    assert!(!ops.contains("write"), "others are refused: {ops}");
}

#[test]
fn a_plan_says_when_it_must_be_made_again() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 drain=10s | 1@n2");
    let left = mesh("web 80:80 drain=10s |");
    let start = scene.0.now;
    let mut wakes = Vec::new();
    while let Some(wake) = scene.0.serve(&left).wake {
        wakes.push((wake.0 - start.0).as_secs());
        scene.0.now = wake;
    }
    assert_eq!(wakes, [10, 12]);
}

#[test]
fn a_task_that_comes_back_is_the_same_backend() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 drain=10s | 1@n2 2@n2");
    scene.serve("web 80:80 drain=10s | 1@n2");
    scene.wait(5);
    assert_eq!(
        scene.serve("web 80:80 drain=10s | 1@n2 2@n2"),
        "backend 2 active, write 0: 1 2, record 1, tcp/80 -> 1, remove-record 2, free 2"
    );
    scene.wait(100);
    assert_eq!(scene.serve("web 80:80 drain=10s | 1@n2 2@n2"), "");
}

#[test]
fn a_task_that_drains_by_order_drains_as_long_as_the_order_stands() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 drain=10s | 1@n2 2@n2");
    assert_eq!(
        scene.serve("web 80:80 drain=10s | 1@n2 2@n2 draining"),
        "write 2: 1, record 2, tcp/80 -> 2, backend 2 draining, remove-record 1, free 0"
    );
    scene.wait(1000);
    assert_eq!(scene.serve("web 80:80 drain=10s | 1@n2 2@n2 draining"), "");
}

#[test]
fn a_task_that_is_down_is_gone_at_once_and_keeps_its_place_for_a_while() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 drain=10s | 1@n2 2@n2");
    let down = "web 80:80 drain=10s | 1@n2 2@n2 down";
    assert_eq!(
        scene.serve(down),
        "write 2: 1, record 2, tcp/80 -> 2, backend 2 gone, remove-record 1, free 0"
    );
    scene.wait(5);
    assert_eq!(
        scene.serve("web 80:80 drain=10s | 1@n2 2@n2"),
        "backend 2 active, write 0: 1 2, record 1, tcp/80 -> 1, remove-record 2, free 2"
    );
    scene.serve(down);
    scene.wait(10);
    assert_eq!(scene.serve(down), "remove-backend 2");
}

#[test]
fn without_drain_time_a_task_is_gone_at_once() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 drain=0s | 1@n2");
    assert_eq!(
        scene.serve("web 80:80 drain=0s |"),
        "record 2, tcp/80 -> 2, backend 1 gone, remove-record 1, free 0"
    );
}

#[test]
fn a_task_with_a_new_address_is_a_new_backend() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 drain=10s | 1@n1");
    let ops = scene.serve("web 80:80 drain=10s | 1@n1 addr=172.18.0.9");
    assert_eq!(
        ops,
        "backend 2 active, write 1: 2, record 2, tag, tcp/80 -> 2, backend 1 draining, remove-record 1, free 0"
    );
    scene.wait(12);
    scene.serve("web 80:80 drain=10s | 1@n1 addr=172.18.0.9");
    assert_eq!(scene.maps(), "\
PORT tcp/80 -> SLOT 2
RECORD 2 service=1 balance=round-robin mode=ingress target=80 pick4=1+1 pick6=- local4=1+1 local6=- timeouts=syn:20s,established:8000s,fin:60s,reset:10s,udp:60s,udp-both:180s,drain:10s
REGION 1+1 2
BACKEND 1 generation=1 gone service=1 via=neighbour:9 ipv4=172.18.119.1
BACKEND 2 generation=1 active service=1 via=neighbour:9 ipv4=172.18.0.9
TAG 5871970 service=1 -> BACKEND 2
");
}

#[test]
fn a_port_that_passes_to_another_service_is_never_withdrawn() {
    let mut scene = Scene::new();
    scene.serve("blue 80:80 drain=10s | 1@n2\n green 81:80 | 1@n3");
    let after = "blue 82:80 drain=10s | 1@n2\n green 80:80 81:80 | 1@n3";
    assert_eq!(scene.serve(after), "record 3, record 4, tcp/82 -> 3, tcp/80 -> 4, remove-record 1");
    assert_eq!(scene.maps(), "\
PORT tcp/80 -> SLOT 4
PORT tcp/81 -> SLOT 2
PORT tcp/82 -> SLOT 3
RECORD 2 service=2 balance=round-robin mode=ingress target=80 pick4=1+1 pick6=- local4=- local6=-
RECORD 3 service=1 balance=round-robin mode=ingress target=80 pick4=0+1 pick6=- local4=- local6=- timeouts=syn:20s,established:8000s,fin:60s,reset:10s,udp:60s,udp-both:180s,drain:10s
RECORD 4 service=2 balance=round-robin mode=ingress target=80 pick4=1+1 pick6=- local4=- local6=-
REGION 0+1 1
REGION 1+1 2
BACKEND 1 generation=1 active service=1 via=tunnel:1 ipv4=172.18.98.1
BACKEND 2 generation=1 active service=2 via=tunnel:2 ipv4=172.18.103.1
");
}

#[test]
fn a_service_that_goes_first_refuses_new_flows_and_leaves_nothing_behind() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 drain=10s | 1@n1 2@n2");
    assert_eq!(
        scene.serve(""),
        "record 2, tcp/80 -> 2, backend 1 draining, backend 2 draining, remove-record 1, free 0, free 2"
    );
    scene.wait(10);
    assert_eq!(scene.serve(""), "backend 1 gone, backend 2 gone, withdraw tcp/80, remove-record 2");
    scene.wait(2);
    assert_eq!(scene.serve(""), "untag, remove-backend 1, remove-backend 2");
    assert_eq!(scene.maps(), "");
}

#[test]
fn a_host_port_is_served_only_where_a_task_runs_and_only_by_it() {
    let mut scene = Scene::new();
    assert_eq!(scene.serve("web host 80:80 | 2@n2"), "set-node 1, set-node 2, set-node 3");
    scene.serve("web host 80:80 drain=5s | 1@n1 2@n2");
    assert_eq!(scene.maps(), "\
PORT tcp/80 -> SLOT 1
RECORD 1 service=1 balance=round-robin mode=host target=80 pick4=0+1 pick6=- local4=0+1 local6=- timeouts=syn:20s,established:8000s,fin:60s,reset:10s,udp:60s,udp-both:180s,drain:5s
REGION 0+1 1
BACKEND 1 generation=1 active service=1 via=neighbour:9 ipv4=172.18.119.1
TAG 5871970 service=1 -> BACKEND 1
");
    // The other node's task took over: the port closes, and is withdrawn when it has drained.
    assert_eq!(
        scene.serve("web host 80:80 drain=5s | 2@n2"),
        "record 2, tcp/80 -> 2, backend 1 draining, remove-record 1, free 0"
    );
    scene.wait(5);
    assert_eq!(
        scene.serve("web host 80:80 drain=5s | 2@n2"),
        "backend 1 gone, withdraw tcp/80, remove-record 2"
    );
}

#[test]
fn a_port_that_a_process_listens_on_is_served_to_other_nodes_only() {
    let mut scene = Scene::new();
    let snapshot = mesh("web 80:80 81:80 | 1@n2");
    scene.0.local.withheld = [tcp(80)].into();
    let plan = scene.0.serve(&snapshot);
    let problem = "service web is not served at tcp/80 here: a process on this node listens there";
    assert_eq!(plan.problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [problem]);
    let served = |scene: &Scene| [80, 81].map(|port| scene.0.kernel.serves(tcp(port)));
    assert_eq!(served(&scene), [false, true]);
    assert!(scene.0.kernel.ports.contains_key(&tcp(80)), "other nodes forward to its tasks");
    // The process has gone, another came to a port that is served: that is not given up.
    scene.0.local.withheld = [tcp(81)].into();
    let plan = scene.0.serve(&snapshot);
    assert_eq!(
        (brief(&plan.ops).as_str(), plan.problems),
        ("record 3, tcp/80 -> 3, remove-record 1", vec![])
    );
    assert_eq!(served(&scene), [true, true]);
}

#[test]
fn a_port_that_is_ceded_is_left_at_once_and_taken_back_at_once() {
    let mut scene = Scene::new();
    let snapshot = mesh("web 80:80 81:80 | 2@n2");
    scene.0.serve(&snapshot);
    let served = |scene: &Scene| [80, 81].map(|port| scene.0.kernel.serves(tcp(port)));
    assert_eq!(served(&scene), [true, true]);
    scene.0.local.ceded = [tcp(80), tcp(81)].into();
    let plan = scene.0.serve(&snapshot);
    assert_eq!(plan.problems, []);
    assert_eq!(served(&scene), [false, false]);
    assert!(scene.0.kernel.ports.contains_key(&tcp(80)), "other nodes forward to its tasks");
    scene.0.local.ceded.clear();
    scene.0.serve(&snapshot);
    assert_eq!(served(&scene), [true, true]);
}

#[test]
fn a_local_task_that_no_interface_leads_to_gets_no_flows() {
    let mut scene = Scene::new();
    let snapshot = mesh("web 80:80 | 1@n1 2@n2");
    let plan = scene.0.serve(&snapshot);
    let (service, task) = (ServiceName::new("web"), TaskName::new("1"));
    assert_eq!(plan.problems, [Problem::Unreachable { service, task }]);
    assert_eq!(
        scene.maps(),
        "\
PORT tcp/80 -> SLOT 1
RECORD 1 service=1 balance=round-robin mode=ingress target=80 pick4=0+1 pick6=- local4=- local6=-
REGION 0+1 1
BACKEND 1 generation=1 active service=1 via=tunnel:1 ipv4=172.18.119.2
BACKEND 2 generation=1 active service=1 via=unreachable ipv4=172.18.119.1
TAG 5871970 service=1 -> BACKEND 2
"
    );
    // Its veth comes up.
    let peer = Via::Peer { ifindex: 4, mac: [2, 0, 0, 0, 0, 1] };
    scene.0.local.reach = [("172.18.119.1".parse().unwrap(), peer)].into();
    assert_eq!(
        scene.serve_as_is(&snapshot),
        "backend 2 active, write 1: 1 2, write 3: 2, record 2, tcp/80 -> 2, remove-record 1, free 0"
    );
}

#[test]
fn a_service_that_does_not_fit_stays_as_it_was_but_drains() {
    let mut scene = Scene(World::new(Limits { cells: 6, ..Limits::default() }));
    scene.serve("api 81:80 | 1@n2 2@n2\n web 80:80 | 1@n2 2@n2");
    let next = mesh("api 81:80 | 1@n2 3@n2\n web 80:80 | 1@n2 2@n2 draining 3@n2");
    let plan = scene.0.serve(&next);
    let problem =
        Problem::Exhausted { service: "web".to_owned(), resource: Resource::Cells, limit: 6 };
    assert_eq!(plan.problems, [problem]);
    assert_eq!(
        brief(&plan.ops),
        "backend 5 active, write 4: 1 5, record 3, tcp/81 -> 3, backend 2 draining, backend 4 draining, remove-record 1, free 0"
    );
    // The old region of api has rested when the plan said so, and there is room.
    assert_eq!(plan.wake, Some(Moment(scene.0.now.0 + Duration::from_secs(2))));
    scene.wait(2);
    assert_eq!(
        scene.serve_as_is(&next),
        "backend 6 active, write 0: 3 6, record 1, tcp/80 -> 1, remove-record 2, free 2"
    );
}

#[test]
fn the_lower_identity_has_a_tag_that_two_tasks_share() {
    let (low, high) = tasks_with_one_tag();
    let (low, high) = (format!("{low}@n1 addr=10.0.0.1"), format!("{high}@n1 addr=10.0.0.2"));
    let owner = |scene: &Scene| {
        let tags: Vec<_> = scene.0.kernel.tags.values().collect();
        assert_eq!(tags.len(), 1);
        scene.0.kernel.backends[tags[0]].ipv4.unwrap().octets()[3]
    };
    let mut scene = Scene::new();
    let (only_high, both) =
        (format!("web 80:80 drain=5s | {high}"), format!("web 80:80 | {low} {high}"));
    scene.serve(&only_high);
    assert_eq!(owner(&scene), 2);
    scene.serve(&both);
    assert_eq!(owner(&scene), 1);
    // While it drains it keeps the tag: its flows still come by it.
    scene.serve(&only_high);
    assert_eq!(owner(&scene), 1);
    for wait in [5, 2] {
        scene.wait(wait);
        scene.serve(&only_high);
    }
    assert_eq!(owner(&scene), 2);
}

/// Names of two tasks of web on n1 that share a tag, the lower identity first.
fn tasks_with_one_tag() -> (u32, u32) {
    let (web, here) = (ServiceName::new("web"), NodeName::new("n1"));
    let mut seen = BTreeMap::new();
    for number in 0.. {
        let ident = Ident::of_task(&web, &TaskName::new(number.to_string()), &here);
        if let Some((other, with)) = seen.insert(Tag::of(ident), (number, ident)) {
            return if with < ident { (other, number) } else { (number, other) };
        }
    }
    unreachable!("there are more numbers than tags")
}

#[test]
fn what_a_broken_plan_left_is_cleared_away() {
    let mut scene = Scene::new();
    let snapshot = mesh("web 80:80 drain=10s | 1@n2 2@n2");
    let plan = scene.0.planner.plan(&snapshot, &scene.0.local, scene.0.now);
    let published = plan.ops.iter().position(|op| matches!(op, MapOp::Publish(..))).unwrap();
    scene.0.apply(&plan.ops[..published]);
    scene.0.restart();
    assert_eq!(
        scene.serve_as_is(&snapshot),
        "write 2: 1 2, record 2, tcp/80 -> 2, remove-record 1, free 0"
    );
    assert_eq!(scene.serve_as_is(&snapshot), "");
}

#[test]
fn both_families_have_regions_of_their_own_where_they_differ() {
    let mut scene = Scene::new();
    let mut snapshot = mesh("web 80:80 | 1@n2 2@n2");
    let tasks =
        &mut Arc::make_mut(snapshot.services.get_mut(&ServiceName::new("web")).unwrap()).tasks;
    tasks[0].ipv6 = Some("fd00::1".parse().unwrap());
    scene.serve_as_is(&snapshot);
    assert_eq!(
        scene.maps(),
        "\
PORT tcp/80 -> SLOT 1
RECORD 1 service=1 balance=round-robin mode=ingress target=80 pick4=0+2 pick6=2+1 local4=- local6=-
REGION 0+2 1 2
REGION 2+1 1
BACKEND 1 generation=1 active service=1 via=tunnel:1 ipv4=172.18.119.1 ipv6=fd00::1
BACKEND 2 generation=1 active service=1 via=tunnel:1 ipv4=172.18.119.2
"
    );
}

#[test]
fn a_maglev_table_is_shared_by_the_ports_of_a_service() {
    let mut scene = Scene::new();
    scene.serve("web 80:80 443:443 maglev | 1@n2 2@n3");
    assert_eq!(
        scene.maps(),
        "\
PORT tcp/80 -> SLOT 1
PORT tcp/443 -> SLOT 2
RECORD 1 service=1 balance=maglev mode=ingress target=80 pick4=0+16381 pick6=- local4=- local6=-
RECORD 2 service=1 balance=maglev mode=ingress target=443 pick4=0+16381 pick6=- local4=- local6=-
REGION 0+16381 1*8191 2*8190
BACKEND 1 generation=1 active service=1 via=tunnel:1 ipv4=172.18.119.1
BACKEND 2 generation=1 active service=1 via=tunnel:2 ipv4=172.18.119.2
"
    );
}

#[test]
fn a_routed_virtual_address_stands_for_a_port_from_when_it_is_published_until_it_is_withdrawn() {
    let mut scene = Scene::new();
    let blue = NetworkId::new("blue");
    let routed = |text: &str, last: u8| {
        let mut snapshot = mesh(text);
        let network = Network { routed: last > 0, ..Network::new("blue") };
        snapshot.networks.insert(blue.clone(), network);
        for service in snapshot.services.values_mut() {
            let vips = [(blue.clone(), vec![IpAddr::from([10, 0, 9, last])])];
            Arc::make_mut(service).vips = vips.into();
        }
        snapshot
    };
    let mut serve = |snapshot: &MeshSnapshot| {
        scene.wait(1);
        scene.0.local.reach = reach_all(snapshot);
        scene.serve_as_is(snapshot)
    };
    let web = "web 8081:80 8080:80 drain=10s | 1@n1";
    let ops = serve(&routed(web, 2));
    assert!(ops.ends_with("tcp/8080 -> 2, 10.0.9.2 tcp/80 -> tcp/8080"), "{ops}");
    let moved = serve(&routed(web, 3));
    assert_eq!(moved, "remove 10.0.9.2 tcp/80, 10.0.9.3 tcp/80 -> tcp/8080");
    // Its lower port goes: the other one stands in before that refuses.
    let ops = serve(&routed("web 8081:80 drain=10s | 1@n1", 3));
    assert_eq!(ops, "record 3, tcp/8080 -> 3, 10.0.9.3 tcp/80 -> tcp/8081, remove-record 2");
    // The service goes: flows that it has go on while it drains.
    assert!(!serve(&routed("", 3)).contains("10.0.9.3"));
    (0..40).for_each(|_| drop(serve(&routed("", 3))));
    assert_eq!(scene.maps(), "");
    assert!(scene.0.kernel.routed.is_empty());
}

#[test]
fn a_routed_virtual_address_never_leads_to_the_service_that_its_port_went_to() {
    let mut scene = Scene::new();
    let with = |text: &str, owner: &str| {
        let mut snapshot = mesh(text);
        let blue = NetworkId::new("blue");
        let network = Network { routed: true, ..Network::new("blue") };
        snapshot.networks.insert(blue.clone(), network);
        let service = snapshot.services.get_mut(&ServiceName::new(owner)).unwrap();
        let vips = [(blue, vec![IpAddr::from([10, 0, 9, 2])])];
        Arc::make_mut(service).vips = vips.into();
        snapshot
    };
    let before = with("web 8080:80 | 1@n1\n zoo 9090:80 | 1@n2", "web");
    scene.0.local.reach = reach_all(&before);
    scene.serve_as_is(&before);
    let after = with("api 8080:80 | 1@n1\n web 9000:80 | 1@n1", "web");
    scene.0.local.reach = reach_all(&after);
    let ops = scene.serve_as_is(&after);
    let at = |part: &str| ops.find(part).unwrap_or_else(|| panic!("{part} is not in {ops}"));
    assert!(at("remove 10.0.9.2 tcp/80") < at("tcp/8080 -> "), "{ops}");
    assert!(at("tcp/9000 -> ") < at("10.0.9.2 tcp/80 -> tcp/9000"), "{ops}");
}
