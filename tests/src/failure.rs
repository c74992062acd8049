//! What a failed test says: little enough to be read whole, and why it failed once more at the end,
//! since of a long output only a part may be shown.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

/// How much of each log is shown.
const LINES: usize = 30;
/// How much of each line is shown, in characters.
const WIDTH: usize = 300;
/// What dockerd says on any machine like the lab's, whatever the test does.
const NOISE: [&str; 5] = [
    "error reading the kernel parameter",
    "has been deprecated and will be removed",
    "pulling image failed",
    "failed to add inotify watch",
    "level=info",
];

thread_local! {
    static WHY: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Remembers from now on what each thread panics with.
pub(crate) fn remember() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |why| {
            WHY.with_borrow_mut(|words| *words = why.to_string());
            before(why);
        }));
    });
}

/// What this thread panicked with.
pub(crate) fn why() -> String {
    WHY.with_borrow(Clone::clone)
}

/// The end of a log, without what it always says.
pub(crate) fn excerpt(log: &str) -> String {
    let telling = log.lines().filter(|line| !NOISE.iter().any(|noise| line.contains(noise)));
    let lines: Vec<String> = telling.map(|line| line.chars().take(WIDTH).collect()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_the_end_is_shown_without_noise() {
        let log: String = (0..100).map(|n| format!("{n} level=info\n{n} level=error\n")).collect();
        let shown = excerpt(&log);
        assert_eq!(shown.lines().count(), LINES);
        assert!(shown.starts_with("70 level=error") && shown.ends_with("99 level=error"));
    }

    #[test]
    fn why_a_thread_panicked_is_known_in_it() {
        remember();
        drop(panic::catch_unwind(|| panic!("the reason")));
        assert!(why().contains("the reason"));
    }
}
