//! The routes over a reconciler whose kernel is in memory.

use std::{io::Read as _, net::Ipv4Addr, time::Instant};

use flate2::read::GzDecoder;
use http_body_util::BodyExt as _;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
};
use weir_mesh::{Ident, MeshSnapshot, NodeName, ServiceName, Task, TaskName, TaskState};

use super::{
    scrape::{KEPT, LARGE},
    *,
};
use crate::{
    config::{Config, Overrides, Settings},
    drain::Drains,
    host::Host,
    listeners::ListenerTable,
    observe::{Judged, Planes},
    probes::LocalHealth,
    reconciler::{
        self, StatsReport,
        fake::{Fake, mesh},
        thread::{Handle, Started, spawn_with},
    },
    snapshots::View,
    source::{SourceState, Trouble},
};

/// An agent without a kernel, its source played by the test.
struct Agent {
    directory: tempfile::TempDir,
    source: watch::Sender<SourceState>,
    view: watch::Sender<View>,
    reconciler: Handle,
    routes: Arc<Routes>,
}

fn config(directory: &Path) -> Config {
    let host = Host {
        name: Some("n1".into()),
        address: Some(Ipv4Addr::new(10, 0, 0, 1).into()),
        interfaces: vec![("eth0".into(), Ipv4Addr::new(10, 0, 0, 1).into())],
        cgroup: Some("/sys/fs/cgroup".into()),
    };
    let socket = directory.join("weir.sock");
    let flags = Overrides::default()
        .with_flag("socket.path", socket.to_str().unwrap())
        .with_flag("compat.ipvs_metrics", "true");
    Settings::read(Path::new(""), "", &flags).unwrap().resolve(&host).unwrap()
}

