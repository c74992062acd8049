//! Running a program in a node.

use std::ffi::{CString, OsString};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, execvp, fork};

/// The program, for the signal handler; 0 before it is there.
static PROGRAM: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(signal: libc::c_int) {
    let program = PROGRAM.load(Ordering::Relaxed);
    if program > 0 {
        // SAFETY: kill(2) is async-signal-safe and takes integers.
        unsafe { libc::kill(program, signal) };
    }
}

/// Runs the program, passes SIGTERM, SIGINT and SIGHUP on to it, and ends as it does.
pub fn run(first: i32, command: &[OsString]) -> Result<ExitCode> {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID;
    setns(pidfd(first)?, namespaces).with_context(|| format!("enter the node of {first}"))?;
    let words: Vec<CString> =
        command.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            set_pdeathsig(Signal::SIGKILL)?;
            let error = execvp(&words[0], &words).unwrap_err();
            Err(error).with_context(|| format!("run {}", command[0].display()))
        }
        ForkResult::Parent { child } => wait_for(child),
    }
}

fn wait_for(child: Pid) -> Result<ExitCode> {
    PROGRAM.store(child.as_raw(), Ordering::Relaxed);
    let action = SigAction::new(SigHandler::Handler(pass_on), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: the handler is async-signal-safe.
        unsafe { sigaction(signal, &action)? };
    }
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => {
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(ExitCode::from(128 + signal as u8));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for the program"),
        }
    }
}

fn pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: a system call on integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    Errno::result(result).with_context(|| format!("pidfd of {pid}"))?;
    // SAFETY: the kernel gave us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(result)?) })
}
