//! The cluster link under many nodes: bytes, processor, memory, and how long a change on one node
//! takes to be known on all. `weir-bench-link [NODES] [TASKS] [CHANGES] [WHOLE]`, by default 1000,
//! 20000 and 20; `WHOLE`: nodes that keep the whole view, as agents do; by default all that 2 GB of
//! memory have room for. The hub is the same program in a process of its own.
//!
//! Every node has a certificate and a connection by TLS over loopback; all share this machine's
//! processors, so a time here is that of one machine doing the work of all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use weir::link::{
    ClusterView, From, Inputs, Link, Settings,
    ca::{self, Request},
    identity::{Files, Role},
    start,
    tls::Tls,
};
use weir_bench::link::{
    cluster::{Size, mark, name},
    hub::{self, HubProcess, files},
    light::{Light, Watched},
    usage,
};
use weir_mesh::cluster::{Declared, Life, NodeId, Report, TaskId};

/// A node as an agent has it.
struct Whole {
    at: usize,
    link: Link,
    view: watch::Receiver<ClusterView>,
    report: watch::Sender<Arc<Report>>,
    _held: Held,
}

/// What a link listens to as long as it is there.
struct Held {
    _declared: watch::Sender<Option<Arc<Declared>>>,
    _managers: watch::Sender<BTreeSet<SocketAddr>>,
    _files: watch::Sender<Option<Files>>,
}

struct Bench {
    size: Size,
    hub: HubProcess,
    whole: Vec<Whole>,
    light: Vec<(usize, Light)>,
    watched: Arc<Watched>,
    seen: mpsc::UnboundedReceiver<Instant>,
}

/// Longest wait for everybody to know everything.
const PATIENCE: Duration = Duration::from_secs(400);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| -> Result<usize> {
        arguments.get(at).map_or(Ok(default), |text| Ok(text.parse()?))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    raise_file_limit()?;
    if let Some("--hub") = arguments.first().map(String::as_str) {
        let size = Size { nodes: number(3, 0)?, tasks: number(4, 0)? };
        return runtime.block_on(hub::serve(Path::new(&arguments[1]), arguments[2].parse()?, size));
    }
    let size = Size { nodes: number(0, 1000)?, tasks: number(1, 20_000)? };
    ensure!(size.nodes >= 3, "three nodes at least");
    // About 1.7 kB for each task, by each node.
    let room = 2_000_000_000 / (size.tasks.max(1) * 1700);
    let whole = number(3, room.clamp(1, size.nodes - 1))?.min(size.nodes - 1);
    let changes = number(2, 20)?;
    let directory = tempfile::Builder::new().prefix("weir-bench-link-").tempdir()?;
    // Whoever ends the bench does not find its directory, nor its hub, afterwards.
    runtime.block_on(async {
        tokio::select! {
            done = measure(directory.path(), size, changes, whole) => done,
            asked = asked_to_end() => asked.and_then(|()| bail!("interrupted")),
        }
    })
}

async fn asked_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        asked = tokio::signal::ctrl_c() => Ok(asked?),
    }
}

async fn measure(directory: &Path, size: Size, changes: usize, whole: usize) -> Result<()> {
    let Size { nodes, tasks } = size;
    println!(
        "{nodes} nodes, {tasks} tasks; {whole} nodes keep the whole view; load average {}",
        usage::load()
    );
    let directory = &directory.join("ca");
    ca::init(directory, None)?;
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    for at in 0..nodes {
        let role = if at == 0 { Role::Manager } else { Role::Worker };
        let request = Request { node: name(at), role, addresses: vec![address.ip()], days: 1 };
        ca::issue(directory, &request)?;
    }
    let mut bench = Bench::start(directory, address, size, whole)?;
    bench.gather("from the first connection until every node has the whole view").await?;
    bench.rest().await?;
    bench.change(changes).await?;
    bench.storm().await?;
    // Power off: nobody is told anything.
    drop(std::mem::replace(&mut bench.hub, HubProcess::start(directory, other(address), size)?));
    bench.light.iter().for_each(|(_, light)| light.whole.store(false, Ordering::SeqCst));
    for node in &bench.whole {
        let mut view = node.view.clone();
        let lost = view.wait_for(|view| view.from == From::Nobody);
        timeout(Duration::from_secs(30), lost).await.context("the hub was not missed")??;
    }
    bench.hub = HubProcess::start(directory, address, size)?;
    bench.gather("from the start of another hub until every node has its whole view").await?;
    println!("load average at the end {}", usage::load());
    Ok(())
}

