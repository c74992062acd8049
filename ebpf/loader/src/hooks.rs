//! Where the programs are attached: links, pinned so that they outlive the agent, and filters on
//! kernels without links.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        Program, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, TcAttachOptions, TcHandle},
    },
};

use crate::{
    AttachMode, Attachments,
    error::{Error, Tried as _},
    net::Link,
    object::chain,
    sys::{self, AttachType},
};

/// Programs on sockets, and where they attach.
pub(crate) const SOCKET_PROGRAMS: [(&str, AttachType); 8] = [
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("sendmsg4", AttachType::Sendmsg4),
    ("sendmsg6", AttachType::Sendmsg6),
    ("recvmsg4", AttachType::Recvmsg4),
    ("recvmsg6", AttachType::Recvmsg6),
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
];

/// Names under which clsact filters are found, to be replaced and removed.
pub(crate) const INTERFACE_PROGRAMS: [&str; 4] = ["nic_in", "tun_in", "tun_out", "task_out"];

/// Priority and handle of our clsact filters: ahead of others, and recognisable.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x7765);

/// Which side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Packets that arrive.
    Ingress,
    /// Packets that leave.
    Egress,
}

/// The attached programs of one agent.
pub(crate) struct Hooks {
    object: Ebpf,
    dir: PathBuf,
    mode: AttachMode,
    attached: BTreeMap<String, Attached>,
    failed: BTreeMap<String, String>,
}

struct Attached {
    /// For people: `nic_in@eth0`.
    label: String,
    how: &'static str,
    ifindex: u32,
    /// Keeps a link that could not be pinned; `None` for filters.
    _link: Option<OwnedFd>,
}

