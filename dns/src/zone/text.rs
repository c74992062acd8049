//! All records of a zone as text: what `weir dns records` prints.

use std::{fmt::Write, net::IpAddr};

use super::{What, Zone};
use crate::name::show;

impl Zone {
    /// One line a record, sorted: name, type, value.
    pub fn dump(&self) -> String {
        let mut lines = Vec::new();
        let mut line = |name: &[u8], network: u32, tasks: bool, address: IpAddr| {
            let kind = if address.is_ipv4() { "A" } else { "AAAA" };
            let before = if tasks { "tasks." } else { "" };
            let owner = self.full(name, network);
            lines.push(format!("{before}{owner} {kind} {address}"));
        };
        for (name, holders) in &self.names {
            for holder in holders {
                let network = holder.network;
                match holder.what {
                    What::Parent => {}
                    What::Task(service, task) => {
                        let service = self.services.get(service as usize);
                        let Some(task) = service.and_then(|one| one.tasks.get(task as usize))
                        else {
                            continue;
                        };
                        task.addresses().for_each(|address| line(name, network, false, address));
                    }
                    What::Service(at) => {
                        let Some(service) = self.services.get(at as usize) else { continue };
                        let of_tasks = service.tasks.iter().flat_map(super::Task::addresses);
                        let of_tasks: Vec<IpAddr> = of_tasks.collect();
                        let of_name =
                            if service.vips.is_empty() { &of_tasks } else { &service.vips };
                        of_name.iter().for_each(|address| line(name, network, false, *address));
                        of_tasks.iter().for_each(|address| line(name, network, true, *address));
                    }
                }
            }
        }
        for service in &self.services {
            for (protocol, port) in &service.ports {
                for task in &service.tasks {
                    let owner = self.full(&service.name, service.network);
                    let target = self.full(&task.name, service.network);
                    let weight = task.weight;
                    lines.push(format!(
                        "_{port}._{protocol}.{owner} SRV 0 {weight} {port} {target}"
                    ));
                }
            }
        }
        for (address, owners) in &self.reverse {
            for owner in owners {
                let domain = show(&self.settings.domain);
                lines.push(format!("{address} PTR {}{domain}", show(&owner.name)));
            }
        }
        lines.sort();
        lines.dedup();
        let mut text = String::new();
        // Writing to a string cannot fail.
        for line in &lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    fn full(&self, name: &[u8], network: u32) -> String {
        let network = self.networks.get(network as usize).map_or(&[][..], |network| &network.name);
        show(&[name, network, &*self.settings.domain].concat())
    }
}

impl super::Task {
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}
