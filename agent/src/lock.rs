//! One agent for one set of pinned maps, and one for one admin socket.
//!
//! A lock is a `flock` on a file in `/run/weir`, so that it ends with the process however that
//! ends. The file for pins is named after their directory (`/sys/fs/bpf/weir` is locked by
//! `/run/weir/pin-sys-fs-bpf-weir.lock`) and holds the number of the process.
//!
//! A container has a `/run` of its own, but the BPF file system of its host: an empty directory beside the
//! pins (`/sys/fs/bpf/weir-lock`) is locked as well.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: Named,
    /// Beside pins.
    directory: Option<Named>,
}

/// What is locked, and how whoever comes next will find it.
#[derive(Debug)]
struct Named {
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
        let mut lock = Self::acquire(&Path::new(DIRECTORY).join(pin_lock_name(pin)))?;
        lock.directory =
            beside(pin).as_deref().map(|path| lock_named(path, directory)).transpose()?;
        Ok(lock)
    }

    /// For an agent with this admin socket.
    pub fn of_socket(socket: &Path) -> Result<Self, LockError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        Self::acquire(Path::new(&path))
    }

    /// Locks a file, which is made if need be.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|cause| failed(path, cause))?;
        }
        let mut file = lock_named(path, plain_file)?;
        write_pid(&mut file.file).map_err(|cause| failed(path, cause))?;
        Ok(Self { file, directory: None })
    }

    /// Removes the file, too.
    pub fn remove(self) -> io::Result<()> {
        let directory = self.directory.map_or(Ok(()), |directory| fs::remove_dir(directory.path));
        fs::remove_file(self.file.path).and(directory)
    }
}

fn failed(path: &Path, cause: io::Error) -> LockError {
    LockError::Io { path: path.to_owned(), cause }
}

/// Where others who have these pins look. Names there have no dots (`bpf_lookup`, kernel/bpf/inode.c).
fn beside(pin: &Path) -> Option<PathBuf> {
    let (parent, name) = (pin.parent()?, pin.file_name()?.to_str()?);
    let shared = statfs(parent).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    shared.then(|| parent.join(format!("{name}-lock")))
}

fn lock_named(path: &Path, open: fn(&Path) -> io::Result<File>) -> Result<Named, LockError> {
    loop {
        let mut file = open(path).map_err(|cause| failed(path, cause))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { path: path.to_owned(), pid: read_pid(&mut file) });
            }
            Err(TryLockError::Error(cause)) => return Err(failed(path, cause)),
        }
        // Whoever held it may have removed it: then this is a lock on a file without a name.
        let held = file.metadata().map_err(|cause| failed(path, cause))?.ino();
        if fs::metadata(path).is_ok_and(|named| named.ino() == held) {
            return Ok(Named { file, path: path.to_owned() });
        }
    }
}

fn plain_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

fn directory(path: &Path) -> io::Result<File> {
    loop {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match File::open(path) {
            // Whoever held it has removed it just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => return outcome,
        }
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
        assert_eq!(again.file.path, path);
    }

    #[test]
    fn a_lock_is_found_by_the_name_of_the_pins() {
        assert_eq!(pin_lock_name(Path::new("/sys/fs/bpf/weir/")), "pin-sys-fs-bpf-weir.lock");
    }
}
