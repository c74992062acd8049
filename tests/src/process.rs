//! Processes that run inside a namespace and a cgroup, and die with us.
//!
//! `PR_SET_PDEATHSIG` fires when the *thread* that forked ends, not the process: all children are
//! therefore started by one thread that lives as long as we do (prctl(2), PR_SET_PDEATHSIG).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::wait::eventually;

/// A child process with a process group of its own; killed, with its group, on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    program: String,
}

impl Process {
    /// Starts `command` in `netns` and, when given, in `cgroup`.
    pub fn spawn(command: Command, netns: &Netns, cgroup: Option<&Cgroup>) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let command = placed(command, netns, cgroup)?;
        let child = fork_on_the_lasting_thread(command)
            .with_context(|| format!("start {program} in net:[{}]", netns.inode()))?;
        Ok(Self { child, program })
    }

    /// The process id, for `nsenter`, `/proc` and signals.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process (not to its group).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.raw_pid(), signal).with_context(|| format!("{signal} to {}", self.program))
    }

    /// The exit status, or `None` while it runs.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("wait for {}", self.program))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.status(), Ok(None))
    }

    /// Waits for the end, at most for `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {} (pid {})", self.program, self.pid());
        eventually(&what, timeout, || self.status()?.ok_or_else(|| anyhow!("it runs")))
    }

    /// SIGTERM, then waits for the end; the drop kills what does not want to end.
    pub fn stop(&mut self, timeout: Duration) -> Result<ExitStatus> {
        if self.is_running() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait(timeout)
    }

    /// SIGKILL to the whole group, and waits until it is reaped.
    pub fn kill9(&mut self) {
        if self.is_running() {
            let _ = killpg(self.raw_pid(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Runs `command` to its end and gives its output; for tools, not for servers.
pub fn output(mut command: Command, netns: &Netns, cgroup: Option<&Cgroup>) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let command = placed(command, netns, cgroup)?;
    let child = fork_on_the_lasting_thread(command).with_context(|| format!("start {program}"))?;
    child.wait_with_output().with_context(|| format!("wait for {program}"))
}

/// Starts `command` with a pipe to its standard input and gives the child itself.
pub(crate) fn piped(mut command: Command, netns: &Netns) -> Result<Child> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let command = placed(command, netns, None)?;
    Ok(fork_on_the_lasting_thread(command)?)
}

/// Adds what the child does between fork and exec: only async-signal-safe calls.
fn placed(mut command: Command, netns: &Netns, cgroup: Option<&Cgroup>) -> Result<Command> {
    let procs: Option<File> = cgroup.map(Cgroup::open_procs).transpose()?;
    let netns = netns.clone();
    let parent = std::process::id().cast_signed();
    let enter = move || {
        if let Some(procs) = &procs {
            check(write_zero(procs.as_raw_fd()))?;
        }
        // SAFETY: plain system calls on integers; the descriptor is kept open by the closure.
        unsafe {
            check(libc::setns(netns.raw_fd(), libc::CLONE_NEWNET) as isize)?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) as isize)?;
            if libc::getppid() != parent {
                libc::_exit(125); // we died between fork and prctl
            }
        }
        Ok(())
    };
    // SAFETY: `enter` allocates nothing and takes no lock.
    unsafe { command.pre_exec(enter) };
    command.process_group(0);
    Ok(command)
}

/// "0" in cgroup.procs means the writer itself (Documentation/admin-guide/cgroup-v2.rst).
fn write_zero(procs: i32) -> isize {
    // SAFETY: the buffer is a constant of one byte.
    unsafe { libc::write(procs, b"0".as_ptr().cast(), 1) }
}

fn check(result: isize) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

struct Order {
    command: Command,
    answer: Sender<io::Result<Child>>,
}

fn fork_on_the_lasting_thread(command: Command) -> io::Result<Child> {
    static ORDERS: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (sender, receiver) = channel();
        thread::spawn(move || fork_forever(&receiver));
        Mutex::new(sender)
    });
    let (answer, result) = channel();
    let gone = |_| io::Error::other("the thread that starts processes is gone");
    orders
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(Order { command, answer })
        .map_err(|_| io::Error::other("the thread that starts processes is gone"))?;
    result.recv().map_err(gone)?
}

fn fork_forever(orders: &Receiver<Order>) {
    for mut order in orders {
        let _ = order.answer.send(order.command.spawn());
    }
}

/// A size of `/proc/PID/status`, such as `VmRSS` for the resident memory, in KiB (proc_pid_status(5)).
///
/// # Errors
/// When there is no such process, or no such line.
pub fn status_kib(pid: u32, key: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value.with_context(|| format!("no {key} of {pid}"))?.parse()?)
}

/// Keeps this thread, and those that it starts, on one CPU.
///
/// # Errors
/// When there is no such CPU.
pub fn pin_to_cpu(cpu: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    Ok(())
}
