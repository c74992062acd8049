//! Loads, attaches, pins and fills the kernel programs and their maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use weir_mesh::{
    Ident, Installed, MapOp,
    install::{BackendIndex, Frontend, Via},
};

/// How programs are attached to network interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it (6.6 and later), else clsact.
    #[default]
    Auto,
    /// TCX links, pinned.
    Tcx,
    /// A clsact qdisc with filters.
    Clsact,
}

/// What the data plane needs to know of the host.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory under a BPF file system that holds pinned maps and links.
    pub pin: PathBuf,
    /// cgroup2 directory whose processes get connect-time balancing.
    pub cgroup: PathBuf,
    /// Interfaces on which clients arrive.
    pub uplinks: Vec<String>,
    /// The node's underlay address.
    pub address: IpAddr,
    /// Further addresses of the node at which published ports answer.
    pub addresses: Vec<IpAddr>,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// Name of the tunnel device.
    pub tunnel_device: String,
    /// How to attach to interfaces.
    pub attach: AttachMode,
    /// Room in each flow table; `None`: from the memory of the host.
    pub flow_capacity: Option<u32>,
}

/// One line of `weir check`.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was looked at, as a short stable name (`bpf-filesystem`).
    pub name: &'static str,
    /// What was found, as a sentence.
    pub found: String,
    /// Whether weir works with it.
    pub outcome: Outcome,
    /// How to mend it; empty when there is nothing to mend.
    pub remedy: String,
}

/// The tick or the cross of a [`Check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Good,
    /// Works, with a loss that `found` names.
    Limited,
    /// The kernel data plane cannot run.
    Bad,
}

/// A failure of the data plane; the text names what was tried, with the value, and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}{}", if .remedy.is_empty() { String::new() } else { format!(" ({})", .remedy) })]
pub struct Error {
    /// What was tried (`attach nic_in to eth9`).
    pub what: String,
    /// Why it failed (`no such interface`).
    pub cause: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

/// Packets and bytes in one direction, and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// New flows.
    pub connections: u64,
    /// Packets from clients.
    pub rx_packets: u64,
    /// Bytes from clients, with headers from the IP header on.
    pub rx_bytes: u64,
    /// Packets to clients.
    pub tx_packets: u64,
    /// Bytes to clients.
    pub tx_bytes: u64,
}

/// Everything the kernel counts.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// By published port.
    pub frontends: BTreeMap<Frontend, Counters>,
    /// By backend.
    pub backends: BTreeMap<BackendIndex, Counters>,
    /// By drop reason (name as in `weir_abi::DropReason`).
    pub drops: BTreeMap<&'static str, u64>,
    /// Entries and capacity by map name.
    pub maps: BTreeMap<&'static str, (u64, u64)>,
}

/// What a pass over the flow tables found.
#[derive(Clone, Debug, Default)]
pub struct FlowCensus {
    /// Live flows by backend, as entered on this node.
    pub active: BTreeMap<BackendIndex, u64>,
    /// Entries deleted because they had timed out.
    pub expired: u64,
    /// Entries in the forward tables after the pass.
    pub forward: u64,
    /// Entries in the reverse tables after the pass.
    pub reverse: u64,
}

/// What the data plane is attached to, for `weir status`.
#[derive(Clone, Debug, Default)]
pub struct Attachments {
    /// Hook (`nic_in@eth0`) to how (`tcx`, `clsact`, `cgroup`).
    pub hooks: BTreeMap<String, &'static str>,
    /// Interfaces that were asked for and do not exist now.
    pub missing: BTreeSet<String>,
    /// What failed, by hook.
    pub failed: BTreeMap<String, String>,
}

/// The kernel data plane of one node: programs, maps, tunnel device. Dropping it leaves everything
/// in the kernel as it is: forwarding goes on.
pub struct Dataplane {
    _private: (),
}

impl Dataplane {
    /// What this host can do; changes nothing.
    pub fn check(_options: &Options) -> Vec<Check> {
        todo!()
    }

    /// Loads the programs, or takes over what an earlier agent pinned, makes the tunnel device and
    /// attaches.
    pub fn open(_options: &Options) -> Result<Self, Error> {
        todo!()
    }

    /// What the maps hold now, read from the kernel.
    pub fn installed(&self) -> Result<Installed, Error> {
        todo!()
    }

    /// Applies one operation. An error leaves the maps as they were before it.
    pub fn apply(&mut self, _op: &MapOp) -> Result<(), Error> {
        todo!()
    }

    /// Brings interfaces in line with the host: uplinks that came or went, bridges and veths that
    /// lead to `tasks`, the node's own addresses. Called again and again; does nothing when nothing
    /// changed. Answers how each of `tasks` is reached from here.
    pub fn sync_interfaces(
        &mut self,
        _tasks: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Via>, Error> {
        todo!()
    }

    /// What is attached where.
    pub fn attachments(&self) -> Attachments {
        todo!()
    }

    /// Reads the counters.
    pub fn stats(&self) -> Result<Stats, Error> {
        todo!()
    }

    /// Goes through the flow tables, deletes what has timed out, counts what lives.
    pub fn collect_flows(&mut self) -> Result<FlowCensus, Error> {
        todo!()
    }

    /// Removes everything that any agent with these options left in the kernel. Collects all
    /// errors; lists what it removed.
    pub fn uninstall(_options: &Options) -> (Vec<String>, Vec<Error>) {
        todo!()
    }
}

/// Digest of the kernel object that this build carries.
pub fn object_digest() -> &'static str {
    todo!()
}

/// How long an index, slot or region rests before it is used again, so that no packet in flight
/// still reads it. Far longer than an RCU grace period.
pub const GRACE: Duration = Duration::from_secs(2);

#[expect(unused, reason = "kept for the restore path")]
fn _unused(_: Ident) {}
