//! Which services must be looked at: those that changed, and those for which time has come.
//!
//! A plan after a small change must not cost what a plan from scratch costs, so the planner
//! remembers what it saw and compares. Everything it remembers here may be forgotten at any time:
//! the next plan then looks at every service and finds the same.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{LocalView, Problem, run::Run};
use crate::{
    ident::Ident,
    install::{Frontend, NodeIndex, ServiceId},
    service::{NodeName, PublishMode, Service, ServiceName, TaskState},
};

/// What earlier plans saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    local: Option<LocalView>,
    /// The indexes of the nodes of the snapshot.
    pub(super) nodes: BTreeMap<NodeName, NodeIndex>,
    /// The nodes of which all that lives there is known.
    whole: BTreeSet<NodeName>,
    pub(super) services: BTreeMap<ServiceName, Known>,
    names: BTreeMap<Ident, ServiceName>,
    /// Which services want a port on this node; the first by name has it.
    claims: BTreeMap<Frontend, BTreeSet<ServiceName>>,
    /// What is wrong, by service. Only services with problems are here.
    pub(super) problems: BTreeMap<ServiceName, Vec<Problem>>,
    /// Services for which there was not enough of something.
    pub(super) unsettled: BTreeSet<ServiceName>,
    /// The same, of those that left the snapshot.
    pub(super) unsettled_gone: BTreeSet<ServiceId>,
    /// Services that left the snapshot while something of them is still installed.
    pub(super) gone: BTreeSet<ServiceId>,
}

/// A service as it was seen last.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) ident: Ident,
    service: Arc<Service>,
    claims: BTreeSet<Frontend>,
}

/// The services to look at.
#[derive(Debug, Default)]
pub(super) struct Todo<'a> {
    /// Services of the snapshot, by name, with their identities.
    pub(super) services: Vec<(&'a ServiceName, &'a Arc<Service>, Ident)>,
    /// Services that are not in the snapshot.
    pub(super) gone: BTreeSet<ServiceId>,
}

impl Memory {
    /// The service that has a port on this node.
    pub(super) fn winner(&self, frontend: Frontend) -> Option<&ServiceName> {
        self.claims.get(&frontend)?.first()
    }

    /// Whether a service is in the snapshot.
    pub(super) fn knows(&self, service: Ident) -> bool {
        self.names.contains_key(&service)
    }

    fn claim(&mut self, name: &ServiceName, claims: &BTreeSet<Frontend>) {
        for frontend in claims {
            self.claims.entry(*frontend).or_default().insert(name.clone());
        }
    }

    fn unclaim(&mut self, name: &ServiceName, claims: &BTreeSet<Frontend>) {
        for frontend in claims {
            if let Some(claimants) = self.claims.get_mut(frontend) {
                claimants.remove(name);
                if claimants.is_empty() {
                    self.claims.remove(frontend);
                }
            }
        }
    }
}

impl<'a> Run<'a> {
    /// Forgets everything when it is about another node. Answers whether nothing is remembered.
    pub(super) fn forget_if_new(&mut self) -> bool {
        let memory = &mut self.planner.memory;
        let same = memory.local.as_ref().is_some_and(|local| local.node == self.local.node);
        if !same {
            *memory = Memory::default();
        }
        !same
    }

