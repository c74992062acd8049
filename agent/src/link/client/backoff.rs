//! How long to wait before connecting again.

use std::time::Duration;

/// The first wait, and the longest; each is drawn from the half of it up.
const WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Waits that grow while connections fail. Drawn by chance, so that the nodes that lost a hub at the
/// same moment do not all return at the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: WAITS.0 }
    }
}

impl Backoff {
    /// A connection lasted: the next failure is another matter.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// The wait after one more failure.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(WAITS.1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_second_and_no_longer() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..8).map(|_| backoff.wait()).collect();
        assert!(waits[0] < Duration::from_millis(50) && waits[7] > Duration::from_millis(499));
        assert!(waits.iter().all(|wait| *wait < Duration::from_secs(1)), "{waits:?}");
        backoff.reset();
        assert!(backoff.wait() < Duration::from_millis(50));
    }

    #[test]
    fn a_thousand_nodes_that_lost_a_hub_together_return_spread_over_half_a_second() {
        let returns = |_| {
            let mut backoff = Backoff::default();
            (0..6).map(|_| backoff.wait()).sum::<Duration>()
        };
        let mut returns: Vec<Duration> = (0..1000).map(returns).collect();
        returns.sort();
        let most = (0..900).map(|at| returns[at + 100] - returns[at]).min().expect("some");
        assert!(most > Duration::from_millis(15), "100 within {most:?}");
        assert!(returns[999] - returns[0] > Duration::from_millis(500));
    }
}
