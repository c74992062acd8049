//! The cluster link in one process: bytes, CPU, memory, and how long a change on one node takes to
//! be known on all. `weir-bench-link [NODES] [TASKS] [CHANGES]`, by default 1000, 20000 and 20.
//!
//! Every node is a real client with a real certificate and a real connection by TLS over loopback;
//! all of them share this machine's processors, so a time here is that of one machine doing the
//! work of all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;
use weir::link::{
    ClusterView, From, Inputs, Link, Settings,
    ca::{self, Request},
    identity::Role,
    start,
};
use weir_mesh::{
    ServiceName, TaskName,
    cluster::{
        Availability, Declared, DeclaredNode, DeclaredTask, Life, NodeId, Report, ReportedNode,
        ReportedTask, ServiceId, TaskId, WishedState,
    },
};

struct Node {
    link: Link,
    report: watch::Sender<Arc<Report>>,
    view: watch::Receiver<ClusterView>,
    _held: Held,
}

/// What the link listens to as long as it is there.
struct Held {
    _declared: watch::Sender<Option<Arc<Declared>>>,
    _managers: watch::Sender<BTreeSet<std::net::SocketAddr>>,
    _files: watch::Sender<Option<weir::link::identity::Files>>,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| -> Result<usize> {
        arguments.next().map_or(Ok(default), |text| Ok(text.parse()?))
    };
    let (nodes, tasks, changes) = (number(1000)?, number(20_000)?, number(20)?);
    ensure!(nodes >= 2, "two nodes at least");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(nodes, tasks, changes))
}

async fn run(nodes: usize, tasks: usize, changes: usize) -> Result<()> {
    // Two sockets a node.
    raise_file_limit()?;
    let directory = std::env::temp_dir().join(format!("weir-bench-link-{}", std::process::id()));
    let result = measure(&directory, nodes, tasks, changes).await;
    fs::remove_dir_all(&directory).ok();
    result
}

