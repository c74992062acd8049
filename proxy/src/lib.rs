//! The userspace data plane: what the kernel programs do with packets, done with sockets.
//!
//! It serves the same operations ([`weir_mesh::MapOp`]) as the kernel's maps, so that balancing,
//! draining and deadlines are decided by the same planner. [`Proxy`] is the way in: it opens and
//! closes listeners and hands them to workers, one single-threaded runtime a core. `tcp` carries
//! connections, `udp` datagrams, and `relay` hands both to the node that runs the task.
#![deny(unsafe_code)]

mod address;
mod backend;
mod counters;
mod directory;
mod door;
mod handover;
pub mod header;
mod listen;
mod port;
mod proxy;
mod relay;
mod route;
mod service;
mod settings;
mod shared;
mod source;
mod sys;
mod tcp;
mod udp;
mod worker;

pub use counters::{Counted, Reason};
pub use door::Dispatch;
pub use handover::{FORMAT, Handover, HandoverError};
pub use proxy::{BackendCounts, Proxy, ProxyError, Remains, Usage};
pub use settings::Settings;
