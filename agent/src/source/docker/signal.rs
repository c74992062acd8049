//! Which signals begin the end of a container.

/// Linux, on every architecture that Docker runs on.
const NUMBERS: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("STOP", 19),
    ("WINCH", 28),
    ("PWR", 30),
];
const KILL: u8 = 9;
const TERM: u8 = 15;

/// Whether `signal`, of a `kill` event, ends a container with this stop signal. SIGHUP and the like
/// make a process read its configuration again, unless the image says that they stop it (httpd:
/// SIGWINCH; nginx: SIGQUIT).
pub(super) fn ends(signal: &str, stop_signal: Option<&str>) -> bool {
    // Without a word about the signal it is better to send new flows elsewhere.
    let Some(signal) = number(signal) else { return true };
    let stop = stop_signal.and_then(number).unwrap_or(TERM);
    signal == KILL || signal == TERM || signal == stop
}

/// `15`, `TERM` or `SIGTERM`.
fn number(signal: &str) -> Option<u8> {
    if let Ok(number) = signal.parse() {
        return Some(number);
    }
    if let Some(real_time) = signal.strip_prefix("SIGRTMIN+").or(signal.strip_prefix("RTMIN+")) {
        return Some(34 + real_time.parse::<u8>().ok()?);
    }
    let name = signal.strip_prefix("SIG").unwrap_or(signal);
    NUMBERS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_begins_a_drain_and_a_reload_does_not() {
        assert!(ends("15", None));
        assert!(ends("9", Some("SIGQUIT")));
        assert!(ends("SIGTERM", Some("")));
        assert!(!ends("1", None));
        assert!(!ends("SIGHUP", Some("SIGTERM")));
        assert!(!ends("3", None), "a Java process writes its threads down");
    }

    #[test]
    fn the_stop_signal_of_the_image_ends_it_by_number_and_name() {
        assert!(ends("3", Some("SIGQUIT")));
        assert!(ends("28", Some("WINCH")));
        assert!(ends("37", Some("SIGRTMIN+3")));
        assert!(!ends("28", Some("SIGTERM")));
    }
}
