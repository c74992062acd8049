//! Service-discovery DNS: names of services and tasks for whoever shares a network with them, and a
//! forwarder with a cache for every other name.
//!
//! Read [`zone`] for what names there are, which is a pure function of a snapshot; [`directory`] for
//! who sees which of them; [`handler`] for how a packet becomes an answer; [`forward`] for names that
//! are not ours; and [`server`] for the sockets. `docs/dns.md` says what is promised.

pub mod counters;
pub mod directory;
pub mod forward;
pub mod handler;
pub mod inspect;
pub mod name;
pub mod reply;
pub mod request;
pub mod server;
pub mod special;
pub mod wire;
pub mod zone;

pub use counters::{Counters, Drop, From};
pub use directory::{Asker, Directory, Outside};
pub use forward::{Forwarder, Routes};
pub use handler::{Handler, Identity, Outcome, Transport};
pub use zone::{Scope, Zone, ZoneSettings};
