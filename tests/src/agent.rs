//! The `weir` binary on a host: configured, started, killed, and cleaned up after.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::host::{Host, HostParts};
use crate::http::{self, Answer};
use crate::leftovers::Traces;
use crate::plan::UPLINK;
use crate::process::{self, Process};
use crate::task::program;
use crate::wait::eventually;

/// The port of an agent's HTTP server: its own default.
pub(crate) const HTTP_PORT: u16 = 9950;
const TUNNEL_PORT: i64 = 7950;
/// Longer than any start, shorter than anybody's patience.
// The verifier takes a while when several agents of parallel tests begin at once.
const START: Duration = Duration::from_secs(90);
const GRACE: Duration = Duration::from_secs(2);
const STOP: Duration = Duration::from_secs(10);

/// The `weir` binary: `WEIR_BIN`, else beside the running test.
pub fn agent_program() -> Result<PathBuf> {
    program("WEIR_BIN", "weir")
}

/// `weir.toml` of one host, with defaults for everything.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    table: toml::Table,
    environment: Vec<(String, String)>,
}

impl AgentConfig {
    fn of(host: &Host) -> Self {
        let mut config = Self { table: toml::Table::new(), environment: Vec::new() };
        let text = |path: &Path| path.display().to_string();
        let addresses: Vec<String> = host.addresses().iter().map(ToString::to_string).collect();
        config
            .set("node.name", host.name())
            .set("node.address", addresses[0].as_str())
            .set("node.addresses", addresses)
            .set("node.uplinks", vec![UPLINK])
            .set("dataplane.mode", "auto")
            .set("dataplane.cgroup", text(host.cgroup().path()))
            .set("dataplane.pin", text(&host.inner.pin_dir))
            .set("tunnel.port", TUNNEL_PORT)
            .set("http.listen", format!("0.0.0.0:{HTTP_PORT}"))
            .set("socket.path", text(&socket(&host.inner)))
            .set("state.path", text(&state_dir(&host.inner).join("state.json")))
            .set("source.file.path", text(&host.inner.mesh_file));
        config
    }

    /// Sets a value by its path, for example `("dataplane.mode", "proxy")`; tables on the way are
    /// made.
    pub fn set(&mut self, path: &str, value: impl Into<toml::Value>) -> &mut Self {
        let mut keys: Vec<&str> = path.split('.').collect();
        let last = keys.pop().unwrap_or(path);
        let table = keys.into_iter().fold(&mut self.table, |table, key| {
            let entry = table.entry(key).or_insert_with(|| toml::Table::new().into());
            entry.as_table_mut().unwrap_or_else(|| panic!("{path}: {key} is not a table"))
        });
        table.insert(last.to_owned(), value.into());
        self
    }

    /// Sets a variable of the agent's environment.
    pub fn variable(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Takes a value away, for the agent's own default.
    pub fn unset(&mut self, path: &str) -> &mut Self {
        let (tables, last) = path.rsplit_once('.').unwrap_or(("", path));
        let mut keys = tables.split('.').filter(|key| !key.is_empty());
        let table = keys.try_fold(&mut self.table, |table, key| table.get_mut(key)?.as_table_mut());
        if let Some(table) = table {
            table.remove(last);
        }
        self
    }
}

/// What the host remembers of its agent, so that the lab can clean up after it.
#[derive(Debug, Default)]
pub(crate) struct AgentSlot {
    process: Option<Process>,
    config: Option<PathBuf>,
    environment: Vec<(String, String)>,
    before: Traces,
}

/// The agent of a host. A handle: the process belongs to the lab and ends with it.
#[derive(Debug, Clone)]
pub struct Agent {
    host: Host,
}

impl Agent {
    pub(crate) fn start(host: &Host, change: impl FnOnce(&mut AgentConfig)) -> Result<Self> {
        let mut config = AgentConfig::of(host);
        change(&mut config);
        let path = host.run_dir().join("weir.toml");
        fs::write(&path, toml::to_string(&config.table)?).context("write weir.toml")?;
        {
            let mut slot = host.inner.lock_agent();
            ensure!(slot.config.is_none(), "{} has an agent; use start or restart", host.name());
            slot.before = Traces::of(host)?;
            slot.config = Some(path);
            slot.environment = config.environment;
        }
        let agent = Self { host: host.clone() };
        agent.launch()?;
        Ok(agent)
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Writes a changed configuration of a host into a file of this name, for commands without an agent.
    pub fn configuration(
        host: &Host,
        file: &str,
        change: impl FnOnce(&mut AgentConfig),
    ) -> Result<PathBuf> {
        let mut config = AgentConfig::of(host);
        change(&mut config);
        let path = host.run_dir().join(file);
        fs::write(&path, toml::to_string(&config.table)?)
            .with_context(|| format!("write {file}"))?;
        Ok(path)
    }

    /// Runs `weir agent` on a host with a changed configuration, by way of `wrapper` (a program
    /// and arguments that end in running another), when it is expected to end by itself; after 20
    /// seconds it is ended.
    pub fn attempt(
        host: &Host,
        wrapper: &[&str],
        change: impl FnOnce(&mut AgentConfig),
    ) -> Result<Output> {
        let path = Self::configuration(host, "attempt.toml", change)?;
        let mut command = Command::new("timeout");
        command.arg("20").args(wrapper).arg(agent_program()?);
        command.args(["agent", "--config"]).arg(path);
        host.output(command)
    }

    /// Ends the agent, runs `weir uninstall`, and gives everything that was not right or is left.
    pub fn uninstall(&self) -> Vec<String> {
        uninstall(&self.host)
    }

    /// Starts the process again after [`Agent::kill9`] or [`Agent::stop`].
    pub fn launch(&self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut slot = self.host.inner.lock_agent();
        let config = slot.config.clone().context("the agent has no configuration")?;
        let mut command = Command::new(agent_program()?);
        command.args(["agent", "--config"]).arg(config).envs(slot.environment.clone());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        slot.process = Some(self.host.spawn(command)?);
        Ok(())
    }

    /// Waits until `/readyz` answers 200; ends at once when the process does.
    pub fn wait_ready(&self) -> Result<()> {
        let what = format!("the agent of {} to be ready", self.host.name());
        let ended = eventually(&what, START, || {
            if !self.is_running() {
                return Ok(true);
            }
            let answer = self.http("/readyz")?;
            ensure!(answer.status == 200, "{} {}", answer.status, answer.body.trim());
            Ok(false)
        })?;
        if ended {
            bail!("the agent of {} ended:\n{}", self.host.name(), self.log());
        }
        Ok(())
    }

    /// `GET` from the agent's HTTP server, from inside the host.
    pub fn http(&self, path: &str) -> Result<Answer> {
        let target = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HTTP_PORT);
        self.host.netns().http_get(target, path)
    }