    /// Brings the memory up to date and answers what is to be looked at.
    pub(super) fn find_changes(&mut self, moved: &BTreeSet<NodeName>) -> Todo<'a> {
        let mut todo = Todo::default();
        let (changed, vanished) = self.compare();
        for name in vanished {
            self.forget_service(&name, &mut todo);
        }
        let learned: Vec<_> = changed
            .into_iter()
            .map(|(name, service)| (name.clone(), self.learn_service(name, service, &mut todo)))
            .collect();
        // Built at once the first time: ten thousand insertions would take longer than the plan.
        match &mut self.planner.memory.services {
            services if services.is_empty() => *services = learned.into_iter().collect(),
            services => services.extend(learned),
        }
        self.add_local_changes(&mut todo);
        self.add_moved(moved, &mut todo);
        self.add_due(&mut todo);
        todo.services.extend(self.unsettled().services);
        let gone = std::mem::take(&mut self.planner.memory.unsettled_gone);
        todo.gone.extend(gone.intersection(&self.planner.memory.gone));
        todo.settle();
        todo
    }

    /// The services that found no room when they were last planned.
    pub(super) fn unsettled(&mut self) -> Todo<'a> {
        let mut todo = Todo::default();
        let unsettled = std::mem::take(&mut self.planner.memory.unsettled);
        unsettled.iter().for_each(|name| self.add_service(name, &mut todo));
        todo
    }

    /// At the first plan: services of which something is installed and that are not in the mesh.
    pub(super) fn find_strangers(&mut self, todo: &mut Todo<'a>) {
        let planner = &mut *self.planner;
        for id in planner.draft.services() {
            let ident = planner.draft.hold(id).and_then(|hold| hold.ident);
            let present = ident.is_some_and(|ident| {
                planner.memory.knows(ident) && planner.draft.service_id(ident) == Some(id)
            });
            if !present {
                planner.memory.gone.insert(id);
                todo.gone.insert(id);
            }
        }
    }

    /// Walks through what is known and what is wanted side by side, both ordered by name.
    fn compare(&self) -> (Vec<(&'a ServiceName, &'a Arc<Service>)>, Vec<ServiceName>) {
        let (mut changed, mut vanished) = (Vec::new(), Vec::new());
        let mut known = self.planner.memory.services.iter().peekable();
        for (name, service) in &self.snapshot.services {
            loop {
                let order = known.peek().map_or(Ordering::Greater, |(old, _)| (*old).cmp(name));
                if order == Ordering::Greater {
                    changed.push((name, service));
                    break;
                }
                let Some((old_name, old)) = known.next() else { break };
                if order == Ordering::Less {
                    vanished.push(old_name.clone());
                    continue;
                }
                // Shared services are equal at a glance.
                if old.service != *service {
                    changed.push((name, service));
                }
                break;
            }
        }
        vanished.extend(known.map(|(name, _)| name.clone()));
        (changed, vanished)
    }

    fn forget_service(&mut self, name: &ServiceName, todo: &mut Todo<'a>) {
        let memory = &mut self.planner.memory;
        memory.problems.remove(name);
        memory.unsettled.remove(name);
        let Some(known) = memory.services.remove(name) else { return };
        memory.names.remove(&known.ident);
        memory.unclaim(name, &known.claims);
        if let Some(id) = self.planner.draft.service_id(known.ident) {
            self.planner.memory.gone.insert(id);
            todo.gone.insert(id);
        }
        self.add_claimants(&known.claims, todo);
    }

    fn learn_service(
        &mut self,
        name: &'a ServiceName,
        service: &'a Arc<Service>,
        todo: &mut Todo<'a>,
    ) -> Known {
        let claims = self.claims_of(service);
        let memory = &mut self.planner.memory;
        let (ident, old) = match memory.services.remove(name) {
            Some(known) => (known.ident, known.claims),
            None => (Ident::of_service(name), BTreeSet::new()),
        };
        if old != claims {
            memory.unclaim(name, &old);
            memory.claim(name, &claims);
            let contested = old.symmetric_difference(&claims).copied().collect();
            self.add_claimants(&contested, todo);
        }
        self.planner.memory.names.insert(ident, name.clone());
        todo.services.push((name, service, ident));
        Known { ident, service: service.clone(), claims }
    }

    /// The ports that a service wants on this node: in host mode only where a task of it runs.
    fn claims_of(&self, service: &Service) -> BTreeSet<Frontend> {
        let runs_here = service
            .tasks
            .iter()
            .any(|task| task.node == self.local.node && task.state != TaskState::Down);
        let wanted = |mode| match mode {
            PublishMode::Ingress => true,
            PublishMode::Host => runs_here,
        };
        let ports = service.ports.iter().filter(|port| wanted(port.mode));
        ports.map(Frontend::of).collect()
    }

    fn add_claimants(&self, frontends: &BTreeSet<Frontend>, todo: &mut Todo<'a>) {
        for frontend in frontends {
            for name in self.planner.memory.claims.get(frontend).into_iter().flatten() {
                self.add_service(name, todo);
            }
        }
    }

    /// Adds a service that is known already; others are new and looked at anyway.
    fn add_service(&self, name: &ServiceName, todo: &mut Todo<'a>) {
        if let Some(known) = self.planner.memory.services.get(name)
            && let Some((name, service)) = self.snapshot.services.get_key_value(name)
        {
            todo.services.push((name, service, known.ident));
        }
    }

    /// Adds the services of which this is true.
    fn add_if(&self, is_touched: impl Fn(&Service) -> bool, todo: &mut Todo<'a>) {
        let touched = self.snapshot.services.iter().filter(|(_, service)| is_touched(service));
        touched.for_each(|(name, _)| self.add_service(name, todo));
    }

    /// Services with a task whose way changed, or with a port that began or ceased to be withheld, ceded
    /// or shared.
    fn add_local_changes(&mut self, todo: &mut Todo<'a>) {
        let old = self.planner.memory.local.take();
        if let Some(old) = old.filter(|old| old != self.local) {
            let addresses: BTreeSet<IpAddr> = differing(&old, self.local).collect();
            let withheld = old.withheld.symmetric_difference(&self.local.withheld);
            let ceded = old.ceded.symmetric_difference(&self.local.ceded);
            let shared = old.shared.symmetric_difference(&self.local.shared);
            let ports: BTreeSet<Frontend> = withheld.chain(ceded).chain(shared).copied().collect();
            self.add_claimants(&ports, todo);
            let here = |service: &Service| {
                let mut local = service.tasks.iter().filter(|task| task.node == self.local.node);
                local.any(|task| task.addresses().any(|address| addresses.contains(&address)))
            };
            self.add_if(here, todo);
            self.planner.memory.local = Some(old);
        }
        if self.planner.memory.local.as_ref() != Some(self.local) {
            self.planner.memory.local = Some(self.local.clone());
        }
    }

    fn add_moved(&self, moved: &BTreeSet<NodeName>, todo: &mut Todo<'a>) {
        if !moved.is_empty() {
            let there =
                |service: &Service| service.tasks.iter().any(|task| moved.contains(&task.node));
            self.add_if(there, todo);
        }
    }

    /// Services of which something leaves, when more is known of a node than before, or less: what
    /// drained here for lack of news may be known to have ended, and what drained since its own node
    /// ends its flows may be for this one to end.
    pub(super) fn add_accounted(&mut self, todo: &mut Todo<'a>) {
        let whole = self.snapshot.nodes.values().filter(|node| node.whole);
        let whole: BTreeSet<NodeName> = whole.map(|node| node.name.clone()).collect();
        let old = std::mem::replace(&mut self.planner.memory.whole, whole);
        if self.planner.memory.whole == old {
            return;
        }
        let planner = &*self.planner;
        for id in planner.departures.leaving(&planner.draft) {
            self.add_by_id(id, todo);
        }
        todo.settle();
    }

    /// Services of which something is due to leave.
    fn add_due(&self, todo: &mut Todo<'a>) {
        for id in self.planner.departures.due(&self.planner.draft, self.now) {
            self.add_by_id(id, todo);
        }
    }

    fn add_by_id(&self, id: ServiceId, todo: &mut Todo<'a>) {
        let planner = &*self.planner;
        let ident = planner.draft.hold(id).and_then(|hold| hold.ident);
        let ident = ident.filter(|ident| planner.draft.service_id(*ident) == Some(id));
        match ident.and_then(|ident| planner.memory.names.get(&ident)) {
            Some(name) => self.add_service(name, todo),
            None => drop(todo.gone.insert(id)),
        }
    }
}

impl Todo<'_> {
    /// In order, each once.
    fn settle(&mut self) {
        self.services.sort_by_key(|(name, ..)| *name);
        self.services.dedup_by_key(|(name, ..)| *name);
    }
}

/// The addresses that are reached differently.
fn differing<'a>(old: &'a LocalView, new: &'a LocalView) -> impl Iterator<Item = IpAddr> + 'a {
    let changed = old.reach.iter().filter(|(address, via)| new.reach.get(address) != Some(via));
    let added = new.reach.keys().filter(|address| !old.reach.contains_key(address));
    changed.map(|(address, _)| address).chain(added).copied()
}
