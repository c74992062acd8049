//! What weir may leave on a host: interfaces, attached programs, routes, pins, files of its state.
//! Compared before and after.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result};

use crate::agent::state_dir;
use crate::host::Host;

/// Everything found, one sentence each.
#[derive(Debug, Default)]
pub(crate) struct Traces(BTreeSet<String>);

impl Traces {
    pub(crate) fn of(host: &Host) -> Result<Self> {
        let links = host.netns().links()?;
        let mut traces = BTreeSet::new();
        for (name, index) in &links {
            traces.insert(format!("the interface {name}"));
            for (hook, number) in LINK_HOOKS {
                if host.run(|| attached(*index, *number)) {
                    traces.insert(format!("a program at {hook} of {name}"));
                }
            }
        }
        let cgroup = fs::File::open(host.cgroup().path()).context("open the cgroup")?;
        for (hook, number) in CGROUP_HOOKS {
            if attached(target(cgroup.as_raw_fd()), *number) {
                traces.insert(format!("a program at {hook} of the cgroup"));
            }
        }
        for name in host.netns().clsact()? {
            traces.insert(format!("a clsact qdisc on {name}"));
        }
        traces.extend(host.run(routes));
        traces.extend(host.run(routes6));
        let pins = fs::read_dir(&host.inner.pin_dir).into_iter().flatten().filter_map(Result::ok);
        traces.extend(pins.map(|pin| format!("the pin {}", pin.path().display())));
        let files = fs::read_dir(state_dir(&host.inner)).into_iter().flatten();
        let files = files.filter_map(Result::ok);
        traces.extend(files.map(|file| format!("the file {}", file.path().display())));
        Ok(Self(traces))
    }

    /// All of them.
    pub(crate) fn into_set(self) -> BTreeSet<String> {
        self.0
    }

    /// What is here and was not there. A task that was added since then brings a veth, and an
    /// uplink that came back is one: both are the lab's.
    pub(crate) fn beyond<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a String> {
        let ours = |trace: &String| {
            ["the interface veth-", "the interface eth"].iter().any(|name| trace.starts_with(name))
        };
        self.0.difference(&before.0).filter(move |trace| !ours(trace))
    }
}

/// The IPv4 routes of the current thread's namespace that are not of interfaces of the lab.
fn routes() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let foreign = fields.filter(|route| route.len() > 7 && !route[0].starts_with("eth"));
    foreign.map(|route| format!("a route to {}/{} on {}", route[1], route[7], route[0])).collect()
}

/// The same of IPv6. The kernel makes link-local and multicast routes for each interface when it has a
/// carrier, in its own time.
fn routes6() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (to, length, interface) = (fields.first()?, fields.get(1)?, fields.last()?);
        let to = Ipv6Addr::from_bits(u128::from_str_radix(to, 16).ok()?);
        let length = u8::from_str_radix(length, 16).ok()?;
        let own = to.is_unicast_link_local() || to.is_multicast();
        let of_lab = ["eth", "veth-"].iter().any(|name| interface.starts_with(name));
        (!own && !of_lab).then(|| format!("a route to {to}/{length} on {interface}"))
    };
    table.lines().filter_map(route).collect()
}

// enum bpf_attach_type, linux/bpf.h
const LINK_HOOKS: &[(&str, u32)] = &[("tcx ingress", 46), ("tcx egress", 47)];
const CGROUP_HOOKS: &[(&str, u32)] = &[
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("getsockname4", 31),
    ("getsockname6", 32),
    ("sock_release", 34),
];

const BPF_PROG_QUERY: libc::c_int = 16;

/// `union bpf_attr`, the part of BPF_PROG_QUERY.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

fn target(descriptor: RawFd) -> u32 {
    descriptor.cast_unsigned()
}

/// Whether anything is attached; a kernel that does not know the hook has nothing there.
fn attached(target: u32, attach_type: u32) -> bool {
    let mut query = Query { target, attach_type, ..Query::default() };
    // SAFETY: the structure has the kernel's layout and lives until the call returns; without a
    // buffer for ids the kernel writes only the count.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    let too_small = std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOSPC);
    (result == 0 || too_small) && query.count > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    const PROG_LOAD: libc::c_int = 5;
    const LINK_CREATE: libc::c_int = 28;

    /// `struct { u32 … }` of BPF_PROG_LOAD up to expected_attach_type, and of BPF_LINK_CREATE.
    fn bpf(command: libc::c_int, words: &[u32]) -> u32 {
        // SAFETY: the words are the attributes, and pointers in them outlive the call.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) };
        assert!(result >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
        u32::try_from(result).unwrap()
    }

    fn halves<T>(pointer: *const T) -> [u32; 2] {
        let address = pointer as u64;
        [address as u32, (address >> 32) as u32]
    }

    /// Loads `return 1` and attaches it; the link lives as long as this process.
    fn attach(kind: u32, hook: u32, target: u32) {
        let instructions = [0x0000_0001_0000_00b7_u64, 0x95];
        let (code, license) = (halves(instructions.as_ptr()), halves(c"GPL".as_ptr()));
        let mut load = vec![kind, 2, code[0], code[1], license[0], license[1]];
        load.extend([0; 11]);
        load.push(hook);
        bpf(LINK_CREATE, &[bpf(PROG_LOAD, &load), target, hook, 0]);
    }

    #[test]
    fn attached_programs_and_new_interfaces_are_found() {
        let lab = Lab::builder().hosts(1).clients(0).build().unwrap();
        let host = lab.host("n1");
        let before = Traces::of(host).unwrap();
        assert_eq!(Traces::of(host).unwrap().beyond(&before).count(), 0);
        let links = host.netns().links().unwrap();
        let (_, uplink) = links.iter().find(|(name, _)| name == "eth0").unwrap();
        host.run(|| attach(3, 46, *uplink));
        let cgroup = fs::File::open(host.cgroup().path()).unwrap();
        attach(18, 10, target(cgroup.as_raw_fd()));
        let _task = lab.task("n1", "web.1").unwrap();
        let relay = ("fd77:6569:7200::1".parse().unwrap(), 128);
        host.netns().add_bridge("weir0", 1500, &[relay]).unwrap();
        let state = state_dir(&host.inner);
        fs::create_dir_all(&state).unwrap();
        fs::write(state.join("state.json"), "").unwrap();
        let now = Traces::of(host).unwrap();
        let found: Vec<_> = now.beyond(&before).map(String::as_str).collect();
        let file = format!("the file {}", state.join("state.json").display());
        let expected = [
            "a program at connect4 of the cgroup",
            "a program at tcx ingress of eth0",
            "a route to fd77:6569:7200::1/128 on weir0",
            file.as_str(),
            "the interface weir0",
        ];
        assert_eq!(found, expected);
    }
}
