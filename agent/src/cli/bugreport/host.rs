//! What a host is, as far as weir is concerned.

use std::{fmt::Write as _, fs};

/// What is said of the kernel in one line each.
const SETTINGS: [&str; 12] = [
    "/proc/sys/kernel/osrelease",
    "/proc/sys/kernel/unprivileged_bpf_disabled",
    "/proc/sys/net/core/bpf_jit_enable",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv6/conf/all/forwarding",
    "/proc/sys/net/ipv6/conf/all/disable_ipv6",
    "/proc/sys/net/ipv4/conf/all/rp_filter",
    "/proc/sys/net/ipv4/conf/default/rp_filter",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/net/ipv4/ip_unprivileged_port_start",
    "/proc/sys/net/netfilter/nf_conntrack_max",
    "/proc/sys/net/netfilter/nf_conntrack_count",
];

/// The kernel, its settings, interfaces with their MTU, mounts of BPF and of cgroups.
pub(super) fn host() -> String {
    let mut text = String::new();
    section(&mut text, "/proc/version", &read("/proc/version"));
    section(&mut text, "/etc/os-release", &read("/etc/os-release"));
    let settings = SETTINGS.map(|path| format!("{path} = {}\n", read(path).trim()));
    section(&mut text, "settings", &settings.concat());
    section(&mut text, "interfaces: state, MTU, address", &interfaces());
    let mounts = read("/proc/self/mountinfo");
    let ours = mounts.lines().filter(|line| line.contains(" - bpf ") || line.contains(" - cgroup"));
    section(&mut text, "mounts", &ours.map(|line| format!("{line}\n")).collect::<String>());
    section(&mut text, "/proc/meminfo", &first_lines(&read("/proc/meminfo"), 5));
    text
}

/// What a process may do: of ours, and of the agent.
pub(super) fn rights(agent: Option<u32>) -> String {
    let mut text = String::new();
    // An agent in another PID namespace says a number that is another process here.
    let ours = |pid: &u32| read(&format!("/proc/{pid}/comm")).trim() == "weir";
    let here = agent.filter(ours);
    if agent.is_some() && here.is_none() {
        section(&mut text, "agent", "it is in another PID namespace: ask inside its container");
    }
    for (who, pid) in
        [("weir bugreport", Some("self".to_owned())), ("agent", here.map(|pid| pid.to_string()))]
    {
        let Some(pid) = pid else { continue };
        let status = read(&format!("/proc/{pid}/status"));
        let of_rights = ["Uid:", "Gid:", "Cap", "NoNewPrivs:", "Seccomp:", "VmRSS:", "Threads:"];
        let lines =
            status.lines().filter(|line| of_rights.iter().any(|start| line.starts_with(start)));
        let lines: String = lines.map(|line| format!("{line}\n")).collect();
        section(&mut text, &format!("{who}, /proc/{pid}/status"), &lines);
        section(
            &mut text,
            &format!("{who}, /proc/{pid}/limits"),
            &read(&format!("/proc/{pid}/limits")),
        );
    }
    text
}

fn interfaces() -> String {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return String::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let line = |name: &String| {
        let of = |what: &str| read(&format!("/sys/class/net/{name}/{what}")).trim().to_owned();
        format!("{name}: {} {} {}\n", of("operstate"), of("mtu"), of("address"))
    };
    names.iter().map(line).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| format!("({error})\n"))
}

fn first_lines(text: &str, count: usize) -> String {
    text.lines().take(count).map(|line| format!("{line}\n")).collect()
}

fn section(text: &mut String, title: &str, body: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "== {title}\n{}\n", body.trim_end());
}
