//! A cgroup2 subtree per lab, so that weir's connect-time programs see one host's processes only.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::eventually;

/// A cgroup directory. Removed by [`Cgroup::kill_and_remove`], which the lab calls for its top one.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the directory.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Makes a cgroup below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.path.join(name))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that moves a process into this cgroup.
    pub fn open_procs(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).with_context(|| path.display().to_string())
    }

    /// Kills everything inside and removes the tree.
    pub fn kill_and_remove(&self) -> Result<()> {
        kill_and_remove(&self.path)
    }
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup` or, on hybrid systems, `/sys/fs/cgroup/unified`.
pub fn cgroup2_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// Kills everything in a cgroup tree and removes it: a killed process needs a moment to be gone.
pub(crate) fn kill_and_remove(path: &Path) -> Result<()> {
    let what = format!("cgroup {} to be empty", path.display());
    eventually(&what, Duration::from_secs(5), || {
        match fs::write(path.join("cgroup.kill"), "1").and_then(|()| remove_tree(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    })
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
