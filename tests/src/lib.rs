//! The lab: hosts, tasks and clients in network namespaces of their own, so that weir is tested
//! with the real kernel, real packets and real processes, many labs at once, as root, and with
//! nothing left behind.
//!
//! Start reading at [`Lab::builder`]; [`traffic`] makes load and counts what happened to it.
//!
//! Three rules hold everywhere in here:
//! * **Nothing has a name that outlives us.** Namespaces are nameless, processes die with the
//!   thread that started them, and what must have a name (cgroups, pins, run directories) carries
//!   our pid, so that the next lab removes what a SIGKILL left ([`residue`]).
//! * **All waiting goes through [`eventually`]**, which is bounded and says what it last saw.
//! * **What runs inside a namespace is a closure or a process**, never a change of the caller's
//!   own thread.

pub mod agent;
pub mod authority;
pub mod bpffs;
pub mod browser;
pub mod cgroup;
pub mod dockerd;
pub mod documents;
pub mod firewall;
pub mod host;
pub mod http;
pub mod interrupt;
pub mod lab;
pub mod link;
pub mod mesh;
pub mod netns;
pub mod network;
pub mod offload;
pub mod packet;
pub mod packet_world;
pub mod ping;
pub mod probe;
pub mod process;
pub mod prometheus;
pub mod residue;
pub mod scene;
pub mod swarm;
pub mod sweeper;
pub mod sysctl;
pub mod task;
pub mod traffic;
pub mod wait;

mod failure;
mod leftovers;
mod plan;
mod plane;

pub use agent::{Agent, AgentConfig};
pub use authority::Authority;
pub use dockerd::FakeDockerd;
pub use host::{Client, Host};
pub use lab::{Lab, LabBuilder};
pub use mesh::{Mesh, Publish, State};
pub use netns::Netns;
pub use network::Network;
pub use offload::Offloads;
pub use plan::Families;
pub use plane::Plane;
pub use probe::{How, Probe, Seen, Talk};
pub use process::Process;
pub use scene::{Cases, Scene};
pub use swarm::Swarm;
pub use task::Task;
pub use wait::eventually;