impl Agent {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Arc::new(config(directory.path()));
        let (source, source_state) = watch::channel(SourceState::silent());
        let nothing = View { snapshot: None, stale: false, noticed: Instant::now() };
        let (view, view_state) = watch::channel(nothing);
        let metrics = Arc::new(Metrics::new());
        let settings = reconciler::Settings {
            node: config.node.name.clone(),
            intervals: config.reconcile,
            on_port_conflict: config.dataplane.on_port_conflict,
            sees_containers: false,
            listeners: ListenerTable::new(Vec::new()),
            programming: metrics.programming("kernel"),
        };
        let Started { opening, handle: reconciler, .. } =
            spawn_with(|| Ok(Fake::default()), settings).unwrap();
        opening.await.unwrap().unwrap();
        tokio::spawn(reconciler.clone().follow(view_state.clone()));
        let (_opened_in, opened) = watch::channel(true);
        let (_, health) = watch::channel(LocalHealth::default());
        let judged = Judged { view: view_state, health };
        let observer = Observer::new(
            config.clone(),
            source_state,
            judged,
            Planes { main: reconciler.clone(), beside: Default::default() },
            opened,
            Default::default(),
        );
        let (findings, mut judge) = mpsc::channel(1);
        let drains = Drains::begin(&directory.path().join("state.json"), findings).await;
        tokio::spawn(async move { while judge.recv().await.is_some() {} });
        let observer = observer.with_drains(Some(drains));
        let socket = bind_socket(&config.socket).unwrap();
        let routes = Arc::new(Routes::new(observer, metrics, mpsc::channel(1).0));
        tokio::spawn(routes.clone().serve_socket(socket));
        Self { directory, source, view, reconciler, routes }
    }

    async fn take(&self, snapshot: MeshSnapshot) {
        let generation = snapshot.generation;
        self.source.send_modify(|state| state.readings += 1);
        self.view.send_replace(View {
            snapshot: Some(Arc::new(snapshot)),
            stale: false,
            noticed: Instant::now(),
        });
        let mut report = self.reconciler.report();
        report.wait_for(|report| report.generation == Some(generation)).await.unwrap();
    }

    async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream =
            UnixStream::connect(self.directory.path().join("weir.sock")).await.unwrap();
        let request = format!("{method} {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path).await
    }

    async fn json(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[tokio::test]
async fn an_agent_without_a_snapshot_is_not_ready_and_says_why() {
    let agent = Agent::start().await;
    let (status, body) = agent.get("/readyz").await;
    assert_eq!(status, 503);
    let expected = "source file: /etc/weir/mesh.toml is not read yet\n\
                    reconciler: there is no snapshot yet\n";
    assert_eq!(body, expected);
    assert_eq!(agent.get("/healthz").await, (200, "ok\n".into()));
}

#[tokio::test]
async fn an_agent_with_its_snapshot_in_the_kernel_is_ready() {
    let agent = Agent::start().await;
    agent.take(mesh(3, &[("web", 8080)])).await;
    assert_eq!(agent.get("/readyz").await, (200, "ready\n".into()));
    let status = agent.json("/api/v1/status").await;
    assert_eq!((&status["generation"], &status["wanted"]), (&3.into(), &3.into()));
    // Nothing leads to the local task here.
    assert_eq!(status["condition"], "degraded");
}

#[tokio::test]
async fn a_source_in_trouble_degrades_the_agent_and_leaves_it_ready() {
    let agent = Agent::start().await;
    agent.take(mesh(1, &[])).await;
    let fault = crate::document::Fault::of_file(Path::new("mesh.toml"), "is empty", "fill it");
    let trouble = Trouble { reason: "empty", faults: [fault].into() };
    agent.source.send_modify(|state| state.trouble = Some(trouble));
    assert_eq!(agent.get("/readyz").await.0, 200);
    let status = agent.json("/api/v1/status").await;
    assert_eq!(status["condition"], "degraded");
    assert_eq!(status["source_faults"][0], "mesh.toml: is empty; fill it");
}

#[tokio::test]
async fn services_are_told_with_what_the_kernel_counted() {
    let agent = Agent::start().await;
    agent.take(mesh(1, &[("web", 8080)])).await;
    let services = agent.json("/api/v1/services?name=web").await;
    let web = &services["services"][0];
    assert_eq!((&web["name"], &web["ports"][0]["state"]), (&"web".into(), &"served".into()));
    assert_eq!(web["ports"][0]["published"], 8080);
    let remote = &web["tasks"][1];
    assert_eq!((&remote["kernel"], &remote["via"]), (&"active".into(), &"tunnel".into()));
    assert_eq!(remote["counters"]["connections"], 7);
}

#[tokio::test]
async fn nodes_and_the_state_of_the_kernel_are_told() {
    let agent = Agent::start().await;
    agent.take(mesh(1, &[("web", 8080)])).await;
    let nodes = agent.json("/api/v1/nodes").await;
    assert_eq!(
        (&nodes["nodes"][0]["here"], &nodes["nodes"][1]["tasks"]),
        (&true.into(), &1.into())
    );
    let state = agent.json("/api/v1/state").await;
    assert!(state["dump"].as_str().unwrap().starts_with("PORT tcp/8080 -> SLOT "), "{state}");
}

#[tokio::test]
async fn nothing_can_be_changed_and_unknown_paths_are_named() {
    let agent = Agent::start().await;
    assert_eq!(agent.ask("POST", "/api/v1/status").await.0, 405);
    let (status, body) = agent.get("/api/v2").await;
    assert_eq!(status, 404);
    assert!(body.contains("no such path"), "{body}");
    assert_eq!(agent.ask("HEAD", "/healthz").await, (200, String::new()));
}

#[tokio::test]
async fn every_metric_is_exported_once_there_is_something_to_tell() {
    let agent = Agent::start().await;
    agent.take(mesh(1, &[("web", 8080)])).await;
    agent.take(mesh(2, &[("web", 8080), ("api", 8081)])).await;
    agent.source.send_modify(|state| *state.errors.entry("empty").or_default() += 1);
    let (status, text) = agent.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"));
    for line in [
        "weir_snapshot_generation 2",
        "weir_programming_duration_seconds_count{stage=\"kernel\"} 1",
        "weir_source_age_seconds{source=\"file\"} 0",
        "weir_source_errors_total{source=\"file\",reason=\"empty\"} 1",
        "weir_reconcile_drift_total 0",
        "weir_service_connections_total{service=\"web\",protocol=\"tcp\",port=\"8080\"} 0",
        "weir_service_connections_active{service=\"web\"} 0",
        "weir_backend_up{service=\"web\",task=\"web.4\",node=\"n2\"} 1",
        "weir_backend_draining{service=\"web\",task=\"web.4\",node=\"n2\"} 0",
        "weir_backend_weight{service=\"web\",task=\"web.4\",node=\"n2\"} 1",
        "weir_backend_connections_total{service=\"web\",task=\"web.4\",node=\"n2\"} 7",
        "weir_backend_rx_bytes_total{service=\"web\",task=\"web.4\",node=\"n2\"} 0",
    ] {
        assert!(text.lines().any(|there| there == line), "no {line} in\n{text}");
    }
    for family in [
        "build_info",
        "dataplane_info",
        "drops",
        "map_entries",
        "map_capacity",
        "reload",
        "flows",
        "problems",
        "backends_omitted",
    ] {
        assert!(text.contains(&format!("# TYPE weir_{family} ")), "no {family} in\n{text}");
    }
}

#[tokio::test]
async fn for_ipvs_dashboards_tasks_at_one_address_are_one_and_only_active_ones_have_a_weight() {
    let agent = Agent::start().await;
    let mut mesh = mesh(1, &[("web", 8080)]);
    let web = Arc::make_mut(mesh.services.values_mut().next().unwrap());
    // As on docker_gwbridge, where each node begins with the same address.
    let at_same = |name: &str, node: &str, state| Task {
        ipv4: web.tasks[1].ipv4,
        state,
        weight: 2,
        ..Task::new(TaskName::new(name), NodeName::new(node))
    };
    let more =
        [at_same("web.5", "n2", TaskState::Active), at_same("web.6", "n2", TaskState::Draining)];
    web.tasks.extend(more);
    agent.take(mesh).await;
    let (_, text) = agent.get("/metrics").await;
    let lines = |name: &str| -> Vec<String> {
        let name = format!("node_ipvs_backend_{name}{{");
        let lines = text.lines().filter(|line| line.starts_with(&name));
        let line = |line: &str| {
            let (_, from) = line.split_once("remote_address=\"").unwrap();
            let (address, rest) = from.split_once('"').unwrap();
            format!("{address} {}", rest.split_once("} ").unwrap().1)
        };
        lines.map(line).collect()
    };
    assert_eq!(lines("weight"), ["172.18.0.3 1", "172.18.0.4 3"], "{text}");
    // Nobody has counted flows yet.
    for name in ["connections_active", "connections_inactive"] {
        assert_eq!(lines(name), ["172.18.0.3 0", "172.18.0.4 0"], "{text}");
    }
}

#[tokio::test]
async fn a_drained_task_that_left_the_mesh_degrades_nothing_and_is_forgotten_at_the_next_drain() {
    let agent = Agent::start().await;
    let drain = |status: &serde_json::Value| {
        let mut subsystems = status["subsystems"].as_array().unwrap().iter();
        subsystems.find(|it| it["name"] == "drain").map(|it| it["reason"].to_string())
    };
    agent.take(mesh(1, &[("api", 8081), ("web", 8080)])).await;
    for task in ["api.3", "web.3", "web.4"] {
        let (status, body) = agent.ask("POST", &format!("/api/v1/drain?task={task}")).await;
        assert_eq!(status, 200, "{body}");
    }
    let told = drain(&agent.json("/api/v1/status").await).unwrap();
    assert_eq!(told, "\"task api.3 of api is drained by hand (and 2 more)\"");

    agent.take(mesh(2, &[("api", 8081)])).await;
    let told = drain(&agent.json("/api/v1/status").await).unwrap();
    assert_eq!(told, "\"task api.3 of api is drained by hand\"");
    agent.take(mesh(3, &[("web", 8080)])).await;
    assert_eq!(agent.ask("POST", "/api/v1/undrain?task=web.3").await.0, 200);
    assert_eq!(agent.ask("POST", "/api/v1/undrain?task=web.4").await.0, 200);
    assert_eq!(drain(&agent.json("/api/v1/status").await), None, "api.3 is gone");
    let listed = agent.json("/api/v1/drained").await;
    assert_eq!(listed["tasks"][0]["task"], "api.3", "until it is known that it is of no use");
    assert_eq!(agent.ask("POST", "/api/v1/drain?task=web.4").await.0, 200);
    let listed = agent.json("/api/v1/drained").await;
    let tasks: Vec<_> = listed["tasks"].as_array().unwrap().iter().map(|it| &it["task"]).collect();
    assert_eq!(tasks, ["web.4"]);
}

#[tokio::test]
async fn counters_are_read_at_most_once_a_second() {
    let agent = Agent::start().await;
    agent.take(mesh(1, &[("web", 8080)])).await;
    let before: StatsReport = agent.reconciler.stats().await.unwrap();
    let first = agent.json("/api/v1/services").await;
    let second = agent.json("/api/v1/services").await;
    assert_eq!(first, second);
    let ident =
        Ident::of_task(&ServiceName::new("web"), &TaskName::new("web.3"), &NodeName::new("n1"));
    assert!(before.backend(&ident).is_some());
}

#[tokio::test]
async fn a_large_scrape_is_made_once_for_all_who_ask_within_a_second() {
    let agent = Agent::start().await;
    let names: Vec<String> = (0..1500).map(|number| format!("service-{number}")).collect();
    let services: Vec<(&str, u16)> = names.iter().map(String::as_str).zip(10_000..).collect();
    let generation = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("weir_snapshot_generation "));
        line.unwrap().parse::<f64>().unwrap()
    };
    let mut told_again = false;
    let mut newest = 0;
    // A machine may be slow; then it is made anew.
    while !told_again && newest < 40 {
        newest += 2;
        agent.take(mesh(newest - 1, &services)).await;
        let (_, first) = agent.get("/metrics").await;
        assert!(first.len() > LARGE, "{} bytes", first.len());
        agent.take(mesh(newest, &services)).await;
        told_again = agent.get("/metrics").await.1 == first;
    }
    assert!(told_again);
    let gzip = [(ACCEPT_ENCODING, HeaderValue::from_static("gzip"))];
    let packed = agent.routes.scrape(&gzip.into_iter().collect()).await;
    assert_eq!(packed.headers()[CONTENT_ENCODING], "gzip");
    let packed = packed.into_body().collect().await.unwrap().to_bytes();
    assert!(packed.len() * 4 < LARGE, "{} bytes", packed.len());
    let mut text = String::new();
    GzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
    assert_eq!(generation(&text), newest as f64);
    tokio::time::sleep(KEPT).await;
    assert_eq!(generation(&agent.get("/metrics").await.1), newest as f64);
}

