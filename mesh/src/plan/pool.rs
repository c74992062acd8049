//! Numbers for things in kernel arrays: who may have which, and how long a freed one rests.

use std::collections::{BTreeSet, VecDeque};

use super::{GRACE, Moment};

/// The free positions of one kernel array. Position 0 is never given out.
///
/// Positions that have rested go first, the longest free before the others; positions never used
/// come last. That keeps the high end of the array untouched, which after a restart is the part
/// that surely needs no rest.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    /// Size of the array.
    size: u32,
    /// Everything from here on was never used.
    fresh: u32,
    rested: VecDeque<u32>,
    /// When each was freed, oldest first.
    resting: VecDeque<(Moment, u32)>,
}

impl Pool {
    /// A pool of which `used` is taken. What lies between may just have been freed, so it rests.
    pub(crate) fn new(size: u32, used: &BTreeSet<u32>, now: Moment) -> Self {
        let fresh = used.last().map_or(1, |last| last + 1);
        let gaps = (1..fresh).filter(|at| !used.contains(at));
        Self { size, fresh, rested: VecDeque::new(), resting: gaps.map(|at| (now, at)).collect() }
    }

    /// Lets everything rest that is free and lies below `end`.
    pub(crate) fn mark_used(&mut self, end: u32, now: Moment) {
        let end = end.min(self.size);
        self.resting.extend((self.fresh..end).map(|at| (now, at)));
        self.fresh = self.fresh.max(end);
    }

    /// A free position, if there is one that has rested.
    pub(crate) fn take(&mut self, now: Moment) -> Option<u32> {
        self.wake_rested(now);
        self.rested.pop_front().or_else(|| {
            let at = self.fresh;
            (at < self.size).then(|| {
                self.fresh += 1;
                at
            })
        })
    }

    /// Takes back a position that was given out and never reached the kernel.
    pub(crate) fn untake(&mut self, at: u32) {
        self.rested.push_front(at);
    }

    /// Lets a position rest that the kernel no longer uses.
    pub(crate) fn release(&mut self, at: u32, now: Moment) {
        self.resting.push_back((now, at));
    }

    /// When the next position will have rested.
    pub(crate) fn next_rested(&self) -> Option<Moment> {
        self.resting.front().map(|(freed, _)| freed.after(GRACE))
    }

    /// The first position that was never used.
    pub(crate) fn fresh(&self) -> u32 {
        self.fresh
    }

    fn wake_rested(&mut self, now: Moment) {
        while let Some((freed, at)) = self.resting.front().copied()
            && freed.after(GRACE) <= now
        {
            self.resting.pop_front();
            self.rested.push_back(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    #[test]
    fn a_freed_position_rests_and_then_goes_before_fresh_ones() {
        let mut pool = Pool::new(10, &BTreeSet::new(), at(0));
        assert_eq!([pool.take(at(0)), pool.take(at(0))], [Some(1), Some(2)]);
        pool.release(2, at(0));
        pool.release(1, at(1));
        assert_eq!(pool.take(at(1)), Some(3));
        assert_eq!([pool.take(at(3)), pool.take(at(3))], [Some(2), Some(1)]);
    }

    #[test]
    fn after_a_restart_gaps_rest_and_the_high_end_does_not() {
        let mut pool = Pool::new(6, &BTreeSet::from([1, 3]), at(5));
        assert_eq!(
            [pool.take(at(5)), pool.take(at(5)), pool.take(at(5))],
            [Some(4), Some(5), None]
        );
        assert_eq!(pool.next_rested(), Some(at(7)));
        assert_eq!(pool.take(at(7)), Some(2));
    }
}
