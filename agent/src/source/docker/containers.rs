//! The containers of this node: from what dockerd answers and from its events to this node's report
//! of its Swarm tasks, and to the network namespaces that are attached to networks. No I/O and no
//! clock of its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use weir_mesh::{
    Protocol, PublishedPort, ServiceName, Space, SpaceAt, TargetPort, TaskName,
    cluster::{BoundPort, Life, NetworkId, ReportedTask, ServiceId, TaskId},
};

use super::{
    declared::{address_of, own_labels},
    model::{Container, Event, Network, NetworkSettings},
    signal,
};

/// A task that has ended is reported that long, so that everybody resets what it still had.
const REMEMBERED: Duration = Duration::from_secs(30);
/// A container that was sent its stop signal and runs on was not being stopped: `docker stop` kills
/// it after 10 s. If Swarm gives it longer, Swarm also says that it should end.
const STOPPING: Duration = Duration::from_secs(60);

/// The container's identity.
pub(super) type ContainerId = String;

/// Addresses at which this host reaches containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Of each container on `docker_gwbridge`.
    gateway: HashMap<ContainerId, (Option<Ipv4Addr>, Option<Ipv6Addr>)>,
    /// Networks whose addresses the host reaches by a bridge of its own.
    bridges: BTreeSet<String>,
}

/// All containers. Those that are no tasks may be attached to networks, too.
#[derive(Debug, Default)]
pub(super) struct Containers {
    known: BTreeMap<ContainerId, Known>,
    reach: Reach,
}

#[derive(Debug, Default)]
struct Known {
    inspected: Option<Container>,
    /// An event says more than an answer that may be older.
    health: Option<String>,
    paused: Option<bool>,
    told_to_end: Option<Instant>,
    ended: Option<Instant>,
    /// Nothing that had ended before it was first seen is reported.
    lived: bool,
    /// When an event last spoke of it.
    spoken: Option<Instant>,
}

/// What an event calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Nothing.
    Nothing,
    /// The report may be another.
    Report,
    /// The container must be looked at; the report may be another already.
    Look,
}

impl Reach {
    /// From `/networks` and `/networks/docker_gwbridge`, if there is that.
    pub(super) fn read(networks: &[Network], gateway: Option<&Network>) -> Self {
        let attached = gateway.into_iter().flat_map(|network| &network.containers);
        let gateway = attached.map(|(id, attached)| {
            let (ipv4, ipv6) = (address_of(&attached.ipv4), address_of(&attached.ipv6));
            (id.clone(), (v4(ipv4), v6(ipv6)))
        });
        let bridges = networks.iter().filter(|network| network.driver == "bridge");
        Self { gateway: gateway.collect(), bridges: bridges.map(|one| one.id.clone()).collect() }
    }

