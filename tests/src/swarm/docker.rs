//! The `docker` command, as a user types it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The client of the package that brings dockerd: another one on the path may be newer than it.
const OF_THE_PACKAGE: &str = "/usr/bin/docker";

/// The `docker` command.
pub fn docker_program() -> &'static Path {
    let own = Path::new(OF_THE_PACKAGE);
    if own.exists() { own } else { Path::new("docker") }
}

/// A Docker daemon, reached over its socket.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
    config: PathBuf,
}

impl Docker {
    pub(crate) fn at(socket: PathBuf, config: PathBuf) -> Self {
        Self { socket, config }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The command without arguments; it knows nothing of the user's own contexts and logins.
    pub fn command(&self) -> Command {
        let mut command = Command::new(docker_program());
        command.arg("--config").arg(&self.config);
        command.arg("--host").arg(format!("unix://{}", self.socket.display()));
        command.env_remove("DOCKER_CONTEXT").stdin(Stdio::null());
        command
    }

    /// Runs a command and gives what it prints.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command().args(arguments).output().context("run docker")?;
        let (said, error) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        ensure!(output.status.success(), "docker {}: {}", arguments.join(" "), error.trim());
        Ok(said)
    }

    /// What `docker inspect` says of anything that has exactly this name or id.
    pub fn inspect(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.run(arguments)?;
        let mut list: Vec<Value> = serde_json::from_str(&said).context("docker inspect")?;
        list.pop().with_context(|| format!("docker {}: nothing", arguments.join(" ")))
    }
}
