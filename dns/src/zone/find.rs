//! What a name stands for, for somebody who sees some of the networks.

use weir_mesh::Protocol;

use super::{Holder, PortName, Scope, Service, Task, What, Zone, names::Claim};
use crate::name::Asked;

/// A name that exists for whoever asks.
#[derive(Clone, Copy, Debug)]
pub struct Found<'z> {
    pub(super) zone: &'z Zone,
    claims: &'z [Claim],
    /// The network that the name itself says, among those of one name.
    named: Option<&'z [u32]>,
    /// What is asked of its holders.
    pub kind: Kind,
}

/// What a name asks of what has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `web`: a virtual address, or those of the tasks; of a task: its own.
    Itself,
    /// `tasks.web`
    Tasks,
    /// `_80._tcp.web`, `_http._tcp.web`, or `_tcp.web` without a port.
    Ports {
        /// The protocol.
        protocol: Protocol,
        /// Which.
        port: AskedPort,
    },
    /// A name with others below it, and nothing of its own.
    Parent,
}

/// Which target ports of a service are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedPort {
    /// All.
    Any,
    /// That of this number.
    Number(u16),
    /// What the service calls so.
    Named(PortName),
}

impl Zone {
    /// What labels `0..to` of a name stand for in a scope. Whether a bare name is meant for us at all
    /// is not decided here.
    pub fn find(&self, name: &Asked, to: usize, scope: &Scope) -> Option<Found<'_>> {
        if let Some(found) = self.exact(name, (0, to), None, Kind::Itself, scope) {
            return Some(found);
        }
        let (kind, from) = self.prefix(name, to)?;
        if from == to {
            // `tasks` and `_tcp` by themselves: there are names below them.
            return Some(Found { zone: self, claims: &[], named: None, kind: Kind::Parent });
        }
        if from > 0
            && let Some(found) = self.exact(name, (from, to), None, kind, scope)
        {
            return Some(found);
        }
        // The last labels may be a network's name.
        for split in from + 1..to {
            let Some(networks) = self.by_name.get(name.part(split, to)) else { continue };
            let ranges = [((0, split), Kind::Itself), ((from, split), kind)];
            for (range, kind) in ranges {
                if let Some(found) = self.exact(name, range, Some(networks), kind, scope) {
                    return Some(found);
                }
            }
        }
        let network = self.by_name.get(name.part(from, to))?;
        let seen = network.iter().any(|network| scope.includes(*network));
        let parent = Found { zone: self, claims: &[], named: None, kind: Kind::Parent };
        (seen && kind != Kind::Parent).then_some(parent)
    }

    fn exact<'z>(
        &'z self,
        name: &Asked,
        (from, to): (usize, usize),
        named: Option<&'z [u32]>,
        kind: Kind,
        scope: &Scope,
    ) -> Option<Found<'z>> {
        let claims = self.names.get(name.part(from, to))?;
        let mut found = Found { zone: self, claims, named, kind };
        let mut seen = found.seen(scope).peekable();
        seen.peek()?;
        match kind {
            Kind::Itself if seen.all(|holder| holder.what == What::Parent) => {
                found.kind = Kind::Parent;
            }
            // Tasks have neither tasks nor ports that are looked up.
            Kind::Tasks | Kind::Ports { .. } => {
                let mut services = seen.filter_map(|holder| found.service(holder)).peekable();
                services.peek()?;
                if let Kind::Ports { port, .. } = kind
                    && port != AskedPort::Any
                    && !services.any(|service| self.ports_of(service, kind).next().is_some())
                {
                    return None;
                }
            }
            Kind::Itself | Kind::Parent => {}
        }
        Some(found)
    }
}

impl<'z> Found<'z> {
    /// Those that have the name and that somebody with this scope sees.
    pub(super) fn seen<'s>(
        &self,
        scope: &'s Scope,
    ) -> impl Iterator<Item = &'z Holder> + use<'z, 's> {
        let (claims, named) = (self.claims, self.named);
        claims.iter().map(|claim| &claim.holder).filter(move |holder| {
            let network = holder.network;
            scope.includes(network) && named.is_none_or(|named| named.contains(&network))
        })
    }

    pub(super) fn service(&self, holder: &Holder) -> Option<&'z Service> {
        match holder.what {
            What::Service(at) => self.zone.services.get(at as usize),
            What::Task(_) | What::Parent => None,
        }
    }

    pub(super) fn task(&self, holder: &Holder) -> Option<&'z Task> {
        match holder.what {
            What::Task(at) => self.zone.tasks.get(at as usize),
            What::Service(_) | What::Parent => None,
        }
    }
}

impl Zone {
    /// Those ports of a service that a name asks for.
    pub(super) fn ports_of<'z>(
        &'z self,
        service: &Service,
        kind: Kind,
    ) -> impl Iterator<Item = u16> + use<'z> {
        let named = service.named.of(&self.named);
        service.ports.of(&self.ports).iter().filter_map(move |(protocol, port)| {
            let Kind::Ports { protocol: asked, port: which } = kind else { return None };
            let meant = match which {
                AskedPort::Any => true,
                AskedPort::Number(number) => number == *port,
                AskedPort::Named(name) => named.contains(&(name, *port)),
            };
            (*protocol == asked && meant).then_some(*port)
        })
    }

    /// What the first labels ask for, and how many those are. `None` for `_x` that names no port.
    fn prefix(&self, name: &Asked, to: usize) -> Option<(Kind, usize)> {
        if name.label(0) == b"tasks" {
            return Some((Kind::Tasks, 1));
        }
        let protocol = |at: usize| match name.label(at) {
            b"_tcp" if at < to => Some(Protocol::Tcp),
            b"_udp" if at < to => Some(Protocol::Udp),
            _ => None,
        };
        if let Some(protocol) = protocol(0) {
            return Some((Kind::Ports { protocol, port: AskedPort::Any }, 1));
        }
        let Some(port) = name.label(0).strip_prefix(b"_") else { return Some((Kind::Itself, 0)) };
        let Some(protocol) = protocol(1) else { return Some((Kind::Itself, 0)) };
        let number = std::str::from_utf8(port).ok().and_then(|text| text.parse().ok());
        let port = match number {
            Some(number) => AskedPort::Number(number),
            None => AskedPort::Named(*self.port_names.get(port)?),
        };
        Some((Kind::Ports { protocol, port }, 2))
    }
}