    fn of(&self, container: &Container) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        if let Some(addresses) = self.gateway.get(&container.id) {
            return *addresses;
        }
        // Without an overlay network a task has no gateway: its bridge leads to it directly.
        let endpoints = container.network_settings.networks.values();
        let reached = endpoints.filter(|endpoint| self.bridges.contains(&endpoint.network_id));
        let mut found: Vec<_> = reached
            .map(|endpoint| (v4(endpoint.ipv4.parse().ok()), v6(endpoint.ipv6.parse().ok())))
            .collect();
        found.sort();
        found.pop().unwrap_or_default()
    }

    /// All addresses at which this host sees a container.
    fn all_of(&self, container: &Container) -> Vec<IpAddr> {
        let (ipv4, ipv6) = self.of(container);
        let endpoints = container.network_settings.networks.values();
        let bridged = endpoints.filter(|endpoint| self.bridges.contains(&endpoint.network_id));
        let bridged = bridged.flat_map(|endpoint| [&endpoint.ipv4, &endpoint.ipv6]);
        let bridged = bridged.filter_map(|text| text.parse().ok());
        let reached = ipv4.map(IpAddr::V4).into_iter().chain(ipv6.map(IpAddr::V6));
        reached.chain(bridged).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

fn v4(address: Option<IpAddr>) -> Option<Ipv4Addr> {
    match address? {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: Option<IpAddr>) -> Option<Ipv6Addr> {
    match address? {
        IpAddr::V6(v6) => Some(v6),
        IpAddr::V4(_) => None,
    }
}

impl Containers {
    /// Takes an event about a container.
    pub(super) fn event(&mut self, event: &Event, now: Instant) -> Call {
        let id = &event.actor.id;
        let (action, detail) = match event.action.split_once(':') {
            Some((action, detail)) => (action, detail.trim()),
            None => (event.action.as_str(), ""),
        };
        if action == "destroy" {
            self.looked(id, None, now);
            return Call::Report;
        }
        let known = self.known.entry(id.clone()).or_default();
        known.spoken = Some(now);
        match action {
            "start" => {
                *known = Known { spoken: Some(now), ..Known::default() };
                return Call::Look;
            }
            "health_status" => known.health = Some(detail.to_owned()),
            "kill" => {
                let signal = event.actor.attributes.get("signal").map_or("", String::as_str);
                let own = known.inspected.as_ref().map(|one| one.config.stop_signal.as_str());
                if signal::ends(signal, own) {
                    known.told_to_end.get_or_insert(now);
                }
            }
            "die" => {
                known.ended.get_or_insert(now);
            }
            "pause" => known.paused = Some(true),
            "unpause" => known.paused = Some(false),
            _ => return Call::Nothing,
        }
        if known.inspected.is_none() { Call::Look } else { Call::Report }
    }

    /// Takes the answer about one container, `None` if there is none any more.
    pub(super) fn looked(&mut self, id: &str, answer: Option<Container>, now: Instant) {
        let Some(container) = answer else {
            match self.known.get_mut(id) {
                Some(known) if known.lived => {
                    known.ended.get_or_insert(now);
                }
                _ => {
                    self.known.remove(id);
                }
            }
            return;
        };
        let known = self.known.entry(id.to_owned()).or_default();
        if container.state.running {
            known.lived = true;
        } else if known.lived {
            known.ended.get_or_insert(now);
        }
        known.inspected = Some(container);
    }

    /// Takes all answers to questions that were `asked` then: what is not among them is no more.
    /// Events since then know better.
    pub(super) fn all(
        &mut self,
        answers: Vec<Container>,
        reach: Reach,
        (asked, now): (Instant, Instant),
    ) {
        let older = |known: &Known| known.spoken.is_none_or(|spoken| spoken < asked);
        let present: BTreeSet<_> = answers.iter().map(|container| container.id.clone()).collect();
        let gone = self.known.iter().filter(|(id, known)| !present.contains(*id) && older(known));
        let gone: Vec<_> = gone.map(|(id, _)| id.clone()).collect();
        for id in gone {
            self.looked(&id, None, now);
        }
        for container in answers {
            let id = container.id.clone();
            let known = self.known.entry(id.clone()).or_default();
            if older(known) {
                // Events between this and the last one may have been missed.
                (known.health, known.paused) = (None, None);
                self.looked(&id, Some(container), now);
            } else if known.inspected.is_none() {
                self.looked(&id, Some(container), now);
            }
        }
        self.reach = reach;
    }

    /// Takes new addresses.
    pub(super) fn reached(&mut self, reach: Reach) {
        self.reach = reach;
    }

    /// What is to be reported now. Forgets what ended long ago.
    pub(super) fn report(&mut self, now: Instant) -> BTreeMap<TaskId, Arc<ReportedTask>> {
        let over = |since: Option<Instant>, after| {
            since.is_some_and(|since| now.saturating_duration_since(since) >= after)
        };
        self.known.retain(|_, known| !over(known.ended, REMEMBERED) || !known.lived);
        let mut report = BTreeMap::new();
        for known in self.known.values_mut() {
            if over(known.told_to_end, STOPPING) {
                known.told_to_end = None;
            }
            let Some(container) = known.inspected.as_ref().filter(|_| known.lived) else {
                continue;
            };
            if let Some((id, task)) = reported(container, known.life(container), &self.reach) {
                report.insert(id, Arc::new(task));
            }
        }
        report
    }

    /// The network namespaces of running containers, and the networks these are attached to. That
    /// of the host, which some share, is none of theirs.
    pub(super) fn spaces(&self) -> Vec<Space> {
        let running = self.known.values().filter(|known| known.lived && known.ended.is_none());
        let inspected = running.filter_map(|known| known.inspected.as_ref());
        let mut spaces: Vec<Space> = inspected.filter_map(|one| space(one, &self.reach)).collect();
        // Containers may share one.
        spaces.sort();
        spaces.dedup();
        spaces
    }

    /// When the report changes without an event.
    pub(super) fn next_change(&self) -> Option<Instant> {
        let changes = self.known.values().filter_map(|known| match known.ended {
            Some(ended) => Some(ended + REMEMBERED),
            None => Some(known.told_to_end? + STOPPING),
        });
        changes.min()
    }
}

impl Known {
    fn life(&self, container: &Container) -> Life {
        let told = container.state.health.as_ref().map(|health| health.status.as_str());
        if self.ended.is_some() {
            return Life::Down;
        }
        if self.told_to_end.is_some() || self.paused.unwrap_or(container.state.paused) {
            return Life::Draining;
        }
        match self.health.as_deref().or(told) {
            None | Some("healthy" | "none" | "") => Life::Active,
            Some("unhealthy") => Life::Draining,
            Some(_) => Life::Starting,
        }
    }
}

fn space(container: &Container, reach: &Reach) -> Option<Space> {
    const OF_THE_HOST: &str = "host";
    let NetworkSettings { sandbox_key, networks, .. } = &container.network_settings;
    if sandbox_key.is_empty() || networks.contains_key(OF_THE_HOST) {
        return None;
    }
    let ids = networks.values().map(|endpoint| &endpoint.network_id);
    let networks: BTreeSet<_> =
        ids.filter(|id| !id.is_empty()).map(|id| NetworkId::new(&**id)).collect();
    let at = SpaceAt::File(sandbox_key.into());
    let addresses = reach.all_of(container);
    (!networks.is_empty()).then_some(Space { at, networks, addresses })
}

fn reported(container: &Container, life: Life, reach: &Reach) -> Option<(TaskId, ReportedTask)> {
    let labels = &container.config.labels;
    let label = |name: &str| labels.get(&format!("com.docker.swarm.{name}")).cloned();
    let (ipv4, ipv6) = reach.of(container);
    let networks = container.network_settings.networks.values().map(|endpoint| {
        let addresses = [&endpoint.ipv4, &endpoint.ipv6].into_iter();
        let addresses = addresses.filter_map(|text| address_of(text)).collect();
        (NetworkId::new(&*endpoint.network_id), addresses)
    });
    let task = ReportedTask {
        service: ServiceId::new(label("service.id")?),
        service_name: ServiceName::new(label("service.name")?),
        name: TaskName::new(label("task.name")?),
        ipv4,
        ipv6,
        life,
        labels: own_labels(labels),
        networks: networks.filter(|(id, _)| !id.as_str().is_empty()).collect(),
        aliases: aliases(container),
        ports: bound_ports(container),
        verdict: None,
    };
    Some((TaskId::new(label("task.id")?), task))
}

/// What Docker calls a container on its networks: its host name, the beginning of its identity, and
/// what it was given besides.
fn aliases(container: &Container) -> BTreeMap<NetworkId, Vec<String>> {
    let endpoints = container.network_settings.networks.values();
    let some = endpoints.filter(|endpoint| !endpoint.network_id.is_empty());
    some.map(|endpoint| {
        let own = [&container.config.hostname].into_iter();
        let given = own.chain(&endpoint.aliases).chain(&endpoint.dns_names);
        let names: BTreeSet<&String> = given.filter(|name| !name.is_empty()).collect();
        (NetworkId::new(&*endpoint.network_id), names.into_iter().cloned().collect())
    })
    .collect()
}

fn bound_ports(container: &Container) -> Vec<BoundPort> {
    let mut ports = Vec::new();
    for (target, bindings) in &container.network_settings.ports {
        let Some((target, protocol)) = target.split_once('/') else { continue };
        let target = target.parse().ok().and_then(TargetPort::new);
        let Some((protocol, target)) = protocol.parse::<Protocol>().ok().zip(target) else {
            continue;
        };
        let numbers = bindings.iter().flatten().filter_map(|bound| bound.host_port.parse().ok());
        let bound = numbers.filter_map(PublishedPort::new);
        ports.extend(bound.map(|published| BoundPort { protocol, target, published }));
    }
    // Each is there once for every family.
    ports.sort_unstable();
    ports.dedup();
    ports
}