/// An address where nobody looks.
fn other(address: SocketAddr) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 2], address.port()))
}

impl Bench {
    fn start(directory: &Path, address: SocketAddr, size: Size, whole: usize) -> Result<Self> {
        let (seen_in, seen) = mpsc::unbounded_channel();
        let watched = Arc::new(Watched {
            wanted: watch::Sender::new(None),
            seen: seen_in,
            heard: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            ends: Mutex::default(),
        });
        let hub = HubProcess::start(directory, address, size)?;
        let mut bench = Self { size, hub, whole: Vec::new(), light: Vec::new(), watched, seen };
        for at in 1..size.nodes {
            let files = files(directory, at);
            let report = size.report(at, Life::Active);
            if at <= whole {
                bench.whole.push(Whole::start(at, files, report, address));
                continue;
            }
            let tls = Arc::new(Tls::new(&files.read()?)?);
            let from = Ipv4Addr::new(127, 1, (at / 250) as u8, (at % 250) as u8 + 1);
            let light = Light::start(tls, (address, from), report, bench.watched.clone());
            bench.light.push((at, light));
        }
        Ok(bench)
    }

    /// Waits until everybody knows everything, and says what that cost.
    async fn gather(&mut self, what: &str) -> Result<()> {
        let Size { nodes, tasks } = self.size;
        let (own, begun) = (usage::processor(std::process::id()), Instant::now());
        let before = self.hub.ask()?;
        let whole = |view: &ClusterView| {
            let reports = view.reports.values().flat_map(|node| &node.report);
            view.from != From::Nobody
                && view.reports.len() == nodes
                && view.reports.values().all(|node| node.alive)
                && reports.map(|report| report.tasks.len()).sum::<usize>() == tasks
        };
        let mut shares = [(0.5, None), (0.99, None), (1.0, None)];
        let all = self.size.nodes - 1;
        while shares.iter().any(|(_, when)| when.is_none()) {
            let light = self.light.iter().filter(|(_, l)| l.whole.load(Ordering::SeqCst)).count();
            let have = light + self.whole.iter().filter(|node| whole(&node.view.borrow())).count();
            for (share, when) in &mut shares {
                if have as f64 >= *share * all as f64 {
                    when.get_or_insert(begun.elapsed().as_secs_f64());
                }
            }
            if begun.elapsed() > PATIENCE {
                let hub = self.hub.ask()?;
                let status: Vec<_> =
                    self.whole.iter().take(2).map(|node| node.link.status()).collect();
                let ends = self.ends();
                bail!("never: {what}; {have} of {all} have it; {hub:?}; {ends:?}; {status:#?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
        let hub = self.hub.ask()?;
        let [half, most, every] = shares.map(|(_, when)| when.unwrap_or(f64::NAN));
        println!("{what}: half after {half:.1} s, 99 % after {most:.1} s, all after {every:.1} s");
        println!(
            "  hub: {} MB sent, {:.1} s of processor, {} MB of memory; nodes: {:.1} s of processor, {} \
             MB, {} connections of light ones so far, of which ended: {:?}",
            (hub.bytes - before.bytes) >> 20,
            hub.processor - before.processor,
            hub.memory,
            usage::processor(std::process::id()) - own,
            usage::resident(std::process::id()),
            self.watched.connects.load(Ordering::Relaxed),
            self.ends(),
        );
        Ok(())
    }

    fn ends(&self) -> BTreeMap<String, usize> {
        self.watched.ends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn rest(&mut self) -> Result<()> {
        sleep(Duration::from_secs(2)).await;
        let (before, begun) = (self.hub.ask()?, Instant::now());
        sleep(Duration::from_secs(5)).await;
        let (after, seconds) = (self.hub.ask()?, begun.elapsed().as_secs_f64());
        let per_node = |number: u64| number as f64 / seconds / self.size.nodes as f64;
        println!(
            "at rest the hub sends {:.0} bytes/s in {:.1} frames/s to each node, and uses {:.2} of a \
             processor; {} nodes are alive",
            per_node(after.bytes - before.bytes),
            per_node(after.frames - before.frames),
            (after.processor - before.processor) / seconds,
            after.alive
        );
        Ok(())
    }

    /// One change after the other, each waited for by every node.
    async fn change(&mut self, changes: usize) -> Result<()> {
        let mut times = Vec::new();
        let before = self.hub.ask()?;
        for change in 0..changes {
            let at = 1 + change * 7 % (self.size.nodes - 1);
            let life = if change % 2 == 0 { Life::Draining } else { Life::Starting };
            times.extend(self.one(at, life).await?);
            sleep(Duration::from_millis(200)).await;
        }
        times.sort();
        let at = |share: f64| milliseconds(times[((times.len() - 1) as f64 * share) as usize]);
        let after = self.hub.ask()?;
        println!(
            "one change to every node, {} samples: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms; {:.0} \
             ms of the hub's processor each",
            times.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            (after.processor - before.processor) / changes as f64 * 1000.0
        );
        Ok(())
    }

    /// Many changes at once: 5 s of 200 changes a second, each by another node.
    async fn storm(&mut self) -> Result<()> {
        let (before, begun) = (self.hub.ask()?, Instant::now());
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        for change in 0..1000 {
            tick.tick().await;
            let at = 1 + change * 13 % (self.size.nodes - 1);
            let life = if change % 2 == 0 { Life::Down } else { Life::Active };
            self.report(at, life);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let last = self.one(1, Life::Starting).await?.into_iter().max().unwrap_or_default();
        let after = self.hub.ask()?;
        println!(
            "1000 changes in {seconds:.1} s: {:.1} frames/s and {:.0} bytes/s to each node, {:.2} of a \
             processor; one more change is everywhere {:.1} ms later; {} nodes are alive",
            (after.frames - before.frames) as f64 / seconds / self.size.nodes as f64,
            (after.bytes - before.bytes) as f64 / seconds / self.size.nodes as f64,
            (after.processor - before.processor) / seconds,
            milliseconds(last),
            after.alive
        );
        Ok(())
    }

    fn report(&self, at: usize, life: Life) {
        let report = self.size.report(at, life);
        let whole = self.whole.iter().find(|node| node.at == at).map(|node| &node.report);
        let light =
            || self.light.iter().find(|(node, _)| *node == at).map(|(_, node)| &node.report);
        if let Some(to) = whole.or_else(light) {
            to.send_replace(report);
        }
    }

    /// Changes a task, and waits for everybody.
    async fn one(&mut self, at: usize, life: Life) -> Result<Vec<Duration>> {
        let (id, task): (NodeId, TaskId) = (NodeId::new(name(at)), mark(at));
        while self.seen.try_recv().is_ok() {}
        self.watched.wanted.send_replace(Some((task.clone(), life)));
        let begun = Instant::now();
        self.report(at, life);
        let mut waiting = tokio::task::JoinSet::new();
        for node in &self.whole {
            let (mut view, id, task) = (node.view.clone(), id.clone(), task.clone());
            waiting.spawn(async move {
                let seen = |view: &ClusterView| {
                    let report = view.reports.get(&id).and_then(|node| node.report.as_ref());
                    report.and_then(|r| r.tasks.get(&task)).is_some_and(|t| t.life == life)
                };
                let waited = timeout(Duration::from_secs(30), view.wait_for(seen)).await;
                waited.is_ok().then(|| begun.elapsed())
            });
        }
        let mut times = Vec::new();
        for _ in &self.light {
            let seen = timeout(Duration::from_secs(30), self.seen.recv()).await;
            let seen = seen.context("a change did not arrive")?.context("nobody listens")?;
            times.push(seen - begun);
        }
        while let Some(time) = waiting.join_next().await {
            times.push(time?.context("a change did not arrive")?);
        }
        Ok(times)
    }
}

impl Whole {
    fn start(at: usize, files: Files, report: Arc<Report>, hub: SocketAddr) -> Self {
        let (_files, files) = watch::channel(Some(files));
        let (_managers, managers) = watch::channel(BTreeSet::from([hub]));
        let (_declared, declared) = watch::channel(None);
        let (report_in, report) = watch::channel(report);
        let asked = watch::channel(None).1;
        let inputs = Inputs { files, managers, declared, asked, report };
        let link = start(&Settings::at(hub), inputs);
        let view = link.view();
        let held = Held { _declared, _managers, _files };
        Self { at, link, view, report: report_in, _held: held }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn raise_file_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")
}
