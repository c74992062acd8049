//! Which ports of this node a process already listens on.
//!
//! The mesh takes packets before the host's own sockets see them, so a published port would silence
//! a process that listens there. The rule is first come, first served: see
//! [`crate::reconciler`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use serde::Serialize;
use weir_mesh::{Protocol, PublishedPort, install::Frontend};

/// A socket that a process listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listener {
    address: IpAddr,
    frontend: Frontend,
    inode: u64,
}

/// A process that listens on a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Where it listens.
    pub address: IpAddr,
    /// Its process number, if this agent can see it.
    pub pid: Option<u32>,
    /// Its name, if this agent can see it.
    pub process: Option<String>,
}

/// Finds listeners by the files of `/proc`.
#[derive(Clone, Debug)]
pub struct ListenerTable {
    proc: PathBuf,
    addresses: Vec<IpAddr>,
    /// What this process is called.
    own_name: Option<String>,
    /// Processes by the inode of their socket, since looking through all of them takes long.
    known: BTreeMap<u64, (u32, String)>,
}

/// What dockerd and its proxies hold is held for the services that weir itself serves.
const DOCKER: [&str; 2] = ["dockerd", "docker-proxy"];

impl ListenerTable {
    /// Listeners of the agent's own network namespace that clients of the node's `addresses`, or
    /// of its loopback addresses, could mean.
    pub fn new(addresses: Vec<IpAddr>) -> Self {
        let proc = PathBuf::from("/proc");
        let own_name = name_of(&proc.join("self"));
        Self { proc, addresses, own_name, known: BTreeMap::new() }
    }

    /// Who, apart from Docker, listens on each of `wanted`. On `ours` the agent itself may listen for the
    /// mesh, in this process or in the one before an upgrade.
    pub fn holders(
        &mut self,
        wanted: &BTreeSet<Frontend>,
        ours: &BTreeSet<Frontend>,
    ) -> BTreeMap<Frontend, Holder> {
        let listeners: Vec<_> = Protocol::ALL
            .into_iter()
            .flat_map(|protocol| self.listeners(protocol, wanted))
            .filter(|listener| self.concerns(listener.address))
            .collect();
        self.recognise(listeners.iter().map(|listener| listener.inode).collect());
        let mut holders = BTreeMap::new();
        for Listener { address, frontend, inode } in listeners {
            let (pid, process) = self.known.get(&inode).cloned().unzip();
            let own = ours.contains(&frontend) && process.is_some() && process == self.own_name;
            if own || process.as_deref().is_some_and(|name: &str| DOCKER.contains(&name)) {
                continue;
            }
            holders.entry(frontend).or_insert(Holder { address, pid, process });
        }
        holders
    }

    fn recognise(&mut self, inodes: BTreeSet<u64>) {
        self.known.retain(|inode, _| inodes.contains(inode));
        let strange: BTreeSet<u64> =
            inodes.into_iter().filter(|inode| !self.known.contains_key(inode)).collect();
        if !strange.is_empty() {
            self.known.extend(processes(&self.proc, &strange));
        }
    }

    /// A resolver on 127.0.0.53 is in nobody's way.
    fn concerns(&self, address: IpAddr) -> bool {
        address.is_unspecified()
            || address == IpAddr::V4(Ipv4Addr::LOCALHOST)
            || address == IpAddr::V6(Ipv6Addr::LOCALHOST)
            || self.addresses.contains(&address)
    }

    fn listeners(&self, protocol: Protocol, wanted: &BTreeSet<Frontend>) -> Vec<Listener> {
        let tables = [format!("net/{protocol}"), format!("net/{protocol}6")];
        let mut found = Vec::new();
        for table in tables {
            // A host without IPv6 has no such table.
            let Ok(file) = fs::File::open(self.proc.join("self").join(table)) else { continue };
            let read = read_table(BufReader::new(file), protocol, |listener| {
                if wanted.contains(&listener.frontend) {
                    found.push(listener);
                }
            });
            if let Err(error) = read {
                tracing::debug!(%error, %protocol, "cannot read the table of sockets");
            }
        }
        found
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.process, self.pid) {
            (Some(process), Some(pid)) => write!(f, "{process} (pid {pid})")?,
            _ => f.write_str("a process that this agent cannot see")?,
        }
        write!(f, " listens on {}", self.address)
    }
}

