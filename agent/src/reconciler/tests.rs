//! The reconciler against maps in memory that are as strict as the kernel's.

use std::net::TcpListener;

use prometheus_client::metrics::histogram::Histogram;
use weir_mesh::{Generation, Ident, NetworkId, ServiceName, SpaceAt, TaskName, vip::SpaceCookie};

use super::{
    fake::{Fake, PEER, frontend, mesh},
    *,
};

/// A reconciler of node n1 whose clock is the test's.
struct Bench {
    maps: Fake,
    reconciler: Reconciler<Fake>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::over(Fake::default(), OnPortConflict::ListenerWins)
    }

    fn over(maps: Fake, on_port_conflict: OnPortConflict) -> Self {
        Self::with(maps, on_port_conflict, false)
    }

    fn with(maps: Fake, on_port_conflict: OnPortConflict, sees_containers: bool) -> Self {
        let now = Instant::now();
        let intervals = Intervals {
            host: Duration::from_secs(2),
            audit: Duration::from_secs(10),
            flows: Duration::from_secs(10),
            start_wait: Duration::from_secs(30),
        };
        let settings = Settings {
            node: NodeName::new("n1"),
            intervals,
            on_port_conflict,
            sees_containers,
            listeners: ListenerTable::new(Vec::new()),
            programming: Histogram::new([1.0]),
        };
        maps.0.borrow_mut().reach.insert("172.18.0.3".parse().unwrap(), PEER);
        let reconciler = Reconciler::new(maps.clone(), settings, now).unwrap();
        Self { maps, reconciler, now }
    }

    /// Hands over a snapshot and does what is due.
    fn take(&mut self, snapshot: MeshSnapshot) {
        let view = View { snapshot: Some(Arc::new(snapshot)), stale: false, noticed: self.now };
        self.reconciler.take(view, self.now);
        self.reconciler.work(self.now);
    }

    fn pass_time(&mut self, duration: Duration) {
        self.now += duration;
        self.reconciler.work(self.now);
    }

    fn report(&self) -> &ReconcileReport {
        self.reconciler.report()
    }

    fn dump(&self) -> String {
        self.maps.0.borrow().installed.dump()
    }
}

#[test]
fn only_tasks_of_this_node_are_asked_for_what_they_refused_and_known_to_be_held() {
    let mut bench = Bench::new();
    assert!(bench.reconciler.answers().unwrap().is_empty() && bench.reconciler.held().is_empty());
    bench.take(mesh(1, &[("web", 8080)]));
    let task = TaskName::new("web.3");
    let own = Ident::of_task(&ServiceName::new("web"), &task, &NodeName::new("n1"));
    let answers = bench.reconciler.answers().unwrap();
    assert_eq!(answers.iter().map(|it| it.task).collect::<Vec<_>>(), [own]);
    assert_eq!((answers[0].answers.accepted, answers[0].answers.refused), (1, 2));
    assert_eq!(bench.reconciler.held(), [(own, BackendState::Active)].into());
    bench.take(mesh(2, &[("web", 8080), ("api", 8081)]));
    assert_eq!(bench.reconciler.answers().unwrap().len(), 2, "a task came");
}

#[test]
fn a_node_is_who_the_snapshot_says_it_is() {
    let mut bench = Bench::new();
    bench.take(mesh(1, &[("web", 8080)]));
    let called = MeshSnapshot { here: Some(NodeName::new("n2")), ..mesh(2, &[("web", 8080)]) };
    bench.maps.0.borrow_mut().reach.insert("172.18.0.4".parse().unwrap(), PEER);
    bench.take(called);
    let task = TaskName::new("web.4");
    let own = Ident::of_task(&ServiceName::new("web"), &task, &NodeName::new("n2"));
    let answers = bench.reconciler.answers().unwrap();
    assert!(answers.iter().any(|it| it.task == own), "what it was before may still drain");
    assert!(bench.report().problems.is_empty(), "{:?}", bench.report().problems);
    let lost = MeshSnapshot { here: Some(NodeName::new("n9")), ..mesh(3, &[("web", 8080)]) };
    bench.take(lost);
    assert!(bench.report().problems[0].starts_with("this node, n9, is not in the mesh"));
}

