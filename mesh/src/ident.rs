//! Identities that every node computes alike, without asking anybody.

use std::{fmt, hash::Hasher};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use crate::service::{NetworkId, NodeName, ServiceName, TaskName};

/// The identity of a service, task or node: a 64-bit keyed hash of its names. It is what the kernel
/// maps carry in place of names, so that a restarted agent finds its own entries again, and what
/// Maglev hashes, so that every node builds the same table.
///
/// SipHash-2-4 with a fixed key: the result must never depend on the compiler, the machine or the
/// run. 64 bits make an accidental collision among 100,000 tasks a one in 3.7 billion event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ident(pub u64);

/// The tunnel tag of a task, carried in the 24-bit VXLAN network identifier: the task's identity,
/// reduced to the values that the tunnel leaves free. See `docs/decisions/0002-tags-from-identity.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tag(pub u32);

impl Ident {
    /// The identity of a service.
    pub fn of_service(service: &ServiceName) -> Self {
        Self::hash(b's', &[service.as_str()])
    }

    /// The identity of a task of a service. The node is part of it: a task that moved is another.
    pub fn of_task(service: &ServiceName, task: &TaskName, node: &NodeName) -> Self {
        Self::hash(b't', &[service.as_str(), task.as_str(), node.as_str()])
    }

    /// The identity of a node.
    pub fn of_node(node: &NodeName) -> Self {
        Self::hash(b'n', &[node.as_str()])
    }

    /// The identity of a network.
    pub fn of_network(network: &NetworkId) -> Self {
        Self::hash(b'w', &[network.as_str()])
    }

    /// The place of a service in the pool of virtual addresses of a network.
    pub fn of_vip(service: &ServiceName, network: &NetworkId) -> Self {
        Self::hash(b'v', &[service.as_str(), network.as_str()])
    }

    fn hash(kind: u8, names: &[&str]) -> Self {
        let mut hasher = SipHasher24::new_with_keys(0x7765_6972_2d69_6465, 0x6e74_6974_792d_7631);
        hasher.write_u8(kind);
        for name in names {
            hasher.write(&(name.len() as u64).to_le_bytes());
            hasher.write(name.as_bytes());
        }
        Self(hasher.finish())
    }

    /// A 32-bit digest, never 0.
    pub fn fold(self) -> u32 {
        ((self.0 >> 32) as u32 ^ self.0 as u32).max(1)
    }
}

impl Tag {
    /// Tags of tasks lie in `1..=Self::MAX`; 0 and the value above it are reserved by the tunnel.
    pub const MAX: u32 = (1 << 23) - 2;

    /// The tag of the task with this identity.
    pub fn of(task: Ident) -> Self {
        Self((task.0 % u64::from(Self::MAX)) as u32 + 1)
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_the_same_in_every_build() {
        let ident =
            Ident::of_task(&ServiceName::new("web"), &TaskName::new("web.1"), &NodeName::new("n1"));
        assert_eq!(ident.to_string(), EXPECTED);
    }

    #[test]
    fn names_do_not_run_into_each_other() {
        let of = |service: &str, task: &str| {
            Ident::of_task(&ServiceName::new(service), &TaskName::new(task), &NodeName::new("n"))
        };
        assert_ne!(of("ab", "c"), of("a", "bc"));
    }

    #[test]
    fn tags_stay_clear_of_the_reserved_values() {
        for ident in [0, 1, u64::from(Tag::MAX) - 1, u64::from(Tag::MAX), u64::MAX] {
            let tag = Tag::of(Ident(ident)).0;
            assert!((1..=Tag::MAX).contains(&tag), "{ident} gave {tag}");
        }
    }

    const EXPECTED: &str = "8340700cb42c48a9";
}
