//! The sentences of a trace.

use std::net::IpAddr;

use weir_mesh::{
    Balance, Protocol, PublishMode, PublishedPort,
    install::{Frontend, RoutedPort},
    plan::routes,
    trace::{Fate, How, Lack, Loss, Pass, Served},
};

use super::{Telling, TraceVerdict};

/// What becomes of a flow, why, and what to do about it.
type Told = (TraceVerdict, String, Option<String>);

impl Telling<'_> {
    pub(super) fn verdict(&self) -> Told {
        let service = self.service.map_or("a service", |service| service.name.as_str());
        match &self.traced.answer.fate {
            Fate::Passes(pass) => {
                let (reason, hint) = self.passes(*pass);
                (TraceVerdict::Passes, reason, hint)
            }
            Fate::Denied => {
                let reason = format!("{service} does not admit {}", self.asked.client);
                let hint = "the allow and deny of the service say who may be a client";
                (TraceVerdict::Denied, reason, Some(hint.to_owned()))
            }
            Fate::NoBackend(lack) => {
                let family = if self.asked.to.is_ipv4() { "IPv4" } else { "IPv6" };
                let reason = match lack {
                    Lack::Withheld => {
                        let holder = self.holder();
                        format!(
                            "{holder} has the published port on this node, at its own addresses"
                        )
                    }
                    Lack::Empty => format!("{service} has no active task with an {family} address"),
                    Lack::Unfit => {
                        format!("the tasks of {service} that were tried take no new flows")
                    }
                };
                let hint = match lack {
                    Lack::Withheld => {
                        "lead packets for virtual addresses to another node".to_owned()
                    }
                    _ => format!("weir tasks {service} says why"),
                };
                (TraceVerdict::NoBackend, reason, Some(hint))
            }
            Fate::Lost(loss) => {
                let reason = match loss {
                    Loss::Unreachable(_) => "no interface of this node leads to its task",
                    Loss::UnknownNode(_) => "the node of its task is not known any more",
                };
                (TraceVerdict::Lost, reason.to_owned(), Some("weir status says more".to_owned()))
            }
            Fate::Served(served) => (TraceVerdict::Served, self.served(served), None),
        }
    }

    fn served(&self, served: &Served) -> String {
        let count = served.tasks.len();
        let tasks = if count == 1 { "its one task".to_owned() } else { format!("{count} tasks") };
        let balance = self.traced.answer.record.map_or("", |record| record.balance.as_str());
        let how = match served.how {
            How::Remembered => "this node remembers the flow, which stays with its task".to_owned(),
            How::Hashed if self.asks_for_port() => {
                "maglev: the client's address and port hash to this task".to_owned()
            }
            How::Hashed => format!("{balance}: the client's address hashes to this task"),
            How::Turns => format!("{balance}: in turn among {tasks}"),
            How::Chance if self.asks_for_port() && self.asked.client_port.is_none() => {
                format!("maglev: by the client's port among {tasks}; name one to see which")
            }
            How::Chance => format!("{balance}: by chance among {tasks}"),
            How::LessLaden => format!("{balance}: the less laden of two by chance among {tasks}"),
        };
        match served.nobody {
            0 => how,
            _ => format!("{how}; some flows find nobody, since tasks are about to leave"),
        }
    }

    fn asks_for_port(&self) -> bool {
        self.traced.answer.record.is_some_and(|record| record.balance == Balance::Maglev)
    }

    fn passes(&self, pass: Pass) -> (String, Option<String>) {
        let to = self.asked.to.ip();
        if let Some(told) = self.virtual_address(to) {
            return told;
        }
        match pass {
            Pass::NotOwn => self.foreign(to),
            Pass::NotPublished => self.unpublished(),
            Pass::NoSource => {
                let reason = "this node has no address of that family to stand for its containers";
                (reason.to_owned(), Some("set node.addresses".to_owned()))
            }
            Pass::Withheld => {
                let reason = format!("{} has the port on this node", self.holder());
                let hint = "stop it, publish another port, or set dataplane.on_port_conflict = \
                            \"mesh-wins\"";
                (reason, Some(hint.to_owned()))
            }
        }
    }

    /// Who has the published port on this node in place of the mesh.
    fn holder(&self) -> String {
        let holder = self.frontend().and_then(|port| self.now.report.withheld.get(&port));
        holder.map_or_else(|| "a process".to_owned(), ToString::to_string)
    }

    fn frontend(&self) -> Option<Frontend> {
        let protocol = self.asked.protocol;
        if let Some(at) = RoutedPort::new(protocol, self.asked.to)
            && let Some(route) = routes(self.snapshot).get(&at)
        {
            return Some(route.frontend);
        }
        let port = PublishedPort::new(self.asked.to.port())?;
        Some(Frontend { protocol, port })
    }

    fn virtual_address(&self, to: IpAddr) -> Option<(String, Option<String>)> {
        let (service, network) = self.snapshot.services.values().find_map(|service| {
            let mut vips = service.vips.iter();
            let (network, _) = vips.find(|(_, addresses)| addresses.contains(&to))?;
            Some((service, network))
        })?;
        let name = &service.name;
        let reason = format!(
            "{to} is a virtual address of {name} on the network {network}: a socket of whoever is \
             attached to that network is given a task as it connects"
        );
        let hint = match self.snapshot.networks.get(network).is_some_and(|network| network.routed) {
            true => format!(
                "packets that are routed here are served at the target ports that {name} publishes, which \
                 this is none of"
            ),
            false => format!("no packet is touched; weir tasks {name} lists the tasks"),
        };
        Some((reason, Some(hint)))
    }

    fn foreign(&self, to: IpAddr) -> (String, Option<String>) {
        let node = self.snapshot.nodes.values().find(|node| node.address == to);
        match node {
            Some(node) => {
                let reason = format!("{to} is the address of {}, not of this node", node.name);
                (reason, Some(format!("run weir trace on {}", node.name)))
            }
            None => {
                let reason = format!("{to} is no address of this node");
                let hint = "name one of this node's addresses; an address that others see it by \
                            belongs into node.addresses";
                (reason, Some(hint.to_owned()))
            }
        }
    }

    fn unpublished(&self) -> (String, Option<String>) {
        let Some(frontend) = self.frontend() else {
            return ("there is no port 0".to_owned(), None);
        };
        let all = || {
            let services = self.snapshot.services.values();
            services.flat_map(|service| service.ports.iter().map(move |port| (service, port)))
        };
        let publisher = all().find(|(_, port)| Frontend::of(port) == frontend);
        if let Some((service, port)) = publisher {
            let name = &service.name;
            if port.mode == PublishMode::Host {
                let nodes: Vec<&str> =
                    service.tasks.iter().map(|task| task.node.as_str()).collect();
                let reason = format!(
                    "{name} publishes {frontend} in host mode and has no task on this node"
                );
                let hint = (!nodes.is_empty()).then(|| format!("its tasks: {}", nodes.join(", ")));
                return (reason, hint);
            }
            let why = self.now.report.unserved.get(&frontend);
            let why = why.map_or("it is not served yet", String::as_str);
            let reason = format!("{name} publishes {frontend}, but {why}");
            return (reason, Some("weir status says more".to_owned()));
        }
        let other = match frontend.protocol {
            Protocol::Tcp => Protocol::Udp,
            Protocol::Udp => Protocol::Tcp,
        };
        let other = Frontend { protocol: other, ..frontend };
        let near = all().find(|(_, port)| Frontend::of(port) == other);
        let hint = match near {
            Some((service, _)) => format!("{} publishes {other}", service.name),
            None => "weir services lists what is published".to_owned(),
        };
        (format!("no service publishes {frontend}"), Some(hint))
    }

    pub(super) fn admission(&self) -> Option<String> {
        let record = self.traced.answer.record?;
        if record.list.is_none() {
            return Some("everybody may be a client".to_owned());
        }
        let (subnet, may) = self.traced.answer.rule?;
        let word = if may { "admitted" } else { "denied" };
        Some(format!("{word} by {subnet}"))
    }
}
