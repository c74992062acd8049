//! What is known of each task of this node, and what follows for the snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tracing::{info, warn};
use weir_mesh::{
    Ident, Moment, NodeName, Protocol, PublishMode, Service, ServiceName, TargetPort, Task,
    TaskName, TaskState,
    health::{Check, CheckKind, CheckState, Ejection, EjectionState, Seen, Verdict, spares},
    install::BackendState,
};

use super::{Finding, Held, LocalHealth, Others, Purpose, Target, Targets, TaskHealth};
use crate::{
    diff::{Change, each_change},
    drain::{self, Drained},
};

type Services = BTreeMap<ServiceName, Arc<Service>>;

/// So often an ejected task is asked whether it listens again.
const RETURN: Duration = Duration::from_secs(1);

/// All that is known. Pure: it is told what was found, and when.
#[derive(Debug)]
pub struct Book {
    node: NodeName,
    /// Until the first declaration.
    held: Option<Held>,
    services: Services,
    /// Boxed, since most services have a task or two on a node, and a map makes room for eleven.
    tasks: BTreeMap<ServiceName, BTreeMap<TaskName, Box<Entry>>>,
    names: BTreeMap<Ident, (ServiceName, TaskName)>,
    /// What other nodes say of theirs.
    others: Arc<Others>,
    /// What is drained by hand.
    drained: Arc<Drained>,
    /// Services with tasks that are out, as they are to be in the snapshot.
    changed: Services,
}

/// A task of this node.
#[derive(Debug)]
struct Entry {
    ident: Ident,
    addresses: (Option<std::net::Ipv4Addr>, Option<std::net::Ipv6Addr>),
    /// `None` when the service has no check.
    check: Option<CheckState>,
    /// Whether it has been healthy before.
    known: bool,
    /// What the last bad probe found.
    problem: Option<String>,
    /// Why the check has failed, as long as it fails.
    failed: Option<String>,
    ejection: EjectionState,
    ejections: u64,
    /// Out of the mesh by ejection.
    ejected: bool,
    /// What there is to be said.
    reason: Option<String>,
    healthy: bool,
    /// What others are told, as of the last judgement.
    told: Option<Arc<TaskHealth>>,
}

impl Book {
    /// Nothing is known but what the kernel held when the agent began: what it let have new flows
    /// then is healthy until it proves otherwise.
    pub fn new(node: NodeName, held: Held) -> Self {
        Self {
            node,
            held: Some(held),
            services: Services::new(),
            tasks: BTreeMap::new(),
            names: BTreeMap::new(),
            others: Arc::default(),
            drained: Arc::default(),
            changed: Services::new(),
        }
    }

    /// Takes what this node is called, if the source knows. Under another name the tasks are others.
    pub fn call_node(&mut self, name: Option<&NodeName>) {
        if let Some(name) = name.filter(|name| **name != self.node) {
            self.node = name.clone();
            self.services.clear();
            self.changed.clear();
        }
    }

    /// Takes what the source wants now. `before`: what it wanted when the agent ran last, for the
    /// first time.
    pub fn declare(&mut self, services: &Services, before: &Services, now: Moment) {
        let old = std::mem::replace(&mut self.services, services.clone());
        let held = self.held.take().unwrap_or_default();
        let mut touched = Vec::new();
        each_change(&old, services, |name, change| {
            touched.push(name.clone());
            match change {
                Change::Removed(_) => self.forget(name),
                Change::Added(service) | Change::Changed(_, service) => {
                    let earlier = before.get(name).map(|service| &**service);
                    self.enter(service, earlier, &held, now);
                }
            }
        });
        touched.iter().for_each(|name| self.judge(name));
    }

    /// Takes what was found out; true when that changed what there is to be said of a task.
    pub fn note(&mut self, finding: Finding, now: Moment) -> bool {
        match finding {
            Finding::Probed(task, Purpose::Check, found) => self.probed(task, found),
            Finding::Probed(task, Purpose::Return, found) => self.listens(task, found.is_ok(), now),
            Finding::Seen(tasks) => tasks
                .into_iter()
                .fold(false, |changed, (task, seen)| self.seen(task, seen, now) || changed),
            Finding::Others(others) => self.heard(others),
            Finding::Drained(drained) => self.drain(drained),
        }
    }

