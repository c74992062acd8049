//! What this host can do, each line with the way to mend it.

use std::{fs, io, path::Path};

use aya::{programs::ProgramType, util::KernelVersion};

use crate::{
    Dataplane, Options,
    dataplane::{OVERHEAD4, OVERHEAD6},
    net::Netlink,
    sys,
};

/// One line of `weir check`.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was looked at, as a short stable name (`bpf-filesystem`).
    pub name: &'static str,
    /// What was found, as a sentence.
    pub found: String,
    /// Whether weir works with it.
    pub outcome: Outcome,
    /// How to mend it; empty when there is nothing to mend.
    pub remedy: String,
}

/// The tick or the cross of a [`Check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Good,
    /// Works, with a loss that `found` names.
    Limited,
    /// The kernel data plane cannot run.
    Bad,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, found: found.into(), outcome: Outcome::Good, remedy: String::new() }
    }

    fn limited(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, found: found.into(), outcome: Outcome::Limited, remedy: remedy.into() }
    }

    fn bad(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, found: found.into(), outcome: Outcome::Bad, remedy: remedy.into() }
    }
}

impl Dataplane {
    /// What this host can do; changes nothing.
    pub fn check(options: &Options) -> Vec<Check> {
        let mut checks = vec![kernel(), bpf(), pins(options), cgroup(options), cookie()];
        checks.extend(network(options));
        checks
    }
}

fn kernel() -> Check {
    const NAME: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match KernelVersion::current() {
        Ok(version) if version >= KernelVersion::new(6, 6, 0) => {
            Check::good(NAME, format!("Linux {release} has TCX"))
        }
        Ok(version) if version >= KernelVersion::new(5, 18, 0) => Check::limited(
            NAME,
            format!("Linux {release} has no TCX; clsact is used, and other tools may remove it"),
            "Linux 6.6 or later has it",
        ),
        Ok(_) => Check::bad(
            NAME,
            format!("Linux {release} is too old"),
            "weir's kernel programs need Linux 5.18 or later (bpf_set_retval)",
        ),
        Err(error) => Check::limited(NAME, format!("cannot tell the version: {error}"), ""),
    }
}

fn bpf() -> Check {
    const NAME: &str = "bpf";
    match aya::sys::is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => Check::good(NAME, "programs can be loaded"),
        Ok(false) => Check::bad(
            NAME,
            "the kernel takes no classifier programs",
            "it needs CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_CGROUP_BPF; and this \
             process CAP_BPF and CAP_NET_ADMIN",
        ),
        Err(error) => Check::bad(
            NAME,
            format!("cannot load a program: {}", crate::object::chain(&error)),
            "run as root, or with CAP_BPF and CAP_NET_ADMIN",
        ),
    }
}

fn pins(options: &Options) -> Check {
    const NAME: &str = "bpf-filesystem";
    // The directory itself may not exist yet: what it will be made in decides.
    let there = options.pin.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match sys::is_bpffs(there) {
        Ok(true) => Check::good(NAME, format!("{} is on one", options.pin.display())),
        Ok(false) => Check::bad(
            NAME,
            format!("{} is not on a BPF file system", options.pin.display()),
            "mount one: `mount -t bpf bpf /sys/fs/bpf`, or set dataplane.pin",
        ),
        Err(error) => Check::bad(NAME, format!("{}: {error}", there.display()), ""),
    }
}

fn cgroup(options: &Options) -> Check {
    const NAME: &str = "cgroup2";
    let path = options.cgroup.display();
    match sys::is_cgroup2(&options.cgroup) {
        Ok(true) => Check::good(NAME, format!("{path} is one")),
        Ok(false) => Check::bad(
            NAME,
            format!("{path} is not a cgroup2 directory"),
            "set dataplane.cgroup to where cgroup2 is mounted (see /proc/self/mounts)",
        ),
        Err(error) => Check::bad(
            NAME,
            format!("{path}: {error}"),
            "set dataplane.cgroup to where cgroup2 is mounted (see /proc/self/mounts)",
        ),
    }
}

