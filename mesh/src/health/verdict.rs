//! What a task's own node has found out about it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// What speaks against new flows for a task, as its own node has found out. Other nodes hear of it over
/// the link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It fails its check.
    Failing {
        /// What the probes found.
        problem: String,
    },
    /// It has refused connections again and again.
    Ejected {
        /// How long it is to be out.
        time: Duration,
        /// So many connections it has refused; 0: before the agent began.
        refused: u64,
    },
}

impl Verdict {
    /// What there is to be said when the panic threshold, in percent, keeps an ejected task in.
    pub fn spared(&self, panic: u8) -> String {
        match self {
            Self::Ejected { refused, .. } => format!(
                "not ejected, although it refused {refused} connections: fewer than {panic} % of \
                 the tasks would be left"
            ),
            Self::Failing { .. } => self.to_string(),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing { problem } => write!(f, "health: {problem}"),
            Self::Ejected { time, refused: 0 } => {
                write!(f, "ejected for {}: so it was when the agent began", spelled(*time))
            }
            Self::Ejected { time, refused } => {
                write!(f, "ejected for {}: refused {refused} connections", spelled(*time))
            }
        }
    }
}

fn spelled(time: Duration) -> String {
    match time.subsec_millis() {
        0 => format!("{} s", time.as_secs()),
        _ => format!("{} ms", time.as_millis()),
    }
}
