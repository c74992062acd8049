//! The agent, wired together. Read from the top: every arrow of `docs/architecture.md` is a line.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing::{error, info, warn};
use weir_loader::Check;
use weir_proxy::Proxy;

use crate::{
    config::{Config, Mode, Overrides, SourceConfig},
    dns,
    drain::Drains,
    farewell, hosts,
    http::{self, Routes},
    listeners::ListenerTable,
    lock::Lock,
    logging::Logging,
    metrics::Metrics,
    observe::{Judged, Observer, Planes},
    plane::{
        self, Kind,
        beside::{Beside, Splitter},
    },
    probes::{
        LocalHealth,
        judge::{self, Wires},
        prober, refusals,
    },
    reconciler::{
        self, Intercept, ReconcileReport,
        thread::{Handle, Started},
    },
    snapshots::{self, SnapshotWriter},
    source::{SourceState, docker::DockerState, file::FileSource},
    state::StateFile,
    swarm::{self, Followed, LateLink},
    upgrade::{self, Heritage, Role, Succession, Successor},
};

/// Where the configuration came from, to read it again.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file, if one was named.
    pub file: Option<PathBuf>,
    /// Flags and variables.
    pub overrides: Overrides,
}

/// How an agent has ended.
pub enum Ended {
    /// It was told to.
    Stopped,
    /// This node is reached at another address than was known when it began: another agent is to begin,
    /// with this configuration.
    Moved(Box<Config>),
    /// Another process goes on.
    Succeeded(Box<Succession>),
}

/// Runs the agent until it is told to stop. What it has put into the kernel stays there.
pub async fn run(
    config: Config,
    origin: Origin,
    logging: Logging,
    heritage: Heritage,
) -> anyhow::Result<Ended> {
    // One agent for one set of pins, and for one socket.
    let _pins = Lock::of_pins(&config.dataplane.pin)?;
    let _socket = Lock::of_socket(&config.socket)?;
    let obstacles = obstacles(&config)?;
    let config = Arc::new(config);
    let doors = Doors::open(&config).await?;

    // The data plane opens while the sources begin to speak.
    let metrics = Arc::new(Metrics::new());
    let settings = reconciler_settings(&config, &metrics);
    let Started { opening, handle: reconciler, thread } =
        reconciler::thread::spawn(config.clone(), obstacles, heritage.clone(), settings)
            .context("cannot start the reconciler's thread")?;

    // Sources -> snapshots.
    let (chamber, Wires { held, findings, targets, health }) =
        judge::wired(config.node.name.clone());
    let (reload_source, reload_requests) = mpsc::channel(1);
    let told =
        Told { reload: reload_requests, health: health.clone(), reconciled: reconciler.report() };
    let Sources { state: source_state, link, docker } = follow_source(&config, told);
    let state = state_file(&config);
    let (writer, view) = SnapshotWriter::new(restore(&state));
    let wires = hosts::Wires {
        source: source_state.clone(),
        view: view.clone(),
        health: health.clone(),
        findings: findings.clone(),
    };
    let others = hosts::link_up(&config, wires, &link);
    let drains = Drains::begin(&config.state, findings.clone()).await;
    tokio::spawn(snapshots::keep(state, writer.declared()));
    tokio::spawn(writer.run(source_state.clone(), config.reconcile.start_wait, chamber));

    // Snapshots -> the data plane.
    let beside = Beside::default();
    let splitter = Splitter {
        config: config.clone(),
        settings: reconciler_settings(&config, &metrics),
        main: reconciler.clone(),
        beside: beside.clone(),
        findings: findings.clone(),
        heritage: heritage.clone(),
    };
    tokio::spawn(splitter.run(view.clone()));
    let followed = dns::Inputs {
        view: view.clone(),
        docker: docker.clone(),
        programming: metrics.programming("dns"),
        reconciler: reconciler.clone(),
    };
    let dns = dns::start(&config, followed).context("cannot start the DNS server's threads")?;
    if let Some(words) = &docker {
        tokio::spawn(swarm::pass_spaces(words.clone(), reconciler.clone()));
    }

    // The node's own tasks -> snapshots.
    tokio::spawn(prober::run(targets, findings.clone()));

    // All of it -> metrics, health, admin API.
    let (opened_in, opened) = watch::channel(false);
    let judged = Judged { view: view.clone(), health };
    let observer = Observer::new(
        config.clone(),
        source_state,
        judged,
        Planes { main: reconciler.clone(), beside: beside.clone() },
        opened,
        link,
    )
    .with_dns(dns)
    .with_drains(Some(drains));
    let (upgrades_in, upgrades) = mpsc::channel(1);
    let port = doors.serve(Routes::new(observer, metrics.clone(), upgrades_in))?;

    let already = opening.await.context("the reconciler's thread ended early")??;
    hosts::settled(others, config.link.silence).await;
    // It is gone only if the writer of snapshots is.
    held.send(already).ok();
    tokio::spawn(refusals::run(reconciler.clone(), findings));
    opened_in.send_replace(true);
    let role = match reconciler.report().borrow().plane.as_ref().map(|plane| plane.kind) {
        Some(Kind::Proxy) => Role::Alone,
        _ => Role::Beside,
    };
    tokio::spawn(heritage.settle(role));
    info!(node = %config.node.name, address = %config.node.address, "the agent runs");

    let in_swarm = docker.is_some();
    let reload = Reload { config: &config, origin, logging, source: reload_source, metrics };
    let outcome = tokio::select! {
        stopped = until_stopped(&reload, &reconciler) => stopped.map(|()| Ended::Stopped),
        config = moved(docker, &config, &reload.origin) => Ok(Ended::Moved(config)),
        successor = succeeded(upgrades) => {
            let proxy = leave(role, &reconciler, &beside).await;
            Ok(Ended::Succeeded(Box::new(Succession { successor, proxy })))
        }
    };
    if in_swarm && matches!(outcome, Ok(Ended::Stopped)) {
        farewell::wait(view, reconciler.report(), &config.node.name).await;
    }
    // While this agent's DNS server still answers, so that nobody is led to one that does not.
    reconciler.intercept(Intercept::default());
    reconciler.stop();
    // What asks the reconciler's thread ends before that.
    let closed = move || {
        drop(port);
        thread.join()
    };
    let joined = tokio::task::spawn_blocking(closed).await.unwrap_or(false);
    std::fs::remove_file(&config.socket).ok();
    let outcome = outcome?;
    if !joined {
        return Err(anyhow!("the reconciler's thread panicked"));
    }
    match (&outcome, role) {
        (Ended::Stopped, Role::Beside) => info!(
            "the agent has stopped; what the kernel forwards goes on, weir uninstall would end that"
        ),
        (Ended::Stopped, Role::Alone) => {
            info!("the agent has stopped, and what its proxy carried has ended with it");
        }
        _ => {}
    }
    Ok(outcome)
}

