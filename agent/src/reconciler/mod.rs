//! The one task that changes the kernel: it makes the maps what the newest snapshot says.
//!
//! [`Reconciler`] does one thing at a time and knows no threads and no waiting; [`thread`] drives
//! it. Map system calls and netlink block, so it has a thread of its own.
//!
//! Who keeps a published port that a process of this node listens on: whoever was there first. A
//! port that the mesh already serves it goes on serving (the planner sees to that); a port that a
//! process held before it was published stays with the process on this node, and the report names
//! the process. `dataplane.on_port_conflict = "mesh-wins"` turns the second half off.

#[cfg(test)]
pub(crate) mod fake;
mod inspect;
pub mod intercept;
mod kernel;
pub(crate) mod needs;
mod report;
#[cfg(test)]
mod tests;
pub mod thread;
mod vips;

use needs::{asks_anew, local_tasks, wanted_ports};

pub use inspect::{Asked, FlowSource, Traced};
pub use intercept::Intercept;
pub use kernel::Kernel;
pub use report::{BackendStats, ReconcileReport, StatsReport, TaskAnswers};

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::metrics::histogram::Histogram;
use tracing::{debug, error, info, warn};
use vips::Vips;
use weir_loader::{DroppedPacket, Error, FlowCensus};
use weir_mesh::{
    Carried, Ident, Installed, LocalView, MapOp, MeshSnapshot, Moment, NodeName, Planner, Problem,
    Space,
    install::{BackendGeneration, BackendIndex, BackendRecord, BackendState, Frontend, Via},
};
use weir_proxy::Proxy;

use crate::{
    config::{Intervals, OnPortConflict},
    listeners::{Holder, ListenerTable},
    probes::Held,
    snapshots::View,
};

/// What a reconciler is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node, unless the snapshot calls it otherwise.
    pub node: NodeName,
    /// How often it looks at what.
    pub intervals: Intervals,
    /// Who keeps a port that a process listens on.
    pub on_port_conflict: OnPortConflict,
    /// Whether a source sees this node's containers and will say so by [`Reconciler::see_spaces`].
    pub sees_containers: bool,
    /// Where listeners are looked up.
    pub listeners: ListenerTable,
    /// Takes the time from a change being noticed to the kernel holding it, in seconds.
    pub programming: Histogram,
}

/// What another plane of this node does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ceded {
    /// Ports whose clients it serves.
    pub ports: BTreeSet<Frontend>,
    /// Ports at which it serves those clients whose address family no task has.
    pub shared: BTreeSet<Frontend>,
    /// Ports that it may listen on.
    pub listened: BTreeSet<Frontend>,
}

/// Makes the kernel's maps what the newest snapshot says.
pub struct Reconciler<K> {
    kernel: K,
    settings: Settings,
    planner: Planner,
    vips: Vips,
    epoch: Instant,
    view: Option<View>,
    local: LocalView,
    /// Ports that another plane of this node may listen on, which is no process in the way.
    listened: BTreeSet<Frontend>,
    census: FlowCensus,
    expired: u64,
    due: Due,
    backoff: Duration,
    report: ReconcileReport,
    /// Backends of this node's own tasks; `None` when they may have changed since.
    own: Option<Vec<(BackendIndex, BackendGeneration, Ident)>>,
}

/// When what is next.
#[derive(Clone, Copy, Debug)]
struct Due {
    plan: Option<Instant>,
    host: Instant,
    audit: Instant,
    flows: Instant,
}

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// An audit reads every map; it may take one part in this many of the time.
const AUDIT_SHARE: u32 = 20;

impl<K: Kernel> Reconciler<K> {
    /// Takes over what the kernel holds.
    pub fn new(kernel: K, settings: Settings, now: Instant) -> Result<Self, Error> {
        let planner = Planner::new(kernel.installed()?, kernel.limits(), Moment::default());
        let vips = Vips::new(&kernel, settings.sees_containers, Moment::default())?;
        let Settings { node, intervals, .. } = settings.clone();
        let due = Due {
            plan: None,
            host: now,
            audit: now + intervals.audit,
            flows: now + intervals.flows,
        };
        let local = LocalView::new(node);
        let mut reconciler = Self {
            kernel,
            settings,
            planner,
            vips,
            epoch: now,
            view: None,
            local,
            listened: BTreeSet::new(),
            census: FlowCensus::default(),
            expired: 0,
            due,
            backoff: FIRST_BACKOFF,
            report: ReconcileReport::default(),
            own: None,
        };
        reconciler.report.plane = Some(reconciler.kernel.chosen());
        reconciler.note_installed();
        Ok(reconciler)
    }

