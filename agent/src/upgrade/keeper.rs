//! What stays of an agent after another one has gone on in its place: the process by which systemd, or
//! a container, knows it. It passes signals on, lets its last connections end, and ends with the other.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        prctl::set_child_subreaper,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::interval,
};
use tracing::{error, info, warn};
use weir_proxy::{Handover, Remains};

use super::{Role, Succession, successor::Handed};
use crate::memory;

/// What became of it.
pub enum Outcome {
    /// The other agent has ended, or needs nobody to wait for it; this process ends with this code.
    Ended(u8),
    /// The other one did not run. This process goes on, with what it has left.
    Back(Option<(Role, Handover)>),
}

/// How often connections are counted.
const LOOK: Duration = Duration::from_millis(200);

/// Hands over, and stays as long as somebody needs it. Connections have `drain` to end. An agent that
/// has `gone_on` for another itself is known to nobody: it ends with its last connection.
///
/// # Errors
/// When the runtime or signals are not to be had.
pub fn keep(succession: Succession, drain: Duration, gone_on: bool) -> std::io::Result<Outcome> {
    // Later agents are children of children, and are to be ours when those end.
    if let Err(error) = set_child_subreaper(true) {
        warn!(%error, "an agent after the next will not be waited for");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(stay(succession, drain, gone_on))
}

async fn stay(succession: Succession, drain: Duration, gone_on: bool) -> std::io::Result<Outcome> {
    let mut signals = [
        (Signal::SIGTERM, signal(SignalKind::terminate())?),
        (Signal::SIGINT, signal(SignalKind::interrupt())?),
        (Signal::SIGHUP, signal(SignalKind::hangup())?),
    ];
    let mut ended = signal(SignalKind::child())?;
    let mut due = interval(LOOK);
    let pid = succession.successor.pid();
    let (handed_in, mut handed) = oneshot::channel();
    thread::Builder::new()
        .name("hand-over".into())
        // Nobody listens any more when this process is about to end.
        .spawn(move || drop(handed_in.send(succession.hand_over())))?;
    let mut phase = Phase::Handing;
    let (mut told_to_end, mut last) = (false, 0);
    loop {
        let [(term, terminate), (int, interrupt), (hup, hangup)] = &mut signals;
        let passed = tokio::select! {
            _ = terminate.recv() => Some(*term),
            _ = interrupt.recv() => Some(*int),
            _ = hangup.recv() => Some(*hup),
            _ = ended.recv() => None,
            _ = due.tick() => None,
            result = &mut handed, if phase.is_handing() => {
                match result {
                    Ok(Handed::Over(remains)) => {
                        let connections = remains.as_ref().map_or(0, Remains::connections);
                        info!(pid, connections, "another agent goes on; what is open here may end");
                        phase = Phase::Draining(remains.map(Box::new), Instant::now() + drain);
                    }
                    Ok(Handed::Back(..)) | Err(_) if told_to_end => return Ok(Outcome::Ended(0)),
                    Ok(Handed::Back(why, kept, remains)) => {
                        error!(why, "the new agent does not run, and this one goes on");
                        end(pid);
                        // Its connections are to go on as well.
                        if let Some(remains) = remains {
                            drain_apart(remains, drain);
                        }
                        return Ok(Outcome::Back(kept));
                    }
                    Err(_) => return Ok(Outcome::Back(None)),
                }
                None
            }
        };
        if let Some(passed) = passed {
            told_to_end |= passed != Signal::SIGHUP;
            pass_on(passed);
        }
        match reap(last) {
            (code, true) if !phase.is_handing() => return Ok(Outcome::Ended(code)),
            (code, _) => last = code,
        }
        if phase.look() && gone_on {
            return Ok(Outcome::Ended(0));
        }
    }
}

enum Phase {
    Handing,
    Draining(Option<Box<Remains>>, Instant),
    Empty,
}

impl Phase {
    fn is_handing(&self) -> bool {
        matches!(self, Self::Handing)
    }

    /// Lets go of what has drained; answers whether nothing is left.
    fn look(&mut self) -> bool {
        if let Self::Draining(remains, until) = self {
            let left = remains.as_ref().map_or(0, |remains| remains.connections());
            if left > 0 && Instant::now() < *until {
                return false;
            }
            info!(left, "the connections from before the upgrade have ended, or have to");
            *self = Self::Empty;
            memory::give_back();
        }
        matches!(self, Self::Empty)
    }
}

/// Lets connections end while the agent goes on.
fn drain_apart(remains: Remains, drain: Duration) {
    let until = Instant::now() + drain;
    thread::spawn(move || {
        while remains.connections() > 0 && Instant::now() < until {
            thread::sleep(LOOK);
        }
    });
}

fn pass_on(signal: Signal) {
    for child in children() {
        // One that has just ended needs none.
        kill(child, signal).ok();
    }
}

fn end(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed());
    // It may have ended by itself.
    kill(pid, Signal::SIGKILL).ok();
    waitpid(pid, None).ok();
}

/// The children of this process, also those that were others' before.
fn children() -> Vec<Pid> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("children")));
    let words = lists.flatten().flat_map(|list| {
        list.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<i32>>()
    });
    words.map(Pid::from_raw).collect()
}

/// Takes note of processes that have ended: the code of the last of them, and whether none is left.
fn reap(mut last: u8) -> (u8, bool) {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => last = u8::try_from(code).unwrap_or(1),
            // As a shell tells it.
            Ok(WaitStatus::Signaled(_, signal, _)) => last = 128 + signal as u8,
            Ok(WaitStatus::StillAlive) => return (last, false),
            Ok(_) => {}
            Err(Errno::EINTR) => {}
            Err(_) => return (last, true),
        }
    }
}