#[test]
fn a_snapshot_is_in_the_kernel_when_the_report_says_so() {
    let mut bench = Bench::new();
    bench.take(mesh(1, &[("web", 8080)]));
    assert_eq!(bench.report().generation, Some(Generation(1)));
    assert!(bench.report().ports.contains(&frontend(8080)));
    assert!(bench.report().problems.is_empty(), "{:?}", bench.report().problems);
    assert_eq!(bench.maps.0.borrow().installed.ports.len(), 1);
}

#[test]
fn what_an_earlier_agent_left_is_kept_until_there_is_a_snapshot() {
    let mut first = Bench::new();
    first.take(mesh(1, &[("web", 8080)]));
    let before = first.dump();
    let mut second = Bench::over(first.maps.clone(), OnPortConflict::ListenerWins);
    for _ in 0..20 {
        second.pass_time(Duration::from_secs(2));
    }
    assert_eq!(second.dump(), before);
    assert_eq!(second.report().generation, None);
}

#[test]
fn a_restart_with_the_same_snapshot_changes_nothing() {
    let mut first = Bench::new();
    first.take(mesh(1, &[("web", 8080)]));
    let (before, applied) = (first.dump(), first.maps.0.borrow().applied);
    let mut second = Bench::over(first.maps.clone(), OnPortConflict::ListenerWins);
    second.take(mesh(1, &[("web", 8080)]));
    assert_eq!(second.dump(), before);
    assert_eq!(second.maps.0.borrow().applied, applied);
    assert_eq!(second.report().generation, Some(Generation(1)));
}

#[test]
fn an_operation_that_fails_in_the_middle_ends_the_plan_and_is_tried_again() {
    for fails_at in 0..8 {
        let mut bench = Bench::new();
        bench.maps.0.borrow_mut().refuse_after = Some(fails_at);
        bench.take(mesh(1, &[("web", 8080)]));
        assert_eq!(bench.maps.0.borrow().applied, fails_at, "nothing after the failure");
        assert_eq!(bench.report().generation, None);
        let failed = bench.report().failed.clone().unwrap();
        assert_eq!(failed, "write to the map: no space left on device");

        bench.maps.0.borrow_mut().refuse_after = None;
        bench.pass_time(Duration::from_secs(1));
        assert_eq!(bench.report().generation, Some(Generation(1)), "after failure {fails_at}");
        assert_eq!(bench.report().failed, None);
    }
}

#[test]
fn a_failure_that_stays_is_tried_less_and_less_often() {
    let mut bench = Bench::new();
    bench.maps.0.borrow_mut().refuse_after = Some(0);
    bench.take(mesh(1, &[("web", 8080)]));
    for _ in 0..600 {
        bench.pass_time(Duration::from_millis(100));
    }
    // 0.1 s, doubling to 10 s, in a minute.
    let failures = bench.report().failures;
    assert!((8..=16).contains(&failures), "{failures} failures");
}

#[test]
fn a_new_snapshot_does_not_wait_for_the_next_try() {
    let mut bench = Bench::new();
    bench.maps.0.borrow_mut().refuse_after = Some(0);
    bench.take(mesh(1, &[("web", 8080)]));
    bench.maps.0.borrow_mut().refuse_after = None;
    bench.take(mesh(2, &[("web", 8081)]));
    assert_eq!(bench.report().generation, Some(Generation(2)));
}

#[test]
fn drift_is_found_counted_and_repaired() {
    let mut bench = Bench::new();
    bench.take(mesh(1, &[("web", 8080), ("api", 8081)]));
    let good: Vec<Frontend> = bench.report().ports.iter().copied().collect();
    bench.maps.0.borrow_mut().installed.ports.remove(&frontend(8080));
    bench.pass_time(Duration::from_secs(11));
    assert_eq!(bench.report().drift, 1);
    let ports: Vec<Frontend> = bench.maps.0.borrow().installed.ports.keys().copied().collect();
    assert_eq!(ports, good);
    bench.pass_time(Duration::from_secs(60));
    assert_eq!(bench.report().drift, 1, "repaired for good");
}

#[test]
fn a_task_whose_interface_comes_later_is_served_from_then_on() {
    let mut bench = Bench::new();
    bench.maps.0.borrow_mut().reach.clear();
    bench.take(mesh(1, &[("web", 8080)]));
    let problem = "task web.3 of service web gets no flows: no interface of this node leads to it";
    assert_eq!(bench.report().problems, [problem]);
    bench.maps.0.borrow_mut().reach.insert("172.18.0.3".parse().unwrap(), PEER);
    bench.pass_time(Duration::from_secs(3));
    assert!(bench.report().problems.is_empty());
}

