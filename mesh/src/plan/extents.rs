//! Room in the pick table: which runs of cells are free.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{GRACE, Moment};
use crate::install::Region;

/// The free runs of the pick table. The shortest run that fits is used, and of equal ones the
/// first, found by one look-up: ten thousand regions are placed in one plan.
#[derive(Clone, Debug)]
pub(crate) struct Extents {
    /// Everything from here on was never used.
    fresh: u32,
    free: BTreeMap<u32, u32>,
    by_length: BTreeSet<(u32, u32)>,
    /// When each was freed, oldest first.
    resting: VecDeque<(Moment, Region)>,
}

impl Extents {
    /// A table of which `used` is taken. What lies between may just have been freed, so it rests.
    pub(crate) fn new(size: u32, used: &BTreeSet<Region>, now: Moment) -> Self {
        let mut resting = VecDeque::new();
        let mut end = 0;
        for region in used {
            if region.offset > end {
                resting.push_back((now, Region { offset: end, len: region.offset - end }));
            }
            end = end.max(region.offset.saturating_add(region.len));
        }
        let (free, by_length) = (BTreeMap::new(), BTreeSet::new());
        let mut extents = Self { fresh: end, free, by_length, resting };
        if size > end {
            extents.insert(end, size - end);
        }
        extents
    }

    /// Lets everything rest that is free and lies below `end`. To be called before anything is
    /// taken: the free runs are then what was never used.
    pub(crate) fn mark_used(&mut self, end: u32, now: Moment) {
        let Some(len) = end.checked_sub(self.fresh).filter(|len| *len > 0) else { return };
        if let Some(rest) = self.free.get(&self.fresh).and_then(|run| run.checked_sub(len)) {
            self.remove(self.fresh, rest + len);
            self.resting.push_back((now, Region { offset: self.fresh, len }));
            self.fresh = end;
            if rest > 0 {
                self.insert(end, rest);
            }
        }
    }

    /// A run of `len` cells, if there is one that has rested.
    pub(crate) fn take(&mut self, len: u32, now: Moment) -> Option<Region> {
        self.wake_rested(now);
        let (run, offset) = *self.by_length.range((len, 0)..).next()?;
        self.remove(offset, run);
        if run > len {
            self.insert(offset + len, run - len);
        }
        self.fresh = self.fresh.max(offset + len);
        Some(Region { offset, len })
    }

    /// Takes back a region that was given out and never reached the kernel.
    pub(crate) fn untake(&mut self, region: Region) {
        self.merge(region);
    }

    /// Lets a region rest that no record points at any more.
    pub(crate) fn release(&mut self, region: Region, now: Moment) {
        self.resting.push_back((now, region));
    }

    /// When the next region will have rested.
    pub(crate) fn next_rested(&self) -> Option<Moment> {
        self.resting.front().map(|(freed, _)| freed.after(GRACE))
    }

    /// The first cell that was never used.
    pub(crate) fn fresh(&self) -> u32 {
        self.fresh
    }

    fn wake_rested(&mut self, now: Moment) {
        while let Some((freed, region)) = self.resting.front().copied()
            && freed.after(GRACE) <= now
        {
            self.resting.pop_front();
            self.merge(region);
        }
    }

    /// Adds a free run and joins it with the free runs that it touches.
    fn merge(&mut self, Region { mut offset, mut len }: Region) {
        let below = self.free.range(..offset).next_back().map(|(at, run)| (*at, *run));
        if let Some((at, run)) = below.filter(|(at, run)| at + run == offset) {
            self.remove(at, run);
            (offset, len) = (at, run + len);
        }
        if let Some(run) = self.free.get(&(offset + len)).copied() {
            self.remove(offset + len, run);
            len += run;
        }
        self.insert(offset, len);
    }

    fn insert(&mut self, offset: u32, len: u32) {
        self.free.insert(offset, len);
        self.by_length.insert((len, offset));
    }

    fn remove(&mut self, offset: u32, len: u32) {
        self.free.remove(&offset);
        self.by_length.remove(&(len, offset));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: Moment = Moment(Duration::ZERO);
    const RESTED: Moment = Moment(GRACE);

    fn region(offset: u32, len: u32) -> Region {
        Region { offset, len }
    }

    #[test]
    fn freed_neighbours_grow_together_again() {
        let mut table = Extents::new(30, &BTreeSet::new(), START);
        let taken = [10, 10, 10].map(|len| table.take(len, START).unwrap());
        assert_eq!(taken, [region(0, 10), region(10, 10), region(20, 10)]);
        for at in [0, 2, 1] {
            table.release(taken[at], START);
        }
        assert_eq!(table.take(1, START), None);
        assert_eq!(table.take(30, RESTED), Some(region(0, 30)));
    }

    #[test]
    fn the_shortest_run_that_fits_is_used() {
        let used = [region(0, 1), region(4, 1), region(7, 1)];
        let mut table = Extents::new(20, &used.into(), START);
        assert_eq!(table.take(2, START), Some(region(8, 2)), "gaps may just have been freed");
        assert_eq!(table.take(2, RESTED), Some(region(5, 2)));
        assert_eq!(table.take(3, RESTED), Some(region(1, 3)));
        assert_eq!(table.next_rested(), None);
    }

    #[test]
    fn what_was_never_used_is_merged_back_without_rest() {
        let mut table = Extents::new(8, &BTreeSet::new(), START);
        let taken = table.take(8, START).unwrap();
        table.untake(taken);
        assert_eq!(table.take(8, START), Some(taken));
    }
}
