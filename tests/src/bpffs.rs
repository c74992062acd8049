//! `/sys/fs/bpf`, mounted for as long as any lab on the machine needs it.
//!
//! Every lab holds a shared lock on one file; the last one to leave gets it exclusively and
//! unmounts what a lab had mounted, if it is empty. The lock goes with the process, so a killed
//! lab does not count (its [`sweeper`] gives back for it), and the mark that *we* mounted it is a
//! file that survives it.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount, umount};

use crate::sweeper;

/// Where pins go.
pub const BPFFS: &str = "/sys/fs/bpf";
const LOCK: &str = "/run/weir-lab.lock";
const MARK: &str = "/run/weir-lab.mounted-bpffs";

/// A share in the mounted bpffs. The last one to be dropped unmounts what a lab had mounted, unless it
/// is in use.
#[derive(Debug)]
pub struct BpffsLease {
    shared: Option<Flock<File>>,
}

impl BpffsLease {
    /// Takes a share and mounts the file system if it is not there.
    pub fn take() -> Result<Self> {
        sweeper::begin()?;
        let shared = lock(FlockArg::LockShared)?;
        if !is_mounted()? {
            mount(Some("bpffs"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
                .context("mount bpffs at /sys/fs/bpf")?;
            fs::write(MARK, "").context(MARK)?;
        }
        Ok(Self { shared: Some(shared) })
    }
}

impl Drop for BpffsLease {
    fn drop(&mut self) {
        drop(self.shared.take());
        give_back();
    }
}

/// Unmounts what a lab had mounted, unless it is in use.
pub(crate) fn give_back() {
    if !Path::new(MARK).exists() {
        return;
    }
    // Not an error: another lab runs, or somebody else uses the mount by now.
    let Ok(_alone) = lock(FlockArg::LockExclusiveNonblock) else { return };
    if is_empty() && umount(BPFFS).is_ok() {
        let _ = fs::remove_file(MARK);
    }
}

fn lock(kind: FlockArg) -> Result<Flock<File>> {
    let file = File::options().create(true).append(true).open(LOCK).context(LOCK)?;
    Flock::lock(file, kind).map_err(|(_, error)| anyhow!("lock {LOCK}: {error}"))
}

fn is_mounted() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    }))
}

/// Whether nobody has pinned anything. `maps.debug` and `progs.debug` are the kernel's own
/// (CONFIG_BPF_PRELOAD).
fn is_empty() -> bool {
    let entries = fs::read_dir(BPFFS).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.file_name()).all(|name| name.to_string_lossy().ends_with(".debug"))
}
