//! `weir upgrade`: another agent, of the program that is on disk now, goes on in place of this one.
//!
//! ```text
//! this agent                         the new one
//!   starts it  ────────────────────>  reads its configuration
//!              <── hello ───────────
//!   stops all but the proxy
//!              ─── go ─────────────>  takes the locks, follows its source
//!              <── take ────────────
//!   stops listening
//!              ─── state, sockets ─>  serves what was served
//!              <── runs ────────────
//!   ends when its last connection does
//! ```
//!
//! Whatever fails up to "runs" ends the new agent, and this one goes on: before "go" it has not stopped
//! anything, and later it takes its own sockets over. See `docs/decisions/0013-upgrade.md`.

mod heritage;
mod keeper;
mod successor;
mod wire;

use tokio::sync::oneshot;
use weir_proxy::Proxy;

pub use heritage::Heritage;
pub use keeper::{Outcome, keep};
pub use successor::{Successor, note_program};

/// Somebody asks for an upgrade; answered with the number of the new process, or why there is none.
pub type Request = oneshot::Sender<Result<u32, String>>;

/// What a proxy does on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It carries everything.
    Alone,
    /// It serves what the kernel cannot.
    Beside,
}

/// An agent that has stopped so that another one goes on.
pub struct Succession {
    /// The other one.
    pub successor: Successor,
    /// What goes on without the agent.
    pub proxy: Option<(Role, Proxy)>,
}
