//! The agent, wired together. Read from the top: every arrow of `docs/architecture.md` is a line.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, anyhow};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing::{error, info, warn};
use weir_loader::{Check, Dataplane, Outcome};

use crate::{
    config::{Config, Overrides, SourceConfig},
    dns,
    http::{self, Routes},
    listeners::ListenerTable,
    lock::Lock,
    logging::Logging,
    metrics::Metrics,
    observe::{Judged, Observer},
    probes::{
        judge::{self, Wires},
        prober, refusals,
    },
    reconciler::{
        self,
        thread::{Handle, Started},
    },
    snapshots::{self, SnapshotWriter},
    source::{SourceState, docker::DockerState, file::FileSource},
    state::StateFile,
    swarm::{self, Followed, LateLink},
};

/// Where the configuration came from, to read it again.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The file, if one was named.
    pub file: Option<PathBuf>,
    /// Flags and variables.
    pub overrides: Overrides,
}

/// Runs the agent until it is told to stop. What it has put into the kernel stays there.
pub async fn run(config: Config, origin: Origin, logging: Logging) -> anyhow::Result<()> {
    // One agent for one set of pins, and for one socket.
    let _pins = Lock::of_pins(&config.dataplane.pin)?;
    let _socket = Lock::of_socket(&config.socket)?;
    can_run(&config)?;
    let doors = Doors::open(&config).await?;

    // Sources -> snapshots.
    let (reload_source, reload_requests) = mpsc::channel(1);
    let Sources { state: source_state, link, docker } = follow_source(&config, reload_requests);
    let state = state_file(&config);
    let (writer, view) = SnapshotWriter::new(restore(&state));
    let (chamber, Wires { held, findings, targets, health }) =
        judge::wired(config.node.name.clone());
    tokio::spawn(snapshots::keep(state, writer.declared()));
    tokio::spawn(writer.run(source_state.clone(), config.reconcile.start_wait, chamber));

    // Snapshots -> the kernel.
    let metrics = Arc::new(Metrics::new());
    let settings = reconciler_settings(&config, &metrics);
    let Started { opening, handle: reconciler, thread } =
        reconciler::thread::spawn(config.dataplane_options(), settings)
            .context("cannot start the reconciler's thread")?;
    tokio::spawn(reconciler.clone().follow(view.clone()));
    let followed = dns::Inputs {
        view: view.clone(),
        docker: docker.clone(),
        programming: metrics.programming("dns"),
    };
    let dns = dns::start(&config, followed).context("cannot start the DNS server's threads")?;
    if let Some(words) = docker {
        tokio::spawn(swarm::pass_spaces(words, reconciler.clone()));
    }

    // The node's own tasks -> snapshots.
    tokio::spawn(prober::run(targets, findings.clone()));

    // All of it -> metrics, health, admin API.
    let (opened_in, opened) = watch::channel(false);
    let config = Arc::new(config);
    let judged = Judged { view, health };
    let observer =
        Observer::new(config.clone(), source_state, judged, reconciler.clone(), opened, link)
            .with_dns(dns);
    doors.serve(Routes { observer, metrics: metrics.clone() });

    let already = opening.await.context("the reconciler's thread ended early")??;
    // It is gone only if the writer of snapshots is.
    held.send(already).ok();
    tokio::spawn(refusals::run(reconciler.clone(), findings));
    opened_in.send_replace(true);
    info!(node = %config.node.name, address = %config.node.address, "the agent runs");

    let reload = Reload { config: &config, origin, logging, source: reload_source, metrics };
    let outcome = until_stopped(&reload, &reconciler).await;
    reconciler.stop();
    let joined = tokio::task::spawn_blocking(|| thread.join()).await.unwrap_or(false);
    std::fs::remove_file(&config.socket).ok();
    outcome?;
    if !joined {
        return Err(anyhow!("the reconciler's thread panicked"));
    }
    info!("the agent has stopped, forwarding goes on; weir uninstall would end that");
    Ok(())
}

/// The source of the desired state, and what comes with it in a Swarm.
struct Sources {
    state: watch::Receiver<SourceState>,
    link: LateLink,
    docker: Option<watch::Receiver<DockerState>>,
}

fn follow_source(config: &Config, reload: mpsc::Receiver<()>) -> Sources {
    match &config.source {
        SourceConfig::File(file) => {
            let (source, state) = FileSource::new(file, config.timeouts);
            tokio::spawn(source.run(reload));
            Sources { state, link: LateLink::default(), docker: None }
        }
        SourceConfig::Docker(docker) => {
            let Followed { state, link, words } = swarm::follow(config, docker);
            Sources { state, link, docker: Some(words) }
        }
    }
}

/// Without what the data plane needs nothing is begun, and everything that is missing is named.
fn can_run(config: &Config) -> anyhow::Result<()> {
    let checks = Dataplane::check(&config.dataplane_options());
    let lacking: Vec<&Check> =
        checks.iter().filter(|check| check.outcome == Outcome::Bad).collect();
    if lacking.is_empty() {
        return Ok(());
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

    fn serve(self, routes: Routes) {
        let routes = Arc::new(routes);
        tokio::spawn(routes.clone().serve_socket(self.socket));
        if let Some(http) = self.http {
            tokio::spawn(routes.serve(http));
        }
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