#[test]
fn interfaces_that_cannot_be_read_keep_what_was_known() {
    let mut bench = Bench::new();
    bench.take(mesh(1, &[("web", 8080)]));
    let before = bench.dump();
    bench.maps.0.borrow_mut().interfaces_unreadable = true;
    bench.pass_time(Duration::from_secs(3));
    assert_eq!(bench.dump(), before);
    assert!(bench.report().host_failed.is_some());
    bench.maps.0.borrow_mut().interfaces_unreadable = false;
    bench.pass_time(Duration::from_secs(3));
    assert_eq!(bench.report().host_failed, None);
}

#[test]
fn a_process_that_listened_first_keeps_its_port_until_it_ends() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut bench = Bench::new();
    bench.take(mesh(1, &[("web", port)]));
    assert!(bench.report().ports.is_empty());
    let problem = &bench.report().problems[0];
    assert!(problem.contains(&format!("tcp/{port}")), "{problem}");
    assert!(problem.contains(&format!("(pid {}) listens on 127.0.0.1", std::process::id())));
    assert!(problem.ends_with("set dataplane.on_port_conflict = \"mesh-wins\""), "{problem}");

    drop(socket);
    bench.pass_time(Duration::from_secs(3));
    assert!(bench.report().ports.contains(&frontend(port)));
    assert!(bench.report().problems.is_empty());
}

#[test]
fn a_process_that_comes_later_does_not_take_a_port_from_the_mesh() {
    let mut bench = Bench::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    bench.take(mesh(1, &[("web", port)]));
    let _late = TcpListener::bind(("127.0.0.1", port)).unwrap();
    bench.pass_time(Duration::from_secs(3));
    assert!(bench.report().ports.contains(&frontend(port)));
}

#[test]
fn the_mesh_takes_the_port_of_a_process_where_it_is_told_to() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut bench = Bench::over(Fake::default(), OnPortConflict::MeshWins);
    bench.take(mesh(1, &[("web", port)]));
    assert!(bench.report().ports.contains(&frontend(port)));
}

#[test]
fn a_node_that_is_not_in_the_mesh_is_told_so() {
    let mut bench = Bench::new();
    let mut snapshot = mesh(1, &[]);
    snapshot.nodes.remove(&NodeName::new("n1"));
    bench.take(snapshot);
    assert!(bench.report().problems[0].starts_with("this node, n1, is not in the mesh"));
}

#[test]
fn counters_are_found_by_the_name_of_the_task() {
    let mut bench = Bench::new();
    bench.take(mesh(1, &[("web", 8080)]));
    bench.pass_time(Duration::from_secs(11));
    let stats = bench.reconciler.stats().unwrap();
    let ident =
        Ident::of_task(&ServiceName::new("web"), &TaskName::new("web.3"), &NodeName::new("n1"));
    let task = stats.backend(&ident).unwrap();
    assert_eq!((task.counters.connections, task.active, task.via), (7, 3, PEER));
    assert_eq!((stats.forward_flows, stats.expired_flows), (5, 2));
}

/// `web` with a virtual address on `blue`, which the files are attached to on n1.
fn with_vip(generation: u64, files: &[&str]) -> MeshSnapshot {
    let mut snapshot = mesh(generation, &[("web", 8080)]);
    let blue = NetworkId::new("blue");
    let mut services = snapshot.services.into_values();
    let mut web = (*services.next().unwrap()).clone();
    web.vips.insert(blue.clone(), vec!["10.0.9.2".parse().unwrap()]);
    for (task, last) in web.tasks.iter_mut().zip(11_u8..) {
        task.networks.insert(blue.clone(), vec![[10, 0, 9, last].into()]);
    }
    let space = |path: &&str| Space {
        at: SpaceAt::File(path.into()),
        networks: [blue.clone()].into(),
        addresses: Vec::new(),
    };
    let node = snapshot.nodes.get_mut(&NodeName::new("n1")).unwrap();
    node.spaces = files.iter().map(space).collect();
    snapshot.services = [(web.name.clone(), web.into())].into();
    snapshot
}

fn vips(bench: &Bench) -> String {
    bench.maps.0.borrow().vips.dump()
}

