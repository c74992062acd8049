//! Ctrl-C, SIGTERM and SIGHUP: noted here, so that the lab is always taken down in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    ASKED.store(true, Ordering::Relaxed);
}

/// Notes the signals instead of dying from them.
pub fn install() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores into an atomic.
        unsafe { sigaction(signal, &action)? };
    }
    Ok(())
}

/// Whether somebody wants us to end.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// An error when somebody wants us to end, to leave a sequence of steps.
pub fn go_on() -> Result<()> {
    ensure!(!asked(), "interrupted");
    Ok(())
}

/// Sleeps, but not longer than until the signal.
pub fn sleep(duration: Duration) {
    let end = Instant::now() + duration;
    while !asked() && Instant::now() < end {
        thread::sleep(Duration::from_millis(50).min(duration));
    }
}
