//! How far a reader of the other side's table is, seen from both sides.

use super::wire::Span;

/// How far a reader is, for the one who tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The last sequence number that it has; 0: none.
    pub at: u64,
    /// Whether it has begun.
    pub(super) begun: bool,
}

/// How far a reader is, for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The last sequence number that it has; 0: none.
    pub at: u64,
    /// Something is missing, and has been asked for.
    lost: bool,
}

/// What a reader does with a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Forgets what it had, and takes it.
    Begin,
    /// Takes it.
    Take,
    /// Asks for everything again: something before it is missing.
    Ask,
    /// Leaves it: what it has asked for is not there yet.
    Leave,
}

// === impl Place ===

impl Place {
    /// Of a reader that has all up to `at`.
    pub fn after(at: u64) -> Self {
        Self { at, begun: at > 0 }
    }

    /// Whether the reader was told anything.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether the reader has all of a table whose last change is `head`.
    pub fn has(&self, head: u64) -> bool {
        self.begun && self.at == head
    }
}

// === impl Reading ===

impl Reading {
    /// A connection begins: nothing that was asked for on another will come.
    pub fn reconnect(&mut self) {
        self.lost = false;
    }

    /// Whether anything was read.
    pub fn has_begun(&self) -> bool {
        self.at > 0
    }

    /// What to do with a stretch that has arrived.
    ///
    /// One that begins before the place is taken, too: what arrives later was written later, so each
    /// of its values is as new as what is known. Only one that begins behind it leaves a gap.
    pub fn step(&mut self, span: &Span) -> Step {
        if span.first {
            *self = Self { at: span.to, lost: false };
            return Step::Begin;
        }
        if self.lost {
            return Step::Leave;
        }
        if span.from > self.at {
            *self = Self { at: 0, lost: true };
            return Step::Ask;
        }
        self.at = self.at.max(span.to);
        Step::Take
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: u64, to: u64, first: bool) -> Span {
        Span { from, to, first, whole: false }
    }

    #[test]
    fn a_gap_is_asked_for_once_and_what_follows_is_left_until_the_snapshot_comes() {
        let mut reading = Reading::default();
        assert_eq!(reading.step(&span(0, 5, true)), Step::Begin);
        assert_eq!(reading.step(&span(7, 8, false)), Step::Ask);
        assert_eq!(reading.step(&span(8, 9, false)), Step::Leave);
        assert_eq!(reading.step(&span(0, 4, true)), Step::Begin);
        assert_eq!(reading.step(&span(4, 9, false)), Step::Take);
        assert_eq!(reading.at, 9);
    }

    #[test]
    fn a_stretch_that_was_on_its_way_twice_is_no_gap() {
        let mut reading = Reading::default();
        for (from, to) in [(0, 5), (5, 9), (5, 9), (9, 11), (2, 10), (10, 12)] {
            let step = reading.step(&span(from, to, from == 0));
            assert!(matches!(step, Step::Begin | Step::Take), "{from}..{to}: {step:?}");
        }
        assert_eq!(reading.at, 12);
    }

    #[test]
    fn a_new_connection_goes_on_where_the_last_one_ended() {
        let mut reading = Reading::default();
        reading.step(&span(0, 5, true));
        reading.reconnect();
        assert_eq!(reading.step(&span(5, 6, false)), Step::Take);
        reading.step(&span(9, 10, false));
        reading.reconnect();
        assert_eq!(reading.at, 0, "after a gap it asks for everything");
    }
}
