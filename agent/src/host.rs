//! What the host says of itself, for every key that nobody set.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::timeout;
use tracing::warn;

use crate::source::docker;

/// A start does not wait longer for dockerd.
const DOCKER_PATIENCE: Duration = Duration::from_secs(3);

/// Facts about this host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Its name.
    pub name: Option<String>,
    /// The source address of its default route.
    pub address: Option<IpAddr>,
    /// Its interfaces with their addresses.
    pub interfaces: Vec<(String, IpAddr)>,
    /// Where the cgroup2 file system is mounted.
    pub cgroup: Option<PathBuf>,
}

impl Host {
    /// Asks the host.
    pub fn look() -> Self {
        Self {
            name: host_name(),
            address: default_route_source(),
            interfaces: interfaces(),
            cgroup: cgroup2_mount(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()),
        }
    }

    /// What Swarm calls this node and where its other nodes reach it, in place of what the host
    /// says. A dockerd that does not answer now changes nothing: Docker takes the same host name,
    /// and what was set goes before all.
    pub fn ask_docker(&mut self, socket: &Path) {
        let socket = socket.to_owned();
        // A thread, since the caller may be in a runtime of its own.
        let asked = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            // In a block, since a timeout can only be made where there is a runtime.
            let question = async { timeout(DOCKER_PATIENCE, docker::ask(&socket)).await.ok() };
            runtime.block_on(question)
        });
        let engine = match asked.join().ok().flatten() {
            Some(Ok(Ok(engine))) => engine,
            Some(Ok(Err(no_swarm))) => {
                return warn!(
                    problem = no_swarm.problem,
                    "node.name and node.address are the host's"
                );
            }
            Some(Err(error)) => {
                return warn!(%error, "dockerd does not say node.name and node.address, they are the host's");
            }
            None => {
                return warn!("dockerd does not answer, node.name and node.address are the host's");
            }
        };
        self.name = Some(engine.hostname).filter(|name| !name.is_empty()).or(self.name.take());
        self.address = engine.address.or(self.address);
    }

    /// The interface that holds an address.
    pub fn interface_with(&self, address: IpAddr) -> Option<&str> {
        let held = self.interfaces.iter().find(|(_, held)| *held == address);
        held.map(|(name, _)| name.as_str())
    }
}

fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Connecting a UDP socket sends nothing; it only makes the kernel choose a route and with it a
/// source address. The destinations are documentation prefixes (RFC 5737, RFC 3849).
fn default_route_source() -> Option<IpAddr> {
    let ask = |local: IpAddr, remote: IpAddr| {
        let socket = UdpSocket::bind(SocketAddr::new(local, 0)).ok()?;
        socket.connect(SocketAddr::new(remote, 9)).ok()?;
        let address = socket.local_addr().ok()?.ip();
        Some(address).filter(|address| !address.is_unspecified() && !address.is_loopback())
    };
    ask(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()).or_else(|| {
        let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        ask(Ipv6Addr::UNSPECIFIED.into(), documentation.into())
    })
}

/// The host's interfaces with their addresses.
pub fn interfaces() -> Vec<(String, IpAddr)> {
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    addresses
        .filter_map(|entry| {
            let storage = entry.address?;
            let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let v6 = storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
            Some((entry.interface_name, v4.or(v6)?))
        })
        .collect()
}

fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let directory = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(directory))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_on_hybrid_and_unified_hosts() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(unified), Some("/sys/fs/cgroup".into()));
        assert_eq!(cgroup2_mount("proc /proc proc rw 0 0\n"), None);
    }
}
