//! What the kernel calls a network namespace.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use weir_mesh::vip::SpaceCookie;

use crate::{
    error::{Error, Tried as _},
    sys,
};

/// The cookie of the network namespace that a file stands for: a bind mount such as
/// `/run/netns/web`, a container's `SandboxKey`, or `/proc/<pid>/ns/net`. Blocks for a fraction of a
/// millisecond, on a thread of its own that enters the namespace; the caller stays where it is.
///
/// # Errors
/// When the file cannot be opened, stands for something else, or may not be entered (that takes
/// CAP_SYS_ADMIN).
pub fn netns_cookie_of(path: &Path) -> Result<SpaceCookie, Error> {
    cookie_of(path, &open(path)?)
}

/// Cookies that were asked for before. A file is known by its identity, not only by its name: another
/// namespace may be mounted at the same place.
#[derive(Debug, Default)]
pub struct NetnsCookies {
    known: HashMap<PathBuf, (Identity, SpaceCookie)>,
}

/// Device, inode, and when the inode was made, in seconds and nanoseconds: inode numbers of namespaces
/// are used again at once.
type Identity = (u64, u64, i64, i64);

impl NetnsCookies {
    /// As [`netns_cookie_of`], without entering the namespace a second time.
    ///
    /// # Errors
    /// The same.
    pub fn cookie_of(&mut self, path: &Path) -> Result<SpaceCookie, Error> {
        let file = open(path)?;
        let metadata = file.metadata().tried(|| what(path))?;
        let made = (metadata.ctime(), metadata.ctime_nsec());
        let identity = (metadata.dev(), metadata.ino(), made.0, made.1);
        if let Some((known, cookie)) = self.known.get(path)
            && *known == identity
        {
            return Ok(*cookie);
        }
        let cookie = cookie_of(path, &file)?;
        self.known.insert(path.to_owned(), (identity, cookie));
        Ok(cookie)
    }

    /// Forgets all files but these.
    pub fn keep(&mut self, wanted: impl Fn(&Path) -> bool) {
        self.known.retain(|path, _| wanted(path));
    }
}

fn what(path: &Path) -> String {
    format!("look at the network namespace {}", path.display())
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => {
                "it has ended, or its directory is not mounted here: a container needs the host's, \
                 with propagation rslave"
            }
            _ => "",
        };
        Error::new(what(path), error).remedy(remedy)
    })
}

fn cookie_of(path: &Path, file: &File) -> Result<SpaceCookie, Error> {
    let inside = || sys::enter_netns(file.as_fd()).and_then(|()| sys::netns_cookie());
    let answer = thread::scope(|scope| {
        let visitor = thread::Builder::new().name("netns".into()).spawn_scoped(scope, inside)?;
        visitor.join().unwrap_or_else(|_| Err(io::Error::other("the visiting thread panicked")))
    });
    answer.map(SpaceCookie).map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::EINVAL) => "the file stands for no network namespace",
            Some(libc::EPERM) => "entering it takes CAP_SYS_ADMIN",
            _ => "",
        };
        Error::new(what(path), error).remedy(remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_of_our_own_namespace_is_found_by_its_file() {
        let own = Path::new("/proc/thread-self/ns/net");
        assert_eq!(netns_cookie_of(own).unwrap().0, sys::netns_cookie().unwrap());
        let mut cookies = NetnsCookies::default();
        assert_eq!(cookies.cookie_of(own).unwrap(), cookies.cookie_of(own).unwrap());
    }

    #[test]
    fn what_is_no_namespace_is_named_with_the_way_out() {
        let missing = netns_cookie_of(Path::new("/run/netns/none-such")).unwrap_err().to_string();
        assert!(missing.starts_with("look at the network namespace /run/netns/none-such: No such"));
        assert!(missing.contains("rslave"), "{missing}");
        let wrong = netns_cookie_of(Path::new("/proc/self/status")).unwrap_err().to_string();
        assert!(wrong.ends_with("(the file stands for no network namespace)"), "{wrong}");
    }
}
