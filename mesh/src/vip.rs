//! Virtual addresses: one address for all tasks of a service, on a network that asker and tasks share.
//!
//! A socket that connects or sends to a virtual address is given the address of a task on the same
//! network, and from then on packets need nobody. The kernel must know three things for that: which
//! network namespaces are attached to which networks ([`LocalSpaces`]), which virtual addresses there
//! are on those networks, and which tasks each stands for. [`VipPlanner`] turns what is installed of it
//! ([`InstalledVips`]) into what a snapshot asks for, by operations that are safe after every prefix.
//!
//! Networks of which nothing on this node is a part are left out: whoever is not attached does not ask.

mod installed;
mod planner;
mod pool;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::Serialize;

pub use installed::{InstalledVips, Violation, VipOp};
pub use planner::{VipPlan, VipPlanner};
pub use pool::{PoolFull, allocate};

use crate::{
    ident::Ident,
    install::Region,
    service::{NetworkId, ServiceName},
};

/// A network namespace, as the kernel names it (`SO_NETNS_COOKIE`): unique until the host starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SpaceCookie(pub u64);

/// Which network namespaces of this node are attached to which networks.
pub type LocalSpaces = BTreeMap<SpaceCookie, BTreeSet<NetworkId>>;

/// A virtual address on its network. The same address on two networks is two of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct VipKey {
    /// Identity of the network.
    pub network: Ident,
    /// The virtual address.
    pub address: IpAddr,
}

/// An address that stands for one address of this node, to the namespaces that are attached to a network
/// of its own. No service has it: this node decides by itself who is attached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnVip {
    /// What it is for, in messages.
    pub service: ServiceName,
    /// The network that is made for it.
    pub network: NetworkId,
    /// The address.
    pub address: IpAddr,
    /// What it stands for.
    pub target: IpAddr,
}

/// Position of a virtual address in the kernel's array; 0 is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct VipSlot(pub u32);

/// Which tasks a virtual address stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VipRecord {
    /// The virtual address.
    pub key: VipKey,
    /// The cells with the addresses of its tasks, in ascending order; an address is there once for
    /// each of its turns. Empty: connections are refused.
    pub run: Region,
    /// How far one turn is from the next, in cells. Without common divisor with the run's length, so
    /// that all cells have a turn before one has a second.
    pub stride: u32,
}

/// The sizes of the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipLimits {
    /// Virtual addresses, with the reserved 0.
    pub vips: u32,
    /// Cells for addresses of tasks.
    pub cells: u32,
    /// Network namespaces.
    pub spaces: u32,
    /// Networks of one namespace.
    pub networks: u32,
}

/// Something that keeps virtual addresses from being served as they should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum VipProblem {
    /// Two services want one address on one network.
    #[error(
        "service {service} is not served at its virtual address {address} on network {network}: \
         service {winner} has it"
    )]
    Conflict {
        /// The service that does not have it.
        service: ServiceName,
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkId,
        /// The service that has it: the first by name.
        winner: ServiceName,
    },
    /// A kernel table is full; what the address stood for it goes on standing for.
    #[error(
        "service {service} is not up to date at its virtual address {address}: all {limit} \
         {resource} of the kernel maps are taken"
    )]
    Exhausted {
        /// The service.
        service: ServiceName,
        /// The address.
        address: IpAddr,
        /// What there is none left of.
        resource: &'static str,
        /// How much there is.
        limit: u32,
    },
    /// A namespace with more networks than the kernel's table holds.
    #[error(
        "a container is attached to {count} networks, and the virtual addresses of the first \
         {limit} work in it (network namespace cookie {})", .space.0
    )]
    TooManyNetworks {
        /// The namespace.
        space: SpaceCookie,
        /// Its networks.
        count: usize,
        /// How many there may be.
        limit: u32,
    },
    /// More namespaces than the kernel's table holds.
    #[error("virtual addresses work in {limit} containers of this node and not in {count} more")]
    TooManySpaces {
        /// How many found no place.
        count: usize,
        /// How many there may be.
        limit: u32,
    },
}

impl fmt::Display for VipKey {
    /// `10.0.9.2@<identity of the network>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.address, self.network)
    }
}
