//! Pipes for splice(2), kept by each worker for whoever moves bytes next.

use std::{cell::RefCell, io, os::fd::OwnedFd};

use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};
use tokio::{io::Interest, net::TcpStream};

/// What one pipe is to hold: with more, two sockets gain nothing (measured between 64 KiB and 1 MiB).
const SIZE: usize = 256 << 10;
/// Empty pipes that a worker keeps.
const KEPT: usize = 32;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, and how many bytes are in it.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    filled: usize,
}

impl Pipe {
    /// An empty one.
    pub(super) fn take() -> io::Result<Self> {
        if let Some(pipe) = POOL.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // The default of 64 KiB works as well, with more system calls.
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(SIZE as i32)).ok();
        Ok(Self { reader, writer, filled: 0 })
    }

    /// For the next one, if it is empty.
    pub(super) fn give_back(self) {
        if self.filled == 0 {
            POOL.with_borrow_mut(|pool| {
                if pool.len() < KEPT {
                    pool.push(self);
                }
            });
        }
    }

    /// Moves what has arrived into the empty pipe; 0 at the end of the stream.
    pub(super) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let moved = from.try_io(Interest::READABLE, || {
            Ok(splice(from, None, &self.writer, None, SIZE, SpliceFFlags::SPLICE_F_NONBLOCK)?)
        })?;
        self.filled += moved;
        Ok(moved)
    }

    /// Moves out of the pipe what the stream takes.
    pub(super) fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let moved = to.try_io(Interest::WRITABLE, || {
            Ok(splice(&self.reader, None, to, None, self.filled, SpliceFFlags::SPLICE_F_NONBLOCK)?)
        })?;
        self.filled -= moved;
        Ok(moved)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }
}