#[tokio::test]
async fn the_port_has_a_thread_that_stands_back_and_is_closed_when_it_is_dropped() {
    let agent = Agent::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let port = Port::open(listener, agent.routes.clone()).unwrap();
    let ask = || async move {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    assert!(ask().await.unwrap().ends_with("ok\n"));
    let mut nice = Vec::new();
    for thread in fs::read_dir("/proc/self/task").unwrap() {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
        // proc_pid_stat(5): the name is the second, `nice` the 19th.
        if let Some((before, after)) = stat.rsplit_once(')')
            && before.ends_with("(weir-port")
        {
            nice.extend(after.split_whitespace().nth(16).map(str::to_owned));
        }
    }
    assert!(!nice.is_empty() && nice.iter().all(|nice| nice == "10"), "{nice:?}");
    drop(port);
    assert_eq!(ask().await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn the_socket_of_a_dead_agent_is_replaced_and_a_plain_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weir.sock");
    drop(bind_socket(&path).unwrap());
    assert!(path.exists());
    let _live = bind_socket(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    let file = directory.path().join("notes.txt");
    fs::write(&file, "mine").unwrap();
    let error = bind_socket(&file).unwrap_err().to_string();
    assert!(error.contains("there is a file that is no socket"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_the_way_out() {
    let taken = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind(address).await.unwrap_err().to_string();
    let expected = format!(
        "http.listen = \"{address}\": Address already in use (os error 98); \
         choose another address or port, or \"off\""
    );
    assert_eq!(error, expected);
}
