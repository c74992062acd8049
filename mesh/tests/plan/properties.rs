//! Random meshes, changed at random, at random moments, with failures and restarts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use proptest::prelude::*;
use weir_mesh::{
    Access, Balance, Generation, Ident, Limits, Locality, MapOp, MeshSnapshot, Network, NetworkId,
    NodeName, Plan, Planner, Port, Problem, Protocol, PublishMode, PublishedPort, Service,
    ServiceName, TargetPort, Task, TaskName, TaskState, Timeouts,
    install::{BackendState, Frontend, Via},
    plan::routes,
};

use crate::world::{HERE, World, address_of, node, picked};

/// What happens between two plans.
#[derive(Clone)]
struct Step {
    wait: u64,
    /// Services that change: to this, or away.
    services: BTreeMap<&'static str, Option<Service>>,
    nodes: BTreeSet<u8>,
    /// Nodes of which all that lives there is known.
    whole: BTreeSet<u8>,
    /// Local tasks with these numbers are not reached.
    unreached: BTreeSet<u8>,
    withheld: BTreeSet<Frontend>,
    /// Whether packets for virtual addresses are routed here.
    routed: bool,
    /// Whether the flows are looked at, and whether all backends then have some.
    carried: Option<bool>,
    end: End,
}

impl fmt::Debug for Step {
    /// A step a line, since a failing story is read as a whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {}s nodes {:?} whole {:?}", self.wait, self.nodes, self.whole)?;
        write!(f, " unreached {:?} withheld {:?}", self.unreached, self.withheld)?;
        write!(f, " routed {} carried {:?}", self.routed, self.carried)?;
        for (name, service) in &self.services {
            let Some(service) = service else {
                write!(f, " | {name} goes")?;
                continue;
            };
            write!(f, " | {name} {} drain={:?}", service.balance.as_str(), service.timeouts.drain)?;
            write!(f, " {} {:?}", service.locality.as_str(), service.access.rules())?;
            for Port { protocol, published, target, mode } in &service.ports {
                write!(f, " {protocol}/{published}:{target}/{}", mode.as_str())?;
            }
            for task in &service.tasks {
                write!(f, " {}@{} {}*{}", task.name, task.node, task.state.as_str(), task.weight)?;
                write!(f, " {:?}", task.addresses().collect::<Vec<_>>())?;
            }
        }
        write!(f, " | {:?}", self.end)
    }
}

/// What becomes of the plan.
#[derive(Clone, Copy, Debug)]
enum End {
    Applied,
    /// The agent restarts after it was applied.
    Restart,
    /// An operation fails, and the maps are read again.
    Resync(prop::sample::Index),
    /// The rest of the operations is forgotten.
    Dropped(prop::sample::Index),
}

const NAMES: [&str; 4] = ["api", "db", "mail", "web"];

fn frontend() -> impl Strategy<Value = Frontend> {
    (prop::sample::select(&Protocol::ALL[..]), 80_u16..84)
        .prop_map(|(protocol, port)| Frontend { protocol, port: PublishedPort::new(port).unwrap() })
}

fn port() -> impl Strategy<Value = Port> {
    let mode = prop_oneof![4 => Just(PublishMode::Ingress), 1 => Just(PublishMode::Host)];
    (frontend(), 1_u16..3, mode).prop_map(|(frontend, target, mode)| Port {
        protocol: frontend.protocol,
        published: frontend.port,
        target: TargetPort::new(target).unwrap(),
        mode,
    })
}

fn task(service: &'static str, number: u8) -> impl Strategy<Value = Option<Task>> {
    let state = prop_oneof![
        4 => Just(TaskState::Active), 1 => Just(TaskState::Draining), 1 => Just(TaskState::Down)
    ];
    let weight = prop_oneof![6 => Just(1_u16), 1 => Just(0), 1 => 1..5_u16];
    // Mostly the same node and address, so that tasks live on through changes.
    let home = number % 3 + 1;
    let on = prop_oneof![8 => Just(home), 1 => 1_u8..5];
    let address = prop_oneof![8 => Just(0_u8), 1 => Just(1), 1 => Just(2), 1 => Just(3)];
    let task = (state, weight, on, address).prop_map(move |(state, weight, on, address)| {
        let ipv4 = address_of(&ServiceName::new(service), &number.to_string());
        let moved = std::net::Ipv4Addr::from(u32::from(ipv4) + 100);
        Task {
            ipv4: match address {
                0 | 1 => Some(ipv4),
                2 => Some(moved),
                _ => None,
            },
            ipv6: (address > 0).then_some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into())),
            weight,
            state,
            ..Task::new(
                TaskName::new(format!("{service}.{number}")),
                NodeName::new(format!("n{on}")),
            )
        }
    });
    prop::option::weighted(0.7, task)
}

