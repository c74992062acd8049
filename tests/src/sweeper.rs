//! What a process leaves when it is interrupted or killed goes at once, and not only with the next lab: a
//! child of it that outlives it waits for its end, and sweeps.

use std::{
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{bpffs, residue, task::task_program};

/// The argument by which the task program is the sweeper.
pub const SWEEP: &str = "sweep";
/// Processes that die with their lab need a moment; so does a file that one of them was writing.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Starts the sweeper of this process, once.
pub(crate) fn begin() -> Result<()> {
    // With the child its standard input stays open, until this process ends in whatever way.
    static SWEEPER: OnceLock<Child> = OnceLock::new();
    if SWEEPER.get().is_some() {
        return Ok(());
    }
    let mut command = Command::new(task_program()?);
    command.arg(SWEEP).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own: Ctrl-C is for the one that it waits for.
    let child = command.process_group(0).spawn().context("start the sweeper")?;
    // Of two threads that begin at once one starts a second; it finds nothing to do.
    SWEEPER.get_or_init(|| child);
    Ok(())
}

/// Waits for the end of whoever began this process, and removes what is left of it.
///
/// # Errors
/// When the wait fails, or when something cannot be removed.
pub fn wait_and_sweep() -> Result<()> {
    let owner = std::os::unix::process::parent_id();
    io::stdin().read_to_end(&mut Vec::new()).context("wait for the end of the other")?;
    for _ in 0..TRIES {
        residue::sweep();
        if !residue::is_left_of(owner) {
            bpffs::give_back();
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    anyhow::bail!("something is left of {owner}")
}
