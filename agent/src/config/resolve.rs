//! What nobody wrote, from the host; and whether it all fits together.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use weir_mesh::NodeName;

use super::{
    Config, DEFAULT_DOCKER, DEFAULT_MESH, DEFAULT_PIN, DEFAULT_SOCKET, DataplaneConfig,
    DockerSourceConfig, FileSourceConfig, Intervals, LinkConfig, LogConfig, LogFormat, Mode,
    NodeConfig, OnPortConflict, Settings, SourceConfig,
};
use crate::{
    document::{Fault, Findings},
    host::Host,
};

impl Settings {
    /// Fills in what nobody wrote. All mistakes at once.
    pub fn resolve(self, host: &Host) -> Result<Config, Vec<Fault>> {
        let findings = Findings::new("", "");
        let node = self.node(host, &findings);
        let dataplane = self.dataplane(host, &findings);
        let config = node.zip(dataplane).map(|(node, dataplane)| {
            let link = self.link.resolve(node.address, &self.source(), &findings);
            self.config(node, dataplane, link)
        });
        match config {
            Some(config) if findings.is_empty() => Ok(config),
            _ => Err(findings.into_faults()),
        }
    }

    fn node(&self, host: &Host, findings: &Findings<'_>) -> Option<NodeConfig> {
        let name = self.node_name.clone().or_else(|| host.name.clone());
        if name.is_none() {
            findings.note_host("node.name", "has no host name", "set node.name");
        }
        let address = self.node_address.or(host.address);
        if address.is_none() {
            let remedy = "set node.address to the address at which other nodes reach this one";
            findings.note_host("node.address", "has no default route", remedy);
        }
        let uplinks = address.and_then(|address| self.uplinks(host, address, findings));
        let (name, address, uplinks) = (name?, address?, uplinks?);
        let mut addresses = vec![address];
        for further in self.node_addresses.iter().flatten() {
            if !addresses.contains(further) {
                addresses.push(*further);
            }
        }
        let address_written = self.node_address.is_some();
        let name = NodeName::new(name);
        Some(NodeConfig { name, address, address_written, addresses, uplinks })
    }

    fn uplinks(
        &self,
        host: &Host,
        address: IpAddr,
        findings: &Findings<'_>,
    ) -> Option<Vec<String>> {
        let device = self.tunnel_device.as_deref().unwrap_or(DEFAULT_DEVICE);
        if let Some(uplinks) = &self.node_uplinks {
            if uplinks.iter().any(|uplink| uplink == device) {
                let problem = format!("\"{device}\" is the tunnel device, not an uplink");
                findings.note_host("node.uplinks", problem, "take it out of node.uplinks");
            }
            return Some(uplinks.clone());
        }
        let interface = host.interface_with(address);
        if interface.is_none() && self.mode == Some(Mode::Proxy) {
            return Some(Vec::new());
        }
        if interface.is_none() {
            let problem = format!("no interface holds node.address {address}");
            let remedy = "set node.uplinks, or node.address to an address of this host";
            findings.note_host("node.uplinks", problem, remedy);
        }
        interface.map(|name| vec![name.to_owned()])
    }

    fn dataplane(&self, host: &Host, findings: &Findings<'_>) -> Option<DataplaneConfig> {
        let cgroup = self.cgroup.clone().or_else(|| host.cgroup.clone());
        let mode = self.mode.unwrap_or(Mode::Auto);
        if cgroup.is_none() && mode == Mode::Ebpf {
            let remedy = "mount one (mount -t cgroup2 none /sys/fs/cgroup), or set \
                          dataplane.cgroup to where it is";
            findings.note_host("dataplane.cgroup", "has no cgroup2 file system mounted", remedy);
        }
        Some(DataplaneConfig {
            mode,
            // Without one the kernel data plane is not to be had, which its check will say.
            cgroup: cgroup.unwrap_or_default(),
            pin: self.pin_or_default(),
            attach: self.attach.unwrap_or_default(),
            flow_capacity: self.flow_capacity,
            on_port_conflict: self.on_port_conflict.unwrap_or(OnPortConflict::ListenerWins),
        })
    }

    fn pin_or_default(&self) -> PathBuf {
        self.pin.clone().unwrap_or_else(|| DEFAULT_PIN.into())
    }

    /// The source that was written; else the one that is there.
    pub fn source(&self) -> SourceConfig {
        let written = self.source_path.is_some() || self.source_poll.is_some();
        let there = Path::new(DEFAULT_DOCKER).exists() && !Path::new(DEFAULT_MESH).exists();
        if self.docker_socket.is_some() || (!written && (self.docker_poll.is_some() || there)) {
            return SourceConfig::Docker(DockerSourceConfig {
                socket: self.docker_socket.clone().unwrap_or_else(|| DEFAULT_DOCKER.into()),
                poll: self.docker_poll.unwrap_or(Duration::from_secs(2)),
            });
        }
        SourceConfig::File(FileSourceConfig {
            path: self.source_path.clone().unwrap_or_else(|| DEFAULT_MESH.into()),
            poll: self.source_poll.unwrap_or(Duration::from_secs(2)),
        })
    }

    fn config(self, node: NodeConfig, dataplane: DataplaneConfig, link: LinkConfig) -> Config {
        let seconds = Duration::from_secs;
        let source = self.source();
        let dns = self.dns.resolve(matches!(source, SourceConfig::Docker(_)));
        let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 9950);
        Config {
            node,
            tunnel_port: self.tunnel_port.unwrap_or(7950),
            tunnel_device: self.tunnel_device.unwrap_or_else(|| DEFAULT_DEVICE.into()),
            link,
            http: self.http.unwrap_or(Some(everywhere)),
            socket: self.socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
            dns,
            source,
            proxy: self.proxy.resolve(),
            state: self.state.unwrap_or_else(|| default_state(&dataplane.pin)),
            dataplane,
            reconcile: Intervals {
                host: self.host_interval.unwrap_or(seconds(2)),
                audit: self.audit_interval.unwrap_or(seconds(10)),
                flows: self.flow_interval.unwrap_or(seconds(10)),
                start_wait: self.start_wait.unwrap_or(seconds(30)),
            },
            backend_limit: self.backend_limit.unwrap_or(5000),
            compat_ipvs_metrics: self.compat_ipvs_metrics.unwrap_or(false),
            timeouts: self.timeouts,
            log: LogConfig {
                format: self.log_format.unwrap_or(LogFormat::Text),
                level: self.log_level.unwrap_or_else(|| "info".into()),
            },
        }
    }
}

const DEFAULT_DEVICE: &str = "weir0";

/// Agents with pins of their own (several on one machine, in network namespaces) have states of
/// their own.
fn default_state(pin: &Path) -> PathBuf {
    let directory = Path::new("/var/lib/weir");
    if pin == Path::new(DEFAULT_PIN) {
        return directory.join("state.json");
    }
    let pin = pin.display().to_string();
    directory.join(format!("state-{}.json", pin.trim_matches('/').replace('/', "-")))
}
