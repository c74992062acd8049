//! What an agent finds of the one before, seen by the new one.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::unistd::dup2_stdin;
use tracing::{info, warn};
use weir_loader::Error;
use weir_proxy::Handover;

use super::{
    Role,
    wire::{Line, Said},
};

/// What the agent before leaves, until somebody takes it.
#[derive(Clone, Debug, Default)]
pub struct Heritage(Arc<Mutex<Estate>>);

#[derive(Debug, Default)]
struct Estate {
    line: Option<Line>,
    /// What there is to be taken.
    role: Option<Role>,
    /// That of this very process, after another one failed to go on.
    kept: Option<Handover>,
}

/// The agent before stops its parts; each has some seconds for it.
const GO: Duration = Duration::from_secs(60);
/// Sockets are there at once.
const GIVEN: Duration = Duration::from_secs(20);
/// What is to be taken is taken when the data plane is opened.
const TAKEN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

impl Heritage {
    /// The agent before is at the other end of standard input, which is closed then.
    ///
    /// # Errors
    /// When standard input is no socket.
    pub fn at_stdin() -> io::Result<Self> {
        let stream = io::stdin().as_fd().try_clone_to_owned()?;
        dup2_stdin(File::open("/dev/null")?)?;
        let line = Line::new(UnixStream::from(stream));
        Ok(Self(Arc::new(Mutex::new(Estate { line: Some(line), ..Estate::default() }))))
    }

    /// What this process has left to another one, which did not take it.
    pub fn kept(role: Role, handover: Handover) -> Self {
        let estate = Estate { role: Some(role), kept: Some(handover), line: None };
        Self(Arc::new(Mutex::new(estate)))
    }

    /// Says that this agent cannot begin.
    pub fn refuse(&self, why: &str) {
        if let Some(line) = &self.lock().line {
            // Whoever has gone needs no answer.
            line.say(&Said::No(why.to_owned())).ok();
        }
    }

    /// Says that this agent can begin, and waits until it may.
    ///
    /// # Errors
    /// When the agent before does not want it any more.
    pub fn await_word(&self) -> io::Result<()> {
        let mut estate = self.lock();
        let Some(line) = &estate.line else { return Ok(()) };
        line.say(&Said::Hello)?;
        line.patience(Some(GO))?;
        match line.hear()? {
            Said::Go(role) => {
                estate.role = role;
                Ok(())
            }
            other => Err(io::Error::other(format!("the agent before says {other:?}"))),
        }
    }

    /// Whether something waits for a proxy of this role. One that is alone takes either.
    pub fn waits_for(&self, role: Role) -> bool {
        self.lock().role.is_some_and(|left| role == Role::Alone || left == Role::Beside)
    }

    /// What a proxy of this role goes on with.
    ///
    /// # Errors
    /// When the agent before does not give it.
    pub fn take(&self, role: Role) -> Result<Option<Handover>, Error> {
        if !self.waits_for(role) {
            return Ok(None);
        }
        let mut estate = self.lock();
        if let Some(kept) = estate.kept.take() {
            estate.role = None;
            return Ok(Some(kept));
        }
        let Some(line) = &estate.line else { return Ok(None) };
        let taken = line
            .patience(Some(GIVEN))
            .and_then(|()| line.say(&Said::Take))
            .and_then(|()| line.take())
            .map_err(|error| Error {
                what: "take over the sockets of the agent before".to_owned(),
                cause: error.to_string(),
                remedy: "restart the agent instead: connections of the proxy end then".to_owned(),
            })?;
        info!(sockets = taken.files.len(), "going on with the sockets of the agent before");
        estate.role = None;
        Ok(Some(taken))
    }

    /// Tells the agent before that it may end, as soon as everything that `main` and the proxy beside it
    /// want is taken.
    pub async fn settle(self, main: Role) {
        let until = Instant::now() + TAKEN;
        // The proxy beside the kernel plane is started by whoever notices first that it is needed.
        while main == Role::Beside && self.waits_for(Role::Beside) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        let mut estate = self.lock();
        estate.role = None;
        if let Some(line) = estate.line.take()
            && let Err(error) = line.say(&Said::Runs)
        {
            warn!(%error, "the agent before does not hear that this one runs");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Estate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