/// Waits for an upgrade that can begin. One that cannot changes nothing.
async fn succeeded(mut upgrades: mpsc::Receiver<upgrade::Request>) -> Successor {
    while let Some(asked) = upgrades.recv().await {
        let called = tokio::task::spawn_blocking(Successor::call).await;
        match called.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(successor) => {
                let pid = successor.pid();
                info!(pid, "another agent is to go on");
                // Whoever asked may have gone.
                asked.send(Ok(pid)).ok();
                // The answer goes out by this very runtime.
                tokio::time::sleep(ANSWERED).await;
                return successor;
            }
            Err(error) => {
                error!(error, "no upgrade");
                asked.send(Err(error)).ok();
            }
        }
    }
    std::future::pending().await
}

/// Long enough for an answer over a local socket.
const ANSWERED: Duration = Duration::from_millis(100);

/// What goes on without this agent only if another one takes it over.
async fn leave(role: Role, main: &Handle, beside: &Beside) -> Option<(Role, Proxy)> {
    let proxy = match role {
        Role::Alone => main.leave().await,
        Role::Beside => beside.get()?.leave().await,
    };
    Some((role, proxy?))
}

/// Waits until dockerd says that other nodes reach this one at another address than the agent began
/// with: it may not have answered then. An address that does not fit this host changes nothing.
async fn moved(
    docker: Option<watch::Receiver<DockerState>>,
    config: &Config,
    origin: &Origin,
) -> Box<Config> {
    let Some(mut words) = docker.filter(|_| !config.node.address_written) else {
        return std::future::pending().await;
    };
    let mut known = config.node.address;
    loop {
        let said = words.borrow_and_update().engine.as_ref().and_then(|engine| engine.address);
        if let Some(address) = said.filter(|address| *address != known) {
            known = address;
            match Config::load_at(origin.file.as_deref(), &origin.overrides, address) {
                Ok(new) => {
                    info!(%address, "dockerd says another address of this node, beginning anew");
                    return Box::new(new);
                }
                Err(faults) => {
                    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                    let faults = faults.join(" | ");
                    error!(%address, faults, "the address that dockerd says does not fit this host");
                }
            }
        }
        if words.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The source of the desired state, and what comes with it in a Swarm.
struct Sources {
    state: watch::Receiver<SourceState>,
    link: LateLink,
    docker: Option<watch::Receiver<DockerState>>,
}

/// What sources are told.
struct Told {
    reload: mpsc::Receiver<()>,
    health: watch::Receiver<LocalHealth>,
    reconciled: watch::Receiver<ReconcileReport>,
}

fn follow_source(config: &Config, told: Told) -> Sources {
    let Told { reload, health, reconciled } = told;
    match &config.source {
        SourceConfig::File(file) => {
            let (source, state) = FileSource::new(file, config.timeouts);
            tokio::spawn(source.run(reload));
            Sources { state, link: LateLink::default(), docker: None }
        }
        SourceConfig::Docker(docker) => {
            let Followed { state, link, words } = swarm::follow(config, docker, health, reconciled);
            Sources { state, link, docker: Some(words) }
        }
    }
}

/// What keeps the kernel data plane from running here. Where nothing else will do, nothing is begun,
/// and everything that is missing is named.
fn obstacles(config: &Config) -> anyhow::Result<Vec<Check>> {
    let lacking = plane::obstacles(config);
    if lacking.is_empty() || config.dataplane.mode != Mode::Ebpf {
        return Ok(lacking);
    }
    let lines: String = lacking
        .iter()
        .map(|check| format!("\n  {}: {}; {}", check.name, check.found, check.remedy))
        .collect();
    Err(anyhow!("this host cannot run the kernel data plane:{lines}"))
}

fn state_file(config: &Config) -> StateFile {
    let (node, pin) = (config.node.name.clone(), config.dataplane.pin.clone());
    StateFile::new(config.state.clone(), node, pin)
}

fn restore(state: &StateFile) -> Option<crate::state::Restored> {
    state.load().unwrap_or_else(|error| {
        warn!(%error, "starting without the snapshot on disk");
        None
    })
}

fn reconciler_settings(config: &Config, metrics: &Metrics) -> reconciler::Settings {
    reconciler::Settings {
        node: config.node.name.clone(),
        intervals: config.reconcile,
        on_port_conflict: config.dataplane.on_port_conflict,
        // The file is the only source.
        sees_containers: matches!(config.source, SourceConfig::Docker(_)),
        listeners: ListenerTable::new(config.node.addresses.clone()),
        programming: metrics.programming("kernel"),
    }
}

/// Where the agent is asked. They are opened first, so that a port that is taken keeps an agent
/// from starting rather than from answering.
struct Doors {
    socket: UnixListener,
    http: Option<TcpListener>,
}

impl Doors {
    async fn open(config: &Config) -> Result<Self, http::Error> {
        let http = match config.http {
            Some(address) => Some(http::bind(address).await?),
            None => None,
        };
        Ok(Self { socket: http::bind_socket(&config.socket)?, http })
    }

    /// The port is closed when what this answers is dropped, the socket with the runtime.
    fn serve(self, routes: Routes) -> anyhow::Result<Option<http::Port>> {
        let routes = Arc::new(routes);
        tokio::spawn(routes.clone().serve_socket(self.socket));
        let open = |listener: TcpListener| http::Port::open(listener.into_std()?, routes);
        self.http.map(open).transpose().context("cannot serve the metrics port")
    }
}

/// Waits for a signal to stop; reloads when one says so. Ends with an error if the reconciler does.
async fn until_stopped(reload: &Reload<'_>, reconciler: &Handle) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut report = reconciler.report();
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => reload.now(),
            changed = report.changed() => {
                changed.map_err(|_| anyhow!("the reconciler has ended"))?;
            }
        }
    }
}

/// What a reload needs.
struct Reload<'a> {
    config: &'a Config,
    origin: Origin,
    logging: Logging,
    source: mpsc::Sender<()>,
    metrics: Arc<Metrics>,
}

impl Reload<'_> {
    /// Reads the configuration again. A bad one changes nothing. The level of the log changes at
    /// once; anything else that differs is named, since it needs a restart (under which forwarding
    /// goes on). The source is read in any case.
    fn now(&self) {
        // A reading that is asked for already is as good as another.
        self.source.try_send(()).ok();
        let result = match Config::load(self.origin.file.as_deref(), &self.origin.overrides) {
            Err(faults) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                error!(faults = faults.join(" | "), "the configuration was not taken");
                "rejected"
            }
            Ok(new) => self.compare(new),
        };
        self.metrics.count_reload(result);
    }

    fn compare(&self, mut new: Config) -> &'static str {
        self.logging.set_level(&new.log.level);
        new.log.level.clone_from(&self.config.log.level);
        if new == *self.config {
            info!("the configuration was read again");
            return "applied";
        }
        warn!("the configuration differs in more than the log level: restart the agent to use it");
        "restart_needed"
    }
}
