//! How a published port finds a task for a new flow: the kernel's record and pick regions, resolved.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use weir_mesh::{
    Balance,
    balance::client_cell,
    install::{BackendIndex, Installed, Region, Rules, ServiceRecord},
};

use crate::{backend::Backend, counters::Reason, service::Service};

/// Among whom a flow chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Among {
    /// All tasks.
    All,
    /// The tasks of this node.
    Here,
}

/// Where a published port leads. Never changed, only replaced.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) record: ServiceRecord,
    /// What all routes of the service share.
    pub(crate) service: Arc<Service>,
    /// Who may be a client; `None`: everybody.
    rules: Option<Rules>,
    all: [Picks; 2],
    here: [Picks; 2],
}

/// A region of the pick table: cells that name tasks, each task kept once.
#[derive(Debug, Default)]
struct Picks {
    cells: Box<[u32]>,
    tasks: Box<[Arc<Backend>]>,
}

/// Cells looked at before all tasks are: a task may start to drain just before the region changes.
const TRIES: usize = 4;

impl Route {
    pub(crate) fn new(
        record: ServiceRecord,
        installed: &Installed,
        backends: &HashMap<BackendIndex, Arc<Backend>>,
        service: Arc<Service>,
    ) -> Self {
        let picks = |region: Region| match installed.regions.get(&region.offset) {
            Some(cells) if !region.is_empty() => Picks::new(cells, backends),
            _ => Picks::default(),
        };
        let all = [picks(record.pick4), picks(record.pick6)];
        let here = [picks(record.local4), picks(record.local6)];
        // A plan writes a list before the record that names it.
        let rules = record.list.map(|list| installed.lists.get(&list).cloned().unwrap_or_default());
        Self { record, service, rules, all, here }
    }

    /// Whether an address may be a client: the longest range that it is in decides. The rules are
    /// complete, so that who is in none is refused.
    pub(crate) fn allows(&self, client: IpAddr) -> bool {
        let Some(rules) = &self.rules else { return true };
        let own = rules.iter().filter(|(subnet, _)| subnet.contains(client));
        own.max_by_key(|(subnet, _)| subnet.prefix_len()).is_some_and(|(_, may)| *may)
    }

    /// Whether there is any task to choose.
    pub(crate) fn has_tasks(&self) -> bool {
        self.all.iter().any(|picks| !picks.cells.is_empty())
    }

    /// Why there is no task for a new flow.
    pub(crate) fn nobody(&self) -> Reason {
        let all = self.all.iter().flat_map(|picks| &picks.tasks);
        match all.into_iter().any(|task| task.is_active()) {
            true if self.service.wishes.load().limits.per_task.is_some() => Reason::LimitTask,
            _ => Reason::NoBackend,
        }
    }

    /// A task for a new flow, if an active one is `wanted`. Tasks that have the client's address
    /// family go first; others serve as well, since it is this node that connects to them.
    pub(crate) fn choose(
        &self,
        among: Among,
        client: SocketAddr,
        wanted: impl Fn(&Backend) -> bool,
    ) -> Option<Arc<Backend>> {
        let [v4, v6] = match among {
            Among::All => &self.all,
            Among::Here => &self.here,
        };
        let families = if client.is_ipv4() { [v4, v6] } else { [v6, v4] };
        families.into_iter().find_map(|picks| self.pick(picks, client, &wanted))
    }

    /// How many flows a task may have.
    pub(crate) fn most_flows(&self) -> u64 {
        self.service.wishes.load().limits.per_task.map_or(u64::MAX, u64::from)
    }

    fn pick(
        &self,
        picks: &Picks,
        client: SocketAddr,
        wanted: &impl Fn(&Backend) -> bool,
    ) -> Option<Arc<Backend>> {
        let cells = picks.cells.len();
        if cells == 0 {
            return None;
        }
        let first = match self.record.balance {
            Balance::RoundRobin => self.service.turn.fetch_add(1, Relaxed) as usize % cells,
            Balance::Random => rand::random_range(0..cells),
            Balance::Maglev => client_cell(client, self.record.ident, cells),
            Balance::Source => {
                client_cell(SocketAddr::new(client.ip(), 0), self.record.ident, cells)
            }
            Balance::LeastConnections => picks.lighter(),
        };
        let most = self.most_flows();
        let fits = |task: &&Arc<Backend>| task.is_active() && task.flows() < most && wanted(task);
        let near = (first..first + TRIES.min(cells)).map(|cell| picks.at(cell % cells));
        near.chain(&picks.tasks).find(fits).cloned()
    }
}

impl Picks {
    fn new(cells: &[BackendIndex], backends: &HashMap<BackendIndex, Arc<Backend>>) -> Self {
        let mut places = HashMap::new();
        let mut tasks = Vec::new();
        let mut positions = Vec::with_capacity(cells.len());
        for index in cells {
            // A plan writes backends before the regions that name them.
            let Some(backend) = backends.get(index) else { continue };
            let place = *places.entry(*index).or_insert_with(|| {
                tasks.push(backend.clone());
                tasks.len() as u32 - 1
            });
            positions.push(place);
        }
        Self { cells: positions.into(), tasks: tasks.into() }
    }

    /// Of two cells drawn by chance that of the task with fewer flows for its weight. A task has as
    /// many cells as its share of new flows.
    fn lighter(&self) -> usize {
        let draw = || rand::random_range(0..self.cells.len());
        let load = |cell: &usize| {
            let place = self.cells[*cell];
            let share = self.cells.iter().filter(|other| **other == place).count();
            self.at(*cell).flows() as f64 / share as f64
        };
        let (one, other) = (draw(), draw());
        if load(&other) < load(&one) { other } else { one }
    }

    fn at(&self, cell: usize) -> &Arc<Backend> {
        &self.tasks[self.cells[cell] as usize]
    }
}
