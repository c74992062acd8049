//! What two agents say to each other over a pair of sockets.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use weir_proxy::{FORMAT, Handover};

use super::Role;

/// One end of the pair. What is said is a byte, with more behind some.
#[derive(Debug)]
pub(super) struct Line(UnixStream);

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The new agent could begin.
    Hello,
    /// The new agent cannot, and why.
    No(String),
    /// It is to begin, and will find a proxy of this role.
    Go(Option<Role>),
    /// It wants what the proxy leaves.
    Take,
    /// It serves.
    Runs,
}

/// Files that go with one byte; Linux takes 253.
const FILES: usize = 200;
/// A sentence; more is no sentence.
const LONGEST: usize = 64 << 10;

impl Line {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    pub(super) fn patience(&self, most: Option<Duration>) -> io::Result<()> {
        self.0.set_read_timeout(most)
    }

    pub(super) fn say(&self, said: &Said) -> io::Result<()> {
        let mut stream = &self.0;
        match said {
            Said::Hello => stream.write_all(&[b'H', FORMAT as u8]),
            Said::No(why) => {
                let why = &why.as_bytes()[..why.len().min(LONGEST)];
                stream.write_all(b"N")?;
                stream.write_all(&(why.len() as u32).to_be_bytes())?;
                stream.write_all(why)
            }
            Said::Go(None) => stream.write_all(b"G0"),
            Said::Go(Some(Role::Alone)) => stream.write_all(b"G1"),
            Said::Go(Some(Role::Beside)) => stream.write_all(b"G2"),
            Said::Take => stream.write_all(b"T"),
            Said::Runs => stream.write_all(b"R"),
        }
    }

    /// What is said next.
    ///
    /// # Errors
    /// When the other end is gone, says nothing for too long, or speaks of another version.
    pub(super) fn hear(&self) -> io::Result<Said> {
        match self.byte()? {
            b'H' => match self.byte()? {
                format if u32::from(format) == FORMAT => Ok(Said::Hello),
                format => Err(io::Error::other(format!(
                    "it reads what format {format} leaves, and this agent leaves format {FORMAT}: \
                     restart the agent instead"
                ))),
            },
            b'N' => {
                let mut length = [0; 4];
                (&self.0).read_exact(&mut length)?;
                let mut why = vec![0; (u32::from_be_bytes(length) as usize).min(LONGEST)];
                (&self.0).read_exact(&mut why)?;
                Ok(Said::No(String::from_utf8_lossy(&why).into_owned()))
            }
            b'G' => match self.byte()? {
                b'0' => Ok(Said::Go(None)),
                b'1' => Ok(Said::Go(Some(Role::Alone))),
                b'2' => Ok(Said::Go(Some(Role::Beside))),
                other => Err(strange(other)),
            },
            b'T' => Ok(Said::Take),
            b'R' => Ok(Said::Runs),
            other => Err(strange(other)),
        }
    }

    fn byte(&self) -> io::Result<u8> {
        let mut byte = [0];
        (&self.0).read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// Gives the other end all of it; the files stay open here as well.
    pub(super) fn give(&self, handover: &Handover) -> io::Result<()> {
        let Handover { state, files } = handover;
        let mut stream = &self.0;
        stream.write_all(&(state.len() as u64).to_be_bytes())?;
        stream.write_all(&(files.len() as u64).to_be_bytes())?;
        stream.write_all(state)?;
        for some in files.chunks(FILES) {
            let numbers: Vec<RawFd> = some.iter().map(AsRawFd::as_raw_fd).collect();
            let with = [ControlMessage::ScmRights(&numbers)];
            sendmsg::<()>(
                self.0.as_raw_fd(),
                &[IoSlice::new(b"F")],
                &with,
                MsgFlags::empty(),
                None,
            )?;
        }
        Ok(())
    }

    /// Takes what the other end gives.
    pub(super) fn take(&self) -> io::Result<Handover> {
        let mut stream = &self.0;
        let mut number = || -> io::Result<usize> {
            let mut bytes = [0; 8];
            stream.read_exact(&mut bytes)?;
            usize::try_from(u64::from_be_bytes(bytes)).map_err(io::Error::other)
        };
        let (length, count) = (number()?, number()?);
        let mut state = Vec::new();
        (&self.0).take(length as u64).read_to_end(&mut state)?;
        if state.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut files = Vec::new();
        while files.len() < count {
            let before = files.len();
            self.take_files(&mut files)?;
            if files.len() < (before + FILES).min(count) {
                let (had, wanted) = (files.len(), count);
                return Err(io::Error::other(format!(
                    "{had} of {wanted} files came; raise the limit of open files"
                )));
            }
        }
        Ok(Handover { state, files })
    }

    fn take_files(&self, files: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let mut room = nix::cmsg_space!([RawFd; FILES]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // SAFETY: the kernel has just made these for this process, and nobody else knows them.
                files.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        Ok(())
    }
}

fn strange(byte: u8) -> io::Error {
    io::Error::other(format!("the other agent says {byte:#04x}, which means nothing here"))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    fn pair() -> (Line, Line) {
        let (one, other) = UnixStream::pair().unwrap();
        (Line::new(one), Line::new(other))
    }

    #[test]
    fn what_is_said_is_heard() {
        let (one, other) = pair();
        for said in [
            Said::Hello,
            Said::No("there is a mistake".to_owned()),
            Said::Go(None),
            Said::Go(Some(Role::Alone)),
            Said::Go(Some(Role::Beside)),
            Said::Take,
            Said::Runs,
        ] {
            one.say(&said).unwrap();
            assert_eq!(other.hear().unwrap(), said);
        }
        drop(one);
        assert_eq!(other.hear().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn more_sockets_than_go_at_once_arrive_in_their_order() {
        let (one, other) = pair();
        let files: Vec<OwnedFd> =
            (0..FILES + 3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap().into()).collect();
        let port = |file: &OwnedFd| {
            TcpListener::from(file.try_clone().unwrap()).local_addr().unwrap().port()
        };
        let before: Vec<u16> = files.iter().map(port).collect();
        let state = vec![7; 3_000_000];
        let giving = thread::spawn(move || one.give(&Handover { state, files }).unwrap());
        let taken = other.take().unwrap();
        giving.join().unwrap();
        assert!(taken.state.len() == 3_000_000 && taken.state.iter().all(|byte| *byte == 7));
        assert_eq!(taken.files.iter().map(port).collect::<Vec<_>>(), before);
    }

    #[test]
    fn an_agent_that_reads_another_format_is_not_begun_with() {
        let (one, other) = pair();
        (&one.0).write_all(&[b'H', 200]).unwrap();
        let error = other.hear().unwrap_err().to_string();
        assert!(error.contains("format 200") && error.contains("restart the agent"), "{error}");
    }
}