    /// How things stand.
    pub fn report(&self) -> &ReconcileReport {
        &self.report
    }

    /// A new snapshot to make real, at once.
    pub fn take(&mut self, view: View, now: Instant) {
        self.report.wanted = view.snapshot.as_ref().map(|snapshot| snapshot.generation);
        self.report.stale = view.stale;
        let before = self.snapshot();
        self.view = Some(view);
        let after = self.snapshot();
        let renamed = self.call_node(after.as_deref().and_then(|after| after.here.as_ref()));
        if renamed || asks_anew(before.as_deref(), after.as_deref(), &self.local.node) {
            self.due.host = now;
        }
        self.due.plan = Some(now);
        self.look_at_spaces(now);
    }

    /// Ports whose clients another plane serves on this node, from now on. Always all of them.
    pub fn cede(&mut self, to: Ceded, now: Instant) {
        self.listened = to.listened;
        if self.local.ceded != to.ports || self.local.shared != to.shared {
            (self.local.ceded, self.local.shared) = (to.ports, to.shared);
            self.due.plan = Some(now);
        }
    }

    /// What a source sees of this node's own containers: their network namespaces, and the networks
    /// that these are attached to. Always all of them.
    pub fn see_spaces(&mut self, spaces: Vec<Space>, now: Instant) {
        self.vips.see(spaces);
        self.look_at_spaces(now);
    }

    /// Who is led to the DNS server of this node when they ask Docker's resolver. In the kernel when this
    /// returns, if it takes it: a server that is about to end must not be led to any more.
    pub fn intercept(&mut self, intercept: Intercept, now: Instant) {
        self.vips.intercept(intercept);
        self.look_at_spaces(now);
        self.pass(now);
    }

    /// Takes what this node is called, if the source knows; answers whether that is news.
    fn call_node(&mut self, name: Option<&NodeName>) -> bool {
        let renamed = name.filter(|name| **name != self.local.node);
        if let Some(name) = renamed {
            self.local.node = name.clone();
        }
        renamed.is_some()
    }

    /// When [`Self::work`] is next needed.
    pub fn next_due(&self) -> Instant {
        let Due { plan, host, audit, flows } = self.due;
        [Some(host), Some(audit), Some(flows), plan].into_iter().flatten().min().unwrap_or(host)
    }

    /// Does all that is due.
    pub fn work(&mut self, now: Instant) {
        if self.due.host <= now {
            self.look_at_host(now);
            self.due.host = now + self.settings.intervals.host;
        }
        if self.due.audit <= now {
            self.audit(now);
        }
        if self.due.plan.is_some_and(|due| due <= now) {
            self.pass(now);
        }
        if self.due.flows <= now {
            self.collect_flows(now);
            self.due.flows = Instant::now().max(now) + self.settings.intervals.flows;
        }
    }

    /// Counters by task.
    pub fn stats(&self) -> Result<StatsReport, Error> {
        let stats = self.kernel.stats()?;
        let installed = self.planner.installed();
        let mut report = StatsReport::new(stats, &self.census, self.expired, installed);
        report.vips = self.kernel.vip_connections()?;
        Ok(report)
    }

