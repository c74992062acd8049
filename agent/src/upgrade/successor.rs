//! The agent that is to go on, seen by the one that starts it.

use std::{
    env, io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command},
    sync::OnceLock,
    time::Duration,
};

use weir_proxy::{Handover, Remains};

use super::{
    Role, Succession,
    wire::{Line, Said},
};

/// A process that could go on.
#[derive(Debug)]
pub struct Successor {
    child: Child,
    line: Line,
}

/// What became of a succession.
pub(super) enum Handed {
    /// The other one runs; some connections may still go on here.
    Over(Option<Remains>),
    /// It does not, and what it was to take is still here.
    Back(String, Option<(Role, Handover)>, Option<Remains>),
}

/// The flag that tells an agent of the other end on its standard input.
pub(super) const FLAG: &str = "--take-over";
/// How long it may take to read its configuration.
const HELLO: Duration = Duration::from_secs(30);
/// How long it may take to run. A manager's Docker may take long to answer after its own restart.
const RUNS: Duration = Duration::from_secs(120);

static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Notes where this program is: later the file may be another one, or be called deleted.
pub fn note_program() {
    PROGRAM.get_or_init(|| env::current_exe().ok());
}

impl Successor {
    /// Starts the program that is on disk now, as this one was started.
    ///
    /// # Errors
    /// When it does not start, or cannot begin; with a sentence that says why.
    pub fn call() -> Result<Self, String> {
        note_program();
        let program = PROGRAM.get().cloned().flatten().ok_or("this program has no path")?;
        let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
        let arguments = env::args_os().skip(1).filter(|argument| argument != FLAG);
        let child = Command::new(&program)
            .args(arguments)
            .arg(FLAG)
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let mut successor = Self { child, line: Line::new(ours) };
        successor.greet().map_err(|error| {
            // It may have ended by itself.
            successor.child.kill().ok();
            let how = successor.child.wait().map(|status| status.to_string());
            let how = how.unwrap_or_else(|error| error.to_string());
            format!("{} cannot go on in place of this agent: {error} ({how})", program.display())
        })?;
        Ok(successor)
    }

    fn greet(&self) -> io::Result<()> {
        self.line.patience(Some(HELLO))?;
        match self.line.hear()? {
            Said::Hello => Ok(()),
            Said::No(why) => Err(io::Error::other(why)),
            other => Err(io::Error::other(format!("it says {other:?} before anything else"))),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Succession {
    /// Lets the other one begin, and gives it what it asks for.
    pub(super) fn hand_over(self) -> Handed {
        let Self { successor: Successor { child, line }, mut proxy } = self;
        // The keeper waits for whatever process ends.
        drop(child);
        let (mut kept, mut remains) = (None, None);
        let role = proxy.as_ref().map(|(role, _)| *role);
        let mut talk = || -> io::Result<()> {
            line.patience(Some(RUNS))?;
            line.say(&Said::Go(role))?;
            loop {
                match line.hear()? {
                    Said::Take => {
                        let Some((role, proxy)) = proxy.take() else { continue };
                        let (handover, left) = proxy.hand_over().map_err(io::Error::other)?;
                        remains = Some(left);
                        let (_, handover) = kept.insert((role, handover));
                        line.give(handover)?;
                    }
                    Said::Runs => return Ok(()),
                    Said::No(why) => return Err(io::Error::other(why)),
                    other => return Err(io::Error::other(format!("it says {other:?}"))),
                }
            }
        };
        match talk() {
            Ok(()) => {
                // It needed nothing of this: what listens here ends.
                if let Some((_, proxy)) = proxy.take() {
                    remains = proxy.hand_over().ok().map(|(_, remains)| remains);
                }
                Handed::Over(remains)
            }
            Err(error) => {
                if let Some((role, proxy)) = proxy.take()
                    && let Ok((handover, left)) = proxy.hand_over()
                {
                    (kept, remains) = (Some((role, handover)), Some(left));
                }
                Handed::Back(error.to_string(), kept, remains)
            }
        }
    }
}
