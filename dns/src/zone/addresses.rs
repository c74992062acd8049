//! The addresses and ports that a name stands for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Found, Kind, Scope, Service, Task};

/// Addresses of one name, each once.
#[derive(Debug, Default)]
pub struct Addresses {
    /// IPv4
    pub v4: Vec<Ipv4Addr>,
    /// IPv6
    pub v6: Vec<Ipv6Addr>,
}

/// Where a port of a service is served: a task.
#[derive(Clone, Copy, Debug)]
pub struct Srv<'z> {
    /// The task's share of flows.
    pub weight: u16,
    /// Where it listens.
    pub port: u16,
    /// The task's name.
    pub task: &'z [u8],
    /// The name of the network.
    pub network: &'z [u8],
    /// Its address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address.
    pub ipv6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Forgets all, and keeps the room.
    pub fn clear(&mut self) {
        self.v4.clear();
        self.v6.clear();
    }

    fn take(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.v4.push(v4),
            IpAddr::V6(v6) => self.v6.push(v6),
        }
    }

    fn take_task(&mut self, task: &Task) {
        self.v4.extend(task.ipv4);
        self.v6.extend(task.ipv6);
    }
}

impl<'z> Found<'z> {
    /// The addresses of the name, each once.
    pub fn addresses(&self, scope: &Scope, into: &mut Addresses) {
        into.clear();
        let mut holders = 0;
        for holder in self.seen(scope) {
            holders += 1;
            match (self.kind, self.service(holder), self.task(holder)) {
                (Kind::Itself, Some(service), _) if !self.vips(service).is_empty() => {
                    self.vips(service).iter().for_each(|vip| into.take(*vip));
                }
                (Kind::Itself | Kind::Tasks, Some(service), _) => {
                    self.tasks(service).iter().for_each(|task| into.take_task(task));
                }
                (Kind::Itself, _, Some(task)) => into.take_task(task),
                _ => {}
            }
        }
        if holders > 1 {
            into.v4.sort_unstable();
            into.v4.dedup();
            into.v6.sort_unstable();
            into.v6.dedup();
        }
    }

    /// Where the ports that the name asks for are served, task by task.
    pub fn ports<'s>(&self, scope: &'s Scope) -> impl Iterator<Item = Srv<'z>> + use<'z, 's> {
        let found = *self;
        found.seen(scope).filter_map(move |holder| found.service(holder)).flat_map(move |service| {
            let network = &*found.zone.networks[service.network as usize].name;
            let asked = found.zone.ports_of(service, found.kind);
            asked.flat_map(move |port| {
                found.tasks(service).iter().map(move |task| Srv {
                    weight: task.weight,
                    port,
                    task: found.zone.names.text(task.name),
                    network,
                    ipv4: task.ipv4,
                    ipv6: task.ipv6,
                })
            })
        })
    }

    /// Whether the name stands for tasks of which none takes flows now.
    pub fn awaits(&self, scope: &Scope) -> bool {
        let for_tasks = |service: &Service| match self.kind {
            Kind::Tasks | Kind::Ports { .. } => true,
            Kind::Itself => self.vips(service).is_empty(),
            Kind::Parent => false,
        };
        let mut services = self.seen(scope).filter_map(|holder| self.service(holder)).peekable();
        services.peek().is_some()
            && services.all(|service| for_tasks(service) && self.tasks(service).is_empty())
    }

    fn vips(&self, service: &Service) -> &'z [IpAddr] {
        service.vips.of(&self.zone.vips)
    }

    fn tasks(&self, service: &Service) -> &'z [Task] {
        service.tasks.of(&self.zone.tasks)
    }
}