fn service(name: &'static str, maglev: bool) -> impl Strategy<Value = Service> {
    let balance = prop_oneof![
        4 => Just(Balance::RoundRobin),
        1 => Just(Balance::Random),
        u32::from(maglev) => Just(Balance::Source),
        u32::from(maglev) => Just(Balance::Maglev),
    ];
    let tasks = (1_u8..=4).map(|number| task(name, number)).collect::<Vec<_>>();
    let locality = prop_oneof![
        4 => Just(Locality::Cluster), 1 => Just(Locality::PreferLocal), 1 => Just(Locality::Local)
    ];
    let range = prop::sample::select(vec!["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]);
    let ranges = prop::collection::vec(range.prop_map(|text| text.parse().unwrap()), 0..3);
    let access = prop_oneof![
        3 => Just(Access::default()),
        1 => ranges.prop_map(|allow| Access { allow, deny: Vec::new() }),
    ];
    let ports = prop::collection::vec(port(), 0..4);
    // Now and then that of another service.
    let vip = prop_oneof![8 => Just(name.len() as u8), 1 => Just(3)];
    (balance, locality, access, ports, tasks, 1_u64..4, vip).prop_map(
        move |(balance, locality, access, ports, tasks, drain, vip)| Service {
            vips: [(NetworkId::new("blue"), vec![IpAddr::from([10, 0, 9, vip])])].into(),
            balance,
            locality,
            access,
            ports,
            tasks: tasks.into_iter().flatten().collect(),
            timeouts: Timeouts { drain: Duration::from_secs(drain * 5), ..Timeouts::default() },
            ..Service::new(ServiceName::new(name))
        },
    )
}

fn step(maglev: bool) -> impl Strategy<Value = Step> {
    let change = move |name| (Just(name), prop::option::weighted(0.8, service(name, maglev)));
    let services = prop::sample::subsequence(NAMES.to_vec(), 0..=2)
        .prop_flat_map(move |names| names.into_iter().map(change).collect::<Vec<_>>());
    let end = prop_oneof![
        6 => Just(End::Applied),
        1 => Just(End::Restart),
        1 => any::<prop::sample::Index>().prop_map(End::Resync),
        1 => any::<prop::sample::Index>().prop_map(End::Dropped),
    ];
    let nodes = prop_oneof![
        5 => Just(BTreeSet::from([1, 2, 3, 4])), 1 => prop::collection::btree_set(2_u8..5, 1..4)
    ];
    let unreached =
        prop_oneof![5 => Just(BTreeSet::new()), 1 => prop::collection::btree_set(1_u8..5, 1..3)];
    let whole = prop::collection::btree_set(1_u8..5, 0..5);
    let withheld = prop::collection::btree_set(frontend(), 0..2);
    let carried = prop_oneof![2 => Just(None), 3 => any::<bool>().prop_map(Some)];
    let wait = prop::sample::select(vec![0, 0, 1, 2, 3, 10, 40]);
    let routed = prop_oneof![4 => Just(true), 1 => Just(false)];
    (wait, services, nodes, whole, unreached, withheld, routed, carried, end).prop_map(
        |(wait, services, nodes, whole, unreached, withheld, routed, carried, end)| Step {
            wait,
            services: services.into_iter().collect(),
            nodes,
            whole,
            unreached,
            withheld,
            routed,
            carried,
            end,
        },
    )
}

fn tight() -> Limits {
    Limits { backends: 14, cells: 26, records: 9, nodes: 4, services: 5, ranges: 12, routed: 3 }
}

struct Story {
    world: World,
    snapshot: MeshSnapshot,
}

impl Story {
    fn new(limits: Limits) -> Self {
        Self { world: World::new(limits), snapshot: MeshSnapshot::default() }
    }

    fn play(&mut self, step: &Step) {
        self.world.pass(Duration::from_secs(step.wait));
        self.snapshot.generation = Generation(self.snapshot.generation.0 + 1);
        for (name, service) in &step.services {
            let name = ServiceName::new(*name);
            match service {
                Some(service) => drop(self.snapshot.services.insert(name, service.clone().into())),
                None => drop(self.snapshot.services.remove(&name)),
            }
        }
        let nodes = step.nodes.iter().chain([&1]).map(|number| node(*number));
        self.snapshot.nodes = nodes.map(|node| (node.name.clone(), node)).collect();
        for node in self.snapshot.nodes.values_mut() {
            node.whole = step.whole.iter().any(|number| node.name.as_str() == format!("n{number}"));
        }
        let network = Network { routed: step.routed, ..Network::new("blue") };
        self.snapshot.networks = BTreeMap::from([(NetworkId::new("blue"), network)]);
        self.world.local.withheld = step.withheld.clone();
        self.world.local.reach = self.reach(&step.unreached);
        if let Some(carried) = step.carried {
            self.world.look_at_flows(carried);
        }
        let plan = self.world.planner.plan(&self.snapshot, &self.world.local, self.world.now);
        self.check_ports_stay(&plan.ops);
        match step.end {
            End::Applied | End::Restart => self.world.apply(&plan.ops),
            End::Resync(at) | End::Dropped(at) => {
                self.world.apply(&plan.ops[..at.index(plan.ops.len() + 1)]);
            }
        }
        match step.end {
            End::Applied => self.check_settled(&plan.problems),
            End::Restart => {
                self.check_settled(&plan.problems);
                self.world.restart();
            }
            End::Resync(_) => self.world.planner.resync(self.world.kernel.clone(), self.world.now),
            End::Dropped(_) => self.go_on(),
        }
    }

    /// Nothing is planned on top of a plan that was not applied to its end.
    fn go_on(&mut self) {
        let World { planner, local, now, kernel, .. } = &mut self.world;
        if planner.is_behind() {
            assert_eq!(planner.plan(&self.snapshot, local, *now), Plan::default());
            planner.resync(kernel.clone(), *now);
        }
    }

    fn reach(&self, unreached: &BTreeSet<u8>) -> BTreeMap<IpAddr, Via> {
        let tasks = self.snapshot.services.values().flat_map(|service| &service.tasks);
        let number = |task: &Task| task.name.as_str().rsplit('.').next().unwrap().parse().unwrap();
        let reached =
            tasks.filter(|task| task.node.as_str() == HERE && !unreached.contains(&number(task)));
        reached
            .flat_map(Task::addresses)
            .map(|address| (address, Via::Neighbour { ifindex: 9 }))
            .collect()
    }

    /// A port that is served before and after is served all the time.
    fn check_ports_stay(&self, ops: &[MapOp]) {
        let wanted: BTreeSet<Frontend> = self.wanted_ports().into_keys().collect();
        for op in ops {
            if let MapOp::Withdraw(frontend) = op {
                assert!(!wanted.contains(frontend), "{frontend} is withdrawn");
            }
        }
    }

    /// Ports that this node should serve, with the service that should have each.
    fn wanted_ports(&self) -> BTreeMap<Frontend, &Service> {
        let mut wanted = BTreeMap::new();
        for service in self.snapshot.services.values() {
            let mut tasks = service.tasks.iter();
            let here = tasks.any(|it| it.node.as_str() == HERE && it.state != TaskState::Down);
            let served = service.ports.iter().filter(|it| it.mode == PublishMode::Ingress || here);
            for port in served {
                let frontend = Frontend::of(port);
                wanted.entry(frontend).or_insert(&**service);
            }
        }
        wanted
    }

    /// What must hold once a plan is applied.
    fn check_settled(&self, problems: &[Problem]) {
        let (kernel, local, now) = (&self.world.kernel, &self.world.local, self.world.now);
        let numbers: BTreeSet<_> =
            kernel.records.values().map(|it| (it.ident, it.service)).collect();
        let services: BTreeSet<_> = numbers.iter().map(|(ident, _)| ident).collect();
        assert_eq!(numbers.len(), services.len(), "two numbers in\n{}", kernel.dump());
        let again = self.world.planner.clone().plan(&self.snapshot, local, now);
        assert_eq!(again.ops, [], "planned again after {problems:?} in\n{}", kernel.dump());
        assert!(again.wake.is_none_or(|wake| wake > now));

        if problems
            .iter()
            .any(|it| matches!(it, Problem::Exhausted { .. } | Problem::TooManyNodes { .. }))
        {
            return;
        }
        assert_eq!(again.problems, problems);
        let restarted =
            Planner::new(kernel.clone(), self.world.limits, now).plan(&self.snapshot, local, now);
        // A number of which no record was written is nobody's to the planner that gave it up; one that
        // begins anew may know it by its tasks, and so that these have ended.
        let nobodys = |op: &&MapOp| match op {
            MapOp::SetBackend(_, to) if to.state == BackendState::Gone => {
                kernel.records.values().all(|record| record.service != to.service)
            }
            _ => false,
        };
        let changed: Vec<_> = restarted.ops.iter().filter(|op| !nobodys(op)).collect();
        assert!(changed.is_empty(), "a restart changes {changed:?} in\n{}", kernel.dump());
        self.check_ended();
        self.check_routed();
        for (frontend, service) in self.wanted_ports() {
            let record = kernel.ports.get(&frontend).map(|slot| &kernel.records[slot]);
            let own = Ident::of_service(&service.name);
            match record.filter(|record| record.ident == own || !record.withheld) {
                Some(record) => self.check_picks(service, record),
                // Nothing is there, or what an earlier service had there for other nodes and still
                // drains: the process has this node's clients, and a host port no others.
                None => assert!(local.withheld.contains(&frontend), "{frontend} is not served"),
            }
        }
    }

    /// What should be routed is, to whom it should; else only what is left of services that are gone.
    fn check_routed(&self) {
        let kernel = &self.world.kernel;
        let owner = |at: &Frontend| kernel.ports.get(at).map(|slot| kernel.records[slot].ident);
        let wanted = routes(&self.snapshot);
        for (at, route) in &wanted {
            if owner(&route.frontend) == Some(Ident::of_service(route.service)) {
                assert_eq!(kernel.routed.get(at), Some(&route.frontend), "{}", kernel.dump());
            }
        }
        let names = self.snapshot.services.keys().map(Ident::of_service);
        let present: BTreeSet<_> = names.collect();
        for (at, frontend) in &kernel.routed {
            let drains = !present.contains(&owner(frontend).unwrap());
            let right = wanted.get(at).is_some_and(|route| {
                route.frontend == *frontend
                    && owner(frontend) == Some(Ident::of_service(route.service))
            });
            assert!(right || drains, "{at} in\n{}", kernel.dump());
        }
    }

    /// What is not listed on a node of which all that lives there is known has no flows, unless
    /// another task of the mesh is at its address.
    fn check_ended(&self) {
        let kernel = &self.world.kernel;
        let services = || self.snapshot.services.values();
        let of_service = |it: &Service| -> Vec<_> {
            it.tasks.iter().map(|task| Ident::of_task(&it.name, &task.name, &task.node)).collect()
        };
        let listed: BTreeSet<_> = services().flat_map(|it| of_service(it)).collect();
        let at: BTreeSet<_> =
            services().flat_map(|it| &it.tasks).map(|task| (task.ipv4, task.ipv6)).collect();
        let nodes = self.snapshot.nodes.values();
        let whole = nodes.filter(|node| node.whole).map(|node| match node.name.as_str() == HERE {
            true => None,
            false => Some(Ident::of_node(&node.name)),
        });
        let whole: BTreeSet<_> = whole.collect();
        for (index, backend) in &kernel.backends {
            let on = match backend.via {
                Via::Tunnel { node } => Some(kernel.nodes[&node].ident),
                _ => None,
            };
            let known =
                listed.contains(&backend.ident) || at.contains(&(backend.ipv4, backend.ipv6));
            let ended = on.is_none() && whole.contains(&on) && !known;
            assert!(!ended || backend.state == BackendState::Gone, "{index:?}\n{}", kernel.dump());
        }
    }

    /// A port picks from those tasks that are active, have weight and are reached; from no others.
    fn check_picks(&self, service: &Service, record: &weir_mesh::install::ServiceRecord) {
        let kernel = &self.world.kernel;
        assert_eq!(record.ident, Ident::of_service(&service.name));
        let is_picked = |task: &&Task| {
            let reached = match task.node.as_str() == HERE {
                true => task.addresses().any(|it| self.world.local.reach.contains_key(&it)),
                false => self.snapshot.nodes.contains_key(&task.node) && !record.host_mode,
            };
            let has_address = task.addresses().next().is_some();
            task.state == TaskState::Active && task.weight > 0 && reached && has_address
        };
        // Each family looks for tasks of this node by itself.
        let nearest = |v4: bool| {
            let served = service.tasks.iter().filter(is_picked);
            let served =
                served.filter(move |it| if v4 { it.ipv4.is_some() } else { it.ipv6.is_some() });
            let (own, others): (Vec<_>, Vec<_>) = served.partition(|it| it.node.as_str() == HERE);
            match service.locality {
                _ if record.host_mode => own,
                Locality::Cluster => [own, others].concat(),
                Locality::PreferLocal if own.is_empty() => others,
                Locality::PreferLocal | Locality::Local => own,
            }
        };
        let rules = record.list.map(|list| kernel.lists[&list].clone()).unwrap_or_default();
        assert_eq!(rules, service.access.rules());
        let wanted = [nearest(true), nearest(false)].concat().into_iter();
        let wanted: BTreeSet<_> =
            wanted.map(|it| Ident::of_task(&service.name, &it.name, &it.node)).collect();
        let picked = picked(kernel, record);
        assert!(picked.iter().all(|it| kernel.backends[it].state == BackendState::Active));
        let picked: BTreeSet<_> = picked.iter().map(|it| kernel.backends[it].ident).collect();
        assert_eq!(picked, wanted, "{}", kernel.dump());
    }

    /// Lets time pass until nothing is due: what is installed is then just what is wanted.
    fn come_to_rest(&mut self) {
        self.world.look_at_flows(false);
        let mut plan = self.world.serve(&self.snapshot);
        let mut rounds = 0;
        while let Some(wake) = plan.wake {
            assert!(wake > self.world.now);
            self.world.now = wake;
            self.world.look_at_flows(false);
            plan = self.world.serve(&self.snapshot);
            rounds += 1;
            assert!(rounds < 200, "never comes to rest");
        }
        if plan.problems.iter().any(|it| matches!(it, Problem::Exhausted { .. })) {
            return;
        }
        let kernel = &self.world.kernel;
        let ports: BTreeSet<_> = kernel.ports.keys().copied().collect();
        let wanted = self.wanted_ports();
        assert!(ports.iter().all(|it| wanted.contains_key(it)), "{}", kernel.dump());
        let count = kernel.records.len();
        assert_eq!(count, kernel.ports.len(), "a record is left over in\n{}", kernel.dump());
        let used: BTreeSet<u32> =
            kernel.records.values().flat_map(|it| it.regions()).map(|it| it.offset).collect();
        assert_eq!(used, kernel.regions.keys().copied().collect());
        let tasks = self.snapshot.services.values().flat_map(|service| {
            let of = |task: &Task| Ident::of_task(&service.name, &task.name, &task.node);
            service.tasks.iter().filter(|it| it.state != TaskState::Down).map(of)
        });
        let tasks: BTreeSet<Ident> = tasks.collect();
        assert!(kernel.backends.values().all(|it| tasks.contains(&it.ident)), "{}", kernel.dump());
        for (index, node) in &kernel.nodes {
            let mut names = self.snapshot.nodes.keys();
            let used = kernel.backends.values().any(|it| it.via == Via::Tunnel { node: *index });
            assert!(used || names.any(|it| Ident::of_node(it) == node.ident), "{}", kernel.dump());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_nothing_points_at_something_missing(
        steps in prop::collection::vec(step(false), 1..25),
    ) {
        let mut story = Story::new(Limits::default());
        steps.iter().for_each(|step| story.play(step));
        story.come_to_rest();
    }

    #[test]
    fn nor_when_there_is_not_enough_of_anything(
        steps in prop::collection::vec(step(false), 1..25),
    ) {
        let mut story = Story::new(tight());
        steps.iter().for_each(|step| story.play(step));
        story.come_to_rest();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn nor_with_maglev_tables(steps in prop::collection::vec(step(true), 1..8)) {
        let mut story = Story::new(Limits::default());
        steps.iter().for_each(|step| story.play(step));
        story.come_to_rest();
    }
}
