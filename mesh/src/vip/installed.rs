//! The mirror of what the kernel knows of virtual addresses, and the operations that change it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
};

use serde::Serialize;

use super::{SpaceCookie, VipKey, VipRecord, VipSlot};
use crate::{ident::Ident, install::Region};

/// Everything that the kernel maps hold of virtual addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstalledVips {
    /// The networks of each namespace, by identity.
    pub spaces: BTreeMap<SpaceCookie, BTreeSet<Ident>>,
    /// Where each virtual address is found.
    pub names: BTreeMap<VipKey, VipSlot>,
    /// What the virtual addresses stand for.
    pub records: BTreeMap<VipSlot, VipRecord>,
    /// Contents of the runs that records point at, by offset.
    pub runs: BTreeMap<u32, Vec<IpAddr>>,
}

/// One change, atomic for sockets that connect meanwhile. A plan orders them so that after every
/// prefix nothing points at something missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum VipOp {
    /// Fill cells from `offset` with addresses of tasks; no record points there yet.
    WriteRun {
        /// First cell.
        offset: u32,
        /// The addresses, one a cell, in ascending order.
        cells: Vec<IpAddr>,
    },
    /// Write a record; no name leads to it yet.
    SetRecord(VipSlot, VipRecord),
    /// Let a virtual address that is not known lead to its record.
    SetName(VipKey, VipSlot),
    /// Point a record at another run.
    Flip {
        /// The record.
        slot: VipSlot,
        /// Its tasks from now on.
        run: Region,
        /// See [`VipRecord::stride`].
        stride: u32,
    },
    /// Say which networks a namespace is attached to.
    SetSpace(SpaceCookie, BTreeSet<Ident>),
    /// Forget a namespace.
    RemoveSpace(SpaceCookie),
    /// Forget a virtual address: sockets that name it are left alone.
    RemoveName(VipKey),
    /// Mark a record free; no name leads to it any more.
    RemoveRecord(VipSlot),
    /// Mark cells free; no record points there any more. They keep what they hold, for sockets that
    /// read the record before.
    FreeRun {
        /// First cell.
        offset: u32,
    },
}

/// An operation that would leave something pointing at something missing, or change what a socket may
/// be reading.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Slot 0 is reserved.
    #[error("slot 0 is reserved")]
    Reserved,
    /// The operation names something that is not installed.
    #[error("{what} {at} is not installed")]
    Missing {
        /// What kind of thing.
        what: &'static str,
        /// Which.
        at: String,
    },
    /// The place is taken.
    #[error("{what} {at} is in use")]
    InUse {
        /// What kind of thing.
        what: &'static str,
        /// Which.
        at: String,
    },
    /// A run is written once, as a whole, in order, where nothing else is.
    #[error("the run at {0} is empty, out of order, mixed, or overlaps another")]
    Run(u32),
    /// A record names a run of other length or family, or a stride that leaves cells out.
    #[error("record {} does not fit its run", .0.0)]
    Unfit(VipSlot),
}

impl InstalledVips {
    /// Applies an operation, or says which invariant it would break and changes nothing.
    pub fn apply(&mut self, op: &VipOp) -> Result<(), Violation> {
        self.check(op)?;
        self.put(op);
        Ok(())
    }

    /// Applies an operation that is known to be sound.
    pub(super) fn put(&mut self, op: &VipOp) {
        match op {
            VipOp::WriteRun { offset, cells } => {
                self.runs.insert(*offset, cells.clone());
            }
            VipOp::SetRecord(slot, record) => drop(self.records.insert(*slot, *record)),
            VipOp::SetName(key, slot) => drop(self.names.insert(*key, *slot)),
            VipOp::Flip { slot, run, stride } => {
                if let Some(record) = self.records.get_mut(slot) {
                    (record.run, record.stride) = (*run, *stride);
                }
            }
            VipOp::SetSpace(space, networks) => drop(self.spaces.insert(*space, networks.clone())),
            VipOp::RemoveSpace(space) => drop(self.spaces.remove(space)),
            VipOp::RemoveName(key) => drop(self.names.remove(key)),
            VipOp::RemoveRecord(slot) => drop(self.records.remove(slot)),
            VipOp::FreeRun { offset } => drop(self.runs.remove(offset)),
        }
    }