impl Hooks {
    pub(crate) fn new(object: Ebpf, dir: PathBuf, mode: AttachMode) -> Self {
        Self { object, dir, mode, attached: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Attaches a program to an interface, or puts this agent's program into the link that an
    /// earlier agent pinned. Does nothing when it is there already.
    pub(crate) fn interface(
        &mut self,
        program: &'static str,
        link: &Link,
        side: Side,
    ) -> Result<(), Error> {
        let pin = format!("{program}-{}", link.index);
        if self.attached.contains_key(&pin) {
            return Ok(());
        }
        let label = format!("{program}@{}", link.name);
        match self.attach(program, &pin, link, side) {
            Ok((how, held)) => {
                self.failed.remove(&label);
                let attached = Attached { label, how, ifindex: link.index, _link: held };
                self.attached.insert(pin, attached);
                Ok(())
            }
            Err(error) => {
                self.failed.insert(label, error.to_string());
                Err(error)
            }
        }
    }

    fn attach(
        &mut self,
        program: &'static str,
        pin: &str,
        link: &Link,
        side: Side,
    ) -> Result<(&'static str, Option<OwnedFd>), Error> {
        let what = || format!("attach {program} to {}", link.name);
        if self.mode != AttachMode::Clsact {
            let kind = match side {
                Side::Ingress => AttachType::TcxIngress,
                Side::Egress => AttachType::TcxEgress,
            };
            match self.link(program, pin, link.index, kind, link.index.into()) {
                Ok(held) => return Ok(("tcx", Some(held))),
                // Linux before 6.6 knows no TCX.
                Err(error)
                    if self.mode == AttachMode::Auto
                        && error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(Error::new(what(), error)),
            }
        }
        self.filter(program, link, side).tried(what)?;
        Ok(("clsact", None))
    }

    /// Attaches the socket programs to a cgroup.
    pub(crate) fn cgroup(&mut self, path: &Path) -> Result<(), Error> {
        let what = || format!("attach to the cgroup {}", path.display());
        let directory = fs::File::open(path).tried(what).map_err(|error| {
            error.remedy("set dataplane.cgroup to a directory on a cgroup2 file system")
        })?;
        let id = directory.metadata().tried(what)?.ino();
        for (program, kind) in SOCKET_PROGRAMS {
            let target = std::os::fd::AsRawFd::as_raw_fd(&directory) as u32;
            let pin = format!("{program}-cgroup");
            let held = self
                .link(program, &pin, target, kind, id)
                .tried(|| format!("attach {program} to the cgroup {}", path.display()))?;
            let label = format!("{program}@cgroup");
            self.attached
                .insert(pin, Attached { label, how: "cgroup", ifindex: 0, _link: Some(held) });
        }
        Ok(())
    }

    /// Makes or takes over a pinned link. `identity`: what the kernel says of its target.
    fn link(
        &self,
        program: &str,
        pin: &str,
        target: u32,
        kind: AttachType,
        identity: u64,
    ) -> io::Result<OwnedFd> {
        let program = self.program(program)?;
        let path = self.dir.join(pin);
        if let Ok(link) = sys::open_pinned(&path) {
            if target_of(&link, kind)? == identity {
                sys::link_update(link.as_fd(), program.as_fd())?;
                return Ok(link);
            }
            // The target was replaced by another: the new one first, so that nothing is missed.
            let new = sys::link_create(program.as_fd(), target, kind)?;
            fs::remove_file(&path)?;
            sys::pin(&new, &path)?;
            return Ok(new);
        }
        let link = sys::link_create(program.as_fd(), target, kind)?;
        sys::pin(&link, &path)?;
        Ok(link)
    }

    fn program(&self, name: &str) -> io::Result<OwnedFd> {
        let fd = match self.object.program(name) {
            Some(Program::SchedClassifier(program)) => program.fd(),
            Some(Program::CgroupSockAddr(program)) => program.fd(),
            _ => return Err(io::Error::other(format!("the object has no program {name}"))),
        };
        fd.map_err(io::Error::other)?.as_fd().try_clone_to_owned()
    }

    fn filter(&mut self, program: &str, link: &Link, side: Side) -> Result<(), String> {
        match tc::qdisc_add_clsact(&link.name) {
            Ok(()) | Err(tc::TcError::AlreadyAttached) => {}
            // How the kernel says the same, which aya passes on.
            Err(error) if chain(&error).contains("(os error 17)") => {}
            Err(error) => return Err(chain(&error)),
        }
        let side = match side {
            Side::Ingress => TcAttachType::Ingress,
            Side::Egress => TcAttachType::Egress,
        };
        let classifier = self.classifier(program)?;
        let old = tc::SchedClassifierLink::attached(&link.name, side, PRIORITY, HANDLE, None);
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        let id = match old.ok().map(|old| classifier.attach_to_link(old)) {
            Some(Ok(id)) => id,
            _ => classifier
                .attach_with_options(&link.name, side, TcAttachOptions::Netlink(options))
                .map_err(|error| chain(&error))?,
        };
        // A filter lives in the interface; only aya's guard would remove it with the agent.
        std::mem::forget(classifier.take_link(id).map_err(|error| chain(&error))?);
        Ok(())
    }

    fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, String> {
        match self.object.program_mut(name) {
            Some(Program::SchedClassifier(program)) => Ok(program),
            _ => Err(format!("the object has no classifier {name}")),
        }
    }

    /// Forgets links whose interfaces are gone, and detaches from those that are no longer wanted.
    pub(crate) fn sweep(&mut self, wanted: &BTreeSet<(&'static str, u32)>) {
        let keep: BTreeSet<String> =
            wanted.iter().map(|(program, ifindex)| format!("{program}-{ifindex}")).collect();
        self.attached.retain(|pin, attached| attached.ifindex == 0 || keep.contains(pin));
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with("-cgroup") && !keep.contains(&name) {
                // Removing the pin of a link that nobody holds detaches it.
                if let Err(error) = fs::remove_file(entry.path()) {
                    tracing::warn!(link = name, %error, "Could not remove a stale link");
                }
            }
        }
    }

    pub(crate) fn attachments(&self) -> Attachments {
        let hooks = self.attached.values().map(|hook| (hook.label.clone(), hook.how)).collect();
        Attachments { hooks, missing: BTreeSet::new(), failed: self.failed.clone() }
    }

    /// The loaded program, for test runs.
    pub(crate) fn object(&self) -> &Ebpf {
        &self.object
    }
}

/// What a link is attached to: an interface index, or the id of a cgroup.
fn target_of(link: &OwnedFd, kind: AttachType) -> io::Result<u64> {
    let info = sys::link_info(link.as_fd())?;
    Ok(match kind {
        AttachType::TcxIngress | AttachType::TcxEgress => info.ifindex.into(),
        _ => u64::from(info.ifindex) | u64::from(info.attach_type) << 32,
    })
}

/// Removes our clsact filters from an interface, and the qdisc.
pub(crate) fn remove_filters(name: &str) -> bool {
    let mut removed = false;
    for side in [TcAttachType::Ingress, TcAttachType::Egress] {
        if let Ok(link) = tc::SchedClassifierLink::attached(name, side, PRIORITY, HANDLE, None) {
            for program in INTERFACE_PROGRAMS {
                removed |= tc::qdisc_detach_program(name, side, program).is_ok();
            }
            std::mem::forget(link);
        }
    }
    removed
}
