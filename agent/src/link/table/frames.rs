//! Frames that were made for one reader and serve the next: of a thousand readers most are at the
//! same place.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;

/// Frames of a table.
///
/// Full ones, from the first on, stay until one of their keys changes. They never overlap, so all of
/// them together are no longer than the table. Besides them there is the newest last one.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// By where they begin.
    full: BTreeMap<u64, Made>,
    last: Option<(u64, bool, Made)>,
}

#[derive(Clone, Debug)]
struct Made {
    to: u64,
    bytes: Bytes,
}

impl Frames {
    /// The frame for a reader at `from`, and where it ends. `first`: it begins a snapshot; `head`:
    /// where the table ends.
    pub(super) fn get(&self, from: u64, first: bool, head: u64) -> Option<(u64, Bytes)> {
        let last = self
            .last
            .as_ref()
            .filter(|(at, begins, made)| (*at, *begins, made.to) == (from, first, head));
        // Of those that begin at 0 only the first of a snapshot are kept.
        let full = || self.full.get(&from).filter(|_| first == (from == 0));
        let made = last.map(|(_, _, made)| made).or_else(full)?;
        Some((made.to, made.bytes.clone()))
    }

    /// Keeps a frame if another reader is likely to come by.
    pub(super) fn keep(&mut self, (from, to): (u64, u64), first: bool, head: u64, bytes: &Bytes) {
        let made = Made { to, bytes: bytes.clone() };
        if to == head {
            self.last = Some((from, first, made));
            return;
        }
        let before = self.full.range(..from).next_back();
        let follows = before.is_some_and(|(_, before)| before.to == from);
        let begins = first && from == 0;
        if !begins && !follows {
            return;
        }
        // Another one that begins within this one is of an older chain.
        let within: Vec<u64> = self.full.range(from..to).map(|(from, _)| *from).collect();
        within.iter().for_each(|from| drop(self.full.remove(from)));
        self.full.insert(from, made);
    }

    /// What stood at this place has moved: the frame that holds it is no good any more.
    pub(super) fn moved(&mut self, sequence: u64) {
        let around = self.full.range((Bound::Unbounded, Bound::Excluded(sequence))).next_back();
        if let Some((from, _)) = around.filter(|(_, made)| sequence <= made.to) {
            let from = *from;
            self.full.remove(&from);
        }
    }

    /// Bytes of all of them.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.full.values().map(|made| made.bytes.len()).sum()
    }
}
