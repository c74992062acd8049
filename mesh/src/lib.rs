//! The mesh as data, and what must change next.
//!
//! This crate is the pure core of weir: it does no I/O, reads no clock and opens no socket, so that
//! every decision can be tested by calling a function. Read [`service`] for what a mesh consists
//! of, [`snapshot`] for the immutable whole that everything else consumes, [`install`] for the
//! mirror of what the kernel holds, and [`plan`] for how the one becomes the other. [`cluster`] is how
//! the words of many nodes become one mesh. [`vip`] does for virtual addresses what [`plan`] does for
//! published ports.
#![forbid(unsafe_code)]

pub mod access;
pub mod balance;
pub mod cluster;
pub mod health;
pub mod ident;
pub mod install;
pub mod plan;
pub mod ports;
pub mod proxied;
pub mod service;
pub mod snapshot;
pub mod trace;
pub mod vip;

pub use access::{Access, Subnet};
pub use health::Health;
pub use ident::Ident;
pub use install::{Installed, MapOp};
pub use plan::{Carried, Limits, LocalView, Moment, Plan, Planner, Problem};
pub use proxied::Proxied;
pub use service::{
    Balance, EndpointMode, Locality, Network, NetworkId, Node, NodeName, Port, Protocol,
    PublishMode, PublishedPort, Service, ServiceName, Space, SpaceAt, TargetPort, Task, TaskName,
    TaskState, Timeouts, is_port_name,
};
pub use snapshot::{Generation, MeshSnapshot};
