//! One agent for one set of pinned maps, and one for one admin socket.
//!
//! A lock is a `flock` on a file in `/run/weir`, so that it ends with the process however that
//! ends. The file for pins is named after their directory (`/sys/fs/bpf/weir` is locked by
//! `/run/weir/pin-sys-fs-bpf-weir.lock`) and holds the number of the process.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "another agent{} is running: it holds {path}; stop it, or give this one its own \
         dataplane.pin, socket.path and state.path", by(*.pid)
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The process, if it has written its number yet.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {path}: {cause}; run weir as root, with a writable /run")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

const DIRECTORY: &str = "/run/weir";

impl Lock {
    /// For an agent with these pins.
    pub fn of_pins(pin: &Path) -> Result<Self, LockError> {
        Self::acquire(&Path::new(DIRECTORY).join(pin_lock_name(pin)))
    }

    /// For an agent with this admin socket.
    pub fn of_socket(socket: &Path) -> Result<Self, LockError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        Self::acquire(Path::new(&path))
    }

    /// Locks a file, which is made if need be.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let failed = |cause| LockError::Io { path: path.to_owned(), cause };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        loop {
            let lock = Self::try_once(path)?;
            // Whoever held it may have removed it: then this is a lock on a file without a name.
            if lock.is_named().map_err(failed)? {
                return Ok(lock);
            }
        }
    }

    /// Removes the file, too.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    fn is_named(&self) -> io::Result<bool> {
        let held = self.file.metadata()?.ino();
        Ok(fs::metadata(&self.path).is_ok_and(|named| named.ino() == held))
    }

    fn try_once(path: &Path) -> Result<Self, LockError> {
        let failed = |cause| LockError::Io { path: path.to_owned(), cause };
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { path: path.to_owned(), pid: read_pid(&mut file) });
            }
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
        write_pid(&mut file).map_err(failed)?;
        Ok(Self { file, path: path.to_owned() })
    }
}

fn pin_lock_name(pin: &Path) -> String {
    let pin: PathBuf = pin.components().collect();
    format!("pin{}.lock", pin.display().to_string().replace('/', "-"))
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_the_first_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/pin.lock");
        let first = Lock::acquire(&path).unwrap();
        let error = Lock::acquire(&path).unwrap_err().to_string();
        let pid = format!("another agent (pid {}) is running", std::process::id());
        assert!(error.starts_with(&pid), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        drop(first);
        Lock::acquire(&path).unwrap();
    }

    #[test]
    fn a_lock_that_is_removed_can_be_had_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin.lock");
        Lock::acquire(&path).unwrap().remove().unwrap();
        assert!(!path.exists());
        let again = Lock::acquire(&path).unwrap();
        assert!(again.is_named().unwrap());
    }

    #[test]
    fn a_lock_is_found_by_the_name_of_the_pins() {
        assert_eq!(pin_lock_name(Path::new("/sys/fs/bpf/weir/")), "pin-sys-fs-bpf-weir.lock");
    }
}
