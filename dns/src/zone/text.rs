//! All records of a zone as text: what `weir dns records` prints.

use std::{fmt::Write, net::IpAddr};

use super::{Holder, Task, What, Zone};
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
        for (name, Holder { network, what }) in self.names.iter() {
            match what {
                What::Parent => {}
                What::Task(at) => {
                    let Some(task) = self.tasks.get(at as usize) else { continue };
                    task.addresses().for_each(|address| line(name, network, false, address));
                }
                What::Service(at) => {
                    let Some(service) = self.services.get(at as usize) else { continue };
                    let tasks = service.tasks.of(&self.tasks).iter();
                    let of_tasks: Vec<IpAddr> = tasks.flat_map(Task::addresses).collect();
                    let vips = service.vips.of(&self.vips);
                    let of_name = if vips.is_empty() { &of_tasks } else { vips };
                    of_name.iter().for_each(|address| line(name, network, false, *address));
                    of_tasks.iter().for_each(|address| line(name, network, true, *address));
                }
            }
        }
        for service in &self.services {
            let owner = self.full(self.names.text(service.name), service.network);
            for (protocol, port) in service.ports.of(&self.ports) {
                for task in service.tasks.of(&self.tasks) {
                    let target = self.full(self.names.text(task.name), service.network);
                    let weight = task.weight;
                    lines.push(format!(
                        "_{port}._{protocol}.{owner} SRV 0 {weight} {port} {target}"
                    ));
                }
            }
        }
        for owner in &self.reverse {
            let name = self.full(self.names.text(owner.name), owner.network);
            lines.push(format!("{} PTR {name}", owner.address));
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

impl Task {
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}