/// Listening TCP sockets come first in the kernel's table, so reading ends with them however many
/// connections there are. A UDP socket counts when it is bound and not connected.
fn read_table(
    table: impl BufRead,
    protocol: Protocol,
    mut found: impl FnMut(Listener),
) -> io::Result<()> {
    const LISTEN: &str = "0A";
    const UNCONNECTED: &str = "07";
    for line in table.lines().skip(1) {
        let line = line?;
        let mut fields = line.split_ascii_whitespace();
        let (Some(local), Some(state)) = (fields.nth(1), fields.nth(1)) else { continue };
        match protocol {
            Protocol::Tcp if state != LISTEN => return Ok(()),
            Protocol::Udp if state != UNCONNECTED => continue,
            _ => {}
        }
        let socket = parse_address(local);
        let inode = fields.nth(5).and_then(|inode| inode.parse().ok());
        if let (Some((address, port)), Some(inode)) = (socket, inode) {
            found(Listener { address, frontend: Frontend { protocol, port }, inode });
        }
    }
    Ok(())
}

/// `0100007F:1F90`: words of the address in host byte order, the port in network order.
fn parse_address(text: &str) -> Option<(IpAddr, PublishedPort)> {
    let (address, port) = text.split_once(':')?;
    let port = PublishedPort::new(u16::from_str_radix(port, 16).ok()?)?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok();
    let address = match address.len() {
        8 => IpAddr::V4(word(0)?.to_ne_bytes().into()),
        32 => {
            let mut octets = [0; 16];
            for (i, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(i * 8)?.to_ne_bytes());
            }
            IpAddr::V6(octets.into()).to_canonical()
        }
        _ => return None,
    };
    Some((address, port))
}

/// The processes that hold sockets, by the inode of the socket.
fn processes(proc: &Path, inodes: &BTreeSet<u64>) -> BTreeMap<u64, (u32, String)> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(proc) else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        for inode in sockets_of(&entry.path()).filter(|inode| inodes.contains(inode)) {
            let name = name_of(&entry.path()).unwrap_or_default();
            found.entry(inode).or_insert((pid, name));
        }
        if found.len() == inodes.len() {
            break;
        }
    }
    found
}

/// What a process is called, by its folder.
fn name_of(process: &Path) -> Option<String> {
    Some(fs::read_to_string(process.join("comm")).ok()?.trim().to_owned())
}

fn sockets_of(process: &Path) -> impl Iterator<Item = u64> {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| {
        let target = fs::read_link(file.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn frontend(protocol: Protocol, port: u16) -> Frontend {
        Frontend { protocol, port: PublishedPort::new(port).unwrap() }
    }

    #[test]
    fn a_listening_process_is_found_by_name_and_number() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let wanted = frontend(Protocol::Tcp, socket.local_addr().unwrap().port());
        let mut table = ListenerTable::new(Vec::new());
        let holders = table.holders(&[wanted].into(), &BTreeSet::new());
        let holder = &holders[&wanted];
        assert_eq!(holder.pid, Some(std::process::id()));
        assert_eq!(holder.address, IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert!(holder.to_string().contains(&format!("(pid {})", std::process::id())));
        let ours = table.holders(&[wanted].into(), &[wanted].into());
        assert!(
            ours.is_empty(),
            "where it listens for the mesh it is not in its own way: {ours:?}"
        );
    }

    #[test]
    fn a_bound_udp_socket_is_found_and_a_resolver_on_another_loopback_address_is_not() {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        let stub = UdpSocket::bind("127.0.0.53:0").unwrap();
        let wanted = frontend(Protocol::Udp, socket.local_addr().unwrap().port());
        let other = frontend(Protocol::Udp, stub.local_addr().unwrap().port());
        let holders =
            ListenerTable::new(Vec::new()).holders(&[wanted, other].into(), &BTreeSet::new());
        assert_eq!(holders.keys().collect::<Vec<_>>(), [&wanted]);
    }

    #[test]
    fn reading_ends_after_the_listening_sockets() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0\n\
            1: 0100007F:0050 0200007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 4343 1 0\n\
            2: 0100007F:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4444 1 0\n";
        let mut found = Vec::new();
        read_table(table.as_bytes(), Protocol::Tcp, |listener| found.push(listener)).unwrap();
        let expected = Listener {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            frontend: frontend(Protocol::Tcp, 8080),
            inode: 4242,
        };
        assert_eq!(found, [expected]);
    }
}