    fn check(&self, op: &VipOp) -> Result<(), Violation> {
        match op {
            VipOp::WriteRun { offset, cells } => self.check_run(*offset, cells),
            VipOp::SetRecord(slot, record) => {
                if slot.0 == 0 {
                    return Err(Violation::Reserved);
                }
                free("record", slot.0, !self.records.contains_key(slot))?;
                self.check_fit(*slot, record)
            }
            VipOp::SetName(key, slot) => {
                free("name", key, !self.names.contains_key(key))?;
                let record = present("record", slot.0, self.records.get(slot))?;
                if record.key == *key { Ok(()) } else { Err(Violation::Unfit(*slot)) }
            }
            VipOp::Flip { slot, run, stride } => {
                let record = present("record", slot.0, self.records.get(slot))?;
                self.check_fit(*slot, &VipRecord { run: *run, stride: *stride, ..*record })
            }
            VipOp::SetSpace(..) => Ok(()),
            VipOp::RemoveSpace(space) => {
                present("space", space.0, self.spaces.get(space)).map(drop)
            }
            VipOp::RemoveName(key) => present("name", key, self.names.get(key)).map(drop),
            VipOp::RemoveRecord(slot) => {
                present("record", slot.0, self.records.get(slot))?;
                free("record", slot.0, !self.names.values().any(|used| used == slot))
            }
            VipOp::FreeRun { offset } => {
                present("run", offset, self.runs.get(offset))?;
                let used = |record: &VipRecord| record.run.len > 0 && record.run.offset == *offset;
                free("run", offset, !self.records.values().any(used))
            }
        }
    }

    fn check_run(&self, offset: u32, cells: &[IpAddr]) -> Result<(), Violation> {
        let end = u64::from(offset) + cells.len() as u64;
        let below = self.runs.range(..=offset).next_back();
        let above = self.runs.range(offset..).next();
        let clear = below.is_none_or(|(at, cells)| *at as usize + cells.len() <= offset as usize)
            && above.is_none_or(|(at, _)| end <= u64::from(*at));
        let one_family = cells.windows(2).all(|pair| pair[0].is_ipv4() == pair[1].is_ipv4());
        let sound = clear && !cells.is_empty() && cells.is_sorted() && one_family;
        if sound { Ok(()) } else { Err(Violation::Run(offset)) }
    }

    fn check_fit(&self, slot: VipSlot, record: &VipRecord) -> Result<(), Violation> {
        if record.run.len == 0 {
            return Ok(());
        }
        let cells = present("run", record.run.offset, self.runs.get(&record.run.offset))?;
        let fits = cells.len() as u32 == record.run.len
            && cells[0].is_ipv4() == record.key.address.is_ipv4()
            && super::wanted::gcd(record.stride.into(), record.run.len.into()) == 1;
        if fits { Ok(()) } else { Err(Violation::Unfit(slot)) }
    }

    /// One line per entry, in the order in which a socket's call meets them. Stable.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        for (space, networks) in &self.spaces {
            let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "SPACE {} networks={}", space.0, networks.join(","));
        }
        for (key, slot) in &self.names {
            let _ = writeln!(text, "VIP {key} -> VIPRECORD {}", slot.0);
        }
        for (slot, VipRecord { key, run, stride }) in &self.records {
            let Region { offset, len } = run;
            let _ =
                writeln!(text, "VIPRECORD {} vip={key} run={offset}+{len} stride={stride}", slot.0);
        }
        for (offset, cells) in &self.runs {
            let cells: Vec<String> = cells.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "RUN {offset}+{} {}", cells.len(), cells.join(" "));
        }
        text
    }
}

fn present<T>(what: &'static str, at: impl ToString, found: Option<T>) -> Result<T, Violation> {
    found.ok_or_else(|| Violation::Missing { what, at: at.to_string() })
}

fn free(what: &'static str, at: impl ToString, is_free: bool) -> Result<(), Violation> {
    if is_free { Ok(()) } else { Err(Violation::InUse { what, at: at.to_string() }) }
}
