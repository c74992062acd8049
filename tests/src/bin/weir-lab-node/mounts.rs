//! What is mounted in a node, at the places where a host of its own has it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Directories that dockerd, weir and users write: the node sees the machine's contents, and its own
/// changes go to memory.
const CHANGED: [&str; 4] = ["/etc", "/root", "/usr/local", "/var/lib"];
/// Where those changes are, in the node's own `/run`.
const CHANGES: &str = "/run/weir-lab-node";

/// Mounts everything; the caller is in a mount namespace of its own.
pub fn all() -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("make all mounts private")?;
    // Not only covered: whoever reads the list of mounts must not find the machine's own.
    for machines in ["/sys", "/run", "/proc"] {
        match umount2(machines, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL) => {} // EINVAL: nothing is mounted there
            Err(error) => return Err(error).with_context(|| format!("unmount {machines}")),
        }
    }
    file_system("proc", "/proc")?;
    file_system("sysfs", "/sys")?;
    // One hierarchy with the node's cgroup as its root: a modern host, whatever the machine has.
    file_system("cgroup2", "/sys/fs/cgroup")?;
    file_system("bpf", "/sys/fs/bpf")?;
    file_system("tmpfs", "/run")?;
    for directory in CHANGED {
        overlay(directory)?;
    }
    // dockerd asks a registry even for an image that it has. Nobody listens here, so it is refused
    // at once and uses what it has, instead of waiting 20 s for a resolver out of reach.
    let resolver = "/etc/resolv.conf";
    let _ = fs::remove_file(resolver);
    fs::write(resolver, "nameserver 127.0.0.1\n").context(resolver)?;
    // Docker's own overlays cannot be on top of an overlay.
    fs::create_dir_all("/var/lib/docker").context("/var/lib/docker")?;
    file_system("tmpfs", "/var/lib/docker")?;
    // As systemd has it: what is mounted later is seen by those who were given a part of the tree.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)
        .context("share mounts within the node")
}

fn file_system(kind: &str, at: &str) -> Result<()> {
    let (flags, data) = match kind {
        "tmpfs" => (MsFlags::empty(), Some("mode=0755")),
        _ => (MsFlags::empty(), None),
    };
    mount(Some(kind), at, Some(kind), flags, data).with_context(|| format!("mount {kind} at {at}"))
}

fn overlay(directory: &str) -> Result<()> {
    let own = Path::new(CHANGES).join(directory.trim_start_matches('/').replace('/', "-"));
    let (upper, work) = (own.join("upper"), own.join("work"));
    for made in [&upper, &work] {
        fs::create_dir_all(made).with_context(|| made.display().to_string())?;
    }
    let data =
        format!("lowerdir={directory},upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), directory, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .with_context(|| format!("mount an overlay at {directory}"))
}
