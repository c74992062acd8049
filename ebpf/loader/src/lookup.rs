//! One listener for all published TCP ports: `BPF_PROG_TYPE_SK_LOOKUP` (Linux 5.9).

use std::{
    fs::File,
    io,
    net::TcpListener,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya::{EbpfLoader, include_bytes_aligned, maps::Map, programs::Program};

use crate::{
    error::{Error, Tried as _},
    object::chain,
    sys::{self, AttachType},
};

/// The program, as committed.
static OBJECT: &[u8] = include_bytes_aligned!("../object/lookup.bpf.o");

/// Leads clients of many ports to one listener, in the network namespace of the thread that made it. Nothing
/// is pinned: it ends with the last process that holds it.
#[derive(Debug)]
pub struct SocketLookup {
    ports: OwnedFd,
    /// What keeps the program attached.
    link: OwnedFd,
    /// Where the listener is bound.
    own: u16,
}

/// Clients are refused.
const CLOSED: u8 = 0;
/// Clients are led to the listener.
const LED: u8 = 1;

impl SocketLookup {
    /// Leads nobody yet. `listener` may be one socket of a group that shares its port; the kernel spreads
    /// clients among the group.
    ///
    /// # Errors
    /// When the kernel has no such programs, or this process may not load or attach them.
    pub fn attach(listener: BorrowedFd<'_>) -> Result<Self, Error> {
        let tried = |what: &str, cause: String| Error::new(what, cause);
        let mut object = EbpfLoader::new()
            .load(OBJECT)
            .map_err(|error| tried("create the maps of sk_lookup", chain(&error)))?;
        let cell = 0_u32;
        // A map of sockets takes descriptors as eight bytes.
        let socket = listener.as_raw_fd() as u64;
        let what = || "enter the listener for sk_lookup".to_owned();
        sys::update(map(&object, "LISTENER")?, &cell, &raw const socket).tried(what)?;
        let ports = map(&object, "PORTS")?.try_clone_to_owned();
        let ports = ports.tried(|| "keep the map of ports".to_owned())?;
        let Some(Program::SkLookup(program)) = object.program_mut("lookup") else {
            return Err(tried("load the program lookup", "the object has none".to_owned()));
        };
        program.load().map_err(|error| tried("load the program lookup", chain(&error)))?;
        let program =
            program.fd().map_err(|error| tried("load the program lookup", chain(&error)))?;
        let what = || "attach sk_lookup to the network namespace".to_owned();
        let netns = File::open("/proc/thread-self/ns/net").tried(what)?;
        let link =
            sys::link_create(program.as_fd(), netns.as_raw_fd() as u32, AttachType::SkLookup);
        let lookup = Self { ports, link: link.tried(what)?, own: port_of(listener).tried(what)? };
        lookup.leave(lookup.own).tried(what)?;
        Ok(lookup)
    }

    /// Goes on with what [`Self::into_files`] gave, for the same listener.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_files(
        [ports, link]: [OwnedFd; 2],
        listener: BorrowedFd<'_>,
    ) -> Result<Self, Error> {
        let own = port_of(listener).tried(|| "go on with sk_lookup".to_owned())?;
        Ok(Self { ports, link, own })
    }

    /// What another process needs to go on without a moment in which nobody is led.
    pub fn into_files(self) -> [OwnedFd; 2] {
        [self.ports, self.link]
    }

    /// Clients of this port are led to the listener from now on, whoever else listens there.
    ///
    /// # Errors
    /// When the kernel has no memory.
    pub fn lead(&self, port: u16) -> io::Result<()> {
        sys::update(self.ports.as_fd(), &port, &LED)
    }

    /// New clients of this port are not led any more; at the listener's own they are refused.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn leave(&self, port: u16) -> io::Result<()> {
        match port == self.own {
            true => sys::update(self.ports.as_fd(), &port, &CLOSED),
            false => sys::delete(self.ports.as_fd(), &port).map(drop),
        }
    }
}

fn port_of(listener: BorrowedFd<'_>) -> io::Result<u16> {
    Ok(TcpListener::from(listener.try_clone_to_owned()?).local_addr()?.port())
}

fn map<'o>(object: &'o aya::Ebpf, name: &str) -> Result<BorrowedFd<'o>, Error> {
    match object.map(name) {
        Some(Map::HashMap(data) | Map::SockMap(data)) => Ok(data.fd().as_fd()),
        _ => Err(Error::new("create the maps of sk_lookup", format!("the object has no {name}"))),
    }
}