    fn heard(&mut self, others: Arc<Others>) -> bool {
        let older = std::mem::replace(&mut self.others, others);
        let services = self.services.values();
        let touched = services.filter(|service| self.others.differs(&older, service));
        let touched: Vec<ServiceName> = touched.map(|service| service.name.clone()).collect();
        touched.iter().for_each(|name| self.judge(name));
        !touched.is_empty()
    }

    fn drain(&mut self, drained: Arc<Drained>) -> bool {
        let older = std::mem::replace(&mut self.drained, drained);
        let differs = |service: &&Arc<Service>| {
            service.tasks.iter().any(|task| {
                let of = |drained: &Drained| drained.has(&self.node, &service.name, task);
                of(&older) != of(&self.drained)
            })
        };
        let touched = self.services.values().filter(differs);
        let touched: Vec<ServiceName> = touched.map(|service| service.name.clone()).collect();
        touched.iter().for_each(|name| self.judge(name));
        !touched.is_empty()
    }

    /// Lets time pass; true as for [`Book::note`].
    pub fn tick(&mut self, now: Moment) -> bool {
        let mut over = Vec::new();
        for (name, tasks) in &mut self.tasks {
            let Some(settings) = self.services.get(name).and_then(|it| it.health.ejection) else {
                continue;
            };
            let ticked = tasks
                .values_mut()
                .filter_map(|entry| entry.ejection.tick(now, &settings).then_some(()));
            if ticked.count() > 0 {
                over.push(name.clone());
            }
        }
        over.iter().for_each(|name| self.judge(name));
        !over.is_empty()
    }

    /// When [`Book::tick`] is next needed.
    pub fn due(&self) -> Option<Moment> {
        let entries = self.tasks.values().flat_map(BTreeMap::values);
        entries.filter_map(|entry| entry.ejection.due()).min()
    }

    /// The services as they are to be in the snapshot: tasks that are out are draining.
    pub fn overlaid(&self) -> Services {
        let mut services = self.services.clone();
        let changed = self.changed.iter();
        services.extend(changed.map(|(name, service)| (name.clone(), service.clone())));
        services
    }

    /// What is to be probed: active tasks of services with a check, and those that are ejected.
    pub fn targets(&self) -> Targets {
        let mut targets = BTreeMap::new();
        for (name, tasks) in &self.tasks {
            let Some(service) = self.services.get(name) else { continue };
            if service.health.check.is_none() && !tasks.values().any(|entry| entry.is_ejected()) {
                continue;
            }
            let mine = service.tasks.iter().filter(|task| task.node == self.node);
            for task in mine.filter(|task| task.state == TaskState::Active) {
                let Some(entry) = tasks.get(&task.name) else { continue };
                let Some(address) = task.addresses().next() else { continue };
                let mut add = |purpose, ports: BTreeSet<TargetPort>, check: Check| {
                    let socket = |port: TargetPort| SocketAddr::new(address, port.get());
                    let addresses = ports.into_iter().map(socket).collect();
                    let known = entry.known || purpose == Purpose::Return;
                    let target = Target { addresses, check, known };
                    targets.insert((entry.ident, purpose), target);
                };
                let check = service.health.check.as_ref();
                if let Some((check, port)) = check.and_then(|it| Some((it, it.target(service)?))) {
                    add(Purpose::Check, [port].into(), check.clone());
                }
                // Nobody knows which port it has refused at.
                let tcp = service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
                if entry.is_ejected() && !entry.fails() {
                    let check = Check { interval: RETURN, ..Check::new(CheckKind::Tcp) };
                    add(Purpose::Return, tcp.map(|port| port.target).collect(), check);
                }
            }
        }
        targets.retain(|_, target: &mut Target| !target.addresses.is_empty());
        Arc::new(targets)
    }

