//! `weir check`: what this host can do. Changes nothing and needs no agent.

mod surroundings;

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::Path,
};

use nix::sys::statvfs::{FsFlags, statvfs};
use schemars::JsonSchema;
use serde::Serialize;
use weir_loader::{Dataplane, Outcome};

use super::{
    ConfigArgs, Failed, Format, OutputArgs,
    table::{Table, mark, print, print_json},
};
use crate::{
    config::{Config, Mode, SourceConfig},
    health::Condition,
    source::{docker, file},
};

/// One line.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Line {
    name: String,
    condition: Condition,
    found: String,
    remedy: String,
}

pub(super) fn host(config: &ConfigArgs, output: &OutputArgs) -> Result<Condition, Failed> {
    let lines = lines(&config.load()?);
    let worst = lines.iter().map(|line| line.condition).max().unwrap_or(Condition::Ok);
    if output.output == Format::Json {
        print_json(&lines)?;
    } else {
        let mut table = Table::default();
        for line in &lines {
            table.row([&mark(line.condition), &line.name, &line.found]);
            if !line.remedy.is_empty() {
                table.row(["", "", &format!("-> {}", line.remedy)]);
            }
        }
        print(&table.text());
    }
    Ok(worst)
}

/// Everything that there is to say of this host.
pub(super) fn lines(config: &Config) -> Vec<Line> {
    let mut lines = data_plane(config);
    lines.extend([listen(config), state_directory(config), source(config)]);
    lines.extend(surroundings::certificates(config));
    lines.extend(surroundings::name_servers(config));
    lines
}

/// What the kernel plane needs; where the proxy may take its place, nothing of it is a must.
fn data_plane(config: &Config) -> Vec<Line> {
    let name = "data-plane";
    if config.dataplane.mode == Mode::Proxy {
        return vec![line(name, Condition::Ok, "the userspace proxy".into(), ""), relay(config)];
    }
    let checks = Dataplane::check(&config.dataplane_options());
    let mut lines: Vec<Line> = checks.into_iter().map(Line::from).collect();
    let lacks = lines.iter().any(|line| line.condition == Condition::Failed);
    if lacks && config.dataplane.mode == Mode::Auto {
        for line in &mut lines {
            line.condition = line.condition.min(Condition::Degraded);
        }
        let found = "not the kernel's: the userspace proxy takes its place";
        lines.push(line(name, Condition::Degraded, found.into(), "see docs/proxy.md"));
        lines.push(relay(config));
    }
    lines
}

fn relay(config: &Config) -> Line {
    let address = SocketAddr::new(config.node.address, config.proxy.relay_port);
    // A running agent holds its own port.
    let running = UnixStream::connect(&config.socket).is_ok();
    match TcpListener::bind(address) {
        Err(error) if !running => {
            let remedy = "set node.address to an address of this host, or proxy.relay_port, on \
                          every node alike";
            line("relay", Condition::Failed, format!("{address}: {error}"), remedy)
        }
        _ => line("relay", Condition::Ok, format!("{address} for other nodes"), ""),
    }
}

impl From<weir_loader::Check> for Line {
    fn from(check: weir_loader::Check) -> Self {
        let condition = match check.outcome {
            Outcome::Good => Condition::Ok,
            Outcome::Limited => Condition::Degraded,
            Outcome::Bad => Condition::Failed,
        };
        Self { name: check.name.into(), condition, found: check.found, remedy: check.remedy }
    }
}

fn line(name: &str, condition: Condition, found: String, remedy: &str) -> Line {
    Line { name: name.into(), condition, found, remedy: remedy.into() }
}

fn listen(config: &Config) -> Line {
    let name = "http-listen";
    let Some(address) = config.http else {
        return line(name, Condition::Ok, "off".into(), "");
    };
    // A running agent holds its own port.
    if UnixStream::connect(&config.socket).is_ok() {
        return line(name, Condition::Ok, format!("{address}, an agent is running"), "");
    }
    match TcpListener::bind(address) {
        Ok(_) => line(name, Condition::Ok, format!("{address} is free"), ""),
        Err(error) => {
            let remedy = "choose another address or port with http.listen, or \"off\"";
            line(name, Condition::Failed, format!("{address}: {error}"), remedy)
        }
    }
}

fn state_directory(config: &Config) -> Line {
    let name = "state-directory";
    let directory = config.state.parent().unwrap_or(Path::new("/"));
    match writable(directory) {
        Ok(()) => line(name, Condition::Ok, format!("{} is writable", directory.display()), ""),
        Err(error) => {
            let found = format!("{}: {error}", directory.display());
            let remedy = "without it a start with a broken source has nothing to go on with; make \
                          room there, or set state.path";
            line(name, Condition::Degraded, found, remedy)
        }
    }
}

/// Whether files can be made in a directory, or in the one above it if it is not there yet.
fn writable(directory: &Path) -> io::Result<()> {
    let there = directory.ancestors().find(|candidate| candidate.exists()).unwrap_or(directory);
    if fs::metadata(there)?.permissions().readonly() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let system = statvfs(there)?;
    if system.flags().contains(FsFlags::ST_RDONLY) {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    }
    // A snapshot of thousands of services has some hundred kilobytes.
    let free = system.blocks_available() as u64 * system.fragment_size() as u64;
    if free < LEAST_FREE {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

/// Bytes.
const LEAST_FREE: u64 = 1 << 20;

fn source(config: &Config) -> Line {
    match &config.source {
        SourceConfig::File(file) => file_source(config, &file.path),
        SourceConfig::Docker(docker) => docker_source(&docker.socket),
    }
}

fn docker_source(socket: &Path) -> Line {
    let name = "source-docker";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = match runtime {
        Ok(runtime) => runtime.block_on(docker::ask(socket)),
        Err(error) => return line(name, Condition::Degraded, error.to_string(), ""),
    };
    let socket = socket.display();
    match asked {
        Ok(Ok(engine)) => {
            let role = if engine.manager { "manager" } else { "worker" };
            let found = format!("{socket}: {role} {} of a Swarm", engine.hostname);
            line(name, Condition::Ok, found, "")
        }
        Ok(Err(no_swarm)) => {
            let found = format!("{socket}: {}", no_swarm.problem);
            line(name, Condition::Degraded, found, no_swarm.remedy)
        }
        Err(error) => line(name, Condition::Degraded, format!("{socket}: {error}"), error.remedy()),
    }
}

fn file_source(config: &Config, path: &Path) -> Line {
    let name = "source-file";
    let read = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    let parsed = read.and_then(|text| {
        file::parse(&path.display().to_string(), &text, config.timeouts)
            .map_err(|faults| format!("{} mistakes in {}", faults.len(), path.display()))
    });
    match parsed {
        Ok(desired) => {
            let found = format!("{}: {} services", path.display(), desired.services.len());
            line(name, Condition::Ok, found, "")
        }
        Err(found) => {
            let remedy = format!("weir config check {} names all mistakes", path.display());
            line(name, Condition::Degraded, found, &remedy)
        }
    }
}
