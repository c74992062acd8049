//! How much a node may say in how much time.

use std::time::Duration;

use tokio::time::Instant;

/// At once: everything that a node may have said, twice.
const BURST: f64 = 2.0 * super::MOST_SAID as f64;
/// In the long run, bytes a second. A node with a thousand tasks that all change each second needs
/// less.
const RATE: f64 = (1 << 20) as f64;
/// A frame counts as so many bytes at least: short ones cost work, too.
const LEAST: usize = 512;

/// A node's allowance. Whoever uses it up waits: its connection is not read meanwhile, and what it
/// sends stays with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    /// A full one.
    pub(super) fn new(now: Instant) -> Self {
        Self { left: BURST, at: now }
    }

    /// Takes a frame of so many bytes; how long to wait before the next is read.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> Duration {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + since * RATE).min(BURST) - bytes.max(LEAST) as f64;
        Duration::from_secs_f64((-self.left / RATE).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_whole_report_is_taken_at_once_and_a_flood_at_a_megabyte_a_second() {
        let mut allowance = Allowance::new(Instant::now());
        let frames = |bytes: usize| bytes / 65_536;
        for _ in 0..frames(super::super::MOST_SAID) {
            assert_eq!(allowance.take(65_536, Instant::now()), Duration::ZERO);
        }
        let begun = Instant::now();
        for _ in 0..frames(64 << 20) {
            tokio::time::sleep(allowance.take(65_536, Instant::now())).await;
        }
        let seconds = begun.elapsed().as_secs();
        assert!((50..=64).contains(&seconds), "64 MB in {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn two_thousand_short_frames_a_second_are_the_most() {
        let mut allowance = Allowance::new(Instant::now());
        let begun = Instant::now();
        for _ in 0..100_000 {
            tokio::time::sleep(allowance.take(20, Instant::now())).await;
        }
        assert!(begun.elapsed().as_secs() > 30, "{:?}", begun.elapsed());
    }
}
