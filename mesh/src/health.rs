//! Whether a task can serve: what it is asked (checks), what is seen of it (refusals), and what
//! follows.
//!
//! Only a task's own node asks it and sees what it refuses; what follows of that every node works out
//! in the same way. The state machines here know no clock and ask nobody: the agent
//! tells them what a probe found, what the kernel counted, and when.

mod check;
mod ejection;
pub mod labels;
mod verdict;

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

pub use check::CheckState;
pub use ejection::{EjectionState, Seen, spares};
pub use verdict::Verdict;

use crate::service::{Protocol, Service, TargetPort};

/// How a service wants its tasks to be judged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Health {
    /// What each task is asked; `None`: nothing.
    pub check: Option<Check>,
    /// When a task that refuses connections is ejected; `None`: never.
    pub ejection: Option<Ejection>,
}

/// An active check: a task that fails it takes no new flows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Check {
    /// What counts as an answer.
    pub kind: CheckKind,
    /// Where it is asked; `None`: at the first port that is published for TCP.
    pub port: Option<TargetPort>,
    /// From one probe to the next.
    pub interval: Duration,
    /// How long a probe may take.
    pub timeout: Duration,
    /// So many good probes in a row make a task healthy.
    pub rise: u32,
    /// So many bad probes in a row make it unhealthy.
    pub fall: u32,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// Connects.
    Tcp,
    /// Asks for a path by HTTP/1.1; an answer from 200 to 399 is good.
    Http {
        /// The path, with its query; begins with a slash.
        path: String,
    },
}

/// When a task that refuses connections gets none for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ejection {
    /// So many refused connections, with no accepted one between them, eject a task.
    pub refused: u32,
    /// They count while they are younger than this.
    pub within: Duration,
    /// How long the first ejection lasts. Each further one lasts twice as long as the one before,
    /// up to [`Ejection::LONGEST`] or this, whichever is longer.
    pub time: Duration,
    /// In percent: nobody is ejected when a smaller part of the service's tasks would be left.
    pub panic: u8,
}

impl Check {
    /// With the defaults: every 2 s, at most 1 s, up after 2 good probes, down after 3 bad ones.
    pub fn new(kind: CheckKind) -> Self {
        let (interval, timeout) = (Duration::from_secs(2), Duration::from_secs(1));
        Self { kind, port: None, interval, timeout, rise: 2, fall: 3 }
    }

    /// Where tasks of this service are asked; `None` when no port is named and none is published
    /// for TCP.
    pub fn target(&self, service: &Service) -> Option<TargetPort> {
        let mut tcp = service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        self.port.or_else(|| tcp.next().map(|port| port.target))
    }
}

impl fmt::Display for CheckKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Http { path } => write!(f, "http {path}"),
        }
    }
}

impl Ejection {
    /// However often a task is ejected, no ejection is longer, unless the first is.
    pub const LONGEST: Duration = Duration::from_secs(300);
}

impl Default for Ejection {
    fn default() -> Self {
        let ten = Duration::from_secs(10);
        Self { refused: 5, within: ten, time: ten, panic: 50 }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self { check: None, ejection: Some(Ejection::default()) }
    }
}

impl Health {
    /// Whether it is what a service gets that says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
