//! The names that a lab leaves in the file system, and the removal of those of dead labs.
//!
//! After a SIGKILL the kernel frees namespaces and kills processes; directories stay. Their names
//! carry the pid of their lab, so that a sweeper, or any later lab, can tell that nobody owns them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use crate::bpffs::BPFFS;
use crate::cgroup::{cgroup2_root, kill_and_remove};

const PREFIX: &str = "weir-lab-";
/// Trials of the kernel programs pin their maps for a moment.
const TRIAL_PREFIX: &str = "weir-trial-";
/// Where agents have the locks of their pins.
const LOCKS: &str = "/run/weir";

/// `weir-lab-<pid>-<seq>`: unique on the machine while our process lives.
#[derive(Debug, Clone)]
pub struct LabName(String);

impl LabName {
    /// The next name of this process.
    pub fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let seq = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("{PREFIX}{}-{seq}", std::process::id()))
    }

    /// The cgroup of the lab.
    pub fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup2_root()?.join(&self.0))
    }

    /// The directory for configuration, sockets and logs.
    pub fn run_dir(&self) -> PathBuf {
        std::env::temp_dir().join(&self.0)
    }

    /// The pin directory of one host.
    pub fn pin_dir(&self, host: &str) -> PathBuf {
        Path::new(BPFFS).join(format!("{}-{host}", self.0))
    }
}

/// Removes what labs left whose process is gone. Failures are for the next sweep.
pub fn sweep() {
    if let Ok(root) = cgroup2_root() {
        for path in orphans(&root) {
            let _ = kill_and_remove(&path);
        }
    }
    remove_locks_of(is_orphan);
    for place in [PathBuf::from(BPFFS), std::env::temp_dir()] {
        for path in orphans(&place) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Removes what the agents of a lab locked: one that could not begin leaves its own, since a lock
/// file that is removed while somebody waits for it is no lock.
pub fn remove_locks(run_dir: &Path) {
    let lab = run_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    remove_locks_of(|name| name == lab || name.starts_with(&format!("{lab}-")));
}

/// `is_dead` is asked with the part of a lock's name that begins with the name of a lab.
fn remove_locks_of(is_dead: impl Fn(&str) -> bool) {
    for (place, ending) in [(LOCKS, ".lock"), (BPFFS, "-lock")] {
        for entry in fs::read_dir(place).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let of_lab = name.strip_suffix(ending).and_then(|it| it.get(it.find(PREFIX)?..));
            if of_lab.is_some_and(&is_dead) {
                let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir(entry.path()));
            }
        }
    }
}

/// Whether something carries the name of this process.
pub(crate) fn is_left_of(pid: u32) -> bool {
    let places = [cgroup2_root().unwrap_or_default(), PathBuf::from(BPFFS), std::env::temp_dir()];
    places.iter().any(|place| !named(place, |name| owner(name) == Some(pid)).is_empty())
}

fn orphans(place: &Path) -> Vec<PathBuf> {
    named(place, is_orphan)
}

fn named(place: &Path, is_it: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(place) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(&is_it))
        .map(|entry| entry.path())
        .collect()
}

fn is_orphan(name: &str) -> bool {
    owner(name).is_some_and(has_ended)
}

/// One that has ended, and that its parent has not asked for yet, is as good as gone.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX).or_else(|| name.strip_prefix(TRIAL_PREFIX))?;
    rest.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_read_from_directories_and_pins() {
        assert_eq!(owner("weir-lab-4711-2"), Some(4711));
        assert_eq!(owner("weir-lab-4711-2-n1"), Some(4711));
        assert_eq!(owner("weir-trial-4711-0"), Some(4711));
        assert_eq!(owner("weir-lab-x"), None);
        assert_eq!(owner("weir"), None);
    }

    #[test]
    fn a_living_owner_keeps_its_things() {
        assert!(!is_orphan(&LabName::next().0));
        assert!(is_orphan("weir-lab-4194999-1"), "above pid_max");
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let name = format!("weir-lab-{}-1", ended.id());
        crate::eventually("it to end", std::time::Duration::from_secs(5), || {
            if is_orphan(&name) { Ok(()) } else { Err("it runs") }
        })
        .unwrap();
        ended.wait().unwrap();
    }
}
