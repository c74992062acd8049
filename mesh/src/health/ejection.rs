//! Ejection: a task that refuses connection after connection gets none for a while.

use std::{collections::VecDeque, time::Duration};

use super::Ejection;
use crate::plan::Moment;

/// What a task said to new connections since it was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// So many it took.
    pub accepted: u64,
    /// So many it refused.
    pub refused: u64,
}

/// Where one task stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EjectionState {
    /// Refused connections since the last accepted one, and when they were seen.
    refusals: VecDeque<(Moment, u64)>,
    current: Option<Current>,
    /// Ejections that lengthen the next one.
    repeats: u32,
    /// From when on one of them is forgotten, while the task is in.
    forget: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Current {
    until: Moment,
    time: Duration,
    refused: u64,
    /// How often in a row it was found to listen meanwhile.
    listened: u32,
}

/// However often it was ejected, a task that is found to listen so often in a row comes back.
const CONVINCING: u32 = 5;

impl EjectionState {
    /// A task that was ejected when nobody can say any more how long ago.
    pub fn ejected(now: Moment, settings: &Ejection) -> Self {
        let mut state = Self::default();
        state.eject(0, now, settings);
        state
    }

    /// Whether it is ejected, for how long in all, and for how many refused connections (0: not
    /// known any more).
    pub fn current(&self) -> Option<(Duration, u64)> {
        self.current.map(|current| (current.time, current.refused))
    }

    /// When [`EjectionState::tick`] is next needed.
    pub fn due(&self) -> Option<Moment> {
        self.current.map(|current| current.until)
    }

    /// Lets time pass; true when that ended an ejection.
    pub fn tick(&mut self, now: Moment, settings: &Ejection) -> bool {
        let over = self.current.is_some_and(|current| current.until <= now);
        if over {
            self.come_back(now, settings);
        }
        over
    }

    /// Takes what was seen of the task; true when that ejected it or brought it back.
    ///
    /// Of connections that were seen together nobody knows the order. An accepted one is taken for
    /// the last of them: a task that accepts anything is never ejected.
    pub fn note(&mut self, seen: Seen, now: Moment, settings: &Ejection) -> bool {
        let mut changed = self.tick(now, settings);
        self.forgive(now, settings);
        if seen.accepted > 0 {
            self.refusals.clear();
            // It was used although it was ejected (few are left, or other nodes do not know yet).
            if self.current.is_some() && seen.refused == 0 {
                self.come_back(now, settings);
                changed = true;
            }
            return changed;
        }
        if self.current.is_some() || seen.refused == 0 {
            return changed;
        }
        let young = |at: &Moment| now.0.saturating_sub(at.0) < settings.within;
        self.refusals.retain(|(at, _)| young(at));
        self.refusals.push_back((now, seen.refused));
        // Older ones add nothing once the newer ones suffice, so there are never many.
        let refused: u64 = self.refusals.iter().map(|(_, count)| count).sum();
        if refused >= u64::from(settings.refused) {
            self.eject(refused, now, settings);
            changed = true;
        }
        changed
    }

    /// Takes whether an ejected task was found to listen; true when that brought it back. The more
    /// often it was ejected, the more often in a row it must listen: what its node finds may not be
    /// what clients find.
    pub fn listens(&mut self, listens: bool, now: Moment, settings: &Ejection) -> bool {
        let Some(current) = &mut self.current else { return false };
        current.listened = if listens { current.listened.saturating_add(1) } else { 0 };
        let comes_back = current.listened >= self.repeats.saturating_add(1).min(CONVINCING);
        if comes_back {
            self.come_back(now, settings);
        }
        comes_back
    }

    fn eject(&mut self, refused: u64, now: Moment, settings: &Ejection) {
        let time = self.next_time(settings);
        self.current =
            Some(Current { until: Moment(now.0.saturating_add(time)), time, refused, listened: 0 });
        self.repeats = self.repeats.saturating_add(1);
        self.refusals.clear();
        self.forget = None;
    }

    fn come_back(&mut self, now: Moment, settings: &Ejection) {
        self.current = None;
        self.refusals.clear();
        self.forget = Some(Moment(now.0.saturating_add(self.next_time(settings))));
    }

    /// A task that stayed in for as long as it would be out next is trusted a little more.
    fn forgive(&mut self, now: Moment, settings: &Ejection) {
        while let Some(at) = self.forget.filter(|at| *at <= now && self.repeats > 0) {
            self.repeats -= 1;
            let more = self.next_time(settings).max(Duration::from_millis(1));
            self.forget = Some(Moment(at.0.saturating_add(more)));
        }
    }

    fn next_time(&self, settings: &Ejection) -> Duration {
        let factor = 1_u32.checked_shl(self.repeats).unwrap_or(u32::MAX);
        settings.time.saturating_mul(factor).min(Ejection::LONGEST.max(settings.time))
    }
}

/// Whether the panic threshold keeps everybody in: of `all` tasks of a service `out` take no new
/// flows for other reasons, and `ejected` more would be ejected.
pub fn spares(all: usize, out: usize, ejected: usize, settings: &Ejection) -> bool {
    let left = all.saturating_sub(out).saturating_sub(ejected);
    left * 100 < all * usize::from(settings.panic)
}