    /// How the tasks are that are judged at all, and those that others have taken out.
    pub fn health(&self) -> LocalHealth {
        let entries = self.tasks.values().flat_map(BTreeMap::values);
        let told = entries.filter_map(|entry| Some((entry.ident, entry.told.clone()?)));
        let mut health: BTreeMap<_, _> = told.collect();
        for service in self.changed.keys().filter_map(|name| self.services.get(name)) {
            let reasons = self.others.reasons(service, &self.node);
            for task in &service.tasks {
                let ident = Ident::of_task(&service.name, &task.name, &task.node);
                let by_hand = self.drained.has(&self.node, &service.name, task);
                let reason = match reasons.get(&ident) {
                    _ if by_hand => drain::REASON.to_owned(),
                    Some(reason) => reason.to_string(),
                    None => continue,
                };
                // Others know failing tasks, and that a failing task gets no new flows.
                let told_others = by_hand && task.node == self.node;
                let verdict = told_others.then(drained_by_hand);
                let ejections = health.get(&ident).map_or(0, |known| known.ejections);
                let told = TaskHealth {
                    service: service.name.clone(),
                    task: task.name.clone(),
                    node: task.node.clone(),
                    healthy: false,
                    verdict,
                    reason: Some(reason),
                    ejections,
                };
                health.insert(ident, Arc::new(told));
            }
        }
        Arc::new(health)
    }

    fn forget(&mut self, service: &ServiceName) {
        let tasks = self.tasks.remove(service).unwrap_or_default();
        tasks.values().for_each(|entry| drop(self.names.remove(&entry.ident)));
    }

    fn enter(&mut self, service: &Service, before: Option<&Service>, held: &Held, now: Moment) {
        let mut known = self.tasks.remove(&service.name).unwrap_or_default();
        known.values().for_each(|entry| drop(self.names.remove(&entry.ident)));
        let checked = service.health.check.as_ref().is_some_and(|it| it.target(service).is_some());
        let judged = checked || service.health.ejection.is_some();
        let mut entries = BTreeMap::new();
        for task in service.tasks.iter().filter(|task| judged && task.node == self.node) {
            let ident = Ident::of_task(&service.name, &task.name, &task.node);
            let mut entry = match known
                .remove(&task.name)
                .filter(|entry| entry.addresses == (task.ipv4, task.ipv6))
            {
                // Its identity is another when its node was renamed.
                Some(mut entry) => {
                    entry.ident = ident;
                    entry
                }
                None => {
                    let wanted = before.is_none_or(|service| was_active(service, task));
                    let held = held.get(&ident).copied().filter(|_| wanted);
                    let by_hand = self.drained.has(&self.node, &service.name, task);
                    Box::new(Entry::new(ident, task, held, by_hand, service, now))
                }
            };
            // On internal networks alone its node does not reach it; nobody could ask it.
            let checked = checked && task.addresses().next().is_some();
            entry.fit(checked, service.health.ejection.is_some());
            self.names.insert(ident, (service.name.clone(), task.name.clone()));
            entries.insert(task.name.clone(), entry);
        }
        if !entries.is_empty() {
            self.tasks.insert(service.name.clone(), entries);
        }
    }

    fn probed(&mut self, task: Ident, found: Result<(), String>) -> bool {
        let Some((service, entry)) = self.entry(task) else { return false };
        let Some(check) = &service.health.check else { return false };
        let Some(state) = &mut entry.check else { return false };
        let turned = state.note(found.is_ok(), check);
        entry.known |= state.is_healthy();
        let problem = found.err();
        if problem.is_some() && entry.ejection.current().is_some_and(|(_, refused)| refused == 0) {
            // That is why it was out when the agent began.
            entry.ejection = EjectionState::default();
        }
        // While it is healthy, a single bad probe is nothing to speak of.
        let news = !state.is_healthy() && problem.is_some() && problem != entry.problem;
        entry.problem = problem.or(entry.problem.take());
        if turned && state.is_healthy() {
            (entry.problem, entry.failed) = (None, None);
        } else if turned && let Some(problem) = &entry.problem {
            entry.failed = Some(format!("{problem}, {} times", check.fall));
        }
        if turned || news {
            let name = service.name.clone();
            self.judge(&name);
        }
        turned || news
    }