#[test]
fn virtual_addresses_follow_the_snapshot_and_the_namespaces_that_are_found() {
    let mut bench = Bench::new();
    bench.maps.0.borrow_mut().spaces.insert("/run/netns/a".into(), SpaceCookie(7));
    bench.take(with_vip(1, &["/run/netns/a", "/run/netns/b"]));
    assert!(vips(&bench).contains("RUN 0+2 10.0.9.11 10.0.9.12"), "{}", vips(&bench));
    assert!(vips(&bench).starts_with("SPACE 7 "), "{}", vips(&bench));
    assert!(bench.report().problems[0].starts_with("look at the network namespace"));
    bench.maps.0.borrow_mut().spaces.insert("/run/netns/b".into(), SpaceCookie(8));
    bench.pass_time(Duration::from_secs(2));
    assert!(vips(&bench).contains("SPACE 8 ") && bench.report().problems.is_empty());
    bench.take(with_vip(2, &[]));
    assert_eq!(vips(&bench), "");
}

#[test]
fn namespaces_stay_until_the_source_that_sees_containers_has_spoken() {
    let maps = Fake::default();
    maps.0.borrow_mut().spaces.insert("/run/netns/a".into(), SpaceCookie(7));
    let mut bench = Bench::over(maps.clone(), OnPortConflict::ListenerWins);
    bench.take(with_vip(1, &["/run/netns/a"]));
    let before = vips(&bench);
    let mut bench = Bench::with(maps, OnPortConflict::ListenerWins, true);
    bench.take(with_vip(2, &[]));
    bench.pass_time(Duration::from_secs(2));
    assert_eq!(vips(&bench), before);
    bench.reconciler.see_spaces(Vec::new(), bench.now);
    bench.pass_time(Duration::ZERO);
    assert_eq!(vips(&bench), "");
}

#[test]
fn containers_are_led_to_the_server_of_this_node_until_it_is_about_to_end() {
    let maps = Fake::default();
    maps.0.borrow_mut().spaces.insert("/run/netns/a".into(), SpaceCookie(7));
    let mut bench = Bench::with(maps, OnPortConflict::ListenerWins, true);
    bench.take(with_vip(1, &[]));
    let space = Space {
        at: SpaceAt::File("/run/netns/a".into()),
        networks: [NetworkId::new("blue")].into(),
        addresses: vec!["172.18.0.5".parse().unwrap()],
    };
    bench.reconciler.see_spaces(vec![space], bench.now);
    bench.pass_time(Duration::ZERO);
    let before = vips(&bench);
    let servers = [[172, 18, 0, 1].into()].into();
    let led = Intercept { servers, networks: intercept::Networks::All };
    bench.reconciler.intercept(led, bench.now);
    let with = vips(&bench);
    assert!(with.contains("127.0.0.11@") && with.contains(" 172.18.0.1"), "{with}");
    bench.pass_time(Duration::from_secs(3));
    assert_eq!(vips(&bench), with);
    bench.reconciler.intercept(Intercept::default(), bench.now);
    assert_eq!(vips(&bench), before, "at once");
}

#[test]
fn a_refused_change_and_damage_of_virtual_addresses_are_put_right() {
    let mut bench = Bench::new();
    bench.maps.0.borrow_mut().spaces.insert("/run/netns/a".into(), SpaceCookie(7));
    bench.take(mesh(1, &[("web", 8080)]));
    let applied = bench.maps.0.borrow().applied;
    bench.maps.0.borrow_mut().refuse_after = Some(applied + 2);
    bench.take(with_vip(2, &["/run/netns/a"]));
    assert!(bench.report().failed.is_some());
    bench.maps.0.borrow_mut().refuse_after = None;
    bench.pass_time(Duration::from_secs(1));
    assert_eq!(bench.report().failed, None);
    let whole = vips(&bench);
    assert!(whole.contains("10.0.9.11 10.0.9.12"), "{whole}");
    bench.maps.0.borrow_mut().vips.spaces.clear();
    bench.pass_time(Duration::from_secs(11));
    assert_eq!((vips(&bench), bench.report().drift), (whole, 1));
}

#[test]
fn many_snapshots_in_a_row_end_with_the_last() {
    let mut bench = Bench::new();
    for generation in 1..=50 {
        let port = 9000 + (generation % 7) as u16;
        bench.take(mesh(generation, &[("web", port), ("api", 8000)]));
        bench.pass_time(Duration::from_millis(300));
    }
    for _ in 0..30 {
        bench.pass_time(Duration::from_secs(2));
    }
    let ports: Vec<Frontend> = bench.report().ports.iter().copied().collect();
    assert_eq!(ports, [frontend(8000), frontend(9001)]);
}
