//! `weir.toml`: from text, flags and variables to a checked [`Config`].
//!
//! Two steps. [`Settings::read`] checks what was written and needs no host, which is what `weir
//! config check` does; [`Settings::resolve`] fills in what nobody wrote from what the host says.

mod dns;
mod keys;
mod link;
mod proxy;
mod read;
mod resolve;

pub use dns::{DnsConfig, DnsSettings, ListenAt};
pub use keys::{KEYS, Key, Kind, Overrides};
pub use link::{LinkConfig, LinkSettings};
pub use proxy::{ProxyConfig, ProxySettings};
pub use read::Settings;
pub(crate) use read::node_address;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use weir_loader::AttachMode;
use weir_mesh::{NodeName, Timeouts};

use crate::{document::Fault, host::Host};

/// Read when `--config` is not given, if it is there.
pub const DEFAULT_PATH: &str = "/etc/weir/weir.toml";
/// The admin socket, unless configured.
pub const DEFAULT_SOCKET: &str = "/run/weir/weir.sock";
/// The file source's file, unless configured.
pub const DEFAULT_MESH: &str = "/etc/weir/mesh.toml";
/// dockerd's socket, unless configured.
pub const DEFAULT_DOCKER: &str = "/var/run/docker.sock";
/// Pinned maps and links, unless configured.
pub const DEFAULT_PIN: &str = "/sys/fs/bpf/weir";

/// The checked configuration of an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// This node.
    pub node: NodeConfig,
    /// The data plane.
    pub dataplane: DataplaneConfig,
    /// The userspace proxy.
    pub proxy: ProxyConfig,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// Name of the tunnel device.
    pub tunnel_device: String,
    /// Where metrics and health are served; `None`: only on the admin socket.
    pub http: Option<SocketAddr>,
    /// The admin socket.
    pub socket: PathBuf,
    /// The cluster link.
    pub link: LinkConfig,
    /// The DNS server.
    pub dns: DnsConfig,
    /// Where the desired state comes from.
    pub source: SourceConfig,
    /// Where the last good snapshot is kept.
    pub state: PathBuf,
    /// How often the reconciler looks at what.
    pub reconcile: Intervals,
    /// Most tasks with metrics of their own.
    pub backend_limit: usize,
    /// Whether metrics are told by node_exporter's names for IPVS as well.
    pub compat_ipvs_metrics: bool,
    /// Flow timeouts of services that set none.
    pub timeouts: Timeouts,
    /// The log.
    pub log: LogConfig,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name in the mesh.
    pub name: NodeName,
    /// Its underlay address.
    pub address: IpAddr,
    /// Whether somebody wrote that address; else it is what dockerd or the host said at the start.
    pub address_written: bool,
    /// All addresses at which published ports answer; `address` is the first.
    pub addresses: Vec<IpAddr>,
    /// Interfaces on which clients arrive.
    pub uplinks: Vec<String>,
}

/// The data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataplaneConfig {
    /// Which one.
    pub mode: Mode,
    /// cgroup2 directory whose processes get connect-time balancing.
    pub cgroup: PathBuf,
    /// Directory of pinned maps and links.
    pub pin: PathBuf,
    /// How programs are attached to interfaces.
    pub attach: AttachMode,
    /// Room in each flow table; `None`: from the memory of the host.
    pub flow_capacity: Option<u32>,
    /// Who keeps a published port that a process listens on.
    pub on_port_conflict: OnPortConflict,
}

/// Which data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The best that the host can do.
    Auto,
    /// In the kernel, or not at all.
    Ebpf,
    /// By the userspace proxy.
    Proxy,
}

/// Who keeps a published port that a process of this node listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPortConflict {
    /// A listener that was there before the port was published keeps it.
    ListenerWins,
    /// The mesh takes it.
    MeshWins,
}

/// Where the desired state comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A file.
    File(FileSourceConfig),
    /// The Swarm that this host's dockerd is part of.
    Docker(DockerSourceConfig),
}

/// The Docker source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerSourceConfig {
    /// dockerd's socket.
    pub socket: PathBuf,
    /// How often dockerd is asked while nothing changes.
    pub poll: Duration,
}

/// The file source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSourceConfig {
    /// The desired state.
    pub path: PathBuf,
    /// How often it is looked at besides being watched.
    pub poll: Duration,
}

/// How often the reconciler looks at what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// Interfaces and listeners of the host.
    pub host: Duration,
    /// The kernel's maps against the mirror.
    pub audit: Duration,
    /// Flows that have timed out.
    pub flows: Duration,
    /// How long the start waits for the first word of the source.
    pub start_wait: Duration,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// A filter in the syntax of `tracing-subscriber` (`info`, `weir=debug`).
    pub level: String,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

// === impl Config ===

impl Config {
    /// Reads the file (or, without a path, [`DEFAULT_PATH`] if it is there), flags and variables.
    /// All mistakes at once.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, Vec<Fault>> {
        let settings = Settings::load(path, overrides)?;
        let mut host = Host::look();
        if let SourceConfig::Docker(docker) = settings.source() {
            host.ask_docker(&docker.socket);
        }
        settings.resolve(&host)
    }

    /// The same when dockerd has said meanwhile at which address other nodes reach this one.
    pub fn load_at(
        path: Option<&Path>,
        overrides: &Overrides,
        address: IpAddr,
    ) -> Result<Self, Vec<Fault>> {
        let host = Host { address: Some(address), ..Host::look() };
        Settings::load(path, overrides)?.resolve(&host)
    }

    /// What the loader needs.
    pub fn dataplane_options(&self) -> weir_loader::Options {
        weir_loader::Options {
            pin: self.dataplane.pin.clone(),
            cgroup: self.dataplane.cgroup.clone(),
            uplinks: self.node.uplinks.clone(),
            address: self.node.address,
            addresses: self.node.addresses.clone(),
            tunnel_port: self.tunnel_port,
            tunnel_device: self.tunnel_device.clone(),
            attach: self.dataplane.attach,
            flow_capacity: self.dataplane.flow_capacity,
        }
    }
}

fn read_file(path: Option<&Path>) -> Result<(PathBuf, String), Vec<Fault>> {
    let default = Path::new(DEFAULT_PATH);
    let path = match path {
        Some(path) => path,
        None if default.exists() => default,
        None => return Ok((PathBuf::new(), String::new())),
    };
    match fs::read_to_string(path) {
        Ok(text) => Ok((path.to_owned(), text)),
        Err(error) => {
            let remedy = "give the path of a weir.toml with --config, or none to use defaults";
            Err(vec![Fault::of_file(path, format!("cannot be read: {error}"), remedy)])
        }
    }
}