    fn seen(&mut self, task: Ident, seen: Seen, now: Moment) -> bool {
        let Some((service, entry)) = self.entry(task) else { return false };
        let Some(settings) = &service.health.ejection else { return false };
        let changed = entry.ejection.note(seen, now, settings);
        if changed {
            let name = service.name.clone();
            self.judge(&name);
        }
        changed
    }

    fn listens(&mut self, task: Ident, listens: bool, now: Moment) -> bool {
        let Some((service, entry)) = self.entry(task) else { return false };
        let Some(settings) = &service.health.ejection else { return false };
        let changed = entry.ejection.listens(listens, now, settings);
        if changed {
            let name = service.name.clone();
            self.judge(&name);
        }
        changed
    }

    fn entry(&mut self, task: Ident) -> Option<(Arc<Service>, &mut Entry)> {
        let (service, task) = self.names.get(&task)?;
        let entry = self.tasks.get_mut(service)?.get_mut(task)?;
        Some((self.services.get(service)?.clone(), entry))
    }

    /// Decides which tasks of a service are out.
    fn judge(&mut self, name: &ServiceName) {
        let Some(service) = self.services.get(name) else {
            self.changed.remove(name);
            return;
        };
        let mut none = BTreeMap::new();
        let tasks = self.tasks.get_mut(name).unwrap_or(&mut none);
        let spared = spared(&self.node, service, tasks, &self.drained);
        tasks.iter_mut().for_each(|(task, entry)| {
            entry.conclude(spared.as_ref(), &self.node, name, task);
        });
        let is_out = |verdict: &Verdict| match verdict {
            Verdict::Failing { .. } => true,
            Verdict::Ejected { .. } => service.health.ejection.is_some() && spared.is_none(),
        };
        let reasons = self.others.reasons(service, &self.node);
        let others_say = |task: &Task| {
            let ident = || Ident::of_task(name, &task.name, &task.node);
            !reasons.is_empty() && reasons.contains_key(&ident())
        };
        let out = |task: &Task| {
            task.state == TaskState::Active
                && (self.drained.has(&self.node, name, task)
                    || match task.node == self.node {
                        true => tasks.get(&task.name).is_some_and(|entry| !entry.healthy),
                        false => task.verdict.as_ref().is_some_and(is_out) || others_say(task),
                    })
        };
        if !service.tasks.iter().any(out) {
            self.changed.remove(name);
            return;
        }
        let mut changed = (**service).clone();
        let leaving = changed.tasks.iter_mut().filter(|task| out(task));
        leaving.for_each(|task| task.state = TaskState::Draining);
        if self.changed.get(name).is_none_or(|known| **known != changed) {
            self.changed.insert(name.clone(), Arc::new(changed));
        }
    }
}

/// By which settings ejected tasks are spared, if so many are out that none may go.
///
/// The verdicts on other nodes' tasks count where they are known: verdicts, not what followed from
/// them. Two nodes that each spared theirs because of the other's would never come to an end.
/// What is drained by hand is out whoever is left, as a failing task is.
fn spared(
    node: &NodeName,
    service: &Service,
    tasks: &BTreeMap<TaskName, Box<Entry>>,
    drained: &Drained,
) -> Option<Ejection> {
    let here = |task: &Task| task.node == *node;
    // In host mode the tasks of other nodes are no help to this one's clients.
    let host_mode = service.ports.iter().any(|port| port.mode == PublishMode::Host);
    let serves = |task: &&Task| {
        task.state == TaskState::Active && task.weight > 0 && (!host_mode || here(task))
    };
    let serving: Vec<&Task> = service.tasks.iter().filter(serves).collect();
    let verdict = |task: &&Task| match here(task) {
        _ if drained.has(node, &service.name, task) => Some(drained_by_hand()),
        true => tasks.get(&task.name).and_then(|entry| entry.verdict()),
        false => task.verdict.clone(),
    };
    let verdicts: Vec<Verdict> = serving.iter().filter_map(verdict).collect();
    let ejected = verdicts.iter().filter(|it| matches!(it, Verdict::Ejected { .. })).count();
    let failing = verdicts.len() - ejected;
    service.health.ejection.filter(|it| spares(serving.len(), failing, ejected, it))
}

/// What others are told of a task that is drained by hand, and what it counts as here.
fn drained_by_hand() -> Verdict {
    Verdict::Failing { problem: drain::REASON.to_owned() }
}

