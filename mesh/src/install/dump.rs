//! The text form of the maps: the debug command, the admin answer and the golden file of tests.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Write},
};

use super::{BackendIndex, BackendRecord, BackendState, Installed, Region, ServiceRecord, Via};
use crate::service::Timeouts;

/// Regions up to this long are listed cell by cell; of longer ones (Maglev tables) only how many
/// cells each backend has is of any use to a reader.
const LISTED: usize = 32;

impl Installed {
    /// One line per entry, in the order in which a packet meets them: port, record, region,
    /// backend, tag, node. The order and the form are stable.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_dump(&mut text);
        text
    }

    fn write_dump(&self, out: &mut String) -> fmt::Result {
        for (frontend, slot) in &self.ports {
            writeln!(out, "PORT {frontend} -> SLOT {}", slot.0)?;
        }
        for (at, frontend) in &self.routed {
            writeln!(out, "ROUTED {at} -> PORT {frontend}")?;
        }
        for (slot, record) in &self.records {
            writeln!(out, "RECORD {} {record}", slot.0)?;
        }
        for (list, rules) in &self.lists {
            write!(out, "LIST {}", list.0)?;
            for (subnet, may) in rules {
                write!(out, " {}{subnet}", if *may { "+" } else { "-" })?;
            }
            writeln!(out)?;
        }
        for (offset, cells) in &self.regions {
            writeln!(out, "REGION {offset}+{}{}", cells.len(), Cells(cells))?;
        }
        for (index, backend) in &self.backends {
            writeln!(out, "BACKEND {} {backend}", index.0)?;
        }
        for ((service, tag), index) in &self.tags {
            writeln!(out, "TAG {} service={} -> BACKEND {}", tag.0, service.0, index.0)?;
        }
        for (index, node) in &self.nodes {
            writeln!(out, "NODE {} address={} ident={}", index.0, node.address, node.ident)?;
        }
        Ok(())
    }
}

struct Cells<'a>(&'a [BackendIndex]);

impl Display for Cells<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= LISTED {
            return self.0.iter().try_for_each(|cell| write!(f, " {}", cell.0));
        }
        let mut counts = BTreeMap::<BackendIndex, usize>::new();
        for cell in self.0 {
            *counts.entry(*cell).or_default() += 1;
        }
        counts.iter().try_for_each(|(backend, count)| write!(f, " {}*{count}", backend.0))
    }
}

impl Display for ServiceRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.host_mode { "host" } else { "ingress" };
        write!(
            f,
            "service={} balance={} mode={mode} target={} pick4={} pick6={} local4={} local6={}",
            self.service.0,
            self.balance.as_str(),
            self.target,
            self.pick4,
            self.pick6,
            self.local4,
            self.local6,
        )?;
        if self.withheld {
            f.write_str(" withheld")?;
        }
        if self.shared {
            f.write_str(" shared")?;
        }
        if let Some(list) = self.list {
            write!(f, " list={}", list.0)?;
        }
        write!(f, " timeouts={} ident={}", Brief(&self.timeouts), self.ident)
    }
}

/// The timeouts, or one word for those that nobody changed.
struct Brief<'a>(&'a Timeouts);

impl Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self.0 == Timeouts::default() {
            return f.write_str("default");
        }
        let it = self.0;
        write!(f, "syn:{:?},established:{:?}", it.tcp_syn, it.tcp_established)?;
        write!(f, ",fin:{:?},reset:{:?}", it.tcp_fin, it.tcp_reset)?;
        write!(f, ",udp:{:?},udp-both:{:?}", it.udp_one_way, it.udp_both_ways)?;
        write!(f, ",drain:{:?}", it.drain)
    }
}

impl Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("-") } else { write!(f, "{}+{}", self.offset, self.len) }
    }
}

impl Display for BackendRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation={} {}", self.generation.0, self.state.as_str())?;
        write!(f, " service={} via={}", self.service.0, self.via)?;
        write!(f, " ipv4={} ipv6={}", Maybe(self.ipv4), Maybe(self.ipv6))?;
        write!(f, " tag={} ident={}", self.tag.0, self.ident)
    }
}

struct Maybe<T>(Option<T>);

impl<T: Display> Display for Maybe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

impl BackendState {
    /// The word used in dumps, status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Gone => "gone",
        }
    }
}

impl Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel { node } => write!(f, "tunnel:{}", node.0),
            Self::Peer { ifindex, mac: [a, b, c, d, e, g] } => {
                write!(f, "peer:{ifindex}/{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            Self::Neighbour { ifindex } => write!(f, "neighbour:{ifindex}"),
            Self::Unreachable => f.write_str("unreachable"),
        }
    }
}