fn cookie() -> Check {
    const NAME: &str = "netns-cookie";
    match sys::netns_cookie() {
        Ok(_) => Check::good(NAME, "the host's network namespace can be told from containers'"),
        Err(error) => Check::bad(
            NAME,
            format!("SO_NETNS_COOKIE: {error}"),
            "weir's kernel programs need Linux 5.18 or later",
        ),
    }
}

/// The tunnel carries packets of 1280 bytes, the least that IPv6 works with (RFC 8200 section 5), and its own
/// headers around them.
fn uplink(options: &Options, name: &str, mtu: u32) -> Check {
    let needed = 1280 + if options.address.is_ipv6() { OVERHEAD6 } else { OVERHEAD4 };
    if mtu >= needed {
        return Check::good("uplink", format!("{name} is up, MTU {mtu}"));
    }
    Check::limited(
        "uplink",
        format!("{name} has an MTU of {mtu}: large packets to tasks of other nodes do not fit"),
        format!("`ip link set {name} mtu {needed}`, or more, if the network carries it"),
    )
}

fn network(options: &Options) -> Vec<Check> {
    let host = match Netlink::new().and_then(|netlink| netlink.host()) {
        Ok(host) => host,
        Err(error) => {
            let remedy = "run as root, or with CAP_NET_ADMIN";
            return vec![Check::bad("netlink", error.to_string(), remedy)];
        }
    };
    let mut checks = Vec::new();
    for name in &options.uplinks {
        checks.push(match host.by_name(name) {
            Some(link) if link.up => uplink(options, name, link.mtu),
            Some(_) => Check::limited(
                "uplink",
                format!("{name} is down"),
                format!("`ip link set {name} up`"),
            ),
            None => Check::limited(
                "uplink",
                format!("there is no interface {name}"),
                format!("set node.uplinks to one of: {}", names(&host)),
            ),
        });
    }
    checks.push(if host.own_addresses().contains(&options.address) {
        Check::good("node-address", format!("{} is this host's", options.address))
    } else {
        // An interface may come later than the agent, and go and come back.
        Check::limited(
            "node-address",
            format!("{} is no address of this host now", options.address),
            "set node.address to the address by which other nodes reach this one",
        )
    });
    checks.push(tunnel(options, &host));
    checks.push(forwarding());
    checks
}

fn names(host: &crate::net::Host) -> String {
    let names: Vec<&str> = host
        .links
        .values()
        .filter(|link| link.name != "lo" && !link.veth)
        .map(|link| link.name.as_str())
        .collect();
    if names.is_empty() {
        return host.links.values().map(|link| link.name.clone()).collect::<Vec<_>>().join(", ");
    }
    names.join(", ")
}

fn tunnel(options: &Options, host: &crate::net::Host) -> Check {
    const NAME: &str = "tunnel";
    let (device, port) = (&options.tunnel_device, options.tunnel_port);
    match host.by_name(device) {
        Some(link) if link.vxlan_port == Some(port) => {
            Check::good(NAME, format!("{device} is there, UDP port {port}, MTU {}", link.mtu))
        }
        Some(link) if link.vxlan_port.is_none() => Check::bad(
            NAME,
            format!("{device} is an interface of another kind"),
            "set tunnel.device to a free name",
        ),
        Some(_) => Check::good(NAME, format!("{device} will be made again, for UDP port {port}")),
        None => match std::net::UdpSocket::bind(("0.0.0.0", port)) {
            Ok(_) => Check::good(NAME, format!("UDP port {port} is free")),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Check::bad(
                NAME,
                format!("something else listens on UDP port {port}"),
                "set tunnel.port, on every node alike",
            ),
            Err(error) => Check::limited(NAME, format!("UDP port {port}: {error}"), ""),
        },
    }
}

/// Nothing of ours needs the host to forward, but a container's way out does.
fn forwarding() -> Check {
    const NAME: &str = "ip-forward";
    match fs::read_to_string("/proc/sys/net/ipv4/ip_forward") {
        Ok(text) if text.trim() == "1" => Check::good(NAME, "the host forwards IPv4"),
        Ok(_) => Check::limited(
            NAME,
            "the host does not forward IPv4: redirects to tasks may be refused",
            "`sysctl -w net.ipv4.ip_forward=1` (dockerd does it by itself)",
        ),
        Err(error) => Check::limited(NAME, format!("cannot tell: {error}"), ""),
    }
}
