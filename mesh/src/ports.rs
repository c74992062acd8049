//! Published ports: Docker's short syntax, automatic assignment, and who may not share a port.

mod assign;
mod conflicts;
mod syntax;

use std::ops::RangeInclusive;

pub use assign::assign_ports;
pub use conflicts::port_conflicts;
pub use syntax::parse_ports;

use crate::service::{
    NodeName, Port, Protocol, PublishMode, PublishedPort, ServiceName, TargetPort,
};

/// Where ports without a published number are put; the same range as Docker's.
pub const ASSIGNED: RangeInclusive<u16> = 30_000..=32_767;

/// A port as it was asked for: possibly without a published number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortSpec {
    /// The protocol it is published for.
    pub protocol: Protocol,
    /// Where clients connect; `None` asks for a number from [`ASSIGNED`].
    pub published: Option<PublishedPort>,
    /// Where the tasks listen.
    pub target: TargetPort,
    /// Through the mesh or past it.
    pub mode: PublishMode,
}

/// A port specification that cannot be taken: what was written, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// Not a number.
    #[error("\"{value}\" in \"{spec}\" is not a port; write PUBLISHED:TARGET, as in 8080:80")]
    NotAPort {
        /// The whole specification.
        spec: String,
        /// The part that is wrong.
        value: String,
    },
    /// A number that is no port.
    #[error("port {value} in \"{spec}\" is out of range; ports are 1 to 65535")]
    OutOfRange {
        /// The whole specification.
        spec: String,
        /// The number.
        value: String,
    },
    /// A protocol that the mesh does not carry.
    #[error(
        "protocol \"{value}\" in \"{spec}\" is not supported; use tcp or udp, \
         and one entry for each if you need both"
    )]
    Protocol {
        /// The whole specification.
        spec: String,
        /// The protocol.
        value: String,
    },
    /// A host address.
    #[error(
        "\"{spec}\" names the address {address}, but the mesh publishes on all addresses of every \
         node; write \"{without}\""
    )]
    Address {
        /// The whole specification.
        spec: String,
        /// The address.
        address: String,
        /// The specification without it.
        without: String,
    },
    /// A range that runs downwards.
    #[error("range {first}-{last} in \"{spec}\" is inverted; write {last}-{first}")]
    Inverted {
        /// The whole specification.
        spec: String,
        /// Its first port.
        first: u16,
        /// Its last port.
        last: u16,
    },
    /// Two ranges that do not match.
    #[error(
        "\"{spec}\" maps {published} published ports to {target} target ports; both ranges must \
         have the same length, or the target must be one port"
    )]
    Lengths {
        /// The whole specification.
        spec: String,
        /// Length of the published range.
        published: usize,
        /// Length of the target range.
        target: usize,
    },
}

/// No number is left for a port that asks for one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no free {protocol} port between {} and {} for service {service}, target {target}; publish \
     it with a number of your own",
    ASSIGNED.start(), ASSIGNED.end()
)]
pub struct PortsExhausted {
    /// The service.
    pub service: ServiceName,
    /// The protocol.
    pub protocol: Protocol,
    /// Where its tasks listen.
    pub target: TargetPort,
}

/// Two services that want the same published port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "services {first} and {second} both publish {}/{}{}", .port.protocol, .port.published,
    .node.as_ref().map(|node| format!(" in host mode and both run on node {node}")).unwrap_or_default()
)]
pub struct PortConflict {
    /// The port, as the second service publishes it.
    pub port: Port,
    /// The service that comes first by name.
    pub first: ServiceName,
    /// The other.
    pub second: ServiceName,
    /// For two services in host mode: a node that runs both.
    pub node: Option<NodeName>,
}
