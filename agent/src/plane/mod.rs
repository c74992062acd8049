//! Which data plane serves this node, and why: the kernel's programs, or the userspace proxy.
//!
//! Both are driven by the same [`Reconciler`](crate::reconciler::Reconciler), so that they balance,
//! drain and keep deadlines alike.

pub mod beside;
mod either;
mod split;
mod user;

pub use either::Plane;
pub use user::UserPlane;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use weir_loader::{Check, Dataplane, Error, Outcome};

use crate::{
    config::{Config, Mode},
    upgrade::Heritage,
};

/// A data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Programs in the kernel.
    Ebpf,
    /// Sockets of the agent.
    Proxy,
}

/// The data plane that was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chosen {
    /// Which.
    pub kind: Kind,
    /// Why.
    pub reason: String,
}

impl Kind {
    /// The word used in configuration, status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Proxy => "proxy",
        }
    }
}

impl Chosen {
    /// The kernel's programs.
    pub fn ebpf() -> Self {
        Self { kind: Kind::Ebpf, reason: "the kernel has what it takes".to_owned() }
    }

    fn proxy(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Proxy, reason: reason.into() }
    }
}

/// What keeps the kernel data plane from running on this host, each with its remedy. Nothing, if it
/// is not asked for.
pub fn obstacles(config: &Config) -> Vec<Check> {
    if config.dataplane.mode == Mode::Proxy {
        return Vec::new();
    }
    let checks = Dataplane::check(&config.dataplane_options());
    checks.into_iter().filter(|check| check.outcome == Outcome::Bad).collect()
}

/// Opens the data plane that the configuration asks for; where it leaves the choice, the kernel's if
/// the kernel takes it, else the proxy.
///
/// # Errors
/// When the one that is asked for cannot be had, or neither.
pub fn open(config: &Config, obstacles: &[Check], heritage: &Heritage) -> Result<Plane, Error> {
    let user = |reason: String| user(config, reason, heritage);
    match config.dataplane.mode {
        Mode::Proxy => user("dataplane.mode asks for it".to_owned()),
        Mode::Ebpf => Dataplane::open(&config.dataplane_options()).map(Plane::kernel),
        Mode::Auto => {
            let found: Vec<String> =
                obstacles.iter().map(|check| format!("{}: {}", check.name, check.found)).collect();
            if !found.is_empty() {
                return user(format!("not ebpf, since {}", found.join("; ")));
            }
            match Dataplane::open(&config.dataplane_options()) {
                Ok(dataplane) => Ok(Plane::kernel(dataplane)),
                Err(error) => user(format!("not ebpf, since it failed: {error}")),
            }
        }
    }
}

fn user(config: &Config, reason: String, heritage: &Heritage) -> Result<Plane, Error> {
    let chosen = Chosen::proxy(reason);
    match config.dataplane.mode {
        Mode::Proxy => info!("the data plane is the userspace proxy"),
        _ => warn!(reason = chosen.reason, "the data plane is the userspace proxy"),
    }
    UserPlane::instead(config, chosen, heritage).map(Plane::user)
}