    /// `GET` from the agent's API, over its unix socket.
    pub fn api(&self, path: &str) -> Result<Answer> {
        http::unix_get(&self.socket(), path)
    }

    /// Runs a subcommand of `weir` on the host with `--socket`, and gives its output.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(agent_program()?);
        command.args(arguments).arg("--socket").arg(self.socket());
        let output = self.host.output(command)?;
        let (out, error) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "weir {arguments:?}: {}", error.trim());
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// The same whatever it ends with: the exit code, and all that it printed.
    pub fn weir(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let mut command = Command::new(agent_program()?);
        command.args(arguments).arg("--socket").arg(self.socket());
        let output = self.host.output(command)?;
        let code = output.status.code().with_context(|| format!("weir {arguments:?}"))?;
        let text = [output.stdout, output.stderr].concat();
        Ok((code, String::from_utf8_lossy(&text).into_owned()))
    }

    /// The unix socket of the agent's API.
    pub fn socket(&self) -> PathBuf {
        socket(&self.host.inner)
    }

    /// Whether the process runs.
    pub fn is_running(&self) -> bool {
        self.host.inner.lock_agent().process.as_mut().is_some_and(Process::is_running)
    }

    /// The pid, or `None` after its end.
    pub fn pid(&self) -> Option<u32> {
        self.host.inner.lock_agent().process.as_ref().map(Process::pid)
    }

    /// Resident memory in KiB.
    pub fn resident(&self) -> Result<u64> {
        process::status_kib(self.pid().context("the agent has ended")?, "VmRSS")
    }

    /// SIGKILL: the kernel part must go on without it.
    pub fn kill9(&self) {
        self.host.inner.lock_agent().process = None;
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&self) -> Result<()> {
        match self.host.inner.lock_agent().process.take() {
            Some(mut process) => process.stop(STOP).map(drop),
            None => Ok(()),
        }
    }

    /// Stops and starts the process; does not wait until it is ready.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.launch()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.host.run_dir().join("weir.log")
    }
}

/// Ends the agent of a host, runs `weir uninstall`, and gives everything that was not right.
pub(crate) fn uninstall(host: &Host) -> Vec<String> {
    let (process, config, before) = {
        let mut slot = host.inner.lock_agent();
        (slot.process.take(), slot.config.take(), std::mem::take(&mut slot.before))
    };
    let Some(config) = config else { return Vec::new() };
    let mut problems = Vec::new();
    if let Some(mut process) = process
        && let Err(error) = process.stop(STOP)
    {
        problems.push(format!("{}: {error:#}", host.name()));
    }
    if let Err(error) = run_uninstall(host, &config) {
        problems.push(format!("{}: {error:#}", host.name()));
    }
    // A link that lost its pin is detached after a grace period of the kernel.
    let clean = eventually("nothing to be left", GRACE, || {
        let now = Traces::of(host)?;
        let left: Vec<_> =
            now.beyond(&before).map(|trace| format!("there is still {trace}")).collect();
        ensure!(left.is_empty(), "{}", left.join("\n"));
        Ok(())
    });
    if let Err(error) = clean {
        problems.push(format!("{}: after weir uninstall: {error:#}", host.name()));
    }
    problems
}

fn run_uninstall(host: &Host, config: &Path) -> Result<()> {
    let log =
        File::options().create(true).append(true).open(host.run_dir().join("uninstall.log"))?;
    let mut command = Command::new(agent_program()?);
    command.args(["uninstall", "--config"]).arg(config);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut process = Process::spawn(command, host.netns(), Some(host.cgroup()))?;
    let status = process.wait(STOP)?;
    let said = fs::read_to_string(host.run_dir().join("uninstall.log")).unwrap_or_default();
    ensure!(status.success(), "weir uninstall: {status}: {}", said.trim());
    Ok(())
}

/// Where the agent of a host keeps its state, and nobody else anything.
pub(crate) fn state_dir(host: &HostParts) -> PathBuf {
    host.run_dir.join("state")
}

fn socket(host: &Arc<HostParts>) -> PathBuf {
    host.run_dir.join("weir.sock")
}

/// Runs `weir` with arguments in a namespace of the lab, for commands without an agent.
pub fn weir(host: &Host, arguments: &[&str]) -> Result<std::process::Output> {
    let mut command = Command::new(agent_program()?);
    command.args(arguments);
    process::output(command, host.netns(), Some(host.cgroup()))
}