async fn measure(
    directory: &std::path::Path,
    nodes: usize,
    tasks: usize,
    changes: usize,
) -> Result<()> {
    ca::init(directory, None)?;
    println!("{nodes} nodes, {tasks} tasks, all in this process; load average {}", load());
    let (memory, processor, begun) = (resident(), processor(), Instant::now());
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let declared = Arc::new(declare(nodes, tasks));
    let mut all = Vec::new();
    for at in 0..nodes {
        let declared = (at == 0).then(|| declared.clone());
        all.push(node(directory, at, report(at, nodes, tasks, Life::Active), declared, port)?);
    }
    println!("certificates made in {:.1} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let whole = |view: &ClusterView| {
        view.from != From::Nobody
            && view.reports.len() == nodes
            && view.reports.values().all(|node| node.alive)
            && view.reports.values().flat_map(|n| &n.report).map(|r| r.tasks.len()).sum::<usize>()
                == tasks
    };
    for node in &mut all {
        let waited = tokio::time::timeout(Duration::from_secs(300), node.view.wait_for(whole));
        waited.await.context("a node never saw all")??;
    }
    let sent = || -> u64 { all.iter().map(|node| node.link.sent_bytes()).sum() };
    println!(
        "from the first connection until every node has the whole view: {:.1} s, {} MB sent",
        begun.elapsed().as_secs_f64(),
        sent() >> 20
    );
    println!(
        "memory: {} MB for the hub and {} clients, {} MB before",
        resident() - memory,
        nodes - 1,
        memory
    );
    println!("processor so far: {:.1} s", self::processor() - processor);

    let (bytes, cpu, begun) = (sent(), self::processor(), Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "at rest: {:.0} bytes/s a node sent and heard, {:.2} processors for all of them",
        (sent() - bytes) as f64 / seconds / nodes as f64,
        (self::processor() - cpu) / seconds
    );

    let mut times = Vec::new();
    let (bytes, cpu) = (sent(), self::processor());
    for change in 0..changes {
        let at = 1 + change * 7 % (nodes - 1);
        let life = if change % 2 == 0 { Life::Draining } else { Life::Starting };
        let (id, task) = (NodeId::new(name(at)), TaskId::new(format!("task-{at}")));
        let begun = Instant::now();
        all[at].report.send_replace(Arc::new(report(at, nodes, tasks, life)));
        let mut waiting = tokio::task::JoinSet::new();
        for node in &all {
            let (mut view, id, task) = (node.view.clone(), id.clone(), task.clone());
            waiting.spawn(async move {
                let seen = |view: &ClusterView| {
                    let report = view.reports.get(&id).and_then(|node| node.report.as_ref());
                    report.and_then(|r| r.tasks.get(&task)).is_some_and(|t| t.life == life)
                };
                let waited = tokio::time::timeout(Duration::from_secs(30), view.wait_for(seen));
                waited.await.is_ok().then(|| begun.elapsed())
            });
        }
        while let Some(time) = waiting.join_next().await {
            times.push(time?.context("a change did not arrive")?);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    println!(
        "one change to every node, {} samples: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    println!(
        "a change: {} kB sent (signs of life included), {:.0} ms of processor",
        (sent() - bytes) / changes as u64 / 1000,
        (self::processor() - cpu) / changes as f64 * 1000.0
    );
    println!("load average at the end {}", load());
    Ok(())
}

fn node(
    directory: &std::path::Path,
    at: usize,
    report: Report,
    declared: Option<Arc<Declared>>,
    port: std::net::SocketAddr,
) -> Result<Node> {
    let role = if at == 0 { Role::Manager } else { Role::Worker };
    let request = Request { node: name(at), role, addresses: vec![port.ip()], days: 1 };
    let files = ca::issue(directory, &request)?;
    let (files_in, files) = watch::channel(Some(files));
    let (managers_in, managers) = watch::channel(BTreeSet::from([port]));
    let (declared_in, declared) = watch::channel(declared);
    let (report_in, report) = watch::channel(Arc::new(report));
    let link = start(&Settings::at(port), Inputs { files, managers, declared, report });
    let view = link.view();
    let _held = Held { _declared: declared_in, _managers: managers_in, _files: files_in };
    Ok(Node { link, report: report_in, view, _held })
}

fn name(at: usize) -> String {
    format!("node{at:021}")
}

/// The tasks of one node. The one that is called after the node is in the state `life`.
fn report(at: usize, nodes: usize, tasks: usize, life: Life) -> Report {
    let own = (at..tasks).step_by(nodes);
    let task = |number: usize| ReportedTask {
        service: ServiceId::new(format!("service{:018}", number / 10)),
        service_name: ServiceName::new(format!("stack_service-{}", number / 10)),
        name: TaskName::new(format!("stack_service-{}.{}.{number:025}", number / 10, number % 10)),
        ipv4: Some("172.18.0.3".parse().unwrap_or(std::net::Ipv4Addr::LOCALHOST)),
        ipv6: None,
        life: if number == at { life } else { Life::Active },
        labels: BTreeMap::from([("weir.balance".into(), "maglev".into())]),
        networks: BTreeMap::new(),
        aliases: Default::default(),
        ports: Vec::new(),
    };
    Report {
        node: ReportedNode {
            hostname: format!("host-{at}"),
            address: [10, 0, (at / 256) as u8, at as u8].into(),
        },
        tasks: own
            .map(|number| (TaskId::new(format!("task-{number}")), Arc::new(task(number))))
            .collect(),
    }
}

fn declare(nodes: usize, tasks: usize) -> Declared {
    let node = |at: usize| DeclaredNode {
        hostname: format!("host-{at}"),
        address: Some([10, 0, (at / 256) as u8, at as u8].into()),
        availability: Availability::Active,
        ready: true,
        manager: None,
    };
    let task = |number: usize| DeclaredTask {
        service: ServiceId::new(format!("service{:018}", number / 10)),
        node: Some(NodeId::new(name(number % nodes))),
        slot: Some(number as u64 % 10),
        name: TaskName::new(format!("stack_service-{}.{}.{number:025}", number / 10, number % 10)),
        wished: WishedState::Running,
        running: true,
        addresses: BTreeMap::new(),
    };
    Declared {
        nodes: (0..nodes).map(|at| (NodeId::new(name(at)), Arc::new(node(at)))).collect(),
        tasks: (0..tasks)
            .map(|number| (TaskId::new(format!("task-{number}")), Arc::new(task(number))))
            .collect(),
        ..Declared::default()
    }
}

fn raise_file_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")
}

/// Megabytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Seconds of processor time, user and system.
fn processor() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // utime and stime: fields 14 and 15, of which the name is the second. Ticks are 1/100 s.
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or("").into()
}