/// Whether a task of these names was to take new flows. One that was not there may have been.
fn was_active(service: &Service, task: &Task) -> bool {
    let known = service.tasks.iter().find(|known| known.name == task.name);
    known.is_none_or(|known| known.node != task.node || known.state == TaskState::Active)
}

impl Entry {
    /// A task that is new, or that the kernel held when the agent began. `by_hand`: it is drained.
    fn new(
        ident: Ident,
        task: &Task,
        held: Option<BackendState>,
        by_hand: bool,
        service: &Service,
        now: Moment,
    ) -> Self {
        let was_in = held == Some(BackendState::Active);
        // It was to have new flows and had none: it was out, and nobody knows since when, nor why.
        let was_out = !by_hand && held.is_some() && !was_in && task.state == TaskState::Active;
        let settings = service.health.ejection.filter(|_| was_out);
        Self {
            ident,
            addresses: (task.ipv4, task.ipv6),
            check: service.health.check.as_ref().map(|_| CheckState::new(was_in)),
            known: held.is_some(),
            problem: None,
            failed: None,
            ejection: settings
                .map(|settings| EjectionState::ejected(now, &settings))
                .unwrap_or_default(),
            ejections: 0,
            ejected: settings.is_some(),
            reason: None,
            healthy: true,
            told: None,
        }
    }

    /// Follows a change of what the service asks for. A task that serves goes on serving.
    fn fit(&mut self, checked: bool, ejecting: bool) {
        match (checked, self.check) {
            (true, None) => self.check = Some(CheckState::new(true)),
            (false, Some(_)) => (self.check, self.problem, self.failed) = (None, None, None),
            _ => {}
        }
        if !ejecting {
            self.ejection = EjectionState::default();
        }
    }

    fn fails(&self) -> bool {
        self.check.is_some_and(|check| !check.is_healthy())
    }

    fn is_ejected(&self) -> bool {
        self.ejection.current().is_some()
    }

    /// Notes what follows, given whether the panic threshold keeps ejected tasks in.
    fn conclude(
        &mut self,
        spared: Option<&Ejection>,
        node: &NodeName,
        service: &ServiceName,
        task: &TaskName,
    ) {
        let was = self.healthy;
        let ejected = self.is_ejected() && spared.is_none();
        self.ejections += u64::from(ejected && !self.ejected);
        self.ejected = ejected;
        self.healthy = !self.fails() && !ejected;
        self.reason = self.reason_now(spared);
        self.tell(node, service, task);
        match (was, self.healthy) {
            (true, false) => {
                let reason = self.reason.as_deref().unwrap_or_default();
                warn!(%service, %task, reason, "a task takes no new flows");
            }
            (false, true) => info!(%service, %task, "a task takes new flows again"),
            _ => {}
        }
    }

    /// Notes what others are told, anew only if it is another than before.
    fn tell(&mut self, node: &NodeName, service: &ServiceName, task: &TaskName) {
        let told = TaskHealth {
            service: service.clone(),
            task: task.clone(),
            node: node.clone(),
            healthy: self.healthy,
            verdict: self.verdict(),
            reason: self.reason.clone(),
            ejections: self.ejections,
        };
        if self.told.as_deref() != Some(&told) {
            self.told = Some(Arc::new(told));
        }
    }

    /// What other nodes are to know of it.
    fn verdict(&self) -> Option<Verdict> {
        if self.fails() {
            let problem = match (&self.failed, &self.problem) {
                (Some(failed), _) => failed.clone(),
                (None, Some(problem)) => format!("not healthy yet, {problem}"),
                (None, None) => "not healthy yet".to_owned(),
            };
            return Some(Verdict::Failing { problem });
        }
        let (time, refused) = self.ejection.current()?;
        Some(Verdict::Ejected { time, refused })
    }

    fn reason_now(&self, spared: Option<&Ejection>) -> Option<String> {
        let verdict = self.verdict()?;
        Some(match spared {
            Some(Ejection { panic, .. }) => verdict.spared(*panic),
            None => verdict.to_string(),
        })
    }
}

#[cfg(test)]
mod tests;
