//! Rise and fall: what probes say, made steady.

use super::Check;

/// Where one task stands in its check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckState {
    healthy: bool,
    /// Probes in a row that said the opposite of `healthy`.
    against: u32,
}

impl CheckState {
    /// A task that nobody knows yet (`healthy` false) or one that served before (true).
    pub fn new(healthy: bool) -> Self {
        Self { healthy, against: 0 }
    }

    /// Whether the task may have new flows.
    pub fn is_healthy(self) -> bool {
        self.healthy
    }

    /// Probes in a row that said the opposite of what it is.
    pub fn against(self) -> u32 {
        self.against
    }

    /// Takes what a probe found; true when that changed what the task is.
    pub fn note(&mut self, good: bool, check: &Check) -> bool {
        if good == self.healthy {
            self.against = 0;
            return false;
        }
        self.against = self.against.saturating_add(1);
        let needed = if self.healthy { check.fall } else { check.rise };
        let turns = self.against >= needed;
        if turns {
            *self = Self::new(good);
        }
        turns
    }
}
