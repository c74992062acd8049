//! Real TLS over loopback, certificates made on the spot in the shape of Swarm's.

mod cluster;
mod identity;
mod lies;
mod limits;
pub(super) mod pki;
mod road;
