//! The first process of a node.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, sethostname};

use crate::mounts;

/// Makes the namespaces, and has a child be the first process in them. Returns with its end.
pub fn run(name: &str, ready: &Path) -> Result<ExitCode> {
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWPID;
    unshare(own).context("make namespaces")?;
    let (mut parents, childs) = UnixStream::pair()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop(parents);
            first_process(name, childs)
        }
        ForkResult::Parent { child } => {
            drop(childs);
            let mut said = String::new();
            std::io::Read::read_to_string(&mut parents, &mut said)?;
            if said != MOUNTED {
                bail!("{said}");
            }
            // Written aside and renamed: whoever sees the file sees all of it.
            let new = ready.with_extension("new");
            fs::write(&new, child.to_string()).with_context(|| new.display().to_string())?;
            fs::rename(&new, ready).with_context(|| ready.display().to_string())?;
            waitpid(child, None).context("wait for the first process")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

const MOUNTED: &str = "mounted";

fn first_process(name: &str, mut tell: UnixStream) -> Result<ExitCode> {
    let result = settle(name);
    let said = result.as_ref().map_or_else(|error| format!("{error:#}"), |()| MOUNTED.to_owned());
    tell.write_all(said.as_bytes())?;
    drop(tell);
    result?;
    loop {
        reap()?;
    }
}

fn settle(name: &str) -> Result<()> {
    // Our parent dies with the lab, and we with our parent.
    set_pdeathsig(Signal::SIGKILL)?;
    sethostname(name).context("set the host name")?;
    mounts::all()
}

/// Whatever loses its parent becomes our child.
fn reap() -> Result<()> {
    match waitpid(None::<Pid>, None) {
        Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::EINTR) => {}
        Ok(_) => {}
        Err(Errno::ECHILD) => std::thread::sleep(std::time::Duration::from_millis(50)),
        Err(error) => return Err(error).context("wait for orphans"),
    }
    Ok(())
}
