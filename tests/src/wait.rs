//! The only place where the lab waits for something to become true.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How often the condition is looked at: short against any timeout, long against a syscall.
const STEP: Duration = Duration::from_millis(20);

/// Calls `attempt` until it gives `Ok`, at most for `timeout`.
///
/// The error names what was waited for, how long, and the last state that `attempt` reported, so
/// that a failed test says what it saw instead of "timeout".
pub fn eventually<T, E: Display>(
    what: &str,
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() >= timeout => {
                return Err(anyhow!("waited {timeout:?} for {what}; last seen: {last:#}"));
            }
            Err(_) => thread::sleep(STEP),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_of_the_first_success() {
        let mut calls = 0;
        let value = eventually("three calls", Duration::from_secs(5), || {
            calls += 1;
            if calls == 3 { Ok(calls) } else { Err("not yet") }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn says_what_it_waited_for_and_what_it_saw_last() {
        let error = eventually("rain", Duration::ZERO, || Err::<(), _>("blue sky")).unwrap_err();
        assert_eq!(error.to_string(), "waited 0ns for rain; last seen: blue sky");
    }
}
