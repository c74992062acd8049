//! Leaving the host as it was.

use std::{fs, path::Path};

use crate::{
    Dataplane, Options,
    error::{Error, Tried as _},
    hooks,
    net::Netlink,
};

impl Dataplane {
    /// Removes everything that any agent with these options left in the kernel: links, maps,
    /// filters, the tunnel device with its routes. Goes on after errors, and collects them. Answers
    /// what it removed, in the order in which it did.
    pub fn uninstall(options: &Options) -> (Vec<String>, Vec<Error>) {
        let mut removed = Vec::new();
        let mut errors = Vec::new();
        // Links first: a program without its tunnel device would send packets nowhere.
        if let Ok(entries) = fs::read_dir(&options.pin) {
            for entry in entries.flatten() {
                let (gone, failed) = remove_tree(&entry.path());
                removed.extend(gone);
                errors.extend(failed);
            }
            match fs::remove_dir(&options.pin) {
                Ok(()) => removed.push(options.pin.display().to_string()),
                Err(error) => errors.push(Error::new(
                    format!("remove the directory {}", options.pin.display()),
                    error,
                )),
            }
        }
        match Netlink::new().and_then(|netlink| Ok((netlink.host()?, netlink))) {
            Ok((host, netlink)) => {
                for link in host.links.values() {
                    if hooks::remove_filters(&link.name) {
                        removed.push(format!("filters on {}", link.name));
                        match netlink.remove_empty_clsact(link.index) {
                            Ok(true) => removed.push(format!("clsact qdisc on {}", link.name)),
                            Ok(false) => {}
                            Err(error) => errors.push(error),
                        }
                    }
                }
                let ours = host
                    .by_name(&options.tunnel_device)
                    .filter(|link| link.mac == weir_abi::TUNNEL_MAC && link.vxlan_port.is_some());
                if let Some(link) = ours {
                    match netlink.remove_link(link.index) {
                        Ok(()) => removed.push(format!("tunnel device {}", link.name)),
                        Err(error) => errors.push(error),
                    }
                }
            }
            Err(error) => errors.push(error),
        }
        (removed, errors)
    }
}

/// Removes pins below `path`, and `path`: links before maps, since names sort so.
pub(crate) fn remove_tree(path: &Path) -> (Vec<String>, Vec<Error>) {
    let mut removed = Vec::new();
    let mut errors = Vec::new();
    let what = || format!("remove {}", path.display());
    if path.is_dir() {
        let mut entries: Vec<_> =
            fs::read_dir(path).map(|dir| dir.flatten().collect()).unwrap_or_default();
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let (gone, failed) = remove_tree(&entry.path());
            removed.extend(gone);
            errors.extend(failed);
        }
    }
    let outcome = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
    match outcome.tried(what) {
        Ok(()) => removed.push(path.display().to_string()),
        Err(error) => errors.push(error),
    }
    (removed, errors)
}