    /// The last packets that were not forwarded, the latest at the end.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn last_drops(&self) -> Result<Vec<DroppedPacket>, Error> {
        self.kernel.last_drops()
    }

    /// What this node's own tasks have said to new connections.
    pub fn answers(&mut self) -> Result<Vec<TaskAnswers>, Error> {
        let installed = self.planner.installed();
        // Going through all backends of a large mesh several times a second would cost too much.
        let own = self.own.get_or_insert_with(|| {
            let own = installed.backends.iter().filter(|(_, record)| is_own(record));
            own.map(|(index, record)| (*index, record.generation, record.ident)).collect()
        });
        let answers = self.kernel.answers(&mut own.iter().map(|(index, _, _)| *index))?;
        let with_task = |(&(index, generation, task), (_, answers))| TaskAnswers {
            index,
            generation,
            task,
            answers,
        };
        Ok(own.iter().zip(answers).map(with_task).collect())
    }

    /// The tasks of this node that the kernel holds, and whether they get new flows.
    pub fn held(&self) -> Held {
        let mut held = Held::new();
        for record in self.planner.installed().backends.values().filter(|it| is_own(it)) {
            let state = held.entry(record.ident).or_insert(record.state);
            // An earlier use of the same task may still drain.
            if record.state == BackendState::Active {
                *state = record.state;
            }
        }
        held
    }

    /// Ends; what goes on without it only if another one takes it over.
    pub fn leave(self) -> Option<Proxy> {
        self.kernel.leave()
    }

    /// The text form of what the kernel holds.
    pub fn dump(&self) -> Result<String, Error> {
        Ok(self.kernel.installed()?.dump() + &self.kernel.installed_vips()?.dump())
    }

    fn snapshot(&self) -> Option<Arc<MeshSnapshot>> {
        self.view.as_ref()?.snapshot.clone()
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment(now.saturating_duration_since(self.epoch))
    }

    /// Interfaces and listeners; what changed there changes the plan.
    fn look_at_host(&mut self, now: Instant) {
        let snapshot = self.snapshot().unwrap_or_default();
        let before = self.local.clone();
        match self.kernel.sync_interfaces(&local_tasks(&snapshot, &self.local.node)) {
            Ok(reach) => {
                self.local.reach = reach;
                self.report.host_failed = None;
            }
            Err(failure) => {
                let text = failure.to_string();
                if self.report.host_failed.as_ref() != Some(&text) {
                    error!(error = text, "cannot follow the interfaces of this host");
                }
                self.report.host_failed = Some(text);
            }
        }
        self.note_attachments();
        if self.note_unserved() {
            self.due.plan = Some(now);
        }
        self.report.withheld = self.holders(&snapshot);
        self.local.withheld = self.report.withheld.keys().copied().collect();
        if self.local != before {
            self.due.plan = Some(now);
            debug!("the host changed");
        }
        self.look_at_spaces(now);
    }

    /// Network namespaces of this node; what changed there changes the plan.
    fn look_at_spaces(&mut self, now: Instant) {
        let snapshot = self.snapshot();
        if self.vips.look(&self.kernel, snapshot.as_deref(), &self.local.node) {
            self.due.plan = Some(now);
            debug!("the network namespaces of this node changed");
        }
    }

    /// Who holds ports that this node should serve and does not serve yet.
    fn holders(&mut self, snapshot: &MeshSnapshot) -> BTreeMap<Frontend, Holder> {
        if self.settings.on_port_conflict == OnPortConflict::MeshWins {
            return BTreeMap::new();
        }
        let installed = self.planner.installed();
        let mut wanted = wanted_ports(snapshot, &self.local.node);
        let ceded = &self.local.ceded;
        wanted.retain(|frontend| !installed.serves(*frontend) && !ceded.contains(frontend));
        if wanted.is_empty() {
            return BTreeMap::new();
        }
        self.settings.listeners.holders(&wanted, &self.listened)
    }

    /// The kernel's maps against the mirror; a difference is repaired from what is really there.
    fn audit(&mut self, now: Instant) {
        let started = Instant::now();
        match self.kernel.installed() {
            Ok(installed) if installed == *self.planner.installed() => {}
            Ok(installed) if self.planner.is_behind() => self.begin_anew(installed, now),
            Ok(installed) => {
                let (expected, found) = (self.planner.installed().dump(), installed.dump());
                self.begin_anew(installed, now);
                self.note_drift(&expected, &found, now);
            }
            Err(failure) => self.fail(&failure, now),
        }
        let expected = self.vips.dump();
        match self.vips.audit(&self.kernel, self.moment(now)) {
            Ok(None) => {}
            Ok(Some(found)) => self.note_drift(&expected, &found, now),
            Err(failure) => self.fail(&failure, now),
        }
        let took = started.elapsed();
        self.due.audit = now + took + self.settings.intervals.audit.max(took * AUDIT_SHARE);
    }

    fn note_drift(&mut self, expected: &str, found: &str, now: Instant) {
        self.report.drift += 1;
        let differences = differences(expected, found);
        warn!(differences, "the kernel's maps are not what was written, repairing");
        self.due.plan = Some(now);
    }

    /// Plans and applies.
    fn pass(&mut self, now: Instant) {
        self.due.plan = None;
        let Some(snapshot) = self.snapshot() else { return };
        if self.planner.is_behind() {
            match self.kernel.installed() {
                Ok(installed) => self.begin_anew(installed, now),
                Err(failure) => return self.put_off(&failure, now),
            }
        }
        let started = Instant::now();
        self.kernel.follow(&snapshot);
        let plan = self.planner.plan(&snapshot, &self.local, self.moment(now));
        let of_backend = |op: &MapOp| matches!(op, MapOp::SetBackend(..) | MapOp::RemoveBackend(_));
        if plan.ops.iter().any(of_backend) {
            self.own = None;
        }
        let applied = self.apply(&plan.ops).and_then(|()| {
            let epoch = self.epoch;
            let moment = || Moment(Instant::now().saturating_duration_since(epoch));
            self.vips.pass(&mut self.kernel, (&snapshot, &self.local.node), moment)
        });
        self.note_unserved();
        self.note_problems(&plan.problems, &snapshot);
        let wake = plan.wake.into_iter().chain(self.vips.wake()).min();
        self.due.plan = wake.map(|wake| self.epoch + wake.0);
        let operations = match applied {
            Ok(of_vips) => plan.ops.len() + of_vips,
            Err(failure) => return self.recover(&failure, now),
        };
        self.backoff = FIRST_BACKOFF;
        if self.report.failed.take().is_some() {
            info!(generation = %snapshot.generation, "the kernel takes changes again");
        }
        self.note_ports(&plan.ops);
        // Of a first plan they are tens of megabytes.
        drop(plan.ops);
        self.settle(&snapshot, operations, started);
    }

    fn apply(&mut self, ops: &[MapOp]) -> Result<(), Error> {
        for op in ops {
            self.kernel.apply(op).inspect_err(|_| debug!(?op, "the operation that failed"))?;
            let moment = self.moment(Instant::now());
            self.planner.applied(moment);
        }
        Ok(())
    }

    /// All of the plan is in the kernel.
    fn settle(&mut self, snapshot: &Arc<MeshSnapshot>, operations: usize, started: Instant) {
        let previous = self.report.generation.replace(snapshot.generation);
        self.report.held = Some(snapshot.clone());
        if operations > 0 {
            self.report.operations = operations;
            self.report.duration = started.elapsed();
        }
        if previous == Some(snapshot.generation) {
            return;
        }
        if previous.is_none() {
            self.kernel.settled();
        }
        // What a start takes over is no change.
        if let (Some(_), Some(View { noticed, .. })) = (previous, &self.view) {
            self.settings.programming.observe(noticed.elapsed().as_secs_f64());
        }
        info!(
            generation = %snapshot.generation,
            operations,
            milliseconds = started.elapsed().as_millis() as u64,
            "the kernel holds the snapshot"
        );
    }

    /// An operation failed: whatever comes after it in the plan must not be applied, and the mirror
    /// is no longer to be trusted.
    fn recover(&mut self, failure: &Error, now: Instant) {
        self.fail(failure, now);
        match self.kernel.installed() {
            Ok(installed) => self.begin_anew(installed, now),
            Err(failure) => self.fail(&failure, now),
        }
        if let Err(failure) = self.vips.audit(&self.kernel, self.moment(now)) {
            self.fail(&failure, now);
        }
        self.back_off(now);
    }

    /// Nothing can be planned as long as the kernel does not tell what it holds.
    fn put_off(&mut self, failure: &Error, now: Instant) {
        self.fail(failure, now);
        self.back_off(now);
    }

    fn back_off(&mut self, now: Instant) {
        self.due.plan = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
    }

    fn begin_anew(&mut self, installed: Installed, now: Instant) {
        self.planner.resync(installed, self.moment(now));
        self.own = None;
        self.note_installed();
    }

    fn fail(&mut self, failure: &Error, now: Instant) {
        self.report.failures += 1;
        let text = failure.to_string();
        if self.report.failed.as_ref() != Some(&text) {
            error!(error = text, "the kernel refused a change, trying again");
        }
        self.report.failed = Some(text);
        let retry = now + self.backoff;
        self.due.plan = Some(self.due.plan.map_or(retry, |due| due.min(retry)));
    }

    fn note_installed(&mut self) {
        let installed = self.planner.installed();
        let ports = installed.ports.keys().filter(|frontend| installed.serves(**frontend));
        self.report.ports = Arc::new(ports.copied().collect());
    }

    /// Answers whether the ports that clients are not served at are others than before.
    fn note_unserved(&mut self) -> bool {
        let unserved = self.kernel.unserved();
        let changed = unserved != self.report.unserved;
        self.report.unserved = unserved;
        changed
    }

    /// The same after these operations: going through all ports would take longer than all the rest
    /// of a small change.
    fn note_ports(&mut self, ops: &[MapOp]) {
        let of_port = |op: &MapOp| match op {
            MapOp::Publish(frontend, _) | MapOp::Withdraw(frontend) => Some(*frontend),
            _ => None,
        };
        let installed = self.planner.installed();
        for frontend in ops.iter().filter_map(of_port) {
            let is_served = installed.serves(frontend);
            if self.report.ports.contains(&frontend) != is_served {
                let ports = Arc::make_mut(&mut self.report.ports);
                let _ = if is_served { ports.insert(frontend) } else { ports.remove(&frontend) };
            }
        }
    }

    fn note_attachments(&mut self) {
        let new = self.kernel.attachments();
        let old = &self.report.attachments;
        for interface in new.missing.difference(&old.missing) {
            warn!(%interface, "an uplink is missing, clients cannot come in by it");
        }
        for interface in old.missing.difference(&new.missing) {
            info!(%interface, "an uplink is back");
        }
        for (hook, error) in new.failed.iter().filter(|(hook, _)| !old.failed.contains_key(*hook)) {
            error!(hook, error, "a program is not attached");
        }
        self.report.attachments = new;
    }

    fn note_problems(&mut self, problems: &[Problem], snapshot: &MeshSnapshot) {
        let mut texts: Vec<_> = problems.iter().map(|problem| self.explain(problem)).collect();
        texts.extend(self.vips.problems());
        texts.extend(self.kernel.wishes_not_met(snapshot));
        let unserved = &self.report.unserved;
        texts.extend(unserved.values().cloned());
        self.report.spare = match unserved.is_empty() {
            true => BTreeSet::new(),
            false => {
                let services = snapshot.services.values().filter(|it| !it.proxied.is_needed());
                let ports = services.flat_map(|service| service.ports.iter().map(Frontend::of));
                ports.filter(|port| unserved.contains_key(port)).collect()
            }
        };
        let node = &self.local.node;
        if !snapshot.nodes.is_empty() && !snapshot.nodes.contains_key(node) {
            let remedy = match snapshot.here {
                Some(_) => "see what the source says of it",
                None => "list it as a node, or set node.name to the name it is listed under",
            };
            texts.push(format!(
                "this node, {node}, is not in the mesh: other nodes refuse what it forwards; {remedy}"
            ));
        }
        let known: BTreeSet<&String> = self.report.problems.iter().collect();
        let still: BTreeSet<&String> = texts.iter().collect();
        for text in texts.iter().filter(|text| !known.contains(text)) {
            warn!(problem = text, "a new problem");
        }
        for text in self.report.problems.iter().filter(|text| !still.contains(text)) {
            info!(problem = text, "a problem is gone");
        }
        self.report.problems = texts;
    }

    fn explain(&self, problem: &Problem) -> String {
        let Problem::PortTaken { service, frontend } = problem else { return problem.to_string() };
        let holder = self.report.withheld.get(frontend);
        let holder = holder.map_or_else(|| "a process listens there".into(), ToString::to_string);
        format!(
            "service {service} is not served at {frontend} on this node: {holder}; stop it, publish \
             another port, or set dataplane.on_port_conflict = \"mesh-wins\""
        )
    }

    /// Whether a backend is one of another node and drains.
    fn drains_elsewhere(&self, index: BackendIndex) -> bool {
        let backend = self.planner.installed().backends.get(&index);
        backend.is_some_and(|it| !is_own(it) && it.state == BackendState::Draining)
    }

    fn collect_flows(&mut self, now: Instant) {
        match self.kernel.collect_flows() {
            Ok(census) => {
                self.expired += census.expired;
                let backends =
                    census.carried.iter().copied().filter(|at| self.drains_elsewhere(*at));
                self.local.carried =
                    Carried { seen: self.moment(now), backends: backends.collect() };
                self.census = census;
            }
            Err(failure) => warn!(error = %failure, "cannot go through the flow tables"),
        }
    }
}

/// Whether a backend is a task of this node.
fn is_own(record: &BackendRecord) -> bool {
    !matches!(record.via, Via::Tunnel { .. })
}

/// The first lines that only one of two dumps has.
fn differences(expected: &str, found: &str) -> String {
    const MOST: usize = 6;
    let (expected, found): (BTreeSet<_>, BTreeSet<_>) =
        (expected.lines().collect(), found.lines().collect());
    let missing = expected.difference(&found).map(|line| format!("missing: {line}"));
    let foreign = found.difference(&expected).map(|line| format!("foreign: {line}"));
    let all = missing.count() + foreign.count();
    let missing = expected.difference(&found).map(|line| format!("missing: {line}"));
    let foreign = found.difference(&expected).map(|line| format!("foreign: {line}"));
    let shown: Vec<String> = missing.chain(foreign).take(MOST).collect();
    format!("{} ({all} in all)", shown.join(" | "))
}
