//! The kernel data plane from user space: loads the programs, attaches and pins them, fills and
//! reads their maps, and takes all of it away again.
//!
//! [`Dataplane`] is the way in. It only carries out what `weir_mesh::plan` decides; which task gets
//! a flow is decided by the planner and by the programs in `ebpf/programs`.

mod check;
mod dataplane;
mod error;
mod flow_list;
mod flows;
mod hooks;
mod kernel;
mod lookup;
mod maps;
mod net;
mod object;
mod recent;
mod records;
mod spaces;
mod stats;
mod store;
mod sys;
mod table;
#[cfg(feature = "trial")]
mod trial;
mod uninstall;
mod vips;

use std::{collections::BTreeMap, collections::BTreeSet, net::IpAddr, path::PathBuf};

pub use check::{Check, Outcome};
pub use dataplane::Dataplane;
pub use error::Error;
pub use flow_list::{Flow, FlowName, FlowTables, Stage};
pub use flows::FlowCensus;
pub use lookup::SocketLookup;
pub use object::object_digest;
pub use recent::DroppedPacket;
pub use spaces::{NetnsCookies, netns_cookie_of};
pub use stats::{Answers, Counters, Stats, drop_reasons};
#[cfg(feature = "trial")]
pub use trial::{Arrival, Ran, Trial};

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
